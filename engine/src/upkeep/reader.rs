//! Reads a file from the disk, past the page cache where that can be: background work judges what
//! lies on the disk, and pushes nothing out of the cache.

use crate::disk::{DIRECT_ALIGN, DiskFile, PIECE_BYTES, Piece};
use crate::error::{Error, Result};

/// A window of a file, moved as it is read.
#[derive(Debug)]
pub(crate) struct Reader {
    file: DiskFile,
    start: u64,
    window: Piece,
    /// Bytes read from the disk so far.
    pub(crate) read: u64,
}

impl Reader {
    pub(crate) fn new(file: DiskFile) -> Self {
        Self { file, start: 0, window: Piece::default(), read: 0 }
    }

    /// Gives `length` bytes at `offset` to `take`, in pieces.
    pub(crate) fn each(
        &mut self,
        offset: u64,
        length: u64,
        mut take: impl FnMut(&[u8]),
    ) -> Result<()> {
        let (mut at, end) = (offset, offset + length);
        while at < end {
            if at < self.start || at >= self.start + self.window.len() as u64 {
                self.start = at / DIRECT_ALIGN as u64 * DIRECT_ALIGN as u64;
                self.read += self.file.read_piece(&mut self.window, self.start)? as u64;
            }
            let from = (at - self.start) as usize;
            let bytes = self.window.as_ref().get(from..).unwrap_or(&[]);
            if bytes.is_empty() {
                return Err(Error::damaged(self.file.path(), at, "the file ends too early"));
            }
            let now = bytes.len().min((end - at) as usize);
            take(&bytes[..now]);
            at += now as u64;
        }
        Ok(())
    }

    /// `length` bytes at `offset`.
    pub(crate) fn bytes(&mut self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        self.each(offset, length as u64, |piece| bytes.extend_from_slice(piece))?;
        Ok(bytes)
    }

    /// CRC-32 of `length` bytes at `offset`.
    pub(crate) fn crc(&mut self, offset: u64, length: u64) -> Result<u32> {
        let mut hasher = crc32fast::Hasher::new();
        self.each(offset, length, |piece| hasher.update(piece))?;
        Ok(hasher.finalize())
    }

    /// Whether `length` bytes at `offset` are all zero.
    pub(crate) fn is_zero(&mut self, offset: u64, length: u64) -> Result<bool> {
        let mut zero = true;
        self.each(offset, length, |piece| zero &= piece.iter().all(|byte| *byte == 0))?;
        Ok(zero)
    }
}

const _: () = assert!(PIECE_BYTES.is_multiple_of(DIRECT_ALIGN));
