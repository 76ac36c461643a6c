//! The ID server: segment numbers in leases, never the same twice, whatever crashes.
//!
//! The mark (every number below it was given out) is durable before a lease is answered: a synced
//! file for a single server, or a row in PostgreSQL, and then any number of servers run.

mod mark;
mod server;

pub use mark::{Mark, MarkError, MarkFile};
pub use server::router;

/// The most numbers one lease gives.
pub const MAX_LEASE: u64 = 1 << 20;
