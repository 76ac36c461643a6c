//! TCP congestion control, by connection: far clients get the system's, what is near another one
//! (docs/decisions/0017-congestion-control.md).
//!
//! Near are the nodes of the cluster, and clients whose address is not routed in the internet: HTTP servers, other
//! nodes, proxies of the same network. A connection that bbr has begun goes on to be paced by timers under any other
//! control (`sk_pacing_status` is never taken back), while one that another has begun may go over to bbr. So listening
//! sockets have what near clients get, and the far ones are changed when they are accepted.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use reel_control::config::TcpConfig;
use rustix::net::{SocketFlags, sockopt};

use crate::connections;

/// Allowed to every process (net/ipv4/tcp_cong.c).
const ALWAYS_ALLOWED: &str = "reno";

/// What bytes go out by; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Congestion {
    /// Connections to nodes; the system's when there is none.
    near: Option<Arc<str>>,
    listening: Arc<str>,
    /// Far clients, when that is another one than the listening socket's.
    far: Option<Arc<str>>,
}

impl Congestion {
    /// `tcp.congestion` for all clients; when that is empty `tcp.near_congestion` for near ones and the system's for others.
    /// Where a process may not use the near one, it uses one that it always may.
    ///
    /// # Errors
    /// `tcp.congestion` cannot be had.
    pub(crate) fn new(config: &TcpConfig) -> io::Result<Self> {
        let near = near(&config.near_congestion)?;
        let name = config.congestion.as_str();
        if !name.is_empty() {
            sockopt::set_tcp_congestion(fresh()?, name).map_err(|error| {
                io::Error::other(format!(
                    "tcp.congestion = {name:?}: {error} (net.ipv4.tcp_available_congestion_control lists what there is; \
                     without CAP_NET_ADMIN it must be in tcp_allowed_congestion_control too)"
                ))
            })?;
            return Ok(Self { near, listening: name.into(), far: None });
        }
        let system: Arc<str> = sockopt::tcp_congestion(fresh()?)?.into();
        let listening = near.clone().unwrap_or_else(|| Arc::clone(&system));
        let far = Some(system).filter(|system| *system != listening);
        Ok(Self { near, listening, far })
    }

    /// For a socket that is about to be connected to a node.
    pub(crate) fn set_connecting(&self, socket: impl AsFd) -> io::Result<()> {
        let Some(near) = &self.near else { return Ok(()) };
        Ok(sockopt::set_tcp_congestion(socket, near)?)
    }

    /// For a listening socket: its connections begin with it.
    pub(crate) fn set_listening(&self, socket: impl AsFd) -> io::Result<()> {
        Ok(sockopt::set_tcp_congestion(socket, &self.listening)?)
    }

    /// For a connection that was accepted: it goes over to what its client gets.
    pub(crate) fn set_accepted(&self, socket: impl AsFd, client: IpAddr) {
        let Some(far) = self.far.as_ref().filter(|_| !is_near(client)) else { return };
        if let Err(error) = sockopt::set_tcp_congestion(socket, far) {
            tracing::debug!(%error, %client, "the system's congestion control");
        }
    }
}

/// `tcp.near_congestion`, or what may be used instead.
fn near(name: &str) -> io::Result<Option<Arc<str>>> {
    if name.is_empty() {
        return Ok(None);
    }
    let Err(error) = sockopt::set_tcp_congestion(fresh()?, name) else {
        return Ok(Some(name.into()));
    };
    tracing::warn!(
        wanted = name, instead = ALWAYS_ALLOWED, %error,
        "tcp.near_congestion cannot be had (net.ipv4.tcp_allowed_congestion_control)"
    );
    Ok(Some(ALWAYS_ALLOWED.into()))
}

/// A socket that has the system's.
fn fresh() -> io::Result<OwnedFd> {
    connections::stream_socket((Ipv4Addr::UNSPECIFIED, 0).into(), SocketFlags::empty())
}

/// Whether an address is not routed in the internet: this machine's (RFC 1122), private (RFC 1918, RFC 4193), of the link
/// (RFC 3927, RFC 4291).
fn is_near(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            address.is_loopback() || address.is_private() || address.is_link_local()
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn congestion(all: &str, near: &str) -> io::Result<Congestion> {
        let config = TcpConfig { congestion: all.to_owned(), near_congestion: near.to_owned() };
        Congestion::new(&config)
    }

    fn of(socket: impl AsFd) -> String {
        sockopt::tcp_congestion(socket).expect("one")
    }

    fn system() -> String {
        of(fresh().expect("a socket"))
    }

    /// What a connection has when it is accepted, and when it has turned out to come from `clients`.
    fn accepted(congestion: &Congestion, clients: &[IpAddr]) -> Vec<String> {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        congestion.set_listening(&socket).expect("set");
        let address = socket.local_addr().expect("an address");
        let _client = std::net::TcpStream::connect(address).expect("connects");
        let (accepted, _) = socket.accept().expect("accepts");
        let set = |client: &IpAddr| {
            congestion.set_accepted(&accepted, *client);
            of(&accepted)
        };
        clients.iter().map(set).collect()
    }

    const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn clients_get_what_is_asked_for_or_the_server_does_not_begin() {
        let all = congestion(ALWAYS_ALLOWED, "").expect("allowed");
        assert_eq!(accepted(&all, &[NEAR, FAR]), [ALWAYS_ALLOWED, ALWAYS_ALLOWED]);
        let error = congestion("no-such", "").expect_err("refused").to_string();
        assert!(error.contains("tcp.congestion = \"no-such\""), "{error}");
    }

    #[test]
    fn near_clients_get_another_than_far_ones() {
        let near = congestion("", ALWAYS_ALLOWED).expect("allowed");
        assert_eq!(accepted(&near, &[NEAR, FAR]), [ALWAYS_ALLOWED, &system()]);
        let none = congestion("", "").expect("nothing special");
        assert_eq!(accepted(&none, &[NEAR, FAR]), [system(), system()]);
    }

    #[test]
    fn a_socket_that_is_taken_over_has_the_systems_again() {
        let socket = fresh().expect("a socket");
        sockopt::set_tcp_congestion(&socket, ALWAYS_ALLOWED).expect("allowed");
        let none = congestion("", "").expect("nothing special");
        none.set_listening(&socket).expect("set");
        assert_eq!(of(&socket), system());
    }

    #[test]
    fn what_cannot_be_had_is_replaced_by_what_always_can() {
        let socket = fresh().expect("a socket");
        congestion("", "").expect("none").set_connecting(&socket).expect("nothing to do");
        assert_eq!(of(&socket), system());
        congestion("", "no-such").expect("replaced").set_connecting(&socket).expect("set");
        assert_eq!(of(&socket), ALWAYS_ALLOWED);
    }

    #[test]
    fn near_is_what_the_internet_does_not_route() {
        let near = ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.7.7", "169.254.1.1"];
        let near6 = ["::1", "fd00::1", "fe80::1", "::ffff:10.0.0.1"];
        for address in near.iter().chain(&near6) {
            assert!(is_near(address.parse().expect(address)), "{address}");
        }
        for address in ["192.0.2.1", "172.32.0.1", "100.64.0.1", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert!(!is_near(address.parse().expect(address)), "{address}");
        }
    }
}
