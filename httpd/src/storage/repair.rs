//! Objects that the scrub found damaged are fetched from a peer and put in place.

use std::rc::Rc;
use std::sync::Arc;

use reel_engine::ObjectId;
use reel_engine::upkeep::Finding;
use tokio::sync::mpsc::Receiver;

use super::StorageShard;

/// The largest payload that is repaired in memory; larger ones lie in segments of their own.
const LARGEST: usize = 16 << 20;

/// Repairs what comes, for ever.
pub(crate) async fn repair_damaged(shard: Rc<StorageShard>, mut damaged: Receiver<Finding>) {
    while let Some(finding) = damaged.recv().await {
        let Some(object) = finding.object_id() else { continue };
        if repair(&shard, object).await {
            tracing::info!(%object, "damaged object repaired from a peer");
        } else {
            tracing::error!(%finding, "damaged object: no peer has supplied it");
        }
    }
}

async fn repair(shard: &Rc<StorageShard>, object: ObjectId) -> bool {
    for address in shard.peer_addresses() {
        let Ok(mut response) = shard.ask_object(address, object).await else { continue };
        if response.status != 200 {
            shard.upstreams.give_back(response);
            continue;
        }
        let Ok(payload) = response.read_all(LARGEST).await else { continue };
        shard.upstreams.give_back(response);
        let store = Arc::clone(&shard.node.store);
        match shard.node.store.pool().run(move || store.repair(object, &payload)).await {
            Ok(repaired) => return repaired,
            Err(error) => tracing::warn!(%object, peer = %address, %error, "not repaired"),
        }
    }
    false
}
