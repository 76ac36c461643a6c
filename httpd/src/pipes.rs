//! Pipes that a shard's connections lend each other: bytes go from socket to socket without a copy through
//! this process (splice(2)).

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// Bytes of a pipe, where the system's limits allow it.
pub(crate) const PIPE_BYTES: usize = 256 * 1024;
/// Pipes kept.
const KEPT: usize = 64;

/// An empty pipe, or one in use.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) read: OwnedFd,
    pub(crate) write: OwnedFd,
}

thread_local! {
    static FREE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

impl Pipe {
    /// An empty pipe.
    pub(crate) fn take() -> io::Result<Self> {
        if let Some(pipe) = FREE.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // With less it works as well, in smaller pieces.
        let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
        Ok(Self { read, write })
    }

    /// Gives a pipe back in which nothing is left. (One that is dropped is closed, with what is in it.)
    pub(crate) fn give(self) {
        FREE.with_borrow_mut(|free| {
            if free.len() < KEPT {
                free.push(self);
            }
        });
    }
}
