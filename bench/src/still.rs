//! When the machine itself stood still.
//!
//! A virtual machine's host gives it so much processor time in each tenth of a second, its disk's work included, and
//! stops all of its cores when that is used up. Whoever is asked meanwhile answers late by as much, whatever it is.
//! A thread on each core that sleeps and, being real-time, comes before all others when it is due, notices.

use std::io::{Error, Result};
use std::thread;
use std::time::Duration;

use crate::clock::now;
use crate::cluster::say;
use crate::cores::pin;

/// Of a thread's sleep.
const NAP: Duration = Duration::from_micros(300);
/// Seconds after which a thread is late. The kernel does not leave off its own work for a real-time thread; that takes less.
const LATE: f64 = 0.002;
/// `SCHED_FIFO`, sched(7).
const FIFO: &str = "1";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The cores to watch
    #[arg(long, value_delimiter = ',', default_value = "0,1")]
    cores: Vec<usize>,
    /// Seconds
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

/// Prints `FROM TO` for each time that a core stood still, in seconds of CLOCK_MONOTONIC.
pub(crate) fn run(args: &Args) -> Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The policy is field 41, proc_pid_stat(5); what stands before the third may hold spaces.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    if fields.split(' ').nth(38) != Some(FIFO) {
        let why = "behind other processes their turns would look as if the machine stood still";
        return Err(Error::other(format!("not real-time, {why}: run it by `chrt -f 50`")));
    }
    let ends = now() + args.seconds;
    thread::scope(|scope| {
        let watches: Vec<_> =
            args.cores.iter().map(|core| scope.spawn(move || watch(*core, ends))).collect();
        watches.into_iter().try_for_each(|watch| watch.join().expect("a watch"))
    })
}

fn watch(core: usize, ends: f64) -> Result<()> {
    pin(core)?;
    loop {
        let due = now() + NAP.as_secs_f64();
        if due > ends {
            return Ok(());
        }
        thread::sleep(NAP);
        let woke = now();
        if woke - due > LATE {
            say(format_args!("{due:.6} {woke:.6}"));
        }
    }
}
