//! The process's metrics: one recorder, rendered as Prometheus text for `/-/metrics`.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;

static LATENCIES: Mutex<Vec<Arc<Latency>>> = Mutex::new(Vec::new());
static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Upper bounds of latency histograms, in seconds.
const SECONDS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
];
/// The same in nanoseconds.
const NANOS: [u64; SECONDS.len()] = {
    let mut nanos = [0; SECONDS.len()];
    let mut at = 0;
    while at < nanos.len() {
        nanos[at] = (SECONDS[at] * 1e9) as u64;
        at += 1;
    }
    nanos
};
/// Upper bounds of histograms that count records.
const RECORDS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
/// How often histograms are folded, so that their memory stays bounded.
pub const UPKEEP: Duration = Duration::from_secs(5);

/// Installs the recorder; later calls do nothing.
pub fn install() {
    let build = || {
        PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
            .and_then(|builder| {
                builder.set_buckets_for_metric(Matcher::Suffix("_records".to_owned()), RECORDS)
            })
            .and_then(PrometheusBuilder::install_recorder)
    };
    if RECORDER.get().is_none() {
        match build() {
            Ok(handle) => {
                let _ = RECORDER.set(handle);
            }
            Err(error) => tracing::error!(%error, "metrics are not available"),
        }
    }
}

/// The metrics as text; empty before [`install`].
pub fn render() -> String {
    let Some(handle) = RECORDER.get() else { return String::new() };
    let mut text = handle.render();
    let mut last = "";
    for latency in LATENCIES.lock().iter() {
        if latency.name != last {
            let _ = writeln!(text, "# TYPE {} histogram", latency.name);
            last = latency.name;
        }
        latency.render(&mut text);
    }
    text
}

/// A histogram of times that were counted elsewhere: one sample costs the one who counts an addition, and
/// nothing is kept for each. The recorder's own keep every sample until the next [`upkeep`].
#[derive(Debug)]
pub struct Latency {
    name: &'static str,
    label: (&'static str, &'static str),
    buckets: [AtomicU64; SECONDS.len() + 1],
    nanos: AtomicU64,
}

/// Times that one thread counted, to be [added](Latency::add) now and then.
#[derive(Debug, Clone, Default)]
pub struct Times {
    buckets: [u64; SECONDS.len() + 1],
    nanos: u64,
}

impl Times {
    /// Counts one.
    pub fn count(&mut self, time: Duration) {
        let nanos = time.as_nanos() as u64;
        let bucket = NANOS.iter().position(|bound| nanos <= *bound).unwrap_or(NANOS.len());
        self.buckets[bucket] += 1;
        self.nanos += nanos;
    }
}

/// The latency histogram of this name and label; the same for all who ask.
pub fn latency(name: &'static str, label: (&'static str, &'static str)) -> Arc<Latency> {
    let mut known = LATENCIES.lock();
    if let Some(latency) = known.iter().find(|known| known.name == name && known.label == label) {
        return Arc::clone(latency);
    }
    let latency = Arc::new(Latency {
        name,
        label,
        buckets: std::array::from_fn(|_| AtomicU64::new(0)),
        nanos: AtomicU64::new(0),
    });
    let at = known.iter().rposition(|known| known.name == name).map_or(known.len(), |at| at + 1);
    known.insert(at, Arc::clone(&latency));
    latency
}

impl Latency {
    /// Adds what was counted.
    pub fn add(&self, times: &Times) {
        for (bucket, count) in self.buckets.iter().zip(times.buckets) {
            bucket.fetch_add(count, Ordering::Relaxed);
        }
        self.nanos.fetch_add(times.nanos, Ordering::Relaxed);
    }

    fn render(&self, text: &mut String) {
        let (name, (key, value)) = (self.name, self.label);
        let mut count = 0;
        let mut line = |bound: &dyn std::fmt::Display, count: u64| {
            let _ = writeln!(text, "{name}_bucket{{{key}=\"{value}\",le=\"{bound}\"}} {count}");
        };
        for (bucket, bound) in self.buckets.iter().zip(SECONDS) {
            count += bucket.load(Ordering::Relaxed);
            line(bound, count);
        }
        count += self.buckets[SECONDS.len()].load(Ordering::Relaxed);
        line(&"+Inf", count);
        let seconds = self.nanos.load(Ordering::Relaxed) as f64 / 1e9;
        let _ = writeln!(text, "{name}_sum{{{key}=\"{value}\"}} {seconds}");
        let _ = writeln!(text, "{name}_count{{{key}=\"{value}\"}} {count}");
    }
}

/// Folds histograms; to be called every [`UPKEEP`].
pub fn upkeep() {
    if let Some(handle) = RECORDER.get() {
        handle.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_counted_in_the_bucket_they_fit() {
        let latency = latency("test_seconds", ("method", "GET"));
        let mut times = Times::default();
        for micros in [1, 100, 101, 40_000_000] {
            times.count(Duration::from_micros(micros));
        }
        latency.add(&times);
        latency.add(&Times::default());
        let mut text = String::new();
        latency.render(&mut text);
        for line in [
            "test_seconds_bucket{method=\"GET\",le=\"0.0001\"} 2",
            "test_seconds_bucket{method=\"GET\",le=\"0.00025\"} 3",
            "test_seconds_bucket{method=\"GET\",le=\"30\"} 3",
            "test_seconds_bucket{method=\"GET\",le=\"+Inf\"} 4",
            "test_seconds_sum{method=\"GET\"} 40.000202",
            "test_seconds_count{method=\"GET\"} 4",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
