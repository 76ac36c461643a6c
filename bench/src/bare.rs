//! What the kernel alone asks for a small answer: one epoll, one read, one send of the same bytes from memory.
//!
//! No parsing, no name, no metrics: a floor for `bench/beside/serve.py`, to stand beside servers of the same core.

use std::io::Result;
use std::net::{SocketAddr, TcpListener, TcpStream};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::cluster::say;

/// Bytes of a request.
const REQUEST: usize = 16 << 10;
/// The listening socket's key; connections have their place.
const LISTENER: u64 = u64::MAX;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Bytes of each answer's body
    #[arg(long, default_value_t = 4096)]
    bytes: usize,
}

/// Answers until it is ended.
pub(crate) fn run(args: &Args) -> Result<()> {
    let listener = TcpListener::bind(args.listen)?;
    say(format_args!("{}", listener.local_addr()?));
    let answer = answer(args.bytes);
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut connections: Vec<Option<TcpStream>> = Vec::new();
    let mut events = Vec::with_capacity(256);
    let mut request = vec![0u8; REQUEST];
    loop {
        events.clear();
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            if event.data.u64() == LISTENER {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                let key = EventData::new_u64(connections.len() as u64);
                epoll::add(&epoll, &stream, key, EventFlags::IN | EventFlags::ET)?;
                connections.push(Some(stream));
                continue;
            }
            let place = &mut connections[event.data.u64() as usize];
            let Some(stream) = place else { continue };
            let alive = match rustix::net::recv(&*stream, &mut request[..], RecvFlags::empty()) {
                Ok((0, _)) => false,
                Ok(_) => rustix::net::send(&*stream, &answer, SendFlags::NOSIGNAL)
                    .is_ok_and(|sent| sent == answer.len()),
                Err(error) => error == Errno::AGAIN,
            };
            if !alive {
                *place = None;
            }
        }
    }
}

/// A head as long as Reelstore's, and a body.
fn answer(bytes: usize) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nDate: Tue, 24 Nov 2026 10:00:00 GMT\r\nReel-Node: 101\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: *\r\nETag: \"100000-abcdef12\"\r\nLast-Modified: Tue, 24 Nov 2026 10:00:00 GMT\r\nAccept-Ranges: bytes\r\nReel-Crc32: 12345678\r\nContent-Type: video/mp4\r\nContent-Length: {bytes}\r\n\r\n"
    )
    .into_bytes();
    answer.resize(answer.len() + bytes, b'x');
    answer
}
