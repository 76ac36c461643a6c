//! Listening sockets that go from a server to the one that takes over from it.
//!
//! The sockets themselves are passed (`SCM_RIGHTS`, unix(7)), and with them the connections that the kernel has
//! queued there: whichever of the two accepts, none is lost. They are asked for at an abstract socket named after the
//! address, which lives in the same network namespace as the address and ends with its last holder. Only the same
//! user's processes give and get.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};
use tokio::net::UnixListener as Asked;
use tokio::sync::Notify;

/// Descriptors a message (the kernel takes at most 253, `SCM_MAX_FD`).
const PER_MESSAGE: usize = 64;
/// Messages that are read at most: more shards than this times [`PER_MESSAGE`] no machine has.
const MESSAGES: usize = 64;
/// How long the other server may take.
const ANSWER: Duration = Duration::from_secs(5);
/// What a message says beside its descriptors.
const MORE: u8 = 1;
const LAST: u8 = 0;

/// Where a server at one address is asked for its sockets.
#[derive(Debug)]
pub(crate) struct Counter(UnixListener);

/// What was passed.
#[derive(Debug)]
pub(crate) struct Taken {
    /// Where the next one will ask.
    pub(crate) counter: Counter,
    /// The listening sockets. Each must be accepted from: the kernel goes on spreading connections over all.
    pub(crate) sockets: Vec<TcpListener>,
}

/// A server's sockets, for whoever takes over.
#[derive(Debug)]
pub(crate) struct Offer {
    /// Gone when the server stops.
    stock: Mutex<Option<Stock>>,
    withdrawn: Notify,
}

#[derive(Debug)]
struct Stock {
    counter: UnixListener,
    sockets: Vec<TcpListener>,
}

fn name(address: SocketAddr) -> io::Result<UnixAddr> {
    UnixAddr::from_abstract_name(format!("reelstore/{address}"))
}

/// Refuses another user's process.
fn same_user(stream: BorrowedFd<'_>) -> io::Result<()> {
    let other = sockopt::socket_peercred(stream)?.uid;
    if other == rustix::process::geteuid() {
        return Ok(());
    }
    let message = format!("user {} is at the other end, not this process's", other.as_raw());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

impl Counter {
    /// Opens the one of `address`.
    ///
    /// # Errors
    ///
    /// `AddrInUse` when another server has it.
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        UnixListener::bind_addr(&name(address)?).map(Self)
    }
}

/// Asks the server at `address` for its sockets; `None` when none is there that passes any. Blocks, for about
/// [`ANSWER`] at most.
pub(crate) fn take(address: SocketAddr) -> io::Result<Option<Taken>> {
    let deadline = Instant::now() + ANSWER;
    loop {
        match UnixStream::connect_addr(&name(address)?) {
            Ok(stream) => {
                if let Some(taken) = take_from(&stream)? {
                    return Ok(Some(taken));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
            Err(error) => return Err(error),
        }
        // It stops. It may have passed its sockets to a third one, which answers next.
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// `None` when the other side has nothing to pass.
fn take_from(stream: &UnixStream) -> io::Result<Option<Taken>> {
    same_user(stream.as_fd())?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut passed = Vec::new();
    for _ in 0..MESSAGES {
        match receive(stream, &mut passed)? {
            Some(MORE) => {}
            Some(_) => break,
            None => return Ok(None),
        }
    }
    let mut passed = passed.into_iter();
    let Some(counter) = passed.next() else { return Ok(None) };
    let sockets = passed.map(TcpListener::from).collect();
    Ok(Some(Taken { counter: Counter(UnixListener::from(counter)), sockets }))
}

/// Reads one message; `None` at the end of the stream.
fn receive(stream: &UnixStream, passed: &mut Vec<OwnedFd>) -> io::Result<Option<u8>> {
    let mut said = [LAST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PER_MESSAGE))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(stream, &mut [IoSliceMut::new(&mut said)], &mut rights, flags)?;
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            passed.extend(fds);
        }
    }
    Ok((got.bytes > 0).then_some(said[0]))
}

impl Offer {
    /// Offers copies of `sockets` at `counter`.
    pub(crate) fn new(counter: Counter, sockets: &[TcpListener]) -> io::Result<Arc<Self>> {
        let sockets = sockets.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?;
        counter.0.set_nonblocking(true)?;
        let stock = Mutex::new(Some(Stock { counter: counter.0, sockets }));
        Ok(Arc::new(Self { stock, withdrawn: Notify::new() }))
    }

    /// Closes the copies: nobody gets any more. To be called before the server stops to accept; with a copy open
    /// connections would queue where nobody accepts.
    pub(crate) fn withdraw(&self) {
        self.stock.lock().take();
        self.withdrawn.notify_one();
    }

    /// Passes the sockets to whoever asks, until they are withdrawn; on the control thread.
    pub(crate) async fn run(self: Arc<Self>) {
        let counter = self.stock.lock().as_ref().map(|stock| stock.counter.try_clone());
        let counter = match counter.map(|counter| counter.and_then(Asked::from_std)) {
            None => return,
            Some(Ok(counter)) => counter,
            Some(Err(error)) => {
                return tracing::error!(%error, "nobody can take over from this server");
            }
        };
        loop {
            let asked = tokio::select! {
                asked = counter.accept() => asked,
                () = self.withdrawn.notified() => return,
            };
            match asked.and_then(|(stream, _)| self.pass(&stream.into_std()?)) {
                Ok(0) => {}
                Ok(sockets) => tracing::info!(sockets, "another server takes over"),
                Err(error) => {
                    tracing::warn!(%error, "listening sockets not passed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Sends the counter and the sockets; how many. The stream does not block: an empty one has room for all.
    fn pass(&self, stream: &UnixStream) -> io::Result<usize> {
        same_user(stream.as_fd())?;
        let stock = self.stock.lock();
        let Some(Stock { counter, sockets }) = &*stock else { return Ok(0) };
        let mut all = vec![counter.as_fd()];
        all.extend(sockets.iter().map(AsFd::as_fd));
        let messages = all.len().div_ceil(PER_MESSAGE);
        for (index, fds) in all.chunks(PER_MESSAGE).enumerate() {
            let said = [if index + 1 < messages { MORE } else { LAST }];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PER_MESSAGE))];
            let mut rights = SendAncillaryBuffer::new(&mut space);
            if !rights.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(io::Error::other("a message has no room for its descriptors"));
            }
            sendmsg(stream, &[IoSlice::new(&said)], &mut rights, SendFlags::NOSIGNAL)?;
        }
        Ok(sockets.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;
    use crate::side::Side;

    /// Offers the sockets on a control thread.
    fn offered(sockets: &[TcpListener]) -> io::Result<(Side, SocketAddr, Arc<Offer>)> {
        let address = sockets[0].local_addr()?;
        let offer = Offer::new(Counter::open(address)?, sockets)?;
        let side = Side::start()?;
        side.handle().spawn(Arc::clone(&offer).run());
        Ok((side, address, offer))
    }

    #[test]
    fn what_is_queued_goes_over_with_the_sockets() -> io::Result<()> {
        let sockets = [TcpListener::bind("127.0.0.1:0")?];
        let (_side, address, offer) = offered(&sockets)?;
        drop(sockets);
        let second = Counter::open(address).map_err(|error| error.kind());
        assert_eq!(second.err(), Some(io::ErrorKind::AddrInUse));
        let mut early = TcpStream::connect(address)?;
        early.write_all(b"early")?;
        let taken = take(address)?.ok_or(io::ErrorKind::NotFound)?;
        offer.withdraw();
        assert_eq!(taken.sockets.len(), 1);
        let (mut accepted, _) = taken.sockets[0].accept()?;
        let mut got = [0; 5];
        accepted.read_exact(&mut got)?;
        assert_eq!(&got, b"early");
        Ok(())
    }

    #[test]
    fn more_sockets_than_one_message_holds_go_over() -> io::Result<()> {
        let sockets: Vec<_> = (0..2 * PER_MESSAGE + 3)
            .map(|_| TcpListener::bind("127.0.0.1:0"))
            .collect::<io::Result<_>>()?;
        let addresses = |sockets: &[TcpListener]| -> io::Result<Vec<SocketAddr>> {
            sockets.iter().map(TcpListener::local_addr).collect()
        };
        let (_side, address, _offer) = offered(&sockets)?;
        let taken = take(address)?.ok_or(io::ErrorKind::NotFound)?;
        assert_eq!(addresses(&taken.sockets)?, addresses(&sockets)?);
        Ok(())
    }

    #[test]
    fn without_a_server_or_after_its_stop_there_is_nothing_to_take() -> io::Result<()> {
        let sockets = [TcpListener::bind("127.0.0.1:0")?];
        assert!(take(sockets[0].local_addr()?)?.is_none());
        let (_side, address, offer) = offered(&sockets)?;
        offer.withdraw();
        assert!(take(address)?.is_none());
        Ok(())
    }
}
