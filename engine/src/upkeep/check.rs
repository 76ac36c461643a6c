//! Judges every byte of a segment: what the scrub does online, and `fsck` offline.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::reader::Reader;
use crate::disk::{DiskFile, Volume};
use crate::error::{Error, Result};
use crate::format::record::{MAX_HEAD, RecordHead};
use crate::format::segment_header::{SegmentHeader, SegmentKind};
use crate::format::table::{
    DEAD, ENTRIES_AT, ENTRY_BYTES, Entry, SlotState, TableHeader, mark_is_damaged,
};
use crate::format::{HEADER_BYTES, align, trailer};
use crate::id::{ObjectId, SLOTS, SegmentNumber};
use crate::segment::scan::{Trust, check_place, entry_of, scan_packed};
use crate::slots::{entries_crc, record_bytes, table_path};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// The superblock.
    Superblock,
    /// A segment's header page.
    Header,
    /// A record's head: the record cannot be understood.
    Record,
    /// An object's payload fails its checksum.
    Payload,
    /// A large object's block checksums.
    Trailer,
    /// Bytes that should be zero, or should not be there. No object is concerned.
    Padding,
    /// A slot table: it is derived, and can be made anew.
    Table,
    /// A segment without its slot table: it will be made anew.
    NoTable,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// The segment; `None` for a folder's own files.
    pub segment: Option<u64>,
    /// The slot, where one is concerned.
    pub slot: Option<u16>,
    /// The object whose bytes are not all there; `None` when none is concerned (or it is dead).
    pub object: Option<String>,
    /// The file.
    pub path: PathBuf,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// In words.
    pub what: String,
}

impl Finding {
    /// The object's id.
    pub fn object_id(&self) -> Option<ObjectId> {
        self.object.as_ref()?.parse().ok()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: ", self.path.display(), self.offset)?;
        if let Some(segment) = self.segment {
            write!(f, "segment {segment:x}")?;
            if let Some(slot) = self.slot {
                write!(f, " slot {slot}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.what)?;
        if let Some(object) = &self.object {
            write!(f, " (object {object})")?;
        }
        Ok(())
    }
}

/// What a check saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Segments judged.
    pub segments: u64,
    /// Living objects.
    pub objects: u64,
    /// Dead objects not yet compacted away.
    pub dead: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Adds another report.
    pub fn add(&mut self, other: Self) {
        self.segments += other.segments;
        self.objects += other.objects;
        self.dead += other.dead;
        self.tombstones += other.tombstones;
        self.bytes += other.bytes;
        self.findings.extend(other.findings);
    }
}

/// A table whose checksums hold.
type Judged = (TableHeader, Vec<(u16, Entry)>);

/// How a segment that may have been active is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// It is sealed: every byte has its meaning.
    Sealed,
    /// A start will recover it: a torn tail is no damage.
    Marked,
}

/// Judges a segment. `pace` is called with the bytes of each step, and may take its time.
///
/// # Errors
/// I/O errors, and formats this build does not know. Damage is not an error but a finding.
pub fn check_segment(
    volume: &Volume,
    path: &Path,
    number: SegmentNumber,
    expect: Expect,
    pace: &mut dyn FnMut(u64),
) -> Result<Report> {
    let file = volume.open_direct_read(path)?;
    let mut check = Check {
        volume,
        path,
        number,
        reader: Reader::new(file.clone()),
        file,
        report: Report { segments: 1, ..Report::default() },
        paced: 0,
        pace,
    };
    check.run(expect)?;
    check.report.bytes += check.reader.read;
    Ok(check.report)
}

struct Check<'a> {
    volume: &'a Volume,
    path: &'a Path,
    number: SegmentNumber,
    file: DiskFile,
    reader: Reader,
    report: Report,
    paced: u64,
    pace: &'a mut dyn FnMut(u64),
}

impl Check<'_> {
    fn find(&mut self, kind: FindingKind, slot: Option<u16>, offset: u64, what: impl ToString) {
        self.find_in(self.path.to_owned(), kind, slot, None, offset, what.to_string());
    }

    fn find_object(&mut self, kind: FindingKind, slot: u16, dead: bool, offset: u64, what: String) {
        let object = (!dead).then(|| self.number.object(slot).to_string());
        self.find_in(self.path.to_owned(), kind, Some(slot), object, offset, what);
    }

    fn find_in(
        &mut self,
        path: PathBuf,
        kind: FindingKind,
        slot: Option<u16>,
        object: Option<String>,
        offset: u64,
        what: String,
    ) {
        let segment = Some(self.number.get());
        self.report.findings.push(Finding { kind, segment, slot, object, path, offset, what });
    }

    fn pace(&mut self) {
        let read = self.reader.read;
        if read > self.paced {
            (self.pace)(read - self.paced);
            self.paced = read;
        }
    }

    fn run(&mut self, expect: Expect) -> Result<()> {
        let size = self.file.len()?;
        if size < HEADER_BYTES {
            if expect == Expect::Sealed {
                self.find(FindingKind::Header, None, 0, "shorter than its header page");
            }
            return Ok(());
        }
        let page = self.reader.bytes(0, HEADER_BYTES as usize)?;
        let header = match SegmentHeader::decode(&page) {
            Ok(header) if header.number == self.number => Some(header),
            Ok(header) => {
                let what = format!("holds segment {}", header.number);
                self.find(FindingKind::Header, None, 16, what);
                None
            }
            Err(crate::format::FormatError::Version(found)) => {
                return Err(Error::UnknownFormat {
                    path: self.path.to_owned(),
                    found,
                    known: crate::format::FORMAT,
                });
            }
            // A large upload that was not complete, or a crash before the first record.
            Err(_) if expect == Expect::Marked => return Ok(()),
            Err(error) => {
                self.find(FindingKind::Header, None, 0, error);
                None
            }
        };
        match header {
            Some(header) if header.kind == SegmentKind::Solo => self.solo(&header, size, expect),
            _ => self.packed(header, size, expect),
        }
    }

    fn solo(&mut self, header: &SegmentHeader, size: u64, expect: Expect) -> Result<()> {
        let kind = FindingKind::Record;
        let page = if size >= HEADER_BYTES + MAX_HEAD as u64 {
            self.reader.bytes(HEADER_BYTES, MAX_HEAD)?
        } else {
            Vec::new()
        };
        let head = match RecordHead::decode(&page, header.salt) {
            Ok(head) if head.segment == self.number => head,
            Ok(_) => {
                self.find_object(kind, 0, false, HEADER_BYTES, "head of another record".to_owned());
                return Ok(());
            }
            Err(_) if expect == Expect::Marked => return Ok(()),
            Err(error) => {
                self.find_object(kind, 0, false, HEADER_BYTES, error.to_string());
                return Ok(());
            }
        };
        self.report.objects += 1;
        let payload_at = HEADER_BYTES + u64::from(head.head_len);
        let trailer_at = payload_at + align(head.payload_len);
        let trailer_len = trailer::trailer_len(head.payload_len);
        let end = trailer_at + trailer_len;
        if size < end {
            let what = format!("the file has {size} bytes, its record {end}");
            self.find_object(FindingKind::Trailer, 0, false, size, what);
            return Ok(());
        }
        if size > end && expect == Expect::Sealed {
            self.find(FindingKind::Padding, None, end, "bytes behind the trailer");
        }
        let bytes = self.reader.bytes(trailer_at, trailer_len as usize)?;
        let used = 16 + trailer::blocks(head.payload_len) as usize * 4 + 4;
        if bytes[used..].iter().any(|byte| *byte != 0) {
            self.find(FindingKind::Padding, None, trailer_at + used as u64, "not zero");
        }
        let blocks = match trailer::decode(&bytes, head.payload_len) {
            Ok(blocks) => blocks,
            Err(error) => {
                let what = error.to_string();
                self.find_object(FindingKind::Trailer, 0, false, trailer_at, what);
                return Ok(());
            }
        };
        for (index, crc) in blocks.iter().enumerate() {
            let start = index as u64 * trailer::BLOCK_BYTES;
            let length = (head.payload_len - start).min(trailer::BLOCK_BYTES);
            if self.reader.crc(payload_at + start, length)? != *crc {
                let what = format!("checksum mismatch in block {index}");
                self.find_object(FindingKind::Payload, 0, false, payload_at + start, what);
            }
            self.pace();
        }
        let padding = trailer_at - payload_at - head.payload_len;
        if !self.reader.is_zero(payload_at + head.payload_len, padding)? {
            self.find(FindingKind::Padding, None, payload_at + head.payload_len, "not zero");
        }
        Ok(())
    }

    /// The table's file, judged; the entries when they can be trusted.
    fn table(&mut self, generation: u32) -> Result<Option<Judged>> {
        let path = table_path(self.path, generation);
        let file = match self.volume.open_direct_read(&path) {
            Err(error) if error.is_missing() => {
                let what = "no slot table; it will be made anew".to_owned();
                self.find_in(path, FindingKind::NoTable, None, None, 0, what);
                return Ok(None);
            }
            file => file?,
        };
        let size = file.len()?;
        let mut reader = Reader::new(file);
        let bytes = reader.bytes(0, (size as usize).min(ENTRIES_AT + SLOTS * ENTRY_BYTES))?;
        self.report.bytes += reader.read;
        let header = match TableHeader::decode(&bytes) {
            Ok(header) => header,
            Err(error) => {
                self.find_in(path, FindingKind::Table, None, None, 0, error.to_string());
                return Ok(None);
            }
        };
        let end = ENTRIES_AT + header.slots as usize * ENTRY_BYTES;
        if size as usize != end {
            let what = format!("{size} bytes, not {end}");
            self.find_in(path, FindingKind::Table, None, None, 0, what);
            return Ok(None);
        }
        if let Some(at) = bytes[64..ENTRIES_AT].iter().position(|byte| *byte != 0) {
            let (at, what) = (64 + at as u64, "not zero".to_owned());
            self.find_in(path.clone(), FindingKind::Padding, None, None, at, what);
        }
        if entries_crc(&bytes[ENTRIES_AT..]) != header.entries_crc {
            let what = "checksum mismatch in the slot table".to_owned();
            self.find_in(path, FindingKind::Table, None, None, ENTRIES_AT as u64, what);
            return Ok(None);
        }
        let mut entries = Vec::new();
        for (slot, pair) in bytes[ENTRIES_AT..].chunks_exact(ENTRY_BYTES).enumerate() {
            let word = |at: usize| pair[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
            let (first, second) = (word(0), word(8));
            if first != 0 && mark_is_damaged(first) {
                let at = (ENTRIES_AT + slot * ENTRY_BYTES) as u64;
                let what =
                    format!("dead mark {:#04x} is neither set nor clear", (first & DEAD) >> 56);
                self.find_in(path.clone(), FindingKind::Table, Some(slot as u16), None, at, what);
            }
            entries.extend(Entry::decode(first, second).map(|entry| (slot as u16, entry)));
        }
        Ok(Some((header, entries)))
    }

    fn packed(&mut self, header: Option<SegmentHeader>, size: u64, expect: Expect) -> Result<()> {
        if expect == Expect::Marked {
            let Some(header) = header else { return Ok(()) };
            let (table, scan) = scan_packed(&self.file, &header, size, Trust::Active)?;
            self.count(&table.entries().collect::<Vec<_>>());
            for hole in scan.holes {
                self.find(FindingKind::Record, None, hole.at, hole.reason);
            }
            return Ok(());
        }
        // Without a header the generation is found by trying.
        let generations =
            header.map_or(0..8, |header| header.generation..header.generation.saturating_add(1));
        let mut table = None;
        for generation in generations {
            if header.is_some() || self.volume.open_read(&table_path(self.path, generation)).is_ok()
            {
                table = self.table(generation)?;
                break;
            }
        }
        let header = header.or_else(|| {
            table.as_ref().map(|(table, _)| SegmentHeader {
                kind: SegmentKind::Packed,
                number: table.number,
                generation: table.generation,
                creator: table.creator,
                salt: table.salt,
                created_ms: table.created_ms,
            })
        });
        let Some(header) = header else { return Ok(()) };
        match table {
            Some((table, _)) if table.number != self.number || table.salt != header.salt => {
                let path = table_path(self.path, header.generation);
                let what = "slot table of another writing of the segment".to_owned();
                self.find_in(path, FindingKind::Table, None, None, 16, what);
                self.without_table(&header, size)
            }
            Some((table, mut entries)) => {
                self.count(&entries);
                entries.sort_unstable_by_key(|(_, entry)| entry.offset);
                self.records(&header, &entries, table.segment_len, size)
            }
            None => self.without_table(&header, size),
        }
    }

    fn count(&mut self, entries: &[(u16, Entry)]) {
        for (_, entry) in entries {
            match (entry.state, entry.dead) {
                (SlotState::Tombstone, _) => self.report.tombstones += 1,
                (SlotState::Object, true) => self.report.dead += 1,
                (SlotState::Object, false) => self.report.objects += 1,
            }
        }
    }

    fn records(
        &mut self,
        header: &SegmentHeader,
        entries: &[(u16, Entry)],
        segment_len: u64,
        size: u64,
    ) -> Result<()> {
        let mut at = HEADER_BYTES;
        for (slot, entry) in entries {
            if entry.offset != at {
                self.find(FindingKind::Record, None, at, "no record here");
            }
            at = entry.offset + record_bytes(entry);
            if at > size {
                let what = "the file ends before its record".to_owned();
                self.find_object(FindingKind::Record, *slot, entry.dead, entry.offset, what);
                continue;
            }
            self.record(header, *slot, entry)?;
            self.pace();
        }
        if at != segment_len {
            self.find(
                FindingKind::Record,
                None,
                at,
                format!("{} bytes without a record", segment_len.saturating_sub(at)),
            );
        }
        if size != segment_len {
            let what = format!("the file has {size} bytes, its table says {segment_len}");
            self.find(FindingKind::Padding, None, segment_len.min(size), what);
        }
        Ok(())
    }

    fn record(&mut self, header: &SegmentHeader, slot: u16, entry: &Entry) -> Result<()> {
        let bytes = self.reader.bytes(entry.offset, entry.head_len as usize)?;
        let head = RecordHead::decode(&bytes, header.salt)
            .and_then(|head| check_place(&head, header).map(|()| head));
        match head {
            Ok(head) if head.slot == slot => {
                let says = Entry { dead: entry.dead, ..entry_of(&head, entry.offset) };
                if says != *entry {
                    let what = "the slot table says otherwise than the record".to_owned();
                    self.find_object(FindingKind::Table, slot, entry.dead, entry.offset, what);
                }
            }
            Ok(head) => {
                let what = format!("record of slot {}", head.slot);
                self.find_object(FindingKind::Record, slot, entry.dead, entry.offset, what);
            }
            Err(error) => {
                self.find_object(
                    FindingKind::Record,
                    slot,
                    entry.dead,
                    entry.offset,
                    error.to_string(),
                );
            }
        }
        let payload_at = entry.offset + u64::from(entry.head_len);
        let length = u64::from(entry.payload_len);
        let is_object = entry.state == SlotState::Object;
        if is_object && self.reader.crc(payload_at, length)? != entry.payload_crc {
            let what = "checksum mismatch in the payload".to_owned();
            self.find_object(FindingKind::Payload, slot, entry.dead, payload_at, what);
        }
        if !self.reader.is_zero(payload_at + length, align(length) - length)? {
            self.find(FindingKind::Padding, Some(slot), payload_at + length, "not zero");
        }
        Ok(())
    }

    fn without_table(&mut self, header: &SegmentHeader, size: u64) -> Result<()> {
        let (table, scan) = scan_packed(&self.file, header, size, Trust::Sealed)?;
        self.count(&table.entries().collect::<Vec<_>>());
        for hole in scan.holes {
            let slot = table.entries().find(|(_, entry)| entry.offset == hole.at);
            match slot {
                Some((slot, _)) => self.find_object(
                    FindingKind::Payload,
                    slot,
                    false,
                    hole.at,
                    hole.reason.to_string(),
                ),
                None => self.find(FindingKind::Record, None, hole.at, hole.reason),
            }
        }
        if let Some(tail) = scan.tail {
            self.find(FindingKind::Record, None, scan.end, tail);
        }
        Ok(())
    }
}
