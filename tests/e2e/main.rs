//! End to end: the real binary, real processes, real files, real faults.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says what it measured or skipped"
)]

mod bad_input;
mod cluster;
mod crash;
mod disks;
mod gateway;
mod groups;
mod harness;
mod hostile;
mod pieces;
mod protocol;
mod replication;
mod resume;
mod up;
