//! What must be true of a group that has calmed down.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use reel_engine::format::record::RecordKind;
use reel_engine::{ObjectId, Store};

use super::node::Node;
use super::{SETTLE, World};
use crate::Shared;
use crate::catalog::{Outcome, Row};
use crate::model::{Kill, Model, Read, read};

/// The objects that a node shows.
///
/// # Errors
/// One of them is not as it was uploaded, or cannot be read.
fn shown(id: u32, store: &Arc<Store>, model: &mut Model) -> Result<BTreeSet<ObjectId>, String> {
    let mut shown = BTreeSet::new();
    for number in store.list(None, usize::MAX) {
        let segment = store
            .segment_blocking(number)
            .map_err(|error| format!("node {id}: segment {number} cannot be opened: {error}"))?;
        for slot in 0..segment.slots() {
            if segment.locate(slot as u16).is_none() {
                continue;
            }
            let object = number.object(slot as u16);
            model.reads += 1;
            match read(store, model, object) {
                Read::Here(_, true) => drop(shown.insert(object)),
                Read::Gone => {}
                Read::Here(_, false) => {
                    return Err(format!("node {id}: object {object} has wrong bytes"));
                }
                Read::Failed(error) => {
                    return Err(format!("node {id}: object {object} cannot be read: {error}"));
                }
            }
        }
    }
    Ok(shown)
}

impl World {
    fn nodes(&self) -> Vec<(u32, Rc<Node>)> {
        let running = self.machines.iter().filter_map(|machine| {
            machine.running.as_ref().map(|(_, node)| (machine.id, Rc::clone(node)))
        });
        running.collect()
    }

    /// What every node shows, which must be the same.
    fn all_show(&self) -> Result<BTreeSet<ObjectId>, String> {
        let mut first: Option<(u32, BTreeSet<ObjectId>)> = None;
        for (id, node) in self.nodes() {
            let shows = shown(id, &node.site.store, &mut self.ledger.model.borrow_mut())?;
            match &first {
                None => first = Some((id, shows)),
                Some((other, others)) => {
                    if let Some(object) = others.symmetric_difference(&shows).next() {
                        let (has, lacks) =
                            if shows.contains(object) { (id, *other) } else { (*other, id) };
                        return Err(format!(
                            "node {has} shows object {object} and node {lacks} does not"
                        ));
                    }
                }
            }
        }
        Ok(first.unwrap_or_default().1)
    }

    /// Compares the nodes with one another, with the catalog and with the model; then again after a sweep.
    pub(super) fn check(&mut self) -> Result<(), String> {
        self.check_answered()?;
        if !self.wiped {
            // Only a lost disk may take a tombstone along that no other node has.
            let shows = self.all_show()?;
            self.check_rows(&shows)?;
            let model = self.ledger.model.borrow();
            let gone = |(_, kill): &(&ObjectId, &Kill)| **kill == Kill::Done;
            if let Some((object, _)) =
                model.kills.iter().filter(gone).find(|(object, _)| shows.contains(*object))
            {
                return Err(format!("object {object} is back from the dead"));
            }
        }
        for _ in 0..2 {
            // Twice: what one node buries, another one may have found in the meantime.
            self.sweep();
            self.run_for(SETTLE)?;
            self.become_whole()?;
        }
        let shows = self.all_show()?;
        self.check_rows(&shows)?;
        let named: BTreeSet<ObjectId> =
            self.ledger.catalog.lock().rows().filter_map(|(_, row)| row.object).collect();
        if let Some(object) = shows.difference(&named).next() {
            return Err(format!("object {object} has no name, and is still there"));
        }
        if self.wiped { Ok(()) } else { self.check_complete() }
    }

    /// No copy waits for the end of a segment that its node has removed: it would be read at every start, and never be
    /// compacted.
    fn check_complete(&self) -> Result<(), String> {
        let nodes = self.nodes();
        for (id, node) in &nodes {
            let store = &node.site.store;
            for number in store.marked() {
                let growing = store.loaded(number).filter(|segment| !segment.is_sealed());
                let Some(creator) = growing.map(|segment| segment.header().creator) else {
                    continue;
                };
                let maker = nodes.iter().find(|(other, _)| *other == creator && other != id);
                if maker.is_some_and(|(_, maker)| !maker.site.store.has(number)) {
                    return Err(format!(
                        "node {id}: the copy of segment {number} is not complete, and node {creator} has removed it"
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_answered(&self) -> Result<(), String> {
        let catalog = self.ledger.catalog.lock();
        for (name, answered) in &self.ledger.model.borrow().answered {
            let stands = catalog.row(name).map(|row| row.version);
            if stands.is_none_or(|stands| stands < *answered) {
                return Err(format!(
                    "{name}: the answered write {answered:?} is not in the catalog, but {stands:?}"
                ));
            }
        }
        Ok(())
    }

    fn check_rows(&self, shows: &BTreeSet<ObjectId>) -> Result<(), String> {
        for (name, row) in self.ledger.catalog.lock().rows() {
            if let Some(object) = row.object.filter(|object| !shows.contains(object)) {
                return Err(format!("{name}: its object {object} is lost"));
            }
        }
        Ok(())
    }

    /// As nodes do from time to time: what lost its name, and was not buried, is buried; what is newer than its row is
    /// offered.
    fn sweep(&self) {
        for (_, node) in self.nodes() {
            let site = Rc::clone(&node.site);
            let store: Shared = Arc::clone(&site.store);
            for number in store.list(None, usize::MAX) {
                let Ok(segment) = store.segment_blocking(number) else { continue };
                for slot in 0..segment.slots() {
                    let Ok(Some(head)) = segment.read_head(slot as u16) else { continue };
                    let object = number.object(slot as u16);
                    if head.kind != RecordKind::Object || segment.locate(slot as u16).is_none() {
                        continue;
                    }
                    let row = self.ledger.catalog.lock().row(&head.name);
                    match row {
                        Some(row) if row.object == Some(object) => {}
                        Some(row) if row.version <= head.version => {
                            // Its node lost its disk before the row was committed.
                            let newer = Row { version: head.version, object: Some(object) };
                            let outcome = self.ledger.catalog.lock().apply(&head.name, newer);
                            if let Outcome::Done(Some(previous)) = outcome {
                                site.bury(previous, &head.name);
                            }
                        }
                        Some(row) => site.bury_loser(object, &head.name, row),
                        None => site.bury(object, &head.name),
                    }
                }
            }
        }
    }
}
