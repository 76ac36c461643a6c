//! The bytes on disk, as pure code: values in, bytes out, and back. `docs/format.md` draws them.
//!
//! All integers are little-endian. Every structure carries a magic, enough to be understood alone,
//! and a CRC-32 (IEEE, as in RFC 1952) over itself.

pub mod deferred;
pub mod record;
pub mod segment_header;
pub mod superblock;
pub mod table;
pub mod trailer;

/// The format version this build writes. It reads this one and all before.
pub const FORMAT: u32 = 2;
/// The first version: no salt in segment headers and heads, tables without tombstones' targets.
pub const FORMAT_1: u32 = 1;
/// Records and payloads start at multiples of this many bytes.
pub const ALIGN: u64 = 8;
/// The page that a segment's header fills.
pub const HEADER_BYTES: u64 = 4096;

/// `n` rounded up to a multiple of [`ALIGN`].
pub const fn align(n: u64) -> u64 {
    n.next_multiple_of(ALIGN)
}

/// Why bytes were not understood. The caller adds path and offset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Fewer bytes than the structure needs.
    #[error("too short")]
    Short,
    /// Not this kind of structure at all.
    #[error("wrong magic")]
    Magic,
    /// Written by a later version.
    #[error("format version {0} is not known")]
    Version(u32),
    /// The checksum does not fit the bytes.
    #[error("checksum mismatch in the {0}")]
    Crc(&'static str),
    /// A field holds what it never should.
    #[error("{0}")]
    Field(&'static str),
}

/// The format version at byte 8, when this build reads it.
fn version_of(bytes: &[u8]) -> Result<u32, FormatError> {
    match u32_at(bytes, 8)? {
        version @ FORMAT_1..=FORMAT => Ok(version),
        version => Err(FormatError::Version(version)),
    }
}

/// Reads `N` bytes at `at`.
fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], FormatError> {
    bytes.get(at..at + N).and_then(|slice| slice.try_into().ok()).ok_or(FormatError::Short)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, FormatError> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, FormatError> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, FormatError> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}
