//! The side that follows: [`reel_engine::follow`] over HTTP. Runs on one shard of the node.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use reel_control::agent::Peer;
use reel_control::api::NodeState;
use reel_control::catalog::CatalogError;
use reel_engine::follow::{self, Followers, Net, News, Page, Pulled, Sparing, Standing};
use reel_engine::replica::Arrived;
use reel_engine::{Error, Known, SegmentNumber};
use tokio::sync::mpsc::Receiver;

use super::compare::run_compares;
use super::{Changes, DeadSlots, SegmentView, SegmentsPage};
use crate::conn::ConnError;
use crate::shard::Stop;
use crate::storage::{StorageShard, offer_again};
use crate::upstream::Response;

/// Between looks at the list of peers.
const LOOK: Duration = Duration::from_millis(100);
/// How long a peer lets a follower wait for news.
const NEWS_WAIT_MS: u64 = 1000;
/// Bytes taken from a peer's answer at a time.
const PIECE_BYTES: usize = 1 << 20;
/// How long the other nodes may take to say what they hold.
pub(crate) const HOLD_WAIT: Duration = Duration::from_secs(5);
/// The largest answer that is JSON.
const JSON_BYTES: usize = 4 << 20;

/// Why following a peer broke off.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("{0}")]
    Conn(#[from] ConnError),
    #[error("{0}")]
    Engine(#[from] Error),
    #[error("the peer answers {0}")]
    Status(u16),
    #[error("the peer's answer is not understood: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Catalog(#[from] CatalogError),
    #[error("the trackers do not name it any more")]
    Unknown,
}

/// Follows every peer, and takes the node from joining over syncing to active.
pub(crate) async fn run_followers(shard: Rc<StorageShard>, stop: Stop) {
    let (store, copying) = (Arc::clone(&shard.node.store), shard.node.copying.clone());
    let followers = Followers::new(OverHttp(Rc::clone(&shard)), store, copying);
    monoio::spawn(run_compares(Rc::clone(&shard), Rc::clone(&followers), stop.clone()));
    while !stop.is_stopping() {
        shard.follow(&followers);
        match followers.seal_own().await {
            Ok(sealed) if sealed.is_empty() => {}
            Ok(sealed) => drop(monoio::spawn(offer_again(Rc::clone(&shard), sealed))),
            Err(error) => {
                tracing::warn!(%error, "own segments that came back from peers are not sealed yet");
            }
        }
        monoio::time::sleep(LOOK).await;
    }
}

impl StorageShard {
    fn follow(&self, followers: &Rc<Followers<OverHttp>>) {
        let Some(standing) = followers.look() else { return };
        self.stands(standing);
        let mut behind = 0;
        for (peer, lag) in followers.lags() {
            behind += lag.bytes;
            let peer = [("peer", peer.to_string())];
            metrics::gauge!("reel_replication_lag_bytes", &peer).set(lag.bytes as f64);
            let seconds = lag.since.map_or(0.0, |since| since.elapsed().as_secs_f64());
            metrics::gauge!("reel_replication_lag_seconds", &peer).set(seconds);
        }
        self.node.status.lag.store(behind, Ordering::Relaxed);
    }

    /// Says how current this node is, and takes it from joining over syncing to active.
    pub(super) fn stands(&self, standing: Standing) {
        let status = &self.node.status;
        if status.state() == NodeState::Joining {
            status.enter(NodeState::Syncing);
        }
        self.node.following.is_until(standing.all_until, standing.living_until);
        if standing.caught_up && status.state() == NodeState::Syncing {
            status.enter(NodeState::Active);
        }
    }

    /// Records have arrived: names they concern are not believed any more.
    pub(super) fn heard_of(&self, records: &[Arrived]) {
        for record in records {
            self.node.epochs.raise(&record.user, &record.name);
        }
    }
}

/// Peers over HTTP.
pub(super) struct OverHttp(Rc<StorageShard>);

impl OverHttp {
    pub(super) fn new(shard: Rc<StorageShard>) -> Self {
        Self(shard)
    }

    fn address(&self, peer: u32) -> Result<SocketAddr, Broken> {
        let peers = self.0.node.peers.read();
        let found = peers.iter().flatten().find(|known| known.id == peer);
        found.map(|peer| peer.address).ok_or(Broken::Unknown)
    }

    async fn get(&self, peer: u32, path: &str) -> Result<Response, Broken> {
        let address = self.address(peer)?;
        let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
        let response = self.0.upstreams.request(address, head.as_bytes(), &[], false).await?;
        match response.status {
            200 => Ok(response),
            status => {
                self.0.upstreams.give_back(response);
                Err(Broken::Status(status))
            }
        }
    }

    pub(super) async fn get_json<T: serde::de::DeserializeOwned>(
        &self,
        peer: u32,
        path: &str,
    ) -> Result<T, Broken> {
        Ok(serde_json::from_slice(&self.get_bytes(peer, path, JSON_BYTES).await?)?)
    }

    /// An answer of at most so many bytes.
    pub(super) async fn get_bytes(
        &self,
        peer: u32,
        path: &str,
        at_most: usize,
    ) -> Result<Vec<u8>, Broken> {
        let mut response = self.get(peer, path).await?;
        let body = response.read_all(at_most).await?;
        self.0.upstreams.give_back(response);
        Ok(body)
    }
}

impl Net for OverHttp {
    type Error = Broken;
    type Pulled = PulledOverHttp;

    fn peers(&self) -> Option<Vec<follow::Peer>> {
        let told =
            |peer: &Peer| follow::Peer { id: peer.id, offline: peer.state == NodeState::Offline };
        Some(self.0.node.peers.read().as_ref()?.iter().map(told).collect())
    }

    async fn news(&self, peer: u32, boot: &str, mark: u64) -> Result<News, Broken> {
        let path =
            format!("/-/v1/segments/changes?since={mark}&boot={boot}&wait_ms={NEWS_WAIT_MS}");
        let Changes { boot, mark, reset, segments, gone } = self.get_json(peer, &path).await?;
        let segments = segments.iter().filter_map(SegmentView::known).collect();
        let gone = gone.into_iter().filter_map(SegmentNumber::new).collect();
        Ok(News { boot, mark, reset, segments, gone })
    }

    async fn page(&self, peer: u32, after: Option<SegmentNumber>) -> Result<Page, Broken> {
        let path = match after {
            Some(after) => format!("/-/v1/segments?after={}", after.get()),
            None => "/-/v1/segments".to_owned(),
        };
        let SegmentsPage { segments, next } = self.get_json(peer, &path).await?;
        let segments = segments.iter().filter_map(SegmentView::known).collect();
        Ok(Page { segments, next: next.and_then(SegmentNumber::new) })
    }

    async fn known(&self, peer: u32, number: SegmentNumber) -> Result<Option<Known>, Broken> {
        let path = format!("/-/v1/segments/{}", number.get());
        match self.get_json::<SegmentView>(peer, &path).await {
            Ok(view) => Ok(view.known()),
            Err(Broken::Status(404 | 410)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn pull(
        &self,
        peer: u32,
        known: &Known,
        from: u64,
    ) -> Result<Option<PulledOverHttp>, Broken> {
        let node = self.0.node.config.id;
        let Known { number, generation, salt, .. } = known;
        let path = format!(
            "/-/v1/segments/{}/bytes?from={from}&node={node}&generation={generation}&salt={salt}",
            number.get()
        );
        match self.get(peer, &path).await {
            Ok(response) => {
                let is_last = response.field("reel-sealed") == Some("1");
                Ok(Some(PulledOverHttp {
                    shard: Rc::clone(&self.0),
                    is_last,
                    response: Some(response),
                    piece: Vec::new(),
                }))
            }
            Err(Broken::Status(404 | 410)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn dead(&self, peer: u32, number: SegmentNumber) -> Result<Option<Vec<u16>>, Broken> {
        let path = format!("/-/v1/segments/{}/dead", number.get());
        match self.get_json::<DeadSlots>(peer, &path).await {
            Ok(dead) => Ok(Some(dead.slots)),
            Err(Broken::Status(404 | 410)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn is_gone(&self, peer: u32, number: SegmentNumber) -> Result<bool, Broken> {
        match self.get(peer, &format!("/-/v1/segments/{}", number.get())).await {
            Ok(response) => {
                self.0.upstreams.give_back(response);
                Ok(false)
            }
            Err(Broken::Status(410)) => Ok(true),
            Err(Broken::Status(404)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn arrived(&self, records: &[Arrived]) {
        self.0.heard_of(records);
    }

    fn reborn(&self, _peer: u32) {
        self.0.node.following.doubt(Instant::now());
    }

    fn sparing(&self) -> Option<Sparing> {
        let node = &self.0.node;
        let share = f64::from(node.config.refill_share) / 100.0;
        (node.status.state() == NodeState::Syncing).then_some(Sparing { share })
    }

    async fn sleep(&self, time: Duration) {
        monoio::time::sleep(time).await;
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        monoio::spawn(task);
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// Answers, for ever, whether every other node of the group holds the whole of a segment. Questions come from the upkeep
/// thread.
pub(crate) async fn ask_holders(shard: Rc<StorageShard>, mut questions: Receiver<HoldQuestion>) {
    let net = OverHttp(shard);
    while let Some(HoldQuestion { number, answer }) = questions.recv().await {
        let asked = monoio::time::timeout(HOLD_WAIT, follow::all_hold(&net, number)).await;
        // Who asked may have stopped waiting.
        let _ = answer.send(asked.unwrap_or(false));
    }
}

/// Whether every other node holds the whole of a segment.
#[derive(Debug)]
pub(crate) struct HoldQuestion {
    pub(crate) number: SegmentNumber,
    pub(crate) answer: std::sync::mpsc::SyncSender<bool>,
}

pub(super) struct PulledOverHttp {
    shard: Rc<StorageShard>,
    is_last: bool,
    /// Gone when all was read: its connection serves again.
    response: Option<Response>,
    piece: Vec<u8>,
}

impl Pulled for PulledOverHttp {
    type Error = Broken;

    fn is_last(&self) -> bool {
        self.is_last
    }

    fn is_empty(&self) -> bool {
        self.response.as_ref().is_none_or(|response| response.remaining() == 0)
    }

    async fn next(&mut self) -> Result<Option<&[u8]>, Broken> {
        let Some(response) = &mut self.response else { return Ok(None) };
        if response.conn.body.is_done() {
            if let Some(response) = self.response.take() {
                self.shard.upstreams.give_back(response);
            }
            return Ok(None);
        }
        self.piece.clear();
        response.conn.read_some(&mut self.piece, PIECE_BYTES).await?;
        Ok(Some(&self.piece))
    }
}
