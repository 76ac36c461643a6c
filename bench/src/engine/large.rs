//! One large put streamed through the engine beside `fio` with as many direct writes of 1 MiB.

use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use bytes::Bytes;
use reel_engine::format::record::RecordKind;
use reel_engine::solo::SoloUpload;
use reel_engine::{Draft, Store};

use super::{Scratch, cpu_seconds, failed, on_shard, open};
use crate::cluster::say;
use crate::large::rss_anon;

/// Arguments of `engine-large`.
#[derive(Debug, clap::Args)]
pub(crate) struct LargeArgs {
    /// A folder on the disk to measure; a new folder is made in it, and removed
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Size of the put
    #[arg(long, default_value_t = 4096)]
    mib: u64,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Fail when the median ratio is below this
    #[arg(long)]
    at_least: Option<f64>,
}

/// MiB/s of `fio`, synced at the end.
fn fio(dir: &Path, mib: u64) -> Result<f64> {
    let file = dir.join("fio");
    let output = Command::new("fio")
        .args(["--name=w", "--bs=1m", "--rw=write", "--direct=1", "--ioengine=psync"])
        .args(["--end_fsync=1", "--output-format=json"])
        .arg(format!("--size={mib}m"))
        .arg(format!("--filename={}", file.display()))
        .output()
        .map_err(|error| Error::other(format!("fio: {error} (apt-get install fio)")))?;
    std::fs::remove_file(&file)?;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| Error::other(format!("fio: {error}")))?;
    // From its start to the end of the sync, which `bw` leaves out.
    let milliseconds = json["jobs"][0]["job_runtime"].as_f64().unwrap_or(0.0);
    Ok(mib as f64 / (milliseconds / 1000.0))
}

async fn put(store: &std::sync::Arc<Store>, mib: u64) -> Result<()> {
    let source: Vec<u8> =
        (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut solo = SoloUpload::begin(store, 0).await.map_err(failed)?;
    for _ in 0..mib {
        // The copy stands for the socket's.
        let mut piece = solo.piece();
        piece.fill(&source);
        solo.write(piece).await.map_err(failed)?;
    }
    let draft = Draft {
        kind: RecordKind::Object,
        user: "bench".to_owned(),
        name: "large".to_owned(),
        content_type: "video/mp4".to_owned(),
        version: store.clock().next(),
        modified_ms: store.clock().now_ms(),
        target: None,
        payload: Bytes::new(),
        payload_crc: 0,
    };
    let (stored, _) = solo.finish(draft).await.map_err(failed)?;
    store.settled(&stored.segment);
    let object = stored.object;
    drop(stored);
    store.kill(object).map_err(failed)?;
    Ok(())
}

pub(crate) fn run(args: &LargeArgs) -> Result<()> {
    let scratch = Scratch::new(&args.dir)?;
    let store = open(&scratch.path().join("data"))?;
    let mut ratios = Vec::new();
    for round in 1..=args.rounds {
        let floor = fio(scratch.path(), args.mib)?;
        let (started, cpu) = (Instant::now(), cpu_seconds());
        let seconds = on_shard(async {
            let result = put(&store, args.mib).await;
            result.map(|()| started.elapsed().as_secs_f64())
        })?;
        let cpu = cpu_seconds() - cpu;
        let rate = args.mib as f64 / seconds;
        let memory = rss_anon(std::process::id()).unwrap_or(0) as f64 / f64::from(1 << 20);
        ratios.push(rate / floor);
        say(format_args!(
            "round {round}: fio {floor:.0} MiB/s; {} MiB put {rate:.0} MiB/s, {:.2} CPU-s/GB, RssAnon {memory:.0} MiB; ratio {:.2}",
            args.mib,
            cpu / (args.mib as f64 / 1024.0 * 1.073_741_824),
            rate / floor,
        ));
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    say(format_args!(
        "{} MiB streamed through the engine: {median:.2} of fio (spread {:.2} to {:.2})",
        args.mib,
        ratios[0],
        ratios[ratios.len() - 1],
    ));
    match args.at_least {
        Some(least) if median < least => Err(Error::other(format!("the ratio is below {least}"))),
        _ => Ok(()),
    }
}
