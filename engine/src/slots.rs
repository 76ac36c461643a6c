//! Slot tables: where each slot's record starts, how long it is, and whether it lives.
//!
//! 16 bytes a slot. The table of an active segment is in memory and is written beside the segment
//! when that is sealed; a sealed one is mapped. Looking a slot up is one read of two words: no
//! index, no allocation, no system call when warm (Haystack, OSDI 2010, had an index in memory
//! instead; ten million objects would need 160 MB of it).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::{DiskFile, Map, SyncPoint, Volume};
use crate::error::{Error, Result};
use crate::format::align;
use crate::format::segment_header::SegmentHeader;
use crate::format::table::{DEAD, ENTRIES_AT, ENTRY_BYTES, Entry, TableHeader};
use crate::id::SLOTS;

/// Words of an entry.
const WORDS: usize = ENTRY_BYTES / 8;

/// A packed segment's slot table. One writer (the segment's owner) sets entries; any thread reads
/// them and may set the dead mark.
#[derive(Debug)]
pub enum SlotTable {
    /// Of an active segment: in memory, 1 MiB.
    Active(Box<[AtomicU64]>),
    /// Of a sealed segment: the file, mapped where it can be.
    Sealed(MappedTable),
}

/// A sealed table's mapping.
#[derive(Debug)]
pub struct MappedTable {
    map: Map,
    slots: usize,
    /// The file system maps nothing (a network volume), or not now: the words are a copy in memory.
    is_copy: bool,
    /// Marks are written through it, not through the mapping: an error of the disk is an error here,
    /// and a signal there.
    file: DiskFile,
}

impl MappedTable {
    #[inline]
    fn words(&self) -> &[AtomicU64] {
        const FIRST: usize = ENTRIES_AT / 8;
        &self.map.words()[FIRST..FIRST + self.slots * WORDS]
    }
}

/// The path of a segment's table: it names the generation, so that a compacted segment takes the
/// old one's place, table and all, with one rename.
pub fn table_path(segment: &Path, generation: u32) -> PathBuf {
    match generation {
        0 => segment.with_extension("idx"),
        _ => segment.with_extension(format!("{generation}.idx")),
    }
}

/// A table read from its file.
#[derive(Debug)]
pub(crate) struct OpenedTable {
    pub(crate) table: SlotTable,
    pub(crate) header: TableHeader,
}

impl SlotTable {
    /// An empty table for an active segment.
    pub fn active() -> Self {
        Self::Active((0..SLOTS * WORDS).map(|_| AtomicU64::new(0)).collect())
    }

    #[inline]
    fn words(&self) -> &[AtomicU64] {
        match self {
            Self::Active(words) => words,
            Self::Sealed(map) => map.words(),
        }
    }

    /// Whether it is in memory only.
    pub fn is_active(&self) -> bool {
        matches!(self, Self::Active(_))
    }

    /// The entry of `slot`; `None` when it is empty.
    #[inline]
    pub fn get(&self, slot: u16) -> Option<Entry> {
        let words = self.words();
        let at = slot as usize * WORDS;
        let first = words.get(at)?.load(Ordering::Acquire);
        let second = words.get(at + 1)?.load(Ordering::Relaxed);
        Entry::decode(first, second)
    }

    /// Entries that are not empty, with their slots.
    pub fn entries(&self) -> impl Iterator<Item = (u16, Entry)> + '_ {
        let slots = self.words().len() / WORDS;
        (0..slots).filter_map(|slot| Some((slot as u16, self.get(slot as u16)?)))
    }

    /// Publishes an entry: readers see all of it or nothing. Only for active tables; the owner
    /// calls it after the record is durable.
    pub fn publish(&self, slot: u16, entry: &Entry) {
        let (first, second) = entry.encode();
        let words = self.words();
        let at = slot as usize * WORDS;
        words[at + 1].store(second, Ordering::Relaxed);
        words[at].store(first, Ordering::Release);
    }

    /// Marks the object in `slot` dead; the entry when it was alive before. The mark survives a crash
    /// of the process, and a power loss once the store has synced it, which it does before the
    /// tombstone that names the object stops being replayed.
    ///
    /// # Errors
    /// I/O errors of a sealed table's file; the object is not marked then.
    pub fn kill(&self, slot: u16) -> Result<Option<Entry>> {
        let Some(entry) = self.get(slot) else { return Ok(None) };
        match self {
            Self::Active(words) => {
                let before = words[slot as usize * WORDS].fetch_or(DEAD, Ordering::AcqRel);
                Ok((before & DEAD == 0).then_some(entry))
            }
            Self::Sealed(table) => {
                const MARK_AT: u64 = 7;
                let at = (ENTRIES_AT + slot as usize * ENTRY_BYTES) as u64 + MARK_AT;
                // Also when it is set already: what an earlier life wrote and could not sync looks set,
                // and would not be written again.
                table.file.write_all_at(&[0xff], at)?;
                if table.is_copy {
                    table.words()[slot as usize * WORDS].fetch_or(DEAD, Ordering::AcqRel);
                }
                Ok((!entry.dead).then_some(entry))
            }
        }
    }

    /// Slots up to the last that is not empty.
    pub fn slots(&self) -> usize {
        let words = self.words();
        let used = words.chunks_exact(WORDS).rposition(|pair| pair[0].load(Ordering::Acquire) != 0);
        used.map_or(0, |last| last + 1)
    }

    /// Writes the table of the segment with `header` at `segment`, which has `segment_len` bytes.
    pub(crate) fn write(
        &self,
        volume: &Volume,
        segment: &Path,
        header: &SegmentHeader,
        segment_len: u64,
        points: (SyncPoint, SyncPoint),
    ) -> Result<()> {
        let slots = self.slots();
        let mut entries = Vec::with_capacity(slots * ENTRY_BYTES);
        for pair in self.words()[..slots * WORDS].chunks_exact(WORDS) {
            let first = pair[0].load(Ordering::Acquire);
            // A mark with a flipped bit is written as what it was taken for.
            let dead = (first & DEAD).count_ones() > 4;
            let first = if dead { first | DEAD } else { first & !DEAD };
            entries.extend_from_slice(&first.to_le_bytes());
            entries.extend_from_slice(&pair[1].load(Ordering::Relaxed).to_le_bytes());
        }
        let page = TableHeader {
            number: header.number,
            generation: header.generation,
            slots: slots as u32,
            entries_crc: entries_crc(&entries),
            segment_len,
            creator: header.creator,
            salt: header.salt,
            created_ms: header.created_ms,
        };
        let mut bytes = page.encode();
        bytes.extend_from_slice(&entries);
        volume.replace(&table_path(segment, header.generation), &bytes, points.0, points.1)
    }

    /// Maps the table of the segment at `segment` and checks it: number, generation, length and
    /// checksum.
    pub(crate) fn open(volume: &Volume, segment: &Path, generation: u32) -> Result<OpenedTable> {
        let path = table_path(segment, generation);
        let file = match volume.open_write(&path) {
            // On a file system that has become read-only: a copy in memory serves reads.
            Err(Error::Io { source, .. })
                if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem =>
            {
                volume.open_read(&path)?
            }
            file => file?,
        };
        Self::read(file, generation)
    }

    /// [`SlotTable::open`] of another node's segment: nothing is ever marked in it.
    pub(crate) fn open_foreign(
        volume: &Volume,
        segment: &Path,
        generation: u32,
    ) -> Result<OpenedTable> {
        Self::read(volume.open_read(&table_path(segment, generation))?, generation)
    }

    fn read(file: DiskFile, generation: u32) -> Result<OpenedTable> {
        let path = file.path().to_owned();
        let mut page = vec![0; ENTRIES_AT];
        file.read_exact_at(&mut page, 0)?;
        let header = TableHeader::decode(&page)
            .map_err(|error| Error::damaged(&path, 0, error.to_string()))?;
        if header.generation != generation {
            return Err(Error::damaged(&path, 24, "belongs to another generation"));
        }
        let slots = header.slots as usize;
        let needed = (ENTRIES_AT + slots * ENTRY_BYTES) as u64;
        let length = file.len()?;
        if slots > SLOTS || length < needed {
            return Err(Error::damaged(&path, length, "shorter than its header says"));
        }
        // Read, not looked at through the mapping: an error of the disk is an error here, and a
        // signal there.
        let mut entries = vec![0; slots * ENTRY_BYTES];
        file.read_exact_at(&mut entries, ENTRIES_AT as u64)?;
        if entries_crc(&entries) != header.entries_crc {
            let what = "checksum mismatch in the slot table";
            return Err(Error::damaged(&path, ENTRIES_AT as u64, what));
        }
        let (map, is_copy) = match file.map() {
            Ok(map) => (map, false),
            Err(_) => {
                page.extend_from_slice(&entries);
                (Map::copied(&page), true)
            }
        };
        let table = Self::Sealed(MappedTable { map, slots, is_copy, file });
        Ok(OpenedTable { table, header })
    }

    /// Bytes that all records take in the segment, and those of dead objects.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        self.entries().fold((0, 0), |(all, dead), (_, entry)| {
            let bytes = record_bytes(&entry);
            (all + bytes, if entry.dead { dead + bytes } else { dead })
        })
    }
}

/// Bytes that the record of an entry takes.
pub(crate) fn record_bytes(entry: &Entry) -> u64 {
    u64::from(entry.head_len) + align(u64::from(entry.payload_len))
}

/// CRC-32 of encoded entries with the dead marks left out.
pub(crate) fn entries_crc(entries: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    let mut copy = [0; 64 * ENTRY_BYTES];
    for part in entries.chunks(copy.len()) {
        let copy = &mut copy[..part.len()];
        copy.copy_from_slice(part);
        for entry in copy.chunks_exact_mut(ENTRY_BYTES) {
            entry[7] = 0;
        }
        hasher.update(copy);
    }
    hasher.finalize()
}

impl Map {
    /// The words of bytes in memory.
    fn copied(bytes: &[u8]) -> Self {
        let words: Arc<[AtomicU64]> = bytes
            .chunks_exact(8)
            .map(|word| AtomicU64::new(word.try_into().map_or(0, u64::from_le_bytes)))
            .collect();
        Self::shared(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;
    use crate::format::segment_header::SegmentKind;
    use crate::format::table::SlotState;
    use crate::id::SegmentNumber;

    fn entry(offset: u64) -> Entry {
        Entry {
            state: SlotState::Object,
            dead: false,
            offset,
            head_len: 80,
            payload_len: 5,
            payload_crc: 9,
            target: None,
        }
    }

    fn header() -> SegmentHeader {
        SegmentHeader {
            kind: SegmentKind::Packed,
            number: SegmentNumber::new(7).expect("fits"),
            generation: 2,
            creator: 1,
            salt: 3,
            created_ms: 4,
        }
    }

    fn write(table: &SlotTable, segment: &Path, length: u64) -> Volume {
        let volume = Volume::new(Arc::new(RealDisk));
        let points = (SyncPoint::Table, SyncPoint::TableEntry);
        table.write(&volume, segment, &header(), length, points).expect("written");
        volume
    }

    #[test]
    fn a_sealed_table_reads_as_it_was_and_keeps_its_dead_marks() {
        let folder = tempfile::tempdir().expect("temp folder");
        let segment = folder.path().join("000000000007.seg");
        let table = SlotTable::active();
        for slot in 0..1000u16 {
            table.publish(slot, &entry(4096 + u64::from(slot) * 128));
        }
        assert!(table.kill(3).expect("in memory").is_some());
        let volume = write(&table, &segment, 1 << 20);
        let opened = SlotTable::open(&volume, &segment, 2).expect("opens");
        let sealed = opened.table;
        assert_eq!((sealed.slots(), opened.header.segment_len), (1000, 1 << 20));
        assert!(sealed.get(3).expect("there").dead);
        assert!(sealed.kill(4).expect("written").is_some());
        assert!(sealed.kill(4).expect("again").is_none());
        assert_eq!(sealed.bytes(), (1000 * 88, 2 * 88));
        drop(sealed);
        let again = SlotTable::open(&volume, &segment, 2).expect("opens after a kill").table;
        assert!(again.get(4).expect("there").dead);
        assert_eq!(again.get(5), Some(entry(4096 + 5 * 128)));
        assert_eq!(again.get(1000), None);
        assert!(SlotTable::open(&volume, &segment, 1).is_err(), "another generation");
    }

    #[test]
    fn a_flipped_bit_in_an_entry_is_found_or_outvoted() {
        let folder = tempfile::tempdir().expect("temp folder");
        let segment = folder.path().join("000000000007.seg");
        let table = SlotTable::active();
        table.publish(0, &entry(4096));
        let volume = write(&table, &segment, 8192);
        let path = table_path(&segment, 2);
        let good = std::fs::read(&path).expect("read");
        for bit in ENTRIES_AT * 8..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bad).expect("write");
            let opened = SlotTable::open(&volume, &segment, 2);
            let of_mark = (56..64).contains(&(bit - ENTRIES_AT * 8));
            assert_eq!(opened.is_ok(), of_mark, "bit {bit}");
            if let Ok(opened) = opened {
                assert!(!opened.table.get(0).expect("there").dead, "bit {bit}");
            }
        }
    }
}
