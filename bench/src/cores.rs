//! How far two processor cores are from one another.
//!
//! Cores that share a cache pass a line to and fro in some 50 ns; cores that do not take several times that. In a
//! virtual machine its host decides, and changes its mind: a server on one core and its load on the other then
//! cost a quarter more from one second to the next. A measurement of two processes has to know which it was.

use std::io::{Error, Result};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::cluster::say;

/// Round trips of one sample.
const TRIPS: u32 = 2_000;
/// Samples; the median counts, as a core may be taken away in the midst of one.
const SAMPLES: usize = 15;
/// Looks at the line in vain before its core is offered to others.
const LOOKS: u32 = 100_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One core
    #[arg(long, default_value_t = 0)]
    one: usize,
    /// The other one
    #[arg(long, default_value_t = 1)]
    other: usize,
}

/// Prints the nanoseconds of a cache line's way to the other core and back.
pub(crate) fn run(args: &Args) -> Result<()> {
    say(format_args!("{:.0}", round_trip(args.one, args.other)?));
    Ok(())
}

/// A word in a cache line (and its neighbour, which is fetched along) of its own.
#[repr(align(128))]
struct Line(AtomicU32);

impl Line {
    fn wait_for(&self, value: u32) {
        let mut looks = 0;
        while self.0.load(Ordering::Acquire) != value {
            looks += 1;
            if looks % LOOKS == 0 {
                thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

fn round_trip(one: usize, other: usize) -> Result<f64> {
    if one == other {
        return Err(Error::other(format!(
            "core {one} twice: --one and --other name two different cores"
        )));
    }
    let line = Line(AtomicU32::new(0));
    let trips = TRIPS * SAMPLES as u32;
    // Both before anybody waits for anybody.
    pin(other)?;
    pin(one)?;
    thread::scope(|scope| {
        let echo = scope.spawn(|| {
            let pinned = pin(other);
            for trip in 0..trips {
                line.wait_for(2 * trip + 1);
                line.0.store(2 * trip + 2, Ordering::Release);
            }
            pinned
        });
        let mut samples = [0.0; SAMPLES];
        for (at, sample) in samples.iter_mut().enumerate() {
            let began = Instant::now();
            for trip in at as u32 * TRIPS..(at as u32 + 1) * TRIPS {
                line.0.store(2 * trip + 1, Ordering::Release);
                line.wait_for(2 * trip + 2);
            }
            *sample = began.elapsed().as_nanos() as f64 / f64::from(TRIPS);
        }
        echo.join().expect("the echo")?;
        samples.sort_by(f64::total_cmp);
        Ok(samples[SAMPLES / 2])
    })
}

/// Keeps the thread on a core.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    if core >= CpuSet::MAX_CPU {
        return Err(Error::other(format!("core {core}: at most {} are known", CpuSet::MAX_CPU)));
    }
    set.set(core);
    sched_setaffinity(None, &set)
        .map_err(|error| Error::other(format!("cannot run on core {core}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_that_are_one_or_are_not_there_are_refused() {
        assert!(round_trip(0, 0).is_err());
        assert!(round_trip(0, CpuSet::MAX_CPU).is_err());
        assert!(round_trip(CpuSet::MAX_CPU - 1, 0).is_err());
    }
}
