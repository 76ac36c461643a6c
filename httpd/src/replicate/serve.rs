//! The side that is followed.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use reel_engine::follow::Portion;
use reel_engine::{Error, SegmentNumber};

use super::{Changes, DeadSlots, PAGE, SegmentView, SegmentsPage, not_here, segment_number};
use crate::conn::{Conn, ConnError};
use crate::http::request::{Method, Request, query_value};
use crate::shard::Answered;
use crate::storage::StorageShard;

/// The longest a follower may wait for news.
const MAX_WAIT: Duration = Duration::from_secs(5);

pub(super) fn number_of(request: &Request, key: &str) -> Option<u64> {
    query_value(&request.query, key)?.parse().ok()
}

impl StorageShard {
    async fn describe(&self, numbers: Vec<SegmentNumber>) -> Result<Vec<SegmentView>, Error> {
        let store = Arc::clone(&self.node.store);
        let described = self.node.store.pool().run(move || store.describe_all(numbers)).await?;
        Ok(described.into_iter().map(SegmentView::from).collect())
    }

    pub(crate) async fn segments_page(
        &self,
        conn: &mut Conn,
        request: &Request,
    ) -> Result<Answered, ConnError> {
        let after = number_of(request, "after").and_then(SegmentNumber::new);
        let numbers = self.node.store.list(after, PAGE);
        let next = (numbers.len() == PAGE).then(|| numbers.last().map(|last| last.get())).flatten();
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
        match self.describe(changed.unwrap_or_default().into_iter().collect()).await {
            Ok(segments) => {
                let body = Changes { boot: self.node.boot.clone(), mark, reset, segments };
                self.answers.json(conn, request, 200, &body).await
            }
            Err(error) => self.answers.refuse(conn, request, error.into()).await,
        }
    }

    /// `GET /-/v1/segments/{number}`, `…/dead` and `…/slots`.
    pub(crate) async fn segment_view(
        &self,
        conn: &mut Conn,
        request: &Request,
        rest: &str,
    ) -> Result<Answered, ConnError> {
        if let Some(number) = rest.strip_suffix("/slots") {
            return self.slots_view(conn, request, number).await;
        }
        let (number, dead) = match rest.strip_suffix("/dead") {
            Some(number) => (number, true),
            None => (rest, false),
        };
        let number = match segment_number(number) {
            Ok(number) => number,
            Err(problem) => return self.answers.refuse(conn, request, problem).await,
        };
        let store = Arc::clone(&self.node.store);
        let look = move || {
            if dead {
                let slots = store.dead_slots(number)?;
                return Ok(serde_json::to_value(DeadSlots { slots }));
            }
            Ok(serde_json::to_value(SegmentView::from(store.describe(number)?)))
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
