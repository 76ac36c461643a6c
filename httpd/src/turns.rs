//! Bulk sends of a shard take turns, so that a small answer waits for [`ROUND_BYTES`] of them at most.
//!
//! A round ends when the sockets have been looked at and all that is ready has had its turn. A bulk send that finds
//! the round's bytes used waits for the next one, first come, first served. What a socket had no room for keeps its place
//! ([`Turn`]): when it had to queue up again, one answer of twenty took two or three times as long as the others under load.
//! As long as nobody has to wait a turn costs an addition.
//!
//! Where there are bulk sends only ([`QUIET`]), nobody is to be spared: a round is longer then, and each answer leaves when its
//! request has come instead of being kept while those of others are read (decisions/0024).
//!
//! Who has had bulk answers only is expected to ask for another: its request is read when its turn has come ([`ask`]), so that
//! whoever waits does so in the kernel, and is touched once (decisions/0025). Those whose turn has come are read at the end of
//! the look at the latest ([`serve_granted`]).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::reactor;
use crate::readiness::State;

/// Bytes of bulk sends in one round.
const ROUND_BYTES: u64 = 2 << 20;
/// Bytes of a round when there is nobody else, in which a part of an answer still has one turn only. Whoever comes first then
/// waits for so many: 20 ms.
const QUIET_ROUND_BYTES: u64 = 64 << 20;
/// How long there must have been no small answer and no upload.
const QUIET: Duration = Duration::from_secs(1);
/// A send of at most so many bytes takes no turn.
pub(crate) const SMALL_BYTES: u64 = 64 * 1024;
/// Bytes a bulk send asks for at a time.
pub(crate) const PORTION: u64 = 2 << 20;
/// What goes by sendfile counts once.
pub(crate) const WARM: u64 = 1;
/// What is read past the page cache counts so many times: it costs some four times what sendfile costs, and small
/// answers are to go first (decisions/0010).
pub(crate) const COLD: u64 = 24;

/// A task that waits for a turn.
#[derive(Default)]
struct Waiter {
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Who waits for a turn.
enum Waiting {
    Task(Rc<Waiter>),
    /// A connection whose request has come, and when.
    Unread(Weak<State>, Instant),
}

impl Waiting {
    /// Lets it go on, a connection by way of `granted`; false when it has given up.
    fn grant(self, grant: Grant, granted: &mut VecDeque<Granted>) -> bool {
        match self {
            // One that is held by nobody else has given up.
            Self::Task(waiter) if Rc::strong_count(&waiter) == 1 => false,
            Self::Task(waiter) => {
                waiter.granted.set(true);
                if let Some(waker) = waiter.waker.take() {
                    waker.wake();
                }
                true
            }
            Self::Unread(state, came) => {
                let state = state.upgrade().filter(|state| state.give_turn(grant));
                let has_one = state.is_some();
                granted.extend(state.map(|state| (state, came)));
                has_one
            }
        }
    }
}

/// A connection that has its turn, and when its request came.
type Granted = (Rc<State>, Instant);

/// A turn that was given before the request was read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grant {
    place: u64,
    /// What its answer is thought to have.
    bytes: u64,
}

impl Grant {
    /// It was not used; the bytes that were counted for it.
    pub(crate) fn give_back(self) -> u64 {
        drop(Turn::from(self));
        self.bytes
    }
}

#[derive(Default)]
struct Turns {
    used: u64,
    /// This one is a long one.
    is_long: bool,
    /// When a small answer, or a part of an upload, was last seen.
    others: Option<Instant>,
    /// There is a task that begins rounds while somebody waits.
    refilling: bool,
    /// The last place that was given out.
    last: u64,
    /// By place.
    waiting: BTreeMap<u64, (Waiting, u64)>,
    /// Connections whose turn has come, until the end of the look at most ([`serve_granted`]).
    granted: VecDeque<Granted>,
}

thread_local! {
    static TURNS: RefCell<Turns> = RefCell::default();
}

impl Turns {
    /// Gives turns to those who wait, in order, as long as the round has bytes.
    fn begin_round(&mut self) {
        // What was taken beyond the last round counts in this one.
        self.used = self.used.saturating_sub(self.bytes());
        self.is_long = false;
        while self.has_room() && self.grant_first() {}
    }

    /// Of the current round.
    fn bytes(&self) -> u64 {
        if self.is_long { QUIET_ROUND_BYTES } else { ROUND_BYTES }
    }

    /// Whether the current round, made long if it may be, has bytes left.
    fn has_room(&mut self) -> bool {
        if self.used >= ROUND_BYTES {
            self.is_long |= self.others.is_none_or(|others| others.elapsed() >= QUIET);
        }
        self.used < self.bytes()
    }

    /// Gives a turn to the first of those who wait; false when nobody does.
    fn grant_first(&mut self) -> bool {
        let Some((place, (waiting, bytes))) = self.waiting.pop_first() else { return false };
        if waiting.grant(Grant { place, bytes }, &mut self.granted) {
            self.used += bytes;
        }
        true
    }

    /// The next place.
    fn place(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Whether a send may go at once; then its bytes are counted. `begins`: it is the first of its answer.
    fn lets_in(&mut self, bytes: u64, begins: bool) -> bool {
        // What goes on has had its turn in a long round.
        let is_let_in =
            self.waiting.is_empty() && (self.used < ROUND_BYTES || begins && self.has_room());
        if is_let_in {
            self.used += bytes;
        }
        is_let_in
    }

    /// Somebody waits from now on.
    fn wait(&mut self, place: u64, waiting: Waiting, bytes: u64) {
        self.waiting.insert(place, (waiting, bytes));
        if !std::mem::replace(&mut self.refilling, true) {
            refill();
        }
    }
}

/// A request of a connection that has had answers of some `bytes` has come: it may be read now, or when its turn has come.
pub(crate) fn ask(state: &Rc<State>, bytes: u64, came: Instant) {
    TURNS.with_borrow_mut(|turns| {
        let place = turns.place();
        if turns.lets_in(bytes, true) {
            state.give_turn(Grant { place, bytes });
            turns.granted.push_back((Rc::clone(state), came));
        } else {
            turns.wait(place, Waiting::Unread(Rc::downgrade(state), came), bytes);
        }
    });
}

/// Has `serve` read the requests of those whose turn has come. What it sends may let others have theirs.
pub(crate) fn serve_granted(mut serve: impl FnMut(&Rc<State>, Instant)) {
    while let Some((state, came)) = TURNS.with_borrow_mut(|turns| turns.granted.pop_front()) {
        serve(&state, came);
    }
}

/// The place of a bulk send among those that wait, kept for [`PORTION`] bytes. One for all of a part of an answer: what is
/// partly cold would queue up twice otherwise, and under load take twice as long as the others.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    place: u64,
    left: u64,
    /// Bytes that were counted already for its first send, which waits no more: the request waited.
    granted: u64,
}

impl From<Grant> for Turn {
    fn from(Grant { place, bytes }: Grant) -> Self {
        Self { place, left: PORTION, granted: bytes }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.granted > 0 {
            TURNS.with_borrow_mut(|turns| turns.used = turns.used.saturating_sub(self.granted));
        }
    }
}

impl Turn {
    /// Uses what was granted for `bytes`, which are counted and may be sent at once then; false when nothing was.
    pub(crate) fn use_grant(&mut self, bytes: u64) -> bool {
        let granted = std::mem::take(&mut self.granted);
        if granted > 0 {
            TURNS.with_borrow_mut(|turns| {
                turns.used = (turns.used + bytes).saturating_sub(granted);
            });
        }
        granted > 0
    }

    /// Waits until `bytes` that each count as `weight` ([`WARM`], [`COLD`]) may be sent in the current round.
    pub(crate) async fn take(&mut self, bytes: u64, weight: u64) {
        if bytes * weight > SMALL_BYTES && !self.use_grant(bytes * weight) {
            wait(self, bytes * weight).await;
        }
    }

    /// Of the bytes `taken` so many were not sent: others may send as much in this round.
    pub(crate) fn sent(&mut self, taken: u64, unsent: u64, weight: u64) {
        self.left = self.left.saturating_sub(taken - unsent);
        if taken * weight > SMALL_BYTES && unsent > 0 {
            TURNS.with_borrow_mut(|turns| {
                turns.used = turns.used.saturating_sub(unsent * weight);
                while turns.used < ROUND_BYTES && turns.grant_first() {}
            });
        }
    }
}

async fn wait(turn: &mut Turn, bytes: u64) {
    let waiter = TURNS.with_borrow_mut(|turns| {
        let begins = turn.place == 0;
        if turn.left == 0 {
            (turn.place, turn.left) = (turns.place(), PORTION);
        }
        if turns.lets_in(bytes, begins) {
            return None;
        }
        let waiter = Rc::new(Waiter::default());
        turns.wait(turn.place, Waiting::Task(Rc::clone(&waiter)), bytes);
        Some(waiter)
    });
    let Some(waiter) = waiter else { return };
    poll_fn(|context| {
        if waiter.granted.get() {
            return Poll::Ready(());
        }
        waiter.waker.replace(Some(context.waker().clone()));
        Poll::Pending
    })
    .await;
}

/// There was a small answer, or a part of an upload, which long rounds would hold up.
pub(crate) fn note_others(now: Instant) {
    TURNS.with_borrow_mut(|turns| turns.others = Some(now));
}

/// The sockets were looked at, and those that became ready were woken: a new round begins.
pub(crate) fn looked() {
    TURNS.with_borrow_mut(|turns| {
        if !turns.refilling {
            turns.begin_round();
        }
    });
}

/// Whether a bulk send waits for its turn.
pub(crate) fn is_waiting() -> bool {
    TURNS.with_borrow(|turns| turns.refilling)
}

/// Begins a round whenever all that is ready has had its turn, until nobody waits.
fn refill() {
    monoio::spawn(async {
        loop {
            reactor::behind_all().await;
            let more = TURNS.with_borrow_mut(|turns| {
                turns.begin_round();
                turns.refilling = !turns.waiting.is_empty();
                turns.refilling
            });
            reactor::serve_granted();
            if !more {
                break;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream;

    use futures_util::FutureExt;

    use super::*;
    use crate::reactor::Socket;

    const LIMIT: Duration = Duration::from_secs(60);

    /// A client, and its connection, which has had bulk only.
    fn asker() -> (TcpStream, Socket) {
        let (client, server) = reactor::connected();
        let socket = Socket::adopt(server.into()).expect("adopted");
        socket.drained();
        socket.read_in_turn(PORTION);
        (client, socket)
    }

    /// Pushes its name when it has its turn.
    fn waits(
        name: &'static str,
        order: &Rc<RefCell<Vec<&'static str>>>,
    ) -> monoio::task::JoinHandle<()> {
        let order = Rc::clone(order);
        monoio::spawn(async move {
            Turn::default().take(PORTION, WARM).await;
            order.borrow_mut().push(name);
        })
    }

    fn begin_round() {
        TURNS.with_borrow_mut(Turns::begin_round);
    }

    /// Whether an answer of a portion has its turn when it begins.
    fn another_begins() -> bool {
        Turn::default().take(PORTION, WARM).now_or_never().is_some()
    }

    /// How many of those have it in one round.
    fn served_in_a_round() -> usize {
        std::iter::repeat_with(another_begins).take_while(|begins| *begins).count()
    }

    #[test]
    fn a_round_is_long_when_there_is_nobody_to_spare() {
        crate::reactor::on_a_shard(async {
            begin_round();
            assert_eq!(served_in_a_round() as u64, QUIET_ROUND_BYTES / PORTION);
            TURNS.take();
            note_others(Instant::now());
            begin_round();
            assert_eq!(served_in_a_round() as u64, ROUND_BYTES / PORTION);
            TURNS.take();
            note_others(Instant::now() - QUIET);
            begin_round();
            assert_eq!(served_in_a_round() as u64, QUIET_ROUND_BYTES / PORTION);
        });
    }

    #[test]
    fn what_has_had_a_turn_of_a_long_round_waits_for_the_next_and_who_comes_later_behind_it() {
        crate::reactor::on_a_shard(async {
            begin_round();
            let mut one = Turn::default();
            assert!(one.take(PORTION, WARM).now_or_never().is_some());
            one.sent(PORTION, PORTION / 2, WARM);
            assert!(another_begins(), "the round is long");
            assert!(one.take(PORTION / 2, WARM).now_or_never().is_none(), "it goes on");
            assert!(!another_begins(), "it was there before");
            note_others(Instant::now());
            TURNS.with_borrow_mut(|turns| turns.waiting.clear());
            begin_round();
            let goes_on = one.take(PORTION / 2, WARM).now_or_never();
            assert!(goes_on.is_some(), "a new round, of which the last one left nothing over");
        });
    }

    #[test]
    fn what_a_socket_had_no_room_for_goes_before_what_came_later() {
        let order = crate::reactor::on_a_shard(async {
            note_others(Instant::now());
            let order = Rc::new(RefCell::new(Vec::new()));
            let (mut first, mut second) = (Turn::default(), Turn::default());
            first.take(PORTION, WARM).await;
            first.sent(PORTION, PORTION / 2, WARM);
            second.take(PORTION, WARM).await;
            second.sent(PORTION, 0, WARM);
            // The round is used: all of these wait, and ask in this order.
            let waiting = [
                (Turn::default(), PORTION, "third"),
                (second, PORTION, "second, another portion"),
                (first, PORTION / 2, "first, the rest"),
            ]
            .map(|(mut turn, bytes, name)| {
                let order = Rc::clone(&order);
                monoio::spawn(async move {
                    turn.take(bytes, WARM).await;
                    order.borrow_mut().push(name);
                })
            });
            futures_util::future::join_all(waiting).await;
            order.take()
        });
        let expected = ["first, the rest", "third", "second, another portion"];
        assert_eq!(order, expected);
    }

    #[test]
    fn a_request_is_read_when_its_turn_has_come() {
        let order = crate::reactor::on_a_shard(async {
            note_others(Instant::now());
            let order = Rc::new(RefCell::new(Vec::new()));
            let (mut client, socket) = asker();
            Turn::default().take(PORTION, WARM).await;
            let before = waits("before", &order);
            client.write_all(b"GET").expect("sent");
            let asks = monoio::spawn({
                let order = Rc::clone(&order);
                async move {
                    socket.readable(LIMIT).await.expect("it came");
                    order.borrow_mut().push("asks");
                    assert!(socket.read_at_once().is_some(), "the turn is its answer's");
                    assert!(socket.read_at_once().is_none(), "once");
                }
            });
            // The request is found, and "before" waits already.
            reactor::behind_all().await;
            let after = waits("after", &order);
            futures_util::future::join_all([before, asks, after]).await;
            order.take()
        });
        assert_eq!(order, ["before", "asks", "after"]);
    }

    #[test]
    fn without_a_queue_a_request_is_read_when_it_comes_and_its_answer_waits_no_more() {
        crate::reactor::on_a_shard(async {
            note_others(Instant::now());
            let (mut client, socket) = asker();
            client.write_all(b"GET").expect("sent");
            while socket.readable(LIMIT).now_or_never().is_none() {
                reactor::behind_all().await;
            }
            let used = || TURNS.with_borrow(|turns| turns.used);
            assert!(used() >= PORTION, "the round is used for what it is thought to ask for");
            let grant = socket.read_at_once().expect("a turn");
            let mut turn = Turn::from(grant);
            assert!(turn.take(PORTION / 2, WARM).now_or_never().is_some());
            assert_eq!(used(), PORTION / 2, "and for what it did ask for");
            turn.sent(PORTION / 2, PORTION / 4, WARM);
            assert_eq!((used(), turn.left), (PORTION / 4, PORTION * 3 / 4));
            let before = used();
            TURNS.with_borrow_mut(|turns| turns.used += PORTION);
            drop(Turn::from(grant));
            assert_eq!(used(), before, "what is not used counts no more");
            let mut cold = Turn::from(grant);
            TURNS.with_borrow_mut(|turns| turns.used += PORTION);
            assert!(cold.take(PORTION, COLD).now_or_never().is_some(), "it has waited");
            assert_eq!(used(), before + COLD * PORTION, "and counts as what it is");
            assert!(cold.take(PORTION, COLD).now_or_never().is_none(), "once");
        });
    }

    #[test]
    fn who_goes_away_while_its_request_waits_is_found_at_once_and_counts_no_more() {
        crate::reactor::on_a_shard(async {
            note_others(Instant::now());
            let (mut client, socket) = asker();
            Turn::default().take(PORTION, WARM).await;
            // They hold the queue up.
            let order = Rc::default();
            let ahead = [waits("one", &order), waits("two", &order), waits("three", &order)];
            client.write_all(b"GET").expect("sent");
            reactor::behind_all().await;
            drop(client);
            reactor::behind_all().await;
            socket.readable(LIMIT).await.expect("the end came");
            assert!(socket.read_at_once().is_none(), "it has no turn");
            futures_util::future::join_all(ahead).await;
            while is_waiting() {
                reactor::behind_all().await;
            }
            assert!(socket.read_at_once().is_none(), "nor is it given one later");
            assert!(another_begins(), "nothing is counted for it");
        });
    }
}
