//! The first page of every segment file.

use super::{
    FORMAT, FORMAT_1, FormatError, HEADER_BYTES, bytes_at, put, u32_at, u64_at, version_of,
};
use crate::id::SegmentNumber;

const MAGIC: [u8; 8] = *b"REELSEG\n";
const CRC_AT: usize = HEADER_BYTES as usize - 4;

/// What a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// Up to 65,536 small records, one after the other.
    Packed,
    /// One large object with block checksums in a trailer.
    Solo,
}

impl SegmentKind {
    fn to_byte(self) -> u8 {
        match self {
            Self::Packed => 1,
            Self::Solo => 2,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, FormatError> {
        match byte {
            1 => Ok(Self::Packed),
            2 => Ok(Self::Solo),
            _ => Err(FormatError::Field("unknown segment kind")),
        }
    }
}

/// A segment's header: 4,096 bytes, of which the first 44 and the last 4 say something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Packed or solo.
    pub kind: SegmentKind,
    /// The segment's number; also in its file name.
    pub number: SegmentNumber,
    /// How often compaction rewrote the segment; offsets are valid within one generation.
    pub generation: u32,
    /// The node that made it; ids in it are the creator's.
    pub creator: u32,
    /// Random for each writing of the segment (0 in version 1). The checksums of heads begin with
    /// it, so that bytes a client uploads are never taken for a record when a damaged segment is
    /// searched; and copies with equal number, generation and salt are the same bytes.
    pub salt: u32,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

impl SegmentHeader {
    /// The page.
    pub fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; HEADER_BYTES as usize];
        put(&mut page, 0, &MAGIC);
        put(&mut page, 8, &FORMAT.to_le_bytes());
        put(&mut page, 12, &[self.kind.to_byte()]);
        put(&mut page, 16, &self.number.get().to_le_bytes());
        put(&mut page, 24, &self.generation.to_le_bytes());
        put(&mut page, 28, &self.creator.to_le_bytes());
        put(&mut page, 32, &self.created_ms.to_le_bytes());
        put(&mut page, 40, &self.salt.to_le_bytes());
        let crc = crc32fast::hash(&page[..CRC_AT]);
        put(&mut page, CRC_AT, &crc.to_le_bytes());
        page
    }

    /// Understands the page, or says why not.
    pub fn decode(page: &[u8]) -> Result<Self, FormatError> {
        if bytes_at::<8>(page, 0)? != MAGIC {
            return Err(FormatError::Magic);
        }
        let version = version_of(page)?;
        if u32_at(page, CRC_AT)? != crc32fast::hash(&page[..CRC_AT]) {
            return Err(FormatError::Crc("segment header"));
        }
        Ok(Self {
            kind: SegmentKind::from_byte(page[12])?,
            number: SegmentNumber::new(u64_at(page, 16)?)
                .ok_or(FormatError::Field("segment number of more than 48 bits"))?,
            generation: u32_at(page, 24)?,
            creator: u32_at(page, 28)?,
            salt: if version == FORMAT_1 { 0 } else { u32_at(page, 40)? },
            created_ms: u64_at(page, 32)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            kind: SegmentKind::Solo,
            number: SegmentNumber::new(0x3a5f).expect("fits"),
            generation: 2,
            creator: 101,
            salt: 0xfeed,
            created_ms: 1_700_000_000_000,
        }
    }

    #[test]
    fn it_round_trips() {
        assert_eq!(SegmentHeader::decode(&header().encode()), Ok(header()));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let page = header().encode();
        for bit in 0..page.len() * 8 {
            let mut damaged = page.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_later_format_is_refused_by_number() {
        let mut page = header().encode();
        page[8] = 9;
        assert_eq!(SegmentHeader::decode(&page), Err(FormatError::Version(9)));
    }
}
