//! `reel url`

use reel_control::client::Client;
use reel_control::names;

use crate::cli::TargetArgs;
use crate::output::{Failure, say, say_json};

pub async fn run(client: &Client, args: &TargetArgs, json: bool) -> Result<(), Failure> {
    let (user, name) = names::parse_target(&args.target)?;
    let url = client.url(&user, &name).await?;
    if json {
        return say_json(&serde_json::json!({ "url": url }));
    }
    say(url);
    Ok(())
}
