//! A piece at hand: a part of a file that is in the page cache, or all of it, with more bytes than go without a turn
//! ([`crate::turns`]) and no more than go in one. It is answered in its turn by the reactor, and its connection's task
//! sleeps on (decisions/0026).

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::net::{SendFlags, sockopt};

use crate::conn::CORK_BYTES;
use crate::http::request::Request;
use crate::turns::{self, Grant, Turn};
use crate::whole::{FilePart, Rest};

/// The answer to a request for a piece.
pub(crate) struct Piece {
    pub(crate) status: u16,
    pub(crate) head: Vec<u8>,
    pub(crate) body: FilePart,
    /// For whoever writes it down.
    pub(crate) request: Option<Box<Request>>,
}

/// A piece of which something is left.
#[derive(Debug)]
pub(crate) struct Begun {
    /// Its place among those that wait.
    pub(crate) turn: Turn,
    pub(crate) status: u16,
    pub(crate) request: Option<Box<Request>>,
    /// When its request came, and what was sent of the answer.
    pub(crate) came: Instant,
    pub(crate) sent: u64,
}

/// Whether so much of a file goes in a turn, and not without one.
pub(crate) fn is_piece(range: &Range<u64>) -> bool {
    (turns::SMALL_BYTES + 1..=turns::PORTION).contains(&(range.end - range.start))
}

impl Piece {
    /// Bytes of head and body.
    pub(crate) fn len(&self) -> u64 {
        self.head.len() as u64 + self.body.length
    }

    /// Sends what there is room for, in the turn that was given; what is left. `came` is when its request came.
    pub(crate) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        grant: Option<Grant>,
        came: Instant,
    ) -> Option<Rest> {
        let mut turn = grant.map_or_else(Turn::default, Turn::from);
        turn.use_grant(self.body.length);
        let is_corked =
            self.body.length >= CORK_BYTES && sockopt::set_tcp_cork(socket, true).is_ok();
        // A failure shows again when the rest is sent.
        let sent = rustix::net::send(socket, &self.head, SendFlags::NOSIGNAL | SendFlags::MORE)
            .unwrap_or(0);
        let body =
            if sent == self.head.len() { self.body.send(socket) } else { Some(self.body.clone()) };
        let unsent = body.as_ref().map_or(0, |part| part.length);
        turn.sent(self.body.length, unsent, turns::WARM);
        if body.is_none() && (!is_corked || sockopt::set_tcp_cork(socket, false).is_ok()) {
            return None;
        }
        let begun = Begun {
            turn,
            status: self.status,
            request: self.request.take(),
            came,
            sent: sent as u64 + self.body.length - unsent,
        };
        let bytes = self.head.split_off(sent);
        Some(Rest { bytes, body, is_corked, begun: Some(Box::new(begun)) })
    }
}
