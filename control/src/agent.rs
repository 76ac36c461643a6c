//! A storage node's side of the control plane: it joins, beats, leases numbers and learns its peers.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::api::{Beat, Lease, LeaseRequest, NodeInfo, NodeState, Nodes};
use crate::client::{ClientError, Trackers, http_client};

/// Leases kept in hand: uploads go on for so many leases without an ID server.
const LEASES_IN_HAND: u64 = 2;
/// Between tries when no ID server answers.
const LEASE_RETRY: Duration = Duration::from_millis(200);

/// Segment numbers in hand. Shards take from it without waiting.
#[derive(Debug, Default)]
pub struct LeasePool {
    leases: Mutex<VecDeque<Lease>>,
    taken: Notify,
}

impl LeasePool {
    /// The next number; `None` when there is none in hand.
    pub fn next(&self) -> Option<u64> {
        let mut leases = self.leases.lock();
        let front = leases.front_mut()?;
        let number = front.first;
        front.first += 1;
        front.count -= 1;
        if front.count == 0 {
            leases.pop_front();
        }
        drop(leases);
        self.taken.notify_one();
        Some(number)
    }

    /// Numbers in hand.
    pub fn remaining(&self) -> u64 {
        self.leases.lock().iter().map(|lease| lease.count).sum()
    }

    fn add(&self, lease: Lease) {
        if lease.count > 0 {
            self.leases.lock().push_back(lease);
        }
    }
}

/// What a node tells of itself; its parts change while it runs.
#[derive(Debug)]
pub struct NodeStatus {
    /// The cluster's name.
    pub cluster: String,
    /// What does not change.
    pub info: NodeInfo,
    /// When [`NodeInfo::started_ms`] was.
    started: Instant,
    state: AtomicU8,
    since_ms: AtomicU64,
    /// Bytes free for uploads.
    pub free: AtomicU64,
    /// Requests in progress.
    pub load: AtomicU32,
    /// Bytes its peers have that it lacks.
    pub lag: AtomicU64,
}

const STATES: [NodeState; 5] = [
    NodeState::Joining,
    NodeState::Syncing,
    NodeState::Active,
    NodeState::Draining,
    NodeState::Offline,
];

impl NodeStatus {
    /// A node that has just started, and is joining.
    pub fn new(cluster: String, info: NodeInfo) -> Self {
        Self {
            started: Instant::now(),
            since_ms: AtomicU64::new(info.started_ms),
            cluster,
            info,
            state: AtomicU8::new(0),
            free: AtomicU64::new(0),
            load: AtomicU32::new(0),
            lag: AtomicU64::new(0),
        }
    }

    /// The state now.
    pub fn state(&self) -> NodeState {
        STATES[self.state.load(Ordering::Relaxed) as usize % STATES.len()]
    }

    /// Goes over to `state`; the next beat says it.
    pub fn enter(&self, state: NodeState) {
        let index = STATES.iter().position(|known| *known == state).unwrap_or(0) as u8;
        if self.state.swap(index, Ordering::Relaxed) != index {
            self.since_ms.store(self.now_ms(), Ordering::Relaxed);
            tracing::info!(?state, "node state");
        }
    }

    /// Milliseconds since 1970, by the clock as it was at the start: it never goes back within a life, for trackers pass
    /// over what was written before what they have heard.
    fn now_ms(&self) -> u64 {
        self.info.started_ms + self.started.elapsed().as_millis() as u64
    }

    fn beat(&self) -> Beat {
        Beat {
            cluster: self.cluster.clone(),
            node: self.info.clone(),
            state: self.state(),
            since_ms: self.since_ms.load(Ordering::Relaxed),
            sent_ms: self.now_ms(),
            free: self.free.load(Ordering::Relaxed),
            load: self.load.load(Ordering::Relaxed),
            lag: self.lag.load(Ordering::Relaxed),
        }
    }
}

/// Another node of the same group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub id: u32,
    /// Where it speaks HTTP.
    pub address: SocketAddr,
    /// As the trackers see it.
    pub state: NodeState,
}

/// The group's other nodes, as the trackers told last; `None` before the first answer.
pub type Peers = Arc<RwLock<Option<Vec<Peer>>>>;

/// What the agent needs to know.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// Every tracker's `HOST:PORT`.
    pub trackers: Vec<String>,
    /// Every ID server's `HOST:PORT`.
    pub id_servers: Vec<String>,
    /// Between beats.
    pub beat: Duration,
    /// Numbers fetched at a time.
    pub lease: u64,
}

/// Joins every tracker. Those that cannot be reached are tried again with every beat; one that
/// refuses the node is an error that the node should end with.
pub async fn join(options: &AgentOptions, status: &NodeStatus) -> Result<(), ClientError> {
    for tracker in &options.trackers {
        match send_beat(&http_client(options.beat * 2), tracker, "join", &status.beat()).await {
            Err(error) if error.is_refusal() => return Err(error),
            Err(error) => {
                tracing::warn!(tracker, %error, "tracker not reached; it hears with the next beat")
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

async fn send_beat(
    http: &reqwest::Client,
    tracker: &str,
    call: &str,
    beat: &Beat,
) -> Result<(), ClientError> {
    let url = format!("http://{tracker}/-/v1/{call}");
    crate::client::checked(http.post(url).json(beat).send().await, tracker).await.map(drop)
}

/// Beats to every tracker, for ever: the same bytes to each. Also sends at once when `hurry` is
/// notified (a change of state).
pub async fn run_beats(options: AgentOptions, status: Arc<NodeStatus>, hurry: Arc<Notify>) {
    let http = http_client(options.beat);
    let mut ticks = tokio::time::interval(options.beat);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = hurry.notified() => {}
        }
        let beat = Arc::new(status.beat());
        for tracker in &options.trackers {
            let (http, tracker, beat) = (http.clone(), tracker.clone(), Arc::clone(&beat));
            tokio::spawn(async move {
                if let Err(error) = send_beat(&http, &tracker, "beat", &beat).await {
                    metrics::counter!("reel_beats_lost_total").increment(1);
                    if error.is_refusal() {
                        tracing::error!(tracker, %error, "tracker refuses this node");
                    } else {
                        tracing::debug!(tracker, %error, "beat lost");
                    }
                }
            });
        }
    }
}

/// Keeps [`LEASES_IN_HAND`] leases in the pool, for ever.
pub async fn run_leases(options: AgentOptions, status: Arc<NodeStatus>, pool: Arc<LeasePool>) {
    let http = http_client(Duration::from_secs(3));
    let mut said = false;
    loop {
        metrics::gauge!("reel_segment_numbers_in_hand").set(pool.remaining() as f64);
        if pool.remaining() >= options.lease * LEASES_IN_HAND {
            let _ = tokio::time::timeout(Duration::from_secs(1), pool.taken.notified()).await;
            continue;
        }
        match fetch_lease(&http, &options, &status).await {
            Ok(lease) => {
                pool.add(lease);
                if std::mem::take(&mut said) {
                    tracing::info!("an ID server answers again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(%error, in_hand = pool.remaining(), "no ID server gives segment numbers");
                }
                tokio::time::sleep(LEASE_RETRY).await;
            }
        }
    }
}

async fn fetch_lease(
    http: &reqwest::Client,
    options: &AgentOptions,
    status: &NodeStatus,
) -> Result<Lease, ClientError> {
    let request = LeaseRequest {
        cluster: status.cluster.clone(),
        node: status.info.id,
        count: options.lease,
    };
    let mut last = ClientError::Nobody("ID server");
    for server in &options.id_servers {
        let url = format!("http://{server}/-/v1/lease");
        match crate::client::checked(http.post(url).json(&request).send().await, server).await {
            Ok(response) => match response.json::<Lease>().await {
                Ok(lease) => return Ok(lease),
                Err(error) => last = ClientError::answer(server, &error),
            },
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Keeps the list of peers current, for ever.
pub async fn run_peers(options: AgentOptions, status: Arc<NodeStatus>, peers: Peers) {
    let trackers = Trackers::new(options.trackers.clone(), options.beat * 2);
    let path = format!("/-/v1/nodes?group={}", status.info.group);
    loop {
        match trackers.get::<Nodes>(&path).await {
            Ok(nodes) => {
                let members = members_of(nodes, status.info.group);
                *peers.write() = Some(members.filter(|peer| peer.id != status.info.id).collect());
            }
            Err(error) => tracing::debug!(%error, "peers not learnt"),
        }
        tokio::time::sleep(options.beat / 2).await;
    }
}

/// Groups whose nodes are asked for at once.
const GROUP_QUESTIONS: usize = 256;
/// How long an answer of the trackers is used.
const GROUP_AGE: Duration = Duration::from_secs(3);

type GroupQuestion = (u32, oneshot::Sender<Vec<SocketAddr>>);

/// Asks for the nodes of other groups, from any thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OtherGroups(mpsc::Sender<GroupQuestion>);

/// What [`run_groups`] answers.
#[derive(Debug)]
pub struct GroupQuestions(mpsc::Receiver<GroupQuestion>);

impl OtherGroups {
    /// The asking side, and what answers.
    pub fn channel() -> (Self, GroupQuestions) {
        let (ask, questions) = mpsc::channel(GROUP_QUESTIONS);
        (Self(ask), GroupQuestions(questions))
    }

    /// The nodes of a group that are not offline; none when trackers do not answer, or too many questions wait.
    pub async fn nodes_of(&self, group: u32) -> Vec<SocketAddr> {
        let (answer, answered) = oneshot::channel();
        match self.0.try_send((group, answer)) {
            Ok(()) => answered.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }
}

/// Answers which nodes other groups have, for ever.
pub async fn run_groups(options: AgentOptions, mut questions: GroupQuestions) {
    let trackers = Trackers::new(options.trackers.clone(), options.beat * 2);
    let mut known: HashMap<u32, (Instant, Vec<SocketAddr>)> = HashMap::new();
    while let Some((group, answer)) = questions.0.recv().await {
        known.retain(|_, (asked, _)| asked.elapsed() < GROUP_AGE);
        let nodes = match known.get(&group) {
            Some((_, nodes)) => nodes.clone(),
            None => match trackers.get::<Nodes>(&format!("/-/v1/nodes?group={group}")).await {
                Ok(nodes) => {
                    let living = |peer: &Peer| peer.state != NodeState::Offline;
                    let members = members_of(nodes, group).filter(living);
                    let nodes: Vec<_> = members.map(|peer| peer.address).collect();
                    known.insert(group, (Instant::now(), nodes.clone()));
                    nodes
                }
                Err(error) => {
                    tracing::debug!(group, %error, "nodes of another group not learnt");
                    Vec::new()
                }
            },
        };
        // Whoever asked may be gone.
        let _ = answer.send(nodes);
    }
}

/// The nodes of a group. (A tracker of an earlier version gives those of all.)
fn members_of(nodes: Nodes, group: u32) -> impl Iterator<Item = Peer> {
    let members = nodes.nodes.into_iter().filter(move |view| view.node.group == group);
    members.filter_map(|view| {
        let address = view.node.address.parse().ok()?;
        Some(Peer { id: view.node.id, address, state: view.state })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_handed_out_in_order_and_run_dry() {
        let pool = LeasePool::default();
        pool.add(Lease { first: 10, count: 2 });
        pool.add(Lease { first: 50, count: 1 });
        let taken: Vec<_> = std::iter::from_fn(|| pool.next()).collect();
        assert_eq!(taken, [10, 11, 50]);
        assert_eq!(pool.remaining(), 0);
    }
}
