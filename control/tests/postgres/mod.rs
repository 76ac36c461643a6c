//! A PostgreSQL of the test's own: Debian's package, a private socket and data folder, as a user
//! that is not root.

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A running server; stopped when dropped.
pub struct Postgres {
    dir: tempfile::TempDir,
    bin: PathBuf,
}

/// The newest installed server's programs.
fn programs() -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    versions.sort();
    versions
        .into_iter()
        .rev()
        .find(|bin| bin.join("initdb").exists() && bin.join("postgres").exists())
}

impl Postgres {
    /// Starts a server; `None` (said by name) when PostgreSQL is not installed.
    pub fn start(test: &str) -> Option<Self> {
        let Some(bin) = programs() else {
            let required = std::env::var("REEL_TEST_REQUIRE").is_ok_and(|value| value == "all");
            assert!(!required, "{test} needs PostgreSQL, which is not installed");
            eprintln!("skipped: {test} needs PostgreSQL, which is not installed");
            return None;
        };
        let dir = tempfile::Builder::new().prefix("reel-pg").tempdir_in("/tmp").unwrap();
        let server = Self { dir, bin };
        if is_root() {
            run(Command::new("chown").arg("-R").arg("postgres").arg(server.path()));
        }
        run(server.command("initdb").args(["-D"]).arg(server.data()).args([
            "-U",
            "reel",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
        ]));
        server.begin();
        run(server.command("createdb").arg("-h").arg(server.path()).args(["-U", "reel", "reel"]));
        Some(server)
    }

    /// Starts the server process (again), and waits until it answers.
    pub fn begin(&self) {
        let options =
            format!("-k {} -c listen_addresses= -c max_connections=100", self.path().display());
        run(self
            .command("pg_ctl")
            .arg("-D")
            .arg(self.data())
            .args(["-w", "-s", "-l"])
            .arg(self.path().join("log"))
            .args(["-o", &options, "start"]));
    }

    /// Stops the server process as a crash would.
    pub fn crash(&self) {
        run(self.command("pg_ctl").arg("-D").arg(self.data()).args([
            "-w",
            "-s",
            "-m",
            "immediate",
            "stop",
        ]));
    }

    /// Where it is reached.
    pub fn url(&self) -> String {
        format!("postgres://reel@localhost/reel?host={}", self.path().display())
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// One of its programs, run by the user `postgres` when this is root.
    fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir("/tmp").stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self
            .command("pg_ctl")
            .arg("-D")
            .arg(self.data())
            .args(["-s", "-m", "immediate", "stop"])
            .status();
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self")
        .map(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
        .unwrap_or(false)
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
