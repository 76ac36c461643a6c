//! `reel man`

use std::io::Write;

use clap::CommandFactory;

use crate::cli::{Cli, ManArgs};
use crate::output::Failure;

pub fn run(args: &ManArgs) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("man page: {error}"));
    match &args.out {
        Some(dir) => {
            std::fs::create_dir_all(dir).map_err(failed)?;
            clap_mangen::generate_to(Cli::command(), dir).map_err(failed)
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(failed)?;
            print(&page)
        }
    }
}

/// Prints bytes; a reader that has gone is fine.
pub fn print(bytes: &[u8]) -> Result<(), Failure> {
    match std::io::stdout().lock().write_all(bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(error.to_string()))
        }
        _ => Ok(()),
    }
}
