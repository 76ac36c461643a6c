//! The comparison: a node looks now and then whether its copies hold what its peers' do, and mends what differs.
//!
//! Following brings everything over; this finds what it missed (a bug, a disk that lied, a file that somebody removed).
//! A segment that is lacking is copied; what is dead at a peer, and by the catalog, is buried. An object that lacks in a
//! copy that is complete is brought from the peer and put back, when the catalog names it (else it was compacted away
//! here, and the peer has missed its tombstone); until then readers get it from the peer.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reel_control::agent::Peer;
use reel_control::api::{CopiesPage, CopyView, NodeState, SlotsView};
use reel_engine::contents::{Contents, Held, Slots};
use reel_engine::follow::Followers;
use reel_engine::format::record::{MAX_HEAD, RecordHead};
use reel_engine::supply::Record;
use reel_engine::{Error, ObjectId, SegmentNumber};

use super::PAGE;
use super::pull::{Broken, OverHttp};
use super::serve::number_of;
use crate::conn::{Conn, ConnError};
use crate::http::request::Request;
use crate::shard::{Answered, Stop};
use crate::storage::{StorageShard, Verdict, judge};

/// Before what differs is looked at again: perhaps it was on its way.
const AGAIN: Duration = Duration::from_secs(5);
/// Dead objects that the catalog is asked about at a time.
const BATCH: usize = 128;
/// Objects of one segment that are named in the log.
const NAMED: usize = 10;
/// The largest record that is put back: larger objects have segments of their own.
const RECORD_BYTES: usize = (8 << 20) + MAX_HEAD;

/// What a comparison found.
#[derive(Debug, Default)]
struct Compared {
    segments: usize,
    missing: usize,
    buried: usize,
    put_back: usize,
    lacking: usize,
}

/// Compares with every living peer, again and again.
pub(super) async fn run_compares(
    shard: Rc<StorageShard>,
    followers: Rc<Followers<OverHttp>>,
    stop: Stop,
) {
    let every = shard.node.config.upkeep.compare_every.0;
    let comparison = Comparison { net: OverHttp::new(Rc::clone(&shard)), shard, followers };
    while !stop.is_stopping() {
        monoio::time::sleep(every).await;
        let (started, mut compared) = (Instant::now(), Compared::default());
        let peers = comparison.shard.node.peers.read().clone().unwrap_or_default();
        for peer in peers.iter().filter(|peer| peer.state == NodeState::Active) {
            if let Err(error) = comparison.with(peer, &mut compared).await {
                tracing::warn!(peer = peer.id, %error, "copies are not compared to the end");
            }
        }
        metrics::gauge!("reel_compare_lacking_objects").set(compared.lacking as f64);
        metrics::counter!("reel_compare_mended_total")
            .increment((compared.missing + compared.buried + compared.put_back) as u64);
        tracing::info!(
            segments = compared.segments,
            missing = compared.missing,
            buried = compared.buried,
            put_back = compared.put_back,
            lacking = compared.lacking,
            milliseconds = started.elapsed().as_millis() as u64,
            "copies compared"
        );
    }
}

struct Comparison {
    net: OverHttp,
    shard: Rc<StorageShard>,
    followers: Rc<Followers<OverHttp>>,
}

impl Comparison {
    async fn with(&self, peer: &Peer, compared: &mut Compared) -> Result<(), Broken> {
        let mut after = None;
        loop {
            let began = Instant::now();
            let page = self.page(peer, after, PAGE).await?;
            compared.segments += page.copies.len();
            let differing = self.differing(&page).await?;
            if !differing.is_empty() {
                monoio::time::sleep(AGAIN).await;
            }
            for number in differing {
                let before = number.get().checked_sub(1);
                let again = self.page(peer, before, 1).await?;
                if self.differing(&again).await?.contains(&number) {
                    self.mend(peer, number, compared).await?;
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
            self.shard.rest(began.elapsed()).await;
        }
    }

    async fn page(
        &self,
        peer: &Peer,
        after: Option<u64>,
        limit: usize,
    ) -> Result<CopiesPage, Broken> {
        let after = after.map_or_else(String::new, |after| format!("&after={after}"));
        self.net.get_json(peer.id, &format!("/-/v1/copies?limit={limit}{after}")).await
    }

    /// Segments whose copy here holds something else.
    async fn differing(&self, page: &CopiesPage) -> Result<Vec<SegmentNumber>, Error> {
        let theirs: BTreeMap<SegmentNumber, Contents> = page
            .copies
            .iter()
            .filter(|copy| copy.settled)
            .filter_map(|copy| {
                let contents = Contents { objects: copy.objects, digest: copy.digest()? };
                Some((SegmentNumber::new(copy.segment)?, contents))
            })
            .collect();
        let store = Arc::clone(&self.shard.node.store);
        let compare = move || {
            let differs = |(number, theirs): (SegmentNumber, Contents)| {
                let ours = match store.held(number) {
                    Ok(held) if !held.is_settled => return None,
                    Ok(held) => held.contents,
                    // Its objects are dead, or it was never here.
                    Err(Error::NoSegment(_)) if store.is_gone(number) => return None,
                    Err(_) => Contents::default(),
                };
                (ours != theirs).then_some(number)
            };
            Ok(theirs.into_iter().filter_map(differs).collect())
        };
        self.shard.node.store.pool().run(compare).await
    }

    async fn mend(
        &self,
        peer: &Peer,
        number: SegmentNumber,
        compared: &mut Compared,
    ) -> Result<(), Broken> {
        let path = format!("/-/v1/segments/{}/slots", number.get());
        let theirs: SlotsView = self.net.get_json(peer.id, &path).await?;
        let store = Arc::clone(&self.shard.node.store);
        if !store.has(number) {
            tracing::warn!(segment = %number, peer = peer.id, "a segment is not here: it is copied");
            compared.missing += 1;
            self.followers.list_anew();
            return Ok(());
        }
        let ours = match self.shard.node.store.pool().run(move || store.slots_of(number)).await {
            Err(error @ Error::Damaged { .. }) => {
                tracing::error!(segment = %number, peer = peer.id, %error, "a copy cannot be opened: it is set aside, and copied anew");
                let store = Arc::clone(&self.shard.node.store);
                self.shard.node.store.pool().run(move || store.set_aside(number)).await?;
                compared.missing += 1;
                self.followers.list_anew();
                return Ok(());
            }
            ours => ours?,
        };
        let difference = Difference::between(&ours, &theirs);
        for slots in difference.dead.chunks(BATCH) {
            self.bury(peer, number, slots.to_vec(), compared).await?;
        }
        let mut named = 0;
        for slot in difference.lacking {
            let object = number.object(slot);
            match self.bring(peer, object).await? {
                Brought::Taken => compared.put_back += 1,
                Brought::Dead => {}
                Brought::Not(why) => {
                    compared.lacking += 1;
                    named += 1;
                    if named <= NAMED {
                        tracing::error!(%object, peer = peer.id, why, "an object that a peer has lacks here; readers get it from there");
                    }
                }
            }
        }
        Ok(())
    }

    /// Brings an object that lacks here from the peer, for compaction to put it back.
    async fn bring(&self, peer: &Peer, object: ObjectId) -> Result<Brought, Broken> {
        let path = format!("/-/v1/segments/{}/records/{}", object.segment().get(), object.slot());
        let bytes = match self.net.get_bytes(peer.id, &path, RECORD_BYTES).await {
            Ok(bytes) => bytes,
            Err(Broken::Status(404 | 410)) => return Ok(Brought::Dead),
            Err(Broken::Status(_)) => return Ok(Brought::Not("the peer cannot read it")),
            Err(error) => return Err(error),
        };
        let record = match Record::decode(&bytes) {
            Ok(record) if record.object() == object => record,
            _ => return Ok(Brought::Not("its record did not arrive whole")),
        };
        let node = &self.shard.node;
        let row = node.catalog.lookup(&record.head.user, &record.head.name).await?;
        match judge(&record.head, object, row.as_ref()) {
            Verdict::Named if node.store.supply(record) => Ok(Brought::Taken),
            Verdict::Named => Ok(Brought::Not("too many lack: the next comparison goes on")),
            Verdict::Lost => Ok(Brought::Dead),
            Verdict::Newer | Verdict::NoRow => Ok(Brought::Not("the catalog does not name it")),
        }
    }

    /// Buries what is dead at a peer, as far as the catalog says so too: a damaged mark there is not taken over.
    async fn bury(
        &self,
        peer: &Peer,
        number: SegmentNumber,
        slots: Vec<u16>,
        compared: &mut Compared,
    ) -> Result<(), Broken> {
        let node = &self.shard.node;
        let store = Arc::clone(&node.store);
        let read = move || {
            let segment = store.segment_blocking(number)?;
            Ok(slots.into_iter().filter_map(|slot| segment.read_head(slot).ok()?).collect())
        };
        let heads: Vec<RecordHead> = node.store.pool().run(read).await?;
        let names = heads.iter().map(|head| (head.user.clone(), head.name.clone())).collect();
        let rows = node.catalog.rows_of(names).await?;
        let mut dead = Vec::new();
        for (head, row) in heads.iter().zip(&rows) {
            let object = number.object(head.slot);
            if judge(head, object, row.as_ref()) == Verdict::Lost {
                dead.push(head.slot);
            } else {
                tracing::error!(%object, peer = peer.id, user = head.user, name = head.name, "dead at a peer, and not by the catalog: kept");
            }
        }
        if dead.is_empty() {
            return Ok(());
        }
        tracing::warn!(segment = %number, peer = peer.id, objects = dead.len(), "dead at a peer, and not here: buried");
        compared.buried += dead.len();
        let store = Arc::clone(&node.store);
        let bury = move || {
            store.kill_slots(number, dead);
            Ok(())
        };
        Ok(node.store.pool().run(bury).await?)
    }
}

/// What became of an object that lacks here.
enum Brought {
    /// It will be put back.
    Taken,
    /// It does not lack: it is dead.
    Dead,
    /// It is not put back, and why.
    Not(&'static str),
}

/// What a copy has otherwise than a peer's.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    /// Living here, dead there: what is dead anywhere is dead.
    dead: Vec<u16>,
    /// Living there, and neither living nor dead here.
    lacking: Vec<u16>,
}

impl Difference {
    fn between(ours: &Slots, theirs: &SlotsView) -> Self {
        let has = |slots: &[u16], slot: &u16| slots.binary_search(slot).is_ok();
        let dead = theirs.dead.iter().filter(|slot| has(&ours.living, slot));
        let lacking =
            theirs.living.iter().filter(|slot| !has(&ours.living, slot) && !has(&ours.dead, slot));
        Self { dead: dead.copied().collect(), lacking: lacking.copied().collect() }
    }
}

impl StorageShard {
    /// `GET /-/v1/copies?after=N&limit=L`: what this node's copies hold.
    pub(crate) async fn copies_page(
        &self,
        conn: &mut Conn,
        request: &Request,
    ) -> Result<Answered, ConnError> {
        let after = number_of(request, "after").and_then(SegmentNumber::new);
        let limit = number_of(request, "limit").map_or(PAGE, |limit| limit as usize).clamp(1, PAGE);
        let (numbers, next) = self.list_page(after, limit);
        let store = Arc::clone(&self.node.store);
        // A large upload that is not complete, or one that is damaged, holds nothing to compare.
        let look = move || Ok(numbers.into_iter().filter_map(|n| store.held(n).ok()).collect());
        let held: Result<Vec<Held>, Error> = self.node.store.pool().run(look).await;
        match held {
            Ok(held) => {
                let view = |held: Held| {
                    let Held { number, is_settled, contents } = held;
                    CopyView::new(number.get(), is_settled, contents.objects, contents.digest)
                };
                let copies = held.into_iter().map(view).collect();
                let page = CopiesPage {
                    node: self.node.config.id,
                    shared: self.is_shared(),
                    copies,
                    next,
                };
                self.answers.json(conn, request, 200, &page).await
            }
            Err(error) => self.answers.refuse(conn, request, error.into()).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dead_anywhere_is_dead_and_what_lacks_is_told() {
        let ours = Slots { living: vec![1, 2, 3], dead: vec![4] };
        let theirs = SlotsView { living: vec![1, 4, 5, 9], dead: vec![2, 8] };
        let expected = Difference { dead: vec![2], lacking: vec![5, 9] };
        assert_eq!(Difference::between(&ours, &theirs), expected);
    }
}
