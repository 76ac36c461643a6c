//! DELETE of a file, and what becomes of objects that lose their name.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use reel_control::catalog::{CatalogError, Outcome, Write};
use reel_control::names;
use reel_engine::clock::now_ms;
use reel_engine::format::record::RecordKind;
use reel_engine::{Draft, ObjectId, Version};

use super::StorageShard;
use super::put::{stamp_of, version_of};
use crate::answer::Problem;
use crate::conn::{Conn, ConnError};
use crate::http::request::Request;
use crate::shard::Answered;

/// Between tries of a write whose outcome is not known.
const RETRY: Duration = Duration::from_millis(500);

impl StorageShard {
    pub(super) async fn delete(
        self: &Rc<Self>,
        conn: &mut Conn,
        request: &Request,
    ) -> Result<Answered, ConnError> {
        match self.try_delete(request).await {
            Ok(()) => self.answers.done(conn, request).await,
            Err(problem) => self.answers.refuse(conn, request, problem).await,
        }
    }

    /// First the catalog (it alone knows what is there, and orders writers), then the tombstone,
    /// durable, then the answer. A crash in between leaves an object without a name, which the
    /// sweep finds.
    async fn try_delete(self: &Rc<Self>, request: &Request) -> Result<(), Problem> {
        let (user, name) = names::parse_path(&request.path)?;
        self.check_write(request, &user, &name).await?;
        let stamp = stamp_of(self.node.store.clock().next());
        let write = Write::Delete { user: user.clone(), name: name.clone(), stamp };
        match self.stage.apply(write).await {
            Ok(Outcome::Done { previous, stamp }) => {
                self.node.epochs.raise(&user, &name);
                self.names.remove(&user, &name);
                let version = version_of(stamp);
                self.node.store.clock().observe(version);
                if let Some(held) = previous {
                    let object = ObjectId::from_u64(held.object);
                    self.write_tombstone(RecordKind::Delete, object, &user, &name, version).await?;
                    if held.group != self.node.config.group {
                        self.part_with(held, &user, &name);
                    }
                }
                Ok(())
            }
            Ok(_) => Err(Problem::not_found(&user, &name)),
            Err(error @ CatalogError::Unknown(_)) => {
                self.node.epochs.raise(&user, &name);
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a tombstone durable, and marks its object dead.
    pub(super) async fn write_tombstone(
        self: &Rc<Self>,
        kind: RecordKind,
        object: ObjectId,
        user: &str,
        name: &str,
        version: Version,
    ) -> Result<(), reel_engine::Error> {
        let stored = self
            .writer
            .put(Draft {
                kind,
                user: user.to_owned(),
                name: name.to_owned(),
                content_type: String::new(),
                version,
                modified_ms: now_ms(),
                target: Some(object),
                payload: Bytes::new(),
                payload_crc: 0,
            })
            .await?;
        let store = std::sync::Arc::clone(&self.node.store);
        let killed = self.node.store.pool().run(move || store.kill(object)).await;
        if let Err(error) = &killed {
            // The tombstone stands: the mark is set when the segment can be opened again.
            tracing::warn!(%object, %error, "dead object not marked yet");
        }
        // A delete's row is in the catalog already; a dead object needs none. Only now: from here on
        // the tombstone may stop being replayed.
        self.node.store.settled(&stored.segment);
        Ok(())
    }

    /// An object lost its name: its tombstone is written beside the answer. One that is lost in a
    /// crash is found by the sweep.
    pub(super) fn bury(self: &Rc<Self>, object: ObjectId, user: &str, name: &str) {
        let (shard, user, name) = (Rc::clone(self), user.to_owned(), name.to_owned());
        monoio::spawn(async move {
            let version = shard.node.store.clock().next();
            if let Err(error) =
                shard.write_tombstone(RecordKind::Dead, object, &user, &name, version).await
            {
                tracing::warn!(%object, %error, "no tombstone written; the sweep finds the object");
            }
        });
    }

    /// An object lost its name to what the catalog holds at `winner`: `by`, or a delete. A delete's
    /// version is said once more: its row may be lost with the power (SQLite), and its own tombstone
    /// may never have been written.
    pub(super) fn bury_loser(
        self: &Rc<Self>,
        object: ObjectId,
        (user, name): (&str, &str),
        (winner, by): (Version, Option<u64>),
    ) {
        if by.is_some() {
            return self.bury(object, user, name);
        }
        let (shard, user, name) = (Rc::clone(self), user.to_owned(), name.to_owned());
        monoio::spawn(async move {
            if let Err(error) =
                shard.write_tombstone(RecordKind::Delete, object, &user, &name, winner).await
            {
                tracing::warn!(%object, %error, "no tombstone written; the sweep finds the object");
            }
        });
    }

    /// Applies a write whose outcome matters until the catalog says what it was.
    pub(super) async fn apply_until_known(self: &Rc<Self>, write: Write, object: ObjectId) {
        let (user, name) = match &write {
            Write::Put { row, .. } => (row.user.clone(), row.name.clone()),
            Write::Delete { user, name, .. } | Write::Mark { user, name, .. } => {
                (user.clone(), name.clone())
            }
        };
        loop {
            match self.stage.apply(write.clone()).await {
                Ok(outcome) => {
                    self.node.epochs.raise(&user, &name);
                    match outcome {
                        Outcome::Done { previous: Some(previous), .. } => {
                            self.part_with(previous, &user, &name);
                        }
                        Outcome::Lost { object: by, winner } if by != Some(object.as_u64()) => {
                            if matches!(write, Write::Put { .. }) {
                                let winner = (version_of(winner), by);
                                self.bury_loser(object, (&user, &name), winner);
                            }
                        }
                        Outcome::Exists => self.bury(object, &user, &name),
                        _ => {}
                    }
                    return;
                }
                Err(_) => monoio::time::sleep(RETRY).await,
            }
        }
    }
}
