//! The engine on a real disk: what a crash leaves, what a copy takes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/crash.rs"]
mod crash;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use reel_engine::format::record::RecordKind;
use reel_engine::replica::{PackedReplica, SoloReplica};
use reel_engine::solo::SoloUpload;
use reel_engine::{Draft, ObjectId, Recovery, SegmentNumber, Store, StoreOptions, Writer, read};

use common::{payload, run};
use crash::crash_image;

fn open(dir: &Path, first: u64) -> (Arc<Store>, Recovery) {
    let next = AtomicU64::new(first);
    let numbers = move || SegmentNumber::new(next.fetch_add(1, Ordering::Relaxed));
    let mut options = StoreOptions::new([dir.to_owned()], Arc::new(numbers));
    options.segment_bytes = 1 << 20;
    Store::open(options).unwrap()
}

fn draft(store: &Store, name: &str, payload: &Bytes) -> Draft {
    Draft {
        kind: RecordKind::Object,
        user: "ann".into(),
        name: name.into(),
        content_type: "video/mp4".into(),
        version: store.clock().next(),
        modified_ms: 5,
        target: None,
        payload: payload.clone(),
        payload_crc: crc32fast::hash(payload),
    }
}

/// Uploads `count` small objects at once, and gives their ids.
async fn upload(store: &Arc<Store>, writer: &Writer, count: u64) -> Vec<ObjectId> {
    let mut tasks = Vec::new();
    for index in 0..count {
        let (store, writer) = (Arc::clone(store), writer.clone());
        tasks.push(monoio::spawn(async move {
            let payload = payload(index, 1000 + index as usize);
            writer.put(draft(&store, &format!("file-{index}"), &payload)).await.unwrap().object
        }));
    }
    let mut objects = Vec::new();
    for task in tasks {
        objects.push(task.await);
    }
    objects
}

async fn write(solo: &mut SoloUpload, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let mut piece = solo.piece();
        bytes = &bytes[piece.fill(bytes)..];
        solo.write(piece).await.unwrap();
    }
}

async fn read_object(store: &Arc<Store>, object: ObjectId) -> Option<Vec<u8>> {
    let segment = store.segment(object.segment()).await.ok()?;
    let located = segment.locate(object.slot())?;
    Some(read::read_checked(store, &segment, object.slot(), &located, Vec::new()).await.unwrap())
}

#[test]
fn a_torn_record_is_cut_off_and_the_rest_survives() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let (store, _) = open(dir.path(), 1);
        let writer = Writer::new(Arc::clone(&store));
        monoio::spawn(writer.clone().run());
        let objects = upload(&store, &writer, 50).await;
        let image = crash_image(dir.path());
        // The last record loses its last bytes, as when its sectors never reached the disk.
        let last = store.segment(objects[0].segment()).await.unwrap();
        let path = image.path().join(objects[0].segment().path());
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(last.durable() - 100).unwrap();
        let (again, recovery) = open(image.path(), 100);
        assert_eq!(recovery.offer, [objects[0].segment()]);
        assert!(recovery.cut_bytes > 0);
        let mut lost = 0;
        for (index, object) in objects.iter().enumerate() {
            match read_object(&again, *object).await {
                Some(bytes) => assert_eq!(bytes, payload(index as u64, 1000 + index)),
                None => lost += 1,
            }
        }
        assert_eq!(lost, 1, "only the torn one");
    });
}

#[test]
fn an_active_segment_whose_header_is_damaged_is_set_aside_with_all_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let (store, _) = open(dir.path(), 1);
        let writer = Writer::new(Arc::clone(&store));
        monoio::spawn(writer.clone().run());
        let number = upload(&store, &writer, 5).await[0].segment();
        let image = crash_image(dir.path());
        let path = image.path().join(number.path());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[..64].fill(0x5a);
        std::fs::write(&path, &bytes).unwrap();
        let (again, recovery) = open(image.path(), 100);
        assert_eq!(recovery.damaged, [number]);
        assert!(!again.has(number) && !again.is_marked(number), "a peer's copy may come");
        drop(again);
        assert!(!path.exists());
        assert_eq!(std::fs::read(path.with_added_extension("damaged")).unwrap(), bytes);
        let (_, recovery) = open(image.path(), 200);
        assert_eq!((recovery.damaged, recovery.offer), (vec![], vec![]));
    });
}

#[test]
fn every_cut_of_a_segment_leaves_whole_records_only() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let (store, _) = open(dir.path(), 1);
        let writer = Writer::new(Arc::clone(&store));
        monoio::spawn(writer.clone().run());
        let objects = upload(&store, &writer, 12).await;
        let whole = store.segment(objects[0].segment()).await.unwrap().durable();
        for cut in (0..=whole).step_by(97).chain([whole]) {
            let image = crash_image(dir.path());
            let path = image.path().join(objects[0].segment().path());
            std::fs::File::options().write(true).open(path).unwrap().set_len(cut).unwrap();
            let (again, _) = open(image.path(), 100);
            let mut alive = 0;
            for (index, object) in objects.iter().enumerate() {
                if let Some(bytes) = read_object(&again, *object).await {
                    assert_eq!(bytes, payload(index as u64, 1000 + index), "cut at {cut}");
                    alive += 1;
                }
            }
            assert!(cut < whole || alive == objects.len());
        }
    });
}

#[test]
fn zeros_written_ahead_are_not_a_torn_tail() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let (store, _) = open(dir.path(), 1);
        let writer = Writer::new(Arc::clone(&store));
        monoio::spawn(writer.clone().run());
        let objects = upload(&store, &writer, 5).await;
        let image = crash_image(dir.path());
        let path = image.path().join(objects[0].segment().path());
        std::fs::File::options().write(true).open(path).unwrap().set_len(1 << 20).unwrap();
        let (again, recovery) = open(image.path(), 100);
        assert_eq!(recovery.cut_bytes, 0);
        assert!(read_object(&again, objects[4]).await.is_some());
    });
}

#[test]
fn a_large_upload_is_there_when_it_is_finished_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let (store, _) = open(dir.path(), 1);
        let mut solo = SoloUpload::begin(&store, 0).await.unwrap();
        let bytes = payload(3, 3_500_000);
        write(&mut solo, &bytes).await;
        let before = crash_image(dir.path());
        assert_eq!(solo.crc(), crc32fast::hash(&bytes));
        let (stored, crc) = solo.finish(draft(&store, "large", &Bytes::new())).await.unwrap();
        assert_eq!(crc, crc32fast::hash(&bytes));
        let after = crash_image(dir.path());
        let (unfinished, recovery) = open(before.path(), 100);
        assert_eq!((recovery.unfinished, unfinished.segment_count()), (1, 0));
        let (finished, recovery) = open(after.path(), 100);
        assert_eq!(recovery.offer, [stored.object.segment()]);
        assert_eq!(read_object(&finished, stored.object).await.unwrap(), bytes);
        finished.kill(stored.object).unwrap();
        assert!(read_object(&finished, stored.object).await.is_none());
    });
}

#[test]
fn a_copy_is_equal_however_its_bytes_come_and_damage_is_noticed() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(async {
        let (store, _) = open(dir.path(), 1);
        let writer = Writer::new(Arc::clone(&store));
        monoio::spawn(writer.clone().run());
        let objects = upload(&store, &writer, 40).await;
        let number = objects[0].segment();
        let (copy, _) = open(other.path(), 1000);
        let known = store.describe(number).unwrap();
        let file = std::fs::read(dir.path().join(number.path())).unwrap();
        let mut replica = PackedReplica::open(&copy, &known).await.unwrap().unwrap();
        assert_eq!(replica.next_offset(), 4096);
        let mut arrived = 0;
        let middle = known.length as usize / 2;
        for piece in file[4096..middle].chunks(777) {
            arrived += replica.append(piece).await.unwrap().len();
        }
        let mut damaged = file[middle..known.length as usize].to_vec();
        damaged[3000] ^= 4;
        assert!(replica.append(&damaged).await.is_err());
        drop(replica);
        // Taken up again at the last whole record.
        let mut replica = PackedReplica::open(&copy, &known).await.unwrap().unwrap();
        let from = replica.next_offset() as usize;
        arrived += replica.append(&file[from..known.length as usize]).await.unwrap().len();
        assert_eq!(arrived, 40);
        replica.finish().await.unwrap();
        for (index, object) in objects.iter().enumerate() {
            assert_eq!(
                read_object(&copy, *object).await.unwrap(),
                payload(index as u64, 1000 + index)
            );
        }
    });
}

#[test]
fn a_copy_of_a_large_object_with_a_flipped_bit_never_appears() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(async {
        let (store, _) = open(dir.path(), 1);
        let mut solo = SoloUpload::begin(&store, 0).await.unwrap();
        write(&mut solo, &payload(9, 900_000)).await;
        let (stored, _) = solo.finish(draft(&store, "large", &Bytes::new())).await.unwrap();
        let number = stored.object.segment();
        let known = store.describe(number).unwrap();
        let good = std::fs::read(dir.path().join(number.path())).unwrap();
        let (copy, _) = open(other.path(), 1000);
        for flip in [Some(700_000), None] {
            let mut bytes = good.clone();
            if let Some(at) = flip {
                bytes[at] ^= 1;
            }
            let mut replica = SoloReplica::open(&copy, &known).await.unwrap().unwrap();
            for piece in bytes.chunks(100_000) {
                replica.append(piece).await.unwrap();
            }
            assert_eq!(replica.finish().await.is_ok(), flip.is_none());
            // What a failed one has written goes on a disk thread.
            while flip.is_some() && copy.has(number) {
                monoio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            assert_eq!(read_object(&copy, stored.object).await.is_some(), flip.is_none());
        }
    });
}
