//! Conditions are judged without a panic, and rightly in what can be said of all: a tag that is listed never proceeds
//! past If-None-Match, one that is not listed never past If-Match. A head never lets a value begin another field.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reel_httpd::http::{conditions, request, response};

fuzz_target!(|input: (Vec<String>, String, u64)| {
    let (mut texts, value, modified) = input;
    let mut fields = request::Fields::default();
    for slot in [
        &mut fields.if_match,
        &mut fields.if_none_match,
        &mut fields.if_modified_since,
        &mut fields.if_unmodified_since,
        &mut fields.if_range,
        &mut fields.range,
    ] {
        *slot = texts.pop();
    }
    let etag = "\"3a5f-deadbeef\"";
    let verdict = conditions::judge(&fields, etag, modified);
    if fields.if_match.is_none() && fields.if_unmodified_since.is_none() && fields.if_none_match.as_deref() == Some(etag) {
        assert!(matches!(verdict, conditions::Verdict::NotModified));
    }
    if fields.if_match.as_deref() == Some("\"other\"") {
        assert!(matches!(verdict, conditions::Verdict::Failed));
    }
    let mut head = response::Head::new(200, "Sun, 06 Nov 1994 08:49:37 GMT");
    head.field("X", &value);
    let bytes = head.end();
    let ends = bytes.windows(4).filter(|four| *four == b"\r\n\r\n").count();
    assert_eq!(ends, 1, "one end");
    assert!(bytes.iter().filter(|byte| **byte == b'\n').count() <= 5);
});
