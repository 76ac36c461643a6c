//! Bits flipped anywhere in a data folder: each is found, and no wrong byte is ever given out.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it found"
)]

mod common;
#[path = "common/crash.rs"]
mod crash;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use reel_engine::disk::RealDisk;
use reel_engine::disk::sim::Rng;
use reel_engine::format::record::RecordKind;
use reel_engine::solo::SoloUpload;
use reel_engine::upkeep::{Damage, Finding, fsck};
use reel_engine::{
    Draft, FolderOptions, ObjectId, SegmentNumber, Store, StoreOptions, Writer, read,
};

use common::{payload, run};
use crash::crash_image;

fn options(dir: &Path) -> StoreOptions {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let numbers = || SegmentNumber::new(NEXT.fetch_add(1, Ordering::Relaxed));
    StoreOptions {
        segment_bytes: 256 << 10,
        ..StoreOptions::new([dir.to_owned()], Arc::new(numbers))
    }
}

fn draft(store: &Store, name: &str, target: Option<ObjectId>, payload: Bytes) -> Draft {
    Draft {
        kind: if target.is_some() { RecordKind::Dead } else { RecordKind::Object },
        user: "ann".into(),
        name: name.into(),
        content_type: String::new(),
        version: store.clock().next(),
        modified_ms: 5,
        target,
        payload_crc: crc32fast::hash(&payload),
        payload,
    }
}

/// A folder with everything in it, cleanly closed: what each object holds, and what is dead.
fn make(dir: &Path) -> (BTreeMap<ObjectId, Bytes>, Vec<ObjectId>) {
    let (store, _) = Store::open(options(dir)).unwrap();
    let mut objects = BTreeMap::new();
    let mut dead = Vec::new();
    run(async {
        let writer = Writer::new(Arc::clone(&store));
        let running = monoio::spawn(writer.clone().run());
        for index in 0..400u64 {
            let bytes = payload(index, 13 * (index as usize % 250));
            let stored =
                writer.put(draft(&store, &format!("{index}"), None, bytes.clone())).await.unwrap();
            store.settled(&stored.segment);
            objects.insert(stored.object, bytes);
            if index % 5 == 0 {
                let tombstone =
                    draft(&store, &format!("{index}"), Some(stored.object), Bytes::new());
                let tombstone = writer.put(tombstone).await.unwrap();
                store.kill(stored.object).unwrap();
                store.settled(&tombstone.segment);
                dead.push(stored.object);
            }
        }
        for index in 0..3u64 {
            let bytes = payload(1000 + index, 300_000 + index as usize);
            let mut solo = SoloUpload::begin(&store, 0).await.unwrap();
            let mut piece = solo.piece();
            piece.fill(&bytes);
            solo.write(piece).await.unwrap();
            let (stored, _) =
                solo.finish(draft(&store, "large", None, Bytes::new())).await.unwrap();
            store.settled(&stored.segment);
            objects.insert(stored.object, bytes);
        }
        writer.stop();
        running.await;
        while store.marked_count() > 0 {
            monoio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    });
    for object in &dead {
        objects.remove(object);
    }
    (objects, dead)
}

/// Every file of the format, by kind.
fn files(dir: &Path) -> BTreeMap<&'static str, Vec<PathBuf>> {
    let mut found: BTreeMap<&'static str, Vec<PathBuf>> = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.ends_with("superblock") {
                found.entry("superblock").or_default().push(path);
            } else if path.extension().is_some_and(|kind| kind == "idx") {
                found.entry("table").or_default().push(path);
            } else if path.extension().is_some_and(|kind| kind == "seg") {
                found.entry("segment").or_default().push(path);
            }
        }
    }
    found.values_mut().for_each(|paths| paths.sort());
    found
}

fn findings(dir: &Path) -> Vec<Finding> {
    let folder = FolderOptions { path: dir.to_owned(), disk: Arc::new(RealDisk) };
    fsck(&folder, |_| {}).unwrap().report.findings
}

#[test]
fn every_flipped_bit_is_found_and_no_wrong_byte_is_given_out() {
    let made = tempfile::tempdir().unwrap();
    let (objects, dead) = make(made.path());
    assert_eq!(findings(made.path()), [], "clean before");
    let mut rng = Rng::new(20_261_124);
    let (mut unreadable, mut refused) = (0, 0);
    for flip in 0..100 {
        let dir = crash_image(made.path());
        let files = files(dir.path());
        let kind = ["superblock", "table", "table", "segment", "segment", "segment"][flip % 6];
        let paths = &files[kind];
        let path = &paths[rng.below(paths.len() as u64) as usize];
        let mut bytes = std::fs::read(path).unwrap();
        let bit = rng.below(bytes.len() as u64 * 8) as usize;
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(path, &bytes).unwrap();
        let found = findings(dir.path());
        assert!(!found.is_empty(), "bit {bit} of {}: not found", path.display());
        let (store, _) = match Store::open(options(dir.path())) {
            Ok(opened) => opened,
            Err(error) => {
                assert_eq!(kind, "superblock", "{error}");
                refused += 1;
                continue;
            }
        };
        run(async {
            for (object, expected) in &objects {
                let Ok(segment) = store.segment(object.segment()).await else {
                    unreadable += 1;
                    continue;
                };
                let Some(located) = segment.locate(object.slot()) else {
                    unreadable += 1;
                    continue;
                };
                if segment.is_solo() {
                    let range = 0..located.length;
                    let checked = read::ensure_checked(&store, &segment, 0, &located, range).await;
                    if checked.is_err() {
                        unreadable += 1;
                        continue;
                    }
                    let mut bytes = vec![0; located.length as usize];
                    segment.file().read_exact_at(&mut bytes, located.offset).unwrap();
                    assert!(bytes == *expected, "bit {bit} of {}", path.display());
                    continue;
                }
                match read::read_checked(&store, &segment, object.slot(), &located, Vec::new())
                    .await
                {
                    Ok(bytes) => assert!(bytes == *expected, "bit {bit} of {}", path.display()),
                    Err(_) => unreadable += 1,
                }
            }
            for object in &dead {
                let Ok(segment) = store.segment(object.segment()).await else { continue };
                assert_eq!(segment.locate(object.slot()), None, "bit {bit} of {}", path.display());
            }
        });
    }
    println!(
        "100 bits flipped: 100 found; {refused} superblocks refused; {} objects read 100 times, 0 wrong, {unreadable} reads refused",
        objects.len()
    );
    assert!(unreadable > 0 && refused > 0);
}

#[test]
fn a_damaged_payload_is_repaired_with_the_right_bytes_only() {
    let dir = tempfile::tempdir().unwrap();
    let (objects, _) = make(dir.path());
    let (object, expected) =
        objects.iter().find(|(_, bytes)| (1000..200_000).contains(&bytes.len())).unwrap();
    let (store, _) = Store::open(options(dir.path())).unwrap();
    let segment = store.segment_blocking(object.segment()).unwrap();
    let located = segment.locate(object.slot()).unwrap();
    let path = segment.path().to_owned();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[located.offset as usize + 500] ^= 8;
    std::fs::write(&path, &bytes).unwrap();
    let report = reel_engine::upkeep::scrub_segment(&store, object.segment(), &mut |_| {}).unwrap();
    let named: Vec<_> = report.findings.iter().map(Finding::object_id).collect();
    assert_eq!(named, [Some(*object)]);
    let damage = Damage::found(&report.findings[0]).unwrap();
    assert_eq!(store.damaged_part(damage).unwrap(), Some(0..expected.len() as u64));
    let refused = store.repair(*object, 0, &bytes[..expected.len()]);
    assert!(refused.is_err(), "other bytes are refused");
    assert!(store.repair(*object, 0, &expected[1..]).is_err(), "a part of it is refused");
    assert!(store.repair(*object, 0, expected).unwrap());
    assert_eq!(store.damaged_part(damage).unwrap(), None, "it is whole");
    let report = reel_engine::upkeep::scrub_segment(&store, object.segment(), &mut |_| {}).unwrap();
    assert_eq!(report.findings, []);
}

#[test]
fn a_damaged_block_of_a_large_object_is_repaired_alone() {
    const BLOCK: u64 = 256 << 10;
    let dir = tempfile::tempdir().unwrap();
    let (objects, _) = make(dir.path());
    let (object, expected) = objects.iter().find(|(_, bytes)| bytes.len() > 300_000).unwrap();
    let (store, _) = Store::open(options(dir.path())).unwrap();
    let segment = store.segment_blocking(object.segment()).unwrap();
    let located = segment.locate(object.slot()).unwrap();
    let path = segment.path().to_owned();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[(located.offset + BLOCK + 77) as usize] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let report = reel_engine::upkeep::scrub_segment(&store, object.segment(), &mut |_| {}).unwrap();
    let damage = Damage::found(&report.findings[0]).unwrap();
    let part = store.damaged_part(damage).unwrap().unwrap();
    assert_eq!(part, BLOCK..expected.len() as u64);
    let met = reel_engine::read::bring_in(&segment, 0, &located, 0..located.length).unwrap_err();
    assert_eq!(Damage::met(&met), Some(damage), "a reader meets the same");
    let right = &expected[part.start as usize..part.end as usize];
    assert!(store.repair(*object, 0, right).is_err(), "the bytes of another block");
    assert!(store.repair(*object, located.length + 5, right).is_err(), "behind its end");
    assert!(store.repair(*object, part.start, right).unwrap());
    let report = reel_engine::upkeep::scrub_segment(&store, object.segment(), &mut |_| {}).unwrap();
    assert_eq!(report.findings, []);
    reel_engine::read::bring_in(&segment, 0, &located, 0..located.length).unwrap();
}
