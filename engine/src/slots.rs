//! Slot tables: where each slot's record starts, how long it is, and whether it lives.
//!
//! 16 bytes a slot. The table of an active segment is in memory and is written beside the segment
//! when that is sealed; a sealed one is mapped. Looking a slot up is one read of two words: no
//! index, no allocation, no system call when warm (Haystack, OSDI 2010, had an index in memory
//! instead; ten million objects would need 160 MB of it).

#![expect(unsafe_code, reason = "maps files and views the mapping as atomic words")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapRaw;

use crate::disk;
use crate::error::{Error, Result};
use crate::format::table::{DEAD, ENTRIES_AT, ENTRY_BYTES, Entry, TableHeader};
use crate::id::{SLOTS, SegmentNumber};

/// A packed segment's slot table. One writer (the segment's owner) sets entries; any thread reads
/// them and may set the dead mark.
#[derive(Debug)]
pub enum SlotTable {
    /// Of an active segment: in memory, 1 MiB.
    Active(Box<[AtomicU64]>),
    /// Of a sealed segment: the file, mapped.
    Sealed(MappedTable),
}

/// A sealed table's mapping.
#[derive(Debug)]
pub struct MappedTable {
    map: MmapRaw,
    slots: usize,
}

impl MappedTable {
    fn words(&self) -> &[AtomicU64] {
        let first = self.map.as_mut_ptr().wrapping_add(ENTRIES_AT).cast::<AtomicU64>();
        // SAFETY: `open` checked that the mapping holds `slots` entries of two words behind the
        // header page; a mapping is page-aligned and so is ENTRIES_AT; the words are only accessed
        // as atomics, and the file is never shortened while it is there (it is unlinked instead).
        unsafe { std::slice::from_raw_parts(first, self.slots * 2) }
    }
}

/// The table's path beside its segment's.
pub fn table_path(segment: &Path) -> PathBuf {
    segment.with_extension("idx")
}

impl SlotTable {
    /// An empty table for an active segment.
    pub fn active() -> Self {
        Self::Active((0..SLOTS * 2).map(|_| AtomicU64::new(0)).collect())
    }

    fn words(&self) -> &[AtomicU64] {
        match self {
            Self::Active(words) => words,
            Self::Sealed(map) => map.words(),
        }
    }

    /// The entry of `slot`; `None` when it is empty.
    #[inline]
    pub fn get(&self, slot: u16) -> Option<Entry> {
        let words = self.words();
        let at = slot as usize * 2;
        let first = words.get(at)?.load(Ordering::Acquire);
        let second = words.get(at + 1)?.load(Ordering::Relaxed);
        Entry::decode(first, second)
    }

    /// Publishes an entry: readers see all of it or nothing. Only for active tables; the owner
    /// calls it after the record is durable.
    pub fn publish(&self, slot: u16, entry: &Entry) {
        let (first, second) = entry.encode();
        let words = self.words();
        let at = slot as usize * 2;
        words[at + 1].store(second, Ordering::Relaxed);
        words[at].store(first, Ordering::Release);
    }

    /// Marks the object in `slot` dead; false when it was already, or there is none. In a sealed
    /// table the mark survives a crash of the process, and usually a power loss; one that is lost
    /// then is found again by the sweep.
    pub fn kill(&self, slot: u16) -> bool {
        let Some(word) = self.words().get(slot as usize * 2) else { return false };
        if word.load(Ordering::Acquire) == 0 {
            return false;
        }
        word.fetch_or(DEAD, Ordering::AcqRel) & DEAD == 0
    }

    /// Slots the table has entries for.
    pub fn slots(&self) -> usize {
        match self {
            Self::Active(words) => {
                let used =
                    words.chunks_exact(2).rposition(|pair| pair[0].load(Ordering::Acquire) != 0);
                used.map_or(0, |last| last + 1)
            }
            Self::Sealed(map) => map.slots,
        }
    }

    /// Writes the table beside its segment, synced, for a segment of `segment_len` bytes that will
    /// not grow any more.
    pub fn write(
        &self,
        segment: &Path,
        number: SegmentNumber,
        generation: u32,
        segment_len: u64,
    ) -> Result<()> {
        let slots = self.slots();
        let mut entries = Vec::with_capacity(slots * ENTRY_BYTES);
        for word in &self.words()[..slots * 2] {
            entries.extend_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
        }
        let header = TableHeader {
            number,
            generation,
            slots: slots as u32,
            entries_crc: entries_crc(&entries),
            segment_len,
        };
        let mut bytes = header.encode();
        bytes.extend_from_slice(&entries);
        disk::replace_file(&table_path(segment), &bytes)
    }

    /// Maps the table beside `segment` and checks it: number, generation, length and checksum.
    /// Returns it with the segment's length.
    pub fn open(segment: &Path, number: SegmentNumber, generation: u32) -> Result<(Self, u64)> {
        let path = table_path(segment);
        let file = disk::open_write(&path)?;
        let header = read_header(&file, &path)?;
        if header.number != number || header.generation != generation {
            return Err(Error::damaged(&path, 0, "belongs to another segment or generation"));
        }
        let slots = header.slots as usize;
        let needed = (ENTRIES_AT + slots * ENTRY_BYTES) as u64;
        let length = file.metadata().map_err(|error| Error::io("stat", &path, error))?.len();
        if slots > SLOTS || length < needed {
            return Err(Error::damaged(&path, length, "shorter than its header says"));
        }
        let map = MmapRaw::map_raw(&file).map_err(|error| Error::io("map", &path, error))?;
        let table = Self::Sealed(MappedTable { map, slots });
        let mut entries = Vec::with_capacity(slots * ENTRY_BYTES);
        for word in table.words() {
            entries.extend_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
        }
        if entries_crc(&entries) != header.entries_crc {
            return Err(Error::damaged(
                &path,
                ENTRIES_AT as u64,
                "checksum mismatch in the slot table",
            ));
        }
        Ok((table, header.segment_len))
    }
}

fn read_header(file: &File, path: &Path) -> Result<TableHeader> {
    let mut page = vec![0; ENTRIES_AT];
    disk::read_exact_at(file, path, &mut page, 0)?;
    TableHeader::decode(&page).map_err(|error| Error::damaged(path, 0, error.to_string()))
}

/// CRC-32 of encoded entries with the dead marks left out.
fn entries_crc(entries: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    let mut copy = [0; 64 * ENTRY_BYTES];
    for part in entries.chunks(copy.len()) {
        let copy = &mut copy[..part.len()];
        copy.copy_from_slice(part);
        for entry in copy.chunks_exact_mut(ENTRY_BYTES) {
            entry[7] &= !((DEAD >> 56) as u8);
        }
        hasher.update(copy);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::table::SlotState;

    fn entry(offset: u64) -> Entry {
        Entry {
            state: SlotState::Object,
            dead: false,
            offset,
            head_len: 80,
            payload_len: 5,
            payload_crc: 9,
        }
    }

    #[test]
    fn a_sealed_table_reads_as_it_was_and_keeps_its_dead_marks() {
        let folder = tempfile::tempdir().expect("temp folder");
        let segment = folder.path().join("000000000007.seg");
        let number = SegmentNumber::new(7).expect("fits");
        let table = SlotTable::active();
        for slot in 0..1000u16 {
            table.publish(slot, &entry(4096 + u64::from(slot) * 128));
        }
        assert!(table.kill(3));
        table.write(&segment, number, 0, 1 << 20).expect("written");
        let (sealed, length) = SlotTable::open(&segment, number, 0).expect("opens");
        assert_eq!((sealed.slots(), length), (1000, 1 << 20));
        assert!(sealed.get(3).expect("there").dead);
        assert!(sealed.kill(4) && !sealed.kill(4));
        drop(sealed);
        let (again, _) = SlotTable::open(&segment, number, 0).expect("opens after a kill");
        assert!(again.get(4).expect("there").dead);
        assert_eq!(again.get(5), Some(entry(4096 + 5 * 128)));
        assert_eq!(again.get(1000), None);
        assert!(SlotTable::open(&segment, number, 1).is_err(), "another generation");
    }

    #[test]
    fn a_flipped_bit_in_an_entry_is_found() {
        let folder = tempfile::tempdir().expect("temp folder");
        let segment = folder.path().join("000000000007.seg");
        let number = SegmentNumber::new(7).expect("fits");
        let table = SlotTable::active();
        table.publish(0, &entry(4096));
        table.write(&segment, number, 0, 8192).expect("written");
        let path = table_path(&segment);
        let good = std::fs::read(&path).expect("read");
        for bit in (ENTRIES_AT * 8..good.len() * 8).filter(|bit| bit - ENTRIES_AT * 8 != 56) {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bad).expect("write");
            assert!(SlotTable::open(&segment, number, 0).is_err(), "bit {bit}");
        }
    }
}
