//! Where the high-water mark of segment numbers is kept.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::catalog::{Catalog, CatalogError};

/// Segment numbers have 48 bits.
const MAX: u64 = (1 << 48) - 1;

/// A lease that could not be given.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// The mark could not be made durable.
    #[error("mark {path}: {source}")]
    Io {
        /// The mark's file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file does not hold a mark.
    #[error(
        "mark {path}: {text:?} is not a mark (a decimal number and its CRC-32); restore it, or start above every segment number in use"
    )]
    Damaged {
        /// The mark's file.
        path: PathBuf,
        /// Its content.
        text: String,
    },
    /// The row could not be changed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// All 2^48 numbers are given out.
    #[error("segment numbers are used up")]
    UsedUp,
}

/// Where the mark is kept.
pub enum Mark {
    /// In a file of this server alone.
    File(MarkFile),
    /// In PostgreSQL, for any number of servers.
    Catalog(Catalog),
}

impl Mark {
    /// Takes `count` numbers; returns the first. When this returns, they are taken for ever.
    pub async fn take(&self, count: u64) -> Result<u64, MarkError> {
        match self {
            Self::File(file) => file.take(count),
            Self::Catalog(catalog) => Ok(catalog.take_numbers(count).await?),
        }
    }
}

/// A mark in a file: a decimal number and its CRC-32, replaced as a whole and synced.
#[derive(Debug)]
pub struct MarkFile {
    path: PathBuf,
    next: Mutex<u64>,
}

impl MarkFile {
    /// Opens the mark; one that is not there starts at 1.
    pub fn open(path: &Path) -> Result<Self, MarkError> {
        let io = |source| MarkError::Io { path: path.to_owned(), source };
        let next = match std::fs::read_to_string(path) {
            Ok(text) => parse(&text)
                .ok_or_else(|| MarkError::Damaged { path: path.to_owned(), text: text.clone() })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                std::fs::create_dir_all(folder(path)).map_err(io)?;
                1
            }
            Err(error) => return Err(io(error)),
        };
        Ok(Self { path: path.to_owned(), next: Mutex::new(next) })
    }

    /// Takes `count` numbers; durable when it returns.
    pub fn take(&self, count: u64) -> Result<u64, MarkError> {
        let mut next = self.next.lock();
        let first = *next;
        let after =
            first.checked_add(count).filter(|after| *after <= MAX).ok_or(MarkError::UsedUp)?;
        let write = || -> std::io::Result<()> {
            let beside = self.path.with_extension("new");
            let mut file = File::create(&beside)?;
            file.write_all(render(after).as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&beside, &self.path)?;
            File::open(folder(&self.path))?.sync_all()
        };
        write().map_err(|source| MarkError::Io { path: self.path.clone(), source })?;
        *next = after;
        Ok(first)
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn render(mark: u64) -> String {
    let number = mark.to_string();
    format!("{number} {:08x}\n", crc32fast::hash(number.as_bytes()))
}

fn parse(text: &str) -> Option<u64> {
    let (number, crc) = text.trim_end().split_once(' ')?;
    let fits = u32::from_str_radix(crc, 16).ok()? == crc32fast::hash(number.as_bytes());
    fits.then(|| number.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_never_come_twice_across_restarts() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("ids").join("mark");
        let mut next = 1;
        for count in [1, 5, 100, 1] {
            let mark = MarkFile::open(&path).expect("opens");
            assert_eq!(mark.take(count).expect("taken"), next);
            next += count;
        }
    }

    #[test]
    fn a_damaged_mark_is_refused_and_not_begun_anew() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("mark");
        MarkFile::open(&path).expect("opens").take(41).expect("taken");
        let text = std::fs::read_to_string(&path).expect("read").replace("42", "12");
        std::fs::write(&path, text).expect("written");
        assert!(matches!(MarkFile::open(&path), Err(MarkError::Damaged { .. })));
    }
}
