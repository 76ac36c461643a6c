//! Objects that are at a peer: asked for by their id, and passed on.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use reel_control::api::NodeState;
use reel_engine::ObjectId;

use super::{Method, StorageShard};
use crate::conn::{Conn, ConnError};
use crate::http::request::Request;
use crate::shard::Answered;
use crate::upstream::Response;

/// How long a peer may take to begin its answer.
const PEER_PATIENCE: Duration = Duration::from_secs(12);
/// The same where the object can be had from a shared volume too.
const SHARED_PATIENCE: Duration = Duration::from_millis(300);
/// How long a peer that was silent is not asked then.
const PASSED_BY: Duration = Duration::from_secs(1);

impl StorageShard {
    /// Addresses of the peers that may have an object: the one that is known to, then those that serve.
    fn addresses_of_peers(&self, first: Option<u32>) -> Vec<SocketAddr> {
        let peers = self.node.peers.read();
        let mut peers: Vec<_> = peers
            .iter()
            .flatten()
            .filter(|peer| peer.state != NodeState::Offline)
            .cloned()
            .collect();
        peers.sort_by_key(|peer| (Some(peer.id) != first, peer.state != NodeState::Active));
        peers.into_iter().map(|peer| peer.address).collect()
    }

    /// Addresses of the peers that may have an object, those that serve first.
    pub(super) fn peer_addresses(&self) -> Vec<SocketAddr> {
        self.addresses_of_peers(None)
    }

    /// Asks peers for an object this node does not have, and passes the answer on; `writer` first, when it is known.
    /// `None` when none has it.
    pub(super) async fn send_from_peer(
        &self,
        conn: &mut Conn,
        request: &Request,
        object: ObjectId,
        writer: Option<u32>,
    ) -> Result<Option<Answered>, ConnError> {
        for address in self.addresses_of_peers(writer) {
            if self.is_passed_by(address) {
                continue;
            }
            let method = request.method.name();
            let mut head =
                format!("{method} /-/v1/objects/{object} HTTP/1.1\r\nHost: {address}\r\n");
            for (name, value) in
                [("Range", &request.fields.range), ("If-Range", &request.fields.if_range)]
            {
                if let Some(value) = value {
                    head.push_str(&format!("{name}: {value}\r\n"));
                }
            }
            head.push_str("\r\n");
            let head_only = request.method == Method::Head;
            let asked = self.upstreams.request(address, head.as_bytes(), &[], head_only);
            let response = match monoio::time::timeout(self.peer_patience(), asked).await {
                Ok(Ok(response)) => response,
                Ok(Err(_)) => continue,
                Err(_) => {
                    self.silent.borrow_mut().insert(address, Instant::now());
                    continue;
                }
            };
            if !matches!(response.status, 200 | 206) {
                self.upstreams.give_back(response);
                continue;
            }
            self.repaired.increment(1);
            return self.pass_on(conn, request, response).await.map(Some);
        }
        Ok(None)
    }

    /// Whether a peer was silent a moment ago, and the object can be had otherwise.
    fn is_passed_by(&self, address: SocketAddr) -> bool {
        let silent = self.silent.borrow();
        let asked = silent.get(&address).filter(|_| self.is_shared());
        asked.is_some_and(|asked| asked.elapsed() < PASSED_BY)
    }

    /// How long a peer may take to begin its answer. On a shared volume there is another way to the bytes.
    fn peer_patience(&self) -> Duration {
        if self.is_shared() { SHARED_PATIENCE } else { PEER_PATIENCE }
    }

    /// Asks a node for an object by its id.
    pub(super) async fn ask_object(
        &self,
        address: SocketAddr,
        object: ObjectId,
        part: Option<&Range<u64>>,
    ) -> Result<Response, ConnError> {
        let range = part.map_or_else(String::new, |part| {
            format!("Range: bytes={}-{}\r\n", part.start, part.end.saturating_sub(1))
        });
        let head = format!("GET /-/v1/objects/{object} HTTP/1.1\r\nHost: {address}\r\n{range}\r\n");
        self.upstreams.request(address, head.as_bytes(), &[], false).await
    }

    async fn pass_on(
        &self,
        conn: &mut Conn,
        request: &Request,
        mut response: Response,
    ) -> Result<Answered, ConnError> {
        let status = response.status;
        let mut head = self.answers.head(status, request);
        for name in [
            "ETag",
            "Last-Modified",
            "Accept-Ranges",
            "Reel-Crc32",
            "Content-Type",
            "Content-Range",
            "Content-Length",
            "Content-Disposition",
        ] {
            if let Some(value) = response.field(name) {
                head.field(name, value);
            }
        }
        head.connection(request.keep_alive, request.http11);
        conn.queue(&head.end()).await?;
        crate::gateway::relay_body(conn, &mut response, &mut 0).await?;
        self.upstreams.give_back(response);
        Ok(Answered { status, close: false })
    }
}
