//! `reel up`: a whole cluster on this machine, each role as its own process of this binary.

mod plan;
mod supervise;

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use crate::cli::UpArgs;
use crate::output::{Failure, complain, say};
use plan::Plan;
use supervise::Supervisor;

/// Between looks at the children and at their health.
const LOOK: Duration = Duration::from_millis(50);
/// How long a health request may take.
const HEALTH: Duration = Duration::from_secs(1);
/// After this time without being ready a line says what is missing.
const PATIENCE: Duration = Duration::from_secs(15);

pub fn run(args: UpArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    runtime.block_on(up(args))
}

async fn up(args: UpArgs) -> Result<(), Failure> {
    let _lock = lock(&args.data)?;
    let plan = Plan::make(&args)?;
    plan.write()?;
    let (mut terminate, mut interrupt) = signals()?;
    let mut supervisor = Supervisor::start(&plan)?;
    for process in supervisor.running() {
        say(format_args!("{:<14} pid {:<8} {}", process.name, process.pid, process.address));
    }
    let started = Instant::now();
    let (mut ready, mut warned) = (false, false);
    let http = reel_control::client::http_client(HEALTH);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = tokio::time::sleep(LOOK) => {}
        }
        supervisor.look();
        if ready {
            continue;
        }
        let missing = unhealthy(&http, &plan).await;
        if missing.is_empty() {
            ready = true;
            say(format_args!("ready http://{}", plan.first_http()));
        } else if !warned && started.elapsed() > PATIENCE {
            warned = true;
            complain(&format!(
                "still waiting for {}; see {}",
                missing.join(", "),
                args.data.join("logs").display()
            ));
        }
    }
    complain("stopping; uploads in progress are finished");
    supervisor.stop().await;
    Ok(())
}

/// The roles that would not serve yet.
async fn unhealthy(http: &reqwest::Client, plan: &Plan) -> Vec<String> {
    let mut missing = Vec::new();
    for process in &plan.processes {
        let health = http.get(format!("http://{}/-/health", process.address)).send().await;
        if !health.is_ok_and(|response| response.status().is_success()) {
            missing.push(process.name.clone());
        }
    }
    missing
}

type Signals = (tokio::signal::unix::Signal, tokio::signal::unix::Signal);

fn signals() -> Result<Signals, Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("signals: {error}"));
    Ok((
        signal(SignalKind::terminate()).map_err(failed)?,
        signal(SignalKind::interrupt()).map_err(failed)?,
    ))
}

/// One `reel up` a folder.
fn lock(data: &Path) -> Result<std::fs::File, Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("{}: {error}", data.display()));
    std::fs::create_dir_all(data).map_err(failed)?;
    let file = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(data.join("up.lock"))
        .map_err(failed)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::failed(format!(
            "{}: another `reel up` runs there; stop it, or give another --data",
            data.display()
        ))),
        Err(error) => Err(failed(error.into())),
    }
}
