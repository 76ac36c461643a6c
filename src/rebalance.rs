//! `reel rebalance`: moves files from one group to another while everything runs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use reel_control::api::{Addresses, Moved};
use reel_control::catalog::{Catalog, Row};
use reel_control::client::{Client, ClientError, Progress};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::cli::RebalanceArgs;
use crate::output::{Bar, Failure, complain, human, say, say_json};

/// Rows read from the catalog at a time.
const PAGE: u32 = 1000;
/// How long a group may be without an active node.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Failures that are said one by one.
const SAID: u64 = 10;

#[derive(Debug, Default, Serialize)]
struct Rebalanced {
    /// Files that were moved.
    files: u64,
    /// Their bytes.
    bytes: u64,
    /// Files that had been moved, replaced or deleted meanwhile.
    skipped: u64,
    /// Files that could not be moved; they are where they were.
    failed: u64,
    /// Users whose new files go to the new group.
    users: u64,
}

/// The catalog's rows say what is left to do, so a run that was ended is gone on with by starting it again.
pub async fn run(client: &Client, args: RebalanceArgs, json: bool) -> Result<(), Failure> {
    if args.from == args.to {
        return Err(Failure::usage("--from and --to are the same group"));
    }
    let catalog = Catalog::open(&args.catalog).await?;
    // Both groups have to be there before anything is begun.
    let groups = client.groups().await?.groups;
    for group in [args.from, args.to] {
        if !groups.iter().any(|known| known.group == group) {
            return Err(Failure::failed(format!("there is no group {group}")));
        }
    }
    let bar = Bar::new("rebalance", None);
    let progress = bar.progress();
    let mut done = Rebalanced::default();
    let mut users = BTreeSet::new();
    let mut begun = 0;
    let mut jobs = JoinSet::new();
    let (mut user, mut name) = (String::new(), String::new());
    'pages: loop {
        let rows = catalog.rows((&user, &name), PAGE).await?;
        let Some(last) = rows.last() else { break };
        (user, name) = (last.user.clone(), last.name.clone());
        for row in rows {
            let wanted = !row.is_mark()
                && row.group == args.from
                && (args.users.is_empty() || args.users.contains(&row.user));
            if !wanted {
                continue;
            }
            if args.bytes.is_some_and(|most| begun >= most.0) {
                break 'pages;
            }
            begun += row.bytes;
            if args.dry_run {
                done.files += 1;
                done.bytes += row.bytes;
                continue;
            }
            if jobs.len() >= args.jobs as usize
                && let Some(joined) = jobs.join_next().await
            {
                count(joined, &mut done, &progress);
            }
            users.insert(row.user.clone());
            let (client, from, to) = (client.clone(), args.from, args.to);
            jobs.spawn(async move { move_row(&client, row, from, to).await });
        }
    }
    while let Some(joined) = jobs.join_next().await {
        count(joined, &mut done, &progress);
    }
    bar.finish();
    if args.new_files && !args.dry_run {
        for user in &users {
            catalog.move_user(user, args.to).await?;
            done.users += 1;
        }
    }
    if json {
        say_json(&done)?;
    } else {
        let verb = if args.dry_run { "would be moved" } else { "moved" };
        say(format_args!(
            "{} files with {} {verb} from group {} to {}; {} needed it no more, {} failed; new files of {} users go there",
            done.files,
            human(done.bytes),
            args.from,
            args.to,
            done.skipped,
            done.failed,
            done.users
        ));
    }
    if done.failed > 0 {
        return Err(Failure::failed(format!(
            "{} files could not be moved; they are where they were: run it again",
            done.failed
        )));
    }
    Ok(())
}

/// A group's nodes. They come and go meanwhile: a moment without any is waited for.
async fn nodes_of(client: &Client, group: u32) -> Result<Addresses, ClientError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.nodes_of(group).await {
            Err(error) if error.is_passing() && Instant::now() < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            answer => return answer,
        }
    }
}

type Outcome = (Row, Result<Moved, ClientError>);

async fn move_row(client: &Client, row: Row, from: u32, to: u32) -> Outcome {
    let moved = async {
        let (from, to) = (nodes_of(client, from).await?, nodes_of(client, to).await?);
        client.move_file((&row.user, &row.name), &to, &from).await
    };
    let moved = moved.await;
    (row, moved)
}

fn count(
    joined: Result<Outcome, tokio::task::JoinError>,
    done: &mut Rebalanced,
    progress: &Progress,
) {
    match joined {
        Ok((_, Ok(moved))) if moved.moved => {
            done.files += 1;
            done.bytes += moved.bytes;
            progress(moved.bytes);
        }
        Ok((_, Ok(_))) => done.skipped += 1,
        Ok((row, Err(error))) => {
            done.failed += 1;
            if done.failed <= SAID {
                complain(&format!("{}/{}: {error}", row.user, row.name));
            }
        }
        Err(error) => {
            done.failed += 1;
            complain(&error.to_string());
        }
    }
}
