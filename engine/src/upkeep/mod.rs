//! What goes on in the background, within a share of the disks' time: compaction, the scrub, space
//! written ahead, and a survey of all segments after a start.

pub(crate) mod check;
mod compact;
mod fsck;
mod reader;
mod repair;
mod scrub;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

pub use check::{Expect, Finding, FindingKind, Report, check_segment};
pub use compact::{Compaction, Step};
pub use fsck::{Checked, fsck, repair_tables};
pub use repair::Damage;
pub use scrub::{scrub_segment, scrub_superblocks};

use crate::error::{Error, Result};
use crate::id::SegmentNumber;
use crate::store::Store;

/// Between looks for something to do.
const LOOK: Duration = Duration::from_millis(200);
/// The longest pause between two steps.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Segments listed at a time.
const PAGE: usize = 256;

/// Told of each damaged object: it may fetch the bytes from a peer and call [`Store::repair`].
pub type RepairHook = Arc<dyn Fn(&Finding) + Send + Sync>;

/// Asked whether every other node of the group holds the whole of a segment; waits for their answers.
pub type HoldHook = Arc<dyn Fn(SegmentNumber) -> bool + Send + Sync>;

/// How much upkeep may take.
#[derive(Clone)]
pub struct UpkeepOptions {
    /// Share of the time in which it uses a disk, above 0 to 1.
    pub share: f64,
    /// From the beginning of one scrub of everything to that of the next.
    pub scrub_every: Duration,
    /// Told of damaged objects.
    pub repair: Option<RepairHook>,
    /// Asked before tombstones go; `None` for a node alone.
    pub all_hold: Option<HoldHook>,
}

impl std::fmt::Debug for UpkeepOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpkeepOptions").field("share", &self.share).finish_non_exhaustive()
    }
}

/// The running background thread `reel-upkeep`. It ends when dropped.
#[derive(Debug)]
pub struct Upkeep {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Control {
    stop: AtomicBool,
    paused: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Control {
    /// Sleeps, unless it is time to stop; false then.
    fn sleep(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut guard = self.lock.lock();
        while !self.stop.load(Ordering::Acquire) {
            let paused = self.paused.load(Ordering::Acquire);
            let now = Instant::now();
            if now >= deadline && !paused {
                return true;
            }
            let until = if paused { now + LONGEST_PAUSE } else { deadline };
            self.changed.wait_until(&mut guard, until);
        }
        false
    }
}

impl Upkeep {
    /// Starts it.
    pub fn start(store: Arc<Store>, options: UpkeepOptions) -> std::io::Result<Self> {
        let control = Arc::new(Control::default());
        let theirs = Arc::clone(&control);
        let thread = std::thread::Builder::new()
            .name("reel-upkeep".to_owned())
            .spawn(move || Worker { store, options, control: theirs }.run())?;
        Ok(Self { control, thread: Some(thread) })
    }

    /// Lets it rest until [`Upkeep::resume`]; a step in progress is finished.
    pub fn pause(&self) {
        self.control.paused.store(true, Ordering::Release);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        let _guard = self.control.lock.lock();
        self.control.paused.store(false, Ordering::Release);
        self.control.changed.notify_all();
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        {
            let _guard = self.control.lock.lock();
            self.control.stop.store(true, Ordering::Release);
            self.control.changed.notify_all();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Compacts what is worth it now, at full speed, as for a node alone; the bytes given back. Blocking.
///
/// # Errors
/// The first; what was compacted before stays so.
pub fn compact_now(store: &Arc<Store>) -> Result<u64> {
    let mut freed = 0;
    for number in store.take_candidates() {
        let Some(mut compaction) = Compaction::begin(store, number)? else { continue };
        compaction.let_tombstones_go();
        loop {
            if let Step::Done(bytes) = compaction.step()? {
                freed += bytes;
                break;
            }
        }
    }
    Ok(freed)
}

/// Fills the stock of space written before, at full speed. Blocking.
///
/// # Errors
/// The first.
pub fn stock_now(store: &Arc<Store>) -> Result<()> {
    while let Some(mut stocking) = store.begin_stocking()? {
        while !stocking.step()? {}
    }
    Ok(())
}

struct Worker {
    store: Arc<Store>,
    options: UpkeepOptions,
    control: Arc<Control>,
}

impl Worker {
    fn run(&self) {
        if !self.survey() {
            return;
        }
        let mut next_scrub = Instant::now() + self.options.scrub_every;
        while self.stock() && self.compact_all() && self.control.sleep(LOOK) {
            if Instant::now() >= next_scrub {
                next_scrub += self.options.scrub_every;
                if !self.scrub() {
                    return;
                }
            }
        }
    }

    /// After a step that took `took`, leaves the disk to others for as long as the share asks. False
    /// when it is time to stop.
    fn rest(&self, took: Duration) -> bool {
        let share = self.options.share.clamp(0.001, 1.0);
        self.control.sleep(took.mul_f64(1.0 / share - 1.0).min(LONGEST_PAUSE))
    }

    /// Calls `work` for every segment, with rests.
    fn each_segment(&self, mut work: impl FnMut(SegmentNumber) -> bool) -> bool {
        let mut after = None;
        loop {
            let page = self.store.list(after, PAGE);
            let Some(last) = page.last() else { return true };
            after = Some(*last);
            for number in page {
                if !work(number) {
                    return false;
                }
            }
        }
    }

    /// Opens every segment once: makes tables that are missing, and finds what is worth compacting.
    fn survey(&self) -> bool {
        self.each_segment(|number| {
            let started = Instant::now();
            match self.store.segment_blocking(number) {
                Ok(_) | Err(Error::NoSegment(_)) => {}
                Err(error) => {
                    tracing::error!(segment = %number, %error, "segment cannot be opened")
                }
            }
            self.rest(started.elapsed())
        })
    }

    /// Writes space ahead for the shards' commits. False when it is time to stop.
    fn stock(&self) -> bool {
        self.fill_stock().unwrap_or_else(|error| {
            tracing::warn!(%error, "no space written ahead");
            true
        })
    }

    fn fill_stock(&self) -> Result<bool> {
        while let Some(mut stocking) = self.store.begin_stocking()? {
            let mut done = false;
            while !done {
                let began = Instant::now();
                done = stocking.step()?;
                if !self.rest(began.elapsed()) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn compact_all(&self) -> bool {
        for number in self.store.take_candidates() {
            match self.compact(number) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) => tracing::error!(segment = %number, %error, "segment not compacted"),
            }
        }
        true
    }

    fn compact(&self, number: SegmentNumber) -> Result<bool> {
        let started = Instant::now();
        let Some(mut compaction) = Compaction::begin(&self.store, number)? else { return Ok(true) };
        if self.options.all_hold.as_ref().is_none_or(|all_hold| all_hold(number)) {
            compaction.let_tombstones_go();
        }
        let mut copied = 0;
        loop {
            let began = Instant::now();
            let step = compaction.step()?;
            if !self.rest(began.elapsed()) {
                return Ok(false);
            }
            match step {
                Step::More(bytes) => {
                    copied += bytes;
                    metrics::counter!("reel_compaction_copied_bytes_total").increment(bytes);
                }
                Step::Done(freed) => {
                    metrics::counter!("reel_compaction_freed_bytes_total").increment(freed);
                    metrics::counter!("reel_compactions_total").increment(1);
                    tracing::info!(segment = %number, copied, freed, milliseconds = started.elapsed().as_millis() as u64, "segment compacted");
                    return Ok(true);
                }
            }
        }
    }

    fn scrub(&self) -> bool {
        let started = Instant::now();
        for finding in scrub_superblocks(&self.store) {
            tracing::error!(%finding, "scrub");
        }
        let mut total = Report::default();
        let done = self.each_segment(|number| {
            let mut began = Instant::now();
            let mut go_on = true;
            let report = scrub_segment(&self.store, number, &mut |_| {
                go_on &= self.rest(began.elapsed());
                began = Instant::now();
            });
            match report {
                Ok(report) => {
                    report.findings.iter().for_each(|finding| self.handle(finding));
                    total.add(Report { findings: Vec::new(), ..report });
                }
                Err(error) => tracing::error!(segment = %number, %error, "segment not scrubbed"),
            }
            go_on
        });
        tracing::info!(
            segments = total.segments,
            objects = total.objects,
            bytes = total.bytes,
            milliseconds = started.elapsed().as_millis() as u64,
            "scrub done"
        );
        done
    }

    /// Mends what can be mended from here, hands objects to the hook.
    fn handle(&self, finding: &Finding) {
        tracing::error!(%finding, "scrub");
        match self.store.mend(finding) {
            Ok(true) => tracing::info!(%finding, "mended"),
            Ok(false) => {
                if let (Some(hook), Some(_)) = (&self.options.repair, &finding.object) {
                    hook(finding);
                }
            }
            Err(error) => tracing::error!(%finding, %error, "not mended"),
        }
    }
}
