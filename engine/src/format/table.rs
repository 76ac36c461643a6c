//! The slot table's header and entries: 16 bytes a slot, behind one header page.

use super::{
    FORMAT, FORMAT_1, FormatError, HEADER_BYTES, bytes_at, put, u32_at, u64_at, version_of,
};
use crate::id::{ObjectId, SegmentNumber};

const MAGIC: [u8; 8] = *b"REELIDX\n";
const CRC_AT: usize = 60;
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 16;
/// Where the entries start.
pub const ENTRIES_AT: usize = HEADER_BYTES as usize;

const HEAD_SHIFT: u32 = 32;
const STATE_SHIFT: u32 = 48;
/// All set in an entry's first word when the object was deleted or replaced, all clear before. The
/// only bits that change after sealing; checksums leave them out. A byte rather than a bit, so that
/// a single flipped bit is seen, and outvoted.
pub const DEAD: u64 = 0xff << 56;

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
    /// The object a tombstone names: so the dead marks of a table can be found again without
    /// reading a record. It takes the place of length and CRC of the payload, which is empty.
    pub target: Option<ObjectId>,
}

/// Whether a dead mark is neither set nor clear: a bit of it was flipped.
pub fn mark_is_damaged(first: u64) -> bool {
    !matches!(first & DEAD, 0 | DEAD)
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
        let second = match self.target {
            Some(target) => target.as_u64(),
            None => u64::from(self.payload_len) | u64::from(self.payload_crc) << 32,
        };
        (first, second)
    }

    /// The entry in two words; `None` for an empty slot.
    pub fn decode(first: u64, second: u64) -> Option<Self> {
        let state = match (first >> STATE_SHIFT) & 0xff {
            1 => SlotState::Object,
            2 => SlotState::Tombstone,
            _ => return None,
        };
        let object = state == SlotState::Object;
        Some(Self {
            state,
            dead: (first & DEAD).count_ones() > 4,
            offset: (first & 0xffff_ffff) * 8,
            head_len: ((first >> HEAD_SHIFT) & 0xffff) as u32 * 8,
            payload_len: if object { second as u32 } else { 0 },
            payload_crc: if object { (second >> 32) as u32 } else { 0 },
            target: (!object).then_some(ObjectId::from_u64(second)),
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
    /// As in the segment's header, which can be made again from here when it is damaged.
    pub creator: u32,
    /// As in the segment's header: a table of another writing is not trusted.
    pub salt: u32,
    /// As in the segment's header.
    pub created_ms: u64,
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
        put(&mut page, 40, &self.creator.to_le_bytes());
        put(&mut page, 44, &self.salt.to_le_bytes());
        put(&mut page, 48, &self.created_ms.to_le_bytes());
        let crc = crc32fast::hash(&page[..CRC_AT]);
        put(&mut page, CRC_AT, &crc.to_le_bytes());
        page
    }

    /// Understands the page, or says why not.
    pub fn decode(page: &[u8]) -> Result<Self, FormatError> {
        if bytes_at::<8>(page, 0)? != MAGIC {
            return Err(FormatError::Magic);
        }
        // One of version 1 lacks targets, and marks with one bit: it is made anew.
        if version_of(page)? == FORMAT_1 {
            return Err(FormatError::Version(FORMAT_1));
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
            creator: u32_at(page, 40)?,
            salt: u32_at(page, 44)?,
            created_ms: u64_at(page, 48)?,
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
                payload_len: len, payload_crc: crc, target: None,
            };
            let (first, second) = entry.encode();
            prop_assert_eq!(Entry::decode(first, second), Some(entry));
        }
    }

    #[test]
    fn a_tombstone_keeps_its_target_and_a_flipped_bit_of_a_mark_is_outvoted() {
        let entry = Entry {
            state: SlotState::Tombstone,
            dead: true,
            offset: 4096,
            head_len: 80,
            payload_len: 0,
            payload_crc: 0,
            target: Some(ObjectId::from_u64(0xdead_beef_0102)),
        };
        let (first, second) = entry.encode();
        assert_eq!(Entry::decode(first, second), Some(entry));
        for bit in 56..64 {
            let flipped = first ^ (1 << bit);
            assert!(mark_is_damaged(flipped) && !mark_is_damaged(first));
            assert!(Entry::decode(flipped, second).expect("there").dead);
            assert!(!Entry::decode((first & !DEAD) ^ (1 << bit), second).expect("there").dead);
        }
    }

    #[test]
    fn zeros_are_an_empty_slot() {
        assert_eq!(Entry::decode(0, 0), None);
    }
}
