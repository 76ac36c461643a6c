//! Copies of other nodes' segments, byte for byte, checked before anything in them counts.
//!
//! A packed segment is followed while it grows: bytes are appended, records whose checksums hold
//! are synced and published. A solo segment is copied whole; its two leading pages are written
//! last, as when it was uploaded.

use std::sync::Arc;

use crate::clock::Version;
use crate::disk::{Piece, ShardFile, SharedPiece, SyncPoint};
use crate::error::{Error, Result};
use crate::format::record::{FIXED_BYTES, MAX_HEAD, RecordHead};
use crate::format::segment_header::{SegmentHeader, SegmentKind};
use crate::format::{HEADER_BYTES, trailer};
use crate::id::{ObjectId, SegmentNumber};
use crate::segment::Segment;
use crate::segment::scan::{check_place, entry_of};
use crate::solo::{BlockCrcs, Ending, PAYLOAD_AT, Reserved, SoloFile};
use crate::store::{Known, Marker, Store};

/// A record that arrived and is durable here.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// The user.
    pub user: String,
    /// The file name.
    pub name: String,
    /// The write's version: the clock is told of it.
    pub version: Version,
    /// The object a tombstone names: it is dead here too.
    pub target: Option<ObjectId>,
}

impl Store {
    /// Marks the objects dead here, too, that tombstones among arrived records name.
    pub async fn bury_targets(self: &Arc<Self>, arrived: &[Arrived]) -> Result<()> {
        let dead: Vec<ObjectId> = arrived.iter().filter_map(|record| record.target).collect();
        if dead.is_empty() {
            return Ok(());
        }
        let store = Arc::clone(self);
        self.pool()
            .run(move || {
                store.kill_all(dead);
                Ok(())
            })
            .await
    }
}

/// The copy of a packed segment, being filled.
pub struct PackedReplica {
    store: Arc<Store>,
    segment: Arc<Segment>,
    file: ShardFile,
    /// Bytes behind the durable ones that do not make a whole record yet.
    pending: Vec<u8>,
}

impl PackedReplica {
    /// Begins a copy, or goes on with the one that is here already. `Ok(None)`: it is complete, or gone for good.
    pub async fn open(store: &Arc<Store>, known: &Known) -> Result<Option<Self>> {
        let (maker, known) = (Arc::clone(store), known.clone());
        let opened = store.pool().run(move || open_packed(&maker, &known)).await?;
        let Some(segment) = opened else { return Ok(None) };
        let file = ShardFile::adopt(segment.file().clone(), store.pool())?;
        Ok(Some(Self { store: Arc::clone(store), segment, file, pending: Vec::new() }))
    }

    /// The offset to pull from next; all before it is here, durable or pending.
    pub fn next_offset(&self) -> u64 {
        self.segment.durable() + self.pending.len() as u64
    }

    /// Takes the next bytes; whole records among them are checked, written, synced and published.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a record fails its checksum: nothing of it was written.
    pub async fn append(&mut self, bytes: &[u8]) -> Result<Vec<Arrived>> {
        self.pending.extend_from_slice(bytes);
        let base = self.segment.durable();
        let (records, used) = parse_records(&self.segment, &self.pending, base)?;
        if used == 0 {
            return Ok(Vec::new());
        }
        let rest = self.pending.split_off(used);
        let whole = std::mem::replace(&mut self.pending, rest);
        let failed = |error| self.store.note_failure(self.segment.folder(), error);
        self.file.write_all_at(whole, base).await.0.map_err(failed)?;
        self.file.sync(SyncPoint::Commit).await.map_err(failed)?;
        let mut arrived = Vec::with_capacity(records.len());
        let mut at = base;
        for head in records {
            if let Some(table) = self.segment.table() {
                table.publish(head.slot, &entry_of(&head, at));
            }
            at += head.record_len();
            self.store.clock().observe(head.version);
            arrived.push(Arrived {
                user: head.user,
                name: head.name,
                version: head.version,
                target: head.target,
            });
        }
        self.segment.set_durable(at);
        self.store.kill_pending(&self.segment)?;
        self.store.note_change(self.segment.number());
        Ok(arrived)
    }

    /// Takes over which of its records are dead: the source may have let their tombstones go.
    pub async fn bury(&self, slots: Vec<u16>) -> Result<()> {
        let (store, number) = (Arc::clone(&self.store), self.segment.number());
        let kill = move || {
            store.kill_all(slots.into_iter().map(|slot| number.object(slot)));
            Ok(())
        };
        self.store.pool().run(kill).await
    }

    /// The source has sealed the segment and all of it is here.
    pub async fn finish(self) -> Result<()> {
        self.store.seal(self.segment).await
    }
}

fn open_packed(store: &Arc<Store>, known: &Known) -> Result<Option<Arc<Segment>>> {
    if store.is_gone(known.number) {
        return Ok(None);
    }
    if store.has(known.number) {
        let segment = store.segment_blocking(known.number)?;
        if segment.is_sealed() {
            return Ok(None);
        }
        let header = segment.header();
        if (header.generation, header.salt) == (known.generation, known.salt) {
            return Ok(Some(segment));
        }
        // Compacted at its source since the copy began: the offsets are others. What is dead stays so.
        for slot in store.dead_slots(known.number)? {
            store.note_pending(known.number.object(slot));
        }
        store.remove(known.number)?;
    }
    let header = SegmentHeader {
        kind: SegmentKind::Packed,
        number: known.number,
        generation: known.generation,
        creator: known.creator,
        salt: known.salt,
        created_ms: store.clock().now_ms(),
    };
    if known.creator == store.options.node {
        store.note_own_copy(known.number);
    }
    Ok(Some(store.create_packed_blocking(header, Marker::Copy, None)?.segment))
}

/// The whole records at the start of `bytes`, which lie at `base` in the segment, and how many
/// bytes they take.
fn parse_records(segment: &Segment, bytes: &[u8], base: u64) -> Result<(Vec<RecordHead>, usize)> {
    let mut records = Vec::new();
    let mut used = 0;
    let damaged = |used: usize, error: &dyn std::fmt::Display| {
        Error::damaged(segment.path(), base + used as u64, format!("copied record: {error}"))
    };
    while bytes.len() - used >= FIXED_BYTES {
        let rest = &bytes[used..];
        let head_len = RecordHead::peek_len(rest).map_err(|error| damaged(used, &error))?;
        if rest.len() < head_len {
            break;
        }
        let head = RecordHead::decode(rest, segment.header().salt)
            .map_err(|error| damaged(used, &error))?;
        check_place(&head, segment.header()).map_err(|error| damaged(used, &error))?;
        let length = head.record_len() as usize;
        if rest.len() < length {
            break;
        }
        let payload = &rest[head_len..head_len + head.payload_len as usize];
        if crc32fast::hash(payload) != head.payload_crc {
            return Err(damaged(used, &"checksum mismatch in the payload"));
        }
        used += length;
        records.push(head);
    }
    Ok((records, used))
}

/// The copy of a solo segment whose payload comes first, as its source receives it. Dropping it removes what was written,
/// some time later.
pub struct SoloCopy {
    store: Arc<Store>,
    number: SegmentNumber,
    file: SoloFile,
    crcs: BlockCrcs,
}

impl SoloCopy {
    /// Begins a copy of a segment whose payload has `expected` bytes (0 when that is not known); their space is reserved,
    /// as far as 64 MiB. `Ok(None)`: it is here already, or gone for good.
    pub async fn begin(
        store: &Arc<Store>,
        number: SegmentNumber,
        expected: u64,
    ) -> Result<Option<Self>> {
        if store.has(number) || store.is_gone(number) {
            return Ok(None);
        }
        let maker = Arc::clone(store);
        let made = store.pool().run(move || {
            // A leftover of an earlier try in this process is begun anew.
            maker.remove(number)?;
            Reserved::make(&maker, number, Marker::Copy, expected)
        });
        let file = SoloFile::adopt(made.await?)?;
        Ok(Some(Self { store: Arc::clone(store), number, file, crcs: BlockCrcs::default() }))
    }

    /// An empty buffer for the next piece of the payload.
    pub fn piece(&mut self) -> Piece {
        Piece::take()
    }

    /// Takes the next piece of the payload (a full one, unless it is the last) and starts writing it.
    pub async fn write(&mut self, piece: impl Into<SharedPiece>) -> Result<()> {
        let piece = piece.into();
        self.crcs.update(&piece.bytes());
        self.file.write(piece).await
    }

    /// Bytes of payload taken so far.
    fn length(&self) -> u64 {
        self.file.length
    }

    fn decode_pages(&self, pages: &[u8]) -> Result<(SegmentHeader, RecordHead)> {
        let damaged = |at: u64, error: crate::format::FormatError| {
            Error::damaged(self.file.path(), at, format!("copied segment: {error}"))
        };
        let header = SegmentHeader::decode(pages).map_err(|error| damaged(0, error))?;
        let head = RecordHead::decode(&pages[HEADER_BYTES as usize..], header.salt)
            .map_err(|error| damaged(HEADER_BYTES, error))?;
        let fits = header.number == self.number
            && head.segment == self.number
            && head.head_len as usize == MAX_HEAD
            && header.kind == SegmentKind::Solo;
        if !fits {
            return Err(Error::damaged(self.file.path(), 0, "copied segment: holds another one"));
        }
        Ok((header, head))
    }

    /// Removes what was written; only then may another try begin.
    pub async fn abandon(self) -> Result<()> {
        self.file.abandon().await
    }

    /// All of the payload is here: checks every block, syncs, and makes the object visible. After an error what was written is removed some time later.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a block is not as its source wrote it, or the ending is another one's.
    pub async fn finish(mut self, ending: Ending) -> Result<Arrived> {
        let path = self.file.path().to_owned();
        let Ending { tail, pages } = ending;
        if pages.len() < PAYLOAD_AT as usize {
            return Err(Error::damaged(&path, 0, "copied segment: too short"));
        }
        let (header, head) = self.decode_pages(&pages)?;
        if head.payload_len != self.length() {
            return Err(Error::damaged(
                &path,
                PAYLOAD_AT + self.length(),
                "copied segment: too short",
            ));
        }
        let (blocks, crc) = std::mem::take(&mut self.crcs).finish();
        let padding = (crate::format::align(head.payload_len) - head.payload_len) as usize;
        let trailer_at = PAYLOAD_AT + head.payload_len + padding as u64;
        let expected = trailer::decode(tail.get(padding..).unwrap_or(&[]), head.payload_len)
            .map_err(|error| {
                Error::damaged(&path, trailer_at, format!("copied segment: {error}"))
            })?;
        if expected != blocks || crc != head.payload_crc {
            let block = expected.iter().zip(&blocks).position(|(a, b)| a != b).unwrap_or(0);
            let at = PAYLOAD_AT + block as u64 * trailer::BLOCK_BYTES;
            return Err(Error::damaged(&path, at, "copied segment: checksum mismatch in a block"));
        }
        let end = self.file.finish_payload(tail).await?;
        let (user, name, version) = (head.user.clone(), head.name.clone(), head.version);
        let content = Segment::solo(head, blocks);
        let segment = self.file.complete(pages, header, content, end, 0).await?;
        self.store.clock().observe(version);
        let store = Arc::clone(&self.store);
        self.store.pool().run(move || store.seal_copy(&segment)).await?;
        Ok(Arrived { user, name, version, target: None })
    }
}

/// The copy of a solo segment that is complete at its source, pulled from its first byte on. Dropping it removes what
/// was written, some time later.
pub struct SoloReplica {
    copy: SoloCopy,
    piece: Option<Piece>,
    /// The header page and the head page, written last.
    pages: Vec<u8>,
    payload_len: u64,
    taken: u64,
    /// What follows the payload.
    tail: Vec<u8>,
}

impl SoloReplica {
    /// Begins a copy. `Ok(None)`: it is here already.
    pub async fn open(store: &Arc<Store>, known: &Known) -> Result<Option<Self>> {
        let copy = SoloCopy::begin(store, known.number, 0).await?;
        Ok(copy.map(|copy| Self {
            copy,
            piece: None,
            pages: Vec::new(),
            payload_len: 0,
            taken: 0,
            tail: Vec::new(),
        }))
    }

    /// From now on whoever reads from the disk waits for little of what is written.
    pub fn write_gently(&mut self) {
        self.copy.file.write_gently();
    }

    /// The offset to pull from next.
    pub fn next_offset(&self) -> u64 {
        self.pages.len() as u64 + self.taken + self.tail.len() as u64
    }

    /// Takes the next bytes of the source's file.
    pub async fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let mut bytes = bytes;
        if self.pages.len() < PAYLOAD_AT as usize {
            let missing = PAYLOAD_AT as usize - self.pages.len();
            let (now, rest) = bytes.split_at(bytes.len().min(missing));
            self.pages.extend_from_slice(now);
            bytes = rest;
            if self.pages.len() == PAYLOAD_AT as usize {
                self.payload_len = self.copy.decode_pages(&self.pages)?.1.payload_len;
            }
        }
        let of_payload = (self.payload_len - self.taken).min(bytes.len() as u64) as usize;
        let (mut payload, tail) = bytes.split_at(of_payload);
        self.taken += of_payload as u64;
        while !payload.is_empty() {
            let mut piece = self.piece.take().unwrap_or_else(|| self.copy.piece());
            let taken = piece.fill(payload);
            payload = &payload[taken..];
            if piece.is_full() {
                self.copy.write(piece).await?;
            } else {
                self.piece = Some(piece);
            }
        }
        let room = trailer::trailer_len(self.payload_len) + crate::format::ALIGN;
        if (self.tail.len() + tail.len()) as u64 > room {
            let path = self.copy.file.path();
            return Err(Error::damaged(path, self.next_offset(), "copied segment: too long"));
        }
        self.tail.extend_from_slice(tail);
        Ok(())
    }

    /// Removes what was written; only then may another try begin.
    pub async fn abandon(self) -> Result<()> {
        self.copy.abandon().await
    }

    /// All bytes are here: [`SoloCopy::finish`].
    pub async fn finish(mut self) -> Result<Arrived> {
        if let Some(piece) = self.piece.take() {
            self.copy.write(piece).await?;
        }
        let ending = Ending { tail: self.tail, pages: self.pages };
        self.copy.finish(ending).await
    }
}
