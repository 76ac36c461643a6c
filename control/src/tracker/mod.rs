//! The tracker: knows every storage node and group from their beats, and answers who may be used.
//!
//! Trackers do not talk to one another. Every node sends the same bytes to each of them, so all
//! come to the same picture; one that restarts has it again after one beat.

mod server;
mod state;
mod users;

pub use server::router;
pub use state::{BEATS_UNTIL_OFFLINE, JoinError, Registry};
