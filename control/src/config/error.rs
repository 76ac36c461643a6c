//! What is wrong with a configuration, and where.

use std::path::{Path, PathBuf};

/// A configuration that cannot be used: one line for a person.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("{path}:{line}: {key}: {message}")]
    Bad {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key, as far as it is known.
        key: String,
        /// What is wrong with it.
        message: String,
    },
    /// A section that the role needs is not there.
    #[error("{path}: section [{section}] is missing; `reel config example {section}` prints one")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The section.
        section: &'static str,
    },
}

pub(super) fn bad(text: &str, path: &Path, at: usize, message: &str) -> ConfigError {
    let before = text.get(..at).unwrap_or("");
    let line = before.matches('\n').count() + 1;
    let source = text.lines().nth(line - 1).unwrap_or("");
    let key = source.split('=').next().unwrap_or("").trim();
    ConfigError::Bad {
        path: path.to_owned(),
        line,
        key: if key.is_empty() { "configuration".to_owned() } else { key.to_owned() },
        message: message.trim().replace('\n', " "),
    }
}

/// Where a line starts that sets `key`.
pub(super) fn find_key(text: &str, key: &str) -> Option<usize> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.split('=').next().is_some_and(|found| found.trim() == key) {
            return Some(at);
        }
        at += line.len();
    }
    None
}
