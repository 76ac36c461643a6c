//! A chunked body gives the same payload however its bytes come.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reel_httpd::http::body::Decoder;
use reel_httpd::http::request::Framing;

fn decode(bytes: &[u8], piece: usize) -> Option<(Vec<u8>, usize)> {
    let mut decoder = Decoder::new(Framing::Chunked);
    let (mut payload, mut at) = (Vec::new(), 0);
    while at < bytes.len() && !decoder.is_done() {
        let now = &bytes[at..(at + piece).min(bytes.len())];
        let step = decoder.step(now).ok()?;
        payload.extend_from_slice(&now[step.payload]);
        at += step.used;
    }
    decoder.is_done().then_some((payload, at))
}

fuzz_target!(|bytes: &[u8]| {
    assert_eq!(decode(bytes, 1), decode(bytes, usize::MAX / 2));
});
