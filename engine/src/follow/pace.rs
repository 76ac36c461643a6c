//! Rests of a copy, which leave disks, links and processors to viewers.

use std::time::{Duration, Instant};

use super::{Net, Sparing};

/// The longest rest.
const LONGEST_REST: Duration = Duration::from_millis(500);

/// How long a copy has worked since its last rest: all of it counts, the waits for the peer and for the disk too, so that
/// the share holds on slow disks and fast ones.
pub(super) struct Pace {
    since: Instant,
}

impl Pace {
    pub(super) fn begin(net: &impl Net) -> Self {
        Self { since: net.now() }
    }

    /// Rests for so long that work was [`super::Sparing::share`] of the time.
    pub(super) async fn rest(&mut self, net: &impl Net) {
        if let Some(Sparing { share }) = net.sparing().filter(|sparing| sparing.share < 1.0) {
            let worked = net.now().saturating_duration_since(self.since);
            net.sleep(worked.mul_f64(1.0 / share - 1.0).min(LONGEST_REST)).await;
        }
        self.since = net.now();
    }
}
