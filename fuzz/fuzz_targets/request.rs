//! A request head is understood or refused; what is understood has used no more than there is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reel_httpd::http::{range, request};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some((request, used))) = request::parse(bytes) {
        assert!(used <= bytes.len());
        let length = 10_000;
        if let range::Asked::Parts(parts) = range::parse(request.fields.range.as_deref(), length, 16) {
            assert!(parts.iter().all(|part| part.start < part.end && part.end <= length));
        }
    }
});
