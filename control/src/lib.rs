//! The control plane: trackers, ID servers, the catalog, placement, the client.
//!
//! Small, on tokio, JSON over HTTP under `/-/v1/` ([`api`]). It knows nothing of the engine: an
//! object is a number here, and a path a text.

pub mod agent;
pub mod api;
pub mod catalog;
pub mod client;
pub mod config;
pub mod ids;
pub mod media_type;
pub mod metrics;
pub mod names;
pub mod placement;
pub mod serve;
pub mod status;
pub mod tracker;
pub mod verify;
