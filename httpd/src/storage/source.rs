//! The bytes of an object on this node, on their way to a client: none leaves unchecked.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reel_engine::read::Unit;
use reel_engine::{Error, Located, ObjectId, Segment, read};

use super::StorageShard;
use super::cold::{self, Block, Cold};
use super::patience::in_time;
use crate::conn::{Conn, ConnError};
use crate::turns::{self, Turn};

/// Bytes of a large body that are looked at before they are sent.
const WINDOW_BYTES: u64 = 1 << 20;
/// Bytes of a cold block that are sent at a time.
const COLD_PORTION: u64 = 128 * 1024;
/// How long a window that was found in the page cache is taken to be there.
const RESIDENT_FOR: Duration = Duration::from_millis(100);
/// Windows whose residency is remembered.
const WINDOWS: usize = 1024;

/// Windows of segment files that were in the page cache a moment ago: asking costs a system call.
pub(super) struct Residency(RefCell<Vec<Option<(u64, u64, Instant)>>>);

impl Default for Residency {
    fn default() -> Self {
        Self(RefCell::new(vec![None; WINDOWS]))
    }
}

impl Residency {
    fn holds(&self, segment: &Segment, offset: u64, length: u64, now: Instant) -> bool {
        let number = segment.number().get();
        // A salt's worth of mixing is not needed: a replaced segment's pages are asked for again soon enough.
        let place = number.wrapping_mul(31).wrapping_add(offset / 4096) as usize % WINDOWS;
        let mut windows = self.0.borrow_mut();
        if let Some((known, end, asked)) = windows[place]
            && known == number
            && end == offset + length
            && now.saturating_duration_since(asked) < RESIDENT_FOR
        {
            return true;
        }
        let resident = segment.file().is_resident(offset, length);
        windows[place] = resident.then_some((number, offset + length, now));
        resident
    }
}

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

/// What is known of a part before its first byte: its place among those that wait for turns, and its first block, if that
/// was read past the page cache.
#[derive(Default)]
pub(super) struct First {
    block: Option<Block>,
    turn: Turn,
}

impl First {
    /// Whether it is in the page cache.
    pub(super) fn is_resident(&self) -> bool {
        self.block.is_none()
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

    fn unit(&self, at: u64) -> Unit {
        Unit::at(self.segment, self.slot(), self.located, at)
    }

    fn is_resident(&self, range: &Range<u64>) -> bool {
        self.was_resident(range, Instant::now())
    }

    /// Whether a unit is to be read past the page cache. One of which at least half lies in it is in use, and some of it
    /// was taken out: that is brought in again rather than read past the cache by each of its readers (decisions/0026).
    fn is_cold(&self, unit: &Unit) -> bool {
        let offset = self.located.offset + unit.start;
        let length = unit.end() - unit.start;
        Cold::takes(unit) && !self.segment.file().is_mostly_resident(offset, length)
    }

    fn was_resident(&self, range: &Range<u64>, now: Instant) -> bool {
        let offset = self.located.offset + range.start;
        self.shard.residency.holds(self.segment, offset, range.end - range.start, now)
    }

    /// Whether a range was checked and is in the page cache: it may be sent as it lies.
    pub(super) fn is_at_hand(&self, range: &Range<u64>, now: Instant) -> bool {
        read::is_checked(self.segment, self.slot(), self.located, range)
            && self.was_resident(range, now)
    }

    /// Checks what a range holds on a disk thread, and brings what is absent into the page cache: what was
    /// checked once may have left it since, and sendfile would wait for the disk.
    async fn check(&self, range: Range<u64>) -> Result<(), Error> {
        let store = &self.shard.node.store;
        if self.is_resident(&range) {
            let check = read::ensure_checked(store, self.segment, self.slot(), self.located, range);
            return in_time(check).await;
        }
        let (segment, slot, located) = (Arc::clone(self.segment), self.slot(), *self.located);
        in_time(store.pool().run(move || read::bring_in(&segment, slot, &located, range))).await
    }

    /// Begins to read a unit past the page cache, when that is how its bytes are to be had.
    async fn cold(&self, range: &Range<u64>, turn: &mut Turn) -> Result<Option<Block>, Error> {
        let unit = self.unit(range.start);
        if !self.is_cold(&unit) {
            return Ok(None);
        }
        self.shard.cold.read(self.segment, self.slot(), self.located, unit, turn).await.map(Some)
    }

    /// What can be known before the first byte: the beginning of a part is as it was uploaded. A block that
    /// was read for that is to be handed to [`Source::send`].
    pub(super) async fn check_first(
        &self,
        part: &Range<u64>,
        mut turn: Turn,
    ) -> Result<First, Error> {
        let first = part.start..part.end.min(part.start + WINDOW_BYTES);
        if self.small.is_some() || self.is_at_hand(&first, Instant::now()) {
            return Ok(First { block: None, turn });
        }
        let block = self.cold(part, &mut turn).await?;
        if let Some(block) = &block {
            in_time(block.ready()).await?;
        } else {
            let unit = self.unit(part.start);
            self.check(part.start..part.end.min(unit.end())).await?;
        }
        Ok(First { block, turn })
    }

    /// Sends a part. Every byte is checked before it leaves; where a later block proves damaged
    /// the connection breaks off rather than send it.
    pub(super) async fn send(
        &self,
        conn: &mut Conn,
        part: &Range<u64>,
        first: First,
    ) -> Result<(), ConnError> {
        if let Some(bytes) = self.small {
            return conn.queue(&bytes[part.start as usize..part.end as usize]).await;
        }
        conn.cork(part.end - part.start)?;
        conn.flush_before_file().await?;
        let sent = self.send_large(conn, part, first).await;
        sent.map_err(|error| match error {
            Here::Conn(error) => error,
            Here::Damaged(error) => {
                self.shard.note_damaged(&error);
                tracing::error!(%error, "damaged object; the answer is broken off");
                ConnError::Closed
            }
        })?;
        conn.uncork()
    }

    async fn send_large(
        &self,
        conn: &mut Conn,
        part: &Range<u64>,
        First { block: mut next, mut turn }: First,
    ) -> Result<(), Here> {
        let mut at = part.start;
        let mut noted = u64::MAX;
        while at < part.end {
            if next.is_none() {
                let window = at..part.end.min(at + WINDOW_BYTES);
                if self.is_at_hand(&window, Instant::now()) {
                    self.send_resident(conn, &window, &mut turn).await?;
                    at = window.end;
                    continue;
                }
            }
            let unit = self.unit(at);
            let end = part.end.min(unit.end());
            let block = match next.take() {
                Some(block) => Some(block),
                None => self.cold(&(at..end), &mut turn).await?,
            };
            let Some(block) = block else {
                self.check(at..end).await?;
                self.send_resident(conn, &(at..end), &mut turn).await?;
                at = end;
                continue;
            };
            in_time(block.ready()).await?;
            if noted != at / WINDOW_BYTES {
                noted = at / WINDOW_BYTES;
                self.shard.cold.note(self.segment, self.slot(), self.located, at);
            }
            // The next block is read while this one leaves.
            if end < part.end {
                next = self.ahead(end, &mut turn).await;
            }
            at = self.send_block(conn, &block, at..end, &mut turn).await?;
            if at < end {
                // Others need the buffers; this one's reader is slow.
                drop((block, next.take()));
                conn.writable().await?;
            }
        }
        Ok(())
    }

    async fn ahead(&self, at: u64, turn: &mut Turn) -> Option<Block> {
        let unit = self.unit(at);
        if !self.is_cold(&unit) {
            return None;
        }
        cold::take_turn(turn, &unit).await;
        self.shard.cold.read_ahead(self.segment, self.slot(), self.located, unit)
    }

    async fn send_resident(
        &self,
        conn: &mut Conn,
        range: &Range<u64>,
        turn: &mut Turn,
    ) -> Result<(), ConnError> {
        let file = self.segment.file().std().ok_or(ConnError::Closed)?;
        let offset = self.located.offset + range.start;
        conn.send_file(file, offset, range.end - range.start, turn).await
    }

    /// Sends from a block; returns where it stopped, which is before the end only when the client is slow
    /// and buffers are short.
    async fn send_block(
        &self,
        conn: &mut Conn,
        block: &Block,
        range: Range<u64>,
        turn: &mut Turn,
    ) -> Result<u64, ConnError> {
        let mut at = range.start;
        loop {
            let end = range.end.min(at + COLD_PORTION);
            turn.take(end - at, turns::COLD).await;
            let sent = block.with(at, end, |bytes| conn.try_send(bytes))? as u64;
            turn.sent(end - at, end - at - sent, turns::COLD);
            at += sent;
            if at == range.end {
                return Ok(at);
            }
            if at < end {
                if self.shard.cold.is_short() {
                    return Ok(at);
                }
                conn.writable().await?;
            }
        }
    }
}
