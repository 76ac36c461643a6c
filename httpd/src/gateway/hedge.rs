//! Hedging: when a node is slow to begin its answer, a second one is asked, and the first that answers serves
//! (Dean and Barroso, "The Tail at Scale", 2013). Bounded: at most one request in [`EARN`], or a short burst.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use super::GatewayShard;
use super::addresses::Whose;
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
    /// The head of a node's answer: of `node`, or of `second` when that one is sooner. Whoever is silent for
    /// `silent_after` becomes a suspect, and then `second` is asked whatever hedges have cost so far: this happens
    /// once a request, since suspects are tried last. Without a `second` the trackers are asked for one then.
    pub(super) async fn ask(
        &self,
        request: &Request,
        path: &str,
        whose: &Whose,
        node: SocketAddr,
        second: Option<SocketAddr>,
        begun: Option<&Begun>,
    ) -> Result<Response, ConnError> {
        let head_only = request.method == Method::Head;
        let head = request_head(request, path, node, begun);
        let mut first = pin!(self.upstreams.request(node, head.as_bytes(), &[], head_only));
        let hedges = &self.hedges;
        hedges.earn();
        let asked = Instant::now();
        let (second, hedged) = monoio::select! {
            answered = &mut first => return answered,
            other = self.other_in_time(node, second, whose) => other,
        };
        let head = request_head(request, path, second, begun);
        let mut other = pin!(self.upstreams.request(second, head.as_bytes(), &[], head_only));
        monoio::select! {
            answered = &mut first => or_else(answered, other).await,
            answered = &mut other => {
                if hedged && is_good(&answered) {
                    hedges.won.increment(1);
                    if asked.elapsed() > self.silent_after() {
                        self.suspect(node);
                    }
                }
                or_else(answered, first).await
            }
        }
    }

    /// The node to ask beside `node`, when it is time for that, and whether this is a hedge.
    async fn other_in_time(
        &self,
        node: SocketAddr,
        second: Option<SocketAddr>,
        whose: &Whose,
    ) -> (SocketAddr, bool) {
        let Some(second) = second else { return (self.another_than(node, whose).await, false) };
        let hedges = &self.hedges;
        let silent_after = self.silent_after();
        let hedge_after = hedges.after.min(silent_after);
        if !hedge_after.is_zero() {
            monoio::time::sleep(hedge_after).await;
            if hedges.spend() {
                hedges.begun.increment(1);
                return (second, true);
            }
        }
        monoio::time::sleep(silent_after - hedge_after).await;
        self.suspect(node);
        (second, false)
    }

    /// A node that the trackers name while `node` is silent: it may have come, or become active, since they were
    /// asked last.
    async fn another_than(&self, node: SocketAddr, whose: &Whose) -> SocketAddr {
        loop {
            monoio::time::sleep(self.silent_after()).await;
            self.suspect(node);
            let named = self.addresses.ask(whose, &self.gateway).await.unwrap_or_default();
            if let Some(other) = named.into_iter().find(|other| *other != node) {
                return other;
            }
        }
    }

    /// `node` was silent, or broke off: it is tried last for a while.
    pub(super) fn suspect(&self, node: SocketAddr) {
        self.suspects.add(node, Instant::now());
        self.suspected.increment(1);
    }
}

/// Whether a client should get this answer.
fn is_good(answered: &Result<Response, ConnError>) -> bool {
    answered.as_ref().is_ok_and(|response| response.status < 500)
}

/// An answer, or the other request's when it is none that a client should get.
async fn or_else(
    answered: Result<Response, ConnError>,
    other: impl Future<Output = Result<Response, ConnError>>,
) -> Result<Response, ConnError> {
    if is_good(&answered) { answered } else { other.await }
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
