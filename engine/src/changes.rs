//! What changed lately, for followers that ask "since when?".

use std::collections::{BTreeSet, VecDeque};

/// Changes that followers can still ask for; one that is further behind lists anew.
const CHANGES: usize = 65_536;

/// A bounded list of what changed (segments, names), counted.
#[derive(Debug)]
pub struct Changes<T> {
    /// The mark after the last change. Starts at 1: a follower that has seen nothing says 0.
    end: u64,
    recent: VecDeque<T>,
}

impl<T> Default for Changes<T> {
    fn default() -> Self {
        Self { end: 1, recent: VecDeque::new() }
    }
}

impl<T: Copy + Ord> Changes<T> {
    /// It changed, or came to be.
    pub fn note(&mut self, changed: T) {
        if self.recent.back() != Some(&changed) {
            if self.recent.len() == CHANGES {
                self.recent.pop_front();
            }
            self.recent.push_back(changed);
        }
        // Also when the entry stays: a follower that has seen it must see it again.
        self.end += 1;
    }

    /// What changed since the mark `seen`, and the mark now. `None` when that is not known any
    /// more, or never was.
    pub fn since(&self, seen: u64) -> (u64, Option<BTreeSet<T>>) {
        let behind = self.end.saturating_sub(seen);
        let forgotten = self.recent.len() == CHANGES && behind > CHANGES as u64;
        if seen == 0 || seen > self.end || forgotten {
            return (self.end, None);
        }
        let recent = self.recent.iter().rev().take(usize::try_from(behind).unwrap_or(CHANGES));
        (self.end, Some(recent.copied().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::SegmentNumber;

    fn number(number: u64) -> SegmentNumber {
        SegmentNumber::new(number).expect("fits")
    }

    #[test]
    fn a_follower_sees_every_change_after_its_mark() {
        let mut changes = Changes::default();
        let (mark, all) = changes.since(0);
        assert_eq!(all, None, "who has seen nothing lists all");
        assert_eq!(changes.since(mark).1, Some(BTreeSet::new()));
        changes.note(number(1));
        let (seen_one, changed) = changes.since(mark);
        assert_eq!(changed, Some(BTreeSet::from([number(1)])));
        changes.note(number(1));
        assert_eq!(changes.since(seen_one).1, Some(BTreeSet::from([number(1)])), "it grew again");
        changes.note(number(2));
        let seen = changes.since(mark).1.expect("known");
        assert!(seen.contains(&number(1)) && seen.contains(&number(2)));
    }

    #[test]
    fn who_is_too_far_behind_lists_anew() {
        let mut changes = Changes::default();
        let (mark, _) = changes.since(0);
        for at in 0..=CHANGES as u64 {
            changes.note(number(at));
        }
        assert_eq!(changes.since(mark).1, None);
        assert_eq!(changes.since(u64::MAX).1, None, "a mark of another life");
    }
}
