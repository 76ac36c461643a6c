//! HTTP load from one thread: many kept connections, one request at a time on each.

use std::cell::{Cell, RefCell};
use std::io::{Error, Result};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::TcpStream;

use crate::http::Head;

/// What a run found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    /// Requests answered with 2xx.
    pub(crate) done: u64,
    /// Requests answered otherwise.
    pub(crate) refused: u64,
    /// Seconds it took.
    pub(crate) seconds: f64,
    /// Latencies in microseconds, sorted.
    pub(crate) micros: Vec<u32>,
}

impl Found {
    pub(crate) fn rate(&self) -> f64 {
        self.done as f64 / self.seconds
    }

    /// The latency that a share of the requests did not exceed, in milliseconds.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let at =
            ((self.micros.len() as f64 * share) as usize).min(self.micros.len().saturating_sub(1));
        self.micros.get(at).map_or(0.0, |micros| f64::from(*micros) / 1000.0)
    }
}

/// PUTs of new names, `bytes` each, from `connections` connections for `time`.
pub(crate) fn puts(
    address: SocketAddr,
    prefix: &str,
    connections: usize,
    bytes: usize,
    time: Duration,
) -> Result<Found> {
    let mut runtime =
        monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().enable_timer().build()?;
    runtime.block_on(async {
        let found = Rc::new(RefCell::new(Found::default()));
        let names = Rc::new(Cell::new(0u64));
        let started = Instant::now();
        let mut tasks = Vec::new();
        for _ in 0..connections {
            let (found, names, prefix) = (Rc::clone(&found), Rc::clone(&names), prefix.to_owned());
            tasks.push(monoio::spawn(async move {
                let mut stream = TcpStream::connect_addr(address).await?;
                stream.set_nodelay(true)?;
                let body = vec![0xa7u8; bytes];
                let mut buffer = vec![0u8; 4096];
                while started.elapsed() < time {
                    let name = names.replace(names.get() + 1);
                    let mut request = format!("PUT /bench/{prefix}/{name} HTTP/1.1\r\nHost: bench\r\nContent-Length: {bytes}\r\n\r\n").into_bytes();
                    request.extend_from_slice(&body);
                    let begun = Instant::now();
                    stream.write_all(request).await.0?;
                    let (status, back) = answer(&mut stream, buffer).await?;
                    buffer = back;
                    let mut found = found.borrow_mut();
                    if (200..300).contains(&status) {
                        found.done += 1;
                        found.micros.push(begun.elapsed().as_micros() as u32);
                    } else {
                        found.refused += 1;
                    }
                }
                Result::Ok(())
            }));
        }
        for task in tasks {
            task.await?;
        }
        let mut found = found.borrow().clone();
        found.seconds = started.elapsed().as_secs_f64();
        found.micros.sort_unstable();
        Ok(found)
    })
}

/// Reads one answer with a Content-Length that fits the buffer: its status.
async fn answer(stream: &mut TcpStream, mut buffer: Vec<u8>) -> Result<(u16, Vec<u8>)> {
    let mut text = Vec::new();
    loop {
        let (read, back) = stream.read(buffer).await;
        buffer = back;
        let read = read?;
        if read == 0 {
            return Err(Error::other("the server closed the connection"));
        }
        text.extend_from_slice(&buffer[..read]);
        let Some(head) = Head::of(&text) else { continue };
        if text.len() as u64 >= head.bytes as u64 + head.length.unwrap_or(0) {
            let status = head.status.unwrap_or(0);
            return Ok((status, buffer));
        }
    }
}
