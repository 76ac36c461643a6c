//! The clock that processes can compare.

use rustix::time::{ClockId, clock_gettime};

/// Seconds of CLOCK_MONOTONIC.
pub(crate) fn now() -> f64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
