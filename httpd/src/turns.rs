//! Bulk sends of a shard take turns, so that a small answer waits for [`ROUND_BYTES`] of them at most.
//!
//! One round is what happens between two looks at the sockets. A bulk send that finds the round's bytes used
//! waits for the next one, first come, first served. As long as nobody has to wait this costs an addition.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use crate::reactor::yield_now;

/// Bytes of bulk sends in one round.
const ROUND_BYTES: u64 = 1 << 20;
/// A send of at most so many bytes takes no turn.
const SMALL_BYTES: u64 = 64 * 1024;
/// Bytes a bulk send asks for at a time.
pub(crate) const PORTION: u64 = 1 << 20;
/// What is read past the page cache and sent from memory costs so many times what sendfile costs.
pub(crate) const COLD: u64 = 4;

#[derive(Default)]
struct Turns {
    used: u64,
    refilling: bool,
    waiting: VecDeque<Waker>,
}

thread_local! {
    static TURNS: RefCell<Turns> = RefCell::default();
}

/// Waits until `bytes` may be sent in the current round.
pub(crate) async fn take(bytes: u64) {
    if bytes <= SMALL_BYTES {
        return;
    }
    let mut waited = false;
    poll_fn(|context| {
        TURNS.with_borrow_mut(|turns| {
            let first = turns.waiting.is_empty() || waited;
            if first && turns.used < ROUND_BYTES {
                turns.used += bytes;
                return Poll::Ready(());
            }
            waited = true;
            turns.waiting.push_back(context.waker().clone());
            if !std::mem::replace(&mut turns.refilling, true) {
                monoio::spawn(refill());
            }
            Poll::Pending
        })
    })
    .await;
}

/// The sockets were looked at, and those that became ready were woken: a new round begins.
pub(crate) fn begin_round() {
    let woken = TURNS.with_borrow_mut(|turns| {
        turns.used = 0;
        std::mem::take(&mut turns.waiting)
    });
    // Those for whom the round is too short stand behind again, in the same order.
    woken.into_iter().for_each(Waker::wake);
}

/// Begins rounds while somebody waits, also when no socket becomes ready.
async fn refill() {
    loop {
        yield_now().await;
        begin_round();
        yield_now().await;
        let idle = TURNS.with_borrow_mut(|turns| {
            turns.refilling = !turns.waiting.is_empty();
            !turns.refilling
        });
        if idle {
            return;
        }
    }
}
