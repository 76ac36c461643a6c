//! The seam on a network volume that other machines write too, and whose calls may never return (a GlusterFS mount
//! whose servers are away).
//!
//! So nothing here touches the volume but the calls that may block: no mapping (a page fault on a shard's thread would
//! wait for the network), no asking of the page cache, which another machine's writes do not reach; and files are closed on
//! a thread of their own, because FUSE tells the volume of each close and waits for the answer.

use std::any::Any;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use super::{Disk, Listed, LockError, Map, Mode, RawFile, RealDisk, SyncPoint};

/// Files in split-brain that are remembered.
const SPLIT: usize = 64;
/// What GlusterFS says of a file that gave an I/O error (its "split-brain resolution from the mount").
const SPLIT_STATUS: &str = "replica.split-brain-status";

/// A mounted volume of several machines.
#[derive(Debug, Clone, Default)]
pub struct SharedDisk {
    /// Files of which the volume does not know which copy is right.
    split: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl SharedDisk {
    /// Files that cannot be read because the volume has several truths of them; at most 64.
    pub fn split_brain_files(&self) -> Vec<PathBuf> {
        self.split.lock().iter().cloned().collect()
    }

    /// Says of an I/O error whether it is one file's only, and why: the volume works then.
    fn explain(&self, path: &Path, error: io::Error) -> io::Error {
        if error.raw_os_error() != Some(Errno::IO.raw_os_error()) {
            return error;
        }
        let mut status = [0; 256];
        let length = rustix::fs::getxattr(path, SPLIT_STATUS, &mut status).unwrap_or(0);
        let status = String::from_utf8_lossy(&status[..length]).into_owned();
        if !is_split(&status) {
            return error;
        }
        let mut split = self.split.lock();
        if split.len() < SPLIT && split.insert(path.to_owned()) {
            tracing::error!(path = %path.display(), status, "file in split-brain: decide with `gluster volume heal VOLUME split-brain`");
        }
        io::Error::other(format!("in split-brain ({status})"))
    }

    /// It could be read: somebody has decided.
    fn is_whole(&self, path: &Path) {
        let mut split = self.split.lock();
        if !split.is_empty() {
            split.remove(path);
        }
    }
}

/// `data-split-brain:yes    metadata-split-brain:no    Choices:…`, or a sentence when all is well.
fn is_split(status: &str) -> bool {
    status.contains("split-brain:yes")
}

impl Disk for SharedDisk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Box<dyn RawFile>> {
        let mode = match mode {
            // Past the page cache each small write would be several round trips.
            Mode::CreateDirect => Mode::Create,
            Mode::ReadDirect => Mode::Read,
            Mode::WriteThrough => return Err(io::ErrorKind::Unsupported.into()),
            mode => mode,
        };
        let file = RealDisk.open(path, mode).map_err(|error| self.explain(path, error))?;
        Ok(Box::new(SharedFile { file: Some(file), path: path.to_owned(), disk: self.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        RealDisk.unlink(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir(path)
    }

    fn sync_dir(&self, path: &Path, point: SyncPoint) -> io::Result<()> {
        RealDisk.sync_dir(path, point)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Listed>> {
        RealDisk.list(path)
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        RealDisk.space(path)
    }

    fn lock(&self, path: &Path, line: &str) -> Result<Box<dyn Any + Send + Sync>, LockError> {
        RealDisk.lock(path, line)
    }

    fn random(&self) -> io::Result<u128> {
        RealDisk.random()
    }

    fn now_ms(&self) -> u64 {
        RealDisk.now_ms()
    }

    fn pause(&self, time: Duration) {
        RealDisk.pause(time);
    }
}

#[derive(Debug)]
struct SharedFile {
    /// Taken when it is dropped.
    file: Option<Box<dyn RawFile>>,
    path: PathBuf,
    disk: SharedDisk,
}

impl SharedFile {
    fn file(&self) -> io::Result<&dyn RawFile> {
        self.file.as_deref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        let (Some(file), Some(closer)) = (self.file.take(), closer()) else { return };
        // The thread lives as long as the process.
        let _ = closer.send(file);
    }
}

/// Where files are closed. What waits there is bounded by the files that were open. `None` when no thread could be
/// started: they are closed on the spot then.
fn closer() -> Option<&'static Sender<Box<dyn RawFile>>> {
    static CLOSER: OnceLock<Option<Sender<Box<dyn RawFile>>>> = OnceLock::new();
    let start = || {
        let (sender, files) = channel::<Box<dyn RawFile>>();
        let thread = std::thread::Builder::new().name("reel-close".to_owned());
        thread.spawn(move || files.into_iter().for_each(drop)).ok()?;
        Some(sender)
    };
    CLOSER.get_or_init(start).as_ref()
}

impl RawFile for SharedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.file()?.read_at(buffer, offset) {
            Ok(read) => {
                self.disk.is_whole(&self.path);
                Ok(read)
            }
            Err(error) => Err(self.disk.explain(&self.path, error)),
        }
    }

    fn read_resident(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<usize> {
        Ok(0)
    }

    fn is_resident(&self, _offset: u64, _length: u64) -> bool {
        false
    }

    fn reopen_direct(&self) -> io::Result<Option<File>> {
        Ok(None)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.file()?.write_at(bytes, offset)
    }

    fn sync(&self, point: SyncPoint) -> io::Result<()> {
        self.file()?.sync(point)
    }

    /// Asked of the volume: the kernel's own picture may be a second old, and another machine writes.
    fn length(&self) -> io::Result<u64> {
        let file = self.file()?.std().ok_or(io::ErrorKind::NotConnected)?;
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        Ok(rustix::fs::statx(file, "", flags, StatxFlags::SIZE)?.stx_size)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file()?.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.file()?.allocate(bytes)
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.file()?.punch(offset, length)
    }

    fn map(&self) -> io::Result<Map> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn std(&self) -> Option<&File> {
        // Its own ring or sendfile would be used: blocking calls are the disk threads'.
        None
    }

    fn direct(&self) -> Option<&File> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_glusterfs_calls_split_is_split() {
        assert!(is_split("data-split-brain:yes    metadata-split-brain:no    Choices:a,b"));
        assert!(is_split("data-split-brain:no    metadata-split-brain:yes    Choices:a,b"));
        assert!(!is_split("The file is not under data or metadata split-brain"));
        assert!(!is_split(""));
    }
}
