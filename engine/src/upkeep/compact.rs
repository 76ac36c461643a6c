//! Compaction: a sealed segment is rewritten without its dead records, and with those that it lacked and a peer has
//! supplied. Slots and ids stay.
//!
//! Each step leaves the folder whole: the new file is complete and synced, then its table (whose name
//! holds the generation), then one rename puts the segment in the old one's place, then the folder is
//! synced. A crash before the rename leaves a file that the next start removes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::reader::Reader;
use crate::disk::{DiskFile, SyncPoint};
use crate::error::{Error, Result};
use crate::format::record::{RecordHead, RecordKind};
use crate::format::segment_header::SegmentHeader;
use crate::format::table::{Entry, SlotState};
use crate::format::{HEADER_BYTES, align};
use crate::id::{ObjectId, SLOTS, SegmentNumber};
use crate::segment::Segment;
use crate::segment::open::open_table;
use crate::segment::scan::entry_of;
use crate::slots::{SlotTable, record_bytes, table_path};
use crate::store::Store;
use crate::supply::Record;

/// Bytes copied in one step.
const STEP_BYTES: u64 = 1 << 20;
/// Bytes between syncs of the new file.
const SYNC_BYTES: u64 = 8 << 20;
/// Bytes that must stay free beside the new file.
const SPARE_BYTES: u64 = 1 << 20;

/// How far a compaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many bytes were read and written; there is more to do.
    More(u64),
    /// The segment was replaced, or removed: so many bytes were given back.
    Done(u64),
}

/// A compaction in progress: a state that moves a bounded amount with each [`Compaction::step`], on a
/// thread that may block. Dropping it leaves the segment as it was.
#[derive(Debug)]
pub struct Compaction {
    store: Arc<Store>,
    segment: Arc<Segment>,
    reader: Reader,
    header: SegmentHeader,
    file: Option<DiskFile>,
    table: SlotTable,
    /// Also those whose objects are gone here: some node of the group may not have them yet, and would keep what they bury.
    keeps_tombstones: bool,
    supplied: BTreeMap<u16, Record>,
    slot: usize,
    at: u64,
    buffer: Vec<u8>,
}

impl Compaction {
    /// Begins to compact a segment. `Ok(None)`: there is nothing to do, or not now (it is active, has
    /// records to confirm, its disk fails, or there is no room for the copy).
    pub fn begin(store: &Arc<Store>, number: SegmentNumber) -> Result<Option<Self>> {
        let segment = match store.segment_blocking(number) {
            Ok(segment) => segment,
            Err(Error::NoSegment(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let index = segment.folder();
        if segment.is_solo()
            || !segment.is_sealed()
            || store.is_marked(number)
            || store.folder(index).is_failed()
        {
            return Ok(None);
        }
        let live = segment.durable().saturating_sub(segment.dead_bytes());
        if store.folder(index).free() < live + SPARE_BYTES {
            tracing::debug!(segment = %number, live, "no room to compact a segment; tried again later");
            store.postpone(number);
            return Ok(None);
        }
        // What tombstones name may only count as gone when its unlink is durable.
        store.flush_dead()?;
        let header = SegmentHeader {
            generation: segment.header().generation + 1,
            salt: store.new_salt()?,
            ..*segment.header()
        };
        Ok(Some(Self {
            store: Arc::clone(store),
            reader: Reader::new(segment.file().clone()),
            segment,
            header,
            file: None,
            table: SlotTable::active(),
            keeps_tombstones: true,
            supplied: store.supplies.lock().take(number),
            slot: 0,
            at: HEADER_BYTES,
            buffer: header.encode(),
        }))
    }

    /// Every node of the group holds the whole segment: tombstones whose objects are gone here may go. To be said before
    /// the first step.
    pub fn let_tombstones_go(&mut self) {
        self.keeps_tombstones = false;
    }

    /// The segment.
    pub fn number(&self) -> SegmentNumber {
        self.header.number
    }

    /// Copies some more. After an error the compaction can only be dropped.
    pub fn step(&mut self) -> Result<Step> {
        let index = self.segment.folder();
        let store = Arc::clone(&self.store);
        self.step_once().map_err(|error| store.note_failure(index, error))
    }

    fn step_once(&mut self) -> Result<Step> {
        let mut moved = 0;
        let old = Arc::clone(&self.segment);
        let Some(table) = old.table() else { return Ok(Step::Done(0)) };
        while self.slot < SLOTS && moved < STEP_BYTES {
            let slot = self.slot as u16;
            self.slot += 1;
            moved += match (table.get(slot), self.supplied.remove(&slot)) {
                (Some(entry), _) if !entry.dead => self.copy(slot, &entry)?,
                (None, Some(record)) => self.put_back(record),
                _ => 0,
            };
        }
        if self.slot < SLOTS {
            self.write_out()?;
            return Ok(Step::More(moved));
        }
        self.finish().map(Step::Done)
    }

    /// Copies one record; the bytes read.
    fn copy(&mut self, slot: u16, entry: &Entry) -> Result<u64> {
        let path = self.segment.path();
        let bytes = self.reader.bytes(entry.offset, entry.head_len as usize)?;
        let mut head = RecordHead::decode(&bytes, self.segment.header().salt)
            .map_err(|error| Error::damaged(path, entry.offset, format!("slot {slot}: {error}")))?;
        if entry.state == SlotState::Tombstone && !self.must_keep(&head) {
            return Ok(u64::from(entry.head_len));
        }
        head.generation = self.header.generation;
        let payload_at = entry.offset + u64::from(entry.head_len);
        // A payload that fails its checksum is copied as it is: it goes on being reported, and may
        // still be repaired.
        let payload = self.reader.bytes(payload_at, entry.payload_len as usize)?;
        self.append(&head, &payload);
        Ok(record_bytes(entry))
    }

    /// Takes in a record that lacked; its bytes.
    fn put_back(&mut self, Record { mut head, payload }: Record) -> u64 {
        head.generation = self.header.generation;
        self.append(&head, &payload);
        metrics::counter!("reel_put_back_objects_total").increment(1);
        tracing::info!(object = %self.number().object(head.slot), "an object that lacked here is put back");
        head.record_len()
    }

    fn append(&mut self, head: &RecordHead, payload: &[u8]) {
        // Before anything was written, the header page lies in the buffer.
        let header = if self.file.is_none() { HEADER_BYTES } else { 0 };
        let at = self.at + self.buffer.len() as u64 - header;
        head.encode(self.header.salt, &mut self.buffer);
        self.buffer.extend_from_slice(payload);
        self.buffer.resize(align(self.buffer.len() as u64) as usize, 0);
        self.table.publish(head.slot, &entry_of(head, at));
    }

    /// Whether a tombstone still has something to say.
    fn must_keep(&self, head: &RecordHead) -> bool {
        if self.keeps_tombstones {
            return true;
        }
        let young = || {
            let until = head.modified_ms.saturating_add(self.store.options.tombstone_keep_ms);
            self.store.clock().now_ms() < until
        };
        let Some(target) = head.target else { return true };
        let fate = match self.fate(target) {
            Fate::Gone | Fate::Unknown if self.store.ensure_entry(target.segment()).is_err() => {
                Fate::Here
            }
            fate => fate,
        };
        match fate {
            Fate::Here => true,
            // It may still be on its way from a peer.
            Fate::Unknown => young(),
            Fate::Gone => head.kind == RecordKind::Delete && young(),
        }
    }

    fn fate(&self, target: ObjectId) -> Fate {
        let number = target.segment();
        if number == self.number() {
            // What is dead here goes with this very compaction.
            let entry = self.segment.table().and_then(|table| table.get(target.slot()));
            return if entry.is_some_and(|entry| !entry.dead) { Fate::Here } else { Fate::Gone };
        }
        match self.store.segment_blocking(number) {
            Ok(segment) => match segment.table() {
                Some(table)
                    if table.get(target.slot()).is_none()
                        && segment.is_sealed()
                        && !segment.is_doubtful() =>
                {
                    Fate::Gone
                }
                _ => Fate::Here,
            },
            Err(Error::NoSegment(_))
                if self.store.folders.iter().any(crate::store::Folder::is_failed) =>
            {
                Fate::Here
            }
            Err(Error::NoSegment(_)) => Fate::Unknown,
            Err(_) => Fate::Here,
        }
    }

    fn write_out(&mut self) -> Result<()> {
        let volume = self.store.volume(self.segment.folder());
        let path = self.segment.path().with_added_extension("new");
        let (file, at) = match self.file.take() {
            Some(file) => (file, self.at),
            None => {
                volume.remove_if_there(&path)?;
                (volume.create(&path)?, 0)
            }
        };
        file.write_all_at(&self.buffer, at)?;
        self.at = at + self.buffer.len() as u64;
        if self.at / SYNC_BYTES > at / SYNC_BYTES {
            // Little by little: one large sync at the end would hold uploads up.
            file.sync(SyncPoint::Compacted)?;
        }
        self.buffer.clear();
        self.file = Some(file);
        Ok(())
    }

    fn finish(&mut self) -> Result<u64> {
        let before = self.segment.durable();
        match self.store.segment_blocking(self.number()) {
            Ok(now) if now.header() == self.segment.header() => self.segment = now,
            // It was removed, or replaced.
            Ok(_) | Err(Error::NoSegment(_)) => return Ok(0),
            Err(error) => return Err(error),
        }
        if self.table.slots() == 0 {
            let (index, generation) = (self.segment.folder(), self.segment.header().generation);
            // Its peers may list it still.
            self.store.note_gone(self.number());
            self.store.save_gone()?;
            self.store.remove_from(self.number(), index, generation)?;
            return Ok(before);
        }
        self.write_out()?;
        let Some(file) = self.file.take() else { return Ok(0) };
        file.sync(SyncPoint::Compacted)?;
        self.store.switch(&self.segment, file, self.header, &self.table, self.at)?;
        self.store.folder(self.segment.folder()).refresh_space()?;
        Ok(before.saturating_sub(self.at))
    }
}

/// What has become of a tombstone's object.
enum Fate {
    /// Its bytes are here, or may come back.
    Here,
    /// Its segment is not here.
    Unknown,
    /// Its segment is here without it, durably.
    Gone,
}

impl Store {
    /// Puts a compacted segment in the old one's place. Dead marks set meanwhile are taken along.
    fn switch(
        &self,
        old: &Arc<Segment>,
        file: DiskFile,
        header: SegmentHeader,
        table: &SlotTable,
        end: u64,
    ) -> Result<()> {
        let index = old.folder();
        let volume = self.volume(index);
        let path = old.path().to_owned();
        let parent = path.parent().unwrap_or(&path);
        // No mark may be set on the old table, or synced there, once the new one is written.
        let _marks = self.switching.write();
        // As they are in the file now: the segment may have been closed, or its table rewritten.
        let marks = open_table(volume, &path, old.header())?.table;
        for (slot, _) in table.entries() {
            if marks.get(slot).is_some_and(|entry| entry.dead) {
                table.kill(slot)?;
            }
        }
        let points = (SyncPoint::CompactedTable, SyncPoint::CompactedTableEntry);
        table.write(volume, &path, &header, end, points)?;
        volume.rename(&path.with_added_extension("new"), &path)?;
        let synced = volume.sync_dir(parent, SyncPoint::CompactedEntry);
        let opened = open_table(volume, &path, &header)?;
        let content = Segment::packed(opened.table);
        let segment = Segment::new(header, index, file.renamed(path.clone()), content, end, true);
        if synced.is_err() {
            segment.note_doubtful();
        }
        self.register(Arc::new(segment));
        volume.remove_if_there(&table_path(&path, old.header().generation))?;
        synced
    }
}
