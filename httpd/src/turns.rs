//! Bulk sends of a shard take turns, so that a small answer waits for [`ROUND_BYTES`] of them at most.
//!
//! One round is one pass of the shard over the tasks that are ready; in between, the ring and the sockets are
//! looked at. A bulk send that finds the round's bytes used waits for the next one, first come, first served.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use crate::reactor::yield_now;

/// Bytes of bulk sends in one round.
const ROUND_BYTES: u64 = 256 * 1024;
/// Bytes a bulk send asks for at a time.
pub(crate) const PORTION: u64 = 128 * 1024;

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
    let mut waited = false;
    poll_fn(|context| {
        TURNS.with_borrow_mut(|turns| {
            let first = turns.waiting.is_empty() || waited;
            if first && turns.used < ROUND_BYTES {
                turns.used += bytes;
                start_round(turns);
                return Poll::Ready(());
            }
            waited = true;
            turns.waiting.push_back(context.waker().clone());
            start_round(turns);
            Poll::Pending
        })
    })
    .await;
}

/// Sees to it that a next round begins.
fn start_round(turns: &mut Turns) {
    if std::mem::replace(&mut turns.refilling, true) {
        return;
    }
    monoio::spawn(async {
        loop {
            yield_now().await;
            let woken = TURNS.with_borrow_mut(|turns| {
                let idle = turns.used == 0 && turns.waiting.is_empty();
                turns.refilling = !idle;
                turns.used = 0;
                (!idle).then(|| std::mem::take(&mut turns.waiting))
            });
            let Some(woken) = woken else { return };
            // Those for whom the round is too short stand behind, in the same order.
            woken.into_iter().for_each(Waker::wake);
        }
    });
}
