//! Keeping a group equal: every node follows its peers' segments by pulling what it lacks, over
//! HTTP, as a reader would.
//!
//! Large uploads are pushed while they come in ([`push`]). The next pull's offset is the acknowledgement. A node that was away, or is new, catches up the
//! same way. Following a peer's records is also what keeps the shards' names true.
//!
//! Where a volume keeps the copies, nodes only tell one another what changed and what is dead ([`shared`]).

mod compare;
mod pull;
mod push;
mod serve;
mod shared;

use reel_engine::format::segment_header::SegmentKind;
use reel_engine::{Known, SegmentNumber};
use serde::{Deserialize, Serialize};

pub(crate) use pull::{HOLD_WAIT, HoldQuestion, ask_holders, run_followers};
pub(crate) use push::Push;
pub(crate) use shared::run_shared;

/// Segments of one page.
const PAGE: usize = 500;

/// A segment as nodes tell one another.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct SegmentView {
    number: u64,
    solo: bool,
    generation: u32,
    #[serde(default)]
    salt: u32,
    creator: u32,
    length: u64,
    sealed: bool,
    /// Its node waits to hear who holds it.
    #[serde(default)]
    unsettled: bool,
}

impl From<Known> for SegmentView {
    fn from(known: Known) -> Self {
        Self {
            number: known.number.get(),
            solo: known.kind == SegmentKind::Solo,
            generation: known.generation,
            salt: known.salt,
            creator: known.creator,
            length: known.length,
            sealed: known.sealed,
            unsettled: known.unsettled,
        }
    }
}

impl SegmentView {
    fn known(&self) -> Option<Known> {
        Some(Known {
            number: SegmentNumber::new(self.number)?,
            kind: if self.solo { SegmentKind::Solo } else { SegmentKind::Packed },
            generation: self.generation,
            salt: self.salt,
            creator: self.creator,
            length: self.length,
            sealed: self.sealed,
            unsettled: self.unsettled,
        })
    }
}

/// `GET /-/v1/segments?after=N`: all segments, in pages.
#[derive(Debug, Serialize, Deserialize)]
struct SegmentsPage {
    segments: Vec<SegmentView>,
    next: Option<u64>,
}

/// `GET /-/v1/segments/changes?since=M&boot=B&wait_ms=W`: what changed since the mark.
#[derive(Debug, Serialize, Deserialize)]
struct Changes {
    boot: String,
    mark: u64,
    /// The mark is too old, or of another life of the node: list all.
    reset: bool,
    segments: Vec<SegmentView>,
    /// Numbers of those that are gone. Absent in what older nodes say.
    #[serde(default)]
    gone: Vec<u64>,
}

/// `GET /-/v1/segments/{number}/dead`: the slots whose objects are dead.
#[derive(Debug, Serialize, Deserialize)]
struct DeadSlots {
    slots: Vec<u16>,
}
