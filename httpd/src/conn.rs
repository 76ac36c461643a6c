//! A connection of a shard: buffered input, gathered output, bodies in and out, all with time limits.
//!
//! The socket is non-blocking; system calls are made on the spot, and when one would block the
//! task awaits readiness ([`crate::reactor`]). So nothing in flight owns a buffer, and every wait may
//! be cut short.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::pipe::{SpliceFlags, splice};

use crate::buffers::{self, READ_BYTES};
use crate::http::body::Decoder;
use crate::pipes::{PIPE_BYTES, Pipe};
use crate::prompt::{Desk, Left};
use crate::reactor::Socket;
use crate::readiness::TimedOut;
use crate::turns::{self, Grant, Turn};
use crate::upstream::Slot;
use crate::whole::{FilePart, Rest};

/// Gathered output is sent when it has so many bytes, or before the connection waits for input.
const GATHER_BYTES: usize = 256 * 1024;
/// From this many bytes on, a body is sent in whole segments. Less leaves no remainder that an acknowledgement could
/// push out: the kernel takes 64 KiB of a file at a time.
pub(crate) const CORK_BYTES: u64 = 128 * 1024;

/// How long a body may be slower than the least rate at its beginning.
const RATE_GRACE: Duration = Duration::from_secs(30);

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnError {
    /// The other side closed it.
    #[error("the connection was closed")]
    Closed,
    /// Nothing moved for too long.
    #[error("no progress within the time limit")]
    Stalled,
    /// The rate is below the least (`limits.min_rate`).
    #[error("slower than limits.min_rate")]
    Slow,
    /// The body is not framed as it says.
    #[error("{0}")]
    Body(#[from] crate::http::body::BodyError),
    /// A system call failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl From<Errno> for ConnError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::PIPE | Errno::CONNRESET => Self::Closed,
            error => Self::Io(error.into()),
        }
    }
}

impl From<TimedOut> for ConnError {
    fn from(_: TimedOut) -> Self {
        Self::Stalled
    }
}

pub(crate) struct Conn {
    socket: Socket,
    input: Vec<u8>,
    /// Input before this was used up.
    start: usize,
    out: Vec<u8>,
    stall: Duration,
    /// The body of the request in progress.
    pub(crate) body: Decoder,
    /// Bytes sent so far.
    pub(crate) sent: u64,
    /// Those of them that are files'.
    pub(crate) filed: u64,
    /// When the input came.
    came: Instant,
    /// Who is at the other end.
    client: IpAddr,
    /// When the request in progress was read, and what had passed then.
    began: Instant,
    passed: u64,
    /// Body bytes received so far.
    received: u64,
    /// Bytes a second below which a body is given up; 0 for none.
    min_rate: u64,
    /// Whether only whole segments go out.
    corked: bool,
    /// The turn that the request in progress was read in.
    grant: Option<Grant>,
    /// What is left of an answer that was begun while this waited.
    left: Option<Box<Rest>>,
    _slot: Option<Slot>,
}

impl Conn {
    /// Takes over a connected socket. `stall` is how long a body may go without progress.
    pub(crate) fn new(socket: OwnedFd, stall: Duration) -> Result<Self, ConnError> {
        Self::on(Socket::adopt(socket)?, stall)
    }

    /// The same for one that is waited for already.
    pub(crate) fn on(socket: Socket, stall: Duration) -> Result<Self, ConnError> {
        // Without it small answers wait for acknowledgements of earlier ones.
        rustix::net::sockopt::set_tcp_nodelay(socket.fd(), true)?;
        Ok(Self {
            socket,
            input: Vec::new(),
            start: 0,
            out: Vec::new(),
            stall,
            body: Decoder::new(crate::http::request::Framing::None),
            sent: 0,
            filed: 0,
            came: Instant::now(),
            client: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            began: Instant::now(),
            passed: 0,
            received: 0,
            min_rate: 0,
            corked: false,
            grant: None,
            left: None,
            _slot: None,
        })
    }

    /// Bytes sent so far, those gathered among them.
    pub(crate) fn given(&self) -> u64 {
        self.sent + self.out.len() as u64
    }

    /// Says who is at the other end, and how fast that one must be.
    pub(crate) fn of(self, client: IpAddr, min_rate: u64) -> Self {
        Self { client, min_rate, ..self }
    }

    /// From now on a body may go so long without progress.
    pub(crate) fn stall_after(&mut self, stall: Duration) {
        self.stall = stall;
    }

    /// Takes a place among the connections to a node.
    pub(crate) fn in_slot(self, slot: Slot) -> Self {
        Self { _slot: Some(slot), ..self }
    }

    /// A request was read: from here on its bodies' rate counts.
    pub(crate) fn begin(&mut self) {
        if self.min_rate > 0 {
            self.began = self.came;
            self.passed = self.sent + self.received;
        }
    }

    /// The other side must keep up a rate, on the average since the request, or it is given up.
    fn check_rate(&self) -> Result<(), ConnError> {
        if self.min_rate == 0 {
            return Ok(());
        }
        let seconds = self.began.elapsed().as_secs();
        let passed = self.sent + self.received - self.passed;
        if seconds >= RATE_GRACE.as_secs() && passed < self.min_rate * seconds {
            return Err(ConnError::Slow);
        }
        Ok(())
    }

    /// Who is at the other end.
    pub(crate) fn client(&self) -> IpAddr {
        self.client
    }

    /// When the request in progress came: one look at the clock for all that became ready with it.
    pub(crate) fn came(&self) -> Instant {
        self.came
    }

    /// Input has come: when it woke the task, or now.
    fn note_arrival(&mut self) {
        self.came = self.socket.woken().unwrap_or_else(Instant::now);
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    /// Input that has come and is not used up.
    pub(crate) fn input(&self) -> &[u8] {
        &self.input[self.start..]
    }

    /// Marks input as used up.
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        if self.start == self.input.len() {
            self.start = 0;
            buffers::give(std::mem::take(&mut self.input));
        }
    }

    /// Waits for room in the socket.
    pub(crate) async fn writable(&self) -> Result<(), ConnError> {
        self.check_rate()?;
        self.socket.filled();
        Ok(self.socket.writable(self.stall).await?)
    }

    /// Waits for more input, at most `limit`, or, if it is attended, until an answer was begun that is to be
    /// [ended](Self::left); what was gathered is sent before.
    pub(crate) async fn fill(&mut self, limit: Duration) -> Result<(), ConnError> {
        self.flush().await?;
        if self.start > 0 {
            self.input.drain(..self.start);
            self.start = 0;
        }
        loop {
            match self.socket.left() {
                Some(Left::Input(bytes)) => {
                    self.input = bytes;
                    self.note_arrival();
                    return Ok(());
                }
                Some(Left::Output(rest)) => {
                    self.left = Some(Box::new(rest));
                    return Ok(());
                }
                None => {}
            }
            if !self.socket.may_read() {
                self.socket.readable(limit).await?;
                continue;
            }
            if self.input.capacity() == 0 {
                self.input = buffers::take();
            }
            self.input.reserve(READ_BYTES);
            let room = spare_capacity(&mut self.input);
            match rustix::net::recv(self.socket.fd(), room, RecvFlags::empty()) {
                Ok((_, 0)) => return Err(ConnError::Closed),
                Ok(_) => {
                    if self.input.len() < self.input.capacity() {
                        self.socket.read_short();
                    }
                    self.note_arrival();
                    return Ok(());
                }
                Err(Errno::AGAIN) => {
                    // A waiting connection keeps no buffer.
                    if self.input.is_empty() {
                        buffers::give(std::mem::take(&mut self.input));
                    }
                    self.socket.drained();
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for the next request, at most `limit`, when nothing of it has come; `desk` answers those that it can while
    /// the connection waits, and each begins the time anew.
    pub(crate) async fn fill_attended(
        &mut self,
        limit: Duration,
        desk: &Rc<dyn Desk>,
    ) -> Result<(), ConnError> {
        // What is still to be sent goes before what is answered meanwhile.
        self.flush().await?;
        self.socket.attend(desk, self.client, limit);
        let filled = self.fill(limit).await;
        self.socket.attend_no_more();
        filled
    }

    /// [`Conn::fill`] for a connection whose next answer is thought to be a part of a file of `bytes`: reads in its turn.
    pub(crate) async fn fill_in_turn(
        &mut self,
        limit: Duration,
        bytes: u64,
        desk: Option<&Rc<dyn Desk>>,
    ) -> Result<(), ConnError> {
        self.flush().await?;
        self.socket.read_in_turn(bytes);
        if let Some(desk) = desk {
            self.socket.attend(desk, self.client, limit);
        }
        let filled = self.fill(limit).await;
        self.socket.attend_no_more();
        self.grant = self.socket.read_at_once();
        filled
    }

    /// Whether an answer was begun while this waited for input that is to be ended.
    pub(crate) fn has_left(&self) -> bool {
        self.left.is_some()
    }

    /// What is left of an answer that was begun while this waited for input, to be ended before it waits again.
    pub(crate) fn left(&mut self) -> Option<Box<Rest>> {
        self.left.take()
    }

    /// The turn of the request in progress: what it was read in, or none yet.
    pub(crate) fn turn(&mut self) -> Turn {
        self.grant.take().map_or_else(Turn::default, Turn::from)
    }

    /// The request in progress was answered: its turn is over, used or not.
    pub(crate) fn end_turn(&mut self) {
        drop(self.turn());
    }

    /// Appends body bytes to `into` until it holds `full` bytes or the body is complete.
    pub(crate) async fn read_body(
        &mut self,
        into: &mut Vec<u8>,
        full: usize,
    ) -> Result<(), ConnError> {
        while into.len() < full && !self.body.is_done() {
            if self.input().is_empty() {
                match self.body.remaining() {
                    Some(left) => self.read_straight(into, full, left).await?,
                    None => {
                        self.check_rate()?;
                        self.fill(self.stall).await?;
                    }
                }
                continue;
            }
            self.take_buffered(into, full)?;
        }
        Ok(())
    }

    /// Appends the body bytes that are there, at least one (unless the body is complete) and at
    /// most so many that `into` holds `full`.
    pub(crate) async fn read_some(
        &mut self,
        into: &mut Vec<u8>,
        full: usize,
    ) -> Result<(), ConnError> {
        let before = into.len();
        while into.len() == before && !self.body.is_done() {
            let buffered = self.input().len();
            let now = if buffered > 0 { full.min(before + buffered) } else { full };
            match self.body.remaining() {
                Some(left) if buffered == 0 => self.read_straight(into, now, left).await?,
                None if buffered == 0 => self.fill(self.stall).await?,
                _ => self.take_buffered(into, now)?,
            }
        }
        Ok(())
    }

    /// Moves body bytes from the input buffer to `into`, up to `full` there.
    fn take_buffered(&mut self, into: &mut Vec<u8>, full: usize) -> Result<(), ConnError> {
        let take = self.input().len().min(full - into.len());
        let step = self.body.step(&self.input[self.start..self.start + take])?;
        into.extend_from_slice(
            &self.input[self.start + step.payload.start..self.start + step.payload.end],
        );
        self.received += (step.payload.end - step.payload.start) as u64;
        self.consume(step.used);
        Ok(())
    }

    /// Reads body bytes from the socket straight into the caller's buffer.
    async fn read_straight(
        &mut self,
        into: &mut Vec<u8>,
        full: usize,
        left: u64,
    ) -> Result<(), ConnError> {
        self.flush().await?;
        let want = ((full - into.len()) as u64).min(left) as usize;
        if into.capacity() - into.len() < want {
            into.reserve_exact(want);
        }
        let before = into.len();
        loop {
            if !self.socket.may_read() {
                self.check_rate()?;
                self.socket.readable(self.stall).await?;
            }
            match read_spare(self.socket.fd(), into, want) {
                Ok(0) => return Err(ConnError::Closed),
                Ok(read) => {
                    self.body.step(&into[before..before + read])?;
                    self.received += read as u64;
                    turns::note_others(Instant::now());
                    return Ok(());
                }
                Err(Errno::AGAIN) => self.socket.drained(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The gathered output, to be appended to; [`Conn::flush_if_full`] must follow.
    pub(crate) fn out(&mut self) -> &mut Vec<u8> {
        if self.out.capacity() == 0 {
            self.out = buffers::take();
        }
        &mut self.out
    }

    /// Sends what was gathered when it is much.
    pub(crate) async fn flush_if_full(&mut self) -> Result<(), ConnError> {
        if self.out.len() >= GATHER_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Gathers output; it goes out with what follows, at the latest before the connection waits.
    pub(crate) async fn queue(&mut self, bytes: &[u8]) -> Result<(), ConnError> {
        self.out().extend_from_slice(bytes);
        self.flush_if_full().await
    }

    /// Sends what was gathered.
    pub(crate) async fn flush(&mut self) -> Result<(), ConnError> {
        if self.out.is_empty() {
            return Ok(());
        }
        let out = std::mem::take(&mut self.out);
        self.send_all(&out, SendFlags::NOSIGNAL).await?;
        buffers::give(out);
        Ok(())
    }

    /// Sends bytes now, behind what was gathered.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), ConnError> {
        self.flush().await?;
        self.send_all(bytes, SendFlags::NOSIGNAL).await
    }

    async fn send_all(&mut self, mut bytes: &[u8], flags: SendFlags) -> Result<(), ConnError> {
        while !bytes.is_empty() {
            match self.send_now(bytes, flags)? {
                0 => self.writable().await?,
                sent => bytes = &bytes[sent..],
            }
        }
        Ok(())
    }

    /// Sends bytes behind what was gathered, from where they lie if nothing is in the way; what does not
    /// go at once is gathered. [`Conn::flush_if_full`] must follow.
    pub(crate) fn send_at_once(&mut self, bytes: &[u8]) {
        let mut sent = 0;
        // With more requests at hand, their answers go out together.
        if self.out.is_empty() && self.input().is_empty() {
            // A failure shows again when the rest is flushed.
            sent = self.send_now(bytes, SendFlags::NOSIGNAL).unwrap_or(0);
        }
        if sent < bytes.len() {
            self.out().extend_from_slice(&bytes[sent..]);
        }
    }

    /// Sends what an answer that was begun for this connection has left.
    pub(crate) async fn send_rest(&mut self, rest: Rest, turn: &mut Turn) -> Result<(), ConnError> {
        // Its request was read elsewhere: the rate counts from there on.
        self.note_arrival();
        self.begin();
        self.out = rest.bytes;
        self.corked = rest.is_corked;
        match rest.body {
            Some(part) => self.send_part(&part, turn).await?,
            None => self.flush().await?,
        }
        self.uncork()
    }

    /// Sends a part of a file that is in the page cache, behind what was gathered.
    pub(crate) async fn send_part(
        &mut self,
        part: &FilePart,
        turn: &mut Turn,
    ) -> Result<(), ConnError> {
        let file = part.file().ok_or(ConnError::Closed)?;
        self.flush_before_file().await?;
        self.send_file(file, part.offset, part.length, turn).await
    }

    /// Sends as many bytes as there is room for; what was gathered must be out.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> Result<usize, ConnError> {
        self.send_now(bytes, SendFlags::NOSIGNAL)
    }

    /// One send; 0 when there is no room.
    fn send_now(&mut self, bytes: &[u8], flags: SendFlags) -> Result<usize, ConnError> {
        loop {
            match rustix::net::send(self.fd(), bytes, flags) {
                Ok(sent) => {
                    self.sent += sent as u64;
                    return Ok(sent);
                }
                Err(Errno::AGAIN) => return Ok(0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Moves bytes of a body of known length from `from` into an empty pipe; how many.
    pub(crate) async fn splice_in(&mut self, pipe: &Pipe) -> Result<usize, ConnError> {
        let left = self.body.remaining().unwrap_or(0).min(PIPE_BYTES as u64) as usize;
        loop {
            if !self.socket.may_read() {
                self.check_rate()?;
                self.socket.readable(self.stall).await?;
            }
            let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
            match splice(self.socket.fd(), None, &pipe.write, None, left, flags) {
                Ok(0) => return Err(ConnError::Closed),
                Ok(moved) => {
                    self.body.skip(moved as u64);
                    self.received += moved as u64;
                    return Ok(moved);
                }
                Err(Errno::AGAIN) => self.socket.drained(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Moves `bytes` from a pipe to the client. `more`: further ones follow at once.
    pub(crate) async fn splice_out(
        &mut self,
        pipe: &Pipe,
        mut bytes: usize,
        more: bool,
    ) -> Result<(), ConnError> {
        let mut flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        if more {
            flags |= SpliceFlags::MORE;
        }
        while bytes > 0 {
            match splice(&pipe.read, None, self.socket.fd(), None, bytes, flags) {
                Ok(moved) => {
                    self.sent += moved as u64;
                    bytes -= moved;
                }
                Err(Errno::AGAIN) => self.writable().await?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// `bytes` follow, in portions. If they are many, only whole segments go out until [`Conn::uncork`], or after 200 ms
    /// (TCP_CORK, tcp(7)): what a portion leaves over is no segment of its own then, which it would become with each
    /// acknowledgement that comes in between.
    pub(crate) fn cork(&mut self, bytes: u64) -> Result<(), ConnError> {
        if bytes >= CORK_BYTES && !self.corked {
            rustix::net::sockopt::set_tcp_cork(self.fd(), true)?;
            self.corked = true;
        }
        Ok(())
    }

    /// Sends what is left of what was corked.
    pub(crate) fn uncork(&mut self) -> Result<(), ConnError> {
        if self.corked {
            rustix::net::sockopt::set_tcp_cork(self.fd(), false)?;
            self.corked = false;
        }
        Ok(())
    }

    /// Sends what was gathered, telling the kernel that a file follows (one segment for both).
    pub(crate) async fn flush_before_file(&mut self) -> Result<(), ConnError> {
        let out = std::mem::take(&mut self.out);
        self.send_all(&out, SendFlags::NOSIGNAL | SendFlags::MORE).await?;
        buffers::give(out);
        Ok(())
    }

    /// Sends a part of a file from the page cache, without a copy through this process, as `turn` permits.
    pub(crate) async fn send_file(
        &mut self,
        file: &File,
        offset: u64,
        length: u64,
        turn: &mut Turn,
    ) -> Result<(), ConnError> {
        let mut at = offset;
        let end = offset + length;
        while at < end {
            let portion = (end - at).min(turns::PORTION) as usize;
            turn.take(portion as u64, turns::WARM).await;
            let result = rustix::fs::sendfile(self.fd(), file, Some(&mut at), portion);
            let sent = *result.as_ref().unwrap_or(&0);
            turn.sent(portion as u64, (portion - sent) as u64, turns::WARM);
            match result {
                Ok(0) => return Err(ConnError::Io(std::io::ErrorKind::UnexpectedEof.into())),
                // A socket that took less is tried once more: acknowledgements come in meanwhile, and waiting at
                // once cost 16 MiB bodies 1.3 times the CPU.
                Ok(_) => {
                    self.sent += sent as u64;
                    self.filed += sent as u64;
                }
                Err(Errno::AGAIN) => self.writable().await?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Reads at most `want` bytes into the spare capacity, which is larger perhaps, and appends them. The room is not
/// filled with zeros before: of a large piece a read finds a part only.
#[expect(unsafe_code, reason = "says how much of the spare capacity was read into")]
fn read_spare(fd: BorrowedFd<'_>, into: &mut Vec<u8>, want: usize) -> Result<usize, Errno> {
    let spare = &mut into.spare_capacity_mut()[..want];
    let read = rustix::net::recv(fd, spare, RecvFlags::empty())?.1;
    // SAFETY: the kernel has written so many bytes behind the vector's end, within its capacity.
    unsafe { into.set_len(into.len() + read) };
    Ok(read)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Runs `test` with a connection.
    fn connected(test: impl FnOnce(Conn)) {
        crate::reactor::on_a_shard(async {
            let (stream, _server) = crate::reactor::connected();
            test(Conn::new(stream.into(), Duration::from_secs(1)).expect("adopted"));
        });
    }

    #[test]
    fn long_bodies_are_corked_and_nothing_stays_so() {
        connected(|mut conn| {
            let corked = |conn: &Conn| rustix::net::sockopt::tcp_cork(conn.fd()).expect("asked");
            conn.cork(CORK_BYTES - 1).expect("set");
            assert!(!corked(&conn), "a short body has no remainders");
            conn.cork(CORK_BYTES).expect("set");
            assert!(corked(&conn));
            conn.uncork().expect("set");
            assert!(!corked(&conn), "the last segment is out");
            rustix::net::sockopt::set_tcp_cork(conn.fd(), true).expect("set");
            let rest = Rest { bytes: b"rest".to_vec(), body: None, is_corked: true, begun: None };
            let sent = conn.send_rest(rest, &mut Turn::default()).now_or_never();
            assert!(sent.is_some_and(|sent| sent.is_ok()));
            assert!(!corked(&conn), "nor what was left of a piece");
        });
    }

    #[test]
    fn whoever_is_slower_than_the_least_rate_for_long_is_given_up() {
        connected(|conn| {
            let mut conn = conn.of(IpAddr::V4(Ipv4Addr::LOCALHOST), 1000);
            conn.begin();
            assert!(conn.check_rate().is_ok(), "it has just begun");
            conn.began = Instant::now() - RATE_GRACE - Duration::from_secs(10);
            conn.received = 39_000;
            assert!(matches!(conn.check_rate(), Err(ConnError::Slow)));
            conn.sent = 1_000;
            assert!(conn.check_rate().is_ok(), "both directions count");
            conn.begin();
            conn.began = Instant::now() - RATE_GRACE;
            assert!(conn.check_rate().is_err(), "what passed before does not count");
            let rest =
                Rest { bytes: b"the rest".to_vec(), body: None, is_corked: false, begun: None };
            let sent = conn.send_rest(rest, &mut Turn::default()).now_or_never();
            assert!(sent.is_some_and(|sent| sent.is_ok()));
            assert!(conn.check_rate().is_ok(), "what a desk left counts from its own request on");
            conn.began = Instant::now() - RATE_GRACE;
            assert!(conn.check_rate().is_err(), "and from then on it does");
            conn.min_rate = 0;
            assert!(conn.check_rate().is_ok(), "no limit");
        });
    }
}
