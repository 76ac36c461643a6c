//! PUT and DELETE through a gateway.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::addresses::Whose;
use super::{GatewayShard, RELAY_BYTES, ROUND_PAUSE, TRY_FOR};
use crate::answer::Problem;
use crate::conn::{Conn, ConnError};
use crate::http::request::{Framing, Request};
use crate::shard::Answered;
use crate::upstream::{Begun, Response};

/// Uploads up to this size are held, so that they can be tried at another node.
const HELD_BYTES: u64 = 1 << 20;
/// How long a node may take to make an upload durable.
const DURABLE: Duration = Duration::from_secs(60);
/// Fields of a node's answer that are passed on.
const PASSED: [&str; 6] =
    ["Content-Type", "ETag", "Location", "Retry-After", "Allow", "Reel-Degraded"];

impl GatewayShard {
    pub(super) async fn put(
        &self,
        conn: &mut Conn,
        request: &Request,
        user: &str,
    ) -> Result<Answered, ConnError> {
        let held = match request.framing {
            Framing::None => {
                let problem = Problem::new(
                    411,
                    "length_required",
                    "an upload has Content-Length or is chunked",
                );
                return self.answers.refuse(conn, request, problem).await;
            }
            Framing::Length(length) => length <= HELD_BYTES,
            Framing::Chunked => false,
        };
        if !held {
            return self.put_streamed(conn, request, user).await;
        }
        if request.expects_continue && conn.input().is_empty() {
            conn.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let mut body = Vec::with_capacity(conn.body.remaining().unwrap_or(0) as usize);
        conn.read_body(&mut body, HELD_BYTES as usize).await?;
        let framing = format!("Content-Length: {}\r\n", body.len());
        let mut uncertain = false;
        let result = self
            .at_any(Whose::Uploads(user.to_owned()), async |node| {
                let head = request_head("PUT", request, node, &framing);
                let result = self.upstreams.request(node, head.as_bytes(), &body, false).await;
                uncertain |= result.is_err();
                // A conditional upload whose answer was lost may have taken effect: trying again
                // would meet its own file.
                let conditional =
                    request.fields.if_none_match.is_some() || request.fields.if_match.is_some();
                (result, !(uncertain && conditional))
            })
            .await;
        self.finish(conn, request, result).await
    }

    /// A body that is not held: it goes to the first node that wants it.
    async fn put_streamed(
        &self,
        conn: &mut Conn,
        request: &Request,
        user: &str,
    ) -> Result<Answered, ConnError> {
        let framing = match request.framing {
            Framing::Length(length) => format!("Content-Length: {length}\r\n"),
            _ => "Transfer-Encoding: chunked\r\n".to_owned(),
        } + "Expect: 100-continue\r\n";
        let deadline = Instant::now() + TRY_FOR;
        let mut whose = Whose::Uploads(user.to_owned());
        let mut problem = Problem::new(503, "no_node", "no node answers");
        loop {
            match self.nodes_of(&whose).await {
                Ok(nodes) => {
                    let count = nodes.len();
                    for (index, node) in nodes.into_iter().enumerate() {
                        let is_last = index + 1 == count;
                        let head = request_head("PUT", request, node, &framing);
                        match self.upstreams.begin(node, head.as_bytes()).await {
                            Ok(Begun::Continue(upstream)) => {
                                if request.expects_continue && conn.input().is_empty() {
                                    conn.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                                }
                                let result = self.stream(conn, request, node, upstream).await?;
                                return self.finish(conn, request, result).await;
                            }
                            Ok(Begun::Final(response)) if response.status == 421 => {
                                whose = Whose::Group(
                                    response.field("reel-group").unwrap_or("").to_owned(),
                                );
                                break;
                            }
                            Ok(Begun::Final(mut response)) if response.status >= 500 => {
                                problem = problem_of(node, &mut response).await;
                                self.failed(&whose, is_last);
                            }
                            Ok(Begun::Final(response)) => {
                                let answered = self.finish(conn, request, Ok(response)).await?;
                                return Ok(Answered { close: true, ..answered });
                            }
                            Err(error) => {
                                problem =
                                    Problem::new(503, "no_node", format!("node {node}: {error}"));
                                self.suspect(node);
                                self.failed(&whose, is_last);
                            }
                        }
                    }
                }
                Err(reason) => problem = reason,
            }
            if Instant::now() > deadline {
                return self
                    .answers
                    .refuse(conn, request, Problem { close: true, ..problem })
                    .await;
            }
            monoio::time::sleep(ROUND_PAUSE).await;
        }
    }

    /// Passes a body on as it comes. The outer error is the client's, the inner the node's.
    async fn stream(
        &self,
        conn: &mut Conn,
        request: &Request,
        node: SocketAddr,
        mut upstream: Conn,
    ) -> Result<Result<Response, Problem>, ConnError> {
        let chunked = request.framing == Framing::Chunked;
        let broken = |error: ConnError| Problem {
            close: true,
            ..Problem::new(
                503,
                "no_node",
                format!(
                    "node {node} broke off in the upload ({error}); nothing was stored; try again"
                ),
            )
        };
        let mut piece = Vec::with_capacity(RELAY_BYTES);
        while !conn.body.is_done() {
            piece.clear();
            conn.read_some(&mut piece, RELAY_BYTES).await?;
            if piece.is_empty() {
                continue;
            }
            let sent = async {
                if chunked {
                    upstream.queue(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
                    upstream.queue(&piece).await?;
                    upstream.queue(b"\r\n").await?;
                    upstream.flush().await
                } else {
                    upstream.send(&piece).await
                }
            };
            if let Err(error) = sent.await {
                // It may have said why before it stopped reading.
                let said = self
                    .upstreams
                    .read_response(upstream, node, false, Duration::from_millis(500))
                    .await;
                return Ok(match said {
                    Ok(response) => Ok(response),
                    Err(_) => Err(broken(error)),
                });
            }
        }
        if chunked && let Err(error) = upstream.send(b"0\r\n\r\n").await {
            return Ok(Err(broken(error)));
        }
        Ok(self.upstreams.read_response(upstream, node, false, DURABLE).await.map_err(broken))
    }

    pub(super) async fn delete(
        &self,
        conn: &mut Conn,
        request: &Request,
        user: &str,
    ) -> Result<Answered, ConnError> {
        let mut uncertain = false;
        let result = self
            .at_any(Whose::Downloads(user.to_owned()), async |node| {
                let head = request_head("DELETE", request, node, "");
                let result = self.upstreams.request(node, head.as_bytes(), &[], false).await;
                // A lost answer may have been a 204: the 404 of the next node means just that.
                let gone =
                    uncertain && result.as_ref().is_ok_and(|response| response.status == 404);
                uncertain |= result.is_err();
                let result = match result {
                    Ok(mut response) if gone => {
                        response.status = 204;
                        Ok(response)
                    }
                    result => result,
                };
                (result, true)
            })
            .await;
        self.finish(conn, request, result).await
    }

    /// Tries `call` at one node after the other until one answers below 500, for a while. `call`
    /// also says whether another try is allowed.
    async fn at_any(
        &self,
        mut whose: Whose,
        mut call: impl AsyncFnMut(SocketAddr) -> (Result<Response, ConnError>, bool),
    ) -> Result<Response, Problem> {
        let deadline = Instant::now() + TRY_FOR;
        let mut problem = Problem::new(503, "no_node", "no node answers");
        loop {
            match self.nodes_of(&whose).await {
                Ok(nodes) => {
                    let count = nodes.len();
                    for (index, node) in nodes.into_iter().enumerate() {
                        let (result, again) = call(node).await;
                        match result {
                            Ok(response) if response.status == 421 => {
                                whose = Whose::Group(
                                    response.field("reel-group").unwrap_or("").to_owned(),
                                );
                                break;
                            }
                            Ok(mut response) if response.status >= 500 => {
                                problem = problem_of(node, &mut response).await;
                            }
                            Ok(response) => return Ok(response),
                            Err(error) => {
                                self.suspect(node);
                                problem =
                                    Problem::new(503, "no_node", format!("node {node}: {error}"));
                            }
                        }
                        if !again {
                            return Err(problem);
                        }
                        self.retries.increment(1);
                        self.failed(&whose, index + 1 == count);
                    }
                }
                Err(reason) if reason.status == 404 => return Err(reason),
                Err(reason) => problem = reason,
            }
            if Instant::now() > deadline {
                return Err(problem);
            }
            monoio::time::sleep(ROUND_PAUSE).await;
        }
    }

    /// Passes a node's answer to a write on.
    async fn finish(
        &self,
        conn: &mut Conn,
        request: &Request,
        result: Result<Response, Problem>,
    ) -> Result<Answered, ConnError> {
        let mut response = match result {
            Ok(response) => response,
            Err(problem) => return self.answers.refuse(conn, request, problem).await,
        };
        let body = response.read_all(64 * 1024).await.unwrap_or_default();
        let status = response.status;
        let mut head = self.answers.head(status, request);
        for name in PASSED {
            if let Some(value) = response.field(name) {
                head.field(name, value);
            }
        }
        if status != 204 {
            head.field("Content-Length", body.len());
        }
        head.connection(request.keep_alive, request.http11);
        conn.queue(&head.end()).await?;
        if status != 204 {
            conn.queue(&body).await?;
        }
        self.upstreams.give_back(response);
        Ok(Answered { status, close: false })
    }
}

async fn problem_of(node: SocketAddr, response: &mut Response) -> Problem {
    let body = response.read_all(64 * 1024).await.unwrap_or_default();
    let message = super::read::error_message(&body)
        .unwrap_or_else(|| format!("node {node} answers {}", response.status));
    Problem::new(response.status, "node", message)
}

fn request_head(method: &str, request: &Request, node: SocketAddr, framing: &str) -> String {
    let mut head = format!("{method} {} HTTP/1.1\r\nHost: {node}\r\n{framing}", request.path);
    let fields = &request.fields;
    if let Some(id) = fields.id() {
        head.push_str(&format!("Reel-Request-Id: {id}\r\n"));
    }
    for (name, value) in [
        ("Content-Type", &fields.content_type),
        ("If-Match", &fields.if_match),
        ("If-None-Match", &fields.if_none_match),
        ("Reel-Content-Crc32", &fields.content_crc32),
    ] {
        if let Some(value) = value {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    head.push_str("\r\n");
    head
}
