//! End to end: the real binary, real processes, real files, real faults.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod cluster;
mod crash;
mod harness;
mod protocol;
mod replication;
mod up;
