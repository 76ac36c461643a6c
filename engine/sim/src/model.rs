//! What must be true of the store, whatever happened.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use reel_engine::format::record::RecordKind;
use reel_engine::{Error, ObjectId, Store, Version};

use crate::catalog::Catalog;

/// The bytes of an upload: its version determines them.
pub fn payload(version: Version, length: usize) -> Vec<u8> {
    let mut state = version.hlc.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// An upload that was begun.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub length: usize,
}

/// What is known of an object that lost its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kill {
    /// Its tombstone may have been written.
    Begun,
    /// Its tombstone is durable and its slot marked: it is gone for good.
    Done,
}

/// The plain model.
#[derive(Debug, Default)]
pub struct Model {
    /// Uploads that were begun, by version.
    pub attempts: BTreeMap<Version, Attempt>,
    /// Objects whose record was said to be durable (or was seen after a restart), by id.
    pub stored: BTreeMap<ObjectId, Version>,
    /// Objects that lost their names.
    pub kills: BTreeMap<ObjectId, Kill>,
    /// The highest answered write of each name.
    pub answered: BTreeMap<String, Version>,
    /// Segments in which a bit was flipped: their objects may be unreadable (never wrong).
    pub flipped: BTreeSet<u64>,
    /// Reads compared.
    pub reads: u64,
}

/// What reading an object gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// Its version, and whether its bytes are those that were uploaded.
    Here(Version, bool),
    /// It is not here.
    Gone,
    /// It cannot be read.
    Failed(String),
}

/// Reads an object by its id, past all caches of names.
pub fn read(store: &Arc<Store>, model: &Model, object: ObjectId) -> Read {
    let segment = match store.segment_blocking(object.segment()) {
        Ok(segment) => segment,
        Err(Error::NoSegment(_)) => return Read::Gone,
        Err(error) => return Read::Failed(error.to_string()),
    };
    let Some(located) = segment.locate(object.slot()) else { return Read::Gone };
    let head = match segment.read_head(object.slot()) {
        Ok(Some(head)) => head,
        Ok(None) => return Read::Gone,
        Err(error) => return Read::Failed(error.to_string()),
    };
    let mut bytes = vec![0; located.length as usize];
    if let Err(error) = segment.file().read_exact_at(&mut bytes, located.offset) {
        return Read::Failed(error.to_string());
    }
    if crc32fast::hash(&bytes) != located.crc {
        return Read::Failed(format!("checksum mismatch at byte {}", located.offset));
    }
    let same = model.attempts.get(&head.version).is_some_and(|attempt| {
        attempt.name == head.name && payload(head.version, attempt.length) == bytes
    });
    Read::Here(head.version, same)
}

impl Model {
    /// Notes an object whose record is durable.
    ///
    /// # Errors
    /// When its id had been given to another one.
    pub fn note_stored(&mut self, object: ObjectId, version: Version) -> Result<(), String> {
        match self.stored.insert(object, version) {
            Some(before) if before != version => {
                Err(format!("id {object} was given twice: {before:?} and {version:?}"))
            }
            _ => Ok(()),
        }
    }

    /// Notes the fate of an object; it only gets worse.
    pub fn note_kill(&mut self, object: ObjectId, kill: Kill) {
        let known = self.kills.entry(object).or_insert(kill);
        *known = (*known).max(kill);
    }

    /// Notes an answered write.
    pub fn note_answered(&mut self, name: &str, version: Version) {
        let known = self.answered.entry(name.to_owned()).or_insert(version);
        *known = (*known).max(version);
    }

    fn is_flipped(&self, object: ObjectId) -> bool {
        self.flipped.contains(&object.segment().get())
    }

    /// Compares one object with what must be true of it.
    ///
    /// # Errors
    /// The violation.
    pub fn check_object(&mut self, store: &Arc<Store>, object: ObjectId) -> Result<(), String> {
        let version = self.stored.get(&object).copied();
        let kill = self.kills.get(&object).copied();
        let before = read(store, self, object);
        self.reads += 1;
        match (before, kill) {
            (Read::Here(_, false), _) => Err(format!("object {object} has wrong bytes")),
            (Read::Here(found, true), _) if version.is_some_and(|version| version != found) => {
                Err(format!("object {object} is {found:?}, was {version:?}"))
            }
            (Read::Here(..), Some(Kill::Done)) => {
                Err(format!("object {object} is back from the dead"))
            }
            (Read::Here(..), _) | (Read::Gone, Some(_)) => Ok(()),
            (Read::Gone | Read::Failed(_), _) if self.is_flipped(object) => Ok(()),
            (Read::Gone, None) if version.is_some() => Err(format!("object {object} is lost")),
            (Read::Gone, None) => Ok(()),
            (Read::Failed(error), _) => Err(format!("object {object} cannot be read: {error}")),
        }
    }

    /// Compares everything: every object that was ever stored, every object that is in the store, every
    /// row of the catalog.
    ///
    /// # Errors
    /// The first violation.
    pub fn check_all(&mut self, store: &Arc<Store>, catalog: &Catalog) -> Result<(), String> {
        let stored: Vec<ObjectId> = self.stored.keys().copied().collect();
        for object in stored {
            self.check_object(store, object)?;
        }
        self.check_segments(store)?;
        for (name, row) in catalog.rows() {
            if let Some(object) = row.object {
                self.check_named(store, name, object)?;
            }
        }
        for (name, answered) in &self.answered {
            let row = catalog.row(name);
            let stands = row.map(|row| row.version);
            if stands.is_none_or(|stands| stands < *answered) {
                return Err(format!(
                    "{name}: the answered write {answered:?} is not in the catalog, but {stands:?}"
                ));
            }
        }
        Ok(())
    }

    fn check_named(&self, store: &Arc<Store>, name: &str, object: ObjectId) -> Result<(), String> {
        match read(store, self, object) {
            Read::Here(_, true) => Ok(()),
            _ if self.is_flipped(object) => Ok(()),
            found => Err(format!("{name}: its object {object} is {found:?}")),
        }
    }

    /// Nothing is visible that was not uploaded whole.
    fn check_segments(&mut self, store: &Arc<Store>) -> Result<(), String> {
        for number in store.list(None, usize::MAX) {
            let segment = match store.segment_blocking(number) {
                Ok(segment) => segment,
                // An upload in progress, or what one that failed has left until it is removed.
                Err(Error::NoSegment(_)) => continue,
                Err(Error::Damaged { .. }) if store.is_marked(number) => continue,
                Err(_) if self.flipped.contains(&number.get()) => continue,
                Err(error) => return Err(format!("segment {number} cannot be opened: {error}")),
            };
            for slot in 0..segment.slots() {
                let object = number.object(slot as u16);
                if segment.locate(slot as u16).is_none() {
                    continue;
                }
                match read(store, self, object) {
                    Read::Here(version, true) => self.note_stored(object, version)?,
                    Read::Here(_, false) => {
                        return Err(format!("object {object} was never uploaded like that"));
                    }
                    Read::Gone => {}
                    Read::Failed(_) if self.is_flipped(object) => {}
                    Read::Failed(error) => {
                        return Err(format!("object {object} is half visible: {error}"));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether a record says something of its name.
pub fn is_offered(kind: RecordKind) -> bool {
    kind != RecordKind::Dead
}
