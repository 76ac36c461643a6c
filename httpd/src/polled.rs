//! Clients that ask again as soon as they have their answer are tried in turn instead of being waited for, as a network
//! driver polls its card under load instead of taking an interrupt for each packet (NAPI).
//!
//! To wait for a socket costs whoever sends to it an entry in the list of what is ready, and the shard another way to
//! it: a twentieth of a small request on either side. Where a crowd keeps a shard busy ([`crate::coalesce`]) the one
//! answered longest ago has most likely asked again. So such sockets leave the list and stand in a queue, in the order of
//! their last answers; a pass tries them from the front and ends when it has found [`MISSES`] without a request that had
//! not been tried in vain before. Who does not ask while all others do goes back to be waited for; so do all when
//! nobody asks any more, when trying misses more than it finds, and when clients ask in another order than they were
//! answered in, so that a pass ends before those who have asked ([`SURVEY`]).
//!
//! Pure: the shard's [`crate::reactor`] reads, and waits for what leaves (docs/decisions/0023).

use std::cell::Cell;
use std::collections::VecDeque;

/// Sockets that stand in the queue, at most.
const MOST: usize = 256;
/// A pass ends when so many were tried in vain for the first time since their last answer; twice as many after each pass
/// that found nothing.
const MISSES: usize = 2;
/// After so many passes in a row that found nothing all are waited for again.
const SILENT: u32 = 8;
/// A client is too slow to be tried when each of the others may have asked so many times since its last answer.
const ROUNDS: u64 = 2;
/// Every so many passes one is a survey: it tries all.
const SURVEY: u32 = 32;
/// So many requests found by surveys tell whether the order is right: what lies beyond the place where another pass would
/// have ended waits without need; at most half may.
const SURVEYED: u64 = 128;
/// So many tries tell whether they find more than they miss.
const TRIES: u64 = 1 << 12;
/// When trying does not pay nobody is tried until so many answers later: twice as many each time, half as many each time
/// that it did pay.
const PAUSE_LEAST: u64 = 1 << 14;
const PAUSE_MOST: u64 = 1 << 22;

/// What a socket keeps of its place.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// Whether it stands in the queue: then nobody else waits for it.
    is_polled: Cell<bool>,
    /// Whether it was tried in vain since its last answer.
    missed: Cell<bool>,
    /// The shard's count of answers at its last one.
    answer: Cell<u64>,
}

impl Place {
    /// Whether its socket is tried, not waited for.
    pub(crate) fn is_polled(&self) -> bool {
        self.is_polled.get()
    }
}

/// Who has a place.
pub(crate) trait Placed {
    /// Its place.
    fn place(&self) -> &Place;
}

/// What trying a socket came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tried {
    /// A request that is answered at once.
    Asked,
    /// Nothing.
    Missed,
    /// It is its task's from now on.
    Left,
}

/// What trying found, to tell whether it pays.
#[derive(Debug, Default)]
struct Found {
    tries: u64,
    misses: u64,
    /// By surveys: to where another pass would have ended, and beyond.
    before: u64,
    beyond: u64,
}

impl Found {
    /// Whether trying pays, once that is known.
    fn pays(&mut self) -> Option<bool> {
        if self.before + self.beyond >= SURVEYED {
            let is_in_order = self.beyond <= self.before;
            (self.before, self.beyond) = (0, 0);
            if !is_in_order {
                return Some(false);
            }
        }
        if self.tries < TRIES {
            return None;
        }
        let finds = self.misses * 2 <= self.tries;
        (self.tries, self.misses) = (0, 0);
        Some(finds)
    }
}

/// The sockets of a shard that are tried.
#[derive(Debug)]
pub(crate) struct Polled<T> {
    /// The one answered longest ago first.
    queue: VecDeque<T>,
    /// Answers so far, whether they were tried for or waited for.
    answers: u64,
    passes: u32,
    /// Of them, those at the end that found nothing.
    silent: u32,
    found: Found,
    /// Nobody is taken in before so many answers.
    paused_until: u64,
    pause: u64,
}

impl<T> Default for Polled<T> {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            answers: 0,
            passes: 0,
            silent: 0,
            found: Found::default(),
            paused_until: 0,
            pause: PAUSE_LEAST,
        }
    }
}

impl<T: Placed> Polled<T> {
    /// Whether nobody is tried.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// One that was waited for has asked, and is answered at once. Whether it is to be tried from now on: then
    /// [`take_in`](Self::take_in) follows. `crowd`: how many ask, while so many do that it pays.
    pub(crate) fn asked(&mut self, place: &Place, crowd: Option<usize>) -> bool {
        let lag = self.answers - place.answer.replace(self.answers);
        self.answers += 1;
        let Some(crowd) = crowd else { return false };
        lag <= self.rounds(crowd)
            && self.queue.len() < MOST
            && self.answers >= self.paused_until
            && !place.is_polled()
    }

    /// It is not waited for any more.
    pub(crate) fn take_in(&mut self, socket: T) {
        let place = socket.place();
        place.is_polled.set(true);
        place.missed.set(false);
        self.queue.push_back(socket);
    }

    /// Tries those whose turn it is; how many had asked. `leave` has one that is not tried any more waited for.
    pub(crate) fn pass(
        &mut self,
        crowd: Option<usize>,
        mut tries: impl FnMut(&T) -> Tried,
        mut leave: impl FnMut(&T),
    ) -> usize {
        let Some(crowd) = crowd.filter(|_| self.silent < SILENT) else {
            self.release(leave);
            return 0;
        };
        let mut leave = |socket: &T| {
            socket.place().is_polled.set(false);
            leave(socket);
        };
        self.passes = self.passes.wrapping_add(1);
        let is_survey = self.passes.is_multiple_of(SURVEY);
        let slow = self.rounds(crowd);
        let mut may_miss = MISSES << self.silent;
        let mut late = Vec::new();
        let (mut before, mut beyond) = (0, 0);
        for _ in 0..self.queue.len() {
            let Some(socket) = self.queue.pop_front() else { break };
            self.found.tries += u64::from(may_miss > 0);
            match tries(&socket) {
                Tried::Asked => {
                    let place = socket.place();
                    place.answer.set(self.answers);
                    place.missed.set(false);
                    self.answers += 1;
                    *if may_miss > 0 { &mut before } else { &mut beyond } += 1;
                    self.queue.push_back(socket);
                }
                Tried::Missed => {
                    let place = socket.place();
                    self.found.misses += u64::from(may_miss > 0);
                    let is_first = !place.missed.replace(may_miss > 0 || place.missed.get());
                    if self.answers - place.answer.get() > slow {
                        leave(&socket);
                    } else {
                        late.push(socket);
                    }
                    may_miss = may_miss.saturating_sub(usize::from(is_first));
                    if may_miss == 0 && !is_survey {
                        break;
                    }
                }
                Tried::Left => leave(&socket),
            }
        }
        while let Some(socket) = late.pop() {
            self.queue.push_front(socket);
        }
        let found = before + beyond;
        self.silent = if found == 0 { self.silent + 1 } else { 0 };
        if is_survey {
            self.found.before += before as u64;
            self.found.beyond += beyond as u64;
        }
        match self.found.pays() {
            Some(true) => self.pause = (self.pause / 2).max(PAUSE_LEAST),
            Some(false) => {
                self.paused_until = self.answers + self.pause;
                self.pause = (self.pause * 2).min(PAUSE_MOST);
                self.release(leave);
            }
            None => {}
        }
        found
    }

    /// All are waited for.
    fn release(&mut self, mut leave: impl FnMut(&T)) {
        for socket in self.queue.drain(..) {
            socket.place().is_polled.set(false);
            leave(&socket);
        }
        self.silent = 0;
    }

    /// This one is gone, or its task waits for something else.
    pub(crate) fn forget(&mut self, place: &Place) {
        if place.is_polled.replace(false) {
            self.queue.retain(|socket| !std::ptr::eq(socket.place(), place));
        }
    }

    /// Answers after which a client that has not asked again is too slow.
    fn rounds(&self, crowd: usize) -> u64 {
        ROUNDS * crowd.max(self.queue.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::rc::Rc;

    use super::*;

    /// A client; those of whom somebody waits, and those who have asked, are kept by the tests.
    #[derive(Debug)]
    struct Client {
        number: usize,
        place: Place,
    }

    impl Placed for Rc<Client> {
        fn place(&self) -> &Place {
            &self.place
        }
    }

    fn clients(count: usize) -> Vec<Rc<Client>> {
        (0..count).map(|number| Rc::new(Client { number, place: Place::default() })).collect()
    }

    /// All have asked for the second time in turn, and are tried from now on.
    fn all_in(clients: &[Rc<Client>]) -> Polled<Rc<Client>> {
        let mut polled = Polled::default();
        for client in clients {
            assert!(polled.asked(&client.place, Some(clients.len())));
            polled.take_in(Rc::clone(client));
        }
        polled
    }

    /// One pass in which those of `asking` have asked: who was answered, tried in vain, and left.
    fn pass(
        polled: &mut Polled<Rc<Client>>,
        crowd: Option<usize>,
        asking: &HashSet<usize>,
    ) -> (Vec<usize>, Vec<usize>, Vec<usize>) {
        let (mut asked, mut missed, mut left) = (vec![], vec![], vec![]);
        let found = polled.pass(
            crowd,
            |client| {
                let has_asked = asking.contains(&client.number);
                if has_asked { &mut asked } else { &mut missed }.push(client.number);
                if has_asked { Tried::Asked } else { Tried::Missed }
            },
            |client| left.push(client.number),
        );
        assert_eq!(found, asked.len());
        (asked, missed, left)
    }

    const NOBODY: [Vec<usize>; 3] = [vec![], vec![], vec![]];

    #[test]
    fn those_answered_longest_ago_are_tried_until_some_have_not_asked() {
        let clients = clients(64);
        let mut polled = all_in(&clients);
        let asking = (0..8).chain(20..64).collect();
        assert_eq!(pass(&mut polled, Some(64), &asking), ((0..8).collect(), vec![8, 9], vec![]));
        // They are tried first again; and two that were not tried in vain before.
        let (asked, missed, left) = pass(&mut polled, Some(64), &asking);
        assert_eq!((asked, missed, left), (vec![], vec![8, 9, 10, 11], vec![]));
        // After a pass that found nothing more are tried.
        let (asked, missed, left) = pass(&mut polled, Some(64), &asking);
        assert_eq!((asked, missed, left), (vec![], (8..16).collect(), vec![]));
        let (asked, missed, _) = pass(&mut polled, Some(64), &asking);
        assert_eq!(asked, (20..64).chain(0..8).collect::<Vec<_>>(), "each once in a pass");
        assert_eq!(missed, (8..20).collect::<Vec<_>>());
    }

    #[test]
    fn who_does_not_ask_while_the_others_do_is_waited_for() {
        let clients = clients(64);
        let mut polled = all_in(&clients);
        let asking: HashSet<_> = (0..64).filter(|number| *number != 5).collect();
        let mut passes = 0;
        loop {
            passes += 1;
            let (_, _, left) = pass(&mut polled, Some(64), &asking);
            if !left.is_empty() {
                assert_eq!(left, [5]);
                break;
            }
        }
        assert!((2..4).contains(&passes), "{passes}");
        assert!(!clients[5].place.is_polled() && clients[6].place.is_polled());
        // It asks as slowly as before: it is not taken in. When it is as fast as the others it is.
        for _ in 0..3 {
            pass(&mut polled, Some(64), &asking);
        }
        assert!(!polled.asked(&clients[5].place, Some(64)));
        pass(&mut polled, Some(64), &asking);
        assert!(polled.asked(&clients[5].place, Some(64)));
    }

    #[test]
    fn all_are_waited_for_when_nobody_asks_or_the_crowd_is_gone() {
        let clients = clients(32);
        for crowd in [Some(32), None] {
            let mut polled = all_in(&clients);
            let mut passes = 0;
            let mut left = vec![];
            while !polled.is_empty() {
                passes += 1;
                left.extend(pass(&mut polled, crowd, &HashSet::new()).2);
            }
            assert_eq!(passes, if crowd.is_some() { 1 + SILENT as usize } else { 1 });
            assert_eq!(left.len(), 32);
            assert!(clients.iter().all(|client| !client.place.is_polled()));
            assert_eq!(pass(&mut polled, Some(32), &HashSet::new()), NOBODY.into());
        }
    }

    #[test]
    fn few_are_not_tried_and_many_only_up_to_the_bound() {
        let clients = clients(MOST + 1);
        assert!(!Polled::<Rc<Client>>::default().asked(&clients[0].place, None));
        let mut polled = all_in(&clients[..MOST]);
        assert!(!polled.asked(&clients[MOST].place, Some(1000)), "the queue is full");
        polled.forget(&clients[0].place);
        assert!(polled.asked(&clients[MOST].place, Some(1000)));
    }

    #[test]
    fn a_survey_tries_all_and_knows_what_another_pass_would_have_left() {
        let clients = clients(64);
        let mut polled = all_in(&clients);
        polled.passes = SURVEY - 1;
        let asking = (0..8).chain(20..64).collect();
        let (asked, missed, _) = pass(&mut polled, Some(64), &asking);
        assert_eq!(asked.len() + missed.len(), 64);
        assert_eq!((polled.found.before, polled.found.beyond), (8, 44));
        assert_eq!(
            (polled.found.tries, polled.found.misses),
            (10, 2),
            "a survey's are not counted"
        );
        // Those whom another pass would not have tried were not tried in vain.
        let (asked, missed, _) = pass(&mut polled, Some(64), &(0..8).collect());
        assert_eq!((asked, missed), (vec![], (8..12).collect()));
    }

    #[test]
    fn trying_pays_while_it_finds_more_than_it_misses_and_the_order_is_right() {
        let surveyed = |before, beyond| Found { before, beyond, ..Found::default() }.pays();
        assert_eq!(surveyed(20, 100), None);
        assert_eq!(surveyed(64, 65), Some(false));
        assert_eq!(surveyed(65, 64), None);
        let tried = |tries, misses| Found { tries, misses, ..Found::default() }.pays();
        assert_eq!(tried(TRIES - 1, TRIES - 1), None);
        assert_eq!(tried(TRIES, TRIES / 2), Some(true));
        assert_eq!(tried(TRIES, TRIES / 2 + 1), Some(false));
    }

    #[test]
    fn where_trying_does_not_pay_it_is_given_up_longer_each_time() {
        let clients = clients(64);
        let mut polled = all_in(&clients);
        for pause in [PAUSE_LEAST, 2 * PAUSE_LEAST] {
            // One in eight has asked, another one each time.
            let mut passes = 0;
            while !polled.is_empty() {
                let asking = (0..64).filter(|number| number % 8 == passes % 8).collect();
                pass(&mut polled, Some(64), &asking);
                passes += 1;
                assert!(passes < TRIES as usize);
            }
            let answers = polled.answers;
            while !polled.asked(&clients[0].place, Some(64)) {}
            assert_eq!(polled.answers, answers + pause);
            polled.take_in(Rc::clone(&clients[0]));
            for client in &clients[1..] {
                polled.asked(&client.place, Some(64));
                assert!(polled.asked(&client.place, Some(64)));
                polled.take_in(Rc::clone(client));
            }
        }
    }

    #[test]
    fn who_is_left_to_its_task_or_gone_is_tried_no_more() {
        let clients = clients(3);
        let mut polled = all_in(&clients);
        polled.forget(&clients[1].place);
        let mut tried = vec![];
        let tries = |client: &Rc<Client>| {
            tried.push(client.number);
            Tried::Left
        };
        polled.pass(Some(32), tries, |_| {});
        assert_eq!(tried, [0, 2]);
        assert!(polled.is_empty() && !clients[0].place.is_polled());
    }
}
