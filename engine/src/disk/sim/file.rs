//! An open file of a simulated disk.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use super::SimDisk;
use super::inode::{Inode, SECTOR};
use super::state::{State, eio};
use super::{Map, Mode, RawFile, SyncPoint};

#[derive(Debug)]
pub(super) struct SimFile {
    pub(super) disk: SimDisk,
    pub(super) inode: u64,
    pub(super) path: PathBuf,
    pub(super) mode: Mode,
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
