//! Copies of other nodes' segments, byte for byte, checked before anything in them counts.
//!
//! A packed segment is followed while it grows: bytes are appended, records whose checksums hold
//! are synced and published. A solo segment is copied whole; its two leading pages are written
//! last, as when it was uploaded.

use std::rc::Rc;
use std::sync::Arc;

use crate::clock::Version;
use crate::disk::{self, ShardFile};
use crate::error::{Error, Result};
use crate::format::record::{FIXED_BYTES, MAX_HEAD, RecordHead};
use crate::format::segment_header::{SegmentHeader, SegmentKind};
use crate::format::{HEADER_BYTES, trailer};
use crate::id::ObjectId;
use crate::segment::Segment;
use crate::segment::open::{check_place, entry_of, open_solo};
use crate::solo::{BlockCrcs, PAYLOAD_AT};
use crate::store::{Known, Store};

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

/// The copy of a packed segment, being filled.
pub struct PackedReplica {
    store: Arc<Store>,
    segment: Arc<Segment>,
    file: ShardFile,
    /// Bytes behind the durable ones that do not make a whole record yet.
    pending: Vec<u8>,
}

impl PackedReplica {
    /// Begins a copy, or goes on with the one that is here already. `Ok(None)`: it is complete.
    pub async fn open(store: &Arc<Store>, known: &Known) -> Result<Option<Self>> {
        let (maker, known) = (Arc::clone(store), known.clone());
        let opened = store.pool().run(move || open_packed(&maker, &known)).await?;
        let Some((segment, file)) = opened else { return Ok(None) };
        let file = ShardFile::adopt(file, segment.path().clone())?;
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
        self.file.write_all_at(whole, base).await.0?;
        self.file.sync().await?;
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
        self.store.note_change(self.segment.number());
        Ok(arrived)
    }

    /// The source has sealed the segment and all of it is here.
    pub async fn finish(self) -> Result<()> {
        self.store.seal(self.segment).await
    }
}

fn open_packed(store: &Arc<Store>, known: &Known) -> Result<Option<(Arc<Segment>, std::fs::File)>> {
    if store.has(known.number) {
        let segment = store.segment_blocking(known.number)?;
        if segment.is_sealed() {
            return Ok(None);
        }
        let file = disk::open_write(segment.path())?;
        return Ok(Some((segment, file)));
    }
    let header = SegmentHeader {
        kind: SegmentKind::Packed,
        number: known.number,
        generation: known.generation,
        creator: known.creator,
        created_ms: crate::clock::now_ms(),
    };
    let fresh = store.create_packed_blocking(header)?;
    Ok(Some((fresh.segment, fresh.file)))
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
        let head = RecordHead::decode(rest).map_err(|error| damaged(used, &error))?;
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

/// The copy of a solo segment, being filled. Dropping it removes what was written, some time later.
pub struct SoloReplica {
    store: Arc<Store>,
    known: Known,
    file: Rc<ShardFile>,
    reader: Option<std::fs::File>,
    /// The header page and the head page, written last.
    pages: Vec<u8>,
    head: Option<RecordHead>,
    crcs: BlockCrcs,
    hashed: u64,
    received: u64,
    complete: bool,
}

impl SoloReplica {
    /// Begins a copy. `Ok(None)`: it is here already.
    pub async fn open(store: &Arc<Store>, known: &Known) -> Result<Option<Self>> {
        if store.has(known.number) {
            return Ok(None);
        }
        let (maker, number) = (Arc::clone(store), known.number);
        let (file, path) = store
            .pool()
            .run(move || {
                // A leftover of an earlier try in this process is begun anew.
                maker.forget(number)?;
                maker.create_file(number)
            })
            .await?;
        let reader = file.try_clone().map_err(|error| Error::io("duplicate", &path, error))?;
        Ok(Some(Self {
            store: Arc::clone(store),
            known: known.clone(),
            file: Rc::new(ShardFile::adopt(file, path)?),
            reader: Some(reader),
            pages: Vec::new(),
            head: None,
            crcs: BlockCrcs::default(),
            hashed: 0,
            received: 0,
            complete: false,
        }))
    }

    /// The offset to pull from next.
    pub fn next_offset(&self) -> u64 {
        self.received
    }

    /// Takes the next bytes of the source's file.
    pub async fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let mut bytes = bytes;
        if self.pages.len() < PAYLOAD_AT as usize {
            let missing = PAYLOAD_AT as usize - self.pages.len();
            let (now, rest) = bytes.split_at(bytes.len().min(missing));
            self.pages.extend_from_slice(now);
            self.received += now.len() as u64;
            bytes = rest;
            if self.pages.len() == PAYLOAD_AT as usize {
                self.head = Some(self.decode_head()?);
            }
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let payload_len = self.head.as_ref().map_or(0, |head| head.payload_len);
        let of_payload = (payload_len - self.hashed).min(bytes.len() as u64) as usize;
        self.crcs.update(&bytes[..of_payload]);
        self.hashed += of_payload as u64;
        self.file.write_all_at(bytes.to_vec(), self.received).await.0?;
        self.received += bytes.len() as u64;
        Ok(())
    }

    fn decode_head(&self) -> Result<RecordHead> {
        let path = self.store.dir().join(self.known.number.path());
        let damaged = |at: u64, error: crate::format::FormatError| {
            Error::damaged(&path, at, format!("copied segment: {error}"))
        };
        let header = SegmentHeader::decode(&self.pages).map_err(|error| damaged(0, error))?;
        let head = RecordHead::decode(&self.pages[HEADER_BYTES as usize..])
            .map_err(|error| damaged(HEADER_BYTES, error))?;
        let fits = header.number == self.known.number
            && head.segment == self.known.number
            && head.head_len as usize == MAX_HEAD
            && header.kind == SegmentKind::Solo;
        if !fits {
            return Err(Error::damaged(&path, 0, "copied segment: holds another one"));
        }
        Ok(head)
    }

    /// Removes what was written; only then may another try begin.
    pub async fn abandon(mut self) -> Result<()> {
        self.complete = true;
        let (store, number) = (Arc::clone(&self.store), self.known.number);
        self.store.pool().run(move || store.forget(number)).await
    }

    /// All bytes are here: checks every block, syncs, and makes the object visible. After an error
    /// there is only [`SoloReplica::abandon`].
    pub async fn finish(&mut self) -> Result<Arrived> {
        let path = self.store.dir().join(self.known.number.path());
        let head = self
            .head
            .take()
            .ok_or_else(|| Error::damaged(&path, self.received, "copied segment: too short"))?;
        self.file.sync().await?;
        let (blocks, crc) = std::mem::take(&mut self.crcs).finish();
        let trailer_at = PAYLOAD_AT + crate::format::align(head.payload_len);
        let mut bytes = vec![0; trailer::trailer_len(head.payload_len) as usize];
        let reader = self.reader.take().ok_or(Error::Stopping)?;
        disk::read_exact_at(&reader, &path, &mut bytes, trailer_at)?;
        let expected = trailer::decode(&bytes, head.payload_len)
            .map_err(|error| Error::damaged(&path, trailer_at, error.to_string()))?;
        if expected != blocks || crc != head.payload_crc {
            let block = expected.iter().zip(&blocks).position(|(a, b)| a != b).unwrap_or(0);
            let at = PAYLOAD_AT + block as u64 * trailer::BLOCK_BYTES;
            return Err(Error::damaged(&path, at, "copied segment: checksum mismatch in a block"));
        }
        self.file.write_all_at(std::mem::take(&mut self.pages), 0).await.0?;
        self.file.sync().await?;
        let marker = self.store.marker(self.known.number);
        let header = SegmentHeader {
            kind: SegmentKind::Solo,
            number: self.known.number,
            generation: self.known.generation,
            creator: self.known.creator,
            created_ms: head.modified_ms,
        };
        let (content, length) = open_solo(&reader, &path, self.known.number)?;
        let segment = Arc::new(Segment::new(header, path, reader, content, length, true));
        self.complete = true;
        self.store.register(segment);
        self.store.note_change(self.known.number);
        self.store.clock().observe(head.version);
        self.store.pool().run(move || disk::remove_if_there(&marker)).await?;
        Ok(Arrived { user: head.user, name: head.name, version: head.version, target: None })
    }
}

impl Drop for SoloReplica {
    fn drop(&mut self) {
        if !self.complete {
            let (store, number) = (Arc::clone(&self.store), self.known.number);
            drop(self.store.pool().run(move || store.forget(number)));
        }
    }
}
