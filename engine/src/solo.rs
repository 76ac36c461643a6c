//! A large upload: streamed into a segment of its own, visible in one step at the end.
//!
//! Layout: header page, head page, payload from byte 8,192, trailer. The two pages are written
//! last, after payload and trailer are durable; a file without them was never complete. So a
//! crash at any point leaves either the whole object or a file that recovery removes.
//!
//! Payload goes out in aligned pieces that bypass the page cache, [`WRITES`] in flight: on the
//! machines we measured three times as fast as through the cache, and a large upload pushes nothing
//! out of it.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;

use crate::disk::{DiskFile, PIECE_BYTES, Piece, ShardFile, SharedPiece, SyncPoint};
use crate::error::{Error, Result};
use crate::format::record::{Layout, MAX_HEAD, RecordHead, RecordKind};
use crate::format::segment_header::{SegmentHeader, SegmentKind};
use crate::format::trailer::{self, BLOCK_BYTES};
use crate::format::{HEADER_BYTES, align};
use crate::id::SegmentNumber;
use crate::segment::Segment;
use crate::store::{Marker, Source, Store};
use crate::writer::{Draft, Stored};

/// Where the payload starts in a solo segment: behind the header page and the head page.
pub const PAYLOAD_AT: u64 = HEADER_BYTES + MAX_HEAD as u64;
/// Writes of one upload in flight.
pub const WRITES: usize = 3;
/// Bytes of a write when others are to wait little for it: as many as a viewer's cold read.
const GENTLE_BYTES: usize = 256 << 10;
/// Memory of one upload in bytes: the pieces in flight and the one being filled.
pub const UPLOAD_BYTES: u64 = (WRITES as u64 + 1) * PIECE_BYTES as u64;
/// Space is reserved in steps of at most so many bytes.
const ALLOCATE_STEP: u64 = 64 << 20;

/// CRCs of a payload that comes in pieces: one a block, and one over all.
#[derive(Debug, Default)]
pub(crate) struct BlockCrcs {
    done: Vec<u32>,
    whole: crc32fast::Hasher,
    block: crc32fast::Hasher,
    in_block: u64,
}

impl BlockCrcs {
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = (BLOCK_BYTES - self.in_block) as usize;
            let (now, rest) = bytes.split_at(bytes.len().min(room));
            self.block.update(now);
            self.in_block += now.len() as u64;
            bytes = rest;
            if self.in_block == BLOCK_BYTES {
                self.end_block();
            }
        }
    }

    fn end_block(&mut self) {
        let block = std::mem::take(&mut self.block);
        self.whole.combine(&block);
        self.done.push(block.finalize());
        self.in_block = 0;
    }

    /// The CRC of all bytes so far.
    pub(crate) fn whole(&self) -> u32 {
        let mut whole = self.whole.clone();
        whole.combine(&self.block);
        whole.finalize()
    }

    /// Every block's CRC, and the CRC of all.
    pub(crate) fn finish(mut self) -> (Vec<u32>, u32) {
        if self.in_block > 0 {
            self.end_block();
        }
        (self.done, self.whole.finalize())
    }
}

type Writing = Pin<Box<dyn Future<Output = Result<()>>>>;

/// The file of a solo segment on its disk, with space for what comes first. Dropping it removes what was written, unless it
/// is complete.
pub(crate) struct Reserved {
    store: Arc<Store>,
    number: SegmentNumber,
    folder: u16,
    disk: DiskFile,
    /// Bytes of the file whose space is reserved.
    allocated: u64,
    complete: bool,
}

impl Reserved {
    /// Makes the file, and reserves space for a payload of `expected` bytes, as far as [`ALLOCATE_STEP`]; 0 when its
    /// length is not known. Blocking.
    pub(crate) fn make(
        store: &Arc<Store>,
        number: SegmentNumber,
        marker: Marker,
        expected: u64,
    ) -> Result<Self> {
        let (disk, folder) = store.create_file(number, marker, Source::NewDirect)?;
        let store = Arc::clone(store);
        let mut made = Self { store, number, folder, disk, allocated: 0, complete: false };
        let piece = PIECE_BYTES as u64;
        let whole = PAYLOAD_AT.saturating_add(expected.saturating_add(piece - 1) / piece * piece);
        let steps = match expected {
            0 => vec![2 * piece, PAYLOAD_AT + piece],
            _ => vec![whole.min(ALLOCATE_STEP)],
        };
        made.allocated = extend(&made.store, folder, &made.disk, 0, &steps)?;
        Ok(made)
    }
}

/// Reserves space from `allocated` on, up to the first of these ends that fits, which is given back. Blocking.
fn extend(
    store: &Store,
    folder: u16,
    disk: &DiskFile,
    allocated: u64,
    steps: &[u64],
) -> Result<u64> {
    let reserve = store.options.reserve_bytes;
    let mut result = Err(Error::NoSpace { path: disk.path().to_owned() });
    for &to in steps {
        if store.folder(folder).free() < (to - allocated).saturating_add(reserve) {
            continue;
        }
        result = disk.allocate(to).map(|()| to);
        if result.is_ok() {
            store.folder(folder).take_space(to - allocated);
            break;
        }
    }
    result.map_err(|error| store.note_failure(folder, error))
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.complete {
            drop(self.store.abandon_soon(self.number));
        }
    }
}

/// A solo segment being written: payload in pieces, then the tail, then the pages.
/// Dropping it before [`SoloFile::complete`] removes what was written.
pub(crate) struct SoloFile {
    reserved: Reserved,
    file: Rc<ShardFile>,
    /// Bytes given to [`SoloFile::write`] so far.
    pub(crate) length: u64,
    writing: VecDeque<Writing>,
    gentle: bool,
}

impl SoloFile {
    /// Takes a file over, on the shard's own thread.
    pub(crate) fn adopt(reserved: Reserved) -> Result<Self> {
        let file = ShardFile::adopt_direct(reserved.disk.clone(), reserved.store.pool())?;
        Ok(Self {
            reserved,
            file: Rc::new(file),
            length: 0,
            writing: VecDeque::new(),
            gentle: false,
        })
    }

    /// From now on one write is in flight, and a small one.
    pub(crate) fn write_gently(&mut self) {
        self.gentle = true;
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.reserved.disk.path()
    }

    /// Reserves space for what comes next.
    async fn allocate(&mut self) -> Result<()> {
        let wanted = PAYLOAD_AT + self.length + PIECE_BYTES as u64;
        let Reserved { store, disk, folder, allocated, .. } = &self.reserved;
        if wanted <= *allocated {
            return Ok(());
        }
        // Twice as much each time; where that does not fit any more, only what is needed now.
        let double = (*allocated).clamp(2 * PIECE_BYTES as u64, ALLOCATE_STEP);
        let steps = [*allocated + double, wanted];
        let (kept, disk, folder, allocated) =
            (Arc::clone(store), disk.clone(), *folder, *allocated);
        let extended = move || extend(&kept, folder, &disk, allocated, &steps);
        self.reserved.allocated = store.pool().run(extended).await?;
        Ok(())
    }

    /// Takes the next piece (a full one, unless it is the last) and starts writing it. Waits while
    /// [`WRITES`] (gently: one) are in flight: that is the back-pressure.
    pub(crate) async fn write(&mut self, piece: SharedPiece) -> Result<()> {
        let length = piece.bytes().len() as u64;
        if length == 0 {
            return Ok(());
        }
        let (writes, step) = if self.gentle { (1, GENTLE_BYTES) } else { (WRITES, PIECE_BYTES) };
        while self.writing.len() >= writes {
            self.one_written().await?;
        }
        self.allocate().await?;
        let at = PAYLOAD_AT + self.length;
        self.length += length;
        let (file, bytes) = (Rc::clone(&self.file), piece.padded());
        let mut writing: Writing = Box::pin(async move {
            for from in (0..bytes.len()).step_by(step) {
                let now = Bytes::slice(&bytes, from..bytes.len().min(from + step));
                file.write_all_at(now, at + from as u64).await.0?;
            }
            Ok(())
        });
        // Polled once: that is what puts it (gently: its first step; the others go while the next piece waits) on the ring.
        let begun = poll_fn(|context| Poll::Ready(writing.as_mut().poll(context))).await;
        match begun {
            Poll::Ready(written) => self.keep(written),
            Poll::Pending => {
                self.writing.push_back(writing);
                Ok(())
            }
        }
    }

    async fn one_written(&mut self) -> Result<()> {
        let Some(writing) = self.writing.front_mut() else { return Ok(()) };
        let written = writing.as_mut().await;
        self.writing.pop_front();
        self.keep(written)
    }

    fn keep(&mut self, result: Result<()>) -> Result<()> {
        result.map_err(|error| self.reserved.store.note_failure(self.reserved.folder, error))
    }

    /// Waits for all writes, puts `tail` behind the payload, cuts the file there and syncs it.
    /// `tail` starts at the payload's end.
    pub(crate) async fn finish_payload(&mut self, tail: Vec<u8>) -> Result<u64> {
        while !self.writing.is_empty() {
            self.one_written().await?;
        }
        let at = PAYLOAD_AT + self.length;
        let end = at + tail.len() as u64;
        let Reserved { store, disk, folder, .. } = &self.reserved;
        let (noting, disk, folder) = (Arc::clone(store), disk.clone(), *folder);
        let finished = move || {
            let finished = disk
                .write_all_at(&tail, at)
                .and_then(|()| disk.set_len(end))
                .and_then(|()| disk.sync(SyncPoint::SoloPayload));
            finished.map_err(|error| noting.note_failure(folder, error))
        };
        store.pool().run(finished).await?;
        Ok(end)
    }

    /// Writes and syncs the pages that make the segment visible, and registers it.
    pub(crate) async fn complete(
        mut self,
        pages: Vec<u8>,
        header: SegmentHeader,
        content: crate::segment::Content,
        end: u64,
        unsettled: u32,
    ) -> Result<Arc<Segment>> {
        let Reserved { store, disk, folder, number, .. } = &self.reserved;
        let (store, disk, folder, number) = (Arc::clone(store), disk.clone(), *folder, *number);
        let noting = Arc::clone(&store);
        let file = disk.clone();
        let completed = move || {
            let written =
                file.write_all_at(&pages, 0).and_then(|()| file.sync(SyncPoint::SoloPages));
            written.map_err(|error| noting.note_failure(folder, error))
        };
        store.pool().run(completed).await?;
        let segment = Arc::new(Segment::new(header, folder, disk, content, end, true));
        segment.add_unsettled(unsettled);
        self.reserved.complete = true;
        store.register(Arc::clone(&segment));
        store.note_change(number);
        Ok(segment)
    }

    /// Removes what was written, and waits for that.
    pub(crate) async fn abandon(mut self) -> Result<()> {
        self.reserved.complete = true;
        let (store, number) = (Arc::clone(&self.reserved.store), self.reserved.number);
        self.reserved.store.pool().run(move || store.remove(number)).await
    }
}

/// What follows the payload in a solo segment, and the two pages before it, which are written last.
#[derive(Debug, Clone)]
pub struct Ending {
    /// From the payload's end to the file's.
    pub tail: Vec<u8>,
    /// The header page and the head page.
    pub pages: Vec<u8>,
}

impl Ending {
    /// Bytes of the tail behind a payload of `payload_len`, and of the pages.
    pub fn lengths(payload_len: u64) -> (u64, u64) {
        (align(payload_len) - payload_len + trailer::trailer_len(payload_len), PAYLOAD_AT)
    }
}

/// A large upload in progress. Dropping it removes what was written.
pub struct SoloUpload {
    store: Arc<Store>,
    file: SoloFile,
    crcs: BlockCrcs,
}

impl SoloUpload {
    /// Takes a segment number, makes the file, and reserves space for the `expected` bytes, as far as 64 MiB (for more as
    /// they come); 0 when it is not known how many there will be.
    ///
    /// # Errors
    /// [`Error::NoNumbers`], [`Error::NoSpace`], [`Error::NoFolder`], I/O errors; also from the calls
    /// below. After any of them the upload can only be dropped.
    pub async fn begin(store: &Arc<Store>, expected: u64) -> Result<Self> {
        let maker = Arc::clone(store);
        let made = store.pool().run(move || {
            maker.make_in_some_folder(|| {
                let number = (maker.options.numbers)().ok_or(Error::NoNumbers)?;
                Reserved::make(&maker, number, Marker::Active, expected)
            })
        });
        let file = SoloFile::adopt(made.await?)?;
        Ok(Self { store: Arc::clone(store), file, crcs: BlockCrcs::default() })
    }

    /// Bytes taken so far.
    pub fn length(&self) -> u64 {
        self.file.length
    }

    /// CRC-32 of the bytes taken so far.
    pub fn crc(&self) -> u32 {
        self.crcs.whole()
    }

    /// An empty buffer for the next piece.
    pub fn piece(&mut self) -> Piece {
        Piece::take()
    }

    /// Takes the next piece (a full one, unless it is the last) and starts writing it. Waits while
    /// [`WRITES`] are in flight: that is the back-pressure.
    pub async fn write(&mut self, piece: impl Into<SharedPiece>) -> Result<()> {
        let piece = piece.into();
        self.crcs.update(&piece.bytes());
        self.file.write(piece).await
    }

    /// The segment it becomes.
    pub fn number(&self) -> SegmentNumber {
        self.file.reserved.number
    }

    /// CRC-32 of what was taken, and the rest of the record, made durable and visible. `draft`'s
    /// payload is ignored.
    pub async fn finish(self, draft: Draft) -> Result<(Stored, u32)> {
        self.finish_telling(draft, |_| {}).await
    }

    /// [`SoloUpload::finish`]; `ending` is called with what a copy of the payload lacks
    /// ([`crate::replica::SoloCopy::finish`]) before that is durable here.
    pub async fn finish_telling(
        mut self,
        draft: Draft,
        ending: impl FnOnce(Ending),
    ) -> Result<(Stored, u32)> {
        let (blocks, payload_crc) = std::mem::take(&mut self.crcs).finish();
        let length = self.file.length;
        let mut tail = vec![0; (align(length) - length) as usize];
        tail.extend_from_slice(&trailer::encode(length, &blocks));
        let number = self.file.reserved.number;
        let header = self.store.header(number, SegmentKind::Solo)?;
        let head = RecordHead {
            kind: RecordKind::Object,
            layout: Layout::Blocks,
            slot: 0,
            head_len: MAX_HEAD as u32,
            segment: number,
            generation: header.generation,
            payload_len: length,
            payload_crc,
            version: draft.version,
            target: None,
            modified_ms: draft.modified_ms,
            user: draft.user,
            name: draft.name,
            content_type: draft.content_type,
        };
        let mut pages = header.encode();
        head.encode(header.salt, &mut pages);
        ending(Ending { tail: tail.clone(), pages: pages.clone() });
        let end = self.file.finish_payload(tail).await?;
        let content = Segment::solo(head, blocks);
        let segment = self.file.complete(pages, header, content, end, 1).await?;
        Ok((Stored { object: number.object(0), segment, end }, payload_crc))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn block_crcs_do_not_depend_on_how_the_bytes_came(cuts in proptest::collection::vec(1usize..300_000, 1..6)) {
            let total: usize = cuts.iter().sum();
            let bytes: Vec<u8> = (0..total).map(|at| ((at * 31) >> 3) as u8).collect();
            let mut crcs = BlockCrcs::default();
            let mut at = 0;
            for cut in cuts {
                crcs.update(&bytes[at..at + cut]);
                at += cut;
            }
            let (blocks, whole) = crcs.finish();
            prop_assert_eq!(whole, crc32fast::hash(&bytes));
            let expected: Vec<u32> = bytes.chunks(BLOCK_BYTES as usize).map(crc32fast::hash).collect();
            prop_assert_eq!(blocks, expected);
        }
    }
}
