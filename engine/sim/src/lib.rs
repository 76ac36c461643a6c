//! The storage engine under simulated crashes.
//!
//! One seed determines everything: what is uploaded, replaced, deleted, compacted and scrubbed by how
//! many shards, in which order tasks and disk calls run, which calls fail, at which call the process
//! dies, whether the power goes with it, and what of the unsynced survives. After each crash the store
//! is opened again and compared with a plain model ([`model`]).
//!
//! The method is that of FoundationDB and TigerBeetle: one thread, no clock, no chance but the seed's.

mod catalog;
mod clock;
pub mod cluster;
mod executor;
mod ledger;
mod life;
pub mod model;
mod work;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use parking_lot::Mutex;
use reel_engine::disk::SyncPoint;
use reel_engine::disk::sim::{Counts, Faults, Rng, SimDisk};
use reel_engine::upkeep::{FindingKind, fsck};
use reel_engine::{FolderOptions, Store};

use ledger::Ledger;
use life::{Ending, live, open_quietly};

/// Something left out on purpose, to see that the simulator notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// This sync does nothing.
    Skip(SyncPoint),
    /// The catalog is not made durable before a marker goes.
    NoBarrier,
}

/// What was in a seed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Lives of the process.
    pub lives: u64,
    /// Lives that ended in a crash.
    pub crashes: u64,
    /// Uploads answered.
    pub uploads: u64,
    /// Deletes answered.
    pub deletes: u64,
    /// Segments compacted.
    pub compactions: u64,
    /// Segments scrubbed.
    pub scrubs: u64,
    /// Objects read and compared.
    pub reads: u64,
    /// What the disk did.
    pub disk: Counts,
}

impl Summary {
    /// Adds another seed's.
    pub fn add(&mut self, other: &Self) {
        self.lives += other.lives;
        self.crashes += other.crashes;
        self.uploads += other.uploads;
        self.deletes += other.deletes;
        self.compactions += other.compactions;
        self.scrubs += other.scrubs;
        self.reads += other.reads;
        self.disk.add(&other.disk);
    }
}

/// What survives the process: the disk, the ID server, and what was written down.
struct World {
    rng: Rng,
    disk: SimDisk,
    folders: Vec<PathBuf>,
    ledger: Rc<Ledger>,
    numbers: Arc<Mutex<u64>>,
    segment_bytes: u64,
    sabotage: Option<Sabotage>,
    faults: Faults,
    flips: bool,
    /// A folder whose disk is broken.
    broken: Option<PathBuf>,
}

/// Runs a seed.
///
/// # Errors
/// The violation that was found.
pub fn run(seed: u64, sabotage: Option<Sabotage>) -> Result<Summary, String> {
    let mut world = World::new(seed, sabotage);
    let lives = 2 + world.rng.below(4);
    for life in 0..lives {
        world.live(life + 1 == lives)?;
    }
    world.last_check()?;
    Ok(world.ledger.sum(world.disk.counts()))
}

impl World {
    fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut rng = Rng::new(seed);
        let folders: Vec<PathBuf> =
            ["/a", "/b"].iter().take(1 + rng.below(2) as usize).map(PathBuf::from).collect();
        let paths: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
        let disk = SimDisk::new(rng.bits(), &paths);
        if let Some(Sabotage::Skip(point)) = sabotage {
            disk.skip_sync(point);
        }
        let mut faults = Faults::default();
        let mut flips = false;
        let mut broken = None;
        match rng.below(8) {
            0 => faults.sync = 100,
            1 => (faults.write, faults.read, faults.short) = (50, 20, 500),
            2 => faults.full = 150,
            3 => flips = true,
            4 if folders.len() > 1 => broken = Some(folders[rng.below(2) as usize].clone()),
            _ => {}
        }
        Self {
            disk,
            folders,
            ledger: Rc::default(),
            numbers: Arc::new(Mutex::new(1)),
            segment_bytes: 16_384 << rng.below(3),
            sabotage,
            faults,
            flips,
            broken,
            rng,
        }
    }

    /// One life: opened, worked with, and ended (the last one in order).
    fn live(&mut self, last: bool) -> Result<(), String> {
        self.ledger.summary.borrow_mut().lives += 1;
        let ending = live(self, last)?;
        match ending {
            Ending::Orderly => {}
            Ending::Crash => self.ledger.summary.borrow_mut().crashes += 1,
        }
        let power = ending == Ending::Crash && self.rng.chance(7_000);
        self.disk.set_faults(Faults::default());
        for folder in &self.folders {
            self.disk.set_broken(folder, false);
        }
        if power {
            self.ledger.catalog.lock().lose_power(&mut self.rng);
        }
        self.disk = self.disk.restart(power);
        if self.flips && ending == Ending::Orderly && self.rng.chance(5_000) {
            self.flip()?;
        }
        Ok(())
    }

    /// Flips a bit of a sealed segment, and sees that the check finds it.
    fn flip(&mut self) -> Result<(), String> {
        let files: Vec<_> = self
            .disk
            .files()
            .into_iter()
            .filter(|(path, length)| {
                *length > 0 && path.extension().is_some_and(|kind| kind == "seg" || kind == "idx")
            })
            .collect();
        if files.is_empty() {
            return Ok(());
        }
        let (path, length) = files[self.rng.below(files.len() as u64) as usize].clone();
        let stem = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !self.is_read(&path) {
            return Ok(());
        }
        let number = u64::from_str_radix(stem.split('.').next().unwrap_or_default(), 16);
        let number = number.map_err(|error| format!("{stem}: {error}"))?;
        let bit = self.rng.below(length * 8);
        self.disk.flip(&path, bit);
        self.ledger.model.borrow_mut().flipped.insert(number);
        // One flip a seed: what two of them do together is not promised.
        self.flips = false;
        let mut found = false;
        for folder in &self.folders {
            let options = FolderOptions { path: folder.clone(), disk: Arc::new(self.disk.clone()) };
            let checked = fsck(&options, |_| {}).map_err(|error| format!("fsck: {error}"))?;
            found |= checked.report.findings.iter().any(|finding| finding.segment == Some(number));
        }
        // A marked segment is read, and mended, by the next start.
        let marked = self.folders.iter().any(|folder| {
            let marker = folder.join("active").join(format!("{number:012x}"));
            self.disk.files().iter().any(|(path, _)| *path == marker)
        });
        if !found && !marked {
            return Err(format!(
                "bit {bit} of {} was flipped, and no check finds it",
                path.display()
            ));
        }
        Ok(())
    }

    /// Whether a check reads a file: not so a table that an interrupted compaction left over, of another
    /// generation than its segment's, or of none.
    fn is_read(&self, path: &Path) -> bool {
        use reel_engine::disk::{Disk, Mode};
        use reel_engine::format::segment_header::SegmentHeader;
        if path.extension().is_some_and(|kind| kind == "seg") {
            return true;
        }
        let stem = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some((stem, rest)) = stem.split_once('.') else { return false };
        let mut page = vec![0; 4096];
        let segment = path.with_file_name(format!("{stem}.seg"));
        let read = self.disk.open(&segment, Mode::Read).and_then(|file| file.read_at(&mut page, 0));
        let generation = rest.strip_suffix("idx").map_or("", |rest| rest.trim_end_matches('.'));
        let generation = generation.parse().unwrap_or(0);
        read.is_ok()
            && SegmentHeader::decode(&page).is_ok_and(|header| header.generation == generation)
    }

    /// When all is over: opened once more, everything is as it should be, and every byte is judged.
    fn last_check(&mut self) -> Result<(), String> {
        let store = open_quietly(self)?;
        let catalog = self.ledger.catalog.lock().clone();
        self.ledger.model.borrow_mut().check_all(&store, &catalog)?;
        drop(store);
        self.disk = self.disk.restart(false);
        for folder in &self.folders {
            let options = FolderOptions { path: folder.clone(), disk: Arc::new(self.disk.clone()) };
            let checked = fsck(&options, |_| {}).map_err(|error| format!("fsck: {error}"))?;
            let bad = checked.report.findings.iter().find(|finding| {
                // Tables and cuts are derived: a crash may leave them to be made again.
                let derived = matches!(
                    finding.kind,
                    FindingKind::Table | FindingKind::NoTable | FindingKind::Padding
                );
                let flipped = finding
                    .segment
                    .is_some_and(|number| self.ledger.model.borrow().flipped.contains(&number));
                !derived && !flipped
            });
            if let Some(finding) = bad {
                return Err(format!("fsck: {finding}"));
            }
        }
        Ok(())
    }
}

/// The store, for the parts of the simulator.
type Shared = Arc<Store>;
