//! Object ids and the path computed from them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Bits of an [`ObjectId`] that name the slot.
const SLOT_BITS: u32 = 16;
/// The largest segment number: what 64 bits leave beside the slot.
pub const MAX_SEGMENT: u64 = (1 << (64 - SLOT_BITS)) - 1;
/// Slots of a packed segment.
pub const SLOTS: usize = 1 << SLOT_BITS;

/// The number of a segment file, unique in the whole cluster; an ID server gave it out. 48 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentNumber(u64);

impl SegmentNumber {
    /// `None` when `number` does not fit into 48 bits.
    pub fn new(number: u64) -> Option<Self> {
        (number <= MAX_SEGMENT).then_some(Self(number))
    }

    /// The number as an integer.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The segment's path under a data folder, low bytes first so that folders fill evenly:
    /// `0x3a5f` → `5f/3a/000000003a5f.seg`.
    pub fn path(self) -> PathBuf {
        PathBuf::from(self.to_path_string())
    }

    /// [`SegmentNumber::path`] as text, as the catalog keeps it.
    pub fn to_path_string(self) -> String {
        format!("{:02x}/{:02x}/{:012x}.seg", self.0 & 0xff, (self.0 >> 8) & 0xff, self.0)
    }

    /// The number in a file name such as `000000003a5f.seg` or an `active/` marker.
    pub fn from_file_name(path: &Path) -> Option<Self> {
        let stem = path.file_stem()?.to_str()?;
        (stem.len() == 12).then_some(())?;
        Self::new(u64::from_str_radix(stem, 16).ok()?)
    }

    /// The object in `slot` of this segment.
    pub fn object(self, slot: u16) -> ObjectId {
        ObjectId(self.0 << SLOT_BITS | u64::from(slot))
    }
}

impl fmt::Display for SegmentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// Names an object for ever: `segment number << 16 | slot`. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(u64);

impl ObjectId {
    /// From its integer form.
    pub fn from_u64(raw: u64) -> Self {
        Self(raw)
    }

    /// Its integer form.
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// The segment that holds it.
    pub fn segment(self) -> SegmentNumber {
        SegmentNumber(self.0 >> SLOT_BITS)
    }

    /// Its slot in that segment.
    pub fn slot(self) -> u16 {
        (self.0 & 0xffff) as u16
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for ObjectId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_path_is_low_bytes_first() {
        let number = SegmentNumber::new(0x3a5f).expect("fits");
        assert_eq!(number.to_path_string(), "5f/3a/000000003a5f.seg");
    }

    proptest! {
        #[test]
        fn ids_and_paths_round_trip(number in 0..=MAX_SEGMENT, slot: u16) {
            let number = SegmentNumber::new(number).expect("fits");
            let object = number.object(slot);
            prop_assert_eq!(object.segment(), number);
            prop_assert_eq!(object.slot(), slot);
            prop_assert_eq!(object.to_string().parse::<ObjectId>().expect("hex"), object);
            prop_assert_eq!(SegmentNumber::from_file_name(&number.path()), Some(number));
        }
    }

    #[test]
    fn a_number_of_49_bits_is_refused() {
        assert!(SegmentNumber::new(MAX_SEGMENT + 1).is_none());
    }
}
