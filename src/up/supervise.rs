//! Keeps the children running, and ends them in order.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use super::plan::{Plan, Process, write_private};
use crate::output::{Failure, complain};

/// The pause before a child that died is started again; doubled each time it dies soon again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A child that ran this long is started again without a longer pause.
const STABLE: Duration = Duration::from_secs(10);
/// Between looks at a child that is stopping.
const LOOK: Duration = Duration::from_millis(20);
/// The order in which roles stop, and how long each may take; all together less than 10 s.
const STOP_ORDER: [(&str, Duration); 4] = [
    ("http", Duration::from_millis(6500)),
    ("storage", Duration::from_millis(9000)),
    ("id", Duration::from_millis(9300)),
    ("tracker", Duration::from_millis(9600)),
];

/// A child as `up.json` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Running {
    pub role: &'static str,
    pub name: String,
    pub pid: u32,
    pub address: String,
    pub data: PathBuf,
}

#[derive(Serialize)]
struct UpJson {
    processes: Vec<Running>,
}

struct Kept {
    process: Process,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    started: Instant,
    pause: Duration,
    again: Option<Instant>,
}

/// All children.
pub struct Supervisor {
    kept: Vec<Kept>,
    json: PathBuf,
}

impl Supervisor {
    /// Starts every process of the plan.
    pub fn start(plan: &Plan) -> Result<Self, Failure> {
        let kept = plan
            .processes
            .iter()
            .map(|process| Kept {
                process: process.clone(),
                config: plan.config_path(process),
                log: plan.data.join("logs").join(format!("{}.log", process.name)),
                child: None,
                started: Instant::now(),
                pause: FIRST_PAUSE,
                again: None,
            })
            .collect();
        let mut supervisor = Self { kept, json: plan.data.join("up.json") };
        for kept in &mut supervisor.kept {
            kept.start().map_err(|error| {
                Failure::failed(format!("{}: cannot be started: {error}", kept.process.name))
            })?;
        }
        supervisor.write_json();
        Ok(supervisor)
    }

    /// What runs now.
    pub fn running(&self) -> Vec<Running> {
        self.kept.iter().filter_map(Kept::running).collect()
    }

    fn write_json(&self) {
        let json = UpJson { processes: self.running() };
        let written = serde_json::to_string(&json)
            .map_err(|error| Failure::failed(error.to_string()))
            .and_then(|text| write_private(&self.json, &(text + "\n")));
        if let Err(failure) = written {
            complain(&failure.message);
        }
    }

    /// Notices children that died, and starts those again whose pause is over.
    pub fn look(&mut self) {
        let mut changed = false;
        for kept in &mut self.kept {
            changed |= kept.look();
        }
        if changed {
            self.write_json();
        }
    }

    /// Ends all, role by role; what does not end in time is killed.
    pub async fn stop(mut self) {
        let begun = Instant::now();
        for (role, limit) in STOP_ORDER {
            let mut group: Vec<&mut Kept> =
                self.kept.iter_mut().filter(|kept| kept.process.role == role).collect();
            for kept in &mut group {
                kept.signal(Signal::TERM);
            }
            while group.iter_mut().any(|kept| kept.is_alive()) && begun.elapsed() < limit {
                tokio::time::sleep(LOOK).await;
            }
            for kept in &mut group {
                if kept.is_alive() {
                    complain(&format!("{} did not stop in time and is killed", kept.process.name));
                    kept.signal(Signal::KILL);
                    if let Some(child) = &mut kept.child {
                        let _ = child.wait();
                    }
                }
                kept.child = None;
            }
        }
        self.write_json();
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        for kept in &mut self.kept {
            kept.signal(Signal::TERM);
        }
    }
}

impl Kept {
    fn start(&mut self) -> std::io::Result<()> {
        let log = File::options().append(true).create(true).open(&self.log)?;
        let child = Command::new(std::env::current_exe()?)
            .arg(self.process.role)
            .arg("--config")
            .arg(&self.config)
            .arg("--with-parent")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C at a terminal goes to the whole group: the children stop in order instead.
            .process_group(0)
            .spawn()?;
        self.child = Some(child);
        self.started = Instant::now();
        self.again = None;
        Ok(())
    }

    fn running(&self) -> Option<Running> {
        let child = self.child.as_ref()?;
        Some(Running {
            role: self.process.role,
            name: self.process.name.clone(),
            pid: child.id(),
            address: self.process.address.to_string(),
            data: self.process.data.clone(),
        })
    }

    /// True when the child died or was started again.
    fn look(&mut self) -> bool {
        if let Some(child) = &mut self.child {
            let Ok(Some(status)) = child.try_wait() else { return false };
            self.child = None;
            if self.started.elapsed() > STABLE {
                self.pause = FIRST_PAUSE;
            }
            complain(&format!(
                "{} ended ({status}); started again in {:?}; its log is {}",
                self.process.name,
                self.pause,
                self.log.display()
            ));
            self.again = Some(Instant::now() + self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            return true;
        }
        match self.again {
            Some(again) if again <= Instant::now() => {
                if let Err(error) = self.start() {
                    complain(&format!("{}: cannot be started: {error}", self.process.name));
                    self.again = Some(Instant::now() + self.pause);
                }
                true
            }
            _ => false,
        }
    }

    fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(|child| Pid::from_raw(child.id() as i32));
        if let Some(pid) = pid {
            // A child that has just ended is not waited for yet, so the pid is still its own.
            let _ = kill_process(pid, signal);
        }
    }
}
