//! The side that is followed.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use reel_control::api::SlotsView;
use reel_engine::contents::Slots;
use reel_engine::follow::Portion;
use reel_engine::{Error, SegmentNumber, Store};

use super::{Changes, DeadSlots, PAGE, SegmentView, SegmentsPage};
use crate::answer::Problem;
use crate::conn::{Conn, ConnError};
use crate::http::request::{Method, Request, query_value};
use crate::shard::Answered;
use crate::storage::StorageShard;

/// The longest a follower may wait for news.
const MAX_WAIT: Duration = Duration::from_secs(5);

pub(super) fn number_of(request: &Request, key: &str) -> Option<u64> {
    query_value(&request.query, key)?.parse().ok()
}

fn segment_number(text: &str) -> Result<SegmentNumber, Problem> {
    let number = text.parse().ok().and_then(SegmentNumber::new);
    number.ok_or_else(|| Problem::new(400, "bad_request", "a segment number is decimal"))
}

/// Why a segment is not here.
fn not_here(store: &Store, number: SegmentNumber) -> Problem {
    if store.is_gone(number) {
        return Problem::new(
            410,
            "gone",
            format!("segment {number} is gone: its objects are dead"),
        );
    }
    Problem::new(404, "not_found", format!("segment {number} is not here"))
}

/// What is asked of a segment.
#[derive(Clone, Copy)]
enum Part {
    /// What it is.
    All,
    Dead,
    Slots,
}

impl StorageShard {
    async fn describe(&self, numbers: Vec<SegmentNumber>) -> Result<Vec<SegmentView>, Error> {
        let store = Arc::clone(&self.node.store);
        let described = self.node.store.pool().run(move || store.describe_all(numbers)).await?;
        Ok(described.into_iter().map(SegmentView::from).collect())
    }

    /// Segments behind `after`, and where the next page begins when there may be more.
    pub(super) fn list_page(
        &self,
        after: Option<SegmentNumber>,
        limit: usize,
    ) -> (Vec<SegmentNumber>, Option<u64>) {
        let numbers = self.node.store.list(after, limit);
        let last = numbers.last().filter(|_| numbers.len() == limit).map(|last| last.get());
        (numbers, last)
    }

    pub(crate) async fn segments_page(
        &self,
        conn: &mut Conn,
        request: &Request,
    ) -> Result<Answered, ConnError> {
        let after = number_of(request, "after").and_then(SegmentNumber::new);
        let (numbers, next) = self.list_page(after, PAGE);
        match self.describe(numbers).await {
            Ok(segments) => {
                self.answers.json(conn, request, 200, &SegmentsPage { segments, next }).await
            }
            Err(error) => self.answers.refuse(conn, request, error.into()).await,
        }
    }

    pub(crate) async fn segment_changes(
        &self,
        conn: &mut Conn,
        request: &Request,
    ) -> Result<Answered, ConnError> {
        let store = &self.node.store;
        let since = number_of(request, "since").unwrap_or(0);
        let same_life = query_value(&request.query, "boot") == Some(self.node.boot.as_str());
        let wait = number_of(request, "wait_ms")
            .map_or(Duration::ZERO, Duration::from_millis)
            .min(MAX_WAIT);
        let since = if same_life { since } else { 0 };
        let (mark, changed) = match monoio::time::timeout(wait, store.changes_beyond(since)).await {
            Ok(news) => news,
            Err(_) => store.changes_since(since),
        };
        let reset = changed.is_none();
        let changed = changed.unwrap_or_default();
        let gone = store.gone_among(&changed).into_iter().map(SegmentNumber::get).collect();
        match self.describe(changed.into_iter().collect()).await {
            Ok(segments) => {
                let body = Changes { boot: self.node.boot.clone(), mark, reset, segments, gone };
                self.answers.json(conn, request, 200, &body).await
            }
            Err(error) => self.answers.refuse(conn, request, error.into()).await,
        }
    }

    /// `GET /-/v1/segments/{number}`, `…/dead`, `…/slots` and `…/records/{slot}`.
    pub(crate) async fn segment_view(
        &self,
        conn: &mut Conn,
        request: &Request,
        rest: &str,
    ) -> Result<Answered, ConnError> {
        if let Some((number, slot)) = rest.split_once("/records/") {
            return self.segment_record(conn, request, number, slot).await;
        }
        let (number, part) = match rest.rsplit_once('/') {
            Some((number, "dead")) => (number, Part::Dead),
            Some((number, "slots")) => (number, Part::Slots),
            _ => (rest, Part::All),
        };
        let number = match segment_number(number) {
            Ok(number) => number,
            Err(problem) => return self.answers.refuse(conn, request, problem).await,
        };
        let store = Arc::clone(&self.node.store);
        let look = move || {
            Ok(match part {
                Part::Dead => serde_json::to_value(DeadSlots { slots: store.dead_slots(number)? }),
                Part::Slots => {
                    let Slots { living, dead } = store.slots_of(number)?;
                    serde_json::to_value(SlotsView { living, dead })
                }
                Part::All => serde_json::to_value(SegmentView::from(store.describe(number)?)),
            })
        };
        match self.node.store.pool().run(look).await {
            Ok(view) => {
                let view = view.map_err(std::io::Error::from)?;
                self.answers.json(conn, request, 200, &view).await
            }
            Err(Error::NoSegment(_)) => {
                self.answers.refuse(conn, request, not_here(&self.node.store, number)).await
            }
            Err(error) => self.answers.refuse(conn, request, error.into()).await,
        }
    }

    /// `GET /-/v1/segments/{number}/records/{slot}`: a living object's [`reel_engine::supply::Record`].
    async fn segment_record(
        &self,
        conn: &mut Conn,
        request: &Request,
        number: &str,
        slot: &str,
    ) -> Result<Answered, ConnError> {
        let object = segment_number(number).and_then(|number| {
            let slot = slot.parse();
            let slot = slot.map_err(|_| Problem::new(400, "bad_request", "a slot is decimal"))?;
            Ok(number.object(slot))
        });
        let object = match object {
            Ok(object) => object,
            Err(problem) => return self.answers.refuse(conn, request, problem).await,
        };
        let store = Arc::clone(&self.node.store);
        match self.node.store.pool().run(move || store.record(object)).await {
            Ok(Some(record)) => {
                let head = self.answers.head(200, request);
                let (kind, bytes) = ("application/octet-stream", record.encode());
                self.answers.answer(conn, request, head, 200, kind, &bytes).await
            }
            Ok(None) => {
                let message = format!("object {object} does not live here in a packed segment");
                self.answers.refuse(conn, request, Problem::new(404, "not_found", message)).await
            }
            Err(Error::NoSegment(number)) => {
                self.answers.refuse(conn, request, not_here(&self.node.store, number)).await
            }
            Err(error) => self.answers.refuse(conn, request, error.into()).await,
        }
    }

    /// `GET /-/v1/segments/{number}/bytes?from=F&node=N&generation=G&salt=S`: durable bytes from `from`
    /// on. `from` acknowledges all before it.
    pub(crate) async fn segment_bytes(
        self: &Rc<Self>,
        conn: &mut Conn,
        request: &Request,
        number: &str,
    ) -> Result<Answered, ConnError> {
        let number = match segment_number(number) {
            Ok(number) => number,
            Err(problem) => return self.answers.refuse(conn, request, problem).await,
        };
        let from = number_of(request, "from").unwrap_or(0);
        let segment = match self.segment(number).await {
            Ok(segment) => segment,
            Err(Error::NoSegment(_)) => {
                return self
                    .answers
                    .refuse(conn, request, not_here(&self.node.store, number))
                    .await;
            }
            Err(error) => return self.answers.refuse(conn, request, error.into()).await,
        };
        let theirs = |key| number_of(request, key).map(|value| u32::try_from(value).unwrap_or(0));
        let portion = match Portion::of(&segment, from, theirs("generation"), theirs("salt")) {
            Ok(portion) => portion,
            Err(error) => return self.answers.refuse(conn, request, error.into()).await,
        };
        if let Some(node) = number_of(request, "node").and_then(|node| u32::try_from(node).ok()) {
            self.node.acks.record(node, number, from);
        }
        let length = portion.range.end - portion.range.start;
        let mut head = self.answers.head(200, request);
        head.field("Content-Type", "application/octet-stream")
            .field("Content-Length", length)
            .field("Reel-Sealed", u8::from(portion.is_last));
        head.connection(request.keep_alive, request.http11);
        conn.queue(&head.end()).await?;
        if request.method == Method::Get && length > 0 {
            conn.flush_before_file().await?;
            self.send_raw(conn, &segment, portion.range).await?;
        }
        Ok(Answered { status: 200, close: false })
    }
}
