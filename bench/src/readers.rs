//! Readers of many files at a steady pace, that say of each answer when it was asked for, how long it took, and whether
//! it was right: what viewers notice while something else goes on. A thread each; little work, so that their own turn
//! at the processor is not what they measure.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use crate::clock::now;
use crate::cluster::say;
use crate::http::Head;

/// Files above this are asked for by ranges of [`PART`] bytes; only the length of those is looked at.
const WHOLE: u64 = 1 << 20;
const PART: u64 = 65_536;
/// How long an answer may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The server
    #[arg(long)]
    server: SocketAddr,
    /// The files: a line `PATH BYTES CRC32` each, the checksum in decimal
    #[arg(long)]
    files: PathBuf,
    /// Readers
    #[arg(long, default_value_t = 4)]
    readers: u64,
    /// Milliseconds between an answer and the next request of a reader
    #[arg(long, default_value_t = 10)]
    every: u64,
    /// Percent of the requests that ask for a part of a large file
    #[arg(long, default_value_t = 20)]
    large: u64,
    /// Seconds until the end; it also ends when its standard input does
    #[arg(long, default_value_t = 600)]
    seconds: u64,
}

#[derive(Debug)]
struct File {
    path: String,
    bytes: u64,
    crc: u32,
}

/// Prints `SECONDS MICROSECONDS RIGHT` for each answer: CLOCK_MONOTONIC when it was asked for, how long it took, 1 or 0.
pub(crate) fn run(args: &Args) -> Result<()> {
    let text = std::fs::read_to_string(&args.files)?;
    let files = text.lines().map(parse).collect::<Option<Vec<File>>>();
    let files = files.ok_or_else(|| {
        let what = format!("{}: a line is not `PATH BYTES CRC32`", args.files.display());
        Error::new(ErrorKind::InvalidData, what)
    })?;
    let (large, small): (Vec<File>, Vec<File>) =
        files.into_iter().partition(|file| file.bytes > WHOLE);
    let ends = now() + args.seconds as f64;
    std::thread::spawn(|| {
        // The readers are a child's: they end with their parent.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    std::thread::scope(|scope| {
        for seed in 0..args.readers {
            let (small, large) = (&small, &large);
            scope.spawn(move || read_on(args, small, large, seed, ends));
        }
    });
    Ok(())
}

fn parse(line: &str) -> Option<File> {
    let mut words = line.rsplitn(3, ' ');
    let (crc, bytes, path) = (words.next()?, words.next()?, words.next()?);
    Some(File { path: path.to_owned(), bytes: bytes.parse().ok()?, crc: crc.parse().ok()? })
}

fn read_on(args: &Args, small: &[File], large: &[File], seed: u64, ends: f64) {
    let mut dice = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut roll = move |sides: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % sides.max(1)
    };
    let mut stream = None;
    let mut body = Vec::new();
    while now() < ends {
        std::thread::sleep(Duration::from_millis(args.every));
        let wants_large = small.is_empty() || (roll(100) < args.large && !large.is_empty());
        let among = if wants_large { large } else { small };
        let Some(file) = among.get(roll(among.len() as u64) as usize) else { return };
        let first = (file.bytes > WHOLE).then(|| roll(file.bytes - PART));
        let begun = now();
        let status = ask(args.server, &mut stream, &file.path, first, &mut body);
        let took = now() - begun;
        let right = match (status, first) {
            (Ok(206), Some(_)) => body.len() as u64 == PART,
            (Ok(200), None) => {
                body.len() as u64 == file.bytes && crc32fast::hash(&body) == file.crc
            }
            _ => {
                stream = None;
                false
            }
        };
        say(format_args!("{begun:.6} {:.0} {}", took * 1e6, u8::from(right)));
    }
}

/// Asks over a kept connection; the status, and the body in `body`.
fn ask(
    server: SocketAddr,
    kept: &mut Option<TcpStream>,
    path: &str,
    first: Option<u64>,
    body: &mut Vec<u8>,
) -> Result<u16> {
    let stream = match kept {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            kept.insert(stream)
        }
    };
    let range = first
        .map_or(String::new(), |first| format!("Range: bytes={first}-{}\r\n", first + PART - 1));
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: readers\r\n{range}\r\n").as_bytes())?;
    body.clear();
    let mut piece = [0; 65_536];
    let (end, length, status) = loop {
        let read = stream.read(&mut piece)?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        body.extend_from_slice(&piece[..read]);
        let Some(head) = Head::of(body) else { continue };
        let (Some(length), Some(status)) = (head.length, head.status) else {
            return Err(Error::new(ErrorKind::InvalidData, "not a head with a length"));
        };
        break (head.bytes, length, status);
    };
    body.drain(..end);
    while (body.len() as u64) < length {
        let read = stream.read(&mut piece)?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        body.extend_from_slice(&piece[..read]);
    }
    Ok(status)
}
