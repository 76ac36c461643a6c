//! Segments of peers that are to be copied and are not here yet: under way, or put off because that failed or somebody
//! else copies them. Nothing is given up: a segment leaves when it is here, or gone there. Pure: the time comes in as
//! a value.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use crate::id::SegmentNumber;
use crate::store::Known;

/// Segments of a peer that may be pending; beyond, its list is asked for anew.
const PENDING: usize = 4096;

#[derive(Debug)]
struct Entry {
    known: Known,
    /// When to try again; `None` while it is under way.
    again: Option<Instant>,
}

/// What is pending, by peer.
#[derive(Debug, Default)]
pub(super) struct Pending {
    peers: HashMap<u32, BTreeMap<SegmentNumber, Entry>>,
}

impl Pending {
    /// The copy is under way.
    pub(super) fn begin(&mut self, peer: u32, known: Known) {
        self.peers.entry(peer).or_default().insert(known.number, Entry { known, again: None });
    }

    /// It is tried again at `again`. False when too many are pending: the peer's list is to be asked for anew.
    pub(super) fn put_off(&mut self, peer: u32, known: Known, again: Instant) -> bool {
        let entries = self.peers.entry(peer).or_default();
        if entries.len() >= PENDING && !entries.contains_key(&known.number) {
            return false;
        }
        entries.insert(known.number, Entry { known, again: Some(again) });
        true
    }

    /// It is here, or gone there.
    pub(super) fn done(&mut self, peer: u32, number: SegmentNumber) {
        if let Some(entries) = self.peers.get_mut(&peer) {
            entries.remove(&number);
        }
    }

    /// Those to be tried now.
    pub(super) fn due(&self, peer: u32, now: Instant) -> Vec<Known> {
        let entries = self.peers.get(&peer).into_iter().flat_map(BTreeMap::values);
        entries
            .filter(|entry| entry.again.is_some_and(|again| again <= now))
            .map(|entry| entry.known.clone())
            .collect()
    }

    /// Bytes of all of a peer's, as far as the whole segments lack.
    pub(super) fn bytes(&self, peer: u32) -> u64 {
        let entries = self.peers.get(&peer).into_iter().flat_map(BTreeMap::values);
        entries.map(|entry| entry.known.length).sum()
    }

    /// The peer is gone, or is listed anew.
    pub(super) fn forget(&mut self, peer: u32) {
        if let Some(entries) = self.peers.get_mut(&peer) {
            entries.retain(|_, entry| entry.again.is_none());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::segment_header::SegmentKind;
    use std::time::Duration;

    fn known(number: u64) -> Known {
        Known {
            number: SegmentNumber::new(number).expect("fits"),
            kind: SegmentKind::Solo,
            generation: 0,
            salt: 1,
            creator: 101,
            length: 100,
            sealed: true,
            unsettled: false,
        }
    }

    #[test]
    fn what_failed_is_tried_again_until_it_is_here() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        pending.begin(2, known(7));
        assert!(pending.due(2, now + Duration::from_secs(9)).is_empty(), "it is under way");
        assert_eq!(pending.bytes(2), 100);
        let later = now + Duration::from_secs(1);
        assert!(pending.put_off(2, known(7), later));
        assert!(pending.due(2, now).is_empty());
        assert_eq!(pending.due(2, later), [known(7)]);
        assert!(pending.due(3, later).is_empty());
        pending.done(2, known(7).number);
        assert_eq!((pending.due(2, later).len(), pending.bytes(2)), (0, 0));
    }

    #[test]
    fn the_number_is_bounded_and_that_is_said() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        for number in 1..=PENDING as u64 {
            assert!(pending.put_off(2, known(number), now));
        }
        assert!(!pending.put_off(2, known(PENDING as u64 + 1), now));
        assert!(pending.put_off(2, known(1), now), "it is among them");
        pending.forget(2);
        assert_eq!(pending.bytes(2), 0);
    }
}
