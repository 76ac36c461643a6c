//! PUT of a file.
//!
//! Order: the record is durable in a segment, then the row is committed in the catalog, then the
//! answer. A crash in between leaves a record that is offered to the catalog again at the next
//! start; a catalog that is away leaves a tombstone, and 503.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reel_control::api::{NodeState, Uploaded};
use reel_control::catalog::{CatalogError, Outcome, Row, Stamp, Write};
use reel_control::{media_type, names};
use reel_engine::clock::now_ms;
use reel_engine::disk::SharedPiece;
use reel_engine::format::record::{MAX_TYPE, RecordKind};
use reel_engine::solo::{SoloUpload, UPLOAD_BYTES};
use reel_engine::{Draft, ObjectId, Stored, Version};

use super::StorageShard;
use super::names::etag;
use super::patience::{STEP, in_time};
use super::quorum::Degraded;
use crate::answer::Problem;
use crate::conn::{Conn, ConnError};
use crate::http::conditions::allows_write;
use crate::http::request::{Framing, Request};
use crate::replicate::Push;
use crate::shard::Answered;

/// How long an upload waits for memory (`upload_memory`).
const MEMORY_WAIT: Duration = Duration::from_secs(10);
/// Between looks for it.
const MEMORY_LOOK: Duration = Duration::from_millis(5);

/// What a request uploads, apart from the bytes.
struct Upload {
    user: String,
    name: String,
    content_type: String,
    only_new: bool,
}

/// Why an upload ends without success.
enum Failed {
    Conn(ConnError),
    Problem(Problem),
}

impl From<ConnError> for Failed {
    fn from(error: ConnError) -> Self {
        match error {
            ConnError::Body(error) => Self::Problem(Problem {
                close: true,
                ..Problem::new(400, "bad_body", error.to_string())
            }),
            error => Self::Conn(error),
        }
    }
}

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<reel_engine::Error> for Failed {
    fn from(error: reel_engine::Error) -> Self {
        Self::Problem(error.into())
    }
}

impl StorageShard {
    pub(super) async fn put(
        self: &Rc<Self>,
        conn: &mut Conn,
        request: &Request,
    ) -> Result<Answered, ConnError> {
        let result = match self.may_upload(request).await {
            Ok(upload) => self.take(conn, request, upload).await,
            Err(problem) => Err(problem.into()),
        };
        match result {
            Ok(Done { created, uploaded, degraded }) => {
                let status = if created { 201 } else { 200 };
                let text = serde_json::to_string(&uploaded).map_err(std::io::Error::from)? + "\n";
                let mut head = self.answers.head(status, request);
                let object = uploaded.object.parse::<ObjectId>().map_or(0, ObjectId::as_u64);
                head.field(
                    "ETag",
                    etag(object, u32::from_str_radix(&uploaded.crc32, 16).unwrap_or(0)),
                );
                if let Some(degraded) = degraded {
                    head.field("Reel-Degraded", degraded);
                }
                if created {
                    head.field("Location", names::encode_path(&uploaded.user, &uploaded.name));
                }
                self.answers
                    .answer(conn, request, head, status, "application/json", text.as_bytes())
                    .await
            }
            Err(Failed::Problem(problem)) => self.answers.refuse(conn, request, problem).await,
            Err(Failed::Conn(error)) => Err(error),
        }
    }

    /// Everything that can be judged before the body.
    async fn may_upload(self: &Rc<Self>, request: &Request) -> Result<Upload, Problem> {
        let (user, name) = names::parse_path(&request.path)?;
        let content_type = match &request.fields.content_type {
            Some(given) if given.len() > MAX_TYPE => {
                return Err(Problem::new(400, "bad_type", "Content-Type is longer than 255 bytes"));
            }
            // What curl and browsers send when they do not know better says nothing.
            Some(given)
                if given != "application/x-www-form-urlencoded" && given != media_type::UNKNOWN =>
            {
                given.clone()
            }
            _ => media_type::guess(&name).to_owned(),
        };
        if self.node.status.state() == NodeState::Draining {
            return Err(Problem::new(503, "stopping", "this node takes no new uploads"));
        }
        if let Framing::Length(length) = request.framing {
            if length > self.node.config.max_upload.0 {
                let limit = self.node.config.max_upload.0;
                return Err(Problem::new(
                    413,
                    "too_large",
                    format!("an upload may have {limit} bytes here"),
                ));
            }
            self.node.store.has_room(length)?;
        }
        self.node.store.has_room(0)?;
        self.check_quorum()?;
        if !self.node.catalog.is_available() {
            return Err(Problem::new(503, "catalog_away", "the catalog is away; try again"));
        }
        let group = self.group_of(&user).await?;
        if group != self.node.config.group {
            return Err(Problem::other_group(group, self.node.config.group));
        }
        let only_new =
            request.fields.if_none_match.as_deref().is_some_and(|list| list.trim() == "*");
        self.check_write(request, &user, &name).await?;
        if request.framing == Framing::None {
            return Err(Problem::new(
                411,
                "length_required",
                "an upload has Content-Length or is chunked",
            ));
        }
        Ok(Upload { user, name, content_type, only_new })
    }

    /// Judges the conditions of a write; nothing is asked when there are none.
    pub(super) async fn check_write(
        self: &Rc<Self>,
        request: &Request,
        user: &str,
        name: &str,
    ) -> Result<(), Problem> {
        if request.fields.if_none_match.is_none() && request.fields.if_match.is_none() {
            return Ok(());
        }
        let present = self.find(user, name).await?;
        if allows_write(&request.fields, present.as_deref().map(|file| file.etag.as_str())) {
            return Ok(());
        }
        Err(Problem::new(
            412,
            "precondition_failed",
            "the file is not in the state that the condition names",
        ))
    }

    /// Receives the body, stores it and enters it into the catalog.
    async fn take(
        self: &Rc<Self>,
        conn: &mut Conn,
        request: &Request,
        upload: Upload,
    ) -> Result<Done, Failed> {
        if request.expects_continue && conn.input().is_empty() {
            conn.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let solo_bytes = self.node.config.solo_bytes.0;
        let known = conn.body.remaining();
        if known.is_some_and(|length| length >= solo_bytes) {
            let _held = self.hold(UPLOAD_BYTES).await?;
            return self.take_large(conn, request, upload, Vec::new()).await;
        }
        // One of unknown length may turn out to be a large one.
        let _held = self.hold(known.unwrap_or(UPLOAD_BYTES)).await?;
        let mut body = Vec::with_capacity(known.unwrap_or(0) as usize);
        conn.read_body(&mut body, solo_bytes as usize).await?;
        if !conn.body.is_done() {
            return self.take_large(conn, request, upload, body).await;
        }
        self.received.increment(body.len() as u64);
        let crc = crc32fast::hash(&body);
        check_crc(request, crc)?;
        if !self.is_shared() {
            return self.store_small(upload, Bytes::from(body), crc).await;
        }
        // The volume may never answer: the upload goes on then, and its client does not wait.
        let shard = Rc::clone(self);
        let storing = async move { shard.store_small(upload, Bytes::from(body), crc).await };
        monoio::time::timeout(STEP, monoio::spawn(storing)).await.unwrap_or_else(|_| {
            let message =
                "the group's volume does not answer; the file may still be stored, try again";
            Err(Problem::new(503, "volume_silent", message).into())
        })
    }

    /// Counts memory of an upload, given back when the guard is dropped. Waits a while for
    /// others to end: meanwhile the body stays in the sender's and the kernel's buffers.
    pub(super) async fn hold(self: &Rc<Self>, bytes: u64) -> Result<Held, Problem> {
        let deadline = Instant::now() + MEMORY_WAIT;
        loop {
            let held = self.upload_bytes.get() + bytes;
            if held <= self.node.config.upload_memory.0 {
                self.upload_bytes.set(held);
                return Ok(Held { shard: Rc::clone(self), bytes });
            }
            if Instant::now() > deadline {
                let message = "too many uploads at once (upload_memory)";
                return Err(Problem { close: true, ..Problem::new(503, "busy", message) });
            }
            monoio::time::sleep(MEMORY_LOOK).await;
        }
    }

    async fn store_small(
        self: &Rc<Self>,
        upload: Upload,
        payload: Bytes,
        crc: u32,
    ) -> Result<Done, Failed> {
        let mut lost_before = false;
        loop {
            let version = self.node.store.clock().next();
            let draft = draft(&upload, version, payload.clone(), crc);
            let modified_ms = draft.modified_ms;
            let stored = self.writer.put(draft).await?;
            let row = self.row(&upload, &stored, payload.len() as u64, crc, version, modified_ms);
            let uploaded = uploaded(&row);
            match self.enter(row, &upload, stored).await? {
                Entered::Done(done) => return Ok(done),
                // Once more above what stands: it may come from a clock ahead of this one.
                Entered::Newer(winner) if !lost_before => {
                    self.node.store.clock().observe(winner);
                    lost_before = true;
                }
                // What stands now was committed after this request began: the two were written at
                // the same time, and that one is the later.
                Entered::Newer(_) => return Ok(Done { created: false, uploaded, degraded: None }),
            }
        }
    }

    /// Streams a large body into a segment of its own; `first` is what has been read already.
    async fn take_large(
        self: &Rc<Self>,
        conn: &mut Conn,
        request: &Request,
        upload: Upload,
        first: Vec<u8>,
    ) -> Result<Done, Failed> {
        let payload = conn.body.remaining().map(|left| first.len() as u64 + left);
        let mut solo = SoloUpload::begin(&self.node.store, payload.unwrap_or(0)).await?;
        // A chunked one of unknown length the peers pull when it is here.
        let mut push =
            payload.map(|payload| Push::begin(self, solo.number(), payload, self.needed_peers()));
        let refused = |error: reel_engine::Error| Problem { close: true, ..error.into() };
        let mut first = first.as_slice();
        loop {
            let mut piece = solo.piece();
            first = &first[piece.fill(first)..];
            if first.is_empty() {
                let (bytes, full) = piece.spare();
                conn.read_body(bytes, full).await?;
            }
            self.received.increment(piece.len() as u64);
            let limit = self.node.config.max_upload.0;
            if solo.length() + piece.len() as u64 > limit {
                let message = format!("an upload may have {limit} bytes here");
                let problem = Problem::new(413, "too_large", message);
                return Err(Problem { close: true, ..problem }.into());
            }
            let piece = SharedPiece::from(piece);
            if let Some(push) = &mut push {
                push.feed(&piece).await;
            }
            self.volume_in_time(solo.write(piece)).await.map_err(refused)?;
            if first.is_empty() && conn.body.is_done() {
                break;
            }
        }
        let bytes = solo.length();
        // The version is taken last, above what stands under the name now: a faster clock
        // elsewhere must not make a finished upload lose.
        if let Ok(Some(there)) = self.node.catalog.lookup(&upload.user, &upload.name).await {
            self.node.store.clock().observe(version_of(there.stamp));
        }
        let version = self.node.store.clock().next();
        let draft = draft(&upload, version, Bytes::new(), 0);
        let modified_ms = draft.modified_ms;
        if let Some(expected) = &request.fields.content_crc32 {
            // The record is not made visible before the client's checksum was compared.
            let found = solo.crc();
            compare_crc(expected, found)?;
        }
        let told = |ending| {
            if let Some(push) = push {
                push.end(ending);
            }
        };
        let (stored, crc) = self.volume_in_time(solo.finish_telling(draft, told)).await?;
        let row = self.row(&upload, &stored, bytes, crc, version, modified_ms);
        let uploaded = uploaded(&row);
        match self.enter(row, &upload, stored).await? {
            Entered::Done(done) => Ok(done),
            // Written at the same time as another: that one is the later.
            Entered::Newer(_) => Ok(Done { created: false, uploaded, degraded: None }),
        }
    }

    /// Waits for a shared volume for a while; for a disk as long as it takes.
    async fn volume_in_time<T>(
        &self,
        call: impl Future<Output = Result<T, reel_engine::Error>>,
    ) -> Result<T, reel_engine::Error> {
        if self.is_shared() { in_time(call).await } else { call.await }
    }

    fn row(
        &self,
        upload: &Upload,
        stored: &Stored,
        bytes: u64,
        crc: u32,
        version: Version,
        modified_ms: u64,
    ) -> Row {
        Row {
            user: upload.user.clone(),
            name: upload.name.clone(),
            object: stored.object.as_u64(),
            group: self.node.config.group,
            path: stored.object.segment().to_path_string(),
            bytes,
            content_type: upload.content_type.clone(),
            crc,
            modified_ms,
            stamp: stamp_of(version),
        }
    }

    /// Commits the row of a durable record. Whatever does not become the file of its name gets a
    /// tombstone.
    async fn enter(
        self: &Rc<Self>,
        row: Row,
        upload: &Upload,
        stored: Stored,
    ) -> Result<Entered, Failed> {
        let write = || Write::Put { row: row.clone(), only_new: upload.only_new };
        let object = stored.object;
        // Before the name is this object, as many nodes hold it as `ack` asks for: the one that it replaces goes then,
        // and this node's disk may be lost at any time.
        let degraded = match self.wait_for_acks(&stored).await {
            Ok(degraded) => degraded,
            Err(problem) => {
                self.node.store.settled(&stored.segment);
                self.bury(object, &upload.user, &upload.name);
                return Err(problem.into());
            }
        };
        match self.stage.apply(write()).await {
            Ok(Outcome::Done { previous, .. }) => {
                self.node.store.settled(&stored.segment);
                self.remember(&row);
                if let Some(previous) = previous {
                    self.part_with(previous, &upload.user, &upload.name);
                }
                let created = previous.is_none();
                Ok(Entered::Done(Done { created, degraded, uploaded: uploaded(&row) }))
            }
            Ok(Outcome::Lost { winner, object: by }) => {
                self.node.store.settled(&stored.segment);
                let names = (upload.user.as_str(), upload.name.as_str());
                self.bury_loser(object, names, (version_of(winner), by));
                Ok(Entered::Newer(version_of(winner)))
            }
            Ok(Outcome::Exists | Outcome::NotFound) => {
                self.node.store.settled(&stored.segment);
                self.bury(object, &upload.user, &upload.name);
                Err(Problem::new(412, "precondition_failed", "there is a file of that name").into())
            }
            Err(error @ CatalogError::Unknown(_)) => {
                // It may have been committed: it is committed for sure as soon as that is possible.
                self.settle_later(write(), stored);
                Err(Problem::from(error).into())
            }
            Err(error) => {
                self.node.store.settled(&stored.segment);
                self.bury(object, &upload.user, &upload.name);
                Err(Problem::from(error).into())
            }
        }
    }

    /// The name is this row from now on, on every shard.
    pub(super) fn remember(&self, row: &Row) {
        let epoch = self.node.epochs.raise(&row.user, &row.name);
        self.names.insert(row.clone(), epoch, Instant::now());
    }

    /// Writes the row again until the catalog says what became of it.
    pub(super) fn settle_later(self: &Rc<Self>, write: Write, stored: Stored) {
        let shard = Rc::clone(self);
        monoio::spawn(async move {
            shard.apply_until_known(write, stored.object).await;
            shard.node.store.settled(&stored.segment);
        });
    }
}

/// An upload that took effect.
struct Done {
    created: bool,
    uploaded: Uploaded,
    degraded: Degraded,
}

enum Entered {
    Done(Done),
    Newer(Version),
}

/// Memory of an upload.
pub(super) struct Held {
    shard: Rc<StorageShard>,
    bytes: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shard.upload_bytes.set(self.shard.upload_bytes.get() - self.bytes);
    }
}

pub(super) fn stamp_of(version: Version) -> Stamp {
    Stamp { hlc: version.hlc, node: version.node }
}

pub(super) fn version_of(stamp: Stamp) -> Version {
    Version { hlc: stamp.hlc, node: stamp.node }
}

fn draft(upload: &Upload, version: Version, payload: Bytes, payload_crc: u32) -> Draft {
    Draft {
        kind: RecordKind::Object,
        user: upload.user.clone(),
        name: upload.name.clone(),
        content_type: upload.content_type.clone(),
        version,
        modified_ms: now_ms(),
        target: None,
        payload,
        payload_crc,
    }
}

fn uploaded(row: &Row) -> Uploaded {
    Uploaded {
        user: row.user.clone(),
        name: row.name.clone(),
        object: ObjectId::from_u64(row.object).to_string(),
        group: row.group,
        path: row.path.clone(),
        bytes: row.bytes,
        crc32: format!("{:08x}", row.crc),
    }
}

fn check_crc(request: &Request, found: u32) -> Result<(), Problem> {
    match &request.fields.content_crc32 {
        Some(expected) => compare_crc(expected, found),
        None => Ok(()),
    }
}

fn compare_crc(expected: &str, found: u32) -> Result<(), Problem> {
    match u32::from_str_radix(expected.trim(), 16) {
        Ok(expected) if expected == found => Ok(()),
        Ok(expected) => {
            let message = format!(
                "the body's CRC-32 is {found:08x}, Reel-Content-Crc32 says {expected:08x}; nothing was stored"
            );
            Err(Problem::new(400, "wrong_crc", message))
        }
        Err(_) => {
            Err(Problem::new(400, "bad_crc", "Reel-Content-Crc32 has up to 8 hexadecimal digits"))
        }
    }
}
