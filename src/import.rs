//! `reel import`

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use futures_util::{StreamExt, stream};
use reel_control::api::FileView;
use reel_control::client::{Client, ClientError, Source};
use reel_control::names;

use crate::cli::ImportArgs;
use crate::get::crc_of;
use crate::output::{Bar, Failure, complain, human, say, say_json};

/// One file of the tree.
struct Entry {
    path: PathBuf,
    name: String,
    bytes: u64,
}

enum Done {
    Uploaded(u64),
    Equal,
    Failed,
}

pub async fn run(client: &Client, args: ImportArgs, json: bool) -> Result<(), Failure> {
    names::check_user(&args.user)?;
    let mut entries = Vec::new();
    let mut failed = 0u64;
    walk(&args.dir, &args.prefix, &mut entries, &mut failed)?;
    let there = present(client, &args.user, &args.prefix).await?;
    let total = entries.iter().map(|entry| entry.bytes).sum();
    let bar = Bar::new("import", Some(total));
    let results: Vec<Done> = stream::iter(entries)
        .map(|entry| {
            let (there, bar, user) = (there.get(&entry.name), bar.clone(), args.user.as_str());
            async move { import_one(client, user, entry, there, &bar).await }
        })
        .buffer_unordered(args.jobs as usize)
        .collect()
        .await;
    bar.finish();
    let (mut uploaded, mut equal, mut bytes) = (0u64, 0u64, 0u64);
    for done in results {
        match done {
            Done::Uploaded(more) => {
                uploaded += 1;
                bytes += more;
            }
            Done::Equal => equal += 1,
            Done::Failed => failed += 1,
        }
    }
    if json {
        say_json(
            &serde_json::json!({ "uploaded": uploaded, "bytes": bytes, "equal": equal, "failed": failed }),
        )?;
    } else {
        say(format_args!(
            "{uploaded} uploaded ({}), {equal} equal already, {failed} failed",
            human(bytes)
        ));
    }
    if failed > 0 {
        return Err(Failure::failed(format!(
            "{failed} files were not uploaded; run it again to go on"
        )));
    }
    Ok(())
}

async fn present(
    client: &Client,
    user: &str,
    prefix: &str,
) -> Result<HashMap<String, FileView>, Failure> {
    match client.list(user, prefix).await {
        Ok(files) => Ok(files.into_iter().map(|file| (file.name.clone(), file)).collect()),
        // A user without files yet.
        Err(ClientError::Refused { status: 404, .. }) => Ok(HashMap::new()),
        Err(error) => Err(error.into()),
    }
}

async fn import_one(
    client: &Client,
    user: &str,
    entry: Entry,
    there: Option<&FileView>,
    bar: &Bar,
) -> Done {
    if let Some(there) = there
        && there.bytes == entry.bytes
    {
        let path = entry.path.clone();
        let crc = tokio::task::spawn_blocking(move || crc_of(&path)).await;
        if matches!(crc, Ok(Ok(crc)) if format!("{crc:08x}") == there.crc32) {
            (bar.progress())(entry.bytes);
            return Done::Equal;
        }
    }
    let source = Source::File { path: entry.path.clone(), bytes: entry.bytes };
    match client.put(user, &entry.name, None, source, bar.progress()).await {
        Ok(_) => Done::Uploaded(entry.bytes),
        Err(error) => {
            complain(&format!("{}: {error}", entry.path.display()));
            Done::Failed
        }
    }
}

/// Collects the files below `dir`. What cannot be read or named is complained of and counted.
fn walk(
    dir: &Path,
    prefix: &str,
    entries: &mut Vec<Entry>,
    failed: &mut u64,
) -> Result<(), Failure> {
    let listing = std::fs::read_dir(dir)
        .map_err(|error| Failure::failed(format!("{}: {error}", dir.display())))?;
    let mut paths: Vec<PathBuf> =
        listing.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.sort();
    for path in paths {
        let own = path.file_name().and_then(|name| name.to_str());
        let name = own.map(|own| format!("{prefix}{own}"));
        let problem = match (&name, std::fs::metadata(&path)) {
            (None, _) => Some("its name is not UTF-8".to_owned()),
            (_, Err(error)) => Some(error.to_string()),
            (Some(name), Ok(metadata)) if metadata.is_dir() => {
                match walk(&path, &format!("{name}/"), entries, failed) {
                    Ok(()) => None,
                    Err(failure) => Some(failure.message),
                }
            }
            (Some(name), Ok(metadata)) if metadata.is_file() => match names::check_name(name) {
                Ok(()) => {
                    entries.push(Entry {
                        path: path.clone(),
                        name: name.clone(),
                        bytes: metadata.len(),
                    });
                    None
                }
                Err(error) => Some(error.to_string()),
            },
            _ => None,
        };
        if let Some(problem) = problem {
            complain(&format!("{}: {problem}", path.display()));
            *failed += 1;
        }
    }
    Ok(())
}
