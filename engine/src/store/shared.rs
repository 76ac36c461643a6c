//! A volume that all nodes of a group mount: each node writes the folder of its own, and reads the others'.
//!
//! A sealed segment of another node is opened where it lies. One that is being written has its table in that node's
//! memory, so that node is asked ([`Place::At`]); when it is dead, the segment is scanned ([`Store::scan_unfinished`]).
//! What changes at another node is opened ahead of need ([`Store::open_ahead`]): while a machine of the volume has just
//! vanished, GlusterFS lets each opening wait for it (`network.ping-timeout`), but not each read.
//! What is dead in another node's segments is that node's to mark: it is kept with what could not be marked here yet
//! (`dead`), until that node has it durably.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::handles::Handles;
use super::{Store, StoreOptions};
use crate::disk::{DiskFile, DiskPool, Volume};
use crate::error::{Error, Result};
use crate::format::segment_header::SegmentHeader;
use crate::format::superblock::Superblock;
use crate::id::{ObjectId, SegmentNumber};
use crate::segment::open::{self, Opened};
use crate::segment::scan::{Trust, scan_packed};
use crate::segment::{FOREIGN, Segment};
use crate::signal::Signal;

/// Between listings of the volume's root for folders of new nodes.
const LIST: Duration = Duration::from_secs(1);
/// Threads that open and scan other nodes' segments.
const OPENERS: usize = 8;
/// Segments of dead nodes whose scan is kept, 1 MiB each.
const SCANS: usize = 16;
/// Segments that others are writing and that are open here.
const WRITTEN: usize = 256;
/// A scan that lacks an object is made anew after so long: its node may live after all, and go on.
const SCAN_AGE: Duration = Duration::from_secs(1);

/// The folder of a node on its group's volume.
pub fn node_folder(root: &Path, node: u32) -> PathBuf {
    root.join(format!("node-{node}"))
}

/// Where a segment of the group is.
#[derive(Debug)]
pub enum Place {
    /// In a folder that can be read.
    Here(Arc<Segment>),
    /// This node is writing it (or its table is damaged): it can tell.
    At(u32),
    /// In no folder.
    Nowhere,
}

/// The folders of the other nodes.
#[derive(Debug)]
pub(crate) struct Others {
    root: PathBuf,
    cluster: String,
    group: u32,
    own: u32,
    volume: Volume,
    listed: Mutex<Listing>,
    open: Handles,
    /// What other nodes are writing.
    written: Mutex<BTreeMap<SegmentNumber, Written>>,
    scans: Mutex<Vec<(Instant, Arc<Segment>)>>,
    /// Segments that are being opened or scanned: nobody else begins it.
    busy: Mutex<BTreeSet<SegmentNumber>>,
    /// Rises when that is done.
    done: Signal,
    /// Threads for that: while a machine of the volume vanishes they wait, and reads go on.
    openers: DiskPool,
}

/// A segment that is being opened or scanned.
struct Busy<'a>(&'a Others, SegmentNumber);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.lock().remove(&self.1);
        self.0.done.raise();
    }
}

/// A packed segment that another node is writing.
#[derive(Debug, Clone)]
struct Written {
    node: u32,
    header: SegmentHeader,
    file: DiskFile,
}

#[derive(Debug, Default)]
struct Listing {
    at: Option<Instant>,
    /// The one where a segment was found last comes first.
    folders: Vec<(u32, PathBuf)>,
}

impl Others {
    pub(super) fn new(
        root: PathBuf,
        volume: Volume,
        options: &StoreOptions,
    ) -> std::io::Result<Self> {
        Ok(Self {
            root,
            cluster: options.cluster.clone(),
            group: options.group,
            own: options.node,
            volume,
            listed: Mutex::default(),
            open: Handles::new(options.open_segments),
            written: Mutex::default(),
            scans: Mutex::default(),
            busy: Mutex::default(),
            done: Signal::default(),
            openers: DiskPool::start(OPENERS)?,
        })
    }

    /// The right to open or scan a segment; `None` while somebody does.
    fn begin(&self, number: SegmentNumber) -> Option<Busy<'_>> {
        let begun = self.busy.lock().insert(number);
        // Made only then: its end gives the right back.
        begun.then(|| Busy(self, number))
    }

    /// The folders known, listed anew now and then. `anew`: something was not found in those.
    fn folders(&self, anew: bool) -> Result<Vec<(u32, PathBuf)>> {
        let due = {
            let listed = self.listed.lock();
            listed.at.is_none_or(|at| anew && at.elapsed() >= LIST)
        };
        if due {
            let found = self.volume.list(&self.root)?;
            let mut listed = self.listed.lock();
            listed.at = Some(Instant::now());
            for entry in found {
                let node = entry.name.strip_prefix("node-").and_then(|node| node.parse().ok());
                let Some(node) = node.filter(|node| entry.is_dir && *node != self.own) else {
                    continue;
                };
                let folder = node_folder(&self.root, node);
                if listed.folders.iter().all(|(known, _)| *known != node) && self.is_ours(&folder) {
                    listed.folders.push((node, folder));
                }
            }
        }
        Ok(self.listed.lock().folders.clone())
    }

    /// Whether a folder is of a node of this group; one without a superblock (yet) is nobody's.
    fn is_ours(&self, folder: &Path) -> bool {
        let bytes = self.volume.read(&folder.join("superblock"));
        let found = bytes.ok().and_then(|bytes| Superblock::decode(&bytes).ok());
        found.is_some_and(|found| found.cluster == self.cluster && found.group == self.group)
    }

    fn found_at(&self, node: u32) {
        let mut listed = self.listed.lock();
        if let Some(at) = listed.folders.iter().position(|(known, _)| *known == node) {
            listed.folders.swap(0, at);
        }
    }

    /// Opens a segment in whichever folder has it. `Err` when a folder could not be looked into and no other has it.
    fn look(&self, number: SegmentNumber, anew: bool) -> Result<Place> {
        let mut failure = None;
        for (node, folder) in self.folders(anew)? {
            match self.look_in(node, &folder, number) {
                Ok(Place::Nowhere) => {}
                Ok(place) => {
                    self.found_at(node);
                    return Ok(place);
                }
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(Place::Nowhere), Err)
    }

    fn look_in(&self, node: u32, folder: &Path, number: SegmentNumber) -> Result<Place> {
        match open::open(&self.volume, FOREIGN, &folder.join(number.path()), number) {
            Ok(Opened::Ready(segment)) => {
                self.written.lock().remove(&number);
                Ok(Place::Here(self.open.add(segment)))
            }
            Ok(Opened::NoTable { header, file }) => {
                let mut written = self.written.lock();
                if written.len() == WRITTEN {
                    written.pop_first();
                }
                written.insert(number, Written { node, header, file });
                Ok(Place::At(node))
            }
            // The two pages that make it visible are being written.
            Err(Error::Damaged { .. }) => Ok(Place::At(node)),
            Err(Error::NoSegment(_)) => Ok(Place::Nowhere),
            Err(error) => Err(error),
        }
    }

    /// Where a segment is, when that is known without a call.
    fn known(&self, number: SegmentNumber) -> Option<Place> {
        if let Some(segment) = self.open.get(number) {
            return Some(Place::Here(segment));
        }
        self.written.lock().get(&number).map(|written| Place::At(written.node))
    }

    fn find(&self, number: SegmentNumber) -> Result<Place> {
        if let Some(place) = self.known(number) {
            return Ok(place);
        }
        match self.look(number, false)? {
            Place::Nowhere => self.look(number, true),
            place => Ok(place),
        }
    }

    /// A segment that was not sealed, as far as its records go.
    fn scan(&self, number: SegmentNumber) -> Result<Option<Arc<Segment>>> {
        if let Place::Here(segment) = self.find(number)? {
            return Ok(Some(segment));
        }
        let written = self.written.lock().get(&number).cloned();
        let Some(Written { header, file, .. }) = written else { return Ok(None) };
        let (table, scan) = scan_packed(&file, &header, file.len()?, Trust::Active)?;
        let content = Segment::packed(table);
        Ok(Some(Arc::new(Segment::new(header, FOREIGN, file, content, scan.end, true))))
    }

    fn open_ahead(&self, node: u32, numbers: BTreeSet<SegmentNumber>) {
        let folder = node_folder(&self.root, node);
        for number in numbers {
            let Some(_busy) = self.begin(number) else { continue };
            if self.known(number).is_none()
                && let Err(error) = self.look_in(node, &folder, number)
            {
                tracing::debug!(segment = %number, node, %error, "not opened ahead");
            }
        }
    }

    /// A scan that shows an object, or was made just now.
    fn scanned(&self, object: ObjectId) -> Option<Arc<Segment>> {
        let scans = self.scans.lock();
        let (when, segment) =
            scans.iter().find(|(_, segment)| segment.number() == object.segment())?;
        let good = segment.locate(object.slot()).is_some() || when.elapsed() < SCAN_AGE;
        good.then(|| Arc::clone(segment))
    }

    /// [`Others::scan`], and keeps it.
    fn scan_anew(&self, number: SegmentNumber) -> Result<Option<Arc<Segment>>> {
        let scanned = self.scan(number)?;
        let mut scans = self.scans.lock();
        let old = scans.iter().position(|(_, segment)| segment.number() == number);
        if let Some(old) = old.or((scans.len() == SCANS).then_some(0)) {
            scans.remove(old).1.retire();
        }
        scans.extend(scanned.iter().map(|segment| (Instant::now(), Arc::clone(segment))));
        Ok(scanned)
    }

    fn forget(&self, number: SegmentNumber) {
        self.open.remove(number);
        self.written.lock().remove(&number);
        self.scans.lock().retain(|(_, segment)| {
            let keep = segment.number() != number;
            if !keep {
                segment.retire();
            }
            keep
        });
    }
}

impl Store {
    /// Where a segment is: in this node's folders, or in another's on the group's volume.
    ///
    /// # Errors
    /// Those of [`Store::segment`], but not that it is nowhere; [`Error::Busy`] while somebody else opens it.
    pub async fn find(self: &Arc<Self>, number: SegmentNumber) -> Result<Place> {
        match self.segment(number).await {
            Ok(segment) => return Ok(Place::Here(segment)),
            Err(Error::NoSegment(_)) => {}
            Err(error) => return Err(error),
        }
        let Some(others) = self.others.clone() else { return Ok(Place::Nowhere) };
        if let Some(place) = others.known(number) {
            return Ok(place);
        }
        self.volume_answers()?;
        let openers = others.openers.clone();
        let find = move || match others.begin(number) {
            Some(_busy) => others.find(number),
            // Whoever opens it may wait for a machine that has vanished.
            None => others.known(number).ok_or(Error::Busy("the opening of this segment")),
        };
        openers.run(find).await
    }

    /// The segment of an object whose node died before it was sealed, as far as its records go. `None`: it is in no folder, or
    /// holds a large upload that was not complete.
    pub async fn scan_unfinished(
        self: &Arc<Self>,
        object: ObjectId,
    ) -> Result<Option<Arc<Segment>>> {
        let Some(others) = self.others.clone() else { return Ok(None) };
        let number = object.segment();
        loop {
            let seen = others.done.count();
            if let Some(segment) = others.scanned(object) {
                return Ok(Some(segment));
            }
            self.volume_answers()?;
            if !others.busy.lock().contains(&number) {
                let scanner = Arc::clone(&others);
                let scan = move || match scanner.begin(number) {
                    Some(_busy) => scanner.scan_anew(number).map(Some),
                    None => Ok(None),
                };
                if let Some(scanned) = others.openers.run(scan).await? {
                    return Ok(scanned);
                }
            }
            // Many readers of one segment wait for one scan.
            others.done.beyond(seen).await;
        }
    }

    fn volume_answers(&self) -> Result<()> {
        self.folders.first().map_or(Ok(()), |folder| folder.check_answers())
    }

    /// Another node has sealed, compacted or removed these: they are opened anew when they are asked for.
    pub fn forget_foreign(&self, numbers: impl IntoIterator<Item = SegmentNumber>) {
        let Some(others) = &self.others else { return };
        for number in numbers {
            others.forget(number);
        }
    }

    /// Opens what another node has changed, before anybody asks for it.
    pub async fn open_ahead(&self, node: u32, numbers: BTreeSet<SegmentNumber>) -> Result<()> {
        let Some(others) = self.others.clone() else { return Ok(()) };
        let openers = others.openers.clone();
        let open = move || {
            others.open_ahead(node, numbers);
            Ok(())
        };
        openers.run(open).await
    }
    /// Whether a segment of this node grows no more, or is not here any more: others open it anew.
    pub fn is_settled(&self, number: SegmentNumber) -> bool {
        self.loaded(number).is_none_or(|segment| segment.is_sealed())
    }

    /// Another node has begun a new life, or has changed more than it remembers.
    pub fn forget_all_foreign(&self) {
        let Some(others) = &self.others else { return };
        for number in others.open.numbers() {
            others.open.remove(number);
        }
        others.written.lock().clear();
        others.scans.lock().drain(..).for_each(|(_, segment)| segment.retire());
    }

    /// Dead objects that are not this node's to mark, above `after` in order: at most `limit`.
    pub fn foreign_dead(&self, after: Option<ObjectId>, limit: usize) -> Vec<ObjectId> {
        let pending = self.pending_dead.lock();
        let known = self.known.read();
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.segment()));
        // What is above in the segment of `after` itself.
        let rest = after.and_then(|after| Some((after, pending.get(&after.segment())?)));
        let rest = rest.into_iter().flat_map(|(after, slots)| {
            let above = (Bound::Excluded(after.slot()), Bound::Unbounded);
            slots.range(above).map(move |slot| after.segment().object(*slot))
        });
        let foreign = pending
            .range((from, Bound::Unbounded))
            .filter(|(number, _)| !known.contains_key(number));
        let objects =
            foreign.flat_map(|(number, slots)| slots.iter().map(|slot| number.object(*slot)));
        rest.chain(objects).take(limit).collect()
    }

    /// Marks what others know to be dead; gives those that are this node's, durably marked. Blocking.
    ///
    /// # Errors
    /// The marks could not be made durable; they are to be said again.
    pub fn take_dead(&self, objects: Vec<ObjectId>) -> Result<Vec<ObjectId>> {
        let own = |object: &ObjectId| self.has(object.segment()) || self.is_gone(object.segment());
        let own: Vec<ObjectId> = objects.into_iter().filter(own).collect();
        if !own.is_empty() {
            self.kill_all(own.iter().copied().filter(|object| self.has(object.segment())));
            self.flush_dead()?;
        }
        Ok(own)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::disk::SharedDisk;
    use crate::store::FolderOptions;

    fn open(root: &Path, node: u32, first: u64) -> Arc<Store> {
        let next = AtomicU64::new(first);
        let numbers = Arc::new(move || SegmentNumber::new(next.fetch_add(1, Ordering::Relaxed)));
        let path = node_folder(root, node);
        let options = StoreOptions {
            node,
            folders: vec![FolderOptions { path, disk: Arc::new(SharedDisk::default()) }],
            shared: Some(root.to_owned()),
            prewrite_bytes: 0,
            ..StoreOptions::new([], numbers)
        };
        Store::open(options).expect("opens").0
    }

    /// A segment of one object, as an upload makes it; sealed when its writer stops in order.
    fn put(store: &Arc<Store>, payload: &'static [u8], in_order: bool) -> ObjectId {
        let runtime = || {
            monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
                .enable_timer()
                .build()
                .expect("a runtime")
        };
        let store = Arc::clone(store);
        runtime().block_on(async move {
            let writer = crate::Writer::new(Arc::clone(&store));
            let running = monoio::spawn(writer.clone().run());
            let draft = crate::Draft {
                kind: crate::format::record::RecordKind::Object,
                user: "ann".into(),
                name: "a".into(),
                content_type: String::new(),
                version: store.clock().next(),
                modified_ms: 1,
                target: None,
                payload_crc: crc32fast::hash(payload),
                payload: Bytes::from_static(payload),
            };
            let stored = writer.put(draft).await.expect("stored");
            store.settled(&stored.segment);
            if in_order {
                writer.stop();
                running.await;
            }
            stored.object
        })
    }

    #[test]
    fn one_at_a_time_opens_a_segment() {
        let dir = tempfile::tempdir().expect("temp folder");
        let others = open(dir.path(), 1, 10).others.clone().expect("shared");
        let number = SegmentNumber::new(7).expect("fits");
        let first = others.begin(number).expect("nobody does");
        assert!(others.begin(number).is_none() && others.begin(number).is_none());
        drop(first);
        assert!(others.begin(number).is_some(), "the right was given back");
    }

    fn find(store: &Arc<Store>, number: SegmentNumber) -> Place {
        let others = store.others.clone().expect("shared");
        others.find(number).expect("looked")
    }

    #[test]
    fn a_node_reads_what_another_has_sealed_and_scans_what_a_dead_one_left() {
        let dir = tempfile::tempdir().expect("temp folder");
        let (one, two) = (open(dir.path(), 1, 10), open(dir.path(), 2, 1000));
        let object = put(&one, b"frames", false);
        let number = object.segment();
        assert!(matches!(find(&two, number), Place::At(1)), "it is being written");
        let scanned = two.others.clone().expect("shared").scan_anew(number).expect("read");
        let located = scanned.expect("there").locate(object.slot()).expect("found");
        assert_eq!(located.length, 6);
        let object = put(&one, b"frames", true);
        let number = object.segment();
        let Place::Here(found) = find(&two, number) else { panic!("not found") };
        let located = found.locate(object.slot()).expect("found");
        let mut bytes = [0; 6];
        found.file().read_exact_at(&mut bytes, located.offset).expect("read");
        assert_eq!(&bytes, b"frames");
        assert!(!two.has(number), "it is not this node's own");
        assert!(matches!(find(&two, SegmentNumber::new(77).expect("fits")), Place::Nowhere));
    }

    #[test]
    fn what_is_dead_in_anothers_segment_is_kept_until_that_node_has_it() {
        let dir = tempfile::tempdir().expect("temp folder");
        let (one, two) = (open(dir.path(), 1, 10), open(dir.path(), 2, 1000));
        let object = put(&one, b"frames", true);
        two.kill(object).expect("noted");
        two.flush_dead().expect("written down");
        drop(two);
        let two = open(dir.path(), 2, 2000);
        assert_eq!(two.foreign_dead(None, 10), [object], "also by its next life");
        assert_eq!(two.foreign_dead(Some(object), 10), []);
        let lost = SegmentNumber::new(77).expect("fits").object(3);
        let taken = one.take_dead(vec![object, lost]).expect("marked");
        assert_eq!(taken, [object]);
        let segment = one.segment_blocking(object.segment()).expect("open");
        assert_eq!(segment.locate(object.slot()), None, "dead");
        two.forget_dead(&taken);
        two.flush_dead().expect("written down");
        drop(two);
        assert!(open(dir.path(), 2, 3000).foreign_dead(None, 10).is_empty());
        drop((one, segment));
        let one = open(dir.path(), 1, 20);
        let segment = one.segment_blocking(object.segment()).expect("open");
        assert_eq!(segment.locate(object.slot()), None, "still dead");
    }
}
