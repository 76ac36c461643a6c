//! `reel-sim sim --seeds A..B`: runs seeds; the first that fails is said with what to repeat it by.

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::{Parser, Subcommand};
use parking_lot::Mutex;
use reel_engine::disk::SyncPoint;
use reel_sim::{Sabotage, Summary, run};

/// The storage engine under simulated crashes.
#[derive(Debug, Parser)]
#[command(name = "reel-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs seeds until one fails
    Sim {
        /// Seeds: A..B (B left out), or one
        #[arg(long, value_parser = seeds)]
        seeds: std::ops::Range<u64>,
        /// A sync to take out, by name (or NoBarrier): the run should fail then
        #[arg(long)]
        without: Option<String>,
        /// Threads
        #[arg(long, default_value_t = 2)]
        threads: usize,
        /// Says what the engine logs
        #[arg(long)]
        verbose: bool,
        /// Says every call to the disk, too
        #[arg(long)]
        trace: bool,
    },
}

fn seeds(text: &str) -> Result<std::ops::Range<u64>, String> {
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text:?} is not a number"));
    match text.split_once("..") {
        None => number(text).map(|seed| seed..seed + 1),
        Some((first, end)) => {
            let (first, end) = (number(first)?, number(end)?);
            if first < end { Ok(first..end) } else { Err("A must be below B".to_owned()) }
        }
    }
}

fn sabotage(name: &str) -> Result<Sabotage, String> {
    if name == "NoBarrier" {
        return Ok(Sabotage::NoBarrier);
    }
    let point = SyncPoint::ALL.into_iter().find(|point| format!("{point:?}") == name);
    let names = || SyncPoint::ALL.map(|point| format!("{point:?}")).join(", ");
    point
        .map(Sabotage::Skip)
        .ok_or_else(|| format!("no sync is called {name:?}; there are {}, NoBarrier", names()))
}

fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn main() -> ExitCode {
    let Command::Sim { seeds, without, threads, verbose, trace } = Cli::parse().command;
    if verbose || trace {
        let level = if trace { tracing::Level::TRACE } else { tracing::Level::INFO };
        let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
        log.without_time().with_ansi(false).with_target(false).init();
    }
    let sabotage = match without.as_deref().map(sabotage).transpose() {
        Ok(sabotage) => sabotage,
        Err(message) => {
            say(format_args!("reel-sim: {message}"));
            return ExitCode::from(2);
        }
    };
    let started = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let total = Mutex::new(Summary::default());
    let failed: Mutex<Option<(u64, String)>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || failed.lock().is_some() {
                        return;
                    }
                    match run(seed, sabotage) {
                        Ok(summary) => total.lock().add(&summary),
                        Err(violation) => {
                            let mut failed = failed.lock();
                            if failed.as_ref().is_none_or(|(other, _)| seed < *other) {
                                *failed = Some((seed, violation));
                            }
                        }
                    }
                }
            });
        }
    });
    if let Some((seed, violation)) = failed.into_inner() {
        say(format_args!("seed {seed}: {violation}"));
        let without = without.map_or(String::new(), |name| format!(" --without {name}"));
        say(format_args!("repeat with: reel-sim sim --verbose --seeds {seed}{without}"));
        return ExitCode::FAILURE;
    }
    let total = total.into_inner();
    let disk = total.disk;
    say(format_args!(
        "{} seeds, 0 violations in {:.0} s: {} lives, {} crashes ({} power losses: {} unsynced sectors lost, {} kept, {} folder entries torn), {} faults, {} bits flipped; {} uploads and {} deletes answered, {} compactions, {} scrubs, {} reads compared, {} disk calls, {} syncs",
        seeds.end - seeds.start,
        started.elapsed().as_secs_f64(),
        total.lives,
        total.crashes,
        disk.power_losses,
        disk.sectors_lost,
        disk.sectors_kept,
        disk.entries_torn,
        disk.faults,
        disk.flips,
        total.uploads,
        total.deletes,
        total.compactions,
        total.scrubs,
        total.reads,
        disk.calls,
        disk.syncs,
    ));
    ExitCode::SUCCESS
}
