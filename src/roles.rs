//! `reel tracker|id|storage|http`: one role in the foreground, as systemd would run it.

use std::net::SocketAddr;
use std::path::Path;

use reel_control::catalog::Catalog;
use reel_control::config::{Config, ConfigError};
use reel_control::ids::{self, Mark, MarkFile};
use reel_control::{metrics, serve, tracker as tracker_role};
use reel_httpd::{Common, RunError, bind, run_gateway, run_storage};
use tokio::signal::unix::{SignalKind, signal};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;

use crate::cli::{HttpArgs, RoleArgs};
use crate::output::Failure;

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Self::failed(error.to_string())
    }
}

/// Loads the configuration, and sets up log and metrics. The log is written by a thread of its own
/// and loses lines rather than hold a shard up; what is left of it is written when the guard goes.
fn begin(args: &RoleArgs, role: &'static str) -> Result<(Config, WorkerGuard), Failure> {
    if args.with_parent {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
            .map_err(|error| {
                Failure::failed(format!("cannot watch the parent process: {error}"))
            })?;
    }
    let config = Config::load(&args.config)?;
    let filter = EnvFilter::try_from_env("REEL_LOG")
        .or_else(|_| EnvFilter::try_new(&config.log.level))
        .map_err(|error| {
            Failure::failed(format!("{}: log level: {error}", args.config.display()))
        })?;
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(ansi).init();
    metrics::install();
    tracing::info!(role, version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "starts");
    Ok((config, guard))
}

fn missing(path: &Path, section: &'static str) -> Failure {
    ConfigError::Missing { path: path.to_owned(), section }.into()
}

fn common(config: &Config) -> Common {
    Common {
        cluster: config.cluster.clone(),
        trackers: config.trackers.clone(),
        id_servers: config.id_servers.clone(),
        beat: config.beat.0,
    }
}

/// Says that the role is ready: to the log, and to systemd where it listens.
fn ready(address: SocketAddr) {
    tracing::info!(%address, "ready");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "systemd was not told");
    }
}

/// Resolves at SIGTERM or SIGINT.
async fn asked_to_stop() {
    let terminate = signal(SignalKind::terminate());
    let interrupt = signal(SignalKind::interrupt());
    let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))
}

/// Calls `stop` at SIGTERM or SIGINT, from a thread of its own.
fn stop_on_signal(stop: Box<dyn Fn() + Send + Sync>) {
    let waiting = std::thread::Builder::new().name("reel-signals".to_owned()).spawn(move || {
        match runtime() {
            Ok(runtime) => {
                runtime.block_on(asked_to_stop());
                stop();
            }
            Err(failure) => tracing::error!(error = failure.message, "signals are not handled"),
        }
    });
    if let Err(error) = waiting {
        tracing::error!(%error, "signals are not handled");
    }
}

/// Serves a control-plane router until a signal.
fn serve_router(
    listen: SocketAddr,
    router: impl Future<Output = Result<serve::Router, Failure>>,
) -> Result<(), Failure> {
    let socket = bind(listen)?;
    runtime()?.block_on(async {
        let router = router.await?;
        let listener = tokio::net::TcpListener::from_std(socket)
            .map_err(|error| Failure::failed(format!("listen on {listen}: {error}")))?;
        let address = listener.local_addr().unwrap_or(listen);
        ready(address);
        serve::serve(listener, router, asked_to_stop())
            .await
            .map_err(|error| Failure::failed(format!("serve: {error}")))
    })
}

pub fn tracker(args: &RoleArgs) -> Result<(), Failure> {
    let (config, _log) = begin(args, "tracker")?;
    let section = config.tracker.clone().ok_or_else(|| missing(&args.config, "tracker"))?;
    let url = config.catalog_url(&args.config)?.to_owned();
    serve_router(section.listen, async {
        let others = config.trackers.clone();
        Ok(tracker_role::router(config.cluster.clone(), config.beat.0, url, others))
    })
}

pub fn id(args: &RoleArgs) -> Result<(), Failure> {
    let (config, _log) = begin(args, "id")?;
    let section = config.id.clone().ok_or_else(|| missing(&args.config, "id"))?;
    serve_router(section.listen, async {
        let mark = match &section.mark {
            Some(path) => Mark::File(
                MarkFile::open(path).map_err(|error| Failure::failed(error.to_string()))?,
            ),
            None => {
                let url = config.catalog_url(&args.config)?;
                if url.starts_with("sqlite:") {
                    return Err(Failure::failed(format!(
                        "{}: [id] needs `mark` unless the catalog is PostgreSQL",
                        args.config.display()
                    )));
                }
                Mark::Catalog(
                    Catalog::open(url).await.map_err(|error| Failure::failed(error.to_string()))?,
                )
            }
        };
        Ok(ids::router(config.cluster.clone(), mark))
    })
}

pub fn storage(args: &RoleArgs) -> Result<(), Failure> {
    let (config, _log) = begin(args, "storage")?;
    let section = config.storage.clone().ok_or_else(|| missing(&args.config, "storage"))?;
    let url = config.catalog_url(&args.config)?.to_owned();
    run_storage(common(&config), section, url, ready, stop_on_signal)?;
    Ok(())
}

pub fn http(args: &HttpArgs) -> Result<(), Failure> {
    let (config, _log) = begin(&args.role, "http")?;
    let section = config.http.clone().ok_or_else(|| missing(&args.role.config, "http"))?;
    run_gateway(common(&config), section, args.take_over, ready, stop_on_signal)?;
    Ok(())
}
