//! `reel-sim sim|cluster --seeds A..B`: runs seeds; the first that fails is said with what to repeat it by.

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
use parking_lot::Mutex;
use reel_engine::disk::SyncPoint;
use reel_sim::{Sabotage, Summary, cluster, run};

/// The storage engine under simulated crashes, alone and as a group of nodes.
#[derive(Debug, Parser)]
#[command(name = "reel-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One node: runs seeds until one fails
    Sim {
        #[command(flatten)]
        how: How,
        /// A sync to take out, by name (or NoBarrier): the run should fail then
        #[arg(long)]
        without: Option<String>,
    },
    /// A group of three nodes under a simulated network: runs seeds until one fails
    Cluster {
        #[command(flatten)]
        how: How,
        /// What to do wrong (EarlyAck, EarlyForget, RowFirst): the run should fail then
        #[arg(long)]
        wrong: Option<String>,
    },
}

#[derive(Debug, Args)]
struct How {
    /// Seeds: A..B (B left out), or one
    #[arg(long, value_parser = seeds)]
    seeds: std::ops::Range<u64>,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Says what the engine logs
    #[arg(long)]
    verbose: bool,
    /// Says every call to the disk, too
    #[arg(long)]
    trace: bool,
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

fn wrong(name: &str) -> Result<cluster::Sabotage, String> {
    use cluster::Sabotage::{EarlyAck, EarlyForget, RowFirst};
    let all = [EarlyAck, EarlyForget, RowFirst];
    all.into_iter().find(|sabotage| format!("{sabotage:?}") == name).ok_or_else(|| {
        format!("nothing is called {name:?}; there are EarlyAck, EarlyForget, RowFirst")
    })
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Sim { how, without } => {
            let repeat =
                without.as_ref().map_or(String::new(), |name| format!(" --without {name}"));
            let sabotage = without.as_deref().map(sabotage).transpose();
            sabotage.map(|sabotage| run_all(&how, "sim", &repeat, |seed| run(seed, sabotage)))
        }
        Command::Cluster { how, wrong: name } => {
            let repeat = name.as_ref().map_or(String::new(), |name| format!(" --wrong {name}"));
            let wrong = name.as_deref().map(wrong).transpose();
            wrong.map(|wrong| run_all(&how, "cluster", &repeat, |seed| cluster::run(seed, wrong)))
        }
    };
    outcome.unwrap_or_else(|message| {
        say(format_args!("reel-sim: {message}"));
        ExitCode::from(2)
    })
}

fn run_all(
    how: &How,
    command: &str,
    repeat: &str,
    run: impl Fn(u64) -> Result<Summary, String> + Sync,
) -> ExitCode {
    let How { seeds, threads, verbose, trace } = how;
    if *verbose || *trace {
        let level = if *trace { tracing::Level::TRACE } else { tracing::Level::INFO };
        let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
        log.without_time().with_ansi(false).with_target(false).init();
    }
    let started = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let total = Mutex::new(Summary::default());
    let failed: Mutex<Option<(u64, String)>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..*threads.max(&1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || failed.lock().is_some() {
                        return;
                    }
                    match run(seed) {
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
        say(format_args!("repeat with: reel-sim {command} --verbose --seeds {seed}{repeat}"));
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
