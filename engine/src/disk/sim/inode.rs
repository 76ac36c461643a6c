//! A simulated file: what readers see, what is durable, and what lies between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::rng::Rng;

/// Bytes that reach the disk as one: a torn write is torn between these.
pub(super) const SECTOR: usize = 512;

/// A change that is not durable.
#[derive(Debug, Clone)]
enum Change {
    /// `through`: by a descriptor whose syncs are for its own writes only.
    Write {
        offset: usize,
        bytes: Vec<u8>,
        through: bool,
    },
    Length(usize),
}

/// One file's bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    current: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    map: Option<Arc<[AtomicU64]>>,
}

/// What a crash did to a file.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Torn {
    pub(super) sectors_kept: u64,
    pub(super) sectors_lost: u64,
}

fn apply(change: &Change, image: &mut Vec<u8>) {
    match change {
        Change::Write { offset, bytes, .. } => {
            let end = offset + bytes.len();
            if image.len() < end {
                image.resize(end, 0);
            }
            image[*offset..end].copy_from_slice(bytes);
        }
        Change::Length(length) => image.resize(*length, 0),
    }
}

impl Inode {
    /// What was stored through a mapping becomes a change like any other.
    fn absorb(&mut self) {
        let Some(words) = &self.map else { return };
        let mut bytes = Vec::with_capacity(words.len() * 8);
        for word in words.iter() {
            bytes.extend_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
        }
        let length = bytes.len().min(self.current.len());
        for at in (0..length).step_by(SECTOR) {
            let end = (at + SECTOR).min(length);
            if bytes[at..end] != self.current[at..end] {
                self.current[at..end].copy_from_slice(&bytes[at..end]);
                let bytes = bytes[at..end].to_vec();
                self.pending.push(Change::Write { offset: at, bytes, through: false });
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.current.len()
    }

    pub(super) fn read(&mut self, buffer: &mut [u8], offset: usize) -> usize {
        self.absorb();
        let Some(rest) = self.current.get(offset..) else { return 0 };
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        read
    }

    /// Reads past the cache: what is dirty is written first (and may
    /// still be lost), what a failed sync has left is not seen.
    pub(super) fn read_from_disk(&mut self, buffer: &mut [u8], offset: usize) -> usize {
        self.absorb();
        let mut image = self.durable.clone();
        for change in &self.pending {
            apply(change, &mut image);
        }
        let Some(rest) = image.get(offset..) else { return 0 };
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        read
    }

    fn change(&mut self, change: Change) {
        apply(&change, &mut self.current);
        self.pending.push(change);
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: usize, through: bool) {
        self.absorb();
        self.change(Change::Write { offset, bytes: bytes.to_vec(), through });
        // A mapping shows what is written.
        let Some(words) = &self.map else { return };
        for at in offset / 8..(offset + bytes.len()).div_ceil(8).min(words.len()) {
            let word = self.current[at * 8..at * 8 + 8].try_into().map_or(0, u64::from_le_bytes);
            words[at].store(word, Ordering::Release);
        }
    }

    pub(super) fn set_len(&mut self, bytes: usize) {
        self.absorb();
        self.change(Change::Length(bytes));
    }

    pub(super) fn map(&mut self) -> Arc<[AtomicU64]> {
        let current = &self.current;
        let words = self.map.get_or_insert_with(|| {
            current
                .chunks_exact(8)
                .map(|word| AtomicU64::new(word.try_into().map_or(0, u64::from_le_bytes)))
                .collect()
        });
        Arc::clone(words)
    }

    /// All of it is durable.
    pub(super) fn sync(&mut self) {
        self.absorb();
        for change in std::mem::take(&mut self.pending) {
            apply(&change, &mut self.durable);
        }
    }

    /// What was written through is durable (O_DSYNC); the rest of the file is not concerned.
    pub(super) fn sync_through(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            match &change {
                Change::Write { through: true, .. } => apply(&change, &mut self.durable),
                _ => self.pending.push(change),
            }
        }
    }

    /// The sync failed: some of it is durable, the rest is not and never will be, though readers go
    /// on seeing it (the "fsyncgate" of 2018: the kernel marks the pages clean all the same).
    pub(super) fn fail_sync(&mut self, rng: &mut Rng) {
        self.absorb();
        let share = rng.below(10_001) as u32;
        self.keep_some(rng, |_| share);
    }

    /// Makes some of what is pending durable; `share` chooses how much of each change.
    fn keep_some(&mut self, rng: &mut Rng, mut share: impl FnMut(&mut Rng) -> u32) -> Torn {
        let mut torn = Torn::default();
        for change in std::mem::take(&mut self.pending) {
            let share = share(rng);
            match &change {
                Change::Length(_) if rng.chance(share) => apply(&change, &mut self.durable),
                Change::Length(_) => {}
                Change::Write { offset, bytes, .. } => {
                    let mut at = 0;
                    while at < bytes.len() {
                        let end = (((offset + at) / SECTOR + 1) * SECTOR - offset).min(bytes.len());
                        if rng.chance(share) {
                            let sector = bytes[at..end].to_vec();
                            let (offset, through) = (offset + at, false);
                            let change = Change::Write { offset, bytes: sector, through };
                            apply(&change, &mut self.durable);
                            torn.sectors_kept += 1;
                        } else {
                            torn.sectors_lost += 1;
                        }
                        at = end;
                    }
                }
            }
        }
        torn
    }

    /// The power fails: of what was not synced, each sector and each change of length is kept or
    /// not as chance has it; the length may also be ahead of the contents.
    pub(super) fn crash(&mut self, rng: &mut Rng) -> Torn {
        self.absorb();
        if !self.pending.is_empty() && rng.chance(2_000) && self.durable.len() < self.current.len()
        {
            self.durable.resize(self.current.len(), 0);
        }
        tracing::trace!(pending = self.pending.len(), "crash");
        // Whole writes are kept or lost, or single sectors of them; or one write is lost, of all.
        let way = rng.below(6);
        let odd = rng.below(self.pending.len() as u64 + 1);
        let mut at = 0;
        let torn = self.keep_some(rng, |rng| match way {
            0 => 0,
            1 => 10_000,
            2 | 3 => {
                at += 1;
                if at == odd { 0 } else { 10_000 }
            }
            _ => match rng.below(3) {
                0 => 0,
                1 => 10_000,
                _ => rng.below(10_001) as u32,
            },
        });
        self.current.clone_from(&self.durable);
        self.map = None;
        torn
    }

    /// The process dies: nothing of the file changes, mappings end.
    pub(super) fn detach(&mut self) {
        self.absorb();
        self.map = None;
    }

    /// Flips one bit that lies on the disk, unnoticed.
    pub(super) fn flip(&mut self, bit: usize) {
        self.sync();
        for image in [&mut self.current, &mut self.durable] {
            if let Some(byte) = image.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        }
        if let Some(words) = &self.map
            && let Some(word) = words.get(bit / 64)
        {
            word.fetch_xor(1 << (bit % 64), Ordering::AcqRel);
        }
    }
}
