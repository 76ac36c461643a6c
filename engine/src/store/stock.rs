//! The stock: files whose space was written before, for shards to commit in.
//!
//! A commit in space that was written before need not wait for the file system's journal. Writing that
//! space beside a burst of commits would halve the disk's bandwidth, so some of it is kept ready,
//! written by [upkeep](crate::upkeep) when there is time. A file of the stock is no segment: it lies in
//! `stock/`, and becomes one by a rename. What a life leaves there the next one removes, so nothing
//! in it has to survive a crash.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Store;
use crate::disk::{DiskFile, Volume, ZeroFill};
use crate::error::Result;

/// The subfolder.
const STOCK: &str = "stock";
/// Segments that a folder must have room for, beside the reserve, to be stocked.
const ROOM_TO_STOCK: u64 = 8;
/// The stock takes at most one part in so many of what is free.
const SHARE_OF_FREE: u64 = 16;
/// Below this room, in segments, the stock is given back.
const ROOM_TO_KEEP: u64 = 2;

/// The files in hand.
#[derive(Debug, Default)]
pub(super) struct Stock {
    files: Mutex<Vec<Stocked>>,
    /// Names the next one.
    next: AtomicU64,
    /// A shard has asked: a node with little to do never pays.
    wanted: AtomicBool,
}

/// A file of the stock.
#[derive(Debug)]
pub(crate) struct Stocked {
    pub(super) folder: u16,
    pub(super) path: PathBuf,
    pub(super) file: DiskFile,
}

/// A file on its way into the stock.
#[derive(Debug)]
pub struct Stocking {
    store: Arc<Store>,
    fill: ZeroFill,
    made: Option<Stocked>,
}

impl Stocking {
    /// Writes 1 MiB; true when the file is in the stock. Blocking.
    ///
    /// # Errors
    /// The disk's; what was written is removed.
    pub fn step(&mut self) -> Result<bool> {
        let Some(made) = &self.made else { return Ok(true) };
        let (path, folder) = (made.path.clone(), made.folder);
        let stepped = self.fill.step(&made.file).map_err(|error| {
            self.store.discard(&path, folder);
            self.store.note_failure(folder, error)
        });
        if !stepped? {
            return Ok(false);
        }
        self.store.stock.files.lock().extend(self.made.take());
        Ok(true)
    }
}

impl Drop for Stocking {
    fn drop(&mut self) {
        if let Some(made) = self.made.take() {
            self.store.discard(&made.path, made.folder);
        }
    }
}

/// Removes what an earlier life had in stock.
pub(super) fn clear(volume: &Volume, root: &Path) -> Result<()> {
    let dir = root.join(STOCK);
    match volume.list(&dir) {
        Err(error) if error.is_missing() => Ok(()),
        Err(error) => Err(error),
        Ok(listed) => {
            for listed in listed {
                volume.remove_if_there(&dir.join(listed.name))?;
            }
            Ok(())
        }
    }
}

impl Store {
    /// Begins to write one more file for the stock; `None` when there is enough, when no shard has asked yet,
    /// or when there is no room to spare. Blocking.
    ///
    /// # Errors
    /// The disk's.
    pub fn begin_stocking(self: &Arc<Self>) -> Result<Option<Stocking>> {
        let bytes = self.options.segment_bytes;
        let with_next = (self.stock.files.lock().len() as u64 + 1) * bytes;
        let enough = with_next > self.options.prewrite_bytes;
        if enough || !self.stock.wanted.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let index = self.place()?;
        let folder = self.folder(index);
        let room = folder.free().saturating_sub(self.options.reserve_bytes);
        if room < (ROOM_TO_STOCK * bytes).max(SHARE_OF_FREE * with_next) {
            return Ok(None);
        }
        let dir = folder.path.join(STOCK);
        let path = dir.join(self.stock.next.fetch_add(1, Ordering::Relaxed).to_string());
        let begun = folder.ensure_dir(&dir).and_then(|()| {
            let file = folder.volume.create_direct(&path)?;
            Ok((ZeroFill::begin(&file, bytes)?, file))
        });
        let (fill, file) = begun.map_err(|error| {
            self.discard(&path, index);
            self.note_failure(index, error)
        })?;
        folder.take_space(bytes);
        let made = Some(Stocked { folder: index, path, file });
        Ok(Some(Stocking { store: Arc::clone(self), fill, made }))
    }

    /// Takes a file out of the stock, and notes that shards want it.
    pub(super) fn take_stocked(&self) -> Option<Stocked> {
        self.stock.wanted.store(true, Ordering::Relaxed);
        let mut files = self.stock.files.lock();
        let at = files.iter().position(|stocked| !self.folder(stocked.folder).is_failed())?;
        Some(files.remove(at))
    }

    /// Makes a file of the stock the file of a segment. Should its old name come back with a crash, the
    /// next start removes that name.
    pub(super) fn rename_stocked(&self, stocked: &Stocked, to: &Path) -> Result<DiskFile> {
        self.folder(stocked.folder).volume.rename(&stocked.path, to)?;
        Ok(stocked.file.clone().renamed(to.to_owned()))
    }

    /// Gives the stock of a folder back that has little room left. Blocking.
    pub(super) fn release_stock(&self, index: u16) {
        let room = self.options.reserve_bytes + ROOM_TO_KEEP * self.options.segment_bytes;
        if self.folder(index).free() >= room {
            return;
        }
        let mut files = self.stock.files.lock();
        let released: Vec<_> = files.extract_if(.., |stocked| stocked.folder == index).collect();
        drop(files);
        for stocked in released {
            self.discard(&stocked.path, index);
        }
    }

    /// Removes a file of the stock; what cannot be removed now is at the next start.
    pub(super) fn discard(&self, path: &Path, index: u16) {
        if let Err(error) = self.folder(index).volume.remove_if_there(path) {
            tracing::debug!(%error, "a file of the stock is removed at the next start");
        }
    }
}
