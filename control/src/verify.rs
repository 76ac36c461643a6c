//! Whether the nodes of a group hold the same: their copies, compared by digests. Pure, apart from [`verify`] and
//! [`copies_of`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use crate::api::{Address, CopyView, NodeState, NodeView};
use crate::client::{Client, ClientError};

/// Looks at what differs, until it stays: copies are on their way all the time.
const LOOKS: u32 = 4;
/// Between looks.
const AGAIN: Duration = Duration::from_secs(2);

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Verified {
    /// The groups, in order.
    pub groups: Vec<GroupVerified>,
    /// Nodes that could not be asked, and why.
    pub unasked: Vec<String>,
}

/// A group.
#[derive(Debug, Serialize)]
pub struct GroupVerified {
    /// The group.
    pub group: u32,
    /// Nodes that were compared.
    pub nodes: Vec<u32>,
    /// Segments that were compared.
    pub segments: usize,
    /// Objects that live in them.
    pub objects: u64,
    /// Segments that some node is still writing, or copying.
    pub unsettled: usize,
    /// A volume of the group keeps the copies: there is nothing to compare.
    pub shared: bool,
    /// Segments whose copies hold different objects.
    pub differences: Vec<Difference>,
}

/// A segment whose copies hold different objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Its number.
    pub segment: u64,
    /// Each node, and how many objects live in its copy; none when it has no copy.
    pub copies: Vec<(u32, Option<u32>)>,
}

/// The copies of a node.
#[derive(Debug, Default)]
pub struct Copies {
    /// By segment.
    pub by_segment: BTreeMap<u64, CopyView>,
    /// A volume keeps them for the whole group.
    pub shared: bool,
}

/// How copies are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// Only those that are complete everywhere.
    Settled,
    /// All of one node's: whether the others hold what it holds.
    AllOf(u32),
}

/// Segments whose copies differ. One without living objects is as good as none: it is compacted away.
pub fn differences(nodes: &BTreeMap<u32, Copies>, how: Compare) -> Vec<Difference> {
    let segments: BTreeSet<u64> = match how {
        Compare::Settled => {
            nodes.values().flat_map(|copies| copies.by_segment.keys()).copied().collect()
        }
        Compare::AllOf(node) => nodes
            .get(&node)
            .into_iter()
            .flat_map(|copies| copies.by_segment.keys())
            .copied()
            .collect(),
    };
    segments
        .into_iter()
        .filter_map(|segment| {
            let copies: Vec<(u32, Option<&CopyView>)> = nodes
                .iter()
                .map(|(node, copies)| (*node, copies.by_segment.get(&segment)))
                .collect();
            let settled = copies.iter().flat_map(|(_, copy)| copy).all(|copy| copy.settled);
            if how == Compare::Settled && !settled {
                return None;
            }
            let content = |copy: &Option<&CopyView>| {
                copy.filter(|copy| copy.objects > 0).map(|copy| (copy.objects, copy.digest()))
            };
            let mut contents = copies.iter().map(|(_, copy)| content(copy));
            let first = contents.next()?;
            if contents.all(|other| other == first) {
                return None;
            }
            let copies = copies.iter().map(|(node, copy)| (*node, copy.map(|copy| copy.objects)));
            Some(Difference { segment, copies: copies.collect() })
        })
        .collect()
}

/// Asks the nodes of a group for their copies; for those of `only`, when it is given, and leaves the others as they are.
///
/// # Errors
/// The first node that does not answer.
pub async fn copies_of(
    client: &Client,
    nodes: &[Address],
    only: Option<&BTreeSet<u64>>,
    copies: &mut BTreeMap<u32, Copies>,
) -> Result<(), ClientError> {
    for node in nodes {
        let of_node = copies.entry(node.id).or_default();
        match only {
            None => {
                let mut after = None;
                loop {
                    let page = client.copies(node, after, None).await?;
                    of_node.shared |= page.shared;
                    of_node
                        .by_segment
                        .extend(page.copies.into_iter().map(|copy| (copy.segment, copy)));
                    match page.next {
                        Some(next) => after = Some(next),
                        None => break,
                    }
                }
            }
            Some(segments) => {
                for segment in segments {
                    let page = client.copies(node, segment.checked_sub(1), Some(1)).await?;
                    match page.copies.into_iter().find(|copy| copy.segment == *segment) {
                        Some(copy) => drop(of_node.by_segment.insert(*segment, copy)),
                        None => drop(of_node.by_segment.remove(segment)),
                    }
                }
            }
        }
    }
    Ok(())
}

/// The addresses of a group's nodes that can be asked.
pub fn living(nodes: &[NodeView], group: u32) -> Vec<Address> {
    let of_group = nodes.iter().filter(|view| {
        view.node.group == group && !matches!(view.state, NodeState::Offline | NodeState::Joining)
    });
    let address = |view: &NodeView| Address {
        id: view.node.id,
        name: view.node.name.clone(),
        address: view.node.address.clone(),
    };
    of_group.map(address).collect()
}

/// Compares the copies of every group.
///
/// # Errors
/// No tracker answers.
pub async fn verify(client: &Client) -> Result<Verified, ClientError> {
    let views = client.nodes().await?.nodes;
    let mut verified = Verified::default();
    for view in views.iter().filter(|view| view.state == NodeState::Offline) {
        verified.unasked.push(format!("node {} ({}) is offline", view.node.id, view.node.address));
    }
    let groups: BTreeSet<u32> = views.iter().map(|view| view.node.group).collect();
    for group in groups {
        let nodes = living(&views, group);
        match verify_group(client, group, &nodes).await {
            Ok(found) => verified.groups.push(found),
            Err(error) => verified.unasked.push(format!("group {group}: {error}")),
        }
    }
    Ok(verified)
}

async fn verify_group(
    client: &Client,
    group: u32,
    nodes: &[Address],
) -> Result<GroupVerified, ClientError> {
    let mut copies = BTreeMap::new();
    copies_of(client, nodes, None, &mut copies).await?;
    let shared = copies.values().any(|copies| copies.shared);
    let compare = |copies: &BTreeMap<u32, Copies>| {
        if shared { Vec::new() } else { differences(copies, Compare::Settled) }
    };
    let mut found = compare(&copies);
    for _ in 1..LOOKS {
        if found.is_empty() {
            break;
        }
        tokio::time::sleep(AGAIN).await;
        let differing = found.iter().map(|difference| difference.segment).collect();
        copies_of(client, nodes, Some(&differing), &mut copies).await?;
        found = compare(&copies);
    }
    let mut all: BTreeMap<u64, (u32, bool)> = BTreeMap::new();
    for copy in copies.values().flat_map(|copies| copies.by_segment.values()) {
        let (objects, settled) = all.entry(copy.segment).or_insert((0, true));
        *objects = copy.objects.max(*objects);
        *settled &= copy.settled;
    }
    Ok(GroupVerified {
        group,
        nodes: nodes.iter().map(|node| node.id).collect(),
        segments: all.len(),
        objects: all.values().map(|(objects, _)| u64::from(*objects)).sum(),
        unsettled: all.values().filter(|(_, settled)| !settled).count(),
        shared,
        differences: found,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(copies: &[&[(u64, bool, u32, u64)]]) -> BTreeMap<u32, Copies> {
        let of = |copies: &&[(u64, bool, u32, u64)]| Copies {
            by_segment: copies
                .iter()
                .map(|(segment, settled, objects, digest)| {
                    (*segment, CopyView::new(*segment, *settled, *objects, *digest))
                })
                .collect(),
            shared: false,
        };
        (1..).zip(copies.iter().map(of)).collect()
    }

    #[test]
    fn what_differs_is_found_and_what_is_on_its_way_is_not_judged() {
        let equal = nodes(&[&[(7, true, 3, 9)], &[(7, true, 3, 9)]]);
        assert_eq!(differences(&equal, Compare::Settled), []);
        let other = nodes(&[&[(7, true, 3, 9)], &[(7, true, 3, 8)]]);
        let found = Difference { segment: 7, copies: vec![(1, Some(3)), (2, Some(3))] };
        assert_eq!(differences(&other, Compare::Settled), [found]);
        let lacking = nodes(&[&[(7, true, 3, 9)], &[]]);
        let found = Difference { segment: 7, copies: vec![(1, Some(3)), (2, None)] };
        assert_eq!(differences(&lacking, Compare::Settled), [found]);
        let empty = nodes(&[&[(7, true, 0, 0)], &[]]);
        assert_eq!(differences(&empty, Compare::Settled), [], "compacted away at one");
        let growing = nodes(&[&[(7, false, 3, 9)], &[(7, false, 2, 4)]]);
        assert_eq!(differences(&growing, Compare::Settled), []);
    }

    #[test]
    fn a_node_that_is_to_go_is_compared_with_all_it_has() {
        let growing = nodes(&[&[(7, false, 3, 9)], &[(7, false, 2, 4), (8, true, 1, 1)]]);
        let found = differences(&growing, Compare::AllOf(1));
        assert_eq!(found.len(), 1, "what only the other has does not count: {found:?}");
        let held = nodes(&[&[(7, false, 3, 9)], &[(7, false, 3, 9), (8, true, 1, 1)]]);
        assert_eq!(differences(&held, Compare::AllOf(1)), []);
    }
}
