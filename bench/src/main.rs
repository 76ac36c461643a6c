//! `reel-bench`: load generators, each beside a floor measured in the same run.
//!
//! These machines are shared: an absolute figure is worth little. What counts is the ratio, from
//! alternating rounds, with its spread.

mod askers;
mod bare;
mod beats;
mod catalog;
mod clock;
mod cluster;
mod cores;
mod durable_puts;
mod engine;
mod floor;
mod http;
mod large;
mod load;
mod readers;
mod still;
mod viewers;

use clap::{Parser, Subcommand};

/// Measures Reelstore beside floors and rivals, in the same run.
#[derive(Debug, Parser)]
#[command(name = "reel-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Durable 4 KiB PUTs over HTTP beside one write + fdatasync each
    DurablePuts(durable_puts::Args),
    /// Viewers that each ask for a piece every two seconds, more and more, until the first stalls
    Viewers(viewers::Args),
    /// Readers at a steady pace, who say of each answer when it was asked for and how long it took
    Readers(readers::Args),
    /// Clients that ask for one file again and again, for less than wrk spends
    Askers(askers::Args),
    /// What the kernel alone asks for a small answer: one epoll, one read, one send from memory
    Bare(bare::Args),
    /// The catalog alone, with many rows beside none
    Catalog(catalog::Args),
    /// Trackers under the beats of many nodes
    Beats(beats::Args),
    /// What the disk does without us: one appended write + fdatasync each, a second
    Floor(floor::Args),
    /// How long a cache line takes from one core to another and back, in nanoseconds
    Cores(cores::Args),
    /// When the machine stood still, as a virtual machine's host makes it
    Still(still::Args),
    /// A large file up and down beside the storage node's anonymous memory
    Large(large::Args),
    /// Durable small puts through the engine beside one appended write + fdatasync each
    EnginePuts(engine::PutsArgs),
    /// A large put streamed through the engine beside `fio`
    EngineLarge(engine::LargeArgs),
    /// Millions of objects: opening, memory, look-ups
    EngineMany(engine::ManyArgs),
    /// Half of a data set deleted and compacted, while puts and reads go on
    EngineCompact(engine::CompactArgs),
}

fn main() -> std::process::ExitCode {
    let result = match Cli::parse().command {
        Command::DurablePuts(args) => durable_puts::run(&args),
        Command::Viewers(args) => viewers::run(&args),
        Command::Readers(args) => readers::run(&args),
        Command::Askers(args) => askers::run(&args),
        Command::Bare(args) => bare::run(&args),
        Command::Catalog(args) => catalog::run(&args),
        Command::Beats(args) => beats::run(&args),
        Command::Floor(args) => floor::run(&args),
        Command::Cores(args) => cores::run(&args),
        Command::Still(args) => still::run(&args),
        Command::Large(args) => large::run(&args),
        Command::EnginePuts(args) => engine::run_puts(&args),
        Command::EngineLarge(args) => engine::run_large(&args),
        Command::EngineMany(args) => engine::run_many(&args),
        Command::EngineCompact(args) => engine::run_compact(&args),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            cluster::say(format_args!("reel-bench: {error}"));
            std::process::ExitCode::FAILURE
        }
    }
}
