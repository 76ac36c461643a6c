//! `reel completions`

use clap::CommandFactory;

use crate::cli::{Cli, CompletionsArgs};
use crate::output::Failure;

pub fn run(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "reel", &mut script);
    crate::man::print(&script)
}
