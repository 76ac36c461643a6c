//! Which sockets of a shard are ready: one epoll descriptor a shard, edge-triggered.
//!
//! A socket is registered once for its whole life, so that waiting for it costs no system call and no
//! entry in the ring (a poll through the ring costs one of each every time). The shard's ring waits for
//! the epoll descriptor together with everything else. Time limits are swept every [`TICK`]: a wait costs
//! no timer of its own.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use monoio::net::TcpStream;
use rustix::buffer::spare_capacity;
use rustix::event::EventfdFlags;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::coalesce::Pace;
use crate::polled::{Polled, Tried};
use crate::prompt::{Attended, Came, Desk, Left, Outbox, answer_in_turn};
use crate::readiness::{State, TimedOut};
use crate::turns::{self, Grant};

/// How exactly time limits are kept.
pub(crate) const TICK: Duration = Duration::from_millis(200);
/// Events taken from the kernel at a time.
const EVENTS: usize = 256;
/// As long as looks answer all that they find they follow one another; what else waits in the ring does so for so long, and
/// for the last of them (docs/decisions/0022).
const LOOKS_IN_A_ROW: Duration = Duration::from_micros(100);

/// A non-blocking socket of this shard.
pub(crate) struct Socket {
    state: Rc<State>,
    reactor: Rc<Reactor>,
}

/// The ticks after which a wait of at most `limit` ends: one more, because the tick in progress has begun already.
fn ticks(limit: Duration) -> u64 {
    1 + limit.as_millis().div_ceil(TICK.as_millis()) as u64
}

/// Any descriptor can be polled; a stream is what the runtime offers a poll for.
fn pollable(fd: OwnedFd) -> io::Result<TcpStream> {
    TcpStream::from_std(std::net::TcpStream::from(fd))
}

/// Lets everything else that is ready go first: the tasks, what the ring has completed, and the sockets. (A
/// task that yields, or a new one, may run again many times before the runtime looks at its ring.)
pub(crate) async fn behind_all() {
    let Some(reactor) = CURRENT.with_borrow(Weak::upgrade) else { return };
    if let Err(error) = reactor.gate.readable(true).await {
        tracing::error!(%error, "the shard's ring does not answer");
        monoio::time::sleep(TICK).await;
    }
    reactor.look();
}

/// Those whose turn has come are answered, or their tasks woken.
pub(crate) fn serve_granted() {
    if let Some(reactor) = CURRENT.with_borrow(Weak::upgrade) {
        reactor.serve_granted();
    }
}

/// Lets the tasks that are ready go first.
async fn behind_woken() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The shard rests ([`crate::coalesce`]); what waits for it waits as long.
fn rest(pace: &RefCell<Pace>, at_once: bool) {
    let length = pace.borrow().rest(at_once);
    let time = rustix::time::Timespec { tv_sec: 0, tv_nsec: i64::from(length.subsec_nanos()) };
    let begun = Instant::now();
    // A signal ends it early: that does no harm.
    let _ = rustix::thread::nanosleep(&time);
    pace.borrow_mut().rested(length, begun.elapsed());
}

/// The calling thread's rests end when they should (the kernel adds up to 50 µs unless told otherwise, prctl(2)).
pub(crate) fn rest_exactly() {
    if let Err(error) = rustix::thread::set_current_timer_slack(NonZeroU64::new(1)) {
        tracing::warn!(%error, "this shard's rests will be longer than they should");
    }
}

/// The sockets of a shard.
pub(crate) struct Reactor {
    epoll: OwnedFd,
    sockets: RefCell<Slots>,
    /// Always ready: waiting for it leads through the ring.
    gate: TcpStream,
    /// Room for what the kernel tells; empty.
    events: RefCell<Vec<epoll::Event>>,
    /// Answers that a look has found; empty beyond it.
    outbox: Outbox,
    pace: RefCell<Pace>,
    polled: RefCell<Polled<Rc<State>>>,
    /// Ticks since the start, from 1.
    now: Cell<u64>,
}

impl std::fmt::Debug for Reactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reactor").field("epoll", &self.epoll).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Slots {
    states: Vec<Option<Rc<State>>>,
    free: Vec<usize>,
}

/// What a look at the sockets came to.
struct Look {
    /// Events, and those of them that were answered at once.
    found: usize,
    answered: usize,
    now: Instant,
}

thread_local! {
    static CURRENT: RefCell<Weak<Reactor>> = const { RefCell::new(Weak::new()) };
}

impl Reactor {
    /// This shard's reactor; it is begun with its first socket.
    fn current() -> io::Result<Rc<Self>> {
        if let Some(reactor) = CURRENT.with_borrow(Weak::upgrade) {
            return Ok(reactor);
        }
        let gate = rustix::event::eventfd(1, EventfdFlags::CLOEXEC)?;
        let reactor = Rc::new(Self {
            gate: pollable(gate)?,
            events: RefCell::default(),
            outbox: Outbox::default(),
            pace: RefCell::new(Pace::new(Instant::now())),
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            sockets: RefCell::default(),
            polled: RefCell::default(),
            now: Cell::new(1),
        });
        CURRENT.set(Rc::downgrade(&reactor));
        let ready = pollable(reactor.epoll.try_clone()?)?;
        monoio::spawn(Rc::clone(&reactor).run(ready));
        monoio::spawn(Rc::clone(&reactor).tick());
        Ok(reactor)
    }

    fn deadline(&self, limit: Duration) -> u64 {
        self.now.get() + ticks(limit)
    }

    /// Wakes whoever waits for a socket that became ready. For ever.
    async fn run(self: Rc<Self>, ready: TcpStream) {
        loop {
            // While some are tried the ring has its turn, but nobody sleeps in it.
            let ring = if self.polled.borrow().is_empty() { &ready } else { &self.gate };
            if let Err(error) = ring.readable(true).await {
                tracing::error!(%error, "the shard's sockets cannot be waited for");
                monoio::time::sleep(TICK).await;
            }
            self.look_on().await;
        }
    }

    /// Looks, and again as long as all that a look finds is answered in it: the way through the ring costs as much as a
    /// quarter of such an answer.
    async fn look_on(&self) {
        let mut began = None;
        loop {
            let Look { found, answered, now } = self.look();
            turns::looked();
            let some_polled = !self.polled.borrow().is_empty();
            let rest_due = self.pace.borrow_mut().looked(found, now) || found == 0 && some_polled;
            let bulk_waits = turns::is_waiting();
            if rest_due && !bulk_waits {
                behind_woken().await;
                rest(&self.pace, some_polled);
            }
            let is_over =
                now.saturating_duration_since(*began.get_or_insert(now)) >= LOOKS_IN_A_ROW;
            // Turns lead through the ring, and so does what the woken tasks begin.
            if found == 0 || answered < found || bulk_waits || is_over {
                return;
            }
        }
    }

    /// Answers what can be answered at once, and wakes whoever waits for a socket that is ready now.
    fn look(&self) -> Look {
        let (mut found, mut answered) = self.try_polled();
        let mut events = std::mem::take(&mut *self.events.borrow_mut());
        events.reserve(EVENTS);
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&at_once)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => tracing::error!(%error, "epoll_wait"),
            }
            let now = Instant::now();
            let mut pace = self.pace.borrow_mut();
            let batch = pace.batch();
            for event in &events {
                self.dispatch(event, now, &mut pace);
                if self.outbox.len() >= batch {
                    answered += self.outbox.send(now);
                }
            }
            answered += self.outbox.send(now);
            self.serve_granted();
            found += events.len();
            if events.len() < EVENTS {
                self.events.replace(events);
                return Look { found, answered, now };
            }
        }
    }

    fn dispatch(&self, event: &epoll::Event, now: Instant, pace: &mut Pace) {
        let key = event.data.u64() as usize;
        let sockets = self.sockets.borrow();
        let Some(Some(state)) = sockets.states.get(key) else { return };
        pace.event(&state.window);
        let flags = event.flags;
        let failed = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        if failed || flags.contains(EventFlags::OUT) && !state.output.ready.get() {
            state.output.raise(now);
        }
        if failed || flags.contains(EventFlags::RDHUP) {
            state.closed.set(true);
            state.input.raise(now);
        } else if flags.contains(EventFlags::IN) && !state.asks_for_turn(now) {
            match self.outbox.read(state, now, self.now.get()) {
                Came::Unread => state.input.raise(now),
                Came::Prompt => self.consider(state, pace),
                Came::Nothing | Came::Left => {}
            }
        }
    }

    fn serve_granted(&self) {
        let tick = self.now.get();
        turns::serve_granted(|state, came| answer_in_turn(state, came, tick));
    }

    /// From now on it is tried, if that pays.
    fn consider(&self, state: &Rc<State>, pace: &Pace) {
        let mut polled = self.polled.borrow_mut();
        if polled.asked(&state.place, pace.crowd())
            && epoll::delete(&self.epoll, state.fd()).is_ok()
        {
            polled.take_in(Rc::clone(state));
        }
    }

    /// Answers those that are tried and have asked: how many did, and how many were answered.
    fn try_polled(&self) -> (usize, usize) {
        let mut polled = self.polled.borrow_mut();
        if polled.is_empty() {
            return (0, 0);
        }
        let (now, tick) = (Instant::now(), self.now.get());
        let mut pace = self.pace.borrow_mut();
        let (batch, crowd) = (pace.batch(), pace.crowd());
        let mut answered = 0;
        let try_one = |state: &Rc<State>| match self.outbox.read(state, now, tick) {
            Came::Prompt => {
                pace.event(&state.window);
                if self.outbox.len() >= batch {
                    answered += self.outbox.send(now);
                }
                Tried::Asked
            }
            Came::Nothing => Tried::Missed,
            Came::Left | Came::Unread => Tried::Left,
        };
        let found = polled.pass(crowd, try_one, |state| self.wait_for(state));
        answered += self.outbox.send(now);
        (found, answered)
    }

    /// From now on its events are taken: what it has, or has room for, is one already.
    fn add(&self, state: &State) -> rustix::io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, state.fd(), EventData::new_u64(state.key as u64), flags)
    }

    /// It is not tried any more.
    fn wait_for(&self, state: &State) {
        if let Err(error) = self.add(state) {
            // Its task's wait ends when its time is over.
            tracing::error!(%error, "a socket cannot be waited for any more");
        }
    }

    /// For a task that is about to wait.
    fn try_no_more(&self, state: &State) {
        if state.place.is_polled() {
            self.polled.borrow_mut().forget(&state.place);
            self.wait_for(state);
        }
    }

    /// Ends waits whose time is over. For ever.
    async fn tick(self: Rc<Self>) {
        let started = Instant::now();
        loop {
            monoio::time::sleep(TICK).await;
            let now = 1 + (started.elapsed().as_millis() / TICK.as_millis()) as u64;
            self.now.set(now);
            for state in self.sockets.borrow().states.iter().flatten() {
                state.input.expire(now);
                state.output.expire(now);
            }
        }
    }
}

impl Socket {
    /// Takes over a socket.
    pub(crate) fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let reactor = Reactor::current()?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        let state = {
            let mut sockets = reactor.sockets.borrow_mut();
            let key = sockets.free.pop().unwrap_or(sockets.states.len());
            if key == sockets.states.len() {
                sockets.states.push(None);
            }
            let state = Rc::new(State::new(fd, key));
            sockets.states[key] = Some(Rc::clone(&state));
            state
        };
        let socket = Self { state, reactor };
        socket.reactor.add(&socket.state)?;
        Ok(socket)
    }

    /// The descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.state.fd()
    }

    /// Whether a read may find something.
    pub(crate) fn may_read(&self) -> bool {
        self.state.input.ready.get()
    }

    /// When input came, unless that was asked before.
    pub(crate) fn woken(&self) -> Option<Instant> {
        self.state.input.woken.take()
    }

    /// A read found nothing.
    pub(crate) fn drained(&self) {
        self.state.input.has_more(false);
    }

    /// A read found less than it asked for: there is nothing more, unless it is the end (epoll(7)).
    pub(crate) fn read_short(&self) {
        if !self.state.closed.get() {
            self.drained();
        }
    }

    /// A write found no room.
    pub(crate) fn filled(&self) {
        self.state.output.has_more(false);
    }

    /// From now on, while it waits for input, `desk` answers what it can; each answer lets it wait for `limit` anew.
    pub(crate) fn attend(&self, desk: &Rc<dyn Desk>, client: IpAddr, limit: Duration) {
        let ticks = ticks(limit);
        self.state.attended.replace(Some(Attended { desk: Rc::clone(desk), client, ticks }));
    }

    /// Nobody but its task answers any more.
    pub(crate) fn attend_no_more(&self) {
        self.state.attended.take();
    }

    /// From now on the next request is read in its turn; its answer is thought to have so many bytes.
    pub(crate) fn read_in_turn(&self, bytes: u64) {
        self.state.read_in_turn(bytes);
    }

    /// From now on what comes is read at once; the turn that it had.
    pub(crate) fn read_at_once(&self) -> Option<Grant> {
        self.state.read_at_once()
    }

    /// What the reactor has left to its task.
    pub(crate) fn left(&self) -> Option<Left> {
        self.state.left.take()
    }

    /// Waits until a read may find something, or something was [`left`](Self::left), at most `limit`.
    pub(crate) async fn readable(&self, limit: Duration) -> Result<(), TimedOut> {
        if self.state.attended.borrow().is_none() {
            self.reactor.try_no_more(&self.state);
        }
        self.state.input.wait(self.reactor.deadline(limit), || self.state.has_left()).await
    }

    /// Waits until a write may find room, at most `limit`.
    pub(crate) async fn writable(&self, limit: Duration) -> Result<(), TimedOut> {
        self.reactor.try_no_more(&self.state);
        self.state.output.wait(self.reactor.deadline(limit), || false).await
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Self { state, reactor } = self;
        if state.place.is_polled() {
            reactor.polled.borrow_mut().forget(&state.place);
        } else {
            // Before the descriptor is closed: a copy of it elsewhere would keep its events alive.
            let _ = epoll::delete(&reactor.epoll, state.fd());
        }
        let mut sockets = reactor.sockets.borrow_mut();
        sockets.states[state.key] = None;
        sockets.free.push(state.key);
    }
}

/// A client, and its connection.
#[cfg(test)]
pub(crate) fn connected() -> (std::net::TcpStream, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let client = std::net::TcpStream::connect(address).expect("connects");
    (client, listener.accept().expect("accepted").0)
}

/// Runs a test as a shard's main task.
#[cfg(test)]
pub(crate) fn on_a_shard<T>(test: impl Future<Output = T>) -> T {
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .enable_timer()
        .build()
        .expect("io_uring");
    runtime.block_on(test)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Ipv4Addr;

    use reel_control::config::CorsConfig;

    use rustix::io::Errno;

    use super::*;
    use crate::answer::Answers;
    use crate::piece::Piece;
    use crate::prompt::Prompt;
    use crate::whole::{Whole, WholeAnswer};

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const LIMIT: Duration = Duration::from_secs(60);

    /// Knows the answer to "ask".
    struct OneAnswer(Rc<WholeAnswer>);

    impl Desk for OneAnswer {
        fn answer(&self, input: &[u8], _: Instant) -> Option<Prompt> {
            let whole = Whole { answer: Rc::clone(&self.0), body: None };
            (input == b"ask").then_some(Prompt { whole, request: None })
        }

        fn answered(&self, _: IpAddr, _: &Prompt, _: Instant, _: Instant) {}

        fn piece(&self, _: &[u8], _: Instant) -> Option<Piece> {
            None
        }

        fn piece_answered(&self, _: IpAddr, _: &Piece, _: Instant, _: Instant) {}
    }

    /// An attended socket that is tried, and its client.
    fn tried() -> (std::net::TcpStream, Socket, Vec<u8>) {
        let (client, server) = connected();
        let socket = Socket::adopt(server.into()).expect("adopted");
        let answers = Answers::new(CorsConfig::default(), None);
        let answer = Rc::new(WholeAnswer::new(&answers, b"\r\n", b"body").expect("an answer"));
        let bytes = answer.bytes().to_vec();
        let desk: Rc<dyn Desk> = Rc::new(OneAnswer(answer));
        socket.attend(&desk, CLIENT, LIMIT);
        socket.drained();
        let reactor = &socket.reactor;
        epoll::delete(&reactor.epoll, socket.fd()).expect("it was waited for");
        reactor.polled.borrow_mut().take_in(Rc::clone(&socket.state));
        (client, socket, bytes)
    }

    /// What an epoll of its own would be told of it.
    fn is_waited_for(socket: &Socket) -> bool {
        let added = socket.reactor.add(&socket.state);
        if added.is_ok() {
            epoll::delete(&socket.reactor.epoll, socket.fd()).expect("just added");
        }
        added == Err(Errno::EXIST)
    }

    #[test]
    fn without_a_crowd_nobody_is_tried_and_nothing_that_came_meanwhile_is_lost() {
        on_a_shard(async {
            let (mut client, socket, answer) = tried();
            assert!(socket.state.place.is_polled() && !is_waited_for(&socket));
            client.write_all(b"ask").expect("sent");
            // The reactor's own looks release it, and then find what came.
            let mut got = vec![0; answer.len()];
            client.set_nonblocking(true).expect("set");
            let mut at = 0;
            while at < got.len() {
                behind_all().await;
                match client.read(&mut got[at..]) {
                    Ok(0) => panic!("closed"),
                    Ok(read) => at += read,
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
            assert_eq!(got, answer);
            assert!(!socket.state.place.is_polled() && is_waited_for(&socket));
        });
    }

    #[test]
    fn a_task_that_waits_has_its_socket_waited_for() {
        on_a_shard(async {
            let (mut client, socket, _) = tried();
            socket.attend_no_more();
            client.write_all(b"more").expect("sent");
            socket.readable(LIMIT).await.expect("it came");
            assert!(!socket.state.place.is_polled() && is_waited_for(&socket));
            assert!(socket.reactor.polled.borrow().is_empty());
            let (_client, socket, _) = tried();
            socket.filled();
            socket.writable(LIMIT).await.expect("there is room");
            assert!(!socket.state.place.is_polled() && is_waited_for(&socket));
        });
    }

    #[test]
    fn who_is_tried_and_goes_away_leaves_no_descriptor() {
        on_a_shard(async {
            let (mut client, socket, _) = tried();
            let reactor = Rc::clone(&socket.reactor);
            drop(socket);
            assert!(reactor.polled.borrow().is_empty());
            assert_eq!(client.read(&mut [0]).expect("the end"), 0, "it is closed");
        });
    }
}
