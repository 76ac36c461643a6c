//! Runs tasks and disk calls one at a time, in an order that a seed chooses.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;
use reel_engine::disk::sim::Rng;
use reel_engine::disk::{DiskPool, Queue};

type Task = Pin<Box<dyn Future<Output = ()>>>;
type Call = Box<dyn FnOnce() + Send>;

/// What is ready, shared with wakers and the engine.
#[derive(Default)]
struct Shared {
    ready: BTreeSet<usize>,
    calls: Vec<Call>,
}

struct Calls(Arc<Mutex<Shared>>);

impl Queue for Calls {
    fn push(&self, call: Call) {
        self.0.lock().calls.push(call);
    }
}

struct TaskWaker {
    task: usize,
    shared: Arc<Mutex<Shared>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.shared.lock().ready.insert(self.task);
    }
}

#[derive(Default)]
struct Spawned {
    next: usize,
    new: Vec<(usize, Task)>,
}

/// Where tasks are spawned; cheap to clone.
#[derive(Clone)]
pub struct Spawner {
    spawned: Rc<std::cell::RefCell<Spawned>>,
}

impl Spawner {
    /// Adds a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let mut spawned = self.spawned.borrow_mut();
        let id = spawned.next;
        spawned.next += 1;
        spawned.new.push((id, Box::pin(task)));
    }
}

/// One life of the simulated process.
pub struct Executor {
    shared: Arc<Mutex<Shared>>,
    tasks: BTreeMap<usize, Task>,
    spawner: Spawner,
    rng: Rng,
}

impl Executor {
    /// An executor whose order `seed` chooses.
    pub fn new(seed: u64) -> Self {
        Self {
            shared: Arc::default(),
            tasks: BTreeMap::new(),
            spawner: Spawner { spawned: Rc::default() },
            rng: Rng::new(seed),
        }
    }

    /// Where the engine's blocking calls go.
    pub fn pool(&self) -> DiskPool {
        DiskPool::Queue(Arc::new(Calls(Arc::clone(&self.shared))))
    }

    /// Where tasks are spawned.
    pub fn spawner(&self) -> Spawner {
        self.spawner.clone()
    }

    /// Runs until nothing is ready any more, or `stop` says so.
    pub fn run(&mut self, stop: impl Fn() -> bool) {
        loop {
            self.take_new();
            if stop() || !self.step() {
                return;
            }
        }
    }

    fn take_new(&mut self) {
        for (id, task) in self.spawner.spawned.borrow_mut().new.drain(..) {
            self.tasks.insert(id, task);
            self.shared.lock().ready.insert(id);
        }
    }

    /// Whether there is anything to run.
    pub fn is_ready(&self) -> bool {
        let shared = self.shared.lock();
        !shared.ready.is_empty()
            || !shared.calls.is_empty()
            || !self.spawner.spawned.borrow().new.is_empty()
    }

    /// Runs one task until it waits, or makes one call; false when nothing is ready.
    pub fn step(&mut self) -> bool {
        self.take_new();
        let (ready, calls) = {
            let shared = self.shared.lock();
            (shared.ready.len() as u64, shared.calls.len() as u64)
        };
        if ready + calls == 0 {
            return false;
        }
        let choice = self.rng.below(ready + calls);
        if choice < ready {
            self.poll_nth(choice as usize);
        } else {
            let call = self.shared.lock().calls.remove((choice - ready) as usize);
            call();
        }
        true
    }

    fn poll_nth(&mut self, nth: usize) {
        let id = {
            let mut shared = self.shared.lock();
            let Some(id) = shared.ready.iter().nth(nth).copied() else { return };
            shared.ready.remove(&id);
            id
        };
        let Some(mut task) = self.tasks.remove(&id) else { return };
        let waker = Waker::from(Arc::new(TaskWaker { task: id, shared: Arc::clone(&self.shared) }));
        match task.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(()) => {}
            Poll::Pending => drop(self.tasks.insert(id, task)),
        }
    }
}

impl Drop for Executor {
    /// Tasks and calls hold the store, which holds the queue: they are let go one by one. What is
    /// dropped may queue another call, which is dropped too.
    fn drop(&mut self) {
        loop {
            let new = std::mem::take(&mut self.spawner.spawned.borrow_mut().new);
            let tasks = std::mem::take(&mut self.tasks);
            let calls = std::mem::take(&mut self.shared.lock().calls);
            if new.is_empty() && tasks.is_empty() && calls.is_empty() {
                return;
            }
            drop((new, tasks, calls));
        }
    }
}

/// Lets others run first.
pub async fn pause() {
    let mut paused = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut paused, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
