//! One TOML format for all roles. An unknown key or a bad value names file, line and key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

mod error;
mod http;
mod serving;
mod storage;
mod units;

pub use error::ConfigError;
use error::{bad, find_key};
pub use http::{HttpConfig, HttpMode};
pub use serving::{AccessLogConfig, CorsConfig, LimitsConfig, TcpConfig};
pub use storage::{
    Ack, AckDegraded, CacheRule, DataFolders, Replication, StorageConfig, UpkeepConfig,
};
pub use units::{ByteSize, Span};

/// The whole file. Every role reads its own section and the common keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The cluster's name: nodes of another one are refused.
    #[serde(default = "default_cluster")]
    pub cluster: String,
    /// Every tracker's `HOST:PORT`.
    #[serde(default)]
    pub trackers: Vec<String>,
    /// Every ID server's `HOST:PORT`.
    #[serde(default)]
    pub id_servers: Vec<String>,
    /// The catalog: `sqlite:PATH` or `postgres://…`.
    #[serde(default)]
    pub catalog: Option<String>,
    /// Between a storage node's beats.
    #[serde(default = "default_beat")]
    pub beat: Span,
    /// The log.
    #[serde(default)]
    pub log: LogConfig,
    /// A tracker.
    pub tracker: Option<TrackerConfig>,
    /// An ID server.
    pub id: Option<IdConfig>,
    /// A storage node.
    pub storage: Option<StorageConfig>,
    /// An HTTP server (gateway).
    pub http: Option<HttpConfig>,
}

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug` or `trace`, or `tracing` directives.
    pub level: String,
}

/// `[tracker]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackerConfig {
    /// Where it listens.
    pub listen: SocketAddr,
}

/// `[id]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The file that keeps the mark (one ID server only). Without it the mark is a row in the
    /// catalog, which must be PostgreSQL; then any number of ID servers may run.
    pub mark: Option<PathBuf>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned() }
    }
}

fn default_cluster() -> String {
    "reel".to_owned()
}
fn default_beat() -> Span {
    Span::ms(1000)
}
impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Understands `text`; `path` is for errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            bad(text, path, at, error.message())
        })?;
        config.check(text, path)?;
        Ok(config)
    }

    fn check(&self, text: &str, path: &Path) -> Result<(), ConfigError> {
        let fail = |key: &str, message: &str| {
            let at = find_key(text, key).unwrap_or(0);
            Err(bad(text, path, at, message))
        };
        if self.cluster.is_empty() || self.cluster.len() > 64 {
            return fail("cluster", "must have 1 to 64 bytes");
        }
        if let Some(url) = &self.catalog
            && !url.starts_with("sqlite:")
            && !url.starts_with("postgres:")
            && !url.starts_with("postgresql:")
        {
            return fail("catalog", "must be sqlite:PATH or postgres://…");
        }
        if let Some(Err((key, message))) = self.storage.as_ref().map(StorageConfig::check) {
            return fail(key, message);
        }
        Ok(())
    }

    /// The catalog's URL, or the error that names the key.
    pub fn catalog_url(&self, path: &Path) -> Result<&str, ConfigError> {
        self.catalog.as_deref().ok_or(ConfigError::Bad {
            path: path.to_owned(),
            line: 1,
            key: "catalog".to_owned(),
            message: "is missing; sqlite:PATH or postgres://…".to_owned(),
        })
    }
}

/// A commented example for a role; `None` for a role that is not one.
pub fn example(role: &str) -> Option<&'static str> {
    match role {
        "tracker" => Some(include_str!("../../examples/tracker.toml")),
        "id" => Some(include_str!("../../examples/id.toml")),
        "storage" => Some(include_str!("../../examples/storage.toml")),
        "http" => Some(include_str!("../../examples/http.toml")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("reel.toml")).expect_err("refused").to_string()
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let unknown = error(
            "cluster = \"x\"\n[storage]\nid = 1\ngroup = 1\nlisten = \"127.0.0.1:1\"\ndata = \"d\"\nshard = 2\n",
        );
        assert!(unknown.starts_with("reel.toml:7: shard: unknown field `shard`"), "{unknown}");
        let value = error("[tracker]\nlisten = \"nowhere\"\n");
        assert!(value.starts_with("reel.toml:2: listen: "), "{value}");
        let size = error(
            "[storage]\nid = 1\ngroup = 1\nlisten = \"127.0.0.1:1\"\ndata = \"d\"\nreserve = \"many\"\n",
        );
        assert!(size.starts_with("reel.toml:6: reserve: ") && size.contains("256 MiB"), "{size}");
        let zero = error("[storage]\nid = 0\ngroup = 1\nlisten = \"127.0.0.1:1\"\ndata = \"d\"\n");
        assert!(zero.starts_with("reel.toml:2: id: "), "{zero}");
        let ack = error(
            "[storage]\nid = 1\ngroup = 1\nlisten = \"127.0.0.1:1\"\ndata = \"d\"\nack = 3\n",
        );
        assert!(ack.starts_with("reel.toml:6: ack: ") && ack.contains("\"all\""), "{ack}");
        let shared =
            "[storage]\nid = 1\ngroup = 1\nlisten = \"127.0.0.1:1\"\nreplication = \"shared\"\n";
        let acked = error(&format!("{shared}data = \"d\"\nack = 2\n"));
        assert!(acked.starts_with("reel.toml:7: ack: ") && acked.contains("quorum"), "{acked}");
        let several = error(&format!("{shared}data = [\"d\", \"e\"]\n"));
        assert!(several.starts_with("reel.toml:6: data: "), "{several}");
    }

    #[test]
    fn every_example_is_a_good_configuration() {
        for role in ["tracker", "id", "storage", "http"] {
            let text = example(role).expect("an example");
            Config::parse(text, Path::new(role)).expect(role);
        }
    }
}
