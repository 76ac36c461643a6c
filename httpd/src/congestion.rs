//! TCP congestion control, by connection: the system's for clients, another one for what is sent to nodes of the cluster
//! (docs/decisions/0017-congestion-control.md).

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::sockopt;

/// Allowed to every process (net/ipv4/tcp_cong.c).
const ALWAYS_ALLOWED: &str = "reno";
/// Whether it was said that the configured one cannot be had.
static SAID: AtomicBool = AtomicBool::new(false);

/// What connections between machines of the cluster use; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct PeerCongestion(Rc<str>);

impl PeerCongestion {
    /// `tcp.peer_congestion`.
    pub(crate) fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The bytes of a socket that is about to be connected go out by it; where that is not allowed, by one that always is.
    /// (Afterwards is too late: a connection that bbr has begun goes on to be paced by timers under any other.)
    pub(crate) fn set(&self, socket: impl AsFd) {
        if self.0.is_empty() {
            return;
        }
        let Err(error) = sockopt::set_tcp_congestion(&socket, &self.0) else { return };
        let other = sockopt::set_tcp_congestion(&socket, ALWAYS_ALLOWED);
        if !SAID.swap(true, Ordering::Relaxed) {
            let instead = if other.is_ok() { ALWAYS_ALLOWED } else { "the system's" };
            tracing::warn!(
                wanted = &*self.0, instead, %error,
                "tcp.peer_congestion cannot be had (net.ipv4.tcp_allowed_congestion_control)"
            );
        }
    }
}

/// Sets `tcp.congestion` for all connections of a listening socket; empty keeps the system's.
pub(crate) fn set_for_clients(socket: impl AsFd, name: &str) -> io::Result<()> {
    if name.is_empty() {
        return Ok(());
    }
    sockopt::set_tcp_congestion(socket, name).map_err(|error| {
        io::Error::other(format!(
            "tcp.congestion = {name:?}: {error} (net.ipv4.tcp_available_congestion_control lists what there is; \
             without CAP_NET_ADMIN it must be in tcp_allowed_congestion_control too)"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_is_asked_for_or_the_server_does_not_begin() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        set_for_clients(&socket, "").expect("nothing to do");
        set_for_clients(&socket, ALWAYS_ALLOWED).expect("allowed");
        let address = socket.local_addr().expect("an address");
        let _client = std::net::TcpStream::connect(address).expect("connects");
        let (accepted, _) = socket.accept().expect("accepts");
        assert_eq!(sockopt::tcp_congestion(&accepted).expect("one"), ALWAYS_ALLOWED);
        let error = set_for_clients(&socket, "no-such").expect_err("refused").to_string();
        assert!(error.contains("tcp.congestion = \"no-such\""), "{error}");
    }

    #[test]
    fn what_cannot_be_had_is_replaced_by_what_always_can() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let before = sockopt::tcp_congestion(&socket).expect("one");
        PeerCongestion::new("").set(&socket);
        assert_eq!(sockopt::tcp_congestion(&socket).expect("one"), before);
        PeerCongestion::new("no-such").set(&socket);
        assert_eq!(sockopt::tcp_congestion(&socket).expect("one"), ALWAYS_ALLOWED);
    }
}
