//! A disk and its files as the engine uses them: the seam's calls with the path in every error.

use std::any::Any;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Disk, Listed, LockError, Map, Mode, RawFile, SyncPoint};
use crate::error::{Error, Result};

/// Bytes of one step when space is written ahead.
const ZERO_STEP: u64 = 1 << 20;
/// Time left to others after each step when there is no hurry.
const ZERO_PAUSE: Duration = Duration::from_millis(50);

/// A disk. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Volume(Arc<dyn Disk>);

impl Volume {
    /// Calls to `disk`.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self(disk)
    }

    fn open(&self, what: &'static str, path: &Path, mode: Mode) -> Result<DiskFile> {
        match self.0.open(path, mode) {
            Ok(raw) => {
                let from_disk = mode == Mode::ReadDirect;
                Ok(DiskFile { raw: Arc::from(raw), path: Arc::from(path), from_disk })
            }
            Err(error) => Err(Error::io(what, path, error)),
        }
    }

    /// Opens a file for reading.
    pub fn open_read(&self, path: &Path) -> Result<DiskFile> {
        self.open("open", path, Mode::Read)
    }

    /// Opens a file for reading what lies on the disk, past the page cache; for
    /// [`DiskFile::read_piece`].
    pub fn open_direct_read(&self, path: &Path) -> Result<DiskFile> {
        self.open("open", path, Mode::ReadDirect)
    }

    /// Opens an existing file for reading and writing.
    pub fn open_write(&self, path: &Path) -> Result<DiskFile> {
        self.open("open for writing", path, Mode::Write)
    }

    /// Opens an existing file for writes that bypass the page cache and are durable when they return.
    pub fn open_through(&self, path: &Path) -> Result<DiskFile> {
        self.open("open for direct writing", path, Mode::WriteThrough)
    }

    /// Creates a file that must not be there yet.
    pub fn create(&self, path: &Path) -> Result<DiskFile> {
        self.open("create", path, Mode::Create)
    }

    /// Creates a file whose writes bypass the page cache.
    pub fn create_direct(&self, path: &Path) -> Result<DiskFile> {
        self.open("create", path, Mode::CreateDirect)
    }

    /// Reads a whole small file.
    pub fn read(&self, path: &Path) -> Result<Vec<u8>> {
        let file = self.open_read(path)?;
        let mut bytes = vec![0; file.len()? as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Makes a folder; one that is there is fine.
    pub fn create_dir(&self, path: &Path) -> Result<()> {
        match self.0.create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::io("create folder", path, error))
            }
            _ => Ok(()),
        }
    }

    /// Makes a data folder, parents too, where there is none.
    pub fn create_root(&self, path: &Path) -> Result<()> {
        if self.0.list(path).is_ok() {
            return Ok(());
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            self.create_root(parent)?;
        }
        self.create_dir(path)
    }

    /// Makes a folder's entries survive a power loss.
    pub fn sync_dir(&self, path: &Path, point: SyncPoint) -> Result<()> {
        self.0.sync_dir(path, point).map_err(|error| Error::io("sync folder", path, error))
    }

    /// Replaces `path` by a file with these bytes in one step: written beside it, synced, renamed,
    /// and the folder synced. After an error the old file is still whole.
    pub fn replace(
        &self,
        path: &Path,
        bytes: &[u8],
        data: SyncPoint,
        entry: SyncPoint,
    ) -> Result<()> {
        let beside = path.with_added_extension("new");
        self.remove_if_there(&beside)?;
        let file = self.create(&beside)?;
        file.write_all_at(bytes, 0)?;
        file.sync(data)?;
        self.rename(&beside, path)?;
        self.sync_dir(path.parent().unwrap_or(Path::new(".")), entry)
    }

    /// Gives a file another name.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.0.rename(from, to).map_err(|error| Error::io("rename to", to, error))
    }

    /// Unlinks a file; true when it was there.
    pub fn remove_if_there(&self, path: &Path) -> Result<bool> {
        match self.0.unlink(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("remove", path, error)),
        }
    }

    /// A folder's entries, sorted by name.
    pub fn list(&self, path: &Path) -> Result<Vec<Listed>> {
        self.0.list(path).map_err(|error| Error::io("list", path, error))
    }

    /// Free and total bytes of the file system that holds `path`.
    pub fn space(&self, path: &Path) -> Result<(u64, u64)> {
        self.0.space(path).map_err(|error| Error::io("statvfs", path, error))
    }

    /// Takes a lock file for this process.
    pub fn lock(&self, path: &Path, line: &str) -> Result<Box<dyn Any + Send + Sync>> {
        self.0.lock(path, line).map_err(|error| match error {
            LockError::Held(holder) => {
                Error::Locked { path: path.parent().unwrap_or(path).to_owned(), holder }
            }
            LockError::Io(error) => Error::io("lock", path, error),
        })
    }

    /// Random bits.
    pub fn random(&self, path: &Path) -> Result<u128> {
        self.0.random().map_err(|error| Error::io("read random bytes for", path, error))
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.0.now_ms()
    }

    /// Leaves the disk to others for a while.
    pub fn pause(&self, time: Duration) {
        self.0.pause(time);
    }

    /// Writes zeros over the first `to` bytes of a file, step by step, unsynced. Between steps it leaves the
    /// disk to others, as long as `hurried` says of the share that is done that there is time.
    pub fn fill_with_zeros(
        &self,
        file: &DiskFile,
        to: u64,
        hurried: impl Fn(f64) -> bool,
    ) -> Result<()> {
        let mut fill = ZeroFill::begin(file, to)?;
        while !fill.step(file)? {
            if !hurried(fill.at as f64 / to as f64) {
                self.pause(ZERO_PAUSE);
            }
        }
        Ok(())
    }
}

/// Zeros being written over the beginning of a file.
#[derive(Debug)]
pub struct ZeroFill {
    zeros: super::Piece,
    at: u64,
    to: u64,
}

impl ZeroFill {
    /// Reserves the space.
    pub fn begin(file: &DiskFile, to: u64) -> Result<Self> {
        file.allocate(to)?;
        let mut zeros = super::Piece::default();
        zeros.fill(&vec![0; ZERO_STEP as usize]);
        Ok(Self { zeros, at: 0, to })
    }

    /// Writes the next step, unsynced; true when all is written.
    pub fn step(&mut self, file: &DiskFile) -> Result<bool> {
        let now = (self.to - self.at).min(ZERO_STEP);
        file.write_all_at(&self.zeros.as_ref()[..now as usize], self.at)?;
        self.at += now;
        Ok(self.at == self.to)
    }
}

/// An open file, and its path for errors. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DiskFile {
    raw: Arc<dyn RawFile>,
    path: Arc<Path>,
    /// Reads judge what lies on the disk, not what the page cache holds.
    from_disk: bool,
}

impl DiskFile {
    /// Its path when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same file under another name (it was renamed).
    pub(crate) fn renamed(self, path: PathBuf) -> Self {
        Self { path: Arc::from(path), ..self }
    }

    /// Reads exactly `buffer.len()` bytes at `offset`; [`Error::Damaged`] when the file ends before.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if self.from_disk {
            return self.read_exact_from_disk(buffer, offset);
        }
        let mut done = 0;
        while done < buffer.len() {
            match self.raw.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => {
                    return Err(Error::damaged(&self.path, offset, "the file ends too early"));
                }
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read", &self.path, error)),
            }
        }
        Ok(())
    }

    fn read_exact_from_disk(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let mut piece = super::Piece::default();
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let start = at / super::DIRECT_ALIGN as u64 * super::DIRECT_ALIGN as u64;
            self.read_piece(&mut piece, start)?;
            let found = piece.as_ref().get((at - start) as usize..).unwrap_or(&[]);
            if found.is_empty() {
                return Err(Error::damaged(&self.path, at, "the file ends too early"));
            }
            let now = found.len().min(buffer.len() - done);
            buffer[done..done + now].copy_from_slice(&found[..now]);
            done += now;
        }
        Ok(())
    }

    /// Fills a piece from `offset`, a multiple of [`super::DIRECT_ALIGN`]; the bytes read.
    pub(crate) fn read_piece(&self, piece: &mut super::Piece, offset: u64) -> Result<usize> {
        piece.begin_reading();
        let mut done = 0;
        loop {
            match self.raw.read_at(&mut piece.as_mut()[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => {
                    done += read;
                    // A short read is the file's end: from here on nothing would be aligned.
                    if done == super::PIECE_BYTES || !read.is_multiple_of(super::DIRECT_ALIGN) {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read", &self.path, error)),
            }
        }
        piece.end_reading(done);
        Ok(done)
    }

    /// Reads what lies in the page cache, without waiting for a disk: the bytes read, 0 when the
    /// first page is not resident (or on any error: whoever waits for the disk then gets it).
    pub fn read_resident(&self, buffer: &mut [u8], offset: u64) -> usize {
        self.raw.read_resident(buffer, offset).unwrap_or(0)
    }

    /// Whether all of these bytes lie in the page cache, as far as that is known; see
    /// [`RawFile::is_resident`].
    pub fn is_resident(&self, offset: u64, length: u64) -> bool {
        self.raw.is_resident(offset, length)
    }

    /// [`RawFile::is_mostly_resident`].
    pub fn is_mostly_resident(&self, offset: u64, length: u64) -> bool {
        self.raw.is_mostly_resident(offset, length)
    }

    /// The file once more, for reads past the page cache. Blocking.
    pub(super) fn reopen_direct(&self) -> Result<Option<File>> {
        self.raw.reopen_direct().map_err(|error| Error::io("open", &self.path, error))
    }

    /// Writes all of `bytes` at `offset`.
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match self.raw.write_at(&bytes[done..], offset + done as u64) {
                Ok(0) => {
                    let error = io::Error::from(io::ErrorKind::WriteZero);
                    return Err(Error::io("write", &self.path, error));
                }
                Ok(written) => done += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("write", &self.path, error)),
            }
        }
        Ok(())
    }

    /// Makes bytes and length survive a power loss; see [`RawFile::sync`].
    pub fn sync(&self, point: SyncPoint) -> Result<()> {
        self.raw.sync(point).map_err(|error| Error::io("sync", &self.path, error))
    }

    /// Bytes.
    pub fn len(&self) -> Result<u64> {
        self.raw.length().map_err(|error| Error::io("stat", &self.path, error))
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts, or extends by zeros.
    pub fn set_len(&self, bytes: u64) -> Result<()> {
        self.raw.set_len(bytes).map_err(|error| Error::io("cut", &self.path, error))
    }

    /// Reserves space up to `bytes`.
    pub fn allocate(&self, bytes: u64) -> Result<()> {
        self.raw.allocate(bytes).map_err(|error| Error::io("allocate", &self.path, error))
    }

    /// Gives space back; it reads as zeros then.
    pub fn punch(&self, offset: u64, length: u64) -> Result<()> {
        self.raw.punch(offset, length).map_err(|error| Error::io("punch", &self.path, error))
    }

    /// Maps the whole file.
    pub fn map(&self) -> Result<Map> {
        self.raw.map().map_err(|error| Error::io("map", &self.path, error))
    }

    /// The file for system calls such as sendfile; `None` for a simulated one.
    pub fn std(&self) -> Option<&File> {
        self.raw.std()
    }

    /// The descriptor for direct writes.
    pub(super) fn direct(&self) -> Option<&File> {
        self.raw.direct()
    }
}
