//! Durable small puts through the engine beside one appended write + fdatasync each.
//!
//! Before each measurement the stock of space written ahead is filled, as upkeep does when there is time; a
//! measurement takes less than there is. A long burst, which outruns it, is measured by itself at the end.

use std::cell::{Cell, RefCell};
use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use reel_engine::upkeep::stock_now;

use super::{Scratch, Shard, failed, on_shard, open};
use crate::cluster::say;
use crate::floor;

/// Arguments of `engine-puts`.
#[derive(Debug, clap::Args)]
pub(crate) struct PutsArgs {
    /// A folder on the disk to measure; a new folder is made in it, and removed
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Bytes of a put
    #[arg(long, default_value_t = 4096)]
    bytes: usize,
    /// Seconds of each measurement; 64 waiting get a quarter of it, which is what the stock holds
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Seconds of the long burst at the end; 0 for none
    #[arg(long, default_value_t = 10.0)]
    burst: f64,
    /// Rounds
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Fail when the median ratio with 64 waiting is below this
    #[arg(long)]
    at_least: Option<f64>,
}

struct Found {
    rate: f64,
    group: f64,
    p99_ms: f64,
}

async fn measure(
    shard: &Rc<Shard>,
    waiting: usize,
    bytes: usize,
    time: Duration,
    round: usize,
) -> Result<Found> {
    let payload = Bytes::from(vec![0x5a; bytes]);
    let deadline = Instant::now() + time;
    let started = Instant::now();
    let before = shard.writer.commits();
    let done = Rc::new(Cell::new(0u64));
    let micros = Rc::new(RefCell::new(Vec::new()));
    let mut tasks = Vec::new();
    for task in 0..waiting {
        let (shard, payload, done, micros) =
            (Rc::clone(shard), payload.clone(), Rc::clone(&done), Rc::clone(&micros));
        tasks.push(monoio::spawn(async move {
            let mut count = 0u64;
            while Instant::now() < deadline {
                let asked = Instant::now();
                shard.put(format!("r{round}/{task}/{count}"), payload.clone()).await?;
                micros.borrow_mut().push(asked.elapsed().as_micros() as u32);
                count += 1;
                done.set(done.get() + 1);
            }
            Ok::<_, Error>(())
        }));
    }
    for task in tasks {
        task.await?;
    }
    let commits = shard.writer.commits() - before;
    let mut micros = micros.borrow_mut();
    micros.sort_unstable();
    let p99 = micros.get(micros.len() * 99 / 100).copied().unwrap_or(0);
    Ok(Found {
        rate: done.get() as f64 / started.elapsed().as_secs_f64(),
        group: done.get() as f64 / commits.max(1) as f64,
        p99_ms: f64::from(p99) / 1000.0,
    })
}

pub(crate) fn run(args: &PutsArgs) -> Result<()> {
    let scratch = Scratch::new(&args.dir)?;
    let ratios = on_shard(rounds(args, scratch.path()))?;
    if let (Some(least), Some(ratio)) = (args.at_least, ratios)
        && ratio < least
    {
        return Err(Error::other(format!("the ratio is below {least}")));
    }
    Ok(())
}

async fn rounds(args: &PutsArgs, dir: &Path) -> Result<Option<f64>> {
    let time = Duration::from_secs_f64(args.seconds);
    let store = open(&dir.join("data"))?;
    let shard = Shard::start(&store);
    measure(&shard, 64, args.bytes, time / 4, 0).await?;
    let (mut many, mut alone) = (Vec::new(), Vec::new());
    for round in 1..=args.rounds {
        stock_now(&store).map_err(failed)?;
        let floor = floor::append_and_sync(dir, args.bytes, time)?;
        let sixty_four = measure(&shard, 64, args.bytes, time / 4, round * 2).await?;
        stock_now(&store).map_err(failed)?;
        let one = measure(&shard, 1, args.bytes, time, round * 2 + 1).await?;
        many.push(sixty_four.rate / floor);
        alone.push(one.rate / floor);
        say(format_args!(
            "round {round}: one appended write + fdatasync each {floor:.0}/s; 64 waiting {:.0}/s in groups of {:.1} (p99 {:.2} ms), {:.1} times; one alone {:.0}/s (p99 {:.2} ms), {:.2} times",
            sixty_four.rate,
            sixty_four.group,
            sixty_four.p99_ms,
            sixty_four.rate / floor,
            one.rate,
            one.p99_ms,
            one.rate / floor,
        ));
    }
    if args.burst > 0.0 {
        let floor = floor::append_and_sync(dir, args.bytes, time)?;
        let long = Duration::from_secs_f64(args.burst);
        let found = measure(&shard, 64, args.bytes, long, 0).await?;
        say(format_args!(
            "a burst of {:.0} s, which outruns the stock: {:.0}/s in groups of {:.1} (p99 {:.2} ms), {:.1} times",
            args.burst,
            found.rate,
            found.group,
            found.p99_ms,
            found.rate / floor
        ));
    }
    shard.stop().await;
    many.sort_by(f64::total_cmp);
    alone.sort_by(f64::total_cmp);
    let spread = |ratios: &[f64]| {
        let median = ratios.get(ratios.len() / 2).copied().unwrap_or(0.0);
        let ends = (ratios.first().copied().unwrap_or(0.0), ratios.last().copied().unwrap_or(0.0));
        format!("{median:.2} times (spread {:.2} to {:.2})", ends.0, ends.1)
    };
    say(format_args!(
        "durable {} B puts through the engine: 64 waiting {}; one alone {}",
        args.bytes,
        spread(&many),
        spread(&alone)
    ));
    Ok(many.get(many.len() / 2).copied())
}
