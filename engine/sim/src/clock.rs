//! Time that passes when nothing else can happen.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
struct Time {
    now: Duration,
    /// Tells timers of the same moment apart.
    next: u64,
    timers: BTreeMap<(Duration, u64), Waker>,
}

/// The clock of a simulated world; clones are the same clock.
#[derive(Debug, Clone)]
pub struct SimClock {
    /// Differences to it are all that anybody sees.
    begun: Instant,
    time: Rc<RefCell<Time>>,
}

impl Default for SimClock {
    fn default() -> Self {
        Self { begun: Instant::now(), time: Rc::default() }
    }
}

impl SimClock {
    /// Since the beginning of the world.
    pub fn elapsed(&self) -> Duration {
        self.time.borrow().now
    }

    /// The same as a point in time.
    pub fn now(&self) -> Instant {
        self.begun + self.elapsed()
    }

    /// When the next timer is due.
    pub fn next(&self) -> Option<Duration> {
        self.time.borrow().timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// Lets the time pass until `at`, and wakes whose time has come.
    pub fn advance(&self, at: Duration) {
        loop {
            let due = {
                let mut time = self.time.borrow_mut();
                time.now = time.now.max(at);
                let first = time.timers.first_entry().filter(|first| first.key().0 <= at);
                first.map(std::collections::btree_map::OccupiedEntry::remove)
            };
            match due {
                Some(waker) => waker.wake(),
                None => return,
            }
        }
    }

    /// Waits.
    pub fn sleep(&self, time: Duration) -> Sleep {
        Sleep { clock: self.clone(), until: self.elapsed() + time, key: None }
    }

    /// What `work` gives, unless that takes longer than `time`.
    pub async fn within<T>(&self, time: Duration, work: impl Future<Output = T>) -> Option<T> {
        let (mut work, mut sleep) = (pin!(work), pin!(self.sleep(time)));
        std::future::poll_fn(|context| {
            if let Poll::Ready(done) = work.as_mut().poll(context) {
                return Poll::Ready(Some(done));
            }
            sleep.as_mut().poll(context).map(|()| None)
        })
        .await
    }
}

/// A wait.
#[derive(Debug)]
pub struct Sleep {
    clock: SimClock,
    until: Duration,
    key: Option<(Duration, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.clock.elapsed() >= self.until {
            return Poll::Ready(());
        }
        let (key, until) = (self.key, self.until);
        let mut time = self.clock.time.borrow_mut();
        let key = key.unwrap_or_else(|| {
            time.next += 1;
            (until, time.next)
        });
        time.timers.insert(key, context.waker().clone());
        drop(time);
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.clock.time.borrow_mut().timers.remove(&key);
        }
    }
}
