//! Which node to try first, and which group a new user gets. Pure.

/// A node that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The node's id.
    pub id: u32,
    /// Bytes free for uploads.
    pub free: u64,
    /// Requests in progress.
    pub load: u32,
}

/// Below this share of the best candidate's free bytes a node goes to the end for uploads.
const SHORT_OF_SPACE: f64 = 0.05;

/// The order to try the nodes of one group: the less loaded of two random ones first (Mitzenmacher,
/// "The Power of Two Choices", 2001), the rest turned by the same draw; for uploads, nodes short of
/// space last. `draw` is any number, new for each answer.
pub fn order(mut candidates: Vec<Candidate>, uploads: bool, draw: u64) -> Vec<u32> {
    candidates.sort_unstable_by_key(|candidate| candidate.id);
    let count = candidates.len();
    if count > 1 {
        let first = (draw % count as u64) as usize;
        candidates.rotate_left(first);
        let second = 1 + (draw / count as u64 % (count as u64 - 1)) as usize;
        if candidates[second].load < candidates[0].load {
            candidates.swap(0, second);
        }
    }
    if uploads {
        let most = candidates.iter().map(|candidate| candidate.free).max().unwrap_or(0) as f64;
        candidates.sort_by_key(|candidate| (candidate.free as f64) < most * SHORT_OF_SPACE);
    }
    candidates.into_iter().map(|candidate| candidate.id).collect()
}

/// The group for a new user: drawn with the free bytes as weights, so that an empty group fills
/// faster and yet is not overrun. `None` when no group has room.
pub fn group_for_new_user(groups: &[(u32, u64)], draw: u64) -> Option<u32> {
    let total: u128 = groups.iter().map(|(_, free)| u128::from(*free)).sum();
    if total == 0 {
        return None;
    }
    let mut point = u128::from(draw) % total;
    for (group, free) in groups {
        if point < u128::from(*free) {
            return Some(*group);
        }
        point -= u128::from(*free);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(id: u32, free: u64, load: u32) -> Candidate {
        Candidate { id, free, load }
    }

    proptest! {
        #[test]
        fn every_node_is_in_the_answer_once(loads in proptest::collection::vec(0u32..9, 0..6), draw: u64, uploads: bool) {
            let candidates: Vec<_> = loads.iter().enumerate()
                .map(|(id, load)| candidate(id as u32, 100, *load)).collect();
            let mut ids = order(candidates, uploads, draw);
            ids.sort_unstable();
            prop_assert_eq!(ids, (0..loads.len() as u32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn equal_nodes_come_first_equally_often() {
        let mut first = [0u32; 3];
        for draw in 0..9000 {
            let nodes = vec![candidate(0, 1, 5), candidate(1, 1, 5), candidate(2, 1, 5)];
            first[order(nodes, false, draw)[0] as usize] += 1;
        }
        assert_eq!(first, [3000; 3]);
    }

    #[test]
    fn a_full_node_is_the_last_choice_for_uploads() {
        for draw in 0..20 {
            let nodes = vec![candidate(0, 1, 0), candidate(1, 1000, 9), candidate(2, 900, 9)];
            assert_eq!(order(nodes, true, draw)[2], 0);
        }
    }

    #[test]
    fn new_users_go_where_the_room_is() {
        assert_eq!(group_for_new_user(&[(1, 0), (2, 0)], 5), None);
        let mut second = 0;
        for draw in 0..1000 {
            if group_for_new_user(&[(1, 100), (2, 900)], draw) == Some(2) {
                second += 1;
            }
        }
        assert_eq!(second, 900);
    }
}
