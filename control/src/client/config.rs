//! Where the client finds its cluster.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ClientError;

/// A client's configuration (`client.toml`).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// Every tracker's `HOST:PORT`.
    pub trackers: Vec<String>,
    /// HTTP servers, for URLs.
    #[serde(default)]
    pub http: Vec<String>,
}

/// A configuration and where it was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// The configuration.
    pub config: ClientConfig,
    /// A file's path, or the name of an environment variable.
    pub origin: String,
}

/// Where `reel up` leaves it.
const DEFAULT: &str = "reel-data/client.toml";

impl ClientConfig {
    /// Finds it: `--config`, then `REEL_CONFIG`, then `REEL_TRACKERS`, then
    /// `./reel-data/client.toml`.
    pub fn find(flag: Option<&Path>) -> Result<Found, ClientError> {
        if let Some(path) = flag {
            return Self::load(path);
        }
        if let Some(path) = std::env::var_os("REEL_CONFIG") {
            return Self::load(&PathBuf::from(path));
        }
        if let Ok(trackers) = std::env::var("REEL_TRACKERS") {
            let trackers: Vec<String> = trackers
                .split(',')
                .map(|tracker| tracker.trim().to_owned())
                .filter(|tracker| !tracker.is_empty())
                .collect();
            if trackers.is_empty() {
                return Err(ClientError::Usage(
                    "REEL_TRACKERS names no tracker: HOST:PORT,HOST:PORT".to_owned(),
                ));
            }
            return Ok(Found {
                config: Self { trackers, http: Vec::new() },
                origin: "REEL_TRACKERS".to_owned(),
            });
        }
        if Path::new(DEFAULT).exists() {
            return Self::load(Path::new(DEFAULT));
        }
        Err(ClientError::Usage(format!(
            "no cluster known: give --config FILE, set REEL_CONFIG or REEL_TRACKERS, or run in the folder of `reel up` (where {DEFAULT} is)"
        )))
    }

    fn load(path: &Path) -> Result<Found, ClientError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ClientError::File { path: path.display().to_string(), source })?;
        let config: Self = toml::from_str(&text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = text.get(..at).unwrap_or("").matches('\n').count() + 1;
            ClientError::Usage(format!("{}:{line}: {}", path.display(), error.message().trim()))
        })?;
        Ok(Found { config, origin: path.display().to_string() })
    }
}
