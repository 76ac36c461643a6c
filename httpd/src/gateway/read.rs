//! GET and HEAD through a gateway.

use std::net::SocketAddr;
use std::time::Instant;

use super::addresses::Whose;
use super::{Broken, GatewayShard, ROUND_PAUSE, TRY_FOR, relay_body};
use crate::answer::Problem;
use crate::conn::{Conn, ConnError};
use crate::http::request::{Method, Request};
use crate::shard::Answered;
use crate::upstream::{self, Response};

/// Fields of a node's answer that are passed on.
const PASSED: [&str; 11] = [
    "Reel-Node",
    "Content-Disposition",
    "Content-Type",
    "Content-Length",
    "Content-Range",
    "ETag",
    "Last-Modified",
    "Accept-Ranges",
    "Reel-Crc32",
    "Cache-Control",
    "Allow",
];

/// A body that has been begun: what is needed to go on elsewhere.
pub(super) struct Begun {
    status: u16,
    etag: String,
    /// The next byte of the file that the client lacks.
    next: u64,
    /// The byte after the last one that it gets.
    end: u64,
    /// A multipart body cannot be gone on with.
    whole: bool,
}

enum Attempt {
    Done(Answered),
    /// This node did not do; why, for the client should all fail.
    Next(Problem),
    OtherGroup(String),
}

impl GatewayShard {
    pub(super) async fn read(
        &self,
        conn: &mut Conn,
        request: &Request,
        user: &str,
        path: &str,
    ) -> Result<Answered, ConnError> {
        let deadline = Instant::now() + TRY_FOR;
        let mut whose = Whose::Downloads(user.to_owned());
        let mut begun: Option<Begun> = None;
        let mut problem = Problem::new(503, "no_node", "no node answers");
        loop {
            let at = begun.as_ref().map(|begun| begun.next);
            match self.nodes_of(&whose).await {
                Ok(nodes) => {
                    for (index, node) in nodes.iter().enumerate() {
                        let second = self.trusted_after(&nodes, index);
                        let whom = (&whose, *node, second);
                        match self.attempt(conn, request, path, whom, &mut begun).await? {
                            Attempt::Done(answered) => return Ok(answered),
                            Attempt::OtherGroup(group) => {
                                whose = Whose::Group(group);
                                problem = Problem::new(
                                    503,
                                    "no_node",
                                    "the file's group could not be found",
                                );
                                break;
                            }
                            Attempt::Next(reason) => {
                                problem = reason;
                                self.retries.increment(1);
                                self.failed(&whose, index + 1 == nodes.len());
                            }
                        }
                    }
                }
                Err(reason) if reason.status == 404 && begun.is_none() => {
                    return self.answers.refuse(conn, request, reason).await;
                }
                Err(reason) => problem = reason,
            }
            if Instant::now() > deadline {
                return match begun {
                    // The head has been sent: all that is left is to break off.
                    Some(_) => Err(ConnError::Closed),
                    None => self.answers.refuse(conn, request, problem).await,
                };
            }
            // A viewer that has got further is not kept waiting: the nodes are asked for anew at once.
            if begun.as_ref().map(|begun| begun.next) == at {
                monoio::time::sleep(ROUND_PAUSE).await;
            }
        }
    }

    async fn attempt(
        &self,
        conn: &mut Conn,
        request: &Request,
        path: &str,
        (whose, node, second): (&Whose, SocketAddr, Option<SocketAddr>),
        begun: &mut Option<Begun>,
    ) -> Result<Attempt, ConnError> {
        let asked = self.ask(request, path, whose, node, second, begun.as_ref()).await;
        let mut response = match asked {
            Ok(response) => response,
            Err(error) => {
                self.suspect(node);
                let message = format!("node {node}: {error}");
                return Ok(Attempt::Next(Problem::new(503, "no_node", message)));
            }
        };
        // A hedge may have been sooner.
        let node = response.address();
        self.suspects.clear(node);
        if response.status == 421 {
            let group = response.field("reel-group").unwrap_or("").to_owned();
            self.upstreams.give_back(response);
            return Ok(Attempt::OtherGroup(group));
        }
        if response.status >= 500 {
            let text = response.read_all(64 * 1024).await.unwrap_or_default();
            let message = error_message(&text)
                .unwrap_or_else(|| format!("node {node} answers {}", response.status));
            let status = response.status;
            self.upstreams.give_back(response);
            return Ok(Attempt::Next(Problem::new(status, "node", message)));
        }
        match begun {
            None => {
                self.pass_head(conn, request, &response).await?;
                *begun = Begun::of(&response);
            }
            Some(begun) => {
                if !continues(&response, begun) {
                    // The file was replaced meanwhile: its old bytes are gone.
                    return Err(ConnError::Closed);
                }
                self.resumed.increment(1);
            }
        }
        let resumable = begun.as_ref().is_some_and(|begun| !begun.whole);
        response.conn.stall_after(match second {
            Some(_) if resumable => self.silent_after(),
            _ => upstream::STALL,
        });
        let mut passed = 0;
        let result = relay_body(conn, &mut response, &mut passed).await;
        match result {
            Ok(()) => {
                let status = begun.as_ref().map_or(response.status, |begun| begun.status);
                self.upstreams.give_back(response);
                Ok(Attempt::Done(Answered { status, close: false }))
            }
            Err(Broken::Client(error)) => Err(error),
            Err(Broken::Node(error)) => match begun {
                Some(begun) if !begun.whole => {
                    begun.next += passed;
                    self.suspect(node);
                    tracing::info!(%node, at = begun.next, %error, "node broke off; going on elsewhere");
                    Ok(Attempt::Next(Problem::new(503, "no_node", error.to_string())))
                }
                _ => Err(error),
            },
        }
    }

    /// The next node, when it can be relied on more than one that is silent.
    fn trusted_after(&self, nodes: &[SocketAddr], index: usize) -> Option<SocketAddr> {
        let second = nodes.get(index + 1).copied();
        second.filter(|second| !self.suspects.has(*second, Instant::now()))
    }

    async fn pass_head(
        &self,
        conn: &mut Conn,
        request: &Request,
        response: &Response,
    ) -> Result<(), ConnError> {
        let mut head = self.answers.head(response.status, request);
        for name in PASSED {
            if let Some(value) = response.field(name) {
                head.field(name, value);
            }
        }
        head.connection(request.keep_alive, request.http11);
        conn.queue(&head.end()).await
    }

    /// 307 to a node.
    pub(super) async fn redirect(
        &self,
        conn: &mut Conn,
        request: &Request,
        user: &str,
    ) -> Result<Answered, ConnError> {
        let whose = match request.method {
            Method::Put => Whose::Uploads(user.to_owned()),
            _ => Whose::Downloads(user.to_owned()),
        };
        let node = match self.nodes_of(&whose).await {
            Ok(nodes) => nodes.into_iter().next(),
            Err(problem) => return self.answers.refuse(conn, request, problem).await,
        };
        let Some(node) = node else {
            return self
                .answers
                .refuse(conn, request, Problem::new(503, "no_node", "no node answers"))
                .await;
        };
        let query =
            if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
        let mut head = self.answers.head(307, request);
        head.field("Location", format_args!("http://{node}{}{query}", request.path));
        let answered = self.answers.answer(conn, request, head, 307, "text/plain", b"").await?;
        Ok(Answered { close: !conn.body.is_done(), ..answered })
    }
}

/// The request as a node gets it: the client's conditions, or those that make sure that an answer
/// goes on with the same object at the exact byte.
pub(super) fn request_head(
    request: &Request,
    path: &str,
    node: SocketAddr,
    begun: Option<&Begun>,
) -> String {
    let mut head = format!("{} {path} HTTP/1.1\r\nHost: {node}\r\n", request.method.name());
    let mut field = |name: &str, value: &str| {
        head.push_str(name);
        head.push_str(": ");
        head.push_str(value);
        head.push_str("\r\n");
    };
    if let Some(id) = request.fields.id() {
        field("Reel-Request-Id", id);
    }
    match begun {
        Some(begun) => {
            field("Range", &format!("bytes={}-{}", begun.next, begun.end - 1));
            field("If-Match", &begun.etag);
        }
        None => {
            let fields = &request.fields;
            for (name, value) in [
                ("Range", &fields.range),
                ("If-Range", &fields.if_range),
                ("If-Match", &fields.if_match),
                ("If-None-Match", &fields.if_none_match),
                ("If-Modified-Since", &fields.if_modified_since),
                ("If-Unmodified-Since", &fields.if_unmodified_since),
            ] {
                if let Some(value) = value {
                    field(name, value);
                }
            }
        }
    }
    head.push_str("\r\n");
    head
}

impl Begun {
    fn of(response: &Response) -> Option<Self> {
        let etag = response.field("etag").unwrap_or("").to_owned();
        let length = response.remaining();
        let status = response.status;
        match (status, response.field("content-range").and_then(content_range)) {
            (206, Some((first, last))) => {
                Some(Self { status, etag, next: first, end: last + 1, whole: false })
            }
            (200, _) if !etag.is_empty() => {
                Some(Self { status, etag, next: 0, end: length, whole: false })
            }
            _ => Some(Self { status, etag, next: 0, end: length, whole: true }),
        }
    }
}

/// Whether an answer goes on where the body broke off.
fn continues(response: &Response, begun: &Begun) -> bool {
    response.status == 206
        && response.field("etag") == Some(begun.etag.as_str())
        && response.field("content-range").and_then(content_range)
            == Some((begun.next, begun.end - 1))
}

/// First and last byte of `bytes F-L/N`.
fn content_range(value: &str) -> Option<(u64, u64)> {
    let (range, _) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// The line for people in a JSON error body.
pub(super) fn error_message(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<reel_control::api::ErrorBody>(body).ok().map(|body| body.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/100"), Some((5, 9)));
        assert_eq!(content_range("bytes */100"), None);
    }
}
