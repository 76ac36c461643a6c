//! `reel rm`

use reel_control::client::Client;
use reel_control::names;

use crate::cli::RmArgs;
use crate::output::{Failure, complain, say, say_json};

pub async fn run(client: &Client, args: &RmArgs, json: bool) -> Result<(), Failure> {
    let targets = args
        .targets
        .iter()
        .map(|target| names::parse_target(target))
        .collect::<Result<Vec<_>, _>>()?;
    let mut failed = 0;
    for (user, name) in &targets {
        match client.remove(user, name).await {
            Ok(()) if json => {
                say_json(&serde_json::json!({ "removed": format!("{user}/{name}") }))?
            }
            Ok(()) => say(format_args!("{user}/{name} removed")),
            Err(error) => {
                complain(&format!("{user}/{name}: {error}"));
                failed += 1;
            }
        }
    }
    if failed > 0 {
        return Err(Failure { code: 1, message: String::new() });
    }
    Ok(())
}
