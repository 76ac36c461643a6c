//! A group whose volume keeps the copies (`replication = "shared"`): what nodes still tell one another.
//!
//! Each node asks every peer what changed there ([`SharedChanges`]): names, so that no shard shows an old file
//! for long, and segments, so that files of the peer's are opened anew after it compacted or removed them. And it says
//! which of the peer's objects are dead ([`DeadObjects`]), until the peer has marked them durably: only the node that made a
//! segment writes into it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reel_control::agent::Peer;
use reel_control::api::NodeState;
use reel_engine::follow::{Net, Standing};
use reel_engine::{Error, ObjectId, Place, SegmentNumber};
use serde::{Deserialize, Serialize};

use super::pull::{Broken, OverHttp};
use super::serve::number_of;
use crate::answer::Problem;
use crate::conn::{Conn, ConnError};
use crate::http::request::{Request, query_value};
use crate::shard::{Answered, Stop};
use crate::storage::StorageShard;

/// Between looks at the list of peers.
const LOOK: Duration = Duration::from_millis(100);
/// How long a peer lets this node wait for news.
const NEWS_WAIT_MS: u64 = 1000;
/// The longest it would.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// Between two asks: what changes meanwhile comes together.
const GATHER: Duration = Duration::from_millis(5);
/// Between tries of a peer that does not answer.
const RETRY: Duration = Duration::from_millis(300);
/// Tries after which a peer that does not answer does not keep this node from serving.
const TRIES_BEFORE_ACTIVE: u32 = 3;
/// Segments of a peer that wait to be opened ahead of need.
const AHEAD: usize = 1024;
/// Between looks whether something is dead at others.
const DEAD_LOOK: Duration = Duration::from_millis(500);
/// Dead objects said at a time.
const DEAD_BATCH: usize = 4096;
/// How long a peer may take to mark them.
const DEAD_WAIT: Duration = Duration::from_secs(30);
/// The largest body that says them.
const DEAD_BYTES: usize = 32 * DEAD_BATCH;

/// `GET /-/v1/shared/changes?since=M&segments=S&boot=B&wait_ms=W`.
#[derive(Debug, Serialize, Deserialize)]
struct SharedChanges {
    boot: String,
    /// What to ask with next.
    since: u64,
    /// The same for segments.
    segments_since: u64,
    /// The marks are too old, or of another life: nothing that was known before holds.
    reset: bool,
    /// Hashes of names that changed.
    names: BTreeSet<u32>,
    /// Segments that grew.
    growing: BTreeSet<u64>,
    /// Segments that were sealed, compacted or removed.
    settled: BTreeSet<u64>,
}

/// `PUT /-/v1/shared/dead`, and its answer: those that are the node's, durably marked.
#[derive(Debug, Default, Serialize, Deserialize)]
struct DeadObjects {
    objects: Vec<u64>,
}

/// Follows every peer's changes, and takes the node from joining to active.
pub(crate) async fn run_shared(shard: Rc<StorageShard>, stop: Stop) {
    let listeners = Rc::new(Listeners {
        net: OverHttp::new(Rc::clone(&shard)),
        following: RefCell::default(),
        heard: RefCell::default(),
        given_up: RefCell::default(),
    });
    monoio::spawn(deliver_dead(Rc::clone(&shard), stop.clone()));
    while !stop.is_stopping() {
        listeners.look(&shard);
        monoio::time::sleep(LOOK).await;
    }
}

struct Listeners {
    net: OverHttp,
    following: RefCell<HashSet<u32>>,
    /// All that a peer changed until then is known.
    heard: RefCell<HashMap<u32, Instant>>,
    /// Peers that could not be reached: they keep this node from serving no longer.
    given_up: RefCell<HashSet<u32>>,
}

impl Listeners {
    /// Begins to follow peers that are not followed yet, and says how current this node is.
    fn look(self: &Rc<Self>, shard: &Rc<StorageShard>) {
        let Some(peers) = self.net.peers() else { return };
        for peer in peers.iter().filter(|peer| !peer.offline) {
            if self.following.borrow_mut().insert(peer.id) {
                let (listeners, shard, peer) = (Rc::clone(self), Rc::clone(shard), peer.id);
                monoio::spawn(async move { listeners.follow(&shard, peer).await });
            }
        }
        let (heard, given_up) = (self.heard.borrow(), self.given_up.borrow());
        let is_known = |peer| heard.contains_key(&peer) || given_up.contains(&peer);
        shard.stands(Standing::of(&peers, &heard, is_known, Instant::now()));
    }

    /// Follows one peer until the trackers call it offline.
    async fn follow(&self, shard: &Rc<StorageShard>, peer: u32) {
        let tries = Cell::new(0);
        while is_living(shard, peer) {
            let Err(error) = self.follow_life(shard, peer, &tries).await;
            tracing::debug!(peer, %error, "following breaks off");
            tries.set(tries.get() + 1);
            if tries.get() >= TRIES_BEFORE_ACTIVE {
                self.given_up.borrow_mut().insert(peer);
            }
            monoio::time::sleep(RETRY).await;
        }
        self.following.borrow_mut().remove(&peer);
    }

    async fn follow_life(
        &self,
        shard: &StorageShard,
        peer: u32,
        tries: &Cell<u32>,
    ) -> Result<std::convert::Infallible, Broken> {
        let (mut boot, mut since, mut segments_since) = (String::new(), 0, 0);
        let ahead = Rc::new(Ahead::default());
        loop {
            let asked = Instant::now();
            let path = format!(
                "/-/v1/shared/changes?since={since}&segments={segments_since}&boot={boot}&wait_ms={NEWS_WAIT_MS}"
            );
            let news: SharedChanges = self.net.get_json(peer, &path).await?;
            tries.set(0);
            let store = &shard.node.store;
            if news.reset {
                shard.node.following.doubt(Instant::now());
                store.forget_all_foreign();
            }
            news.names.iter().for_each(|hash| shard.node.epochs.raise_told(*hash));
            let settled: Vec<_> = news.settled.into_iter().filter_map(SegmentNumber::new).collect();
            store.forget_foreign(settled.iter().copied());
            ahead.add(shard, peer, settled);
            ahead.add(shard, peer, news.growing.into_iter().filter_map(SegmentNumber::new));
            self.heard.borrow_mut().insert(peer, asked);
            (boot, since, segments_since) = (news.boot, news.since, news.segments_since);
            monoio::time::sleep(GATHER).await;
        }
    }
}

/// What is to be opened ahead of need, beside following: a volume that hangs does not hold the news up.
#[derive(Default)]
struct Ahead {
    waiting: RefCell<BTreeSet<SegmentNumber>>,
    runs: Cell<bool>,
}

impl Ahead {
    /// Beyond [`AHEAD`] they are opened when they are asked for.
    fn add(
        self: &Rc<Self>,
        shard: &StorageShard,
        peer: u32,
        numbers: impl IntoIterator<Item = SegmentNumber>,
    ) {
        let mut waiting = self.waiting.borrow_mut();
        let room = AHEAD.saturating_sub(waiting.len());
        waiting.extend(numbers.into_iter().take(room));
        if waiting.is_empty() || self.runs.replace(true) {
            return;
        }
        let (ahead, store) = (Rc::clone(self), Arc::clone(&shard.node.store));
        monoio::spawn(async move {
            loop {
                let numbers = ahead.waiting.take();
                if numbers.is_empty() {
                    break;
                }
                if let Err(error) = store.open_ahead(peer, numbers).await {
                    tracing::debug!(peer, %error, "segments are not opened ahead");
                }
            }
            ahead.runs.set(false);
        });
    }
}

fn is_living(shard: &StorageShard, id: u32) -> bool {
    let peers = shard.node.peers.read();
    peers.iter().flatten().any(|peer| peer.id == id && peer.state != NodeState::Offline)
}

/// Says, for ever, what is dead in the segments of others.
async fn deliver_dead(shard: Rc<StorageShard>, stop: Stop) {
    let mut after = None;
    while !stop.is_stopping() {
        let dead = shard.node.store.foreign_dead(after, DEAD_BATCH);
        after = dead.last().copied().filter(|_| dead.len() == DEAD_BATCH);
        if !dead.is_empty()
            && let Err(error) = shard.deliver(dead).await
        {
            tracing::debug!(%error, "dead objects of others are said again");
        }
        if after.is_none() {
            monoio::time::sleep(DEAD_LOOK).await;
        }
    }
}

impl StorageShard {
    async fn deliver(&self, dead: Vec<ObjectId>) -> Result<(), Error> {
        let mut left: BTreeSet<ObjectId> = dead.into_iter().collect();
        let peers = self.node.peers.read().clone().unwrap_or_default();
        let mut all_asked = true;
        for peer in peers {
            let objects = left.iter().map(|object| object.as_u64()).collect();
            match self.say_dead(&peer, &DeadObjects { objects }).await {
                Ok(DeadObjects { objects }) => {
                    let taken: Vec<_> = objects.into_iter().map(ObjectId::from_u64).collect();
                    for object in &taken {
                        left.remove(object);
                    }
                    self.node.store.forget_dead(&taken);
                }
                Err(error) => {
                    tracing::debug!(peer = peer.id, %error, "does not take what is dead");
                    all_asked = false;
                }
            }
        }
        if !all_asked {
            return Ok(());
        }
        // Nobody's who lives: a node's that is gone for good, or of a segment that is.
        for object in left {
            if matches!(self.node.store.find(object.segment()).await?, Place::Nowhere) {
                self.node.store.forget_dead(&[object]);
            }
        }
        Ok(())
    }

    async fn say_dead(&self, peer: &Peer, dead: &DeadObjects) -> Result<DeadObjects, Broken> {
        if peer.state == NodeState::Offline {
            return Err(Broken::Unknown);
        }
        let body = serde_json::to_vec(dead)?;
        let head = format!(
            "PUT /-/v1/shared/dead HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n",
            peer.address,
            body.len()
        );
        let asked = self.upstreams.request(peer.address, head.as_bytes(), &body, false);
        let asked = monoio::time::timeout(DEAD_WAIT, asked).await;
        let mut response = asked.map_err(|_| ConnError::Stalled)??;
        let status = response.status;
        let body = response.read_all(DEAD_BYTES).await?;
        self.upstreams.give_back(response);
        match status {
            200 => Ok(serde_json::from_slice(&body)?),
            status => Err(Broken::Status(status)),
        }
    }

    /// What changed at this node.
    pub(crate) async fn shared_changes(
        &self,
        conn: &mut Conn,
        request: &Request,
    ) -> Result<Answered, ConnError> {
        let same_life = query_value(&request.query, "boot") == Some(self.node.boot.as_str());
        let mark = |key| number_of(request, key).filter(|_| same_life).unwrap_or(0);
        let wait = number_of(request, "wait_ms").map_or(Duration::ZERO, Duration::from_millis);
        let (since, segments_since) = (mark("since"), mark("segments"));
        let epochs = &self.node.epochs;
        let news = monoio::time::timeout(wait.min(MAX_WAIT), epochs.changes_beyond(since)).await;
        let (since, names) = news.unwrap_or_else(|_| epochs.changes_since(since));
        let (segments_since, segments) = self.node.store.changes_since(segments_since);
        let reset = names.is_none() || segments.is_none();
        let is_settled = |number: &SegmentNumber| self.node.store.is_settled(*number);
        let (settled, growing): (Vec<_>, Vec<_>) =
            segments.unwrap_or_default().into_iter().partition(is_settled);
        let body = SharedChanges {
            boot: self.node.boot.clone(),
            since,
            segments_since,
            reset,
            names: names.unwrap_or_default(),
            growing: growing.into_iter().map(SegmentNumber::get).collect(),
            settled: settled.into_iter().map(SegmentNumber::get).collect(),
        };
        self.answers.json(conn, request, 200, &body).await
    }

    /// Peers say what is dead here.
    pub(crate) async fn take_dead(
        &self,
        conn: &mut Conn,
        request: &Request,
    ) -> Result<Answered, ConnError> {
        let mut body = Vec::new();
        conn.read_body(&mut body, DEAD_BYTES).await?;
        let dead: DeadObjects = match serde_json::from_slice(&body) {
            Ok(dead) if conn.body.is_done() => dead,
            _ => {
                let message = format!("{{\"objects\": [id, …]}} of at most {DEAD_BYTES} bytes");
                let problem = Problem { close: true, ..Problem::new(400, "bad_request", message) };
                return self.answers.refuse(conn, request, problem).await;
            }
        };
        let objects = dead.objects.into_iter().map(ObjectId::from_u64).collect();
        let store = Arc::clone(&self.node.store);
        match self.node.store.pool().run(move || store.take_dead(objects)).await {
            Ok(taken) => {
                let objects = taken.iter().map(|object| object.as_u64()).collect();
                self.answers.json(conn, request, 200, &DeadObjects { objects }).await
            }
            Err(error) => self.answers.refuse(conn, request, error.into()).await,
        }
    }
}
