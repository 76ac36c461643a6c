//! What the scrub or a reader found damaged is fetched from a peer and put in place: a small object whole, of a large one the
//! damaged block.

use std::net::SocketAddr;
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
            Ok(Repaired::By(peer)) => {
                tracing::info!(%object, offset, %peer, "damaged object repaired from a peer");
            }
            // Many readers may have met the same.
            Ok(Repaired::NotNeeded) => {
                tracing::debug!(%object, offset, "nothing to repair any more")
            }
            Ok(Repaired::ByNone { asked }) => {
                tracing::error!(%object, offset, asked, "damaged object: no peer has supplied it; the next scrub asks again");
            }
            Err(error) => {
                tracing::error!(%object, offset, %error, "damaged object: it cannot be repaired here");
            }
        }
    }
}

/// What became of a damage.
enum Repaired {
    By(SocketAddr),
    NotNeeded,
    ByNone { asked: usize },
}

async fn repair(shard: &Rc<StorageShard>, damage: Damage) -> Result<Repaired, Error> {
    let (store, object) = (Arc::clone(&shard.node.store), damage.object);
    let part = shard.node.store.pool().run(move || store.damaged_part(damage)).await?;
    let Some(part) = part else { return Ok(Repaired::NotNeeded) };
    let peers = shard.peer_addresses();
    for address in &peers {
        let bytes = match fetch(shard, *address, object, &part).await {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(%object, peer = %address, %error, "a damaged object was not to be had from a peer");
                continue;
            }
        };
        let (store, start) = (Arc::clone(&shard.node.store), part.start);
        match shard.node.store.pool().run(move || store.repair(object, start, &bytes)).await {
            Ok(true) => return Ok(Repaired::By(*address)),
            Ok(false) => return Ok(Repaired::NotNeeded),
            Err(error @ Error::DamagedObject { .. }) => {
                tracing::warn!(%object, peer = %address, %error, "what a peer has is not the object that was uploaded");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Repaired::ByNone { asked: peers.len() })
}

/// A part of an object's bytes from a peer.
async fn fetch(
    shard: &StorageShard,
    address: SocketAddr,
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
