//! Segments that are gone for good: all of their objects were dead. Peers may still list them, until tombstones have got
//! there; they are not copied again.

use std::collections::BTreeSet;

use super::Store;
use crate::disk::SyncPoint;
use crate::error::{Error, Result};
use crate::format::deferred;
use crate::id::{ObjectId, SegmentNumber};

/// The file that holds them: each as its first object.
const FILE: &str = "gone";

/// The numbers.
#[derive(Debug, Default)]
pub(super) struct Gone {
    numbers: BTreeSet<SegmentNumber>,
    /// Whether the file lacks some.
    changed: bool,
}

impl Store {
    /// The segment was removed, or will be as soon as [`Store::save_gone`] has made this durable.
    pub(crate) fn note_gone(&self, number: SegmentNumber) {
        let mut gone = self.gone.lock();
        gone.changed |= gone.numbers.insert(number);
        if gone.numbers.len() > self.options.remember_gone {
            gone.numbers.pop_first();
        }
    }

    /// Whether all objects of the segment were dead here.
    pub fn is_gone(&self, number: SegmentNumber) -> bool {
        self.gone.lock().numbers.contains(&number)
    }

    /// Those of the segments of which that is so.
    pub fn gone_among<'a>(
        &self,
        numbers: impl IntoIterator<Item = &'a SegmentNumber>,
    ) -> Vec<SegmentNumber> {
        let gone = self.gone.lock();
        numbers.into_iter().filter(|number| gone.numbers.contains(number)).copied().collect()
    }

    /// Makes durable what is gone.
    pub(crate) fn save_gone(&self) -> Result<()> {
        let mut gone = self.gone.lock();
        if !gone.changed {
            return Ok(());
        }
        let objects: Vec<ObjectId> = gone.numbers.iter().map(|number| number.object(0)).collect();
        self.save_list(FILE, &objects)?;
        gone.changed = false;
        Ok(())
    }

    /// Writes a list of objects to the first folder that works, durably.
    pub(super) fn save_list(&self, name: &str, objects: &[ObjectId]) -> Result<()> {
        let working = self.folders.iter().find(|folder| folder.is_open() && !folder.is_failed());
        let Some(folder) = working else {
            let reasons = self.folder_states().into_iter().filter_map(|state| state.failed);
            return Err(Error::NoFolder(reasons.collect::<Vec<_>>().join("; ")));
        };
        let path = folder.path.join(name);
        if objects.is_empty() {
            return folder.volume.remove_if_there(&path).map(drop);
        }
        let bytes = deferred::encode(objects.iter().copied());
        folder.volume.replace(&path, &bytes, SyncPoint::DeadMarks, SyncPoint::DeadMarks)
    }

    /// The lists of that name in all folders that work.
    pub(super) fn load_list(&self, name: &str) -> Result<BTreeSet<ObjectId>> {
        let mut found = BTreeSet::new();
        for folder in self.folders.iter().filter(|folder| folder.is_open() && !folder.is_failed()) {
            match folder.volume.read(&folder.path.join(name)) {
                Ok(bytes) => match deferred::decode(&bytes) {
                    Ok(objects) => found.extend(objects),
                    Err(error) => {
                        tracing::error!(folder = %folder.path.display(), name, %error, "a list of dead objects is not known any more; the sweep finds them");
                    }
                },
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    pub(super) fn load_gone(&self) -> Result<()> {
        let found = self.load_list(FILE)?;
        self.gone.lock().numbers.extend(found.into_iter().map(ObjectId::segment));
        Ok(())
    }

    /// At a start: what an earlier life had no time to remove.
    pub(super) fn remove_gone(&self) -> Result<()> {
        let gone: Vec<SegmentNumber> = self.gone.lock().numbers.iter().copied().collect();
        gone.into_iter()
            .filter(|number| self.has(*number))
            .try_for_each(|number| self.remove(number))
    }
}
