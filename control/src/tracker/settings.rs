//! What operators say of groups, as the catalog has it: a tracker remembers it for a moment, and goes on with what it
//! knows while the catalog is away.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::api::{GroupSettings, GroupView};

/// How long an answer of the catalog is used.
const FRESH: Duration = Duration::from_secs(1);

/// Settings by group; those of a group without a row are the default.
#[derive(Debug, Default)]
pub(super) struct Settings {
    by_group: BTreeMap<u32, GroupSettings>,
    asked: Option<Duration>,
}

impl Settings {
    /// Whether the catalog need not be asked; says at the same time that it is being asked.
    pub(super) fn are_fresh(&mut self, now: Duration) -> bool {
        let fresh = self.asked.is_some_and(|asked| now.saturating_sub(asked) < FRESH);
        if !fresh {
            self.asked = Some(now);
        }
        fresh
    }

    pub(super) fn learn(&mut self, settings: Vec<(u32, GroupSettings)>) {
        self.by_group = settings.into_iter().collect();
    }

    /// They were changed here.
    pub(super) fn forget(&mut self) {
        self.asked = None;
    }

    pub(super) fn of(&self, group: u32) -> GroupSettings {
        self.by_group.get(&group).copied().unwrap_or_default()
    }

    /// Adds them to the groups that have nodes, and the groups that have none yet.
    pub(super) fn complete(&self, mut groups: Vec<GroupView>) -> Vec<GroupView> {
        for view in &mut groups {
            view.settings = self.of(view.group);
        }
        for (group, settings) in &self.by_group {
            if groups.iter().all(|view| view.group != *group) {
                groups.push(GroupView { settings: *settings, ..GroupView::without_nodes(*group) });
            }
        }
        groups.sort_by_key(|view| view.group);
        groups
    }

    /// What draws new users to a group: its free bytes by its weight; nothing when it is readonly.
    pub(super) fn pull(&self, group: u32, free: u64) -> u64 {
        let GroupSettings { weight, readonly } = self.of(group);
        if readonly { 0 } else { (u128::from(free) * u128::from(weight) / 100) as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weight_and_readonly_say_where_new_users_go() {
        let mut settings = Settings::default();
        settings.learn(vec![
            (2, GroupSettings { weight: 50, readonly: false }),
            (3, GroupSettings { weight: 100, readonly: true }),
            (4, GroupSettings { weight: 0, readonly: false }),
        ]);
        let pulls: Vec<u64> = (1..=4).map(|group| settings.pull(group, 1000)).collect();
        assert_eq!(pulls, [1000, 500, 0, 0]);
    }

    #[test]
    fn the_catalog_is_asked_once_a_moment() {
        let mut settings = Settings::default();
        assert!(!settings.are_fresh(Duration::ZERO));
        assert!(settings.are_fresh(FRESH / 2));
        assert!(!settings.are_fresh(FRESH));
        settings.forget();
        assert!(!settings.are_fresh(FRESH));
    }

    #[test]
    fn a_group_that_was_created_is_shown_before_its_nodes_come() {
        let mut settings = Settings::default();
        settings.learn(vec![(7, GroupSettings { weight: 0, readonly: false })]);
        let groups = settings.complete(vec![GroupView::without_nodes(9)]);
        let shown: Vec<(u32, u32)> =
            groups.iter().map(|view| (view.group, view.settings.weight)).collect();
        assert_eq!(shown, [(7, 0), (9, 100)]);
    }
}
