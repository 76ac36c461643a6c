//! A counter that tasks on any thread can wait on, whatever runtime polls them.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};

use parking_lot::Mutex;

/// Rises when something happened; waiters ask for "later than what I saw".
///
/// A raise without waiters is one atomic addition and one uncontended lock.
#[derive(Debug, Default)]
pub struct Signal {
    count: AtomicU64,
    wakers: Mutex<Vec<Waker>>,
}

impl Signal {
    /// The count now.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Raises the count by one and wakes every waiter.
    pub fn raise(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
        let wakers = std::mem::take(&mut *self.wakers.lock());
        for waker in wakers {
            waker.wake();
        }
    }

    /// Waits until the count is above `seen`; returns it. Cancel-safe.
    pub async fn beyond(&self, seen: u64) -> u64 {
        poll_fn(|context| {
            let now = self.count();
            if now > seen {
                return Poll::Ready(now);
            }
            let mut wakers = self.wakers.lock();
            // Asked again under the lock: a raise in between has either been seen here or will
            // find this waker.
            let now = self.count();
            if now > seen {
                return Poll::Ready(now);
            }
            if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}
