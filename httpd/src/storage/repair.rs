//! What the scrub or a reader found damaged is fetched from a peer and put in place: a small object whole, of a large one the
//! damaged block.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use reel_engine::upkeep::Damage;
use reel_engine::{Error, ObjectId};
use tokio::sync::mpsc::Receiver;

use super::StorageShard;
use crate::conn::ConnError;

/// The largest part that is fetched: a packed object ([`reel_control::config::StorageConfig::solo_bytes`] is less), or a block.
const LARGEST: usize = 16 << 20;

/// Repairs what comes, for ever.
pub(crate) async fn repair_damaged(shard: Rc<StorageShard>, mut damaged: Receiver<Damage>) {
    while let Some(damage) = damaged.recv().await {
        let Damage { object, offset } = damage;
        match repair(&shard, damage).await {
            Ok(true) => tracing::info!(%object, offset, "damaged object repaired from a peer"),
            // Many readers may have met the same.
            Ok(false) => tracing::debug!(%object, offset, "nothing to repair any more"),
            Err(error) => {
                tracing::error!(%object, offset, %error, "damaged object: no peer has supplied it")
            }
        }
    }
}

async fn repair(shard: &Rc<StorageShard>, damage: Damage) -> Result<bool, Error> {
    let (store, object) = (Arc::clone(&shard.node.store), damage.object);
    let part = shard.node.store.pool().run(move || store.damaged_part(damage)).await?;
    let Some(part) = part else { return Ok(false) };
    let mut last = Error::NoSegment(object.segment());
    for address in shard.peer_addresses() {
        let Ok(bytes) = fetch(shard, address, object, &part).await else { continue };
        let (store, start) = (Arc::clone(&shard.node.store), part.start);
        match shard.node.store.pool().run(move || store.repair(object, start, &bytes)).await {
            Ok(repaired) => return Ok(repaired),
            Err(error) => {
                tracing::warn!(%object, peer = %address, %error, "not repaired");
                last = error;
            }
        }
    }
    Err(last)
}

/// A part of an object's bytes from a peer.
async fn fetch(
    shard: &StorageShard,
    address: std::net::SocketAddr,
    object: ObjectId,
    part: &Range<u64>,
) -> Result<Vec<u8>, ConnError> {
    let mut response = shard.ask_object(address, object, Some(part)).await?;
    let status = response.status;
    let bytes = response.read_all(LARGEST).await?;
    shard.upstreams.give_back(response);
    match status {
        206 => Ok(bytes),
        status => Err(ConnError::Io(std::io::Error::other(format!("the peer answers {status}")))),
    }
}
