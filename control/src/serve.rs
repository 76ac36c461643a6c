//! What every control-plane server has: errors as JSON, health, metrics, an end in order.

use std::future::Future;
use std::time::Duration;

pub use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::api::ErrorBody;

/// How long requests in progress may take when a server stops.
const GRACE: Duration = Duration::from_secs(5);

/// An error answer.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    error: &'static str,
    message: String,
}

impl Refusal {
    /// A refusal with a word for programs and a line for people.
    pub fn new(status: StatusCode, error: &'static str, message: impl Into<String>) -> Self {
        Self { status, error, message: message.into() }
    }

    /// Whether a later try may do better.
    pub fn is_passing(&self) -> bool {
        self.status.is_server_error()
    }

    /// A request that names another cluster.
    pub fn wrong_cluster(ours: &str, theirs: &str) -> Self {
        let message = format!(
            "this is cluster {ours:?}, the request is for {theirs:?}: check `cluster` and the addresses in both configurations"
        );
        Self::new(StatusCode::FORBIDDEN, "wrong_cluster", message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = ErrorBody { error: self.error.to_owned(), message: self.message };
        let mut response = (self.status, axum::Json(body)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}

/// `/-/health`, `/-/metrics`, and JSON for what is not there.
pub fn base_router() -> Router {
    let well = || async { axum::Json(serde_json::json!({"status": "ok"})) };
    Router::new().route("/-/health", get(well)).merge(metrics_router())
}

/// `/-/metrics`, and JSON for what is not there.
pub fn metrics_router() -> Router {
    let render = || async {
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], crate::metrics::render())
    };
    Router::new().route("/-/metrics", get(render)).fallback(|| async {
        Refusal::new(StatusCode::NOT_FOUND, "not_found", "no such path here")
    })
}

/// Serves until `stop` resolves, then finishes what is in progress.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let (ending, ended) = tokio::sync::oneshot::channel::<()>();
    let upkeep = tokio::spawn(async {
        loop {
            tokio::time::sleep(crate::metrics::UPKEEP).await;
            crate::metrics::upkeep();
        }
    });
    let serving = axum::serve(listener, router).with_graceful_shutdown(async move {
        stop.await;
        let _ = ending.send(());
    });
    let result = tokio::select! {
        result = async { serving.await } => result,
        () = async {
            let _ = ended.await;
            tokio::time::sleep(GRACE).await;
        } => Ok(()),
    };
    upkeep.abort();
    result
}
