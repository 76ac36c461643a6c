//! Half of a data set deleted and compacted, while puts and reads go on.

use std::cell::{Cell, RefCell};
use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reel_engine::disk::sim::Rng;
use reel_engine::format::record::RecordKind;
use reel_engine::upkeep::{Upkeep, UpkeepOptions};
use reel_engine::{Draft, ObjectId, Store, read};

use super::{Scratch, Shard, failed, judge, on_shard, open};
use crate::cluster::say;

/// Arguments of `engine-compact`.
#[derive(Debug, clap::Args)]
pub(crate) struct CompactArgs {
    /// A folder on the disk to use; a new folder is made in it, and removed
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Size of the data set
    #[arg(long, default_value_t = 4096)]
    mib: u64,
    /// Bytes of an object
    #[arg(long, default_value_t = 65_536)]
    bytes: usize,
    /// Percent of the disk's time that compaction may take
    #[arg(long, default_value_t = 20)]
    share: u32,
    /// Seconds of the measurement without compaction
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
}

/// Puts and reads at a steady pace; latencies in microseconds.
#[derive(Default)]
struct Load {
    puts: RefCell<Vec<u32>>,
    reads: RefCell<Vec<u32>>,
    stop: Cell<bool>,
}

fn quantiles(micros: &mut [u32]) -> String {
    micros.sort_unstable();
    let at = |share: usize| {
        let index = (micros.len() * share / 1000).min(micros.len().saturating_sub(1));
        f64::from(micros.get(index).copied().unwrap_or(0)) / 1000.0
    };
    format!(
        "p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms ({})",
        at(500),
        at(990),
        at(999),
        micros.len()
    )
}

async fn load(
    shard: Rc<Shard>,
    load: Rc<Load>,
    alive: Rc<Vec<ObjectId>>,
    round: usize,
) -> Result<()> {
    let mut rng = Rng::new(round as u64);
    let payload = Bytes::from(vec![0x11; 16_384]);
    let mut count = 0;
    while !load.stop.get() {
        let asked = Instant::now();
        shard.put(format!("beside/{round}/{count}"), payload.clone()).await?;
        load.puts.borrow_mut().push(asked.elapsed().as_micros() as u32);
        for _ in 0..4 {
            let object = alive[rng.below(alive.len() as u64) as usize];
            let asked = Instant::now();
            let segment = shard.store.segment(object.segment()).await.map_err(failed)?;
            let located = segment
                .locate(object.slot())
                .ok_or_else(|| Error::other(format!("object {object} is gone")))?;
            read::read_checked(&shard.store, &segment, object.slot(), &located, Vec::new())
                .await
                .map_err(failed)?;
            load.reads.borrow_mut().push(asked.elapsed().as_micros() as u32);
        }
        count += 1;
        monoio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Bytes of the segment files.
fn disk_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_dir() {
            bytes += disk_bytes(&entry.path())?;
        } else if entry.path().extension().is_some_and(|kind| kind == "seg") {
            bytes += meta.len();
        }
    }
    Ok(bytes)
}

pub(crate) fn run(args: &CompactArgs) -> Result<()> {
    let scratch = Scratch::new(&args.dir)?;
    let data = scratch.path().join("data");
    on_shard(measure(args, &data))?;
    judge(&data)
}

async fn measure(args: &CompactArgs, data: &Path) -> Result<()> {
    let store = open(data)?;
    let filling = Shard::start(&store);
    let payload = Bytes::from(vec![0x77; args.bytes]);
    let count = args.mib * (1 << 20) / args.bytes as u64;
    let objects: Rc<RefCell<Vec<ObjectId>>> = Rc::default();
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let (shard, payload, objects) =
                (Rc::clone(&filling), payload.clone(), Rc::clone(&objects));
            monoio::spawn(async move {
                for index in (task..count).step_by(64) {
                    let object = shard.put(format!("set/{index}"), payload.clone()).await?;
                    objects.borrow_mut().push(object);
                }
                Ok::<_, Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await?;
    }
    filling.stop().await;
    let before = disk_bytes(data)?;
    let (mut alive, mut dead) = (Vec::new(), Vec::new());
    let mut rng = Rng::new(3);
    for object in objects.borrow().iter() {
        if rng.chance(5_000) { &mut dead } else { &mut alive }.push(*object);
    }
    let alive = Rc::new(alive);
    let dead_bytes = dead.len() as u64 * (args.bytes as u64 + 96);
    let shard = Shard::start(&store);
    let quiet = Rc::new(Load::default());
    let running = monoio::spawn(load(Rc::clone(&shard), Rc::clone(&quiet), Rc::clone(&alive), 1));
    monoio::time::sleep(Duration::from_secs_f64(args.seconds)).await;
    quiet.stop.set(true);
    running.await?;
    bury(&shard, &store, dead).await?;
    let busy = Rc::new(Load::default());
    let running = monoio::spawn(load(Rc::clone(&shard), Rc::clone(&busy), Rc::clone(&alive), 2));
    let started = Instant::now();
    let options = UpkeepOptions {
        share: f64::from(args.share) / 100.0,
        scrub_every: Duration::from_secs(1 << 30),
        repair: None,
        all_hold: None,
    };
    let upkeep = Upkeep::start(Arc::clone(&store), options)?;
    let mut last = (disk_bytes(data)?, Instant::now());
    // Until nothing has been given back for a while.
    while last.1.elapsed() < Duration::from_secs(20) && started.elapsed() < Duration::from_secs(600)
    {
        monoio::time::sleep(Duration::from_millis(500)).await;
        let now = disk_bytes(data)?;
        if now + (8 << 20) < last.0 {
            last = (now, Instant::now());
        }
    }
    busy.stop.set(true);
    running.await?;
    drop(upkeep);
    // What was put meanwhile is not part of the set.
    let beside = (quiet.puts.borrow().len() + busy.puts.borrow().len()) as u64 * (16_384 + 96);
    shard.stop().await;
    let after = disk_bytes(data)?.saturating_sub(beside);
    let back = before.saturating_sub(after);
    say(format_args!(
        "{} MiB in objects of {} B, half deleted: {} MiB dead, {} MiB given back ({:.1} %) in {:.0} s at a share of {} %",
        args.mib,
        args.bytes,
        dead_bytes >> 20,
        back >> 20,
        back as f64 * 100.0 / dead_bytes as f64,
        (last.1 - started).as_secs_f64(),
        args.share,
    ));
    say(format_args!("puts without compaction:  {}", quantiles(&mut quiet.puts.borrow_mut())));
    say(format_args!("puts with compaction:     {}", quantiles(&mut busy.puts.borrow_mut())));
    say(format_args!("reads without compaction: {}", quantiles(&mut quiet.reads.borrow_mut())));
    say(format_args!("reads with compaction:    {}", quantiles(&mut busy.reads.borrow_mut())));
    if back as f64 >= dead_bytes as f64 * 0.85 {
        Ok(())
    } else {
        Err(Error::other("less than 85 % of the dead bytes came back"))
    }
}

async fn bury(shard: &Rc<Shard>, store: &Arc<Store>, dead: Vec<ObjectId>) -> Result<()> {
    let mut tasks = Vec::new();
    for chunk in dead.chunks(dead.len() / 64 + 1) {
        let (shard, store, chunk) = (Rc::clone(shard), Arc::clone(store), chunk.to_vec());
        tasks.push(monoio::spawn(async move {
            for object in chunk {
                let draft = Draft {
                    kind: RecordKind::Delete,
                    user: "bench".to_owned(),
                    name: "set".to_owned(),
                    content_type: String::new(),
                    version: store.clock().next(),
                    modified_ms: store.clock().now_ms(),
                    target: Some(object),
                    payload: Bytes::new(),
                    payload_crc: 0,
                };
                let stored = shard.writer.put(draft).await.map_err(failed)?;
                let killer = Arc::clone(&store);
                store.pool().run(move || killer.kill(object)).await.map_err(failed)?;
                store.settled(&stored.segment);
            }
            Ok::<_, Error>(())
        }));
    }
    for task in tasks {
        task.await?;
    }
    Ok(())
}
