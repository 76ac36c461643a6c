//! The network of a simulated group: delays, cut links, answers that break off.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use reel_engine::disk::sim::Rng;
use reel_engine::follow::{Net, News, Page, Peer, Portion, Pulled, Sparing};
use reel_engine::replica::Arrived;
use reel_engine::{Error, Known, SegmentNumber};

use super::Sabotage;
use super::node::Node;
use crate::clock::SimClock;
use crate::executor::Spawner;

/// The longest that a message is on its way.
const LONGEST_WAY_US: u64 = 3_000;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a node lets a follower wait for news.
const NEWS_WAIT: Duration = Duration::from_secs(1);
/// Segments of a page.
const PAGE: usize = 5;

/// Why a peer could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("{0}")]
    Engine(#[from] Error),
    #[error("nobody listens")]
    Refused,
    #[error("the link is cut")]
    Cut,
    #[error("no answer in time")]
    Silent,
    #[error("the answer breaks off")]
    Off,
}

/// What joins the nodes of a group, and what is known of it from outside.
pub(crate) struct Wires {
    pub(crate) clock: SimClock,
    pub(crate) rng: RefCell<Rng>,
    /// The nodes that run.
    pub(crate) nodes: RefCell<BTreeMap<u32, Rc<Node>>>,
    /// Links that are cut, from the lower id to the higher.
    pub(crate) cut: RefCell<BTreeSet<(u32, u32)>>,
    /// All nodes, and whether the trackers call them offline.
    pub(crate) told: RefCell<BTreeMap<u32, bool>>,
    pub(crate) sabotage: Option<Sabotage>,
}

impl Wires {
    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.rng.borrow_mut().below(bound)
    }

    /// A seed for a part of the world.
    pub(crate) fn bits(&self) -> u64 {
        self.rng.borrow_mut().bits()
    }

    fn is_cut(&self, a: u32, b: u32) -> bool {
        self.cut.borrow().contains(&(a.min(b), a.max(b)))
    }

    /// A message goes from one node to another.
    async fn travel(&self, from: u32, to: u32) -> Result<(), Broken> {
        let way = Duration::from_micros(self.below(LONGEST_WAY_US));
        self.clock.sleep(way).await;
        if self.is_cut(from, to) { Err(Broken::Cut) } else { Ok(()) }
    }
}

/// The network as one node sees it.
pub(crate) struct SimNet {
    pub(crate) wires: Rc<Wires>,
    pub(crate) me: u32,
    pub(crate) spawner: Spawner,
}

impl SimNet {
    /// Has `work` done at a peer.
    async fn ask<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        peer: u32,
        work: impl FnOnce(Rc<Node>) -> F,
    ) -> Result<T, Broken> {
        self.wires.travel(self.me, peer).await?;
        let node = self.wires.nodes.borrow().get(&peer).cloned().ok_or(Broken::Refused)?;
        let (done, answer) = oneshot::channel();
        let spawner = node.site.spawner.clone();
        let work = work(node);
        spawner.spawn(async move { drop(done.send(work.await)) });
        let answer = self.wires.clock.within(PATIENCE, answer).await.ok_or(Broken::Silent)?;
        let answer = answer.map_err(|_| Broken::Off)?;
        self.wires.travel(peer, self.me).await?;
        Ok(answer)
    }
}

impl Net for SimNet {
    type Error = Broken;
    type Pulled = SimPulled;

    fn peers(&self) -> Option<Vec<Peer>> {
        let told = self.wires.told.borrow();
        let others = told.iter().filter(|(id, _)| **id != self.me);
        Some(others.map(|(id, offline)| Peer { id: *id, offline: *offline }).collect())
    }

    async fn news(&self, peer: u32, boot: &str, mark: u64) -> Result<News, Broken> {
        let boot = boot.to_owned();
        let clock = self.wires.clock.clone();
        let news = self.ask(peer, |node| async move {
            let store = Arc::clone(&node.site.store);
            let since = if node.boot == boot { mark } else { 0 };
            let news = clock.within(NEWS_WAIT, store.changes_beyond(since)).await;
            let (mark, changed) = news.unwrap_or_else(|| store.changes_since(since));
            let reset = changed.is_none();
            let numbers = changed.unwrap_or_default();
            let gone = store.gone_among(&numbers);
            let describe = Arc::clone(&store);
            let segments = store.pool().run(move || describe.describe_all(numbers)).await?;
            Ok::<_, Error>(News { boot: node.boot.clone(), mark, reset, segments, gone })
        });
        Ok(news.await??)
    }

    async fn page(&self, peer: u32, after: Option<SegmentNumber>) -> Result<Page, Broken> {
        let page = self.ask(peer, |node| async move {
            let store = Arc::clone(&node.site.store);
            let numbers = store.list(after, PAGE);
            let next = (numbers.len() == PAGE).then(|| numbers.last().copied()).flatten();
            let describe = Arc::clone(&store);
            let segments = store.pool().run(move || describe.describe_all(numbers)).await?;
            Ok::<_, Error>(Page { segments, next })
        });
        Ok(page.await??)
    }

    async fn known(&self, peer: u32, number: SegmentNumber) -> Result<Option<Known>, Broken> {
        let known = self.ask(peer, move |node| async move {
            let store = Arc::clone(&node.site.store);
            node.site.store.pool().run(move || store.describe_all([number])).await
        });
        Ok(known.await??.pop())
    }

    async fn is_gone(&self, peer: u32, number: SegmentNumber) -> Result<bool, Broken> {
        self.ask(peer, move |node| async move { node.site.store.is_gone(number) }).await
    }

    async fn pull(&self, peer: u32, known: &Known, from: u64) -> Result<Option<SimPulled>, Broken> {
        let (known, me) = (known.clone(), self.me);
        let early = self.wires.sabotage == Some(Sabotage::EarlyAck);
        let pulled = self.ask(peer, move |node| async move {
            let segment = match node.site.store.segment(known.number).await {
                Err(Error::NoSegment(_)) => return Ok(None),
                segment => segment?,
            };
            let portion = Portion::of(&segment, from, Some(known.generation), Some(known.salt))?;
            let held = if early { portion.range.end } else { from };
            node.acks.record(me, known.number, held);
            let read = move || {
                let mut bytes = vec![0; (portion.range.end - portion.range.start) as usize];
                segment.file().read_exact_at(&mut bytes, portion.range.start)?;
                Ok((bytes, portion.is_last))
            };
            node.site.store.pool().run(read).await.map(Some)
        });
        let Some((bytes, is_last)) = pulled.await?? else { return Ok(None) };
        let breaks = self.wires.below(20) == 0;
        let end = if breaks { self.wires.below(bytes.len() as u64) as usize } else { bytes.len() };
        let wires = Rc::clone(&self.wires);
        Ok(Some(SimPulled { wires, length: bytes.len(), bytes, end, is_last, at: 0 }))
    }

    async fn dead(&self, peer: u32, number: SegmentNumber) -> Result<Option<Vec<u16>>, Broken> {
        let dead = self.ask(peer, move |node| async move {
            let store = Arc::clone(&node.site.store);
            let found = node.site.store.pool().run(move || store.dead_slots(number)).await;
            match found {
                Err(Error::NoSegment(_)) => Ok(None),
                found => found.map(Some),
            }
        });
        Ok(dead.await??)
    }

    fn arrived(&self, records: &[Arrived]) {
        for Arrived { name, version, target, .. } in records {
            let target = target.map(|target| target.to_string());
            tracing::debug!(name, version = version.hlc, ?target, "arrived");
        }
    }

    fn reborn(&self, _peer: u32) {}

    fn sparing(&self) -> Option<Sparing> {
        (self.wires.below(2) == 0).then_some(Sparing { share: 0.8 })
    }

    async fn sleep(&self, time: Duration) {
        self.wires.clock.sleep(time).await;
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.spawner.spawn(task);
    }

    fn now(&self) -> Instant {
        self.wires.clock.now()
    }
}

/// Bytes on their way.
pub(crate) struct SimPulled {
    wires: Rc<Wires>,
    bytes: Vec<u8>,
    length: usize,
    /// Where it breaks off.
    end: usize,
    is_last: bool,
    at: usize,
}

impl Pulled for SimPulled {
    type Error = Broken;

    fn is_last(&self) -> bool {
        self.is_last
    }

    fn is_empty(&self) -> bool {
        self.length == 0
    }

    async fn next(&mut self) -> Result<Option<&[u8]>, Broken> {
        if self.at == self.end {
            return if self.end == self.length { Ok(None) } else { Err(Broken::Off) };
        }
        let from = self.at;
        let most = (self.end - from) as u64;
        self.at += 1 + self.wires.below(most) as usize;
        Ok(Some(&self.bytes[from..self.at]))
    }
}
