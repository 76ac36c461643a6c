//! What a shard counts of its requests. Counting is an addition in the shard's own memory; every
//! [`FLUSH`] the sums go to the process's metrics.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reel_control::metrics::{Latency, Times, latency};

use crate::access_log::{AccessLog, Line, Scribe};
use crate::conn::{Conn, ConnError};
use crate::http::request::{Method, Request};
use crate::shard::Answered;

/// How old the process's metrics may be.
pub(crate) const FLUSH: Duration = Duration::from_millis(200);

/// The status of an answer that was broken off, in metrics and the access log.
pub(crate) const BROKEN_OFF: u16 = 499;

const METHODS: [Method; 6] =
    [Method::Get, Method::Head, Method::Put, Method::Delete, Method::Options, Method::Other];

/// A count in the shard's own memory.
#[derive(Debug)]
pub(crate) struct Count {
    count: Cell<u64>,
    total: metrics::Counter,
}

impl Count {
    /// Flushed into `total`.
    pub(crate) fn of(total: metrics::Counter) -> Self {
        Self { count: Cell::new(0), total }
    }

    pub(crate) fn add(&self, count: u64) {
        self.count.set(self.count.get() + count);
    }

    /// Adds what was counted to the process's metric.
    pub(crate) fn flush(&self) {
        self.total.increment(self.count.take());
    }
}

/// Requests by method and status, bytes and latency, and the access log: what every service says of its answers.
#[derive(Debug)]
pub(crate) struct RequestMetrics {
    scribe: Option<Scribe>,
    counted: RefCell<Counted>,
    latency: [Arc<Latency>; METHODS.len()],
    sent: Count,
    counters: RefCell<HashMap<(usize, u16), metrics::Counter>>,
}

/// When serving a request began, and what its connection had been given then.
#[derive(Debug)]
pub(crate) struct Begun {
    at: Instant,
    given: u64,
}

impl Begun {
    pub(crate) fn now(conn: &Conn) -> Self {
        Self { at: Instant::now(), given: conn.given() }
    }
}

#[derive(Debug, Default)]
struct Counted {
    times: [Times; METHODS.len()],
    /// Answers by method and status; few, the first the most.
    answers: Vec<(usize, u16, u64)>,
}

impl RequestMetrics {
    pub(crate) fn new(log: Option<&Arc<AccessLog>>) -> Self {
        Self {
            scribe: log.map(AccessLog::scribe),
            counted: RefCell::default(),
            latency: METHODS
                .map(|method| latency("reel_request_seconds", ("method", method.name()))),
            sent: Count::of(metrics::counter!("reel_sent_bytes_total")),
            counters: RefCell::default(),
        }
    }

    /// Counts one request that was served, or broken off (499), since `begun`.
    pub(crate) fn count_served(
        &self,
        begun: &Begun,
        conn: &Conn,
        request: &Request,
        result: &Result<Answered, ConnError>,
    ) {
        let status = result.as_ref().map_or(BROKEN_OFF, |answered| answered.status);
        let sent = conn.given().saturating_sub(begun.given);
        let took = begun.at.elapsed();
        self.write_down(conn.client(), request, status, sent, took);
        self.add(request.method, status, sent, took);
    }

    /// Whether requests are written down.
    pub(crate) fn writes_down(&self) -> bool {
        self.scribe.is_some()
    }

    /// Counts an answer, `took` after its request came.
    pub(crate) fn add(&self, method: Method, status: u16, sent: u64, took: Duration) {
        let index = METHODS.iter().position(|known| *known == method).unwrap_or(0);
        let counted = &mut *self.counted.borrow_mut();
        counted.times[index].count(took);
        self.sent.add(sent);
        let known = counted.answers.iter_mut().find(|known| (known.0, known.1) == (index, status));
        match known {
            Some(known) => known.2 += 1,
            None => counted.answers.push((index, status, 1)),
        }
    }

    /// Writes an answer down, if answers are.
    pub(crate) fn write_down(
        &self,
        client: IpAddr,
        request: &Request,
        status: u16,
        sent: u64,
        took: Duration,
    ) {
        let Some(scribe) = &self.scribe else { return };
        scribe.note(&Line {
            time_ms: reel_engine::clock::now_ms(),
            request_id: request.fields.id(),
            client,
            method: request.method.name(),
            path: &request.path,
            range: request.fields.range.as_deref(),
            status,
            sent,
            micros: took.as_micros() as u64,
        });
    }

    /// Adds what was counted to the process's metrics.
    pub(crate) fn flush(&self) {
        let counted = std::mem::take(&mut *self.counted.borrow_mut());
        for (latency, times) in self.latency.iter().zip(&counted.times) {
            latency.add(times);
        }
        self.sent.flush();
        let mut counters = self.counters.borrow_mut();
        for (index, status, count) in counted.answers {
            let counter = counters.entry((index, status)).or_insert_with(|| {
                let method = METHODS[index].name();
                metrics::counter!("reel_requests_total", "method" => method, "status" => status.to_string())
            });
            counter.increment(count);
        }
    }
}
