//! How a segment ends: sealed, settled, emptied; and how dead objects stay dead.
//!
//! A tombstone is replayed at each start as long as its segment has a marker. So before a marker
//! goes, the dead marks that the segment's tombstones set must be durable ([`Store::flush_dead`]).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::Store;
use crate::disk::{Job, SyncPoint};
use crate::error::{Error, Result};
use crate::id::{ObjectId, SegmentNumber};
use crate::segment::Segment;
use crate::segment::open::open_table;
use crate::slots::{SlotTable, table_path};

/// Dead objects of segments that are not here (yet) that are remembered.
const PENDING_DEAD: usize = 65_536;

/// What was changed in place and is not durable.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    /// Segments with dead marks.
    tables: BTreeSet<SegmentNumber>,
    /// Folders with unlinked segments.
    entries: BTreeSet<(u16, PathBuf)>,
}

impl Store {
    /// Seals a packed segment at its durable length: table written. Its marker goes when the
    /// catalog has confirmed all its records. On a disk thread.
    pub(crate) fn seal(self: &Arc<Self>, segment: Arc<Segment>) -> Job<()> {
        let store = Arc::clone(self);
        self.pool.run(move || {
            store.seal_blocking(&segment).inspect_err(|error| {
                tracing::error!(segment = %segment.number(), %error, "sealing failed; the segment is recovered at the next start");
            })
        })
    }

    pub(crate) fn seal_blocking(&self, segment: &Arc<Segment>) -> Result<()> {
        let sealed = self.seal_once(segment);
        sealed.map_err(|error| self.note_failure(segment.folder(), error))?;
        // The segment stays the one that is registered (its table in memory) until the catalog has
        // confirmed its records, because it counts them; then the mapped one takes over.
        segment.set_sealed();
        self.note_change(segment.number());
        if segment.unsettled() == 0 {
            self.settle_blocking(segment)?;
        }
        Ok(())
    }

    fn seal_once(&self, segment: &Segment) -> Result<()> {
        segment.file().set_len(segment.durable())?;
        segment.file().sync(SyncPoint::SealCut)?;
        self.write_table(segment, (SyncPoint::Table, SyncPoint::TableEntry))
    }

    fn write_table(&self, segment: &Segment, points: (SyncPoint, SyncPoint)) -> Result<()> {
        let Some(table) = segment.table() else { return Ok(()) };
        let volume = self.volume(segment.folder());
        table.write(volume, segment.path(), segment.header(), segment.durable(), points)
    }

    /// Writes the table of a segment again, from memory.
    pub(crate) fn rewrite_table(&self, segment: &Arc<Segment>) -> Result<()> {
        if !segment.is_sealed() || segment.table().is_none_or(SlotTable::is_active) {
            return Ok(());
        }
        let index = segment.folder();
        let _marks = self.switching.write();
        if segment.is_retired() {
            return Ok(());
        }
        self.write_table(segment, (SyncPoint::DeadMarks, SyncPoint::TableEntry))
            .map_err(|error| self.note_failure(index, error))?;
        let opened = open_table(self.volume(index), segment.path(), segment.header())?;
        let (content, length) = (Segment::packed(opened.table), opened.header.segment_len);
        let file = segment.file().clone();
        let header = *segment.header();
        self.register(Arc::new(Segment::new(header, index, file, content, length, true)));
        Ok(())
    }

    /// One record of `segment` is confirmed by the catalog (or needs no confirmation any more). For
    /// a tombstone: call [`Store::kill`] first.
    pub fn settled(self: &Arc<Self>, segment: &Arc<Segment>) {
        if segment.settle_one() && segment.is_sealed() {
            let (store, segment) = (Arc::clone(self), Arc::clone(segment));
            // An error leaves the marker: the records are offered once more at the next start.
            drop(self.pool.run(move || {
                store.settle_blocking(&segment).inspect_err(|error| {
                    tracing::warn!(segment = %segment.number(), %error, "segment stays marked as active");
                })
            }));
        }
    }

    /// Takes the last steps of a sealed segment whose records are all confirmed. Both who seals and
    /// who confirms the last record come here; one of them does it.
    fn settle_blocking(&self, segment: &Arc<Segment>) -> Result<()> {
        if segment.is_retired() || !segment.is_sealed() || !segment.begin_settling() {
            return Ok(());
        }
        self.settle_once(segment).inspect_err(|_| segment.end_settling())
    }

    fn settle_once(&self, segment: &Arc<Segment>) -> Result<()> {
        let number = segment.number();
        let index = segment.folder();
        if let Some(table) = segment.table().filter(|table| table.is_active()) {
            // Marks set on the table in memory since it was written are written along.
            self.write_table(segment, (SyncPoint::Table, SyncPoint::TableEntry))
                .map_err(|error| self.note_failure(index, error))?;
            let opened = open_table(self.volume(index), segment.path(), segment.header())?;
            let content = Segment::packed(opened.table);
            let file = segment.file().clone();
            let length = opened.header.segment_len;
            let mapped =
                Arc::new(Segment::new(*segment.header(), index, file, content, length, true));
            // From here on a kill goes to the mapped table; one that came in between is carried over.
            self.register(Arc::clone(&mapped));
            self.unsynced.lock().tables.insert(number);
            for (slot, entry) in table.entries() {
                if entry.dead {
                    mapped.kill(slot);
                }
            }
            self.consider(&mapped);
        }
        self.kill_all_pending()?;
        self.flush_dead()?;
        // What the catalog confirmed must survive a power loss by itself from here on.
        (self.options.barrier)()
            .map_err(|error| Error::io("make the catalog durable for", segment.path(), error))?;
        self.unmark(number, index)?;
        if segment.has_holes() {
            self.candidates.lock().insert(number);
        }
        Ok(())
    }

    fn unmark(&self, number: SegmentNumber, folder: u16) -> Result<()> {
        let folder = self.folder(folder);
        folder.volume.remove_if_there(&folder.marker(number))?;
        self.marked.lock().remove(&number);
        Ok(())
    }

    /// Whether a start would read the segment: it is being written, or holds records to be confirmed.
    pub fn is_marked(&self, number: SegmentNumber) -> bool {
        self.marked.lock().contains(&number)
    }

    pub(crate) fn note_marked(&self, number: SegmentNumber) {
        self.marked.lock().insert(number);
    }

    /// The object lost its name: its slot is marked, a solo segment is unlinked. Readers that have
    /// it open go on. True when it had been alive. Blocking.
    ///
    /// Its tombstone must be durable before. The mark is durable when the tombstone's segment loses
    /// its marker; until then each start sets it again.
    pub fn kill(&self, object: ObjectId) -> Result<bool> {
        let number = object.segment();
        let segment = match self.segment_blocking(number) {
            Ok(segment) => segment,
            Err(Error::NoSegment(_)) => {
                self.note_pending(object);
                return Ok(false);
            }
            Err(error) => {
                self.note_pending(object);
                return Err(error);
            }
        };
        if segment.is_solo() {
            return self.remove(number).map(|()| true);
        }
        Ok(self.kill_in(&segment, object.slot()))
    }

    fn kill_in(&self, segment: &Segment, slot: u16) -> bool {
        let _marks = self.switching.read_recursive();
        let number = segment.number();
        self.unsynced.lock().tables.insert(number);
        let mut killed = segment.kill(slot);
        if segment.is_retired() {
            // It was replaced meanwhile: mark the one that took over too.
            if let Some(now) = self.loaded(number) {
                killed |= now.kill(slot);
                self.consider(&now);
            }
        }
        if segment.table().is_some_and(|table| table.get(slot).is_none()) && !segment.is_sealed() {
            // A copy that has not got there yet.
            self.note_pending(number.object(slot));
        }
        self.consider(segment);
        killed
    }

    /// Remembers that an object is dead until its segment is here, or can be opened.
    pub(crate) fn note_pending(&self, object: ObjectId) {
        let mut pending = self.pending_dead.lock();
        if pending.len() >= PENDING_DEAD && !pending.contains_key(&object.segment()) {
            pending.pop_first();
        }
        pending.entry(object.segment()).or_default().insert(object.slot());
    }

    /// Marks what is known to be dead in a segment that was just opened, or grew.
    pub(crate) fn kill_pending(&self, segment: &Arc<Segment>) -> Result<()> {
        let number = segment.number();
        let Some(slots) = self.pending_dead.lock().remove(&number) else { return Ok(()) };
        if segment.is_solo() {
            return self.remove(number);
        }
        for slot in slots {
            self.kill_in(segment, slot);
        }
        Ok(())
    }

    /// Opens every segment here in which something is known to be dead, so that it is marked.
    fn kill_all_pending(&self) -> Result<()> {
        let waiting: Vec<SegmentNumber> = self.pending_dead.lock().keys().copied().collect();
        for number in waiting.into_iter().filter(|number| self.has(*number)) {
            let failed = |number| {
                self.folder_of(number).is_none_or(|index| self.folder(index).is_failed())
            };
            match self.segment_blocking(number) {
                Ok(segment) => self.kill_pending(&segment)?,
                Err(Error::NoSegment(_)) => {}
                // What a broken disk holds is not here: its marks are not waited for.
                Err(error) if error.is_disk() && failed(number) => {}
                Err(Error::Damaged { path, offset, what }) => {
                    tracing::error!(segment = %number, path = %path.display(), offset, what, "dead objects of a damaged segment are not marked");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes every dead mark and every unlink durable. Marks on a table in memory are written beside
    /// its segment, where recovery looks for them. What lies on a broken disk is left out: those
    /// objects are not here, and the sweep finds what comes back with the disk.
    pub(crate) fn flush_dead(&self) -> Result<()> {
        let _marks = self.switching.read_recursive();
        let mut taken = std::mem::take(&mut *self.unsynced.lock());
        let flushed = self.flush_taken(&mut taken);
        if flushed.is_err() {
            let mut unsynced = self.unsynced.lock();
            unsynced.tables.append(&mut taken.tables);
            unsynced.entries.append(&mut taken.entries);
        }
        flushed
    }

    fn flush_taken(&self, taken: &mut Unsynced) -> Result<()> {
        while let Some(number) = taken.tables.first().copied() {
            if let Some(index) = self.folder_of(number)
                && !self.folder(index).is_failed()
            {
                match self.flush_table(number) {
                    Ok(()) | Err(Error::NoSegment(_)) => {}
                    Err(error) => return Err(self.note_failure(index, error)),
                }
            }
            taken.tables.pop_first();
        }
        while let Some((index, path)) = taken.entries.first().cloned() {
            if !self.folder(index).is_failed() {
                self.volume(index)
                    .sync_dir(&path, SyncPoint::RemovedEntry)
                    .map_err(|error| self.note_failure(index, error))?;
            }
            taken.entries.pop_first();
        }
        Ok(())
    }

    fn flush_table(&self, number: SegmentNumber) -> Result<()> {
        let segment = self.segment_blocking(number)?;
        let Some(table) = segment.table() else { return Ok(()) };
        if table.is_active() {
            return self.write_table(&segment, (SyncPoint::DeadMarks, SyncPoint::DeadMarks));
        }
        let path = table_path(segment.path(), segment.header().generation);
        self.volume(segment.folder()).open_write(&path)?.sync(SyncPoint::DeadMarks)
    }

    /// Removes a segment: its files go, then (when they are gone for good) its marker. Blocking.
    pub(crate) fn remove(&self, number: SegmentNumber) -> Result<()> {
        let Some(index) = self.folder_of(number) else { return Ok(()) };
        let generation = self.handles.get(number).map_or(0, |segment| segment.header().generation);
        self.remove_from(number, index, generation)
    }

    /// [`Store::remove`] of a segment in a known folder and generation.
    pub(crate) fn remove_from(
        &self,
        number: SegmentNumber,
        index: u16,
        generation: u32,
    ) -> Result<()> {
        self.known.write().remove(&number);
        self.handles.remove(number);
        self.candidates.lock().remove(&number);
        self.remove_files(number, index, generation)
            .map_err(|error| self.note_failure(index, error))
    }

    fn remove_files(&self, number: SegmentNumber, index: u16, generation: u32) -> Result<()> {
        let folder = self.folder(index);
        let path = folder.path.join(number.path());
        let parent = path.parent().unwrap_or(&folder.path).to_owned();
        let was_there = folder.volume.remove_if_there(&path)?;
        folder.volume.remove_if_there(&table_path(&path, generation))?;
        if self.is_marked(number) {
            // Without a marker half an upload would look like a segment.
            if was_there {
                folder.volume.sync_dir(&parent, SyncPoint::ForgottenEntry)?;
            }
            return self.unmark(number, index);
        }
        if was_there {
            self.unsynced.lock().entries.insert((index, parent));
        }
        Ok(())
    }

    /// Removes what an upload that was never complete has left, at a start.
    pub(crate) fn remove_unfinished(&self, number: SegmentNumber, folder: u16) -> Result<()> {
        self.known.write().remove(&number);
        self.remove_files(number, folder, 0)
    }

    /// Leaves a damaged segment where it is, unused.
    pub(crate) fn leave_out(&self, number: SegmentNumber) {
        self.known.write().remove(&number);
    }

    /// A copy of a large segment is complete and durable: it needs no confirmation.
    pub(crate) fn seal_copy(&self, segment: &Arc<Segment>) -> Result<()> {
        self.kill_pending(segment)?;
        if segment.is_retired() {
            return Ok(());
        }
        self.unmark(segment.number(), segment.folder())
    }

    /// Removes what an upload that failed has left; what cannot be removed now is at the next start.
    pub(crate) fn abandon(&self, number: SegmentNumber) {
        if let Err(error) = self.remove(number) {
            tracing::warn!(segment = %number, %error, "an unfinished segment is removed at the next start");
        }
    }

    /// Notes a segment that is worth compacting.
    pub(crate) fn consider(&self, segment: &Segment) {
        let dead = segment.dead_bytes();
        if dead > 0 && dead * 100 >= segment.durable() * self.options.compact_dead_percent {
            self.candidates.lock().insert(segment.number());
        }
    }

    /// Takes a segment worth compacting.
    pub(crate) fn next_candidate(&self) -> Option<SegmentNumber> {
        self.candidates.lock().pop_first()
    }
}
