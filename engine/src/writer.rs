//! Group commit: a shard's uploads that wait together are written with one write and one sync.
//!
//! Each shard owns its writer and its active segment; no lock and no other core is on the way. A
//! lone upload never waits for a timer: while one batch is being synced the next one gathers.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use bytes::Bytes;
use futures_channel::oneshot;

use crate::clock::Version;
use crate::disk::{Batch, DIRECT_ALIGN, Job, PIECE_BYTES, ShardFile, SyncPoint};
use crate::error::{Error, Result};
use crate::format::record::{Layout, RecordHead, RecordKind};
use crate::format::table::Entry;
use crate::format::{ALIGN, align};
use crate::id::{ObjectId, SLOTS};
use crate::segment::Segment;
use crate::segment::scan::entry_of;
use crate::store::{Demand, Fresh, Store};

/// Bytes of one batch; what waits beyond goes into the next.
const BATCH_BYTES: u64 = 8 << 20;
/// Records of one batch.
const BATCH_RECORDS: usize = 1024;
/// Bytes that may wait for a batch in one shard; one more upload is answered with
/// [`Error::Busy`].
const QUEUE_BYTES: u64 = 64 << 20;
/// Bytes after which a shard's first segment, which grows as it is written, gives way to one whose
/// space was written before. A node with little to do never pays for such space.
const PREWRITE_AFTER: u64 = 4 << 20;
/// The next segment is begun when one part of so many of the active one is used.
const SPARE_FROM: u64 = 8;
/// A batch is written in whole pages: from the beginning of the one that the last batch ended in, to the
/// end of its own last one, with zeros that the next batch replaces. So no page has to be read before it
/// is written, and the writes may bypass the page cache.
const PAGE: u64 = DIRECT_ALIGN as u64;
/// Largest buffer that is kept between batches, in bytes.
const KEEP_BUFFER: usize = PIECE_BYTES;

/// A record to be written; its slot and place are the writer's to choose.
#[derive(Debug)]
pub struct Draft {
    /// Object or tombstone.
    pub kind: RecordKind,
    /// The user.
    pub user: String,
    /// The file name.
    pub name: String,
    /// The content type; empty for a tombstone.
    pub content_type: String,
    /// Orders it among the writes of its name.
    pub version: Version,
    /// Milliseconds since 1970.
    pub modified_ms: u64,
    /// A tombstone's object.
    pub target: Option<ObjectId>,
    /// The bytes; empty for a tombstone.
    pub payload: Bytes,
    /// CRC-32 of `payload`.
    pub payload_crc: u32,
}

/// A record that is durable.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The object's id (a tombstone has one too).
    pub object: ObjectId,
    /// Its segment; [`Store::settled`] takes it when the catalog has the record.
    pub segment: Arc<Segment>,
    /// Where the record ends in the segment: a follower that holds so many bytes has it.
    pub end: u64,
}

struct Pending {
    draft: Draft,
    /// The folder that it went to first was full or failed.
    moved: bool,
    done: oneshot::Sender<Result<Stored>>,
}

/// A record of a batch: its slot, its entry, and where it ends.
type Batched = (Pending, u16, Entry, u64);

/// A shard's writer. Clones share one queue. Not `Send`.
#[derive(Clone)]
pub struct Writer {
    shared: Rc<Shared>,
}

/// Wakes the commit loop when an answered put goes on (or is dropped).
struct Turn<'a>(&'a Shared);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }
}

struct Shared {
    store: Arc<Store>,
    queue: RefCell<VecDeque<Pending>>,
    queued_bytes: Cell<u64>,
    commit_count: Cell<u64>,
    stopping: Cell<bool>,
    waker: Cell<Option<Waker>>,
    commits: metrics::Histogram,
    sync_errors: metrics::Counter,
}

struct Active {
    segment: Arc<Segment>,
    file: ShardFile,
    tail: u64,
    slots: usize,
    prewritten: bool,
    /// The last page's bytes before `tail`.
    last_page: Vec<u8>,
    /// What writes the next segment ahead looks at it.
    demand: Arc<Demand>,
}

impl Writer {
    /// A writer on the current shard. [`Writer::run`] must be spawned for it to do anything.
    pub fn new(store: Arc<Store>) -> Self {
        Self {
            shared: Rc::new(Shared {
                store,
                queue: RefCell::default(),
                queued_bytes: Cell::new(0),
                commit_count: Cell::new(0),
                stopping: Cell::new(false),
                waker: Cell::new(None),
                commits: metrics::histogram!("reel_commit_records"),
                sync_errors: metrics::counter!("reel_disk_errors_total", "call" => "commit"),
            }),
        }
    }

    /// Writes one record; returns when it is durable. Dropping the future does not take the
    /// record back.
    ///
    /// # Errors
    /// [`Error::Busy`] when too much waits, [`Error::NoSpace`], [`Error::NoNumbers`], I/O errors;
    /// the record is then not visible, now or after a restart.
    pub async fn put(&self, draft: Draft) -> Result<Stored> {
        let shared = &self.shared;
        if shared.stopping.get() {
            return Err(Error::Stopping);
        }
        let bytes = draft.payload.len() as u64;
        if shared.queued_bytes.get() + bytes > QUEUE_BYTES {
            return Err(Error::Busy("the shard's commit queue"));
        }
        let (done, stored) = oneshot::channel();
        shared.queued_bytes.set(shared.queued_bytes.get() + bytes);
        shared.queue.borrow_mut().push_back(Pending { draft, moved: false, done });
        if let Some(waker) = shared.waker.take() {
            waker.wake();
        }
        let _turn = Turn(shared);
        stored.await.unwrap_or(Err(Error::Stopping))
    }

    /// Group commits so far: records divided by these are the group size.
    pub fn commits(&self) -> u64 {
        self.shared.commit_count.get()
    }

    /// Lets [`Writer::run`] end when all that waits is written, and its segment sealed.
    pub fn stop(&self) {
        self.shared.stopping.set(true);
        if let Some(waker) = self.shared.waker.take() {
            waker.wake();
        }
    }

    /// The commit loop of the shard.
    pub async fn run(self) {
        let mut committer = Committer {
            shared: self.shared,
            active: None,
            spare: None,
            buffer: Batch::default(),
            answered: 0,
        };
        while committer.wait().await {
            committer.commit().await;
            committer.turn().await;
        }
        committer.close().await;
    }
}

struct Committer {
    shared: Rc<Shared>,
    active: Option<Active>,
    /// The next segment, being made while the active one fills.
    spare: Option<Job<Fresh>>,
    buffer: Batch,
    /// Puts of the last batch that were answered, and whose tasks have not run since.
    answered: usize,
}

impl Committer {
    /// Lets those that were just answered go first: what they ask for joins the next batch. (Without it
    /// uploaders fall into two groups that take turns, and syncs are shared by half as many.) The first
    /// of them to run wakes this task, which then stands behind the others.
    async fn turn(&mut self) {
        if std::mem::take(&mut self.answered) == 0 {
            return;
        }
        let mut turned = false;
        poll_fn(|context| {
            if std::mem::replace(&mut turned, true) {
                return Poll::Ready(());
            }
            self.shared.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Waits for records; false when the writer stops and nothing waits.
    async fn wait(&self) -> bool {
        let shared = &self.shared;
        poll_fn(|context| {
            if !shared.queue.borrow().is_empty() {
                return Poll::Ready(true);
            }
            if shared.stopping.get() {
                return Poll::Ready(false);
            }
            shared.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Writes one batch, and answers it.
    async fn commit(&mut self) {
        if let Err(error) = self.ensure_active().await {
            self.refuse_all(&error);
            return;
        }
        let Some(mut active) = self.active.take() else { return };
        let batch = self.encode_batch(&active);
        if batch.is_empty() {
            // The next record does not fit: on to a new segment.
            Self::hurry(&active);
            self.retire(active);
            return;
        }
        let buffer = std::mem::take(&mut self.buffer);
        let written = batch.last().map_or(0, |(.., end)| end - active.tail);
        let page = active.tail / PAGE * PAGE;
        let (result, buffer) = active.file.write_all_at(buffer, page).await;
        self.buffer = buffer;
        if let Err(error) = result {
            // Nothing was published. The segment is left as it was durable before.
            self.retire_failed(active, batch, error);
            return;
        }
        if let Err(error) = active.file.sync(SyncPoint::Commit).await {
            // After a failed sync these pages are not trusted again, whatever a later sync says
            // ("fsyncgate"): the segment ends at what was durable before.
            tracing::error!(segment = %active.segment.number(), %error, "sync failed; segment is sealed");
            self.retire_failed(active, batch, error);
            return;
        }
        active.tail += written;
        active.last_page.clear();
        let (from, to) = (active.tail / PAGE * PAGE - page, active.tail - page);
        active.last_page.extend_from_slice(&self.buffer.as_ref()[from as usize..to as usize]);
        self.buffer.end(KEEP_BUFFER);
        active.slots += batch.len();
        active.segment.add_unsettled(batch.len() as u32);
        for (_, slot, entry, _) in &batch {
            if let Some(table) = active.segment.table() {
                table.publish(*slot, entry);
            }
        }
        active.segment.set_durable(active.tail);
        let number = active.segment.number();
        self.shared.store.note_change(number);
        self.shared.commits.record(batch.len() as f64);
        self.shared.commit_count.set(self.shared.commit_count.get() + 1);
        for (pending, slot, _, end) in batch {
            let stored =
                Stored { object: number.object(slot), segment: Arc::clone(&active.segment), end };
            // One that was dropped meanwhile will not wake anybody.
            self.answered += usize::from(pending.done.send(Ok(stored)).is_ok());
        }
        active.demand.set(active.tail, self.shared.store.options.segment_bytes);
        active.demand.raise(active.slots as u64, SLOTS as u64);
        if self.spare.is_none() && self.wants_spare(&active) {
            self.spare = Some(self.shared.store.create_packed(Some(Arc::clone(&active.demand))));
        }
        self.active = Some(active);
        self.change_over();
    }

    /// A segment ends: what is being written ahead for the next one is waited for.
    fn hurry(active: &Active) {
        active.demand.set(1, 1);
    }

    fn wants_spare(&self, active: &Active) -> bool {
        let segment_bytes = self.shared.store.options.segment_bytes;
        let begun =
            active.tail > segment_bytes / SPARE_FROM || active.slots > SLOTS / SPARE_FROM as usize;
        begun || !active.prewritten && active.tail > PREWRITE_AFTER
    }

    /// Leaves a segment that grows as it is written as soon as a better one is ready.
    fn change_over(&mut self) {
        if self.active.as_ref().is_none_or(|active| active.prewritten) {
            return;
        }
        let Some(spare) = &mut self.spare else { return };
        let mut context = std::task::Context::from_waker(Waker::noop());
        let Poll::Ready(made) = std::pin::Pin::new(spare).poll(&mut context) else { return };
        self.spare = None;
        let Some(made) = made.map(|fresh| self.unless_failed(fresh)).transpose() else { return };
        match made.and_then(|fresh| self.adopt(fresh)) {
            Ok(next) => {
                if let Some(active) = self.active.replace(next) {
                    self.retire(active);
                }
            }
            Err(error) => tracing::warn!(%error, "no spare segment"),
        }
    }

    /// Takes what fits into the active segment and one batch, and encodes it into the buffer.
    fn encode_batch(&mut self, active: &Active) -> Vec<Batched> {
        let (records, bytes) = self.take_batch(active);
        let mut batch = Vec::with_capacity(records.len());
        if records.is_empty() {
            return batch;
        }
        let before = active.last_page.len();
        self.buffer.begin((before as u64 + bytes).next_multiple_of(PAGE) as usize);
        self.buffer.spare().extend_from_slice(&active.last_page);
        for (index, pending) in records.into_iter().enumerate() {
            let at = active.tail + (self.buffer.len() - before) as u64;
            let slot = (active.slots + index) as u16;
            let head = head_of(&pending.draft, &active.segment, slot);
            head.encode(active.segment.header().salt, self.buffer.spare());
            self.buffer.spare().extend_from_slice(&pending.draft.payload);
            self.buffer.pad(ALIGN as usize);
            let entry = entry_of(&head, at);
            batch.push((pending, slot, entry, at + head.record_len()));
        }
        self.buffer.pad(PAGE as usize);
        batch
    }

    /// Takes the records of the next batch off the queue, and says how many bytes they make.
    fn take_batch(&self, active: &Active) -> (Vec<Pending>, u64) {
        let limit = self.shared.store.options.segment_bytes;
        let mut queue = self.shared.queue.borrow_mut();
        let mut records = Vec::with_capacity(queue.len().min(BATCH_RECORDS));
        let mut taken = 0;
        while let Some(next) = queue.front() {
            let draft = &next.draft;
            let head = RecordHead::packed_head_len(&draft.user, &draft.name, &draft.content_type);
            let bytes = u64::from(head) + align(draft.payload.len() as u64);
            let at = active.tail + taken;
            let full = active.slots + records.len() >= SLOTS
                || (at + bytes > limit && at > crate::format::HEADER_BYTES);
            let enough = records.len() >= BATCH_RECORDS
                || (!records.is_empty() && taken + bytes > BATCH_BYTES);
            if full || enough {
                break;
            }
            let Some(pending) = queue.pop_front() else { break };
            let waiting = self.shared.queued_bytes.get();
            self.shared.queued_bytes.set(waiting - pending.draft.payload.len() as u64);
            taken += bytes;
            records.push(pending);
        }
        (records, taken)
    }

    async fn ensure_active(&mut self) -> Result<()> {
        if self.active.is_some() {
            return Ok(());
        }
        let spare = match self.spare.take() {
            Some(spare) => spare.await.ok().and_then(|fresh| self.unless_failed(fresh)),
            None => None,
        };
        let fresh = match spare {
            Some(fresh) => fresh,
            // A plain one may still be had.
            None => self.shared.store.create_packed(None).await?,
        };
        self.active = Some(self.adopt(fresh)?);
        Ok(())
    }

    /// A spare, unless its folder has failed since it was made: then it is removed.
    fn unless_failed(&self, spare: Fresh) -> Option<Fresh> {
        let store = &self.shared.store;
        if store.folder(spare.segment.folder()).is_failed() {
            drop(store.abandon_soon(spare.segment.number()));
            return None;
        }
        Some(spare)
    }

    /// Takes a fresh segment over, on the shard's own thread.
    fn adopt(&self, fresh: Fresh) -> Result<Active> {
        let pool = self.shared.store.pool();
        let file = match fresh.through {
            Some(through) => ShardFile::adopt_through(through, pool)?,
            None => ShardFile::adopt(fresh.segment.file().clone(), pool)?,
        };
        Ok(Active {
            last_page: Vec::new(),
            tail: fresh.segment.durable(),
            slots: 0,
            file,
            prewritten: fresh.prewritten,
            segment: fresh.segment,
            demand: Arc::default(),
        })
    }

    /// Seals a segment in the background; it stays readable meanwhile.
    fn retire(&self, active: Active) {
        drop(self.shared.store.seal(active.segment));
    }

    /// A write or sync failed: the segment ends at what was durable before, and its folder is asked for no more until it
    /// is probed well (a full one: until its space is looked at again). The records go to a segment in another folder, once;
    /// where there is none, their uploads get the error.
    fn retire_failed(&self, active: Active, batch: Vec<Batched>, error: Error) {
        let shared = &self.shared;
        Self::hurry(&active);
        let folder = active.segment.folder();
        let is_full = matches!(error, Error::NoSpace { .. });
        if is_full {
            shared.store.note_full(folder);
        } else {
            shared.sync_errors.increment(1);
        }
        let is_the_folders = is_full || error.is_disk();
        let error = shared.store.note_failure(folder, error);
        self.retire(active);
        let can_move = is_the_folders && shared.store.place().is_ok_and(|other| other != folder);
        // From the last to the first: in front of the queue they stand as before.
        for (mut pending, ..) in batch.into_iter().rev() {
            if can_move && !std::mem::replace(&mut pending.moved, true) {
                let bytes = pending.draft.payload.len() as u64;
                shared.queued_bytes.set(shared.queued_bytes.get() + bytes);
                shared.queue.borrow_mut().push_front(pending);
            } else {
                let _ = pending.done.send(Err(error.clone()));
            }
        }
    }

    fn refuse_all(&self, error: &Error) {
        self.shared.queued_bytes.set(0);
        for pending in self.shared.queue.borrow_mut().drain(..) {
            let _ = pending.done.send(Err(error.clone()));
        }
    }

    /// Seals the active segment and drops an unused spare.
    async fn close(mut self) {
        if let Some(active) = self.active.take() {
            // A spare that is written ahead at the pace of uploads would never be ready now.
            Self::hurry(&active);
            // An error has been said in the log.
            let _ = self.shared.store.seal(active.segment).await;
        }
        if let Some(Ok(fresh)) = match self.spare.take() {
            Some(spare) => Some(spare.await),
            None => None,
        } {
            // An error has been said in the log.
            let _ = self.shared.store.abandon_soon(fresh.segment.number()).await;
        }
    }
}

fn head_of(draft: &Draft, segment: &Segment, slot: u16) -> RecordHead {
    RecordHead {
        kind: draft.kind,
        layout: Layout::Whole,
        slot,
        head_len: RecordHead::packed_head_len(&draft.user, &draft.name, &draft.content_type),
        segment: segment.number(),
        generation: segment.header().generation,
        payload_len: draft.payload.len() as u64,
        payload_crc: draft.payload_crc,
        version: draft.version,
        target: draft.target,
        modified_ms: draft.modified_ms,
        user: draft.user.clone(),
        name: draft.name.clone(),
        content_type: draft.content_type.clone(),
    }
}
