//! The segments that are open: a bounded cache of file handles and mapped tables.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::id::SegmentNumber;
use crate::segment::Segment;

/// Open segments. What must not be closed (active, or with records to confirm) stays; of the rest,
/// those that were asked for since the cache last came by stay longest (second chance).
#[derive(Debug)]
pub(crate) struct Handles {
    open: RwLock<HashMap<SegmentNumber, Arc<Segment>>>,
    /// The order in which they are looked at when room is needed.
    round: Mutex<VecDeque<SegmentNumber>>,
    bound: usize,
}

impl Handles {
    /// At most `bound` segments that could be closed.
    pub(crate) fn new(bound: usize) -> Self {
        Self { open: RwLock::default(), round: Mutex::default(), bound: bound.max(1) }
    }

    /// An open segment: one lock, no system call.
    #[inline]
    pub(crate) fn get(&self, number: SegmentNumber) -> Option<Arc<Segment>> {
        let open = self.open.read();
        let segment = open.get(&number)?;
        segment.touch(false);
        Some(Arc::clone(segment))
    }

    /// [`Handles::get`] without taking the segment along.
    #[inline]
    pub(crate) fn with<T>(
        &self,
        number: SegmentNumber,
        use_it: impl FnOnce(&Segment) -> T,
    ) -> Option<T> {
        let open = self.open.read();
        let segment = open.get(&number)?;
        segment.touch(false);
        Some(use_it(segment))
    }

    /// Every open segment's.
    pub(crate) fn numbers(&self) -> Vec<SegmentNumber> {
        self.open.read().keys().copied().collect()
    }

    /// Adds a segment unless its number is there; gives the one that is there now.
    pub(crate) fn add(&self, segment: Segment) -> Arc<Segment> {
        let number = segment.number();
        let segment = {
            let mut open = self.open.write();
            if let Some(there) = open.get(&number) {
                return Arc::clone(there);
            }
            let segment = Arc::new(segment);
            open.insert(number, Arc::clone(&segment));
            segment
        };
        self.round.lock().push_back(number);
        self.make_room();
        segment
    }

    /// Puts a segment in the place of the one with its number, which is retired.
    pub(crate) fn replace(&self, segment: Arc<Segment>) {
        let number = segment.number();
        match self.open.write().insert(number, segment) {
            Some(old) => old.retire(),
            None => self.round.lock().push_back(number),
        }
        self.make_room();
    }

    /// Takes a segment out: caches should forget it.
    pub(crate) fn remove(&self, number: SegmentNumber) -> Option<Arc<Segment>> {
        let removed = self.open.write().remove(&number)?;
        removed.retire();
        Some(removed)
    }

    fn make_room(&self) {
        let mut round = self.round.lock();
        // Twice around at most: once to take away the second chances, once to close.
        let mut looks = round.len() * 2;
        while round.len() > self.bound && looks > 0 {
            looks -= 1;
            let Some(number) = round.pop_front() else { return };
            let mut open = self.open.write();
            match open.get(&number) {
                None => {}
                Some(segment) if !segment.may_be_closed() || segment.touch(true) => {
                    round.push_back(number);
                }
                Some(_) => {
                    // Whoever holds on to it asks again: only one opening of a segment is current.
                    open.remove(&number).inspect(|segment| segment.retire());
                }
            }
        }
    }
}
