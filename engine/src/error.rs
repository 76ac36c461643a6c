//! What can go wrong below the network, with the path, segment and slot it concerns.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::id::{ObjectId, SegmentNumber};

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An engine error. It is cloneable, because one failed sync answers every upload of its batch.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A system call on a path failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// The attempted operation, in plain words.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// The file system has no room (or less than the configured headroom).
    #[error("no space left for uploads in {path}: free some, or add a disk")]
    NoSpace {
        /// The data folder.
        path: PathBuf,
    },
    /// No segment number in hand: the ID servers have not been reached.
    #[error("no segment numbers in hand: no ID server could be reached")]
    NoNumbers,
    /// Another process owns the data folder.
    #[error("data folder {path} is in use by {holder}")]
    Locked {
        /// The data folder.
        path: PathBuf,
        /// What the lock file says of its holder.
        holder: String,
    },
    /// The folder belongs to another node or cluster.
    #[error("data folder {path} belongs to {found}, not to {expected}")]
    ForeignFolder {
        /// The data folder.
        path: PathBuf,
        /// Who the superblock names.
        found: String,
        /// Who was configured.
        expected: String,
    },
    /// A format version this build does not know.
    #[error("{path}: format version {found} is not known to this build (it knows {known})")]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: u32,
        /// The version of this build.
        known: u32,
    },
    /// Bytes that fail their checksum or make no sense.
    #[error("damaged: {path} at byte {offset}: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// An object whose bytes fail their checksum.
    #[error("object {object} is damaged: segment {}, slot {}, {path} at byte {offset}", object.segment(), object.slot())]
    DamagedObject {
        /// The object.
        object: ObjectId,
        /// Its segment file.
        path: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
    },
    /// The segment is in none of this node's data folders.
    #[error("segment {0} is not here")]
    NoSegment(SegmentNumber),
    /// The segment was compacted since its copy began.
    #[error("segment {0} was compacted meanwhile: its copy begins anew")]
    OtherGeneration(SegmentNumber),
    /// A call on a data folder has not come back: its disk or its volume hangs.
    #[error(
        "{path} has not answered for {seconds} s: its disk, or the volume that is mounted there, hangs"
    )]
    Silent {
        /// The data folder.
        path: PathBuf,
        /// For how long.
        seconds: u64,
    },
    /// No data folder takes new segments.
    #[error("no data folder takes uploads: {0}")]
    NoFolder(String),
    /// A queue is full; the caller should answer "try later".
    #[error("{0} is full")]
    Busy(&'static str),
    /// The engine is stopping.
    #[error("the storage engine is stopping")]
    Stopping,
    /// More bytes than a record may hold, or a name that does not fit.
    #[error("{0}")]
    TooLarge(String),
}

impl Error {
    /// Wraps an I/O error; a full file system gets its own variant.
    pub fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(code)
                if code == rustix::io::Errno::NOSPC.raw_os_error()
                    || code == rustix::io::Errno::DQUOT.raw_os_error() =>
            {
                Self::NoSpace { path: path.to_owned() }
            }
            _ => Self::Io { what, path: path.to_owned(), source: Arc::new(source) },
        }
    }

    /// Whether the disk itself failed (not: is full, holds wrong bytes, or was asked for what it does
    /// not have).
    pub fn is_disk(&self) -> bool {
        use rustix::io::Errno;
        const DISK: [Errno; 8] = [
            Errno::IO,
            Errno::ROFS,
            Errno::NXIO,
            Errno::NODEV,
            Errno::UCLEAN,
            Errno::REMOTEIO,
            Errno::STALE,
            Errno::NOTCONN,
        ];
        let Self::Io { source, .. } = self else { return false };
        source
            .raw_os_error()
            .is_some_and(|code| DISK.iter().any(|errno| errno.raw_os_error() == code))
    }

    /// Whether a file or folder is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Shorthand for [`Error::Damaged`].
    pub fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, what: what.into() }
    }
}
