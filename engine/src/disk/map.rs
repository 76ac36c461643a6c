//! A file mapped as words that any thread may read and change.

#![expect(unsafe_code, reason = "views a mapping as atomic words")]

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use memmap2::MmapRaw;

/// A shared mapping of a whole file (of the words that fit into it). What is stored in it is as
/// durable as an unsynced write, and becomes durable with the file's sync.
#[derive(Debug, Clone)]
pub struct Map(Words);

#[derive(Debug, Clone)]
enum Words {
    /// The kernel's.
    Mapped(Arc<MmapRaw>),
    /// A simulated disk's.
    Shared(Arc<[AtomicU64]>),
}

impl Map {
    pub(super) fn mapped(map: MmapRaw) -> Self {
        Self(Words::Mapped(Arc::new(map)))
    }

    pub(crate) fn shared(words: Arc<[AtomicU64]>) -> Self {
        Self(Words::Shared(words))
    }

    /// The words, in the machine's byte order (the format's, on the little-endian machines this
    /// builds for).
    #[inline]
    pub fn words(&self) -> &[AtomicU64] {
        match &self.0 {
            Words::Mapped(map) => {
                let first = map.as_mut_ptr().cast::<AtomicU64>();
                // SAFETY: a mapping is page-aligned and as long as it says; the words are only
                // accessed as atomics; a mapped file is never shortened (it is replaced by rename,
                // or unlinked), so that every page of the mapping stays backed.
                unsafe { std::slice::from_raw_parts(first, map.len() / 8) }
            }
            Words::Shared(words) => words,
        }
    }
}

#[cfg(not(target_endian = "little"))]
compile_error!("slot tables are mapped as they lie on disk: little-endian machines only");
