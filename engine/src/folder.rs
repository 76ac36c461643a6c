//! What a data folder is, beside its segments: who owns it, whose it is, which segment files it has.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::clock::now_ms;
use crate::disk;
use crate::error::{Error, Result};
use crate::format::superblock::Superblock;
use crate::format::{FORMAT, FormatError};
use crate::id::SegmentNumber;
use crate::store::StoreOptions;

/// Takes the folder for this process; an error says who holds it.
pub(crate) fn lock(dir: &Path, node: u32) -> Result<File> {
    let path = dir.join("lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| Error::io("open", &path, error))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process".to_owned(),
                holder => holder.to_owned(),
            };
            return Err(Error::Locked { path: dir.to_owned(), holder });
        }
        Err(error) => return Err(Error::io("lock", &path, error.into())),
    }
    let line = format!("node {node}, process {}\n", std::process::id());
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(line.as_bytes()))
        .map_err(|error| Error::io("write", &path, error))?;
    Ok(file)
}

/// The folder's superblock; a new folder gets one. Another node's or cluster's is refused.
pub(crate) fn superblock(options: &StoreOptions) -> Result<Superblock> {
    let path = options.dir.join("superblock");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if !list_segments(&options.dir)?.is_empty() {
                return Err(Error::damaged(
                    &path,
                    0,
                    "the superblock is missing, but there are segments",
                ));
            }
            let made = Superblock {
                cluster: options.cluster.clone(),
                node: options.node,
                group: options.group,
                instance: random_u128(&path)?,
                created_ms: now_ms(),
            };
            disk::replace_file(&path, &made.encode())?;
            return Ok(made);
        }
        Err(error) => return Err(Error::io("read", &path, error)),
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
            path: options.dir.clone(),
            found: name((found.node, found.group, &found.cluster)),
            expected: name(expected),
        });
    }
    Ok(found)
}

fn random_u128(path: &Path) -> Result<u128> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    File::open(source)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Error::io("read random bytes for", path, error))?;
    Ok(u128::from_le_bytes(bytes))
}

/// Numbers of the segment files under `dir`, from folder listings alone.
pub(crate) fn list_segments(dir: &Path) -> Result<BTreeSet<SegmentNumber>> {
    let mut found = BTreeSet::new();
    for outer in folders(dir)? {
        for inner in folders(&outer)? {
            let entries =
                std::fs::read_dir(&inner).map_err(|error| Error::io("list", &inner, error))?;
            for entry in entries {
                let path = entry.map_err(|error| Error::io("list", &inner, error))?.path();
                if path.extension().is_some_and(|extension| extension == "seg") {
                    found.extend(SegmentNumber::from_file_name(&path));
                }
            }
        }
    }
    Ok(found)
}

/// Sub-folders whose names are two hexadecimal digits.
fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|error| Error::io("list", dir, error))? {
        let entry = entry.map_err(|error| Error::io("list", dir, error))?;
        let name = entry.file_name();
        let hex = name.len() == 2
            && name.to_str().is_some_and(|name| u8::from_str_radix(name, 16).is_ok());
        if hex && entry.path().is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}
