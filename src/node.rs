//! `reel node`

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reel_control::client::{Client, ClientError};
use reel_control::verify::{self, Compare};

use crate::cli::{NodeAction, NodeArgs};
use crate::output::{Failure, complain, say};

/// Between looks at who holds what.
const LOOK: Duration = Duration::from_millis(500);

pub async fn run(client: &Client, args: &NodeArgs) -> Result<(), Failure> {
    match args.action {
        NodeAction::Drain { id, timeout } => drain(client, id, timeout.0).await,
        NodeAction::Retire { id } => retire(client, id).await,
    }
}

/// The node takes no more uploads; waits until the others of its group hold what it holds.
async fn drain(client: &Client, id: u32, timeout: Duration) -> Result<(), Failure> {
    let views = client.nodes().await?.nodes;
    let Some(view) = views.iter().find(|view| view.node.id == id) else {
        return Err(Failure::failed(format!("there is no node {id}")));
    };
    let nodes = verify::living(&views, view.node.group);
    let Some(node) = nodes.iter().find(|node| node.id == id) else {
        let state = format!("{:?}", view.state).to_lowercase();
        return Err(Failure::failed(format!("node {id} is {state}: it can be retired")));
    };
    if nodes.len() == 1 {
        let message = format!(
            "node {id} is the only one of group {} that answers: nobody could hold what it holds (reel rebalance moves files to another group)",
            view.node.group
        );
        return Err(Failure::failed(message));
    }
    client.drain(node).await?;
    say(format_args!("node {id} takes no more uploads"));
    let begun = Instant::now();
    loop {
        let mut copies = BTreeMap::new();
        verify::copies_of(client, &nodes, None, &mut copies).await?;
        let shared = copies.values().any(|copies| copies.shared);
        let left = verify::differences(&copies, Compare::AllOf(id)).len();
        if shared || left == 0 {
            say(format_args!(
                "its peers hold all that it holds: stop it, then `reel node retire {id}`"
            ));
            return Ok(());
        }
        if begun.elapsed() > timeout {
            return Err(Failure::failed(format!(
                "{left} segments of node {id} are not held by all of its peers yet: it goes on; run this again, or look at `reel status`"
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Every tracker has to be told; one that is away learns nothing of the node from the others when it starts again.
async fn retire(client: &Client, id: u32) -> Result<(), Failure> {
    let (mut told, mut unknown, mut failed) = (0, 0, 0);
    let answers = client.retire_node(id).await;
    let all = answers.len();
    for (tracker, answer) in answers {
        match answer {
            Ok(()) => told += 1,
            Err(ClientError::Refused { status: 404, .. }) => unknown += 1,
            Err(error @ ClientError::Refused { status: 409, .. }) => {
                return Err(Failure::failed(error.to_string()));
            }
            Err(error) => {
                failed += 1;
                complain(&format!("tracker {tracker}: {error}"));
            }
        }
    }
    if unknown == all {
        return Err(Failure::failed(format!("there is no node {id}")));
    }
    say(format_args!("node {id} is retired: {told} trackers have forgotten it"));
    if failed > 0 {
        return Err(Failure::failed(format!(
            "{failed} trackers were not told: run it again when they answer"
        )));
    }
    Ok(())
}
