//! Puts a storage node or an HTTP server together: side thread, shards, an end in order.

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reel_control::agent::{self, AgentOptions, LeasePool, NodeStatus, OtherGroups, Peers};
use reel_control::api::{Groups, NodeInfo, NodeState, PROTOCOL};
use reel_control::catalog::{CatalogHandle, barrier, run_batches};
use reel_control::client::{ClientError, Trackers};
use reel_control::config::{AccessLogConfig, HttpConfig, Replication, StorageConfig};
use reel_engine::disk::{DiskPool, SharedDisk};
use reel_engine::follow::{Acks, Copying};
use reel_engine::upkeep::{Damage, Finding, Upkeep, UpkeepOptions};
use reel_engine::{FolderOptions, Recovery, SegmentNumber, Store, StoreOptions, node_folder};
use tokio::sync::Notify;

use crate::access_log::AccessLog;
use crate::balance;
use crate::congestion::Congestion;
use crate::gateway::{Gateway, GatewayShard};
use crate::handover::{self, Counter, Offer, Taken};
use crate::reactor;
use crate::replicate::{HOLD_WAIT, HoldQuestion, ask_holders, run_followers, run_shared};
use crate::shard::{self, Doors, Stop};
use crate::side::Side;
use crate::storage::{
    Epochs, Following, Node, StorageShard, offer_again, repair_damaged, run_sweeps,
};

/// Damaged objects that wait to be fetched from a peer; the next scrub finds those beyond again.
const REPAIRS: usize = 1024;
/// Between looks at the free space.
const SPACE: Duration = Duration::from_millis(500);
/// A data folder that lets a look at its free space wait for longer is silent.
const DISK_PATIENCE: Duration = Duration::from_secs(3);
/// Threads for blocking calls on a shared volume, where each waits for the network.
const SHARED_THREADS: usize = 16;
/// Between looks whether a gateway could serve.
const REACH: Duration = Duration::from_millis(250);
/// How long a node that stops waits for its followers to have what they lack.
const LAST_PULL: Duration = Duration::from_secs(2);
/// How long the last beat may take.
const LAST_BEAT: Duration = Duration::from_millis(300);

/// Why a role could not run: one line for a person.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The data folder.
    #[error("{0}")]
    Store(#[from] reel_engine::Error),
    /// A tracker refused the node.
    #[error("{0}")]
    Refused(ClientError),
    /// Another server has the address.
    #[error("{0} is in use by another server: stop it, or configure another `listen`")]
    AddressInUse(SocketAddr),
    /// A system call.
    #[error("{what}: {source}")]
    Io {
        /// The attempt.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A shard's thread panicked.
    #[error("shard {0} ended unexpectedly; its panic is in the log")]
    Shard(usize),
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> RunError {
    let what = what.into();
    move |source| RunError::Io { what, source }
}

/// What a role needs beside its own section.
#[derive(Debug, Clone)]
pub struct Common {
    /// The cluster's name.
    pub cluster: String,
    /// Every tracker's `HOST:PORT`.
    pub trackers: Vec<String>,
    /// Every ID server's `HOST:PORT`.
    pub id_servers: Vec<String>,
    /// Between beats.
    pub beat: Duration,
}

/// Listening sockets, one a shard, on one port; and the address they got.
fn listeners(
    address: SocketAddr,
    shards: usize,
    congestion: Option<&Congestion>,
) -> Result<(Vec<TcpListener>, SocketAddr), RunError> {
    if shard::is_taken(address) {
        return Err(RunError::AddressInUse(address));
    }
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AddrInUse => RunError::AddressInUse(address),
        _ => RunError::Io { what: format!("listen on {address}"), source },
    };
    let first = shard::listen(address, congestion).map_err(failed)?;
    let address = first.local_addr().map_err(io("ask for the address"))?;
    let mut sockets = vec![first];
    for _ in 1..shards {
        sockets.push(shard::listen(address, congestion).map_err(failed)?);
    }
    Ok((sockets, address))
}

/// The sockets of the server at `address`, if there is one that passes them, and more when it has less than `shards`.
fn take_sockets(
    address: SocketAddr,
    shards: usize,
    congestion: &Congestion,
) -> Result<Option<Taken>, RunError> {
    let mut taken = handover::take(address)
        .map_err(io(format!("take over the sockets of the server at {address}")))?;
    match &mut taken {
        None => tracing::info!(%address, "no server to take over from: this one begins anew"),
        Some(Taken { sockets, .. }) => {
            let failed = |source| RunError::Io { what: format!("listen on {address}"), source };
            for socket in sockets.iter() {
                congestion.set_listening(socket).map_err(failed)?;
            }
            while sockets.len() < shards {
                sockets.push(shard::listen(address, Some(congestion)).map_err(failed)?);
            }
        }
    }
    Ok(taken)
}

/// Where a server that takes over will ask; without it this one works, and has to be stopped first.
fn open_counter(address: SocketAddr) -> Option<Counter> {
    Counter::open(address)
        .inspect_err(|error| tracing::warn!(%error, "no server can take over from this one"))
        .ok()
}

/// One listening socket, for a control-plane server. Its port may be shared with a socket that
/// only keeps it (`reel up`), never with another server.
pub fn bind(address: SocketAddr) -> Result<TcpListener, RunError> {
    let (sockets, _) = listeners(address, 1, None)?;
    let socket = sockets.into_iter().next().ok_or(RunError::AddressInUse(address))?;
    socket.set_nonblocking(true).map_err(io("set up the socket"))?;
    Ok(socket)
}

/// Runs a storage node until `stop` is called. `ready` is called with the address when it listens.
pub fn run_storage(
    common: Common,
    config: StorageConfig,
    catalog_url: String,
    ready: impl FnOnce(SocketAddr),
    stopper: impl FnOnce(Box<dyn Fn() + Send + Sync>),
) -> Result<(), RunError> {
    let shards = config.shards.map_or_else(shard::cores, |shards| shards.max(1) as usize);
    let congestion = Congestion::new(&config.tcp).map_err(io("congestion control"))?;
    let (sockets, address) = listeners(config.listen, shards, Some(&congestion))?;
    let access_log = open_access_log(&config.access_log)?;
    let leases = Arc::new(LeasePool::default());
    let volume = (config.replication == Replication::Shared).then(SharedDisk::default);
    let (store, recovery) = open_store(&common, &config, volume.as_ref(), &leases, &catalog_url)?;
    let side = Side::start().map_err(io("start the control thread"))?;
    let (catalog, batches) = CatalogHandle::channel();
    let status = Arc::new(node_status(&common, &config, address, shards, &store));
    let peers = Peers::default();
    let options = AgentOptions {
        trackers: common.trackers.clone(),
        id_servers: common.id_servers.clone(),
        beat: common.beat,
        lease: config.lease,
    };
    let join = (options.clone(), Arc::clone(&status));
    if let Some(Err(error)) = side.wait(async move { agent::join(&join.0, &join.1).await }) {
        return Err(RunError::Refused(error));
    }
    let hurry = Arc::new(Notify::new());
    let handle = side.handle();
    handle.spawn(run_batches(catalog_url, batches));
    handle.spawn(agent::run_beats(options.clone(), Arc::clone(&status), Arc::clone(&hurry)));
    handle.spawn(agent::run_leases(options.clone(), Arc::clone(&status), Arc::clone(&leases)));
    let (other_groups, group_questions) = OtherGroups::channel();
    handle.spawn(agent::run_groups(options.clone(), group_questions));
    handle.spawn(agent::run_peers(options, Arc::clone(&status), Arc::clone(&peers)));
    handle.spawn(watch(Arc::clone(&status), Arc::clone(&store), Arc::clone(&hurry)));
    let boot = format!("{:x}", boot());
    let (repairs, damaged) = tokio::sync::mpsc::channel(REPAIRS);
    let node = Arc::new(Node {
        epochs: match config.replication {
            Replication::Pull => Epochs::new(),
            Replication::Shared => Epochs::telling(),
        },
        acks: Acks::default(),
        following: Following::new(),
        copying: Copying::default(),
        access_log: access_log.clone(),
        congestion: congestion.clone(),
        boot,
        config,
        store,
        volume,
        catalog,
        status: Arc::clone(&status),
        peers,
        other_groups,
        repairs,
        leases,
    });
    let (asks, questions) = tokio::sync::mpsc::channel(1);
    let upkeep = start_upkeep(&node, asks)?;
    let stop = Stop::default();
    let (stopping, stopped, hurried) = (stop.clone(), Arc::clone(&node), Arc::clone(&hurry));
    stopper(Box::new(move || {
        // Trackers hear it with one more beat, and name this node to nobody.
        stopped.status.enter(NodeState::Draining);
        hurried.notify_one();
        std::thread::sleep(LAST_BEAT);
        let deadline = Instant::now() + LAST_PULL;
        while Instant::now() < deadline && !stopped.is_held_by_peers() {
            std::thread::sleep(LAST_PULL / 100);
        }
        stopping.stop();
    }));
    ready(address);
    let mut first = Some(FirstShard { offer: recovery.offer, damaged, questions });
    let result = run_shards(shards, sockets, &congestion, |index, doors| {
        let (node, stop) = (Arc::clone(&node), stop.clone());
        let first = first.take();
        move || storage_shard((index, shards), doors, node, stop, first)
    });
    drop(upkeep);
    close(access_log);
    result
}

/// A number that no other life of a process has.
fn boot() -> u64 {
    reel_engine::clock::now_ms() ^ u64::from(std::process::id()) << 44
}

fn close(access_log: Option<Arc<AccessLog>>) {
    if let Some(log) = access_log {
        log.close();
    }
}

fn open_access_log(config: &AccessLogConfig) -> Result<Option<Arc<AccessLog>>, RunError> {
    AccessLog::open(config).map_err(|source| {
        let file = config.file.clone().unwrap_or_default();
        RunError::Io {
            what: format!("open the access log {} (access_log.file)", file.display()),
            source,
        }
    })
}

/// What one shard does for all.
struct FirstShard {
    /// Segments whose records are offered to the catalog again.
    offer: Vec<SegmentNumber>,
    /// Damaged objects that the scrub found, or a reader.
    damaged: tokio::sync::mpsc::Receiver<Damage>,
    /// Whether all of the group hold a segment.
    questions: tokio::sync::mpsc::Receiver<HoldQuestion>,
}

fn start_upkeep(
    node: &Node,
    asks: tokio::sync::mpsc::Sender<HoldQuestion>,
) -> Result<Upkeep, RunError> {
    let config = &node.config.upkeep;
    let (is_shared, repairs) = (node.is_shared(), node.repairs.clone());
    let options = UpkeepOptions {
        share: f64::from(config.share) / 100.0,
        scrub_every: config.scrub_every.0,
        repair: Some(Arc::new(move |finding: &Finding| {
            if let Some(damage) = Damage::found(finding)
                && repairs.try_send(damage).is_err()
            {
                tracing::warn!(%finding, "too many damaged objects wait; the next scrub finds it again");
            }
        })),
        all_hold: Some(Arc::new(move |number| {
            if is_shared {
                // What is dead at others is kept until they have marked it, whatever becomes of its tombstone.
                return true;
            }
            let (answer, answered) = std::sync::mpsc::sync_channel(1);
            let asked = asks.try_send(HoldQuestion { number, answer });
            asked.is_ok() && answered.recv_timeout(HOLD_WAIT).unwrap_or(false)
        })),
    };
    Upkeep::start(Arc::clone(&node.store), options).map_err(io("start the upkeep thread"))
}

fn open_store(
    common: &Common,
    config: &StorageConfig,
    volume: Option<&SharedDisk>,
    leases: &Arc<LeasePool>,
    catalog_url: &str,
) -> Result<(Arc<Store>, Recovery), RunError> {
    let numbers = Arc::clone(leases);
    let started = Instant::now();
    let folders = config.data.paths();
    let numbers = Arc::new(move || numbers.next().and_then(SegmentNumber::new));
    let mut options = StoreOptions::new(folders.iter().cloned(), numbers);
    if let (Some(volume), [root]) = (volume, folders) {
        let path = node_folder(root, config.id);
        let pool = DiskPool::start(SHARED_THREADS).map_err(io("start disk threads"))?;
        options = StoreOptions {
            folders: vec![FolderOptions { path, disk: Arc::new(volume.clone()) }],
            shared: Some(root.clone()),
            pool: Some(pool),
            ..options
        };
    }
    let (store, recovery) = Store::open(StoreOptions {
        cluster: common.cluster.clone(),
        node: config.id,
        group: config.group,
        segment_bytes: config.segment_bytes.0,
        // Zeros would go over the network, and to each copy.
        prewrite_bytes: if options.shared.is_some() { 0 } else { config.prewrite.0 },
        reserve_bytes: config.reserve.0,
        open_segments: config.open_segments,
        barrier: Arc::new(barrier(catalog_url)),
        compact_dead_percent: u64::from(config.upkeep.compact_dead),
        tombstone_keep_ms: config.upkeep.tombstone_keep.0.as_millis() as u64,
        ..options
    })?;
    tracing::info!(
        folders = ?folders, segments = store.segment_count(), recovered = recovery.offer.len(),
        cut_bytes = recovery.cut_bytes, unfinished = recovery.unfinished,
        milliseconds = started.elapsed().as_millis() as u64, "data folder is open"
    );
    Ok((store, recovery))
}

fn node_status(
    common: &Common,
    config: &StorageConfig,
    address: SocketAddr,
    shards: usize,
    store: &Store,
) -> NodeStatus {
    let (free, capacity) = store.space();
    let status = NodeStatus::new(
        common.cluster.clone(),
        NodeInfo {
            id: config.id,
            name: config.name.clone().unwrap_or_else(|| format!("storage-{}", config.id)),
            group: config.group,
            address: config.advertise.unwrap_or(address).to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            shards: shards as u32,
            started_ms: reel_engine::clock::now_ms(),
            instance: format!("{:032x}", store.superblock().instance),
            capacity,
        },
    );
    status.free.store(free.saturating_sub(config.reserve.0), Ordering::Relaxed);
    status
}

/// Looks at the free space, hurries a beat when the state changed, folds metrics. For ever.
async fn watch(status: Arc<NodeStatus>, store: Arc<Store>, hurry: Arc<Notify>) {
    let mut last = (status.state(), 0u32);
    let mut look = None;
    loop {
        tokio::time::sleep(SPACE / 10).await;
        last.1 += 1;
        if status.state() != last.0 {
            last.0 = status.state();
            hurry.notify_one();
        }
        if last.1.is_multiple_of(10) {
            // statvfs may wait for a disk: not on this thread.
            let looked = Arc::clone(&store);
            let looking = look.get_or_insert_with(|| {
                store.pool().run(move || {
                    looked.refresh_space();
                    Ok(())
                })
            });
            match tokio::time::timeout(SPACE, looking).await {
                Ok(answer) => {
                    look = None;
                    if let Err(error) = answer {
                        tracing::error!(%error, "free space is not known");
                    }
                }
                Err(_) => store.note_silence(DISK_PATIENCE),
            }
            let free = store.space().0;
            status.free.store(free.saturating_sub(store.reserve_bytes()), Ordering::Relaxed);
        }
        if last.1.is_multiple_of(100) {
            reel_control::metrics::upkeep();
        }
    }
}

/// Runs one thread a shard until all have ended. The sockets are dealt out evenly; there may be another number of them
/// than of shards after a take-over.
fn run_shards<F>(
    shards: usize,
    sockets: Vec<TcpListener>,
    congestion: &Congestion,
    mut shard: impl FnMut(usize, Doors) -> F,
) -> Result<(), RunError>
where
    F: FnOnce() -> Result<(), RunError> + Send + 'static,
{
    let mut hands: Vec<Vec<TcpListener>> = (0..shards).map(|_| Vec::new()).collect();
    for (index, socket) in sockets.into_iter().enumerate() {
        hands[index % shards].push(socket);
    }
    let mut threads = Vec::new();
    for (listeners, (seat, handed)) in hands.into_iter().zip(balance::seats(shards)) {
        let index = seat.index();
        let run = shard(index, Doors { listeners, seat, handed, congestion: congestion.clone() });
        let thread = std::thread::Builder::new()
            .name(format!("reel-shard-{index}"))
            .spawn(run)
            .map_err(io("start a shard"))?;
        threads.push(thread);
    }
    let mut result = Ok(());
    for (index, thread) in threads.into_iter().enumerate() {
        let ended = thread.join().unwrap_or(Err(RunError::Shard(index)));
        result = result.and(ended);
    }
    result
}

fn in_runtime<T>(
    (index, shards): (usize, usize),
    run: impl Future<Output = T>,
) -> Result<T, RunError> {
    shard::pin(index, shards);
    reactor::rest_exactly();
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .with_entries(1024)
        .enable_timer()
        .build()
        .map_err(io("set up io_uring (is it allowed here? /proc/sys/kernel/io_uring_disabled)"))?;
    Ok(runtime.block_on(run))
}

fn storage_shard(
    place: (usize, usize),
    doors: Doors,
    node: Arc<Node>,
    stop: Stop,
    first: Option<FirstShard>,
) -> Result<(), RunError> {
    in_runtime(place, async move {
        let limits = Rc::new(node.config.limits.clone());
        let shard = StorageShard::new(node);
        let writing = monoio::spawn(shard.writer.clone().run());
        monoio::spawn(shard.stage.clone().run());
        if let Some(FirstShard { offer, damaged, questions }) = first {
            monoio::spawn(ask_holders(Rc::clone(&shard), questions));
            if shard.is_shared() {
                monoio::spawn(run_shared(Rc::clone(&shard), stop.clone()));
            } else {
                monoio::spawn(run_followers(Rc::clone(&shard), stop.clone()));
            }
            monoio::spawn(offer_again(Rc::clone(&shard), offer));
            monoio::spawn(repair_damaged(Rc::clone(&shard), damaged));
            monoio::spawn(run_sweeps(Rc::clone(&shard)));
        }
        let result = shard::run(doors, Rc::new(Rc::clone(&shard)), limits, stop).await;
        shard.writer.stop();
        writing.await;
        result.map_err(io("serve"))
    })?
}

/// Runs an HTTP server until `stop` is called. `ready` is called with the address when it listens. With `take_over`
/// the listening sockets of the one that serves there are taken over ([`handover`]); it is to be stopped next, and either
/// accepts until then.
pub fn run_gateway(
    common: Common,
    config: HttpConfig,
    take_over: bool,
    ready: impl FnOnce(SocketAddr),
    stopper: impl FnOnce(Box<dyn Fn() + Send + Sync>),
) -> Result<(), RunError> {
    let shards = config.shards.map_or_else(shard::cores, |shards| shards.max(1) as usize);
    let congestion = Congestion::new(&config.tcp).map_err(io("congestion control"))?;
    let taken = if take_over { take_sockets(config.listen, shards, &congestion)? } else { None };
    let (counter, sockets, address) = match taken {
        Some(Taken { counter, sockets }) => (Some(counter), sockets, config.listen),
        None => {
            let (sockets, address) = listeners(config.listen, shards, Some(&congestion))?;
            (open_counter(address), sockets, address)
        }
    };
    let side = Side::start().map_err(io("start the control thread"))?;
    let offer = counter.map(|counter| Offer::new(counter, &sockets)).transpose();
    let offer = offer.map_err(io("offer the sockets to a server that takes over"))?;
    if let Some(offer) = &offer {
        side.handle().spawn(Arc::clone(offer).run());
    }
    let access_log = open_access_log(&config.access_log)?;
    let gateway = Arc::new(Gateway {
        access_log: access_log.clone(),
        congestion: congestion.clone(),
        boot: boot(),
        requests: AtomicU64::new(0),
        config,
        trackers: Trackers::new(common.trackers, Duration::from_secs(2)),
        side: side.handle().clone(),
        last: Default::default(),
        reachable: AtomicBool::new(false),
    });
    side.handle().spawn(watch_reach(Arc::clone(&gateway)));
    let stop = Stop::default();
    let stopping = stop.clone();
    stopper(Box::new(move || {
        if let Some(offer) = &offer {
            offer.withdraw();
        }
        stopping.stop();
    }));
    ready(address);
    let result = run_shards(shards, sockets, &congestion, |index, doors| {
        let (gateway, stop) = (Arc::clone(&gateway), stop.clone());
        move || {
            in_runtime((index, shards), async move {
                let limits = Rc::new(gateway.config.limits.clone());
                let service = Rc::new(GatewayShard::new(gateway));
                shard::run(doors, service, limits, stop).await.map_err(io("serve"))
            })?
        }
    });
    close(access_log);
    result
}

/// Asks the trackers whether a group could serve. For ever.
async fn watch_reach(gateway: Arc<Gateway>) {
    let mut looks = 0u32;
    loop {
        let reachable = match gateway.trackers.get::<Groups>("/-/v1/groups").await {
            Ok(groups) => groups.groups.iter().any(|group| group.active > 0),
            Err(_) => false,
        };
        gateway.reachable.store(reachable, Ordering::Relaxed);
        looks += 1;
        if looks.is_multiple_of(20) {
            reel_control::metrics::upkeep();
        }
        tokio::time::sleep(REACH).await;
    }
}
