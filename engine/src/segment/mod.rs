//! An open segment: its file, and what finds and checks the objects in it.

pub(crate) mod open;
pub(crate) mod scan;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::format::record::RecordHead;
use crate::format::segment_header::{SegmentHeader, SegmentKind};
use crate::format::table::SlotState;
use crate::format::{FormatError, HEADER_BYTES};
use crate::id::{ObjectId, SLOTS, SegmentNumber};
use crate::slots::{SlotTable, record_bytes};

/// The folder of a segment that is another node's: it is only read.
pub(crate) const FOREIGN: u16 = u16::MAX;

/// A segment that can be read. Shared by all shards; what changes in it are atomics.
#[derive(Debug)]
pub struct Segment {
    header: SegmentHeader,
    /// The data folder it lies in, by its place in the configuration.
    folder: u16,
    file: DiskFile,
    content: Content,
    /// Bytes that are durable and published; rises while the segment is active.
    durable: AtomicU64,
    sealed: AtomicBool,
    retired: AtomicBool,
    /// Records the catalog has not confirmed yet.
    unsettled: AtomicU32,
    /// Somebody is settling it.
    settling: AtomicBool,
    /// Bytes of records whose objects are dead.
    dead_bytes: AtomicU64,
    /// Asked for since the handle cache last looked.
    used: AtomicBool,
    /// There are places in it without a record: it should be rewritten.
    has_holes: AtomicBool,
    /// Its rename failed to be synced: after a crash the one before it may be back.
    doubtful: AtomicBool,
}

/// What finds the objects.
#[derive(Debug)]
pub(crate) enum Content {
    /// Up to 65,536 small records.
    Packed {
        table: SlotTable,
        /// One bit a slot: its payload was checked since the segment was opened.
        checked: Box<[AtomicU64]>,
    },
    /// One large object.
    Solo {
        head: Box<RecordHead>,
        /// CRC-32 of each block.
        blocks: Vec<u32>,
        /// One bit a block: it was checked since the segment was opened.
        checked: Box<[AtomicU64]>,
    },
}

fn bits(count: usize) -> Box<[AtomicU64]> {
    (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect()
}

/// Where an object's bytes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Located {
    /// Where its record starts in the segment file, in bytes.
    pub record: u64,
    /// Where its payload starts in the segment file, in bytes.
    pub offset: u64,
    /// Bytes of payload.
    pub length: u64,
    /// CRC-32 of the whole payload.
    pub crc: u32,
}

impl Segment {
    pub(crate) fn new(
        header: SegmentHeader,
        folder: u16,
        file: DiskFile,
        content: Content,
        durable: u64,
        sealed: bool,
    ) -> Self {
        let (bytes, dead_bytes) = match &content {
            Content::Packed { table, .. } => table.bytes(),
            Content::Solo { .. } => (0, 0),
        };
        let is_packed = header.kind == SegmentKind::Packed;
        let has_holes = is_packed && sealed && HEADER_BYTES + bytes < durable;
        Self {
            header,
            folder,
            file,
            content,
            durable: AtomicU64::new(durable),
            sealed: AtomicBool::new(sealed),
            retired: AtomicBool::new(false),
            unsettled: AtomicU32::new(0),
            settling: AtomicBool::new(false),
            dead_bytes: AtomicU64::new(dead_bytes),
            used: AtomicBool::new(true),
            has_holes: AtomicBool::new(has_holes),
            doubtful: AtomicBool::new(false),
        }
    }

    pub(crate) fn packed(table: SlotTable) -> Content {
        Content::Packed { table, checked: bits(SLOTS) }
    }

    pub(crate) fn solo(head: RecordHead, blocks: Vec<u32>) -> Content {
        let checked = bits(blocks.len());
        Content::Solo { head: Box::new(head), blocks, checked }
    }

    /// The segment's number.
    pub fn number(&self) -> SegmentNumber {
        self.header.number
    }

    /// The segment's header.
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// The file, for reading.
    pub fn file(&self) -> &DiskFile {
        &self.file
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The data folder it lies in.
    pub fn folder(&self) -> u16 {
        self.folder
    }

    /// Bytes that compaction would give back.
    pub fn dead_bytes(&self) -> u64 {
        self.dead_bytes.load(Ordering::Relaxed)
    }

    /// Marks the object in `slot` of a packed segment dead; true when it was alive.
    pub(crate) fn kill(&self, slot: u16) -> Result<bool> {
        let Some(table) = self.table() else { return Ok(false) };
        let killed = table.kill(slot)?;
        if let Some(entry) = &killed {
            self.dead_bytes.fetch_add(record_bytes(entry), Ordering::Relaxed);
        }
        Ok(killed.is_some())
    }

    pub(crate) fn is_doubtful(&self) -> bool {
        self.doubtful.load(Ordering::Relaxed)
    }

    pub(crate) fn note_doubtful(&self) {
        self.doubtful.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_holes(&self) -> bool {
        self.has_holes.load(Ordering::Relaxed)
    }

    pub(crate) fn note_holes(&self) {
        self.has_holes.store(true, Ordering::Relaxed);
    }

    /// Tells the store that it is in use: it is among the last to be closed.
    #[inline]
    pub fn keep_open(&self) {
        self.touch(false);
    }

    /// Notes that it was asked for; whether it had been since the last call with `clear`.
    pub(crate) fn touch(&self, clear: bool) -> bool {
        if clear {
            return self.used.swap(false, Ordering::Relaxed);
        }
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        true
    }

    /// Bytes from the start that are durable; nothing behind them is ever read.
    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    pub(crate) fn set_durable(&self, bytes: u64) {
        self.durable.store(bytes, Ordering::Release);
    }

    /// Whether it will not grow any more.
    pub fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    pub(crate) fn set_sealed(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    /// Whether the store has replaced or removed it: caches should forget it. Its bytes stay
    /// readable for whoever holds it.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Counts records that the catalog has still to confirm.
    pub(crate) fn add_unsettled(&self, records: u32) {
        self.unsettled.fetch_add(records, Ordering::AcqRel);
    }

    /// One record less to confirm; true when that was the last.
    pub(crate) fn settle_one(&self) -> bool {
        self.unsettled.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Takes the right to settle it; false when another thread has it.
    pub(crate) fn begin_settling(&self) -> bool {
        !self.settling.swap(true, Ordering::AcqRel)
    }

    /// Settling failed: another try may be made.
    pub(crate) fn end_settling(&self) {
        self.settling.store(false, Ordering::Release);
    }

    /// Records the catalog has not confirmed yet.
    pub fn unsettled(&self) -> u32 {
        self.unsettled.load(Ordering::Acquire)
    }

    /// Whether the handle cache may close it: nothing would be forgotten.
    pub(crate) fn may_be_closed(&self) -> bool {
        self.is_sealed()
            && self.unsettled() == 0
            && !self.is_doubtful()
            && !self.table().is_some_and(SlotTable::is_active)
    }

    /// The slot table of a packed segment.
    pub(crate) fn table(&self) -> Option<&SlotTable> {
        match &self.content {
            Content::Packed { table, .. } => Some(table),
            Content::Solo { .. } => None,
        }
    }

    /// Finds a living object: `None` when the slot is empty, dead, or a tombstone's. No system
    /// call and no allocation.
    #[inline]
    pub fn locate(&self, slot: u16) -> Option<Located> {
        match &self.content {
            Content::Packed { table, .. } => {
                let entry = table.get(slot)?;
                (entry.state == SlotState::Object && !entry.dead).then_some(Located {
                    record: entry.offset,
                    offset: entry.offset + u64::from(entry.head_len),
                    length: u64::from(entry.payload_len),
                    crc: entry.payload_crc,
                })
            }
            Content::Solo { head, .. } => (slot == 0).then_some(Located {
                record: HEADER_BYTES,
                offset: HEADER_BYTES + u64::from(head.head_len),
                length: head.payload_len,
                crc: head.payload_crc,
            }),
        }
    }

    /// The checksums of a solo segment's blocks; `None` for a packed one.
    pub(crate) fn block_crcs(&self) -> Option<&[u32]> {
        match &self.content {
            Content::Packed { .. } => None,
            Content::Solo { blocks, .. } => Some(blocks),
        }
    }

    /// Whether `unit` (slot or block) was checked since the segment was opened.
    pub(crate) fn is_checked(&self, unit: usize) -> bool {
        let word = self.checked().get(unit / 64);
        word.is_some_and(|word| word.load(Ordering::Relaxed) & (1 << (unit % 64)) != 0)
    }

    pub(crate) fn set_checked(&self, unit: usize) {
        if let Some(word) = self.checked().get(unit / 64) {
            word.fetch_or(1 << (unit % 64), Ordering::Relaxed);
        }
    }

    fn checked(&self) -> &[AtomicU64] {
        match &self.content {
            Content::Packed { checked, .. } | Content::Solo { checked, .. } => checked,
        }
    }

    /// Slots of the segment that may hold a record.
    pub fn slots(&self) -> usize {
        match &self.content {
            Content::Packed { table, .. } => table.slots(),
            Content::Solo { .. } => 1,
        }
    }

    /// Reads and checks a record's head, a tombstone's too. Blocking: for disk threads. `None`
    /// for an empty or dead slot.
    pub fn read_head(&self, slot: u16) -> Result<Option<RecordHead>> {
        let (offset, head_len) = match &self.content {
            Content::Solo { head, .. } => return Ok((slot == 0).then(|| head.as_ref().clone())),
            Content::Packed { table, .. } => match table.get(slot) {
                Some(entry) if !entry.dead => (entry.offset, entry.head_len),
                _ => return Ok(None),
            },
        };
        let mut bytes = vec![0; head_len as usize];
        self.file.read_exact_at(&mut bytes, offset)?;
        let head = RecordHead::decode(&bytes, self.header.salt)
            .and_then(|head| {
                let fits = head.segment == self.number() && head.slot == slot;
                fits.then_some(head).ok_or(FormatError::Field("head of another record"))
            })
            .map_err(|error| {
                Error::damaged(self.path(), offset, format!("slot {slot}: {error}"))
            })?;
        Ok(Some(head))
    }

    /// The error for an object of this segment whose bytes fail their checksum.
    pub(crate) fn damaged_object(&self, slot: u16, offset: u64) -> Error {
        let object: ObjectId = self.number().object(slot);
        Error::DamagedObject { object, path: self.path().to_owned(), offset }
    }

    /// Whether the segment holds one large object.
    pub fn is_solo(&self) -> bool {
        self.header.kind == SegmentKind::Solo
    }
}
