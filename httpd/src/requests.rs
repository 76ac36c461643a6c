//! The requests of a connection, one after another.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use reel_control::config::LimitsConfig;

use crate::conn::{Conn, ConnError};
use crate::http::body::Decoder;
use crate::http::request::{self, Framing, Request};
use crate::http::response::{Head, error_body};
use crate::piece::{Begun, Piece};
use crate::prompt::{Desk, Prompt};
use crate::shard::{Activity, Counted, Service, Stop};
use crate::tally::BROKEN_OFF;
use crate::turns::{self, Turn};
use crate::whole::{Rest, Whole};

/// Unread body bytes that are read and dropped to keep a connection; with more it is closed.
const DRAIN_BYTES: u64 = 256 * 1024;

/// What a service has at hand, for connections that wait.
pub(crate) struct WholeAnswers<S> {
    pub(crate) service: Rc<S>,
    pub(crate) head_bytes: usize,
    pub(crate) stop: Stop,
}

impl<S: Service> Desk for WholeAnswers<S> {
    fn answer(&self, input: &[u8], now: Instant) -> Option<Prompt> {
        let request = self.request(input)?;
        let whole = whole_answer(&*self.service, &self.stop, &request, now)?;
        let request = self.service.writes_down().then(|| Box::new(request));
        Some(Prompt { whole, request })
    }

    fn answered(&self, client: IpAddr, prompt: &Prompt, came: Instant, now: Instant) {
        turns::note_others(now);
        let took = now.saturating_duration_since(came);
        let bytes = prompt.whole.len();
        self.service.count_at_hand(client, prompt.request.as_deref(), 200, bytes, took);
    }

    fn piece(&self, input: &[u8], now: Instant) -> Option<Piece> {
        let request = self.request(input)?;
        if !may_be_at_hand(&request, &self.stop) {
            return None;
        }
        let mut piece = self.service.piece(&request, now)?;
        piece.request = self.service.writes_down().then(|| Box::new(request));
        Some(piece)
    }

    fn piece_answered(&self, client: IpAddr, piece: &Piece, came: Instant, now: Instant) {
        let Piece { status, request, .. } = piece;
        let took = now.saturating_duration_since(came);
        self.service.count_at_hand(client, request.as_deref(), *status, piece.len(), took);
    }
}

impl<S: Service> WholeAnswers<S> {
    /// The request that came. What is refused, comes in pieces or together with more is its task's.
    fn request(&self, input: &[u8]) -> Option<Request> {
        let Ok(Some((request, used))) = request::parse(input) else { return None };
        (used == input.len() && used <= self.head_bytes).then_some(request)
    }
}

/// The whole answer to a request that is nothing but its head, unless the shard stops.
fn whole_answer<S: Service>(
    service: &S,
    stop: &Stop,
    request: &Request,
    now: Instant,
) -> Option<Whole> {
    if may_be_at_hand(request, stop) { service.whole_answer(request, now) } else { None }
}

/// Whether a request is nothing but its head, and the shard does not stop.
fn may_be_at_hand(request: &Request, stop: &Stop) -> bool {
    request.framing == Framing::None && !stop.is_stopping()
}

/// What a connection probably asks for next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    Unknown,
    /// It asked for a whole answer. (Whoever did not would be read in vain at the desk.)
    Whole,
    /// It asked for a large part of a file that is in the page cache.
    Bulk,
    /// It did so twice in a row, the last time for so many bytes. (A player of a live stream asks for a playlist in between, which
    /// is not to wait.)
    OnlyBulk(u64),
}

impl Habit {
    /// After an answer with so many bytes of files and others.
    fn after(self, filed: u64, others: u64) -> Self {
        if filed <= turns::SMALL_BYTES || others > turns::SMALL_BYTES {
            return Self::Unknown;
        }
        match self {
            Self::Unknown | Self::Whole => Self::Bulk,
            Self::Bulk | Self::OnlyBulk(_) => Self::OnlyBulk(filed.min(turns::PORTION)),
        }
    }
}

/// Reads and answers requests until the connection ends.
pub(crate) async fn serve<S: Service>(
    socket: OwnedFd,
    client: IpAddr,
    service: &S,
    desk: Option<&Rc<dyn Desk>>,
    limits: &LimitsConfig,
    stop: &Stop,
    activity: &Activity,
) -> Result<(), ConnError> {
    let mut conn = Conn::new(socket, limits.stall_timeout.0)?.of(client, limits.min_rate.0);
    let mut fresh = Some(Counted::new(&activity.fresh));
    let mut habit = Habit::Unknown;
    loop {
        let mut request = match read_head(&mut conn, limits, desk, habit, fresh.is_some()).await {
            Ok(Some(request)) => request,
            Ok(None) => {
                let Some(rest) = conn.left() else { return Ok(()) };
                let _in_progress = Counted::new(&activity.requests);
                // Rare, and on the heap: a connection that waits carries no room for it.
                Box::pin(end_answer(&mut conn, service, *rest)).await?;
                continue;
            }
            Err(refused) => {
                let body = error_body(refused.error, refused.message);
                let mut head = Head::new(refused.status, &service.date());
                head.field("Content-Type", "application/json")
                    .field("Content-Length", body.len())
                    .field("Connection", "close");
                conn.queue(&head.end()).await?;
                conn.send(body.as_bytes()).await?;
                drop(fresh);
                return linger(&mut conn).await;
            }
        };
        let in_progress = Counted::new(&activity.requests);
        fresh = None;
        conn.begin();
        service.prepare(&mut request);
        // Said in the answer: what comes after it belongs to another process.
        request.keep_alive &= !stop.is_stopping();
        let whole = whole_answer(service, stop, &request, conn.came());
        if let Some(whole) = whole {
            habit = Habit::Whole;
            if let Some(part) = &whole.body {
                conn.out().extend_from_slice(&whole.answer.bytes());
                Box::pin(conn.send_part(part, &mut Turn::default())).await?;
            } else {
                conn.send_at_once(&whole.answer.bytes());
            }
            turns::note_others(conn.came());
            let took = conn.came().elapsed();
            service.count_at_hand(client, Some(&request), 200, whole.len(), took);
            conn.end_turn();
            conn.flush_if_full().await?;
            continue;
        }
        conn.body = Decoder::new(request.framing);
        let before = (conn.sent, conn.filed);
        // On the heap: a connection that waits for a request carries no room for its answer.
        let answered = Box::pin(service.serve(&mut conn, &request)).await?;
        conn.end_turn();
        let (sent, filed) = (conn.sent - before.0, conn.filed - before.1);
        if sent <= turns::SMALL_BYTES {
            turns::note_others(Instant::now());
        }
        habit = habit.after(filed, sent - filed);
        let keep = request.keep_alive && !answered.close && drain(&mut conn).await?;
        if !keep || stop.is_stopping() {
            conn.flush().await?;
            drop(in_progress);
            return if conn.body.is_done() { Ok(()) } else { linger(&mut conn).await };
        }
    }
}

/// Sends what is left of an answer that was begun while its connection waited.
async fn end_answer<S: Service>(
    conn: &mut Conn,
    service: &S,
    mut rest: Rest,
) -> Result<(), ConnError> {
    // What is whole was counted when it was begun.
    let Some(mut begun) = rest.begun.take() else {
        return conn.send_rest(rest, &mut Turn::default()).await;
    };
    let before = conn.sent;
    let ended = conn.send_rest(rest, &mut begun.turn).await;
    let Begun { status, request, came, sent, .. } = *begun;
    let status = if ended.is_ok() { status } else { BROKEN_OFF };
    let bytes = sent + conn.sent - before;
    service.count_at_hand(conn.client(), request.as_deref(), status, bytes, came.elapsed());
    ended
}

/// Reads a request head: `None` when the client closes, or stays idle for too long, before one, or an answer was begun
/// meanwhile of which something is [left](Conn::left).
async fn read_head(
    conn: &mut Conn,
    limits: &LimitsConfig,
    desk: Option<&Rc<dyn Desk>>,
    habit: Habit,
    first: bool,
) -> Result<Option<Request>, request::Refused> {
    const SLOW: request::Refused = request::Refused {
        status: 408,
        error: "timeout",
        message: "the request head did not arrive in time",
    };
    // RFC 9112 §2.2: empty lines before a request are skipped.
    while conn.input().starts_with(b"\r\n") {
        conn.consume(2);
    }
    let mut deadline = None;
    loop {
        if !conn.input().is_empty() {
            if let Some((request, used)) = request::parse(conn.input())? {
                if used > limits.head_bytes {
                    return Err(request::TOO_BIG);
                }
                conn.consume(used);
                return Ok(Some(request));
            }
            if conn.input().len() > limits.head_bytes {
                return Err(request::TOO_BIG);
            }
        }
        let wait = if conn.input().is_empty() {
            if first { limits.head_timeout.0 } else { limits.idle_timeout.0 }
        } else {
            let end = *deadline.get_or_insert_with(|| Instant::now() + limits.head_timeout.0);
            end.saturating_duration_since(Instant::now())
        };
        let idle = conn.input().is_empty();
        let filled = match (desk, habit) {
            (Some(desk), Habit::Whole) if idle => conn.fill_attended(wait, desk).await,
            (_, Habit::OnlyBulk(bytes)) if idle => conn.fill_in_turn(wait, bytes, desk).await,
            _ => conn.fill(wait).await,
        };
        match filled {
            Ok(()) if conn.has_left() => return Ok(None),
            Ok(()) => {}
            Err(ConnError::Stalled) if !idle => return Err(SLOW),
            Err(_) => return Ok(None),
        }
    }
}

/// Reads the rest of a body that nobody wanted, if it is short: whether the connection can go on.
async fn drain(conn: &mut Conn) -> Result<bool, ConnError> {
    let mut dropped = 0u64;
    let mut piece = Vec::new();
    while !conn.body.is_done() {
        if dropped > DRAIN_BYTES || conn.body.remaining().is_some_and(|left| left > DRAIN_BYTES) {
            return Ok(false);
        }
        piece.clear();
        conn.read_body(&mut piece, 16 * 1024).await?;
        dropped += piece.len() as u64;
    }
    Ok(true)
}

/// Reads on for a moment before closing, so that an answer sent before the body was read is not
/// lost to a reset (RFC 9112 §9.6).
async fn linger(conn: &mut Conn) -> Result<(), ConnError> {
    const LINGER: Duration = Duration::from_secs(2);
    const LINGER_BYTES: usize = 8 << 20;
    conn.flush().await?;
    let deadline = Instant::now() + LINGER;
    let mut dropped = 0;
    while dropped < LINGER_BYTES {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || conn.fill(left.min(Duration::from_millis(300))).await.is_err() {
            break;
        }
        dropped += conn.input().len();
        conn.consume(conn.input().len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;
    use crate::shard::Answered;
    use crate::whole::FilePart;
    use crate::whole::tests::{payload, stored};

    const HEAD: &[u8] = b"HTTP/1.1 206 Partial Content\r\n\r\n";

    /// Has one piece, and writes down what it counts.
    struct OnePiece {
        body: FilePart,
        counted: RefCell<Vec<(u16, u64)>>,
    }

    impl Service for OnePiece {
        async fn serve(&self, conn: &mut Conn, _: &Request) -> Result<Answered, ConnError> {
            conn.queue(HEAD).await?;
            conn.send_part(&self.body, &mut Turn::default()).await?;
            Ok(Answered { status: 206, close: false })
        }

        fn piece(&self, _: &Request, _: Instant) -> Option<Piece> {
            let (head, body) = (HEAD.to_vec(), self.body.clone());
            Some(Piece { status: 206, head, body, request: None })
        }

        fn count_at_hand(
            &self,
            _: IpAddr,
            _: Option<&Request>,
            status: u16,
            bytes: u64,
            _: Duration,
        ) {
            self.counted.borrow_mut().push((status, bytes));
        }

        fn date(&self) -> Rc<str> {
            "now".into()
        }

        fn flush_metrics(&self) {}
    }

    /// Reads at most so many bytes, as they come.
    async fn read(client: &mut TcpStream, bytes: usize) -> Vec<u8> {
        let (mut got, mut room) = (Vec::new(), vec![0; bytes]);
        while got.len() < bytes {
            monoio::time::sleep(Duration::from_millis(1)).await;
            match client.read(&mut room[..bytes - got.len()]) {
                Ok(0) => break,
                Ok(read) => got.extend_from_slice(&room[..read]),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
        got
    }

    #[test]
    fn what_a_client_is_slow_to_take_is_in_progress_and_counted_when_it_is_over() {
        let dir = tempfile::tempdir().expect("a folder");
        let payload = payload(2_000_000);
        crate::reactor::on_a_shard(async {
            let (_store, body) = stored(dir.path(), payload.clone()).await;
            let service = Rc::new(OnePiece { body, counted: RefCell::default() });
            let (stop, limits) = (Stop::default(), LimitsConfig::default());
            let head_bytes = limits.head_bytes;
            let desk: Rc<dyn Desk> = Rc::new(WholeAnswers {
                service: Rc::clone(&service),
                head_bytes,
                stop: stop.clone(),
            });
            let seat = crate::balance::seats(1).remove(0).0;
            let activity = Rc::new(Activity::new(seat));
            let (mut client, server) = crate::reactor::connected();
            rustix::net::sockopt::set_socket_send_buffer_size(&server, 1 << 16).expect("set");
            rustix::net::sockopt::set_socket_recv_buffer_size(&client, 1 << 16).expect("set");
            client.set_nonblocking(true).expect("set");
            let served = monoio::spawn({
                let (service, activity) = (Rc::clone(&service), Rc::clone(&activity));
                async move {
                    let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
                    let desk = Some(&desk);
                    serve(server.into(), client, &*service, desk, &limits, &stop, &activity).await
                }
            });
            let whole = HEAD.len() + payload.len();
            let in_progress = || activity.requests.get();
            for at_hand in [0, 0, 1, 2] {
                client.write_all(b"GET /film HTTP/1.1\r\nHost: h\r\n\r\n").expect("sent");
                let mut got = read(&mut client, 1000).await;
                assert_eq!(in_progress(), 1);
                got.extend(read(&mut client, whole - 1000).await);
                assert!(got[HEAD.len()..] == payload);
                while in_progress() > 0 {
                    monoio::time::sleep(Duration::from_millis(1)).await;
                }
                assert_eq!(*service.counted.borrow(), vec![(206, whole as u64); at_hand]);
            }
            service.counted.borrow_mut().clear();
            client.write_all(b"GET /film HTTP/1.1\r\nHost: h\r\n\r\n").expect("sent");
            read(&mut client, 1000).await;
            drop(client);
            assert!(served.await.is_err());
            let counted = service.counted.borrow();
            let [(BROKEN_OFF, sent)] = counted[..] else { panic!("{counted:?}") };
            assert!((1000..whole as u64).contains(&sent) && in_progress() == 0);
        });
    }

    #[test]
    fn only_who_asks_for_nothing_but_bulk_waits_for_its_turn() {
        const BULK: u64 = 500_000;
        let after = |answers: &[(u64, u64)]| {
            answers
                .iter()
                .fold(Habit::Unknown, |habit, (filed, others)| habit.after(*filed, *others))
        };
        assert_eq!(after(&[(BULK, 300)]), Habit::Bulk, "one is not a habit");
        assert_eq!(after(&[(BULK, 300), (BULK + 1, 300)]), Habit::OnlyBulk(BULK + 1));
        assert_eq!(after(&[(BULK, 300), (0, 900)]), Habit::Unknown, "a playlist in between");
        assert_eq!(after(&[(BULK, 300), (BULK, 300), (0, 900), (BULK, 300)]), Habit::Bulk);
        assert_eq!(after(&[(BULK, 300), (BULK, BULK)]), Habit::Unknown, "what is cold waits later");
        let huge = 3 * turns::PORTION;
        assert_eq!(after(&[(huge, 300), (huge, 300)]), Habit::OnlyBulk(turns::PORTION));
        assert_eq!(Habit::Whole.after(BULK, 300), Habit::Bulk);
    }
}
