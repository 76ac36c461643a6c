//! A whole answer at hand: head and body in one piece in memory, sent from where it lies, or the head alone and where in
//! the page cache its body is. Only the date in it changes.

use std::cell::{Cell, Ref, RefCell};
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use reel_engine::Segment;
use rustix::net::SendFlags;

use crate::answer::Answers;
use crate::piece::Begun;

/// What stands before the date in a head.
const DATE_FIELD: &str = "\r\nDate: ";

/// What a request is answered with.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) answer: Rc<WholeAnswer>,
    /// The body, if it does not follow the head in memory.
    pub(crate) body: Option<FilePart>,
}

impl Whole {
    /// Bytes of head and body.
    pub(crate) fn len(&self) -> u64 {
        let behind = self.body.as_ref().map_or(0, |part| part.length);
        self.answer.bytes().len() as u64 + behind
    }

    /// Sends what there is room for; what is left.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>) -> Option<Rest> {
        let bytes = self.answer.bytes();
        let more = if self.body.is_some() { SendFlags::MORE } else { SendFlags::empty() };
        // A failure shows again when the rest is sent.
        let sent = rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL | more).unwrap_or(0);
        let body = match &self.body {
            Some(part) if sent == bytes.len() => part.send(socket),
            part => part.clone(),
        };
        (sent < bytes.len() || body.is_some()).then(|| Rest {
            bytes: bytes[sent..].to_vec(),
            body,
            is_corked: false,
            begun: None,
        })
    }
}

/// What is left of an answer.
#[derive(Debug)]
pub(crate) struct Rest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) body: Option<FilePart>,
    /// Whether the last segment waits to be let out.
    pub(crate) is_corked: bool,
    /// What is counted when it is sent.
    pub(crate) begun: Option<Box<Begun>>,
}

/// A part of a segment's file, which is not empty and can be sent by sendfile.
#[derive(Debug, Clone)]
pub(crate) struct FilePart {
    segment: Arc<Segment>,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl FilePart {
    /// `None` when the segment's file cannot be sent by sendfile.
    pub(crate) fn new(segment: Arc<Segment>, offset: u64, length: u64) -> Option<Self> {
        segment.file().std()?;
        Some(Self { segment, offset, length })
    }

    pub(crate) fn file(&self) -> Option<&File> {
        self.segment.file().std()
    }

    /// Sends what there is room for, once; what is left.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>) -> Option<Self> {
        let mut at = self.offset;
        // A failure shows again when the rest is sent.
        let sent = self.file().map_or(0, |file| {
            rustix::fs::sendfile(socket, file, Some(&mut at), self.length as usize).unwrap_or(0)
        }) as u64;
        (sent < self.length).then(|| Self {
            segment: Arc::clone(&self.segment),
            offset: self.offset + sent,
            length: self.length - sent,
        })
    }
}

/// A complete 200: head, and body unless that is sent from elsewhere ([`Whole::body`]).
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

    /// The same head with another status line.
    pub(crate) fn fields(&self) -> Ref<'_, [u8]> {
        let from = self.date_at - DATE_FIELD.len();
        Ref::map(self.bytes.borrow(), |bytes| &bytes[from..])
    }

    /// Head, and body if it is in memory; not to be held over a wait.
    pub(crate) fn bytes(&self) -> Ref<'_, [u8]> {
        Ref::map(self.bytes.borrow(), |bytes| &**bytes)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{self, Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use reel_control::config::CorsConfig;
    use reel_engine::format::record::RecordKind;
    use reel_engine::{Draft, SegmentNumber, Store, StoreOptions, Writer};

    use super::*;

    /// So many bytes, of which no part is like another.
    pub(crate) fn payload(bytes: u64) -> Vec<u8> {
        (0..bytes).map(|at| ((at * at) >> 7) as u8).collect()
    }

    /// A record on disk, and the store that keeps it.
    pub(crate) async fn stored(dir: &std::path::Path, payload: Vec<u8>) -> (Arc<Store>, FilePart) {
        let numbers = Arc::new(|| SegmentNumber::new(1));
        let options = StoreOptions::new([dir.to_owned()], numbers);
        let (store, _) = Store::open(options).expect("opens");
        let writer = Writer::new(Arc::clone(&store));
        monoio::spawn(writer.clone().run());
        let length = payload.len() as u64;
        let draft = Draft {
            kind: RecordKind::Object,
            user: "u".to_owned(),
            name: "n".to_owned(),
            content_type: String::new(),
            version: store.clock().next(),
            modified_ms: 1,
            target: None,
            payload_crc: crc32fast::hash(&payload),
            payload: payload.into(),
        };
        let stored = writer.put(draft).await.expect("put");
        let segment = Arc::clone(&stored.segment);
        let located = segment.locate(stored.object.slot()).expect("located");
        assert_eq!(located.length, length);
        let part = FilePart::new(segment, located.offset, length).expect("a file");
        (store, part)
    }

    /// What has arrived.
    fn drain(mut stream: &UnixStream, got: &mut Vec<u8>) {
        let end = stream.read_to_end(got).expect_err("the other end is open");
        assert_eq!(end.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_arrived_and_what_is_left_are_the_whole_answer() {
        let dir = tempfile::tempdir().expect("a folder");
        let payload = payload(1_000_000);
        crate::reactor::on_a_shard(async {
            let (_store, part) = stored(dir.path(), payload.clone()).await;
            let answers = Answers::new(CorsConfig::default(), None);
            let answer = WholeAnswer::new(&answers, b"ETag: x\r\n\r\n", b"").expect("an answer");
            let answer = Rc::new(answer);
            let head = answer.bytes().len();
            let all = [&answer.bytes(), &payload[..]].concat();
            let pair = || {
                let (one, other) = UnixStream::pair().expect("a pair");
                one.set_nonblocking(true).expect("set");
                other.set_nonblocking(true).expect("set");
                (one, other)
            };
            let fill = |mut stream: &UnixStream| {
                let mut filled = 0;
                while let Ok(wrote) = stream.write(&[0; 4096]) {
                    filled += wrote;
                }
                filled
            };
            let whole = |length| Whole {
                answer: Rc::clone(&answer),
                body: Some(FilePart { length, ..part.clone() }),
            };
            let with_rest = |got: &mut Vec<u8>, rest: Rest| {
                got.extend_from_slice(&rest.bytes);
                let part = rest.body.expect("the body's end");
                let at = got.len();
                got.resize(at + part.length as usize, 0);
                part.file().expect("a file").read_exact_at(&mut got[at..], part.offset)
            };

            let ((one, other), mut got) = (pair(), Vec::new());
            assert!(whole(10_000).send(one.as_fd()).is_none(), "all is sent");
            drain(&other, &mut got);
            assert!(got == all[..head + 10_000]);

            let ((one, other), mut got) = (pair(), Vec::new());
            let rest = whole(1_000_000).send(one.as_fd()).expect("larger than the socket's buffer");
            drain(&other, &mut got);
            assert!(got.len() > head, "a part of the body");
            assert!(rest.bytes.is_empty());
            with_rest(&mut got, rest).expect("read");
            assert!(got == all);

            let ((one, other), mut got) = (pair(), Vec::new());
            let filled = fill(&one);
            let rest = whole(1_000_000).send(one.as_fd()).expect("no room at all");
            drain(&other, &mut got);
            assert_eq!(got.len(), filled);
            got.clear();
            with_rest(&mut got, rest).expect("read");
            assert!(got == all);

            let ((one, other), mut got) = (pair(), Vec::new());
            drop(other);
            let rest = whole(1_000_000).send(one.as_fd()).expect("nobody reads");
            with_rest(&mut got, rest).expect("read");
            assert!(got == all);
        });
    }

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
