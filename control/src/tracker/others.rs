//! What a tracker learns from the others: of nodes that have been silent since before it started, of the last beats
//! that it missed, and whether it is cut off from nodes that others hear.
//!
//! Who is alive each tracker decides by what it hears itself. So a cut cable shows, and nothing that one tracker says
//! can bring a node back at another.

use std::sync::Arc;
use std::time::Duration;

use super::server::Tracker;
use crate::api::{Beat, HeardView};
use crate::client::Trackers;

/// Nodes asked for at a time.
const IDS: usize = 200;

/// Compares with every other tracker once a beat, for ever. One of them may be this one: that changes nothing.
pub(super) async fn run(tracker: Arc<Tracker>, addresses: Vec<String>, beat: Duration) {
    let others = Trackers::new(addresses, beat.max(Duration::from_millis(200)));
    let mut ticks = tokio::time::interval(beat);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        for (other, heard) in others.each::<Vec<HeardView>>("/-/v1/heard").await {
            let Ok(heard) = heard else { continue };
            let wanted = tracker.compare(&heard);
            for ids in wanted.chunks(IDS) {
                let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
                let asked = Trackers::new(vec![other.clone()], beat);
                match asked.get::<Vec<Beat>>(&format!("/-/v1/beats?ids={}", ids.join(","))).await {
                    Ok(beats) => tracker.learn(beats),
                    Err(error) => {
                        tracing::debug!(other, %error, "another tracker's beats not learnt")
                    }
                }
            }
        }
        tracker.note_view();
    }
}
