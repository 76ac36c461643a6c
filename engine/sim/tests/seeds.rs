//! Five hundred seeds without a violation; `reel-sim sim --seeds A..B` runs as many as wanted.

#![expect(clippy::print_stdout, reason = "a test says what it found")]

use reel_sim::{Summary, run};

#[test]
fn no_seed_loses_brings_back_or_half_shows_anything() {
    let mut total = Summary::default();
    for seed in 0..500 {
        match run(seed, None) {
            Ok(summary) => total.add(&summary),
            Err(violation) => panic!("seed {seed}: {violation}"),
        }
    }
    // That there was something to survive.
    assert!(total.crashes > 500 && total.disk.power_losses > 300, "{total:?}");
    assert!(total.disk.sectors_lost > 1000 && total.disk.sectors_kept > 1000, "{total:?}");
    assert!(total.disk.faults > 100 && total.disk.flips > 5, "{total:?}");
    assert!(total.compactions > 200 && total.scrubs > 200 && total.deletes > 500, "{total:?}");
    println!("{total:?}");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [3, 77, 4711] {
        let summary = |result: Result<Summary, String>| format!("{result:?}");
        assert_eq!(summary(run(seed, None)), summary(run(seed, None)), "seed {seed}");
    }
}
