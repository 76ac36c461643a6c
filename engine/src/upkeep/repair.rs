//! Damaged bytes of an object are replaced by a peer's.

use std::ops::Range;

use super::check::Finding;
use super::reader::Reader;
use crate::disk::SyncPoint;
use crate::error::{Error, Result};
use crate::id::ObjectId;
use crate::read::Unit;
use crate::segment::{Located, Segment};
use crate::store::Store;

/// Where an object proved damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// The object.
    pub object: ObjectId,
    /// Where in its segment's file, in bytes.
    pub offset: u64,
}

impl Damage {
    /// What a check found; `None` when no living object is concerned.
    pub fn found(finding: &Finding) -> Option<Self> {
        Some(Self { object: finding.object_id()?, offset: finding.offset })
    }

    /// What a reader met; `None` for another error.
    pub fn met(error: &Error) -> Option<Self> {
        match error {
            Error::DamagedObject { object, offset, .. } => {
                Some(Self { object: *object, offset: *offset })
            }
            _ => None,
        }
    }
}

impl Store {
    /// The part of the object's payload that a peer has to supply: all of a packed object's, a block of a large one's.
    /// `None` when it is whole by now, or gone, or what is damaged is not payload. Blocking.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the segment cannot be opened; I/O errors.
    pub fn damaged_part(&self, damage: Damage) -> Result<Option<Range<u64>>> {
        let Some((segment, located)) = self.living(damage.object)? else { return Ok(None) };
        let at = damage.offset.saturating_sub(located.offset);
        if segment.is_solo() && (damage.offset < located.offset || at >= located.length) {
            return Ok(None);
        }
        let unit = Unit::at(&segment, damage.object.slot(), &located, at);
        // From the disk: what lies in the page cache may be as it was before the damage.
        let file = self.volume(segment.folder()).open_direct_read(segment.path())?;
        let crc = Reader::new(file).crc(located.offset + unit.start, unit.length)?;
        Ok((crc != unit.crc()).then_some(unit.start..unit.end()))
    }

    /// Puts bytes that a peer supplied in the place of damaged ones, from byte `start` of the payload on; durable when it
    /// returns. True when that part is whole now; false when the object is not here (any more). Blocking.
    ///
    /// # Errors
    /// [`Error::DamagedObject`] when the bytes are not those of such a part; I/O errors.
    pub fn repair(&self, object: ObjectId, start: u64, bytes: &[u8]) -> Result<bool> {
        let Some((segment, located)) = self.living(object)? else { return Ok(false) };
        let offset = located.offset + start;
        let unit = (start < located.length.max(1))
            .then(|| Unit::at(&segment, object.slot(), &located, start))
            .filter(|unit| unit.start == start && unit.length == bytes.len() as u64)
            .filter(|unit| unit.crc() == crc32fast::hash(bytes));
        if unit.is_none() {
            return Err(segment.damaged_object(object.slot(), offset));
        }
        let index = segment.folder();
        let written = self.volume(index).open_write(segment.path()).and_then(|file| {
            file.write_all_at(bytes, offset)?;
            file.sync(SyncPoint::Repair)
        });
        written.map_err(|error| self.note_failure(index, error))?;
        metrics::counter!("reel_repaired_objects_total").increment(1);
        Ok(true)
    }

    fn living(&self, object: ObjectId) -> Result<Option<(std::sync::Arc<Segment>, Located)>> {
        let segment = match self.segment_blocking(object.segment()) {
            Ok(segment) => segment,
            Err(Error::NoSegment(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let located = segment.locate(object.slot());
        Ok(located.map(|located| (segment, located)))
    }
}
