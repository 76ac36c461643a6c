//! A large file up and down, while the storage node's anonymous memory is watched.

use std::io::{Error, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, reel_binary, say};

/// Bytes sent and read at a time.
const PIECE: usize = 1 << 20;
/// Between looks at the memory.
const LOOK: Duration = Duration::from_millis(50);

/// Arguments of `large`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A folder on the disk to measure; a new folder is made in it, and removed
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// The `reel` binary; the one beside this when left out
    #[arg(long)]
    reel: Option<PathBuf>,
    /// Size of the file in MiB
    #[arg(long, default_value_t = 3072)]
    mib: u64,
    /// Fail when the node's RssAnon passes so many MiB
    #[arg(long)]
    at_most: Option<u64>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = args.dir.join(format!("reel-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = measure(args, &folder);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn measure(args: &Args, folder: &std::path::Path) -> Result<()> {
    let cluster = Cluster::start(&reel_binary(args.reel.as_deref())?, &folder.join("data"), &[])?;
    let (watching, highest) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let watcher = {
        let (watching, highest, pid) =
            (Arc::clone(&watching), Arc::clone(&highest), cluster.storage.pid);
        std::thread::spawn(move || {
            while watching.load(Ordering::Relaxed) {
                highest.fetch_max(rss_anon(pid).unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(LOOK);
            }
        })
    };
    let result = up_and_down(cluster.http, args.mib << 20);
    watching.store(false, Ordering::Relaxed);
    watcher.join().map_err(|_| Error::other("the watcher panicked"))?;
    let (up, down) = result?;
    let mib = highest.load(Ordering::Relaxed) >> 20;
    let rate = |time: Duration| args.mib as f64 / time.as_secs_f64();
    say(format_args!(
        "{} MiB through the HTTP server: up {:.0} MiB/s, down {:.0} MiB/s, equal; storage node's RssAnon at most {mib} MiB",
        args.mib,
        rate(up),
        rate(down),
    ));
    match args.at_most {
        Some(most) if mib > most => Err(Error::other(format!("RssAnon is above {most} MiB"))),
        _ => Ok(()),
    }
}

/// A process's anonymous memory in bytes.
pub(crate) fn rss_anon(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Byte `at` of the file: every 8 bytes differ from those of any other place.
fn fill(piece: &mut [u8], at: u64) {
    for (index, word) in piece.chunks_exact_mut(8).enumerate() {
        let value = (at / 8 + index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&value.to_le_bytes());
    }
}

fn up_and_down(address: SocketAddr, bytes: u64) -> Result<(Duration, Duration)> {
    let started = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "PUT /bench/large.bin HTTP/1.1\r\nHost: bench\r\nContent-Length: {bytes}\r\n\r\n"
    )?;
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < bytes {
        let now = (bytes - at).min(PIECE as u64) as usize;
        fill(&mut piece[..now], at);
        stream.write_all(&piece[..now])?;
        at += now as u64;
    }
    let mut head = [0; 4096];
    let read = stream.read(&mut head)?;
    if !head[..read].starts_with(b"HTTP/1.1 201") {
        return Err(Error::other(String::from_utf8_lossy(&head[..read]).into_owned()));
    }
    let up = started.elapsed();
    let started = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET /bench/large.bin HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let mut expected = vec![0; PIECE];
    let mut at = 0;
    while at < bytes {
        let now = (bytes - at).min(PIECE as u64) as usize;
        stream.read_exact(&mut piece[..now])?;
        fill(&mut expected[..now], at);
        if piece[..now] != expected[..now] {
            return Err(Error::other(format!("wrong bytes near {at}")));
        }
        at += now as u64;
    }
    Ok((up, started.elapsed()))
}
