//! The seam on a file system. Only disk threads and start-up call it: it blocks.

use std::any::Any;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use memmap2::MmapRaw;
use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::{Errno, ReadWriteFlags};

use super::{DIRECT_ALIGN, Disk, Listed, LockError, Map, Mode, RawFile, SyncPoint};

/// The machine's file systems.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Box<dyn RawFile>> {
        let mut options = OpenOptions::new();
        let reads = matches!(mode, Mode::Read | Mode::ReadDirect);
        options.read(true).write(!reads).mode(0o640);
        options.create_new(matches!(mode, Mode::Create | Mode::CreateDirect));
        if mode == Mode::WriteThrough {
            options.custom_flags(through_flags());
        }
        let file = options.open(path)?;
        let direct = match mode {
            Mode::CreateDirect => open_direct(OpenOptions::new().read(true).write(true), path)?,
            Mode::ReadDirect => open_direct(OpenOptions::new().read(true), path)?,
            _ => None,
        };
        Ok(Box::new(RealFile { file, direct, reads_direct: mode == Mode::ReadDirect }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir(path)
    }

    fn sync_dir(&self, path: &Path, _point: SyncPoint) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Listed>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let is_dir = entry.file_type()?.is_dir();
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry.file_name().into_string() {
                found.push(Listed { name, is_dir });
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(path)?;
        Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
    }

    fn lock(&self, path: &Path, line: &str) -> Result<Box<dyn Any + Send + Sync>, LockError> {
        let locked = || -> io::Result<Result<File, String>> {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o640)
                .open(path)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    let mut holder = String::new();
                    file.read_to_string(&mut holder)?;
                    return Ok(Err(holder));
                }
                Err(error) => return Err(error.into()),
            }
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(line.as_bytes())?;
            Ok(Ok(file))
        };
        match locked() {
            Ok(Ok(file)) => Ok(Box::new(file)),
            Ok(Err(holder)) => Err(LockError::Held(match holder.trim() {
                "" => "another process".to_owned(),
                holder => holder.to_owned(),
            })),
            Err(error) => Err(LockError::Io(error)),
        }
    }

    fn random(&self) -> io::Result<u128> {
        let mut bytes = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(u128::from_le_bytes(bytes))
    }

    fn now_ms(&self) -> u64 {
        crate::clock::now_ms()
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// Bypasses the page cache; durable when it returns.
fn through_flags() -> i32 {
    (rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::DSYNC).bits() as i32
}

/// A second descriptor whose reads or writes bypass the page cache; `None` where the file system has no such
/// thing (tmpfs, some network file systems).
fn open_direct(options: &mut OpenOptions, path: &Path) -> io::Result<Option<File>> {
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    match options.custom_flags(flags).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
    direct: Option<File>,
    /// Whether reads bypass the page cache too; else they fill it, whatever their buffer.
    reads_direct: bool,
}

impl RealFile {
    /// The one that bypasses the page cache, when there is one and the call suits it.
    fn descriptor(&self, bytes: &[u8], offset: u64) -> &File {
        let aligned = |n: u64| n.is_multiple_of(DIRECT_ALIGN as u64);
        let suits =
            aligned(offset) && aligned(bytes.len() as u64) && aligned(bytes.as_ptr().addr() as u64);
        self.direct.as_ref().filter(|_| suits).unwrap_or(&self.file)
    }
}

impl RawFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let file = if self.reads_direct { self.descriptor(buffer, offset) } else { &self.file };
        file.read_at(buffer, offset)
    }

    fn read_resident(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut slices = [IoSliceMut::new(buffer)];
        match rustix::io::preadv2(&self.file, &mut slices, offset, ReadWriteFlags::NOWAIT) {
            Ok(read) => Ok(read),
            // Not resident, or a file system without RWF_NOWAIT: the caller goes to a disk thread.
            Err(Errno::AGAIN | Errno::OPNOTSUPP) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    fn is_resident(&self, offset: u64, length: u64) -> bool {
        super::residency::is_resident(&self.file, offset, length)
    }

    fn is_mostly_resident(&self, offset: u64, length: u64) -> bool {
        super::residency::is_mostly_resident(&self.file, offset, length)
    }

    fn reopen_direct(&self) -> io::Result<Option<File>> {
        // By the descriptor: the name may be another file's by now.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        open_direct(OpenOptions::new().read(true), Path::new(&path))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.descriptor(bytes, offset).write_at(bytes, offset)
    }

    fn sync(&self, _point: SyncPoint) -> io::Result<()> {
        self.file.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            // A file system without it grows the file as it is written.
            Err(Errno::OPNOTSUPP) => Ok(()),
            result => Ok(result?),
        }
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, flags, offset, length)?)
    }

    fn map(&self) -> io::Result<Map> {
        MmapRaw::map_raw(&self.file).map(Map::mapped)
    }

    fn std(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn direct(&self) -> Option<&File> {
        self.direct.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::ReadBuffer;

    #[test]
    fn only_what_was_opened_for_it_is_read_past_the_page_cache() {
        const BYTES: usize = 1 << 20;
        let dir = tempfile::tempdir_in(".").expect("temp folder");
        let path = dir.path().join("file");
        let disk = RealDisk;
        let written = disk.open(&path, Mode::CreateDirect).expect("created");
        // Aligned: it suits a direct call, which a plain buffer may do too, as its allocator likes.
        let mut buffer = ReadBuffer::with_capacity(BYTES);
        assert_eq!(written.write_at(buffer.fill(BYTES), 0).expect("written"), BYTES);
        written.sync(SyncPoint::SoloPayload).expect("synced");
        rustix::fs::fadvise(written.std().expect("a file"), 0, None, rustix::fs::Advice::DontNeed)
            .expect("advised");
        let past = disk.open(&path, Mode::ReadDirect).expect("opened");
        assert_eq!(past.read_at(buffer.fill(BYTES), 0).expect("read"), BYTES);
        let has_direct = past.direct().is_some();
        assert!(!has_direct || !written.is_resident(0, BYTES as u64));
        assert_eq!(written.read_at(buffer.fill(BYTES), 0).expect("read"), BYTES);
        assert!(written.is_resident(0, BYTES as u64), "reading fills the page cache");
    }
}
