//! Reads that never give wrong bytes: what is sent was checked against its checksum before.
//!
//! A small payload is read whole and checked each time. A large one is checked block by block the
//! first time a block is asked for since its segment was opened; later sends trust the check.

use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::format::trailer::BLOCK_BYTES;
use crate::segment::{Located, Segment};
use crate::store::Store;

/// Reads a whole payload into `buffer` and checks it. Resident bytes are read on the spot;
/// otherwise a disk thread reads.
///
/// # Errors
/// [`crate::Error::DamagedObject`] when the checksum does not fit, or I/O errors.
pub async fn read_checked(
    store: &Store,
    segment: &Arc<Segment>,
    slot: u16,
    located: &Located,
    mut buffer: Vec<u8>,
) -> Result<Vec<u8>> {
    buffer.clear();
    buffer.resize(located.length as usize, 0);
    let read = segment.file().read_resident(&mut buffer, located.offset);
    if read < buffer.len() {
        let (reader, offset) = (Arc::clone(segment), located.offset);
        buffer = store
            .pool()
            .run(move || {
                reader.file().read_exact_at(&mut buffer, offset)?;
                Ok(buffer)
            })
            .await?;
    }
    if crc32fast::hash(&buffer) != located.crc {
        return Err(segment.damaged_object(slot, located.offset));
    }
    Ok(buffer)
}

/// Checks that the payload bytes in `range` (relative to the payload) are as they were uploaded.
/// Costs nothing when they were checked since the segment was opened; else a disk thread reads
/// them, which also brings them into the page cache.
///
/// # Errors
/// [`crate::Error::DamagedObject`] when a checksum does not fit, or I/O errors.
pub async fn ensure_checked(
    store: &Store,
    segment: &Arc<Segment>,
    slot: u16,
    located: &Located,
    range: Range<u64>,
) -> Result<()> {
    let Some(units) = unchecked(segment, slot, range) else { return Ok(()) };
    let (segment, located) = (Arc::clone(segment), *located);
    store.pool().run(move || check(&segment, slot, &located, units)).await
}

/// The units of `range` that have to be checked: a packed segment's unit is the slot, a solo one's
/// the block.
fn unchecked(segment: &Segment, slot: u16, range: Range<u64>) -> Option<Range<u64>> {
    let units = match segment.block_crcs() {
        None => u64::from(slot)..u64::from(slot) + 1,
        Some(_) => range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES),
    };
    let first = units.clone().find(|unit| !segment.is_checked(*unit as usize))?;
    Some(first..units.end)
}

/// What is checked at once: a packed object, or a block of a large one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit {
    /// Its place among the segment's units: slot or block.
    pub index: u32,
    /// Its first byte in the payload.
    pub start: u64,
    /// Its bytes.
    pub length: u64,
    crc: u32,
}

impl Unit {
    /// The unit that holds byte `at` of a payload, which must have so many.
    pub fn at(segment: &Segment, slot: u16, located: &Located, at: u64) -> Self {
        match segment.block_crcs() {
            None => Self { index: slot.into(), start: 0, length: located.length, crc: located.crc },
            Some(crcs) => {
                let index = at / BLOCK_BYTES;
                let start = index * BLOCK_BYTES;
                let length = (located.length - start).min(BLOCK_BYTES);
                // A checksum that is missing fits nothing but by chance; tables are as long as payloads.
                let crc = crcs.get(index as usize).copied().unwrap_or(0);
                Self { index: index as u32, start, length, crc }
            }
        }
    }

    /// The byte after its last.
    pub fn end(&self) -> u64 {
        self.start + self.length
    }

    /// CRC-32 of its bytes.
    pub(crate) fn crc(&self) -> u32 {
        self.crc
    }

    /// Whether it was checked since the segment was opened: its bytes in the page cache may be sent.
    pub fn is_checked(&self, segment: &Segment) -> bool {
        segment.is_checked(self.index as usize)
    }

    /// Checks bytes that were read, unless the unit was checked since the segment was opened.
    ///
    /// # Errors
    /// [`crate::Error::DamagedObject`].
    pub fn verify(
        &self,
        segment: &Segment,
        slot: u16,
        located: &Located,
        bytes: &[u8],
    ) -> Result<()> {
        let checked = self.is_checked(segment);
        if bytes.len() as u64 != self.length || !checked && crc32fast::hash(bytes) != self.crc {
            return Err(segment.damaged_object(slot, located.offset + self.start));
        }
        segment.set_checked(self.index as usize);
        Ok(())
    }
}

/// Brings the units of `range` (relative to the payload) into the page cache, and checks them. Blocking. They are
/// read in order, as a player would: so the kernel keeps them in large folios, which are cheaper to send than
/// those of `posix_fadvise` (docs/decisions/0010).
///
/// # Errors
/// [`crate::Error::DamagedObject`], I/O errors.
pub fn bring_in(segment: &Segment, slot: u16, located: &Located, range: Range<u64>) -> Result<()> {
    let mut buffer = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let unit = Unit::at(segment, slot, located, at);
        buffer.resize(unit.length as usize, 0);
        segment.file().read_exact_at(&mut buffer, located.offset + unit.start)?;
        unit.verify(segment, slot, located, &buffer)?;
        at = unit.end();
    }
    Ok(())
}

fn check(segment: &Segment, slot: u16, located: &Located, units: Range<u64>) -> Result<()> {
    let mut buffer = Vec::new();
    for unit in units {
        if segment.is_checked(unit as usize) {
            continue;
        }
        let (offset, length, crc) = match segment.block_crcs() {
            None => (located.offset, located.length, located.crc),
            Some(crcs) => {
                let start = unit * BLOCK_BYTES;
                let Some(crc) = crcs.get(unit as usize) else { break };
                (located.offset + start, (located.length - start).min(BLOCK_BYTES), *crc)
            }
        };
        buffer.resize(length as usize, 0);
        segment.file().read_exact_at(&mut buffer, offset)?;
        if crc32fast::hash(&buffer) != crc {
            return Err(segment.damaged_object(slot, offset));
        }
        segment.set_checked(unit as usize);
    }
    Ok(())
}
