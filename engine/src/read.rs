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
    if is_checked(segment, slot, located, &range) {
        return Ok(());
    }
    let (segment, located) = (Arc::clone(segment), *located);
    let check = move || {
        let wanted = units(&segment, slot, &located, range);
        check(&segment, slot, &located, wanted.filter(|unit| !unit.is_checked(&segment)))
    };
    store.pool().run(check).await
}

/// Whether the payload bytes in `range` were checked since the segment was opened.
pub fn is_checked(segment: &Segment, slot: u16, located: &Located, range: &Range<u64>) -> bool {
    units(segment, slot, located, range.clone()).all(|unit| unit.is_checked(segment))
}

/// The units that hold the payload bytes in `range`.
fn units(
    segment: &Segment,
    slot: u16,
    located: &Located,
    range: Range<u64>,
) -> impl Iterator<Item = Unit> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let unit = (at < range.end).then(|| Unit::at(segment, slot, located, at))?;
        at = unit.end();
        Some(unit)
    })
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
    check(segment, slot, located, units(segment, slot, located, range))
}

fn check(
    segment: &Segment,
    slot: u16,
    located: &Located,
    units: impl Iterator<Item = Unit>,
) -> Result<()> {
    let mut buffer = Vec::new();
    for unit in units {
        buffer.resize(unit.length as usize, 0);
        segment.file().read_exact_at(&mut buffer, located.offset + unit.start)?;
        unit.verify(segment, slot, located, &buffer)?;
    }
    Ok(())
}
