//! Objects that a complete copy lacks: a peer's records of them wait here until compaction puts them back in their slots.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::format::FormatError;
use crate::format::record::{RecordHead, RecordKind};
use crate::id::{ObjectId, SegmentNumber};
use crate::store::Store;

/// Payload bytes that wait at most; further objects are for a later comparison.
const WAITING_BYTES: usize = 16 << 20;

/// A living object of a packed segment, whole, as nodes send it to each other: its record's head, written for the salt 0,
/// then its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub head: RecordHead,
    pub(crate) payload: Vec<u8>,
}

impl Record {
    /// Understands what [`Record::encode`] wrote, and checks the payload.
    ///
    /// # Errors
    /// It is not an object's, or not as it was written.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let head = RecordHead::decode(bytes, 0)?;
        let payload = bytes.get(head.head_len as usize..).unwrap_or(&[]);
        if head.kind != RecordKind::Object || payload.len() as u64 != head.payload_len {
            return Err(FormatError::Field("not the whole record of an object"));
        }
        if crc32fast::hash(payload) != head.payload_crc {
            return Err(FormatError::Crc("payload"));
        }
        Ok(Self { payload: payload.to_vec(), head })
    }

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.head.head_len as usize + self.payload.len());
        self.head.encode(0, &mut bytes);
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// The object.
    pub fn object(&self) -> ObjectId {
        self.head.segment.object(self.head.slot)
    }
}

/// Records that wait for compaction. Memory only: after a crash the next comparison finds what lacks again.
#[derive(Debug, Default)]
pub(crate) struct Supplies {
    segments: BTreeMap<SegmentNumber, BTreeMap<u16, Record>>,
    bytes: usize,
}

impl Supplies {
    fn add(&mut self, record: Record) -> bool {
        if self.bytes + record.payload.len() > WAITING_BYTES {
            return false;
        }
        self.bytes += record.payload.len();
        let slots = self.segments.entry(record.head.segment).or_default();
        let before = slots.insert(record.head.slot, record);
        self.bytes -= before.map_or(0, |before| before.payload.len());
        true
    }

    /// Takes those of a segment.
    pub(crate) fn take(&mut self, number: SegmentNumber) -> BTreeMap<u16, Record> {
        let taken = self.segments.remove(&number).unwrap_or_default();
        self.bytes -= taken.values().map(|record| record.payload.len()).sum::<usize>();
        taken
    }
}

impl Store {
    /// The record of a living object in a packed segment, checked; `None` when there is none. Blocking.
    ///
    /// # Errors
    /// [`crate::Error::NoSegment`], [`crate::Error::Damaged`], [`crate::Error::DamagedObject`], I/O errors.
    pub fn record(&self, object: ObjectId) -> Result<Option<Record>> {
        let segment = self.segment_blocking(object.segment())?;
        let Some(entry) = segment.table().and_then(|table| table.get(object.slot())) else {
            return Ok(None);
        };
        let Some(head) = segment.read_head(object.slot())? else { return Ok(None) };
        if head.kind != RecordKind::Object {
            return Ok(None);
        }
        let mut payload = vec![0; head.payload_len as usize];
        let at = entry.offset + u64::from(entry.head_len);
        segment.file().read_exact_at(&mut payload, at)?;
        if crc32fast::hash(&payload) != head.payload_crc {
            return Err(segment.damaged_object(object.slot(), at));
        }
        Ok(Some(Record { head, payload }))
    }

    /// Takes an object that lacks in a complete copy here; compaction puts it back soon. False when as many wait as may:
    /// try later.
    pub fn supply(&self, record: Record) -> bool {
        let number = record.head.segment;
        let taken = self.supplies.lock().add(record);
        if taken {
            self.postpone(number);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Version;
    use crate::format::record::Layout;

    fn record(slot: u16, payload: &[u8]) -> Record {
        let segment = SegmentNumber::new(7).expect("a number");
        let head = RecordHead {
            kind: RecordKind::Object,
            layout: Layout::Whole,
            slot,
            head_len: RecordHead::packed_head_len("ann", "film", "video/mp4"),
            segment,
            generation: 3,
            payload_len: payload.len() as u64,
            payload_crc: crc32fast::hash(payload),
            version: Version { hlc: 5, node: 1 },
            target: None,
            modified_ms: 9,
            user: "ann".into(),
            name: "film".into(),
            content_type: "video/mp4".into(),
        };
        Record { head, payload: payload.to_vec() }
    }

    #[test]
    fn a_record_arrives_whole_or_not_at_all() {
        let sent = record(2, b"some bytes");
        let bytes = sent.encode();
        assert_eq!(Record::decode(&bytes), Ok(sent));
        for cut in 0..bytes.len() {
            assert!(Record::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 4;
            assert!(Record::decode(&flipped).is_err(), "{at}");
        }
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut supplies = Supplies::default();
        let half = vec![1; WAITING_BYTES / 2];
        assert!(supplies.add(record(1, &half)) && supplies.add(record(2, &half[1..])));
        assert!(!supplies.add(record(3, &[0, 0])));
        assert!(supplies.add(record(3, &[0])));
        let number = SegmentNumber::new(7).expect("a number");
        assert_eq!(supplies.take(number).into_keys().collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(supplies.bytes, 0);
        assert!(supplies.add(record(1, &half)));
        assert!(supplies.add(record(1, &half[..10])), "in place of the one before");
        assert_eq!(supplies.bytes, 10);
    }
}
