//! A folder that has less space than was thought, or whose disk fails: what was to be written there is written to another one.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{payload, run};
use reel_engine::disk::sim::SimDisk;
use reel_engine::format::record::RecordKind;
use reel_engine::solo::SoloUpload;
use reel_engine::{
    Draft, Error, FolderOptions, ObjectId, Segment, SegmentNumber, Store, StoreOptions, Writer,
};

const RESERVE: u64 = 1 << 20;

/// A store in two folders, each on a disk of its own. The first has more space, as far as the store knows.
struct Site {
    store: Arc<Store>,
    first: SimDisk,
    second: SimDisk,
}

impl Site {
    fn open() -> Self {
        let paths = [Path::new("/first"), Path::new("/second")];
        let [first, second] =
            [(1, 800 << 20), (2, 700 << 20)].map(|(seed, capacity): (u64, u64)| {
                let disk = SimDisk::new(seed, &paths);
                disk.set_capacity(capacity);
                disk
            });
        let next = AtomicU64::new(1);
        let numbers = move || SegmentNumber::new(next.fetch_add(1, Ordering::Relaxed));
        let folder = |path: &Path, disk: &SimDisk| FolderOptions {
            path: path.to_owned(),
            disk: Arc::new(disk.clone()),
        };
        let options = StoreOptions {
            folders: vec![folder(paths[0], &first), folder(paths[1], &second)],
            segment_bytes: 1 << 20,
            prewrite_bytes: 0,
            reserve_bytes: RESERVE,
            ..StoreOptions::new([], Arc::new(numbers))
        };
        Self { store: Store::open(options).unwrap().0, first, second }
    }

    fn draft(&self, name: u64) -> Draft {
        let payload = payload(name, 40_000);
        Draft {
            kind: RecordKind::Object,
            user: "ann".to_owned(),
            name: name.to_string(),
            content_type: String::new(),
            version: self.store.clock().next(),
            modified_ms: 1,
            target: None,
            payload_crc: crc32fast::hash(&payload),
            payload,
        }
    }
}

/// Nothing more fits.
fn fill(disk: &SimDisk) {
    disk.set_capacity(0);
}

fn is_in(segment: &Segment, folder: &str) -> bool {
    segment.path().starts_with(folder)
}

#[test]
fn a_batch_that_found_its_folder_full_is_written_to_another_one() {
    let site = Site::open();
    run(async {
        let writer = Writer::new(Arc::clone(&site.store));
        let running = monoio::spawn(writer.clone().run());
        let mut stored: Vec<(ObjectId, u64)> = Vec::new();
        for name in 0..3 {
            let put = writer.put(site.draft(name)).await.unwrap();
            assert!(is_in(&put.segment, "/first"));
            stored.push((put.object, name));
        }
        fill(&site.first);
        let puts = [3, 4].map(|name| {
            let (writer, draft) = (writer.clone(), site.draft(name));
            (name, monoio::spawn(async move { writer.put(draft).await }))
        });
        for (name, put) in puts {
            let put = put.await.unwrap();
            assert!(is_in(&put.segment, "/second"));
            stored.push((put.object, name));
        }
        assert!(stored[3].0.slot() < stored[4].0.slot(), "in the order that they came in");
        for (object, name) in stored {
            let record = site.store.record(object).unwrap().unwrap();
            assert_eq!(record.head.name, name.to_string());
        }
        fill(&site.second);
        let refused = writer.put(site.draft(5)).await;
        assert!(matches!(refused, Err(Error::NoSpace { .. })), "{refused:?}");
        writer.stop();
        running.await;
    });
}

#[test]
fn a_large_upload_begins_where_there_is_room() {
    let site = Site::open();
    run(async {
        fill(&site.first);
        let mut solo = SoloUpload::begin(&site.store, 3 << 20).await.unwrap();
        let bytes = payload(9, 40_000);
        let mut piece = solo.piece();
        piece.fill(&bytes);
        solo.write(piece).await.unwrap();
        let (stored, _) = solo.finish(site.draft(9)).await.unwrap();
        assert!(is_in(&stored.segment, "/second"));
        let left = site.first.files().into_iter().filter(|(path, _)| path.ends_with(".seg"));
        assert_eq!(left.count(), 0, "nothing is left in the full one");
        fill(&site.second);
        let refused = SoloUpload::begin(&site.store, 3 << 20).await.err().unwrap();
        assert!(matches!(refused, Error::NoSpace { .. }), "{refused}");
    });
}

#[test]
fn what_a_failing_disk_does_not_take_another_one_does() {
    let site = Site::open();
    run(async {
        let writer = Writer::new(Arc::clone(&site.store));
        let running = monoio::spawn(writer.clone().run());
        let before = writer.put(site.draft(1)).await.unwrap();
        site.first.set_broken(Path::new("/first"), true);
        let after = writer.put(site.draft(2)).await.unwrap();
        assert!(is_in(&before.segment, "/first") && is_in(&after.segment, "/second"));
        assert!(site.store.folder_states()[0].failed.is_some());
        site.second.set_broken(Path::new("/second"), true);
        let refused = writer.put(site.draft(3)).await;
        assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
        writer.stop();
        running.await;
    });
    let site = Site::open();
    run(async {
        site.first.set_broken(Path::new("/first"), true);
        let solo = SoloUpload::begin(&site.store, 3 << 20).await.unwrap();
        let (stored, _) = solo.finish(site.draft(9)).await.unwrap();
        assert!(is_in(&stored.segment, "/second"));
    });
}

#[test]
fn a_spare_on_a_disk_that_has_failed_since_is_not_written_to() {
    let site = Site::open();
    run(async {
        let writer = Writer::new(Arc::clone(&site.store));
        let running = monoio::spawn(writer.clone().run());
        // The first segment gives way to one that was written before, which gets a spare when an eighth of it is used.
        let mut spare = None;
        for name in 0..10_000 {
            let put = writer.put(site.draft(name)).await.unwrap();
            let active = put.segment.number().get();
            let next = SegmentNumber::new(active + 1).unwrap();
            if active > 1 && site.store.loaded(next).is_some() {
                spare = Some(next);
                break;
            }
        }
        let spare = site.store.loaded(spare.unwrap()).unwrap();
        assert!(is_in(&spare, "/first"));
        site.first.set_broken(Path::new("/first"), true);
        let after = writer.put(site.draft(10_000)).await.unwrap();
        assert!(is_in(&after.segment, "/second"));
        writer.stop();
        running.await;
    });
}

#[test]
fn what_does_not_fit_beside_the_reserve_is_refused_before_its_first_byte() {
    let site = Site::open();
    site.first.set_capacity(40 << 20);
    site.second.set_capacity(30 << 20);
    site.store.refresh_space();
    run(async {
        let refused = SoloUpload::begin(&site.store, 39 << 20).await.err().unwrap();
        assert!(matches!(refused, Error::NoSpace { .. }), "{refused}");
        let fits = SoloUpload::begin(&site.store, 36 << 20).await.unwrap();
        drop(fits);
    });
}
