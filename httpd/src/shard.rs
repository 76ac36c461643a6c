//! Shards: one thread a core, pinned, each with its own listening socket and its own ring.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reel_control::config::LimitsConfig;
use reel_engine::signal::Signal;
use rustix::net::{self, sockopt};

use crate::balance::{Accepted, Handed, Seat};
use crate::congestion::Congestion;
use crate::conn::{Conn, ConnError};
use crate::connections::{self, Listener};
use crate::http::request::Request;
use crate::piece::Piece;
use crate::prompt::Desk;
use crate::reactor;
use crate::requests::{self, WholeAnswers};
use crate::tally;
use crate::turns;
use crate::whole::Whole;

/// Connections that wait in the kernel for a shard.
const BACKLOG: i32 = 4096;
/// Connections that are accepted before those that are there have their turn.
const ACCEPTED_AT_ONCE: usize = 32;
/// How long a shard that stops waits for the first request of connections it has accepted: a client that has just
/// connected has sent it. (Browsers also open connections that they do not use.)
const FRESH_GRACE: Duration = Duration::from_secs(1);
/// After an accept failed (descriptors ran out): the shard pauses instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Tells every shard to stop; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    inner: Arc<StopInner>,
}

#[derive(Debug, Default)]
struct StopInner {
    flag: AtomicBool,
    signal: Signal,
}

impl Stop {
    pub(crate) fn stop(&self) {
        self.inner.flag.store(true, Ordering::Release);
        self.inner.signal.raise();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.inner.flag.load(Ordering::Acquire)
    }

    pub(crate) async fn stopped(&self) {
        self.inner.signal.beyond(0).await;
    }
}

/// What answers requests on a shard.
pub(crate) trait Service: 'static {
    /// Answers one request. The connection goes on unless this fails or [`Answered::close`].
    async fn serve(&self, conn: &mut Conn, request: &Request) -> Result<Answered, ConnError>;
    /// Adds what a request should have before it is served.
    fn prepare(&self, _request: &mut Request) {}
    /// Whether it ever has a [`whole_answer`](Self::whole_answer).
    const HAS_WHOLE: bool = false;
    /// The answer, a 200, if it is at hand.
    fn whole_answer(&self, _request: &Request, _now: Instant) -> Option<Whole> {
        None
    }
    /// The answer to a request for a piece ([`crate::piece`]) that is at hand.
    fn piece(&self, _request: &Request, _now: Instant) -> Option<Piece> {
        None
    }
    /// Whether it wants the requests of such answers when it counts them.
    fn writes_down(&self) -> bool {
        false
    }
    /// Counts such an answer, of which so many bytes were sent, the last of them `took` after its request came.
    fn count_at_hand(
        &self,
        _client: IpAddr,
        _request: Option<&Request>,
        _status: u16,
        _bytes: u64,
        _took: Duration,
    ) {
    }
    /// The date for response heads.
    fn date(&self) -> Rc<str>;
    /// Brings what was counted to the process's metrics; called every [`tally::FLUSH`].
    fn flush_metrics(&self);
}

/// How a request was answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered {
    /// The status.
    pub(crate) status: u16,
    /// Whether the connection must be closed.
    pub(crate) close: bool,
}

/// A date text that is made once a second.
#[derive(Debug)]
pub(crate) struct DateCache {
    second: Cell<u64>,
    /// When the second ends.
    until: Cell<Option<Instant>>,
    text: RefCell<Rc<str>>,
}

impl DateCache {
    pub(crate) fn new() -> Self {
        Self { second: Cell::new(0), until: Cell::new(None), text: RefCell::new(Rc::from("")) }
    }

    /// The text now, and the second it stands for.
    pub(crate) fn get(&self, now: Instant) -> (u64, Rc<str>) {
        if self.until.get().is_none_or(|until| now >= until) {
            let wall = reel_engine::clock::now_ms();
            self.until.set(Some(now + Duration::from_millis(1000 - wall % 1000)));
            if self.second.replace(wall / 1000) != wall / 1000 {
                self.text.replace(Rc::from(crate::http::date::format(wall / 1000)));
            }
        }
        (self.second.get(), Rc::clone(&self.text.borrow()))
    }
}

/// A listening socket that shares its port with the other shards'; its connections begin with what `congestion` says, or
/// with the system's.
pub(crate) fn listen(
    address: SocketAddr,
    congestion: Option<&Congestion>,
) -> io::Result<TcpListener> {
    let socket = connections::stream_socket(address, net::SocketFlags::empty())?;
    sockopt::set_socket_reuseport(&socket, true)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if let Some(congestion) = congestion {
        congestion.set_listening(&socket)?;
    }
    net::bind(&socket, &address)?;
    net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// Whether a server answers at `address` already. Ports are shared between shards, so the kernel
/// itself would not refuse a second server of the same user.
pub(crate) fn is_taken(address: SocketAddr) -> bool {
    address.port() != 0
        && std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_ok()
}

/// Pins the calling thread, one of `shards`, to a core of its own, if there is a shard for each of the cores that the
/// process may use. Fewer shards are left to the scheduler: other processes that count from the first core, too, would
/// meet on it.
pub(crate) fn pin(shard: usize, shards: usize) {
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return };
    let cores: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    if cores.len() < 2 || shards < cores.len() {
        return;
    }
    let mut one = rustix::thread::CpuSet::new();
    one.set(cores[shard % cores.len()]);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &one) {
        tracing::warn!(shard, %error, "shard is not pinned to a core");
    }
}

/// Cores the process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Requests in progress and connections of a shard.
#[derive(Debug)]
pub(crate) struct Activity {
    seat: Seat,
    /// Connections whose first request has not come yet.
    pub(crate) fresh: Cell<usize>,
    pub(crate) requests: Cell<usize>,
    addresses: RefCell<HashMap<IpAddr, usize>>,
}

/// One of a count, as long as it lives.
pub(crate) struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    pub(crate) fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Activity {
    pub(crate) fn new(seat: Seat) -> Self {
        Self {
            seat,
            fresh: Cell::default(),
            requests: Cell::default(),
            addresses: RefCell::default(),
        }
    }

    /// Takes in a connection of this address that its shard has counted; false, and not counted any more, when the address
    /// has as many as it may.
    fn enter(&self, address: IpAddr, limit: usize) -> bool {
        if limit > 0 {
            let mut addresses = self.addresses.borrow_mut();
            let count = addresses.entry(address).or_default();
            if *count >= limit {
                self.seat.leave();
                return false;
            }
            *count += 1;
        }
        true
    }

    fn leave(&self, address: IpAddr) {
        self.seat.leave();
        let mut addresses = self.addresses.borrow_mut();
        if let Some(count) = addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&address);
            }
        }
    }
}

/// Where a shard's connections come from.
pub(crate) struct Doors {
    pub(crate) listeners: Vec<TcpListener>,
    pub(crate) seat: Seat,
    pub(crate) handed: Handed,
    pub(crate) congestion: Congestion,
}

/// Accepts at all doors and serves until `stop`, then lets requests in progress end.
pub(crate) async fn run<S: Service>(
    Doors { listeners, seat, mut handed, congestion }: Doors,
    service: Rc<S>,
    limits: Rc<LimitsConfig>,
    stop: Stop,
) -> io::Result<()> {
    let listeners =
        listeners.into_iter().map(Listener::adopt).collect::<io::Result<Vec<Listener>>>()?;
    let activity = Rc::new(Activity::new(seat.clone()));
    monoio::spawn({
        let service = Rc::clone(&service);
        let open = metrics::gauge!("reel_shard_connections", "shard" => seat.index().to_string());
        async move {
            loop {
                monoio::time::sleep(tally::FLUSH).await;
                service.flush_metrics();
                open.set(seat.open() as f64);
            }
        }
    });
    let desk = S::HAS_WHOLE.then(|| -> Rc<dyn Desk> {
        let (service, head_bytes, stop) = (Rc::clone(&service), limits.head_bytes, stop.clone());
        Rc::new(WholeAnswers { service, head_bytes, stop })
    });
    let door = Door {
        service,
        desk,
        limits,
        stop,
        activity,
        congestion,
        open: metrics::gauge!("reel_connections"),
        refused: metrics::counter!("reel_connections_refused_total", "reason" => "per_address"),
        failed: metrics::counter!("reel_accept_errors_total"),
        handed: metrics::counter!("reel_connections_handed_total"),
    };
    let accepting = listeners.iter().map(|listener| door.accept_all(listener));
    monoio::select! {
        _ = futures_util::future::join_all(accepting) => {}
        () = door.admit_all(&mut handed) => {}
        () = door.stop.stopped() => {}
    }
    // Connections that the kernel has made for this process would be reset with the socket.
    for listener in listeners {
        while let Ok(Some(accepted)) = listener.accept_now() {
            door.admit(door.activity.seat.keep(accepted));
        }
    }
    let Door { activity, limits, .. } = &door;
    let (now, grace) = (Instant::now(), limits.stop_grace.0);
    let (fresh_deadline, deadline) = (now + grace.min(FRESH_GRACE), now + grace);
    loop {
        // Those just admitted begin with the next turn of the loop.
        monoio::time::sleep(Duration::from_millis(10)).await;
        // Handed over before the other shard heard of the stop.
        while let Ok(accepted) = handed.try_recv() {
            door.admit(accepted);
        }
        let now = Instant::now();
        let is_awaited = activity.fresh.get() > 0 && now < fresh_deadline;
        let is_in_progress = activity.requests.get() > 0 || turns::is_waiting();
        if !is_awaited && (!is_in_progress || now >= deadline) {
            break;
        }
    }
    if activity.requests.get() > 0 {
        tracing::warn!(requests = activity.requests.get(), "requests cut off by the stop");
    }
    Ok(())
}

/// Where connections come in.
struct Door<S> {
    service: Rc<S>,
    desk: Option<Rc<dyn Desk>>,
    limits: Rc<LimitsConfig>,
    stop: Stop,
    activity: Rc<Activity>,
    congestion: Congestion,
    open: metrics::Gauge,
    refused: metrics::Counter,
    failed: metrics::Counter,
    handed: metrics::Counter,
}

impl<S: Service> Door<S> {
    /// Accepts and serves. For ever.
    async fn accept_all(&self, listener: &Listener) {
        let mut accepted = 0usize;
        loop {
            if self.activity.seat.open() >= self.limits.connections {
                monoio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
            match listener.accept().await {
                Ok(one) => {
                    match self.activity.seat.place(one) {
                        Some(here) => self.admit(here),
                        None => self.handed.increment(1),
                    }
                    accepted += 1;
                    if accepted.is_multiple_of(ACCEPTED_AT_ONCE) {
                        reactor::behind_all().await;
                    }
                }
                Err(error) => {
                    self.failed.increment(1);
                    tracing::warn!(%error, "accept failed; pausing");
                    monoio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves what other shards hand over. For ever.
    async fn admit_all(&self, handed: &mut Handed) {
        while let Some(accepted) = handed.recv().await {
            self.admit(accepted);
        }
        // The other shards have gone.
        std::future::pending().await
    }

    /// Serves a connection that is counted, if its address may have one more.
    fn admit(&self, (socket, from): Accepted) {
        self.congestion.set_accepted(&socket, from);
        if !self.activity.enter(from, self.limits.per_address) {
            self.refused.increment(1);
            return;
        }
        let open = self.open.clone();
        open.increment(1);
        let (service, limits) = (Rc::clone(&self.service), Rc::clone(&self.limits));
        let (stop, activity) = (self.stop.clone(), Rc::clone(&self.activity));
        let desk = self.desk.clone();
        monoio::spawn(async move {
            let served =
                requests::serve(socket, from, &*service, desk.as_ref(), &limits, &stop, &activity);
            if let Err(error) = served.await {
                tracing::debug!(%error, "connection ended");
            }
            activity.leave(from);
            open.decrement(1);
        });
    }
}
