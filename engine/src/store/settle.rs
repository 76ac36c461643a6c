//! How a segment ends: sealed, settled, removed.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Store;
use super::folder::Marker;
use crate::disk::{Job, SyncPoint};
use crate::error::{Error, Result};
use crate::id::SegmentNumber;
use crate::segment::Segment;
use crate::segment::open::open_table;
use crate::slots::{SlotTable, table_path};

/// What is appended to the file name of a segment that is set aside.
const SET_ASIDE: &str = "damaged";

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
        self.own_copies.lock().remove(&segment.number());
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

    pub(super) fn write_table(
        &self,
        segment: &Segment,
        points: (SyncPoint, SyncPoint),
    ) -> Result<()> {
        let Some(table) = segment.table() else { return Ok(()) };
        let volume = self.volume(segment.folder());
        table.write(volume, segment.path(), segment.header(), segment.durable(), points)
    }

    /// Writes the table of a sealed segment again: its pages are not trusted, or a mark in it is
    /// damaged. One that does not hold its checksum is made anew from the segment.
    pub(crate) fn rewrite_table(&self, segment: &Arc<Segment>) -> Result<()> {
        let (number, index, header) = (segment.number(), segment.folder(), *segment.header());
        if !segment.is_sealed() || segment.table().is_none_or(SlotTable::is_active) {
            return Ok(());
        }
        let marks = self.switching.write();
        let volume = self.volume(index);
        let path = segment.path();
        let opened = match open_table(volume, path, &header) {
            Ok(opened) => opened,
            Err(error @ Error::Io { .. }) => return Err(self.note_failure(index, error)),
            Err(_) => {
                drop(marks);
                self.handles.remove(number);
                return self.segment_blocking(number).map(drop);
            }
        };
        let (length, points) =
            (opened.header.segment_len, (SyncPoint::DeadMarks, SyncPoint::TableEntry));
        let written = opened.table.write(volume, path, &header, length, points);
        written.map_err(|error| self.note_failure(index, error))?;
        let opened = open_table(volume, path, &header)?;
        let content = Segment::packed(opened.table);
        let file = segment.file().clone();
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
            for (slot, entry) in table.entries() {
                if entry.dead && mapped.kill(slot)? {
                    self.note_unsynced(number, slot);
                }
            }
            self.consider(&mapped);
        }
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
        folder.volume.remove_if_there(&folder.marker(number, Marker::Active))?;
        folder.volume.remove_if_there(&folder.marker(number, Marker::Copy))?;
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
        self.own_copies.lock().remove(&number);
        self.handles.remove(number);
        self.candidates.lock().remove(&number);
        drop(self.supplies.lock().take(number));
        self.remove_files(number, index, generation).map_err(|error| {
            // It may be there still.
            self.known.write().insert(number, index);
            self.note_failure(index, error)
        })?;
        // Who has it open (on a shared volume) should let it go.
        self.note_change(number);
        Ok(())
    }

    fn remove_files(&self, number: SegmentNumber, index: u16, generation: u32) -> Result<()> {
        let folder = self.folder(index);
        let path = folder.path.join(number.path());
        let parent = path.parent().unwrap_or(&folder.path).to_owned();
        let was_there = folder.volume.remove_if_there(&path)?;
        folder.volume.remove_if_there(&table_path(&path, generation))?;
        if self.is_marked(number) {
            // Without a marker half an upload would look like a segment. Also when it is not there any
            // more: an earlier life may have unlinked it without a sync.
            match folder.volume.sync_dir(&parent, SyncPoint::ForgottenEntry) {
                Err(error) if !error.is_missing() => return Err(error),
                _ => {}
            }
            return self.unmark(number, index);
        }
        if was_there {
            self.note_unlinked(number, index, parent);
        }
        Ok(())
    }

    /// Removes what an upload that was never complete has left, at a start.
    pub(crate) fn remove_unfinished(&self, number: SegmentNumber, folder: u16) -> Result<()> {
        self.known.write().remove(&number);
        self.remove_files(number, folder, 0)
    }

    /// Sets a sealed segment aside whose file cannot be opened, so that it can be copied anew from a peer. The file stays
    /// beside, as `….seg.damaged`, for whoever wants to read what can be read. Blocking.
    ///
    /// # Errors
    /// I/O errors; it is where it was then.
    pub fn set_aside(&self, number: SegmentNumber) -> Result<()> {
        let Some(index) = self.folder_of(number) else { return Ok(()) };
        if self.is_marked(number) {
            return Ok(());
        }
        let folder = self.folder(index);
        let path = folder.path.join(number.path());
        self.known.write().remove(&number);
        self.handles.remove(number);
        self.candidates.lock().remove(&number);
        folder.volume.rename(&path, &path.with_added_extension(SET_ASIDE)).map_err(|error| {
            self.known.write().insert(number, index);
            self.note_failure(index, error)
        })
    }

    /// The same, at a start, for one that was being written.
    pub(crate) fn set_active_aside(&self, number: SegmentNumber, folder: u16) -> Result<()> {
        self.known.write().remove(&number);
        let volume = &self.folder(folder).volume;
        let path = self.folder(folder).path.join(number.path());
        volume.rename(&path, &path.with_added_extension(SET_ASIDE))?;
        if let Some(parent) = path.parent() {
            // Without a marker it would look like a segment.
            volume.sync_dir(parent, SyncPoint::ForgottenEntry)?;
        }
        self.unmark(number, folder)
    }

    /// A copy of a large segment is complete and durable: it needs no confirmation.
    pub(crate) fn seal_copy(&self, segment: &Arc<Segment>) -> Result<()> {
        self.kill_pending(segment)?;
        if !self.has(segment.number()) {
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

    /// [`Store::abandon`] on a disk thread, whether or not the job is kept.
    pub(crate) fn abandon_soon(self: &Arc<Self>, number: SegmentNumber) -> Job<()> {
        let store = Arc::clone(self);
        self.pool.run(move || {
            store.abandon(number);
            Ok(())
        })
    }

    /// Notes a segment that is worth compacting.
    pub(crate) fn consider(&self, segment: &Segment) {
        let dead = segment.dead_bytes();
        let worth = segment.has_holes() && segment.is_sealed();
        if worth || dead > 0 && dead * 100 >= segment.durable() * self.options.compact_dead_percent
        {
            self.candidates.lock().insert(segment.number());
        }
    }

    /// Takes the segments worth compacting.
    pub(crate) fn take_candidates(&self) -> BTreeSet<SegmentNumber> {
        std::mem::take(&mut *self.candidates.lock())
    }

    /// Notes a segment that could not be compacted now, or has something to be put back.
    pub(crate) fn postpone(&self, number: SegmentNumber) {
        self.candidates.lock().insert(number);
    }
}
