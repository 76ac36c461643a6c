//! A `reel up` of the release binary, for the time of a measurement.

use std::io::{BufRead, BufReader, Error, Result, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde::Deserialize;

/// Prints a line.
pub(crate) fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// A running cluster; it is stopped when dropped.
pub(crate) struct Cluster {
    child: Child,
    pub(crate) storage: Process,
    pub(crate) http: SocketAddr,
}

/// A process of `up.json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Process {
    role: String,
    pub(crate) pid: u32,
    pub(crate) address: SocketAddr,
}

#[derive(Deserialize)]
struct UpJson {
    processes: Vec<Process>,
}

impl Cluster {
    /// Starts `reel up` on `data` with further arguments, and waits until it is ready.
    pub(crate) fn start(reel: &Path, data: &Path, arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(reel)
            .args(["up", "--http", "127.0.0.1:0", "--data"])
            .arg(data)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().ok_or_else(|| Error::other("no output"))?;
        for line in BufReader::new(out).lines() {
            if line?.starts_with("ready ") {
                let text = std::fs::read_to_string(data.join("up.json"))?;
                let up: UpJson = serde_json::from_str(&text)?;
                let find = |role: &str| {
                    let found = up.processes.iter().find(|process| process.role == role).cloned();
                    found.ok_or_else(|| Error::other(format!("no {role} process")))
                };
                return Ok(Self { child, storage: find("storage")?, http: find("http")?.address });
            }
        }
        Err(Error::other("`reel up` ended before it was ready"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

/// The `reel` binary beside this one, unless another is named.
pub(crate) fn reel_binary(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    let beside = std::env::current_exe()?.with_file_name("reel");
    if beside.exists() {
        return Ok(beside);
    }
    Err(Error::other(
        "no `reel` beside this binary: build both with `cargo build --release --workspace`, or give --reel",
    ))
}
