//! How many nodes must hold an upload before it is answered, and what happens when fewer are alive.

use std::time::{Duration, Instant};

use reel_control::agent::Peer;
use reel_control::api::NodeState;
use reel_control::config::{Ack, AckDegraded};
use reel_engine::{Segment, Stored};

use super::StorageShard;
use crate::answer::Problem;

/// How long an upload waits for its followers.
const WAIT: Duration = Duration::from_secs(10);
/// Between looks whether a follower has died meanwhile.
const LOOK: Duration = Duration::from_millis(500);

/// Followers that `ack` asks for, and those that are alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Quorum {
    asked: usize,
    alive: usize,
}

impl Quorum {
    /// `peers`: the group's other nodes as the trackers told last; `None` when they have told nothing yet.
    fn of(ack: Ack, peers: Option<&[Peer]>) -> Self {
        let peers = peers.unwrap_or(&[]);
        let asked = match ack {
            Ack::Nodes(nodes) => nodes as usize - 1,
            Ack::All => peers.len(),
        };
        let alive = peers.iter().filter(|peer| peer.state != NodeState::Offline).count();
        Self { asked, alive }
    }

    fn is_short(self) -> bool {
        self.alive < self.asked
    }

    /// Peers to wait for, and whether these are fewer than `ack` asks for.
    fn peers(self, when_short: AckDegraded) -> (usize, bool) {
        let degraded = self.is_short() && when_short == AckDegraded::Warn;
        (if degraded { self.alive } else { self.asked }, degraded)
    }
}

/// What an upload's answer says of the nodes that hold it: `None` when it is as `ack` asks.
pub(super) type Degraded = Option<String>;

impl StorageShard {
    fn quorum(&self) -> Quorum {
        match self.node.config.ack {
            // Nobody is asked: most uploads need not look at what all shards share.
            ack @ Ack::Nodes(1) => Quorum::of(ack, None),
            ack => Quorum::of(ack, self.node.peers.read().as_deref()),
        }
    }

    /// Peers that must hold an upload before it is answered.
    pub(super) fn needed_peers(&self) -> usize {
        let quorum = self.quorum();
        quorum.asked.min(quorum.alive)
    }

    /// Before the body: an upload that could not be confirmed is not begun.
    pub(super) fn check_quorum(&self) -> Result<(), Problem> {
        let quorum = self.quorum();
        if quorum.is_short() && self.node.config.ack_degraded == AckDegraded::Refuse {
            let Quorum { asked, alive } = quorum;
            let message = format!(
                "{alive} other nodes of the group are alive, and an upload must be held by {asked} (ack); try again, or set ack_degraded"
            );
            return Err(Problem::new(503, "too_few_nodes", message));
        }
        Ok(())
    }

    /// Before records of an earlier life are offered to the catalog: waits until as many nodes hold the segment as uploads
    /// need, however long that takes.
    pub(super) async fn wait_until_held(&self, segment: &Segment) {
        if self.node.config.ack == Ack::Nodes(1) {
            return;
        }
        loop {
            if self.node.peers.read().is_none() {
                monoio::time::sleep(LOOK).await;
                continue;
            }
            let (peers, _) = self.quorum().peers(self.node.config.ack_degraded);
            let held = self.node.acks.held(segment.number(), segment.durable(), peers);
            if monoio::time::timeout(LOOK, held).await.is_ok() {
                return;
            }
        }
    }

    /// Waits until as many nodes hold the record as `ack` asks for (as are alive, when that is fewer and
    /// `ack_degraded` is `warn`).
    pub(super) async fn wait_for_acks(&self, stored: &Stored) -> Result<Degraded, Problem> {
        let (number, end) = (stored.object.segment(), stored.end);
        let deadline = Instant::now() + WAIT;
        loop {
            let quorum = self.quorum();
            let (peers, degraded) = quorum.peers(self.node.config.ack_degraded);
            let left = deadline.saturating_duration_since(Instant::now());
            let held = self.node.acks.held(number, end, peers);
            if peers == 0 || monoio::time::timeout(left.min(LOOK), held).await.is_ok() {
                if !degraded {
                    return Ok(None);
                }
                metrics::counter!("reel_uploads_degraded_total").increment(1);
                return Ok(Some(format!("held by {} nodes of {}", peers + 1, quorum.asked + 1)));
            }
            if left.is_zero() {
                let message = format!(
                    "fewer than {peers} other nodes of the group confirmed it in time (ack); it is not stored, try again"
                );
                return Err(Problem::new(503, "too_few_nodes", message));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(states: &[NodeState]) -> Vec<Peer> {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        states.iter().map(|state| Peer { id: 1, address, state: *state }).collect()
    }

    #[test]
    fn the_dead_do_not_confirm() {
        use NodeState::{Active, Offline, Syncing};
        let two = Ack::Nodes(2);
        assert!(Quorum::of(two, None).is_short(), "nobody is known yet");
        assert!(Quorum::of(two, Some(&peers(&[Offline]))).is_short());
        assert!(!Quorum::of(two, Some(&peers(&[Offline, Syncing]))).is_short());
        assert!(Quorum::of(Ack::All, Some(&peers(&[Offline, Active]))).is_short());
        assert!(!Quorum::of(Ack::All, Some(&peers(&[Active, Active]))).is_short());
        assert!(!Quorum::of(Ack::Nodes(1), None).is_short());
    }
}
