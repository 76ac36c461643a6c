//! What following needs around it: the peers, the clock and the tasks. HTTP on a shard, or a simulation.

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::id::SegmentNumber;
use crate::replica::Arrived;
use crate::store::Known;

/// Another node of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The node's id.
    pub id: u32,
    /// Whether the trackers call it offline.
    pub offline: bool,
}

/// What changed at a peer since a mark.
#[derive(Debug, Clone, Default)]
pub struct News {
    /// The life of the peer that `mark` belongs to.
    pub boot: String,
    /// What to ask with next.
    pub mark: u64,
    /// The mark asked with is too old, or of another life: list all.
    pub reset: bool,
    /// The segments as they are now.
    pub segments: Vec<Known>,
    /// Those of the changed ones that are gone, because all of their objects are dead.
    pub gone: Vec<SegmentNumber>,
}

/// Some of a peer's segments, in order.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The segments.
    pub segments: Vec<Known>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<SegmentNumber>,
}

/// How a copy leaves disks, links and processors to viewers: one large segment at a time, written in small steps; and
/// with rests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sparing {
    /// How much of its time it may work, above 0 to 1.
    pub share: f64,
}

/// What following needs around it. All of it runs on one thread.
pub trait Net: 'static {
    /// Why a peer could not be asked.
    type Error: std::error::Error + From<Error>;
    /// The answer to a pull.
    type Pulled: Pulled<Error = Self::Error>;

    /// The group's other nodes; `None` until the trackers have told.
    fn peers(&self) -> Option<Vec<Peer>>;

    /// What changed at `peer` since `mark` of its life `boot`. Answered at once when there is news, else after a second
    /// or so.
    fn news(
        &self,
        peer: u32,
        boot: &str,
        mark: u64,
    ) -> impl Future<Output = Result<News, Self::Error>>;

    /// The peer's segments behind `after`.
    fn page(
        &self,
        peer: u32,
        after: Option<SegmentNumber>,
    ) -> impl Future<Output = Result<Page, Self::Error>>;

    /// A segment as it is at the peer. `None`: it is not there.
    fn known(
        &self,
        peer: u32,
        number: SegmentNumber,
    ) -> impl Future<Output = Result<Option<Known>, Self::Error>>;

    /// Durable bytes of a segment from `from` on, and says that this node holds all before durably. `None`: it is gone
    /// there.
    fn pull(
        &self,
        peer: u32,
        known: &Known,
        from: u64,
    ) -> impl Future<Output = Result<Option<Self::Pulled>, Self::Error>>;

    /// The dead slots of a packed segment. `None`: it is gone there.
    fn dead(
        &self,
        peer: u32,
        number: SegmentNumber,
    ) -> impl Future<Output = Result<Option<Vec<u16>>, Self::Error>>;

    /// Whether the peer says that all of a segment's objects are dead, and that it has removed it; not so when it has
    /// lost its disk.
    fn is_gone(
        &self,
        peer: u32,
        number: SegmentNumber,
    ) -> impl Future<Output = Result<bool, Self::Error>>;

    /// Records have arrived, and are durable here.
    fn arrived(&self, records: &[Arrived]);

    /// A peer has begun a new life.
    fn reborn(&self, peer: u32);

    /// How a copy spares this node's and its peers' viewers; `None` when it need not.
    fn sparing(&self) -> Option<Sparing>;

    /// Waits.
    fn sleep(&self, time: Duration) -> impl Future<Output = ()>;

    /// Runs a task beside.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// The time.
    fn now(&self) -> Instant;
}

/// Bytes of a segment on their way.
pub trait Pulled {
    /// Why they broke off.
    type Error;

    /// Nothing will follow these bytes: the segment is sealed at its source, and they reach its end.
    fn is_last(&self) -> bool;

    /// No bytes: all that is durable there is here.
    fn is_empty(&self) -> bool;

    /// The next piece; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Result<Option<&[u8]>, Self::Error>>;
}
