//! After a restart: records of segments that were active are offered to the catalog again.
//!
//! The catalog keeps the higher version, so offering what it has already changes nothing, and what
//! it missed in a crash gets in. Reads go on meanwhile.

use std::rc::Rc;
use std::sync::Arc;

use reel_control::catalog::{Row, Write};
use reel_engine::format::record::{RecordHead, RecordKind};
use reel_engine::{Segment, SegmentNumber};

use super::StorageShard;
use super::put::stamp_of;

/// Records offered at a time.
const BATCH: usize = 256;

/// Offers every record of `segments`, and settles them.
pub(crate) async fn offer_again(shard: Rc<StorageShard>, segments: Vec<SegmentNumber>) {
    let mut offered = 0usize;
    let count = segments.len();
    for number in segments {
        match shard.node.store.segment(number).await {
            Ok(segment) => offered += offer_segment(&shard, &segment).await,
            Err(error) => {
                tracing::error!(segment = %number, %error, "segment cannot be offered to the catalog")
            }
        }
    }
    if count > 0 {
        tracing::info!(segments = count, records = offered, "records offered to the catalog again");
    }
}

async fn offer_segment(shard: &Rc<StorageShard>, segment: &Arc<Segment>) -> usize {
    shard.wait_until_held(segment).await;
    let slots = segment.slots();
    let mut offered = 0;
    let mut from = 0;
    while from < slots {
        let to = slots.min(from + BATCH);
        let reader = Arc::clone(segment);
        let heads = shard
            .node
            .store
            .pool()
            .run(move || {
                (from..to)
                    .map(|slot| Ok(reader.read_head(slot as u16)))
                    .collect::<Result<Vec<_>, _>>()
            })
            .await
            .unwrap_or_default();
        let mut waiting = Vec::new();
        for head in heads {
            match head {
                Ok(Some(head)) => {
                    shard.node.store.clock().observe(head.version);
                    let object = segment.number().object(head.slot);
                    if head.kind == RecordKind::Object {
                        // The user's row may have been lost with a power failure too.
                        let _ = shard.group_of(&head.user).await;
                    }
                    if let Some(write) = offer_of(&head, object.as_u64(), shard.node.config.group) {
                        let shard = Rc::clone(shard);
                        waiting.push(monoio::spawn(async move {
                            shard.apply_until_known(write, object).await
                        }));
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "record is not offered to the catalog"),
            }
        }
        offered += waiting.len();
        for offer in waiting {
            offer.await;
        }
        for _ in from..to {
            shard.node.store.settled(segment);
        }
        from = to;
    }
    offered
}

/// What a record says of its name; `None` for one that says nothing.
pub fn offer_of(head: &RecordHead, object: u64, group: u32) -> Option<Write> {
    let stamp = stamp_of(head.version);
    match head.kind {
        RecordKind::Object => Some(Write::Put {
            row: Row {
                user: head.user.clone(),
                name: head.name.clone(),
                object,
                group,
                path: head.segment.to_path_string(),
                bytes: head.payload_len,
                content_type: head.content_type.clone(),
                crc: head.payload_crc,
                modified_ms: head.modified_ms,
                stamp,
            },
            only_new: false,
        }),
        RecordKind::Delete => {
            Some(Write::Mark { user: head.user.clone(), name: head.name.clone(), stamp })
        }
        RecordKind::Dead => None,
    }
}
