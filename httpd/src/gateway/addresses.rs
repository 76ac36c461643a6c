//! Trackers' answers, kept for a short time in each shard.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use reel_control::api::Addresses;
use reel_control::client::{ClientError, Trackers};
use reel_control::names;
use tokio::runtime::Handle;

use crate::answer::Problem;

/// Answers kept; beyond, the shard begins anew.
const ANSWERS: usize = 16_384;

/// Who is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    /// The group that a user's new files go to.
    Uploads(String),
    /// The group a user's files are in, as far as the tracker knows.
    Downloads(String),
    /// A group that a node named.
    Group(String),
}

impl Whose {
    fn path(&self) -> String {
        match self {
            Self::Uploads(user) => {
                format!("/-/v1/addresses?user={}&for=upload", names::encode_query(user))
            }
            Self::Downloads(user) => {
                format!("/-/v1/addresses?user={}&for=download", names::encode_query(user))
            }
            Self::Group(group) => {
                format!("/-/v1/addresses?group={}&for=download", names::encode_query(group))
            }
        }
    }
}

struct Kept {
    at: Instant,
    nodes: Rc<Vec<SocketAddr>>,
    turn: usize,
}

/// A shard's kept answers.
pub(super) struct AddressCache {
    kept: RefCell<HashMap<Whose, Kept>>,
    age: Duration,
}

impl AddressCache {
    pub(super) fn new(age: Duration) -> Self {
        Self { kept: RefCell::default(), age }
    }

    /// Nodes to try, in order. An answer is used for the configured age; with each use the order
    /// turns, so that all nodes of the group get their share.
    pub(super) async fn get(
        &self,
        whose: &Whose,
        trackers: &Trackers,
        side: &Handle,
    ) -> Result<Vec<SocketAddr>, Problem> {
        if let Some(kept) = self.kept.borrow_mut().get_mut(whose)
            && kept.at.elapsed() < self.age
        {
            kept.turn += 1;
            let mut nodes = kept.nodes.as_ref().clone();
            let turn = kept.turn % nodes.len().max(1);
            nodes.rotate_left(turn);
            return Ok(nodes);
        }
        let (trackers, path) = (trackers.clone(), whose.path());
        let (done, answer) = tokio::sync::oneshot::channel();
        side.spawn(async move {
            let _ = done.send(trackers.get::<Addresses>(&path).await);
        });
        let addresses = match answer.await {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(ClientError::Refused { status: 404, message, .. })) => {
                return Err(Problem::new(404, "not_found", message));
            }
            Ok(Err(error)) => return Err(Problem::new(503, "no_node", error.to_string())),
            Err(_) => return Err(Problem::new(503, "stopping", "the server is stopping")),
        };
        let nodes: Vec<SocketAddr> =
            addresses.nodes.iter().filter_map(|node| node.address.parse().ok()).collect();
        let mut kept = self.kept.borrow_mut();
        if kept.len() >= ANSWERS {
            kept.clear();
        }
        kept.insert(
            whose.clone(),
            Kept { at: Instant::now(), nodes: Rc::new(nodes.clone()), turn: 0 },
        );
        Ok(nodes)
    }

    /// The answer led to a node that failed: ask again next time.
    pub(super) fn forget(&self, whose: &Whose) {
        self.kept.borrow_mut().remove(whose);
    }
}
