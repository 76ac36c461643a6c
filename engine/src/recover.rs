//! What happens to the segments that were active when the process or the machine died.
//!
//! Only segments with a marker in `active/` are read. A packed one is cut off at its first record
//! that fails a checksum; a solo one without a valid header was never complete and goes.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::disk;
use crate::error::{Error, Result};
use crate::format::HEADER_BYTES;
use crate::format::segment_header::{SegmentHeader, SegmentKind};
use crate::id::{ObjectId, SegmentNumber};
use crate::segment::open::{open_solo, read_header};
use crate::segment::{Segment, scan_packed};
use crate::slots::table_path;
use crate::store::{Recovery, Store};

/// Recovers every marked segment and registers what is left of it.
pub(crate) fn recover(store: &Arc<Store>) -> Result<Recovery> {
    let mut recovery = Recovery::default();
    let mut dead: Vec<ObjectId> = Vec::new();
    let mut recovered: BTreeMap<SegmentNumber, Arc<Segment>> = BTreeMap::new();
    for number in marked(&store.dir().join("active"))? {
        match recover_one(store, number, &mut recovery, &mut dead)? {
            Some(segment) => {
                recovered.insert(number, segment);
            }
            None => {
                recovery.unfinished += 1;
                store.forget(number)?;
            }
        }
    }
    for object in dead {
        if let Some(table) = recovered.get(&object.segment()).and_then(|segment| segment.table()) {
            table.kill(object.slot());
        }
    }
    for (number, segment) in recovered {
        let own = segment.header().creator == store.options.node;
        if !own {
            // A copy that was still being filled: it is readable up to here, and is resumed.
            if segment.is_solo() {
                disk::remove_if_there(&store.marker(number))?;
            }
            store.register(segment);
            continue;
        }
        let records = segment.slots() as u32;
        segment.add_unsettled(records);
        store.register(Arc::clone(&segment));
        if !segment.is_solo() {
            store.seal_blocking(&segment)?;
        }
        recovery.offer.push(number);
    }
    Ok(recovery)
}

/// The numbers that the markers name.
fn marked(folder: &Path) -> Result<Vec<SegmentNumber>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| Error::io("list", folder, error))? {
        let path = entry.map_err(|error| Error::io("list", folder, error))?.path();
        found.extend(SegmentNumber::from_file_name(&path));
    }
    found.sort_unstable();
    Ok(found)
}

/// What is left of one segment; `None` when nothing is.
fn recover_one(
    store: &Store,
    number: SegmentNumber,
    recovery: &mut Recovery,
    dead: &mut Vec<ObjectId>,
) -> Result<Option<Arc<Segment>>> {
    let path = store.dir().join(number.path());
    let file = match File::options().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", &path, error)),
    };
    let header = match read_header(&file, &path, number) {
        Ok(header) => header,
        Err(error @ (Error::UnknownFormat { .. } | Error::Io { .. })) => return Err(error),
        Err(reason) => {
            tracing::info!(segment = %number, %reason, "segment was never complete, removed");
            return Ok(None);
        }
    };
    match header.kind {
        SegmentKind::Packed => recover_packed(&file, &path, header, recovery, dead),
        SegmentKind::Solo => match open_solo(&file, &path, number) {
            Ok((content, length)) => {
                Ok(Some(Arc::new(Segment::new(header, path, file, content, length, true))))
            }
            Err(error @ Error::Io { .. }) => Err(error),
            Err(reason) => {
                tracing::info!(segment = %number, %reason, "large upload was never complete, removed");
                Ok(None)
            }
        },
    }
}

fn recover_packed(
    file: &File,
    path: &Path,
    header: SegmentHeader,
    recovery: &mut Recovery,
    dead: &mut Vec<ObjectId>,
) -> Result<Option<Arc<Segment>>> {
    let (table, scan) = scan_packed(file, path, &header)?;
    let size = file.metadata().map_err(|error| Error::io("stat", path, error))?.len();
    let torn = scan.torn.as_ref().filter(|_| !only_zeros_follow(file, scan.end, size));
    if let Some(reason) = torn {
        tracing::warn!(
            segment = %header.number, path = %path.display(), offset = scan.end,
            bytes = size - scan.end, %reason, "torn tail cut off"
        );
    }
    if size > scan.end {
        if torn.is_some() {
            recovery.cut_bytes += size - scan.end;
        }
        file.set_len(scan.end).map_err(|error| Error::io("cut", path, error))?;
    }
    // What a crash of the process alone left in the page cache becomes durable before it counts.
    disk::sync_file(file, path)?;
    if scan.end == HEADER_BYTES && !table_path(path).exists() {
        return Ok(None);
    }
    dead.extend(&scan.targets);
    let reader = file.try_clone().map_err(|error| Error::io("duplicate", path, error))?;
    let content = Segment::packed(table);
    Ok(Some(Arc::new(Segment::new(header, path.to_owned(), reader, content, scan.end, false))))
}

/// Whether a segment ends in space that was written with zeros ahead: no record begins there.
fn only_zeros_follow(file: &File, end: u64, size: u64) -> bool {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0xff; (size - end).min(HEADER_BYTES) as usize];
    file.read_exact_at(&mut bytes, end).is_ok() && bytes.iter().all(|byte| *byte == 0)
}
