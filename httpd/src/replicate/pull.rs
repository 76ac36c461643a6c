//! The side that follows. Runs on one shard of the node.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use reel_control::agent::Peer;
use reel_control::api::NodeState;
use reel_engine::format::segment_header::SegmentKind;
use reel_engine::replica::{Arrived, PackedReplica, SoloReplica};
use reel_engine::{Error, Known};

use super::pending::Pending;
use super::{Changes, SegmentsPage};
use crate::conn::ConnError;
use crate::shard::Stop;
use crate::storage::StorageShard;
use crate::upstream::Response;

/// Between looks at the list of peers.
const LOOK: Duration = Duration::from_millis(100);
/// Between tries of a peer that does not answer.
const RETRY: Duration = Duration::from_millis(300);
/// Before a segment that was not copied is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a peer lets a follower wait for news.
const NEWS_WAIT_MS: u64 = 1000;
/// Tries after which a peer that does not answer does not keep this node from serving.
const TRIES_BEFORE_ACTIVE: u32 = 3;
/// Large segments copied at once.
const LARGE_AT_ONCE: usize = 2;
/// Bytes taken from a peer's answer at a time.
const PIECE_BYTES: usize = 1 << 20;
/// The largest answer that is JSON.
const JSON_BYTES: usize = 4 << 20;

/// Why following a peer broke off.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Conn(#[from] ConnError),
    #[error("{0}")]
    Engine(#[from] Error),
    #[error("the peer answers {0}")]
    Status(u16),
    #[error("the peer's answer is not understood: {0}")]
    Json(#[from] serde_json::Error),
}

struct Followers {
    shard: Rc<StorageShard>,
    following: RefCell<HashSet<u32>>,
    /// Peers whose segments were all here once, or that could not be reached.
    caught_up: RefCell<HashSet<u32>>,
    large: Cell<usize>,
    pending: RefCell<Pending>,
    lag: RefCell<HashMap<u32, Lag>>,
    /// All that a peer wrote until then is here.
    heard: RefCell<HashMap<u32, Instant>>,
    /// Peers that trackers call offline.
    offline: RefCell<HashSet<u32>>,
    /// Rises when one goes offline: what it made is taken from the others from then on, so their segments are
    /// listed anew.
    losses: Cell<u64>,
}

/// How far this node is behind a peer.
#[derive(Debug, Clone, Copy, Default)]
struct Lag {
    bytes: u64,
    /// Since when it lacks anything, or knows nothing.
    since: Option<Instant>,
}

/// Follows every peer, and takes the node from joining over syncing to active.
pub(crate) async fn run_followers(shard: Rc<StorageShard>, stop: Stop) {
    let followers = Rc::new(Followers {
        shard,
        following: RefCell::default(),
        caught_up: RefCell::default(),
        large: Cell::new(0),
        pending: RefCell::default(),
        lag: RefCell::default(),
        heard: RefCell::default(),
        offline: RefCell::default(),
        losses: Cell::new(0),
    });
    while !stop.is_stopping() {
        followers.look();
        monoio::time::sleep(LOOK).await;
    }
}

impl Followers {
    fn look(self: &Rc<Self>) {
        let status = &self.shard.node.status;
        let Some(peers) = self.shard.node.peers.read().clone() else { return };
        if status.state() == NodeState::Joining {
            status.enter(NodeState::Syncing);
        }
        let offline: HashSet<u32> = peers
            .iter()
            .filter(|peer| peer.state == NodeState::Offline)
            .map(|peer| peer.id)
            .collect();
        if !offline.is_subset(&self.offline.borrow()) {
            self.losses.set(self.losses.get() + 1);
        }
        self.offline.replace(offline);
        let heard = self.heard.borrow();
        let until = |offline_too: bool| {
            let counts = |peer: &&Peer| offline_too || peer.state != NodeState::Offline;
            let heard = peers.iter().filter(counts).map(|peer| heard.get(&peer.id).copied()).min();
            // Without peers nobody else writes.
            heard.unwrap_or(Some(Instant::now()))
        };
        self.shard.node.following.is_until(until(true), until(false));
        for peer in &peers {
            if peer.state != NodeState::Offline && self.following.borrow_mut().insert(peer.id) {
                let (followers, peer) = (Rc::clone(self), peer.clone());
                monoio::spawn(async move { followers.follow(peer).await });
            }
        }
        let caught_up = self.caught_up.borrow();
        let all = peers
            .iter()
            .all(|peer| peer.state == NodeState::Offline || caught_up.contains(&peer.id));
        if all && status.state() == NodeState::Syncing {
            status.enter(NodeState::Active);
        }
        let lag = self.lag.borrow();
        for (peer, lag) in lag.iter() {
            let peer = [("peer", peer.to_string())];
            metrics::gauge!("reel_replication_lag_bytes", &peer).set(lag.bytes as f64);
            let seconds = lag.since.map_or(0.0, |since| since.elapsed().as_secs_f64());
            metrics::gauge!("reel_replication_lag_seconds", &peer).set(seconds);
        }
        status.lag.store(lag.values().map(|lag| lag.bytes).sum(), Ordering::Relaxed);
    }

    /// So many bytes of a peer's lack here.
    fn lags(&self, peer: u32, bytes: u64) {
        let mut lag = self.lag.borrow_mut();
        let lag = lag.entry(peer).or_default();
        lag.bytes = bytes;
        lag.since = if bytes == 0 { None } else { lag.since.or(Some(Instant::now())) };
    }

    fn peer(&self, id: u32) -> Option<Peer> {
        self.shard.node.peers.read().as_ref()?.iter().find(|peer| peer.id == id).cloned()
    }

    /// Follows one peer until the trackers call it offline.
    async fn follow(self: Rc<Self>, peer: Peer) {
        let mut tries = 0;
        while let Some(now) = self.peer(peer.id).filter(|peer| peer.state != NodeState::Offline) {
            let error = match self.follow_life(&now, &mut tries).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            tries += 1;
            // What it wrote meanwhile is not known.
            self.lag
                .borrow_mut()
                .entry(peer.id)
                .or_default()
                .since
                .get_or_insert_with(Instant::now);
            tracing::debug!(peer = peer.id, %error, "following breaks off");
            if tries >= TRIES_BEFORE_ACTIVE {
                self.caught_up.borrow_mut().insert(peer.id);
            }
            monoio::time::sleep(RETRY).await;
        }
        self.lag.borrow_mut().remove(&peer.id);
        self.pending.borrow_mut().forget(peer.id);
        self.following.borrow_mut().remove(&peer.id);
    }

    /// Lists all of a peer's segments, copies what lacks, then goes on with what changes.
    async fn follow_life(
        self: &Rc<Self>,
        peer: &Peer,
        tries: &mut u32,
    ) -> Result<std::convert::Infallible, Broken> {
        let mut boot = String::new();
        let mut mark = 0;
        let mut losses = self.losses.get();
        loop {
            if losses != self.losses.get() {
                losses = self.losses.get();
                self.pending.borrow_mut().forget(peer.id);
                self.copy_all(peer).await?;
            }
            let asked = Instant::now();
            let path =
                format!("/-/v1/segments/changes?since={mark}&boot={boot}&wait_ms={NEWS_WAIT_MS}");
            let changes: Changes = self.get_json(peer.address, &path).await?;
            *tries = 0;
            if changes.reset {
                self.copy_all(peer).await?;
                self.shard.node.following.doubt(Instant::now());
                self.caught_up.borrow_mut().insert(peer.id);
            }
            (boot, mark) = (changes.boot, changes.mark);
            let mut known: Vec<Known> =
                changes.segments.iter().filter_map(super::SegmentView::known).collect();
            known.extend(self.pending.borrow().due(peer.id, Instant::now()));
            self.copy(peer, known).await?;
            self.heard.borrow_mut().insert(peer.id, asked);
        }
    }

    async fn copy_all(self: &Rc<Self>, peer: &Peer) -> Result<(), Broken> {
        let mut after = None;
        loop {
            let path = match after {
                Some(after) => format!("/-/v1/segments?after={after}"),
                None => "/-/v1/segments".to_owned(),
            };
            let page: SegmentsPage = self.get_json(peer.address, &path).await?;
            let known = page.segments.iter().filter_map(super::SegmentView::known).collect();
            self.copy(peer, known).await?;
            // Large ones are copied beside; being caught up means that they are here too.
            while self.large.get() > 0 {
                monoio::time::sleep(LOOK / 4).await;
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    async fn get_json<T: serde::de::DeserializeOwned>(
        &self,
        address: SocketAddr,
        path: &str,
    ) -> Result<T, Broken> {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
        let mut response =
            self.shard.upstreams.request(address, head.as_bytes(), &[], false).await?;
        if response.status != 200 {
            return Err(Broken::Status(response.status));
        }
        let body = response.read_all(JSON_BYTES).await?;
        self.shard.upstreams.give_back(response);
        Ok(serde_json::from_slice(&body)?)
    }

    /// Copies those of the segments that lack here. Large ones are copied beside.
    async fn copy(self: &Rc<Self>, peer: &Peer, segments: Vec<Known>) -> Result<(), Broken> {
        let mut wanted = Vec::new();
        for known in segments {
            match self.missing(peer, &known).await? {
                Some(missing) => wanted.push((known, missing)),
                None => self.pending.borrow_mut().done(peer.id, known.number),
            }
        }
        self.lags(peer.id, wanted.iter().map(|(_, missing)| missing).sum());
        for (known, _) in wanted {
            let Some(claim) = self.shard.node.copying.claim(known.number) else {
                // Another peer gives it, or pushes it: whether all came is looked at again.
                self.put_off(peer.id, known);
                continue;
            };
            if known.kind == SegmentKind::Solo {
                while self.large.get() >= LARGE_AT_ONCE {
                    monoio::time::sleep(LOOK / 4).await;
                }
                self.large.set(self.large.get() + 1);
                self.pending.borrow_mut().begin(peer.id, known.clone());
                let (followers, peer) = (Rc::clone(self), peer.clone());
                monoio::spawn(async move {
                    match followers.copy_solo(peer.address, &known).await {
                        // Gone there: deleted meanwhile.
                        Ok(()) | Err(Broken::Status(404)) => {
                            followers.pending.borrow_mut().done(peer.id, known.number);
                        }
                        Err(error) => {
                            tracing::warn!(segment = %known.number, peer = peer.id, %error, "large segment not copied; tried again");
                            followers.put_off(peer.id, known);
                        }
                    }
                    followers.large.set(followers.large.get() - 1);
                    drop(claim);
                });
            } else {
                let result = self.copy_packed(peer.address, &known).await;
                drop(claim);
                result?;
                self.pending.borrow_mut().done(peer.id, known.number);
            }
        }
        let pending = self.pending.borrow().bytes(peer.id);
        self.lags(peer.id, pending);
        Ok(())
    }

    fn put_off(&self, peer: u32, known: Known) {
        if !self.pending.borrow_mut().put_off(peer, known, Instant::now() + AGAIN) {
            // All that lacks is found again by listing.
            self.losses.set(self.losses.get() + 1);
        }
    }

    /// Bytes of a segment that lack here and should come from this peer; `None` when none.
    async fn missing(&self, peer: &Peer, known: &Known) -> Result<Option<u64>, Broken> {
        let node = &self.shard.node;
        let here = node.store.has(known.number);
        let own = known.creator == node.config.id;
        let by_creator = known.creator == peer.id;
        let creator_serves =
            self.peer(known.creator).is_some_and(|creator| creator.state != NodeState::Offline);
        // Of an own one that is here a peer has more only when this node was wiped, and has filled itself from
        // another that had less.
        if !own && !by_creator && creator_serves {
            return Ok(None);
        }
        if !here {
            return Ok(Some(known.length));
        }
        let (store, number) = (Arc::clone(&node.store), known.number);
        let ours = node.store.pool().run(move || store.describe(number)).await;
        match ours {
            // `sealed` here, or as long as there: nothing to pull, but perhaps to seal.
            Ok(ours) if ours.sealed => Ok(None),
            Ok(ours) if ours.length >= known.length && !known.sealed => Ok(None),
            Ok(ours) => Ok(Some(known.length.saturating_sub(ours.length))),
            // A copy of a large one that is not complete.
            Err(_) => Ok(None),
        }
    }

    async fn pull(
        &self,
        address: SocketAddr,
        known: &Known,
        from: u64,
    ) -> Result<Response, Broken> {
        let node = self.shard.node.config.id;
        let Known { number, generation, salt, .. } = known;
        let head = format!(
            "GET /-/v1/segments/{}/bytes?from={from}&node={node}&generation={generation}&salt={salt} HTTP/1.1\r\nHost: {address}\r\n\r\n",
            number.get()
        );
        let response = self.shard.upstreams.request(address, head.as_bytes(), &[], false).await?;
        if response.status != 200 {
            return Err(Broken::Status(response.status));
        }
        Ok(response)
    }

    async fn copy_packed(&self, address: SocketAddr, known: &Known) -> Result<(), Broken> {
        let store = &self.shard.node.store;
        let Some(mut replica) = PackedReplica::open(store, known).await? else { return Ok(()) };
        loop {
            let mut response = match self.pull(address, known, replica.next_offset()).await {
                // Deleted or compacted away meanwhile.
                Err(Broken::Status(404)) => return Ok(()),
                response => response?,
            };
            let sealed = response.field("reel-sealed") == Some("1");
            let empty = response.remaining() == 0;
            let mut piece = Vec::new();
            while !response.conn.body.is_done() {
                piece.clear();
                response.conn.read_some(&mut piece, PIECE_BYTES).await?;
                let arrived = replica.append(&piece).await?;
                metrics::counter!("reel_replicated_bytes_total").increment(piece.len() as u64);
                self.shard.take_in(arrived).await?;
            }
            self.shard.upstreams.give_back(response);
            if sealed {
                replica.finish().await?;
                return Ok(());
            }
            // The empty pull has acknowledged what came before.
            if empty {
                return Ok(());
            }
        }
    }

    async fn copy_solo(&self, address: SocketAddr, known: &Known) -> Result<(), Broken> {
        let store = &self.shard.node.store;
        let Some(mut replica) = SoloReplica::open(store, known).await? else { return Ok(()) };
        if let Err(error) = self.fill_solo(address, known, &mut replica).await {
            replica.abandon().await?;
            return Err(error);
        }
        let arrived = replica.finish().await?;
        self.shard.take_in(vec![arrived]).await?;
        let done = self.pull(address, known, known.length).await?;
        self.shard.upstreams.give_back(done);
        Ok(())
    }

    async fn fill_solo(
        &self,
        address: SocketAddr,
        known: &Known,
        replica: &mut SoloReplica,
    ) -> Result<(), Broken> {
        while replica.next_offset() < known.length {
            let mut response = self.pull(address, known, replica.next_offset()).await?;
            if response.remaining() == 0 {
                return Err(Broken::Status(response.status));
            }
            let mut piece = Vec::new();
            while !response.conn.body.is_done() {
                piece.clear();
                response.conn.read_some(&mut piece, PIECE_BYTES).await?;
                replica.append(&piece).await?;
                metrics::counter!("reel_replicated_bytes_total").increment(piece.len() as u64);
            }
            self.shard.upstreams.give_back(response);
        }
        Ok(())
    }
}

impl StorageShard {
    /// Records that arrived: names they concern are not believed any more, objects that their
    /// tombstones name are dead here too.
    pub(super) async fn take_in(&self, arrived: Vec<Arrived>) -> Result<(), Error> {
        let node = &self.node;
        let mut dead = Vec::new();
        for record in arrived {
            node.epochs.raise(&record.user, &record.name);
            dead.extend(record.target);
        }
        if !dead.is_empty() {
            let store = Arc::clone(&node.store);
            node.store
                .pool()
                .run(move || dead.into_iter().try_for_each(|object| store.kill(object).map(drop)))
                .await?;
        }
        Ok(())
    }
}
