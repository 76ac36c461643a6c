//! A disk in memory that knows what is synced and what is not, and crashes.
//!
//! At a power loss it keeps an arbitrary, seed-chosen subset of what was not synced: writes torn
//! between sectors of 512 bytes and reordered, folder entries lost, renames without the data they
//! name, lengths ahead of contents. Sectors themselves are whole: old or new (what SQLite calls
//! "powersafe overwrite"). It can also fail calls, fill up, write short, and flip bits.

mod file;
mod inode;
mod rng;
mod state;

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;

pub use rng::Rng;

use super::{Disk, Listed, LockError, Map, Mode, RawFile, SyncPoint};
use file::SimFile;
use inode::Inode;
use state::{Entry, FolderChange, State, eio};

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

/// The disk; clones are the same disk, in the life they were made in.
#[derive(Debug, Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    life: u64,
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
        Self { state: Arc::new(Mutex::new(State::new(seed, entries))), life: 0 }
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
