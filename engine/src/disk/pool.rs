//! The disk threads: where blocking calls are made.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::task::{Context, Poll};

use futures_channel::oneshot;
use parking_lot::Mutex;

use crate::error::{Error, Result};

/// Calls that may wait for a disk thread; one more is answered with [`Error::Busy`].
const QUEUE: usize = 4096;

/// The niceness of what nobody waits for (setpriority(2)).
const LOWEST: i32 = 19;

/// A call to be made.
pub type Call = Box<dyn FnOnce() + Send>;

/// Takes calls to be made some time, by whoever it likes: the simulator's way to choose the order.
pub trait Queue: Send + Sync {
    /// Takes a call.
    fn push(&self, call: Call);
}

/// Where blocking calls are made. Cheap to clone.
#[derive(Clone)]
pub enum DiskPool {
    /// A small set of named threads with one bounded queue.
    Threads(SyncSender<Call>),
    /// Whoever the queue belongs to.
    Queue(Arc<dyn Queue>),
}

impl fmt::Debug for DiskPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DiskPool")
    }
}

impl DiskPool {
    /// Starts `threads` threads named `reel-disk-N`; they end when the pool is dropped.
    pub fn start(threads: usize) -> std::io::Result<Self> {
        let (calls, waiting) = sync_channel::<Call>(QUEUE);
        let waiting = Arc::new(Mutex::new(waiting));
        for index in 0..threads {
            let waiting = Arc::clone(&waiting);
            std::thread::Builder::new()
                .name(format!("reel-disk-{index}"))
                .spawn(move || work(&waiting))?;
        }
        Ok(Self::Threads(calls))
    }

    /// Starts one thread `reel-behind` for calls that nobody waits for. It runs at the lowest priority, so that
    /// it takes no turn from a shard on the same core.
    pub fn start_behind() -> std::io::Result<Self> {
        let (calls, waiting) = sync_channel::<Call>(QUEUE);
        std::thread::Builder::new().name("reel-behind".to_owned()).spawn(move || {
            // On Linux the priority is a thread's own; 0 is the caller. It may be lowered by anyone.
            if let Err(error) = rustix::process::setpriority_process(None, LOWEST) {
                tracing::warn!(%error, "work behind the scenes keeps its priority");
            }
            work(&Mutex::new(waiting));
        })?;
        Ok(Self::Threads(calls))
    }

    /// Queues `call` at once; the returned [`Job`] gives its result. Dropping the job does not
    /// stop the call.
    pub fn run<T, F>(&self, call: F) -> Job<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T> + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let call: Call = Box::new(move || {
            // The receiver may be gone; the call's effect stands all the same.
            let _ = done.send(call());
        });
        match self {
            Self::Queue(queue) => queue.push(call),
            Self::Threads(threads) => match threads.try_send(call) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    return Job::Refused(Some(Error::Busy("the disk queue")));
                }
                Err(TrySendError::Disconnected(_)) => return Job::Refused(Some(Error::Stopping)),
            },
        }
        Job::Queued(result)
    }
}

fn work(waiting: &Mutex<Receiver<Call>>) {
    loop {
        let call = waiting.lock().recv();
        match call {
            Ok(call) => call(),
            Err(_) => return,
        }
    }
}

/// The result of a queued call, to be awaited on any runtime.
#[derive(Debug)]
pub enum Job<T> {
    /// The call is queued or running.
    Queued(oneshot::Receiver<Result<T>>),
    /// The queue did not take it.
    Refused(Option<Error>),
}

impl<T> Future for Job<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Queued(result) => {
                Pin::new(result).poll(context).map(|result| result.unwrap_or(Err(Error::Stopping)))
            }
            Self::Refused(error) => Poll::Ready(Err(error.take().unwrap_or(Error::Stopping))),
        }
    }
}
