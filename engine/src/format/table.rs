//! The slot table's header and entries: 16 bytes a slot, behind one header page.

use super::{FORMAT, FormatError, HEADER_BYTES, bytes_at, put, u32_at, u64_at};
use crate::id::SegmentNumber;

const MAGIC: [u8; 8] = *b"REELIDX\n";
const CRC_AT: usize = 60;
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 16;
/// Where the entries start.
pub const ENTRIES_AT: usize = HEADER_BYTES as usize;

const HEAD_SHIFT: u32 = 32;
const STATE_SHIFT: u32 = 48;
/// Set in an entry's first word when the object was deleted or replaced. The only bit that changes
/// after sealing; checksums leave it out.
pub const DEAD: u64 = 1 << 56;

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotState {
    /// An object.
    Object,
    /// A tombstone: it takes a slot number, and cannot be read.
    Tombstone,
}

/// A slot table's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Object or tombstone.
    pub state: SlotState,
    /// Whether the object lost its name.
    pub dead: bool,
    /// Where the record starts in the segment, in bytes; a multiple of 8 below 32 GiB.
    pub offset: u64,
    /// Bytes from there to the payload; a multiple of 8.
    pub head_len: u32,
    /// Bytes of payload.
    pub payload_len: u32,
    /// CRC-32 of the payload.
    pub payload_crc: u32,
}

impl Entry {
    /// The two words of the entry.
    pub fn encode(&self) -> (u64, u64) {
        let state = match self.state {
            SlotState::Object => 1u64,
            SlotState::Tombstone => 2,
        };
        let first = (self.offset / 8)
            | u64::from(self.head_len / 8) << HEAD_SHIFT
            | state << STATE_SHIFT
            | if self.dead { DEAD } else { 0 };
        (first, u64::from(self.payload_len) | u64::from(self.payload_crc) << 32)
    }

    /// The entry in two words; `None` for an empty slot.
    pub fn decode(first: u64, second: u64) -> Option<Self> {
        let state = match (first >> STATE_SHIFT) & 0xff {
            1 => SlotState::Object,
            2 => SlotState::Tombstone,
            _ => return None,
        };
        Some(Self {
            state,
            dead: first & DEAD != 0,
            offset: (first & 0xffff_ffff) * 8,
            head_len: ((first >> HEAD_SHIFT) & 0xffff) as u32 * 8,
            payload_len: second as u32,
            payload_crc: (second >> 32) as u32,
        })
    }
}

/// The header page of a sealed slot table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableHeader {
    /// The segment it belongs to.
    pub number: SegmentNumber,
    /// The segment's generation: a table of another one is not trusted.
    pub generation: u32,
    /// Entries behind the header.
    pub slots: u32,
    /// CRC-32 of the entries with [`DEAD`] left out.
    pub entries_crc: u32,
    /// Bytes of the segment that the table describes.
    pub segment_len: u64,
}

impl TableHeader {
    /// The page.
    pub fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; ENTRIES_AT];
        put(&mut page, 0, &MAGIC);
        put(&mut page, 8, &FORMAT.to_le_bytes());
        put(&mut page, 12, &self.slots.to_le_bytes());
        put(&mut page, 16, &self.number.get().to_le_bytes());
        put(&mut page, 24, &self.generation.to_le_bytes());
        put(&mut page, 28, &self.entries_crc.to_le_bytes());
        put(&mut page, 32, &self.segment_len.to_le_bytes());
        let crc = crc32fast::hash(&page[..CRC_AT]);
        put(&mut page, CRC_AT, &crc.to_le_bytes());
        page
    }

    /// Understands the page, or says why not.
    pub fn decode(page: &[u8]) -> Result<Self, FormatError> {
        if bytes_at::<8>(page, 0)? != MAGIC {
            return Err(FormatError::Magic);
        }
        let format = u32_at(page, 8)?;
        if format != FORMAT {
            return Err(FormatError::Version(format));
        }
        if u32_at(page, CRC_AT)? != crc32fast::hash(&page[..CRC_AT]) {
            return Err(FormatError::Crc("slot table header"));
        }
        Ok(Self {
            number: SegmentNumber::new(u64_at(page, 16)?)
                .ok_or(FormatError::Field("segment number of more than 48 bits"))?,
            generation: u32_at(page, 24)?,
            slots: u32_at(page, 12)?,
            entries_crc: u32_at(page, 28)?,
            segment_len: u64_at(page, 32)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn entries_round_trip(offset in 0..(1u64 << 32), head in 9u32..=512, len: u32, crc: u32, dead: bool) {
            let entry = Entry {
                state: SlotState::Object, dead, offset: offset * 8, head_len: head * 8,
                payload_len: len, payload_crc: crc,
            };
            let (first, second) = entry.encode();
            prop_assert_eq!(Entry::decode(first, second), Some(entry));
        }
    }

    #[test]
    fn zeros_are_an_empty_slot() {
        assert_eq!(Entry::decode(0, 0), None);
    }
}
