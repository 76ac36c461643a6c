//! Buffers that the connections of a shard lend each other while bytes pass.

use std::cell::RefCell;

/// Bytes read from a socket at a time.
pub(crate) const READ_BYTES: usize = 16 * 1024;
/// Buffers kept.
const KEPT: usize = 64;
/// Bytes of the largest that is kept.
const LARGEST: usize = 4 * READ_BYTES;

thread_local! {
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with room for what a socket gives at a time.
pub(crate) fn take() -> Vec<u8> {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(READ_BYTES))
}

/// Gives a buffer back.
pub(crate) fn give(mut buffer: Vec<u8>) {
    if (READ_BYTES..=LARGEST).contains(&buffer.capacity()) {
        buffer.clear();
        FREE.with_borrow_mut(|free| {
            if free.len() < KEPT {
                free.push(buffer);
            }
        });
    }
}
