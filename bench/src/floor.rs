//! What the disk does without us.

use std::fs::File;
use std::io::{Result, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cluster::say;

/// Arguments of `floor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A folder on the disk to measure
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Bytes of a write
    #[arg(long, default_value_t = 4096)]
    bytes: usize,
    /// Seconds
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

/// Prints how many writes a second, each followed by its own fdatasync.
pub(crate) fn run(args: &Args) -> Result<()> {
    let rate = append_and_sync(&args.dir, args.bytes, Duration::from_secs_f64(args.seconds))?;
    say(format_args!("{rate:.0}"));
    Ok(())
}

/// One appended write of `bytes` and one fdatasync each, by one writer: how many a second.
pub(crate) fn append_and_sync(folder: &Path, bytes: usize, time: Duration) -> Result<f64> {
    let path = folder.join("floor");
    let mut file = File::create(&path)?;
    let record = vec![0x5a; bytes];
    let started = Instant::now();
    let mut count = 0u64;
    while started.elapsed() < time {
        file.write_all(&record)?;
        file.sync_data()?;
        count += 1;
    }
    let rate = count as f64 / started.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    Ok(rate)
}
