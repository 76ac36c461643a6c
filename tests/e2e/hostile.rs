//! Ten thousand hostile or broken requests: each gets its status, and nothing is left behind.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::harness::{Base, Role, bytes, eventually, get, put, read_answer};

/// Requests; `REEL_HOSTILE` asks for more.
const REQUESTS: u64 = 10_000;
/// Bytes of the file that is asked for.
const FILE: usize = 10_000;

/// What a request gets.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Expect {
    /// This status, and nothing after it.
    Status(u16),
    /// One of these.
    Either(u16, u16),
    /// The connection closes without an answer: half a request is none.
    Nothing,
}

use Expect::{Either, Nothing, Status};

/// Written by hand: smuggling, ranges, heads.
fn by_hand() -> Vec<(Vec<u8>, Expect)> {
    let get =
        |fields: &str| format!("GET /ann/file HTTP/1.1\r\nHost: h\r\n{fields}\r\n").into_bytes();
    let put = |fields: &str, body: &str| {
        format!("PUT /ann/new HTTP/1.1\r\nHost: h\r\n{fields}\r\n{body}").into_bytes()
    };
    let plain = |text: &str| text.as_bytes().to_vec();
    let ranges = |count: usize| {
        let list: Vec<String> = (0..count).map(|at| format!("{}-{}", at * 2, at * 2)).collect();
        format!("Range: bytes={}\r\n", list.join(","))
    };
    vec![
        // Two framings, or none that is one (RFC 9112 §6).
        (put("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), Status(400)),
        (put("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", "0\r\n\r\n"), Status(400)),
        (put("Content-Length: 3\r\nContent-Length: 4\r\n", "abcd"), Status(400)),
        (put("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"), Status(400)),
        (put("Content-Length: 3, 3\r\n", "abc"), Status(400)),
        (put("Content-Length: +3\r\n", "abc"), Status(400)),
        (put("Content-Length: -1\r\n", ""), Status(400)),
        (put("Content-Length: 0x3\r\n", "abc"), Status(400)),
        (put("Content-Length: 3 \r\n", "abc"), Either(201, 400)),
        (put("Content-Length : 3\r\n", "abc"), Status(400)),
        (put("Content-Length:\r\n", ""), Status(400)),
        (put("Content-Length: 99999999999999999999999\r\n", ""), Status(413)),
        (put("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), Status(501)),
        (put("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"), Status(501)),
        (put("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), Status(501)),
        (
            put("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"),
            Status(501),
        ),
        (put("Transfer-Encoding:\x0bchunked\r\n", "0\r\n\r\n"), Either(400, 501)),
        (put("Transfer-Encoding: chunked\r\n", "5\nhello\n0\n\n"), Status(400)),
        (put("Transfer-Encoding: chunked\r\n", "g\r\n"), Status(400)),
        (put("Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\n"), Status(400)),
        (put("Transfer-Encoding: chunked\r\n", "3\r\nabcX\r\n0\r\n\r\n"), Status(400)),
        (
            plain("PUT /ann/new HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            Status(400),
        ),
        (put("", ""), Status(411)),
        (put("Content-Length: 3\r\nExpect: 200-maybe\r\n", "abc"), Status(417)),
        // Heads.
        (plain("GET /ann/file HTTP/1.1\r\n\r\n"), Status(400)),
        (get("Host: other\r\n"), Status(400)),
        (get(" folded: line\r\n"), Status(400)),
        (get("A: b\r\n continued\r\n"), Status(400)),
        (get("No colon\r\n"), Status(400)),
        (get("Na\0me: x\r\n"), Status(400)),
        (get("Name: a\0b\r\n"), Status(400)),
        (get("Na me: x\r\n"), Status(400)),
        (get(": x\r\n"), Status(400)),
        (get(&format!("A: {}\r\n", "x".repeat(40_000))), Status(431)),
        (get(&"A: b\r\n".repeat(200)), Status(431)),
        (plain("GET /ann/file HTTP/2.0\r\nHost: h\r\n\r\n"), Either(400, 505)),
        (plain("GET /ann/file HTTP/1.2\r\nHost: h\r\n\r\n"), Either(400, 505)),
        (plain("GET /ann/file\r\n\r\n"), Either(400, 505)),
        (plain("GET  /ann/file HTTP/1.1\r\nHost: h\r\n\r\n"), Status(400)),
        (plain("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Either(400, 505)),
        (plain("\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\r\n\r\n"), Status(400)),
        (plain("GET ann/file HTTP/1.1\r\nHost: h\r\n\r\n"), Status(400)),
        (plain("GET ftp://h/ann/file HTTP/1.1\r\nHost: h\r\n\r\n"), Status(400)),
        (
            format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(9_000)).into_bytes(),
            Status(414),
        ),
        (plain("BREW /ann/file HTTP/1.1\r\nHost: h\r\n\r\n"), Status(405)),
        (plain("TRACE /ann/file HTTP/1.1\r\nHost: h\r\n\r\n"), Status(405)),
        (plain("CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n"), Status(400)),
        // Names.
        (plain("GET /ann/%zz HTTP/1.1\r\nHost: h\r\n\r\n"), Status(400)),
        (plain("GET /ann/%ff HTTP/1.1\r\nHost: h\r\n\r\n"), Status(400)),
        (plain("GET /ann/a%00b HTTP/1.1\r\nHost: h\r\n\r\n"), Status(400)),
        (plain("GET /../etc/passwd HTTP/1.1\r\nHost: h\r\n\r\n"), Either(400, 404)),
        (plain("GET /ann/../../etc/passwd HTTP/1.1\r\nHost: h\r\n\r\n"), Either(400, 404)),
        (plain("GET /ann/%2e%2e/x HTTP/1.1\r\nHost: h\r\n\r\n"), Either(400, 404)),
        (plain("GET /ann HTTP/1.1\r\nHost: h\r\n\r\n"), Either(400, 404)),
        (plain("GET /-/v1/objects/zz HTTP/1.1\r\nHost: h\r\n\r\n"), Status(400)),
        (plain("GET /-/nothing HTTP/1.1\r\nHost: h\r\n\r\n"), Status(404)),
        // Ranges (RFC 9110 §14).
        (get("Range: bytes=0-0\r\n"), Status(206)),
        (get("Range: bytes=-1\r\n"), Status(206)),
        (get("Range: bytes=0-99999999999999999999999999\r\n"), Status(206)),
        (get("Range: bytes=10000-\r\n"), Status(416)),
        (get("Range: bytes=-0\r\n"), Status(416)),
        (get("Range: bytes=5-2\r\n"), Status(200)),
        (get("Range: bytes=a-b\r\n"), Status(200)),
        (get("Range: bytes=\r\n"), Status(200)),
        (get("Range: pages=1-2\r\n"), Status(200)),
        (get("Range: bytes=0-,0-,0-,0-\r\n"), Status(200)),
        (get(&ranges(2)), Status(206)),
        (get(&ranges(1000)), Status(200)),
        (get("If-Match: \"no\"\r\n"), Status(412)),
        (get("If-None-Match: *\r\n"), Status(304)),
        (get("If-Modified-Since: yesterday\r\n"), Status(200)),
        // Half a request.
        (plain("GET /ann/file HT"), Nothing),
        (plain(""), Nothing),
        (plain("\r\n\r\n"), Nothing),
        (put("Content-Length: 100\r\n", "abc"), Nothing),
    ]
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn token(&mut self, alphabet: &[u8], most: u64) -> String {
        let length = 1 + self.below(most);
        (0..length).map(|_| alphabet[self.below(alphabet.len() as u64) as usize] as char).collect()
    }
}

/// From a seed: well-formed parts put together at random, with one thing wrong or none.
fn generated(rng: &mut Rng) -> (Vec<u8>, Expect) {
    let letters = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let mut fields = String::new();
    for _ in 0..rng.below(6) {
        let (name, value) = (rng.token(letters, 20), rng.token(b"abc 123;=/,\"", 60));
        fields.push_str(&format!("X{name}: {value}\r\n"));
    }
    let start = |line: &str| format!("{line} HTTP/1.1\r\nHost: h\r\n{fields}\r\n").into_bytes();
    match rng.below(10) {
        0 => {
            // Any byte that no field name has.
            let bad = [b' ', b'(', b'@', b'[', 0x7f, 0x01, 0xff][rng.below(7) as usize];
            let mut head = b"GET /ann/file HTTP/1.1\r\nHost: h\r\nA".to_vec();
            head.push(bad);
            head.extend_from_slice(b"b: c\r\n\r\n");
            (head, Status(400))
        }
        1 => {
            let method = format!("X{}", rng.token(letters, 12));
            (start(&format!("{method} /ann/file")), Status(405))
        }
        2 => {
            let (from, to) = (rng.below(20_000), rng.below(20_000));
            let expected = match (from <= to, from < FILE as u64) {
                (false, _) => Status(200),
                (true, true) => Status(206),
                (true, false) => Status(416),
            };
            let head = format!(
                "GET /ann/file HTTP/1.1\r\nHost: h\r\n{fields}Range: bytes={from}-{to}\r\n\r\n"
            );
            (head.into_bytes(), expected)
        }
        3 => (start(&format!("GET /ann/none-{}", rng.token(letters, 30))), Status(404)),
        4 => {
            let name = format!("%{}{}", rng.token(b"ghijkxyz", 1), rng.token(letters, 3));
            (start(&format!("GET /ann/{name}")), Status(400))
        }
        5 => {
            let whole = start("GET /ann/file");
            let cut = rng.below(whole.len() as u64 - 1) as usize;
            (whole[..cut].to_vec(), Nothing)
        }
        6 => {
            let size = rng.token(b"ghxyz-+ ", 8);
            let body = format!("{size}\r\nabc\r\n0\r\n\r\n");
            let head = format!(
                "PUT /ann/new HTTP/1.1\r\nHost: h\r\n{fields}Transfer-Encoding: chunked\r\n\r\n"
            );
            ((head + &body).into_bytes(), Status(400))
        }
        7 => {
            let (one, other) = (rng.below(1000), rng.below(1000));
            let head = format!(
                "PUT /ann/new HTTP/1.1\r\nHost: h\r\nContent-Length: {one}\r\n{fields}Content-Length: {other}\r\n\r\n"
            );
            (head.into_bytes(), Status(400))
        }
        8 => {
            // Bytes without any sense, and no line end that could make a request of them.
            let length = 4 + rng.below(200);
            let mut noise: Vec<u8> = (0..length).map(|_| 0x80 | rng.below(128) as u8).collect();
            noise.extend_from_slice(b"\r\n\r\n");
            (noise, Status(400))
        }
        _ => (start("GET /ann/file"), Status(200)),
    }
}

/// Sends a request, and what it got; the other side is told that no more will come.
fn ask(address: &str, request: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // An answer may come, and the connection close, before all was sent.
    let _ = stream.write_all(request);
    let _ = stream.shutdown(Shutdown::Write);
    let status = read_answer(&mut stream, false).ok().map(|answer| answer.status);
    // It closes soon, whatever came before.
    let _ = stream.read_to_end(&mut Vec::new());
    status
}

/// Descriptors of the catalog's pool: four readers and a writer, a file and a log each, and what they share.
/// The pool opens a connection when two look-ups happen to meet, so their number is only bounded.
const CATALOG_DESCRIPTORS: usize = 2 * 5 + 1;

/// Descriptors but for those of the catalog's pool.
fn descriptors(node: &Role) -> usize {
    let entries = std::fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let (catalog, others): (Vec<_>, Vec<_>) =
        links.partition(|link| link.to_string_lossy().contains("/catalog.db"));
    assert!(catalog.len() <= CATALOG_DESCRIPTORS, "{catalog:?}");
    others.len()
}

fn memory_kib(node: &Role) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn hostile_requests_get_their_status_and_leave_nothing() {
    let base = Base::start();
    let node = base.storage(101, "node", "");
    let payload = bytes(5, FILE);
    assert_eq!(put(&node.address, "/ann/file", &payload).unwrap().status, 201);
    let judge = |request: &[u8], expected: Expect, what: &dyn std::fmt::Display| {
        let got = ask(&node.address, request);
        let fits = match expected {
            Status(status) => got == Some(status),
            Either(one, other) => got == Some(one) || got == Some(other),
            Nothing => got.is_none(),
        };
        let shown = String::from_utf8_lossy(&request[..request.len().min(300)]);
        assert!(fits, "{what}: expected {expected:?}, got {got:?} for {shown:?}");
    };
    let hand = by_hand();
    for (index, (request, expected)) in hand.iter().enumerate() {
        judge(request, *expected, &format_args!("by hand, {index}"));
    }
    let count = std::env::var("REEL_HOSTILE").ok().and_then(|count| count.parse().ok());
    let count: u64 = count.unwrap_or(REQUESTS);
    let mut rng = Rng(0x5eed_0000_0001);
    let run = |rng: &mut Rng, count| {
        for index in 0..count {
            let (request, expected) = generated(rng);
            judge(&request, expected, &format_args!("generated, {index}"));
        }
    };
    // What is cached comes to be in the first part.
    run(&mut rng, count / 5);
    let (open, memory) = (descriptors(&node), memory_kib(&node));
    run(&mut rng, count - count / 5);
    eventually("every connection is closed", || (descriptors(&node) <= open).then_some(()));
    let after = memory_kib(&node);
    assert!(after <= memory + 4096, "RssAnon grew from {memory} to {after} KiB");
    assert!(get(&node.address, "/ann/file").unwrap().body == payload);
    println!(
        "{} requests by hand and {count} generated: each got its status; {open} descriptors, RssAnon {memory} KiB before and {after} after",
        hand.len()
    );
}
