//! The block checksums behind a solo segment's payload.

use super::{FormatError, align, bytes_at, put, u32_at, u64_at};

const MAGIC: [u8; 4] = *b"RTRL";
const FIXED_BYTES: usize = 16;
/// Bytes of payload a block checksum covers; the last block may be shorter.
pub const BLOCK_BYTES: u64 = 256 * 1024;

/// Blocks of a payload.
pub const fn blocks(payload_len: u64) -> u64 {
    payload_len.div_ceil(BLOCK_BYTES)
}

/// Bytes of the trailer behind a payload; a multiple of 8.
pub const fn trailer_len(payload_len: u64) -> u64 {
    align(FIXED_BYTES as u64 + blocks(payload_len) * 4 + 4)
}

/// The trailer: magic, payload length, one CRC-32 a block, and a CRC-32 over all of that.
pub fn encode(payload_len: u64, crcs: &[u32]) -> Vec<u8> {
    assert_eq!(crcs.len() as u64, blocks(payload_len));
    let mut bytes = vec![0; trailer_len(payload_len) as usize];
    put(&mut bytes, 0, &MAGIC);
    put(&mut bytes, 4, &(crcs.len() as u32).to_le_bytes());
    put(&mut bytes, 8, &payload_len.to_le_bytes());
    for (index, crc) in crcs.iter().enumerate() {
        put(&mut bytes, FIXED_BYTES + index * 4, &crc.to_le_bytes());
    }
    let end = FIXED_BYTES + crcs.len() * 4;
    let crc = crc32fast::hash(&bytes[..end]);
    put(&mut bytes, end, &crc.to_le_bytes());
    bytes
}

/// The block checksums, or why the trailer is not understood.
pub fn decode(bytes: &[u8], payload_len: u64) -> Result<Vec<u32>, FormatError> {
    if bytes_at::<4>(bytes, 0)? != MAGIC {
        return Err(FormatError::Magic);
    }
    let count = blocks(payload_len) as usize;
    if u32_at(bytes, 4)? as usize != count || u64_at(bytes, 8)? != payload_len {
        return Err(FormatError::Field("trailer of another length"));
    }
    let end = FIXED_BYTES + count * 4;
    let covered = bytes.get(..end).ok_or(FormatError::Short)?;
    if u32_at(bytes, end)? != crc32fast::hash(covered) {
        return Err(FormatError::Crc("trailer"));
    }
    (0..count).map(|index| u32_at(bytes, FIXED_BYTES + index * 4)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_round_trips_and_finds_every_flipped_bit() {
        let payload_len = 2 * BLOCK_BYTES + 5;
        let bytes = encode(payload_len, &[1, 2, 3]);
        assert_eq!(decode(&bytes, payload_len), Ok(vec![1, 2, 3]));
        let meaningful = FIXED_BYTES + 3 * 4 + 4;
        for bit in 0..meaningful * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged, payload_len).is_err(), "bit {bit}");
        }
    }
}
