//! `[http]`.

use std::net::SocketAddr;

use serde::Deserialize;

use super::Span;
use super::serving::{AccessLogConfig, CorsConfig, LimitsConfig, TcpConfig, default_true};

/// How an HTTP server brings bytes to its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HttpMode {
    /// It fetches from a node and passes on.
    Proxy,
    /// It sends the client to a node (307).
    Redirect,
}

/// `[http]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Shards; one a core when absent.
    pub shards: Option<u32>,
    /// `proxy` or `redirect`.
    #[serde(default = "default_mode")]
    pub mode: HttpMode,
    /// Whether PUT and DELETE are passed on.
    #[serde(default = "default_true")]
    pub writes: bool,
    /// How long a tracker's answer is used.
    #[serde(default = "default_address_age")]
    pub address_age: Span,
    /// Idle connections kept to each node, a shard.
    #[serde(default = "default_pool")]
    pub idle_per_node: usize,
    /// Connections to each node, a shard.
    #[serde(default = "default_per_node")]
    pub connections_per_node: usize,
    /// A second node is asked when the first has not begun its answer after so long; 0 for never.
    #[serde(default = "default_hedge_after")]
    pub hedge_after: Span,
    /// A node that is silent for so long, before its answer or in the middle of it, is passed by for a while, and
    /// another one goes on.
    #[serde(default = "default_silent_after")]
    pub silent_after: Span,
    /// Limits of connections.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// How bytes go out.
    #[serde(default)]
    pub tcp: TcpConfig,
    /// Cross-origin rules.
    #[serde(default)]
    pub cors: CorsConfig,
    /// A line for each answer.
    #[serde(default)]
    pub access_log: AccessLogConfig,
}

fn default_mode() -> HttpMode {
    HttpMode::Proxy
}

fn default_address_age() -> Span {
    Span::ms(1000)
}

fn default_pool() -> usize {
    64
}

fn default_per_node() -> usize {
    1024
}

fn default_hedge_after() -> Span {
    Span::ms(100)
}

fn default_silent_after() -> Span {
    Span::ms(500)
}
