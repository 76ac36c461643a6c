//! The HTTP server (gateway): any HTTP client reads here, whichever node has the file.
//!
//! Nothing is kept: a request goes to a node that the trackers name, its answer is passed on as it
//! comes. When a node fails, before or in the middle of a body, the next one goes on at that byte.

mod addresses;
mod hedge;
mod read;
mod suspects;
mod write;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reel_control::client::Trackers;
use reel_control::config::{HttpConfig, HttpMode};
use reel_control::names;
use tokio::runtime::Handle;

use crate::access_log::AccessLog;
use crate::answer::{Answers, Problem};
use crate::congestion::Congestion;
use crate::conn::{Conn, ConnError};
use crate::http::request::{Method, Request, query_value};
use crate::pipes::Pipe;
use crate::shard::{Answered, Service};
use crate::tally::{Begun, RequestMetrics};
use crate::turns::{self, Turn};
use crate::upstream::{self, Response, Upstreams};
use addresses::{AddressCache, LastAnswers, Whose};
use suspects::Suspects;

/// How long a request is tried at one node after the other before it fails.
const TRY_FOR: Duration = Duration::from_secs(10);
/// Between rounds over the nodes.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// Bytes passed on at a time.
const RELAY_BYTES: usize = 256 * 1024;
/// Bodies up to this are copied: two calls and a pipe cost more.
const COPY_BYTES: u64 = 64 * 1024;

/// What the shards of an HTTP server share.
pub(crate) struct Gateway {
    pub(crate) config: HttpConfig,
    pub(crate) access_log: Option<Arc<AccessLog>>,
    pub(crate) congestion: Congestion,
    /// Tells this process's request ids from others'.
    pub(crate) boot: u64,
    /// Requests that were given an id.
    pub(crate) requests: AtomicU64,
    pub(crate) trackers: Trackers,
    pub(crate) side: Handle,
    pub(crate) last: LastAnswers,
    /// Whether a tracker answered lately, and knows an active node.
    pub(crate) reachable: AtomicBool,
}

/// One shard of an HTTP server.
pub(crate) struct GatewayShard {
    gateway: Arc<Gateway>,
    upstreams: Upstreams,
    addresses: AddressCache,
    answers: Answers,
    metrics: RequestMetrics,
    retries: metrics::Counter,
    resumed: metrics::Counter,
    hedges: hedge::Hedges,
    suspects: Suspects,
    suspected: metrics::Counter,
}

/// Which end a body broke off at.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The client's: nothing more can be done.
    Client(ConnError),
    /// The node's: another one may go on.
    Node(ConnError),
}

impl From<Broken> for ConnError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Client(error) | Broken::Node(error) => error,
        }
    }
}

/// Passes a response's body on to a client as it comes, counting the bytes that were taken from
/// the node and given to the client. What is more than [`COPY_BYTES`] is spliced.
pub(crate) async fn relay_body(
    conn: &mut Conn,
    response: &mut Response,
    passed: &mut u64,
) -> Result<(), Broken> {
    let mut piece = Vec::new();
    while !response.conn.body.is_done() {
        let left = response.conn.body.remaining();
        if left.is_some_and(|left| left > COPY_BYTES) && response.conn.input().is_empty() {
            return splice_body(conn, response, passed).await;
        }
        piece.clear();
        response.conn.read_some(&mut piece, RELAY_BYTES).await.map_err(Broken::Node)?;
        conn.queue(&piece).await.map_err(Broken::Client)?;
        *passed += piece.len() as u64;
    }
    Ok(())
}

/// From socket to socket through a pipe. Each time the pipe is emptied before more is taken, so that the client
/// has got what was counted.
async fn splice_body(
    conn: &mut Conn,
    response: &mut Response,
    passed: &mut u64,
) -> Result<(), Broken> {
    conn.flush_before_file().await.map_err(Broken::Client)?;
    let pipe = Pipe::take().map_err(|error| Broken::Client(error.into()))?;
    let mut turn = Turn::default();
    while !response.conn.body.is_done() {
        let moved = response.conn.splice_in(&pipe).await.map_err(Broken::Node)?;
        turn.take(moved as u64, turns::WARM).await;
        let more = !response.conn.body.is_done();
        conn.splice_out(&pipe, moved, more).await.map_err(Broken::Client)?;
        turn.sent(moved as u64, 0, turns::WARM);
        *passed += moved as u64;
    }
    pipe.give();
    Ok(())
}

impl GatewayShard {
    pub(crate) fn new(gateway: Arc<Gateway>) -> Rc<Self> {
        Rc::new(Self {
            upstreams: Upstreams::new(
                gateway.config.idle_per_node,
                gateway.config.connections_per_node.max(1),
                gateway.congestion.clone(),
            ),
            addresses: AddressCache::new(gateway.config.address_age.0),
            answers: Answers::new(gateway.config.cors.clone(), None),
            metrics: RequestMetrics::new(gateway.access_log.as_ref()),
            retries: metrics::counter!("reel_upstream_retries_total"),
            resumed: metrics::counter!("reel_upstream_resumed_total"),
            hedges: hedge::Hedges::new(gateway.config.hedge_after.0),
            suspects: Suspects::default(),
            suspected: metrics::counter!("reel_upstream_suspected_total"),
            gateway,
        })
    }

    /// Nodes to try for a request, in order: those that were silent a moment ago last.
    async fn nodes_of(&self, whose: &Whose) -> Result<Vec<SocketAddr>, Problem> {
        let mut nodes = self.addresses.get(whose, &self.gateway).await?;
        self.suspects.last(&mut nodes, Instant::now());
        Ok(nodes)
    }

    /// How long a node may be silent while another one could go on.
    fn silent_after(&self) -> Duration {
        match self.gateway.config.silent_after.0 {
            Duration::ZERO => upstream::STALL,
            after => after,
        }
    }

    /// A node of an answer failed: the trackers are asked again, beside; when it was the last one, before the
    /// next round.
    fn failed(&self, whose: &Whose, was_last: bool) {
        if was_last {
            self.addresses.drop_answer(whose);
        } else {
            self.addresses.forget(whose);
        }
    }

    async fn route(&self, conn: &mut Conn, request: &Request) -> Result<Answered, ConnError> {
        if request.path.starts_with("/-/") || request.path == "*" {
            return self.admin(conn, request).await;
        }
        let allow = if self.gateway.config.writes {
            "GET, HEAD, PUT, DELETE, OPTIONS"
        } else {
            "GET, HEAD, OPTIONS"
        };
        let writes = matches!(request.method, Method::Put | Method::Delete);
        if request.method == Method::Other || writes && !self.gateway.config.writes {
            return self.answers.not_allowed(conn, request, allow).await;
        }
        if request.method == Method::Options {
            return self.answers.preflight(conn, request).await;
        }
        let (user, name) = match names::parse_path(&request.path) {
            Ok(names) => names,
            Err(error) => return self.answers.refuse(conn, request, error.into()).await,
        };
        if self.gateway.config.mode == HttpMode::Redirect {
            return self.redirect(conn, request, &user).await;
        }
        match request.method {
            Method::Put => self.put(conn, request, &user).await,
            Method::Delete => self.delete(conn, request, &user).await,
            _ => {
                let mut path = names::encode_path(&user, &name);
                if let Some(value) = query_value(&request.query, "download") {
                    path.push_str("?download=");
                    path.push_str(value);
                }
                self.read(conn, request, &user, &path).await
            }
        }
    }

    async fn admin(&self, conn: &mut Conn, request: &Request) -> Result<Answered, ConnError> {
        match (request.method, request.path.as_str()) {
            (Method::Options, _) => self.answers.preflight(conn, request).await,
            (Method::Get | Method::Head, "/-/health") => {
                let well = self.gateway.reachable.load(Ordering::Relaxed);
                let (status, word) = if well {
                    (200, "ok")
                } else {
                    (503, "no tracker answers with an active node")
                };
                let body = serde_json::json!({ "status": word }).to_string() + "\n";
                let head = self.answers.head(status, request);
                self.answers
                    .answer(conn, request, head, status, "application/json", body.as_bytes())
                    .await
            }
            (Method::Get | Method::Head, "/-/metrics") => {
                let text = reel_control::metrics::render();
                let head = self.answers.head(200, request);
                self.answers
                    .answer(conn, request, head, 200, "text/plain; version=0.0.4", text.as_bytes())
                    .await
            }
            (Method::Get | Method::Head, path) => {
                let user =
                    path.strip_prefix("/-/v1/users/").and_then(|rest| rest.strip_suffix("/files"));
                match user.map(|user| (user, names::check_user(user))) {
                    Some((user, Ok(()))) => {
                        let path = if request.query.is_empty() {
                            path.to_owned()
                        } else {
                            format!("{path}?{}", request.query)
                        };
                        self.read(conn, request, user, &path).await
                    }
                    Some((_, Err(error))) => self.answers.refuse(conn, request, error.into()).await,
                    None => {
                        self.answers
                            .refuse(
                                conn,
                                request,
                                Problem::new(404, "not_found", "no such path here"),
                            )
                            .await
                    }
                }
            }
            _ => self.answers.not_allowed(conn, request, "GET, HEAD, OPTIONS").await,
        }
    }
}

impl Service for Rc<GatewayShard> {
    fn prepare(&self, request: &mut Request) {
        let boot = self.gateway.boot;
        let count = &self.gateway.requests;
        request
            .fields
            .request_id
            .get_or_insert_with(|| format!("{boot:x}-{:x}", count.fetch_add(1, Ordering::Relaxed)));
    }

    async fn serve(&self, conn: &mut Conn, request: &Request) -> Result<Answered, ConnError> {
        let begun = Begun::now(conn);
        let result = self.route(conn, request).await;
        self.metrics.count_served(&begun, conn, request, &result);
        result
    }

    fn date(&self) -> Rc<str> {
        self.answers.date()
    }

    fn flush_metrics(&self) {
        self.metrics.flush();
    }
}
