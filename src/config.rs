//! `reel config`

use reel_control::config::{Config, example};

use crate::cli::{ConfigAction, ConfigArgs, KeepalivedArgs, Role};
use crate::keepalived;
use crate::output::{Failure, say};

fn say_config(args: &KeepalivedArgs) -> Result<(), Failure> {
    let text = keepalived::config(args).map_err(Failure::usage)?;
    crate::man::print(text.as_bytes())
}

pub fn run(args: &ConfigArgs) -> Result<(), Failure> {
    match &args.action {
        ConfigAction::Check { file } => {
            let config = Config::load(file).map_err(|error| Failure::failed(error.to_string()))?;
            let roles = [
                ("tracker", config.tracker.is_some()),
                ("id", config.id.is_some()),
                ("storage", config.storage.is_some()),
                ("http", config.http.is_some()),
            ];
            let roles: Vec<&str> =
                roles.into_iter().filter(|(_, there)| *there).map(|(role, _)| role).collect();
            if roles.is_empty() {
                return Err(Failure::failed(format!(
                    "{}: has no section of a role: [tracker], [id], [storage] or [http]",
                    file.display()
                )));
            }
            say(format_args!("{}: good, for {}", file.display(), roles.join(", ")));
            Ok(())
        }
        ConfigAction::Keepalived(args) => say_config(args),
        ConfigAction::Example { role } => {
            let name = match role {
                Role::Tracker => "tracker",
                Role::Id => "id",
                Role::Storage => "storage",
                Role::Http => "http",
            };
            crate::man::print(example(name).unwrap_or_default().as_bytes())
        }
    }
}
