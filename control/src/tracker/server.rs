//! The tracker's routes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use parking_lot::Mutex;
use serde::Deserialize;

use super::others;
use super::settings::Settings;
use super::state::{Registry, RetireError};
use super::users::Users;
use crate::api::{
    Address, Addresses, Beat, BeatAnswer, GroupSettings, GroupView, Groups, HeardView, Nodes,
    PROTOCOL, Purpose, speak_with_each_other,
};
use crate::catalog::{Catalog, CatalogError};
use crate::client::PARTIAL;
use crate::names;
use crate::placement;
use crate::serve::{self, Refusal};

/// How long a question may wait for the catalog; then the last answer stands.
const CATALOG_WAIT: Duration = Duration::from_millis(1500);

/// What routes share.
pub(super) struct Tracker {
    cluster: String,
    beat: Duration,
    started: Instant,
    registry: Mutex<Registry>,
    users: Mutex<Users>,
    settings: Mutex<Settings>,
    catalog_url: String,
    catalog: tokio::sync::OnceCell<Catalog>,
    draws: AtomicU64,
}

/// The tracker's routes. The catalog is connected when it is first needed; `others` are all trackers' `HOST:PORT`.
/// To be called on a tokio runtime.
pub fn router(cluster: String, beat: Duration, catalog_url: String, others: Vec<String>) -> Router {
    let tracker = Arc::new(Tracker {
        cluster,
        beat,
        started: Instant::now(),
        registry: Mutex::new(Registry::new(beat)),
        users: Mutex::default(),
        settings: Mutex::default(),
        catalog_url,
        catalog: tokio::sync::OnceCell::new(),
        draws: AtomicU64::new(u64::from(std::process::id())),
    });
    if others.len() > 1 {
        tokio::spawn(others::run(Arc::clone(&tracker), others, beat));
    }
    Router::new()
        .route("/-/v1/join", post(join))
        .route("/-/v1/beat", post(hear))
        .route("/-/v1/nodes", get(nodes))
        .route("/-/v1/groups", get(groups))
        .route("/-/v1/groups/{group}", put(set_group))
        .route("/-/v1/addresses", get(addresses))
        .route("/-/v1/nodes/{id}", delete(retire))
        .route("/-/v1/heard", get(heard))
        .route("/-/v1/beats", get(beats))
        .route("/-/health", get(health))
        .with_state(tracker)
        .merge(serve::metrics_router())
}

impl Tracker {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    async fn catalog(&self) -> Result<&Catalog, CatalogError> {
        self.catalog.get_or_try_init(|| Catalog::open(&self.catalog_url)).await
    }

    /// [`Registry::compare`], now.
    pub(super) fn compare(&self, theirs: &[HeardView]) -> Vec<u32> {
        self.registry.lock().compare(theirs, self.now())
    }

    /// [`Registry::learn`], now.
    pub(super) fn learn(&self, beats: Vec<Beat>) {
        self.registry.lock().learn(beats, self.now());
    }

    /// Says in the metrics how good this tracker's view is.
    pub(super) fn note_view(&self) {
        let unheard = self.registry.lock().unheard(None, self.now()).len();
        metrics::gauge!("reel_tracker_unheard_nodes").set(unheard as f64);
    }

    /// A number that spreads answers; it need not be a good one.
    fn draw(&self) -> u64 {
        // Steele et al., "Fast Splittable Pseudorandom Number Generators" (2014): SplitMix64.
        let mut z = self.draws.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) >> 1
    }

    async fn group_for(&self, user: &str, purpose: Purpose) -> Result<u32, Refusal> {
        let now = self.now();
        if let Some(group) = self.users.lock().fresh(user, now)
            && (purpose == Purpose::Download || self.takes_files(group))
        {
            return Ok(group);
        }
        let asked = tokio::time::timeout(CATALOG_WAIT, self.ask_group(user, purpose)).await;
        let answer = asked.unwrap_or_else(|_| {
            let message = format!("no answer of the catalog within {CATALOG_WAIT:?}");
            Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "catalog_away", message))
        });
        match answer {
            Ok(group) => {
                self.users.lock().remember(user, group, now);
                Ok(group)
            }
            Err(refusal) if refusal.is_passing() => self.users.lock().last(user).ok_or(refusal),
            Err(refusal) => Err(refusal),
        }
    }

    async fn ask_group(&self, user: &str, purpose: Purpose) -> Result<u32, Refusal> {
        let away = |error: CatalogError| {
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "catalog_away", error.to_string())
        };
        let catalog = self.catalog().await.map_err(away)?;
        let known = catalog.group_of(user).await.map_err(away)?;
        if purpose == Purpose::Download {
            let message = format!("no user {user:?} has uploaded anything");
            let unknown = || Refusal::new(StatusCode::NOT_FOUND, "no_such_user", message);
            return known.ok_or_else(unknown);
        }
        self.refresh_settings().await;
        if let Some(group) = known
            && self.takes_files(group)
        {
            return Ok(group);
        }
        let groups: Vec<(u32, u64)> = {
            let (groups, settings) =
                (self.registry.lock().groups(self.now()), self.settings.lock());
            groups
                .into_iter()
                .filter(|group| group.active > 0)
                .map(|group| (group.group, settings.pull(group.group, group.free)))
                .collect()
        };
        match (placement::group_for_new_user(&groups, self.draw()), known) {
            (Some(proposed), None) => catalog.settle_user(user, proposed).await.map_err(away),
            // What the user has stays where it is, and is found there.
            (Some(other), Some(full)) => {
                catalog.move_user_from(user, full, other).await.map_err(away)
            }
            // Its nodes say what is wrong with it.
            (None, Some(full)) => Ok(full),
            (None, None) => {
                let message = "no group has an active node with room for a new user";
                Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no_group", message))
            }
        }
    }

    /// Whether new files of its users may go to a group: it is not readonly, and has room as far as is known.
    fn takes_files(&self, group: u32) -> bool {
        let full = |view: &GroupView| view.group == group && view.active > 0 && view.free == 0;
        let groups = self.registry.lock().groups(self.now());
        !self.settings.lock().of(group).readonly && !groups.iter().any(full)
    }

    /// Asks the catalog what operators say of groups, unless that was done a moment ago. What is known stays while it is
    /// away.
    async fn refresh_settings(&self) {
        if self.settings.lock().are_fresh(self.now()) {
            return;
        }
        let ask = async { self.catalog().await?.groups().await };
        match tokio::time::timeout(CATALOG_WAIT, ask).await {
            Ok(Ok(groups)) => self.settings.lock().learn(groups),
            Ok(Err(error)) => tracing::debug!(%error, "settings of groups are not known anew"),
            Err(_) => tracing::debug!("settings of groups are not known anew in time"),
        }
    }
}

async fn join(
    State(tracker): State<Arc<Tracker>>,
    Json(beat): Json<Beat>,
) -> Result<Json<BeatAnswer>, Refusal> {
    tracing::info!(
        node = beat.node.id,
        name = beat.node.name,
        address = beat.node.address,
        "node joins"
    );
    hear(State(tracker), Json(beat)).await
}

async fn hear(
    State(tracker): State<Arc<Tracker>>,
    Json(beat): Json<Beat>,
) -> Result<Json<BeatAnswer>, Refusal> {
    if beat.cluster != tracker.cluster {
        return Err(Refusal::wrong_cluster(&tracker.cluster, &beat.cluster));
    }
    if !speak_with_each_other(beat.node.protocol, PROTOCOL) {
        let message = format!(
            "node {} speaks protocol {} and this tracker {PROTOCOL}: versions may differ by one, upgrade step by step",
            beat.node.id, beat.node.protocol
        );
        return Err(Refusal::new(StatusCode::CONFLICT, "other_protocol", message));
    }
    let now = tracker.now();
    let heard = tracker.registry.lock().hear(beat, now);
    metrics::counter!("reel_beats_total").increment(1);
    heard
        .map_err(|error| Refusal::new(StatusCode::CONFLICT, "node_id_in_use", error.to_string()))?;
    Ok(Json(BeatAnswer { beat_ms: tracker.beat.as_millis() as u64 }))
}

#[derive(Deserialize)]
struct NodesQuery {
    #[serde(default)]
    detail: u8,
    group: Option<u32>,
}

async fn nodes(
    State(tracker): State<Arc<Tracker>>,
    Query(query): Query<NodesQuery>,
) -> Json<Nodes> {
    let mut nodes = tracker.registry.lock().view(tracker.now(), query.detail > 0);
    nodes.retain(|view| query.group.is_none_or(|group| view.node.group == group));
    Json(Nodes { cluster: tracker.cluster.clone(), nodes })
}

async fn retire(
    State(tracker): State<Arc<Tracker>>,
    Path(id): Path<u32>,
) -> Result<StatusCode, Refusal> {
    let retired = tracker.registry.lock().retire(id, tracker.now());
    retired.map_err(|error| match error {
        RetireError::Alive { .. } => {
            Refusal::new(StatusCode::CONFLICT, "node_alive", error.to_string())
        }
        RetireError::Unknown(_) => {
            Refusal::new(StatusCode::NOT_FOUND, "no_such_node", error.to_string())
        }
    })?;
    tracing::info!(node = id, "node retired");
    Ok(StatusCode::NO_CONTENT)
}

async fn heard(State(tracker): State<Arc<Tracker>>) -> Json<Vec<HeardView>> {
    Json(tracker.registry.lock().heard(tracker.now()))
}

#[derive(Deserialize)]
struct BeatsQuery {
    #[serde(default)]
    ids: String,
}

async fn beats(
    State(tracker): State<Arc<Tracker>>,
    Query(query): Query<BeatsQuery>,
) -> Json<Vec<Beat>> {
    let ids: Vec<u32> = query.ids.split(',').filter_map(|id| id.parse().ok()).collect();
    Json(tracker.registry.lock().beats(&ids))
}

/// A tracker that is cut off from nodes which others hear is alive, and says so; a shared address had better be at
/// another one.
async fn health(State(tracker): State<Arc<Tracker>>) -> (StatusCode, Json<serde_json::Value>) {
    let unheard = tracker.registry.lock().unheard(None, tracker.now());
    if unheard.is_empty() {
        return (StatusCode::OK, Json(serde_json::json!({"status": "ok"})));
    }
    let status = "other trackers hear nodes that this one does not";
    let body = serde_json::json!({"status": status, "unheard": unheard});
    (StatusCode::SERVICE_UNAVAILABLE, Json(body))
}

async fn groups(State(tracker): State<Arc<Tracker>>) -> Json<Groups> {
    tracker.refresh_settings().await;
    let groups = tracker.registry.lock().groups(tracker.now());
    Json(Groups { groups: tracker.settings.lock().complete(groups) })
}

#[derive(Deserialize)]
struct SetGroupQuery {
    /// 1: it must not be there yet.
    #[serde(default)]
    create: u8,
}

/// The largest weight of a group, in percent.
const MAX_WEIGHT: u32 = 10_000;

async fn set_group(
    State(tracker): State<Arc<Tracker>>,
    Path(group): Path<u32>,
    Query(query): Query<SetGroupQuery>,
    Json(settings): Json<GroupSettings>,
) -> Result<StatusCode, Refusal> {
    if group == 0 || settings.weight > MAX_WEIGHT {
        let message = format!("a group is 1 or more, a weight at most {MAX_WEIGHT} percent");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_request", message));
    }
    let away = |error: CatalogError| {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "catalog_away", error.to_string())
    };
    let only_new = query.create == 1;
    let has_nodes = tracker.registry.lock().groups(tracker.now()).iter().any(|v| v.group == group);
    let exists = || {
        let message = format!("group {group} is there already");
        Refusal::new(StatusCode::CONFLICT, "group_exists", message)
    };
    if only_new && has_nodes {
        return Err(exists());
    }
    let catalog = tracker.catalog().await.map_err(away)?;
    if !catalog.set_group(group, settings, only_new).await.map_err(away)? {
        return Err(exists());
    }
    tracker.settings.lock().forget();
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct AddressesQuery {
    user: Option<String>,
    group: Option<u32>,
    r#for: Purpose,
}

async fn addresses(
    State(tracker): State<Arc<Tracker>>,
    Query(query): Query<AddressesQuery>,
) -> Result<(HeaderMap, Json<Addresses>), Refusal> {
    let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, "bad_request", message);
    let group = match (&query.user, query.group) {
        (Some(user), None) => {
            names::check_user(user).map_err(|error| bad(error.to_string()))?;
            tracker.group_for(user, query.r#for).await?
        }
        (None, Some(group)) => group,
        _ => return Err(bad("give either user= or group=".to_owned())),
    };
    let registry = tracker.registry.lock();
    let candidates = registry.candidates(group, tracker.now());
    let ids = placement::order(candidates, query.r#for == Purpose::Upload, tracker.draw());
    let nodes: Vec<Address> = ids
        .into_iter()
        .filter_map(|id| {
            let (name, address) = registry.address(id)?;
            Some(Address { id, name: name.to_owned(), address: address.to_owned() })
        })
        .collect();
    if nodes.is_empty() {
        let message = format!("no node of group {group} is active");
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no_active_node", message));
    }
    let mut head = HeaderMap::new();
    if !registry.unheard(Some(group), tracker.now()).is_empty() {
        head.insert(PARTIAL, HeaderValue::from_static("1"));
    }
    Ok((head, Json(Addresses { group, nodes })))
}
