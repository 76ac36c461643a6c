//! Which names changed: shards do not believe what they remember of those.
//!
//! A table of counters that all shards share, striped: whoever learns that a name changed (the node's own write, a peer's
//! record or news) raises the name's stripe. Beside the count a stripe keeps a tag of the last name, so that two names of one
//! stripe are told apart as long as only one of them changed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use reel_engine::Changes;
use reel_engine::signal::Signal;

/// Stripes of the table. Two names of one stripe cost each other a look-up when one changes.
const STRIPES: usize = 1 << 16;
/// Bits of a stripe's word that are the tag; the count lies above.
const TAG_BITS: u32 = 16;

/// A name as the table knows it: the same number on every node. Its low bits choose the stripe, the others are the tag.
/// Whoever picks names that collide makes the catalog be asked for his own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NameHash(u32);

impl NameHash {
    pub(crate) fn of(user: &str, name: &str) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(user.as_bytes());
        hasher.update(b"/");
        hasher.update(name.as_bytes());
        Self(hasher.finalize())
    }

    fn stripe(self) -> usize {
        self.0 as usize % STRIPES
    }

    fn tag(self) -> u64 {
        u64::from(self.0 >> (32 - TAG_BITS))
    }
}

/// The state of a name's stripe. It begins at the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

impl Epoch {
    /// Whether the name may have changed between `before` and this epoch: false when only another of its stripe has.
    pub(crate) fn concerns(self, name: NameHash, before: Self) -> bool {
        let raised = (self.0 >> TAG_BITS).wrapping_sub(before.0 >> TAG_BITS);
        let tag = self.0 & ((1 << TAG_BITS) - 1);
        raised > 1 || raised == 1 && tag == name.tag()
    }
}

/// Counts changes of names. Shared by the shards; 512 KiB.
pub(crate) struct Epochs {
    stripes: Box<[AtomicU64]>,
    /// Names that this node changed, for peers that follow no records; `None` when they do.
    told: Option<Told>,
}

/// Changes that peers ask for.
#[derive(Default)]
struct Told {
    changes: Mutex<Changes<u32>>,
    grown: Signal,
}

impl Epochs {
    pub(crate) fn new() -> Self {
        Self { stripes: (0..STRIPES).map(|_| AtomicU64::new(0)).collect(), told: None }
    }

    /// Also keeps what this node changed, for [`Epochs::changes_beyond`].
    pub(crate) fn telling() -> Self {
        Self { told: Some(Told::default()), ..Self::new() }
    }

    /// The epoch of a name now. To be read before the catalog is asked.
    pub(crate) fn of(&self, name: NameHash) -> Epoch {
        Epoch(self.stripes[name.stripe()].load(Ordering::Acquire))
    }

    /// The name changed here: what shards remember of it is not used any more.
    pub(crate) fn raise(&self, user: &str, name: &str) -> Epoch {
        let name = NameHash::of(user, name);
        let epoch = self.raise_hash(name);
        if let Some(told) = &self.told {
            told.changes.lock().note(name.0);
            told.grown.raise();
        }
        epoch
    }

    /// A name changed at a peer, which says its hash.
    pub(crate) fn raise_told(&self, hash: u32) {
        self.raise_hash(NameHash(hash));
    }

    fn raise_hash(&self, name: NameHash) -> Epoch {
        let raise = |epoch: u64| ((epoch >> TAG_BITS) + 1) << TAG_BITS | name.tag();
        let before = self.stripes[name.stripe()].fetch_update(
            Ordering::AcqRel,
            Ordering::Acquire,
            |epoch| Some(raise(epoch)),
        );
        // It is never refused.
        Epoch(raise(before.unwrap_or_else(|epoch| epoch)))
    }

    /// Hashes of names that this node changed since the mark `seen`, and the mark to ask with next; `None` when that is
    /// not known.
    pub(crate) fn changes_since(&self, seen: u64) -> (u64, Option<BTreeSet<u32>>) {
        self.told.as_ref().map_or((0, None), |told| told.changes.lock().since(seen))
    }

    /// [`Epochs::changes_since`], when there are some. Cancel-safe.
    pub(crate) async fn changes_beyond(&self, seen: u64) -> (u64, Option<BTreeSet<u32>>) {
        loop {
            let count = self.told.as_ref().map_or(0, |told| told.grown.count());
            let (mark, changed) = self.changes_since(seen);
            match &self.told {
                Some(told) if changed.as_ref().is_some_and(BTreeSet::is_empty) => {
                    told.grown.beyond(count).await;
                }
                _ => return (mark, changed),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_concerns_its_name_and_not_the_neighbour_in_its_stripe() {
        let epochs = Epochs::new();
        let (name, neighbour) = (NameHash(0x0001_0007), NameHash(0x0002_0007));
        let before = epochs.of(name);
        assert_eq!(before, epochs.of(neighbour), "one stripe");
        epochs.raise_told(0x0002_0007);
        let after = epochs.of(name);
        assert_ne!(after, before);
        assert!(!after.concerns(name, before) && after.concerns(neighbour, before));
        epochs.raise_told(0x0002_0007);
        assert!(epochs.of(name).concerns(name, before), "the first of two is not known any more");
        epochs.raise_told(0x0001_0007);
        assert!(epochs.of(name).concerns(name, after));
        assert!(!after.concerns(name, after));
    }

    #[test]
    fn what_this_node_changed_is_told_and_what_it_was_told_is_not() {
        let epochs = Epochs::telling();
        let (mark, _) = epochs.changes_since(0);
        epochs.raise_told(7);
        assert_eq!(epochs.changes_since(mark).1, Some(BTreeSet::new()));
        epochs.raise("ann", "film");
        let told = BTreeSet::from([NameHash::of("ann", "film").0]);
        assert_eq!(epochs.changes_since(mark).1, Some(told));
        assert_eq!(Epochs::new().changes_since(mark).1, None);
    }
}
