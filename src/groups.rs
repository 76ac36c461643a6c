//! `reel groups`

use reel_control::client::Client;

use crate::output::{Failure, human, say, say_json};

pub async fn run(client: &Client, json: bool) -> Result<(), Failure> {
    let groups = client.groups().await?;
    if json {
        return say_json(&groups);
    }
    say("group  nodes  active        free    capacity  weight");
    for group in groups.groups {
        let (free, capacity) = (human(group.free), human(group.capacity));
        let readonly = if group.settings.readonly { "  readonly" } else { "" };
        say(format_args!(
            "{:>5}  {:>5}  {:>6}  {free:>10}  {capacity:>10}  {:>4} %{readonly}",
            group.group, group.nodes, group.active, group.settings.weight
        ));
    }
    Ok(())
}
