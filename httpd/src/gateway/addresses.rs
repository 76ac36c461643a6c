//! Trackers' answers, kept for a short time in each shard.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reel_control::api::Addresses;
use reel_control::client::{ClientError, Trackers};
use reel_control::names;
use tokio::runtime::Handle;

use crate::answer::Problem;

/// Answers kept; beyond, the shard begins anew.
const ANSWERS: usize = 16_384;

/// Who is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Whose {
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

/// The last answers, whatever their age, shared by the shards: what is used when no tracker
/// answers.
#[derive(Debug, Default)]
pub(crate) struct LastAnswers {
    known: Mutex<HashMap<Whose, Vec<SocketAddr>>>,
}

impl LastAnswers {
    fn keep(&self, whose: &Whose, nodes: &[SocketAddr]) {
        let mut known = self.known.lock();
        if known.len() >= ANSWERS && !known.contains_key(whose) {
            known.clear();
        }
        known.insert(whose.clone(), nodes.to_vec());
    }

    fn get(&self, whose: &Whose) -> Option<Vec<SocketAddr>> {
        self.known.lock().get(whose).cloned()
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

    /// Nodes to try, in order. An answer is used for the configured age (or longer, when no tracker
    /// answers); with each use the order turns, so that all nodes of the group get their share.
    pub(super) async fn get(
        &self,
        whose: &Whose,
        trackers: &Trackers,
        side: &Handle,
        last: &LastAnswers,
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
            Ok(Err(error)) => {
                // A tracker that says "no active node" knows better than an old answer.
                let unreached = !matches!(error, ClientError::Refused { .. });
                return match last.get(whose).filter(|_| unreached) {
                    Some(nodes) => Ok(nodes),
                    None => Err(Problem::new(503, "no_node", error.to_string())),
                };
            }
            Err(_) => return Err(Problem::new(503, "stopping", "the server is stopping")),
        };
        let nodes: Vec<SocketAddr> =
            addresses.nodes.iter().filter_map(|node| node.address.parse().ok()).collect();
        last.keep(whose, &nodes);
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
