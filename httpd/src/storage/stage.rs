//! The catalog stage of a shard: rows of uploads that became durable together go to the catalog
//! together, in one message across threads.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use reel_control::catalog::{CatalogError, CatalogHandle, Outcome, Write};
use tokio::sync::oneshot;

/// Writes that may wait in a shard; one more is refused.
const QUEUE: usize = 8192;

type Waiting = (Write, oneshot::Sender<Result<Outcome, CatalogError>>);

/// The stage; clones share one queue. Not `Send`.
#[derive(Clone)]
pub(crate) struct CatalogStage {
    shared: Rc<Shared>,
}

struct Shared {
    catalog: CatalogHandle,
    queue: RefCell<Vec<Waiting>>,
    waker: Cell<Option<Waker>>,
}

impl CatalogStage {
    pub(crate) fn new(catalog: CatalogHandle) -> Self {
        Self {
            shared: Rc::new(Shared { catalog, queue: RefCell::default(), waker: Cell::new(None) }),
        }
    }

    /// Applies one write, together with others of this shard.
    pub(crate) async fn apply(&self, write: Write) -> Result<Outcome, CatalogError> {
        let (done, outcome) = oneshot::channel();
        {
            let mut queue = self.shared.queue.borrow_mut();
            if queue.len() >= QUEUE {
                return Err(CatalogError::Away("the shard's queue to it is full".to_owned()));
            }
            queue.push((write, done));
        }
        if let Some(waker) = self.shared.waker.take() {
            waker.wake();
        }
        outcome
            .await
            .unwrap_or_else(|_| Err(CatalogError::Unknown("the node is stopping".to_owned())))
    }

    /// Hands batches to the catalog, for ever. The next one does not wait for the one before: the
    /// catalog's side joins what waits there.
    pub(crate) async fn run(self) {
        loop {
            let batch = poll_fn(|context| {
                let batch = std::mem::take(&mut *self.shared.queue.borrow_mut());
                if batch.is_empty() {
                    self.shared.waker.set(Some(context.waker().clone()));
                    Poll::Pending
                } else {
                    Poll::Ready(batch)
                }
            })
            .await;
            let catalog = self.shared.catalog.clone();
            monoio::spawn(async move {
                let (writes, waiting): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
                match catalog.apply(writes).await {
                    Ok(outcomes) => {
                        for (done, outcome) in waiting.into_iter().zip(outcomes) {
                            let _ = done.send(Ok(outcome));
                        }
                    }
                    Err(error) => {
                        for done in waiting {
                            let _ = done.send(Err(error.clone()));
                        }
                    }
                }
            });
        }
    }
}
