//! `[storage]`, and what is below it.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de};

use super::serving::{AccessLogConfig, CorsConfig, LimitsConfig, TcpConfig, default_true};
use super::{ByteSize, Span};

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
    /// Percent of its time that each copy from a peer works while the node fills itself, one large segment at a time and
    /// in small writes; the rest is the viewers'.
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

impl StorageConfig {
    /// The key that is wrong, and how.
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.id == 0 {
            return Err(("id", "a node's id is 1 or more"));
        }
        if self.group == 0 {
            return Err(("group", "a group is 1 or more"));
        }
        if !(1 << 20..=16 << 30).contains(&self.segment_bytes.0) {
            return Err(("segment_bytes", "must be between 1 MiB and 16 GiB"));
        }
        let folders = self.data.paths();
        if folders.is_empty() {
            return Err(("data", "must name at least one folder"));
        }
        if (1..folders.len()).any(|at| folders[..at].contains(&folders[at])) {
            return Err(("data", "names a folder twice"));
        }
        if self.replication == Replication::Shared {
            if folders.len() != 1 {
                return Err(("data", "is the one mounted volume when replication is \"shared\""));
            }
            if self.ack != Ack::Nodes(1) {
                return Err((
                    "ack",
                    "is not for replication = \"shared\": the volume's own quorum says who holds an upload",
                ));
            }
        }
        if !(1..=100).contains(&self.refill_share) {
            return Err(("refill_share", "is a percentage from 1 to 100"));
        }
        if !(1..=100).contains(&self.upkeep.share) {
            return Err(("share", "is a percentage from 1 to 100"));
        }
        if !(1..=99).contains(&self.upkeep.compact_dead) {
            return Err(("compact_dead", "is a percentage from 1 to 99"));
        }
        if self.upload_memory.0 < 16 << 20 {
            return Err(("upload_memory", "must be at least 16 MiB"));
        }
        if self.solo_bytes.0 > self.segment_bytes.0 / 2 || self.solo_bytes.0 > 8 << 20 {
            return Err(("solo_bytes", "must be at most 8 MiB and half of segment_bytes"));
        }
        Ok(())
    }
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

fn default_refill_share() -> u8 {
    60
}
