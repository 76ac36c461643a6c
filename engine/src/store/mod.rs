//! A node's data folders: their segments, open and known, and what happens to them as a whole.

mod create;
mod dead;
mod folder;
mod gone;
mod handles;
mod rebuild;
mod settle;
mod shared;
mod stock;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::changes::Changes;
use crate::clock::Clock;
use crate::disk::{DiskPool, RealDisk, Volume};
use crate::error::{Error, Result};
use crate::format::segment_header::SegmentKind;
use crate::format::superblock::Superblock;
use crate::id::{ObjectId, SegmentNumber};
use crate::recover;
use crate::segment::{self, Located, Segment};
use crate::signal::Signal;
use crate::supply::Supplies;

pub(crate) use create::{Demand, Fresh, Source};
use dead::{Deferred, Unsynced};
use folder::list_and_tidy;
pub(crate) use folder::{Folder, Marker, list_segments};
pub use folder::{FolderOptions, FolderState};
use gone::Gone;
use handles::Handles;
use shared::Others;
pub use shared::{Place, node_folder};
use stock::Stock;
pub use stock::Stocking;

/// Gives the next segment number from the leases in hand; `None` when there is none.
pub type NumberSource = Arc<dyn Fn() -> Option<SegmentNumber> + Send + Sync>;

/// Makes durable what the catalog has committed so far; called on a disk thread.
pub type Barrier = Arc<dyn Fn() -> std::io::Result<()> + Send + Sync>;

/// How a node's data folders are opened.
#[derive(Clone)]
pub struct StoreOptions {
    /// The data folders: one a disk.
    pub folders: Vec<FolderOptions>,
    /// The root of a volume that all nodes of the group mount; the one data folder is this node's on it
    /// ([`node_folder`]). Segments in the others' are read, and never changed.
    pub shared: Option<PathBuf>,
    /// The cluster's name, at most 64 bytes.
    pub cluster: String,
    /// The node's id.
    pub node: u32,
    /// The node's group.
    pub group: u32,
    /// Bytes after which a packed segment is sealed; below 32 GiB.
    pub segment_bytes: u64,
    /// Bytes that uploads leave free in each folder, so that deletes and compaction still work.
    pub reserve_bytes: u64,
    /// Bytes of space written before that are kept ready for commits, over all folders; 0 for none.
    pub prewrite_bytes: u64,
    /// Segments that are kept open (one descriptor and one mapping each).
    pub open_segments: usize,
    /// Segments that are gone and remembered, so that they are not copied from a peer again; beyond, the lowest numbers
    /// go. A peer that was away for longer than that gives what is dead once more, and the sweep buries it again.
    pub remember_gone: usize,
    /// Where blocking calls are made; `None` for [`DISK_THREADS`] threads.
    pub pool: Option<DiskPool>,
    /// Where segment numbers come from.
    pub numbers: NumberSource,
    /// Called before a segment's records stop being offered to the catalog at a start.
    pub barrier: Barrier,
    /// Percent of dead bytes from which a segment is compacted.
    pub compact_dead_percent: u64,
    /// Milliseconds that the tombstone of a deleted name is kept after its object is gone, for a
    /// catalog that is made again from the segments.
    pub tombstone_keep_ms: u64,
}

/// Threads for blocking calls unless a pool is given.
pub const DISK_THREADS: usize = 4;

impl StoreOptions {
    /// Folders on this machine's file systems, and the defaults of the configuration.
    pub fn new(folders: impl IntoIterator<Item = PathBuf>, numbers: NumberSource) -> Self {
        let disk: Arc<dyn crate::disk::Disk> = Arc::new(RealDisk);
        let folders = folders
            .into_iter()
            .map(|path| FolderOptions { path, disk: Arc::clone(&disk) })
            .collect();
        Self {
            folders,
            shared: None,
            cluster: "reel".to_owned(),
            node: 1,
            group: 1,
            segment_bytes: 256 << 20,
            reserve_bytes: 0,
            prewrite_bytes: 1 << 30,
            open_segments: 4096,
            remember_gone: 65_536,
            pool: None,
            numbers,
            barrier: Arc::new(|| Ok(())),
            compact_dead_percent: 25,
            tombstone_keep_ms: 30 * 24 * 3600 * 1000,
        }
    }
}

/// What opening the data folders found.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Own segments whose records are to be offered to the catalog again, then settled.
    pub offer: Vec<SegmentNumber>,
    /// Bytes cut off behind the last good record, over all segments.
    pub cut_bytes: u64,
    /// Uploads that had not been complete, and are gone.
    pub unfinished: usize,
    /// Segments with a place in the middle where no record could be understood.
    pub holes: usize,
    /// Segments that hold records but whose header is damaged: set aside.
    pub damaged: Vec<SegmentNumber>,
    /// Segments whose table was damaged: their dead marks were found again from all tombstones.
    pub marks_lost: Vec<SegmentNumber>,
}

/// What a segment is, for whoever wants to copy it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its number.
    pub number: SegmentNumber,
    /// Packed or solo.
    pub kind: SegmentKind,
    /// How often it was compacted here.
    pub generation: u32,
    /// Of this writing: offsets hold for equal generation and salt.
    pub salt: u32,
    /// The node that made it.
    pub creator: u32,
    /// Durable bytes.
    pub length: u64,
    /// Whether it is complete.
    pub sealed: bool,
    /// It has records that are not confirmed yet: its node waits to hear who holds them.
    pub unsettled: bool,
}

/// A node's open data folders. One process owns them; its shards share the store.
pub struct Store {
    pub(crate) options: StoreOptions,
    pub(crate) folders: Vec<Folder>,
    superblock: Superblock,
    clock: Clock,
    pool: DiskPool,
    behind: DiskPool,
    handles: Handles,
    others: Option<Arc<Others>>,
    /// Every segment, and the folder it lies in.
    known: RwLock<BTreeMap<SegmentNumber, u16>>,
    /// Segments with a marker in `active/`.
    marked: Mutex<BTreeSet<SegmentNumber>>,
    /// Packed segments that this node made in a life whose disk was lost, and that come back from its peers. They are
    /// sealed when no peer can have more of them.
    own_copies: Mutex<BTreeSet<SegmentNumber>>,
    /// Dead objects whose segment was not open (or not here) when that was learned.
    pending_dead: Mutex<BTreeMap<SegmentNumber, BTreeSet<u16>>>,
    unsynced: Mutex<Unsynced>,
    deferred: Mutex<Deferred>,
    gone: Mutex<Gone>,
    /// Subfolders in which every rename and unlink of an earlier life is durable.
    settled_dirs: Mutex<BTreeSet<(u16, PathBuf)>>,
    /// Held (for writing) while a compacted segment takes the old one's place, (for reading) while
    /// dead marks are set or synced.
    pub(crate) switching: RwLock<()>,
    /// Held while slot tables are made anew.
    rebuilding: Mutex<()>,
    /// Segments worth compacting.
    candidates: Mutex<BTreeSet<SegmentNumber>>,
    pub(crate) supplies: Mutex<Supplies>,
    stock: Stock,
    changes: Mutex<Changes<SegmentNumber>>,
    grown: Signal,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("folders", &self.folders).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the data folders, making those that are not there, and recovers the segments that were
    /// active at a crash. Blocking: call it before the shards start.
    ///
    /// A folder whose disk fails is left out (its objects are not here until it works again), as long
    /// as one folder works.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::ForeignFolder`], [`Error::UnknownFormat`], [`Error::Damaged`] for
    /// the superblock, and I/O errors when no folder works.
    pub fn open(options: StoreOptions) -> Result<(Arc<Self>, Recovery)> {
        let folders: Vec<Folder> = options.folders.iter().map(Folder::new).collect();
        let mut superblock: Option<Superblock> = None;
        let mut known = BTreeMap::new();
        let mut failure = None;
        for (index, folder) in folders.iter().enumerate() {
            let instance = superblock.as_ref().map(|superblock| superblock.instance);
            let opened = folder.open(&options, instance).and_then(|superblock| {
                Ok((superblock, list_and_tidy(&folder.volume, &folder.path)?))
            });
            match opened {
                Ok((found, numbers)) => {
                    superblock.get_or_insert(found);
                    known.extend(numbers.into_iter().map(|number| (number, index as u16)));
                }
                Err(error) if error.is_disk() && folders.len() > 1 => {
                    folder.fail(&error);
                    failure = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        let (Some(superblock), Some(first)) = (superblock, folders.first()) else {
            return Err(failure.unwrap_or(Error::NoFolder("none is configured".to_owned())));
        };
        let (pool, behind) = match &options.pool {
            Some(pool) => (pool.clone(), pool.clone()),
            None => DiskPool::start(DISK_THREADS)
                .and_then(|pool| Ok((pool, DiskPool::start_behind()?)))
                .map_err(|error| Error::io("start disk threads for", &first.path, error))?,
        };
        let store = Arc::new(Self {
            clock: Clock::new(options.node, first.volume.clone()),
            pool,
            behind,
            handles: Handles::new(options.open_segments),
            others: match options.shared.clone() {
                Some(root) => Some(Arc::new(
                    Others::new(root, first.volume.clone(), &options)
                        .map_err(|error| Error::io("start disk threads for", &first.path, error))?,
                )),
                None => None,
            },
            known: RwLock::new(known),
            marked: Mutex::default(),
            own_copies: Mutex::default(),
            pending_dead: Mutex::default(),
            unsynced: Mutex::default(),
            deferred: Mutex::default(),
            gone: Mutex::default(),
            settled_dirs: Mutex::default(),
            switching: RwLock::default(),
            rebuilding: Mutex::default(),
            candidates: Mutex::default(),
            supplies: Mutex::default(),
            stock: Stock::default(),
            changes: Mutex::default(),
            grown: Signal::default(),
            superblock,
            folders,
            options,
        });
        store.load_deferred()?;
        store.load_gone()?;
        let recovery = recover::recover(&store)?;
        store.remove_gone()?;
        Ok((store, recovery))
    }

    /// The node's clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Who the folders belong to.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The threads for blocking file calls.
    pub fn pool(&self) -> &DiskPool {
        &self.pool
    }

    /// The thread for calls that nobody waits for, at the lowest priority.
    pub fn behind(&self) -> &DiskPool {
        &self.behind
    }

    /// Rises whenever a segment grew, was sealed or came to be.
    pub fn grown(&self) -> &Signal {
        &self.grown
    }

    /// The data folders as an operator sees them.
    pub fn folder_states(&self) -> Vec<FolderState> {
        self.folders.iter().map(Folder::state).collect()
    }

    /// Asks the file systems how much is free, and probes folders that had failed. Blocking.
    pub fn refresh_space(self: &Arc<Self>) {
        for (index, folder) in self.folders.iter().enumerate() {
            if folder.is_failed() {
                if folder.asking(|| self.reopen(index as u16)).is_ok() {
                    folder.recovered();
                }
            } else if let Err(error) = folder.asking(|| folder.refresh_space()) {
                folder.fail(&error);
            } else {
                self.release_stock(index as u16);
            }
        }
    }

    /// To be called while [`Store::refresh_space`] has not come back: a folder that lets it wait for longer than
    /// `patience` is silent. It takes no segments, and what lies there is not waited for.
    pub fn note_silence(&self, patience: Duration) {
        self.folders.iter().for_each(|folder| folder.note_silence(patience));
    }

    /// Whether the disk answers that a segment lies on; another node's lies on the volume of the first folder.
    ///
    /// # Errors
    /// [`Error::Silent`].
    pub fn check_answers(&self, segment: &Segment) -> Result<()> {
        let folder = self.folders.get(segment.folder() as usize).or(self.folders.first());
        folder.map_or(Ok(()), Folder::check_answers)
    }

    /// Takes a folder that had failed back into use, if its disk works.
    fn reopen(self: &Arc<Self>, index: u16) -> Result<()> {
        let folder = self.folder(index);
        if !folder.is_recovered() {
            // Its start failed: it is begun once more.
            folder.open(&self.options, Some(self.superblock.instance))?;
            let numbers = list_and_tidy(&folder.volume, &folder.path)?;
            let mut known = self.known.write();
            for number in numbers {
                known.entry(number).or_insert(index);
            }
            drop(known);
            recover::recover_folder(self, index)?;
        }
        folder.probe()
    }

    /// Free and total bytes of the folders that work, as of the last [`Store::refresh_space`].
    pub fn space(&self) -> (u64, u64) {
        let working = self.folders.iter().filter(|folder| !folder.is_failed());
        working.fold((0, 0), |sum, folder| (sum.0 + folder.free(), sum.1 + folder.total()))
    }

    /// Bytes that uploads leave free in each folder.
    pub fn reserve_bytes(&self) -> u64 {
        self.options.reserve_bytes
    }

    /// Whether an upload of `bytes` would leave the reserve free in some folder.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::NoFolder`].
    pub fn has_room(&self, bytes: u64) -> Result<()> {
        let folder = self.folder(self.place()?);
        if folder.free() < self.options.reserve_bytes.saturating_add(bytes) {
            return Err(Error::NoSpace { path: folder.path.clone() });
        }
        Ok(())
    }

    /// The folder a new segment goes to: the one with the most free space of those that work.
    pub(crate) fn place(&self) -> Result<u16> {
        let working = self.folders.iter().enumerate().filter(|(_, folder)| !folder.is_failed());
        // The first of equals, so that a simulation repeats itself.
        let best = working.min_by_key(|(_, folder)| std::cmp::Reverse(folder.free()));
        best.map(|(index, _)| index as u16).ok_or_else(|| {
            let reasons = self.folder_states().into_iter().filter_map(|state| state.failed);
            Error::NoFolder(reasons.collect::<Vec<_>>().join("; "))
        })
    }

    pub(crate) fn folder(&self, index: u16) -> &Folder {
        &self.folders[index as usize]
    }

    /// The folder that a segment lies in.
    pub(crate) fn folder_of(&self, number: SegmentNumber) -> Option<u16> {
        self.known.read().get(&number).copied()
    }

    /// A folder whose file system had no space left takes no new segments until it is asked again.
    pub(crate) fn note_full(&self, folder: u16) {
        self.folder(folder).note_full();
    }

    /// A folder whose disk gave an error takes no new segments until it is probed well. Passes the
    /// error on.
    pub fn note_failure(&self, folder: u16, error: Error) -> Error {
        if error.is_disk() {
            self.folder(folder).fail(&error);
        }
        error
    }

    /// A segment that is open already: one lock, no system call.
    #[inline]
    pub fn loaded(&self, number: SegmentNumber) -> Option<Arc<Segment>> {
        self.handles.get(number)
    }

    /// Where a living object of an open segment lies: one lock, no system call, no allocation. `None`
    /// also when the segment is not open: [`Store::segment`] opens it.
    #[inline]
    pub fn lookup(&self, object: ObjectId) -> Option<Located> {
        self.handles.with(object.segment(), |segment| segment.locate(object.slot())).flatten()
    }

    /// Opens a segment, on a disk thread when it is not open yet.
    pub async fn segment(self: &Arc<Self>, number: SegmentNumber) -> Result<Arc<Segment>> {
        if let Some(segment) = self.loaded(number) {
            return Ok(segment);
        }
        if let Some(index) = self.folder_of(number) {
            self.folder(index).check_answers()?;
        }
        let store = Arc::clone(self);
        self.pool.run(move || store.segment_blocking(number)).await
    }

    /// [`Store::segment`] for disk threads.
    pub fn segment_blocking(&self, number: SegmentNumber) -> Result<Arc<Segment>> {
        if let Some(segment) = self.loaded(number) {
            return Ok(segment);
        }
        let Some(index) = self.folder_of(number) else { return Err(Error::NoSegment(number)) };
        let folder = self.folder(index);
        let path = folder.path.join(number.path());
        let opened = segment::open::open(&folder.volume, index, &path, number)
            .map_err(|error| self.note_failure(index, error))?;
        let segment = match opened {
            segment::open::Opened::Ready(segment) => segment,
            segment::open::Opened::NoTable { header, file } => {
                self.rebuild(number, header, file)?
            }
        };
        let segment = self.handles.add(segment);
        if !self.known.read().contains_key(&number) {
            // Removed while it was opened.
            self.handles.remove(number);
            return Err(Error::NoSegment(number));
        }
        match self.kill_pending(&segment) {
            // A disk that has become read-only is still read; what is dead stays pending.
            Err(error) if error.is_disk() => {}
            killed => killed?,
        }
        if segment.is_solo() && !self.has(number) {
            return Err(Error::NoSegment(number));
        }
        self.consider(&segment);
        Ok(segment)
    }

    /// Makes a segment findable, in place of the one that had its number.
    pub(crate) fn register(&self, segment: Arc<Segment>) {
        self.known.write().insert(segment.number(), segment.folder());
        self.handles.replace(segment);
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
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.known
            .read()
            .range((from, Bound::Unbounded))
            .map(|(number, _)| *number)
            .take(limit)
            .collect()
    }

    /// Whether the folders have (at least the beginning of) a segment.
    pub fn has(&self, number: SegmentNumber) -> bool {
        self.known.read().contains_key(&number)
    }

    /// Segments in the folders.
    pub fn segment_count(&self) -> usize {
        self.known.read().len()
    }

    pub(crate) fn note_own_copy(&self, number: SegmentNumber) {
        self.own_copies.lock().insert(number);
    }

    /// Packed segments of this node's own making that are copies, and not complete.
    pub(crate) fn own_copies(&self) -> Vec<SegmentNumber> {
        self.own_copies.lock().iter().copied().collect()
    }

    /// Segments that would be read at a start: they are being written, or not all of their records are confirmed.
    pub fn marked(&self) -> Vec<SegmentNumber> {
        self.marked.lock().iter().copied().collect()
    }

    /// How many those are.
    pub fn marked_count(&self) -> usize {
        self.marked.lock().len()
    }

    /// What a segment is. Blocking.
    pub fn describe(&self, number: SegmentNumber) -> Result<Known> {
        let segment = self.segment_blocking(number)?;
        let header = segment.header();
        Ok(Known {
            number,
            kind: header.kind,
            generation: header.generation,
            salt: header.salt,
            creator: header.creator,
            sealed: segment.is_sealed(),
            length: segment.durable(),
            unsettled: self.is_marked(number),
        })
    }

    /// The volume of a folder, for what reads and writes beside the store.
    pub(crate) fn volume(&self, index: u16) -> &Volume {
        &self.folder(index).volume
    }
}
