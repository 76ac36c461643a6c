//! Buffers whose memory address suits direct I/O: pieces of a large upload, batches of small ones, cold reads.

#![expect(unsafe_code, reason = "tells monoio where the aligned bytes lie")]

use std::cell::RefCell;

use bytes::Bytes;
use monoio::buf::{IoBuf, IoBufMut};

use super::DIRECT_ALIGN;

/// Bytes of a piece; each is one write.
pub const PIECE_BYTES: usize = 1 << 20;

/// A vector with room for so many bytes behind the first page boundary in it, filled up to there; and where that
/// is.
fn aligned(capacity: usize) -> (Vec<u8>, usize) {
    let mut bytes: Vec<u8> = Vec::with_capacity(capacity + DIRECT_ALIGN);
    let start = bytes.as_ptr().align_offset(DIRECT_ALIGN);
    bytes.resize(start, 0);
    (bytes, start)
}

/// The bytes of one group commit, from a page boundary on. An empty one has no memory.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    start: usize,
    capacity: usize,
}

impl Batch {
    /// Empties it, and makes room for so many bytes, in steps of [`PIECE_BYTES`].
    pub(crate) fn begin(&mut self, capacity: usize) {
        if self.capacity < capacity {
            let capacity = capacity.next_multiple_of(PIECE_BYTES);
            let (bytes, start) = aligned(capacity);
            *self = Self { bytes, start, capacity };
        }
        self.bytes.truncate(self.start);
    }

    /// Gives its memory back when that is more than `keep` bytes.
    pub(crate) fn end(&mut self, keep: usize) {
        if self.capacity > keep {
            *self = Self::default();
        }
    }

    /// Bytes in it.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// The vector to append to, up to the capacity.
    pub(crate) fn spare(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Appends zeros up to a length that is a multiple of `align`.
    pub(crate) fn pad(&mut self, align: usize) {
        let padded = self.len().next_multiple_of(align);
        self.bytes.resize(self.start + padded, 0);
    }
}

impl AsRef<[u8]> for Batch {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

// SAFETY: as for a piece, below.
unsafe impl IoBuf for Batch {
    fn read_ptr(&self) -> *const u8 {
        self.as_ref().as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.len()
    }
}

/// A buffer for one direct read, from a page boundary on. It never moves or grows.
#[derive(Debug)]
pub struct ReadBuffer {
    bytes: Vec<u8>,
    start: usize,
    /// How many bytes the next read asks for.
    want: usize,
}

impl ReadBuffer {
    /// Room for so many bytes, a multiple of [`DIRECT_ALIGN`].
    pub fn with_capacity(capacity: usize) -> Self {
        let (bytes, start) = aligned(capacity);
        Self { bytes, start, want: 0 }
    }

    /// Bytes that fit.
    pub fn capacity(&self) -> usize {
        (self.bytes.capacity() - self.start) / DIRECT_ALIGN * DIRECT_ALIGN
    }

    /// Empties it, and sets how many bytes the next read asks for.
    pub(crate) fn begin(&mut self, want: usize) {
        self.bytes.truncate(self.start);
        self.want = want.min(self.capacity());
    }

    /// So many bytes, to be filled.
    pub(crate) fn fill(&mut self, length: usize) -> &mut [u8] {
        self.bytes.resize(self.start + length.min(self.capacity()), 0);
        &mut self.bytes[self.start..]
    }
}

impl AsRef<[u8]> for ReadBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

// SAFETY: the bytes lie in the vector's own memory, from `start` on; it holds at least `want` bytes beyond
// that, is moved but never grown while a read is in flight, and a moved vector's memory stays where it is.
unsafe impl IoBufMut for ReadBuffer {
    fn write_ptr(&mut self) -> *mut u8 {
        // SAFETY: `start` is at most the capacity.
        unsafe { self.bytes.as_mut_ptr().add(self.start) }
    }

    fn bytes_total(&mut self) -> usize {
        self.want
    }

    unsafe fn set_init(&mut self, pos: usize) {
        // SAFETY: the caller says that `pos` bytes from `write_ptr` on were written, at most `want`.
        unsafe { self.bytes.set_len(self.start + pos) }
    }
}

/// A buffer of [`PIECE_BYTES`], filled from a page boundary on. It never moves or grows.
#[derive(Debug)]
pub struct Piece {
    bytes: Vec<u8>,
    start: usize,
}

impl Default for Piece {
    fn default() -> Self {
        let (bytes, start) = aligned(PIECE_BYTES);
        Self { bytes, start }
    }
}

/// Pieces that a thread keeps when they are not in use: fresh memory would be filled with zeros by the kernel first.
const KEPT: usize = 16;

thread_local! {
    static FREE: RefCell<Vec<Piece>> = const { RefCell::new(Vec::new()) };
}

impl Piece {
    /// An empty one, kept from before if there is one.
    pub(crate) fn take() -> Self {
        FREE.with_borrow_mut(Vec::pop).unwrap_or_default()
    }

    /// Keeps it for the next that takes one on this thread.
    fn give(mut self) {
        self.clear();
        // A thread that ends keeps none.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(self);
            }
        });
    }

    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether no more fit.
    pub fn is_full(&self) -> bool {
        self.len() == PIECE_BYTES
    }

    /// Takes as many of `bytes` as fit; returns how many.
    pub fn fill(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(PIECE_BYTES - self.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// The vector to append to, and the length at which it is full. Nothing but appending up to
    /// there is allowed.
    pub fn spare(&mut self) -> (&mut Vec<u8>, usize) {
        let full = self.start + PIECE_BYTES;
        (&mut self.bytes, full)
    }

    /// Appends zeros up to a multiple of [`DIRECT_ALIGN`].
    fn pad(&mut self) {
        let padded = self.len().next_multiple_of(DIRECT_ALIGN);
        self.bytes.resize(self.start + padded, 0);
    }

    /// Makes all of it readable into.
    pub(crate) fn begin_reading(&mut self) {
        self.bytes.resize(self.start + PIECE_BYTES, 0);
    }

    /// Keeps the first `bytes` of what was read.
    pub(crate) fn end_reading(&mut self, bytes: usize) {
        self.bytes.truncate(self.start + bytes);
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.truncate(self.start);
    }
}

/// A piece that changes no more: it is written to the disk and sent to others from the same memory. Its thread's stock has
/// it back when the last of them is done.
#[derive(Debug, Clone)]
pub struct SharedPiece {
    padded: Bytes,
    length: usize,
}

impl SharedPiece {
    /// Its bytes.
    pub fn bytes(&self) -> Bytes {
        Bytes::slice(&self.padded, ..self.length)
    }

    /// Its bytes, and zeros up to a multiple of [`DIRECT_ALIGN`].
    pub(crate) fn padded(self) -> Bytes {
        self.padded
    }
}

impl From<Piece> for SharedPiece {
    fn from(mut piece: Piece) -> Self {
        let length = piece.len();
        piece.pad();
        Self { padded: Bytes::from_owner(Kept(Some(piece))), length }
    }
}

/// Goes back to the stock when it is let go of.
struct Kept(Option<Piece>);

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], Piece::as_ref)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(piece) = self.0.take() {
            piece.give();
        }
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl AsMut<[u8]> for Piece {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_aligned_and_never_moves() {
        for _ in 0..50 {
            let mut piece = Piece::default();
            let at = piece.as_ref().as_ptr() as usize;
            assert_eq!(at % DIRECT_ALIGN, 0);
            assert_eq!(piece.fill(&vec![7; PIECE_BYTES + 5]), PIECE_BYTES);
            assert!(piece.is_full());
            assert_eq!(piece.as_ref().as_ptr() as usize, at);
            piece.clear();
            piece.fill(&[1, 2, 3]);
            piece.pad();
            assert_eq!(piece.len(), DIRECT_ALIGN);
            assert_eq!(piece.as_ref()[..4], [1, 2, 3, 0]);
        }
    }

    #[test]
    fn a_batch_keeps_its_memory_up_to_a_bound() {
        let mut batch = Batch::default();
        batch.begin(4000);
        let at = batch.as_ref().as_ptr() as usize;
        assert_eq!(at % DIRECT_ALIGN, 0);
        batch.spare().extend_from_slice(&[1; 4000]);
        batch.end(PIECE_BYTES);
        batch.begin(PIECE_BYTES);
        assert_eq!((batch.as_ref().as_ptr() as usize, batch.len()), (at, 0));
        batch.begin(PIECE_BYTES + 1);
        batch.pad(DIRECT_ALIGN);
        assert!(batch.bytes.capacity() >= 2 * PIECE_BYTES);
        batch.end(PIECE_BYTES);
        assert_eq!((batch.len(), batch.bytes.capacity()), (0, 0));
    }

    #[test]
    fn a_shared_piece_comes_back_when_the_last_is_done_with_it() {
        let place = |piece: &Piece| piece.as_ref().as_ptr() as usize;
        let mut piece = Piece::take();
        piece.fill(b"film");
        let at = place(&piece);
        let shared = SharedPiece::from(piece);
        let sent = shared.bytes();
        let written = shared.padded();
        assert_eq!((&sent[..], written.len()), (&b"film"[..], DIRECT_ALIGN));
        assert_eq!((sent.as_ptr() as usize, written.as_ptr() as usize), (at, at));
        drop(written);
        assert_ne!(place(&Piece::take()), at);
        drop(sent);
        assert_eq!(place(&Piece::take()), at);
    }
}
