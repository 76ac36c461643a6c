//! `reel group`

use reel_control::api::GroupSettings;
use reel_control::client::Client;

use crate::cli::{GroupAction, GroupArgs};
use crate::output::{Failure, say};

pub async fn run(client: &Client, args: &GroupArgs) -> Result<(), Failure> {
    match args.action {
        GroupAction::Create { group, weight, readonly } => {
            client.set_group(group, GroupSettings { weight, readonly }, true).await?;
            say(format_args!(
                "group {group} is known; it takes files when its nodes have joined (storage.group = {group})"
            ));
        }
        GroupAction::Weight { group, percent } => {
            let settings = settings_of(client, group).await?;
            client.set_group(group, GroupSettings { weight: percent, ..settings }, false).await?;
            say(format_args!("group {group}: {percent} % of its share of new users"));
        }
        GroupAction::Readonly { group, off } => {
            let settings = settings_of(client, group).await?;
            client.set_group(group, GroupSettings { readonly: !off, ..settings }, false).await?;
            say(format_args!(
                "group {group}: {}",
                if off {
                    "takes new files again"
                } else {
                    "new files of its users go to other groups"
                }
            ));
        }
    }
    Ok(())
}

async fn settings_of(client: &Client, group: u32) -> Result<GroupSettings, Failure> {
    let groups = client.groups().await?.groups;
    let found = groups.iter().find(|view| view.group == group);
    found.map(|view| view.settings).ok_or_else(|| {
        Failure::failed(format!(
            "there is no group {group} (reel groups lists them, reel group create makes one)"
        ))
    })
}
