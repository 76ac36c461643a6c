//! The engine without a network: on one shard, beside what the disk does without us.

mod compact;
mod large;
mod many;
mod puts;

use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use reel_engine::format::record::RecordKind;
use reel_engine::{Draft, SegmentNumber, Store, StoreOptions, Writer};

pub(crate) use compact::CompactArgs;
pub(crate) use large::LargeArgs;
pub(crate) use many::ManyArgs;
pub(crate) use puts::PutsArgs;

pub(crate) use compact::run as run_compact;
pub(crate) use large::run as run_large;
pub(crate) use many::run as run_many;
pub(crate) use puts::run as run_puts;

/// A folder that is removed at the end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let path = dir.join(format!("reel-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn failed(error: reel_engine::Error) -> Error {
    Error::other(error.to_string())
}

/// Opens a store; numbers go on from what is there.
fn open(dir: &Path) -> Result<Arc<Store>> {
    let last = Arc::new(AtomicU64::new(0));
    let next = Arc::clone(&last);
    let numbers = move || SegmentNumber::new(next.fetch_add(1, Ordering::Relaxed) + 1);
    let options = StoreOptions::new([dir.to_owned()], Arc::new(numbers));
    let (store, _) = Store::open(options).map_err(failed)?;
    let highest = store.list(None, usize::MAX).last().map_or(0, |number| number.get());
    last.store(highest, Ordering::Relaxed);
    Ok(store)
}

/// Runs on one shard, as a storage node does.
fn on_shard<T>(run: impl Future<Output = Result<T>>) -> Result<T> {
    monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .with_entries(1024)
        .enable_timer()
        .build()?
        .block_on(run)
}

/// A writer at work, and what waits for its end.
struct Shard {
    store: Arc<Store>,
    writer: Writer,
    running: monoio::task::JoinHandle<()>,
}

impl Shard {
    fn start(store: &Arc<Store>) -> Rc<Self> {
        let writer = Writer::new(Arc::clone(store));
        let running = monoio::spawn(writer.clone().run());
        Rc::new(Self { store: Arc::clone(store), writer, running })
    }

    /// A durable put of new bytes, confirmed at once.
    async fn put(&self, name: String, payload: Bytes) -> Result<reel_engine::ObjectId> {
        let crc = crc32fast::hash(&payload);
        let draft = Draft {
            kind: RecordKind::Object,
            user: "bench".to_owned(),
            name,
            content_type: "video/mp4".to_owned(),
            version: self.store.clock().next(),
            modified_ms: self.store.clock().now_ms(),
            target: None,
            payload,
            payload_crc: crc,
        };
        let stored = self.writer.put(draft).await.map_err(failed)?;
        self.store.settled(&stored.segment);
        Ok(stored.object)
    }

    /// Seals what was written, and waits for that.
    async fn stop(self: Rc<Self>) {
        self.writer.stop();
        if let Some(shard) = Rc::into_inner(self) {
            shard.running.await;
            while shard.store.marked_count() > 0 {
                monoio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        }
    }
}

/// Judges every byte of what a measurement left.
fn judge(dir: &Path) -> Result<()> {
    let disk = Arc::new(reel_engine::disk::RealDisk);
    let folder = reel_engine::FolderOptions { path: dir.to_owned(), disk };
    let started = std::time::Instant::now();
    let report = reel_engine::upkeep::fsck(&folder, |_| {}).map_err(failed)?.report;
    crate::cluster::say(format_args!(
        "fsck: {} segments, {} objects, {} dead, {} tombstones, {} MiB in {:.0} s: {} findings",
        report.segments,
        report.objects,
        report.dead,
        report.tombstones,
        report.bytes >> 20,
        started.elapsed().as_secs_f64(),
        report.findings.len()
    ));
    match report.findings.first() {
        None => Ok(()),
        Some(finding) => Err(Error::other(finding.to_string())),
    }
}

/// User and system CPU seconds of this process.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks =
        |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
