//! A storage node's shard: finds, sends, takes and deletes the objects of its group.

mod admin;
mod at_peer;
mod cold;
mod delete;
mod elsewhere;
mod epochs;
mod following;
mod get;
mod hot;
mod moves;
mod names;
mod offer;
mod patience;
mod put;
mod quorum;
mod raw;
mod repair;
mod source;
mod stage;
mod sweep;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use reel_control::agent::{NodeStatus, OtherGroups, Peers};
use reel_control::api::NodeState;
use reel_control::catalog::CatalogHandle;
use reel_control::config::{Replication, StorageConfig};
use reel_engine::disk::SharedDisk;
use reel_engine::follow::{Acks, Copying};
use reel_engine::upkeep::Damage;
use reel_engine::{Place, Segment, SegmentNumber, Store, Writer};

use tokio::sync::mpsc::Sender;

pub(crate) use epochs::Epochs;
pub(crate) use following::Following;
pub(crate) use offer::offer_again;
pub use offer::offer_of;
pub(crate) use repair::repair_damaged;
pub(crate) use sweep::run_sweeps;
pub use sweep::{Verdict, judge};

use crate::access_log::AccessLog;
use crate::answer::Answers;
use crate::congestion::Congestion;
use crate::conn::{Conn, ConnError};
use crate::http::request::{Method, Request};
use crate::piece::Piece;
use crate::shard::{Answered, Service};
use crate::tally::{Begun, RequestMetrics};
use crate::upstream::Upstreams;
use crate::whole::Whole;
use names::NameCache;
use stage::CatalogStage;

/// Segments a shard holds on to, so that finding one takes no lock; beyond, it begins anew.
const SHARD_SEGMENTS: usize = 1024;
/// Users a shard remembers the group of; beyond, it begins anew.
const SHARD_USERS: usize = 65_536;
/// Idle connections a shard keeps to each peer.
const PEER_IDLE: usize = 8;
/// Connections a shard has to each peer.
const PEER_CONNECTIONS: usize = 256;

/// What the shards of a node share.
pub(crate) struct Node {
    pub(crate) config: StorageConfig,
    pub(crate) store: Arc<Store>,
    /// The volume that keeps the copies, when one does.
    pub(crate) volume: Option<SharedDisk>,
    pub(crate) catalog: CatalogHandle,
    pub(crate) epochs: Epochs,
    pub(crate) status: Arc<NodeStatus>,
    pub(crate) peers: Peers,
    pub(crate) other_groups: OtherGroups,
    /// What is damaged here, for [`repair_damaged`].
    pub(crate) repairs: Sender<Damage>,
    pub(crate) leases: Arc<reel_control::agent::LeasePool>,
    pub(crate) acks: Acks,
    pub(crate) following: Following,
    pub(crate) copying: Copying,
    pub(crate) access_log: Option<Arc<AccessLog>>,
    pub(crate) congestion: Congestion,
    /// Tells two lives of a node apart for followers.
    pub(crate) boot: String,
}

impl Node {
    /// Whether a volume of the whole group keeps the copies.
    pub(crate) fn is_shared(&self) -> bool {
        self.config.replication == Replication::Shared
    }

    /// Whether every living peer holds all that this node has written lately.
    pub(crate) fn is_held_by_peers(&self) -> bool {
        if self.is_shared() {
            return true;
        }
        let peers = self.peers.read();
        let living = peers.iter().flatten().filter(|peer| peer.state != NodeState::Offline).count();
        self.store.marked().into_iter().all(|number| {
            // One that is not open is no active one of this node's.
            self.store.loaded(number).is_none_or(|segment| {
                let own = segment.header().creator == self.config.id;
                !own || self.acks.are_held(number, segment.durable(), living)
            })
        })
    }
}

/// One shard of a storage node.
pub(crate) struct StorageShard {
    pub(crate) node: Arc<Node>,
    pub(crate) writer: Writer,
    pub(crate) stage: CatalogStage,
    pub(crate) upstreams: Upstreams,
    names: NameCache,
    hot: hot::HotAnswers,
    cold: Rc<cold::Cold>,
    residency: source::Residency,
    groups: RefCell<HashMap<String, u32>>,
    /// Peers that did not answer, and when.
    silent: RefCell<HashMap<SocketAddr, Instant>>,
    /// Segments seen lately; the store decides how long they stay open, and what compaction replaced
    /// is let go.
    segments: RefCell<HashMap<SegmentNumber, Weak<Segment>>>,
    /// Bytes of uploads in memory.
    upload_bytes: Cell<u64>,
    /// Losses that other groups are being told of.
    telling: Cell<usize>,
    pub(crate) answers: Answers,
    metrics: RequestMetrics,
    received: metrics::Counter,
    repaired: metrics::Counter,
    damaged: metrics::Counter,
}

impl StorageShard {
    /// A shard on the current thread; its writer and catalog stage still have to be spawned.
    pub(crate) fn new(node: Arc<Node>) -> Rc<Self> {
        let congestion = node.congestion.clone();
        Rc::new(Self {
            writer: Writer::new(Arc::clone(&node.store)),
            stage: CatalogStage::new(node.catalog.clone()),
            upstreams: Upstreams::new(PEER_IDLE, PEER_CONNECTIONS, congestion),
            names: NameCache::new(&node.config),
            hot: hot::HotAnswers::new(node.config.body_cache.0 as usize),
            cold: cold::Cold::new(Arc::clone(&node.store), node.config.cold_buffers.0),
            residency: source::Residency::default(),
            groups: RefCell::default(),
            silent: RefCell::default(),
            segments: RefCell::default(),
            upload_bytes: Cell::new(0),
            telling: Cell::new(0),
            answers: Answers::new(
                node.config.cors.clone(),
                node.config.node_header.then(|| node.config.id.to_string()),
            ),
            metrics: RequestMetrics::new(node.access_log.as_ref()),
            received: metrics::counter!("reel_received_bytes_total"),
            repaired: metrics::counter!("reel_peer_reads_total"),
            damaged: metrics::counter!("reel_damaged_objects_total"),
            node,
        })
    }

    /// Whether a volume of the whole group keeps the copies.
    pub(crate) fn is_shared(&self) -> bool {
        self.node.is_shared()
    }

    /// Where a segment is, without a lock when this shard has seen it lately.
    pub(super) async fn place(&self, number: SegmentNumber) -> Result<Place, reel_engine::Error> {
        if let Some(segment) = self.segments.borrow().get(&number).and_then(Weak::upgrade)
            && !segment.is_retired()
        {
            segment.keep_open();
            return Ok(Place::Here(segment));
        }
        let place = self.node.store.find(number).await?;
        if let Place::Here(segment) = &place {
            let mut segments = self.segments.borrow_mut();
            if segments.len() >= SHARD_SEGMENTS {
                segments.clear();
            }
            segments.insert(number, Arc::downgrade(segment));
        }
        Ok(place)
    }

    /// A segment that can be read here.
    pub(crate) async fn segment(
        &self,
        number: SegmentNumber,
    ) -> Result<Arc<Segment>, reel_engine::Error> {
        match self.place(number).await? {
            Place::Here(segment) => Ok(segment),
            Place::At(_) | Place::Nowhere => Err(reel_engine::Error::NoSegment(number)),
        }
    }

    /// The group a user's new files go to; a user nobody knows is settled on this node's group.
    pub(super) async fn group_of(
        &self,
        user: &str,
    ) -> Result<u32, reel_control::catalog::CatalogError> {
        // Another one's user may have been moved here meanwhile: that is asked again.
        if self.groups.borrow().get(user) == Some(&self.node.config.group) {
            return Ok(self.node.config.group);
        }
        let group = self.node.catalog.settle_user(user.to_owned(), self.node.config.group).await?;
        let mut groups = self.groups.borrow_mut();
        if groups.len() >= SHARD_USERS {
            groups.clear();
        }
        groups.insert(user.to_owned(), group);
        Ok(group)
    }

    async fn route(
        self: &Rc<Self>,
        conn: &mut Conn,
        request: &Request,
    ) -> Result<Answered, ConnError> {
        // All but reading is put on the heap: a viewer's memory is what reading takes.
        if request.path.starts_with("/-/") || request.path == "*" {
            return Box::pin(self.admin(conn, request)).await;
        }
        match request.method {
            Method::Get | Method::Head => self.get(conn, request).await,
            Method::Put => Box::pin(self.put(conn, request)).await,
            Method::Delete => Box::pin(self.delete(conn, request)).await,
            Method::Options => self.answers.preflight(conn, request).await,
            Method::Other => {
                self.answers.not_allowed(conn, request, "GET, HEAD, PUT, DELETE, OPTIONS").await
            }
        }
    }
}

impl Service for Rc<StorageShard> {
    async fn serve(&self, conn: &mut Conn, request: &Request) -> Result<Answered, ConnError> {
        let begun = Begun::now(conn);
        // Load is what clients ask for; peers and probes do not count.
        let load = u32::from(!request.path.starts_with("/-/"));
        self.node.status.load.fetch_add(load, Ordering::Relaxed);
        let result = self.route(conn, request).await;
        self.node.status.load.fetch_sub(load, Ordering::Relaxed);
        self.metrics.count_served(&begun, conn, request, &result);
        result
    }

    const HAS_WHOLE: bool = true;

    fn whole_answer(&self, request: &Request, now: Instant) -> Option<Whole> {
        self.hot_answer(request, now)
    }

    fn writes_down(&self) -> bool {
        self.metrics.writes_down()
    }

    fn piece(&self, request: &Request, now: Instant) -> Option<Piece> {
        self.hot_piece(request, now)
    }

    fn count_at_hand(
        &self,
        client: IpAddr,
        request: Option<&Request>,
        status: u16,
        bytes: u64,
        took: Duration,
    ) {
        if let Some(request) = request {
            self.metrics.write_down(client, request, status, bytes, took);
        }
        // Nothing else has answers at hand.
        self.metrics.add(Method::Get, status, bytes, took);
    }

    fn date(&self) -> Rc<str> {
        self.answers.date()
    }

    fn flush_metrics(&self) {
        self.metrics.flush();
        self.names.flush_metrics();
    }
}
