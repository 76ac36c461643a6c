//! Opens a segment file: a sealed packed one by its table, a solo one by its head and trailer.

use std::fs::File;
use std::path::Path;

use super::{Content, Segment};
use crate::disk;
use crate::error::{Error, Result};
use crate::format::record::{Layout, RecordHead, RecordKind};
use crate::format::segment_header::{SegmentHeader, SegmentKind};
use crate::format::table::{Entry, SlotState};
use crate::format::{FORMAT, FormatError, HEADER_BYTES, trailer};
use crate::id::{SLOTS, SegmentNumber};
use crate::slots::SlotTable;

/// Bytes read at a time when a segment is scanned.
const SCAN_BYTES: usize = 4 << 20;

/// Opens a sealed segment under the data folder `root`. Blocking. A missing or damaged slot table
/// is rebuilt from the segment (said in the log); dead marks it held come back by the sweep.
pub(crate) fn open(root: &Path, number: SegmentNumber) -> Result<Segment> {
    let path = root.join(number.path());
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NoSegment(number));
        }
        Err(error) => return Err(Error::io("open", &path, error)),
    };
    let header = read_header(&file, &path, number)?;
    let (content, durable) = match header.kind {
        SegmentKind::Packed => {
            let (table, length) = match SlotTable::open(&path, number, header.generation) {
                Ok(found) => found,
                Err(reason) => {
                    tracing::warn!(segment = %number, %reason, "slot table is rebuilt from its segment");
                    let (table, scan) = scan_packed(&file, &path, &header)?;
                    table.write(&path, number, header.generation, scan.end)?;
                    SlotTable::open(&path, number, header.generation)?
                }
            };
            (Segment::packed(table), length)
        }
        SegmentKind::Solo => open_solo(&file, &path, number)?,
    };
    Ok(Segment::new(header, path, file, content, durable, true))
}

/// Reads and checks a segment's header page.
pub(crate) fn read_header(
    file: &File,
    path: &Path,
    number: SegmentNumber,
) -> Result<SegmentHeader> {
    let mut page = vec![0; HEADER_BYTES as usize];
    disk::read_exact_at(file, path, &mut page, 0)?;
    let header = SegmentHeader::decode(&page).map_err(|error| match error {
        FormatError::Version(found) => {
            Error::UnknownFormat { path: path.to_owned(), found, known: FORMAT }
        }
        error => Error::damaged(path, 0, error.to_string()),
    })?;
    if header.number != number {
        return Err(Error::damaged(path, 16, format!("holds segment {}", header.number)));
    }
    Ok(header)
}

/// The head and trailer of a complete solo segment.
pub(crate) fn open_solo(file: &File, path: &Path, number: SegmentNumber) -> Result<(Content, u64)> {
    let mut page = vec![0; HEADER_BYTES as usize];
    disk::read_exact_at(file, path, &mut page, HEADER_BYTES)?;
    let head = RecordHead::decode(&page)
        .map_err(|error| Error::damaged(path, HEADER_BYTES, error.to_string()))?;
    if head.segment != number || head.layout != Layout::Blocks || head.kind != RecordKind::Object {
        return Err(Error::damaged(path, HEADER_BYTES, "head of another record"));
    }
    let at = HEADER_BYTES + u64::from(head.head_len) + crate::format::align(head.payload_len);
    let length = trailer::trailer_len(head.payload_len);
    let size = file.metadata().map_err(|error| Error::io("stat", path, error))?.len();
    if size < at + length {
        return Err(Error::damaged(path, size, "the file ends before its trailer"));
    }
    let mut bytes = vec![0; length as usize];
    disk::read_exact_at(file, path, &mut bytes, at)?;
    let blocks = trailer::decode(&bytes, head.payload_len)
        .map_err(|error| Error::damaged(path, at, error.to_string()))?;
    Ok((Segment::solo(head, blocks), at + length))
}

/// What a scan of a packed segment found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Where the last good record ends.
    pub(crate) end: u64,
    /// Records found.
    pub(crate) records: u32,
    /// Why the scan ended before the file did; `None` at a clean end.
    pub(crate) torn: Option<String>,
    /// Objects that the segment's own tombstones name.
    pub(crate) targets: Vec<crate::id::ObjectId>,
}

/// Reads a packed segment from its first record to the first that fails a checksum (or to the end)
/// and builds its table. Every payload is checked.
pub(crate) fn scan_packed(
    file: &File,
    path: &Path,
    header: &SegmentHeader,
) -> Result<(SlotTable, Scan)> {
    let table = SlotTable::active();
    let size = file.metadata().map_err(|error| Error::io("stat", path, error))?.len();
    let mut scan = Scan { end: HEADER_BYTES, records: 0, torn: None, targets: Vec::new() };
    let mut window = Window { file, path, size, start: 0, bytes: Vec::new() };
    while scan.end < size {
        match next_record(&mut window, scan.end, header)? {
            Ok((head, entry)) => {
                table.publish(head.slot, &entry);
                if let Some(target) = head.target {
                    scan.targets.push(target);
                }
                scan.end += head.record_len();
                scan.records += 1;
                if scan.records as usize == SLOTS {
                    break;
                }
            }
            Err(reason) => {
                scan.torn = Some(reason.to_string());
                break;
            }
        }
    }
    Ok((table, scan))
}

fn next_record(
    window: &mut Window<'_>,
    at: u64,
    header: &SegmentHeader,
) -> Result<Result<(RecordHead, Entry), FormatError>> {
    let Some(fixed) = window.get(at, crate::format::record::FIXED_BYTES)? else {
        return Ok(Err(FormatError::Short));
    };
    let length = match RecordHead::peek_len(fixed) {
        Ok(length) => length,
        Err(error) => return Ok(Err(error)),
    };
    let Some(bytes) = window.get(at, length)? else { return Ok(Err(FormatError::Short)) };
    let head = match RecordHead::decode(bytes) {
        Ok(head) => head,
        Err(error) => return Ok(Err(error)),
    };
    if let Err(error) = check_place(&head, header) {
        return Ok(Err(error));
    }
    let payload_at = at + u64::from(head.head_len);
    let Some(payload) = window.get(payload_at, head.payload_len as usize)? else {
        return Ok(Err(FormatError::Short));
    };
    if crc32fast::hash(payload) != head.payload_crc {
        return Ok(Err(FormatError::Crc("payload")));
    }
    let entry = entry_of(&head, at);
    Ok(Ok((head, entry)))
}

/// Whether a well-formed head belongs into this packed segment.
pub(crate) fn check_place(head: &RecordHead, header: &SegmentHeader) -> Result<(), FormatError> {
    if head.segment != header.number || head.generation != header.generation {
        return Err(FormatError::Field("a record of another segment or generation"));
    }
    if head.layout != Layout::Whole || head.payload_len > u64::from(u32::MAX) {
        return Err(FormatError::Field("a large record in a packed segment"));
    }
    Ok(())
}

/// The table entry of a record at `offset`.
pub(crate) fn entry_of(head: &RecordHead, offset: u64) -> Entry {
    Entry {
        state: match head.kind {
            RecordKind::Object => SlotState::Object,
            RecordKind::Delete | RecordKind::Dead => SlotState::Tombstone,
        },
        dead: false,
        offset,
        head_len: head.head_len,
        payload_len: head.payload_len as u32,
        payload_crc: head.payload_crc,
    }
}

/// A sliding view of a file that is read in large pieces.
struct Window<'a> {
    file: &'a File,
    path: &'a Path,
    size: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// `length` bytes at `at`; `None` when the file ends before.
    fn get(&mut self, at: u64, length: usize) -> Result<Option<&[u8]>> {
        let Some(end) = at.checked_add(length as u64).filter(|end| *end <= self.size) else {
            return Ok(None);
        };
        if at < self.start || end > self.start + self.bytes.len() as u64 {
            let wanted = (length.max(SCAN_BYTES) as u64).min(self.size - at) as usize;
            self.bytes.resize(wanted, 0);
            disk::read_exact_at(self.file, self.path, &mut self.bytes, at)?;
            self.start = at;
        }
        let from = (at - self.start) as usize;
        Ok(Some(&self.bytes[from..from + length]))
    }
}
