//! Bulk sends of a shard take turns, so that a small answer waits for [`ROUND_BYTES`] of them at most.
//!
//! A round ends when the sockets have been looked at and all that is ready has had its turn. A bulk send that finds
//! the round's bytes used waits for the next one, first come, first served. As long as nobody has to wait this costs an addition.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::reactor;

/// Bytes of bulk sends in one round.
const ROUND_BYTES: u64 = 2 << 20;
/// A send of at most so many bytes takes no turn.
const SMALL_BYTES: u64 = 64 * 1024;
/// Bytes a bulk send asks for at a time.
pub(crate) const PORTION: u64 = 2 << 20;
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
    /// There is a task that begins rounds while somebody waits.
    refilling: bool,
    waiting: VecDeque<(Rc<Waiter>, u64)>,
}

thread_local! {
    static TURNS: RefCell<Turns> = RefCell::default();
}

impl Turns {
    /// Gives turns to those who wait, in order, as long as the round has bytes.
    fn begin_round(&mut self) {
        // What was taken beyond the last round counts in this one.
        self.used = self.used.saturating_sub(ROUND_BYTES);
        self.grant();
    }

    fn grant(&mut self) {
        while self.used < ROUND_BYTES
            && let Some((waiter, bytes)) = self.waiting.pop_front()
        {
            // One that is held by nobody else has given up.
            if Rc::strong_count(&waiter) > 1 {
                self.used += bytes;
                waiter.granted.set(true);
                if let Some(waker) = waiter.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

/// Waits until `bytes` may be sent in the current round.
pub(crate) async fn take(bytes: u64) {
    if bytes <= SMALL_BYTES {
        return;
    }
    let waiter = TURNS.with_borrow_mut(|turns| {
        if turns.waiting.is_empty() && turns.used < ROUND_BYTES {
            turns.used += bytes;
            return None;
        }
        let waiter = Rc::new(Waiter::default());
        turns.waiting.push_back((Rc::clone(&waiter), bytes));
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

/// Gives back what was not sent of the bytes `taken`: others may send as much in this round.
pub(crate) fn give_back(taken: u64, unsent: u64) {
    if taken > SMALL_BYTES && unsent > 0 {
        TURNS.with_borrow_mut(|turns| {
            turns.used = turns.used.saturating_sub(unsent);
            turns.grant();
        });
    }
}

/// The sockets were looked at, and those that became ready were woken: a new round begins.
pub(crate) fn looked() {
    TURNS.with_borrow_mut(|turns| {
        if !turns.refilling {
            turns.begin_round();
        }
    });
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
