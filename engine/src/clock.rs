//! The hybrid logical clock that orders all writes of one name anywhere.
//!
//! Kulkarni et al., "Logical Physical Clocks" (2014): the time of day in milliseconds, and a
//! counter that takes over when the time of day stands still or another node is ahead.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::disk::Volume;

/// Bits of the logical counter below the milliseconds.
const COUNTER_BITS: u32 = 16;

/// Orders the writes of one name: first the clock, then the node. Every record carries one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version {
    /// Milliseconds since 1970 in the upper 48 bits, a counter in the lower 16.
    pub hlc: u64,
    /// The node that wrote.
    pub node: u32,
}

/// A node's clock. Shared by its shards; one atomic, no lock.
#[derive(Debug)]
pub struct Clock {
    last: AtomicU64,
    node: u32,
    /// Knows the time of day (a simulated one in simulations).
    time: Volume,
}

impl Clock {
    /// A clock of `node` that has seen nothing yet.
    pub fn new(node: u32, time: Volume) -> Self {
        Self { last: AtomicU64::new(0), node, time }
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.time.now_ms()
    }

    /// A version higher than every one this clock gave or saw.
    pub fn next(&self) -> Version {
        let now = self.now_ms() << COUNTER_BITS;
        let previous = self
            .last
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| Some(now.max(last + 1)))
            .unwrap_or_else(|last| last);
        Version { hlc: now.max(previous + 1), node: self.node }
    }

    /// Makes every later version higher than `seen`, which another node gave.
    pub fn observe(&self, seen: Version) {
        self.last.fetch_max(seen.hlc, Ordering::AcqRel);
    }
}

/// Milliseconds since 1970 by this machine's clock; 0 before that.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX >> COUNTER_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_only_rise_even_when_another_node_is_far_ahead() {
        let clock = Clock::new(7, Volume::new(std::sync::Arc::new(crate::disk::RealDisk)));
        let first = clock.next();
        let ahead = Version { hlc: first.hlc + (1 << 40), node: 3 };
        clock.observe(ahead);
        let mut last = clock.next();
        assert!(last > ahead);
        for _ in 0..100_000 {
            let next = clock.next();
            assert!(next > last);
            last = next;
        }
    }
}
