//! What a client may be told.

use std::error::Error as _;

use crate::api::ErrorBody;

/// A client's error: one line for a person.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody to ask.
    #[error("no {0} answers: check the addresses, and whether they run")]
    Nobody(&'static str),
    /// No connection, or it broke.
    #[error("{at}: {reason}")]
    Connection {
        /// Who was asked.
        at: String,
        /// What happened.
        reason: String,
    },
    /// The server said no.
    #[error("{at} answers {status}: {message}")]
    Refused {
        /// Who was asked.
        at: String,
        /// The HTTP status.
        status: u16,
        /// Its word for programs.
        error: String,
        /// Its line for people.
        message: String,
    },
    /// The file is held by another group.
    #[error("the file is held by group {0}")]
    OtherGroup(String),
    /// No such file.
    #[error("{0}: no such file")]
    NotFound(String),
    /// The bytes are not those that were sent.
    #[error("{what}: CRC-32 is {found:08x}, expected {expected:08x}")]
    Crc {
        /// Which transfer.
        what: String,
        /// Of the bytes seen.
        found: u32,
        /// As it should be.
        expected: u32,
    },
    /// A local file.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A bad name or configuration.
    #[error("{0}")]
    Usage(String),
}

impl ClientError {
    /// An answer that is not what it should be.
    pub fn answer(at: &str, error: &reqwest::Error) -> Self {
        Self::Connection { at: at.to_owned(), reason: reason(error) }
    }

    /// Whether another node, or a later try, may do better.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connection { .. } | Self::Nobody(_) | Self::Crc { .. } => true,
            Self::Refused { status, .. } => *status >= 500,
            _ => false,
        }
    }

    /// Whether the server understood and said no (403, 409).
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { status: 403 | 409, .. })
    }
}

/// The innermost reason of a transport error, without the URL.
fn reason(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    match error.source() {
        Some(_) => innermost.to_string(),
        None => error.to_string(),
    }
}

/// The response when it is a success; else the error that it, or its absence, means.
pub async fn checked(
    result: reqwest::Result<reqwest::Response>,
    at: &str,
) -> Result<reqwest::Response, ClientError> {
    let response = result.map_err(|error| ClientError::answer(at, &error))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    if status.as_u16() == 421
        && let Some(group) =
            response.headers().get("reel-group").and_then(|group| group.to_str().ok())
    {
        return Err(ClientError::OtherGroup(group.to_owned()));
    }
    let text = response.text().await.unwrap_or_default();
    let body: ErrorBody = serde_json::from_str(&text).unwrap_or(ErrorBody {
        error: "unknown".to_owned(),
        message: status.canonical_reason().unwrap_or("an error without a message").to_owned(),
    });
    Err(ClientError::Refused {
        at: at.to_owned(),
        status: status.as_u16(),
        error: body.error,
        message: body.message,
    })
}
