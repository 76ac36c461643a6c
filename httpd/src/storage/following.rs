//! How current this node's picture of its peers' writes is.
//!
//! A name that a shard remembers is kept true by peers' records. While they come, an aged entry is used and the catalog
//! is asked beside the answer; when one peer has not been heard of for [`CURRENT`], or trackers call it offline, its
//! writes may be missing, and the catalog is asked before the answer. So a reader sees a state at most that old.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Records of all peers that are older than this have arrived, or names are asked for anew. A healthy follower hears of
/// each peer once a second.
const CURRENT: Duration = Duration::from_secs(3);

/// Since when nothing of the peers' is missing. Shared by the shards.
#[derive(Debug)]
pub(crate) struct Following {
    started: Instant,
    /// All that peers wrote until then is here, in milliseconds since the start.
    until_ms: AtomicU64,
}

impl Following {
    /// Nothing is known yet.
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), until_ms: AtomicU64::new(0) }
    }

    /// All that peers wrote until `until` is here; `None` when that is not known.
    pub(crate) fn is_until(&self, until: Option<Instant>) {
        let passed = until.map_or(0, |until| {
            until.saturating_duration_since(self.started).as_millis() as u64 + 1
        });
        self.until_ms.store(passed, Ordering::Release);
    }

    /// Whether an entry that was asked for a while ago may be used.
    pub(crate) fn is_current(&self, now: Instant) -> bool {
        let until = Duration::from_millis(self.until_ms.load(Ordering::Acquire));
        !until.is_zero() && now.saturating_duration_since(self.started + until) < CURRENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_long_ago_is_not_current() {
        let (following, now) = (Following::new(), Instant::now());
        assert!(!following.is_current(now), "nothing was heard yet");
        following.is_until(Some(now));
        assert!(following.is_current(now + CURRENT / 2));
        assert!(!following.is_current(now + CURRENT + Duration::from_millis(2)));
        following.is_until(None);
        assert!(!following.is_current(now));
    }
}
