//! The access log: one line of JSON an answer, written by a thread of its own.
//!
//! A shard puts a line into a bounded queue and goes on; when the queue is full the line is dropped and counted. The
//! file is looked at again every [`LOOK`], so that it may be renamed away (logrotate).

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use reel_control::config::AccessLogConfig;
use serde::Serialize;

/// Lines that may wait to be written.
const QUEUE: usize = 16_384;
/// How often waiting bytes are written out, and the file is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long a process that ends waits for its last lines to be written.
const CLOSE: Duration = Duration::from_secs(2);
/// Bytes gathered for one write.
const GATHER: usize = 256 << 10;

/// An answer, as it stands in the log.
#[derive(Debug, Serialize)]
pub(crate) struct Line<'a> {
    /// When it was complete: milliseconds since 1970.
    pub(crate) time_ms: u64,
    /// The request's id, when it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request_id: Option<&'a str>,
    /// Who asked.
    pub(crate) client: std::net::IpAddr,
    /// The method.
    pub(crate) method: &'a str,
    /// The path as it was asked for.
    pub(crate) path: &'a str,
    /// The range asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) range: Option<&'a str>,
    /// The status; 499 when the client broke off.
    pub(crate) status: u16,
    /// Bytes sent, head included.
    pub(crate) sent: u64,
    /// Microseconds from when the request came.
    pub(crate) micros: u64,
}

/// A process's access log.
#[derive(Debug)]
pub(crate) struct AccessLog {
    /// Lines, and that no more are to be written.
    lines: SyncSender<Option<Vec<u8>>>,
    thread: JoinHandle<()>,
    every: u64,
    dropped: metrics::Counter,
}

/// A shard's way to it.
#[derive(Debug)]
pub(crate) struct Scribe {
    log: Arc<AccessLog>,
    answers: Cell<u64>,
}

impl AccessLog {
    /// Opens the configured log; `None` when there is none.
    pub(crate) fn open(config: &AccessLogConfig) -> io::Result<Option<Arc<Self>>> {
        let Some(path) = config.file.clone() else { return Ok(None) };
        let file = append(&path)?;
        let (lines, waiting) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("reel-access-log".to_owned())
            .spawn(move || write_lines(&path, file, &waiting))?;
        Ok(Some(Arc::new(Self {
            lines,
            thread,
            every: u64::from(config.every.max(1)),
            dropped: metrics::counter!("reel_access_log_dropped_total"),
        })))
    }

    /// A shard's way to it.
    pub(crate) fn scribe(self: &Arc<Self>) -> Scribe {
        Scribe { log: Arc::clone(self), answers: Cell::new(0) }
    }

    /// Has what waits written out, within [`CLOSE`]; what is noted later is not written.
    pub(crate) fn close(&self) {
        let deadline = Instant::now() + CLOSE;
        let mut is_told = false;
        while !self.thread.is_finished() {
            if Instant::now() >= deadline {
                tracing::error!("the end of the access log was not written within {CLOSE:?}");
                return;
            }
            is_told = is_told || self.lines.try_send(None).is_ok();
            std::thread::sleep(CLOSE / 1000);
        }
    }
}

impl Scribe {
    /// Writes a line down, if this answer is among those that are logged: every so-many-th, and all that failed.
    pub(crate) fn note(&self, line: &Line<'_>) {
        let count = self.answers.replace(self.answers.get() + 1);
        if line.status < 400 && !count.is_multiple_of(self.log.every) {
            return;
        }
        let Ok(mut text) = serde_json::to_vec(line) else { return };
        text.push(b'\n');
        if self.log.lines.try_send(Some(text)).is_err() {
            self.log.dropped.increment(1);
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// Writes until it is told that no more are to be written, or nobody can send any.
fn write_lines(path: &PathBuf, file: File, lines: &Receiver<Option<Vec<u8>>>) {
    let mut out = BufWriter::with_capacity(GATHER, file);
    let mut looked = Instant::now();
    let mut failing = false;
    loop {
        let result = match lines.recv_timeout(LOOK) {
            Ok(Some(line)) => out.write_all(&line),
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(None) | Err(RecvTimeoutError::Disconnected) => break,
        };
        let result = result.and_then(|()| {
            if looked.elapsed() < LOOK {
                return Ok(());
            }
            looked = Instant::now();
            out.flush()?;
            let (there, ours) = (std::fs::metadata(path).ok(), out.get_ref().metadata()?);
            if there.is_none_or(|there| (there.dev(), there.ino()) != (ours.dev(), ours.ino())) {
                out = BufWriter::with_capacity(GATHER, append(path)?);
            }
            Ok(())
        });
        match result {
            Ok(()) => failing = false,
            Err(error) if !std::mem::replace(&mut failing, true) => {
                tracing::error!(%error, path = %path.display(), "the access log cannot be written");
            }
            Err(_) => {}
        }
    }
    if let Err(error) = out.flush() {
        tracing::error!(%error, path = %path.display(), "the access log cannot be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(status: u16, path: &str) -> Line<'_> {
        let client = std::net::Ipv4Addr::LOCALHOST.into();
        let (request_id, range) = (Some("id-1"), None);
        Line {
            time_ms: 5,
            request_id,
            client,
            method: "GET",
            path,
            range,
            status,
            sent: 9,
            micros: 3,
        }
    }

    #[test]
    fn every_so_many_th_and_all_that_failed_are_written_in_order() {
        let dir = tempfile::tempdir().expect("temp folder");
        let file = dir.path().join("access.log");
        let config = AccessLogConfig { file: Some(file.clone()), every: 10 };
        let log = AccessLog::open(&config).expect("opens").expect("configured");
        let scribe = log.scribe();
        for at in 0..100 {
            scribe.note(&line(200, &format!("/ok/\"{at}")));
            scribe.note(&line(404, "/no"));
        }
        // Whoever else holds it does not keep it from ending.
        log.close();
        let text = std::fs::read_to_string(&file).expect("written");
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let of = |status: u64| lines.iter().filter(|line| line["status"] == status).count();
        assert_eq!((of(404), of(200)), (100, 20));
        assert_eq!(lines[0]["path"], "/ok/\"0");
        assert_eq!(lines[0]["request_id"], "id-1");
        assert!(lines[0].get("range").is_none());
    }
}
