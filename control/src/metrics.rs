//! The process's metrics: one recorder, rendered as Prometheus text for `/-/metrics`.

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Upper bounds of latency histograms, in seconds.
const SECONDS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
];
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
    RECORDER.get().map(PrometheusHandle::render).unwrap_or_default()
}

/// Folds histograms; to be called every [`UPKEEP`].
pub fn upkeep() {
    if let Some(handle) = RECORDER.get() {
        handle.run_upkeep();
    }
}
