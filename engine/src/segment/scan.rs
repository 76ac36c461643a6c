//! Reads a packed segment from end to end, and finds its records again.

use crate::disk::{DIRECT_ALIGN, DiskFile, Piece};
use crate::error::{Error, Result};
use crate::format::record::{FIXED_BYTES, RecordHead, RecordKind};
use crate::format::segment_header::SegmentHeader;
use crate::format::table::{Entry, SlotState};
use crate::format::{ALIGN, FormatError, HEADER_BYTES};
use crate::id::{ObjectId, SLOTS};
use crate::slots::SlotTable;

/// How far behind the last good record of an active segment another one is looked for, in bytes: a
/// batch in flight at the crash is not larger.
const TAIL_BYTES: u64 = 16 << 20;

/// What is scanned, and so what a record that fails its checksum means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// A segment that was active at a crash. A record that fails was most likely never answered:
    /// it is left out.
    Active,
    /// A sealed one. A record whose head holds was answered: it keeps its slot, and its payload is
    /// judged when it is read.
    Sealed,
}

/// A place where no record could be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hole {
    pub(crate) at: u64,
    pub(crate) end: u64,
    pub(crate) reason: FormatError,
}

/// What a scan found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Scan {
    /// Where the last good record ends.
    pub(crate) end: u64,
    /// Places before that without a good record.
    pub(crate) holes: Vec<Hole>,
    /// What stands behind the last good record, when the file goes on.
    pub(crate) tail: Option<FormatError>,
    /// Objects that the segment's tombstones name.
    pub(crate) targets: Vec<ObjectId>,
}

/// Finds the records of a segment's first `size` bytes, and builds its table. Every payload is
/// checked. Behind a record that fails, the next good one is looked for; bytes that a client
/// uploaded are not taken for one, because they do not know the segment's salt.
pub(crate) fn scan_packed(
    file: &DiskFile,
    header: &SegmentHeader,
    size: u64,
    trust: Trust,
) -> Result<(SlotTable, Scan)> {
    let table = SlotTable::active();
    let mut scan = Scan { end: HEADER_BYTES, ..Scan::default() };
    let mut window = Window { file, size, start: 0, bytes: Vec::new(), piece: Piece::default() };
    let mut at = HEADER_BYTES;
    let mut slot = 0;
    let mut hole: Option<Hole> = None;
    while at < size && slot < SLOTS {
        let limit = match trust {
            Trust::Active => scan.end.saturating_add(TAIL_BYTES),
            Trust::Sealed => u64::MAX,
        };
        if at > limit {
            break;
        }
        match next_record(&mut window, at, header)? {
            Found::Record(head) if usize::from(head.slot) >= slot => {
                scan.holes.extend(hole.take());
                slot = usize::from(head.slot) + 1;
                table.publish(head.slot, &entry_of(&head, at));
                scan.targets.extend(head.target);
                at += head.record_len();
                scan.end = at;
            }
            Found::Record(_) => {
                let reason = FormatError::Field("a slot out of order");
                (at, hole) = (at + ALIGN, Some(hole.unwrap_or(Hole { at, end: at, reason })));
            }
            Found::DamagedPayload(head) if trust == Trust::Sealed => {
                scan.holes.extend(hole.take());
                slot = usize::from(head.slot) + 1;
                table.publish(head.slot, &entry_of(&head, at));
                let end = at + head.record_len();
                scan.holes.push(Hole { at, end, reason: FormatError::Crc("payload") });
                (at, scan.end) = (end, end);
            }
            Found::DamagedPayload(head) => {
                let reason = FormatError::Crc("payload");
                hole = Some(hole.unwrap_or(Hole { at, end: at, reason }));
                at += head.record_len();
            }
            Found::Nothing(reason) => {
                hole = Some(hole.unwrap_or(Hole { at, end: at, reason }));
                at = window.next_magic(at + ALIGN, limit)?;
            }
        }
        if let Some(hole) = &mut hole {
            hole.end = at;
        }
    }
    scan.tail = hole.map(|hole| hole.reason);
    Ok((table, scan))
}

enum Found {
    Record(RecordHead),
    /// The head is good, the payload is not.
    DamagedPayload(RecordHead),
    Nothing(FormatError),
}

fn next_record(window: &mut Window<'_>, at: u64, header: &SegmentHeader) -> Result<Found> {
    let Some(fixed) = window.get(at, FIXED_BYTES)? else {
        return Ok(Found::Nothing(FormatError::Short));
    };
    let length = match RecordHead::peek_len(fixed) {
        Ok(length) => length,
        Err(error) => return Ok(Found::Nothing(error)),
    };
    let Some(bytes) = window.get(at, length)? else {
        return Ok(Found::Nothing(FormatError::Short));
    };
    let head = match RecordHead::decode(bytes, header.salt) {
        Ok(head) => head,
        Err(error) => return Ok(Found::Nothing(error)),
    };
    if let Err(error) = check_place(&head, header) {
        return Ok(Found::Nothing(error));
    }
    let payload_at = at + u64::from(head.head_len);
    match window.get(payload_at, head.payload_len as usize)? {
        None => Ok(Found::Nothing(FormatError::Short)),
        Some(payload) if crc32fast::hash(payload) == head.payload_crc => Ok(Found::Record(head)),
        Some(_) => Ok(Found::DamagedPayload(head)),
    }
}

/// Whether a well-formed head belongs into this packed segment.
pub(crate) fn check_place(head: &RecordHead, header: &SegmentHeader) -> Result<(), FormatError> {
    use crate::format::record::Layout;
    if head.segment != header.number || head.generation != header.generation {
        return Err(FormatError::Field("a record of another segment or generation"));
    }
    if head.layout != Layout::Whole || head.payload_len > u64::from(u32::MAX) {
        return Err(FormatError::Field("a large record in a packed segment"));
    }
    if head.kind != RecordKind::Object && head.payload_len > 0 {
        return Err(FormatError::Field("a tombstone with a payload"));
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
        target: head.target,
    }
}

/// A sliding view of a file that is read in large pieces.
struct Window<'a> {
    file: &'a DiskFile,
    size: u64,
    start: u64,
    bytes: Vec<u8>,
    piece: Piece,
}

impl Window<'_> {
    /// `length` bytes at `at`; `None` when the file ends before.
    fn get(&mut self, at: u64, length: usize) -> Result<Option<&[u8]>> {
        let Some(end) = at.checked_add(length as u64).filter(|end| *end <= self.size) else {
            return Ok(None);
        };
        if at < self.start || end > self.start + self.bytes.len() as u64 {
            self.start = at / DIRECT_ALIGN as u64 * DIRECT_ALIGN as u64;
            self.bytes.clear();
            while self.start + (self.bytes.len() as u64) < end {
                let from = self.start + self.bytes.len() as u64;
                if self.file.read_piece(&mut self.piece, from)? == 0 {
                    return Err(Error::damaged(self.file.path(), from, "the file ends too early"));
                }
                self.bytes.extend_from_slice(self.piece.as_ref());
            }
        }
        let from = (at - self.start) as usize;
        Ok(Some(&self.bytes[from..from + length]))
    }

    /// The first place from `at` on where a head may start; `size` or a place behind `limit` when
    /// there is none.
    fn next_magic(&mut self, mut at: u64, limit: u64) -> Result<u64> {
        const LOOK: usize = 64 * 1024;
        while at <= limit {
            let length = (self.size.saturating_sub(at) as usize).min(LOOK);
            let Some(bytes) = self.get(at, length)?.filter(|bytes| bytes.len() >= 8) else {
                return Ok(self.size);
            };
            let found = bytes
                .chunks_exact(ALIGN as usize)
                .position(|chunk| chunk.starts_with(&RecordHead::MAGIC));
            match found {
                Some(index) => return Ok(at + index as u64 * ALIGN),
                None => at += (length as u64 / ALIGN) * ALIGN,
            }
        }
        Ok(at)
    }
}
