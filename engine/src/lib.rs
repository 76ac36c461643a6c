//! The storage engine: bytes on disk, and nothing else.
//!
//! An object is immutable bytes with an [`ObjectId`]; it lies as one [`format::record`] in a segment
//! file whose path is computed from the id ([`id`]). Small objects share *packed* segments, which a
//! shard's [`Writer`] fills by group commit; a large one streams into a *solo* segment of its own
//! ([`solo`]). A slot table ([`slots`]) finds a record without an index in memory. What goes on in the
//! background is in [`upkeep`]; all I/O goes through [`disk`], which has a second implementation that
//! crashes. `docs/format.md` draws every byte and argues for crash safety.
//!
//! This crate knows no network, no SQL and no tokio.

mod changes;
pub mod clock;
pub mod contents;
pub mod disk;
mod error;
pub mod follow;
pub mod format;
pub mod id;
pub mod read;
mod recover;
pub mod replica;
pub mod segment;
pub mod signal;
pub mod slots;
pub mod solo;
mod store;
pub mod supply;
pub mod upkeep;
mod writer;

pub use changes::Changes;
pub use clock::{Clock, Version};
pub use error::{Error, Result};
pub use id::{ObjectId, SegmentNumber};
pub use segment::{Located, Segment};
pub use store::{
    Barrier, FolderOptions, FolderState, Known, NumberSource, Place, Recovery, Stocking, Store,
    StoreOptions, node_folder,
};
pub use writer::{Draft, Stored, Writer};
