//! Which cold places are worth bringing into the page cache.
//!
//! A place is a MiB of a segment. The first time it is read cold, it is only remembered; asked for again
//! while it is, it is brought in. So a scan, which asks for each place once, pushes nothing out, and a film
//! that becomes popular is hot behind its second viewer. A place that was brought in and is cold again says
//! that the cache has no room: then only every second, fourth … such place is brought in, until
//! [`RECOVER`] has passed without one.

use std::time::{Duration, Instant};

/// Bytes of a place.
pub(super) const PLACE_BYTES: u64 = 1 << 20;
/// Places remembered; each new one replaces the one of its remainder.
const PLACES: usize = 1 << 14;
/// At the most only one in so many is brought in.
const MOST_SKIPPED: u32 = 1024;
/// After this time the skipping is halved.
const RECOVER: Duration = Duration::from_secs(5);

/// So long a place may be on its way: it says nothing if it is read cold meanwhile.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

/// A place of a segment.
pub(super) type Place = (u64, u64);

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    place: Place,
    brought_in: Option<Instant>,
}

/// What was read cold lately.
#[derive(Debug)]
pub(super) struct Heat {
    seen: Vec<Seen>,
    /// One in so many is brought in.
    skip: u32,
    count: u32,
    changed: Instant,
}

impl Heat {
    pub(super) fn new() -> Self {
        Self { seen: vec![Seen::default(); PLACES], skip: 1, count: 0, changed: Instant::now() }
    }

    /// A request reads `place` cold: whether to bring it in.
    pub(super) fn read_cold(&mut self, place: Place, now: Instant) -> bool {
        let mixed = place.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ place.1.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let seen = &mut self.seen[(mixed >> 40) as usize % PLACES];
        if seen.place != place {
            *seen = Seen { place, brought_in: None };
            return false;
        }
        if now.saturating_duration_since(self.changed) > RECOVER && self.skip > 1 {
            self.skip /= 2;
            self.changed = now;
        }
        if let Some(since) = seen.brought_in {
            if now.saturating_duration_since(since) < ON_ITS_WAY {
                return false;
            }
            seen.brought_in = None;
            self.skip = (self.skip * 2).min(MOST_SKIPPED);
            self.changed = now;
        }
        self.count += 1;
        let bring_in = self.count.is_multiple_of(self.skip);
        seen.brought_in = bring_in.then_some(now);
        bring_in
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_brings_nothing_in_and_the_second_viewer_all() {
        let (mut heat, now) = (Heat::new(), Instant::now());
        for at in 0..2000 {
            assert!(!heat.read_cold((7, at), now));
        }
        let again = (0..2000).filter(|at| heat.read_cold((7, *at), now)).count();
        assert!(again > 1500, "{again}");
    }

    #[test]
    fn what_does_not_stay_is_brought_in_less_and_less_and_time_mends_that() {
        let (mut heat, now) = (Heat::new(), Instant::now());
        let brought = |heat: &mut Heat, now| {
            let places = 0..1000;
            places.filter(|at| heat.read_cold((7, *at), now)).count()
        };
        brought(&mut heat, now);
        let first = brought(&mut heat, now);
        // The cache keeps nothing: the same places are cold again and again.
        assert_eq!(brought(&mut heat, now + ON_ITS_WAY / 2), 0, "they are on their way");
        let step = ON_ITS_WAY + Duration::from_millis(1);
        let later = (1..10).map(|round| brought(&mut heat, now + step * round)).last();
        assert!(later.expect("nine") * 50 < first, "{later:?} after {first}");
        let much_later = (5..40).map(|round| brought(&mut heat, now + RECOVER * 2 * round)).max();
        assert!(much_later > later);
    }
}
