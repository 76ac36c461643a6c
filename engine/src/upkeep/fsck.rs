//! Judges data folders that no process uses.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use super::check::{Expect, Report, check_segment};
use super::scrub::check_superblock;
use crate::disk::{RealDisk, Volume};
use crate::error::{Error, Result};
use crate::format::superblock::Superblock;
use crate::id::SegmentNumber;
use crate::store::{Folder, FolderOptions, Store, StoreOptions, list_segments};

/// What `fsck` found in one folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// The folder.
    pub folder: PathBuf,
    /// Node and group that the superblock names; 0 when it is damaged.
    pub node: u32,
    /// See `node`.
    pub group: u32,
    /// Segments that a start would recover: a torn tail in them is no damage.
    pub marked: u64,
    /// What was judged, and what is wrong.
    pub report: Report,
}

/// Judges every byte of a data folder, and changes nothing (but the lock file). Blocking.
///
/// # Errors
/// [`Error::Locked`] when a process uses it; I/O errors.
pub fn fsck(folder: &FolderOptions, mut each: impl FnMut(&Report)) -> Result<Checked> {
    let volume = Volume::new(Arc::clone(&folder.disk));
    let line = format!("fsck, process {}\n", std::process::id());
    let superblock = folder.path.join("superblock");
    if let Err(error) = volume.open_read(&superblock) {
        let segments = list_segments(&volume, &folder.path)?;
        if segments.is_empty() {
            return Err(error);
        }
    }
    let _lock = volume.lock(&folder.path.join("lock"), &line)?;
    let mut checked = Checked { folder: folder.path.clone(), ..Checked::default() };
    checked.report.findings = check_superblock(&volume, &folder.path);
    if let Some(superblock) =
        volume.read(&superblock).ok().and_then(|bytes| Superblock::decode(&bytes).ok())
    {
        (checked.node, checked.group) = (superblock.node, superblock.group);
    }
    let marked = match Folder::new(folder).marked() {
        Err(error) if error.is_missing() => BTreeMap::new(),
        marked => marked?,
    };
    checked.marked = marked.len() as u64;
    for number in list_segments(&volume, &folder.path)? {
        let path = folder.path.join(number.path());
        let expect = if marked.contains_key(&number) { Expect::Marked } else { Expect::Sealed };
        let report = check_segment(&volume, &path, number, expect, &mut |_| {})?;
        each(&report);
        checked.report.add(report);
    }
    Ok(checked)
}

/// Opens the folders as their node would (which recovers what was active at a crash), and makes
/// missing and damaged slot tables, header pages and superblocks anew. Returns what was mended.
///
/// # Errors
/// As [`Store::open`], and for superblocks that are all damaged.
pub fn repair_tables(folders: Vec<PathBuf>) -> Result<(Arc<Store>, Vec<super::Finding>)> {
    let volume = Volume::new(Arc::new(RealDisk));
    let superblock = folders
        .iter()
        .find_map(|folder| Superblock::decode(&volume.read(&folder.join("superblock")).ok()?).ok());
    let Some(superblock) = superblock else {
        let folder = folders.first().cloned().unwrap_or_default();
        return Err(Error::damaged(&folder.join("superblock"), 0, "no folder says whose it is"));
    };
    let mut options = StoreOptions::new(folders, Arc::new(|| None));
    (options.cluster, options.node, options.group) =
        (superblock.cluster.clone(), superblock.node, superblock.group);
    let (store, _) = Store::open(options)?;
    let mut mended = Vec::new();
    let mut after = None;
    while let [.., last] = store.list(after, super::PAGE).as_slice() {
        let page = store.list(after, super::PAGE);
        after = Some(*last);
        for number in page {
            let before = check_tables(&store, number)?;
            if store.segment_blocking(number).is_err() {
                continue;
            }
            for finding in before {
                if store.mend(&finding)? {
                    mended.push(finding);
                }
            }
        }
    }
    store.flush_dead()?;
    Ok((store, mended))
}

fn check_tables(store: &Arc<Store>, number: SegmentNumber) -> Result<Vec<super::Finding>> {
    use super::FindingKind::{Header, NoTable, Table};
    let Some(index) = store.folder_of(number) else { return Ok(Vec::new()) };
    if store.is_marked(number) {
        return Ok(Vec::new());
    }
    let folder = store.folder(index);
    let path = folder.path.join(number.path());
    let report = check_segment(&folder.volume, &path, number, Expect::Sealed, &mut |_| {})?;
    let mendable = |finding: &super::Finding| matches!(finding.kind, Header | Table | NoTable);
    Ok(report.findings.into_iter().filter(mendable).collect())
}
