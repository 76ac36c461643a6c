//! `reel status`

use reel_control::client::Client;
use reel_control::status::{self, Level};

use crate::nodes::heard;
use crate::output::{Failure, human, say, say_json};

pub async fn run(client: &Client, json: bool) -> Result<(), Failure> {
    let status = status::gather(client).await;
    if json {
        say_json(&status)?;
    } else {
        show(&status);
    }
    if status.problems.is_empty() { Ok(()) } else { Err(Failure::failed("")) }
}

fn show(status: &status::Status) {
    let trackers: Vec<String> = status
        .trackers
        .iter()
        .map(|line| match line.hears {
            Some(nodes) => format!("{} hears {nodes}", line.tracker),
            None => format!("{} is silent", line.tracker),
        })
        .collect();
    say(format_args!("cluster {}; trackers: {}", status.cluster, trackers.join(", ")));
    for group in &status.groups {
        say(format_args!(
            "\ngroup {}: {} of {} nodes active, {} of {} free, {} requests in progress",
            group.group,
            group.active,
            group.nodes,
            human(group.free),
            human(group.capacity),
            group.load
        ));
        for view in status.nodes.iter().filter(|view| view.node.group == group.group) {
            let state = format!("{:?}", view.state).to_lowercase();
            let detail = view.detail.as_ref().map_or_else(String::new, |detail| {
                format!(
                    "{:>10} free  {:>8} behind  {:>5} requests  heard {}",
                    human(detail.free),
                    human(detail.lag),
                    detail.load,
                    heard(detail.heard_ms)
                )
            });
            let node = &view.node;
            say(format_args!(
                "  {:>6}  {:<14}  {state:<8}  {:<21}  {detail}",
                node.id, node.name, node.address
            ));
        }
    }
    if status.problems.is_empty() {
        say("\nall is well");
        return;
    }
    say("");
    for problem in &status.problems {
        let level = match problem.level {
            Level::Down => "DOWN",
            Level::AtRisk => "AT RISK",
            Level::Notice => "notice",
        };
        say(format_args!("{level}: {}\n    {}", problem.what, problem.advice));
    }
}
