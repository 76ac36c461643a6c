//! Which follower holds how much of which segment: the offset of its next pull says so.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::id::SegmentNumber;
use crate::signal::Signal;

/// Segments remembered; the oldest numbers go first.
const SEGMENTS: usize = 4096;

/// Offsets by segment and follower. Shared by the shards.
#[derive(Debug, Default)]
pub struct Acks {
    held: Mutex<HashMap<SegmentNumber, HashMap<u32, u64>>>,
    changed: Signal,
}

impl Acks {
    /// Follower `node` holds the first `bytes` bytes of a segment durably.
    pub fn record(&self, node: u32, number: SegmentNumber, bytes: u64) {
        let mut held = self.held.lock();
        if held.len() >= SEGMENTS
            && !held.contains_key(&number)
            && let Some(oldest) = held.keys().min().copied()
        {
            held.remove(&oldest);
        }
        let known = held.entry(number).or_default().entry(node).or_default();
        if bytes > *known {
            *known = bytes;
            drop(held);
            self.changed.raise();
        }
    }

    /// Whether `peers` followers hold a segment up to `end`.
    pub fn are_held(&self, number: SegmentNumber, end: u64, peers: usize) -> bool {
        let held = self.held.lock();
        let holders = held
            .get(&number)
            .map_or(0, |held| held.values().filter(|bytes| **bytes >= end).count());
        holders >= peers
    }

    /// Waits until `peers` followers hold a segment up to `end`. Cancel-safe.
    pub async fn held(&self, number: SegmentNumber, end: u64, peers: usize) {
        loop {
            let seen = self.changed.count();
            if self.are_held(number, end, peers) {
                return;
            }
            self.changed.beyond(seen).await;
        }
    }
}
