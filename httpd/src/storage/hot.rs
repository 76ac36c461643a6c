//! What is asked for again and again: small files whose bytes a shard keeps in memory, with the fields of
//! their head. Such a GET is answered at once: one look-up, one send, no wait, no allocation.
//!
//! A body is kept when it is asked for a second time while the first is still remembered, so a scan of
//! many small files pushes nothing out. Bytes are checked when they come in; an object never changes,
//! and which object a name means is the name cache's to know.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use super::StorageShard;
use crate::conn::Conn;
use crate::http::request::{Method, Request};
use crate::shard::Answered;

/// Objects of which a shard remembers that they were asked for once.
const SEEN: usize = 1 << 14;

/// Bodies in memory, in two generations; bounded in bytes.
#[derive(Debug)]
pub(super) struct Bodies {
    young: RefCell<HashMap<u64, Rc<[u8]>>>,
    old: RefCell<HashMap<u64, Rc<[u8]>>>,
    young_bytes: Cell<usize>,
    half: usize,
    /// The object last asked for of each remainder.
    seen: RefCell<Vec<u64>>,
}

impl Bodies {
    /// At most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            young: RefCell::default(),
            old: RefCell::default(),
            young_bytes: Cell::new(0),
            half: limit / 2,
            seen: RefCell::new(vec![0; SEEN]),
        }
    }

    /// The checked bytes of an object.
    pub(super) fn get(&self, object: u64) -> Option<Rc<[u8]>> {
        if let Some(body) = self.young.borrow().get(&object) {
            return Some(Rc::clone(body));
        }
        let body = self.old.borrow_mut().remove(&object)?;
        self.insert(object, Rc::clone(&body));
        Some(body)
    }

    /// Keeps the checked bytes of an object if it was asked for before.
    pub(super) fn offer(&self, object: u64, body: &[u8]) {
        let place = object.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 50;
        if std::mem::replace(&mut self.seen.borrow_mut()[place % SEEN], object) == object {
            self.insert(object, body.into());
        }
    }

    fn insert(&self, object: u64, body: Rc<[u8]>) {
        let bytes = body.len();
        if bytes > self.half {
            return;
        }
        let mut young = self.young.borrow_mut();
        if self.young_bytes.get() + bytes > self.half {
            *self.old.borrow_mut() = std::mem::take(&mut *young);
            self.young_bytes.set(0);
        }
        if young.insert(object, body).is_none() {
            self.young_bytes.set(self.young_bytes.get() + bytes);
        }
    }
}

impl StorageShard {
    /// Answers a plain GET of a small file that is in memory.
    pub(super) fn answer_hot(
        &self,
        conn: &mut Conn,
        request: &Request,
        now: Instant,
    ) -> Option<Answered> {
        let plain = request.method == Method::Get
            && request.query.is_empty()
            && request.keep_alive
            && request.http11
            && request.fields.are_plain();
        if !plain {
            return None;
        }
        // A key of the name cache is decoded: a path with an escape is none.
        let key = request.path.strip_prefix('/').filter(|key| !key.contains('%'))?;
        let file = self.names.fresh(&self.node.epochs, key, now)?;
        if file.row.group != self.node.config.group {
            return None;
        }
        let body = self.bodies.get(file.row.object)?;
        self.answers.begin(conn.out());
        conn.out().extend_from_slice(&file.whole);
        conn.out().extend_from_slice(&body);
        Some(Answered { status: 200, close: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_kept_when_it_is_asked_for_again_and_a_scan_pushes_nothing_out() {
        let bodies = Bodies::new(64 << 10);
        bodies.offer(7, &[1; 4096]);
        assert!(bodies.get(7).is_none(), "asked for once");
        bodies.offer(7, &[1; 4096]);
        assert_eq!(bodies.get(7).as_deref(), Some(&[1; 4096][..]));
        for object in 100..10_000 {
            bodies.offer(object, &[2; 4096]);
        }
        assert!(bodies.get(7).is_some());
    }

    #[test]
    fn the_bytes_are_bounded_and_what_is_in_use_stays() {
        let bodies = Bodies::new(64 << 10);
        for object in 0..1000 {
            bodies.insert(object, vec![0; 1000].into());
            let count = bodies.young.borrow().len() + bodies.old.borrow().len();
            assert!(count * 1000 <= 64 << 10, "{count}");
            assert!(bodies.get(object / 16 * 16).is_some());
        }
        bodies.insert(5_000, vec![0; 64 << 10].into());
        assert!(bodies.get(5_000).is_none(), "larger than half of the bound");
    }
}
