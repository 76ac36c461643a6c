//! A group of storage nodes under a simulated network and clock.
//!
//! Real stores on disks that crash, kept equal by the engine's own [`reel_engine::follow`]; one seed determines every
//! delay, cut, crash, freeze and wipe, and the order of all tasks of all nodes. What was answered is compared with what
//! is there when all has calmed down ([`check`]).
//!
//! What is promised: nothing that was answered is lost when one node at a time loses its disk, be it in a power failure
//! of all, and uploads are answered when two nodes or more hold them (`ack`). The next disk is lost only when the group
//! has become whole.

mod check;
mod net;
mod node;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reel_engine::disk::SyncPoint;
use reel_engine::disk::sim::{Counts, Rng, SimDisk};

use crate::Summary;
use crate::clock::SimClock;
use crate::executor::Executor;
use crate::ledger::Ledger;
use net::Wires;
use node::{FOLDER, Node};

/// The nodes of the group.
const NODES: [u32; 3] = [101, 102, 103];
/// Steps of all nodes after which a seed is taken to hang.
const STEPS: u64 = 5_000_000;
/// How long a group may take to become whole again when nothing fails any more.
const CALM_WITHIN: Duration = Duration::from_secs(120);
/// After it looks whole: what is under way ends.
const SETTLE: Duration = Duration::from_secs(5);

/// Something done wrong on purpose, to see that the simulator notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// A follower counts as holding what it was sent, before it has synced it.
    EarlyAck,
    /// Tombstones go before every peer has them.
    EarlyForget,
    /// The catalog names a record before other nodes hold it.
    RowFirst,
}

/// What a seed has chosen for the whole run.
pub(crate) struct Plan {
    /// Nodes that must hold an upload.
    ack: usize,
    segment_bytes: u64,
    numbers: Arc<Mutex<u64>>,
    /// Disks are wiped.
    wipes: bool,
}

impl Plan {
    fn others_needed(&self) -> usize {
        self.ack - 1
    }
}

/// A machine: its disk outlives the processes on it.
struct Machine {
    id: u32,
    disk: SimDisk,
    running: Option<(Executor, Rc<Node>)>,
    /// It makes no step until then.
    frozen_until: Duration,
    /// Since when the trackers hear nothing of it.
    silent_since: Option<Duration>,
    /// When it is started again.
    starts_at: Duration,
    /// When it stops, its disk is lost.
    loses: Option<Loss>,
    /// What its earlier disks did.
    counts: Counts,
}

/// The loss of a disk.
#[derive(Debug, Clone, Copy)]
struct Loss {
    /// All machines lose their power with it.
    blackout: bool,
}

struct World {
    plan: Plan,
    ledger: Rc<Ledger>,
    wires: Rc<Wires>,
    machines: Vec<Machine>,
    steps: u64,
    wiped: bool,
}

impl Drop for World {
    /// Nodes know the wires, and the wires the nodes.
    fn drop(&mut self) {
        self.wires.nodes.borrow_mut().clear();
    }
}

/// Runs a seed.
///
/// # Errors
/// The violation that was found.
pub fn run(seed: u64, sabotage: Option<Sabotage>) -> Result<Summary, String> {
    let mut world = World::new(seed, sabotage)?;
    let faults = 2 + world.wires.below(6);
    for _ in 0..faults {
        let quiet = Duration::from_millis(world.wires.below(4_000));
        world.run_for(quiet)?;
        world.fault()?;
    }
    world.calm_down()?;
    world.check()?;
    let mut summary = world.ledger.sum(Counts::default());
    for machine in &world.machines {
        summary.disk.add(&machine.counts);
        summary.disk.add(&machine.disk.counts());
    }
    Ok(summary)
}

impl World {
    fn new(seed: u64, sabotage: Option<Sabotage>) -> Result<Self, String> {
        let mut rng = Rng::new(seed);
        let ack = [1, 2, 2, 2, NODES.len()][rng.below(5) as usize];
        let plan = Plan {
            ack,
            segment_bytes: 16_384 << rng.below(3),
            numbers: Arc::new(Mutex::new(1)),
            wipes: ack > 1 && rng.chance(6_000),
        };
        let machines = NODES
            .iter()
            .map(|id| Machine {
                id: *id,
                disk: SimDisk::new(rng.bits(), &[Path::new(FOLDER)]),
                running: None,
                frozen_until: Duration::ZERO,
                silent_since: None,
                starts_at: Duration::ZERO,
                loses: None,
                counts: Counts::default(),
            })
            .collect();
        let wires = Rc::new(Wires {
            clock: SimClock::default(),
            rng: RefCell::new(rng),
            nodes: RefCell::default(),
            cut: RefCell::default(),
            told: RefCell::new(BTreeMap::from(NODES.map(|id| (id, false)))),
            sabotage,
        });
        let mut world =
            Self { plan, ledger: Rc::default(), wires, machines, steps: 0, wiped: false };
        for index in 0..world.machines.len() {
            world.start(index)?;
        }
        Ok(world)
    }

    fn start(&mut self, index: usize) -> Result<(), String> {
        let machine = &mut self.machines[index];
        let _span = tracing::info_span!("node", id = machine.id).entered();
        tracing::info!("starts");
        let started =
            node::start(machine.id, &machine.disk, &self.plan, &self.ledger, &self.wires)?;
        match started {
            Some((executor, node)) => {
                self.wires.nodes.borrow_mut().insert(machine.id, Rc::clone(&node));
                machine.running = Some((executor, node));
                self.ledger.summary.borrow_mut().lives += 1;
            }
            None => self.stop(index, false),
        }
        Ok(())
    }

    /// The process dies, with the power of its machine or without.
    fn stop(&mut self, index: usize, power: bool) {
        let now = self.wires.clock.elapsed();
        tracing::info!(id = self.machines[index].id, power, ?now, "stops");
        let again = Duration::from_millis(self.wires.below(6_000));
        let machine = &mut self.machines[index];
        self.wires.nodes.borrow_mut().remove(&machine.id);
        machine.running = None;
        machine.disk = machine.disk.restart(power);
        machine.silent_since.get_or_insert(now);
        machine.starts_at = now + again;
        machine.frozen_until = Duration::ZERO;
        self.ledger.summary.borrow_mut().crashes += 1;
        if let Some(Loss { blackout }) = machine.loses.take() {
            self.lose_disk(index);
            let others = (0..self.machines.len()).filter(|other| *other != index && blackout);
            others.for_each(|other| self.stop(other, true));
        }
    }

    /// What the trackers know: a node that is silent for three seconds is offline.
    fn tell(&mut self) {
        let now = self.wires.clock.elapsed();
        for machine in &mut self.machines {
            let silent = machine.running.is_none() || machine.frozen_until > now;
            if !silent {
                machine.silent_since = None;
            } else {
                machine.silent_since.get_or_insert(now);
            }
            let offline =
                machine.silent_since.is_some_and(|since| now - since > Duration::from_secs(3));
            self.wires.told.borrow_mut().insert(machine.id, offline);
        }
    }

    /// Everybody does what there is to do, for so long.
    fn run_for(&mut self, time: Duration) -> Result<(), String> {
        let until = self.wires.clock.elapsed() + time;
        loop {
            let now = self.wires.clock.elapsed();
            if let Some(violation) = self.ledger.violation.borrow_mut().take() {
                return Err(violation);
            }
            self.steps += 1;
            if self.steps > STEPS {
                return Err(format!("no end after {STEPS} steps"));
            }
            let ready: Vec<usize> = (0..self.machines.len())
                .filter(|index| {
                    let machine = &self.machines[*index];
                    let running = machine.running.as_ref();
                    machine.frozen_until <= now
                        && running.is_some_and(|(executor, _)| executor.is_ready())
                })
                .collect();
            if !ready.is_empty() {
                let index = ready[self.wires.below(ready.len() as u64) as usize];
                let machine = &mut self.machines[index];
                if let Some((executor, _)) = &mut machine.running {
                    let _span = tracing::info_span!("node", id = machine.id).entered();
                    executor.step();
                }
                if machine.disk.is_dead() {
                    let power = self.wires.below(10) < 7;
                    self.stop(index, power);
                }
                continue;
            }
            if now >= until {
                return Ok(());
            }
            self.pass_time(now, until)?;
        }
    }

    /// Nothing happens until the next timer, start or thaw.
    fn pass_time(&mut self, now: Duration, until: Duration) -> Result<(), String> {
        let events = self.machines.iter().flat_map(|machine| {
            let starts = machine.running.is_none().then_some(machine.starts_at);
            [starts, Some(machine.frozen_until)]
        });
        let next = events.flatten().filter(|at| *at > now).chain(self.wires.clock.next()).min();
        self.wires.clock.advance(next.map_or(until, |next| next.min(until)));
        let now = self.wires.clock.elapsed();
        for index in 0..self.machines.len() {
            let machine = &self.machines[index];
            if machine.running.is_none() && machine.starts_at <= now {
                self.start(index)?;
            }
        }
        self.tell();
        Ok(())
    }

    fn is_whole(&self) -> bool {
        let now = self.wires.clock.elapsed();
        let well = |machine: &Machine| {
            let running = machine.running.as_ref();
            machine.frozen_until <= now
                && running.is_some_and(|(_, node)| node.active.get() && node.level.get())
        };
        self.wires.cut.borrow().is_empty() && self.machines.iter().all(well)
    }

    fn fault(&mut self) -> Result<(), String> {
        let index = self.wires.below(self.machines.len() as u64) as usize;
        let now = self.wires.clock.elapsed();
        let running = self.machines[index].running.is_some();
        match self.wires.below(10) {
            0 | 1 if running => self.stop(index, false),
            2 if running => self.stop(index, true),
            3 | 4 => {
                let disk = &self.machines[index].disk;
                let point = SyncPoint::ALL[self.wires.below(SyncPoint::ALL.len() as u64) as usize];
                disk.crash_at(point, self.wires.below(3));
            }
            5 => self.machines[index].disk.crash_after(self.wires.below(400)),
            6 => {
                let time = Duration::from_millis(self.wires.below(8_000));
                self.machines[index].frozen_until = now + time;
            }
            7 => {
                let (a, b) = (NODES[index], NODES[(index + 1) % NODES.len()]);
                self.wires.cut.borrow_mut().insert((a.min(b), a.max(b)));
            }
            8 => self.wires.cut.borrow_mut().clear(),
            _ => return self.wipe(index),
        }
        Ok(())
    }

    /// A machine loses its disk, once the group is whole, and gets an empty one: at a commit or soon after, when it has
    /// what others lack; in half of the cases it goes with the power of all, and is what does not come back.
    fn wipe(&mut self, index: usize) -> Result<(), String> {
        if !self.plan.wipes {
            return Ok(());
        }
        self.become_whole()?;
        let lives = self.ledger.summary.borrow().crashes;
        self.machines[index].loses = Some(Loss { blackout: self.wires.below(2) == 0 });
        self.machines[index].disk.crash_at(SyncPoint::Commit, self.wires.below(3));
        let deadline = self.wires.clock.elapsed() + Duration::from_secs(10);
        while self.ledger.summary.borrow().crashes == lives {
            if self.wires.clock.elapsed() > deadline {
                self.stop(index, true);
            }
            self.run_for(Duration::from_millis(1))?;
        }
        Ok(())
    }

    /// The machine's disk does not come back.
    fn lose_disk(&mut self, index: usize) {
        tracing::info!(id = self.machines[index].id, "its disk is lost");
        let seed = self.wires.bits();
        let machine = &mut self.machines[index];
        machine.counts.add(&machine.disk.counts());
        let empty = SimDisk::new(seed, &[Path::new(FOLDER)]);
        empty.follow_clock(&machine.disk);
        machine.disk = empty;
        self.wiped = true;
    }

    /// Nothing fails any more: everybody runs, and hears everybody.
    fn become_whole(&mut self) -> Result<(), String> {
        self.wires.cut.borrow_mut().clear();
        let deadline = self.wires.clock.elapsed() + CALM_WITHIN;
        for machine in &self.machines {
            machine.disk.calm();
        }
        loop {
            self.run_for(Duration::from_millis(500))?;
            if self.is_whole() {
                return Ok(());
            }
            if self.wires.clock.elapsed() > deadline {
                return Err(self.why_not_whole());
            }
        }
    }

    fn why_not_whole(&self) -> String {
        let states: Vec<String> = self
            .machines
            .iter()
            .map(|machine| match &machine.running {
                Some((_, node)) => format!(
                    "{}: active {}, level {}",
                    machine.id,
                    node.active.get(),
                    node.level.get()
                ),
                None => format!("{}: does not run", machine.id),
            })
            .collect();
        format!(
            "the group is not whole {CALM_WITHIN:?} after the last fault: {}",
            states.join("; ")
        )
    }

    /// No more requests, no more faults, until nothing is under way.
    fn calm_down(&mut self) -> Result<(), String> {
        self.become_whole()?;
        for node in self.wires.nodes.borrow().values() {
            node.open.set(false);
        }
        self.run_for(SETTLE)?;
        self.become_whole()?;
        self.run_for(SETTLE)
    }
}
