//! Data folders of every format version so far are read: see `examples/golden.rs`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use reel_engine::upkeep::{FindingKind, fsck, repair_tables};
use reel_engine::{FolderOptions, ObjectId, SegmentNumber, Store, StoreOptions, read};

fn payload(seed: u64, length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at as u64).wrapping_mul(seed * 2 + 1) >> 3) as u8).collect()
}

/// A copy of a golden folder: opening one changes it.
fn golden(version: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(version).join(".");
    let status =
        std::process::Command::new("cp").arg("-r").arg(from).arg(copy.path()).status().unwrap();
    assert!(status.success());
    copy
}

fn object(segment: u64, slot: u16) -> ObjectId {
    SegmentNumber::new(segment).unwrap().object(slot)
}

fn read_object(store: &Arc<Store>, object: ObjectId) -> Option<Vec<u8>> {
    monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build().unwrap().block_on(async {
        let segment = store.segment(object.segment()).await.ok()?;
        let located = segment.locate(object.slot())?;
        let bytes = read::read_checked(store, &segment, object.slot(), &located, Vec::new()).await;
        Some(bytes.unwrap())
    })
}

fn check(version: &str) {
    let dir = golden(version);
    let folder =
        FolderOptions { path: dir.path().to_owned(), disk: Arc::new(reel_engine::disk::RealDisk) };
    let before = fsck(&folder, |_| {}).unwrap();
    assert_eq!((before.node, before.group, before.marked), (7, 3, 1));
    let derived = |kind| matches!(kind, FindingKind::Table | FindingKind::NoTable);
    assert!(before.report.findings.iter().all(|finding| derived(finding.kind)), "{before:?}");
    let mut options = StoreOptions::new([dir.path().to_owned()], Arc::new(|| None));
    (options.cluster, options.node, options.group) = ("golden".to_owned(), 7, 3);
    let (store, recovery) = Store::open(options).unwrap();
    assert_eq!(recovery.offer, [SegmentNumber::new(3).unwrap()]);
    for index in 0..20u16 {
        let expected = payload(u64::from(index), 37 * usize::from(index));
        let expected = (!matches!(index, 3 | 4)).then_some(expected);
        assert_eq!(read_object(&store, object(1, index)), expected, "{version} object {index}");
    }
    let segment = store.segment_blocking(SegmentNumber::new(1).unwrap()).unwrap();
    let deleted = segment.read_head(20).unwrap().unwrap();
    assert_eq!((deleted.name.as_str(), deleted.target), ("small/3", Some(object(1, 3))));
    assert_eq!(read_object(&store, object(2, 0)).unwrap(), payload(100, 300_000));
    for index in 0..5u16 {
        let seed = u64::from(index) + 20;
        assert_eq!(
            read_object(&store, object(3, index)).unwrap(),
            payload(seed, 37 * seed as usize)
        );
    }
    drop((store, segment));
    drop(repair_tables(vec![dir.path().to_owned()]).unwrap());
    let after = fsck(&folder, |_| {}).unwrap();
    assert_eq!(after.report.findings, [], "{version}");
    assert_eq!((after.report.objects, after.report.dead, after.report.tombstones), (24, 2, 2));
}

#[test]
fn a_folder_of_format_version_1_is_read() {
    check("v1");
}

#[test]
fn a_folder_of_format_version_2_is_read() {
    check("v2");
}
