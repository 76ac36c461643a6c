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
