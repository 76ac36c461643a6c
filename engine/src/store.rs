//! A data folder: its segments, open and known, and what happens to them as a whole.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::changes::Changes;
use crate::clock::{Clock, now_ms};
use crate::disk::{self, DiskPool, Job};
use crate::error::{Error, Result};
use crate::folder;
use crate::format::HEADER_BYTES;
use crate::format::segment_header::{SegmentHeader, SegmentKind};
use crate::format::superblock::Superblock;
use crate::id::{ObjectId, SegmentNumber};
use crate::recover;
use crate::segment::{self, Segment};
use crate::signal::Signal;
use crate::slots::{SlotTable, table_path};

/// Gives the next segment number from the leases in hand; `None` when there is none.
pub type NumberSource = Arc<dyn Fn() -> Option<SegmentNumber> + Send + Sync>;

/// Makes durable what the catalog has committed so far; called on a disk thread.
pub type Barrier = Arc<dyn Fn() -> std::io::Result<()> + Send + Sync>;

/// How a data folder is opened.
#[derive(Clone)]
pub struct StoreOptions {
    /// The data folder.
    pub dir: PathBuf,
    /// The cluster's name, at most 64 bytes.
    pub cluster: String,
    /// The node's id.
    pub node: u32,
    /// The node's group.
    pub group: u32,
    /// Bytes after which a packed segment is sealed; below 32 GiB.
    pub segment_bytes: u64,
    /// Bytes that uploads leave free, so that deletes still work.
    pub reserve_bytes: u64,
    /// Segments that are kept open (one descriptor each).
    pub open_segments: usize,
    /// Threads for blocking file calls.
    pub disk_threads: usize,
    /// Where segment numbers come from.
    pub numbers: NumberSource,
    /// Called before a segment's records stop being offered to the catalog at a start.
    pub barrier: Barrier,
}

/// What opening a data folder found.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Own segments whose records are to be offered to the catalog again, then settled.
    pub offer: Vec<SegmentNumber>,
    /// Bytes cut off behind the last good record, over all segments.
    pub cut_bytes: u64,
    /// Uploads that had not been complete, and are gone.
    pub unfinished: usize,
}

/// What a segment is, for whoever wants to copy it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its number.
    pub number: SegmentNumber,
    /// Packed or solo.
    pub kind: SegmentKind,
    /// The generation that offsets are valid in.
    pub generation: u32,
    /// The node that writes it.
    pub creator: u32,
    /// Durable bytes.
    pub length: u64,
    /// Whether it will grow.
    pub sealed: bool,
}

/// An open data folder. One process owns it; its shards share it.
pub struct Store {
    pub(crate) options: StoreOptions,
    superblock: Superblock,
    clock: Clock,
    pool: DiskPool,
    open: RwLock<HashMap<SegmentNumber, Arc<Segment>>>,
    known: RwLock<BTreeSet<SegmentNumber>>,
    changes: Mutex<Changes>,
    grown: Signal,
    free: AtomicU64,
    total: AtomicU64,
    /// Holds the lock as long as the store lives.
    _lock: File,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("dir", &self.options.dir).finish_non_exhaustive()
    }
}

/// A fresh packed segment and the file to write it through.
pub(crate) struct Fresh {
    pub(crate) segment: Arc<Segment>,
    pub(crate) file: File,
    /// Whether its space was written before: a sync then need not wait for the file system's
    /// journal.
    pub(crate) prewritten: bool,
}

impl Store {
    /// Opens the data folder, making it when it is not there, and recovers the segments that were
    /// active at a crash. Blocking: call it before the shards start.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::ForeignFolder`], [`Error::UnknownFormat`], [`Error::Damaged`] for
    /// the superblock, and I/O errors.
    pub fn open(options: StoreOptions) -> Result<(Arc<Self>, Recovery)> {
        let dir = options.dir.clone();
        std::fs::create_dir_all(&dir).map_err(|error| Error::io("create folder", &dir, error))?;
        let lock = folder::lock(&dir, options.node)?;
        let superblock = folder::superblock(&options)?;
        disk::create_dirs(&dir, &dir.join("active"))?;
        let pool = DiskPool::start(options.disk_threads.max(1))
            .map_err(|error| Error::io("start disk threads for", &dir, error))?;
        let store = Arc::new(Self {
            clock: Clock::new(options.node),
            pool,
            open: RwLock::default(),
            known: RwLock::new(folder::list_segments(&dir)?),
            changes: Mutex::default(),
            grown: Signal::default(),
            free: AtomicU64::new(0),
            total: AtomicU64::new(0),
            superblock,
            options,
            _lock: lock,
        });
        store.refresh_space()?;
        let recovery = recover::recover(&store)?;
        Ok((store, recovery))
    }

    /// The node's clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Who the folder belongs to.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The data folder.
    pub fn dir(&self) -> &Path {
        &self.options.dir
    }

    /// The threads for blocking file calls.
    pub fn pool(&self) -> &DiskPool {
        &self.pool
    }

    /// Rises whenever a segment grew, was sealed or came to be.
    pub fn grown(&self) -> &Signal {
        &self.grown
    }

    /// Asks the file system how much is free. Blocking.
    pub fn refresh_space(&self) -> Result<()> {
        let (free, total) = disk::free_bytes(self.dir())?;
        self.free.store(free, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        Ok(())
    }

    /// Free and total bytes, as of the last [`Store::refresh_space`].
    pub fn space(&self) -> (u64, u64) {
        (self.free.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// Bytes that uploads leave free.
    pub fn reserve_bytes(&self) -> u64 {
        self.options.reserve_bytes
    }

    /// Whether an upload of `bytes` would leave the reserve free.
    pub fn has_room(&self, bytes: u64) -> Result<()> {
        let free = self.free.load(Ordering::Relaxed);
        if free < self.options.reserve_bytes.saturating_add(bytes) {
            return Err(Error::NoSpace { path: self.options.dir.clone() });
        }
        Ok(())
    }

    /// A segment that is open already: one lock, no system call.
    pub fn loaded(&self, number: SegmentNumber) -> Option<Arc<Segment>> {
        self.open.read().get(&number).cloned()
    }

    /// Opens a segment, on a disk thread when it is not open yet.
    pub async fn segment(self: &Arc<Self>, number: SegmentNumber) -> Result<Arc<Segment>> {
        if let Some(segment) = self.loaded(number) {
            return Ok(segment);
        }
        let store = Arc::clone(self);
        self.pool.run(move || store.segment_blocking(number)).await
    }

    /// [`Store::segment`] for disk threads.
    pub fn segment_blocking(&self, number: SegmentNumber) -> Result<Arc<Segment>> {
        if let Some(segment) = self.loaded(number) {
            return Ok(segment);
        }
        if !self.known.read().contains(&number) {
            return Err(Error::NoSegment(number));
        }
        let opened = Arc::new(segment::open::open(self.dir(), number)?);
        let mut open = self.open.write();
        if open.len() >= self.options.open_segments {
            let victim =
                open.values().find(|segment| segment.is_sealed() && segment.unsettled() == 0);
            if let Some(victim) = victim.map(|segment| segment.number()) {
                open.remove(&victim);
            }
        }
        Ok(Arc::clone(open.entry(number).or_insert(opened)))
    }

    /// Makes a segment findable, in place of the one that had its number.
    pub(crate) fn register(&self, segment: Arc<Segment>) {
        let number = segment.number();
        self.known.write().insert(number);
        if let Some(old) = self.open.write().insert(number, segment) {
            old.retire();
        }
    }

    /// Tells followers that a segment changed.
    pub(crate) fn note_change(&self, number: SegmentNumber) {
        self.changes.lock().note(number);
        self.grown.raise();
    }

    /// Segments that changed since `seen` (0 for all), and the mark to ask with next. `None` when
    /// `seen` is too long ago: list all.
    pub fn changes_since(&self, seen: u64) -> (u64, Option<BTreeSet<SegmentNumber>>) {
        self.changes.lock().since(seen)
    }

    /// Numbers above `after`, in order, at most `limit`.
    pub fn list(&self, after: Option<SegmentNumber>, limit: usize) -> Vec<SegmentNumber> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.known.read().range((from, Bound::Unbounded)).take(limit).copied().collect()
    }

    /// Whether the folder has (at least the beginning of) a segment.
    pub fn has(&self, number: SegmentNumber) -> bool {
        self.known.read().contains(&number)
    }

    /// Segments in the folder.
    pub fn segment_count(&self) -> usize {
        self.known.read().len()
    }

    /// What a segment is. Blocking.
    pub fn describe(&self, number: SegmentNumber) -> Result<Known> {
        let segment = self.segment_blocking(number)?;
        let header = segment.header();
        Ok(Known {
            number,
            kind: header.kind,
            generation: header.generation,
            creator: header.creator,
            sealed: segment.is_sealed(),
            length: segment.durable(),
        })
    }

    /// Makes an empty packed segment: file, header, folder entries and marker, all synced. With
    /// `prewrite` its whole space is filled with zeros first, in steps, if there is room.
    pub(crate) fn create_packed(self: &Arc<Self>, prewrite: bool) -> Job<Fresh> {
        let store = Arc::clone(self);
        self.pool.run(move || {
            let number = (store.options.numbers)().ok_or(Error::NoNumbers)?;
            let header = store.header(number, SegmentKind::Packed);
            let mut fresh = store.create_packed_blocking(header)?;
            let bytes = store.options.segment_bytes;
            if prewrite && store.has_room(bytes).is_ok() {
                disk::fill_with_zeros(&fresh.file, fresh.segment.path(), HEADER_BYTES, bytes)?;
                fresh.prewritten = true;
            }
            Ok(fresh)
        })
    }

    pub(crate) fn create_packed_blocking(&self, header: SegmentHeader) -> Result<Fresh> {
        let (file, path) = self.create_file(header.number)?;
        disk::write_all_at(&file, &path, &header.encode(), 0)?;
        disk::sync_file(&file, &path)?;
        let reader = file.try_clone().map_err(|error| Error::io("duplicate", &path, error))?;
        let content = Segment::packed(SlotTable::active());
        let segment = Arc::new(Segment::new(header, path, reader, content, HEADER_BYTES, false));
        self.register(Arc::clone(&segment));
        Ok(Fresh { segment, file, prewritten: false })
    }

    /// A header of this node for a new segment.
    pub(crate) fn header(&self, number: SegmentNumber, kind: SegmentKind) -> SegmentHeader {
        SegmentHeader {
            kind,
            number,
            generation: 0,
            creator: self.options.node,
            created_ms: now_ms(),
        }
    }

    /// Makes a segment's file and its marker in `active/`, both findable after a power loss.
    pub(crate) fn create_file(&self, number: SegmentNumber) -> Result<(File, PathBuf)> {
        let path = self.dir().join(number.path());
        let folder = path.parent().unwrap_or(self.dir());
        let marker = self.marker(number);
        File::create(&marker).map_err(|error| Error::io("create", &marker, error))?;
        disk::sync_dir(&self.dir().join("active"))?;
        disk::create_dirs(self.dir(), folder)?;
        let file = disk::create_new(&path)?;
        disk::sync_dir(folder)?;
        Ok((file, path))
    }

    /// The file in `active/` that says: look at this segment after a crash.
    pub(crate) fn marker(&self, number: SegmentNumber) -> PathBuf {
        self.dir().join("active").join(format!("{:012x}", number.get()))
    }

    /// Seals a packed segment at its durable length: table written and mapped. Its marker goes
    /// when the catalog has confirmed all its records. On a disk thread.
    pub(crate) fn seal(self: &Arc<Self>, segment: Arc<Segment>) -> Job<()> {
        let store = Arc::clone(self);
        self.pool.run(move || store.seal_blocking(&segment))
    }

    pub(crate) fn seal_blocking(&self, segment: &Arc<Segment>) -> Result<()> {
        let (number, generation) = (segment.number(), segment.header().generation);
        if let Some(table) = segment.table() {
            table.write(segment.path(), number, generation, segment.durable())?;
        }
        // The segment stays the one that is registered (its table in memory) until the catalog has
        // confirmed its records, because it counts them; then the mapped one takes over.
        segment.set_sealed();
        self.note_change(number);
        if segment.unsettled() == 0 {
            self.settle_blocking(segment)?;
        }
        Ok(())
    }

    /// One record of `segment` is confirmed by the catalog (or needs no confirmation any more).
    pub fn settled(self: &Arc<Self>, segment: &Arc<Segment>) {
        if segment.settle_one() && segment.is_sealed() {
            let (store, segment) = (Arc::clone(self), Arc::clone(segment));
            // An error leaves the marker: the records are offered once more at the next start.
            drop(self.pool.run(move || {
                store.settle_blocking(&segment).inspect_err(|error| {
                    tracing::warn!(segment = %segment.number(), %error, "segment stays marked as active");
                })
            }));
        }
    }

    /// Takes the last steps of a sealed segment whose records are all confirmed. Both who seals and
    /// who confirms the last record come here; one of them does it.
    fn settle_blocking(&self, segment: &Arc<Segment>) -> Result<()> {
        if segment.is_retired() || !segment.is_sealed() || !segment.begin_settling() {
            return Ok(());
        }
        self.settle_once(segment).inspect_err(|_| segment.end_settling())
    }

    fn settle_once(&self, segment: &Arc<Segment>) -> Result<()> {
        let number = segment.number();
        // Marks set on the table in memory since it was written are written along.
        if let Some(table @ SlotTable::Active(_)) = segment.table() {
            table.write(segment.path(), number, segment.header().generation, segment.durable())?;
            // From here on a kill goes to the mapped table; one that came in between is carried over.
            let mapped = Arc::new(segment::open::open(self.dir(), number)?);
            self.register(Arc::clone(&mapped));
            for slot in 0..table.slots() {
                let slot = slot as u16;
                if table.get(slot).is_some_and(|entry| entry.dead) {
                    mapped.table().map(|table| table.kill(slot));
                }
            }
        }
        // What the catalog confirmed must survive a power loss by itself from here on.
        (self.options.barrier)()
            .map_err(|error| Error::io("make the catalog durable for", segment.path(), error))?;
        disk::remove_if_there(&self.marker(number))
    }

    /// The object lost its name: its slot is marked, a solo segment is unlinked. Readers that have
    /// it open go on. True when it had been alive. Blocking.
    pub fn kill(&self, object: ObjectId) -> Result<bool> {
        let segment = match self.segment_blocking(object.segment()) {
            Ok(segment) => segment,
            Err(Error::NoSegment(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        match segment.table() {
            Some(table) => {
                let killed = table.kill(object.slot());
                if segment.is_retired() {
                    // It was replaced meanwhile: mark the one that took over too.
                    if let Some(table) =
                        self.loaded(object.segment()).as_ref().and_then(|now| now.table())
                    {
                        table.kill(object.slot());
                    }
                }
                Ok(killed)
            }
            None => {
                self.forget(object.segment())?;
                Ok(true)
            }
        }
    }

    /// Removes a segment's files. Blocking.
    pub(crate) fn forget(&self, number: SegmentNumber) -> Result<()> {
        let path = self.dir().join(number.path());
        self.known.write().remove(&number);
        if let Some(segment) = self.open.write().remove(&number) {
            segment.retire();
        }
        disk::remove_if_there(&path)?;
        disk::remove_if_there(&table_path(&path))?;
        disk::remove_if_there(&self.marker(number))
    }
}
