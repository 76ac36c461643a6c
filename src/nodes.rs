//! `reel nodes`

use reel_control::client::Client;

use crate::output::{Failure, human, say, say_json};

/// When a tracker heard of a node.
pub fn heard(ms: Option<u64>) -> String {
    ms.map_or_else(|| "by others only".to_owned(), |ms| format!("{ms} ms ago"))
}

pub async fn run(client: &Client, json: bool) -> Result<(), Failure> {
    let nodes = client.nodes().await?;
    if json {
        return say_json(&nodes);
    }
    say(
        "    id  name            group  state     address                      free       lag  heard",
    );
    for view in nodes.nodes {
        let node = &view.node;
        let state = format!("{:?}", view.state).to_lowercase();
        let (free, lag, heard) = match &view.detail {
            Some(detail) => (human(detail.free), human(detail.lag), heard(detail.heard_ms)),
            None => Default::default(),
        };
        say(format_args!(
            "{:>6}  {:<14}  {:>5}  {state:<8}  {:<21}  {free:>10}  {lag:>8}  {heard}",
            node.id, node.name, node.group, node.address
        ));
    }
    Ok(())
}
