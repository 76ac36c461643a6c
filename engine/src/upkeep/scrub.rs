//! The scrub: every byte of every sealed segment is judged, one segment after the other.

use std::sync::Arc;

use super::check::{Expect, Finding, FindingKind, Report, check_segment};
use crate::disk::{SyncPoint, Volume};
use crate::error::{Error, Result};
use crate::format::superblock::Superblock;
use crate::id::SegmentNumber;
use crate::store::{Folder, Store};

/// Judges one sealed segment of an open store, at its own disk's speed unless `pace` takes its time. An
/// active one, and one that goes meanwhile, gives an empty report.
///
/// # Errors
/// I/O errors; their folder takes no new segments from then on.
pub fn scrub_segment(
    store: &Arc<Store>,
    number: SegmentNumber,
    pace: &mut dyn FnMut(u64),
) -> Result<Report> {
    let Some(index) = store.folder_of(number) else { return Ok(Report::default()) };
    let folder = store.folder(index);
    // What is marked is being written, or was a moment ago.
    if folder.is_failed() || store.is_marked(number) {
        return Ok(Report::default());
    }
    // Opened first: what has no table gets one.
    match store.segment_blocking(number) {
        Ok(segment) if !segment.is_sealed() => return Ok(Report::default()),
        Ok(_) | Err(Error::Damaged { .. }) => {}
        Err(Error::NoSegment(_)) => return Ok(Report::default()),
        Err(error) => return Err(error),
    }
    let before = store.loaded(number).map(|segment| segment.header().generation);
    let path = folder.path.join(number.path());
    let report = check_segment(&folder.volume, &path, number, Expect::Sealed, pace);
    let after = store.loaded(number).map(|segment| segment.header().generation);
    if store.folder_of(number).is_none() || before != after {
        // Removed or compacted under the check: it says nothing.
        return Ok(Report::default());
    }
    let report = report.map_err(|error| store.note_failure(index, error))?;
    metrics::counter!("reel_scrubbed_bytes_total").increment(report.bytes);
    metrics::counter!("reel_scrub_findings_total").increment(report.findings.len() as u64);
    Ok(report)
}

/// Judges a folder's own files.
pub(crate) fn check_superblock(volume: &Volume, folder: &std::path::Path) -> Vec<Finding> {
    let path = folder.join("superblock");
    let what = match volume.read(&path).map(|bytes| Superblock::decode(&bytes)) {
        Ok(Ok(_)) => return Vec::new(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    let kind = FindingKind::Superblock;
    vec![Finding { kind, segment: None, slot: None, object: None, path, offset: 0, what }]
}

/// Judges the superblocks of an open store; a damaged one is written again from memory.
pub fn scrub_superblocks(store: &Store) -> Vec<Finding> {
    let working = store.folders.iter().filter(|folder| !folder.is_failed());
    let mut findings = Vec::new();
    for folder in working {
        let found = check_superblock(&folder.volume, &folder.path);
        if !found.is_empty() {
            restore_superblock(store, folder);
        }
        findings.extend(found);
    }
    findings
}

fn restore_superblock(store: &Store, folder: &Folder) {
    let path = folder.path.join("superblock");
    let bytes = store.superblock().encode();
    let (data, entry) = (SyncPoint::Superblock, SyncPoint::SuperblockEntry);
    match folder.volume.replace(&path, &bytes, data, entry) {
        Ok(()) => tracing::warn!(path = %path.display(), "damaged superblock written again"),
        Err(error) => tracing::error!(%error, "damaged superblock not written again"),
    }
}

impl Store {
    /// Mends what can be mended from what is here: a slot table with a damaged dead mark or checksum is
    /// written again from what is known of it in memory, a damaged header page from the table. True
    /// when the finding is mended. Blocking.
    pub fn mend(&self, finding: &Finding) -> Result<bool> {
        let Some(number) = finding.segment.and_then(SegmentNumber::new) else { return Ok(false) };
        let segment = match self.segment_blocking(number) {
            Ok(segment) => segment,
            Err(Error::NoSegment(_) | Error::Damaged { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        let volume = self.volume(segment.folder());
        match finding.kind {
            FindingKind::Header if !segment.is_solo() => {
                let file = volume.open_write(segment.path())?;
                file.write_all_at(&segment.header().encode(), 0)?;
                file.sync(SyncPoint::Repair)?;
                Ok(true)
            }
            FindingKind::Table | FindingKind::NoTable => {
                self.rewrite_table(&segment)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}
