//! Paths under `/-/`: health, metrics, listings, and what peers ask one another.

use std::rc::Rc;

use reel_control::api::{FileView, Files, NodeState};
use reel_control::names;
use reel_engine::ObjectId;
use reel_engine::disk::SharedDisk;

use super::StorageShard;
use crate::answer::Problem;
use crate::conn::{Conn, ConnError};
use crate::http::request::{Method, Request, query_value};
use crate::shard::Answered;

/// The longest page of a listing.
const MAX_PAGE: u32 = 1000;

impl StorageShard {
    pub(super) async fn admin(
        self: &Rc<Self>,
        conn: &mut Conn,
        request: &Request,
    ) -> Result<Answered, ConnError> {
        if request.method == Method::Options {
            return self.answers.preflight(conn, request).await;
        }
        match request.method {
            Method::Put => {
                if let Some(rest) = request.path.strip_prefix("/-/v1/segments/")
                    && let Some(number) = rest.strip_suffix("/copy")
                {
                    return self.take_copy(conn, request, number).await;
                }
                if request.path == "/-/v1/drain" {
                    tracing::info!("asked to drain: no more uploads are taken");
                    self.node.status.enter(NodeState::Draining);
                    return self.answers.done(conn, request).await;
                }
                if request.path == "/-/v1/shared/dead" {
                    return self.take_dead(conn, request).await;
                }
                if let Some(path) = request.path.strip_prefix("/-/v1/moves") {
                    return self.take_over_file(conn, request, path).await;
                }
            }
            Method::Delete => {
                if let Some(id) = request.path.strip_prefix("/-/v1/objects/") {
                    return self.bury_lost(conn, request, id).await;
                }
            }
            _ => {}
        }
        if !matches!(request.method, Method::Get | Method::Head) {
            return self.answers.not_allowed(conn, request, "GET, HEAD, OPTIONS").await;
        }
        match request.path.as_str() {
            "/-/health" => return self.health(conn, request).await,
            "/-/metrics" => {
                let text = self.metrics_text();
                let head = self.answers.head(200, request);
                return self
                    .answers
                    .answer(conn, request, head, 200, "text/plain; version=0.0.4", text.as_bytes())
                    .await;
            }
            "/-/v1/segments" => return self.segments_page(conn, request).await,
            "/-/v1/copies" => return self.copies_page(conn, request).await,
            "/-/v1/shared/changes" => return self.shared_changes(conn, request).await,
            "/-/v1/segments/changes" => return self.segment_changes(conn, request).await,
            _ => {}
        }
        if let Some(id) = request.path.strip_prefix("/-/v1/objects/") {
            return self.get_object(conn, request, id).await;
        }
        if let Some(rest) = request.path.strip_prefix("/-/v1/segments/") {
            return match rest.strip_suffix("/bytes") {
                Some(number) => self.segment_bytes(conn, request, number).await,
                None => self.segment_view(conn, request, rest).await,
            };
        }
        if let Some(rest) = request.path.strip_prefix("/-/v1/users/")
            && let Some(user) = rest.strip_suffix("/files")
        {
            return self.files(conn, request, user).await;
        }
        self.answers
            .refuse(conn, request, Problem::new(404, "not_found", "no such path here"))
            .await
    }

    /// 200 only when an upload and a download would succeed.
    async fn health(&self, conn: &mut Conn, request: &Request) -> Result<Answered, ConnError> {
        let state = self.node.status.state();
        let mut wrong = Vec::new();
        if state != NodeState::Active {
            wrong.push(format!(
                "state is {}",
                serde_json::to_value(state)
                    .ok()
                    .and_then(|v| v.as_str().map(str::to_owned))
                    .unwrap_or_default()
            ));
        }
        if !self.node.catalog.is_available() {
            wrong.push("the catalog is away".to_owned());
        }
        if self.node.leases.remaining() == 0 {
            wrong.push("no segment numbers in hand".to_owned());
        }
        if let Err(error) = self.node.store.has_room(0) {
            wrong.push(error.to_string());
        }
        let status = if wrong.is_empty() { 200 } else { 503 };
        let folders = self.node.store.folder_states();
        // A node with one bad disk of several serves: it is named here, and is no reason for 503.
        let failing: Vec<_> = folders
            .iter()
            .filter_map(|folder| {
                let reason = folder.failed.as_ref()?;
                Some(serde_json::json!({"folder": folder.path, "reason": reason}))
            })
            .collect();
        let split = self.node.volume.as_ref().map(SharedDisk::split_brain_files);
        let (free, total) = self.node.store.space();
        let body = serde_json::json!({
            "status": if wrong.is_empty() { "ok" } else { "unavailable" },
            "node": self.node.config.id,
            "group": self.node.config.group,
            "state": state,
            "wrong": wrong,
            "failing_folders": failing,
            "split_brain_files": split,
            "free": free,
            "capacity": total,
            "segments": self.node.store.segment_count(),
            "segment_numbers_in_hand": self.node.leases.remaining(),
            "load": self.node.status.load.load(std::sync::atomic::Ordering::Relaxed),
            "lag": self.node.status.lag.load(std::sync::atomic::Ordering::Relaxed),
        });
        self.answers.json(conn, request, status, &body).await
    }

    fn metrics_text(&self) -> String {
        let (free, total) = self.node.store.space();
        metrics::gauge!("reel_disk_free_bytes").set(free as f64);
        metrics::gauge!("reel_disk_bytes").set(total as f64);
        for folder in self.node.store.folder_states() {
            let path = folder.path.display().to_string();
            let failing = f64::from(u8::from(folder.failed.is_some()));
            metrics::gauge!("reel_folder_failing", "folder" => path.clone()).set(failing);
            metrics::gauge!("reel_folder_free_bytes", "folder" => path).set(folder.free as f64);
        }
        if let Some(volume) = &self.node.volume {
            metrics::gauge!("reel_split_brain_files").set(volume.split_brain_files().len() as f64);
        }
        metrics::gauge!("reel_segments_marked").set(self.node.store.marked_count() as f64);
        metrics::gauge!("reel_segments").set(self.node.store.segment_count() as f64);
        let lag = self.node.status.lag.load(std::sync::atomic::Ordering::Relaxed);
        metrics::gauge!("reel_replication_lag_bytes").set(lag as f64);
        reel_control::metrics::render()
    }

    async fn files(
        &self,
        conn: &mut Conn,
        request: &Request,
        user: &str,
    ) -> Result<Answered, ConnError> {
        match self.list(request, user).await {
            Ok(files) => self.answers.json(conn, request, 200, &files).await,
            Err(problem) => self.answers.refuse(conn, request, problem).await,
        }
    }

    async fn list(&self, request: &Request, user: &str) -> Result<Files, Problem> {
        names::check_user(user)?;
        let text = |key| query_value(&request.query, key).map(names::decode).transpose();
        let prefix = text("prefix")?.unwrap_or_default();
        let after = text("after")?.unwrap_or_default();
        let limit = match query_value(&request.query, "limit").map(str::parse::<u32>) {
            None => MAX_PAGE,
            Some(Ok(limit)) if limit > 0 => limit.min(MAX_PAGE),
            Some(_) => {
                return Err(Problem::new(400, "bad_request", "limit is a number from 1 to 1000"));
            }
        };
        let rows = self.node.catalog.list(user.to_owned(), prefix, after, limit).await?;
        let next = (rows.len() == limit as usize)
            .then(|| rows.last().map(|row| row.name.clone()))
            .flatten();
        let files = rows
            .into_iter()
            .map(|row| FileView {
                name: row.name,
                bytes: row.bytes,
                content_type: row.content_type,
                crc32: format!("{:08x}", row.crc),
                object: ObjectId::from_u64(row.object).to_string(),
                group: row.group,
                modified_ms: row.modified_ms,
            })
            .collect();
        Ok(Files { user: user.to_owned(), files, next })
    }
}
