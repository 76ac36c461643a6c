//! Blocking file calls, each with the path in its error. Only disk threads and start-up use them.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::io::ReadWriteFlags;

use crate::error::{Error, Result};

/// Opens a file for reading.
pub fn open_read(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| Error::io("open", path, error))
}

/// Opens an existing file for reading and writing.
pub fn open_write(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| Error::io("open for writing", path, error))
}

/// Creates a file that must not be there yet.
pub fn create_new(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o640)
        .open(path)
        .map_err(|error| Error::io("create", path, error))
}

/// Makes `path` and its parents below `root`; each new folder's parent is synced.
pub fn create_dirs(root: &Path, path: &Path) -> Result<()> {
    if path.is_dir() || !path.starts_with(root) {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(root);
    create_dirs(root, parent)?;
    match std::fs::create_dir(path) {
        Ok(()) => sync_dir(parent),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Error::io("create folder", path, error)),
    }
}

/// Makes a folder's entries survive a power loss.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io("sync folder", path, error))
}

/// Makes a file's bytes and length survive a power loss.
pub fn sync_file(file: &File, path: &Path) -> Result<()> {
    file.sync_data().map_err(|error| Error::io("sync", path, error))
}

/// Reads exactly `buffer.len()` bytes at `offset`.
pub fn read_exact_at(file: &File, path: &Path, buffer: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::damaged(path, offset, "the file ends too early"),
        _ => Error::io("read", path, error),
    })
}

/// Writes all of `bytes` at `offset`.
pub fn write_all_at(file: &File, path: &Path, bytes: &[u8], offset: u64) -> Result<()> {
    file.write_all_at(bytes, offset).map_err(|error| Error::io("write", path, error))
}

/// Reads what lies in the page cache, without waiting for a disk: the bytes read, 0 when the first
/// page is not resident (or at the file's end).
pub fn read_resident(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut slices = [IoSliceMut::new(buffer)];
    match rustix::io::preadv2(file, &mut slices, offset, ReadWriteFlags::NOWAIT) {
        Ok(read) => Ok(read),
        Err(rustix::io::Errno::AGAIN) => Ok(0),
        // A file system without RWF_NOWAIT: the caller goes to a disk thread.
        Err(rustix::io::Errno::OPNOTSUPP) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Writes zeros from `from` to `to`, synced step by step with pauses, so that no sync of another
/// file has to wait for long. The pages stay in the page cache: what is written over them later needs no
/// read.
pub fn fill_with_zeros(file: &File, path: &Path, from: u64, to: u64) -> Result<()> {
    const STEP: u64 = 1 << 20;
    /// Time left to others for each step, in times of what the step took.
    const PACE: u32 = 3;
    let zeros = vec![0; STEP as usize];
    let mut at = from;
    while at < to {
        let started = std::time::Instant::now();
        let now = (to - at).min(STEP);
        write_all_at(file, path, &zeros[..now as usize], at)?;
        sync_file(file, path)?;
        at += now;
        std::thread::sleep(started.elapsed() * PACE);
    }
    Ok(())
}

/// Replaces `path` by a file with these bytes in one step: written beside it, synced, renamed, and
/// the folder synced. After an error the old file is still whole.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|error| Error::io("replace", path, error))?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Unlinks a file; one that is not there is fine.
pub fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Free and total bytes of the file system that holds `path`.
pub fn free_bytes(path: &Path) -> Result<(u64, u64)> {
    let stat =
        rustix::fs::statvfs(path).map_err(|error| Error::io("statvfs", path, error.into()))?;
    Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
}
