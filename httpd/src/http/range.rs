//! `Range` (RFC 9110 §14).

use std::ops::Range;

/// What a `Range` field asks of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// No range, one in another unit, a malformed one, or too many: the whole body (§14.2 lets a
    /// server ignore the field).
    Whole,
    /// These byte ranges, in the order asked, each not empty and inside the body.
    Parts(Vec<Range<u64>>),
    /// None of the ranges overlaps the body: 416.
    Unsatisfiable,
}

/// Understands a `Range` field for a body of `length` bytes. More than `limit` ranges, or ranges
/// that overlap so that more bytes than the body would be sent, are answered with the whole
/// (§14.2 on many small or overlapping ranges).
pub fn parse(field: Option<&str>, length: u64, limit: usize) -> Asked {
    let Some(set) = field.and_then(|field| field.trim().strip_prefix("bytes=")) else {
        return Asked::Whole;
    };
    let mut parts = Vec::new();
    let mut count = 0;
    for spec in set.split(',').map(str::trim).filter(|spec| !spec.is_empty()) {
        count += 1;
        if count > limit {
            return Asked::Whole;
        }
        match one(spec, length) {
            Some(Some(part)) => parts.push(part),
            Some(None) => {}
            None => return Asked::Whole,
        }
    }
    if count == 0 {
        return Asked::Whole;
    }
    if parts.is_empty() {
        return Asked::Unsatisfiable;
    }
    let sum: u64 = parts.iter().map(|part| part.end - part.start).fold(0, u64::saturating_add);
    if parts.len() > 1 && sum > length {
        return Asked::Whole;
    }
    Asked::Parts(parts)
}

/// One range: `None` when malformed, `Some(None)` when it does not overlap the body.
fn one(spec: &str, length: u64) -> Option<Option<Range<u64>>> {
    let (first, last) = spec.split_once('-')?;
    if first.is_empty() {
        let suffix = number(last)?;
        return Some((suffix > 0 && length > 0).then(|| length.saturating_sub(suffix)..length));
    }
    let first = number(first)?;
    let end = if last.is_empty() {
        length
    } else {
        let last = number(last)?;
        if last < first {
            return None;
        }
        last.saturating_add(1).min(length)
    };
    Some((first < end).then_some(first..end))
}

/// Digits only; a number beyond 64 bits counts as the largest.
fn number(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(field: &str, length: u64) -> Asked {
        parse(Some(field), length, 16)
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "one range is meant")]
    fn the_examples_of_rfc_9110() {
        assert_eq!(parts("bytes=0-499", 10_000), Asked::Parts(vec![0..500]));
        assert_eq!(parts("bytes=-500", 10_000), Asked::Parts(vec![9_500..10_000]));
        assert_eq!(parts("bytes=9500-", 10_000), Asked::Parts(vec![9_500..10_000]));
        assert_eq!(parts("bytes=0-0,-1", 10_000), Asked::Parts(vec![0..1, 9_999..10_000]));
        assert_eq!(parts("bytes=0-99999", 100), Asked::Parts(vec![0..100]));
        assert_eq!(parts("bytes=-0", 100), Asked::Unsatisfiable);
        assert_eq!(parts("bytes=100-", 100), Asked::Unsatisfiable);
        assert_eq!(parts("bytes=0-", 0), Asked::Unsatisfiable);
        assert_eq!(parts("bytes=-99999", 100), Asked::Parts(vec![0..100]));
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        for field in
            ["bytes=", "bytes=5-4", "items=0-1", "bytes=a-b", "bytes=1-2-3", "bytes=+1-2", "0-1"]
        {
            assert_eq!(parts(field, 100), Asked::Whole, "{field}");
        }
        assert_eq!(parse(None, 100, 16), Asked::Whole);
        assert_eq!(parse(Some("bytes=0-0,1-1,2-2"), 100, 2), Asked::Whole);
        assert_eq!(parts("bytes=0-,0-,0-", 100), Asked::Whole);
    }

    proptest! {
        #[test]
        fn parts_lie_inside_and_are_not_empty(field in "bytes=[0-9,-]{0,40}", length in 0u64..2000) {
            if let Asked::Parts(parts) = parts(&field, length) {
                for part in parts {
                    prop_assert!(part.start < part.end && part.end <= length);
                }
            }
        }
    }
}
