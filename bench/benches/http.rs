//! Pure parts of the data plane: from request bytes to response head.

use criterion::{Criterion, criterion_group, criterion_main};
use reel_httpd::http::{range, request, response};
use std::hint::black_box;

const REQUEST: &[u8] = b"GET /user/series/episode/segment-000123.m4s HTTP/1.1\r\nHost: media.example\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: */*\r\nRange: bytes=0-1048575\r\nOrigin: https://player.example\r\n\r\n";

fn http(c: &mut Criterion) {
    c.bench_function("parse a request head", |b| {
        b.iter(|| request::parse(black_box(REQUEST)).expect("good"))
    });
    c.bench_function("parse a range", |b| {
        b.iter(|| range::parse(black_box(Some("bytes=0-1048575")), 1 << 30, 16));
    });
    c.bench_function("write a response head", |b| {
        b.iter(|| {
            let mut head = response::Head::new(206, "Sun, 06 Nov 1994 08:49:37 GMT");
            head.field("Content-Type", "video/mp4")
                .field("Content-Length", 1_048_576)
                .field("Content-Range", "bytes 0-1048575/1073741824")
                .field("ETag", "\"3a5f0000-deadbeef\"")
                .field("Accept-Ranges", "bytes");
            black_box(head.end())
        });
    });
}

criterion_group!(benches, http);
criterion_main!(benches);
