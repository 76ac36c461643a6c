//! `reel fsck`: judges data folders that no process uses, and compares them with a catalog.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use reel_control::catalog::{Catalog, CatalogError, Row};
use reel_engine::disk::RealDisk;
use reel_engine::format::record::RecordKind;
use reel_engine::upkeep::{Checked, Finding, FindingKind, Report, fsck, repair_tables};
use reel_engine::{FolderOptions, ObjectId, Store};
use reel_httpd::{Verdict, judge};
use serde::Serialize;

use crate::cli::FsckArgs;
use crate::output::{Failure, human, say, say_json};

/// Rows or records compared at a time.
const BATCH: u32 = 512;

/// What the comparison with the catalog found.
#[derive(Debug, Default, Serialize)]
struct Compared {
    /// Living objects.
    objects: u64,
    /// Objects that no row names.
    orphans: Vec<String>,
    /// Rows compared, of the folders' group.
    rows: u64,
    /// Rows that name an object which is not in these folders.
    missing: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Output {
    folders: Vec<Checked>,
    mended: Vec<Finding>,
    catalog: Option<Compared>,
    clean: bool,
}

impl From<reel_engine::Error> for Failure {
    fn from(error: reel_engine::Error) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<CatalogError> for Failure {
    fn from(error: CatalogError) -> Self {
        Self::failed(error.to_string())
    }
}

pub fn run(args: FsckArgs) -> Result<(), Failure> {
    let mended = if args.repair_tables { repair_tables(args.dirs.clone())?.1 } else { Vec::new() };
    let disk: Arc<dyn reel_engine::disk::Disk> = Arc::new(RealDisk);
    let mut folders = Vec::new();
    for path in &args.dirs {
        let options = FolderOptions { path: path.clone(), disk: Arc::clone(&disk) };
        folders.push(fsck(&options, |_| {})?);
    }
    let catalog = match &args.catalog {
        Some(url) => Some(compare(&args.dirs, url)?),
        None => None,
    };
    let found: usize = folders.iter().map(|checked| checked.report.findings.len()).sum();
    let clean = found == 0
        && catalog
            .as_ref()
            .is_none_or(|compared| compared.orphans.is_empty() && compared.missing.is_empty());
    let output = Output { folders, mended, catalog, clean };
    if args.json {
        say_json(&output)?;
    } else {
        print(&output);
    }
    if clean { Ok(()) } else { Err(Failure { code: 1, message: String::new() }) }
}

fn print(output: &Output) {
    for finding in &output.mended {
        say(format_args!("mended: {finding}"));
    }
    for checked in &output.folders {
        let Report { segments, objects, dead, tombstones, bytes, findings } = &checked.report;
        for finding in findings {
            say(finding);
        }
        say(format_args!(
            "{}: node {}, group {}: {segments} segments, {objects} objects, {dead} dead, {tombstones} tombstones, {} read; {} active at the end; {}",
            checked.folder.display(),
            checked.node,
            checked.group,
            human(*bytes),
            checked.marked,
            match findings.len() {
                0 => "clean".to_owned(),
                count => format!("{count} findings{}", hint(findings)),
            },
        ));
    }
    if let Some(compared) = &output.catalog {
        for orphan in &compared.orphans {
            say(format_args!("no row names object {orphan}"));
        }
        for row in &compared.missing {
            say(format_args!("not in these folders: {row}"));
        }
        say(format_args!(
            "catalog: {} objects, {} without a row; {} rows, {} without an object",
            compared.objects,
            compared.orphans.len(),
            compared.rows,
            compared.missing.len(),
        ));
    }
}

/// What to do about findings.
fn hint(findings: &[Finding]) -> &'static str {
    let derived = |finding: &&Finding| {
        matches!(finding.kind, FindingKind::Table | FindingKind::NoTable | FindingKind::Header)
    };
    if findings.iter().any(|finding| finding.object.is_some()) {
        "; damaged objects are fetched from a peer by the node's scrub"
    } else if findings.iter().all(|finding| derived(&finding)) {
        "; --repair-tables mends them"
    } else {
        ""
    }
}

/// Compares living objects and rows, both ways. Opens the folders as their node would.
fn compare(dirs: &[PathBuf], url: &str) -> Result<Compared, Failure> {
    let (store, _) = repair_tables(dirs.to_vec())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    runtime.block_on(async {
        let catalog = Catalog::open(url).await?;
        let mut compared = Compared::default();
        for number in store.list(None, usize::MAX) {
            compare_segment(&store, &catalog, number, &mut compared).await?;
        }
        compare_rows(&store, &catalog, &mut compared).await?;
        Ok(compared)
    })
}

async fn compare_segment(
    store: &Arc<Store>,
    catalog: &Catalog,
    number: reel_engine::SegmentNumber,
    compared: &mut Compared,
) -> Result<(), Failure> {
    let segment = store.segment_blocking(number)?;
    let mut heads = Vec::new();
    for slot in 0..segment.slots() {
        match segment.read_head(slot as u16) {
            Ok(Some(head)) if head.kind == RecordKind::Object => heads.push(head),
            // Damage has been reported by the check of every byte.
            _ => {}
        }
    }
    for batch in heads.chunks(BATCH as usize) {
        let names: Vec<_> =
            batch.iter().map(|head| (head.user.clone(), head.name.clone())).collect();
        let rows = catalog.rows_of(&names).await?;
        for (head, row) in batch.iter().zip(&rows) {
            let object = number.object(head.slot);
            compared.objects += 1;
            if judge(head, object, row.as_ref()) != Verdict::Named {
                compared.orphans.push(format!("{object} ({}/{})", head.user, head.name));
            }
        }
    }
    Ok(())
}

async fn compare_rows(
    store: &Arc<Store>,
    catalog: &Catalog,
    compared: &mut Compared,
) -> Result<(), Failure> {
    let group = store.superblock().group;
    let mut after = (String::new(), String::new());
    loop {
        let rows = catalog.rows((&after.0, &after.1), BATCH).await?;
        let Some(last) = rows.last() else { return Ok(()) };
        after = (last.user.clone(), last.name.clone());
        let mut segments = HashMap::new();
        for row in rows.iter().filter(|row| !row.is_mark() && row.group == group) {
            compared.rows += 1;
            let object = ObjectId::from_u64(row.object);
            let segment = segments
                .entry(object.segment())
                .or_insert_with(|| store.segment_blocking(object.segment()).ok());
            if segment.as_ref().and_then(|segment| segment.locate(object.slot())).is_none() {
                compared.missing.push(name_of(row, object));
            }
        }
    }
}

fn name_of(row: &Row, object: ObjectId) -> String {
    format!("{}/{}: object {object}, {}", row.user, row.name, row.path)
}
