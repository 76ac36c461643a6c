//! The superblock: whose data folder this is, and in which format.

use super::{FORMAT, FormatError, bytes_at, put, u32_at, u64_at, version_of};

const MAGIC: [u8; 8] = *b"REELSUP\n";
/// Its size in bytes.
pub const SUPERBLOCK_BYTES: usize = 512;
const CRC_AT: usize = SUPERBLOCK_BYTES - 4;
const CLUSTER_AT: usize = 64;
/// The longest cluster name in bytes.
pub const MAX_CLUSTER: usize = 64;

/// The content of `superblock` in a data folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The cluster's name.
    pub cluster: String,
    /// The node.
    pub node: u32,
    /// Its group.
    pub group: u32,
    /// Random, made with the folder: tells two folders of one node id apart.
    pub instance: u128,
    /// The format version it was read in; written is always [`FORMAT`].
    pub format: u32,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

impl Superblock {
    /// The bytes. A cluster name over [`MAX_CLUSTER`] bytes is a caller's error and is cut.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        let cluster = &self.cluster.as_bytes()[..self.cluster.len().min(MAX_CLUSTER)];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 8, &FORMAT.to_le_bytes());
        put(&mut bytes, 12, &self.node.to_le_bytes());
        put(&mut bytes, 16, &self.instance.to_le_bytes());
        put(&mut bytes, 32, &self.created_ms.to_le_bytes());
        put(&mut bytes, 40, &self.group.to_le_bytes());
        put(&mut bytes, 44, &u32::try_from(cluster.len()).unwrap_or(0).to_le_bytes());
        put(&mut bytes, CLUSTER_AT, cluster);
        let crc = crc32fast::hash(&bytes[..CRC_AT]);
        put(&mut bytes, CRC_AT, &crc.to_le_bytes());
        bytes
    }

    /// Understands the bytes, or says why not.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes_at::<8>(bytes, 0)? != MAGIC {
            return Err(FormatError::Magic);
        }
        let format = version_of(bytes)?;
        if u32_at(bytes, CRC_AT)? != crc32fast::hash(&bytes[..CRC_AT]) {
            return Err(FormatError::Crc("superblock"));
        }
        let length = u32_at(bytes, 44)? as usize;
        if length > MAX_CLUSTER {
            return Err(FormatError::Field("cluster name too long"));
        }
        let cluster = std::str::from_utf8(&bytes[CLUSTER_AT..CLUSTER_AT + length])
            .map_err(|_| FormatError::Field("cluster name is not UTF-8"))?;
        Ok(Self {
            cluster: cluster.to_owned(),
            node: u32_at(bytes, 12)?,
            group: u32_at(bytes, 40)?,
            instance: u128::from_le_bytes(bytes_at(bytes, 16)?),
            format,
            created_ms: u64_at(bytes, 32)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_round_trips_and_finds_every_flipped_bit() {
        let block = Superblock {
            cluster: "reel".to_owned(),
            node: 102,
            group: 1,
            instance: 0x1234_5678,
            format: FORMAT,
            created_ms: 9,
        };
        let bytes = block.encode();
        assert_eq!(Superblock::decode(&bytes), Ok(block));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&damaged).is_err(), "bit {bit}");
        }
    }
}
