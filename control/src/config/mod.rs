//! One TOML format for all roles. An unknown key or a bad value names file, line and key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, de};

mod units;

pub use units::{ByteSize, Span};

/// A configuration that cannot be used: one line for a person.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("{path}:{line}: {key}: {message}")]
    Bad {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key, as far as it is known.
        key: String,
        /// What is wrong with it.
        message: String,
    },
    /// A section that the role needs is not there.
    #[error("{path}: section [{section}] is missing; `reel config example {section}` prints one")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The section.
        section: &'static str,
    },
}

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

/// How many nodes must hold an upload durably before it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// This many.
    Nodes(u32),
    /// Every node of the group.
    All,
}

impl<'de> Deserialize<'de> for Ack {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u32),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(nodes @ 1..=2) => Ok(Self::Nodes(nodes)),
            Form::Text(text) if text == "all" => Ok(Self::All),
            Form::Number(other) => {
                Err(de::Error::custom(format!("{other} is not 1, 2 or \"all\"")))
            }
            Form::Text(other) => {
                Err(de::Error::custom(format!("{other:?} is not 1, 2 or \"all\"")))
            }
        }
    }
}

/// What becomes of an upload when fewer nodes are alive than `ack` asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AckDegraded {
    /// It is refused with 503 before its body is read.
    #[default]
    Refuse,
    /// It is taken, held by those that are alive, and the answer says so (`Reel-Degraded`).
    Warn,
}

/// How a group's nodes are kept equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Replication {
    /// Each node pulls what it lacks from its peers.
    Pull,
    /// `data` is a volume that all nodes of the group mount (GlusterFS), which keeps the copies.
    Shared,
}

/// `[storage]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageConfig {
    /// The node's id, 1 or more, unique in the cluster.
    pub id: u32,
    /// Its name, for people.
    #[serde(default)]
    pub name: Option<String>,
    /// Its group, 1 or more.
    pub group: u32,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The address others reach it at; `listen` when absent.
    pub advertise: Option<SocketAddr>,
    /// The data folders, one a disk.
    pub data: DataFolders,
    /// Shards; one a core when absent.
    pub shards: Option<u32>,
    /// How the group is kept equal.
    #[serde(default = "default_replication")]
    pub replication: Replication,
    /// How many nodes must hold an upload before it is answered.
    #[serde(default = "default_ack")]
    pub ack: Ack,
    /// What becomes of an upload when fewer are alive.
    #[serde(default)]
    pub ack_degraded: AckDegraded,
    /// Percent of its time that each copy from a peer works while the node fills itself; the rest is the viewers'.
    /// Three or more run at once.
    #[serde(default = "default_refill_share")]
    pub refill_share: u8,
    /// Bytes after which a packed segment is sealed.
    #[serde(default = "default_segment")]
    pub segment_bytes: ByteSize,
    /// Bytes of space written before that are kept ready for commits.
    #[serde(default = "default_prewrite")]
    pub prewrite: ByteSize,
    /// From this size on an upload gets a segment of its own.
    #[serde(default = "default_solo")]
    pub solo_bytes: ByteSize,
    /// Bytes that uploads leave free.
    #[serde(default = "default_reserve")]
    pub reserve: ByteSize,
    /// The largest upload.
    #[serde(default = "default_max_upload")]
    pub max_upload: ByteSize,
    /// Bytes of uploads that a shard holds in memory at once; further ones wait.
    #[serde(default = "default_upload_memory")]
    pub upload_memory: ByteSize,
    /// Segments kept open.
    #[serde(default = "default_open_segments")]
    pub open_segments: usize,
    /// Bytes of memory for the names a shard remembers.
    #[serde(default = "default_name_cache")]
    pub name_cache: ByteSize,
    /// Bytes of buffers a shard has for files that are not in the page cache.
    #[serde(default = "default_cold_buffers")]
    pub cold_buffers: ByteSize,
    /// Bytes of small files that a shard keeps in memory.
    #[serde(default = "default_body_cache")]
    pub body_cache: ByteSize,
    /// Age after which a remembered name is asked of the catalog again, beside the answer.
    #[serde(default = "default_name_age")]
    pub name_age: Span,
    /// Segment numbers fetched at a time.
    #[serde(default = "default_lease")]
    pub lease: u64,
    /// `Cache-Control` of files, by prefix of `USER/NAME`; the longest that fits counts.
    #[serde(default)]
    pub cache_control: Vec<CacheRule>,
    /// Whether answers say which node gave them (`Reel-Node`).
    #[serde(default = "default_true")]
    pub node_header: bool,
    /// What goes on in the background.
    #[serde(default)]
    pub upkeep: UpkeepConfig,
    /// Limits of connections.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Cross-origin rules.
    #[serde(default)]
    pub cors: CorsConfig,
    /// A line for each answer.
    #[serde(default)]
    pub access_log: AccessLogConfig,
}

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

/// `[[storage.cache_control]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheRule {
    /// The beginning of `USER/NAME`; empty for all.
    pub prefix: String,
    /// The field's value.
    pub value: String,
}

/// Data folders: one path, or a list with one a disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum DataFolders {
    /// One folder.
    One(PathBuf),
    /// One a disk.
    Several(Vec<PathBuf>),
}

impl DataFolders {
    /// The folders, in their order.
    pub fn paths(&self) -> &[PathBuf] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Several(paths) => paths,
        }
    }
}

/// `[storage.upkeep]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpkeepConfig {
    /// Percent of the time in which compaction, scrub and sweep together use the disks.
    pub share: u8,
    /// From one scrub of every byte to the next.
    pub scrub_every: Span,
    /// Percent of dead bytes from which a segment is compacted.
    pub compact_dead: u8,
    /// How long a deleted name's tombstone outlives its object.
    pub tombstone_keep: Span,
    /// From one comparison of segments and catalog to the next.
    pub sweep_every: Span,
    /// How old an object without a name is before it is buried.
    pub orphan_grace: Span,
    /// From one comparison of copies with those of the peers to the next.
    pub compare_every: Span,
}

impl Default for UpkeepConfig {
    fn default() -> Self {
        const HOUR: u64 = 3_600_000;
        Self {
            share: 20,
            scrub_every: Span::ms(7 * 24 * HOUR),
            compact_dead: 25,
            tombstone_keep: Span::ms(30 * 24 * HOUR),
            sweep_every: Span::ms(24 * HOUR),
            orphan_grace: Span::ms(HOUR),
            compare_every: Span::ms(24 * HOUR),
        }
    }
}

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
    /// Cross-origin rules.
    #[serde(default)]
    pub cors: CorsConfig,
    /// A line for each answer.
    #[serde(default)]
    pub access_log: AccessLogConfig,
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

/// `[….cors]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CorsConfig {
    /// `Access-Control-Allow-Origin` of answers to GET and HEAD; empty for none.
    pub allow_origin: String,
    /// Seconds a preflight's answer may be kept.
    pub max_age: u32,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned() }
    }
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

impl Default for CorsConfig {
    fn default() -> Self {
        Self { allow_origin: "*".to_owned(), max_age: 86_400 }
    }
}

fn default_cluster() -> String {
    "reel".to_owned()
}
fn default_beat() -> Span {
    Span::ms(1000)
}
fn default_replication() -> Replication {
    Replication::Pull
}
fn default_ack() -> Ack {
    Ack::Nodes(1)
}
fn default_segment() -> ByteSize {
    ByteSize(256 << 20)
}
fn default_body_cache() -> ByteSize {
    ByteSize(32 << 20)
}
fn default_cold_buffers() -> ByteSize {
    ByteSize(32 << 20)
}
fn default_prewrite() -> ByteSize {
    ByteSize(1 << 30)
}
fn default_solo() -> ByteSize {
    ByteSize(1 << 20)
}
fn default_reserve() -> ByteSize {
    ByteSize(256 << 20)
}
fn default_max_upload() -> ByteSize {
    ByteSize(1 << 40)
}
fn default_upload_memory() -> ByteSize {
    ByteSize(128 << 20)
}
fn default_open_segments() -> usize {
    4096
}
fn default_name_cache() -> ByteSize {
    ByteSize(64 << 20)
}
fn default_name_age() -> Span {
    Span::ms(2000)
}
fn default_lease() -> u64 {
    1024
}
fn default_mode() -> HttpMode {
    HttpMode::Proxy
}
fn default_true() -> bool {
    true
}
fn default_refill_share() -> u8 {
    12
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
        if let Some(storage) = &self.storage {
            if storage.id == 0 {
                return fail("id", "a node's id is 1 or more");
            }
            if storage.group == 0 {
                return fail("group", "a group is 1 or more");
            }
            if !(1 << 20..=16 << 30).contains(&storage.segment_bytes.0) {
                return fail("segment_bytes", "must be between 1 MiB and 16 GiB");
            }
            let folders = storage.data.paths();
            if folders.is_empty() {
                return fail("data", "must name at least one folder");
            }
            if (1..folders.len()).any(|at| folders[..at].contains(&folders[at])) {
                return fail("data", "names a folder twice");
            }
            if storage.replication == Replication::Shared {
                if folders.len() != 1 {
                    return fail(
                        "data",
                        "is the one mounted volume when replication is \"shared\"",
                    );
                }
                if storage.ack != Ack::Nodes(1) {
                    return fail(
                        "ack",
                        "is not for replication = \"shared\": the volume's own quorum says who holds an upload",
                    );
                }
            }
            if !(1..=100).contains(&storage.refill_share) {
                return fail("refill_share", "is a percentage from 1 to 100");
            }
            if !(1..=100).contains(&storage.upkeep.share) {
                return fail("share", "is a percentage from 1 to 100");
            }
            if !(1..=99).contains(&storage.upkeep.compact_dead) {
                return fail("compact_dead", "is a percentage from 1 to 99");
            }
            if storage.upload_memory.0 < 16 << 20 {
                return fail("upload_memory", "must be at least 16 MiB");
            }
            if storage.solo_bytes.0 > storage.segment_bytes.0 / 2 || storage.solo_bytes.0 > 8 << 20
            {
                return fail("solo_bytes", "must be at most 8 MiB and half of segment_bytes");
            }
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

fn bad(text: &str, path: &Path, at: usize, message: &str) -> ConfigError {
    let before = text.get(..at).unwrap_or("");
    let line = before.matches('\n').count() + 1;
    let source = text.lines().nth(line - 1).unwrap_or("");
    let key = source.split('=').next().unwrap_or("").trim();
    ConfigError::Bad {
        path: path.to_owned(),
        line,
        key: if key.is_empty() { "configuration".to_owned() } else { key.to_owned() },
        message: message.trim().replace('\n', " "),
    }
}

/// Where a line starts that sets `key`.
fn find_key(text: &str, key: &str) -> Option<usize> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.split('=').next().is_some_and(|found| found.trim() == key) {
            return Some(at);
        }
        at += line.len();
    }
    None
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
