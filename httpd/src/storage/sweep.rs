//! The sweep: segments and catalog are compared, both ways.
//!
//! An object that no row names (it lost its name, and its tombstone was lost in a crash; or its upload
//! failed half-way) is buried after a grace time. A row whose object is not here is reported, and asked
//! of the peers.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reel_control::catalog::{CatalogError, Row};
use reel_engine::format::record::{RecordHead, RecordKind};
use reel_engine::{Error, ObjectId, SegmentNumber};

use super::StorageShard;
use super::get::Found;
use super::offer_of;
use super::put::{stamp_of, version_of};

/// Records, or rows, compared at a time.
const BATCH: usize = 128;
/// Segments listed at a time.
const PAGE: usize = 256;
/// Between tries of a catalog that is away.
const RETRY: Duration = Duration::from_secs(5);
/// When of so many objects in a segment ...
const GUARD_FROM: usize = 64;
/// ... more than this percentage have no row at all, the catalog has lost rows, not the objects
/// their names: nothing is buried.
const GUARD_PERCENT: usize = 50;

/// What the catalog says of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A row names it.
    Named,
    /// Its record is newer than the row. In a settled segment nobody will offer it any more: its node lost its disk before
    /// the row was committed, or the catalog is an older one.
    Newer,
    /// The name is another object's by now, or was deleted.
    Lost,
    /// There is no row of that name at all.
    NoRow,
}

/// Judges a living object by the row of its name.
pub fn judge(head: &RecordHead, object: ObjectId, row: Option<&Row>) -> Verdict {
    match row {
        None => Verdict::NoRow,
        Some(row) if row.object == object.as_u64() => Verdict::Named,
        Some(row) if row.stamp > stamp_of(head.version) => Verdict::Lost,
        Some(_) => Verdict::Newer,
    }
}

/// What a sweep found.
#[derive(Debug, Default)]
struct Swept {
    objects: usize,
    buried: usize,
    rows: usize,
    missing: usize,
}

enum Broken {
    Catalog(CatalogError),
    Engine(Error),
}

impl From<CatalogError> for Broken {
    fn from(error: CatalogError) -> Self {
        Self::Catalog(error)
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

/// Sweeps again and again, for ever.
pub(crate) async fn run_sweeps(shard: Rc<StorageShard>) {
    let every = shard.node.config.upkeep.sweep_every.0;
    loop {
        monoio::time::sleep(every).await;
        let (started, mut swept) = (Instant::now(), Swept::default());
        shard.sweep_segments(&mut swept).await;
        shard.sweep_rows(&mut swept).await;
        metrics::counter!("reel_sweep_buried_total").increment(swept.buried as u64);
        metrics::gauge!("reel_sweep_missing_objects").set(swept.missing as f64);
        tracing::info!(
            objects = swept.objects,
            buried = swept.buried,
            rows = swept.rows,
            missing = swept.missing,
            milliseconds = started.elapsed().as_millis() as u64,
            "sweep done"
        );
    }
}

impl StorageShard {
    /// Leaves disk and catalog to others, as the share of upkeep asks.
    pub(crate) async fn rest(&self, took: Duration) {
        let share = f64::from(self.node.config.upkeep.share.clamp(1, 100)) / 100.0;
        monoio::time::sleep(took.mul_f64(1.0 / share - 1.0).min(Duration::from_secs(1))).await;
    }

    async fn sweep_segments(self: &Rc<Self>, swept: &mut Swept) {
        let mut after = None;
        loop {
            let page = self.node.store.list(after, PAGE);
            let Some(last) = page.last() else { return };
            after = Some(*last);
            for number in page {
                while let Err(broken) = self.sweep_segment(number, swept).await {
                    match broken {
                        Broken::Catalog(error) => {
                            tracing::debug!(%error, "sweep waits for the catalog");
                            monoio::time::sleep(RETRY).await;
                        }
                        Broken::Engine(error) => {
                            tracing::warn!(segment = %number, %error, "segment not swept");
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Buries what lost its name in one segment of this node's own making; its peers get the
    /// tombstones.
    async fn sweep_segment(
        self: &Rc<Self>,
        number: SegmentNumber,
        swept: &mut Swept,
    ) -> Result<(), Broken> {
        let segment = match self.node.store.segment(number).await {
            Ok(segment) => segment,
            Err(Error::NoSegment(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let own = segment.header().creator == self.node.config.id;
        if !own || !segment.is_sealed() || segment.unsettled() > 0 {
            return Ok(());
        }
        let grace = self.node.config.upkeep.orphan_grace.0.as_millis() as u64;
        let slots = segment.slots();
        let (mut living, mut nameless) = (0, 0);
        let mut orphans: Vec<(ObjectId, RecordHead, Option<Row>)> = Vec::new();
        let mut newer: Vec<(ObjectId, RecordHead)> = Vec::new();
        for from in (0..slots).step_by(BATCH) {
            let began = Instant::now();
            let reader = Arc::clone(&segment);
            let heads = self
                .node
                .store
                .pool()
                .run(move || {
                    let slots = from..slots.min(from + BATCH);
                    Ok(slots.filter_map(|slot| reader.read_head(slot as u16).ok()?).collect())
                })
                .await?;
            let heads: Vec<RecordHead> = heads;
            let objects: Vec<_> =
                heads.into_iter().filter(|head| head.kind == RecordKind::Object).collect();
            let names = objects.iter().map(|head| (head.user.clone(), head.name.clone())).collect();
            let rows = self.node.catalog.rows_of(names).await?;
            living += objects.len();
            let now = self.node.store.clock().now_ms();
            for (head, row) in objects.into_iter().zip(rows) {
                let object = number.object(head.slot);
                let verdict = judge(&head, object, row.as_ref());
                nameless += usize::from(verdict == Verdict::NoRow);
                if head.modified_ms.saturating_add(grace) >= now {
                    continue;
                }
                match verdict {
                    Verdict::Named => {}
                    Verdict::Newer => newer.push((object, head)),
                    Verdict::Lost | Verdict::NoRow => orphans.push((object, head, row)),
                }
            }
            self.rest(began.elapsed()).await;
        }
        swept.objects += living;
        for (object, head) in newer {
            tracing::info!(%object, user = head.user, name = head.name, "newer than its row: offered to the catalog");
            if let Some(write) = offer_of(&head, object.as_u64(), self.node.config.group) {
                self.apply_until_known(write, object).await;
            }
        }
        if living >= GUARD_FROM && nameless * 100 > living * GUARD_PERCENT {
            tracing::error!(
                segment = %number, objects = living, without_row = nameless,
                "the catalog has no rows for most of a segment: nothing is buried (see reel rebuild-catalog)"
            );
            return Ok(());
        }
        swept.buried += orphans.len();
        for (object, head, row) in orphans {
            tracing::info!(%object, user = head.user, name = head.name, "no row names it: buried");
            match row {
                Some(row) => {
                    let by = (!row.is_mark()).then_some(row.object);
                    let names = (head.user.as_str(), head.name.as_str());
                    self.bury_loser(object, names, (version_of(row.stamp), by));
                }
                None => self.bury(object, &head.user, &head.name),
            }
        }
        Ok(())
    }

    /// Looks for rows of this group whose object is not here.
    async fn sweep_rows(self: &Rc<Self>, swept: &mut Swept) {
        let mut after = (String::new(), String::new());
        loop {
            let began = Instant::now();
            let rows = match self.node.catalog.rows(after.clone(), BATCH as u32).await {
                Ok(rows) => rows,
                Err(_) => {
                    monoio::time::sleep(RETRY).await;
                    continue;
                }
            };
            let Some(last) = rows.last() else { return };
            after = (last.user.clone(), last.name.clone());
            for row in rows {
                if row.is_mark() || row.group != self.node.config.group {
                    continue;
                }
                swept.rows += 1;
                let object = ObjectId::from_u64(row.object);
                if !matches!(self.locate(object).await, Ok(Found::Elsewhere(_))) {
                    continue;
                }
                // Perhaps it was replaced while the page was looked through.
                let again = self.node.catalog.lookup(&row.user, &row.name).await;
                if !matches!(again, Ok(Some(again)) if again.object == row.object) {
                    continue;
                }
                swept.missing += 1;
                let peer = self.peer_with(object).await;
                tracing::error!(
                    user = row.user, name = row.name, %object, path = row.path, at_peer = ?peer,
                    "a row names an object that is not here"
                );
            }
            self.rest(began.elapsed()).await;
        }
    }

    /// A peer that has an object.
    async fn peer_with(&self, object: ObjectId) -> Option<std::net::SocketAddr> {
        for address in self.peer_addresses() {
            let head = format!("HEAD /-/v1/objects/{object} HTTP/1.1\r\nHost: {address}\r\n\r\n");
            if let Ok(response) = self.upstreams.request(address, head.as_bytes(), &[], true).await
            {
                let found = response.status == 200;
                self.upstreams.give_back(response);
                if found {
                    return Some(address);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use reel_control::catalog::Stamp;
    use reel_engine::Version;
    use reel_engine::format::record::Layout;

    use super::*;

    fn head(hlc: u64) -> RecordHead {
        RecordHead {
            kind: RecordKind::Object,
            layout: Layout::Whole,
            slot: 3,
            head_len: 80,
            segment: SegmentNumber::new(9).expect("fits"),
            generation: 0,
            payload_len: 1,
            payload_crc: 1,
            version: Version { hlc, node: 1 },
            target: None,
            modified_ms: 0,
            user: "u".into(),
            name: "f".into(),
            content_type: String::new(),
        }
    }

    fn row(hlc: u64, object: u64) -> Row {
        let mut row = Row::mark("u".into(), "f".into(), Stamp { hlc, node: 1 });
        row.object = object;
        row
    }

    #[test]
    fn only_what_lost_to_a_newer_row_has_lost_its_name() {
        let object = SegmentNumber::new(9).expect("fits").object(3);
        assert_eq!(judge(&head(5), object, None), Verdict::NoRow);
        assert_eq!(judge(&head(5), object, Some(&row(5, object.as_u64()))), Verdict::Named);
        assert_eq!(judge(&head(5), object, Some(&row(7, 1))), Verdict::Lost);
        assert_eq!(judge(&head(5), object, Some(&row(7, 0))), Verdict::Lost, "deleted");
        assert_eq!(judge(&head(5), object, Some(&row(4, 1))), Verdict::Newer, "not offered yet");
    }
}
