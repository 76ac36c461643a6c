//! A whole answer in memory: head and body in one piece, sent from where it lies. Only the date in it changes.

use std::cell::{Cell, Ref, RefCell};
use std::time::Instant;

use crate::answer::Answers;

/// What stands before the date in a head.
const DATE_FIELD: &str = "\r\nDate: ";

/// A complete 200: head and bytes.
#[derive(Debug)]
pub(crate) struct WholeAnswer {
    bytes: RefCell<Box<[u8]>>,
    /// Where the date stands in it.
    date_at: usize,
    /// The second that the date stands for.
    second: Cell<u64>,
}

impl WholeAnswer {
    /// `fields` end the head. `None` when the head has no date where one belongs.
    pub(crate) fn new(answers: &Answers, fields: &[u8], body: &[u8]) -> Option<Self> {
        let (second, date) = answers.date_at(Instant::now());
        let begin = answers.begin_ok(&date);
        let date_at = begin.find(DATE_FIELD)? + DATE_FIELD.len();
        let bytes = [begin.as_bytes(), fields, body].concat().into();
        Some(Self { bytes: RefCell::new(bytes), date_at, second: Cell::new(second) })
    }

    /// Brings the date up to date.
    pub(crate) fn redate(&self, answers: &Answers, now: Instant) {
        let (second, date) = answers.date_at(now);
        if self.second.replace(second) != second {
            // A date has 29 bytes, always (RFC 9110 §5.6.7).
            self.bytes.borrow_mut()[self.date_at..][..date.len()].copy_from_slice(date.as_bytes());
        }
    }

    /// Head and body; not to be held over a wait.
    pub(crate) fn bytes(&self) -> Ref<'_, [u8]> {
        Ref::map(self.bytes.borrow(), |bytes| &**bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reel_control::config::CorsConfig;
    use std::time::Duration;

    #[test]
    fn the_date_is_written_anew() {
        let answers = Answers::new(CorsConfig::default(), None);
        let answer = WholeAnswer::new(&answers, b"ETag: x\r\n\r\n", b"body").expect("an answer");
        let before = answer.bytes().to_vec();
        answer.bytes.borrow_mut()[answer.date_at..][..29].fill(b'?');
        answer.second.set(0);
        let now = Instant::now() + Duration::from_secs(5);
        answer.redate(&answers, now);
        let after = answer.bytes();
        let date = answers.date_at(now).1;
        assert_eq!(&after[answer.date_at..][..29], date.as_bytes());
        assert_eq!(after[..answer.date_at], before[..answer.date_at]);
        assert_eq!(after[answer.date_at + 29..], before[answer.date_at + 29..]);
        assert!(after.ends_with(b"ETag: x\r\n\r\nbody"));
    }
}
