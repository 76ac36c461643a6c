//! What is written down about all that happens, whichever node it happens at: the catalog, the model, the sums.

use std::cell::RefCell;
use std::sync::Arc;

use parking_lot::Mutex;
use reel_engine::disk::sim::Counts;
use reel_engine::{ObjectId, Version};

use crate::Summary;
use crate::catalog::Catalog;
use crate::model::Model;

/// Shared by the nodes of a world; outlives them.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) catalog: Arc<Mutex<Catalog>>,
    pub(crate) model: RefCell<Model>,
    pub(crate) summary: RefCell<Summary>,
    /// The first violation.
    pub(crate) violation: RefCell<Option<String>>,
}

impl Ledger {
    /// Something happened that must not.
    pub(crate) fn violate(&self, violation: String) {
        self.violation.borrow_mut().get_or_insert(violation);
    }

    /// A record is durable.
    pub(crate) fn note_stored(&self, object: ObjectId, version: Version) {
        if let Err(violation) = self.model.borrow_mut().note_stored(object, version) {
            self.violate(violation);
        }
    }

    /// The sums, with what the disks did.
    pub(crate) fn sum(&self, disk: Counts) -> Summary {
        Summary { disk, reads: self.model.borrow().reads, ..*self.summary.borrow() }
    }
}
