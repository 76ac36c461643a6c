//! Opens a sealed segment: a packed one by its table, a solo one by its head and trailer.

use std::path::Path;

use super::{Content, FOREIGN, Segment};
use crate::disk::{DiskFile, Volume};
use crate::error::{Error, Result};
use crate::format::record::{Layout, RecordHead, RecordKind};
use crate::format::segment_header::{SegmentHeader, SegmentKind};
use crate::format::{FORMAT, FormatError, HEADER_BYTES, trailer};
use crate::id::SegmentNumber;
use crate::slots::{OpenedTable, SlotTable};

/// What opening a segment gave.
pub(crate) enum Opened {
    /// It can be read.
    Ready(Segment),
    /// A packed segment whose slot table is missing or damaged.
    NoTable { header: SegmentHeader, file: DiskFile },
}

/// Opens the sealed segment at `path`. Blocking. A damaged header page of a packed segment is made
/// again from the table (said in the log; the scrub reports it).
pub(crate) fn open(
    volume: &Volume,
    folder: u16,
    path: &Path,
    number: SegmentNumber,
) -> Result<Opened> {
    let file = match volume.open_read(path) {
        Err(error) if error.is_missing() => return Err(Error::NoSegment(number)),
        file => file?,
    };
    let header = match read_header(&file, number) {
        Err(reason @ Error::Damaged { .. }) => {
            let header = header_from_table(volume, path, number).ok_or(reason)?;
            tracing::error!(segment = %number, path = %path.display(), "damaged segment header; the slot table stands in for it");
            header
        }
        header => header?,
    };
    if header.kind == SegmentKind::Solo {
        let (content, length) = open_solo(&file, &header)?;
        return Ok(Opened::Ready(Segment::new(header, folder, file, content, length, true)));
    }
    match open_table_in(volume, path, &header, folder) {
        Ok(opened) => {
            let content = Segment::packed(opened.table);
            let length = opened.header.segment_len;
            Ok(Opened::Ready(Segment::new(header, folder, file, content, length, true)))
        }
        Err(error @ Error::Io { .. }) if !error.is_missing() => Err(error),
        // Its node has the table in memory.
        Err(_) if folder == FOREIGN => Ok(Opened::NoTable { header, file }),
        Err(reason) => {
            tracing::warn!(segment = %number, %reason, "slot table is made anew from its segment");
            Ok(Opened::NoTable { header, file })
        }
    }
}

/// The table that belongs to this writing of a segment.
pub(crate) fn open_table(
    volume: &Volume,
    path: &Path,
    header: &SegmentHeader,
) -> Result<OpenedTable> {
    open_table_in(volume, path, header, 0)
}

fn open_table_in(
    volume: &Volume,
    path: &Path,
    header: &SegmentHeader,
    folder: u16,
) -> Result<OpenedTable> {
    let opened = if folder == FOREIGN {
        SlotTable::open_foreign(volume, path, header.generation)?
    } else {
        SlotTable::open(volume, path, header.generation)?
    };
    if opened.header.number != header.number || opened.header.salt != header.salt {
        return Err(Error::damaged(path, 16, "slot table of another writing of the segment"));
    }
    Ok(opened)
}

/// The header of a packed segment whose header page is damaged, from the table beside it.
fn header_from_table(volume: &Volume, path: &Path, number: SegmentNumber) -> Option<SegmentHeader> {
    let stem = path.file_stem()?.to_str()?;
    for listed in volume.list(path.parent()?).ok()? {
        let Some(rest) = listed.name.strip_prefix(stem).and_then(|name| name.strip_suffix("idx"))
        else {
            continue;
        };
        let digits = rest.trim_matches('.');
        let generation = if digits.is_empty() { Some(0) } else { digits.parse().ok() };
        let Some(generation) = generation else { continue };
        if let Ok(OpenedTable { header, .. }) = SlotTable::open(volume, path, generation)
            && header.number == number
        {
            return Some(SegmentHeader {
                kind: SegmentKind::Packed,
                number,
                generation,
                creator: header.creator,
                salt: header.salt,
                created_ms: header.created_ms,
            });
        }
    }
    None
}

/// Reads and checks a segment's header page.
pub(crate) fn read_header(file: &DiskFile, number: SegmentNumber) -> Result<SegmentHeader> {
    let path = file.path();
    let mut page = vec![0; HEADER_BYTES as usize];
    file.read_exact_at(&mut page, 0)?;
    let header = SegmentHeader::decode(&page).map_err(|error| match error {
        FormatError::Version(found) => {
            Error::UnknownFormat { path: path.to_owned(), found, known: FORMAT }
        }
        error => Error::damaged(path, 0, error.to_string()),
    })?;
    if header.number != number {
        return Err(Error::damaged(path, 16, format!("holds segment {}", header.number)));
    }
    Ok(header)
}

/// The head and trailer of a complete solo segment, and its length.
pub(crate) fn open_solo(file: &DiskFile, header: &SegmentHeader) -> Result<(Content, u64)> {
    let path = file.path();
    let mut page = vec![0; HEADER_BYTES as usize];
    file.read_exact_at(&mut page, HEADER_BYTES)?;
    let head = RecordHead::decode(&page, header.salt)
        .map_err(|error| Error::damaged(path, HEADER_BYTES, error.to_string()))?;
    if head.segment != header.number
        || head.layout != Layout::Blocks
        || head.kind != RecordKind::Object
    {
        return Err(Error::damaged(path, HEADER_BYTES, "head of another record"));
    }
    let at = HEADER_BYTES + u64::from(head.head_len) + crate::format::align(head.payload_len);
    let length = trailer::trailer_len(head.payload_len);
    let size = file.len()?;
    if size < at + length {
        return Err(Error::damaged(path, size, "the file ends before its trailer"));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, at)?;
    let blocks = trailer::decode(&bytes, head.payload_len)
        .map_err(|error| Error::damaged(path, at, error.to_string()))?;
    Ok((Segment::solo(head, blocks), at + length))
}
