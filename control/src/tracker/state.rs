//! The tracker's picture of the cluster. Pure: the time comes in as a value.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::api::{Beat, GroupView, HeardView, NodeDetail, NodeState, NodeView};
use crate::placement::Candidate;

/// Beats a node may miss before it is offline.
pub const BEATS_UNTIL_OFFLINE: u32 = 3;
/// What trackers can agree on about a living node's times: the second.
const ROUND_MS: u64 = 1_000;

/// Why a node is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Another living node has this id.
    #[error(
        "node id {id} is in use by {name} at {address} with another data folder: give this node another id, or stop that one"
    )]
    IdInUse {
        /// The id.
        id: u32,
        /// Who has it.
        name: String,
        /// Where that one is.
        address: String,
    },
}

/// Why a node cannot be retired.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RetireError {
    /// It beats.
    #[error("node {id} ({name}) is alive: stop it first")]
    Alive {
        /// The id.
        id: u32,
        /// Its name.
        name: String,
    },
    /// Nobody has heard of it.
    #[error("there is no node {0}")]
    Unknown(u32),
}

/// Retired nodes remembered; beyond, the oldest goes.
const RETIRED: usize = 4096;

/// All nodes a tracker has heard of.
#[derive(Debug)]
pub struct Registry {
    nodes: BTreeMap<u32, Heard>,
    /// Nodes that are gone for good, by id and instance: other trackers' word does not bring them back.
    retired: VecDeque<(u32, String)>,
    silence: Duration,
}

#[derive(Debug)]
struct Heard {
    beat: Beat,
    /// When this tracker heard of it, by its own monotonic clock; `None` when only others told of it.
    at: Option<Duration>,
    /// When another tracker last heard it, as that one says.
    told: Option<Duration>,
}

impl Registry {
    /// A registry for nodes that beat every `beat`.
    pub fn new(beat: Duration) -> Self {
        Self {
            nodes: BTreeMap::new(),
            retired: VecDeque::new(),
            silence: beat * BEATS_UNTIL_OFFLINE,
        }
    }

    /// Takes a join or a beat that came at `now`.
    pub fn hear(&mut self, beat: Beat, now: Duration) -> Result<(), JoinError> {
        if let Some(heard) = self.nodes.get(&beat.node.id) {
            let other = heard.beat.node.instance != beat.node.instance;
            if other && !self.is_silent(heard, now) {
                return Err(JoinError::IdInUse {
                    id: beat.node.id,
                    name: heard.beat.node.name.clone(),
                    address: heard.beat.node.address.clone(),
                });
            }
            // A beat that was overtaken by a later one of the same life.
            if !other
                && heard.beat.node.started_ms == beat.node.started_ms
                && heard.beat.sent_ms > beat.sent_ms
            {
                return Ok(());
            }
        }
        if !self.retired.is_empty() && self.is_retired(&beat) {
            self.retired.retain(|(id, _)| *id != beat.node.id);
        }
        self.nodes.insert(beat.node.id, Heard { beat, at: Some(now), told: None });
        Ok(())
    }

    fn is_silent(&self, heard: &Heard, now: Duration) -> bool {
        heard.at.is_none_or(|at| now.saturating_sub(at) > self.silence)
    }

    /// A silent node is gone for good: it counts no more. Should it ever beat again, it is there again.
    pub fn retire(&mut self, id: u32, now: Duration) -> Result<(), RetireError> {
        let heard = self.nodes.get(&id).ok_or(RetireError::Unknown(id))?;
        if !self.is_silent(heard, now) {
            return Err(RetireError::Alive { id, name: heard.beat.node.name.clone() });
        }
        if self.retired.len() >= RETIRED {
            self.retired.pop_front();
        }
        self.retired.push_back((id, heard.beat.node.instance.clone()));
        self.nodes.remove(&id);
        Ok(())
    }

    fn is_retired(&self, beat: &Beat) -> bool {
        self.retired
            .iter()
            .any(|(id, instance)| *id == beat.node.id && *instance == beat.node.instance)
    }

    /// What this tracker has heard, in short: for the other trackers.
    pub fn heard(&self, now: Duration) -> Vec<HeardView> {
        let view = |(id, heard): (&u32, &Heard)| HeardView {
            id: *id,
            sent_ms: heard.beat.sent_ms,
            heard_ms: heard.at.map(|at| now.saturating_sub(at).as_millis() as u64),
        };
        self.nodes.iter().map(view).collect()
    }

    /// Another tracker says what it has heard. Returns the nodes whose last beats are to be asked for: those that are
    /// silent here, or unknown, and of which that one knows more.
    pub fn compare(&mut self, theirs: &[HeardView], now: Duration) -> Vec<u32> {
        let silence = self.silence.as_millis() as u64;
        let mut wanted = Vec::new();
        for view in theirs {
            let Some(known) = self.nodes.get(&view.id) else {
                wanted.push(view.id);
                continue;
            };
            let silent = self.is_silent(known, now);
            if silent && view.sent_ms > known.beat.sent_ms {
                wanted.push(view.id);
            }
            let heard = view.heard_ms.filter(|heard| silent && *heard <= silence);
            if let Some((known, heard)) = self.nodes.get_mut(&view.id).zip(heard) {
                known.told = known.told.max(Some(now.saturating_sub(Duration::from_millis(heard))));
            }
        }
        wanted
    }

    /// The last beats of some nodes: for the other trackers.
    pub fn beats(&self, ids: &[u32]) -> Vec<Beat> {
        ids.iter().filter_map(|id| self.nodes.get(id)).map(|heard| heard.beat.clone()).collect()
    }

    /// Last beats that another tracker has heard. They do not count as heard here: a node that this tracker cannot hear
    /// stays silent here.
    pub fn learn(&mut self, beats: Vec<Beat>, now: Duration) {
        for beat in beats {
            let id = beat.node.id;
            match self.nodes.get(&id) {
                None if self.is_retired(&beat) => {}
                None => {
                    self.nodes.insert(id, Heard { beat, at: None, told: None });
                }
                Some(known) if self.is_silent(known, now) && beat.sent_ms > known.beat.sent_ms => {
                    let (at, told) = (known.at, known.told);
                    self.nodes.insert(id, Heard { beat, at, told });
                }
                Some(_) => {}
            }
        }
    }

    /// Nodes (all, or of one group) that are silent here while another tracker hears them: this tracker is cut off
    /// from them, and another one has the better view.
    pub fn unheard(&self, group: Option<u32>, now: Duration) -> Vec<u32> {
        let lately = |told: Duration| now.saturating_sub(told) <= self.silence;
        self.nodes
            .iter()
            .filter(|(_, heard)| group.is_none_or(|group| heard.beat.node.group == group))
            .filter(|(_, heard)| self.is_silent(heard, now) && heard.told.is_some_and(lately))
            .map(|(id, _)| *id)
            .collect()
    }

    fn state(&self, heard: &Heard, now: Duration) -> NodeState {
        if self.is_silent(heard, now) { NodeState::Offline } else { heard.beat.state }
    }

    /// Every node, sorted by id. Without `detail` it holds only what all trackers can agree on.
    pub fn view(&self, now: Duration, detail: bool) -> Vec<NodeView> {
        self.nodes
            .values()
            .map(|heard| {
                let state = self.state(heard, now);
                let since_ms = match state {
                    NodeState::Offline => heard.beat.sent_ms,
                    _ => heard.beat.since_ms / ROUND_MS * ROUND_MS,
                };
                let detail = detail.then(|| NodeDetail {
                    free: heard.beat.free,
                    load: heard.beat.load,
                    lag: heard.beat.lag,
                    heard_ms: heard.at.map(|at| now.saturating_sub(at).as_millis() as u64),
                });
                NodeView { node: heard.beat.node.clone(), state, since_ms, detail }
            })
            .collect()
    }

    /// Every group, sorted.
    pub fn groups(&self, now: Duration) -> Vec<GroupView> {
        let mut groups: BTreeMap<u32, GroupView> = BTreeMap::new();
        for heard in self.nodes.values() {
            let active = self.state(heard, now) == NodeState::Active;
            let group = heard.beat.node.group;
            let view = groups
                .entry(group)
                .or_insert(GroupView { capacity: u64::MAX, ..GroupView::without_nodes(group) });
            view.nodes += 1;
            view.capacity = view.capacity.min(heard.beat.node.capacity);
            if active {
                view.free =
                    if view.active == 0 { heard.beat.free } else { view.free.min(heard.beat.free) };
                view.active += 1;
            }
        }
        groups.into_values().collect()
    }

    /// The active nodes of a group.
    pub fn candidates(&self, group: u32, now: Duration) -> Vec<Candidate> {
        self.nodes
            .values()
            .filter(|heard| {
                heard.beat.node.group == group && self.state(heard, now) == NodeState::Active
            })
            .map(|heard| Candidate {
                id: heard.beat.node.id,
                free: heard.beat.free,
                load: heard.beat.load,
            })
            .collect()
    }

    /// A node's name and address.
    pub fn address(&self, id: u32) -> Option<(&str, &str)> {
        self.nodes
            .get(&id)
            .map(|heard| (heard.beat.node.name.as_str(), heard.beat.node.address.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::NodeInfo;

    fn beat(id: u32, instance: &str, sent_ms: u64) -> Beat {
        Beat {
            cluster: "reel".into(),
            node: NodeInfo {
                id,
                name: format!("storage-{id}"),
                group: 1,
                address: format!("127.0.0.1:{id}"),
                version: "0".into(),
                protocol: crate::api::PROTOCOL,
                shards: 2,
                started_ms: 5,
                instance: instance.into(),
                capacity: 1000,
            },
            state: NodeState::Active,
            since_ms: 1234,
            sent_ms,
            free: 500,
            load: 1,
            lag: 0,
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_node_silent_for_three_beats_is_offline_and_comes_back_with_one() {
        let mut registry = Registry::new(SECOND);
        registry.hear(beat(1, "a", 10_000), SECOND).expect("joins");
        assert_eq!(registry.view(SECOND * 4, false)[0].state, NodeState::Active);
        let view = &registry.view(SECOND * 4 + Duration::from_millis(1), false)[0];
        assert_eq!((view.state, view.since_ms), (NodeState::Offline, 10_000));
        assert!(registry.candidates(1, SECOND * 5).is_empty());
        registry.hear(beat(1, "a", 15_000), SECOND * 5).expect("beats");
        assert_eq!(registry.candidates(1, SECOND * 5).len(), 1);
    }

    #[test]
    fn two_living_nodes_with_one_id_are_refused() {
        let mut registry = Registry::new(SECOND);
        registry.hear(beat(1, "a", 0), SECOND).expect("joins");
        assert!(registry.hear(beat(1, "b", 0), SECOND * 2).is_err());
        registry.hear(beat(1, "b", 0), SECOND * 9).expect("the other is long silent");
    }

    #[test]
    fn trackers_that_heard_in_another_order_show_the_same() {
        let (mut one, mut two) = (Registry::new(SECOND), Registry::new(SECOND));
        for (id, sent) in [(1, 5), (2, 5), (1, 6), (3, 5)] {
            one.hear(beat(id, "a", sent), SECOND).expect("heard");
        }
        for (id, sent) in [(3, 5), (1, 6), (2, 5), (1, 5)] {
            two.hear(beat(id, "a", sent), SECOND + Duration::from_millis(70)).expect("heard");
        }
        assert_eq!(one.view(SECOND * 2, false), two.view(SECOND * 2, false));
    }

    #[test]
    fn a_tracker_that_restarts_learns_of_the_silent_ones_from_another() {
        let (mut old, mut new) = (Registry::new(SECOND), Registry::new(SECOND));
        old.hear(beat(1, "a", 10), SECOND).expect("joins");
        old.hear(beat(2, "a", 20), SECOND * 10).expect("joins");
        let now = SECOND * 11;
        new.hear(beat(2, "a", 20), now).expect("beats");
        let wanted = new.compare(&old.heard(now), now);
        assert_eq!(wanted, [1]);
        new.learn(old.beats(&wanted), now);
        assert_eq!(new.view(now, false), old.view(now, false));
        assert_eq!(new.view(now, false)[0].state, NodeState::Offline);
        assert!(new.unheard(None, now).is_empty(), "nobody hears it");
    }

    #[test]
    fn the_last_beat_of_a_silent_node_is_the_same_everywhere() {
        let (mut one, mut two) = (Registry::new(SECOND), Registry::new(SECOND));
        one.hear(beat(1, "a", 10), SECOND).expect("hears");
        two.hear(beat(1, "a", 10), SECOND).expect("hears");
        two.hear(beat(1, "a", 1010), SECOND * 2).expect("hears one more");
        let now = SECOND * 20;
        let wanted = one.compare(&two.heard(now), now);
        one.learn(two.beats(&wanted), now);
        assert_eq!(two.compare(&one.heard(now), now), [] as [u32; 0]);
        assert_eq!(one.view(now, false), two.view(now, false));
    }

    #[test]
    fn a_tracker_that_is_cut_off_knows_it_and_does_not_pretend() {
        let (mut here, mut there) = (Registry::new(SECOND), Registry::new(SECOND));
        here.hear(beat(1, "a", 10), SECOND).expect("hears");
        let now = SECOND * 20;
        there.hear(beat(1, "a", 19_000), now).expect("hears");
        let wanted = here.compare(&there.heard(now), now);
        here.learn(there.beats(&wanted), now);
        assert_eq!(here.unheard(None, now), [1]);
        assert_eq!((here.unheard(Some(1), now).len(), here.unheard(Some(2), now).len()), (1, 0));
        assert_eq!(here.view(now, false)[0].state, NodeState::Offline);
        here.hear(beat(1, "a", 21_000), now + SECOND).expect("hears again");
        assert!(here.unheard(None, now + SECOND).is_empty());
    }

    #[test]
    fn a_retired_node_does_not_come_back_by_hearsay_but_by_its_own_beat() {
        let (mut here, mut there) = (Registry::new(SECOND), Registry::new(SECOND));
        for tracker in [&mut here, &mut there] {
            tracker.hear(beat(1, "a", 10), SECOND).expect("joins");
        }
        assert!(matches!(here.retire(1, SECOND * 2), Err(RetireError::Alive { .. })));
        assert_eq!(here.retire(2, SECOND * 2), Err(RetireError::Unknown(2)));
        let now = SECOND * 10;
        here.retire(1, now).expect("it is silent");
        let wanted = here.compare(&there.heard(now), now);
        here.learn(there.beats(&wanted), now);
        assert!(here.view(now, false).is_empty());
        here.hear(beat(1, "a", 9_999), now).expect("it lives");
        assert_eq!(here.view(now, false)[0].state, NodeState::Active);
    }
}
