//! Conditional requests (RFC 9110 §13), in the precedence of §13.2.2.

use super::date;
use super::request::Fields;

/// What the conditions say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on; the range counts when true.
    Proceed {
        /// Whether `Range` is to be looked at (`If-Range` held, or was absent).
        ranges: bool,
    },
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

/// Judges a GET or HEAD of a file with this entity tag and time (seconds since 1970).
pub fn judge(fields: &Fields, etag: &str, modified: u64) -> Verdict {
    let since = |field: &Option<String>| field.as_deref().and_then(date::parse);
    if let Some(list) = &fields.if_match {
        if !matches(list, etag, true) {
            return Verdict::Failed;
        }
    } else if since(&fields.if_unmodified_since).is_some_and(|limit| modified > limit) {
        return Verdict::Failed;
    }
    if let Some(list) = &fields.if_none_match {
        if matches(list, etag, false) {
            return Verdict::NotModified;
        }
    } else if since(&fields.if_modified_since).is_some_and(|limit| modified <= limit) {
        return Verdict::NotModified;
    }
    let ranges = fields.if_range.as_deref().is_none_or(|field| {
        // A tag must match strongly; a date must match exactly (§13.1.5).
        if field.contains('"') {
            field.trim() == etag
        } else {
            date::parse(field) == Some(modified)
        }
    });
    Verdict::Proceed { ranges }
}

/// Judges a write of a name: `None` when there is no file, else its entity tag. False is 412.
pub fn allows_write(fields: &Fields, present: Option<&str>) -> bool {
    let holds = |list: &str, strong| match present {
        Some(etag) => matches(list, etag, strong),
        None => false,
    };
    fields.if_match.as_deref().is_none_or(|list| holds(list, true))
        && fields.if_none_match.as_deref().is_none_or(|list| !holds(list, false))
}

/// Whether `etag` is in the list. Ours are strong; a weak one in the list matches only weakly.
fn matches(list: &str, etag: &str, strong: bool) -> bool {
    list.split(',').map(str::trim).any(|entry| {
        let (weak, tag) = match entry.strip_prefix("W/") {
            Some(tag) => (true, tag),
            None => (false, entry),
        };
        entry == "*" || tag == etag && !(strong && weak)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETAG: &str = "\"a1\"";
    const AT: u64 = 1_700_000_000;

    fn with(set: impl FnOnce(&mut Fields)) -> Verdict {
        let mut fields = Fields::default();
        set(&mut fields);
        judge(&fields, ETAG, AT)
    }

    fn http(at: u64) -> Option<String> {
        Some(date::format(at))
    }

    #[test]
    fn each_condition_alone() {
        let go = Verdict::Proceed { ranges: true };
        assert_eq!(with(|_| {}), go);
        assert_eq!(
            with(|f| f.if_none_match = Some("\"x\", W/\"a1\"".into())),
            Verdict::NotModified
        );
        assert_eq!(with(|f| f.if_none_match = Some("\"x\"".into())), go);
        assert_eq!(with(|f| f.if_none_match = Some("*".into())), Verdict::NotModified);
        assert_eq!(with(|f| f.if_match = Some("W/\"a1\"".into())), Verdict::Failed);
        assert_eq!(with(|f| f.if_match = Some("\"a1\"".into())), go);
        assert_eq!(with(|f| f.if_modified_since = http(AT)), Verdict::NotModified);
        assert_eq!(with(|f| f.if_modified_since = http(AT - 1)), go);
        assert_eq!(with(|f| f.if_unmodified_since = http(AT - 1)), Verdict::Failed);
        assert_eq!(with(|f| f.if_unmodified_since = Some("no date".into())), go);
    }

    #[test]
    fn precedence_is_that_of_the_rfc() {
        // If-None-Match hides If-Modified-Since, If-Match hides If-Unmodified-Since.
        assert_eq!(
            with(|f| {
                f.if_none_match = Some("\"x\"".into());
                f.if_modified_since = http(AT + 9);
            }),
            Verdict::Proceed { ranges: true }
        );
        assert_eq!(
            with(|f| {
                f.if_match = Some("\"a1\"".into());
                f.if_unmodified_since = http(AT - 9);
            }),
            Verdict::Proceed { ranges: true }
        );
    }

    #[test]
    fn if_range_must_match_strongly_or_exactly() {
        assert_eq!(with(|f| f.if_range = Some(ETAG.into())), Verdict::Proceed { ranges: true });
        assert_eq!(
            with(|f| f.if_range = Some("W/\"a1\"".into())),
            Verdict::Proceed { ranges: false }
        );
        assert_eq!(with(|f| f.if_range = http(AT)), Verdict::Proceed { ranges: true });
        assert_eq!(with(|f| f.if_range = http(AT + 1)), Verdict::Proceed { ranges: false });
    }

    #[test]
    fn writes_can_be_made_conditional() {
        let only_new = Fields { if_none_match: Some("*".into()), ..Fields::default() };
        assert!(allows_write(&only_new, None) && !allows_write(&only_new, Some(ETAG)));
        let only_this = Fields { if_match: Some(ETAG.into()), ..Fields::default() };
        assert!(!allows_write(&only_this, None) && allows_write(&only_this, Some(ETAG)));
    }
}
