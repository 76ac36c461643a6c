//! Following: how a node takes over what its peers write.
//!
//! A follower lists all of a peer's segments once, then asks for what changed since, and pulls the bytes it lacks; the
//! offset of its next pull says what it holds durably ([`Acks`]). What could not be copied is tried until it is here
//! ([`pending`]). A segment comes from the node that made it, and from any peer when that one is offline.
//!
//! The network, the clock and the tasks are behind [`Net`]: HTTP on a shard, or a simulation.

mod acks;
mod copying;
mod net;
mod pace;
mod pending;
mod serve;
mod standing;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::format::segment_header::SegmentKind;
use crate::id::SegmentNumber;
use crate::replica::{Arrived, PackedReplica, SoloReplica};
use crate::store::{Known, Store};

pub use acks::Acks;
pub use copying::{Claim, Copying};
pub use net::{Net, News, Page, Peer, Pulled, Sparing};
use pace::Pace;
use pending::Pending;
pub use serve::Portion;
pub use standing::Standing;

/// Between tries of a peer that does not answer.
const RETRY: Duration = Duration::from_millis(300);
/// Before a segment that was not copied is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Between looks whether another large segment may be copied.
const TURN: Duration = Duration::from_millis(25);
/// Tries after which a peer that does not answer does not keep this node from serving.
const TRIES_BEFORE_ACTIVE: u32 = 3;
/// Large segments copied at once; one, when viewers are spared.
const LARGE_AT_ONCE: usize = 2;

/// Whether every other node holds the whole of a segment, and says so; one that is offline cannot.
pub async fn all_hold<N: Net>(net: &N, number: SegmentNumber) -> bool {
    let Some(peers) = net.peers() else { return false };
    for peer in peers {
        let holds = !peer.offline
            && matches!(net.known(peer.id, number).await, Ok(Some(known)) if known.sealed);
        if !holds {
            return false;
        }
    }
    true
}

/// How far a node is behind a peer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lag {
    /// Bytes of the peer's that lack here, as far as is known.
    pub bytes: u64,
    /// Since when anything lacks, or nothing is known.
    pub since: Option<Instant>,
}

/// What of a segment lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// So many bytes, or (0) only the word that it is complete.
    Bytes(u64),
    /// It is here; its node does not know that.
    Word,
    Nothing,
}

/// Follows every peer of a node.
pub struct Followers<N: Net> {
    net: N,
    store: Arc<Store>,
    copying: Copying,
    following: RefCell<HashSet<u32>>,
    /// Peers whose segments were all here once, or that could not be reached.
    caught_up: RefCell<HashSet<u32>>,
    large: Cell<usize>,
    pending: RefCell<Pending>,
    lag: RefCell<HashMap<u32, Lag>>,
    /// Copies here of segments that a peer made and has removed: not sealed yet.
    ended: RefCell<BTreeSet<(u32, SegmentNumber)>>,
    /// All that a peer wrote until then is here.
    heard: RefCell<HashMap<u32, Instant>>,
    /// Peers that trackers call offline.
    offline: RefCell<HashSet<u32>>,
    /// Rises when one goes offline: what it made is taken from the others from then on, so their segments are
    /// listed anew.
    losses: Cell<u64>,
}

impl<N: Net> std::fmt::Debug for Followers<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Followers").field("following", &self.following).finish_non_exhaustive()
    }
}

impl<N: Net> Followers<N> {
    /// Nobody is followed until [`Followers::look`] is called. `copying` is shared with whoever else copies segments
    /// into the store.
    pub fn new(net: N, store: Arc<Store>, copying: Copying) -> Rc<Self> {
        Rc::new(Self {
            net,
            store,
            copying,
            following: RefCell::default(),
            caught_up: RefCell::default(),
            large: Cell::new(0),
            pending: RefCell::default(),
            lag: RefCell::default(),
            ended: RefCell::default(),
            heard: RefCell::default(),
            offline: RefCell::default(),
            losses: Cell::new(0),
        })
    }

    /// Begins to follow peers that are not followed yet; to be called some times a second. `None` until the peers are
    /// known.
    pub fn look(self: &Rc<Self>) -> Option<Standing> {
        let peers = self.net.peers()?;
        let offline: HashSet<u32> =
            peers.iter().filter(|peer| peer.offline).map(|peer| peer.id).collect();
        if !offline.is_subset(&self.offline.borrow()) {
            self.lose();
        }
        self.offline.replace(offline);
        for peer in peers.iter().filter(|peer| !peer.offline) {
            if self.following.borrow_mut().insert(peer.id) {
                let (followers, peer) = (Rc::clone(self), peer.id);
                self.net.spawn(async move { followers.follow(peer).await });
            }
        }
        let caught_up = self.caught_up.borrow();
        let is_caught_up = |peer| caught_up.contains(&peer);
        Some(Standing::of(&peers, &self.heard.borrow(), is_caught_up, self.net.now()))
    }

    /// Segments that this node made before its disk was lost have come back: nobody has more of them, so they are
    /// complete. To be called now and then. Gives those that were sealed: as after a crash, their records are to be offered
    /// to the catalog and settled, since the node may have lost its disk between a record and its row.
    pub async fn seal_own(&self) -> Result<Vec<SegmentNumber>> {
        let mut sealed = Vec::new();
        let Some(peers) = self.net.peers() else { return Ok(sealed) };
        let level = |peer: &Peer| {
            let lag = self.lag.borrow().get(&peer.id).copied().unwrap_or_default();
            let heard = self.heard.borrow().contains_key(&peer.id);
            !peer.offline && heard && lag.bytes == 0 && lag.since.is_none()
        };
        if !peers.iter().all(level) {
            return Ok(sealed);
        }
        for number in self.store.own_copies() {
            let Some(_claim) = self.copying.claim(number) else { continue };
            let segment = self.store.segment(number).await?;
            segment.add_unsettled(segment.slots() as u32);
            self.store.seal(segment).await?;
            sealed.push(number);
        }
        Ok(sealed)
    }

    /// Something lacks here that no news will tell of: all segments of every peer are gone through again.
    pub fn list_anew(&self) {
        self.lose();
    }

    /// How far this node is behind each peer.
    pub fn lags(&self) -> Vec<(u32, Lag)> {
        self.lag.borrow().iter().map(|(peer, lag)| (*peer, *lag)).collect()
    }

    fn lose(&self) {
        self.losses.set(self.losses.get() + 1);
    }

    /// So many bytes of a peer's lack here.
    fn lags_by(&self, peer: u32, bytes: u64) {
        let mut lag = self.lag.borrow_mut();
        let lag = lag.entry(peer).or_default();
        lag.bytes = bytes;
        lag.since = if bytes == 0 { None } else { lag.since.or_else(|| Some(self.net.now())) };
    }

    fn serves(&self, id: u32) -> bool {
        let peers = self.net.peers().unwrap_or_default();
        peers.iter().any(|peer| peer.id == id && !peer.offline)
    }

    /// Follows one peer until the trackers call it offline.
    async fn follow(self: Rc<Self>, peer: u32) {
        let mut tries = 0;
        while self.serves(peer) {
            let error = match self.follow_life(peer, &mut tries).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            tries += 1;
            // What it wrote meanwhile is not known.
            let now = self.net.now();
            self.lag.borrow_mut().entry(peer).or_default().since.get_or_insert(now);
            tracing::debug!(peer, %error, "following breaks off");
            if tries >= TRIES_BEFORE_ACTIVE {
                self.caught_up.borrow_mut().insert(peer);
            }
            self.net.sleep(RETRY).await;
        }
        self.lag.borrow_mut().remove(&peer);
        self.pending.borrow_mut().forget(peer);
        self.ended.borrow_mut().retain(|(of, _)| *of != peer);
        self.following.borrow_mut().remove(&peer);
    }

    /// Lists all of a peer's segments, copies what lacks, then goes on with what changes.
    async fn follow_life(
        self: &Rc<Self>,
        peer: u32,
        tries: &mut u32,
    ) -> Result<std::convert::Infallible, N::Error> {
        let mut boot = String::new();
        let mut mark = 0;
        let mut losses = self.losses.get();
        loop {
            if losses != self.losses.get() {
                losses = self.losses.get();
                self.pending.borrow_mut().forget(peer);
                self.copy_all(peer).await?;
            }
            let asked = self.net.now();
            let news = self.net.news(peer, &boot, mark).await?;
            *tries = 0;
            if news.reset {
                self.copy_all(peer).await?;
                self.net.reborn(peer);
                self.caught_up.borrow_mut().insert(peer);
            }
            (boot, mark) = (news.boot, news.mark);
            for number in news.gone {
                // It grew, was sealed and removed, all since it was last asked for.
                if self.is_growing(peer, number) {
                    self.ended.borrow_mut().insert((peer, number));
                }
            }
            self.finish_ended(peer).await?;
            let mut known = news.segments;
            known.extend(self.pending.borrow().due(peer, self.net.now()));
            self.copy(peer, known, false).await?;
            self.heard.borrow_mut().insert(peer, asked);
        }
    }

    async fn copy_all(self: &Rc<Self>, peer: u32) -> Result<(), N::Error> {
        let mut after = None;
        let mut listed = HashSet::new();
        loop {
            let page = self.net.page(peer, after).await?;
            listed.extend(page.segments.iter().map(|known| known.number));
            self.copy(peer, page.segments, true).await?;
            // Large ones are copied beside; being caught up means that they are here too.
            while self.large.get() > 0 {
                self.net.sleep(TURN).await;
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        for number in self.store.marked() {
            // What it made and does not list may have gone before the end of it came here.
            if self.is_growing(peer, number) && !listed.contains(&number) {
                self.look_whether_gone(peer, number).await?;
            }
        }
        Ok(())
    }

    /// Whether there is a copy here that waits for more from the node that made it.
    fn is_growing(&self, peer: u32, number: SegmentNumber) -> bool {
        let growing = self.store.loaded(number).filter(|segment| !segment.is_sealed());
        growing.is_some_and(|segment| segment.header().creator == peer)
    }

    /// Its node may have removed it.
    async fn look_whether_gone(&self, peer: u32, number: SegmentNumber) -> Result<(), N::Error> {
        if self.net.is_gone(peer, number).await? {
            self.ended.borrow_mut().insert((peer, number));
            self.finish_ended(peer).await?;
        }
        Ok(())
    }

    /// Copies of segments that a peer has removed because all of their objects are dead grow no more.
    async fn finish_ended(&self, peer: u32) -> Result<(), N::Error> {
        let ended: Vec<_> =
            self.ended.borrow().iter().filter(|(of, _)| *of == peer).copied().collect();
        for (of, number) in ended {
            // Who copies it from another peer comes to an end by itself; then it is looked at again.
            let Some(_claim) = self.copying.claim(number) else { continue };
            // Also when it cannot be sealed now: the next listing finds it.
            self.ended.borrow_mut().remove(&(of, number));
            let segment = match self.store.segment(number).await {
                Err(Error::NoSegment(_)) => continue,
                segment => segment?,
            };
            if !segment.is_sealed() && !segment.is_solo() {
                self.store.seal(segment).await?;
            }
        }
        Ok(())
    }

    /// Copies those of the segments that lack here. Large ones are copied beside. `listed`: all that the peer has is gone
    /// through, at the beginning of its life or of this one's.
    async fn copy(
        self: &Rc<Self>,
        peer: u32,
        segments: Vec<Known>,
        listed: bool,
    ) -> Result<(), N::Error> {
        let mut wanted = Vec::new();
        for known in segments {
            match self.lack(peer, &known).await {
                Lack::Bytes(missing) => wanted.push((known, missing)),
                lack => {
                    self.pending.borrow_mut().done(peer, known.number);
                    if lack == Lack::Word {
                        self.confirm(peer, &known).await?;
                    }
                }
            }
        }
        self.lags_by(peer, wanted.iter().map(|(_, missing)| missing).sum());
        for (known, _) in wanted {
            let Some(claim) = self.copying.claim(known.number) else {
                // Another peer gives it, or pushes it: whether all came is looked at again.
                self.put_off(peer, known);
                continue;
            };
            if known.kind == SegmentKind::Packed {
                let result = self.copy_packed(peer, &known, listed).await;
                drop(claim);
                if !result? && known.creator == peer {
                    self.look_whether_gone(peer, known.number).await?;
                }
                self.pending.borrow_mut().done(peer, known.number);
                continue;
            }
            while self.large.get() >= self.large_at_once() {
                self.net.sleep(TURN).await;
            }
            self.large.set(self.large.get() + 1);
            self.pending.borrow_mut().begin(peer, known.clone());
            let followers = Rc::clone(self);
            self.net.spawn(async move {
                match followers.copy_solo(peer, &known).await {
                    Ok(()) => followers.pending.borrow_mut().done(peer, known.number),
                    Err(error) => {
                        tracing::warn!(segment = %known.number, peer, %error, "large segment not copied; tried again");
                        followers.put_off(peer, known);
                    }
                }
                followers.large.set(followers.large.get() - 1);
                drop(claim);
            });
        }
        let pending = self.pending.borrow().bytes(peer);
        self.lags_by(peer, pending);
        Ok(())
    }

    fn large_at_once(&self) -> usize {
        if self.net.sparing().is_some() { 1 } else { LARGE_AT_ONCE }
    }

    fn put_off(&self, peer: u32, known: Known) {
        if !self.pending.borrow_mut().put_off(peer, known, self.net.now() + AGAIN) {
            // All that lacks is found again by listing.
            self.lose();
        }
    }

    /// What of a segment lacks here and should come from this peer.
    async fn lack(&self, peer: u32, known: &Known) -> Lack {
        let own = known.creator == self.store.options.node;
        let by_creator = known.creator == peer;
        // Of an own one that is here a peer has more only when this node was wiped, and has filled itself from
        // another that had less.
        if !own && !by_creator && self.serves(known.creator) {
            return Lack::Nothing;
        }
        if !self.store.has(known.number) {
            let gone = self.store.is_gone(known.number);
            return if gone { Lack::Nothing } else { Lack::Bytes(known.length) };
        }
        let here = if by_creator && known.unsettled { Lack::Word } else { Lack::Nothing };
        let (store, number) = (Arc::clone(&self.store), known.number);
        let ours = self.store.pool().run(move || store.describe(number)).await;
        match ours {
            Ok(ours) if ours.sealed => here,
            // As long as there: nothing to pull, but perhaps to seal.
            Ok(ours) if ours.length >= known.length && !known.sealed => here,
            Ok(ours) => Lack::Bytes(known.length.saturating_sub(ours.length)),
            // A copy of a large one that is not complete.
            Err(_) => Lack::Nothing,
        }
    }

    /// Says that all of a segment is here: its node may have forgotten that in a new life.
    async fn confirm(&self, peer: u32, known: &Known) -> Result<(), N::Error> {
        if let Some(mut pulled) = self.net.pull(peer, known, known.length).await? {
            while pulled.next().await?.is_some() {}
        }
        Ok(())
    }

    /// False when the segment is not there any more: deleted or compacted away meanwhile, or its disk is lost.
    async fn copy_packed(&self, peer: u32, known: &Known, listed: bool) -> Result<bool, N::Error> {
        let Some(mut replica) = PackedReplica::open(&self.store, known).await? else {
            return Ok(true);
        };
        let mut pace = Pace::begin(&self.net);
        loop {
            let pulled = self.net.pull(peer, known, replica.next_offset()).await?;
            let Some(mut pulled) = pulled else { return Ok(false) };
            let (last, empty) = (pulled.is_last(), pulled.is_empty());
            while let Some(piece) = pulled.next().await? {
                count(piece);
                let arrived = replica.append(piece).await?;
                self.take_in(&arrived).await?;
                pace.rest(&self.net).await;
            }
            // The empty pull has acknowledged what came before.
            if !last && !empty {
                continue;
            }
            if last || listed {
                // Bytes do not say what is dead, and tombstones go when every node has had them: this one too, but
                // perhaps on a disk that it has lost.
                let Some(dead) = self.net.dead(peer, known.number).await? else {
                    return Ok(false);
                };
                replica.bury(dead).await?;
            }
            if last {
                replica.finish().await?;
                if !empty {
                    self.confirm(peer, known).await?;
                }
            }
            return Ok(true);
        }
    }

    async fn copy_solo(&self, peer: u32, known: &Known) -> Result<(), N::Error> {
        let mut pace = Pace::begin(&self.net);
        let Some(mut replica) = SoloReplica::open(&self.store, known).await? else { return Ok(()) };
        if self.net.sparing().is_some() {
            replica.write_gently();
        }
        match self.fill_solo(peer, known, &mut replica, &mut pace).await {
            Ok(true) => {}
            // Gone there: deleted meanwhile.
            Ok(false) => return Ok(replica.abandon().await?),
            Err(error) => {
                replica.abandon().await?;
                return Err(error);
            }
        }
        let arrived = replica.finish().await?;
        self.take_in(&[arrived]).await?;
        self.confirm(peer, known).await?;
        pace.rest(&self.net).await;
        Ok(())
    }

    /// False when the segment is gone there.
    async fn fill_solo(
        &self,
        peer: u32,
        known: &Known,
        replica: &mut SoloReplica,
        pace: &mut Pace,
    ) -> Result<bool, N::Error> {
        while replica.next_offset() < known.length {
            let pulled = self.net.pull(peer, known, replica.next_offset()).await?;
            let Some(mut pulled) = pulled else { return Ok(false) };
            if pulled.is_empty() {
                return Err(Error::OtherGeneration(known.number).into());
            }
            while let Some(piece) = pulled.next().await? {
                count(piece);
                replica.append(piece).await?;
                pace.rest(&self.net).await;
            }
        }
        Ok(true)
    }

    async fn take_in(&self, arrived: &[Arrived]) -> Result<(), Error> {
        self.net.arrived(arrived);
        self.store.bury_targets(arrived).await
    }
}

fn count(piece: &[u8]) {
    metrics::counter!("reel_replicated_bytes_total").increment(piece.len() as u64);
}
