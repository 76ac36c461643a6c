//! The data plane: pure parts, from request bytes to response head, and a whole GET of a file in memory.

#[path = "../src/cluster.rs"]
#[expect(dead_code, reason = "shared with `reel-bench`, which uses more of it")]
mod cluster;

use criterion::{Criterion, criterion_group, criterion_main};
use reel_httpd::http::{range, request, response};
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

const REQUEST: &[u8] = b"GET /user/series/episode/segment-000123.m4s HTTP/1.1\r\nHost: media.example\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: */*\r\nRange: bytes=0-1048575\r\nOrigin: https://player.example\r\n\r\n";

fn http(c: &mut Criterion) {
    c.bench_function("parse a request head", |b| {
        b.iter(|| request::parse(black_box(REQUEST)).expect("good"))
    });
    c.bench_function("from request bytes to response head", |b| {
        b.iter(|| {
            let (request, _) = request::parse(black_box(REQUEST)).expect("good").expect("whole");
            let asked = range::parse(request.fields.range.as_deref(), 1 << 30, 16);
            let mut head = response::Head::new(206, "Sun, 06 Nov 1994 08:49:37 GMT");
            if let range::Asked::Parts(parts) = asked {
                let part = &parts[0];
                head.prepared("ETag: \"3a5f0000-deadbeef\"\r\nAccept-Ranges: bytes\r\n")
                    .field("Content-Type", "video/mp4")
                    .field("Content-Length", part.end - part.start)
                    .field(
                        "Content-Range",
                        format_args!("bytes {}-{}/{}", part.start, part.end - 1, 1 << 30),
                    );
            }
            black_box(head.connection(request.keep_alive, request.http11));
            black_box(head.end())
        })
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

/// A real node over loopback: by name, through everything. One request at a time is what a client waits for; many
/// at once in one write show what they cost without the waiting.
fn whole_get(c: &mut Criterion) {
    let beside =
        std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join("reel")));
    let Some(reel) = beside.filter(|path| path.exists()) else {
        cluster::say("skipped: a whole GET (cargo build --release -p reelstore first)");
        return;
    };
    let dir = tempfile::tempdir().expect("temp folder");
    let cluster = cluster::Cluster::start(&reel, dir.path(), &["--shards", "1"]).expect("starts");
    let mut stream = TcpStream::connect(cluster.storage.address).expect("connects");
    stream.set_nodelay(true).expect("set");
    let mut ask = |request: &[u8], answers: usize, length: usize| {
        stream.write_all(request).expect("sent");
        let mut answer = vec![0; answers * length.max(1)];
        match length {
            // Not known yet: as much as comes at once.
            0 => {
                answer.resize(64 << 10, 0);
                let mut read = 0;
                while !answer[..read].windows(4).any(|end| end == b"\r\n\r\n") || read < 4096 {
                    read += stream.read(&mut answer[read..]).expect("read");
                }
                answer.truncate(read);
            }
            _ => stream.read_exact(&mut answer).expect("read"),
        }
        answer
    };
    let put = [
        b"PUT /bench/file HTTP/1.1\r\nHost: b\r\nContent-Length: 4096\r\n\r\n".as_slice(),
        &[7; 4096],
    ]
    .concat();
    stream_put(cluster.storage.address, &put);
    let get = b"GET /bench/file HTTP/1.1\r\nHost: b\r\n\r\n";
    let mut length = 0;
    // From the third on it comes from memory, and all answers have one length.
    for _ in 0..4 {
        length = ask(get, 1, 0).len();
    }
    c.bench_function("whole GET, 4 KiB in memory, one at a time", |b| {
        b.iter(|| black_box(ask(get, 1, length)))
    });
    let many = get.repeat(MANY);
    let mut group = c.benchmark_group("whole GET, 4 KiB in memory");
    group.throughput(criterion::Throughput::Elements(MANY as u64));
    group.bench_function(format!("{MANY} in one write"), |b| {
        b.iter(|| black_box(ask(&many, MANY, length)))
    });
    group.finish();
}

/// Requests of one write.
const MANY: usize = 32;

/// Uploads until the node takes it.
fn stream_put(address: SocketAddr, put: &[u8]) {
    for _ in 0..100 {
        let mut stream = TcpStream::connect(address).expect("connects");
        stream.write_all(put).expect("sent");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("read");
        if answer == *b"HTTP/1.1 201" {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("the node takes no upload");
}

criterion_group!(benches, http, whole_get);
criterion_main!(benches);
