//! Millions of objects: how long a folder takes to open, and an object to be found.

use std::io::{Error, Result, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use reel_engine::ObjectId;
use reel_engine::disk::sim::Rng;

use super::{Scratch, Shard, failed, judge, on_shard, open};
use crate::cluster::say;
use crate::large::rss_anon;

/// Look-ups timed together: one alone is shorter than the clock is exact.
const TOGETHER: usize = 16;

/// Arguments of `engine-many`.
#[derive(Debug, clap::Args)]
pub(crate) struct ManyArgs {
    /// A folder on the disk to use; a new folder is made in it, and removed
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Objects of 1 KiB
    #[arg(long, default_value_t = 10_000_000)]
    objects: u64,
    /// Look-ups
    #[arg(long, default_value_t = 10_000_000)]
    lookups: usize,
    /// What a process of its own does (set by this command)
    #[arg(long, hide = true)]
    phase: Option<String>,
}

pub(crate) fn run(args: &ManyArgs) -> Result<()> {
    match args.phase.as_deref() {
        None => {}
        Some("fill") => return fill(&args.dir, args.objects),
        Some("die") => return die(&args.dir),
        Some("open") => return open_and_find(&args.dir, args.lookups),
        Some(other) => return Err(Error::other(format!("no phase {other}"))),
    }
    let scratch = Scratch::new(&args.dir)?;
    let data = scratch.path().join("data");
    let child = |phase: &str| -> Result<String> {
        let output = Command::new(std::env::current_exe()?)
            .args(["engine-many", "--phase", phase, "--dir"])
            .arg(&data)
            .args(["--objects", &args.objects.to_string()])
            .args(["--lookups", &args.lookups.to_string()])
            .stderr(Stdio::inherit())
            .output()?;
        if phase != "die" && !output.status.success() {
            return Err(Error::other(format!("{phase}: {}", output.status)));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    say(format_args!("{} objects of 1 KiB: {}", args.objects, child("fill")?));
    say(format_args!("after a clean end: {}", child("open")?));
    child("die")?;
    say(format_args!("after kill -9 in the middle of puts: {}", child("open")?));
    judge(&data)
}

fn fill(dir: &Path, objects: u64) -> Result<()> {
    let started = Instant::now();
    let store = open(dir)?;
    on_shard(async {
        let shard = Shard::start(&store);
        puts(&shard, objects).await?;
        shard.stop().await;
        Ok(())
    })?;
    say(format_args!(
        "filled in {:.0} s ({:.0}/s), {} segments",
        started.elapsed().as_secs_f64(),
        objects as f64 / started.elapsed().as_secs_f64(),
        store.segment_count()
    ));
    Ok(())
}

async fn puts(shard: &Rc<Shard>, objects: u64) -> Result<()> {
    const WAITING: u64 = 256;
    let payload = Bytes::from(vec![0x37; 1024]);
    let mut tasks = Vec::new();
    for task in 0..WAITING {
        let (shard, payload) = (Rc::clone(shard), payload.clone());
        let count = objects / WAITING + u64::from(task < objects % WAITING);
        tasks.push(monoio::spawn(async move {
            for index in 0..count {
                shard.put(format!("{task}/{index}"), payload.clone()).await?;
            }
            Ok::<_, Error>(())
        }));
    }
    for task in tasks {
        task.await?;
    }
    Ok(())
}

/// Puts some more, and dies.
fn die(dir: &Path) -> Result<()> {
    let store = open(dir)?;
    on_shard(async {
        let shard = Shard::start(&store);
        puts(&shard, 100_000).await?;
        if let Some(pid) = rustix::process::Pid::from_raw(std::process::id() as i32) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        }
        Ok(())
    })
}

fn open_and_find(dir: &Path, lookups: usize) -> Result<()> {
    let started = Instant::now();
    let store = open(dir)?;
    let opened = started.elapsed();
    let mut slots = Vec::new();
    for number in store.list(None, usize::MAX) {
        let segment = store.segment_blocking(number).map_err(failed)?;
        slots.push((number, segment.slots() as u64));
    }
    let objects: u64 = slots.iter().map(|(_, slots)| slots).sum();
    let mut rng = Rng::new(7);
    let mut nanos = Vec::with_capacity(lookups / TOGETHER);
    let mut missed = 0u64;
    let mut ids = [ObjectId::from_u64(0); TOGETHER];
    let began = Instant::now();
    for _ in 0..lookups / TOGETHER {
        for id in &mut ids {
            let (number, slots) = slots[rng.below(slots.len() as u64) as usize];
            *id = number.object(rng.below(slots) as u16);
        }
        let started = Instant::now();
        for id in &ids {
            missed += u64::from(store.lookup(*id).is_none());
        }
        nanos.push(started.elapsed().as_nanos() as u32 / TOGETHER as u32);
    }
    let took = began.elapsed();
    nanos.sort_unstable();
    let at = |share: usize| nanos[(nanos.len() * share / 1000).min(nanos.len() - 1)];
    let memory = rss_anon(std::process::id()).unwrap_or(0) as f64 / f64::from(1 << 20);
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "open {:.3} s; {objects} slots; {lookups} random look-ups by id in {:.1} s: median {} ns, p99 {} ns, {missed} missed; RssAnon {memory:.1} MiB",
        opened.as_secs_f64(),
        took.as_secs_f64(),
        at(500),
        at(990),
    )
}
