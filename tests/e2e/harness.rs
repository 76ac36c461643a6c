//! Runs `reel` processes, and speaks plain HTTP to them.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test.
pub fn reel() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reel"));
    command.env_remove("REEL_CONFIG").env_remove("REEL_TRACKERS").stdin(Stdio::null());
    command
}

/// Whether a program is there. A test that needs one that is absent says so and is skipped, or
/// fails with REEL_TEST_REQUIRE=all.
pub fn has(program: &str, test: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()));
    if !found {
        let required = std::env::var("REEL_TEST_REQUIRE").is_ok_and(|value| value == "all");
        assert!(!required, "{test} needs {program}, which is not installed");
        eprintln!("skipped: {test} needs {program}, which is not installed");
    }
    found
}

/// Waits until `check` gives a value.
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub fields: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// One request on a connection of its own. `Err` when the connection fails or breaks off.
pub fn request(address: &str, head: &str, body: &[u8]) -> std::io::Result<Answer> {
    let target: std::net::SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    stream
        .write_all(format!("{head}\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    // A server may answer before it has read the body.
    let _ = stream.write_all(body);
    read_answer(&mut stream, head.starts_with("HEAD"))
}

/// Reads one answer to the end of its body.
pub fn read_answer(stream: &mut impl Read, head_only: bool) -> std::io::Result<Answer> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    let short = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(short());
        }
        let status: u16 =
            line.get(9..12).and_then(|status| status.parse().ok()).ok_or_else(short)?;
        let mut fields = HashMap::new();
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Err(short());
            }
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            fields.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        if status == 100 {
            continue;
        }
        let length: usize =
            fields.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; if head_only || status == 304 { 0 } else { length }];
        reader.read_exact(&mut body)?;
        return Ok(Answer { status, fields, body });
    }
}

pub fn get(address: &str, path: &str) -> std::io::Result<Answer> {
    request(address, &format!("GET {path} HTTP/1.1"), &[])
}

pub fn put(address: &str, path: &str, body: &[u8]) -> std::io::Result<Answer> {
    request(address, &format!("PUT {path} HTTP/1.1\r\nContent-Length: {}", body.len()), body)
}

pub fn delete(address: &str, path: &str) -> std::io::Result<Answer> {
    request(address, &format!("DELETE {path} HTTP/1.1"), &[])
}

/// Bytes that a seed and a length determine.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Mounts of a volume that keeps the copies (REEL_TEST_SHARED, separated by `:`): storage nodes run on it then, each on
/// one of them. `tuning/glusterfs/e2e.py` makes such a volume and runs the suite there.
pub fn shared_mounts() -> Option<Vec<PathBuf>> {
    let mounts = std::env::var_os("REEL_TEST_SHARED")?;
    Some(std::env::split_paths(&mounts).collect())
}

/// Whether a test can run: some are about copies that the nodes themselves keep, which there are none of on a shared
/// volume. They say so and are skipped there.
pub fn nodes_keep_copies(test: &str) -> bool {
    let own = shared_mounts().is_none();
    if !own {
        eprintln!("skipped: {test} is about replication = \"pull\"");
    }
    own
}

/// A cluster by `reel up`. Stopped when dropped.
pub struct Up {
    child: Child,
    pub dir: PathBuf,
    /// The lines it printed until it was ready.
    pub lines: Vec<String>,
}

/// Places the files of `reel up` on the shared volume, when there is one.
fn shared_arguments(dir: &Path, arguments: &[&str]) -> Vec<std::ffi::OsString> {
    match shared_mounts() {
        Some(mounts) if !arguments.contains(&"--ack") => {
            vec!["--shared".into(), mounts[0].join(unique(dir)).into()]
        }
        _ => Vec::new(),
    }
}

/// A name for what belongs to a folder.
fn unique(dir: &Path) -> String {
    dir.display().to_string().trim_matches('/').replace('/', "-")
}

/// A process of `up.json`.
#[derive(Debug, Clone)]
pub struct Process {
    pub role: String,
    pub name: String,
    pub pid: i32,
    pub address: String,
}

impl Up {
    /// Starts it and waits until it is ready.
    pub fn start(dir: &Path, arguments: &[&str]) -> Self {
        let mut child = reel()
            .args(["up", "--http", "127.0.0.1:0", "--data"])
            .arg(dir)
            .args(arguments)
            .args(shared_arguments(dir, arguments))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let mut lines = Vec::new();
        for line in BufReader::new(out).lines() {
            let line = line.unwrap();
            let ready = line.starts_with("ready ");
            lines.push(line);
            if ready {
                return Self { child, dir: dir.to_owned(), lines };
            }
        }
        let status = child.wait().unwrap();
        panic!("`reel up` ended before it was ready ({status}); it printed {lines:?}");
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What `up.json` shows.
    pub fn processes(&self) -> Vec<Process> {
        let text = std::fs::read_to_string(self.dir.join("up.json")).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        json["processes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|process| Process {
                role: text(&process["role"]),
                name: text(&process["name"]),
                pid: process["pid"].as_i64().unwrap() as i32,
                address: text(&process["address"]),
            })
            .collect()
    }

    pub fn of(&self, role: &str) -> Vec<Process> {
        self.processes().into_iter().filter(|process| process.role == role).collect()
    }

    pub fn http(&self) -> String {
        self.of("http")[0].address.clone()
    }

    /// A client command on this cluster.
    pub fn client(&self, arguments: &[&str]) -> std::process::Output {
        let (command, rest) = arguments.split_first().unwrap();
        reel()
            .arg(command)
            .arg("--config")
            .arg(self.dir.join("client.toml"))
            .args(rest)
            .output()
            .unwrap()
    }

    /// Asks it to stop, and waits: the time that took, and its exit code.
    pub fn stop(mut self) -> (Duration, Option<i32>) {
        let started = Instant::now();
        signal(self.pid(), rustix::process::Signal::TERM);
        let status = self.child.wait().unwrap();
        (started.elapsed(), status.code())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.pid(), rustix::process::Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

pub fn signal(pid: i32, signal: rustix::process::Signal) {
    let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal);
}

pub fn kill(pid: i32) {
    signal(pid, rustix::process::Signal::KILL);
}

/// One role in the foreground, started by a configuration. Killed when dropped.
pub struct Role {
    child: Child,
    pub address: String,
    pub started: Instant,
}

impl Role {
    /// Starts it and waits until it says that it is ready; `Err` is what it said when it ended.
    pub fn start(role: &str, dir: &Path, config: &str) -> Result<Self, String> {
        Self::start_with(role, &[], dir, config)
    }

    /// The same with further arguments.
    pub fn start_with(
        role: &str,
        arguments: &[&str],
        dir: &Path,
        config: &str,
    ) -> Result<Self, String> {
        std::fs::create_dir_all(dir).unwrap();
        let path = dir.join(format!("{role}-{}.toml", config.len()));
        std::fs::write(&path, config).unwrap();
        let started = Instant::now();
        let mut child = reel()
            .arg(role)
            .args(arguments)
            .arg("--config")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let errors = child.stderr.take().unwrap();
        let (sender, receiver) = mpsc::channel();
        // Goes on reading for the child's whole life, so that its log never blocks it.
        let show = std::env::var_os("REEL_TEST_LOG").is_some();
        std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                if show {
                    eprintln!("{line}");
                }
                let _ = sender.send(line);
            }
        });
        let mut said = Vec::new();
        loop {
            match receiver.recv_timeout(PATIENCE) {
                Ok(line) => {
                    if let Some(address) = line.split("ready address=").nth(1) {
                        return Ok(Self { child, address: address.trim().to_owned(), started });
                    }
                    said.push(line);
                }
                Err(_) => {
                    let _ = child.kill();
                    let status = child.wait().unwrap();
                    said.push(format!("{status}"));
                    return Err(said.join("\n"));
                }
            }
        }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits until it has ended by itself.
    pub fn wait(mut self) {
        eventually("it ends", || self.child.try_wait().unwrap());
    }

    /// kill -9, and waits.
    pub fn kill(mut self) {
        kill(self.pid());
        let _ = self.child.wait();
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        kill(self.pid());
        let _ = self.child.wait();
    }
}

/// A tracker and an ID server, for tests that run storage nodes themselves.
pub struct Base {
    pub dir: tempfile::TempDir,
    pub tracker: Role,
    pub id: Role,
}

impl Base {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let catalog = dir.path().join("catalog.db").display().to_string();
        let tracker = Role::start(
            "tracker",
            dir.path(),
            &format!("catalog = \"sqlite:{catalog}\"\nbeat = \"200 ms\"\n[tracker]\nlisten = \"127.0.0.1:0\"\n"),
        )
        .unwrap();
        let mark = dir.path().join("mark").display().to_string();
        let id = Role::start(
            "id",
            dir.path(),
            &format!("[id]\nlisten = \"127.0.0.1:0\"\nmark = \"{mark}\"\n"),
        )
        .unwrap();
        Self { dir, tracker, id }
    }

    /// A storage node's configuration; `more` goes into its section.
    pub fn storage_config(&self, id: u32, folder: &str, more: &str) -> String {
        let mut data = self.dir.path().join(folder);
        let mut replication = "pull";
        if let Some(mounts) = shared_mounts()
            && !more.contains("ack")
        {
            replication = "shared";
            let volume = mounts[id as usize % mounts.len()].join(unique(self.dir.path()));
            let own = volume.join(format!("node-{id}"));
            std::fs::create_dir_all(&own).unwrap();
            // A test finds the node's folder where it expects it.
            let _ = std::os::unix::fs::symlink(own, &data);
            data = volume;
        }
        format!(
            "trackers = [\"{}\"]\nid_servers = [\"{}\"]\ncatalog = \"sqlite:{}\"\nbeat = \"200 ms\"\n\
             [storage]\nid = {id}\ngroup = 1\nlisten = \"127.0.0.1:0\"\nshards = 2\ndata = \"{}\"\n\
             replication = \"{replication}\"\n{more}\n",
            self.tracker.address,
            self.id.address,
            self.dir.path().join("catalog.db").display(),
            data.display(),
        )
    }

    /// Starts a storage node and waits until it is healthy.
    pub fn storage(&self, id: u32, folder: &str, more: &str) -> Role {
        let role = Role::start("storage", self.dir.path(), &self.storage_config(id, folder, more))
            .unwrap();
        wait_healthy(&role.address);
        role
    }
}

pub fn is_healthy(address: &str) -> bool {
    get(address, "/-/health").is_ok_and(|answer| answer.status == 200)
}

pub fn wait_healthy(address: &str) {
    eventually(&format!("{address} is healthy"), || is_healthy(address).then_some(()));
}
