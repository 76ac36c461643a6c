//! Connections from a shard to storage nodes: kept open, bounded, with time limits.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::congestion::Congestion;
use crate::connections;

use crate::conn::{Conn, ConnError};
use crate::http::body::Decoder;
use crate::http::request::Framing;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_millis(1500);
/// How long a node may take to begin its answer.
const FIRST_BYTE: Duration = Duration::from_secs(10);
/// How long a body may stand still when nobody else has it.
pub(crate) const STALL: Duration = Duration::from_secs(10);
/// A response head's bytes.
const HEAD_BYTES: usize = 16 * 1024;
/// Header fields of a response.
const FIELDS: usize = 64;

/// How often one that waits for a connection to end looks.
const SLOT_LOOK: Duration = Duration::from_millis(5);

/// Connections to each node: those in use are bounded, and some idle ones are kept.
pub(crate) struct Upstreams {
    idle: RefCell<HashMap<SocketAddr, Vec<Conn>>>,
    keep: usize,
    open: RefCell<HashMap<SocketAddr, Rc<Cell<usize>>>>,
    limit: usize,
    congestion: Congestion,
}

/// A connection's place among those to its node.
#[derive(Debug)]
pub(crate) struct Slot(Rc<Cell<usize>>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// What a node says to a request head that expects `100 Continue`.
pub(crate) enum Begun {
    /// The body may follow on this connection.
    Continue(Conn),
    /// It answered at once, without wanting the body.
    Final(Response),
}

/// A node's response: its head is here, its body is still to be read from `conn`.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) conn: Conn,
    address: SocketAddr,
    keep_alive: bool,
}

impl Response {
    /// A field's value; names are compared without case.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The node.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes of body that are still to come.
    pub(crate) fn remaining(&self) -> u64 {
        self.conn.body.remaining().unwrap_or(0)
    }

    /// The whole body, when it has at most `limit` bytes.
    pub(crate) async fn read_all(&mut self, limit: usize) -> Result<Vec<u8>, ConnError> {
        let mut body = Vec::new();
        if self.remaining() <= limit as u64 {
            self.conn.read_body(&mut body, limit).await?;
        }
        Ok(body)
    }
}

impl Upstreams {
    /// Has at most `limit` connections to a node, and keeps at most `keep` idle ones.
    pub(crate) fn new(keep: usize, limit: usize, congestion: Congestion) -> Self {
        Self { idle: RefCell::default(), keep, open: RefCell::default(), limit, congestion }
    }

    /// Waits until a node may be connected to once more.
    async fn slot(&self, address: SocketAddr) -> Result<Slot, ConnError> {
        let open = Rc::clone(self.open.borrow_mut().entry(address).or_default());
        let deadline = Instant::now() + CONNECT;
        while open.get() >= self.limit {
            if Instant::now() > deadline {
                return Err(ConnError::Io(std::io::Error::other(
                    "too many connections to the node",
                )));
            }
            monoio::time::sleep(SLOT_LOOK).await;
        }
        open.set(open.get() + 1);
        Ok(Slot(open))
    }

    /// Sends `head` (and `body`, when it is at hand) to a node and reads the response's head. A
    /// kept connection that proves dead is replaced by a fresh one, once.
    pub(crate) async fn request(
        &self,
        address: SocketAddr,
        head: &[u8],
        body: &[u8],
        head_only: bool,
    ) -> Result<Response, ConnError> {
        while let Some(mut conn) = self.take_idle(address) {
            if exchange(&mut conn, head, body).await.is_ok()
                && let Ok(response) = self.read_response(conn, address, head_only, FIRST_BYTE).await
            {
                return Ok(response);
            }
        }
        let mut conn = self.connect(address).await?;
        exchange(&mut conn, head, body).await?;
        self.read_response(conn, address, head_only, FIRST_BYTE).await
    }

    /// Sends a head with `Expect: 100-continue` on a fresh connection, and waits for what the node
    /// says.
    pub(crate) async fn begin(&self, address: SocketAddr, head: &[u8]) -> Result<Begun, ConnError> {
        let mut conn = self.connect(address).await?;
        exchange(&mut conn, head, &[]).await?;
        while !has_head(conn.input()) {
            if conn.input().len() > HEAD_BYTES {
                return Err(malformed());
            }
            conn.fill(FIRST_BYTE).await?;
        }
        let (used, status, ..) = parse(conn.input())?;
        if status == 100 {
            conn.consume(used);
            return Ok(Begun::Continue(conn));
        }
        self.read_response(conn, address, false, FIRST_BYTE).await.map(Begun::Final)
    }

    fn take_idle(&self, address: SocketAddr) -> Option<Conn> {
        self.idle.borrow_mut().get_mut(&address).and_then(Vec::pop)
    }

    /// A fresh connection.
    pub(crate) async fn connect(&self, address: SocketAddr) -> Result<Conn, ConnError> {
        let slot = self.slot(address).await?;
        match monoio::time::timeout(CONNECT, connections::connect(address, &self.congestion)).await
        {
            Ok(socket) => Ok(Conn::on(socket?, STALL)?.in_slot(slot)),
            Err(_) => Err(ConnError::Stalled),
        }
    }

    /// Reads the head of a response on `conn`.
    pub(crate) async fn read_response(
        &self,
        mut conn: Conn,
        address: SocketAddr,
        head_only: bool,
        wait: Duration,
    ) -> Result<Response, ConnError> {
        loop {
            while !has_head(conn.input()) {
                if conn.input().len() > HEAD_BYTES {
                    return Err(malformed());
                }
                conn.fill(wait).await?;
            }
            let (used, status, fields, keep_alive) = parse(conn.input())?;
            conn.consume(used);
            if status == 100 {
                continue;
            }
            let length =
                fields.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let length = length.and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
            let bodyless = head_only || status == 204 || status == 304;
            conn.body =
                Decoder::new(if bodyless { Framing::None } else { Framing::Length(length) });
            return Ok(Response { status, fields, conn, address, keep_alive });
        }
    }

    /// Gives a connection back whose response was read to its end.
    pub(crate) fn give_back(&self, mut response: Response) {
        if !response.keep_alive || !response.conn.body.is_done() {
            return;
        }
        response.conn.stall_after(STALL);
        let mut idle = self.idle.borrow_mut();
        let kept = idle.entry(response.address).or_default();
        if kept.len() < self.keep {
            kept.push(response.conn);
        }
    }
}

async fn exchange(conn: &mut Conn, head: &[u8], body: &[u8]) -> Result<(), ConnError> {
    conn.queue(head).await?;
    conn.queue(body).await?;
    conn.flush().await
}

fn has_head(input: &[u8]) -> bool {
    input.windows(4).any(|end| end == b"\r\n\r\n")
}

fn malformed() -> ConnError {
    ConnError::Io(std::io::Error::new(
        std::io::ErrorKind::InvalidData,
        "a node's response is not HTTP/1.1",
    ))
}

type Parsed = (usize, u16, Vec<(String, String)>, bool);

fn parse(input: &[u8]) -> Result<Parsed, ConnError> {
    let mut headers = [httparse::EMPTY_HEADER; FIELDS];
    let mut head = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(used)) = head.parse(input) else { return Err(malformed()) };
    let mut keep_alive = head.version == Some(1);
    let mut fields = Vec::with_capacity(head.headers.len());
    for header in head.headers.iter() {
        let Ok(value) = std::str::from_utf8(header.value) else { continue };
        if header.name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close") {
            keep_alive = false;
        }
        fields.push((header.name.to_owned(), value.to_owned()));
    }
    Ok((used, head.code.unwrap_or(0), fields, keep_alive))
}
