//! `reel`: every role of Reelstore, and its client, in one command.

mod cli;
mod completions;
mod config;
mod fsck;
mod get;
mod group;
mod groups;
mod health;
mod import;
mod keepalived;
mod ls;
mod man;
mod node;
mod nodes;
mod output;
mod put;
mod rebalance;
mod rebuild_catalog;
mod rm;
mod roles;
mod stat;
mod status;
mod up;
mod url;
mod verify;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};
use output::Failure;

/// Uploads pass through many short allocations of changing sizes: glibc's allocator took a fifth of a shard's time
/// (docs/decisions/0011-where-a-put-goes.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Up(args) => up::run(args),
        Command::Tracker(args) => roles::tracker(&args),
        Command::Id(args) => roles::id(&args),
        Command::Storage(args) => roles::storage(&args),
        Command::Http(args) => roles::http(&args),
        Command::Fsck(args) => fsck::run(args),
        Command::RebuildCatalog(args) => rebuild_catalog::run(args),
        Command::Config(args) => config::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        client => run_client(client),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::complain(&failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// Runs a client's subcommand on a small runtime.
fn run_client(command: Command) -> Result<(), Failure> {
    let Some(options) = command.client_options() else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    runtime.block_on(async {
        let found = reel_control::client::ClientConfig::find(options.config.as_deref())?;
        let client = reel_control::client::Client::new(found.config);
        let json = options.json;
        match command {
            Command::Put(args) => put::run(&client, args, json).await,
            Command::Get(args) => get::run(&client, args, json).await,
            Command::Stat(args) => stat::run(&client, &args, json).await,
            Command::Rm(args) => rm::run(&client, &args, json).await,
            Command::Ls(args) => ls::run(&client, &args, json).await,
            Command::Import(args) => import::run(&client, args, json).await,
            Command::Rebalance(args) => rebalance::run(&client, args, json).await,
            Command::Url(args) => url::run(&client, &args, json).await,
            Command::Group(args) => group::run(&client, &args).await,
            Command::Groups(_) => groups::run(&client, json).await,
            Command::Status(_) => status::run(&client, json).await,
            Command::Node(args) => node::run(&client, &args).await,
            Command::Verify(_) => verify::run(&client, json).await,
            Command::Nodes(_) => nodes::run(&client, json).await,
            _ => Ok(()),
        }
    })
}
