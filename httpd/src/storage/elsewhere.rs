//! A name that was an object of another group is told there: its user's group was full, and the file was replaced or deleted
//! here; or the file has moved here. That group buries the object, and its nodes stop believing what they remember of the
//! name, also when the catalog goes away a moment later. What nobody there hears of, their sweep finds.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use reel_control::catalog::Held;
use reel_control::names;
use reel_engine::ObjectId;
use reel_engine::format::record::RecordKind;

use super::StorageShard;
use crate::answer::Problem;
use crate::conn::{Conn, ConnError};
use crate::http::request::{Request, query_value};
use crate::shard::Answered;

/// Losses that a shard tells at once; further ones are left to the sweep.
const TELLING: usize = 256;
/// How often a group is told of a loss before that is left to the sweep ...
const TRIES: usize = 5;
/// ... and how long after the time before.
const PAUSE: Duration = Duration::from_secs(1);

impl StorageShard {
    /// An object lost its name: its group buries it, beside the answer.
    pub(super) fn part_with(self: &Rc<Self>, held: Held, user: &str, name: &str) {
        let object = ObjectId::from_u64(held.object);
        if held.group == self.node.config.group {
            return self.bury(object, user, name);
        }
        if self.telling.get() >= TELLING {
            tracing::debug!(%object, held.group, "its group is not told; the sweep finds the object");
            return;
        }
        self.telling.set(self.telling.get() + 1);
        let (shard, user, name) = (Rc::clone(self), user.to_owned(), name.to_owned());
        monoio::spawn(async move {
            for tried in 0..TRIES {
                if tried > 0 {
                    monoio::time::sleep(PAUSE).await;
                }
                let nodes = shard.node.other_groups.nodes_of(held.group).await;
                if shard.bury_there(object, (&user, &name), &nodes).await {
                    break;
                }
            }
            shard.telling.set(shard.telling.get() - 1);
        });
    }

    /// Asks the nodes of a group, one after the other, to bury an object of theirs. Whether one has.
    pub(super) async fn bury_there(
        &self,
        object: ObjectId,
        (user, name): (&str, &str),
        nodes: &[SocketAddr],
    ) -> bool {
        let (user, name) = (names::encode_query(user), names::encode_query(name));
        for address in nodes {
            let head = format!(
                "DELETE /-/v1/objects/{object}?user={user}&name={name} HTTP/1.1\r\nHost: {address}\r\n\r\n"
            );
            match self.upstreams.request(*address, head.as_bytes(), &[], false).await {
                Ok(response) if response.status == 204 => {
                    self.upstreams.give_back(response);
                    return true;
                }
                Ok(response) => {
                    tracing::debug!(%object, %address, status = response.status, "old object not buried there");
                }
                Err(error) => {
                    tracing::debug!(%object, %address, %error, "old object not buried there")
                }
            }
        }
        false
    }

    /// `DELETE /-/v1/objects/{id}?user=U&name=N`: the name has become an object of another group, or none.
    pub(super) async fn bury_lost(
        self: &Rc<Self>,
        conn: &mut Conn,
        request: &Request,
        id: &str,
    ) -> Result<Answered, ConnError> {
        match self.try_bury_lost(request, id).await {
            Ok(()) => self.answers.done(conn, request).await,
            Err(problem) => self.answers.refuse(conn, request, problem).await,
        }
    }

    async fn try_bury_lost(self: &Rc<Self>, request: &Request, id: &str) -> Result<(), Problem> {
        let value = |key| names::decode(query_value(&request.query, key)?).ok();
        let (Ok(object), Some(user), Some(name)) =
            (id.parse::<ObjectId>(), value("user"), value("name"))
        else {
            let message =
                "an object id has up to 16 hexadecimal digits; user= and name= are needed";
            return Err(Problem::new(400, "bad_request", message));
        };
        // Also when the catalog does not answer now: what is remembered of the name may be wrong.
        self.node.epochs.raise(&user, &name);
        self.names.remove(&user, &name);
        let row = self.node.catalog.lookup(&user, &name).await?;
        if row.is_some_and(|row| row.object == object.as_u64()) {
            let message = format!("object {object} is the file {user}/{name}");
            return Err(Problem::new(409, "in_use", message));
        }
        let version = self.node.store.clock().next();
        self.write_tombstone(RecordKind::Dead, object, &user, &name, version).await?;
        Ok(())
    }
}
