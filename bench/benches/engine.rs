//! The engine: record heads, slot tables, checksums, group commit, look-up.

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use reel_engine::clock::Version;
use reel_engine::format::record::{Layout, RecordHead, RecordKind};
use reel_engine::format::table::{Entry, SlotState};
use reel_engine::slots::SlotTable;
use reel_engine::{Draft, ObjectId, SegmentNumber, Store, StoreOptions, Writer};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const SALT: u32 = 0x5a17;

fn head() -> RecordHead {
    RecordHead {
        kind: RecordKind::Object,
        layout: Layout::Whole,
        slot: 7,
        head_len: RecordHead::packed_head_len(
            "user",
            "series/episode/segment-000123.m4s",
            "video/iso.segment",
        ),
        segment: SegmentNumber::new(0x3a5f).expect("fits"),
        generation: 0,
        payload_len: 4096,
        payload_crc: 1,
        version: Version { hlc: 5, node: 1 },
        target: None,
        modified_ms: 1,
        user: "user".into(),
        name: "series/episode/segment-000123.m4s".into(),
        content_type: "video/iso.segment".into(),
    }
}

fn engine(c: &mut Criterion) {
    let head = head();
    let mut bytes = Vec::new();
    c.bench_function("record head encode", |b| {
        b.iter(|| {
            bytes.clear();
            head.encode(SALT, &mut bytes);
            black_box(bytes.len())
        });
    });
    c.bench_function("record head decode", |b| {
        b.iter(|| RecordHead::decode(black_box(&bytes), SALT).expect("good"))
    });
    let table = SlotTable::active();
    for slot in 0..=u16::MAX {
        let entry = Entry {
            state: SlotState::Object,
            dead: false,
            offset: 4096 + u64::from(slot) * 4224,
            head_len: 128,
            payload_len: 4096,
            payload_crc: 9,
            target: None,
        };
        table.publish(slot, &entry);
    }
    let mut slot = 1u16;
    c.bench_function("slot table look-up", |b| {
        b.iter(|| {
            slot = slot.wrapping_mul(25_173).wrapping_add(13_849);
            black_box(table.get(slot))
        });
    });
    let mut group = c.benchmark_group("crc32");
    for size in [4096usize, 256 << 10] {
        let payload = vec![0xa7u8; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("{size} B"), |b| {
            b.iter(|| crc32fast::hash(black_box(&payload)))
        });
    }
    group.finish();
}

/// The whole path below the network: queue, encode, checksum, one durable write, answers.
fn group_commit(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("temp folder");
    let next = AtomicU64::new(1);
    let numbers = move || SegmentNumber::new(next.fetch_add(1, Ordering::Relaxed));
    let options = StoreOptions::new([dir.path().to_owned()], Arc::new(numbers));
    let (store, _) = Store::open(options).expect("opens");
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .enable_timer()
        .build()
        .expect("io_uring");
    let writer = Writer::new(Arc::clone(&store));
    let mut object = runtime.block_on(async {
        monoio::spawn(writer.clone().run());
        put(&store, &writer, 0).await
    });
    for waiting in [1, 64] {
        c.bench_function(&format!("group commit of {waiting} x 4 KiB"), |b| {
            b.iter(|| {
                runtime.block_on(async {
                    let puts: Vec<_> = (0..waiting)
                        .map(|at| {
                            let (store, writer) = (Arc::clone(&store), writer.clone());
                            monoio::spawn(async move { put(&store, &writer, at).await })
                        })
                        .collect();
                    for put in puts {
                        object = put.await;
                    }
                });
            });
        });
    }
    c.bench_function("look-up by id", |b| b.iter(|| black_box(store.lookup(black_box(object)))));
}

async fn put(store: &Arc<Store>, writer: &Writer, name: usize) -> ObjectId {
    let payload = Bytes::from_static(&[0x5a; 4096]);
    let draft = Draft {
        kind: RecordKind::Object,
        user: "bench".to_owned(),
        name: name.to_string(),
        content_type: "video/mp4".to_owned(),
        version: store.clock().next(),
        modified_ms: 1,
        target: None,
        payload_crc: crc32fast::hash(&payload),
        payload,
    };
    let stored = writer.put(draft).await.expect("stored");
    store.settled(&stored.segment);
    stored.object
}

criterion_group!(benches, engine, group_commit);
criterion_main!(benches);
