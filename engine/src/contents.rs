//! What a segment holds, in short: nodes compare their copies without reading a payload.
//!
//! Copies differ in generation, in place and in tombstones (each node compacts by itself); what must be equal is which
//! objects live, and their bytes, which length and checksum stand for.

use crate::error::Result;
use crate::id::SegmentNumber;
use crate::segment::Segment;
use crate::store::Store;

/// The living objects of a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Contents {
    /// How many.
    pub objects: u32,
    /// The sum of a hash of each: slot, length, checksum. In any order.
    pub digest: u64,
}

impl Contents {
    fn add(&mut self, slot: u16, length: u64, crc: u32) {
        self.objects += 1;
        let object = mix(mix(u64::from(slot) << 32 | u64::from(crc)) ^ length);
        self.digest = self.digest.wrapping_add(object);
    }
}

/// One step of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// A copy as its node has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The segment.
    pub number: SegmentNumber,
    /// It is complete, and its records are confirmed: only then is it to be compared.
    pub is_settled: bool,
    /// What lives in it.
    pub contents: Contents,
}

/// The slots of a segment, by what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slots {
    /// Their objects can be read.
    pub living: Vec<u16>,
    /// Their objects are dead, and not compacted away yet.
    pub dead: Vec<u16>,
}

impl Segment {
    /// What lives in it. Looks at the table only.
    pub fn contents(&self) -> Contents {
        let mut contents = Contents::default();
        for slot in 0..self.slots() {
            if let Some(located) = self.locate(slot as u16) {
                contents.add(slot as u16, located.length, located.crc);
            }
        }
        contents
    }
}

impl Store {
    /// What a copy holds. Blocking.
    ///
    /// # Errors
    /// [`crate::Error::NoSegment`], and what keeps it from being opened.
    pub fn held(&self, number: SegmentNumber) -> Result<Held> {
        let segment = self.segment_blocking(number)?;
        let is_settled = segment.is_sealed() && !self.is_marked(number);
        Ok(Held { number, is_settled, contents: segment.contents() })
    }

    /// The slots of a segment. Blocking.
    ///
    /// # Errors
    /// As [`Store::held`].
    pub fn slots_of(&self, number: SegmentNumber) -> Result<Slots> {
        let segment = self.segment_blocking(number)?;
        let living = (0..segment.slots()).map(|slot| slot as u16);
        let living = living.filter(|slot| segment.locate(*slot).is_some()).collect();
        Ok(Slots { living, dead: self.dead_slots(number)? })
    }

    /// A peer says that these are dead. Blocking; see [`Store::kill`].
    pub fn kill_slots(&self, number: SegmentNumber, slots: impl IntoIterator<Item = u16>) {
        self.kill_all(slots.into_iter().map(|slot| number.object(slot)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_contents_in_any_order_and_no_others_are_equal() {
        let of = |objects: &[(u16, u64, u32)]| {
            let mut contents = Contents::default();
            objects.iter().for_each(|(slot, length, crc)| contents.add(*slot, *length, *crc));
            contents
        };
        let whole = of(&[(1, 10, 7), (2, 20, 8)]);
        assert_eq!(whole, of(&[(2, 20, 8), (1, 10, 7)]));
        for other in [
            &[(1, 10, 7)][..],
            &[(1, 10, 8), (2, 20, 7)],
            &[(1, 20, 7), (2, 10, 8)],
            &[(1, 10, 7), (3, 20, 8)],
            &[(1, 10, 7), (2, 20, 8), (3, 0, 0)],
        ] {
            assert_ne!(whole, of(other), "{other:?}");
        }
    }
}
