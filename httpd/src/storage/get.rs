//! GET and HEAD of a file.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reel_control::catalog::CatalogError;
use reel_control::names;
use reel_engine::upkeep::Damage;
use reel_engine::{Error, Located, ObjectId, Place, Segment, read};

use super::epochs::NameHash;
use super::names::{File, Remembered};
use super::patience::in_time;
use super::source::{First, Here, Source};
use super::{Method, StorageShard};
use crate::answer::Problem;
use crate::conn::{Conn, ConnError};
use crate::http::conditions::{Verdict, judge};
use crate::http::range::{self, Asked};
use crate::http::request::{Request, query_value};
use crate::shard::Answered;
use crate::turns::Turn;

/// How long the catalog may take when there is something to answer with.
const CATALOG_PATIENCE: Duration = Duration::from_millis(300);
/// How long opening a segment of a shared volume may take before the peers are asked.
const OPEN_PATIENCE: Duration = Duration::from_millis(150);
/// Payloads up to this size are read into memory, checked and sent in one piece with their head;
/// larger ones go by sendfile.
const SMALL_BYTES: u64 = 32 * 1024;
/// The boundary of multipart answers; it need not be unpredictable for ranges of one's own file,
/// only absent from the part heads.
const BOUNDARY: &str = "reel-part-5e1f0b77c2";

/// Where an object lies.
pub(super) enum Found {
    /// In a folder that this node reads.
    Here(Arc<Segment>, Located),
    /// Not here (yet), or not readable. A peer that is known to be writing it is named.
    Elsewhere(Option<u32>),
}

impl StorageShard {
    pub(super) async fn get(
        self: &Rc<Self>,
        conn: &mut Conn,
        request: &Request,
    ) -> Result<Answered, ConnError> {
        let (user, name) = match names::parse_path(&request.path) {
            Ok(names) => names,
            Err(error) => return self.answers.refuse(conn, request, error.into()).await,
        };
        let mut tried = None;
        loop {
            let file = match self.find(&user, &name).await {
                Ok(Some(file)) => file,
                Ok(None) => {
                    let problem = Problem::not_found(&user, &name);
                    return self.answers.refuse(conn, request, problem).await;
                }
                Err(problem) => return self.answers.refuse(conn, request, problem).await,
            };
            if file.row.group != self.node.config.group {
                let problem = Problem::other_group(file.row.group, self.node.config.group);
                return self.answers.refuse(conn, request, problem).await;
            }
            if tried == Some(file.row.object) {
                return self.answers.refuse(conn, request, unreachable_object(&file)).await;
            }
            if let Some(answered) = self.send_object(conn, request, &file).await? {
                return Ok(answered);
            }
            // The object is neither here nor at a peer: perhaps it was replaced, deleted or moved to another group
            // meanwhile. What is remembered is forgotten, so the catalog says.
            self.names.remove(&user, &name);
            tried = Some(file.row.object);
        }
    }

    /// The file of a name: remembered, or from the catalog.
    pub(super) async fn find(
        self: &Rc<Self>,
        user: &str,
        name: &str,
    ) -> Result<Option<Rc<File>>, Problem> {
        let (asked_at, epoch) = (Instant::now(), self.node.epochs.of(NameHash::of(user, name)));
        let stale = match self.names.get(user, name, epoch, &self.node.following) {
            Remembered::Fresh(file) => return Ok(Some(file)),
            Remembered::Aged(file) => {
                let (shard, user, name) = (Rc::clone(self), user.to_owned(), name.to_owned());
                monoio::spawn(async move {
                    let epoch = shard.node.epochs.of(NameHash::of(&user, &name));
                    let asked_at = Instant::now();
                    match shard.node.catalog.lookup(&user, &name).await {
                        Ok(Some(row)) => drop(shard.names.insert(row, epoch, asked_at)),
                        Ok(None) => shard.names.remove(&user, &name),
                        Err(_) => shard.names.ask_later(&user, &name),
                    }
                });
                return Ok(Some(file));
            }
            Remembered::Stale(file) => Some(file),
            Remembered::Changed | Remembered::Unknown => None,
        };
        let asked = self.node.catalog.lookup(user, name);
        let answer = match &stale {
            None => asked.await,
            Some(_) => monoio::time::timeout(CATALOG_PATIENCE, asked).await.unwrap_or_else(|_| {
                Err(CatalogError::Away(format!("no answer within {CATALOG_PATIENCE:?}")))
            }),
        };
        match answer {
            Ok(Some(row)) => Ok(Some(self.names.insert(row, epoch, asked_at))),
            Ok(None) => {
                self.names.remove(user, name);
                Ok(None)
            }
            // Without the catalog what was seen lately is still served, by nodes that hear their peers.
            Err(error) => match stale {
                Some(file) if self.node.following.hears_the_living(Instant::now()) => {
                    Ok(Some(file))
                }
                _ => Err(error.into()),
            },
        }
    }

    /// Answers with the object's bytes; `None` when nobody has them (nothing was sent then).
    async fn send_object(
        &self,
        conn: &mut Conn,
        request: &Request,
        file: &File,
    ) -> Result<Option<Answered>, ConnError> {
        let row = &file.row;
        let ranges = match judge(&request.fields, &file.etag, row.modified_ms / 1000) {
            Verdict::Proceed { ranges } => ranges,
            Verdict::NotModified => return self.not_modified(conn, request, file).await.map(Some),
            Verdict::Failed => {
                let problem = Problem::new(
                    412,
                    "precondition_failed",
                    "the file is not in the state that the condition names",
                );
                return self.answers.refuse(conn, request, problem).await.map(Some);
            }
        };
        // RFC 9110 §14.2: Range is only defined for GET.
        let field =
            request.fields.range.as_deref().filter(|_| ranges && request.method == Method::Get);
        let asked = range::parse(field, row.bytes, self.node.config.limits.ranges);
        if asked == Asked::Unsatisfiable {
            let mut head = self.answers.head(416, request);
            head.field("Content-Range", format_args!("bytes */{}", row.bytes));
            let body = crate::http::response::error_body(
                "range",
                &format!("the file has {} bytes", row.bytes),
            );
            return self
                .answers
                .answer(conn, request, head, 416, "application/json", body.as_bytes())
                .await
                .map(Some);
        }
        let object = ObjectId::from_u64(row.object);
        let found = match self.locate(object).await {
            Ok(found) => found,
            Err(error) => {
                self.note_unreadable(object, &error);
                Found::Elsewhere(None)
            }
        };
        match found {
            Found::Here(segment, located) => {
                match self.send_here(conn, request, file, &segment, &located, &asked).await {
                    Ok(answered) => Ok(Some(answered)),
                    Err(Here::Conn(error)) => Err(error),
                    Err(Here::Damaged(error)) => {
                        self.note_unreadable(object, &error);
                        match Box::pin(self.send_from_peer(conn, request, object, None)).await? {
                            Some(answered) => Ok(Some(answered)),
                            None => {
                                self.answers.refuse(conn, request, error.into()).await.map(Some)
                            }
                        }
                    }
                }
            }
            Found::Elsewhere(writer) => {
                let sent = Box::pin(self.send_from_peer(conn, request, object, writer)).await?;
                if sent.is_some() || !self.is_shared() {
                    return Ok(sent);
                }
                Box::pin(self.send_unfinished(conn, request, file, &asked)).await
            }
        }
    }

    /// Counts what cannot be read; what is damaged of it is repaired, beside.
    pub(super) fn note_damaged(&self, error: &Error) {
        self.damaged.increment(1);
        if let Some(damage) = Damage::met(error) {
            // When too many wait, the scrub finds it.
            let _ = self.node.repairs.try_send(damage);
        }
    }

    fn note_unreadable(&self, object: ObjectId, error: &Error) {
        // A silent disk was named when it became so.
        if !matches!(error, Error::Silent { .. }) {
            self.note_damaged(error);
            tracing::error!(%error, %object, "object cannot be read here; asking the peers");
        }
    }

    /// Sends an object on the group's volume whose node died before it sealed the segment; `None` when that cannot be
    /// read either.
    async fn send_unfinished(
        &self,
        conn: &mut Conn,
        request: &Request,
        file: &File,
        asked: &Asked,
    ) -> Result<Option<Answered>, ConnError> {
        let object = ObjectId::from_u64(file.row.object);
        let scanned = in_time(self.node.store.scan_unfinished(object)).await;
        let segment = match scanned {
            Ok(Some(segment)) => segment,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.note_unreadable(object, &error);
                return Ok(None);
            }
        };
        let Some(located) = segment.locate(object.slot()) else { return Ok(None) };
        match self.send_here(conn, request, file, &segment, &located, asked).await {
            Ok(answered) => Ok(Some(answered)),
            Err(Here::Conn(error)) => Err(error),
            Err(Here::Damaged(error)) => {
                self.note_unreadable(object, &error);
                Ok(None)
            }
        }
    }

    /// Where an object lies.
    ///
    /// # Errors
    /// It lies here, but cannot be read.
    pub(super) async fn locate(&self, object: ObjectId) -> Result<Found, Error> {
        let placing = self.place(object.segment());
        let place = if self.is_shared() {
            // Opening may wait for a machine of the volume that has vanished; whoever has it open answers.
            match monoio::time::timeout(OPEN_PATIENCE, placing).await {
                Ok(Err(Error::Busy(_))) | Err(_) => Ok(Place::Nowhere),
                Ok(place) => place,
            }
        } else {
            in_time(placing).await
        };
        let segment = match place? {
            Place::Here(segment) => segment,
            Place::At(node) => return Ok(Found::Elsewhere(Some(node))),
            Place::Nowhere => return Ok(Found::Elsewhere(None)),
        };
        self.node.store.check_answers(&segment)?;
        Ok(match segment.locate(object.slot()) {
            Some(located) => Found::Here(segment, located),
            None => Found::Elsewhere(None),
        })
    }

    async fn not_modified(
        &self,
        conn: &mut Conn,
        request: &Request,
        file: &File,
    ) -> Result<Answered, ConnError> {
        let mut head = self.answers.head(304, request);
        head.field("ETag", &file.etag).field("Last-Modified", file.modified());
        // RFC 9110 §15.4.5: what a 200 would say of caching, a 304 says too.
        if let Some(value) = &file.cache_control {
            head.field("Cache-Control", value);
        }
        head.connection(request.keep_alive, request.http11);
        conn.queue(&head.end()).await?;
        Ok(Answered { status: 304, close: false })
    }

    /// The head of a 200 or 206 up to the fields that differ.
    fn file_head(
        &self,
        status: u16,
        request: &Request,
        file: &File,
    ) -> crate::http::response::Head {
        let mut head = self.answers.head(status, request);
        head.prepared(file.fields());
        if query_value(&request.query, "download") == Some("1") {
            head.field("Content-Disposition", attachment(&file.row.name));
        }
        head.connection(request.keep_alive, request.http11);
        head
    }

    async fn send_here(
        &self,
        conn: &mut Conn,
        request: &Request,
        file: &File,
        segment: &Arc<Segment>,
        located: &Located,
        asked: &Asked,
    ) -> Result<Answered, Here> {
        let row = &file.row;
        let content_type = row.content_type.as_str();
        let (status, parts) = match asked {
            Asked::Parts(parts) => (206, parts.clone()),
            _ => (200, std::iter::once(0..row.bytes).collect()),
        };
        let head_only = request.method == Method::Head;
        // What sendfile cannot send (a shared volume) and has no blocks is read whole.
        let whole =
            located.length <= SMALL_BYTES || !segment.is_solo() && segment.file().std().is_none();
        let small = if whole && !head_only {
            let slot = ObjectId::from_u64(row.object).slot();
            let read = read::read_checked(&self.node.store, segment, slot, located, Vec::new());
            let body = in_time(read).await?;
            if located.length <= SMALL_BYTES {
                self.hot.offer(&self.answers, file, &body);
            }
            Some(body)
        } else {
            None
        };
        let source =
            Source { shard: self, segment, located, small: small.as_deref(), object: row.object };
        let mut head = self.file_head(status, request, file);
        if let [part] = parts.as_slice() {
            head.field("Content-Type", content_type).field("Content-Length", part.end - part.start);
            if status == 206 {
                head.field("Content-Range", content_range(part, row.bytes));
            }
            if head_only {
                conn.queue(&head.end()).await?;
                return Ok(Answered { status, close: false });
            }
            let first = source.check_first(part, conn.turn()).await?;
            if small.is_none() && first.is_resident() {
                self.offer_lying(file, segment, located, part);
            }
            conn.queue(&head.end()).await?;
            source.send(conn, part, first).await?;
            return Ok(Answered { status, close: false });
        }
        let part_heads: Vec<String> = parts
            .iter()
            .map(|part| {
                format!(
                    "\r\n--{BOUNDARY}\r\nContent-Type: {content_type}\r\nContent-Range: {}\r\n\r\n",
                    content_range(part, row.bytes)
                )
            })
            .collect();
        let end = format!("\r\n--{BOUNDARY}--\r\n");
        let length = part_heads.iter().map(|head| head.len() as u64).sum::<u64>()
            + parts.iter().map(|part| part.end - part.start).sum::<u64>()
            + end.len() as u64;
        head.field("Content-Type", format_args!("multipart/byteranges; boundary={BOUNDARY}"))
            .field("Content-Length", length);
        let mut first = First::default();
        for part in parts.iter().rev() {
            first = source.check_first(part, Turn::default()).await?;
        }
        conn.queue(&head.end()).await?;
        for (part_head, part) in part_heads.iter().zip(&parts) {
            conn.queue(part_head.as_bytes()).await?;
            source.send(conn, part, std::mem::take(&mut first)).await?;
        }
        conn.queue(end.as_bytes()).await?;
        Ok(Answered { status, close: false })
    }

    /// `GET /-/v1/objects/{id}`: an object by its id, for a peer that does not have it.
    pub(super) async fn get_object(
        self: &Rc<Self>,
        conn: &mut Conn,
        request: &Request,
        id: &str,
    ) -> Result<Answered, ConnError> {
        let Ok(object) = id.parse::<ObjectId>() else {
            let problem =
                Problem::new(400, "bad_request", "an object id has up to 16 hexadecimal digits");
            return self.answers.refuse(conn, request, problem).await;
        };
        let missing = || Problem::new(404, "not_found", format!("object {object} is not here"));
        let (segment, located) = match self.locate(object).await {
            Ok(Found::Here(segment, located)) => (segment, located),
            Ok(Found::Elsewhere(_)) => return self.answers.refuse(conn, request, missing()).await,
            Err(error) => return self.answers.refuse(conn, request, error.into()).await,
        };
        let reader = Arc::clone(&segment);
        let head = self.node.store.pool().run(move || reader.read_head(object.slot()));
        let head = match in_time(head).await {
            Ok(Some(head)) => head,
            Ok(None) => return self.answers.refuse(conn, request, missing()).await,
            Err(error) => return self.answers.refuse(conn, request, error.into()).await,
        };
        let file = File::new(
            reel_control::catalog::Row {
                object: object.as_u64(),
                group: self.node.config.group,
                path: object.segment().to_path_string(),
                bytes: head.payload_len,
                content_type: head.content_type,
                crc: head.payload_crc,
                modified_ms: head.modified_ms,
                ..reel_control::catalog::Row::mark(
                    head.user,
                    head.name,
                    reel_control::catalog::Stamp::default(),
                )
            },
            &[],
        );
        let field = request.fields.range.as_deref();
        let asked = match range::parse(field, file.row.bytes, self.node.config.limits.ranges) {
            Asked::Unsatisfiable => Asked::Whole,
            asked => asked,
        };
        match self.send_here(conn, request, &file, &segment, &located, &asked).await {
            Ok(answered) => Ok(answered),
            Err(Here::Conn(error)) => Err(error),
            Err(Here::Damaged(error)) => self.answers.refuse(conn, request, error.into()).await,
        }
    }
}

fn unreachable_object(file: &File) -> Problem {
    let object = ObjectId::from_u64(file.row.object);
    let message = format!(
        "{}/{}: object {object} is not on this node, and no peer that could be reached has it",
        file.row.user, file.row.name
    );
    Problem::new(503, "object_unreachable", message)
}

/// `Content-Disposition` of a file to be saved under its own name (RFC 6266, RFC 8187).
fn attachment(name: &str) -> String {
    let base = name.rsplit('/').next().unwrap_or(name);
    format!("attachment; filename*=UTF-8''{}", names::encode_query(base))
}

pub(super) fn content_range(part: &Range<u64>, bytes: u64) -> String {
    format!("bytes {}-{}/{bytes}", part.start, part.end - 1)
}
