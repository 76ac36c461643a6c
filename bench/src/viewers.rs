//! Viewers: many connections that each ask for the next piece of a film in a fixed time, as players do.
//!
//! One thread, one epoll. The bytes are thrown away in the kernel (`MSG_TRUNC`, tcp(7)), so that the generator
//! costs less than the server. A viewer stalls when a piece has not come by the time the next one is due.

use std::io::{Error, ErrorKind, Result};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::cluster::say;
use crate::http::{self, Head, Target};

/// Bytes taken from a socket at a time.
const TAKE: usize = 1 << 20;
/// Bytes a response head may have.
const HEAD: usize = 2048;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    film_at: Target,
    /// The film's bytes
    #[arg(long)]
    film: u64,
    /// Bytes of a piece
    #[arg(long, default_value_t = 500_000)]
    piece: u64,
    /// Milliseconds from one piece to the next
    #[arg(long, default_value_t = 2000)]
    every: u64,
    /// Viewers at first
    #[arg(long, default_value_t = 8000)]
    from: usize,
    /// Viewers at most
    #[arg(long, default_value_t = 19_500)]
    to: usize,
    /// Viewers added at each step
    #[arg(long, default_value_t = 1000)]
    step: usize,
    /// Read each step's number of viewers from a line of standard input instead, and pause until it comes
    #[arg(long)]
    told: bool,
    /// Seconds of each step that count; as many pieces before as make one round do not
    #[arg(long, default_value_t = 6)]
    hold: u64,
}

struct Viewer {
    stream: TcpStream,
    /// Bytes of the answer that have not come; `None` before its head.
    left: Option<u64>,
    head: Vec<u8>,
    due: Instant,
    at: u64,
    waiting: bool,
}

/// What one step found.
#[derive(Debug, Default)]
struct Step {
    pieces: u64,
    stalled: u64,
    /// Milliseconds from due to complete.
    took: Vec<f32>,
    /// The latest that the generator itself was, in milliseconds.
    late: f32,
}

/// Raises the number of viewers until the first stalls; one line a step.
pub(crate) fn run(args: &Args) -> Result<()> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let mut viewers = Vec::new();
    let mut told = std::io::stdin().lines();
    let mut climb = (args.from..=args.to).step_by(args.step);
    while let Some(count) = if args.told { next_told(&mut told)? } else { climb.next() } {
        while viewers.len() < count {
            let stream = TcpStream::connect(args.film_at.server)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let key = EventData::new_u64(viewers.len() as u64);
            epoll::add(&epoll, &stream, key, EventFlags::IN)?;
            let at = viewers.len() as u64 * 7 * args.piece % (args.film - args.piece);
            viewers.push(Viewer {
                stream,
                left: None,
                head: Vec::new(),
                due: Instant::now(),
                at,
                waiting: false,
            });
        }
        let step = hold(args, &epoll, &mut viewers)?;
        let mut took = step.took;
        took.sort_unstable_by(f32::total_cmp);
        let share = |share: f64| {
            took.get(((took.len() as f64 * share) as usize).min(took.len().saturating_sub(1)))
                .copied()
                .unwrap_or(0.0)
        };
        say(format_args!(
            "{{\"viewers\": {count}, \"pieces\": {}, \"rate\": {:.0}, \"stalled\": {}, \"median_ms\": {:.1}, \"p99_ms\": {:.1}, \"worst_ms\": {:.1}, \"generator_late_ms\": {:.1}}}",
            step.pieces,
            step.pieces as f64 * args.piece as f64 / args.hold as f64,
            step.stalled,
            share(0.5),
            share(0.99),
            share(1.0),
            step.late,
        ));
        if step.stalled > 0 {
            break;
        }
    }
    Ok(())
}

/// The number on the next line, if there is one.
fn next_told(lines: &mut impl Iterator<Item = Result<String>>) -> Result<Option<usize>> {
    let number = |line: Result<String>| line?.trim().parse().map_err(Error::other);
    lines.next().map(number).transpose()
}

fn hold(args: &Args, epoll: &std::os::fd::OwnedFd, viewers: &mut [Viewer]) -> Result<Step> {
    let every = Duration::from_millis(args.every);
    let mut step = Step::default();
    let begun = Instant::now();
    let counts = begun + every;
    let end = counts + Duration::from_secs(args.hold);
    // Spread over the time of a piece; the order of the due times never changes.
    let all = viewers.len() as u32;
    for (at, viewer) in viewers.iter_mut().enumerate() {
        viewer.due = begun + every * at as u32 / all;
    }
    let mut next = 0;
    let mut events = Vec::with_capacity(512);
    let mut sink = vec![0u8; TAKE];
    loop {
        let now = Instant::now();
        if now >= end && viewers.iter().all(|viewer| !viewer.waiting) || now >= end + every {
            break;
        }
        while now < end && viewers[next].due <= now {
            let viewer = &mut viewers[next];
            if now >= counts {
                step.late = step.late.max((now - viewer.due).as_secs_f32() * 1000.0);
            }
            if viewer.waiting {
                // It has missed its time; it goes on with what it waits for.
                if now >= counts {
                    step.stalled += 1;
                }
                viewer.due += every;
            } else {
                ask(args, viewer)?;
            }
            next = (next + 1) % viewers.len();
        }
        let wait = viewers[next].due.saturating_duration_since(now).min(Duration::from_millis(20));
        let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: wait.as_nanos() as i64 };
        events.clear();
        match epoll::wait(epoll, spare_capacity(&mut events), Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let viewer = &mut viewers[event.data.u64() as usize];
            if !viewer.waiting {
                return Err(Error::other("the server closed a connection"));
            }
            if take(viewer, &mut sink)? {
                viewer.waiting = false;
                let now = Instant::now();
                if now >= counts && now < end {
                    step.pieces += 1;
                    // `due` is the next piece's by now.
                    step.took.push(
                        (now + every).saturating_duration_since(viewer.due).as_secs_f32() * 1000.0,
                    );
                }
            }
        }
    }
    step.stalled += viewers.iter().filter(|viewer| viewer.waiting).count() as u64;
    Ok(step)
}

/// Asks for the next piece.
fn ask(args: &Args, viewer: &mut Viewer) -> Result<()> {
    let (first, last) = (viewer.at, viewer.at + args.piece - 1);
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: bench\r\nRange: bytes={first}-{last}\r\n\r\n",
        args.film_at.path
    );
    http::send(&viewer.stream, request.as_bytes())?;
    viewer.at = (viewer.at + args.piece) % (args.film - args.piece);
    viewer.left = None;
    viewer.due += Duration::from_millis(args.every);
    viewer.waiting = true;
    Ok(())
}

/// Takes what has come; whether the answer is complete.
fn take(viewer: &mut Viewer, sink: &mut [u8]) -> Result<bool> {
    loop {
        let Some(left) = viewer.left else {
            match rustix::net::recv(&viewer.stream, &mut sink[..HEAD], RecvFlags::empty()) {
                Ok((0, _)) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok((got, _)) => viewer.head.extend_from_slice(&sink[..got]),
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
            if let Some(head) = Head::of(&viewer.head) {
                let (Some(206), Some(length)) = (head.status, head.length) else {
                    let head = String::from_utf8_lossy(&viewer.head[..head.bytes]);
                    return Err(Error::other(format!("not a 206 with a length: {head}")));
                };
                viewer.left = Some(length - (viewer.head.len() - head.bytes) as u64);
                viewer.head.clear();
            }
            continue;
        };
        if left == 0 {
            return Ok(true);
        }
        let want = (left as usize).min(TAKE);
        // The bytes are thrown away: the buffer only says how many.
        match rustix::net::recv(&viewer.stream, &mut sink[..want], RecvFlags::TRUNC) {
            Ok((_, 0)) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok((_, got)) => viewer.left = Some(left - got as u64),
            Err(Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}
