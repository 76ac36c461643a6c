//! What a storage node does between its network and its store: uploads, deletes, offers after a start, upkeep.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use reel_engine::disk::sim::{Rng, SimDisk};
use reel_engine::format::record::RecordKind;
use reel_engine::solo::SoloUpload;
use reel_engine::upkeep::{Compaction, Finding, FindingKind, Step, scrub_segment};
use reel_engine::{Draft, ObjectId, SegmentNumber, Stored, Version, Writer};

use crate::Shared;
use crate::catalog::{Outcome, Row};
use crate::executor::{Spawner, pause};
use crate::ledger::Ledger;
use crate::model::{self, Attempt, Kill};

/// Names that uploads go to: few, so that they are replaced and deleted often.
const NAMES: u64 = 12;
/// The user of all of them.
const USER: &str = "sim";

/// An answer that takes its time.
pub(crate) type Later = Pin<Box<dyn Future<Output = bool>>>;

/// Waits until as many other nodes as uploaders were promised hold a segment up to an offset; false when that takes too
/// long.
pub(crate) type Held = Box<dyn Fn(SegmentNumber, u64) -> Later>;

/// Asks the other nodes whether they hold the whole of a segment.
pub(crate) type AllHold = Box<dyn Fn(SegmentNumber) -> Later>;

/// What the tasks of one life of a node share.
pub(crate) struct Site {
    pub(crate) ledger: Rc<Ledger>,
    pub(crate) store: Shared,
    pub(crate) disk: SimDisk,
    pub(crate) rng: RefCell<Rng>,
    pub(crate) writers: Vec<Writer>,
    pub(crate) spawner: Spawner,
    /// Tasks that are not done.
    pub(crate) busy: Cell<u64>,
    /// Calls may fail.
    pub(crate) faulty: bool,
    /// `None` for a node alone.
    pub(crate) held: Option<Held>,
    /// Whether every other node holds the whole of a segment.
    pub(crate) all_hold: Option<AllHold>,
    /// Rows are committed before others hold the record: wrong on purpose.
    pub(crate) row_first: bool,
}

impl Site {
    /// Spawns a task whose end is waited for.
    pub(crate) fn work(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        self.busy.set(self.busy.get() + 1);
        let site = Rc::clone(self);
        self.spawner.spawn(async move {
            task.await;
            site.busy.set(site.busy.get() - 1);
        });
    }

    /// Whether the process has died: what calls give from then on says nothing.
    pub(crate) fn dead(&self) -> bool {
        self.disk.is_dead()
    }

    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.rng.borrow_mut().below(bound)
    }

    pub(crate) fn writer(&self) -> Writer {
        self.writers[self.below(self.writers.len() as u64) as usize].clone()
    }

    pub(crate) fn name(&self) -> String {
        format!("file-{}", self.below(NAMES))
    }

    pub(crate) async fn client(self: &Rc<Self>, steps: u64) {
        for _ in 0..steps {
            match self.below(20) {
                0..=9 => self.put_small().await,
                10..=12 => self.put_large().await,
                13..=16 => self.delete().await,
                _ => self.get(),
            }
            pause().await;
        }
    }

    pub(crate) fn draft(&self, name: &str, length: usize, version: Version) -> Draft {
        let attempt = Attempt { name: name.to_owned(), length };
        self.ledger.model.borrow_mut().attempts.insert(version, attempt);
        let payload = Bytes::from(model::payload(version, length));
        Draft {
            kind: RecordKind::Object,
            user: USER.to_owned(),
            name: name.to_owned(),
            content_type: "video/mp4".to_owned(),
            version,
            modified_ms: self.store.clock().now_ms(),
            target: None,
            payload_crc: crc32fast::hash(&payload),
            payload,
        }
    }

    pub(crate) async fn put_small(self: &Rc<Self>) {
        let name = self.name();
        let length = match self.below(4) {
            0 => self.below(40),
            1 => self.below(6_000),
            _ => self.below(1_500),
        };
        let version = self.store.clock().next();
        let draft = self.draft(&name, length as usize, version);
        if let Ok(stored) = self.writer().put(draft).await {
            self.enter(&name, version, stored).await;
        }
    }

    pub(crate) async fn put_large(self: &Rc<Self>) {
        let name = self.name();
        let length = 4_000 + self.below(60_000) as usize;
        let version = self.store.clock().next();
        let draft = self.draft(&name, length, version);
        let Ok(mut solo) = SoloUpload::begin(&self.store, 0).await else { return };
        let mut piece = solo.piece();
        piece.fill(&draft.payload);
        if solo.write(piece).await.is_err() || self.below(6) == 0 {
            return;
        }
        if let Ok((stored, _)) = solo.finish(draft).await {
            self.enter(&name, version, stored).await;
        }
    }

    /// Whether as many other nodes as promised hold a record.
    async fn is_held(&self, stored: &Stored) -> bool {
        match &self.held {
            Some(held) => held(stored.object.segment(), stored.end).await,
            None => true,
        }
    }

    /// As a storage node does: the record is durable, then the row, then the answer.
    pub(crate) async fn enter(self: &Rc<Self>, name: &str, version: Version, stored: Stored) {
        let object = stored.object;
        self.ledger.note_stored(object, version);
        pause().await;
        if !self.row_first && !self.is_held(&stored).await {
            // Refused: nothing is half done.
            self.store.settled(&stored.segment);
            return self.bury(object, name);
        }
        let outcome = self.ledger.catalog.lock().apply(name, Row { version, object: Some(object) });
        pause().await;
        match outcome {
            Outcome::Done(previous) => {
                self.store.settled(&stored.segment);
                if let Some(previous) = previous {
                    self.bury(previous, name);
                }
                if self.row_first && !self.is_held(&stored).await {
                    return;
                }
                self.ledger.model.borrow_mut().note_answered(name, version);
                self.ledger.summary.borrow_mut().uploads += 1;
            }
            Outcome::Lost(winner) => {
                self.store.settled(&stored.segment);
                self.bury_loser(object, name, winner);
            }
        }
    }

    pub(crate) async fn delete(self: &Rc<Self>) {
        let name = self.name();
        let version = self.store.clock().next();
        let Some((object, version)) = self.ledger.catalog.lock().delete(&name, version) else {
            return;
        };
        self.store.clock().observe(version);
        if self.tombstone(RecordKind::Delete, object, &name, version).await {
            self.ledger.model.borrow_mut().note_answered(&name, version);
            self.ledger.summary.borrow_mut().deletes += 1;
        }
    }

    /// Makes a tombstone durable and marks its object dead; whether that was done.
    pub(crate) async fn tombstone(
        self: &Rc<Self>,
        kind: RecordKind,
        object: ObjectId,
        name: &str,
        version: Version,
    ) -> bool {
        tracing::debug!(?kind, %object, name, "tombstone");
        self.ledger.model.borrow_mut().note_kill(object, Kill::Begun);
        let draft = Draft {
            kind,
            user: USER.to_owned(),
            name: name.to_owned(),
            content_type: String::new(),
            version,
            modified_ms: self.store.clock().now_ms(),
            target: Some(object),
            payload: Bytes::new(),
            payload_crc: 0,
        };
        let Ok(stored) = self.writer().put(draft).await else { return false };
        let store = Arc::clone(&self.store);
        let killed = self.store.pool().run(move || store.kill(object)).await;
        if killed.is_ok() {
            self.ledger.model.borrow_mut().note_kill(object, Kill::Done);
        }
        self.store.settled(&stored.segment);
        true
    }

    pub(crate) fn bury(self: &Rc<Self>, object: ObjectId, name: &str) {
        self.ledger.model.borrow_mut().note_kill(object, Kill::Begun);
        let (site, name) = (Rc::clone(self), name.to_owned());
        self.work(async move {
            let version = site.store.clock().next();
            site.tombstone(RecordKind::Dead, object, &name, version).await;
        });
    }

    /// Buries an object that lost its name to `winner`. A delete says its version once more: the row
    /// may go with the power, and its own tombstone may never have been written.
    pub(crate) fn bury_loser(self: &Rc<Self>, object: ObjectId, name: &str, winner: Row) {
        if winner.object.is_some() {
            return self.bury(object, name);
        }
        self.ledger.model.borrow_mut().note_kill(object, Kill::Begun);
        let (site, name) = (Rc::clone(self), name.to_owned());
        self.work(async move {
            site.tombstone(RecordKind::Delete, object, &name, winner.version).await;
        });
    }

    pub(crate) fn get(&self) {
        let count = self.ledger.model.borrow().stored.len() as u64;
        let Some(object) =
            self.ledger.model.borrow().stored.keys().nth(self.below(count) as usize).copied()
        else {
            return;
        };
        let checked = self.ledger.model.borrow_mut().check_object(&self.store, object);
        if let Err(violation) = checked
            && !self.faulty
            && !self.dead()
        {
            self.ledger.violate(violation);
        }
    }

    pub(crate) async fn upkeep(self: &Rc<Self>) {
        for _ in 0..self.below(6) {
            for _ in 0..self.below(12) {
                pause().await;
            }
            if self.below(4) == 0 {
                self.stock().await;
            }
            let numbers = self.store.list(None, usize::MAX);
            if numbers.is_empty() {
                continue;
            }
            let number = numbers[self.below(numbers.len() as u64) as usize];
            if self.below(3) == 0 {
                self.scrub(number).await;
            } else {
                self.compact(number).await;
            }
        }
    }

    pub(crate) async fn stock(&self) {
        let store = Arc::clone(&self.store);
        let begun = self.store.pool().run(move || store.begin_stocking()).await;
        let Ok(Some(mut stocking)) = begun else { return };
        loop {
            let stepped = self.store.pool().run(move || {
                let done = stocking.step()?;
                Ok((stocking, done))
            });
            match stepped.await {
                Ok((again, false)) => stocking = again,
                _ => return,
            }
            pause().await;
        }
    }

    pub(crate) async fn scrub(&self, number: SegmentNumber) {
        let store = Arc::clone(&self.store);
        let report =
            self.store.pool().run(move || scrub_segment(&store, number, &mut |_| {})).await;
        let Ok(report) = report else { return };
        self.ledger.summary.borrow_mut().scrubs += report.segments;
        let flipped = self.ledger.model.borrow().flipped.contains(&number.get());
        // A place without a record, left by a torn batch, stays until it is compacted away.
        let hole =
            |finding: &&Finding| finding.kind == FindingKind::Record && finding.slot.is_none();
        if let Some(finding) = report.findings.iter().find(|finding| !hole(finding))
            && !flipped
            && !self.faulty
            && !self.dead()
        {
            self.ledger.violate(format!("scrub: {finding}"));
        }
    }

    pub(crate) async fn compact(&self, number: SegmentNumber) {
        let store = Arc::clone(&self.store);
        let begun = self.store.pool().run(move || Compaction::begin(&store, number)).await;
        let Ok(Some(mut compaction)) = begun else { return };
        let all_hold = match &self.all_hold {
            Some(all_hold) => all_hold(number).await,
            None => true,
        };
        if all_hold {
            compaction.let_tombstones_go();
        }
        loop {
            let stepped = self.store.pool().run(move || {
                let step = compaction.step()?;
                Ok((compaction, step))
            });
            match stepped.await {
                Ok((again, Step::More(_))) => compaction = again,
                Ok((_, Step::Done(_))) => {
                    self.ledger.summary.borrow_mut().compactions += 1;
                    return;
                }
                Err(_) => return,
            }
            pause().await;
        }
    }

    /// Offers the records of segments to the catalog again, and settles them.
    pub(crate) fn offer(self: &Rc<Self>, segments: Vec<SegmentNumber>) {
        for number in segments {
            let site = Rc::clone(self);
            self.work(async move { site.offer_segment(number).await });
        }
    }

    pub(crate) async fn offer_segment(self: &Rc<Self>, number: SegmentNumber) {
        let Ok(segment) = self.store.segment(number).await else { return };
        if let Some(held) = &self.held
            && !self.row_first
        {
            while !held(number, segment.durable()).await {}
        }
        for slot in 0..segment.slots() {
            let reader = Arc::clone(&segment);
            let head = self.store.pool().run(move || reader.read_head(slot as u16)).await;
            let head = match head {
                Ok(Some(head)) => head,
                Ok(None) => {
                    self.store.settled(&segment);
                    continue;
                }
                // Not offered, so not settled: the next start tries again.
                Err(_) => return,
            };
            self.store.clock().observe(head.version);
            tracing::debug!(kind = ?head.kind, object = %number.object(slot as u16), name = head.name, version = head.version.hlc, "offer");
            if model::is_offered(head.kind) {
                let object = (head.kind == RecordKind::Object).then(|| number.object(slot as u16));
                let row = Row { version: head.version, object };
                let outcome = self.ledger.catalog.lock().apply(&head.name, row);
                if let Some(object) = object {
                    self.ledger.note_stored(object, head.version);
                }
                match outcome {
                    Outcome::Done(Some(previous)) => self.bury(previous, &head.name),
                    Outcome::Lost(winner) => {
                        if let Some(object) = object {
                            self.bury_loser(object, &head.name, winner);
                        }
                    }
                    Outcome::Done(None) => {}
                }
            }
            pause().await;
            self.store.settled(&segment);
        }
    }
}
