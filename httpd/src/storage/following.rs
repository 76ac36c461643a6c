//! How current this node's picture of its peers' writes is.
//!
//! A name that a shard remembers is kept true by peers' records. While they come, an aged entry is used and the catalog
//! is asked beside the answer. It is asked before the answer when records may be missing: a peer has not been heard of
//! for [`CURRENT`] or is offline, or it has begun a new life since the entry was asked for (what it wrote last may be
//! lost with its disk, while the catalog has it); and when the entry was asked for longer ago than that, because a user
//! whose group was full meanwhile has written to another group, whose records do not come here. So a reader sees a state at most that old as long as the catalog answers.
//! When it does not, what is remembered is shown by a node that hears its living peers; one that is cut off from them too
//! sends the reader to another node.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Records of all peers that are older than this have arrived, or names are asked for anew. A healthy follower hears of
/// each peer once a second.
const CURRENT: Duration = Duration::from_secs(3);

/// Since when nothing of the peers' is missing. Shared by the shards. Times are milliseconds since the start; 0 is never.
#[derive(Debug)]
pub(crate) struct Following {
    started: Instant,
    /// All that peers wrote until then is here.
    all: AtomicU64,
    /// The same for those that trackers do not call offline.
    living: AtomicU64,
    /// When a peer began a new life.
    doubt: AtomicU64,
}

impl Following {
    /// Nothing is known yet.
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            all: AtomicU64::new(0),
            living: AtomicU64::new(0),
            doubt: AtomicU64::new(0),
        }
    }

    fn ms(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.started).as_millis() as u64 + 1
    }

    /// All that all peers, and all that the living ones wrote until then is here; `None` when that is not known.
    pub(crate) fn is_until(&self, all: Option<Instant>, living: Option<Instant>) {
        self.all.store(all.map_or(0, |until| self.ms(until)), Ordering::Release);
        self.living.store(living.map_or(0, |until| self.ms(until)), Ordering::Release);
    }

    /// A peer has begun a new life.
    pub(crate) fn doubt(&self, now: Instant) {
        self.doubt.fetch_max(self.ms(now), Ordering::AcqRel);
    }

    fn is_late(&self, until: &AtomicU64, now: Instant) -> bool {
        let until = until.load(Ordering::Acquire);
        until == 0 || self.ms(now).saturating_sub(until) >= CURRENT.as_millis() as u64
    }

    /// Whether an aged entry that was asked for at `asked` may be used before it is asked for again.
    pub(crate) fn vouches_for(&self, asked: Instant, now: Instant) -> bool {
        !self.is_late(&self.all, now)
            && now.saturating_duration_since(asked) < CURRENT
            && self.ms(asked) > self.doubt.load(Ordering::Acquire)
    }

    /// Whether this node hears its living peers: then it knows as much as they when the catalog is away.
    pub(crate) fn hears_the_living(&self, now: Instant) -> bool {
        !self.is_late(&self.living, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_long_ago_does_not_vouch() {
        let (following, now) = (Following::new(), Instant::now());
        assert!(!following.vouches_for(now, now), "nothing was heard yet");
        following.is_until(Some(now), Some(now));
        assert!(following.vouches_for(now, now + CURRENT / 2));
        assert!(!following.vouches_for(now, now + CURRENT + Duration::from_millis(2)));
        following.is_until(None, Some(now));
        assert!(!following.vouches_for(now, now));
        assert!(following.hears_the_living(now), "the silent one is offline");
        following.is_until(None, None);
        assert!(!following.hears_the_living(now), "this node is cut off");
    }

    #[test]
    fn what_was_asked_for_long_ago_may_have_changed_in_another_group() {
        let (following, asked) = (Following::new(), Instant::now());
        let later = asked + CURRENT - Duration::from_millis(10);
        following.is_until(Some(later), Some(later));
        assert!(following.vouches_for(asked, later));
        let late = asked + CURRENT;
        following.is_until(Some(late), Some(late));
        assert!(!following.vouches_for(asked, late));
    }

    #[test]
    fn a_new_life_of_a_peer_casts_doubt_on_what_was_asked_for_before() {
        let following = Following::new();
        let before = Instant::now();
        let then = before + Duration::from_millis(10);
        following.is_until(Some(then), Some(then));
        following.doubt(then);
        assert!(!following.vouches_for(before, then));
        assert!(following.vouches_for(then + Duration::from_millis(5), then));
    }
}
