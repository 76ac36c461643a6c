//! A shard's buffers for reads past the page cache: bounded, handed out in order.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use reel_engine::disk::ReadBuffer;

/// The buffers.
#[derive(Debug)]
pub(super) struct Pool {
    free: RefCell<Vec<ReadBuffer>>,
    made: Cell<usize>,
    limit: usize,
    bytes: usize,
    waiting: RefCell<VecDeque<Rc<Waiter>>>,
}

#[derive(Debug, Default)]
struct Waiter {
    given: RefCell<Option<ReadBuffer>>,
    waker: RefCell<Option<Waker>>,
}

/// A buffer that goes back to its pool.
#[derive(Debug)]
pub(super) struct Lent {
    buffer: Option<ReadBuffer>,
    pool: Rc<Pool>,
}

impl Lent {
    /// Takes the buffer out for a read; [`Lent::put_back`] must follow.
    pub(super) fn take_out(&mut self) -> ReadBuffer {
        self.buffer.take().unwrap_or_else(|| ReadBuffer::with_capacity(self.pool.bytes))
    }

    pub(super) fn put_back(&mut self, buffer: Option<ReadBuffer>) {
        self.buffer = buffer;
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], AsRef::as_ref)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        match self.buffer.take() {
            Some(buffer) => self.pool.give(buffer),
            // Lost with a call that failed: another may be made.
            None => self.pool.give(ReadBuffer::with_capacity(self.pool.bytes)),
        }
    }
}

impl Pool {
    /// At most `limit` buffers of so many bytes; none is made before it is needed.
    pub(super) fn new(limit: usize, bytes: usize) -> Self {
        Self {
            free: RefCell::default(),
            made: Cell::new(0),
            limit,
            bytes,
            waiting: RefCell::default(),
        }
    }

    fn lend(self: &Rc<Self>, buffer: ReadBuffer) -> Lent {
        Lent { buffer: Some(buffer), pool: Rc::clone(self) }
    }

    /// A buffer, if there is one and nobody waits.
    pub(super) fn try_take(self: &Rc<Self>) -> Option<Lent> {
        if !self.waiting.borrow().is_empty() {
            return None;
        }
        if let Some(buffer) = self.free.borrow_mut().pop() {
            return Some(self.lend(buffer));
        }
        if self.made.get() < self.limit {
            self.made.set(self.made.get() + 1);
            return Some(self.lend(ReadBuffer::with_capacity(self.bytes)));
        }
        None
    }

    /// A buffer; waits in line for it.
    pub(super) async fn take(self: &Rc<Self>) -> Lent {
        if let Some(lent) = self.try_take() {
            return lent;
        }
        let waiter = Rc::new(Waiter::default());
        self.waiting.borrow_mut().push_back(Rc::clone(&waiter));
        let line = InLine { waiter, pool: Rc::clone(self) };
        poll_fn(|context| match line.waiter.given.borrow_mut().take() {
            Some(buffer) => Poll::Ready(self.lend(buffer)),
            None => {
                line.waiter.waker.replace(Some(context.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }

    /// Whether somebody waits for a buffer.
    pub(super) fn is_short(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    fn give(&self, buffer: ReadBuffer) {
        let next = self.waiting.borrow_mut().pop_front();
        let Some(waiter) = next else {
            self.free.borrow_mut().push(buffer);
            return;
        };
        waiter.given.replace(Some(buffer));
        let waker = waiter.waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A place in line that is given up when the wait is.
struct InLine {
    waiter: Rc<Waiter>,
    pool: Rc<Pool>,
}

impl Drop for InLine {
    fn drop(&mut self) {
        self.pool.waiting.borrow_mut().retain(|waiter| !Rc::ptr_eq(waiter, &self.waiter));
        let given = self.waiter.given.borrow_mut().take();
        if let Some(buffer) = given {
            self.pool.give(buffer);
        }
    }
}
