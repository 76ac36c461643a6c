//! Writes the golden data folder that every later version must still read.
//!
//! `cargo run -p reel-engine --example golden -- DIR`, where DIR must not be there. What lies in
//! `engine/tests/golden/vN` was written by this program when the format version was N.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program that ends when anything fails"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use reel_engine::format::record::RecordKind;
use reel_engine::solo::SoloUpload;
use reel_engine::{Draft, ObjectId, SegmentNumber, Store, StoreOptions, Stored, Writer};

/// The bytes of a golden object: `engine/tests/golden.rs` computes the same.
fn payload(seed: u64, length: usize) -> Bytes {
    (0..length).map(|at| ((at as u64).wrapping_mul(seed * 2 + 1) >> 3) as u8).collect()
}

fn draft(
    store: &Store,
    kind: RecordKind,
    name: &str,
    target: Option<ObjectId>,
    payload: Bytes,
) -> Draft {
    Draft {
        kind,
        user: "golden".into(),
        name: name.into(),
        content_type: if target.is_some() { String::new() } else { "video/mp4".into() },
        version: store.clock().next(),
        modified_ms: 1_700_000_000_000,
        target,
        payload_crc: crc32fast::hash(&payload),
        payload,
    }
}

async fn fill(store: &Arc<Store>, writer: &Writer, first: u64, count: u64) -> Vec<Stored> {
    let mut stored = Vec::new();
    for index in first..first + count {
        let payload = payload(index, 37 * index as usize);
        let name = format!("small/{index}");
        stored.push(
            writer.put(draft(store, RecordKind::Object, &name, None, payload)).await.unwrap(),
        );
    }
    stored
}

fn main() {
    let dir = std::path::PathBuf::from(std::env::args().nth(1).expect("a folder to write"));
    let work = tempfile::tempdir().unwrap();
    let next = AtomicU64::new(1);
    let numbers = move || SegmentNumber::new(next.fetch_add(1, Ordering::Relaxed));
    let mut options = StoreOptions::new([work.path().to_owned()], Arc::new(numbers));
    (options.cluster, options.node, options.group) = ("golden".to_owned(), 7, 3);
    options.segment_bytes = 1 << 20;
    let (store, _) = Store::open(options).unwrap();
    let mut runtime =
        monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().enable_timer().build().unwrap();
    runtime.block_on(async {
        // Segment 1: sealed and settled; objects 0..20, of which 3 was deleted and 4 replaced.
        let writer = Writer::new(Arc::clone(&store));
        let running = monoio::spawn(writer.clone().run());
        let mut stored = fill(&store, &writer, 0, 20).await;
        for (slot, kind) in [(3, RecordKind::Delete), (4, RecordKind::Dead)] {
            let target = stored[slot].object;
            let name = format!("small/{slot}");
            stored.push(
                writer.put(draft(&store, kind, &name, Some(target), Bytes::new())).await.unwrap(),
            );
            store.kill(target).unwrap();
        }
        writer.stop();
        running.await;
        for stored in &stored {
            store.settled(&stored.segment);
        }
        // Segment 2: a large object, settled.
        let mut solo = SoloUpload::begin(&store, 0).await.unwrap();
        let mut piece = solo.piece();
        piece.fill(&payload(100, 300_000));
        solo.write(piece).await.unwrap();
        let (large, _) = solo
            .finish(draft(&store, RecordKind::Object, "large", None, Bytes::new()))
            .await
            .unwrap();
        store.settled(&large.segment);
        // Segment 3: active when the process dies; objects 20..25.
        let writer = Writer::new(Arc::clone(&store));
        monoio::spawn(writer.clone().run());
        fill(&store, &writer, 20, 5).await;
        monoio::time::sleep(std::time::Duration::from_millis(300)).await;
        copy(work.path(), &dir);
    });
    std::fs::remove_file(dir.join("lock")).unwrap();
    println!("{}", dir.display());
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let there = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &there);
        } else {
            std::fs::copy(entry.path(), there).unwrap();
        }
    }
}
