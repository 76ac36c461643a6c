//! The bytes of an object on this node, on their way to a client: none leaves unchecked.

use std::ops::Range;
use std::sync::Arc;

use reel_engine::{Error, Located, ObjectId, Segment, read};

use super::StorageShard;
use crate::conn::{Conn, ConnError};

/// Bytes of a large body that are checked before they are sent.
const CHECK_BYTES: u64 = 1 << 20;

/// Why bytes could not be sent from here.
pub(super) enum Here {
    /// The connection failed; nothing more can be said on it.
    Conn(ConnError),
    /// The object is damaged, and nothing was sent yet.
    Damaged(Error),
}

impl From<ConnError> for Here {
    fn from(error: ConnError) -> Self {
        Self::Conn(error)
    }
}

impl From<Error> for Here {
    fn from(error: Error) -> Self {
        Self::Damaged(error)
    }
}

/// The bytes of an object on this node.
pub(super) struct Source<'a> {
    pub(super) shard: &'a StorageShard,
    pub(super) segment: &'a Arc<Segment>,
    pub(super) located: &'a Located,
    pub(super) small: Option<&'a [u8]>,
    pub(super) object: u64,
}

impl Source<'_> {
    fn slot(&self) -> u16 {
        ObjectId::from_u64(self.object).slot()
    }

    async fn check(&self, range: Range<u64>) -> Result<(), Error> {
        read::ensure_checked(&self.shard.node.store, self.segment, self.slot(), self.located, range)
            .await
    }

    /// What can be known before the first byte: the beginning of a part is as it was uploaded.
    pub(super) async fn check_first(&self, part: &Range<u64>) -> Result<(), Error> {
        if self.small.is_some() {
            return Ok(());
        }
        self.check(part.start..part.end.min(part.start + CHECK_BYTES)).await
    }

    /// Sends a part. Every byte is checked before it leaves; where a later block proves damaged
    /// the connection breaks off rather than send it.
    pub(super) async fn send(&self, conn: &mut Conn, part: &Range<u64>) -> Result<(), ConnError> {
        if let Some(bytes) = self.small {
            return conn.queue(&bytes[part.start as usize..part.end as usize]).await;
        }
        conn.flush_before_file().await?;
        let mut at = part.start;
        while at < part.end {
            let end = part.end.min(at + CHECK_BYTES);
            if let Err(error) = self.check(at..end).await {
                self.shard.damaged.increment(1);
                tracing::error!(%error, "damaged object; the answer is broken off");
                return Err(ConnError::Closed);
            }
            let file = self.segment.file().std().ok_or(ConnError::Closed)?;
            conn.send_file(file, self.located.offset + at, end - at).await?;
            at = end;
        }
        Ok(())
    }
}
