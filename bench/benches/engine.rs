//! Pure parts of the engine: record heads, slot tables, checksums.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use reel_engine::SegmentNumber;
use reel_engine::clock::Version;
use reel_engine::format::record::{Layout, RecordHead, RecordKind};
use reel_engine::format::table::{Entry, SlotState};
use reel_engine::slots::SlotTable;
use std::hint::black_box;

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

criterion_group!(benches, engine);
criterion_main!(benches);
