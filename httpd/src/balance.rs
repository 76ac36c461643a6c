//! Connections are spread evenly over shards.
//!
//! The kernel deals them out to the listening sockets of one port by a hash of their addresses (socket(7), SO_REUSEPORT):
//! of 8 connections to 2 shards one gets 6 or more in 29 % of all cases, and the other one's core idles. Connections of
//! viewers live long, so that does not mend itself. A shard that has clearly more open ones than the one with the fewest
//! hands the next it accepts to that one.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc::{self, Receiver, Sender};

/// Connections on their way to a shard; beyond, the one that accepted serves.
const HANDED: usize = 256;
/// A shard may have so many connections more than the one with the fewest ...
const MORE: usize = 1;
/// ... and one of so many of those: handing one over wakes another core.
const PART: usize = 16;

/// An accepted connection, and who is at its other end.
pub(crate) type Accepted = (OwnedFd, IpAddr);

/// A shard, as the others see it.
#[derive(Debug)]
struct Place {
    open: AtomicUsize,
    hand: Sender<Accepted>,
}

/// A shard's place among all. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Seat {
    index: usize,
    places: Arc<[Place]>,
}

/// Connections that other shards hand to one.
pub(crate) type Handed = Receiver<Accepted>;

/// A seat for each of `shards`.
pub(crate) fn seats(shards: usize) -> Vec<(Seat, Handed)> {
    let (senders, handed): (Vec<_>, Vec<_>) = (0..shards).map(|_| mpsc::channel(HANDED)).unzip();
    let place = |hand| Place { open: AtomicUsize::new(0), hand };
    let places: Arc<[Place]> = senders.into_iter().map(place).collect();
    let seat = |(index, handed)| (Seat { index, places: Arc::clone(&places) }, handed);
    handed.into_iter().enumerate().map(seat).collect()
}

/// The shard that should serve the next connection that shard `own` accepts, when that is another one.
fn better(own: usize, open: impl Iterator<Item = usize> + Clone) -> Option<usize> {
    let here = open.clone().nth(own)?;
    let (index, least) = open.enumerate().min_by_key(|(_, open)| *open)?;
    (here > least + MORE.max(least / PART)).then_some(index)
}

impl Seat {
    /// Connections open here.
    pub(crate) fn open(&self) -> usize {
        self.places[self.index].open.load(Ordering::Relaxed)
    }

    /// The shard's number, from 0.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Counts a connection that was accepted here; gives it back when it is to be served here.
    pub(crate) fn place(&self, accepted: Accepted) -> Option<Accepted> {
        let open = self.places.iter().map(|place| place.open.load(Ordering::Relaxed));
        // Counted where it will be before it is there, so that nobody else sends one there for the same reason.
        let index = better(self.index, open).unwrap_or(self.index);
        self.places[index].open.fetch_add(1, Ordering::Relaxed);
        if index == self.index {
            return Some(accepted);
        }
        match self.places[index].hand.try_send(accepted) {
            Ok(()) => None,
            Err(
                mpsc::error::TrySendError::Full(back) | mpsc::error::TrySendError::Closed(back),
            ) => {
                self.places[index].open.fetch_sub(1, Ordering::Relaxed);
                Some(self.keep(back))
            }
        }
    }

    /// Counts a connection that is served here in any case.
    pub(crate) fn keep(&self, accepted: Accepted) -> Accepted {
        self.places[self.index].open.fetch_add(1, Ordering::Relaxed);
        accepted
    }

    /// A connection that was counted here has ended.
    pub(crate) fn leave(&self) {
        self.places[self.index].open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn accepted() -> Accepted {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        (socket.into(), IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    #[test]
    fn only_a_clear_difference_moves_a_connection() {
        let better = |own, open: &[usize]| better(own, open.iter().copied());
        assert_eq!(better(0, &[0]), None);
        assert_eq!(better(0, &[1, 0]), None);
        assert_eq!(better(0, &[2, 0]), Some(1));
        assert_eq!(better(1, &[2, 0]), None, "it has the fewest itself");
        assert_eq!(better(0, &[1062, 1000]), None, "one in sixteen");
        assert_eq!(better(0, &[1063, 1000]), Some(1));
        assert_eq!(better(2, &[5, 3, 9, 4]), Some(1));
    }

    #[test]
    fn whatever_the_kernel_does_shards_have_equally_many() {
        let mut all = seats(3);
        for _ in 0..300 {
            // All come in at the first one.
            if let Some(kept) = all[0].0.place(accepted()) {
                drop(kept);
            }
        }
        let open: Vec<_> = all.iter().map(|(seat, _)| seat.open()).collect();
        assert_eq!(open.iter().sum::<usize>(), 300);
        assert!(open.iter().max() <= open.iter().min().map(|least| least + 7).as_ref(), "{open:?}");
        let mut handed = 0;
        while all[1].1.try_recv().is_ok() {
            handed += 1;
        }
        assert_eq!(handed, open[1], "what is counted there is on its way there");
    }

    #[test]
    fn what_cannot_be_handed_over_is_served_here() {
        let mut all = seats(2);
        let (gone, _) = all.pop().expect("two");
        let seat = all[0].0.clone();
        for at in 1..=10 {
            assert!(seat.place(accepted()).is_some(), "the other one has ended");
            assert_eq!((seat.open(), gone.open()), (at, 0));
        }
        seat.leave();
        assert_eq!(seat.open(), 9);
    }
}
