//! Trackers under the beats of many nodes: CPU, memory, how soon an address answer comes, how soon lost nodes are
//! marked.
//!
//! Two real `reel tracker` processes, which compare what they have heard as in any cluster. Every node has one kept
//! connection to each, and beats once a second.

use std::io::{BufRead, BufReader, Error, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::cluster::{reel_binary, say};

const BEAT: Duration = Duration::from_secs(1);
/// Threads that beat, each for its share of the nodes.
const THREADS: u32 = 8;
const TRACKERS: usize = 2;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The `reel` binary; the one beside this when left out
    #[arg(long)]
    reel: Option<PathBuf>,
    /// Nodes
    #[arg(long, default_value_t = 2000)]
    nodes: u32,
    /// Nodes of a group
    #[arg(long, default_value_t = 3)]
    replicas: u32,
    /// Seconds that are measured
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Nodes that fall silent at the end
    #[arg(long, default_value_t = 100)]
    lost: u32,
}

struct Tracker {
    child: Child,
    address: SocketAddr,
}

impl Drop for Tracker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A kept connection that speaks plain HTTP.
struct Talk {
    stream: BufReader<TcpStream>,
    address: SocketAddr,
}

impl Talk {
    fn to(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { stream: BufReader::new(stream), address })
    }

    fn ask(&mut self, line: &str, body: &str) -> Result<(u16, Vec<u8>)> {
        let request = format!(
            "{line} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut head, mut length, mut status) = (String::new(), 0, 0);
        loop {
            head.clear();
            if self.stream.read_line(&mut head)? == 0 {
                return Err(Error::other("the tracker closed a connection"));
            }
            if status == 0 {
                status = head.get(9..12).and_then(|text| text.parse().ok()).unwrap_or(0);
            }
            let field = head.trim_end().to_ascii_lowercase();
            if let Some(value) = field.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if field.is_empty() {
                break;
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        Ok((status, answer))
    }
}

fn start(args: &Args, dir: &Path) -> Result<Vec<Tracker>> {
    let reel = reel_binary(args.reel.as_deref())?;
    std::fs::create_dir_all(dir)?;
    let addresses: Vec<SocketAddr> = (0..TRACKERS)
        .map(|_| TcpListener::bind("127.0.0.1:0")?.local_addr())
        .collect::<Result<_>>()?;
    let list: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    let mut trackers = Vec::new();
    for address in &addresses {
        let config = dir.join(format!("{}.toml", address.port()));
        let text = format!(
            "trackers = [{}]\ncatalog = \"sqlite:{}\"\nbeat = \"1 s\"\n[log]\nlevel = \"error\"\n[tracker]\nlisten = \"{address}\"\n",
            list.join(", "),
            dir.join("catalog.db").display()
        );
        std::fs::write(&config, text)?;
        let child = Command::new(&reel)
            .args(["tracker", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        trackers.push(Tracker { child, address: *address });
    }
    for tracker in &trackers {
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(tracker.address).is_err() {
            if Instant::now() > deadline {
                return Err(Error::other("a tracker does not start"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(trackers)
}

fn beat_of(id: u32, args: &Args, started_ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    serde_json::json!({
        "cluster": "reel",
        "node": {
            "id": id, "name": format!("storage-{id}"), "group": 1 + (id - 1) / args.replicas,
            "address": format!("10.{}.{}.{}:7501", id >> 16, id >> 8 & 255, id & 255), "version": "0.1.0", "shards": 32,
            "started_ms": started_ms, "instance": format!("{id:032x}"), "capacity": 100_000_000_000_000_u64,
        },
        "state": "active", "since_ms": started_ms, "sent_ms": now as u64,
        "free": 50_000_000_000_000_u64, "load": id % 50, "lag": 0,
    })
    .to_string()
}

/// Seconds of CPU, and KiB of anonymous memory.
fn spent(pid: u32) -> Result<(f64, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = memory.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    Ok(((ticks(11) + ticks(12)) as f64 / per_second, kib))
}

/// Runs the measurement, and prints it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("reel-beats-{}", std::process::id()));
    let result = beat_and_measure(args, &dir);
    std::fs::remove_dir_all(&dir)?;
    result
}

fn beat_and_measure(args: &Args, dir: &Path) -> Result<()> {
    let trackers = start(args, dir)?;
    let stop = Arc::new(AtomicBool::new(false));
    // Nodes above this are silent.
    let living = Arc::new(AtomicU32::new(args.nodes));
    let (beats, late) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let started_ms = 1_700_000_000_000;
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for thread in 0..THREADS {
            let (stop, living, beats, late) =
                (Arc::clone(&stop), Arc::clone(&living), Arc::clone(&beats), Arc::clone(&late));
            let addresses: Vec<_> = trackers.iter().map(|tracker| tracker.address).collect();
            workers.push(scope.spawn(move || -> Result<()> {
                let mine: Vec<u32> = (1..=args.nodes).filter(|id| id % THREADS == thread).collect();
                let mut talks = Vec::new();
                for _ in &mine {
                    let all: Result<Vec<Talk>> = addresses.iter().map(|to| Talk::to(*to)).collect();
                    talks.push(all?);
                }
                let begun = Instant::now();
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    for (at, id) in mine.iter().enumerate() {
                        let due = begun + BEAT * round + BEAT * at as u32 / mine.len() as u32;
                        match due.checked_duration_since(Instant::now()) {
                            Some(wait) => std::thread::sleep(wait),
                            None if due.elapsed() > BEAT / 2 => {
                                late.fetch_add(1, Ordering::Relaxed);
                            }
                            None => {}
                        }
                        if *id > living.load(Ordering::Relaxed) {
                            continue;
                        }
                        let beat = beat_of(*id, args, started_ms);
                        for talk in &mut talks[at] {
                            let (status, answer) = talk.ask("POST /-/v1/beat", &beat)?;
                            if status != 200 {
                                let answer = String::from_utf8_lossy(&answer).into_owned();
                                return Err(Error::other(format!("a beat got {status}: {answer}")));
                            }
                            beats.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    round += 1;
                }
                Ok(())
            }));
        }
        let measured = measure(args, &trackers, &living, &beats);
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().map_err(|_| Error::other("a beating thread died"))??;
        }
        measured
    })?;
    say(format_args!("{} beats were late by more than half a beat", late.load(Ordering::Relaxed)));
    Ok(())
}

fn measure(args: &Args, trackers: &[Tracker], living: &AtomicU32, beats: &AtomicU64) -> Result<()> {
    let Some(first) = trackers.first() else { return Ok(()) };
    let mut talk = Talk::to(first.address)?;
    let silent = |talk: &mut Talk| -> Result<(usize, usize)> {
        let (_, answer) = talk.ask("GET /-/v1/nodes", "")?;
        let answer: serde_json::Value = serde_json::from_slice(&answer)?;
        let nodes = answer["nodes"].as_array().map_or(&[][..], Vec::as_slice);
        Ok((nodes.len(), nodes.iter().filter(|node| node["state"] == "offline").count()))
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while silent(&mut talk)? != (args.nodes as usize, 0) {
        if Instant::now() > deadline {
            return Err(Error::other("the trackers do not come to know all nodes"));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let (cpu, _) = spent(first.child.id())?;
    let beaten = beats.load(Ordering::Relaxed);
    let begun = Instant::now();
    let groups = args.nodes / args.replicas;
    let mut took = Vec::new();
    while begun.elapsed() < Duration::from_secs(args.seconds) {
        let group = 1 + took.len() as u32 * 7 % groups;
        let asked = Instant::now();
        let (status, _) =
            talk.ask(&format!("GET /-/v1/addresses?group={group}&for=download"), "")?;
        if status != 200 {
            return Err(Error::other(format!("an address answer got {status}")));
        }
        took.push(asked.elapsed());
        std::thread::sleep(Duration::from_millis(2));
    }
    let seconds = begun.elapsed().as_secs_f64();
    let (after, memory) = spent(first.child.id())?;
    took.sort_unstable();
    let at = |share: f64| {
        took[((took.len() as f64 * share) as usize).min(took.len() - 1)].as_secs_f64() * 1000.0
    };
    say(format_args!(
        "{} nodes, {:.0} beats/s at each of {TRACKERS} trackers: {:.1} % of a core, {memory} KiB of anonymous memory; address answers: median {:.2} ms, p99 {:.2} ms, worst {:.2} ms ({} of them)",
        args.nodes,
        (beats.load(Ordering::Relaxed) - beaten) as f64 / seconds / TRACKERS as f64,
        (after - cpu) / seconds * 100.0,
        at(0.5),
        at(0.99),
        at(1.0),
        took.len()
    ));
    living.store(args.nodes - args.lost, Ordering::Relaxed);
    let lost = Instant::now();
    loop {
        let (_, offline) = silent(&mut talk)?;
        if offline >= args.lost as usize {
            break;
        }
        if lost.elapsed() > Duration::from_secs(30) {
            return Err(Error::other(format!("{offline} of {} lost nodes are marked", args.lost)));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    say(format_args!(
        "{} nodes lost: all marked offline after {:.2} s (three beats of {} s, and up to one since the last)",
        args.lost,
        lost.elapsed().as_secs_f64(),
        BEAT.as_secs()
    ));
    Ok(())
}
