//! `reel rebuild-catalog`: fills a catalog from the segments of data folders.

use std::collections::BTreeSet;

use reel_control::catalog::{Catalog, Outcome, barrier};
use reel_engine::format::record::RecordKind;
use reel_engine::upkeep::repair_tables;
use reel_httpd::offer_of;
use serde::Serialize;

use crate::cli::RebuildCatalogArgs;
use crate::output::{Failure, say, say_json};

/// Records offered in one transaction.
const BATCH: usize = 512;

#[derive(Debug, Default, Serialize)]
struct Rebuilt {
    /// Records offered: living objects, and deletes.
    records: u64,
    /// Those that took effect.
    rows: u64,
    /// Those that an equal or newer row made needless.
    older: u64,
    /// Users settled on the folders' group.
    users: u64,
    /// Records that could not be read.
    unreadable: u64,
}

/// Every record says user, name, version and place; the versions decide, so the order of folders and
/// segments does not matter, and running it twice changes nothing.
pub fn run(args: RebuildCatalogArgs) -> Result<(), Failure> {
    let (store, _) = repair_tables(args.data.clone())?;
    let group = store.superblock().group;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let rebuilt = runtime.block_on(async {
        let catalog = Catalog::open(&args.catalog).await?;
        let mut rebuilt = Rebuilt::default();
        let mut users = BTreeSet::new();
        for number in store.list(None, usize::MAX) {
            let segment = match store.segment_blocking(number) {
                Ok(segment) => segment,
                Err(error) => {
                    crate::output::complain(&error.to_string());
                    rebuilt.unreadable += 1;
                    continue;
                }
            };
            let mut writes = Vec::new();
            for slot in 0..segment.slots() {
                let head = match segment.read_head(slot as u16) {
                    Ok(Some(head)) => head,
                    Ok(None) => continue,
                    Err(error) => {
                        crate::output::complain(&error.to_string());
                        rebuilt.unreadable += 1;
                        continue;
                    }
                };
                if head.kind == RecordKind::Object && users.insert(head.user.clone()) {
                    catalog.settle_user(&head.user, group).await?;
                    rebuilt.users += 1;
                }
                let object = number.object(head.slot).as_u64();
                writes.extend(offer_of(&head, object, group));
            }
            for batch in writes.chunks(BATCH) {
                for outcome in catalog.apply(batch).await? {
                    rebuilt.records += 1;
                    match outcome {
                        Outcome::Done { .. } => rebuilt.rows += 1,
                        _ => rebuilt.older += 1,
                    }
                }
            }
        }
        let durable = barrier(&args.catalog)();
        durable.map_err(|error| Failure::failed(format!("{}: {error}", args.catalog)))?;
        Ok::<_, Failure>(rebuilt)
    })?;
    if args.json {
        say_json(&rebuilt)?;
    } else {
        say(format_args!(
            "{} records offered, {} took effect, {} were older; {} users; {} could not be read",
            rebuilt.records, rebuilt.rows, rebuilt.older, rebuilt.users, rebuilt.unreadable
        ));
    }
    if rebuilt.unreadable > 0 {
        return Err(Failure { code: 1, message: String::new() });
    }
    Ok(())
}
