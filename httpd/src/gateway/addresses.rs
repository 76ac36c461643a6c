//! Trackers' answers, kept in each shard, and asked for anew beside their use.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reel_control::api::Addresses;
use reel_control::client::ClientError;
use reel_control::names;

use super::Gateway;
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
    /// Somebody asks for it anew.
    asking: bool,
}

/// A shard's kept answers. Clones share them.
#[derive(Clone)]
pub(super) struct AddressCache {
    kept: Rc<RefCell<HashMap<Whose, Kept>>>,
    age: Duration,
}

impl AddressCache {
    pub(super) fn new(age: Duration) -> Self {
        Self { kept: Rc::default(), age }
    }

    /// Nodes to try, in order; with each use the order turns, so that all nodes of the group get their share.
    /// An answer past the configured age is used still, while it is asked for anew beside: a viewer waits for a
    /// tracker only for what nobody asked for before.
    pub(super) async fn get(
        &self,
        whose: &Whose,
        gateway: &Arc<Gateway>,
    ) -> Result<Vec<SocketAddr>, Problem> {
        let used = self.kept.borrow_mut().get_mut(whose).map(|kept| {
            kept.turn += 1;
            let mut nodes = kept.nodes.as_ref().clone();
            let turn = kept.turn % nodes.len().max(1);
            nodes.rotate_left(turn);
            let old = kept.at.elapsed() >= self.age;
            (nodes, old && !std::mem::replace(&mut kept.asking, old))
        });
        let Some((nodes, anew)) = used else { return self.ask(whose, gateway).await };
        if anew {
            let (cache, whose, gateway) = (self.clone(), whose.clone(), Arc::clone(gateway));
            monoio::spawn(async move {
                match cache.ask(&whose, &gateway).await {
                    Err(problem) if problem.status == 404 => {
                        cache.kept.borrow_mut().remove(&whose);
                    }
                    // What is known stays in use; the next request asks again.
                    Err(_) => {
                        if let Some(kept) = cache.kept.borrow_mut().get_mut(&whose) {
                            kept.asking = false;
                        }
                    }
                    Ok(_) => {}
                }
            });
        }
        Ok(nodes)
    }

    /// Asks the trackers, and keeps the answer.
    pub(super) async fn ask(
        &self,
        whose: &Whose,
        gateway: &Gateway,
    ) -> Result<Vec<SocketAddr>, Problem> {
        let (trackers, path) = (gateway.trackers.clone(), whose.path());
        let (done, answer) = tokio::sync::oneshot::channel();
        gateway.side.spawn(async move {
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
                return match gateway.last.get(whose).filter(|_| unreached) {
                    Some(nodes) => Ok(nodes),
                    None => Err(Problem::new(503, "no_node", error.to_string())),
                };
            }
            Err(_) => return Err(Problem::new(503, "stopping", "the server is stopping")),
        };
        let nodes: Vec<SocketAddr> =
            addresses.nodes.iter().filter_map(|node| node.address.parse().ok()).collect();
        gateway.last.keep(whose, &nodes);
        let mut kept = self.kept.borrow_mut();
        if kept.len() >= ANSWERS && !kept.contains_key(whose) {
            kept.clear();
        }
        let answer =
            Kept { at: Instant::now(), nodes: Rc::new(nodes.clone()), turn: 0, asking: false };
        kept.insert(whose.clone(), answer);
        Ok(nodes)
    }

    /// The answer led to a node that failed: it is asked for anew with the next use.
    pub(super) fn forget(&self, whose: &Whose) {
        if let Some(kept) = self.kept.borrow_mut().get_mut(whose)
            && let Some(old) = Instant::now().checked_sub(self.age)
        {
            kept.at = kept.at.min(old);
        }
    }

    /// All nodes of the answer failed: nobody is to wait for them again.
    pub(super) fn drop_answer(&self, whose: &Whose) {
        self.kept.borrow_mut().remove(whose);
    }
}
