//! Every sync that matters is needed: with it taken out, the simulator finds a violation.

#![expect(clippy::print_stdout, reason = "a test says what it found")]

use reel_engine::disk::SyncPoint;
use reel_sim::{Sabotage, run};

/// Seeds in which each must be found.
const SEEDS: u64 = 200;

/// The first seed that finds it.
fn found(sabotage: Sabotage) -> Option<(u64, String)> {
    (0..SEEDS).find_map(|seed| Some((seed, run(seed, Some(sabotage)).err()?)))
}

/// What a crash may undo without harm (see [`SyncPoint`]): tables that do not hold their checksum are made
/// anew, the superblock's entry is made durable by the next sync of its folder, the probe proves that a
/// disk works, and what is repaired is found damaged again.
const HARMLESS: [SyncPoint; 6] = [
    SyncPoint::Table,
    SyncPoint::CompactedTable,
    SyncPoint::CompactedTableEntry,
    SyncPoint::SuperblockEntry,
    SyncPoint::Repair,
    SyncPoint::Probe,
];

#[test]
fn each_sync_taken_out_is_found() {
    let needed = SyncPoint::ALL.into_iter().filter(|point| !HARMLESS.contains(point));
    let sabotages = needed.map(Sabotage::Skip).chain([Sabotage::NoBarrier]);
    let mut missed = Vec::new();
    for sabotage in sabotages {
        match found(sabotage) {
            Some((seed, violation)) => println!("{sabotage:?}: seed {seed}: {violation}"),
            None => missed.push(sabotage),
        }
    }
    assert_eq!(missed, [], "not found within {SEEDS} seeds");
}

#[test]
fn what_is_called_harmless_is() {
    for point in HARMLESS {
        if let Some((seed, violation)) = found(Sabotage::Skip(point)) {
            panic!("without {point:?}, seed {seed}: {violation}");
        }
    }
}
