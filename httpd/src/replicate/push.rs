//! Large uploads go to the peers while they come in: each piece is sent on from memory, so that a copy is durable
//! there a moment after it is here, and nobody has to read it back from the disk.
//!
//! A peer that cannot keep up is given up for this upload, and pulls it as it pulls everything it lacks; the upload
//! waits only for as many peers as `ack` asks for.
//!
//! `PUT /-/v1/segments/{number}/copy?payload=L&node=N`: the payload, then the tail, then the two leading pages
//! ([`Ending`]). 200 says that it is durable there.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use reel_control::agent::Peer;
use reel_control::api::NodeState;
use reel_engine::SegmentNumber;
use reel_engine::disk::SharedPiece;
use reel_engine::replica::SoloCopy;
use reel_engine::solo::Ending;
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::serve::number_of;
use crate::answer::Problem;
use crate::conn::{Conn, ConnError};
use crate::http::request::Request;
use crate::shard::Answered;
use crate::storage::StorageShard;

/// Pieces (of 1 MiB) of an upload that wait for one peer.
const WAITING: usize = 8;
/// How long an upload waits for a peer that it needs.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a peer may take to make a copy durable.
const DURABLE: Duration = Duration::from_secs(60);
/// Peers that an upload is sent to; further ones pull.
const PEERS: usize = 3;

/// An upload on its way to the peers.
pub(crate) struct Push {
    streams: Vec<Sender<Bytes>>,
    needed: usize,
}

impl Push {
    /// Begins to send the upload that becomes segment `number`. `needed`: peers that must hold it before it is
    /// answered.
    pub(crate) fn begin(
        shard: &Rc<StorageShard>,
        number: SegmentNumber,
        payload: u64,
        needed: usize,
    ) -> Self {
        let peers = shard.node.peers.read().clone().unwrap_or_default();
        let wants = |peer: &Peer| peer.state != NodeState::Offline && !shard.is_shared();
        let alive = peers.into_iter().filter(wants);
        let streams = alive
            .take(PEERS)
            .map(|peer| {
                let (sender, pieces) = mpsc::channel(WAITING);
                let shard = Rc::clone(shard);
                monoio::spawn(async move {
                    match send(&shard, peer.address, number, payload, pieces).await {
                        Ok(bytes) => shard.node.acks.record(peer.id, number, bytes),
                        Err(error) => {
                            tracing::debug!(peer = peer.id, segment = %number, %error, "upload not sent to a peer; it pulls");
                        }
                    }
                });
                sender
            })
            .collect();
        Self { streams, needed }
    }

    /// The next bytes, sent from the memory that they are written from here.
    pub(crate) async fn feed(&mut self, piece: &SharedPiece) {
        let bytes = piece.bytes();
        let mut full = Vec::new();
        let mut kept = Vec::with_capacity(self.streams.len());
        for stream in self.streams.drain(..) {
            match stream.try_send(bytes.clone()) {
                Ok(()) => kept.push(stream),
                Err(mpsc::error::TrySendError::Full(_)) => full.push(stream),
                Err(mpsc::error::TrySendError::Closed(_)) => {}
            }
        }
        for stream in full {
            if kept.len() < self.needed
                && let Ok(Ok(())) =
                    monoio::time::timeout(PATIENCE, stream.send(bytes.clone())).await
            {
                kept.push(stream);
            }
        }
        self.streams = kept;
    }

    /// What follows the payload. What comes of it the acknowledgements say.
    pub(crate) fn end(self, ending: Ending) {
        let Ending { mut tail, pages } = ending;
        tail.extend_from_slice(&pages);
        let last = Bytes::from(tail);
        for stream in self.streams {
            let last = last.clone();
            monoio::spawn(async move {
                let _ = monoio::time::timeout(PATIENCE, stream.send(last)).await;
            });
        }
    }
}

/// Sends one peer its copy; the bytes it holds durably then.
async fn send(
    shard: &Rc<StorageShard>,
    address: SocketAddr,
    number: SegmentNumber,
    payload: u64,
    mut pieces: Receiver<Bytes>,
) -> Result<u64, ConnError> {
    let (tail, pages) = Ending::lengths(payload);
    let whole = payload + tail + pages;
    let node = shard.node.config.id;
    let head = format!(
        "PUT /-/v1/segments/{}/copy?payload={payload}&node={node} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {whole}\r\n\r\n",
        number.get()
    );
    let mut conn = shard.upstreams.connect(address).await?;
    conn.queue(head.as_bytes()).await?;
    let mut sent = 0;
    while let Some(bytes) = pieces.recv().await {
        conn.send(&bytes).await?;
        sent += bytes.len() as u64;
    }
    if sent < whole {
        // The upload broke off, or this peer was given up: closing says so.
        return Err(ConnError::Closed);
    }
    let response = shard.upstreams.read_response(conn, address, false, DURABLE).await?;
    if response.status != 200 {
        return Err(ConnError::Io(std::io::Error::other(format!(
            "the peer answers {}",
            response.status
        ))));
    }
    shard.upstreams.give_back(response);
    Ok(whole)
}

impl StorageShard {
    /// Takes a copy of a large upload that a peer is receiving.
    pub(crate) async fn take_copy(
        self: &Rc<Self>,
        conn: &mut Conn,
        request: &Request,
        number: &str,
    ) -> Result<Answered, ConnError> {
        let close = |problem: Problem| Problem { close: true, ..problem };
        let number = number.parse().ok().and_then(SegmentNumber::new);
        let (Some(number), Some(payload)) = (number, number_of(request, "payload")) else {
            let problem =
                Problem::new(400, "bad_request", "a segment number and payload= are decimal");
            return self.answers.refuse(conn, request, close(problem)).await;
        };
        let (tail, pages) = Ending::lengths(payload);
        if conn.body.remaining() != Some(payload + tail + pages) {
            let problem = Problem::new(400, "bad_request", "Content-Length does not fit payload=");
            return self.answers.refuse(conn, request, close(problem)).await;
        }
        let Some(_claim) = self.node.copying.claim(number) else {
            let problem = Problem::new(409, "busy", "this segment is being copied already");
            return self.answers.refuse(conn, request, close(problem)).await;
        };
        match self.receive_copy(conn, number, payload).await {
            Ok(Ok(())) => self.answers.json(conn, request, 200, &serde_json::json!({})).await,
            Ok(Err(problem)) => self.answers.refuse(conn, request, close(problem)).await,
            Err(error) => Err(error),
        }
    }

    /// The outer error is the connection's.
    async fn receive_copy(
        self: &Rc<Self>,
        conn: &mut Conn,
        number: SegmentNumber,
        payload: u64,
    ) -> Result<Result<(), Problem>, ConnError> {
        let mut copy = match SoloCopy::begin(&self.node.store, number, payload).await {
            Ok(Some(copy)) => copy,
            Ok(None) => {
                let message = format!("segment {number} is here already");
                return Ok(Err(Problem::new(409, "busy", message)));
            }
            Err(error) => return Ok(Err(error.into())),
        };
        let received = self.fill_copy(conn, &mut copy, payload).await;
        let ending = match received {
            Ok(Ok(ending)) => ending,
            failed => {
                let removed = copy.abandon().await;
                if let Err(error) = removed {
                    tracing::warn!(segment = %number, %error, "a broken copy is not removed yet");
                }
                return failed.map(|failed| failed.map(drop));
            }
        };
        match copy.finish(ending).await {
            Ok(arrived) => {
                metrics::counter!("reel_copies_received_total").increment(1);
                self.heard_of(std::slice::from_ref(&arrived));
                Ok(self.node.store.bury_targets(&[arrived]).await.map_err(Problem::from))
            }
            Err(error) => Ok(Err(error.into())),
        }
    }

    async fn fill_copy(
        &self,
        conn: &mut Conn,
        copy: &mut SoloCopy,
        payload: u64,
    ) -> Result<Result<Ending, Problem>, ConnError> {
        let mut left = payload;
        while left > 0 {
            let mut piece = copy.piece();
            let (bytes, full) = piece.spare();
            let room = (full - bytes.len()) as u64;
            let until = bytes.len() + left.min(room) as usize;
            conn.read_body(bytes, until).await?;
            left -= piece.len() as u64;
            metrics::counter!("reel_replicated_bytes_total").increment(piece.len() as u64);
            if let Err(error) = copy.write(piece).await {
                return Ok(Err(error.into()));
            }
        }
        let (tail_len, pages_len) = Ending::lengths(payload);
        let (mut tail, mut pages) = (Vec::new(), Vec::new());
        conn.read_body(&mut tail, tail_len as usize).await?;
        conn.read_body(&mut pages, pages_len as usize).await?;
        Ok(Ok(Ending { tail, pages }))
    }
}
