//! Dead objects on a disk that fails, written down on one that works.

use super::{FORMAT, FormatError, bytes_at, put, u32_at, u64_at, version_of};
use crate::id::ObjectId;

const MAGIC: [u8; 8] = *b"REELDEF\n";
const FIXED_BYTES: usize = 16;

/// The bytes: magic, format version, count, ids of 8 bytes each, CRC-32 of all before.
pub fn encode(objects: impl ExactSizeIterator<Item = ObjectId>) -> Vec<u8> {
    let mut bytes = vec![0; FIXED_BYTES];
    put(&mut bytes, 0, &MAGIC);
    put(&mut bytes, 8, &FORMAT.to_le_bytes());
    put(&mut bytes, 12, &(objects.len() as u32).to_le_bytes());
    for object in objects {
        bytes.extend_from_slice(&object.as_u64().to_le_bytes());
    }
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// The ids, or why the bytes are not understood.
pub fn decode(bytes: &[u8]) -> Result<Vec<ObjectId>, FormatError> {
    if bytes_at::<8>(bytes, 0)? != MAGIC {
        return Err(FormatError::Magic);
    }
    version_of(bytes)?;
    let count = u32_at(bytes, 12)? as usize;
    let end = FIXED_BYTES + count * 8;
    let covered = bytes.get(..end).ok_or(FormatError::Short)?;
    if u32_at(bytes, end)? != crc32fast::hash(covered) {
        return Err(FormatError::Crc("list of dead objects"));
    }
    (0..count).map(|at| u64_at(bytes, FIXED_BYTES + at * 8).map(ObjectId::from_u64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_round_trips_and_finds_every_flipped_bit() {
        let objects = [7, 9, u64::MAX].map(ObjectId::from_u64);
        let bytes = encode(objects.into_iter());
        assert_eq!(decode(&bytes), Ok(objects.to_vec()));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged).is_err(), "bit {bit}");
        }
    }
}
