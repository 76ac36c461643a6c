//! Slot tables that are missing or damaged are made anew from their segments.
//!
//! The records say all but which objects are dead: that stands in tombstones, in any segment. A table
//! keeps the target of each tombstone, so all tombstones are found by reading tables only.

use std::collections::{BTreeMap, BTreeSet};

use super::Store;
use crate::disk::{DiskFile, SyncPoint};
use crate::error::{Error, Result};
use crate::format::segment_header::{SegmentHeader, SegmentKind};
use crate::id::{ObjectId, SegmentNumber};
use crate::segment::Segment;
use crate::segment::open::{open_table, read_header};
use crate::segment::scan::{Trust, scan_packed};
use crate::slots::SlotTable;

/// Tables made anew together, each 1 MiB of memory: when all of a large store's tables are lost,
/// their tombstones are looked through once a batch rather than once a table.
const BATCH: usize = 64;

struct Rebuilt {
    header: SegmentHeader,
    file: DiskFile,
    folder: u16,
    table: SlotTable,
    end: u64,
}

impl Store {
    /// Makes the table of a segment, and of others that turn out to lack theirs. Blocking, for as long
    /// as it takes to read those segments and all tables; whoever asks for other segments goes on.
    pub(super) fn rebuild(
        &self,
        number: SegmentNumber,
        header: SegmentHeader,
        file: DiskFile,
    ) -> Result<Segment> {
        let _one_at_a_time = self.rebuilding.lock();
        let folder = self.folder_of(number).ok_or(Error::NoSegment(number))?;
        if let Ok(opened) = open_table(self.volume(folder), file.path(), &header) {
            // Another thread has made it meanwhile.
            let content = Segment::packed(opened.table);
            let length = opened.header.segment_len;
            return Ok(Segment::new(header, folder, file, content, length, true));
        }
        let mut rebuilt = BTreeMap::from([(number, self.scan(folder, header, &file)?)]);
        let numbers: Vec<SegmentNumber> = self.known.read().keys().copied().collect();
        for other in numbers.iter().filter(|other| **other != number) {
            if rebuilt.len() < BATCH
                && let Some(found) = self.without_table(*other)
            {
                rebuilt.insert(*other, found);
            }
        }
        let mut dead: BTreeMap<SegmentNumber, BTreeSet<u16>> = BTreeMap::new();
        for other in &numbers {
            for target in self.targets_of(*other, rebuilt.get(other)) {
                if rebuilt.contains_key(&target.segment()) {
                    dead.entry(target.segment()).or_default().insert(target.slot());
                }
            }
        }
        for (number, rebuilt) in &rebuilt {
            for slot in dead.get(number).into_iter().flatten() {
                rebuilt.table.kill(*slot)?;
            }
            let points = (SyncPoint::Table, SyncPoint::TableEntry);
            let volume = self.volume(rebuilt.folder);
            rebuilt
                .table
                .write(volume, rebuilt.file.path(), &rebuilt.header, rebuilt.end, points)
                .map_err(|error| self.note_failure(rebuilt.folder, error))?;
            metrics::counter!("reel_tables_rebuilt_total").increment(1);
        }
        let opened = open_table(self.volume(folder), file.path(), &header)?;
        let content = Segment::packed(opened.table);
        Ok(Segment::new(header, folder, file, content, opened.header.segment_len, true))
    }

    /// Marks again what tombstones anywhere name in these segments, which are open. Reads all tables.
    pub(crate) fn restore_marks(&self, lost: &[SegmentNumber]) {
        if lost.is_empty() {
            return;
        }
        let numbers: Vec<SegmentNumber> = self.known.read().keys().copied().collect();
        for number in numbers {
            for target in self.targets_of(number, None) {
                if lost.contains(&target.segment())
                    && let Err(error) = self.kill(target)
                {
                    tracing::error!(object = %target, %error, "dead object not marked");
                }
            }
        }
    }

    fn scan(&self, folder: u16, header: SegmentHeader, file: &DiskFile) -> Result<Rebuilt> {
        let (table, scan) = scan_packed(file, &header, file.len()?, Trust::Sealed)
            .map_err(|error| self.note_failure(folder, error))?;
        for hole in &scan.holes {
            tracing::error!(
                segment = %header.number, path = %file.path().display(), offset = hole.at,
                end = hole.end, reason = %hole.reason, "damaged record"
            );
        }
        Ok(Rebuilt { header, file: file.clone(), folder, table, end: scan.end })
    }

    /// The header and file of a sealed packed segment that is not open.
    fn packed_file(&self, number: SegmentNumber) -> Option<(u16, SegmentHeader, DiskFile)> {
        let folder = self.folder_of(number)?;
        let path = self.folder(folder).path.join(number.path());
        let file = self.volume(folder).open_read(&path).ok()?;
        let header = read_header(&file, number).ok()?;
        (header.kind == SegmentKind::Packed).then_some((folder, header, file))
    }

    /// A segment that lacks its table too, scanned.
    fn without_table(&self, number: SegmentNumber) -> Option<Rebuilt> {
        if self.loaded(number).is_some() {
            return None;
        }
        let (folder, header, file) = self.packed_file(number)?;
        if open_table(self.volume(folder), file.path(), &header).is_ok() {
            return None;
        }
        self.scan(folder, header, &file)
            .inspect_err(|error| tracing::error!(segment = %number, %error, "cannot be scanned"))
            .ok()
    }

    /// The objects that a segment's tombstones name.
    fn targets_of(&self, number: SegmentNumber, rebuilt: Option<&Rebuilt>) -> Vec<ObjectId> {
        let targets = |table: &SlotTable| -> Vec<ObjectId> {
            table.entries().filter_map(|(_, entry)| entry.target).collect()
        };
        if let Some(rebuilt) = rebuilt {
            return targets(&rebuilt.table);
        }
        if let Some(segment) = self.loaded(number) {
            return segment.table().map(targets).unwrap_or_default();
        }
        let Some((folder, header, file)) = self.packed_file(number) else { return Vec::new() };
        match open_table(self.volume(folder), file.path(), &header) {
            Ok(opened) => targets(&opened.table),
            // One beyond the batch: read, but not made yet.
            Err(_) => self.scan(folder, header, &file).map_or_else(
                |error| {
                    tracing::error!(segment = %number, %error, "tombstones cannot be read");
                    Vec::new()
                },
                |rebuilt| targets(&rebuilt.table),
            ),
        }
    }
}
