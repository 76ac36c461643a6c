//! What the generators that speak HTTP on a socket of their own share.

use std::io::{Error, Result};
use std::net::{SocketAddr, TcpStream};

use rustix::net::SendFlags;

/// What is asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// The server
    #[arg(long)]
    pub(crate) server: SocketAddr,
    /// The file, as in a request: /USER/NAME
    #[arg(long)]
    pub(crate) path: String,
}

/// The head of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: Option<u16>,
    /// `Content-Length`: bytes of the body.
    pub(crate) length: Option<u64>,
    /// Bytes of the head itself, the empty line included.
    pub(crate) bytes: usize,
}

impl Head {
    /// The head at the beginning of `answer`, if all of it has come.
    pub(crate) fn of(answer: &[u8]) -> Option<Self> {
        let end = answer.windows(4).position(|end| end == b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(&answer[..end]);
        let mut fields = text.lines().filter_map(|line| line.split_once(':'));
        let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        Some(Self {
            status: text.get(9..12).and_then(|status| status.parse().ok()),
            length: length.and_then(|(_, value)| value.trim().parse().ok()),
            bytes: end + 4,
        })
    }
}

/// Sends a request to a socket that has nothing else to send.
pub(crate) fn send(stream: &TcpStream, request: &[u8]) -> Result<()> {
    if rustix::net::send(stream, request, SendFlags::NOSIGNAL)? < request.len() {
        return Err(Error::other("a request did not fit the socket"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_found_when_all_of_it_has_come() {
        let answer = b"HTTP/1.1 206 Partial Content\r\nx: y\r\ncontent-LENGTH: 12\r\n\r\nbody";
        let head = Head { status: Some(206), length: Some(12), bytes: answer.len() - 4 };
        assert_eq!(Head::of(answer), Some(head));
        assert_eq!(Head::of(&answer[..answer.len() - 5]), None);
        let bare = Head { status: None, length: None, bytes: 7 };
        assert_eq!(Head::of(b"???\r\n\r\n"), Some(bare));
    }
}
