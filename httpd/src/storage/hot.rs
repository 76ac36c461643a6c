//! What is asked for again and again: the whole answers to plain GETs of small files in a shard's memory
//! ([`WholeAnswer`]). Such a GET is answered at once: two look-ups, one send from where the answer lies; no wait, no copy.
//! Of files that need no turn but are too large to be copied for each answer, the heads are kept and where the bodies lie;
//! they are answered at once as long as those are in the page cache.
//!
//! An answer is kept when its file is asked for a second time while the first is still remembered, so a scan
//! of many small files pushes nothing out. Bytes are checked when they come in, those that lie elsewhere each time;
//! an object never changes, and which object a name means is the name cache's to know.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Instant;

use foldhash::fast::RandomState;
use reel_engine::{Located, Segment};

use super::names::File;
use super::source::Source;
use super::{Node, StorageShard};
use crate::answer::Answers;
use crate::http::request::{Method, Request};
use crate::turns;
use crate::whole::{FilePart, Whole, WholeAnswer};

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

    /// Keeps the answer with a file's checked bytes if it was asked for before.
    pub(super) fn offer(&self, answers: &Answers, file: &File, body: &[u8]) {
        self.keep(answers, file, body, None);
    }

    /// The same; a body that is sent from where it lies is not in `body`.
    fn keep(&self, answers: &Answers, file: &File, body: &[u8], lies: Option<Lies>) {
        let object = file.row.object;
        let place = object.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 50;
        if std::mem::replace(&mut self.seen.borrow_mut()[place % SEEN], object) == object
            && let Some(answer) = WholeAnswer::new(answers, &file.whole, body)
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
        let plain = request.method == Method::Get
            && request.query.is_empty()
            && request.keep_alive
            && request.http11
            && request.fields.are_plain();
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
        let Hot { answer, lies } = self.hot.get(file.row.object)?;
        let body = match lies {
            Some(lies) => Some(self.at_hand(file.row.object, &lies, now)?),
            None => None,
        };
        answer.redate(&self.answers, now);
        Some(Whole { answer, body })
    }

    /// Keeps the answer with an object that was sent as a whole, if it is one that may go without a turn.
    pub(super) fn offer_lying(&self, file: &File, segment: &Arc<Segment>, located: &Located) {
        if located.length <= turns::SMALL_BYTES {
            let lies = Lies { segment: Arc::downgrade(segment), located: *located };
            self.hot.keep(&self.answers, file, &[], Some(lies));
        }
    }

    /// A body, if it may be sent at once.
    fn at_hand(&self, object: u64, lies: &Lies, now: Instant) -> Option<FilePart> {
        let segment = lies.segment.upgrade().filter(|segment| !segment.is_retired())?;
        self.node.store.check_answers(&segment).ok()?;
        let Lies { located, .. } = lies;
        let source = Source { shard: self, segment: &segment, located, small: None, object };
        if !source.is_at_hand(&(0..located.length), now) {
            return None;
        }
        segment.keep_open();
        FilePart::new(segment, located.offset, located.length)
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
            let answer = WholeAnswer::new(&answers, &file(object).whole, body).expect("an answer");
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
