//! A segment's own bytes, as followers pull them: from the page cache by sendfile, else past it, so that a node that
//! fills itself up neither stops its source's shards nor pushes anything out of the source's page cache.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use reel_engine::Segment;
use reel_engine::format::trailer::BLOCK_BYTES;

use super::StorageShard;
use crate::conn::{Conn, ConnError};
use crate::turns::{self, Turn};

/// Bytes whose residency is asked for at once.
const WINDOW_BYTES: u64 = 1 << 20;

impl StorageShard {
    /// Sends `range` of the segment's file.
    pub(crate) async fn send_raw(
        self: &Rc<Self>,
        conn: &mut Conn,
        segment: &Arc<Segment>,
        range: Range<u64>,
    ) -> Result<(), ConnError> {
        conn.cork(range.end - range.start)?;
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + WINDOW_BYTES);
            if segment.file().is_resident(at, end - at) {
                let file = segment.file().std().ok_or(ConnError::Closed)?;
                conn.send_file(file, at, end - at, &mut Turn::default()).await?;
            } else {
                self.send_raw_cold(conn, segment, at..end).await?;
            }
            at = end;
        }
        conn.uncork()
    }

    /// A block at a time, the next one being read while one leaves.
    async fn send_raw_cold(
        self: &Rc<Self>,
        conn: &mut Conn,
        segment: &Arc<Segment>,
        range: Range<u64>,
    ) -> Result<(), ConnError> {
        let read = |at: u64| {
            let (cold, segment) = (Rc::clone(&self.cold), Arc::clone(segment));
            let length = BLOCK_BYTES.min(range.end - at);
            monoio::spawn(async move { cold.read_raw(&segment, at, length).await })
        };
        let mut at = range.start;
        let mut next = read(at);
        while at < range.end {
            let raw = next.await.map_err(|error| {
                tracing::error!(segment = %segment.number(), %error, "a follower's pull breaks off");
                ConnError::Closed
            })?;
            let bytes = raw.bytes();
            at += bytes.len() as u64;
            next = read(at.min(range.end));
            Turn::default().take(bytes.len() as u64, turns::COLD).await;
            conn.send(bytes).await?;
        }
        Ok(())
    }
}
