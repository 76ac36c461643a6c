//! Nodes that were silent a moment ago: tried last, until they have had time to come back or trackers have noticed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// So long a silent node is tried last; then one request finds out.
const SUSPECT_FOR: Duration = Duration::from_secs(2);
/// Suspects remembered; beyond, the shard begins anew.
const SUSPECTS: usize = 4096;

/// A shard's suspects.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    until: RefCell<HashMap<SocketAddr, Instant>>,
}

impl Suspects {
    /// `node` did not answer, or stopped in the middle.
    pub(super) fn add(&self, node: SocketAddr, now: Instant) {
        let mut until = self.until.borrow_mut();
        if until.len() >= SUSPECTS {
            until.clear();
        }
        until.insert(node, now + SUSPECT_FOR);
    }

    /// `node` answered.
    pub(super) fn clear(&self, node: SocketAddr) {
        let mut until = self.until.borrow_mut();
        if !until.is_empty() {
            until.remove(&node);
        }
    }

    pub(super) fn has(&self, node: SocketAddr, now: Instant) -> bool {
        self.until.borrow().get(&node).is_some_and(|until| *until > now)
    }

    /// Suspects go to the end; the order is kept otherwise.
    pub(super) fn last(&self, nodes: &mut [SocketAddr], now: Instant) {
        if !self.until.borrow().is_empty() {
            nodes.sort_by_key(|node| self.has(*node, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_node_is_tried_last_for_a_while() {
        let node = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (suspects, now) = (Suspects::default(), Instant::now());
        suspects.add(node(1), now);
        let mut nodes = [node(1), node(2), node(3)];
        suspects.last(&mut nodes, now);
        assert_eq!(nodes, [node(2), node(3), node(1)]);
        let mut nodes = [node(1), node(2)];
        suspects.last(&mut nodes, now + SUSPECT_FOR);
        assert_eq!(nodes, [node(1), node(2)], "it had time to come back");
        suspects.clear(node(1));
        assert!(!suspects.has(node(1), now));
    }
}
