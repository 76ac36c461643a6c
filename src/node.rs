//! `reel node`

use reel_control::client::{Client, ClientError};

use crate::cli::{NodeAction, NodeArgs};
use crate::output::{Failure, complain, say};

pub async fn run(client: &Client, args: &NodeArgs) -> Result<(), Failure> {
    let NodeAction::Retire { id } = args.action;
    retire(client, id).await
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
