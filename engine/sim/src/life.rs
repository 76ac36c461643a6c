//! One life of the process: opens the store, works with it, dies or stops.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use reel_engine::disk::SyncPoint;
use reel_engine::disk::sim::{Faults, Rng};
use reel_engine::upkeep::compact_now;
use reel_engine::{Error, FolderOptions, ObjectId, SegmentNumber, Store, StoreOptions, Writer};

use crate::executor::Executor;
use crate::work::Site;
use crate::{Sabotage, Shared, World};

/// How a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The store was closed.
    Orderly,
    /// The process died.
    Crash,
}

fn options(world: &World, executor: &Executor) -> StoreOptions {
    let numbers = Arc::clone(&world.numbers);
    let take = move || {
        let mut next = numbers.lock();
        *next += 1;
        SegmentNumber::new(*next)
    };
    let catalog = Arc::clone(&world.ledger.catalog);
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
        // A few: what is forgotten must be gone for good, too.
        remember_gone: 2,
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

/// A node at work, with its writers running.
fn site(
    world: &mut World,
    store: &Shared,
    executor: &Executor,
    shards: u64,
    faulty: bool,
) -> Rc<Site> {
    let site = Rc::new(Site {
        ledger: Rc::clone(&world.ledger),
        rng: RefCell::new(Rng::new(world.rng.bits())),
        writers: (0..shards).map(|_| Writer::new(Arc::clone(store))).collect(),
        spawner: executor.spawner(),
        busy: Cell::new(0),
        faulty,
        disk: world.disk.clone(),
        store: Arc::clone(store),
        held: None,
        all_hold: None,
        row_first: false,
    });
    for writer in &site.writers {
        site.spawner.spawn(writer.clone().run());
    }
    site
}

/// Opens the store, works with it until the crash or the end of the work.
pub(crate) fn live(world: &mut World, last: bool) -> Result<Ending, String> {
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
    let site = site(
        world,
        &store,
        &executor,
        shards,
        faulty && (world.broken.is_some() || !no_faults(&world.faults)),
    );
    site.offer(recovery.offer);
    let clients = 2 + world.rng.below(6);
    for _ in 0..clients {
        let steps = 1 + world.rng.below(8);
        let client = Rc::clone(&site);
        site.work(async move { client.client(steps).await });
    }
    let upkeep = Rc::clone(&site);
    site.work(async move { upkeep.upkeep().await });
    executor.run(|| disk.is_dead() || site.ledger.violation.borrow().is_some());
    end(&site, &mut executor, last)
}

fn end(site: &Rc<Site>, executor: &mut Executor, last: bool) -> Result<Ending, String> {
    let disk = &site.disk;
    if let Some(violation) = site.ledger.violation.borrow_mut().take() {
        return Err(violation);
    }
    if disk.is_dead() {
        return Ok(Ending::Crash);
    }
    if site.busy.get() > 0 {
        return Err(format!("{} tasks never end", site.busy.get()));
    }
    disk.set_faults(Faults::default());
    if !site.faulty {
        let catalog = site.ledger.catalog.lock().clone();
        let checked = site.ledger.model.borrow_mut().check_all(&site.store, &catalog);
        if disk.is_dead() {
            return Ok(Ending::Crash);
        }
        checked?;
    }
    if !last && site.rng.borrow_mut().chance(3_000) {
        // It dies at rest.
        return Ok(Ending::Crash);
    }
    for writer in &site.writers {
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
    let site = site(world, &store, &executor, 1, false);
    site.offer(recovery.offer);
    executor.run(|| false);
    for writer in &site.writers {
        writer.stop();
    }
    executor.run(|| false);
    for number in store.list(None, usize::MAX) {
        // Opened as the survey after a start does: that finds what is worth compacting.
        let _ = store.segment_blocking(number);
    }
    // As upkeep would: places without a record in the middle of a segment go.
    match compact_now(&store) {
        // What cannot be understood is not moved.
        Err(Error::Damaged { .. }) if !world.ledger.model.borrow().flipped.is_empty() => {}
        compacted => drop(compacted.map_err(|error| format!("compaction: {error}"))?),
    }
    Ok(store)
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
        let mut model = self.ledger.model.borrow_mut();
        let stored: Vec<ObjectId> = model.stored.keys().copied().collect();
        for object in stored {
            model.check_object(store, object)?;
        }
        Ok(())
    }
}
