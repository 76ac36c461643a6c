//! One life of the process: opens the store, works with it, dies or stops.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use reel_engine::disk::SyncPoint;
use reel_engine::disk::sim::{Faults, Rng, SimDisk};
use reel_engine::format::record::RecordKind;
use reel_engine::solo::SoloUpload;
use reel_engine::upkeep::{Compaction, Finding, FindingKind, Step, compact_now, scrub_segment};
use reel_engine::{
    Draft, Error, FolderOptions, ObjectId, SegmentNumber, Store, StoreOptions, Stored, Version,
    Writer,
};

use crate::catalog::{Catalog, Outcome, Row};
use crate::executor::{Executor, Spawner, pause};
use crate::model::{self, Attempt, Kill, Model};
use crate::{Sabotage, Shared, Summary, World};

/// Names that uploads go to: few, so that they are replaced and deleted often.
const NAMES: u64 = 12;
/// The user of all of them.
const USER: &str = "sim";

/// How a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The store was closed.
    Orderly,
    /// The process died.
    Crash,
}

/// What the tasks of one life share.
pub(crate) struct Life {
    store: Shared,
    disk: SimDisk,
    catalog: Arc<Mutex<Catalog>>,
    model: RefCell<Model>,
    summary: RefCell<Summary>,
    violation: RefCell<Option<String>>,
    rng: RefCell<Rng>,
    writers: Vec<Writer>,
    spawner: Spawner,
    /// Tasks that are not done.
    busy: Cell<u64>,
    faulty: bool,
}

fn options(world: &World, executor: &Executor) -> StoreOptions {
    let numbers = Arc::clone(&world.numbers);
    let take = move || {
        let mut next = numbers.lock();
        *next += 1;
        SegmentNumber::new(*next)
    };
    let catalog = Arc::clone(&world.catalog);
    let barrier = world.sabotage != Some(Sabotage::NoBarrier);
    let disk: Arc<dyn reel_engine::disk::Disk> = Arc::new(world.disk.clone());
    let folders = world.folders.iter();
    StoreOptions {
        folders: folders
            .map(|path| FolderOptions { path: path.clone(), disk: Arc::clone(&disk) })
            .collect(),
        segment_bytes: world.segment_bytes,
        prewrite_bytes: 2 * world.segment_bytes,
        open_segments: 4,
        pool: Some(executor.pool()),
        barrier: Arc::new(move || {
            if barrier {
                catalog.lock().barrier();
            }
            Ok(())
        }),
        compact_dead_percent: 10,
        tombstone_keep_ms: 0,
        ..StoreOptions::new([], Arc::new(take))
    }
}

impl Life {
    /// Opens the store, works with it until the crash or the end of the work.
    pub(crate) fn run(world: &mut World, last: bool) -> Result<Ending, String> {
        let mut executor = Executor::new(world.rng.bits());
        let disk = world.disk.clone();
        let crashes = !last && world.rng.chance(8_500);
        let close = if world.sabotage.is_some() { 8_000 } else { 4_000 };
        if crashes && world.rng.chance(close) {
            let point = SyncPoint::ALL[world.rng.below(SyncPoint::ALL.len() as u64) as usize];
            // What is taken out on purpose is looked at closely.
            disk.crash_at(world.focus().unwrap_or(point), world.rng.below(3));
        } else if crashes {
            let within = if world.rng.chance(3_000) { 60 } else { 1_500 };
            disk.crash_after(world.rng.below(within));
        }
        let opened = Store::open(options(world, &executor));
        let (store, recovery) = match opened {
            Ok(opened) => opened,
            Err(_) if disk.is_dead() => return Ok(Ending::Crash),
            Err(error) => return Err(format!("the store does not open: {error}")),
        };
        // What is there right after the start, before anything else happens.
        let faulty = !last;
        if world.rng.chance(5_000) && !disk.is_dead() {
            let found = world.check_stored(&store);
            if !disk.is_dead() {
                found?;
            }
        }
        if faulty {
            disk.set_faults(world.faults);
            if let Some(folder) = &world.broken
                && world.rng.chance(5_000)
            {
                disk.set_broken(folder, true);
            }
        }
        let shards = 1 + world.rng.below(2);
        let life = Rc::new(Self {
            catalog: Arc::clone(&world.catalog),
            model: RefCell::new(std::mem::take(&mut world.model)),
            summary: RefCell::new(world.summary),
            violation: RefCell::new(None),
            rng: RefCell::new(Rng::new(world.rng.bits())),
            writers: (0..shards).map(|_| Writer::new(Arc::clone(&store))).collect(),
            spawner: executor.spawner(),
            busy: Cell::new(0),
            faulty: faulty && (world.broken.is_some() || !no_faults(&world.faults)),
            disk: disk.clone(),
            store,
        });
        for writer in &life.writers {
            life.spawner.spawn(writer.clone().run());
        }
        life.offer(recovery.offer);
        let clients = 2 + world.rng.below(6);
        for _ in 0..clients {
            let steps = 1 + world.rng.below(8);
            let client = Rc::clone(&life);
            life.work(async move { client.client(steps).await });
        }
        let upkeep = Rc::clone(&life);
        life.work(async move { upkeep.upkeep().await });
        executor.run(|| disk.is_dead() || life.violation.borrow().is_some());
        let ending = life.end(&mut executor, &disk, last);
        drop(executor);
        world.model = std::mem::take(&mut life.model.borrow_mut());
        world.summary = *life.summary.borrow();
        ending
    }

    fn end(
        self: &Rc<Self>,
        executor: &mut Executor,
        disk: &SimDisk,
        last: bool,
    ) -> Result<Ending, String> {
        if let Some(violation) = self.violation.borrow_mut().take() {
            return Err(violation);
        }
        if disk.is_dead() {
            return Ok(Ending::Crash);
        }
        if self.busy.get() > 0 {
            return Err(format!("{} tasks never end", self.busy.get()));
        }
        disk.set_faults(Faults::default());
        if !self.faulty {
            let catalog = self.catalog.lock().clone();
            let checked = self.model.borrow_mut().check_all(&self.store, &catalog);
            if disk.is_dead() {
                return Ok(Ending::Crash);
            }
            checked?;
        }
        if !last && self.rng.borrow_mut().chance(3_000) {
            // It dies at rest.
            return Ok(Ending::Crash);
        }
        for writer in &self.writers {
            writer.stop();
        }
        executor.run(|| disk.is_dead());
        Ok(if disk.is_dead() { Ending::Crash } else { Ending::Orderly })
    }

    /// Opens the store without any faults, and lets its offers through.
    pub(crate) fn open_quietly(world: &mut World) -> Result<Shared, String> {
        let mut executor = Executor::new(world.rng.bits());
        let (store, recovery) = Store::open(options(world, &executor))
            .map_err(|error| format!("the store does not open: {error}"))?;
        world.check_stored(&store)?;
        let life = Rc::new(Self {
            catalog: Arc::clone(&world.catalog),
            model: RefCell::new(std::mem::take(&mut world.model)),
            summary: RefCell::new(world.summary),
            violation: RefCell::new(None),
            rng: RefCell::new(Rng::new(world.rng.bits())),
            writers: vec![Writer::new(Arc::clone(&store))],
            spawner: executor.spawner(),
            busy: Cell::new(0),
            faulty: false,
            disk: world.disk.clone(),
            store: Arc::clone(&store),
        });
        for writer in &life.writers {
            life.spawner.spawn(writer.clone().run());
        }
        life.offer(recovery.offer);
        executor.run(|| false);
        for writer in &life.writers {
            writer.stop();
        }
        executor.run(|| false);
        world.model = std::mem::take(&mut life.model.borrow_mut());
        for number in store.list(None, usize::MAX) {
            // Opened as the survey after a start does: that finds what is worth compacting.
            let _ = store.segment_blocking(number);
        }
        // As upkeep would: places without a record in the middle of a segment go.
        match compact_now(&store) {
            // What cannot be understood is not moved.
            Err(Error::Damaged { .. }) if !world.model.flipped.is_empty() => {}
            compacted => drop(compacted.map_err(|error| format!("compaction: {error}"))?),
        }
        Ok(store)
    }

    /// Spawns a task whose end is waited for.
    fn work(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        self.busy.set(self.busy.get() + 1);
        let life = Rc::clone(self);
        self.spawner.spawn(async move {
            task.await;
            life.busy.set(life.busy.get() - 1);
        });
    }

    /// Whether the process has died: what calls give from then on says nothing.
    fn dead(&self) -> bool {
        self.disk.is_dead()
    }

    fn below(&self, bound: u64) -> u64 {
        self.rng.borrow_mut().below(bound)
    }

    fn violate(&self, violation: String) {
        self.violation.borrow_mut().get_or_insert(violation);
    }

    fn note_stored(&self, object: ObjectId, version: Version) {
        if let Err(violation) = self.model.borrow_mut().note_stored(object, version) {
            self.violate(violation);
        }
    }

    fn writer(&self) -> Writer {
        self.writers[self.below(self.writers.len() as u64) as usize].clone()
    }

    fn name(&self) -> String {
        format!("file-{}", self.below(NAMES))
    }

    async fn client(self: &Rc<Self>, steps: u64) {
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

    fn draft(&self, name: &str, length: usize, version: Version) -> Draft {
        let attempt = Attempt { name: name.to_owned(), length };
        self.model.borrow_mut().attempts.insert(version, attempt);
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

    async fn put_small(self: &Rc<Self>) {
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

    async fn put_large(self: &Rc<Self>) {
        let name = self.name();
        let length = 4_000 + self.below(60_000) as usize;
        let version = self.store.clock().next();
        let draft = self.draft(&name, length, version);
        let Ok(mut solo) = SoloUpload::begin(&self.store).await else { return };
        let mut piece = solo.piece();
        piece.fill(&draft.payload);
        if solo.write(piece).await.is_err() || self.below(6) == 0 {
            return;
        }
        if let Ok((stored, _)) = solo.finish(draft).await {
            self.enter(&name, version, stored).await;
        }
    }

    /// As a storage node does: the record is durable, then the row, then the answer.
    async fn enter(self: &Rc<Self>, name: &str, version: Version, stored: Stored) {
        let object = stored.object;
        self.note_stored(object, version);
        pause().await;
        let outcome = self.catalog.lock().apply(name, Row { version, object: Some(object) });
        pause().await;
        match outcome {
            Outcome::Done(previous) => {
                self.store.settled(&stored.segment);
                self.model.borrow_mut().note_answered(name, version);
                self.summary.borrow_mut().uploads += 1;
                if let Some(previous) = previous {
                    self.bury(previous, name);
                }
            }
            Outcome::Lost(winner) => {
                self.store.settled(&stored.segment);
                self.bury_loser(object, name, winner);
            }
        }
    }

    async fn delete(self: &Rc<Self>) {
        let name = self.name();
        let version = self.store.clock().next();
        let Some((object, version)) = self.catalog.lock().delete(&name, version) else { return };
        self.store.clock().observe(version);
        if self.tombstone(RecordKind::Delete, object, &name, version).await {
            self.model.borrow_mut().note_answered(&name, version);
            self.summary.borrow_mut().deletes += 1;
        }
    }

    /// Makes a tombstone durable and marks its object dead; whether that was done.
    async fn tombstone(
        self: &Rc<Self>,
        kind: RecordKind,
        object: ObjectId,
        name: &str,
        version: Version,
    ) -> bool {
        tracing::debug!(?kind, %object, name, "tombstone");
        self.model.borrow_mut().note_kill(object, Kill::Begun);
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
            self.model.borrow_mut().note_kill(object, Kill::Done);
        }
        self.store.settled(&stored.segment);
        true
    }

    fn bury(self: &Rc<Self>, object: ObjectId, name: &str) {
        self.model.borrow_mut().note_kill(object, Kill::Begun);
        let (life, name) = (Rc::clone(self), name.to_owned());
        self.work(async move {
            let version = life.store.clock().next();
            life.tombstone(RecordKind::Dead, object, &name, version).await;
        });
    }

    /// Buries an object that lost its name to `winner`. A delete says its version once more: the row
    /// may go with the power, and its own tombstone may never have been written.
    fn bury_loser(self: &Rc<Self>, object: ObjectId, name: &str, winner: Row) {
        if winner.object.is_some() {
            return self.bury(object, name);
        }
        self.model.borrow_mut().note_kill(object, Kill::Begun);
        let (life, name) = (Rc::clone(self), name.to_owned());
        self.work(async move {
            life.tombstone(RecordKind::Delete, object, &name, winner.version).await;
        });
    }

    fn get(&self) {
        let count = self.model.borrow().stored.len() as u64;
        let Some(object) =
            self.model.borrow().stored.keys().nth(self.below(count) as usize).copied()
        else {
            return;
        };
        let checked = self.model.borrow_mut().check_object(&self.store, object);
        if let Err(violation) = checked
            && !self.faulty
            && !self.dead()
        {
            self.violate(violation);
        }
    }

    async fn upkeep(self: &Rc<Self>) {
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

    async fn stock(&self) {
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

    async fn scrub(&self, number: SegmentNumber) {
        let store = Arc::clone(&self.store);
        let report =
            self.store.pool().run(move || scrub_segment(&store, number, &mut |_| {})).await;
        let Ok(report) = report else { return };
        self.summary.borrow_mut().scrubs += report.segments;
        let flipped = self.model.borrow().flipped.contains(&number.get());
        // A place without a record, left by a torn batch, stays until it is compacted away.
        let hole =
            |finding: &&Finding| finding.kind == FindingKind::Record && finding.slot.is_none();
        if let Some(finding) = report.findings.iter().find(|finding| !hole(finding))
            && !flipped
            && !self.faulty
            && !self.dead()
        {
            self.violate(format!("scrub: {finding}"));
        }
    }

    async fn compact(&self, number: SegmentNumber) {
        let store = Arc::clone(&self.store);
        let begun = self.store.pool().run(move || Compaction::begin(&store, number)).await;
        let Ok(Some(mut compaction)) = begun else { return };
        loop {
            let stepped = self.store.pool().run(move || {
                let step = compaction.step()?;
                Ok((compaction, step))
            });
            match stepped.await {
                Ok((again, Step::More(_))) => compaction = again,
                Ok((_, Step::Done(_))) => {
                    self.summary.borrow_mut().compactions += 1;
                    return;
                }
                Err(_) => return,
            }
            pause().await;
        }
    }

    /// Offers the records of segments to the catalog again, and settles them.
    fn offer(self: &Rc<Self>, segments: Vec<SegmentNumber>) {
        for number in segments {
            let life = Rc::clone(self);
            self.work(async move { life.offer_segment(number).await });
        }
    }

    async fn offer_segment(self: &Rc<Self>, number: SegmentNumber) {
        let Ok(segment) = self.store.segment(number).await else { return };
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
                let outcome = self.catalog.lock().apply(&head.name, row);
                if let Some(object) = object {
                    self.note_stored(object, head.version);
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

fn no_faults(faults: &Faults) -> bool {
    faults.read + faults.write + faults.sync + faults.short + faults.full == 0
}

impl World {
    /// Where crashes show best what was taken out.
    fn focus(&self) -> Option<SyncPoint> {
        match self.sabotage? {
            // What recovery makes durable is what a process that died here had not; and what is not
            // synced before these pages may be lost while they are kept.
            Sabotage::Skip(SyncPoint::Recovered | SyncPoint::SoloPayload) => {
                Some(SyncPoint::SoloPages)
            }
            Sabotage::Skip(point) => Some(point),
            Sabotage::NoBarrier => None,
        }
    }

    /// Compares every stored object with the store as it is right after a start.
    fn check_stored(&mut self, store: &Shared) -> Result<(), String> {
        let stored: Vec<ObjectId> = self.model.stored.keys().copied().collect();
        for object in stored {
            self.model.check_object(store, object)?;
        }
        Ok(())
    }
}
