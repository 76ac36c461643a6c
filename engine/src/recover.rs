//! What happens to the segments that were active when the process or the machine died.
//!
//! Only segments with a marker in `active/` are read. A packed one ends at its last good record; a
//! solo one without a valid header was never complete and goes. Tombstones in them are replayed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::disk::{DiskFile, SyncPoint};
use crate::error::{Error, Result};
use crate::format::HEADER_BYTES;
use crate::format::record::RecordHead;
use crate::format::segment_header::{SegmentHeader, SegmentKind};
use crate::id::{ObjectId, SegmentNumber};
use crate::segment::Segment;
use crate::segment::open::{open_solo, open_table, read_header};
use crate::segment::scan::{Scan, Trust, scan_packed};
use crate::slots::SlotTable;
use crate::store::{Folder, Marker, Recovery, Store};

/// Recovers every marked segment of every folder that works.
pub(crate) fn recover(store: &Arc<Store>) -> Result<Recovery> {
    let mut recovery = Recovery::default();
    for index in 0..store.folders.len() as u16 {
        if store.folder(index).is_failed() {
            continue;
        }
        match recover_folder(store, index) {
            Ok(found) => {
                recovery.offer.extend(found.offer);
                recovery.cut_bytes += found.cut_bytes;
                recovery.unfinished += found.unfinished;
                recovery.holes += found.holes;
                recovery.damaged.extend(found.damaged);
                recovery.marks_lost.extend(found.marks_lost);
            }
            Err(error) if error.is_disk() && store.folders.len() > 1 => {
                store.folder(index).fail(&error);
            }
            Err(error) => return Err(error),
        }
    }
    store.restore_marks(&recovery.marks_lost);
    Ok(recovery)
}

/// Recovers every marked segment of a folder, and registers what is left of it.
pub(crate) fn recover_folder(store: &Arc<Store>, index: u16) -> Result<Recovery> {
    let mut recovery = Recovery::default();
    let mut dead: Vec<ObjectId> = Vec::new();
    let mut recovered: BTreeMap<SegmentNumber, Arc<Segment>> = BTreeMap::new();
    let marked = store.folder(index).marked()?;
    let is_copy = |segment: &Segment| {
        segment.header().creator != store.options.node
            || marked.get(&segment.number()) == Some(&Marker::Copy)
    };
    for number in marked.keys().copied() {
        store.note_marked(number);
        match recover_one(store.folder(index), index, number, &mut recovery, &mut dead)? {
            Left::Segment(segment) => drop(recovered.insert(number, segment)),
            Left::Nothing => {
                recovery.unfinished += 1;
                store.remove_unfinished(number, index)?;
            }
            Left::Damaged => {
                recovery.damaged.push(number);
                store.set_active_aside(number, index)?;
            }
        }
    }
    for segment in recovered.values() {
        if !is_copy(segment) {
            segment.add_unsettled(segment.slots() as u32);
        }
        store.register(Arc::clone(segment));
    }
    // Marked now, or when their segment is opened.
    for object in dead {
        store.note_pending(object);
        if let Some(segment) = store.loaded(object.segment()) {
            store.kill_pending(&segment)?;
        } else if !store.has(object.segment()) {
            // Perhaps unlinked just before the crash, and not yet for good.
            store.note_unlinked_somewhere(object.segment());
        }
    }
    for (number, segment) in recovered {
        store.kill_pending(&segment)?;
        if !store.has(number) {
            continue;
        }
        if is_copy(&segment) {
            // It was still being filled: it is readable up to here, and is resumed.
            if segment.is_solo() {
                store.seal_copy(&segment)?;
            } else if segment.header().creator == store.options.node {
                store.note_own_copy(number);
            }
            continue;
        }
        if !segment.is_solo() {
            store.seal_blocking(&segment)?;
        }
        recovery.offer.push(number);
    }
    store.folder(index).set_recovered();
    Ok(recovery)
}

/// What is left of a marked segment.
enum Left {
    Segment(Arc<Segment>),
    /// It was never complete.
    Nothing,
    /// It holds records, but its header is damaged: it is set aside for the operator, and its peers' copy takes its place.
    Damaged,
}

fn recover_one(
    folder: &Folder,
    index: u16,
    number: SegmentNumber,
    recovery: &mut Recovery,
    dead: &mut Vec<ObjectId>,
) -> Result<Left> {
    let path = folder.path.join(number.path());
    let file = match folder.volume.open_write(&path) {
        Err(error) if error.is_missing() => return Ok(Left::Nothing),
        file => file?,
    };
    // What a failed sync has left in the page cache is not on the disk, and does not count.
    let judged = folder.volume.open_direct_read(&path)?;
    let header = match read_header(&judged, number) {
        Err(reason @ Error::Damaged { .. }) if holds_packed_records(&judged)? => {
            tracing::error!(segment = %number, %reason, "damaged header of a segment that was active: it is set aside as ….seg.damaged, and its objects are not here");
            return Ok(Left::Damaged);
        }
        Err(reason @ Error::Damaged { .. }) => {
            tracing::info!(segment = %number, %reason, "segment was never complete, removed");
            return Ok(Left::Nothing);
        }
        header => header?,
    };
    match header.kind {
        SegmentKind::Packed => {
            let (table, scan) = scan_marked(folder, &file, &judged, &header, recovery)?;
            if scan.end == HEADER_BYTES {
                return Ok(Left::Nothing);
            }
            dead.extend(&scan.targets);
            let content = Segment::packed(table);
            let segment = Segment::new(header, index, file, content, scan.end, false);
            if !scan.holes.is_empty() {
                segment.note_holes();
            }
            Ok(Left::Segment(Arc::new(segment)))
        }
        SegmentKind::Solo => match open_solo(&judged, &header) {
            Ok((content, length)) => {
                tracing::debug!(segment = %number, "large upload is complete, recovered");
                // What a crash of the process alone left in the page cache becomes durable.
                file.sync(SyncPoint::Recovered)?;
                let segment = Segment::new(header, index, file, content, length, true);
                Ok(Left::Segment(Arc::new(segment)))
            }
            Err(reason @ Error::Damaged { .. }) => {
                tracing::info!(segment = %number, %reason, "large upload was never complete, removed");
                Ok(Left::Nothing)
            }
            Err(error) => Err(error),
        },
    }
}

/// Finds the records of a packed segment that was active, joined with what its table says when it
/// has one: entries in it were durable, and its dead marks are kept.
fn scan_marked(
    folder: &Folder,
    file: &DiskFile,
    judged: &DiskFile,
    header: &SegmentHeader,
    recovery: &mut Recovery,
) -> Result<(SlotTable, Scan)> {
    let path = file.path();
    let size = file.len()?;
    let (table, mut scan) = scan_packed(judged, header, size, Trust::Active)?;
    let opened = open_table(&folder.volume, path, header);
    if let Err(error) = &opened
        && !error.is_missing()
    {
        // It may have held dead marks whose tombstones are replayed no more.
        recovery.marks_lost.push(header.number);
    }
    if let Ok(opened) = opened {
        for (slot, entry) in opened.table.entries() {
            if table.get(slot).is_none() {
                tracing::error!(segment = %header.number, slot, path = %path.display(), offset = entry.offset, "damaged record");
                table.publish(slot, &entry);
                scan.targets.extend(entry.target);
                scan.end = scan.end.max(entry.offset + crate::slots::record_bytes(&entry));
            }
            if entry.dead {
                table.kill(slot)?;
            }
        }
    }
    for hole in &scan.holes {
        recovery.holes += 1;
        tracing::warn!(
            segment = %header.number, path = %path.display(), offset = hole.at, end = hole.end,
            reason = %hole.reason, "no record here; the next good one follows"
        );
    }
    if size > scan.end {
        if let Some(reason) = &scan.tail
            && !only_zeros_follow(file, scan.end, size)?
        {
            recovery.cut_bytes += size - scan.end;
            tracing::warn!(
                segment = %header.number, path = %path.display(), offset = scan.end,
                bytes = size - scan.end, %reason, "torn tail cut off"
            );
        }
        file.set_len(scan.end)?;
    }
    // What a crash of the process alone left in the page cache becomes durable before it counts.
    file.sync(SyncPoint::Recovered)?;
    Ok((table, scan))
}

/// Whether a small record begins behind the header page. The header is durable before that.
fn holds_packed_records(file: &DiskFile) -> Result<bool> {
    let mut start = [0; 16];
    if file.len()? < HEADER_BYTES + start.len() as u64 {
        return Ok(false);
    }
    file.read_exact_at(&mut start, HEADER_BYTES)?;
    Ok(start.starts_with(&RecordHead::MAGIC) && !RecordHead::is_large(&start))
}

/// Whether a segment ends in space that was written with zeros ahead: no record begins there.
fn only_zeros_follow(file: &DiskFile, end: u64, size: u64) -> Result<bool> {
    let mut bytes = vec![0xff; (size - end).min(HEADER_BYTES) as usize];
    file.read_exact_at(&mut bytes, end)?;
    Ok(bytes.iter().all(|byte| *byte == 0))
}
