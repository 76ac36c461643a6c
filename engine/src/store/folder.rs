//! A data folder: who owns it, whose it is, which segments it has, whether it works.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::StoreOptions;
use crate::disk::{Disk, SyncPoint, Volume};
use crate::error::{Error, Result};
use crate::format::superblock::Superblock;
use crate::format::{FORMAT, FormatError};
use crate::id::SegmentNumber;
use crate::segment::open::read_header;
use crate::slots::table_path;

/// Where a data folder is.
#[derive(Debug, Clone)]
pub struct FolderOptions {
    /// Its path.
    pub path: PathBuf,
    /// The disk it lies on.
    pub disk: Arc<dyn Disk>,
}

/// What an operator sees of a data folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderState {
    /// Its path.
    pub path: PathBuf,
    /// Free bytes.
    pub free: u64,
    /// Total bytes.
    pub total: u64,
    /// Why it takes no new segments; `None` when all is well.
    pub failed: Option<String>,
}

/// An open data folder.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    pub(crate) volume: Volume,
    free: AtomicU64,
    total: AtomicU64,
    failing: AtomicBool,
    /// When a call was made that tells whether the disk answers; `None` when none is under way.
    asked: Mutex<Option<Instant>>,
    silent: AtomicBool,
    failed: Mutex<Option<String>>,
    recovered: AtomicBool,
    /// Subfolders whose entries were synced in this life: what an earlier one made without syncing it
    /// looks the same.
    durable: Mutex<BTreeSet<PathBuf>>,
    /// Holds the lock as long as the folder is used; `None` while it could not be opened.
    lock: Mutex<Option<Box<dyn Any + Send + Sync>>>,
}

impl Folder {
    pub(crate) fn new(options: &FolderOptions) -> Self {
        Self {
            path: options.path.clone(),
            volume: Volume::new(Arc::clone(&options.disk)),
            free: AtomicU64::new(0),
            total: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            asked: Mutex::new(None),
            silent: AtomicBool::new(false),
            failed: Mutex::new(None),
            recovered: AtomicBool::new(false),
            durable: Mutex::default(),
            lock: Mutex::new(None),
        }
    }

    /// Takes the folder for this process and reads its superblock. `instance`: what a new folder
    /// gets, so that all folders of a node have the same.
    pub(crate) fn open(
        &self,
        options: &StoreOptions,
        instance: Option<u128>,
    ) -> Result<Superblock> {
        self.volume.create_root(&self.path)?;
        let line = format!("node {}, process {}\n", options.node, std::process::id());
        if !self.is_open() {
            *self.lock.lock() = Some(self.volume.lock(&self.path.join("lock"), &line)?);
        }
        let superblock = self.superblock(options, instance)?;
        self.ensure_dir(&self.path.join("active"))?;
        super::stock::clear(&self.volume, &self.path)?;
        self.refresh_space()?;
        Ok(superblock)
    }

    /// Makes a subfolder (and its parents) where it is missing; durable when this returns.
    pub(crate) fn ensure_dir(&self, path: &Path) -> Result<()> {
        if path == self.path || !path.starts_with(&self.path) || self.durable.lock().contains(path)
        {
            return Ok(());
        }
        let parent = path.parent().unwrap_or(&self.path);
        self.ensure_dir(parent)?;
        self.volume.create_dir(path)?;
        self.volume.sync_dir(parent, SyncPoint::FolderEntry)?;
        self.durable.lock().insert(path.to_owned());
        Ok(())
    }

    /// Whether its marked segments were recovered in this life.
    pub(crate) fn is_recovered(&self) -> bool {
        self.recovered.load(Ordering::Acquire)
    }

    pub(crate) fn set_recovered(&self) {
        self.recovered.store(true, Ordering::Release);
    }

    /// Whether it was opened, now or before it failed.
    pub(crate) fn is_open(&self) -> bool {
        self.lock.lock().is_some()
    }

    fn superblock(&self, options: &StoreOptions, instance: Option<u128>) -> Result<Superblock> {
        let path = self.path.join("superblock");
        let bytes = match self.volume.read(&path) {
            Err(error) if error.is_missing() => {
                if !list_segments(&self.volume, &self.path)?.is_empty() {
                    let what = "the superblock is missing, but there are segments";
                    return Err(Error::damaged(&path, 0, what));
                }
                let made = Superblock {
                    cluster: options.cluster.clone(),
                    node: options.node,
                    group: options.group,
                    instance: match instance {
                        Some(instance) => instance,
                        None => self.volume.random(&path)?,
                    },
                    format: FORMAT,
                    created_ms: self.volume.now_ms(),
                };
                self.write_superblock(&made)?;
                return Ok(made);
            }
            bytes => bytes?,
        };
        let found = Superblock::decode(&bytes).map_err(|error| match error {
            FormatError::Version(found) => {
                Error::UnknownFormat { path: path.clone(), found, known: FORMAT }
            }
            error => Error::damaged(&path, 0, error.to_string()),
        })?;
        let expected = (options.node, options.group, options.cluster.as_str());
        if (found.node, found.group, found.cluster.as_str()) != expected {
            let name = |(node, group, cluster): (u32, u32, &str)| {
                format!("node {node} of group {group} in cluster {cluster:?}")
            };
            return Err(Error::ForeignFolder {
                path: self.path.clone(),
                found: name((found.node, found.group, &found.cluster)),
                expected: name(expected),
            });
        }
        if found.format < FORMAT {
            // An older build must not open it any more: there will be segments it does not know.
            self.write_superblock(&found)?;
        }
        Ok(found)
    }

    fn write_superblock(&self, superblock: &Superblock) -> Result<()> {
        let path = self.path.join("superblock");
        let (data, entry) = (SyncPoint::Superblock, SyncPoint::SuperblockEntry);
        self.volume.replace(&path, &superblock.encode(), data, entry)
    }

    /// Asks the file system how much is free. Blocking.
    pub(crate) fn refresh_space(&self) -> Result<()> {
        let (free, total) = self.volume.space(&self.path)?;
        self.free.store(free, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Space that will be used before the file system is asked again.
    pub(crate) fn take_space(&self, bytes: u64) {
        let taken = |free: u64| Some(free.saturating_sub(bytes));
        let _ = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
    }

    /// The file system had no space left: none is free, until it is asked again.
    pub(crate) fn note_full(&self) {
        self.free.store(0, Ordering::Relaxed);
    }

    /// Runs a call that tells whether the disk answers.
    pub(crate) fn asking<T>(&self, call: impl FnOnce() -> T) -> T {
        *self.asked.lock() = Some(Instant::now());
        let answer = call();
        *self.asked.lock() = None;
        if self.silent.swap(false, Ordering::AcqRel) {
            tracing::info!(folder = %self.path.display(), "data folder answers again");
        }
        answer
    }

    /// Looks whether the last such call takes longer than `patience`: the folder is silent then.
    pub(crate) fn note_silence(&self, patience: Duration) {
        let waited = self.asked.lock().map(|asked| asked.elapsed()).unwrap_or_default();
        if waited >= patience && !self.silent.swap(true, Ordering::AcqRel) {
            self.fail(&self.silence(waited));
        }
    }

    /// Whether its disk answers.
    ///
    /// # Errors
    /// [`Error::Silent`].
    pub(crate) fn check_answers(&self) -> Result<()> {
        if !self.silent.load(Ordering::Acquire) {
            return Ok(());
        }
        let waited = self.asked.lock().map(|asked| asked.elapsed()).unwrap_or_default();
        Err(self.silence(waited))
    }

    fn silence(&self, waited: Duration) -> Error {
        Error::Silent { path: self.path.clone(), seconds: waited.as_secs() }
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.failing.load(Ordering::Acquire)
    }

    /// The disk failed: no new segments until it is probed well.
    pub(crate) fn fail(&self, error: &Error) {
        let mut failed = self.failed.lock();
        if failed.is_none() {
            tracing::error!(folder = %self.path.display(), %error, "data folder fails; it takes no new segments");
            metrics::counter!("reel_folder_failures_total").increment(1);
            *failed = Some(error.to_string());
        }
        self.failing.store(true, Ordering::Release);
    }

    /// Writes, syncs and removes a small file: whether the disk works (again).
    pub(crate) fn probe(&self) -> Result<()> {
        let path = self.path.join("probe");
        self.volume.remove_if_there(&path)?;
        let file = self.volume.create(&path)?;
        file.write_all_at(&[0x5a; 4096], 0)?;
        file.sync(SyncPoint::Probe)?;
        self.volume.remove_if_there(&path)?;
        self.refresh_space()
    }

    pub(crate) fn recovered(&self) {
        if self.failed.lock().take().is_some() {
            tracing::info!(folder = %self.path.display(), "data folder works again");
        }
        self.failing.store(false, Ordering::Release);
    }

    pub(crate) fn state(&self) -> FolderState {
        FolderState {
            path: self.path.clone(),
            free: self.free(),
            total: self.total(),
            failed: self.failed.lock().clone(),
        }
    }

    /// The file in `active/` that says: look at this segment after a crash. That of a copy says that it is to be
    /// resumed, also when this very node made the segment in a life whose disk was lost.
    pub(crate) fn marker(&self, number: SegmentNumber, kind: Marker) -> PathBuf {
        let name = format!("{:012x}", number.get());
        let name = match kind {
            Marker::Active => name,
            Marker::Copy => name + ".copy",
        };
        self.path.join("active").join(name)
    }

    /// The segments that the markers name, in order.
    pub(crate) fn marked(&self) -> Result<BTreeMap<SegmentNumber, Marker>> {
        let listed = self.volume.list(&self.path.join("active"))?;
        let mut found = BTreeMap::new();
        for listed in &listed {
            let name = Path::new(&listed.name);
            let Some(number) = SegmentNumber::from_file_name(name) else { continue };
            let copy = name.extension().is_some_and(|extension| extension == "copy");
            let kind = if copy { Marker::Copy } else { Marker::Active };
            found.insert(number, kind);
        }
        Ok(found)
    }
}

/// Why a segment has a marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marker {
    /// It is being written here, or its records are not confirmed.
    Active,
    /// It is being copied from a peer.
    Copy,
}

/// Numbers of the segment files under `dir`, from folder listings alone.
pub(crate) fn list_segments(volume: &Volume, dir: &Path) -> Result<Vec<SegmentNumber>> {
    let mut found = Vec::new();
    each_file(volume, dir, |path| {
        if path.extension().is_some_and(|extension| extension == "seg") {
            found.extend(SegmentNumber::from_file_name(path));
        }
        Ok(())
    })?;
    Ok(found)
}

/// [`list_segments`], and removes what an interrupted compaction or replacement has left: files that
/// were never renamed, tables of another generation than their segment's.
pub(crate) fn list_and_tidy(volume: &Volume, dir: &Path) -> Result<Vec<SegmentNumber>> {
    let mut found = Vec::new();
    let mut tables: BTreeMap<SegmentNumber, Vec<PathBuf>> = BTreeMap::new();
    each_file(volume, dir, |path| {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("seg") => found.extend(SegmentNumber::from_file_name(path)),
            Some("idx") => {
                let stem = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let stem = stem.split('.').next().unwrap_or_default();
                if let Some(number) = SegmentNumber::from_file_name(Path::new(stem)) {
                    tables.entry(number).or_default().push(path.to_owned());
                }
            }
            Some("new") => drop(volume.remove_if_there(path)?),
            _ => {}
        }
        Ok(())
    })?;
    let segments: BTreeSet<SegmentNumber> = found.iter().copied().collect();
    for (number, paths) in tables {
        let path = dir.join(number.path());
        let keep = match paths.len() {
            _ if !segments.contains(&number) => None,
            1 => continue,
            _ => match volume.open_read(&path).and_then(|file| read_header(&file, number)) {
                Ok(header) => {
                    // Renamed into its place by a life that died before that was durable, perhaps: what is marked in
                    // the table of this generation must not go with a power loss.
                    volume.sync_dir(path.parent().unwrap_or(dir), SyncPoint::CompactedEntry)?;
                    Some(table_path(&path, header.generation))
                }
                // It cannot be told which: both stay.
                Err(_) => continue,
            },
        };
        for path in paths.into_iter().filter(|path| Some(path) != keep.as_ref()) {
            volume.remove_if_there(&path)?;
        }
    }
    Ok(found)
}

fn each_file(volume: &Volume, dir: &Path, mut take: impl FnMut(&Path) -> Result<()>) -> Result<()> {
    for outer in hex_folders(volume, dir)? {
        for inner in hex_folders(volume, &outer)? {
            for listed in volume.list(&inner)? {
                take(&inner.join(&listed.name))?;
            }
        }
    }
    Ok(())
}

/// Subfolders with names of two hexadecimal digits.
fn hex_folders(volume: &Volume, dir: &Path) -> Result<Vec<PathBuf>> {
    let hex = |name: &str| name.len() == 2 && u8::from_str_radix(name, 16).is_ok();
    let listed = volume.list(dir)?;
    Ok(listed
        .into_iter()
        .filter(|listed| listed.is_dir && hex(&listed.name))
        .map(|listed| dir.join(listed.name))
        .collect())
}
