//! The side that is followed.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reel_engine::{Error, SegmentNumber};

use super::{Changes, PAGE, SegmentView, SegmentsPage};
use crate::answer::Problem;
use crate::conn::{Conn, ConnError};
use crate::http::request::{Method, Request, query_value};
use crate::shard::Answered;
use crate::storage::StorageShard;

/// The longest a follower may wait for news.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// Bytes of one pull.
const PULL_BYTES: u64 = 64 << 20;

pub(super) fn number_of(request: &Request, key: &str) -> Option<u64> {
    query_value(&request.query, key)?.parse().ok()
}

impl StorageShard {
    async fn describe(&self, numbers: Vec<SegmentNumber>) -> Result<Vec<SegmentView>, Error> {
        let store = Arc::clone(&self.node.store);
        self.node
            .store
            .pool()
            .run(move || {
                let mut views = Vec::with_capacity(numbers.len());
                for number in numbers {
                    match store.describe(number) {
                        Ok(known) => views.push(known.into()),
                        // Deleted meanwhile, or a large upload that is not complete.
                        Err(Error::NoSegment(_) | Error::Damaged { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(views)
            })
            .await
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
        let deadline = Instant::now() + wait;
        let (mark, changed) = loop {
            let seen = store.grown().count();
            let (mark, changed) = store.changes_since(if same_life { since } else { 0 });
            let news = changed.as_ref().is_none_or(|changed| !changed.is_empty());
            let left = deadline.saturating_duration_since(Instant::now());
            if news
                || left.is_zero()
                || monoio::time::timeout(left, store.grown().beyond(seen)).await.is_err()
            {
                break (mark, changed);
            }
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

    /// `GET /-/v1/segments/{number}/bytes?from=F&node=N&generation=G&salt=S`: durable bytes from `from`
    /// on. `from` acknowledges all before it.
    pub(crate) async fn segment_bytes(
        self: &Rc<Self>,
        conn: &mut Conn,
        request: &Request,
        number: &str,
    ) -> Result<Answered, ConnError> {
        let Some(number) = number.parse().ok().and_then(SegmentNumber::new) else {
            return self
                .answers
                .refuse(
                    conn,
                    request,
                    Problem::new(400, "bad_request", "a segment number is decimal"),
                )
                .await;
        };
        let from = number_of(request, "from").unwrap_or(0);
        let segment = match self.segment(number).await {
            Ok(segment) => segment,
            Err(Error::NoSegment(_)) => {
                return self
                    .answers
                    .refuse(
                        conn,
                        request,
                        Problem::new(404, "not_found", format!("segment {number} is not here")),
                    )
                    .await;
            }
            Err(error) => return self.answers.refuse(conn, request, error.into()).await,
        };
        let header = segment.header();
        let same =
            |key, ours| number_of(request, key).is_none_or(|theirs| theirs == u64::from(ours));
        if !same("generation", header.generation) || !same("salt", header.salt) {
            let error = Error::OtherGeneration(segment.number());
            return self.answers.refuse(conn, request, error.into()).await;
        }
        if let Some(node) = number_of(request, "node").and_then(|node| u32::try_from(node).ok()) {
            self.node.acks.record(node, number, from);
        }
        let sealed = segment.is_sealed();
        let end = segment.durable();
        let length = end.saturating_sub(from).min(PULL_BYTES);
        let mut head = self.answers.head(200, request);
        head.field("Content-Type", "application/octet-stream")
            .field("Content-Length", length)
            .field("Reel-Sealed", u8::from(sealed && from + length >= end));
        head.connection(request.keep_alive, request.http11);
        conn.queue(&head.end()).await?;
        if request.method == Method::Get && length > 0 {
            conn.flush_before_file().await?;
            self.send_raw(conn, &segment, from..from + length).await?;
        }
        Ok(Answered { status: 200, close: false })
    }
}
