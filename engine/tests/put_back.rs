//! An object that a complete copy lacks is put back from a peer's record of it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reel_engine::format::record::RecordKind;
use reel_engine::supply::Record;
use reel_engine::upkeep::compact_now;
use reel_engine::{Draft, ObjectId, SegmentNumber, Store, StoreOptions, Writer, read};

fn run<T>(future: impl Future<Output = T>) -> T {
    let builder = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().enable_timer();
    let mut runtime = builder.build().unwrap();
    runtime.block_on(future)
}

fn open(dir: &Path) -> Arc<Store> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let numbers = || SegmentNumber::new(NEXT.fetch_add(1, Ordering::Relaxed));
    Store::open(StoreOptions::new([dir.to_owned()], Arc::new(numbers))).unwrap().0
}

fn payload(index: usize) -> Bytes {
    (0..700 + index).map(|at| (at * (index + 3)) as u8).collect()
}

/// Five objects in one sealed segment.
fn make(dir: &Path) -> Vec<ObjectId> {
    let store = open(dir);
    run(async {
        let writer = Writer::new(Arc::clone(&store));
        let running = monoio::spawn(writer.clone().run());
        let mut objects = Vec::new();
        for index in 0..5 {
            let payload = payload(index);
            let draft = Draft {
                kind: RecordKind::Object,
                user: "ann".into(),
                name: format!("{index}"),
                content_type: String::new(),
                version: store.clock().next(),
                modified_ms: 5,
                target: None,
                payload_crc: crc32fast::hash(&payload),
                payload,
            };
            let stored = writer.put(draft).await.unwrap();
            store.settled(&stored.segment);
            objects.push(stored.object);
        }
        writer.stop();
        running.await;
        while store.marked_count() > 0 {
            monoio::time::sleep(Duration::from_millis(2)).await;
        }
        objects
    })
}

fn read_all(store: &Arc<Store>, objects: &[ObjectId]) -> Vec<Option<Bytes>> {
    let one = |object: &ObjectId| {
        let segment = store.segment_blocking(object.segment()).unwrap();
        let located = segment.locate(object.slot())?;
        let bytes = run(read::read_checked(store, &segment, object.slot(), &located, Vec::new()));
        Some(Bytes::from(bytes.unwrap()))
    };
    objects.iter().map(one).collect()
}

#[test]
fn what_a_peer_supplies_is_put_back_in_its_slot() {
    let dir = tempfile::tempdir().unwrap();
    let objects = make(dir.path());
    let store = open(dir.path());
    let whole: Vec<_> = (0..5).map(|index| Some(payload(index))).collect();
    assert_eq!(read_all(&store, &objects), whole);
    let number = objects[0].segment();
    let sent: Vec<Record> =
        [1, 3].map(|at| store.record(objects[at]).unwrap().unwrap()).into_iter().collect();
    let digest = store.held(number).unwrap();
    drop(store);

    // Two heads become illegible, and the table that would still know of them is lost.
    let path = dir.path().join(number.path());
    let bytes = std::fs::read(&path).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let starts = bytes.windows(4).enumerate().filter(|(_, four)| four == b"RREC");
    let starts: Vec<usize> = starts.map(|(at, _)| at).collect();
    assert_eq!(starts.len(), 5);
    for at in [1, 3] {
        file.write_all_at(&[0xff], starts[at] as u64 + 20).unwrap();
    }
    std::fs::remove_file(path.with_extension("idx")).unwrap();
    let store = open(dir.path());
    let mut lacking = whole.clone();
    (lacking[1], lacking[3]) = (None, None);
    assert_eq!(read_all(&store, &objects), lacking);
    assert_eq!(store.record(objects[1]).unwrap(), None);

    for record in &sent {
        let arrived = Record::decode(&record.encode()).unwrap();
        assert!(store.supply(arrived));
    }
    compact_now(&store).unwrap();
    assert_eq!(read_all(&store, &objects), whole);
    assert_eq!(store.held(number).unwrap().contents, digest.contents);
    drop(store);
    let store = open(dir.path());
    assert_eq!(read_all(&store, &objects), whole, "after a start");
    assert_eq!(store.record(objects[3]).unwrap().unwrap().head.name, "3");
}

#[test]
fn what_is_here_already_or_dead_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let objects = make(dir.path());
    let store = open(dir.path());
    let records: Vec<Record> =
        objects[..2].iter().map(|object| store.record(*object).unwrap().unwrap()).collect();
    store.kill(objects[0]).unwrap();
    for record in records {
        assert!(store.supply(record));
    }
    compact_now(&store).unwrap();
    let found = read_all(&store, &objects);
    assert_eq!(found[0], None, "the dead do not come back");
    assert_eq!(found[1..], (1..5).map(|index| Some(payload(index))).collect::<Vec<_>>());
}
