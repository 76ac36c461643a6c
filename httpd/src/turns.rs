//! Bulk sends of a shard take turns, so that a small answer waits for [`ROUND_BYTES`] of them at most.
//!
//! A round ends when the sockets are looked at, or when all that is ready has had its turn. A bulk send that finds the round's bytes used
//! waits for the next one, first come, first served. As long as nobody has to wait this costs an addition.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

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
                // A task that yields would run again before the others; a new one stands behind all that are
                // ready.
                monoio::spawn(async { begin_round() });
            }
            Poll::Pending
        })
    })
    .await;
}

/// A new round begins: the sockets were looked at, or all that was ready has had its turn.
pub(crate) fn begin_round() {
    let woken = TURNS.with_borrow_mut(|turns| {
        turns.used = 0;
        turns.refilling = false;
        std::mem::take(&mut turns.waiting)
    });
    // Those for whom the round is too short stand behind again, in the same order.
    woken.into_iter().for_each(Waker::wake);
}
