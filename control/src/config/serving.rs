//! What every section of a role that serves clients has.

use std::path::PathBuf;

use serde::Deserialize;

use super::{ByteSize, Span};

/// `[….access_log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLogConfig {
    /// Where it is written; no log when absent.
    pub file: Option<PathBuf>,
    /// Every so-many-th answer gets a line; those with an error all do.
    pub every: u32,
}

impl Default for AccessLogConfig {
    fn default() -> Self {
        Self { file: None, every: 1 }
    }
}

/// `[….limits]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Connections a shard serves at once.
    pub connections: usize,
    /// Connections a shard serves at once for one address; 0 for no limit.
    pub per_address: usize,
    /// For a whole request head to arrive.
    pub head_timeout: Span,
    /// For the next request on a kept connection.
    pub idle_timeout: Span,
    /// Without any progress of a body, in or out.
    pub stall_timeout: Span,
    /// Bytes a second, on the average after half a minute, below which a body is given up, in or out; 0 for no limit.
    pub min_rate: ByteSize,
    /// How long requests in progress may take when the process stops.
    pub stop_grace: Span,
    /// A request head's bytes.
    pub head_bytes: usize,
    /// Ranges of one request; more are answered with the whole.
    pub ranges: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            per_address: 0,
            connections: 9_000,
            head_timeout: Span::ms(10_000),
            idle_timeout: Span::ms(75_000),
            stall_timeout: Span::ms(60_000),
            min_rate: ByteSize(1024),
            stop_grace: Span::ms(6_000),
            head_bytes: 16 * 1024,
            ranges: 16,
        }
    }
}

/// `[….tcp]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TcpConfig {
    /// Congestion control of answers to all clients; when empty [`Self::near_congestion`] for near ones, the system's for
    /// others.
    pub congestion: String,
    /// The same for what is near: nodes of the cluster, and clients whose address is not routed in the internet; the
    /// system's when empty.
    pub near_congestion: String,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self { congestion: String::new(), near_congestion: "cubic".to_owned() }
    }
}

/// `[….cors]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CorsConfig {
    /// `Access-Control-Allow-Origin` of answers to GET and HEAD; empty for none.
    pub allow_origin: String,
    /// Seconds a preflight's answer may be kept.
    pub max_age: u32,
}

impl Default for CorsConfig {
    fn default() -> Self {
        Self { allow_origin: "*".to_owned(), max_age: 86_400 }
    }
}

pub(super) fn default_true() -> bool {
    true
}
