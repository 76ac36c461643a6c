//! Bytes that are not in the page cache: read past it into the shard's own buffers, and sent from there.
//!
//! A shard never waits for a disk: what is absent is read by its ring with O_DIRECT, a block at a time, the
//! next one while the last is leaving. Viewers at the same place share one read. What is asked for again is
//! brought into the page cache on purpose ([`heat`]). docs/decisions/0009 has what was tried.

mod heat;
mod pool;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use reel_engine::disk::{DIRECT_ALIGN, ShardReader};
use reel_engine::format::trailer::BLOCK_BYTES;
use reel_engine::read::{self, Unit};
use reel_engine::{Error, Located, Segment, Store};

use crate::turns::{self, Turn};
use heat::{Heat, PLACE_BYTES};
use pool::{Lent, Pool};

/// Files a shard keeps open for reads past the page cache; beyond, it begins anew.
const READERS: usize = 256;
/// Between looks for files that were removed.
const TIDY: Duration = Duration::from_secs(1);
/// Places of a shard that may be on their way into the page cache: one being read, one to go on with.
const BRINGING_IN: u32 = 2;
/// Bytes of a buffer: a block, and the rest of the pages it begins and ends in.
const BUFFER_BYTES: usize = BLOCK_BYTES as usize + 2 * DIRECT_ALIGN;
/// Buffers of a shard at the least.
const LEAST_BUFFERS: usize = 8;

/// Segment, salt and unit.
type Key = (u64, u32, u32);

/// A shard's cold reads.
pub(super) struct Cold {
    store: Arc<Store>,
    readers: RefCell<HashMap<(u64, u32), Reader>>,
    reads: RefCell<HashMap<Key, Rc<Read>>>,
    pool: Rc<Pool>,
    heat: RefCell<Heat>,
    bringing_in: Rc<Cell<u32>>,
    bytes: metrics::Counter,
    shared: metrics::Counter,
    brought_in: metrics::Counter,
}

/// A file that is open for reads past the page cache, as long as its segment is.
struct Reader {
    segment: Weak<Segment>,
    file: Rc<ShardReader>,
}

impl Reader {
    /// A file that was removed gives its space back when nobody has it open any more.
    fn is_used(&self) -> bool {
        self.segment.upgrade().is_some_and(|segment| !segment.is_retired())
    }
}

/// A block that is being read, or was.
struct Read {
    state: RefCell<State>,
    waiting: RefCell<Vec<Waker>>,
}

enum State {
    Reading,
    /// The block, and where it begins in the buffer.
    Here(Lent, usize),
    Failed(Error),
}

/// Bytes of a segment's file, unchecked.
pub(super) struct Raw {
    lent: Option<Lent>,
    before: usize,
    length: usize,
}

impl Raw {
    pub(super) fn bytes(&self) -> &[u8] {
        let bytes = self.lent.as_ref().map_or(&[][..], Lent::bytes);
        bytes.get(self.before..self.before + self.length).unwrap_or(&[])
    }
}

/// A viewer's hold on a block: its buffer is used again when the last one is dropped.
pub(super) struct Block {
    cold: Rc<Cold>,
    key: Key,
    read: Rc<Read>,
    unit: Unit,
}

impl Drop for Block {
    fn drop(&mut self) {
        // The map's and this one.
        if Rc::strong_count(&self.read) == 2 {
            self.cold.reads.borrow_mut().remove(&self.key);
        }
    }
}

impl Block {
    /// Waits until it was read and checked.
    ///
    /// # Errors
    /// [`Error::DamagedObject`], I/O errors.
    pub(super) async fn ready(&self) -> Result<(), Error> {
        poll_fn(|context| match &*self.read.state.borrow() {
            State::Reading => {
                self.read.waiting.borrow_mut().push(context.waker().clone());
                Poll::Pending
            }
            State::Here(..) => Poll::Ready(Ok(())),
            State::Failed(error) => Poll::Ready(Err(error.clone())),
        })
        .await
    }

    /// Calls `send` with the payload's bytes from `at` to `end`, which lie in it.
    pub(super) fn with<T>(&self, at: u64, end: u64, send: impl FnOnce(&[u8]) -> T) -> T {
        match &*self.read.state.borrow() {
            State::Here(lent, before) => {
                let from = before + (at - self.unit.start) as usize;
                send(&lent.bytes()[from..from + (end - at) as usize])
            }
            _ => send(&[]),
        }
    }
}

impl Cold {
    /// With buffers of `bytes` in all.
    pub(super) fn new(store: Arc<Store>, bytes: u64) -> Rc<Self> {
        let limit = (bytes as usize / BUFFER_BYTES).max(LEAST_BUFFERS);
        let cold = Rc::new(Self {
            store,
            readers: RefCell::default(),
            reads: RefCell::default(),
            pool: Rc::new(Pool::new(limit, BUFFER_BYTES)),
            heat: RefCell::new(Heat::new()),
            bringing_in: Rc::default(),
            bytes: metrics::counter!("reel_cold_read_bytes_total"),
            shared: metrics::counter!("reel_cold_reads_shared_total"),
            brought_in: metrics::counter!("reel_cold_places_brought_in_total"),
        });
        let tidied = Rc::downgrade(&cold);
        monoio::spawn(async move {
            loop {
                monoio::time::sleep(TIDY).await;
                let Some(cold) = tidied.upgrade() else { return };
                cold.readers.borrow_mut().retain(|_, reader| reader.is_used());
            }
        });
        cold
    }

    /// Whether a unit fits into a buffer.
    pub(super) fn takes(unit: &Unit) -> bool {
        unit.length <= BLOCK_BYTES
    }

    /// Whether somebody waits for a buffer: whoever cannot use theirs should give it up.
    pub(super) fn is_short(&self) -> bool {
        self.pool.is_short()
    }

    /// Reads a unit, or joins who does; waits for a buffer, not for the disk.
    pub(super) async fn read(
        self: &Rc<Self>,
        segment: &Arc<Segment>,
        slot: u16,
        located: &Located,
        unit: Unit,
        turn: &mut Turn,
    ) -> Result<Block, Error> {
        if let Some(block) = self.join(segment, unit) {
            return Ok(block);
        }
        let reader = self.reader(segment).await?;
        let lent = self.pool.take().await;
        take_turn(turn, &unit).await;
        if let Some(block) = self.join(segment, unit) {
            return Ok(block);
        }
        Ok(self.begin(reader, lent, segment, slot, located, unit))
    }

    /// [`Cold::read`] ahead of need: `None` when it would have to wait.
    pub(super) fn read_ahead(
        self: &Rc<Self>,
        segment: &Arc<Segment>,
        slot: u16,
        located: &Located,
        unit: Unit,
    ) -> Option<Block> {
        if let Some(block) = self.join(segment, unit) {
            return Some(block);
        }
        let reader = Rc::clone(&self.readers.borrow().get(&file_key(segment))?.file);
        let lent = self.pool.try_take()?;
        Some(self.begin(reader, lent, segment, slot, located, unit))
    }

    fn join(self: &Rc<Self>, segment: &Segment, unit: Unit) -> Option<Block> {
        let key = key(segment, &unit);
        let read = Rc::clone(self.reads.borrow().get(&key)?);
        self.shared.increment(1);
        Some(Block { cold: Rc::clone(self), key, read, unit })
    }

    fn begin(
        self: &Rc<Self>,
        reader: Rc<ShardReader>,
        mut lent: Lent,
        segment: &Arc<Segment>,
        slot: u16,
        located: &Located,
        unit: Unit,
    ) -> Block {
        let key = key(segment, &unit);
        let read =
            Rc::new(Read { state: RefCell::new(State::Reading), waiting: RefCell::default() });
        self.reads.borrow_mut().insert(key, Rc::clone(&read));
        self.bytes.increment(unit.length);
        let block = Block { cold: Rc::clone(self), key, read: Rc::clone(&read), unit };
        let held = Block { cold: Rc::clone(self), key, read, unit };
        let (segment, located) = (Arc::clone(segment), *located);
        // A task of its own: a viewer that goes away does not take the read from the others.
        monoio::spawn(async move {
            let offset = located.offset + unit.start;
            let (result, buffer) = reader.read(lent.take_out(), offset, unit.length).await;
            lent.put_back(buffer);
            let checked = result.and_then(|before| {
                let bytes = lent.bytes().get(before..before + unit.length as usize);
                unit.verify(&segment, slot, &located, bytes.unwrap_or(&[]))?;
                Ok(before)
            });
            held.read.state.replace(match checked {
                Ok(before) => State::Here(lent, before),
                Err(error) => State::Failed(error),
            });
            held.read.waiting.take().into_iter().for_each(Waker::wake);
        });
        block
    }

    /// Reads bytes of a segment's file (at most a block's) as they are, unchecked; waits for a buffer, not for the disk.
    pub(super) async fn read_raw(
        &self,
        segment: &Arc<Segment>,
        at: u64,
        length: u64,
    ) -> Result<Raw, Error> {
        if length == 0 {
            return Ok(Raw { lent: None, before: 0, length: 0 });
        }
        let reader = self.reader(segment).await?;
        let mut lent = self.pool.take().await;
        let (result, buffer) = reader.read(lent.take_out(), at, length).await;
        lent.put_back(buffer);
        self.bytes.increment(length);
        Ok(Raw { before: result?, lent: Some(lent), length: length as usize })
    }

    async fn reader(&self, segment: &Arc<Segment>) -> Result<Rc<ShardReader>, Error> {
        let key = file_key(segment);
        if let Some(reader) = self.readers.borrow().get(&key) {
            return Ok(Rc::clone(&reader.file));
        }
        let file = Rc::new(ShardReader::open(segment.file(), self.store.pool()).await?);
        let mut readers = self.readers.borrow_mut();
        if readers.len() >= READERS {
            readers.clear();
        }
        let reader = Reader { segment: Arc::downgrade(segment), file: Rc::clone(&file) };
        readers.insert(key, reader);
        Ok(file)
    }

    /// A request reads this byte of a payload cold: what is asked for again is brought into the page cache.
    pub(super) fn note(&self, segment: &Arc<Segment>, slot: u16, located: &Located, at: u64) {
        let place = (segment.number().get(), at / PLACE_BYTES);
        if segment.file().std().is_none() {
            // The page cache of a shared volume cannot be sent from.
            return;
        }
        if self.bringing_in.get() >= BRINGING_IN
            || !self.heat.borrow_mut().read_cold(place, Instant::now())
        {
            return;
        }
        self.bringing_in.set(self.bringing_in.get() + 1);
        self.brought_in.increment(1);
        let start = place.1 * PLACE_BYTES;
        let range = start..located.length.min(start + PLACE_BYTES);
        let (segment, located) = (Arc::clone(segment), *located);
        let bringing_in = Rc::clone(&self.bringing_in);
        let job = self.store.behind().run(move || read::bring_in(&segment, slot, &located, range));
        monoio::spawn(async move {
            if let Err(error) = job.await {
                tracing::debug!(%error, "not brought into the page cache");
            }
            bringing_in.set(bringing_in.get() - 1);
        });
    }
}

/// To begin a direct read costs the shard about half of what it costs to send the bytes.
pub(super) async fn take_turn(turn: &mut Turn, unit: &Unit) {
    turn.take(unit.length / 2, turns::COLD).await;
}

fn file_key(segment: &Segment) -> (u64, u32) {
    (segment.number().get(), segment.header().salt)
}

fn key(segment: &Segment, unit: &Unit) -> Key {
    let (number, salt) = file_key(segment);
    (number, salt, unit.index)
}
