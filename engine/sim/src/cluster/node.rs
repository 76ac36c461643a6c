//! One life of a node of the group.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reel_engine::disk::sim::{Rng, SimDisk};
use reel_engine::follow::{Acks, Copying, Followers, all_hold};
use reel_engine::{FolderOptions, SegmentNumber, Store, StoreOptions, Writer};

use super::net::{SimNet, Wires};
use super::{Plan, Sabotage};
use crate::executor::Executor;
use crate::ledger::Ledger;
use crate::work::{Later, Site};

/// Between looks at the peers.
const LOOK: Duration = Duration::from_millis(100);
/// How long an upload waits for other nodes.
const HELD_WITHIN: Duration = Duration::from_secs(10);
/// Between two requests of a client.
const THINK_MS: u64 = 2_000;
/// The node's data folder.
pub(crate) const FOLDER: &str = "/data";

/// What peers and the world see of a running node.
pub(crate) struct Node {
    pub(crate) site: Rc<Site>,
    pub(crate) boot: String,
    pub(crate) acks: Acks,
    /// All of its living peers' segments were here once.
    pub(crate) active: Cell<bool>,
    /// Nothing of any peer's is known to lack.
    pub(crate) level: Cell<bool>,
    /// Requests are taken.
    pub(crate) open: Cell<bool>,
}

fn options(id: u32, disk: &SimDisk, plan: &Plan, executor: &Executor) -> StoreOptions {
    let numbers: Arc<Mutex<u64>> = Arc::clone(&plan.numbers);
    let take = move || {
        let mut next = numbers.lock();
        *next += 1;
        SegmentNumber::new(*next)
    };
    StoreOptions {
        folders: vec![FolderOptions { path: PathBuf::from(FOLDER), disk: Arc::new(disk.clone()) }],
        node: id,
        segment_bytes: plan.segment_bytes,
        prewrite_bytes: 2 * plan.segment_bytes,
        open_segments: 4,
        pool: Some(executor.pool()),
        compact_dead_percent: 10,
        tombstone_keep_ms: 0,
        ..StoreOptions::new([], Arc::new(take))
    }
}

/// Starts a node on its disk. `None`: its disk died while it was opened.
///
/// # Errors
/// The store does not open.
pub(crate) fn start(
    id: u32,
    disk: &SimDisk,
    plan: &Plan,
    ledger: &Rc<Ledger>,
    wires: &Rc<Wires>,
) -> Result<Option<(Executor, Rc<Node>)>, String> {
    let executor = Executor::new(wires.bits());
    let (store, recovery) = match Store::open(options(id, disk, plan, &executor)) {
        Ok(opened) => opened,
        Err(_) if disk.is_dead() => return Ok(None),
        Err(error) => return Err(format!("node {id} does not open its store: {error}")),
    };
    let spawner = executor.spawner();
    let node = Rc::new_cyclic(|node: &std::rc::Weak<Node>| {
        let (node, clock, peers) = (node.clone(), wires.clock.clone(), plan.others_needed());
        let held = move |number: SegmentNumber, end: u64| {
            let (node, clock) = (node.clone(), clock.clone());
            let waiting: Later = Box::pin(async move {
                let Some(node) = node.upgrade() else { return false };
                peers == 0
                    || clock.within(HELD_WITHIN, node.acks.held(number, end, peers)).await.is_some()
            });
            waiting
        };
        let asking = Rc::new(SimNet { wires: Rc::clone(wires), me: id, spawner: spawner.clone() });
        let forgets = wires.sabotage == Some(Sabotage::EarlyForget);
        let whether_all_hold = move |number: SegmentNumber| {
            let asking = Rc::clone(&asking);
            let asked: Later =
                Box::pin(async move { forgets || all_hold(asking.as_ref(), number).await });
            asked
        };
        Node {
            site: Rc::new(Site {
                ledger: Rc::clone(ledger),
                rng: RefCell::new(Rng::new(wires.bits())),
                writers: vec![Writer::new(Arc::clone(&store))],
                spawner: spawner.clone(),
                busy: Cell::new(0),
                faulty: true,
                disk: disk.clone(),
                store: Arc::clone(&store),
                held: Some(Box::new(held)),
                all_hold: Some(Box::new(whether_all_hold)),
                row_first: wires.sabotage == Some(Sabotage::RowFirst),
            }),
            boot: wires.below(u64::MAX).to_string(),
            acks: Acks::default(),
            active: Cell::new(false),
            level: Cell::new(false),
            open: Cell::new(true),
        }
    });
    for writer in &node.site.writers {
        spawner.spawn(writer.clone().run());
    }
    node.site.offer(recovery.offer);
    let net = SimNet { wires: Rc::clone(wires), me: id, spawner: spawner.clone() };
    let followers = Followers::new(net, Arc::clone(&store), Copying::default());
    let (looking, clock) = (Rc::clone(&node), wires.clock.clone());
    spawner.spawn(async move {
        loop {
            if let Some(standing) = followers.look() {
                looking.active.set(looking.active.get() || standing.caught_up);
            }
            match followers.seal_own().await {
                Ok(sealed) => looking.site.offer(sealed),
                Err(error) => tracing::warn!(%error, "own segments that came back are not sealed"),
            }
            let lags = followers.lags();
            looking.level.set(lags.iter().all(|(_, lag)| lag.bytes == 0 && lag.since.is_none()));
            clock.sleep(LOOK).await;
        }
    });
    for _ in 0..2 {
        let (client, wires) = (Rc::clone(&node), Rc::clone(wires));
        spawner.spawn(async move {
            loop {
                let think = Duration::from_millis(wires.below(THINK_MS));
                wires.clock.sleep(think).await;
                if client.active.get() && client.open.get() {
                    client.site.client(1).await;
                }
            }
        });
    }
    let (upkeep, wires) = (Rc::clone(&node), Rc::clone(wires));
    spawner.spawn(async move {
        loop {
            wires.clock.sleep(Duration::from_millis(wires.below(1_000))).await;
            if upkeep.active.get() {
                upkeep.site.upkeep().await;
            }
        }
    });
    Ok(Some((executor, node)))
}
