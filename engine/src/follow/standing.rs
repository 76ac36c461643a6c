//! How current a node's picture of its peers is.

use std::collections::HashMap;
use std::time::Instant;

use super::Peer;

/// How far following is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// All that all peers wrote until then is here; `None` when that is not known. Without peers it is now.
    pub all_until: Option<Instant>,
    /// The same for the peers that are not offline.
    pub living_until: Option<Instant>,
    /// Every living peer's segments were all here once, or it could not be reached.
    pub caught_up: bool,
}

impl Standing {
    /// `heard`: all that a peer wrote until then is here. `caught_up`: whether that is so of one peer.
    pub fn of(
        peers: &[Peer],
        heard: &HashMap<u32, Instant>,
        caught_up: impl Fn(u32) -> bool,
        now: Instant,
    ) -> Self {
        let until = |offline_too: bool| {
            let counts = |peer: &&Peer| offline_too || !peer.offline;
            let heard = peers.iter().filter(counts).map(|peer| heard.get(&peer.id).copied()).min();
            // Without peers nobody else writes.
            heard.unwrap_or(Some(now))
        };
        Self {
            all_until: until(true),
            living_until: until(false),
            caught_up: peers.iter().all(|peer| peer.offline || caught_up(peer.id)),
        }
    }
}
