//! `POST /-/v1/lease`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};

use super::{MAX_LEASE, Mark};
use crate::api::{Lease, LeaseRequest};
use crate::serve::{Refusal, base_router};

struct Ids {
    cluster: String,
    mark: Mark,
}

/// The ID server's routes.
pub fn router(cluster: String, mark: Mark) -> Router {
    let ids = Arc::new(Ids { cluster, mark });
    Router::new().route("/-/v1/lease", post(lease)).with_state(ids).merge(base_router())
}

async fn lease(
    State(ids): State<Arc<Ids>>,
    Json(request): Json<LeaseRequest>,
) -> Result<Json<Lease>, Refusal> {
    if request.cluster != ids.cluster {
        return Err(Refusal::wrong_cluster(&ids.cluster, &request.cluster));
    }
    let count = request.count.clamp(1, MAX_LEASE);
    match ids.mark.take(count).await {
        Ok(first) => {
            tracing::info!(node = request.node, first, count, "lease");
            metrics::counter!("reel_leases_total").increment(1);
            Ok(Json(Lease { first, count }))
        }
        Err(error) => {
            tracing::error!(%error, "no lease given");
            Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "mark_unavailable",
                error.to_string(),
            ))
        }
    }
}
