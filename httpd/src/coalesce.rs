//! A busy shard rests for a moment ([`REST`]) between two looks at its sockets, so that one look finds many requests.
//!
//! What network cards do with their interrupts (interrupt coalescing), for the same reason: at 100,000 requests a second a
//! shard that goes back to its sockets at once finds one or two each time, and pays for each the way through the ring and the
//! wake-up that ends its sleep. But where a few clients wait for each answer before they ask again, a rest only makes
//! them wait: it is due as long as what is at hand comes from a small part of those who have asked lately ([`PART`]).
//!
//! To sleep and be woken costs a few microseconds on a machine of one's own, and 50 where a host has to give the core back:
//! there a rest is longer, so that most of it is rest, but not so long that those who ask would all wait for it; and only
//! where they ask again at once ([`crate::polled`]): who asks at a time of his own waits for the longer rest in vain.
//!
//! Pure: the shard's [`crate::reactor`] asks whether a rest is due, takes it, and tells how long it took (docs/decisions/0019);
//! and how many requests to read before it answers (docs/decisions/0022).

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long a shard rests, where that costs little.
const REST: Duration = Duration::from_micros(30);
/// How long it does at most.
const REST_MOST: Duration = Duration::from_micros(100);
/// One part in so many of what is known of a rest's cost is the last one's.
const COST_PART: u32 = 8;
/// As long events are counted before they say how busy the sockets are.
const WINDOW: Duration = Duration::from_millis(1);
/// A rest is due when so many events may be expected during it: fewer would only come later.
const WORTH: u32 = 2;
/// A look that found so many has gathered enough.
const ENOUGH: usize = 32;
/// So many sockets, at least, must have had events in the last window.
const CROWD: usize = 32;
/// A rest is due when a look found events of at most one of so many of these sockets.
const PART: usize = 3;
/// Of so many of these sockets one request is read before the answers to what was read are sent.
const BATCH_PART: usize = 8;

/// How busy a shard's sockets are.
#[derive(Debug)]
pub(crate) struct Pace {
    /// The windows so far, this one included.
    window: u64,
    begun: Instant,
    /// Events since the window began, and the sockets they came from.
    events: u32,
    sockets: usize,
    /// Of the window before: whether a rest is worth it, and the sockets that had events.
    busy: bool,
    active: usize,
    /// In which each of them asks once.
    round: Duration,
    /// By how much rests take longer than was asked for.
    rest_cost: Duration,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            window: 1,
            begun: now,
            events: 0,
            sockets: 0,
            busy: false,
            active: 0,
            round: Duration::ZERO,
            rest_cost: Duration::ZERO,
        }
    }

    /// A socket has an event; `last` is the window of its event before, to be kept with it (0 at first).
    pub(crate) fn event(&mut self, last: &Cell<u64>) {
        self.events = self.events.saturating_add(1);
        if last.replace(self.window) != self.window {
            self.sockets += 1;
        }
    }

    /// The sockets that had events in the last window, while they are so many and have so many that a rest pays.
    pub(crate) fn crowd(&self) -> Option<usize> {
        (self.busy && self.active >= CROWD).then_some(self.active)
    }

    /// So many requests are read before their answers are sent. A few clients would all wait meanwhile, and the shard for
    /// all of them afterwards.
    pub(crate) fn batch(&self) -> usize {
        (self.active / BATCH_PART).max(1)
    }

    /// How long to rest. `at_once`: those who ask do so as soon as they are answered; then twice as long as what a rest costs, but
    /// not beyond the time in which half of them have asked.
    pub(crate) fn rest(&self, at_once: bool) -> Duration {
        if !at_once {
            return REST;
        }
        let half = (self.round / 2).saturating_sub(self.rest_cost);
        (self.rest_cost * 2).min(half).clamp(REST, REST_MOST)
    }

    /// A rest took so long.
    pub(crate) fn rested(&mut self, rest: Duration, took: Duration) {
        // A core that was taken away says nothing about the next rest.
        let cost = took.saturating_sub(rest).min(REST_MOST);
        self.rest_cost = (self.rest_cost * (COST_PART - 1) + cost) / COST_PART;
    }

    /// A look at the sockets found so many events: whether a rest is due when they have been dealt with.
    pub(crate) fn looked(&mut self, found: usize, now: Instant) -> bool {
        let took = now.saturating_duration_since(self.begun);
        if took >= WINDOW {
            self.busy = REST * self.events >= took * WORTH;
            self.active = self.sockets;
            self.round = took * self.sockets as u32 / self.events.max(1);
            self.window += 1;
            (self.begun, self.events, self.sockets) = (now, 0, 0);
        }
        self.crowd().is_some_and(|crowd| (1..ENOUGH).contains(&found) && found * PART <= crowd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every `gap` that find `found` events each, of `sockets` sockets in turn: the share of them after which a rest
    /// is due, once two windows are over.
    fn share(sockets: usize, found: usize, gap: Duration) -> f64 {
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        let windows = vec![Cell::new(0); sockets];
        let (mut next, mut due, mut counted) = (0, 0, 0);
        for look in 1..10_000 {
            for _ in 0..found {
                pace.event(&windows[next]);
                next = (next + 1) % sockets;
            }
            let now = begun + gap * look;
            let rests = pace.looked(found, now);
            if now > begun + 2 * WINDOW {
                counted += 1;
                due += u32::from(rests);
            }
        }
        f64::from(due) / f64::from(counted)
    }

    const BUSY: Duration = Duration::from_micros(14);

    #[test]
    fn a_shard_rests_while_most_of_many_clients_have_not_asked_again() {
        assert_eq!(share(64, 2, BUSY), 1.0);
        assert_eq!(share(32, 2, BUSY), 1.0);
        // Each asks once in a while, as viewers do.
        assert_eq!(share(100_000, 2, BUSY), 1.0);
    }

    #[test]
    fn few_clients_are_not_made_to_wait() {
        assert_eq!(share(1, 1, BUSY / 2), 0.0);
        assert_eq!(share(8, 2, BUSY), 0.0);
        assert_eq!(share(31, 2, BUSY), 0.0);
    }

    #[test]
    fn the_more_clients_there_are_the_more_is_read_before_it_is_answered() {
        let begun = Instant::now();
        for (clients, batch) in [(0, 1), (1, 1), (8, 1), (16, 2), (64, 8)] {
            let mut pace = Pace::new(begun);
            let windows = vec![Cell::new(0); clients];
            for _ in 0..3 {
                windows.iter().for_each(|window| pace.event(window));
            }
            assert_eq!(pace.batch(), 1, "nothing is known yet");
            pace.looked(clients, begun + WINDOW);
            assert_eq!(pace.batch(), batch, "{clients} clients");
        }
    }

    #[test]
    fn what_is_at_hand_is_enough() {
        assert_eq!(share(64, 22, BUSY * 11), 0.0, "a third of those who ask is here");
        assert_eq!(share(64, 21, BUSY * 11), 1.0);
        assert_eq!(share(500, 32, BUSY * 16), 0.0, "many");
        assert_eq!(share(500, 0, BUSY), 0.0, "nobody");
    }

    #[test]
    fn a_shard_with_little_to_do_does_not_rest() {
        // 50,000 events a second: one and a half during a rest.
        assert_eq!(share(64, 1, Duration::from_micros(20)), 0.0);
        assert_eq!(share(64, 1, Duration::from_micros(10)), 1.0);
    }

    /// Of a pace at which each of the clients asks once in `round`, and rests that take `cost` longer than they should, in µs.
    fn rest(clients: usize, round: u64, cost: u64) -> u128 {
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        let windows = vec![Cell::new(0); clients];
        for _ in 0..WINDOW.as_micros() as u64 / round {
            windows.iter().for_each(|window| pace.event(window));
        }
        pace.looked(1, begun + WINDOW);
        for _ in 0..100 {
            let rest = pace.rest(true);
            pace.rested(rest, rest + Duration::from_micros(cost));
        }
        assert_eq!(pace.rest(false), REST);
        pace.rest(true).as_micros()
    }

    #[test]
    fn a_rest_is_longer_where_it_costs_much_and_clients_are_many() {
        assert_eq!(rest(64, 500, 3), 30);
        assert!((88..=90).contains(&rest(64, 500, 45)));
        assert_eq!(rest(64, 500, 10_000), 100);
        // Half of them have asked after 125 µs, 45 of which pass anyway.
        assert!((80..=81).contains(&rest(64, 250, 45)));
        assert_eq!(rest(32, 100, 45), 30, "few, who are fast");
    }

    #[test]
    fn a_core_that_was_taken_away_once_does_not_make_rests_long() {
        let mut pace = Pace::new(Instant::now());
        pace.rested(REST, Duration::from_secs(1));
        assert_eq!(pace.rest(true), REST);
    }

    #[test]
    fn the_rush_of_a_moment_is_forgotten() {
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        let windows = vec![Cell::new(0); 64];
        for window in &windows {
            pace.event(window);
            pace.event(window);
        }
        assert!(pace.looked(2, begun + WINDOW));
        pace.event(&windows[0]);
        assert!(!pace.looked(1, begun + WINDOW * 1000), "a second later one asks");
    }
}
