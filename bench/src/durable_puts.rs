//! Durable 4 KiB PUTs over HTTP beside one write + fdatasync each: alternating rounds, the ratio.

use std::io::Result;
use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::{Cluster, reel_binary, say};
use crate::{floor, load};

/// Arguments of `durable-puts`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A folder on the disk to measure; a new folder is made in it, and removed
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// The `reel` binary; the one beside this when left out
    #[arg(long)]
    reel: Option<PathBuf>,
    /// Connections
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Bytes of a PUT
    #[arg(long, default_value_t = 4096)]
    bytes: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The catalog's URL; SQLite when left out
    #[arg(long)]
    catalog: Option<String>,
    /// Fail when the median ratio is below this
    #[arg(long)]
    at_least: Option<f64>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = args.dir.join(format!("reel-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = measure(args, &folder);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn measure(args: &Args, folder: &std::path::Path) -> Result<()> {
    let mut arguments = Vec::new();
    if let Some(url) = &args.catalog {
        arguments.extend(["--catalog", url.as_str()]);
    }
    let cluster =
        Cluster::start(&reel_binary(args.reel.as_deref())?, &folder.join("data"), &arguments)?;
    let time = Duration::from_secs_f64(args.seconds);
    let mut ratios = Vec::new();
    let mut refused = 0;
    load::puts(
        cluster.storage.address,
        "warm",
        args.connections,
        args.bytes,
        Duration::from_secs(1),
    )?;
    for round in 1..=args.rounds {
        let floor = floor::append_and_sync(folder, args.bytes, time)?;
        let prefix = format!("r{round}-{}", std::process::id());
        let puts =
            load::puts(cluster.storage.address, &prefix, args.connections, args.bytes, time)?;
        refused += puts.refused;
        let ratio = puts.rate() / floor;
        ratios.push(ratio);
        say(format_args!(
            "round {round}: one write + fdatasync each {floor:.0}/s; durable PUTs {:.0}/s (p50 {:.2} ms, p99 {:.2} ms); ratio {ratio:.2}",
            puts.rate(),
            puts.percentile(0.5),
            puts.percentile(0.99),
        ));
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    say(format_args!(
        "durable {} B PUTs over HTTP, {} connections: {median:.2} times one write + fdatasync each (spread {:.2} to {:.2}), {refused} refused",
        args.bytes,
        args.connections,
        ratios[0],
        ratios[ratios.len() - 1],
    ));
    match args.at_least {
        Some(least) if median < least => {
            Err(std::io::Error::other(format!("the ratio is below {least}")))
        }
        _ => Ok(()),
    }
}
