//! The cluster at a glance: what every tracker sees, put together, and what is wrong with it. Pure, apart from
//! [`gather`].

use std::collections::BTreeMap;

use serde::Serialize;

use crate::api::{NodeState, NodeView, Nodes};
use crate::client::{Client, ClientError};

/// Below this share of its capacity a group is nearly full.
const LITTLE_FREE: f64 = 0.05;

/// What one tracker said.
#[derive(Debug)]
pub struct Told {
    /// Its `HOST:PORT`.
    pub tracker: String,
    /// Its nodes, or why there are none.
    pub nodes: Result<Nodes, ClientError>,
}

/// Everything on one screen.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The cluster's name; empty when no tracker answers.
    pub cluster: String,
    /// Every tracker that was asked.
    pub trackers: Vec<TrackerLine>,
    /// The nodes, by the tracker that hears most of them.
    pub nodes: Vec<NodeView>,
    /// The groups of these nodes.
    pub groups: Vec<GroupLine>,
    /// What is wrong, the worst first; empty when all is well.
    pub problems: Vec<Problem>,
}

/// A tracker.
#[derive(Debug, Serialize)]
pub struct TrackerLine {
    /// Its `HOST:PORT`.
    pub tracker: String,
    /// Nodes it hears; absent when it does not answer.
    pub hears: Option<usize>,
}

/// A group.
#[derive(Debug, Serialize)]
pub struct GroupLine {
    /// The group.
    pub group: u32,
    /// Its nodes.
    pub nodes: usize,
    /// Those that are active.
    pub active: usize,
    /// Bytes free for uploads: the least of its active nodes.
    pub free: u64,
    /// Bytes its nodes have in all: the least of them.
    pub capacity: u64,
    /// Requests in progress.
    pub load: u32,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub level: Level,
    /// What, and where.
    pub what: String,
    /// What to do about it.
    pub advice: String,
}

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Files cannot be read or written.
    Down,
    /// One more fault, and files cannot be read or written.
    AtRisk,
    /// It needs attention some time.
    Notice,
}

/// Asks every tracker.
pub async fn gather(client: &Client) -> Status {
    judge(client.nodes_of_each().await)
}

/// Puts together what the trackers said.
pub fn judge(told: Vec<Told>) -> Status {
    let mut problems = Vec::new();
    let mut add = |level, what: String, advice: &str| {
        problems.push(Problem { level, what, advice: advice.to_owned() });
    };
    let all = told.len();
    let silent = told.iter().filter(|told| told.nodes.is_err()).count();
    for told in &told {
        if let Err(error) = &told.nodes {
            let level = if silent == all { Level::Down } else { Level::Notice };
            add(
                level,
                format!("tracker {}: {error}", told.tracker),
                "start it, or look at the network",
            );
        }
    }
    let heard =
        |nodes: &Nodes| nodes.nodes.iter().filter(|view| view.state != NodeState::Offline).count();
    let best = told
        .iter()
        .filter_map(|told| told.nodes.as_ref().ok())
        .max_by_key(|nodes| (heard(nodes), nodes.nodes.len()));
    let (cluster, nodes) =
        best.map_or_else(Default::default, |best| (best.cluster.clone(), best.nodes.clone()));
    for told in &told {
        let Ok(theirs) = &told.nodes else { continue };
        for node in nodes.iter().filter(|node| node.state != NodeState::Offline) {
            let here = theirs.nodes.iter().find(|view| view.node.id == node.node.id);
            if here.is_none_or(|view| view.state == NodeState::Offline) {
                add(
                    Level::Notice,
                    format!(
                        "tracker {} does not hear node {} ({})",
                        told.tracker, node.node.id, node.node.name
                    ),
                    "look at the network between the two; clients go by the other trackers meanwhile",
                );
            }
        }
    }
    let groups = groups(&nodes);
    for group in &groups {
        let GroupLine { group: number, nodes, active, .. } = group;
        if *active == 0 {
            add(
                Level::Down,
                format!(
                    "group {number}: none of its {nodes} nodes is active; its files cannot be read"
                ),
                "start its nodes",
            );
        } else if *active == 1 && *nodes > 1 {
            add(
                Level::AtRisk,
                format!(
                    "group {number}: one of its {nodes} nodes is active; its files have no backup"
                ),
                "start its other nodes",
            );
        }
        if *active > 0 && (group.free as f64) < group.capacity as f64 * LITTLE_FREE {
            add(
                Level::Notice,
                format!(
                    "group {number}: {} of {} bytes are free for uploads",
                    group.free, group.capacity
                ),
                "add a group for new users, or larger disks; delete what is not needed",
            );
        }
    }
    for view in &nodes {
        let node = &view.node;
        let who =
            format!("node {} ({}, group {}, {})", node.id, node.name, node.group, node.address);
        let lag = view.detail.as_ref().map_or(0, |detail| detail.lag);
        match view.state {
            NodeState::Offline => {
                add(
                    Level::Notice,
                    format!("{who} is silent"),
                    "start it, it catches up by itself; gone for good: put an empty one with its id in its place, or `reel node retire`",
                );
            }
            NodeState::Joining | NodeState::Syncing => {
                add(
                    Level::Notice,
                    format!("{who} lacks {lag} bytes of its peers'"),
                    "wait; it serves when it has caught up",
                );
            }
            NodeState::Draining => {
                add(Level::Notice, format!("{who} is stopping"), "wait");
            }
            NodeState::Active => {}
        }
    }
    problems.sort();
    let trackers = told
        .iter()
        .map(|told| TrackerLine {
            tracker: told.tracker.clone(),
            hears: told.nodes.as_ref().ok().map(heard),
        })
        .collect();
    Status { cluster, trackers, nodes, groups, problems }
}

fn groups(nodes: &[NodeView]) -> Vec<GroupLine> {
    let mut groups: BTreeMap<u32, Vec<&NodeView>> = BTreeMap::new();
    for view in nodes {
        groups.entry(view.node.group).or_default().push(view);
    }
    groups
        .into_iter()
        .map(|(group, nodes)| {
            let active = || nodes.iter().filter(|view| view.state == NodeState::Active);
            let details = || active().filter_map(|view| view.detail.as_ref());
            GroupLine {
                group,
                nodes: nodes.len(),
                active: active().count(),
                free: details().map(|detail| detail.free).min().unwrap_or(0),
                capacity: nodes.iter().map(|view| view.node.capacity).min().unwrap_or(0),
                load: details().map(|detail| detail.load).sum(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{NodeDetail, NodeInfo};

    fn view(id: u32, group: u32, state: NodeState) -> NodeView {
        NodeView {
            node: NodeInfo {
                id,
                name: format!("storage-{id}"),
                group,
                address: format!("192.0.2.{id}:7501"),
                version: "0".into(),
                protocol: crate::api::PROTOCOL,
                shards: 1,
                started_ms: 0,
                instance: String::new(),
                capacity: 1000,
            },
            state,
            since_ms: 0,
            detail: Some(NodeDetail { free: 900, load: 1, lag: 0, heard_ms: Some(5) }),
        }
    }

    fn told(tracker: &str, nodes: Vec<NodeView>) -> Told {
        Told { tracker: tracker.into(), nodes: Ok(Nodes { cluster: "reel".into(), nodes }) }
    }

    #[test]
    fn a_cluster_that_is_well_has_no_problems() {
        use NodeState::Active;
        let nodes = vec![view(1, 1, Active), view(2, 1, Active)];
        let status = judge(vec![told("a", nodes.clone()), told("b", nodes)]);
        assert_eq!(status.problems, []);
        assert_eq!((status.groups.len(), status.groups[0].active), (1, 2));
    }

    #[test]
    fn the_worst_comes_first() {
        use NodeState::{Active, Offline};
        let nodes =
            vec![view(1, 1, Offline), view(2, 1, Offline), view(3, 2, Active), view(4, 2, Offline)];
        let silent = Told { tracker: "b".into(), nodes: Err(ClientError::Nobody("tracker")) };
        let status = judge(vec![told("a", nodes), silent]);
        let levels: Vec<Level> = status.problems.iter().map(|problem| problem.level).collect();
        assert_eq!(levels[..2], [Level::Down, Level::AtRisk]);
        assert!(status.problems[0].what.contains("group 1"));
        assert!(status.problems.iter().any(|problem| problem.what.contains("tracker b")));
    }

    #[test]
    fn a_tracker_with_the_worse_view_is_named() {
        use NodeState::{Active, Offline};
        let good = vec![view(1, 1, Active), view(2, 1, Active)];
        let bad = vec![view(1, 1, Active), view(2, 1, Offline)];
        let status = judge(vec![told("bad", bad), told("good", good)]);
        assert_eq!(status.problems.len(), 1, "{:?}", status.problems);
        assert!(status.problems[0].what.contains("tracker bad does not hear node 2"));
        assert_eq!(status.groups[0].active, 2);
    }

    #[test]
    fn no_tracker_at_all_is_the_worst() {
        let silent = Told { tracker: "a".into(), nodes: Err(ClientError::Nobody("tracker")) };
        assert_eq!(judge(vec![silent]).problems[0].level, Level::Down);
    }
}
