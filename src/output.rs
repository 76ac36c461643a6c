//! What the command says: results on standard output, complaints and progress on standard error.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use reel_control::client::{ClientError, Progress};
use reel_control::names::NameError;

/// Work that takes longer gets a progress bar, on a terminal.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why the command ends without success.
#[derive(Debug)]
pub struct Failure {
    /// The exit code: 1 failed, 2 wrong usage.
    pub code: u8,
    /// One line; empty when all has been said.
    pub message: String,
}

impl Failure {
    pub fn failed(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Usage(message) => Self::usage(message),
            error => Self::failed(error.to_string()),
        }
    }
}

impl From<NameError> for Failure {
    fn from(error: NameError) -> Self {
        Self::usage(match error {
            NameError::NotAFile => "name a file as USER/NAME".to_owned(),
            error => error.to_string(),
        })
    }
}

/// Prints a line of results. A reader that has gone (`reel ls | head`) ends the command quietly.
pub fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Prints a value as one line of JSON.
pub fn say_json<T: serde::Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::failed(error.to_string()))?;
    say(text);
    Ok(())
}

/// Prints a complaint.
pub fn complain(message: &str) {
    if !message.is_empty() {
        let _ = writeln!(std::io::stderr().lock(), "reel: {message}");
    }
}

/// A progress bar that shows up only for people, and only when it takes long.
#[derive(Clone)]
pub struct Bar {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    started: Instant,
    total: Option<u64>,
    done: u64,
    what: String,
    bar: Option<ProgressBar>,
    terminal: bool,
}

impl Bar {
    /// For `what`, of `total` bytes if that is known.
    pub fn new(what: &str, total: Option<u64>) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let inner = Inner {
            started: Instant::now(),
            total,
            done: 0,
            what: what.to_owned(),
            bar: None,
            terminal,
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// What the client calls with the bytes that went over.
    pub fn progress(&self) -> Progress {
        let inner = Arc::clone(&self.inner);
        Arc::new(move |bytes| inner.lock().add(bytes))
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = self.inner.lock().bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Inner {
    fn add(&mut self, bytes: u64) {
        self.done += bytes;
        if self.terminal && self.bar.is_none() && self.started.elapsed() > PATIENCE {
            let bar = match self.total {
                Some(total) => ProgressBar::new(total),
                None => ProgressBar::new_spinner(),
            };
            let template = match self.total {
                Some(_) => "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                None => "{spinner} {msg} {bytes} {bytes_per_sec}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(self.what.clone());
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        }
    }
}

/// Bytes for people.
pub fn human(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
