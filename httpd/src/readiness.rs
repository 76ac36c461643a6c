//! What is known of a socket: what it is ready for, who waits for that and until when, who answers meanwhile. The reactor
//! ([`crate::reactor`]) finds it out; times are its ticks.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Instant;

use crate::polled::{Place, Placed};
use crate::prompt::{Attended, Left};
use crate::turns::{self, Grant};

/// The time limit of a wait has passed.
#[derive(Debug)]
pub(crate) struct TimedOut;

/// One direction of a socket.
#[derive(Debug, Default)]
pub(crate) struct Side {
    pub(crate) ready: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// Tick at which the wait ends; 0 for none.
    deadline: Cell<u64>,
    expired: Cell<bool>,
    /// When it became ready, until somebody asks.
    pub(crate) woken: Cell<Option<Instant>>,
}

impl Side {
    pub(crate) fn raise(&self, now: Instant) {
        self.ready.set(true);
        self.woken.set(Some(now));
        self.wake();
    }

    /// Whether a further call may find something, or room.
    pub(crate) fn has_more(&self, more: bool) {
        self.ready.set(more);
    }

    /// Whoever waits does so until this tick.
    pub(crate) fn waits_until(&self, tick: u64) {
        self.deadline.set(tick);
    }

    fn wake(&self) {
        self.deadline.set(0);
        let waker = self.waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn expire(&self, now: u64) {
        let deadline = self.deadline.get();
        if deadline != 0 && deadline <= now {
            self.expired.set(true);
            self.wake();
        }
    }

    /// Waits until it is ready, or `or` says so; at most until the tick `deadline`.
    pub(crate) async fn wait(&self, deadline: u64, or: impl Fn() -> bool) -> Result<(), TimedOut> {
        self.expired.set(false);
        let waited = poll_fn(|context| {
            if self.ready.get() || or() {
                return Poll::Ready(Ok(()));
            }
            if self.expired.replace(false) {
                return Poll::Ready(Err(TimedOut));
            }
            self.deadline.set(deadline);
            self.waker.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
        self.deadline.set(0);
        waited
    }
}

/// Whether a connection's next request waits for a turn before it is read ([`turns::ask`]).
#[derive(Debug, Default, Clone, Copy)]
enum InTurn {
    /// It is read when it comes.
    #[default]
    No,
    /// It does; its answer is thought to have so many bytes.
    Expects(u64),
    /// It has come, and waits.
    Asks,
    /// It may be read.
    Has(Grant),
}

/// A socket's state, shared with the reactor.
pub(crate) struct State {
    fd: OwnedFd,
    pub(crate) key: usize,
    pub(crate) input: Side,
    pub(crate) output: Side,
    /// The other side will send nothing more.
    pub(crate) closed: Cell<bool>,
    /// The last window of [`Pace`] in which it had an event.
    pub(crate) window: Cell<u64>,
    /// Among those that are tried instead of being waited for. Who has one is attended; whoever else waits for it
    /// has it waited for first.
    pub(crate) place: Place,
    in_turn: Cell<InTurn>,
    /// Who answers while it waits for a request.
    pub(crate) attended: RefCell<Option<Attended>>,
    /// What its task has to deal with before it reads and writes.
    pub(crate) left: RefCell<Option<Left>>,
}

impl State {
    /// `key` is what its events say.
    pub(crate) fn new(fd: OwnedFd, key: usize) -> Self {
        Self {
            fd,
            key,
            // It is tried first; the first edge may come before.
            input: Side { ready: Cell::new(true), ..Side::default() },
            output: Side { ready: Cell::new(true), ..Side::default() },
            closed: Cell::default(),
            window: Cell::default(),
            place: Place::default(),
            in_turn: Cell::default(),
            attended: RefCell::default(),
            left: RefCell::default(),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Leaves something to the task, which wakes; from now on it is not attended any more.
    pub(crate) fn leave(&self, left: Left, now: Instant) {
        self.attended.take();
        self.left.replace(Some(left));
        self.input.woken.set(Some(now));
        self.input.wake();
    }

    /// From now on the next request is read in its turn; its answer is thought to have so many bytes.
    pub(crate) fn read_in_turn(&self, bytes: u64) {
        self.in_turn.set(InTurn::Expects(bytes));
    }

    /// From now on what comes is read at once; the turn that it had.
    pub(crate) fn read_at_once(&self) -> Option<Grant> {
        match self.in_turn.take() {
            InTurn::Has(grant) => Some(grant),
            _ => None,
        }
    }

    /// Something has come: whether it is to be read in its turn, which is asked for then.
    pub(crate) fn asks_for_turn(self: &Rc<Self>, now: Instant) -> bool {
        match self.in_turn.get() {
            InTurn::No | InTurn::Has(_) => false,
            InTurn::Asks => true,
            InTurn::Expects(bytes) => {
                // It cannot be idle for too long any more.
                self.input.waits_until(0);
                self.in_turn.set(InTurn::Asks);
                turns::ask(self, bytes, now);
                true
            }
        }
    }

    /// Its request may be read; false when it does not wait for that any more.
    pub(crate) fn give_turn(&self, grant: Grant) -> bool {
        let waits = matches!(self.in_turn.get(), InTurn::Asks);
        if waits {
            self.in_turn.set(InTurn::Has(grant));
        }
        waits
    }

    pub(crate) fn has_left(&self) -> bool {
        self.left.borrow().is_some()
    }

    /// What a wait for input would find: input, something left; and when it would end.
    #[cfg(test)]
    pub(crate) fn found(&self) -> (bool, bool, u64) {
        (self.input.ready.get(), self.has_left(), self.input.deadline.get())
    }
}

impl Placed for Rc<State> {
    fn place(&self) -> &Place {
        &self.place
    }
}
