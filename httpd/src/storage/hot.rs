//! What is asked for again and again: the whole answers to plain GETs of small files in a shard's memory
//! ([`WholeAnswer`]). Such a GET is answered at once: two look-ups, one send from where the answer lies; no wait, no copy.
//! Of files that need no turn but are too large to be copied for each answer, the heads are kept and where the bodies lie;
//! they are answered at once as long as those are in the page cache. Of larger ones so are pieces ([`crate::piece`]), in
//! their turn.
//!
//! An answer is kept when its file is asked for a second time while the first is still remembered, so a scan
//! of many small files pushes nothing out. Bytes are checked when they come in, those that lie elsewhere each time;
//! an object never changes, and which object a name means is the name cache's to know.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::Write;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Instant;

use foldhash::fast::RandomState;
use reel_engine::{Located, Segment};

use super::get::content_range;
use super::names::File;
use super::source::Source;
use super::{Node, StorageShard};
use crate::answer::Answers;
use crate::http::range::{self, Asked};
use crate::http::request::{Method, Request};
use crate::http::response::{Head, reason};
use crate::piece::{Piece, is_piece};
use crate::turns;
use crate::whole::{FilePart, Whole, WholeAnswer};

/// Bytes that the status line and the fields of a piece's head that differ have at most.
const PIECE_FIELDS: usize = 160;
/// Objects of which a shard remembers that they were asked for once.
const SEEN: usize = 1 << 14;

type Generation = RefCell<HashMap<u64, Hot, RandomState>>;

/// An answer.
#[derive(Debug, Clone)]
struct Hot {
    answer: Rc<WholeAnswer>,
    /// Where its body lies, if that does not follow the head.
    lies: Option<Rc<Lies>>,
}

/// A body in a segment, which may be closed or replaced meanwhile.
#[derive(Debug)]
struct Lies {
    segment: Weak<Segment>,
    located: Located,
}

impl Hot {
    /// Bytes of memory it takes.
    fn weight(&self) -> usize {
        size_of::<Self>() + size_of::<WholeAnswer>() + size_of::<Lies>() + self.answer.bytes().len()
    }
}

/// Answers in memory, by object, in two generations; bounded in bytes.
#[derive(Debug)]
pub(super) struct HotAnswers {
    young: Generation,
    old: Generation,
    young_bytes: Cell<usize>,
    half: usize,
    /// The object last asked for of each remainder.
    seen: RefCell<Vec<u64>>,
}

impl HotAnswers {
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

    fn get(&self, object: u64) -> Option<Hot> {
        if let Some(hot) = self.young.borrow().get(&object) {
            return Some(hot.clone());
        }
        let hot = self.old.borrow_mut().remove(&object)?;
        self.insert(object, hot.clone());
        Some(hot)
    }

    /// Whether the answer with an object that lies in `segment` is kept.
    fn has(&self, object: u64, segment: &Arc<Segment>) -> bool {
        let lies_there = |hot: &Hot| {
            hot.lies.as_ref().is_some_and(|lies| lies.segment.as_ptr() == Arc::as_ptr(segment))
        };
        self.get(object).is_some_and(|hot| lies_there(&hot))
    }

    /// Keeps the answer with a file's checked bytes if it was asked for before.
    pub(super) fn offer(&self, answers: &Answers, file: &File, body: &[u8]) {
        self.keep(answers, file.row.object, || file.whole(), body, None);
    }

    /// The same; a body that is sent from where it lies is not in `body`.
    fn keep(
        &self,
        answers: &Answers,
        object: u64,
        fields: impl FnOnce() -> Vec<u8>,
        body: &[u8],
        lies: Option<Lies>,
    ) {
        let place = object.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 50;
        if std::mem::replace(&mut self.seen.borrow_mut()[place % SEEN], object) == object
            && let Some(answer) = WholeAnswer::new(answers, &fields(), body)
        {
            self.insert(object, Hot { answer: Rc::new(answer), lies: lies.map(Rc::new) });
        }
    }

    fn insert(&self, object: u64, hot: Hot) {
        let bytes = hot.weight();
        if bytes > self.half {
            return;
        }
        let mut young = self.young.borrow_mut();
        if self.young_bytes.get() + bytes > self.half {
            *self.old.borrow_mut() = std::mem::take(&mut *young);
            self.young_bytes.set(0);
        }
        let before = young.insert(object, hot).map_or(0, |hot| hot.weight());
        self.young_bytes.set(self.young_bytes.get() + bytes - before);
    }
}

impl StorageShard {
    /// The answer to a plain GET of a small file that is at hand.
    pub(super) fn hot_answer(&self, request: &Request, now: Instant) -> Option<Whole> {
        if !request.fields.are_plain() {
            return None;
        }
        let (file, Hot { answer, lies }) = self.hot(request, now)?;
        let body = match lies {
            Some(lies) if lies.located.length > turns::SMALL_BYTES => return None,
            Some(lies) => {
                Some(self.at_hand(file.row.object, &lies, 0..lies.located.length, now)?)
            }
            None => None,
        };
        answer.redate(&self.answers, now);
        Some(Whole { answer, body })
    }

    /// The answer to a GET of a piece that is at hand.
    pub(super) fn hot_piece(&self, request: &Request, now: Instant) -> Option<Piece> {
        if !request.fields.are_unconditional() {
            return None;
        }
        let (file, Hot { answer, lies }) = self.hot(request, now)?;
        let lies = lies.filter(|lies| lies.located.length > turns::SMALL_BYTES)?;
        let limits = &self.node.config.limits;
        let field = request.fields.range.as_deref();
        let (status, range) = match range::parse(field, file.row.bytes, limits.ranges) {
            Asked::Whole => (200, 0..file.row.bytes),
            Asked::Parts(parts) => match <[Range<u64>; 1]>::try_from(parts) {
                Ok([part]) => (206, part),
                Err(_) => return None,
            },
            Asked::Unsatisfiable => return None,
        };
        if !is_piece(&range) {
            return None;
        }
        let body = self.at_hand(file.row.object, &lies, range.clone(), now)?;
        answer.redate(&self.answers, now);
        let mut head = Vec::with_capacity(answer.fields().len() + PIECE_FIELDS);
        // Writing to memory does not fail.
        let _ = write!(head, "HTTP/1.1 {status} {}", reason(status));
        head.extend_from_slice(&answer.fields());
        let _ = write!(head, "Content-Length: {}\r\n", range.end - range.start);
        if status == 206 {
            let _ = write!(head, "Content-Range: {}\r\n", content_range(&range, file.row.bytes));
        }
        head.extend_from_slice(b"\r\n");
        Some(Piece { status, head, body, request: None })
    }

    /// What is kept for a GET without a query that asks for nothing that an answer at hand does not have.
    fn hot(&self, request: &Request, now: Instant) -> Option<(Rc<File>, Hot)> {
        let plain = request.method == Method::Get
            && request.query.is_empty()
            && request.keep_alive
            && request.http11;
        if !plain {
            return None;
        }
        // A key of the name cache is decoded: a path with an escape is none.
        let key = request.path.strip_prefix('/').filter(|key| !key.as_bytes().contains(&b'%'))?;
        let Node { epochs, following, .. } = &*self.node;
        let file = self.names.fresh(epochs, key, following, now)?;
        if file.row.group != self.node.config.group {
            return None;
        }
        let hot = self.hot.get(file.row.object)?;
        Some((file, hot))
    }

    /// Keeps the answer with an object of which `range` was sent from the page cache, if that may go at once another time.
    pub(super) fn offer_lying(
        &self,
        file: &File,
        segment: &Arc<Segment>,
        located: &Located,
        range: &Range<u64>,
    ) {
        let is_whole = *range == (0..located.length);
        if (is_whole && located.length <= turns::SMALL_BYTES || is_piece(range))
            && !self.hot.has(file.row.object, segment)
        {
            let lies = Lies { segment: Arc::downgrade(segment), located: *located };
            let fields = || {
                if located.length <= turns::SMALL_BYTES {
                    return file.whole();
                }
                // Pieces are asked for, whose lengths differ.
                let mut head = Head::fields();
                head.prepared(file.fields()).field("Content-Type", &file.row.content_type);
                head.unfinished().into_bytes()
            };
            self.hot.keep(&self.answers, file.row.object, fields, &[], Some(lies));
        }
    }

    /// A part of a body, if it may be sent at once.
    fn at_hand(
        &self,
        object: u64,
        lies: &Lies,
        range: Range<u64>,
        now: Instant,
    ) -> Option<FilePart> {
        let segment = lies.segment.upgrade().filter(|segment| !segment.is_retired())?;
        self.node.store.check_answers(&segment).ok()?;
        let Lies { located, .. } = lies;
        let source = Source { shard: self, segment: &segment, located, small: None, object };
        if !source.is_at_hand(&range, now) {
            return None;
        }
        segment.keep_open();
        FilePart::new(segment, located.offset + range.start, range.end - range.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reel_control::catalog::{Row, Stamp};
    use reel_control::config::CorsConfig;

    fn file(object: u64) -> File {
        let mut row = Row::mark("u".into(), "n".into(), Stamp::default());
        row.object = object;
        File::new(row, &[])
    }

    fn answers() -> Answers {
        Answers::new(CorsConfig::default(), None)
    }

    #[test]
    fn an_answer_is_kept_when_it_is_asked_for_again_and_a_scan_pushes_nothing_out() {
        let (answers, hot) = (answers(), HotAnswers::new(64 << 10));
        hot.offer(&answers, &file(7), &[1; 4096]);
        assert!(hot.get(7).is_none(), "asked for once");
        hot.offer(&answers, &file(7), &[1; 4096]);
        assert!(hot.get(7).is_some_and(|hot| hot.answer.bytes().ends_with(&[1; 4096])));
        for object in 100..10_000 {
            hot.offer(&answers, &file(object), &[2; 4096]);
        }
        assert!(hot.get(7).is_some());
    }

    #[test]
    fn the_bytes_are_bounded_and_what_is_in_use_stays() {
        let (answers, hot) = (answers(), HotAnswers::new(64 << 10));
        let put = |object, body: &[u8]| {
            let answer =
                WholeAnswer::new(&answers, &file(object).whole(), body).expect("an answer");
            hot.insert(object, Hot { answer: Rc::new(answer), lies: None });
        };
        for object in 0..1000 {
            put(object, &[0; 1000]);
            let count = hot.young.borrow().len() + hot.old.borrow().len();
            assert!(count * 1000 <= 64 << 10, "{count}");
            assert!(hot.get(object / 16 * 16).is_some());
        }
        put(5_000, &[0; 64 << 10]);
        assert!(hot.get(5_000).is_none(), "larger than half of the bound");
    }
}
