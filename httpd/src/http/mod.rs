//! HTTP/1.1 as pure code: bytes in, values out, and back (RFC 9110, RFC 9112).

pub mod body;
pub mod conditions;
pub mod date;
pub mod range;
pub mod request;
pub mod response;
