//! A file moves to this group from another one, for `reel rebalance`: its bytes are fetched, made durable here, and the
//! catalog's row is switched; then the old object may go. Readers find it at every moment: at its old place until
//! the row is switched, at the new one from then on.
//!
//! The row's version is the next one after that of the row it replaces. So whatever a client writes meanwhile is newer,
//! and stands; the copy is buried then. Moving a file twice, or again after a crash, changes nothing.

use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use reel_control::api::Moved;
use reel_control::catalog::{Outcome, Row, Write};
use reel_control::names;
use reel_engine::disk::SharedPiece;
use reel_engine::format::record::RecordKind;
use reel_engine::solo::SoloUpload;
use reel_engine::{Draft, ObjectId, Stored, Version};

use super::StorageShard;
use super::put::{stamp_of, version_of};
use crate::answer::Problem;
use crate::conn::{Conn, ConnError};
use crate::http::request::{Request, query_value};
use crate::replicate::Push;
use crate::shard::Answered;
use crate::upstream::Response;

impl StorageShard {
    /// `PUT /-/v1/moves/{user}/{name}?from=IP:PORT,IP:PORT`: the nodes of the group that has it now.
    pub(super) async fn take_over_file(
        self: &Rc<Self>,
        conn: &mut Conn,
        request: &Request,
        path: &str,
    ) -> Result<Answered, ConnError> {
        match self.move_here(request, path).await {
            Ok(moved) => self.answers.json(conn, request, 200, &moved).await,
            Err(problem) => self.answers.refuse(conn, request, problem).await,
        }
    }

    async fn move_here(self: &Rc<Self>, request: &Request, path: &str) -> Result<Moved, Problem> {
        let (user, name) = names::parse_path(path)?;
        let from: Vec<SocketAddr> = query_value(&request.query, "from")
            .into_iter()
            .flat_map(|list| list.split(','))
            .filter_map(|address| address.parse().ok())
            .collect();
        let not_moved = |why: &str| Moved { moved: false, bytes: 0, why: why.to_owned() };
        let Some(row) = self.node.catalog.lookup(&user, &name).await? else {
            return Ok(not_moved("there is no such file any more"));
        };
        if row.group == self.node.config.group {
            return Ok(not_moved("it is here already"));
        }
        self.node.store.has_room(row.bytes)?;
        self.check_quorum()?;
        let mut problem =
            Problem::new(400, "bad_request", "from= names no node of the file's group");
        for address in &from {
            match self.fetch(*address, &row).await {
                Ok((stored, version)) => return self.switch(row, stored, version, &from).await,
                Err(reason) => problem = reason,
            }
        }
        Err(problem)
    }

    /// The object's bytes from one of its nodes, durable here.
    async fn fetch(
        self: &Rc<Self>,
        address: SocketAddr,
        row: &Row,
    ) -> Result<(Stored, Version), Problem> {
        let object = ObjectId::from_u64(row.object);
        let failed = |error: ConnError| {
            Problem::new(503, "no_node", format!("node {address}: object {object}: {error}"))
        };
        let mut response = self.ask_object(address, object, None).await.map_err(failed)?;
        if response.status != 200 || response.remaining() != row.bytes {
            let message = format!(
                "node {address} answers {} with {} bytes for object {object} of {} bytes",
                response.status,
                response.remaining(),
                row.bytes
            );
            return Err(Problem::new(503, "no_node", message));
        }
        let before = version_of(row.stamp);
        let version = Version { hlc: before.hlc + 1, node: self.node.config.id };
        self.node.store.clock().observe(version);
        let draft = Draft {
            kind: RecordKind::Object,
            user: row.user.clone(),
            name: row.name.clone(),
            content_type: row.content_type.clone(),
            version,
            modified_ms: row.modified_ms,
            target: None,
            payload: Bytes::new(),
            payload_crc: row.crc,
        };
        let stored = if row.bytes < self.node.config.solo_bytes.0 {
            let _held = self.hold(row.bytes).await?;
            let payload = response.read_all(row.bytes as usize).await.map_err(failed)?;
            check_crc(address, row, crc32fast::hash(&payload))?;
            self.writer.put(Draft { payload: Bytes::from(payload), ..draft }).await?
        } else {
            self.fetch_large(&mut response, row, draft).await?
        };
        self.upstreams.give_back(response);
        Ok((stored, version))
    }

    async fn fetch_large(
        self: &Rc<Self>,
        response: &mut Response,
        row: &Row,
        draft: Draft,
    ) -> Result<Stored, Problem> {
        let address = response.address();
        let _held = self.hold(reel_engine::solo::UPLOAD_BYTES).await?;
        let mut solo = SoloUpload::begin(&self.node.store, row.bytes).await?;
        let mut push = Push::begin(self, solo.number(), row.bytes, self.needed_peers());
        while !response.conn.body.is_done() {
            let mut piece = solo.piece();
            let (bytes, full) = piece.spare();
            response.conn.read_body(bytes, full).await.map_err(|error| {
                Problem::new(503, "no_node", format!("node {address} broke off: {error}"))
            })?;
            let piece = SharedPiece::from(piece);
            push.feed(&piece).await;
            solo.write(piece).await?;
        }
        check_crc(address, row, solo.crc())?;
        Ok(solo.finish_telling(draft, |ending| push.end(ending)).await?.0)
    }

    /// The name is the copy from now on, unless a client has written it meanwhile.
    async fn switch(
        self: &Rc<Self>,
        old: Row,
        stored: Stored,
        version: Version,
        from: &[SocketAddr],
    ) -> Result<Moved, Problem> {
        // Before the old one may go, as many nodes hold the new one as hold an upload.
        let acknowledged = self.wait_for_acks(&stored).await;
        let object = stored.object;
        let row = Row {
            object: object.as_u64(),
            group: self.node.config.group,
            path: object.segment().to_path_string(),
            stamp: stamp_of(version),
            ..old.clone()
        };
        if let Err(problem) = acknowledged {
            self.node.store.settled(&stored.segment);
            self.bury(object, &row.user, &row.name);
            return Err(problem);
        }
        let write = Write::Put { row: row.clone(), only_new: false };
        match self.stage.apply(write.clone()).await {
            Ok(Outcome::Done { previous, .. }) => {
                self.node.store.settled(&stored.segment);
                self.remember(&row);
                if let Some(previous) = previous {
                    // Before the answer, so that their readers come here; when nobody there answers, later.
                    let object = ObjectId::from_u64(previous.object);
                    if !self.bury_there(object, (&row.user, &row.name), from).await {
                        self.part_with(previous, &row.user, &row.name);
                    }
                }
                Ok(Moved { moved: true, bytes: row.bytes, why: String::new() })
            }
            Ok(_) => {
                self.node.store.settled(&stored.segment);
                self.bury(object, &row.user, &row.name);
                let why = "it was replaced or deleted meanwhile".to_owned();
                Ok(Moved { moved: false, bytes: 0, why })
            }
            Err(error) => {
                // It may have been committed: it is settled as soon as that is possible.
                self.settle_later(write, stored);
                Err(error.into())
            }
        }
    }
}

fn check_crc(address: SocketAddr, row: &Row, found: u32) -> Result<(), Problem> {
    if found == row.crc {
        return Ok(());
    }
    let message = format!(
        "node {address}: {}/{} has CRC-32 {found:08x}, the catalog says {:08x}",
        row.user, row.name, row.crc
    );
    Err(Problem::new(503, "wrong_crc", message))
}
