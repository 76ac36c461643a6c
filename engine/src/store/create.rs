//! New segments: their file, their marker, their header.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::folder::Marker;
use super::stock::Stocked;
use super::{Folder, Store};
use crate::disk::{DiskFile, Job, SyncPoint};
use crate::error::{Error, Result};
use crate::format::HEADER_BYTES;
use crate::format::segment_header::{SegmentHeader, SegmentKind};
use crate::id::SegmentNumber;
use crate::segment::Segment;
use crate::slots::SlotTable;

/// A fresh packed segment.
pub(crate) struct Fresh {
    pub(crate) segment: Arc<Segment>,
    /// Whether its space was written before: a sync then need not wait for the file system's
    /// journal.
    pub(crate) prewritten: bool,
    /// For commits that need no sync of their own; where the file system can, and space was written
    /// before.
    pub(crate) through: Option<DiskFile>,
}

/// Where a new segment's file comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// It is created, and grows.
    New,
    /// It is created for writes that bypass the page cache.
    NewDirect,
    /// Its space was written before.
    Stock(Stocked),
}

/// How much of the active segment is used: what writes the next one ahead keeps up with it.
#[derive(Debug, Default)]
pub(crate) struct Demand(AtomicU32);

impl Demand {
    pub(crate) fn set(&self, used: u64, of: u64) {
        self.0.store((used * 1000 / of.max(1)) as u32, Ordering::Relaxed);
    }

    /// [`Demand::set`], when that is more.
    pub(crate) fn raise(&self, used: u64, of: u64) {
        self.0.fetch_max((used * 1000 / of.max(1)) as u32, Ordering::Relaxed);
    }

    fn share(&self) -> f64 {
        f64::from(self.0.load(Ordering::Relaxed)) / 1000.0
    }
}

impl Store {
    /// Makes an empty packed segment: file, header, folder entries and marker. With `ahead` in space
    /// that was written before: from the stock, or else filled with zeros first, in steps, if there is
    /// room.
    pub(crate) fn create_packed(self: &Arc<Self>, ahead: Option<Arc<Demand>>) -> Job<Fresh> {
        let store = Arc::clone(self);
        self.pool.run(move || {
            store.make_in_some_folder(|| {
                let number = (store.options.numbers)().ok_or(Error::NoNumbers)?;
                let header = store.header(number, SegmentKind::Packed)?;
                store.create_packed_blocking(header, Marker::Active, ahead.as_deref())
            })
        })
    }

    /// Runs `make`, which makes a file in the folder that [`Store::place`] names. Where that fails, or has less space than
    /// was thought (it is asked for now and then only), another one is tried: at most as often as there are folders.
    /// Blocking.
    pub(crate) fn make_in_some_folder<T>(&self, make: impl Fn() -> Result<T>) -> Result<T> {
        let mut tried = self.place()?;
        for _ in 1..self.folders.len() {
            let error = match make() {
                Err(error @ Error::NoSpace { .. }) => {
                    self.folder(tried).refresh_space()?;
                    error
                }
                Err(error) if error.is_disk() => error,
                made => return made,
            };
            match self.place() {
                Ok(next) if next != tried => tried = next,
                _ => return Err(error),
            }
        }
        make()
    }

    pub(crate) fn create_packed_blocking(
        &self,
        header: SegmentHeader,
        marker: Marker,
        ahead: Option<&Demand>,
    ) -> Result<Fresh> {
        let bytes = self.options.segment_bytes;
        let stocked = ahead.and_then(|_| self.take_stocked());
        let prewritten = stocked.is_some() || ahead.is_some() && self.has_room(bytes).is_ok();
        let demand = ahead.filter(|_| prewritten && stocked.is_none());
        let source = match stocked {
            Some(stocked) => Source::Stock(stocked),
            None if prewritten => Source::NewDirect,
            None => Source::New,
        };
        let (file, index) = self.create_file(header.number, marker, source)?;
        let written = demand.map_or(Ok(()), |demand| {
            self.folder(index).take_space(bytes);
            let hurried = |done: f64| done < demand.share() + 0.125;
            self.folder(index).volume.fill_with_zeros(&file, bytes, hurried)
        });
        let written = written
            .and_then(|()| file.write_all_at(&header.encode(), 0))
            .and_then(|()| file.sync(SyncPoint::SegmentHeader));
        if let Err(error) = written {
            self.abandon(header.number);
            return Err(self.note_failure(index, error));
        }
        let content = Segment::packed(SlotTable::active());
        let segment = Arc::new(Segment::new(header, index, file, content, HEADER_BYTES, false));
        self.register(Arc::clone(&segment));
        let through = match self.volume(index).open_through(segment.path()) {
            Ok(file) if prewritten => Some(file),
            // Commits are written and synced then.
            _ => None,
        };
        Ok(Fresh { segment, prewritten, through })
    }

    /// A header of this node for a new segment.
    pub(crate) fn header(&self, number: SegmentNumber, kind: SegmentKind) -> Result<SegmentHeader> {
        Ok(SegmentHeader {
            kind,
            number,
            generation: 0,
            creator: self.options.node,
            salt: self.new_salt()?,
            created_ms: self.clock.now_ms(),
        })
    }

    /// A salt for a new writing of a segment; never 0, which is version 1's.
    pub(crate) fn new_salt(&self) -> Result<u32> {
        let folder = &self.folders[0];
        Ok((folder.volume.random(&folder.path)? as u32).max(1))
    }

    /// Makes a segment's file and its marker in `active/`, both findable after a power loss.
    pub(crate) fn create_file(
        &self,
        number: SegmentNumber,
        marker: Marker,
        source: Source,
    ) -> Result<(DiskFile, u16)> {
        let index = match &source {
            Source::Stock(stocked) => stocked.folder,
            Source::New | Source::NewDirect => self.place()?,
        };
        match self.create_file_in(number, index, marker, &source) {
            Ok(file) => Ok((file, index)),
            Err(error) => {
                let error = self.note_failure(index, error);
                if let Source::Stock(stocked) = &source {
                    self.discard(&stocked.path, index);
                }
                if self.remove_unfinished(number, index).is_err() {
                    tracing::debug!(segment = %number, "what is left of it is removed at the next start");
                }
                Err(error)
            }
        }
    }

    fn create_file_in(
        &self,
        number: SegmentNumber,
        index: u16,
        marker: Marker,
        source: &Source,
    ) -> Result<DiskFile> {
        let Folder { path: root, volume, .. } = self.folder(index);
        let path = root.join(number.path());
        let parent = path.parent().unwrap_or(root);
        if marker == Marker::Copy {
            volume.remove_if_there(&self.folder(index).marker(number, Marker::Active))?;
        }
        let marker = self.folder(index).marker(number, marker);
        volume.remove_if_there(&marker)?;
        volume.create(&marker)?;
        self.marked.lock().insert(number);
        volume.sync_dir(&root.join("active"), SyncPoint::MarkerEntry)?;
        self.folder(index).ensure_dir(parent)?;
        let file = match source {
            Source::New => volume.create(&path)?,
            Source::NewDirect => volume.create_direct(&path)?,
            Source::Stock(stocked) => self.rename_stocked(stocked, &path)?,
        };
        self.known.write().insert(number, index);
        volume.sync_dir(parent, SyncPoint::SegmentEntry)?;
        Ok(file)
    }
}
