//! Requests that are answered in the look that finds them ([`crate::reactor`]): a connection that waits for its next
//! request leaves its desk with the reactor. What comes is read and, if it is one request whose whole answer is at
//! hand, answered, without waking the task that waits. Where many clients ask, some requests are read before their
//! answers are sent ([`crate::coalesce::Pace::batch`]): the less the two cores of a client and a shard on one machine take
//! from one another in turn, the less both spend.
//!
//! A connection that is read in its turn ([`crate::turns`]) is answered then, if it asks for a piece ([`crate::piece`]).
//!
//! Everything else is left to the task: input that the desk has no answer for, and output that found no room.

use std::array;
use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::buffers;
use crate::http::request::Request;
use crate::piece::Piece;
use crate::readiness::State;
use crate::whole::{Rest, Whole};

/// Answers that are sent before the clock is read once for all of them.
const BY_ONE_CLOCK: usize = 8;

/// What a shard can answer at once.
pub(crate) trait Desk {
    /// The answer to what came, if that is one request, to its last byte, whose answer is at hand.
    fn answer(&self, input: &[u8], now: Instant) -> Option<Prompt>;
    /// It was sent by `now`, or is left to the connection's task; `came` is what `now` was at [`answer`](Self::answer).
    fn answered(&self, client: IpAddr, prompt: &Prompt, came: Instant, now: Instant);
    /// The answer to what came, if that is one request, to its last byte, for a piece that is at hand.
    fn piece(&self, input: &[u8], now: Instant) -> Option<Piece>;
    /// All of it was sent by `now`; `came` is when its request came.
    fn piece_answered(&self, client: IpAddr, piece: &Piece, came: Instant, now: Instant);
}

/// The answer to a request.
pub(crate) struct Prompt {
    pub(crate) whole: Whole,
    /// For whoever writes it down.
    pub(crate) request: Option<Box<Request>>,
}

/// A connection that waits for its next request.
pub(crate) struct Attended {
    pub(crate) desk: Rc<dyn Desk>,
    pub(crate) client: IpAddr,
    /// Ticks that it may wait.
    pub(crate) ticks: u64,
}

/// What reading an attended connection came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Came {
    /// A request whose answer is at hand.
    Prompt,
    /// Nothing yet.
    Nothing,
    /// Something that was left to its task, which wakes.
    Left,
    /// Its task has to look itself: it is not attended, or has ended.
    Unread,
}

/// What the reactor leaves to the task of a connection.
#[derive(Debug)]
pub(crate) enum Left {
    /// Input that was read.
    Input(Vec<u8>),
    /// Output for which there was no room.
    Output(Rest),
}

/// What there is to read.
enum Input {
    /// Bytes, and whether they are all that there is.
    Came(Vec<u8>, bool),
    Nothing,
    /// The end, or a failure after which the task finds the end.
    Ended,
}

/// Reads once.
fn read(state: &State) -> Input {
    let mut input = buffers::take();
    let came = rustix::net::recv(state.fd(), spare_capacity(&mut input), RecvFlags::empty());
    if let Ok((_, 1..)) = came {
        // With less than there was room for there is nothing more (epoll(7)).
        let all = input.len() < input.capacity();
        state.input.has_more(!all);
        return Input::Came(input, all);
    }
    buffers::give(input);
    if came == Err(Errno::AGAIN) {
        state.input.has_more(false);
        return Input::Nothing;
    }
    Input::Ended
}

/// Reads the request of an attended connection, which has its turn, and answers it if it is one for a piece that is at hand.
/// Everything else is left to its task, which has the turn then. `tick` is the present one.
pub(crate) fn answer_in_turn(state: &Rc<State>, came: Instant, tick: u64) {
    let waiting = state.attended.borrow();
    let Some(Attended { desk, client, ticks }) = &*waiting else {
        state.input.raise(came);
        return;
    };
    let left = match read(state) {
        Input::Came(input, all) => {
            let now = Instant::now();
            let piece = if all { desk.piece(&input, now) } else { None };
            if let Some(mut piece) = piece {
                buffers::give(input);
                let Some(rest) = piece.send(state.fd(), state.read_at_once(), came) else {
                    desk.piece_answered(*client, &piece, came, Instant::now());
                    state.read_in_turn(piece.body.length);
                    state.input.waits_until(tick + ticks);
                    return;
                };
                Left::Output(rest)
            } else {
                Left::Input(input)
            }
        }
        Input::Nothing => {
            if let Some(grant) = state.read_at_once() {
                state.read_in_turn(grant.give_back());
            }
            state.input.waits_until(tick + ticks);
            return;
        }
        Input::Ended => {
            state.input.raise(came);
            return;
        }
    };
    drop(waiting);
    state.leave(left, came);
}

/// What a look has found answers for and not sent yet; at most as many as it takes events at a time.
#[derive(Default)]
pub(crate) struct Outbox {
    prompts: RefCell<Vec<(Rc<State>, Prompt)>>,
}

impl Outbox {
    /// Reads what came to an attended connection, and finds its answer. `tick` is the present one.
    pub(crate) fn read(&self, state: &Rc<State>, now: Instant, tick: u64) -> Came {
        let waiting = state.attended.borrow();
        let Some(Attended { desk, ticks, .. }) = &*waiting else { return Came::Unread };
        let (input, all) = match read(state) {
            Input::Came(input, all) => (input, all),
            Input::Nothing => return Came::Nothing,
            Input::Ended => return Came::Unread,
        };
        let prompt = if all { desk.answer(&input, now) } else { None };
        if let Some(prompt) = prompt {
            state.input.waits_until(tick + ticks);
            self.prompts.borrow_mut().push((Rc::clone(state), prompt));
            buffers::give(input);
            Came::Prompt
        } else {
            drop(waiting);
            state.leave(Left::Input(input), now);
            Came::Left
        }
    }

    /// Answers to be sent.
    pub(crate) fn len(&self) -> usize {
        self.prompts.borrow().len()
    }

    /// Sends the answers; how many. `came` is when their requests came.
    pub(crate) fn send(&self, came: Instant) -> usize {
        let mut prompts = self.prompts.borrow_mut();
        for some in prompts.chunks(BY_ONE_CLOCK) {
            let mut rests: [Option<Rest>; BY_ONE_CLOCK] = array::from_fn(|_| None);
            for ((state, prompt), rest) in some.iter().zip(&mut rests) {
                *rest = prompt.whole.send(state.fd());
            }
            let now = Instant::now();
            for ((state, prompt), rest) in some.iter().zip(rests) {
                // Nobody else has run since it was read.
                if let Some(Attended { desk, client, .. }) = &*state.attended.borrow() {
                    desk.answered(*client, prompt, came, now);
                }
                if let Some(rest) = rest {
                    state.leave(Left::Output(rest), came);
                }
            }
        }
        let answers = prompts.len();
        prompts.clear();
        answers
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{Ipv4Addr, TcpStream};

    use reel_control::config::CorsConfig;
    use rustix::event::{PollFd, PollFlags};

    use super::*;
    use crate::answer::Answers;
    use crate::buffers::READ_BYTES;
    use crate::turns;
    use crate::whole::tests::{payload, stored};
    use crate::whole::{FilePart, WholeAnswer};

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// Knows the answer to "ask", and perhaps a piece.
    struct OneAnswer {
        answer: Rc<WholeAnswer>,
        answered: Cell<usize>,
        piece: RefCell<Option<FilePart>>,
    }

    impl Desk for OneAnswer {
        fn answer(&self, input: &[u8], _: Instant) -> Option<Prompt> {
            let whole = Whole { answer: Rc::clone(&self.answer), body: None };
            (input == b"ask").then_some(Prompt { whole, request: None })
        }

        fn answered(&self, client: IpAddr, _: &Prompt, came: Instant, now: Instant) {
            assert!(came <= now);
            assert_eq!(client, CLIENT);
            self.answered.set(self.answered.get() + 1);
        }

        fn piece(&self, input: &[u8], _: Instant) -> Option<Piece> {
            let body = self.piece.borrow().clone().filter(|_| input == b"piece")?;
            Some(Piece { status: 206, head: b"head".to_vec(), body, request: None })
        }

        fn piece_answered(&self, client: IpAddr, piece: &Piece, came: Instant, now: Instant) {
            assert!(came <= now && piece.len() > 4);
            assert_eq!(client, CLIENT);
            self.answered.set(self.answered.get() + 1);
        }
    }

    /// A client, its connection at a desk that has `body` bytes for it, and an outbox.
    fn attended(body: usize) -> (TcpStream, Rc<State>, Rc<OneAnswer>, Outbox) {
        let (client, server) = crate::reactor::connected();
        server.set_nonblocking(true).expect("set");
        let answers = Answers::new(CorsConfig::default(), None);
        let answer = WholeAnswer::new(&answers, b"\r\n", &vec![7; body]).expect("an answer");
        let answer = Rc::new(answer);
        let desk = Rc::new(OneAnswer { answer, answered: Cell::new(0), piece: RefCell::default() });
        let state = Rc::new(State::new(server.into(), 0));
        let at_desk = Attended { desk: Rc::clone(&desk) as Rc<dyn Desk>, client: CLIENT, ticks: 5 };
        state.attended.replace(Some(at_desk));
        (client, state, desk, Outbox::default())
    }

    #[test]
    fn what_is_known_is_answered_and_the_task_sleeps_on() {
        let (mut client, state, desk, outbox) = attended(4096);
        for tick in [100, 200] {
            client.write_all(b"ask").expect("sent");
            assert_eq!(outbox.read(&state, Instant::now(), tick), Came::Prompt);
            assert_eq!(desk.answered.get() as u64, tick / 100 - 1, "all is read before it is sent");
            outbox.send(Instant::now());
            let mut got = vec![0; desk.answer.bytes().len()];
            client.read_exact(&mut got).expect("the answer");
            assert_eq!(got, *desk.answer.bytes());
            assert_eq!(state.found(), (false, false, tick + 5), "it waits anew");
        }
        assert_eq!(outbox.read(&state, Instant::now(), 300), Came::Nothing);
        outbox.send(Instant::now());
        assert_eq!(desk.answered.get(), 2);
        assert!(state.left.take().is_none());
    }

    #[test]
    fn all_else_is_left_to_the_task() {
        let (mut client, state, desk, outbox) = attended(16);
        client.write_all(b"askask").expect("sent");
        assert_eq!(outbox.read(&state, Instant::now(), 1), Came::Left);
        outbox.send(Instant::now());
        assert_eq!(state.found(), (false, true, 0), "it is woken");
        assert!(matches!(state.left.take(), Some(Left::Input(bytes)) if bytes == b"askask"));
        client.write_all(b"ask").expect("sent");
        assert_eq!(outbox.read(&state, Instant::now(), 2), Came::Unread, "not attended any more");
        assert_eq!(desk.answered.get(), 0);
    }

    #[test]
    fn of_much_that_came_the_task_finds_the_rest_itself() {
        let (mut client, state, _, outbox) = attended(16);
        state.input.has_more(false);
        client.write_all(&[5; READ_BYTES + 7]).expect("sent");
        assert_eq!(outbox.read(&state, Instant::now(), 1), Came::Left);
        assert_eq!(state.found(), (true, true, 0), "there is more");
        assert!(matches!(state.left.take(), Some(Left::Input(bytes)) if bytes == [5; READ_BYTES]));
    }

    #[test]
    fn the_end_is_left_to_the_task() {
        let (client, state, _, outbox) = attended(16);
        drop(client);
        while outbox.read(&state, Instant::now(), 1) == Came::Nothing {
            std::thread::yield_now();
        }
        assert!(state.left.take().is_none());
    }

    #[test]
    fn what_finds_no_room_is_left_to_the_task_to_the_byte() {
        let (mut client, state, desk, outbox) = attended(32 << 20);
        client.write_all(b"ask").expect("sent");
        assert_eq!(outbox.read(&state, Instant::now(), 1), Came::Prompt);
        outbox.send(Instant::now());
        assert!(state.found().1 && state.attended.borrow().is_none());
        let Some(Left::Output(rest)) = state.left.take() else { panic!("it took 32 MiB") };
        let whole = desk.answer.bytes();
        let mut got = vec![0; whole.len() - rest.bytes.len()];
        client.read_exact(&mut got).expect("what had room");
        got.extend_from_slice(&rest.bytes);
        assert!(got == *whole);
        client.set_nonblocking(true).expect("set");
        assert_eq!(client.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    }

    /// Waits until there is something to read.
    fn until_it_came(state: &State) {
        let mut one = [PollFd::from_borrowed_fd(state.fd(), PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut one, None), Ok(1));
    }

    /// It has its turn.
    fn serve(state: &Rc<State>, tick: u64) {
        assert!(state.asks_for_turn(Instant::now()), "it is not read before");
        turns::serve_granted(|state, came| answer_in_turn(state, came, tick));
    }

    /// Sends `ask`, and answers it in its turn.
    fn asks(client: &mut TcpStream, state: &Rc<State>, ask: &[u8], tick: u64) {
        client.write_all(ask).expect("sent");
        until_it_came(state);
        serve(state, tick);
    }

    /// [`attended`], read in turn, and what it can have a piece of.
    fn in_turn(test: impl AsyncFnOnce(TcpStream, Rc<State>, Rc<OneAnswer>, &[u8])) {
        let dir = tempfile::tempdir().expect("a folder");
        let payload = payload(2_000_000);
        crate::reactor::on_a_shard(async {
            let (_store, part) = stored(dir.path(), payload.clone()).await;
            let (client, state, desk, _) = attended(16);
            desk.piece.replace(Some(part));
            state.input.has_more(false);
            state.read_in_turn(400_000);
            test(client, state, desk, &payload).await;
        });
    }

    #[test]
    fn a_piece_is_answered_in_its_turn_and_the_task_sleeps_on() {
        in_turn(async |mut client, state, desk, payload| {
            let length = 200_000;
            desk.piece.borrow_mut().as_mut().expect("a piece").length = length as u64;
            for tick in [100, 200, 300] {
                asks(&mut client, &state, b"piece", tick);
                assert_eq!(desk.answered.get() as u64, tick / 100);
                assert_eq!(state.found(), (false, false, tick + 5), "it waits anew");
                let mut got = vec![0; 4 + length];
                client.read_exact(&mut got).expect("the piece");
                assert!(got.starts_with(b"head") && got[4..] == payload[..length]);
                assert!(!rustix::net::sockopt::tcp_cork(state.fd()).expect("asked"));
            }
            assert!(state.read_at_once().is_none(), "its turns were used");
        });
    }

    #[test]
    fn what_is_no_piece_is_left_to_the_task_with_its_turn() {
        in_turn(async |mut client, state, desk, _| {
            asks(&mut client, &state, b"pie", 1);
            assert_eq!(state.found(), (false, true, 0), "it is woken");
            assert!(matches!(state.left.take(), Some(Left::Input(bytes)) if bytes == b"pie"));
            assert!(state.attended.borrow().is_none() && desk.answered.get() == 0);
            let grant = state.read_at_once().expect("the turn is the task's");
            assert_eq!(grant.give_back(), 400_000);
        });
    }

    #[test]
    fn a_turn_without_a_request_is_given_back_and_another_is_asked_for() {
        in_turn(async |mut client, state, desk, _| {
            serve(&state, 7);
            assert_eq!(state.found(), (false, false, 12));
            assert!(state.attended.borrow().is_some());
            asks(&mut client, &state, b"piece", 8);
            assert!(desk.answered.get() == 1 || state.has_left(), "it was read");
        });
    }

    #[test]
    fn the_end_wakes_the_task() {
        in_turn(async |client, state, _, _| {
            drop(client);
            until_it_came(&state);
            serve(&state, 1);
            assert_eq!(state.found(), (true, false, 0));
        });
    }

    #[test]
    fn of_a_piece_what_finds_no_room_is_left_to_the_task_to_the_byte() {
        in_turn(async |mut client, state, desk, payload| {
            rustix::net::sockopt::set_socket_send_buffer_size(state.fd(), 1 << 16).expect("set");
            asks(&mut client, &state, b"piece", 1);
            assert_eq!(desk.answered.get(), 0, "it is not over");
            assert!(state.found().1 && state.attended.borrow().is_none());
            assert!(state.read_at_once().is_none(), "its turn was used");
            let Some(Left::Output(mut rest)) = state.left.take() else { panic!("it took 2 MB") };
            let begun = rest.begun.take().expect("a piece");
            let part = rest.body.expect("the body's end");
            assert!(rest.is_corked && rest.bytes.is_empty() && begun.status == 206);
            assert_eq!(begun.sent + part.length, 4 + payload.len() as u64);
            rustix::net::sockopt::set_tcp_cork(state.fd(), false).expect("set");
            let mut got = vec![0; begun.sent as usize];
            client.read_exact(&mut got).expect("what had room");
            assert!(got[4..] == payload[..got.len() - 4]);
            let at = got.len() - 4;
            let mut left = vec![0; part.length as usize];
            let file = part.file().expect("a file");
            std::os::unix::fs::FileExt::read_exact_at(file, &mut left, part.offset).expect("read");
            assert!(left == payload[at..]);
        });
    }
}
