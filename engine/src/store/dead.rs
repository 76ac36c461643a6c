//! How dead objects stay dead.
//!
//! A tombstone is replayed at each start as long as its segment has a marker. So before a marker
//! goes, the dead marks (and unlinks) that tombstones caused must be durable: [`Store::flush_dead`].
//! Those that lie on a disk that fails just then, or whose segment has yet to come from a peer, are written down.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::Store;
use crate::disk::SyncPoint;
use crate::error::{Error, Result};
use crate::id::{ObjectId, SegmentNumber};
use crate::segment::Segment;
use crate::slots::{SlotTable, table_path};

/// Segments that are not here (yet) whose dead objects are remembered.
const PENDING_SEGMENTS: usize = 65_536;
/// The file that holds what could not be marked.
const DEFERRED: &str = "deferred";

/// What was changed in place and is not durable.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    /// Dead marks.
    tables: BTreeMap<SegmentNumber, BTreeSet<u16>>,
    /// Tables whose sync failed: their pages are not trusted again, whatever a later sync says.
    suspect: BTreeSet<SegmentNumber>,
    /// Folders with unlinked segments.
    entries: BTreeMap<(u16, PathBuf), BTreeSet<SegmentNumber>>,
}

/// Dead objects whose marks could not be made durable: their disk fails, or their segment has not come here yet.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    objects: BTreeSet<ObjectId>,
    /// As they stand in the file.
    saved: BTreeSet<ObjectId>,
}

impl Store {
    /// The object lost its name: its slot is marked, a solo segment is unlinked. Readers that have
    /// it open go on. True when it had been alive. Blocking.
    ///
    /// Its tombstone must be durable before. The mark is durable when the tombstone's segment loses
    /// its marker; until then each start sets it again.
    ///
    /// # Errors
    /// The mark could not be set; it is set when the segment can be opened again.
    pub fn kill(&self, object: ObjectId) -> Result<bool> {
        let segment = match self.segment_blocking(object.segment()) {
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
            return self.kill_solo(&segment).map(|()| true);
        }
        self.kill_in(&segment, object.slot())
    }

    fn kill_solo(&self, segment: &Segment) -> Result<()> {
        let number = segment.number();
        self.remove(number).inspect_err(|_| self.note_pending(number.object(0)))?;
        self.note_gone(number);
        Ok(())
    }

    /// Marks a slot; what cannot be marked stays pending.
    fn kill_in(&self, segment: &Segment, slot: u16) -> Result<bool> {
        let number = segment.number();
        self.try_kill_in(segment, slot).map_err(|error| {
            self.note_pending(number.object(slot));
            self.note_failure(segment.folder(), error)
        })
    }

    fn try_kill_in(&self, segment: &Segment, slot: u16) -> Result<bool> {
        let _marks = self.switching.read_recursive();
        let number = segment.number();
        self.note_unsynced(number, slot);
        let mut killed = segment.kill(slot)?;
        if segment.is_retired() {
            // Perhaps it was replaced meanwhile: mark the one that took over too.
            let now = self.segment_blocking(number)?;
            killed |= now.kill(slot)?;
            self.consider(&now);
        }
        if segment.table().is_some_and(|table| table.get(slot).is_none()) && !segment.is_sealed() {
            // A copy that has not got there yet.
            self.note_pending(number.object(slot));
        }
        self.consider(segment);
        Ok(killed)
    }

    pub(super) fn note_unsynced(&self, number: SegmentNumber, slot: u16) {
        self.unsynced.lock().tables.entry(number).or_default().insert(slot);
    }

    pub(super) fn note_unlinked(&self, number: SegmentNumber, folder: u16, path: PathBuf) {
        self.unsynced.lock().entries.entry((folder, path)).or_default().insert(number);
    }

    /// A segment that is not here was perhaps unlinked by an earlier life, without a sync.
    pub(crate) fn note_unlinked_somewhere(&self, number: SegmentNumber) {
        for (index, folder) in self.folders.iter().enumerate() {
            let path = folder.path.join(number.path());
            if let Some(parent) = path.parent() {
                self.note_unlinked(number, index as u16, parent.to_owned());
            }
        }
    }

    /// Makes sure that the segment's name stands for what it stands for now, or for nothing, for good:
    /// an earlier life may have renamed or unlinked it without a sync.
    pub(crate) fn ensure_entry(&self, number: SegmentNumber) -> Result<()> {
        for (index, folder) in self.folders.iter().enumerate() {
            let path = folder.path.join(number.path());
            let parent = path.parent().unwrap_or(&folder.path).to_owned();
            let key = (index as u16, parent);
            if self.settled_dirs.lock().contains(&key) {
                continue;
            }
            match folder.volume.sync_dir(&key.1, SyncPoint::RemovedEntry) {
                Err(error) if !error.is_missing() => {
                    return Err(self.note_failure(key.0, error));
                }
                _ => drop(self.settled_dirs.lock().insert(key)),
            }
        }
        Ok(())
    }

    /// The slots of a segment that are dead. Blocking.
    pub fn dead_slots(&self, number: SegmentNumber) -> Result<Vec<u16>> {
        let segment = self.segment_blocking(number)?;
        let entries = segment.table().into_iter().flat_map(SlotTable::entries);
        Ok(entries.filter(|(_, entry)| entry.dead).map(|(slot, _)| slot).collect())
    }

    /// [`Store::kill`] of what a peer says is dead. One that cannot be marked now (its segment is a copy that is not complete,
    /// or its disk fails) stays pending and keeps no other alive. Blocking.
    pub(crate) fn kill_all(&self, objects: impl IntoIterator<Item = ObjectId>) {
        for object in objects {
            if let Err(error) = self.kill(object) {
                tracing::debug!(%object, %error, "dead object not marked yet");
            }
        }
    }

    /// Remembers that an object is dead until its segment is here, or can be opened.
    pub(crate) fn note_pending(&self, object: ObjectId) {
        let mut pending = self.pending_dead.lock();
        if pending.len() >= PENDING_SEGMENTS && !pending.contains_key(&object.segment()) {
            pending.pop_first();
        }
        pending.entry(object.segment()).or_default().insert(object.slot());
    }

    /// The nodes whose they are have marked them, or no node has them: they are not said again.
    pub fn forget_dead(&self, objects: &[ObjectId]) {
        let mut deferred = self.deferred.lock();
        let mut pending = self.pending_dead.lock();
        for object in objects {
            deferred.objects.remove(object);
            if let Some(slots) = pending.get_mut(&object.segment()) {
                slots.remove(&object.slot());
                if slots.is_empty() {
                    pending.remove(&object.segment());
                }
            }
        }
    }

    /// Marks what is known to be dead in a segment that was just opened, or grew.
    pub(crate) fn kill_pending(&self, segment: &Arc<Segment>) -> Result<()> {
        let Some(slots) = self.pending_dead.lock().remove(&segment.number()) else { return Ok(()) };
        if segment.is_solo() {
            return self.kill_solo(segment);
        }
        let mut result = Ok(());
        for slot in slots {
            // One that fails is pending again.
            result = result.and(self.kill_in(segment, slot).map(drop));
        }
        result
    }

    /// Opens every segment here in which something is known to be dead, so that it is marked. What
    /// lies on a disk that fails stays pending.
    fn kill_all_pending(&self) -> Result<()> {
        let waiting: Vec<SegmentNumber> = self.pending_dead.lock().keys().copied().collect();
        for number in waiting.into_iter().filter(|number| self.is_reachable(*number)) {
            let killed =
                self.segment_blocking(number).and_then(|segment| self.kill_pending(&segment));
            match killed {
                Ok(()) | Err(Error::NoSegment(_)) => {}
                Err(_) if !self.is_reachable(number) => {}
                Err(Error::Damaged { path, offset, what }) => {
                    tracing::error!(segment = %number, path = %path.display(), offset, what, "dead objects of a damaged segment are not marked");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether a segment is here, on a disk that works.
    fn is_reachable(&self, number: SegmentNumber) -> bool {
        self.folder_of(number).is_some_and(|index| !self.folder(index).is_failed())
    }

    /// Makes every dead mark and every unlink durable. Marks on a table in memory are written beside
    /// its segment, where recovery looks for them. What lies on a disk that fails is written down on
    /// one that works, and done when it works again.
    pub(crate) fn flush_dead(&self) -> Result<()> {
        let mut deferred = self.deferred.lock();
        for object in &deferred.objects {
            self.note_pending(*object);
        }
        let mut left = BTreeSet::new();
        self.kill_all_pending()?;
        let mut taken = std::mem::take(&mut *self.unsynced.lock());
        let flushed = self.flush_taken(&mut taken, &mut left);
        {
            let mut unsynced = self.unsynced.lock();
            for (number, mut slots) in taken.tables {
                unsynced.tables.entry(number).or_default().append(&mut slots);
            }
            unsynced.suspect.append(&mut taken.suspect);
            for (folder, mut numbers) in taken.entries {
                unsynced.entries.entry(folder).or_default().append(&mut numbers);
            }
        }
        flushed?;
        for (number, slots) in &*self.pending_dead.lock() {
            // Its segment is not here, or not so far, and may still come: from a peer, or with its disk.
            left.extend(slots.iter().map(|slot| number.object(*slot)));
        }
        deferred.objects = left;
        self.save_deferred(&mut deferred)?;
        self.save_gone()
    }

    /// Syncs what was taken; what is done leaves it, what lies on a failing disk goes to `left`.
    fn flush_taken(&self, taken: &mut Unsynced, left: &mut BTreeSet<ObjectId>) -> Result<()> {
        while let Some((number, slots)) = taken.tables.first_key_value() {
            let number = *number;
            match self.folder_of(number) {
                None => {}
                Some(index) if self.folder(index).is_failed() => {
                    left.extend(slots.iter().map(|slot| number.object(*slot)));
                }
                Some(index) => match self.flush_table(number, taken.suspect.contains(&number)) {
                    Ok(()) => drop(taken.suspect.remove(&number)),
                    Err(Error::NoSegment(_)) => {}
                    Err(error) => {
                        taken.suspect.insert(number);
                        let error = self.note_failure(index, error);
                        if !self.folder(index).is_failed() {
                            return Err(error);
                        }
                        continue;
                    }
                },
            }
            taken.tables.pop_first();
        }
        while let Some(((index, path), numbers)) = taken.entries.first_key_value() {
            let works = !self.folder(*index).is_failed();
            let synced = self.volume(*index).sync_dir(path, SyncPoint::RemovedEntry);
            if let Err(error) = synced
                && !error.is_missing()
            {
                // Only the next start can tell what became of it.
                left.extend(numbers.iter().map(|number| number.object(0)));
                let error = self.note_failure(*index, error);
                if works {
                    tracing::warn!(%error, "unlinked segments are looked for at the next start");
                }
            }
            taken.entries.pop_first();
        }
        Ok(())
    }

    fn flush_table(&self, number: SegmentNumber, suspect: bool) -> Result<()> {
        let is_active = |segment: &Segment| segment.table().is_some_and(SlotTable::is_active);
        if suspect {
            let segment = self.segment_blocking(number)?;
            if !is_active(&segment) {
                return self.rewrite_table(&segment);
            }
        }
        let _marks = self.switching.read_recursive();
        let segment = self.segment_blocking(number)?;
        if is_active(&segment) {
            return self.write_table(&segment, (SyncPoint::DeadMarks, SyncPoint::DeadMarks));
        }
        if segment.is_solo() {
            return Ok(());
        }
        let path = table_path(segment.path(), segment.header().generation);
        self.volume(segment.folder()).open_write(&path)?.sync(SyncPoint::DeadMarks)
    }

    fn save_deferred(&self, deferred: &mut Deferred) -> Result<()> {
        if deferred.objects == deferred.saved {
            return Ok(());
        }
        let objects: Vec<ObjectId> = deferred.objects.iter().copied().collect();
        self.save_list(DEFERRED, &objects)?;
        deferred.saved.clone_from(&deferred.objects);
        Ok(())
    }

    /// At a start: what was written down is marked when its segment is opened.
    pub(super) fn load_deferred(&self) -> Result<()> {
        let mut deferred = self.deferred.lock();
        deferred.saved = self.load_list(DEFERRED)?;
        deferred.objects = deferred.saved.clone();
        for object in &deferred.objects {
            self.note_pending(*object);
        }
        Ok(())
    }
}
