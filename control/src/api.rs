//! Every request and response body of the control plane, as JSON under `/-/v1/`.

use serde::{Deserialize, Serialize};

/// How the parts of a cluster of this build speak with one another: raised when a message or a file's format changes in a
/// way that the version before does not understand. Neighbouring versions understand each other, so machines can be upgraded
/// one at a time; trackers refuse others. (A build with REEL_PROTOCOL set in its environment says that instead: for
/// `tuning/lab/upgrade.py`.)
pub const PROTOCOL: u32 = match option_env!("REEL_PROTOCOL") {
    None => 1,
    Some(text) => number(text),
};

const fn number(text: &str) -> u32 {
    match u32::from_str_radix(text, 10) {
        Ok(number) => number,
        Err(_) => panic!("REEL_PROTOCOL is a number"),
    }
}

/// What nodes and trackers speak that do not say it: they are older than the field.
fn first_protocol() -> u32 {
    1
}

/// Whether parts of two protocol versions may run in one cluster.
pub fn speak_with_each_other(one: u32, other: u32) -> bool {
    one.abs_diff(other) <= 1
}

/// An error's body, with the status that fits it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// A stable word for programs.
    pub error: String,
    /// One line for people: what happened, to what, what to do.
    pub message: String,
}

/// A storage node's life (DESIGN.md; `offline` is what trackers say of a silent one).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It has started, and recovers.
    Joining,
    /// It copies what its group has and it lacks.
    Syncing,
    /// It takes uploads and serves downloads.
    Active,
    /// It finishes what it has begun, and takes nothing new.
    Draining,
    /// Trackers have not heard of it for three beats.
    Offline,
}

/// What a node is; it does not change while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The node's id, unique in the cluster.
    pub id: u32,
    /// Its name, for people.
    pub name: String,
    /// Its group.
    pub group: u32,
    /// Where it speaks HTTP, `IP:PORT`.
    pub address: String,
    /// The version of its binary.
    pub version: String,
    /// The protocol version it speaks ([`PROTOCOL`]).
    #[serde(default = "first_protocol")]
    pub protocol: u32,
    /// Shards, one a core.
    pub shards: u32,
    /// When it started, milliseconds since 1970 by its own clock.
    pub started_ms: u64,
    /// Random, made with its data folder (32 hexadecimal digits): tells two nodes of one id apart.
    pub instance: String,
    /// Bytes its file system has in all.
    pub capacity: u64,
}

/// What a node tells every tracker: the same bytes to each, at joining and at every beat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// The cluster's name; another one is refused.
    pub cluster: String,
    /// The node.
    pub node: NodeInfo,
    /// Its state.
    pub state: NodeState,
    /// Since when, milliseconds since 1970 by its clock.
    pub since_ms: u64,
    /// When this was written, milliseconds since 1970 by its clock as it was when it started: it never goes back within a
    /// life.
    pub sent_ms: u64,
    /// Bytes free for uploads.
    pub free: u64,
    /// Requests in progress.
    pub load: u32,
    /// Bytes its peers have that it lacks.
    pub lag: u64,
}

/// A tracker's answer to a beat.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BeatAnswer {
    /// Milliseconds between beats that the tracker expects.
    pub beat_ms: u64,
}

/// A node as trackers see it. Only what all of them can agree on: `GET /-/v1/nodes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// The node.
    #[serde(flatten)]
    pub node: NodeInfo,
    /// Its state.
    pub state: NodeState,
    /// Since when, milliseconds since 1970 by the node's clock as it was when it started, rounded down to a second; when it
    /// is offline, when it wrote its last beat.
    pub since_ms: u64,
    /// What changes with every beat: only with `?detail=1`.
    #[serde(flatten, skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<NodeDetail>,
}

/// What changes with every beat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDetail {
    /// Bytes free for uploads.
    pub free: u64,
    /// Requests in progress.
    pub load: u32,
    /// Bytes its peers have that it lacks.
    pub lag: u64,
    /// Milliseconds since this tracker heard of it; absent when only other trackers have.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub heard_ms: Option<u64>,
}

/// What a tracker has heard of a node, in short: `GET /-/v1/heard`, for the other trackers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeardView {
    /// The node.
    pub id: u32,
    /// When its last beat was written, milliseconds since 1970 by the node's clock.
    pub sent_ms: u64,
    /// Milliseconds since this tracker heard it; absent when only others have.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub heard_ms: Option<u64>,
}

/// `GET /-/v1/nodes`, sorted by id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Nodes {
    /// The cluster's name.
    pub cluster: String,
    /// All nodes the tracker has heard of since it started.
    pub nodes: Vec<NodeView>,
}

/// A group as `GET /-/v1/groups` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// The group.
    pub group: u32,
    /// Nodes it has.
    pub nodes: u32,
    /// Those that are active.
    pub active: u32,
    /// Bytes free for uploads: the least of its active nodes.
    pub free: u64,
    /// Bytes its nodes have in all: the least of them.
    pub capacity: u64,
    /// What operators say of it.
    #[serde(flatten, default)]
    pub settings: GroupSettings,
}

impl GroupView {
    /// A group that no node has joined.
    pub fn without_nodes(group: u32) -> Self {
        let settings = GroupSettings::default();
        Self { group, nodes: 0, active: 0, free: 0, capacity: 0, settings }
    }
}

/// What operators say of a group: `PUT /-/v1/groups/{group}[?create=1]` at a tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupSettings {
    /// Percent of its share of new users; 0 for none.
    pub weight: u32,
    /// New files of its users go to other groups.
    pub readonly: bool,
}

impl Default for GroupSettings {
    fn default() -> Self {
        Self { weight: 100, readonly: false }
    }
}

/// `GET /-/v1/groups`, sorted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Groups {
    /// The groups.
    pub groups: Vec<GroupView>,
}

/// What the addresses are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// New files: a new user gets a group.
    Upload,
    /// Reading: an unknown user is 404.
    Download,
}

/// `GET /-/v1/addresses?user=U&for=upload|download`, or `?group=G&for=…`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The group.
    pub group: u32,
    /// Its active nodes, in the order to try them.
    pub nodes: Vec<Address>,
}

/// One node to try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The node's id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// `IP:PORT`.
    pub address: String,
}

/// `POST /-/v1/lease` at an ID server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// The cluster's name.
    pub cluster: String,
    /// Who asks, for the log.
    pub node: u32,
    /// Numbers wanted; the server may give fewer.
    pub count: u64,
}

/// Segment numbers `first .. first + count`, never given to anyone else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The first number.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// The body of a successful `PUT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uploaded {
    /// The user.
    pub user: String,
    /// The file name.
    pub name: String,
    /// The object's id, 16 hexadecimal digits.
    pub object: String,
    /// The group that holds it.
    pub group: u32,
    /// The segment's path in a node's data folder.
    pub path: String,
    /// Bytes.
    pub bytes: u64,
    /// CRC-32 of the bytes, 8 hexadecimal digits.
    pub crc32: String,
}

/// A copy of a segment, as its node has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyView {
    /// The segment's number.
    pub segment: u64,
    /// It is complete, and its records are confirmed: only then is it to be compared.
    pub settled: bool,
    /// Objects that live in it.
    pub objects: u32,
    /// Of slots, lengths and checksums of those, 16 hexadecimal digits.
    digest: String,
}

impl CopyView {
    /// A copy.
    pub fn new(segment: u64, settled: bool, objects: u32, digest: u64) -> Self {
        Self { segment, settled, objects, digest: format!("{digest:016x}") }
    }

    /// The digest; `None` when it is not one.
    pub fn digest(&self) -> Option<u64> {
        u64::from_str_radix(&self.digest, 16).ok()
    }
}

/// `GET /-/v1/copies?after=N&limit=L` at a storage node, in order of number.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CopiesPage {
    /// The node.
    pub node: u32,
    /// A volume keeps the copies for its whole group: it has its own segments only.
    #[serde(default)]
    pub shared: bool,
    /// Its copies.
    pub copies: Vec<CopyView>,
    /// Ask again with `after=` this for more; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<u64>,
}

/// `GET /-/v1/segments/{number}/slots` at a storage node: each in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotsView {
    /// Slots whose objects can be read.
    pub living: Vec<u16>,
    /// Slots whose objects are dead, and not compacted away yet.
    pub dead: Vec<u16>,
}

/// The answer to `PUT /-/v1/moves/{user}/{name}`: whether the file is held by the asked node's group from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Whether it was moved now.
    pub moved: bool,
    /// Its bytes, when it was.
    pub bytes: u64,
    /// Why not, when it was not: there is nothing left to do then.
    pub why: String,
}

/// One file in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileView {
    /// The file name.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// Content type.
    #[serde(rename = "type")]
    pub content_type: String,
    /// CRC-32 of the bytes, 8 hexadecimal digits.
    pub crc32: String,
    /// The object's id, 16 hexadecimal digits.
    pub object: String,
    /// The group that holds it.
    pub group: u32,
    /// When it was uploaded, milliseconds since 1970.
    pub modified_ms: u64,
}

/// `GET /-/v1/users/{user}/files?prefix=&after=&limit=`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Files {
    /// The user.
    pub user: String,
    /// In order of name, at most `limit`.
    pub files: Vec<FileView>,
    /// Ask again with `after=` this for more; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
}
