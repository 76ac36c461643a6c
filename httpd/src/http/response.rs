//! Response heads.

use std::fmt::{Display, Write};

/// The reason phrase of a status (RFC 9110 §15).
pub fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        206 => "Partial Content",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "Unknown",
    }
}

/// A response head being written. Ends with [`Head::end`].
#[derive(Debug)]
pub struct Head {
    text: String,
}

impl Head {
    /// Begins a head with a status line and the date.
    pub fn new(status: u16, date: &str) -> Self {
        let mut text = String::with_capacity(512);
        let _ = write!(text, "HTTP/1.1 {status} {}\r\nDate: {date}\r\n", reason(status));
        Self { text }
    }

    /// Adds a field. A value with a line break would be another field: it is left out.
    #[inline]
    pub fn field(&mut self, name: &str, value: impl Display) -> &mut Self {
        let start = self.text.len();
        let _ = write!(self.text, "{name}: {value}\r\n");
        let line = &self.text[start..self.text.len() - 2];
        if line.contains(['\r', '\n', '\0']) {
            self.text.truncate(start);
        }
        self
    }

    /// Says whether the connection stays open, as far as the client's version has to be told.
    pub fn connection(&mut self, keep_alive: bool, http11: bool) -> &mut Self {
        match (keep_alive, http11) {
            (false, _) => self.field("Connection", "close"),
            (true, false) => self.field("Connection", "keep-alive"),
            (true, true) => self,
        }
    }

    /// Fields alone, to be [added](Head::prepared) to heads.
    pub fn fields() -> Self {
        Self { text: String::new() }
    }

    /// Adds fields that were prepared before.
    pub fn prepared(&mut self, fields: &str) -> &mut Self {
        self.text.push_str(fields);
        self
    }

    /// The text so far, for a head that is put together elsewhere.
    pub fn unfinished(self) -> String {
        self.text
    }

    /// The bytes, with the empty line at the end.
    pub fn end(mut self) -> Vec<u8> {
        self.text.push_str("\r\n");
        self.text.into_bytes()
    }
}

/// A JSON error body.
pub fn error_body(error: &str, message: &str) -> String {
    format!("{}\n", serde_json::json!({ "error": error, "message": message }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_add_a_field() {
        let mut head = Head::new(200, "now");
        head.field("Content-Type", "a\r\nEvil: 1").field("X", 1);
        let text = String::from_utf8(head.end()).expect("text");
        assert!(!text.contains("Evil") && text.ends_with("X: 1\r\n\r\n"));
    }
}
