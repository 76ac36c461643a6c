//! `reel ls`

use reel_control::client::Client;
use reel_control::names;

use crate::cli::LsArgs;
use crate::output::{Failure, human, say, say_json};

pub async fn run(client: &Client, args: &LsArgs, json: bool) -> Result<(), Failure> {
    let (user, prefix) = args.target.split_once('/').unwrap_or((&args.target, ""));
    names::check_user(user)?;
    for file in client.list(user, prefix).await? {
        if json {
            say_json(&file)?;
        } else {
            say(format_args!("{:>12}  {}", human(file.bytes), file.name));
        }
    }
    Ok(())
}
