//! Bulk sends of a shard take turns, so that a small answer waits for [`ROUND_BYTES`] of them at most.
//!
//! A round ends when the sockets have been looked at and all that is ready has had its turn. A bulk send that finds
//! the round's bytes used waits for the next one, first come, first served. What a socket had no room for keeps its place
//! ([`Turn`]): when it had to queue up again, one answer of twenty took two or three times as long as the others under load.
//! As long as nobody has to wait a turn costs an addition.
//!
//! Where there are bulk sends only ([`QUIET`]), nobody is to be spared: a round is longer then, and each answer leaves when its
//! request has come instead of being kept while those of others are read (decisions/0024).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::reactor;

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

/// Who waits for a turn.
#[derive(Default)]
struct Waiter {
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
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
    waiting: BTreeMap<u64, (Rc<Waiter>, u64)>,
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
        let Some((_, (waiter, bytes))) = self.waiting.pop_first() else { return false };
        // One that is held by nobody else has given up.
        if Rc::strong_count(&waiter) > 1 {
            self.used += bytes;
            waiter.granted.set(true);
            if let Some(waker) = waiter.waker.take() {
                waker.wake();
            }
        }
        true
    }
}

/// The place of a bulk send among those that wait, kept for [`PORTION`] bytes. One for all of a part of an answer: what is
/// partly cold would queue up twice otherwise, and under load take twice as long as the others.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    place: u64,
    left: u64,
}

impl Turn {
    /// Waits until `bytes` that each count as `weight` ([`WARM`], [`COLD`]) may be sent in the current round.
    pub(crate) async fn take(&mut self, bytes: u64, weight: u64) {
        if bytes * weight > SMALL_BYTES {
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
            turns.last += 1;
            (turn.place, turn.left) = (turns.last, PORTION);
        }
        // What goes on has had a turn: all that begins in a long round leaves before it.
        let is_let_in = begins && turns.has_room() && turns.is_long;
        if is_let_in || turns.used < ROUND_BYTES && turns.waiting.is_empty() {
            turns.used += bytes;
            return None;
        }
        let waiter = Rc::new(Waiter::default());
        turns.waiting.insert(turn.place, (Rc::clone(&waiter), bytes));
        if !std::mem::replace(&mut turns.refilling, true) {
            refill();
        }
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
            if !more {
                break;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

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
    fn what_has_had_a_turn_of_a_long_round_waits_for_the_next_and_nobody_waits_behind_it() {
        crate::reactor::on_a_shard(async {
            begin_round();
            let mut one = Turn::default();
            assert!(one.take(PORTION, WARM).now_or_never().is_some());
            one.sent(PORTION, PORTION / 2, WARM);
            assert!(another_begins(), "the round is long");
            assert!(one.take(PORTION / 2, WARM).now_or_never().is_none(), "it goes on");
            assert!(another_begins(), "others begin");
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
}
