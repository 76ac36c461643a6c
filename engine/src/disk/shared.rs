//! The seam on a network volume that other machines write too, and whose calls may never return (a GlusterFS mount
//! whose servers are away).
//!
//! So nothing here touches the volume but the calls that may block: no mapping (a page fault on a shard's thread would
//! wait for the network), no asking of the page cache, which another machine's writes do not reach; and files are closed on
//! a thread of their own, because FUSE tells the volume of each close and waits for the answer.

use std::any::Any;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use rustix::fs::{AtFlags, StatxFlags};

use super::{Disk, Listed, LockError, Map, Mode, RawFile, RealDisk, SyncPoint};

/// A mounted volume of several machines.
#[derive(Debug, Clone, Copy, Default)]
pub struct SharedDisk;

impl Disk for SharedDisk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Box<dyn RawFile>> {
        let mode = match mode {
            // Past the page cache each small write would be several round trips.
            Mode::CreateDirect => Mode::Create,
            Mode::ReadDirect => Mode::Read,
            Mode::WriteThrough => return Err(io::ErrorKind::Unsupported.into()),
            mode => mode,
        };
        let file = RealDisk.open(path, mode)?;
        Ok(Box::new(SharedFile { file: Some(file) }))
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
        self.file()?.read_at(buffer, offset)
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
