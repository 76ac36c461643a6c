//! Users' groups as the tracker read them last: most answers need no SQL, and a catalog that is away keeps no
//! viewer from their node. A user whose group changed is sent on by the node (421), so an old entry costs a hop.

use std::collections::HashMap;
use std::time::Duration;

/// Users remembered; beyond, it begins anew.
const USERS: usize = 262_144;
/// So long an entry is believed while the catalog answers.
const FRESH: Duration = Duration::from_secs(5);

/// What is remembered. Pure: the time comes in as a value.
#[derive(Debug, Default)]
pub(super) struct Users {
    groups: HashMap<String, (u32, Duration)>,
}

impl Users {
    /// A user's group, when it was read lately.
    pub(super) fn fresh(&self, user: &str, now: Duration) -> Option<u32> {
        let (group, at) = self.groups.get(user)?;
        (now.saturating_sub(*at) < FRESH).then_some(*group)
    }

    /// A user's group, whenever it was read: for when the catalog is away.
    pub(super) fn last(&self, user: &str) -> Option<u32> {
        self.groups.get(user).map(|(group, _)| *group)
    }

    /// The catalog says that it is this one.
    pub(super) fn remember(&mut self, user: &str, group: u32, now: Duration) {
        if self.groups.len() >= USERS && !self.groups.contains_key(user) {
            self.groups.clear();
        }
        self.groups.insert(user.to_owned(), (group, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_fresh_for_a_while_and_there_for_longer() {
        let mut users = Users::default();
        assert_eq!(users.last("ann"), None);
        users.remember("ann", 3, Duration::from_secs(10));
        assert_eq!(users.fresh("ann", Duration::from_secs(12)), Some(3));
        assert_eq!(users.fresh("ann", Duration::from_secs(10) + FRESH), None);
        assert_eq!(users.last("ann"), Some(3));
    }

    #[test]
    fn users_are_bounded() {
        let mut users = Users::default();
        for user in 0..=USERS {
            users.remember(&user.to_string(), 1, Duration::ZERO);
        }
        assert!(users.groups.len() <= USERS);
    }
}
