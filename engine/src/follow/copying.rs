//! Segments that are being copied: no two peers give the same one at once, pushed or pulled.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::id::SegmentNumber;

/// Shared by the shards.
#[derive(Debug, Clone, Default)]
pub struct Copying {
    numbers: Arc<Mutex<HashSet<SegmentNumber>>>,
}

/// The right to copy a segment, until it is dropped.
#[derive(Debug)]
pub struct Claim {
    copying: Copying,
    number: SegmentNumber,
}

impl Copying {
    /// `None` when somebody copies it already.
    pub fn claim(&self, number: SegmentNumber) -> Option<Claim> {
        let is_first = self.numbers.lock().insert(number);
        is_first.then(|| Claim { copying: self.clone(), number })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.copying.numbers.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_copied_once_at_a_time() {
        let (copying, number) = (Copying::default(), SegmentNumber::new(7).expect("fits"));
        let claim = copying.claim(number).expect("free");
        assert!(copying.claim(number).is_none());
        drop(claim);
        assert!(copying.claim(number).is_some());
    }
}
