//! The data plane: storage nodes and HTTP servers on monoio, one shard a core.
//!
//! A shard is a loop that never blocks: it accepts, parses ([`http`], pure), finds and sends or
//! receives bytes. What could block goes to disk threads (engine) or to the process's one tokio
//! side thread (control plane), through bounded channels. (A busy shard rests for 30 to 100 µs at times, of its own
//! will: `coalesce.rs`.)

mod access_log;
mod answer;
mod balance;
mod buffers;
mod coalesce;
mod congestion;
mod conn;
mod connections;
mod gateway;
mod handover;
pub mod http;
mod node;
mod piece;
mod pipes;
mod polled;
mod prompt;
mod reactor;
mod readiness;
mod replicate;
mod requests;
mod shard;
mod side;
mod storage;
mod tally;
mod turns;
mod upstream;
mod whole;

pub use storage::{Verdict, judge, offer_of};

pub use node::{Common, RunError, bind, run_gateway, run_storage};
