//! The tracker: knows every storage node and group from their beats, and answers who may be used.
//!
//! Every node sends the same bytes to each of them, so all come to the same picture of who is alive; one that restarts has it
//! again after one beat. Of nodes that have been silent since before, and of last beats it missed, a tracker learns from the
//! others ([`others`]).

mod others;
mod server;
mod settings;
mod state;
mod users;

pub use server::router;
pub use state::{BEATS_UNTIL_OFFLINE, JoinError, Registry, RetireError};
