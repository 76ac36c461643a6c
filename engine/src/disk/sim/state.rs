//! What is in a simulated disk, what of it is durable, and when calls fail or are the last.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::inode::Inode;
use super::rng::Rng;
use super::{Counts, Faults, SyncPoint};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Folder,
    File(u64),
}

/// A change of a folder that is not durable.
#[derive(Debug, Clone)]
pub(super) enum FolderChange {
    Add(PathBuf, Entry),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, Entry),
}

impl FolderChange {
    pub(super) fn folder(&self) -> Option<&Path> {
        match self {
            Self::Add(path, _) | Self::Remove(path) | Self::Rename(_, path, _) => path.parent(),
        }
    }

    pub(super) fn apply(&self, entries: &mut BTreeMap<PathBuf, Entry>) {
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
pub(super) struct State {
    pub(super) rng: Rng,
    pub(super) entries: BTreeMap<PathBuf, Entry>,
    pub(super) durable: BTreeMap<PathBuf, Entry>,
    pub(super) pending: Vec<FolderChange>,
    pub(super) inodes: BTreeMap<u64, Inode>,
    pub(super) next: u64,
    pub(super) now_ms: u64,
    /// Calls until the crash.
    pub(super) fuse: Option<u64>,
    /// The sync at which it crashes, after so many more of its kind.
    pub(super) fuse_at: Option<(SyncPoint, u64)>,
    pub(super) dead: bool,
    /// Handles of an earlier life do nothing.
    pub(super) life: u64,
    pub(super) faults: Faults,
    /// Folders whose every call fails.
    pub(super) broken: BTreeSet<PathBuf>,
    pub(super) capacity: u64,
    pub(super) skip: Option<SyncPoint>,
    pub(super) counts: Counts,
}

pub(super) fn eio() -> io::Error {
    Errno::IO.into()
}

impl State {
    /// A disk on which `entries` are durable.
    pub(super) fn new(seed: u64, entries: BTreeMap<PathBuf, Entry>) -> Self {
        Self {
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
        }
    }

    /// One call of the life `life`: counts, and crashes when it is time. `Ok(true)`: this is the
    /// last call, its effect is up to chance.
    pub(super) fn call(&mut self, life: u64, path: &Path) -> io::Result<bool> {
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
    pub(super) fn dies_at(&mut self, point: SyncPoint) -> bool {
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

    pub(super) fn fault(&mut self, share: u32, error: Errno) -> io::Result<()> {
        if share > 0 && self.rng.chance(share) {
            self.counts.faults += 1;
            return Err(error.into());
        }
        Ok(())
    }

    pub(super) fn used(&self) -> u64 {
        let files = self.entries.values().filter_map(|entry| match entry {
            Entry::File(inode) => self.inodes.get(inode),
            Entry::Folder => None,
        });
        files.map(|inode| inode.len() as u64).sum()
    }

    pub(super) fn change(&mut self, change: FolderChange) {
        change.apply(&mut self.entries);
        self.pending.push(change);
    }

    pub(super) fn file(&self, path: &Path) -> io::Result<u64> {
        match self.entries.get(path) {
            Some(Entry::File(inode)) => Ok(*inode),
            Some(Entry::Folder) => Err(Errno::ISDIR.into()),
            None => Err(Errno::NOENT.into()),
        }
    }

    pub(super) fn lose_power(&mut self) {
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
