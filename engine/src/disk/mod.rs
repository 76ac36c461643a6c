//! The seam: every byte of I/O and everything that is not determined (time, chance) goes through here.
//!
//! [`Disk`] and [`RawFile`] are the calls; [`real`] makes them on a file system, [`shared`] on a network volume,
//! [`sim`] on a disk in memory that crashes. [`Volume`] and [`DiskFile`] are what the engine uses: the same calls, with the
//! path in every error. Who makes them:
//!
//! * a shard writes and syncs through its own io_uring ([`ShardFile`]) and never waits;
//! * what would block runs on the disk threads ([`DiskPool`]).

mod buffer;
mod map;
mod pool;
mod real;
mod residency;
mod shard_file;
mod shared;
pub mod sim;
mod volume;

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

pub use buffer::{Batch, PIECE_BYTES, Piece, ReadBuffer, SharedPiece};
pub use map::Map;
pub use pool::{DiskPool, Job, Queue};
pub use real::RealDisk;
pub use shard_file::{ShardFile, ShardReader};
pub use shared::SharedDisk;
pub use volume::{DiskFile, Volume, ZeroFill};

/// Why a sync is made: what would be lost without it. Named in errors and metrics; the simulator
/// takes each out in turn to show that it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SyncPoint {
    /// A batch of records, before its uploads are answered.
    Commit,
    /// A new segment's entry in its folder, before its first record is answered.
    SegmentEntry,
    /// A new folder's entry in its parent, before a segment in it is relied on.
    FolderEntry,
    /// A marker's entry in `active/`, before its segment holds a record.
    MarkerEntry,
    /// A large upload's payload and trailer, before the pages that make it visible.
    SoloPayload,
    /// The two pages that make a large upload visible, before it is answered.
    SoloPages,
    /// The cut of a sealed segment: what failed to be synced does not come back.
    SealCut,
    /// A slot table before its rename. Spares a rebuild; nothing is lost without it.
    Table,
    /// A slot table's entry: dead marks are set in the new file, and the old one must not come back.
    TableEntry,
    /// Dead marks, before the tombstones that name them stop being replayed.
    DeadMarks,
    /// Unlinked segments, before the tombstones that name them stop being replayed.
    RemovedEntry,
    /// An unfinished upload's unlink, before its marker goes.
    ForgottenEntry,
    /// A compacted segment, before it takes the old one's place.
    Compacted,
    /// A compacted segment's table. Spares a rebuild; nothing is lost without it.
    CompactedTable,
    /// The new table's entry, before the segment that needs it takes its place. Spares a rebuild.
    CompactedTableEntry,
    /// A compacted segment's entry, before tombstones of what it dropped may be dropped.
    CompactedEntry,
    /// What a crash of the process left in the page cache, before it is offered and served.
    Recovered,
    /// The superblock's bytes.
    Superblock,
    /// The superblock's entry. The next sync of its folder would do as well.
    SuperblockEntry,
    /// A new segment's header, and the space written ahead, before the first commit: commits make
    /// durable what they write, and nothing else.
    SegmentHeader,
    /// A repaired object, before it counts as repaired.
    Repair,
    /// A probe of a folder that had failed.
    Probe,
}

impl SyncPoint {
    /// Every point.
    pub const ALL: [Self; 22] = [
        Self::Commit,
        Self::SegmentEntry,
        Self::FolderEntry,
        Self::MarkerEntry,
        Self::SoloPayload,
        Self::SoloPages,
        Self::SealCut,
        Self::Table,
        Self::TableEntry,
        Self::DeadMarks,
        Self::RemovedEntry,
        Self::ForgottenEntry,
        Self::Compacted,
        Self::CompactedTable,
        Self::CompactedTableEntry,
        Self::CompactedEntry,
        Self::Recovered,
        Self::Superblock,
        Self::SuperblockEntry,
        Self::SegmentHeader,
        Self::Repair,
        Self::Probe,
    ];
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// For reading; it is there.
    Read,
    /// As [`Mode::Read`], past the page cache where the file system can and the buffer is aligned.
    ReadDirect,
    /// For reading and writing; it is there.
    Write,
    /// For reading and writing; it must not be there yet.
    Create,
    /// As [`Mode::Create`], and writes bypass the page cache where the file system can: offset,
    /// length and memory address of each are multiples of [`DIRECT_ALIGN`].
    CreateDirect,
    /// For writes that bypass the page cache and are durable when they return; the file is there. Not
    /// every file system can.
    WriteThrough,
}

/// What offset, length and address of a direct write are multiples of, in bytes.
pub const DIRECT_ALIGN: usize = 4096;

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Whether it is a folder.
    pub is_dir: bool,
}

/// Why a folder could not be locked.
#[derive(Debug)]
pub enum LockError {
    /// Another process has it; what the lock file says of it.
    Held(String),
    /// A system call failed.
    Io(io::Error),
}

/// A file system, as far as the engine needs one. All calls block.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Opens a file.
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Box<dyn RawFile>>;
    /// Gives a file another name, in place of the one that has it. Durable with the folder's sync.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Takes a file's name away; who has it open goes on. Durable with the folder's sync.
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// Makes one folder. Durable with its parent's sync.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes a folder's entries survive a power loss.
    fn sync_dir(&self, path: &Path, point: SyncPoint) -> io::Result<()>;
    /// A folder's entries, sorted by name.
    fn list(&self, path: &Path) -> io::Result<Vec<Listed>>;
    /// Free and total bytes.
    fn space(&self, path: &Path) -> io::Result<(u64, u64)>;
    /// Takes a lock file for this process, and writes `line` into it; held until the value is
    /// dropped.
    fn lock(&self, path: &Path, line: &str) -> Result<Box<dyn Any + Send + Sync>, LockError>;
    /// Random bits.
    fn random(&self) -> io::Result<u128>;
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
    /// Leaves the disk to others for a while.
    fn pause(&self, time: Duration);
}

/// An open file. All calls block, except [`RawFile::read_resident`] and [`RawFile::is_resident`].
pub trait RawFile: Send + Sync + fmt::Debug {
    /// Reads at an offset; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Reads what lies in the page cache, without waiting: 0 when the first page does not.
    fn read_resident(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Whether all of these bytes lie in the page cache, as far as that can be known without waiting. They may
    /// be gone the next moment.
    fn is_resident(&self, offset: u64, length: u64) -> bool;
    /// Whether at least half of these bytes are.
    fn is_mostly_resident(&self, offset: u64, length: u64) -> bool {
        self.is_resident(offset, length)
    }
    /// The same file once more, for reads that bypass the page cache; `None` where the file system has no such
    /// thing.
    fn reopen_direct(&self) -> io::Result<Option<File>>;
    /// Writes at an offset; may write less. Not durable before a sync.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Makes bytes and length survive a power loss (fdatasync). After an error nothing written since
    /// the last good sync may be trusted, whatever a later sync says.
    fn sync(&self, point: SyncPoint) -> io::Result<()>;
    /// Bytes.
    fn length(&self) -> io::Result<u64>;
    /// Cuts, or extends by zeros.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Reserves space up to `bytes` from the start, and makes the file that long.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// Gives space back: reads as zeros from then on.
    fn punch(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Maps the whole file, shared, as words.
    fn map(&self) -> io::Result<Map>;
    /// The file for system calls such as sendfile; `None` for a simulated one.
    fn std(&self) -> Option<&File>;
    /// The descriptor whose writes bypass the page cache, when it was opened so.
    fn direct(&self) -> Option<&File>;
}
