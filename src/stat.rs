//! `reel stat`

use reel_control::client::Client;
use reel_control::names;

use crate::cli::TargetArgs;
use crate::output::{Failure, say, say_json};

pub async fn run(client: &Client, args: &TargetArgs, json: bool) -> Result<(), Failure> {
    let (user, name) = names::parse_target(&args.target)?;
    let file = client.stat(&user, &name).await?;
    if json {
        return say_json(&file);
    }
    say(format_args!("name      {user}/{}", file.name));
    say(format_args!("bytes     {}", file.bytes));
    say(format_args!("type      {}", file.content_type));
    say(format_args!("crc32     {}", file.crc32));
    say(format_args!("object    {}", file.object));
    say(format_args!("group     {}", file.group));
    say(format_args!("modified  {}", reel_httpd::http::date::format(file.modified_ms / 1000)));
    Ok(())
}
