//! A disk in memory that knows what is synced and what is not, and crashes.
//!
//! At a power loss it keeps an arbitrary, seed-chosen subset of what was not synced: writes torn
//! between sectors of 512 bytes and reordered, folder entries lost, renames without the data they
//! name, lengths ahead of contents. Sectors themselves are whole: old or new (what SQLite calls
//! "powersafe overwrite"). It can also fail calls, fill up, write short, and flip bits.

mod inode;
mod rng;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;

pub use rng::Rng;

use super::{Disk, Listed, LockError, Map, Mode, RawFile, SyncPoint};
use inode::{Inode, SECTOR};

/// How often calls fail, each in shares of 10,000.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Reads that give EIO.
    pub read: u32,
    /// Writes that give EIO.
    pub write: u32,
    /// Syncs of files and folders that give EIO; what they should have kept is not kept.
    pub sync: u32,
    /// Writes that write less than they were given.
    pub short: u32,
    /// Writes and new files that find no space.
    pub full: u32,
}

/// What happened, for the simulator's report.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Calls made.
    pub calls: u64,
    /// Syncs made.
    pub syncs: u64,
    /// Power losses.
    pub power_losses: u64,
    /// Unsynced sectors that a power loss kept.
    pub sectors_kept: u64,
    /// Unsynced sectors that a power loss took.
    pub sectors_lost: u64,
    /// Unsynced folder entries that a power loss kept or took.
    pub entries_torn: u64,
    /// Calls that failed on purpose.
    pub faults: u64,
    /// Bits flipped.
    pub flips: u64,
}

impl Counts {
    /// Adds another disk's.
    pub fn add(&mut self, more: &Self) {
        self.calls += more.calls;
        self.syncs += more.syncs;
        self.power_losses += more.power_losses;
        self.sectors_kept += more.sectors_kept;
        self.sectors_lost += more.sectors_lost;
        self.entries_torn += more.entries_torn;
        self.faults += more.faults;
        self.flips += more.flips;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Folder,
    File(u64),
}

/// A change of a folder that is not durable.
#[derive(Debug, Clone)]
enum FolderChange {
    Add(PathBuf, Entry),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, Entry),
}

impl FolderChange {
    fn folder(&self) -> Option<&Path> {
        match self {
            Self::Add(path, _) | Self::Remove(path) | Self::Rename(_, path, _) => path.parent(),
        }
    }

    fn apply(&self, entries: &mut BTreeMap<PathBuf, Entry>) {
        match self {
            Self::Add(path, entry) => drop(entries.insert(path.clone(), *entry)),
            Self::Remove(path) => drop(entries.remove(path)),
            Self::Rename(from, to, entry) => {
                entries.remove(from);
                entries.insert(to.clone(), *entry);
            }
        }
    }
}

#[derive(Debug)]
struct State {
    rng: Rng,
    entries: BTreeMap<PathBuf, Entry>,
    durable: BTreeMap<PathBuf, Entry>,
    pending: Vec<FolderChange>,
    inodes: BTreeMap<u64, Inode>,
    next: u64,
    now_ms: u64,
    /// Calls until the crash.
    fuse: Option<u64>,
    /// The sync at which it crashes, after so many more of its kind.
    fuse_at: Option<(SyncPoint, u64)>,
    dead: bool,
    /// Handles of an earlier life do nothing.
    life: u64,
    faults: Faults,
    /// Folders whose every call fails.
    broken: BTreeSet<PathBuf>,
    capacity: u64,
    skip: Option<SyncPoint>,
    counts: Counts,
}

/// The disk; clones are the same disk, in the life they were made in.
#[derive(Debug, Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    life: u64,
}

fn eio() -> io::Error {
    Errno::IO.into()
}

impl State {
    /// One call of the life `life`: counts, and crashes when it is time. `Ok(true)`: this is the
    /// last call, its effect is up to chance.
    fn call(&mut self, life: u64, path: &Path) -> io::Result<bool> {
        if self.dead || life != self.life {
            return Err(eio());
        }
        self.counts.calls += 1;
        if self.broken.iter().any(|folder| path.starts_with(folder)) {
            self.counts.faults += 1;
            return Err(eio());
        }
        match &mut self.fuse {
            Some(0) => {
                self.dead = true;
                if self.rng.chance(5_000) { Ok(true) } else { Err(eio()) }
            }
            Some(left) => {
                *left -= 1;
                Ok(false)
            }
            None => Ok(false),
        }
    }

    /// Whether the process dies with this sync.
    fn dies_at(&mut self, point: SyncPoint) -> bool {
        match &mut self.fuse_at {
            Some((at, 0)) if *at == point => {
                self.fuse_at = None;
                self.dead = self.rng.chance(5_000);
                if !self.dead {
                    self.fuse = Some(self.rng.below(5));
                }
                self.dead
            }
            Some((at, left)) if *at == point => {
                *left -= 1;
                false
            }
            _ => false,
        }
    }

    fn fault(&mut self, share: u32, error: Errno) -> io::Result<()> {
        if share > 0 && self.rng.chance(share) {
            self.counts.faults += 1;
            return Err(error.into());
        }
        Ok(())
    }

    fn used(&self) -> u64 {
        let files = self.entries.values().filter_map(|entry| match entry {
            Entry::File(inode) => self.inodes.get(inode),
            Entry::Folder => None,
        });
        files.map(|inode| inode.len() as u64).sum()
    }

    fn change(&mut self, change: FolderChange) {
        change.apply(&mut self.entries);
        self.pending.push(change);
    }

    fn file(&self, path: &Path) -> io::Result<u64> {
        match self.entries.get(path) {
            Some(Entry::File(inode)) => Ok(*inode),
            Some(Entry::Folder) => Err(Errno::ISDIR.into()),
            None => Err(Errno::NOENT.into()),
        }
    }
}

impl SimDisk {
    /// An empty disk with the folders of `folders`, which are durable.
    pub fn new(seed: u64, folders: &[&Path]) -> Self {
        let mut entries = BTreeMap::new();
        for folder in folders {
            for ancestor in folder.ancestors() {
                entries.insert(ancestor.to_owned(), Entry::Folder);
            }
        }
        let state = State {
            rng: Rng::new(seed),
            durable: entries.clone(),
            entries,
            pending: Vec::new(),
            inodes: BTreeMap::new(),
            next: 1,
            now_ms: 1_700_000_000_000,
            fuse: None,
            fuse_at: None,
            dead: false,
            life: 0,
            faults: Faults::default(),
            broken: BTreeSet::new(),
            capacity: u64::MAX,
            skip: None,
            counts: Counts::default(),
        };
        Self { state: Arc::new(Mutex::new(state)), life: 0 }
    }

    /// The process dies at the call after `calls` more.
    pub fn crash_after(&self, calls: u64) {
        self.state.lock().fuse = Some(calls);
    }

    /// The process dies when it asks for a sync of this kind, after so many more: just before the
    /// sync, or a few calls behind it.
    pub fn crash_at(&self, point: SyncPoint, syncs: u64) {
        self.state.lock().fuse_at = Some((point, syncs));
    }

    /// The machine's clock goes on from `other`'s: this disk takes the place of that one.
    pub fn follow_clock(&self, other: &Self) {
        let now = other.state.lock().now_ms;
        self.state.lock().now_ms = now;
    }

    /// It does not crash any more, unless told so anew.
    pub fn calm(&self) {
        let mut state = self.state.lock();
        (state.fuse, state.fuse_at) = (None, None);
    }

    /// Whether it has died.
    pub fn is_dead(&self) -> bool {
        self.state.lock().dead
    }

    /// The process's next life; with `power` lost in between, what was not synced is torn.
    pub fn restart(&self, power: bool) -> Self {
        let mut state = self.state.lock();
        state.life += 1;
        state.dead = false;
        state.fuse = None;
        state.fuse_at = None;
        // A restart takes its time.
        state.now_ms += 1_000;
        if power {
            state.lose_power();
        } else {
            for inode in state.inodes.values_mut() {
                inode.detach();
            }
        }
        Self { state: Arc::clone(&self.state), life: state.life }
    }

    /// How often calls fail from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    /// Every call below `folder` fails from now on, or none any more.
    pub fn set_broken(&self, folder: &Path, broken: bool) {
        let mut state = self.state.lock();
        if broken {
            state.broken.insert(folder.to_owned());
        } else {
            state.broken.remove(folder);
        }
    }

    /// Bytes that fit.
    pub fn set_capacity(&self, bytes: u64) {
        self.state.lock().capacity = bytes;
    }

    /// Syncs at this point do nothing from now on.
    pub fn skip_sync(&self, point: SyncPoint) {
        self.state.lock().skip = Some(point);
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.state.lock().counts
    }

    /// Files and their lengths in bytes, sorted.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let state = self.state.lock();
        let files = state.entries.iter().filter_map(|(path, entry)| match entry {
            Entry::File(inode) => Some((path.clone(), state.inodes.get(inode)?.len() as u64)),
            Entry::Folder => None,
        });
        files.collect()
    }

    /// Flips a bit of a file as it lies on the disk.
    pub fn flip(&self, path: &Path, bit: u64) {
        let mut state = self.state.lock();
        if let Ok(inode) = state.file(path)
            && let Some(inode) = state.inodes.get_mut(&inode)
        {
            inode.flip(bit as usize);
            state.counts.flips += 1;
        }
    }
}

impl State {
    fn lose_power(&mut self) {
        tracing::trace!("power lost");
        self.counts.power_losses += 1;
        let share = match self.rng.below(4) {
            0 => 0,
            1 => 10_000,
            _ => 5_000,
        };
        for change in std::mem::take(&mut self.pending) {
            self.counts.entries_torn += 1;
            if self.rng.chance(share) {
                change.apply(&mut self.durable);
            }
        }
        // What lies in a folder that is not there is not there either.
        let durable = &self.durable;
        let lost: Vec<PathBuf> = durable
            .keys()
            .filter(|path| path.ancestors().skip(1).any(|folder| !durable.contains_key(folder)))
            .cloned()
            .collect();
        for path in lost {
            self.durable.remove(&path);
        }
        self.entries = self.durable.clone();
        let alive: BTreeSet<u64> = self
            .entries
            .values()
            .filter_map(|entry| match entry {
                Entry::File(inode) => Some(*inode),
                Entry::Folder => None,
            })
            .collect();
        self.inodes.retain(|inode, _| alive.contains(inode));
        let Self { inodes, rng, counts, .. } = self;
        for inode in inodes.values_mut() {
            let torn = inode.crash(rng);
            counts.sectors_kept += torn.sectors_kept;
            counts.sectors_lost += torn.sectors_lost;
        }
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Box<dyn RawFile>> {
        let mut state = self.state.lock();
        state.call(self.life, path)?;
        tracing::trace!(path = %path.display(), ?mode, "open");
        let inode = match mode {
            Mode::Read | Mode::ReadDirect | Mode::Write | Mode::WriteThrough => state.file(path)?,
            Mode::Create | Mode::CreateDirect => {
                let full = state.faults.full;
                state.fault(full, Errno::NOSPC)?;
                if state.entries.contains_key(path) {
                    return Err(Errno::EXIST.into());
                }
                if path.parent().is_none_or(|parent| !state.entries.contains_key(parent)) {
                    return Err(Errno::NOENT.into());
                }
                let inode = state.next;
                state.next += 1;
                state.inodes.insert(inode, Inode::default());
                state.change(FolderChange::Add(path.to_owned(), Entry::File(inode)));
                inode
            }
        };
        Ok(Box::new(SimFile { disk: self.clone(), inode, path: path.to_owned(), mode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.call(self.life, from)?;
        tracing::trace!(from = %from.display(), to = %to.display(), "rename");
        let inode = state.file(from)?;
        state.change(FolderChange::Rename(from.to_owned(), to.to_owned(), Entry::File(inode)));
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.call(self.life, path)?;
        tracing::trace!(path = %path.display(), "unlink");
        state.file(path)?;
        state.change(FolderChange::Remove(path.to_owned()));
        Ok(())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.call(self.life, path)?;
        if state.entries.contains_key(path) {
            return Err(Errno::EXIST.into());
        }
        if path.parent().is_none_or(|parent| !state.entries.contains_key(parent)) {
            return Err(Errno::NOENT.into());
        }
        let full = state.faults.full;
        state.fault(full, Errno::NOSPC)?;
        state.change(FolderChange::Add(path.to_owned(), Entry::Folder));
        Ok(())
    }

    fn sync_dir(&self, path: &Path, point: SyncPoint) -> io::Result<()> {
        let mut state = self.state.lock();
        let last = state.call(self.life, path)?;
        state.counts.syncs += 1;
        tracing::trace!(path = %path.display(), ?point, last, "sync_dir");
        if state.dies_at(point) {
            return Err(eio());
        }
        if state.skip == Some(point) || last {
            return Ok(());
        }
        let (of, others): (Vec<_>, Vec<_>) = std::mem::take(&mut state.pending)
            .into_iter()
            .partition(|change| change.folder() == Some(path));
        state.pending = others;
        let share = state.faults.sync;
        let failed = state.fault(share, Errno::IO);
        if failed.is_err() {
            // Folders are journalled: what is not written yet stays to be written, or the file system
            // ends altogether. Only data pages are forgotten by a failed sync.
            state.pending.extend(of);
            return failed;
        }
        for change in of {
            change.apply(&mut state.durable);
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Listed>> {
        let mut state = self.state.lock();
        state.call(self.life, path)?;
        if state.entries.get(path) != Some(&Entry::Folder) {
            return Err(Errno::NOENT.into());
        }
        let mut found = Vec::new();
        for (child, entry) in state.entries.range(path.to_owned()..) {
            if !child.starts_with(path) {
                break;
            }
            if child.parent() == Some(path)
                && let Some(name) = child.file_name().and_then(|name| name.to_str())
            {
                found.push(Listed { name: name.to_owned(), is_dir: *entry == Entry::Folder });
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        let mut state = self.state.lock();
        state.call(self.life, path)?;
        let total = state.capacity.min(1 << 40);
        Ok((total.saturating_sub(state.used()), total))
    }

    fn lock(&self, path: &Path, _line: &str) -> Result<Box<dyn Any + Send + Sync>, LockError> {
        self.state.lock().call(self.life, path).map_err(LockError::Io)?;
        Ok(Box::new(()))
    }

    fn random(&self) -> io::Result<u128> {
        Ok(u128::from(self.state.lock().rng.bits()))
    }

    fn now_ms(&self) -> u64 {
        let mut state = self.state.lock();
        state.now_ms += state.rng.below(3);
        state.now_ms
    }

    fn pause(&self, _time: Duration) {}
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: u64,
    path: PathBuf,
    mode: Mode,
}

impl SimFile {
    /// Makes one call; `run` gets the file, and whether the process dies with this call.
    fn call<T>(&self, run: impl FnOnce(&mut State, u64, bool) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state.lock();
        let last = state.call(self.disk.life, &self.path)?;
        if !state.inodes.contains_key(&self.inode) {
            return Err(eio());
        }
        let result = run(&mut state, self.inode, last);
        tracing::trace!(path = %self.path.display(), inode = self.inode, last, "call");
        if last { Err(eio()) } else { result }
    }
}

fn inode(state: &mut State, inode: u64) -> io::Result<&mut Inode> {
    state.inodes.get_mut(&inode).ok_or_else(eio)
}

impl RawFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.call(|state, at, _| {
            let share = state.faults.read;
            state.fault(share, Errno::IO)?;
            let file = inode(state, at)?;
            Ok(if self.mode == Mode::ReadDirect {
                file.read_from_disk(buffer, offset as usize)
            } else {
                file.read(buffer, offset as usize)
            })
        })
    }

    fn is_resident(&self, _offset: u64, _length: u64) -> bool {
        false
    }

    fn reopen_direct(&self) -> io::Result<Option<std::fs::File>> {
        Ok(None)
    }

    fn read_resident(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.call(|state, at, _| {
            // Half of the pages are resident.
            if state.rng.chance(5_000) {
                return Ok(0);
            }
            Ok(inode(state, at)?.read(buffer, offset as usize))
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.call(|state, at, _| {
            let faults = state.faults;
            state.fault(faults.write, Errno::IO)?;
            state.fault(faults.full, Errno::NOSPC)?;
            let mut length = bytes.len();
            if length > SECTOR && state.rng.chance(faults.short) {
                state.counts.faults += 1;
                length = 1 + state.rng.below(length as u64 - 1) as usize;
            }
            tracing::trace!(inode = at, offset, length, "write");
            let grows = (offset + length as u64).saturating_sub(inode(state, at)?.len() as u64);
            if grows > 0 && state.used() + grows > state.capacity {
                return Err(Errno::NOSPC.into());
            }
            let through = self.mode == Mode::WriteThrough;
            inode(state, at)?.write(&bytes[..length], offset as usize, through);
            Ok(length)
        })
    }

    fn sync(&self, point: SyncPoint) -> io::Result<()> {
        self.call(|state, at, last| {
            state.counts.syncs += 1;
            tracing::trace!(inode = at, ?point, "sync");
            if state.dies_at(point) {
                return Err(eio());
            }
            if state.skip == Some(point) {
                return Ok(());
            }
            let share = state.faults.sync;
            let failed = state.fault(share, Errno::IO);
            let State { inodes, rng, .. } = state;
            let Some(file) = inodes.get_mut(&at) else { return Err(eio()) };
            if failed.is_err() {
                file.fail_sync(rng);
            } else if !last && self.mode == Mode::WriteThrough {
                file.sync_through();
            } else if !last {
                file.sync();
            }
            failed
        })
    }

    fn length(&self) -> io::Result<u64> {
        self.call(|state, at, _| Ok(inode(state, at)?.len() as u64))
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.call(|state, at, _| {
            tracing::trace!(inode = at, bytes, "set_len");
            inode(state, at)?.set_len(bytes as usize);
            Ok(())
        })
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.call(|state, at, _| {
            let grows = bytes.saturating_sub(inode(state, at)?.len() as u64);
            if grows > 0 && state.used() + grows > state.capacity {
                return Err(Errno::NOSPC.into());
            }
            if grows > 0 {
                inode(state, at)?.set_len(bytes as usize);
            }
            Ok(())
        })
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.call(|state, at, _| {
            let file = inode(state, at)?;
            let end = ((offset + length) as usize).min(file.len());
            if (offset as usize) < end {
                file.write(&vec![0; end - offset as usize], offset as usize, false);
            }
            Ok(())
        })
    }

    fn map(&self) -> io::Result<Map> {
        self.call(|state, at, _| Ok(Map::shared(inode(state, at)?.map())))
    }

    fn std(&self) -> Option<&File> {
        None
    }

    fn direct(&self) -> Option<&File> {
        None
    }
}
