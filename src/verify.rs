//! `reel verify`

use reel_control::client::Client;
use reel_control::verify::{self, GroupVerified};

use crate::output::{Failure, say, say_json};

/// Differences of one group that are printed.
const SHOWN: usize = 20;

pub async fn run(client: &Client, json: bool) -> Result<(), Failure> {
    let verified = verify::verify(client).await?;
    if json {
        say_json(&verified)?;
    } else {
        verified.groups.iter().for_each(show);
        for reason in &verified.unasked {
            say(format_args!("not compared: {reason}"));
        }
    }
    let differ: usize = verified.groups.iter().map(|group| group.differences.len()).sum();
    if differ > 0 {
        return Err(Failure::failed(format!(
            "{differ} segments differ: each node mends its copies at its next comparison (storage.upkeep.compare_every); what stays is in its log"
        )));
    }
    if !verified.unasked.is_empty() {
        return Err(Failure::failed("not all nodes were compared"));
    }
    Ok(())
}

fn show(group: &GroupVerified) {
    let nodes: Vec<String> = group.nodes.iter().map(u32::to_string).collect();
    if group.shared {
        say(format_args!("group {}: its volume keeps the copies", group.group));
        return;
    }
    say(format_args!(
        "group {}: nodes {}: {} segments, {} objects, {} differ; {} segments are being written or copied",
        group.group,
        nodes.join(", "),
        group.segments,
        group.objects,
        group.differences.len(),
        group.unsettled
    ));
    for difference in group.differences.iter().take(SHOWN) {
        let copies: Vec<String> = difference
            .copies
            .iter()
            .map(|(node, objects)| match objects {
                Some(objects) => format!("node {node} has {objects} objects"),
                None => format!("node {node} has none"),
            })
            .collect();
        say(format_args!("  segment {}: {}", difference.segment, copies.join(", ")));
    }
    if group.differences.len() > SHOWN {
        say(format_args!("  and {} more", group.differences.len() - SHOWN));
    }
}
