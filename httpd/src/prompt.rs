//! Requests that are answered in the look that finds them ([`crate::reactor`]): a connection that waits for its next
//! request leaves its desk with the reactor. What comes is read and, if it is one request whose whole answer is in
//! memory, answered, without waking the task that waits. All that a look has found is read first, then all is sent:
//! the less the two cores of a client and a shard on one machine take from one another in turn, the less both spend.
//!
//! Everything else is left to the task: input that the desk has no answer for, and output that found no room.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::buffers::{self, READ_BYTES};
use crate::http::request::Request;
use crate::reactor::State;
use crate::whole::WholeAnswer;

/// What a shard can answer at once.
pub(crate) trait Desk {
    /// The answer to what came, if that is one request, to its last byte, whose answer is in memory.
    fn answer(&self, input: &[u8], now: Instant) -> Option<Prompt>;
    /// It was sent, or is left to the connection's task; `came` is what `now` was.
    fn answered(&self, client: IpAddr, prompt: &Prompt, came: Instant);
}

/// A request and its answer.
pub(crate) struct Prompt {
    pub(crate) request: Request,
    pub(crate) answer: Rc<WholeAnswer>,
}

/// A connection that waits for its next request.
pub(crate) struct Attended {
    pub(crate) desk: Rc<dyn Desk>,
    pub(crate) client: IpAddr,
    /// Ticks that it may wait.
    pub(crate) ticks: u64,
}

/// What the reactor leaves to the task of a connection.
#[derive(Debug)]
pub(crate) enum Left {
    /// Input that was read.
    Input(Vec<u8>),
    /// Output for which there was no room.
    Output(Vec<u8>),
}

/// What a look has found answers for; at most as many as it takes events at a time.
#[derive(Default)]
pub(crate) struct Outbox {
    prompts: RefCell<Vec<(Rc<State>, Prompt)>>,
    /// Where input is read to.
    pad: RefCell<Vec<u8>>,
}

impl Outbox {
    /// Reads what came to an attended connection, and finds its answer. Whether the connection's task need not wake.
    /// `tick` is the present one.
    pub(crate) fn read(&self, state: &Rc<State>, now: Instant, tick: u64) -> bool {
        let waiting = state.attended.borrow();
        let Some(Attended { desk, ticks, .. }) = &*waiting else { return false };
        let pad = &mut *self.pad.borrow_mut();
        pad.resize(READ_BYTES, 0);
        let read = match rustix::net::recv(state.fd(), &mut pad[..], RecvFlags::empty()) {
            Err(Errno::AGAIN) => {
                state.input.drained();
                return true;
            }
            // The end, or a failure, that the task will find as well.
            Ok((0, _)) | Err(_) => return false,
            Ok((read, _)) => read,
        };
        // With less than there was room for there is nothing more (epoll(7)).
        let all = read < pad.len();
        if all {
            state.input.drained();
        }
        if all && let Some(prompt) = desk.answer(&pad[..read], now) {
            state.input.waits_until(tick + ticks);
            self.prompts.borrow_mut().push((Rc::clone(state), prompt));
            return true;
        }
        drop(waiting);
        let mut input = buffers::take();
        input.extend_from_slice(&pad[..read]);
        state.leave(Left::Input(input), now);
        true
    }

    /// Sends the answers.
    pub(crate) fn send(&self, now: Instant) {
        for (state, prompt) in self.prompts.borrow_mut().drain(..) {
            let bytes = prompt.answer.bytes();
            // A failure shows again when the task sends the rest.
            let sent = rustix::net::send(state.fd(), &bytes, SendFlags::NOSIGNAL).unwrap_or(0);
            // Nobody else has run since it was read.
            if let Some(Attended { desk, client, .. }) = &*state.attended.borrow() {
                desk.answered(*client, &prompt, now);
            }
            if sent < bytes.len() {
                state.leave(Left::Output(bytes[sent..].to_vec()), now);
            }
        }
    }
}
