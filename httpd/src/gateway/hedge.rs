//! Hedging: when a node is slow to begin its answer, a second one is asked, and the first that answers serves
//! (Dean and Barroso, "The Tail at Scale", 2013). Bounded: at most one request in [`EARN`], or a short burst.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use super::GatewayShard;
use super::read::{Begun, request_head};
use crate::conn::ConnError;
use crate::http::request::{Method, Request};
use crate::upstream::Response;

/// Requests that earn the right to one hedge.
const EARN: u32 = 20;
/// Hedges that may be saved up.
const SAVED: u32 = 16;

/// A shard's hedges.
#[derive(Debug)]
pub(super) struct Hedges {
    after: Duration,
    /// In parts of [`EARN`].
    credit: Cell<u32>,
    begun: metrics::Counter,
    won: metrics::Counter,
}

impl Hedges {
    /// Asks a second node when the first has not begun its answer after so long; never when that is zero.
    pub(super) fn new(after: Duration) -> Self {
        Self {
            after,
            credit: Cell::new(EARN * SAVED),
            begun: metrics::counter!("reel_upstream_hedges_total"),
            won: metrics::counter!("reel_upstream_hedges_won_total"),
        }
    }

    fn earn(&self) {
        self.credit.set((self.credit.get() + 1).min(EARN * SAVED));
    }

    fn spend(&self) -> bool {
        let left = self.credit.get().checked_sub(EARN);
        left.map(|left| self.credit.set(left)).is_some()
    }
}

impl GatewayShard {
    /// The head of a node's answer: of `node`, or of `second` when that one is sooner.
    pub(super) async fn ask(
        &self,
        request: &Request,
        path: &str,
        node: SocketAddr,
        second: Option<SocketAddr>,
        begun: Option<&Begun>,
    ) -> Result<Response, ConnError> {
        let head_only = request.method == Method::Head;
        let head = request_head(request, path, node, begun);
        let first = self.upstreams.request(node, head.as_bytes(), &[], head_only);
        let hedges = &self.hedges;
        hedges.earn();
        let Some(second) = second.filter(|_| !hedges.after.is_zero()) else { return first.await };
        let mut first = pin!(first);
        monoio::select! {
            answered = &mut first => return answered,
            () = monoio::time::sleep(hedges.after) => {}
        }
        if !hedges.spend() {
            return first.await;
        }
        hedges.begun.increment(1);
        let head = request_head(request, path, second, begun);
        let mut other = pin!(self.upstreams.request(second, head.as_bytes(), &[], head_only));
        monoio::select! {
            answered = &mut first => match answered {
                Ok(response) if response.status < 500 => Ok(response),
                _ => other.await,
            },
            answered = &mut other => match answered {
                Ok(response) if response.status < 500 => {
                    hedges.won.increment(1);
                    Ok(response)
                }
                _ => first.await,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hedges_are_bounded() {
        let hedges = Hedges::new(Duration::from_millis(1));
        let mut spent = 0;
        for _ in 0..10_000 {
            hedges.earn();
            spent += u32::from(hedges.spend());
        }
        assert!((10_000 / EARN..=10_000 / EARN + SAVED).contains(&spent), "{spent}");
    }
}
