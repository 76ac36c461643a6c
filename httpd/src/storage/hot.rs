//! What is asked for again and again: the whole answers to plain GETs of small files, head and bytes in one
//! piece of a shard's memory. Such a GET is answered at once: two look-ups, one send from where the answer
//! lies; no wait, no allocation, no copy. Only the date in it is written anew, once a second.
//!
//! An answer is kept when its file is asked for a second time while the first is still remembered, so a scan
//! of many small files pushes nothing out. Bytes are checked when they come in; an object never changes,
//! and which object a name means is the name cache's to know.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use foldhash::fast::RandomState;

use super::names::File;
use super::{Node, StorageShard};
use crate::answer::Answers;
use crate::conn::Conn;
use crate::http::request::{Method, Request};
use crate::shard::Answered;

/// Objects of which a shard remembers that they were asked for once.
const SEEN: usize = 1 << 14;
/// What stands before the date in a head.
const DATE_FIELD: &str = "\r\nDate: ";

/// A complete 200: head and bytes.
#[derive(Debug)]
struct HotAnswer {
    bytes: RefCell<Box<[u8]>>,
    /// Where the date stands in it.
    date_at: usize,
    /// The second that the date stands for.
    second: Cell<u64>,
}

impl HotAnswer {
    /// `None` when the head has no date where one belongs.
    fn new(answers: &Answers, file: &File, body: &[u8]) -> Option<Self> {
        let (second, date) = answers.date_at(Instant::now());
        let begin = answers.begin_ok(&date);
        let date_at = begin.find(DATE_FIELD)? + DATE_FIELD.len();
        let bytes = [begin.as_bytes(), &file.whole, body].concat().into();
        Some(Self { bytes: RefCell::new(bytes), date_at, second: Cell::new(second) })
    }

    /// Brings the date up to date.
    fn redate(&self, answers: &Answers, now: Instant) {
        let (second, date) = answers.date_at(now);
        if self.second.replace(second) != second {
            // A date has 29 bytes, always (RFC 9110 §5.6.7).
            self.bytes.borrow_mut()[self.date_at..][..date.len()].copy_from_slice(date.as_bytes());
        }
    }
}

type Generation = RefCell<HashMap<u64, Rc<HotAnswer>, RandomState>>;

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

    fn get(&self, object: u64) -> Option<Rc<HotAnswer>> {
        if let Some(answer) = self.young.borrow().get(&object) {
            return Some(Rc::clone(answer));
        }
        let answer = self.old.borrow_mut().remove(&object)?;
        self.insert(object, Rc::clone(&answer));
        Some(answer)
    }

    /// Keeps the answer with a file's checked bytes if it was asked for before.
    pub(super) fn offer(&self, answers: &Answers, file: &File, body: &[u8]) {
        let object = file.row.object;
        let place = object.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 50;
        if std::mem::replace(&mut self.seen.borrow_mut()[place % SEEN], object) == object
            && let Some(answer) = HotAnswer::new(answers, file, body)
        {
            self.insert(object, Rc::new(answer));
        }
    }

    fn insert(&self, object: u64, answer: Rc<HotAnswer>) {
        let bytes = answer.bytes.borrow().len();
        if bytes > self.half {
            return;
        }
        let mut young = self.young.borrow_mut();
        if self.young_bytes.get() + bytes > self.half {
            *self.old.borrow_mut() = std::mem::take(&mut *young);
            self.young_bytes.set(0);
        }
        if young.insert(object, answer).is_none() {
            self.young_bytes.set(self.young_bytes.get() + bytes);
        }
    }
}

impl StorageShard {
    /// Answers a plain GET of a small file that is in memory; how, and with how many bytes.
    pub(super) fn answer_hot(
        &self,
        conn: &mut Conn,
        request: &Request,
        now: Instant,
    ) -> Option<(Answered, u64)> {
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
        let answer = self.hot.get(file.row.object)?;
        answer.redate(&self.answers, now);
        let bytes = answer.bytes.borrow();
        conn.send_at_once(&bytes);
        Some((Answered { status: 200, close: false }, bytes.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reel_control::catalog::{Row, Stamp};
    use reel_control::config::CorsConfig;
    use std::time::Duration;

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
        assert!(hot.get(7).is_some_and(|answer| answer.bytes.borrow().ends_with(&[1; 4096])));
        for object in 100..10_000 {
            hot.offer(&answers, &file(object), &[2; 4096]);
        }
        assert!(hot.get(7).is_some());
    }

    #[test]
    fn the_bytes_are_bounded_and_what_is_in_use_stays() {
        let (answers, hot) = (answers(), HotAnswers::new(64 << 10));
        let put = |object, body: &[u8]| {
            let answer = HotAnswer::new(&answers, &file(object), body).expect("an answer");
            hot.insert(object, Rc::new(answer));
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

    #[test]
    fn the_date_is_written_anew() {
        let answers = answers();
        let answer = HotAnswer::new(&answers, &file(1), b"body").expect("an answer");
        let before = answer.bytes.borrow().to_vec();
        answer.bytes.borrow_mut()[answer.date_at..][..29].fill(b'?');
        answer.second.set(0);
        let now = Instant::now() + Duration::from_secs(5);
        answer.redate(&answers, now);
        let after = answer.bytes.borrow();
        let date = answers.date_at(now).1;
        assert_eq!(&after[answer.date_at..][..29], date.as_bytes());
        assert_eq!(after[..answer.date_at], before[..answer.date_at]);
        assert_eq!(after[answer.date_at + 29..], before[answer.date_at + 29..]);
    }
}
