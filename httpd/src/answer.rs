//! Answers: errors with the status that fits them, CORS, JSON. The same for nodes and HTTP servers.

use std::rc::Rc;
use std::time::Instant;

use reel_control::catalog::CatalogError;
use reel_control::config::CorsConfig;
use reel_control::names::NameError;
use reel_engine::Error;

use crate::conn::{Conn, ConnError};
use crate::http::request::{Method, Request};
use crate::http::response::{Head, error_body};
use crate::shard::{Answered, DateCache};

/// A refusal: status, word for programs, line for people.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) status: u16,
    pub(crate) error: &'static str,
    pub(crate) message: String,
    /// The group to go to instead (421).
    pub(crate) group: Option<u32>,
    /// The request's body was not read: the connection cannot go on unless it is short.
    pub(crate) close: bool,
}

impl Problem {
    pub(crate) fn new(status: u16, error: &'static str, message: impl Into<String>) -> Self {
        Self { status, error, message: message.into(), group: None, close: false }
    }

    pub(crate) fn not_found(user: &str, name: &str) -> Self {
        Self::new(404, "not_found", format!("{user}/{name}: no such file"))
    }

    pub(crate) fn other_group(group: u32, ours: u32) -> Self {
        let message = format!("this node serves group {ours}; go to a node of group {group}");
        Self { group: Some(group), ..Self::new(421, "other_group", message) }
    }
}

impl From<NameError> for Problem {
    fn from(error: NameError) -> Self {
        if error.is_too_long() {
            Self::new(414, "name_too_long", error.to_string())
        } else {
            Self::new(400, "bad_name", error.to_string())
        }
    }
}

impl From<CatalogError> for Problem {
    fn from(error: CatalogError) -> Self {
        Self::new(503, "catalog_away", error.to_string())
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::NoSpace { .. } => Self::new(507, "no_space", message),
            Error::NoFolder(_) => Self::new(503, "no_folder", message),
            Error::Silent { .. } => Self::new(503, "disk_silent", message),
            Error::NoNumbers => Self::new(503, "no_segment_numbers", message),
            Error::OtherGeneration(_) => Self::new(409, "other_generation", message),
            Error::Busy(_) => Self::new(503, "busy", message),
            Error::Stopping => Self::new(503, "stopping", message),
            Error::DamagedObject { .. } | Error::Damaged { .. } => {
                Self::new(500, "damaged", message)
            }
            _ => Self::new(500, "disk", message),
        }
    }
}

/// What makes a shard's answers.
#[derive(Debug)]
pub(crate) struct Answers {
    date: DateCache,
    cors: CorsConfig,
    /// Who answers, for `Reel-Node`.
    node: Option<String>,
}

impl Answers {
    pub(crate) fn new(cors: CorsConfig, node: Option<String>) -> Self {
        Self { date: DateCache::new(), cors, node }
    }

    /// The date for response heads.
    pub(crate) fn date(&self) -> Rc<str> {
        self.date_at(Instant::now()).1
    }

    /// The date, and the second it stands for.
    pub(crate) fn date_at(&self, now: Instant) -> (u64, Rc<str>) {
        self.date.get(now)
    }

    /// The beginning of a 200 to a GET: status line to cross-origin fields.
    pub(crate) fn begin_ok(&self, date: &str) -> String {
        self.beginning(200, date, Method::Get).unfinished()
    }

    /// A head with the date and, where they are due, the cross-origin fields.
    pub(crate) fn head(&self, status: u16, request: &Request) -> Head {
        let mut head = self.beginning(status, &self.date(), request.method);
        if let Some(id) = &request.fields.request_id {
            head.field("X-Request-Id", id);
        }
        head
    }

    fn beginning(&self, status: u16, date: &str, method: Method) -> Head {
        let mut head = Head::new(status, date);
        if let Some(node) = &self.node {
            head.field("Reel-Node", node);
        }
        let origin = &self.cors.allow_origin;
        if matches!(method, Method::Get | Method::Head | Method::Options) && !origin.is_empty() {
            cross_origin(&mut head, origin);
        }
        head
    }

    /// Sends a complete answer with a body in memory.
    pub(crate) async fn answer(
        &self,
        conn: &mut Conn,
        request: &Request,
        mut head: Head,
        status: u16,
        content_type: &str,
        body: &[u8],
    ) -> Result<Answered, ConnError> {
        head.field("Content-Type", content_type)
            .field("Content-Length", body.len())
            .connection(request.keep_alive, request.http11);
        conn.queue(&head.end()).await?;
        if request.method != Method::Head {
            conn.queue(body).await?;
        }
        Ok(Answered { status, close: false })
    }

    pub(crate) async fn json<T: serde::Serialize>(
        &self,
        conn: &mut Conn,
        request: &Request,
        status: u16,
        body: &T,
    ) -> Result<Answered, ConnError> {
        let text = serde_json::to_string(body).map_err(std::io::Error::from)? + "\n";
        let head = self.head(status, request);
        self.answer(conn, request, head, status, "application/json", text.as_bytes()).await
    }

    /// Sends 204: it is done, and there is nothing to say.
    pub(crate) async fn done(
        &self,
        conn: &mut Conn,
        request: &Request,
    ) -> Result<Answered, ConnError> {
        let mut head = self.head(204, request);
        head.connection(request.keep_alive, request.http11);
        conn.queue(&head.end()).await?;
        Ok(Answered { status: 204, close: false })
    }

    /// Sends an error.
    pub(crate) async fn refuse(
        &self,
        conn: &mut Conn,
        request: &Request,
        problem: Problem,
    ) -> Result<Answered, ConnError> {
        if problem.status >= 500 {
            tracing::warn!(
                status = problem.status,
                path = request.path,
                message = problem.message,
                "request failed"
            );
        }
        let mut head = self.head(problem.status, request);
        if problem.status == 503 {
            head.field("Retry-After", 1);
        }
        if let Some(group) = problem.group {
            head.field("Reel-Group", group);
        }
        let body = error_body(problem.error, &problem.message);
        let answered = self
            .answer(conn, request, head, problem.status, "application/json", body.as_bytes())
            .await?;
        Ok(Answered { close: problem.close, ..answered })
    }

    /// 405 with the methods that would do.
    pub(crate) async fn not_allowed(
        &self,
        conn: &mut Conn,
        request: &Request,
        allow: &str,
    ) -> Result<Answered, ConnError> {
        let mut head = self.head(405, request);
        head.field("Allow", allow);
        let body = error_body("method_not_allowed", &format!("allowed here: {allow}"));
        self.answer(conn, request, head, 405, "application/json", body.as_bytes()).await
    }

    /// `OPTIONS`, and the preflight of a cross-origin request (Fetch standard §3.2).
    pub(crate) async fn preflight(
        &self,
        conn: &mut Conn,
        request: &Request,
    ) -> Result<Answered, ConnError> {
        let mut head = self.head(204, request);
        preflight_fields(&mut head, &self.cors, request);
        head.connection(request.keep_alive, request.http11);
        conn.queue(&head.end()).await?;
        Ok(Answered { status: 204, close: false })
    }
}

/// The fields that let pages of other origins read.
fn cross_origin(head: &mut Head, origin: &str) {
    // All may be read: nothing that is asked for with credentials is answered to another origin (Fetch standard §3.3.4).
    head.field("Access-Control-Allow-Origin", origin).field("Access-Control-Expose-Headers", "*");
    if origin != "*" {
        head.field("Vary", "Origin");
    }
}

/// What a preflight asks for: reading, with ranges.
fn preflight_fields(head: &mut Head, cors: &reel_control::config::CorsConfig, request: &Request) {
    head.field("Allow", "GET, HEAD, PUT, DELETE, OPTIONS");
    if !cors.allow_origin.is_empty() && request.fields.origin.is_some() {
        head.field("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
            .field(
                "Access-Control-Allow-Headers",
                "Range, If-Range, If-None-Match, If-Modified-Since",
            )
            .field("Access-Control-Max-Age", cors.max_age);
    }
}
