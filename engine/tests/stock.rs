//! Space written ahead: kept ready when shards want it, used, and never left behind.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use reel_engine::format::record::RecordKind;
use reel_engine::upkeep::stock_now;
use reel_engine::{Draft, SegmentNumber, Store, StoreOptions, Writer};

const SEGMENT: u64 = 1 << 20;

fn open(dir: &Path) -> Arc<Store> {
    let next = AtomicU64::new(std::process::id().into());
    let numbers = move || SegmentNumber::new(next.fetch_add(1, Ordering::Relaxed));
    let options = StoreOptions {
        segment_bytes: SEGMENT,
        prewrite_bytes: 3 * SEGMENT,
        ..StoreOptions::new([dir.to_owned()], Arc::new(numbers))
    };
    Store::open(options).expect("opens").0
}

/// Writes until a shard has asked for space written ahead.
fn upload(store: &Arc<Store>) {
    let mut runtime =
        monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build().expect("runtime");
    let writer = Writer::new(Arc::clone(store));
    runtime.block_on(async {
        let running = monoio::spawn(writer.clone().run());
        let payload = Bytes::from(vec![7; 64 << 10]);
        for count in 0..64 {
            let draft = Draft {
                kind: RecordKind::Object,
                user: "u".to_owned(),
                name: format!("{count}"),
                content_type: String::new(),
                version: store.clock().next(),
                modified_ms: 1,
                target: None,
                payload_crc: crc32fast::hash(&payload),
                payload: payload.clone(),
            };
            let stored = writer.put(draft).await.expect("put");
            store.settled(&stored.segment);
        }
        writer.stop();
        running.await;
    });
}

fn stocked(dir: &Path) -> Vec<u64> {
    let Ok(listed) = std::fs::read_dir(dir.join("stock")) else { return Vec::new() };
    listed.map(|entry| entry.and_then(|entry| entry.metadata()).expect("entry").len()).collect()
}

#[test]
fn a_stock_is_made_when_shards_want_it_used_and_cleared_at_a_start() {
    let dir = tempfile::tempdir().expect("folder");
    let store = open(dir.path());
    stock_now(&store).expect("nothing to do");
    assert_eq!(stocked(dir.path()), [], "nobody has asked");
    upload(&store);
    stock_now(&store).expect("stock");
    assert_eq!(stocked(dir.path()), [SEGMENT; 3]);
    upload(&store);
    assert!(stocked(dir.path()).len() < 3, "segments were taken from it");
    drop(store);
    drop(open(dir.path()));
    assert_eq!(stocked(dir.path()), [], "the next life begins without");
}

#[test]
fn a_file_that_is_not_finished_goes() {
    let dir = tempfile::tempdir().expect("folder");
    let store = open(dir.path());
    upload(&store);
    let begun = store.begin_stocking().expect("begins").expect("wanted");
    assert_eq!(stocked(dir.path()).len(), 1);
    drop(begun);
    assert_eq!(stocked(dir.path()), [], "what is not finished goes");
}
