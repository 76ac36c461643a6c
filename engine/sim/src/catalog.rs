//! A catalog that keeps the higher version, and forgets its last commits when the power fails.

use std::collections::BTreeMap;

use reel_engine::disk::sim::Rng;
use reel_engine::{ObjectId, Version};

/// What stands under a name: an object, or (`None`) the mark of a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The write that put it there.
    pub version: Version,
    /// The object.
    pub object: Option<ObjectId>,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It stands; the object that lost the name, if one did.
    Done(Option<ObjectId>),
    /// What is there is newer: that row.
    Lost(Row),
}

/// The rows, and which of them are durable.
#[derive(Debug, Default, Clone)]
pub struct Catalog {
    rows: BTreeMap<String, Row>,
    durable: BTreeMap<String, Row>,
    /// Commits that are not durable, in order.
    log: Vec<(String, Row)>,
}

impl Catalog {
    /// The row of a name.
    pub fn row(&self, name: &str) -> Option<Row> {
        self.rows.get(name).copied()
    }

    /// Every row.
    pub fn rows(&self) -> impl Iterator<Item = (&String, &Row)> {
        self.rows.iter()
    }

    /// The higher version stands.
    pub fn apply(&mut self, name: &str, row: Row) -> Outcome {
        let there = self.row(name);
        if there == Some(row) {
            return Outcome::Done(None);
        }
        if let Some(there) = there.filter(|there| there.version >= row.version) {
            return Outcome::Lost(there);
        }
        tracing::debug!(name, version = row.version.hlc, object = ?row.object.map(|o| o.to_string()), "row");
        self.rows.insert(name.to_owned(), row);
        self.log.push((name.to_owned(), row));
        Outcome::Done(there.and_then(|there| there.object))
    }

    /// Deletes what is there, with a version above it.
    pub fn delete(&mut self, name: &str, version: Version) -> Option<(ObjectId, Version)> {
        let there = self.row(name)?;
        let object = there.object?;
        let above = Version { hlc: there.version.hlc + 1, node: version.node };
        let version = version.max(above);
        self.apply(name, Row { version, object: None });
        Some((object, version))
    }

    /// All commits so far are durable.
    pub fn barrier(&mut self) {
        tracing::debug!("barrier");
        self.durable = self.rows.clone();
        self.log.clear();
    }

    /// The power fails: the last commits go.
    pub fn lose_power(&mut self, rng: &mut Rng) {
        tracing::debug!(log = ?self.log.iter().map(|(name, _)| name).collect::<Vec<_>>(), "catalog loses power");
        let kept = rng.below(self.log.len() as u64 + 1) as usize;
        for (name, row) in self.log.drain(..).take(kept) {
            self.durable.insert(name, row);
        }
        self.rows = self.durable.clone();
    }
}
