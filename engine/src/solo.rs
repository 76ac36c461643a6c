//! A large upload: streamed into a segment of its own, visible in one step at the end.
//!
//! Layout: header page, head page, payload from byte 8,192, trailer. The two pages are written
//! last, after payload and trailer are durable; a file without them was never complete. So a
//! crash at any point leaves either the whole object or a file that recovery removes.

use std::rc::Rc;
use std::sync::Arc;

use monoio::task::JoinHandle;

use crate::disk::ShardFile;
use crate::error::{Error, Result};
use crate::format::record::{Layout, MAX_HEAD, RecordHead, RecordKind};
use crate::format::segment_header::SegmentKind;
use crate::format::trailer::{self, BLOCK_BYTES};
use crate::format::{HEADER_BYTES, align};
use crate::id::SegmentNumber;
use crate::segment::Segment;
use crate::store::Store;
use crate::writer::{Draft, Stored};

/// Where the payload starts in a solo segment: behind the header page and the head page.
pub const PAYLOAD_AT: u64 = HEADER_BYTES + MAX_HEAD as u64;
/// Bytes a piece of a large upload should have; two are in memory at a time.
pub const PIECE_BYTES: usize = 1 << 20;
/// Bytes after which what was written is synced in the background, so that little is left for the
/// end and few dirty pages pile up.
const SYNC_EVERY: u64 = 64 << 20;

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

/// A large upload in progress. Dropping it removes what was written.
pub struct SoloUpload {
    store: Arc<Store>,
    number: SegmentNumber,
    file: Rc<ShardFile>,
    reader: Option<std::fs::File>,
    crcs: BlockCrcs,
    length: u64,
    unsynced: u64,
    writing: Option<JoinHandle<(Result<()>, Vec<u8>)>>,
    syncing: Option<JoinHandle<Result<()>>>,
    complete: bool,
}

impl SoloUpload {
    /// Takes a segment number and makes the file.
    pub async fn begin(store: &Arc<Store>) -> Result<Self> {
        let number = (store.options.numbers)().ok_or(Error::NoNumbers)?;
        let made = Arc::clone(store);
        let (file, path) = store.pool().run(move || made.create_file(number)).await?;
        let reader = file.try_clone().map_err(|error| Error::io("duplicate", &path, error))?;
        let file = Rc::new(ShardFile::adopt(file, path)?);
        Ok(Self {
            store: Arc::clone(store),
            number,
            file,
            reader: Some(reader),
            crcs: BlockCrcs::default(),
            length: 0,
            unsynced: 0,
            writing: None,
            syncing: None,
            complete: false,
        })
    }

    /// Bytes taken so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// CRC-32 of the bytes taken so far.
    pub fn crc(&self) -> u32 {
        self.crcs.whole()
    }

    /// Takes the next piece and starts writing it; gives back an empty buffer for the one after.
    /// Waits while the piece before is still being written: that is the back-pressure.
    pub async fn write(&mut self, piece: Vec<u8>) -> Result<Vec<u8>> {
        self.crcs.update(&piece);
        let spare = self.written().await?;
        let at = PAYLOAD_AT + self.length;
        self.length += piece.len() as u64;
        self.unsynced += piece.len() as u64;
        let file = Rc::clone(&self.file);
        self.writing = Some(monoio::spawn(async move { file.write_all_at(piece, at).await }));
        Ok(spare)
    }

    /// Waits for the piece in flight, and starts a sync when enough was written since the last.
    async fn written(&mut self) -> Result<Vec<u8>> {
        let Some(writing) = self.writing.take() else { return Ok(Vec::new()) };
        let (result, mut buffer) = writing.await;
        result?;
        buffer.clear();
        if self.unsynced >= SYNC_EVERY {
            self.unsynced = 0;
            self.synced().await?;
            let file = Rc::clone(&self.file);
            self.syncing = Some(monoio::spawn(async move { file.sync().await }));
        }
        Ok(buffer)
    }

    async fn synced(&mut self) -> Result<()> {
        match self.syncing.take() {
            Some(syncing) => syncing.await,
            None => Ok(()),
        }
    }

    /// CRC-32 of what was taken, and the rest of the record, made durable and visible. `draft`'s
    /// payload is ignored.
    pub async fn finish(mut self, draft: Draft) -> Result<(Stored, u32)> {
        self.written().await?;
        self.synced().await?;
        let (blocks, payload_crc) = std::mem::take(&mut self.crcs).finish();
        let padded = align(self.length);
        let mut tail = vec![0; (padded - self.length) as usize];
        tail.extend_from_slice(&trailer::encode(self.length, &blocks));
        let end = PAYLOAD_AT + self.length + tail.len() as u64;
        self.file.write_all_at(tail, PAYLOAD_AT + self.length).await.0?;
        self.file.sync().await?;
        let header = self.store.header(self.number, SegmentKind::Solo);
        let head = RecordHead {
            kind: RecordKind::Object,
            layout: Layout::Blocks,
            slot: 0,
            head_len: MAX_HEAD as u32,
            segment: self.number,
            generation: header.generation,
            payload_len: self.length,
            payload_crc,
            version: draft.version,
            target: None,
            modified_ms: draft.modified_ms,
            user: draft.user,
            name: draft.name,
            content_type: draft.content_type,
        };
        let mut pages = header.encode();
        head.encode(&mut pages);
        self.file.write_all_at(pages, 0).await.0?;
        self.file.sync().await?;
        let path = self.store.dir().join(self.number.path());
        let reader = self.reader.take().ok_or(Error::Stopping)?;
        let content = Segment::solo(head, blocks);
        let segment = Arc::new(Segment::new(header, path, reader, content, end, true));
        segment.add_unsettled(1);
        self.complete = true;
        self.store.register(Arc::clone(&segment));
        self.store.note_change(self.number);
        Ok((Stored { object: self.number.object(0), segment, end }, payload_crc))
    }
}

impl Drop for SoloUpload {
    fn drop(&mut self) {
        if self.complete {
            return;
        }
        let (store, number) = (Arc::clone(&self.store), self.number);
        drop(self.store.pool().run(move || {
            store.forget(number).inspect_err(|error| {
                tracing::warn!(segment = %number, %error, "an unfinished upload is removed at the next start");
            })
        }));
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
