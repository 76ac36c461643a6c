//! Clients that ask for one file again and again, each as soon as it has its answer (a closed loop).
//!
//! What wrk does, for less: no parser, no clock and no change of what is waited for at each request, and all answers at
//! hand are read before the next requests go out. At 4 KiB wrk's core is full before a good server's is, and what is
//! measured then is wrk; these ask for half as much again.

use std::io::{Error, Read, Result, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::clock::now;
use crate::cluster::say;
use crate::http::{self, Head, Target};

/// How long nothing may come.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes read from a socket at a time.
const READ_BYTES: usize = 256 << 10;
/// Bytes of the longest answer head.
const HEAD_BYTES: usize = 64 << 10;
/// Events at a time.
const EVENTS: usize = 512;
/// Answers whose times are kept, and written when all is over.
const TIMES_MOST: usize = 4 << 20;
/// How every answer begins.
const STATUS: &[u8] = b"HTTP/1.1 200";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    file: Target,
    /// Clients, a connection each
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Where to write of each answer when it was asked for and when it was there: two little-endian f64, seconds of CLOCK_MONOTONIC
    #[arg(long)]
    times: Option<PathBuf>,
}

/// Prints the answers, and the seconds that they took.
pub(crate) fn run(args: &Args) -> Result<()> {
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let Target { server, path } = &args.file;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\n\r\n");
    let request = request.as_bytes();
    let mut streams = Vec::new();
    for _ in 0..args.connections {
        let stream = TcpStream::connect_timeout(server, PATIENCE)
            .map_err(|error| Error::other(format!("{server}: {error}")))?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let answer = streams.first_mut().map_or(Ok(0), |first| length(first, request))?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    for (key, stream) in streams.iter().enumerate() {
        stream.set_nonblocking(true)?;
        epoll::add(
            &epoll,
            stream,
            EventData::new_u64(key as u64),
            EventFlags::IN | EventFlags::ET,
        )?;
    }
    let mut clients: Vec<Client> =
        streams.into_iter().map(|stream| Client { stream, left: answer, asked: now() }).collect();
    let mut times = Vec::with_capacity(args.times.as_ref().map_or(0, |_| TIMES_MOST));
    let began = Instant::now();
    let ends = Duration::from_secs_f64(args.seconds);
    for client in &clients {
        http::send(&client.stream, request)?;
    }
    let mut events = Vec::with_capacity(EVENTS);
    let mut input = Vec::with_capacity(READ_BYTES);
    let mut served = Vec::new();
    let mut answers = 0u64;
    let took = loop {
        let took = began.elapsed();
        if took >= ends {
            break took;
        }
        events.clear();
        match epoll::wait(&epoll, spare_capacity(&mut events), Some(&patience)) {
            Ok(0) => return Err(Error::other(format!("nothing came for {PATIENCE:?}"))),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let key = event.data.u64() as usize;
            if clients[key].read(answer, &mut input)? {
                served.push(key);
            }
        }
        answers += served.len() as u64;
        if args.times.is_some() {
            let now = now();
            if times.len() + served.len() > TIMES_MOST {
                return Err(Error::other(format!("--times keeps {TIMES_MOST} answers at most")));
            }
            for key in &served {
                times.push([std::mem::replace(&mut clients[*key].asked, now), now]);
            }
        }
        for key in served.drain(..) {
            http::send(&clients[key].stream, request)?;
        }
    };
    if let Some(path) = &args.times {
        let bytes: Vec<u8> = times.iter().flatten().flat_map(|time| time.to_le_bytes()).collect();
        std::fs::write(path, bytes)?;
    }
    say(format_args!("{answers} {:.6}", took.as_secs_f64()));
    Ok(())
}

/// One client: its connection, and what is still to come of an answer.
struct Client {
    stream: TcpStream,
    left: usize,
    /// When it last asked, if times are kept.
    asked: f64,
}

impl Client {
    /// Reads what came of an answer of so many bytes: whether it is complete.
    fn read(&mut self, answer: usize, input: &mut Vec<u8>) -> Result<bool> {
        loop {
            input.clear();
            match rustix::net::recv(&self.stream, spare_capacity(input), RecvFlags::empty()) {
                Ok((_, 0)) => return Err(Error::other("the server closed a connection")),
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let begins = self.left == answer;
            if begins && !input.starts_with(STATUS) || input.len() > self.left {
                let line = input.split(|byte| *byte == b'\r').next().unwrap_or_default();
                let line = String::from_utf8_lossy(line);
                return Err(Error::other(format!("not the answer that the first was: {line}")));
            }
            self.left -= input.len();
            if self.left == 0 {
                self.left = answer;
                return Ok(true);
            }
            // With less than there was room for there is nothing more (epoll(7)).
            if input.len() < input.capacity() {
                return Ok(false);
            }
        }
    }
}

/// Bytes of an answer, head and body, which is read to its end.
fn length(stream: &mut TcpStream, request: &[u8]) -> Result<usize> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    let mut came = Vec::new();
    let head = loop {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece)?;
        came.extend_from_slice(&piece[..read]);
        match Head::of(&came) {
            Some(head) => break head,
            None if read > 0 && came.len() < HEAD_BYTES => {}
            None => return Err(Error::other(format!("no head within {} bytes", came.len()))),
        }
    };
    let (Some(200), Some(body)) = (head.status, head.length) else {
        let text = String::from_utf8_lossy(&came[..head.bytes]);
        return Err(Error::other(format!("not a 200 with a length: {}", text.trim_end())));
    };
    let bytes = head.bytes + body as usize;
    std::io::copy(&mut stream.take(bytes.saturating_sub(came.len()) as u64), &mut std::io::sink())?;
    Ok(bytes)
}
