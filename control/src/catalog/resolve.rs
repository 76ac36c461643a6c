//! What a batch of writes does to the rows that are there. Pure: the same on every database.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use super::{Held, Outcome, Row, Stamp, Write};

/// What is there under a name: version, and object (0 for a mark) in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) stamp: Stamp,
    pub(super) held: Held,
}

impl Present {
    fn of(row: &Row) -> Self {
        Self { stamp: row.stamp, held: Held { object: row.object, group: row.group } }
    }
}

/// What is there by (user, name), borrowed from the writes.
pub(super) type Presence<'a> = HashMap<(&'a str, &'a str), Present>;

/// Applies `writes` in order to what is there: an outcome each, and the rows to be written, one a
/// key, sorted by key (the order in which databases lock them).
pub(super) fn resolve<'a>(
    mut present: Presence<'a>,
    writes: &'a [Write],
) -> (Vec<Outcome>, Vec<Cow<'a, Row>>) {
    let mut changed: BTreeMap<(&str, &str), Cow<'a, Row>> = BTreeMap::new();
    let mut outcomes = Vec::with_capacity(writes.len());
    for write in writes {
        let key = write.key();
        let (outcome, row) = decide(present.get(&key).copied(), write);
        if let Some(row) = row {
            present.insert(key, Present::of(&row));
            changed.insert(key, row);
        }
        outcomes.push(outcome);
    }
    (outcomes, changed.into_values().collect())
}

/// [`resolve`] for names of which none has a row. `None` when one of them would not get one: by writing the rows
/// nobody would learn that it was there.
pub(super) fn resolve_new(writes: &[Write]) -> Option<(Vec<Outcome>, Vec<Cow<'_, Row>>)> {
    let (outcomes, rows) = resolve(Presence::new(), writes);
    let gets_row = |write: &Write| {
        rows.binary_search_by_key(&write.key(), |row| (&row.user, &row.name)).is_ok()
    };
    writes.iter().all(gets_row).then_some((outcomes, rows))
}

fn decide(there: Option<Present>, write: &Write) -> (Outcome, Option<Cow<'_, Row>>) {
    let alive = there.map(|present| present.held).filter(|held| held.object != 0);
    let lost = |present: Present| {
        let object = alive.map(|held| held.object);
        Outcome::Lost { winner: present.stamp, object }
    };
    match write {
        Write::Put { row, only_new } => match there {
            // The same write again: it has taken effect before.
            Some(present) if present.stamp == row.stamp && present.held.object == row.object => {
                (Outcome::Done { previous: None, stamp: row.stamp }, None)
            }
            _ if *only_new && alive.is_some() => (Outcome::Exists, None),
            Some(present) if present.stamp >= row.stamp => (lost(present), None),
            _ => (Outcome::Done { previous: alive, stamp: row.stamp }, Some(Cow::Borrowed(row))),
        },
        Write::Delete { user, name, stamp } => match (there, alive) {
            (Some(present), Some(held)) => {
                let above = Stamp { hlc: present.stamp.hlc + 1, node: stamp.node };
                let stamp = (*stamp).max(above);
                let mark = Row::mark(user.clone(), name.clone(), stamp);
                (Outcome::Done { previous: Some(held), stamp }, Some(Cow::Owned(mark)))
            }
            _ => (Outcome::NotFound, None),
        },
        Write::Mark { user, name, stamp } => match there {
            Some(present) if present.stamp == *stamp => {
                (Outcome::Done { previous: None, stamp: *stamp }, None)
            }
            Some(present) if present.stamp > *stamp => (lost(present), None),
            _ => {
                let mark = Row::mark(user.clone(), name.clone(), *stamp);
                (Outcome::Done { previous: alive, stamp: *stamp }, Some(Cow::Owned(mark)))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(hlc: u64, node: u32) -> Write {
        let stamp = Stamp { hlc, node };
        let mut row = Row::mark("u".into(), "f".into(), stamp);
        row.object = hlc << 8 | u64::from(node);
        Write::Put { row, only_new: false }
    }

    fn held(object: u64) -> Held {
        Held { object, group: 0 }
    }

    fn mark(hlc: u64, node: u32) -> Write {
        Write::Mark { user: "u".into(), name: "f".into(), stamp: Stamp { hlc, node } }
    }

    proptest! {
        /// Two nodes at once, a repeated offer, any order: the end is the highest version.
        #[test]
        fn the_end_does_not_depend_on_the_order(
            mut ops in proptest::collection::vec((1u64..40, 1u32..4, any::<bool>()), 1..12),
            seed: u64,
        ) {
            ops.sort_unstable();
            ops.dedup_by_key(|(hlc, node, _)| (*hlc, *node));
            let writes: Vec<Write> = ops.iter()
                .map(|(hlc, node, deletes)| if *deletes { mark(*hlc, *node) } else { put(*hlc, *node) })
                .collect();
            fn end(writes: &[Write]) -> Presence<'_> {
                let mut present = Presence::new();
                for write in writes {
                    let (_, rows) = resolve(present.clone(), std::slice::from_ref(write));
                    for row in rows {
                        let key = write.key();
                        present.insert(key, Present::of(&row));
                    }
                }
                present
            }
            let mut shuffled: Vec<Write> = writes.iter().chain(&writes).cloned().collect();
            let mut state = seed | 1;
            for at in (1..shuffled.len()).rev() {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                shuffled.swap(at, (state >> 33) as usize % (at + 1));
            }
            prop_assert_eq!(end(&shuffled), end(&writes));
            let highest = writes.last().map(|write| match write {
                Write::Put { row, .. } => (row.stamp, row.object),
                Write::Mark { stamp, .. } | Write::Delete { stamp, .. } => (*stamp, 0),
            });
            let found = end(&writes).values().next().map(|present| (present.stamp, present.held.object));
            prop_assert_eq!(found, highest);
        }
    }

    #[test]
    fn a_clients_delete_beats_a_row_from_a_faster_clock() {
        let first = [put(900, 2)];
        let (_, rows) = resolve(Presence::new(), &first);
        let there = Presence::from([(("u", "f"), Present::of(&rows[0]))]);
        let delete =
            Write::Delete { user: "u".into(), name: "f".into(), stamp: Stamp { hlc: 5, node: 1 } };
        let deletes = [delete];
        let (outcomes, rows) = resolve(there, &deletes);
        assert_eq!(
            outcomes,
            [Outcome::Done {
                previous: Some(held(900 << 8 | 2)),
                stamp: Stamp { hlc: 901, node: 1 }
            }]
        );
        assert!(rows[0].is_mark());
    }

    #[test]
    fn new_names_are_those_that_get_a_row() {
        let delete = || {
            let stamp = Stamp { hlc: 9, node: 1 };
            Write::Delete { user: "u".into(), name: "f".into(), stamp }
        };
        let stored_then_deleted = [put(1, 1), delete()];
        let (outcomes, rows) = resolve_new(&stored_then_deleted).expect("a row");
        assert_eq!((outcomes.len(), rows.len(), rows[0].is_mark()), (2, 1, true));
        assert!(resolve_new(&[delete()]).is_none());
    }

    #[test]
    fn one_batch_may_write_a_name_twice() {
        let twice = [put(1, 1), put(2, 1)];
        let (outcomes, rows) = resolve(Presence::new(), &twice);
        assert_eq!(
            outcomes[1],
            Outcome::Done { previous: Some(held(1 << 8 | 1)), stamp: Stamp { hlc: 2, node: 1 } }
        );
        assert_eq!(rows.len(), 1);
    }
}
