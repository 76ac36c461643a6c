//! How a shard's connections come about: taken from a listening socket, or made.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, acceptfrom_with, sockopt};

use crate::congestion::Congestion;
use crate::reactor::Socket;

/// A wait for a connection, the next one or one in the making, which is begun again and again.
const CONNECTION_WAIT: Duration = Duration::from_secs(60);

/// A listening socket of this shard. A connection is taken only when it is handed out: one that nobody takes any more
/// stays in the kernel's queue. (An accept in the ring may take one whose future is gone.)
pub(crate) struct Listener(Socket);

impl Listener {
    /// Takes over a listening socket.
    pub(crate) fn adopt(socket: std::net::TcpListener) -> io::Result<Self> {
        Socket::adopt(socket.into()).map(Self)
    }

    /// The next connection, when there is one by then.
    pub(crate) async fn accept(&self) -> io::Result<(OwnedFd, IpAddr)> {
        loop {
            if let Some(accepted) = self.accept_now()? {
                return Ok(accepted);
            }
            // When the time is over: once more.
            let _ = self.0.readable(CONNECTION_WAIT).await;
        }
    }

    /// The next connection, if there is one already.
    pub(crate) fn accept_now(&self) -> io::Result<Option<(OwnedFd, IpAddr)>> {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match acceptfrom_with(self.0.fd(), flags) {
                Ok((fd, from)) => {
                    let from = from.and_then(|from| SocketAddr::try_from(from).ok());
                    // Gone before it was accepted, if it has no address.
                    let Some(from) = from else { continue };
                    return Ok(Some((fd, from.ip())));
                }
                Err(Errno::AGAIN) => {
                    self.0.drained();
                    return Ok(None);
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A new socket for a connection from or to `address`.
pub(crate) fn stream_socket(address: SocketAddr, flags: SocketFlags) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = flags | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

/// Connects. `congestion`: what the connection's bytes go out by.
pub(crate) async fn connect(address: SocketAddr, congestion: &Congestion) -> io::Result<Socket> {
    let fd = stream_socket(address, SocketFlags::NONBLOCK)?;
    congestion.set_connecting(&fd)?;
    match rustix::net::connect(&fd, &address) {
        // It goes on beside (connect(2)).
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = Socket::adopt(fd)?;
    // Writable when it is connected, or has failed; before that every look finds a connection in the making.
    loop {
        socket.filled();
        if rustix::net::getpeername(socket.fd()).is_ok() {
            return Ok(socket);
        }
        sockopt::socket_error(socket.fd())??;
        // When the time is over: once more. (The caller has a limit of its own.)
        let _ = socket.writable(CONNECTION_WAIT).await;
    }
}
