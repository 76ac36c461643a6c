//! The side that is followed.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::id::SegmentNumber;
use crate::segment::Segment;
use crate::store::{Known, Store};

/// Bytes of one pull.
const PULL_BYTES: u64 = 64 << 20;

/// What one pull gets of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portion {
    /// The place in the segment's file.
    pub range: Range<u64>,
    /// The segment is sealed, and this reaches its end.
    pub is_last: bool,
}

impl Portion {
    /// The durable bytes of `segment` from `from` on, a bounded number. `generation` and `salt`: of the writing that the
    /// puller has begun to copy, when it knows.
    ///
    /// # Errors
    /// [`Error::OtherGeneration`]: it was compacted since, so the offsets are others.
    pub fn of(
        segment: &Segment,
        from: u64,
        generation: Option<u32>,
        salt: Option<u32>,
    ) -> Result<Self> {
        let header = segment.header();
        let same = |theirs: Option<u32>, ours: u32| theirs.is_none_or(|theirs| theirs == ours);
        if !same(generation, header.generation) || !same(salt, header.salt) {
            return Err(Error::OtherGeneration(segment.number()));
        }
        // Asked in this order: what is sealed grows no more.
        let sealed = segment.is_sealed();
        let end = segment.durable();
        let until = end.min(from.saturating_add(PULL_BYTES)).max(from);
        Ok(Self { range: from..until, is_last: sealed && until >= end })
    }
}

impl Store {
    /// [`Store::describe`] of several; those that are gone, and large uploads that are not complete, are left out.
    /// Blocking.
    pub fn describe_all(
        &self,
        numbers: impl IntoIterator<Item = SegmentNumber>,
    ) -> Result<Vec<Known>> {
        let mut all = Vec::new();
        for number in numbers {
            match self.describe(number) {
                Ok(known) => all.push(known),
                Err(Error::NoSegment(_) | Error::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Waits for what changed since the mark `since` (0 for all): the mark to ask with next, and the segments, `None`
    /// when the mark is too old: list all. Cancel-safe; [`Store::changes_since`] does not wait.
    pub async fn changes_beyond(&self, since: u64) -> (u64, Option<BTreeSet<SegmentNumber>>) {
        loop {
            let seen = self.grown().count();
            let (mark, changed) = self.changes_since(since);
            if changed.as_ref().is_none_or(|changed| !changed.is_empty()) {
                return (mark, changed);
            }
            self.grown().beyond(seen).await;
        }
    }
}
