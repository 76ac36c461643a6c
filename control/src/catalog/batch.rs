//! Batching: what many shards want written goes into one transaction; look-ups go beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{Catalog, CatalogError, Outcome, Result, Row, STATEMENT_TIMEOUT, TEND, Write};

/// Requests that may wait; one more is refused.
const QUEUE: usize = 4096;
/// Writes of one transaction.
const BATCH: usize = 512;
/// Statements of look-ups in progress at once.
pub(super) const LOOKUPS: usize = 4;
/// Names of one statement.
const LOOKUP_BATCH: usize = 64;
/// How long a look-up waits for a catalog that has not been opened yet.
const FIRST_OPEN: Duration = Duration::from_secs(1);
/// Between looks whether a catalog that was away is back.
const PROBE: Duration = Duration::from_millis(250);

type Answer<T> = oneshot::Sender<Result<T>>;

enum Read {
    /// Goes together with others that wait.
    Lookup(Lookup),
    Other(Other),
}

struct Lookup {
    user: String,
    name: String,
    answer: Answer<Option<Row>>,
}

enum Other {
    RowsOf { files: Vec<(String, String)>, answer: Answer<Vec<Option<Row>>> },
    Rows { after: (String, String), limit: u32, answer: Answer<Vec<Row>> },
    List { user: String, prefix: String, after: String, limit: u32, answer: Answer<Vec<Row>> },
    Settle { user: String, proposed: u32, answer: Answer<u32> },
}

type Apply = (Vec<Write>, Answer<Vec<Outcome>>);

/// A shard's door to the catalog, which lives on the tokio thread. Cheap to clone.
#[derive(Clone)]
pub struct CatalogHandle {
    writes: mpsc::Sender<Apply>,
    reads: mpsc::Sender<Read>,
    available: Arc<AtomicBool>,
}

/// The other end of a [`CatalogHandle`], for [`run_batches`].
pub struct Batches {
    writes: mpsc::Receiver<Apply>,
    reads: mpsc::Receiver<Read>,
    available: Arc<AtomicBool>,
}

impl CatalogHandle {
    /// Both ends.
    pub fn channel() -> (Self, Batches) {
        let (writes, to_write) = mpsc::channel(QUEUE);
        let (reads, to_read) = mpsc::channel(QUEUE);
        let available = Arc::new(AtomicBool::new(false));
        let handle = Self { writes, reads, available: Arc::clone(&available) };
        (handle, Batches { writes: to_write, reads: to_read, available })
    }

    /// Whether the catalog answered the last time it was asked.
    pub fn is_available(&self) -> bool {
        self.available.load(Ordering::Relaxed)
    }

    /// [`Catalog::apply`], in one transaction with others' writes.
    pub async fn apply(&self, writes: Vec<Write>) -> Result<Vec<Outcome>> {
        let (answer, answered) = oneshot::channel();
        send(&self.writes, (writes, answer))?;
        receive(answered).await
    }

    /// [`Catalog::lookup`].
    pub async fn lookup(&self, user: &str, name: &str) -> Result<Option<Row>> {
        let (answer, answered) = oneshot::channel();
        let lookup = Lookup { user: user.to_owned(), name: name.to_owned(), answer };
        send(&self.reads, Read::Lookup(lookup))?;
        receive(answered).await
    }

    /// [`Catalog::rows_of`].
    pub async fn rows_of(&self, files: Vec<(String, String)>) -> Result<Vec<Option<Row>>> {
        let (answer, answered) = oneshot::channel();
        send(&self.reads, Read::Other(Other::RowsOf { files, answer }))?;
        receive(answered).await
    }

    /// [`Catalog::rows`].
    pub async fn rows(&self, after: (String, String), limit: u32) -> Result<Vec<Row>> {
        let (answer, answered) = oneshot::channel();
        send(&self.reads, Read::Other(Other::Rows { after, limit, answer }))?;
        receive(answered).await
    }

    /// [`Catalog::list`].
    pub async fn list(
        &self,
        user: String,
        prefix: String,
        after: String,
        limit: u32,
    ) -> Result<Vec<Row>> {
        let (answer, answered) = oneshot::channel();
        send(&self.reads, Read::Other(Other::List { user, prefix, after, limit, answer }))?;
        receive(answered).await
    }

    /// [`Catalog::settle_user`].
    pub async fn settle_user(&self, user: String, proposed: u32) -> Result<u32> {
        let (answer, answered) = oneshot::channel();
        send(&self.reads, Read::Other(Other::Settle { user, proposed, answer }))?;
        receive(answered).await
    }
}

fn send<T>(queue: &mpsc::Sender<T>, request: T) -> Result<()> {
    queue.try_send(request).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => CatalogError::Away("its queue is full".to_owned()),
        mpsc::error::TrySendError::Closed(_) => {
            CatalogError::Away("the node is stopping".to_owned())
        }
    })
}

async fn receive<T>(answered: oneshot::Receiver<Result<T>>) -> Result<T> {
    answered.await.unwrap_or_else(|_| Err(CatalogError::Unknown("the node is stopping".to_owned())))
}

/// Serves the shards' requests until every handle is gone. Opens the catalog when it can; one that
/// is away is tried again and again, and requests meanwhile are answered at once.
pub async fn run_batches(url: String, batches: Batches) {
    let open: Arc<RwLock<Option<Catalog>>> = Arc::default();
    let Batches { writes, reads, available } = batches;
    tokio::select! {
        () = probe(&url, &open, &available) => {}
        () = tend(&open) => {}
        ((), ()) = async {
            tokio::join!(write_loop(writes, &open, &available), read_loop(reads, &open, &available))
        } => {}
    }
}

/// Opens the catalog, and asks one that was away whether it is back. Never ends.
async fn probe(url: &str, open: &RwLock<Option<Catalog>>, available: &AtomicBool) {
    let mut said = false;
    loop {
        if !available.load(Ordering::Relaxed) {
            let known = open.read().clone();
            let result = match known {
                Some(catalog) => timed(catalog.ping()).await,
                None => match timed(Catalog::open(url)).await {
                    Ok(catalog) => {
                        *open.write() = Some(catalog);
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
            };
            match result {
                Ok(()) => {
                    available.store(true, Ordering::Relaxed);
                    if std::mem::take(&mut said) {
                        tracing::info!("the catalog is back");
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(%error, "the catalog is away; uploads are refused until it is back");
                    }
                }
            }
        }
        metrics::gauge!("reel_catalog_available")
            .set(f64::from(u8::from(available.load(Ordering::Relaxed))));
        tokio::time::sleep(PROBE).await;
    }
}

/// Tends the catalog. Never ends.
async fn tend(open: &RwLock<Option<Catalog>>) {
    loop {
        tokio::time::sleep(TEND).await;
        let known = open.read().clone();
        if let Some(catalog) = known
            && let Err(error) = catalog.tend().await
        {
            tracing::warn!(%error, "the catalog's upkeep failed");
        }
    }
}

async fn write_loop(
    mut requests: mpsc::Receiver<Apply>,
    open: &RwLock<Option<Catalog>>,
    available: &AtomicBool,
) {
    let sizes = metrics::histogram!("reel_catalog_batch_records");
    let latency = metrics::histogram!("reel_catalog_commit_seconds");
    while let Some(first) = requests.recv().await {
        let mut waiting = vec![first];
        let mut count = waiting[0].0.len();
        while count < BATCH
            && let Ok(next) = requests.try_recv()
        {
            count += next.0.len();
            waiting.push(next);
        }
        sizes.record(count as f64);
        let started = std::time::Instant::now();
        let known = open.read().clone();
        let (writes, answers): (Vec<_>, Vec<_>) =
            waiting.into_iter().map(|(writes, answer)| ((writes.len(), writes), answer)).unzip();
        let lengths: Vec<usize> = writes.iter().map(|(length, _)| *length).collect();
        let all: Vec<Write> = writes.into_iter().flat_map(|(_, writes)| writes).collect();
        let result = match known {
            Some(catalog) => timed_apply(&catalog, &all).await,
            None => Err(CatalogError::Away("it has not been reached yet".to_owned())),
        };
        latency.record(started.elapsed().as_secs_f64());
        match result {
            Ok(outcomes) => {
                let mut outcomes = outcomes.into_iter();
                for (answer, length) in answers.into_iter().zip(lengths) {
                    let _ = answer.send(Ok(outcomes.by_ref().take(length).collect()));
                }
            }
            Err(error) => {
                available.store(false, Ordering::Relaxed);
                metrics::counter!("reel_catalog_errors_total").increment(1);
                for answer in answers {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }
}

/// While [`LOOKUPS`] statements are in progress, names gather for the next one.
async fn read_loop(
    mut requests: mpsc::Receiver<Read>,
    open: &RwLock<Option<Catalog>>,
    available: &Arc<AtomicBool>,
) {
    let permits = Arc::new(Semaphore::new(LOOKUPS));
    while let Some(first) = requests.recv().await {
        let Some(catalog) = opened(open).await else {
            refuse(first);
            continue;
        };
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let mut names = Names::default();
        let mut other = names.add(first);
        while other.is_none()
            && names.files.len() < LOOKUP_BATCH
            && let Ok(next) = requests.try_recv()
        {
            other = names.add(next);
        }
        let available = Arc::clone(available);
        tokio::spawn(async move {
            let mut reached = names.look_up(&catalog).await;
            if let Some(request) = other {
                reached &= read(&catalog, request).await;
            }
            if !reached {
                available.store(false, Ordering::Relaxed);
            }
            drop(permit);
        });
    }
}

/// Look-ups that are asked for together.
#[derive(Default)]
struct Names {
    files: Vec<(String, String)>,
    answers: Vec<Answer<Option<Row>>>,
}

impl Names {
    /// Adds a look-up; gives anything else back.
    fn add(&mut self, request: Read) -> Option<Other> {
        match request {
            Read::Lookup(Lookup { user, name, answer }) => {
                self.files.push((user, name));
                self.answers.push(answer);
                None
            }
            Read::Other(other) => Some(other),
        }
    }

    /// Answers all; false when the catalog was not reached.
    async fn look_up(self, catalog: &Catalog) -> bool {
        if self.files.is_empty() {
            return true;
        }
        match timed(catalog.rows_of(&self.files)).await {
            Ok(rows) => {
                for (answer, row) in self.answers.into_iter().zip(rows) {
                    // A mark counts as none.
                    let _ = answer.send(Ok(row.filter(|row| !row.is_mark())));
                }
                true
            }
            Err(error) => {
                for answer in self.answers {
                    let _ = answer.send(Err(error.clone()));
                }
                false
            }
        }
    }
}

/// The catalog; at the start look-ups wait a while for it.
async fn opened(open: &RwLock<Option<Catalog>>) -> Option<Catalog> {
    let deadline = tokio::time::Instant::now() + FIRST_OPEN;
    loop {
        let known = open.read().clone();
        if known.is_some() || tokio::time::Instant::now() > deadline {
            return known;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Answers one look-up; false when the catalog was not reached.
async fn read(catalog: &Catalog, request: Other) -> bool {
    fn answer<T>(to: Answer<T>, result: Result<T>) -> bool {
        let reached = result.is_ok();
        let _ = to.send(result);
        reached
    }
    match request {
        Other::RowsOf { files, answer: to } => answer(to, timed(catalog.rows_of(&files)).await),
        Other::Rows { after: (user, name), limit, answer: to } => {
            answer(to, timed(catalog.rows((&user, &name), limit)).await)
        }
        Other::List { user, prefix, after, limit, answer: to } => {
            answer(to, timed(catalog.list(&user, &prefix, &after, limit)).await)
        }
        Other::Settle { user, proposed, answer: to } => {
            answer(to, timed(catalog.settle_user(&user, proposed)).await)
        }
    }
}

fn refuse(request: Read) {
    let error = CatalogError::Away("it has not been reached yet".to_owned());
    match request {
        Read::Lookup(Lookup { answer, .. }) => drop(answer.send(Err(error))),
        Read::Other(Other::RowsOf { answer, .. }) => drop(answer.send(Err(error))),
        Read::Other(Other::Rows { answer, .. }) => drop(answer.send(Err(error))),
        Read::Other(Other::List { answer, .. }) => drop(answer.send(Err(error))),
        Read::Other(Other::Settle { answer, .. }) => drop(answer.send(Err(error))),
    }
}

async fn timed<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(STATEMENT_TIMEOUT, call).await {
        Ok(result) => result,
        Err(_) => Err(CatalogError::Away(format!("no answer within {STATEMENT_TIMEOUT:?}"))),
    }
}

/// A transaction that ran out of time may have been committed all the same.
async fn timed_apply(catalog: &Catalog, writes: &[Write]) -> Result<Vec<Outcome>> {
    match tokio::time::timeout(STATEMENT_TIMEOUT * 2, catalog.apply(writes)).await {
        Ok(result) => result,
        Err(_) => Err(CatalogError::Unknown("no answer in time".to_owned())),
    }
}
