//! A record: one object or tombstone with all it takes to be understood alone.

use super::{FormatError, HEADER_BYTES, align, bytes_at, put, u16_at, u32_at, u64_at};
use crate::clock::Version;
use crate::id::{ObjectId, SegmentNumber};

const MAGIC: [u8; 4] = RecordHead::MAGIC;
/// Bytes before user, name and type.
pub const FIXED_BYTES: usize = 72;
const CRC_AT: usize = 68;
/// The longest user name in bytes.
pub const MAX_USER: usize = 128;
/// The longest file name in bytes.
pub const MAX_NAME: usize = 1024;
/// The longest content type in bytes.
pub const MAX_TYPE: usize = 255;
/// The longest head in bytes: a solo record's head fills exactly one page.
pub const MAX_HEAD: usize = HEADER_BYTES as usize;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// An object: a payload follows.
    Object,
    /// The name was deleted at this version; its object is `target`.
    Delete,
    /// `target` lost its name (replaced, or its upload failed). Says nothing about the name.
    Dead,
}

impl RecordKind {
    fn to_byte(self) -> u8 {
        match self {
            Self::Object => 1,
            Self::Delete => 2,
            Self::Dead => 3,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, FormatError> {
        match byte {
            1 => Ok(Self::Object),
            2 => Ok(Self::Delete),
            3 => Ok(Self::Dead),
            _ => Err(FormatError::Field("unknown record kind")),
        }
    }
}

/// How the payload is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One CRC over the payload, in the head.
    Whole,
    /// One CRC a block in a [`super::trailer`] behind the payload, besides the head's over all.
    Blocks,
}

/// A record's head. The payload follows at `head_len` bytes from the record's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHead {
    /// Object or tombstone.
    pub kind: RecordKind,
    /// How the payload is checked.
    pub layout: Layout,
    /// Slot in the segment.
    pub slot: u16,
    /// Bytes from the record's start to its payload; a multiple of 8.
    pub head_len: u32,
    /// The segment: stale bytes of another one are never taken for a record of this one.
    pub segment: SegmentNumber,
    /// The segment's generation, for the same reason.
    pub generation: u32,
    /// Bytes of payload.
    pub payload_len: u64,
    /// CRC-32 of the whole payload.
    pub payload_crc: u32,
    /// Orders writes of one name.
    pub version: Version,
    /// A tombstone's object; none in an object's record.
    pub target: Option<ObjectId>,
    /// Milliseconds since 1970 at which the upload was taken.
    pub modified_ms: u64,
    /// The user.
    pub user: String,
    /// The file name; it may hold slashes.
    pub name: String,
    /// The content type; empty in a tombstone.
    pub content_type: String,
}

impl RecordHead {
    /// What a head begins with.
    pub const MAGIC: [u8; 4] = *b"RREC";

    /// Whether the (unchecked) start of a head says that block checksums follow the payload.
    pub fn is_large(start: &[u8]) -> bool {
        start.get(9).is_some_and(|layout| *layout != 0)
    }

    /// Bytes of the head for these texts in a packed segment.
    pub fn packed_head_len(user: &str, name: &str, content_type: &str) -> u32 {
        align((FIXED_BYTES + user.len() + name.len() + content_type.len()) as u64) as u32
    }

    /// Bytes from this record's start to where the next may start.
    pub fn record_len(&self) -> u64 {
        u64::from(self.head_len) + align(self.payload_len)
    }

    /// Appends the head to `out`, padded with zeros to `head_len`. `salt` is the segment's.
    ///
    /// # Panics
    /// When a text is longer than its field allows, or `head_len` is too small for them; callers
    /// check names when they come in.
    pub fn encode(&self, salt: u32, out: &mut Vec<u8>) {
        let texts = [&self.user, &self.name, &self.content_type];
        let used = FIXED_BYTES + texts.iter().map(|text| text.len()).sum::<usize>();
        assert!(used <= self.head_len as usize && self.head_len as usize <= MAX_HEAD);
        assert!(self.user.len() <= MAX_USER && self.name.len() <= MAX_NAME);
        assert!(self.content_type.len() <= MAX_TYPE);
        let start = out.len();
        out.resize(start + self.head_len as usize, 0);
        let head = &mut out[start..];
        put(head, 0, &MAGIC);
        head[4] = self.kind.to_byte();
        head[5] = self.user.len() as u8;
        put(head, 6, &(self.name.len() as u16).to_le_bytes());
        head[8] = self.content_type.len() as u8;
        head[9] = u8::from(self.layout == Layout::Blocks);
        put(head, 10, &self.slot.to_le_bytes());
        put(head, 12, &self.head_len.to_le_bytes());
        put(head, 16, &self.segment.get().to_le_bytes());
        put(head, 24, &self.payload_len.to_le_bytes());
        put(head, 32, &self.version.hlc.to_le_bytes());
        put(head, 40, &self.version.node.to_le_bytes());
        put(head, 44, &self.payload_crc.to_le_bytes());
        put(head, 48, &self.target.map_or(0, ObjectId::as_u64).to_le_bytes());
        put(head, 56, &self.modified_ms.to_le_bytes());
        put(head, 64, &self.generation.to_le_bytes());
        let mut at = FIXED_BYTES;
        for text in texts {
            put(head, at, text.as_bytes());
            at += text.len();
        }
        let crc = head_crc(head, salt);
        put(head, CRC_AT, &crc.to_le_bytes());
    }

    /// Bytes a head at the start of `bytes` takes, from its fixed part, not yet checked by CRC.
    pub fn peek_len(bytes: &[u8]) -> Result<usize, FormatError> {
        if bytes_at::<4>(bytes, 0)? != MAGIC {
            return Err(FormatError::Magic);
        }
        let length = u32_at(bytes, 12)? as usize;
        if !(FIXED_BYTES..=MAX_HEAD).contains(&length) || !length.is_multiple_of(8) {
            return Err(FormatError::Field("head length out of bounds"));
        }
        Ok(length)
    }

    /// Understands the head at the start of `bytes`, or says why not. `salt` is the segment's.
    pub fn decode(bytes: &[u8], salt: u32) -> Result<Self, FormatError> {
        let length = Self::peek_len(bytes)?;
        let head = bytes.get(..length).ok_or(FormatError::Short)?;
        if u32_at(head, CRC_AT)? != head_crc(head, salt) {
            return Err(FormatError::Crc("record head"));
        }
        let kind = RecordKind::from_byte(head[4])?;
        let lengths = [head[5] as usize, u16_at(head, 6)? as usize, head[8] as usize];
        let mut at = FIXED_BYTES;
        let mut text = |length: usize| {
            let slice = head.get(at..at + length).ok_or(FormatError::Short)?;
            at += length;
            std::str::from_utf8(slice)
                .map(str::to_owned)
                .map_err(|_| FormatError::Field("text is not UTF-8"))
        };
        let (user, name, content_type) = (text(lengths[0])?, text(lengths[1])?, text(lengths[2])?);
        Ok(Self {
            kind,
            layout: if head[9] == 0 { Layout::Whole } else { Layout::Blocks },
            slot: u16_at(head, 10)?,
            head_len: length as u32,
            segment: SegmentNumber::new(u64_at(head, 16)?)
                .ok_or(FormatError::Field("segment number of more than 48 bits"))?,
            generation: u32_at(head, 64)?,
            payload_len: u64_at(head, 24)?,
            payload_crc: u32_at(head, 44)?,
            version: Version { hlc: u64_at(head, 32)?, node: u32_at(head, 40)? },
            target: (kind != RecordKind::Object).then_some(ObjectId::from_u64(u64_at(head, 48)?)),
            modified_ms: u64_at(head, 56)?,
            user,
            name,
            content_type,
        })
    }
}

/// The CRC of a head: the segment's salt (unless it is 0: format version 1), then all of the head
/// but the CRC's own four bytes.
fn head_crc(head: &[u8], salt: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    if salt != 0 {
        hasher.update(&salt.to_le_bytes());
    }
    hasher.update(&head[..CRC_AT]);
    hasher.update(&head[CRC_AT + 4..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SALT: u32 = 0x5a17;

    #[test]
    fn a_head_of_another_salt_is_refused() {
        let mut bytes = Vec::new();
        let head = head("u".into(), "f".into(), "t".into());
        head.encode(0, &mut bytes);
        assert_eq!(RecordHead::decode(&bytes, 0), Ok(head));
        assert_eq!(RecordHead::decode(&bytes, 1), Err(FormatError::Crc("record head")));
    }

    fn head(user: String, name: String, content_type: String) -> RecordHead {
        RecordHead {
            kind: RecordKind::Object,
            layout: Layout::Whole,
            slot: 513,
            head_len: RecordHead::packed_head_len(&user, &name, &content_type),
            segment: SegmentNumber::new(0xabcdef).expect("fits"),
            generation: 1,
            payload_len: 4096,
            payload_crc: 0xdead_beef,
            version: Version { hlc: 77, node: 5 },
            target: None,
            modified_ms: 1234,
            user,
            name,
            content_type,
        }
    }

    proptest! {
        #[test]
        fn it_round_trips(user in "[a-z]{1,128}", name in "\\PC{1,200}", kind in "[a-z/]{0,255}") {
            let head = head(user, name, kind);
            let mut bytes = vec![9, 9, 9];
            head.encode(SALT, &mut bytes);
            prop_assert_eq!(RecordHead::decode(&bytes[3..], SALT), Ok(head));
        }

        #[test]
        fn noise_is_never_a_record_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(RecordHead::decode(&bytes, SALT).is_err());
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let mut bytes = Vec::new();
        head("u".into(), "a/b.mp4".into(), "video/mp4".into()).encode(SALT, &mut bytes);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(RecordHead::decode(&damaged, SALT).is_err(), "bit {bit}");
        }
    }
}
