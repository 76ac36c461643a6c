//! A group of nodes: some seeds without a violation, and what is done wrong on purpose is found. `reel-sim cluster
//! --seeds A..B` runs as many as wanted.

#![expect(clippy::print_stdout, reason = "a test says what it found")]

use reel_sim::Summary;
use reel_sim::cluster::{Sabotage, run};

#[test]
fn no_seed_loses_or_brings_back_anything() {
    let mut total = Summary::default();
    for seed in 0..100 {
        match run(seed, None) {
            Ok(summary) => total.add(&summary),
            Err(violation) => panic!("seed {seed}: {violation}"),
        }
    }
    // That there was something to survive.
    assert!(total.crashes > 100 && total.disk.power_losses > 50, "{total:?}");
    assert!(total.uploads > 1000 && total.deletes > 200 && total.compactions > 100, "{total:?}");
    println!("{total:?}");
}

#[test]
fn what_is_done_wrong_is_found() {
    // Which seed finds it moves with every change of the order of messages; that one of these does, not.
    const SEEDS: std::ops::Range<u64> = 0..800;
    for sabotage in [Sabotage::EarlyForget, Sabotage::EarlyAck, Sabotage::RowFirst] {
        let found =
            SEEDS.into_iter().find_map(|seed| Some((seed, run(seed, Some(sabotage)).err()?)));
        match found {
            Some((seed, violation)) => println!("{sabotage:?}: seed {seed}: {violation}"),
            None => panic!("{sabotage:?} is not found in seeds {SEEDS:?}"),
        }
    }
}

#[test]
fn a_seed_replays_exactly() {
    let summary = |seed| format!("{:?}", run(seed, None));
    for seed in [5, 46] {
        assert_eq!(summary(seed), summary(seed), "seed {seed}");
    }
}
