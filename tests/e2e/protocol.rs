//! HTTP as clients see it, at a storage node and through an HTTP server: the same answers.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::harness::{Up, bytes, delete, get, has, put, read_answer, request};

/// Runs a check at the HTTP server and at the node behind it.
pub fn at_both(check: impl Fn(&str)) {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &["--shards", "1"]);
    check(&up.http());
    check(&up.of("storage")[0].address);
}

#[test]
fn an_upload_is_created_then_replaced_then_deleted() {
    at_both(|at| {
        let created = put(at, "/ann/films/a%20b.mp4", &bytes(1, 5000)).unwrap();
        assert_eq!(created.status, 201);
        let json = created.json();
        assert_eq!((json["bytes"].as_u64(), json["group"].as_u64()), (Some(5000), Some(1)));
        assert_eq!(json["crc32"], format!("{:08x}", crc32fast::hash(&bytes(1, 5000))));
        assert!(json["path"].as_str().unwrap().ends_with(".seg"));
        let first = get(at, "/ann/films/a%20b.mp4").unwrap();
        assert_eq!((first.status, first.field("content-type")), (200, "video/mp4"));
        assert_eq!(first.field("etag"), created.field("etag"));
        assert!(first.body == bytes(1, 5000));
        let replaced = put(at, "/ann/films/a%20b.mp4", &bytes(2, 3_000_000)).unwrap();
        assert_eq!(replaced.status, 200);
        let second = get(at, "/ann/films/a%20b.mp4").unwrap();
        assert!(second.body == bytes(2, 3_000_000) && second.field("etag") != first.field("etag"));
        assert_eq!(delete(at, "/ann/films/a%20b.mp4").unwrap().status, 204);
        assert_eq!(get(at, "/ann/films/a%20b.mp4").unwrap().status, 404);
        assert_eq!(delete(at, "/ann/films/a%20b.mp4").unwrap().status, 404);
    });
}

#[test]
fn ranges_and_conditions() {
    at_both(|at| {
        for (name, length) in [("small", 1000usize), ("large", 1_500_000)] {
            let whole = bytes(7, length);
            let path = format!("/ann/{name}");
            let etag = put(at, &path, &whole).unwrap().field("etag").to_owned();
            let with = |fields: &str| {
                request(at, &format!("GET {path} HTTP/1.1\r\n{fields}"), &[]).unwrap()
            };
            let part = with("Range: bytes=100-199");
            assert_eq!((part.status, &part.body[..]), (206, &whole[100..200]));
            assert_eq!(part.field("content-range"), format!("bytes 100-199/{length}"));
            let tail = with("Range: bytes=-50");
            assert_eq!((tail.status, &tail.body[..]), (206, &whole[length - 50..]));
            let open = with(&format!("Range: bytes={}-", length - 10));
            assert_eq!(open.body, &whole[length - 10..]);
            let beyond = with(&format!("Range: bytes={length}-"));
            assert_eq!(
                (beyond.status, beyond.field("content-range")),
                (416, format!("bytes */{length}").as_str())
            );
            let several = with("Range: bytes=0-9,500-519");
            assert_eq!(several.status, 206);
            let boundary =
                several.field("content-type").split_once("boundary=").unwrap().1.to_owned();
            let mut expected = Vec::new();
            for (from, to) in [(0, 9), (500, 519)] {
                expected.extend_from_slice(
                    format!("\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {from}-{to}/{length}\r\n\r\n").as_bytes(),
                );
                expected.extend_from_slice(&whole[from..=to]);
            }
            expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
            assert!(several.body == expected);
            assert_eq!(with(&format!("If-None-Match: {etag}")).status, 304);
            assert_eq!(with("If-Match: \"other\"").status, 412);
            let modified = part.field("last-modified").to_owned();
            assert_eq!(with(&format!("If-Modified-Since: {modified}")).status, 304);
            assert_eq!(with(&format!("Range: bytes=0-0\r\nIf-Range: {etag}")).status, 206);
            assert_eq!(with("Range: bytes=0-0\r\nIf-Range: \"other\"").status, 200);
            let head = request(at, &format!("HEAD {path} HTTP/1.1"), &[]).unwrap();
            assert_eq!(
                (head.status, head.field("content-length")),
                (200, length.to_string().as_str())
            );
            assert_eq!(head.field("accept-ranges"), "bytes");
        }
    });
}

#[test]
fn uploads_can_be_conditional_chunked_and_checked() {
    at_both(|at| {
        let body = bytes(3, 70_000);
        let only_new =
            format!("PUT /bob/once HTTP/1.1\r\nIf-None-Match: *\r\nContent-Length: {}", body.len());
        assert_eq!(request(at, &only_new, &body).unwrap().status, 201);
        assert_eq!(request(at, &only_new, &body).unwrap().status, 412);
        let wrong = format!(
            "PUT /bob/checked HTTP/1.1\r\nReel-Content-Crc32: 00000000\r\nContent-Length: {}",
            body.len()
        );
        let answer = request(at, &wrong, &body).unwrap();
        assert_eq!((answer.status, answer.json()["error"].as_str()), (400, Some("wrong_crc")));
        assert_eq!(get(at, "/bob/checked").unwrap().status, 404);
        let right = format!(
            "PUT /bob/checked HTTP/1.1\r\nReel-Content-Crc32: {:08x}\r\nContent-Length: {}",
            crc32fast::hash(&body),
            body.len()
        );
        assert_eq!(request(at, &right, &body).unwrap().status, 201);
        for (name, length) in [("small", 70_000usize), ("large", 2_500_000)] {
            let body = bytes(4, length);
            let mut chunked = Vec::new();
            for chunk in body.chunks(33_333) {
                chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                chunked.extend_from_slice(chunk);
                chunked.extend_from_slice(b"\r\n");
            }
            chunked.extend_from_slice(b"0\r\n\r\n");
            let head = format!("PUT /bob/chunked-{name} HTTP/1.1\r\nTransfer-Encoding: chunked");
            assert_eq!(request(at, &head, &chunked).unwrap().status, 201);
            assert!(get(at, &format!("/bob/chunked-{name}")).unwrap().body == body);
        }
        assert_eq!(put(at, "/bob/empty", b"").unwrap().status, 201);
        let empty = get(at, "/bob/empty").unwrap();
        assert_eq!((empty.status, empty.body.len()), (200, 0));
        for name in ["once", "checked", "chunked-small", "chunked-large", "empty"] {
            assert_eq!(delete(at, &format!("/bob/{name}")).unwrap().status, 204);
        }
    });
}

#[test]
fn bad_requests_get_the_status_that_fits() {
    at_both(|at| {
        let long = "a".repeat(1025);
        for (head, status) in [
            ("GET /ann/../etc HTTP/1.1", 400),
            ("GET /ann/%2e%2e/etc HTTP/1.1", 400),
            ("GET /ann//x HTTP/1.1", 400),
            ("GET /ann/a%00b HTTP/1.1", 400),
            ("GET /ann/%ff HTTP/1.1", 400),
            ("GET /Ann/x HTTP/1.1", 400),
            (&format!("GET /ann/{long} HTTP/1.1"), 414),
            (&format!("GET /ann/x HTTP/1.1\r\nX: {}", "y".repeat(20_000)), 431),
            ("POST /ann/x HTTP/1.1", 405),
            ("PUT /ann/x HTTP/1.1", 411),
            ("PUT /ann/x HTTP/1.1\r\nContent-Length: 99999999999999", 413),
            ("PUT /ann/x HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked", 400),
            ("GET /ann/never-there HTTP/1.1", 404),
            ("GET /-/nothing HTTP/1.1", 404),
        ] {
            let answer = request(at, head, &[]).unwrap();
            assert_eq!(answer.status, status, "{}", &head[..head.len().min(60)]);
            assert!(answer.json()["message"].is_string());
            if status == 405 {
                assert!(answer.field("allow").contains("GET"));
            }
        }
        let preflight = request(at, "OPTIONS /ann/x HTTP/1.1\r\nOrigin: https://player.example\r\nAccess-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: range", &[]).unwrap();
        assert_eq!(preflight.status, 204);
        assert_eq!(preflight.field("access-control-allow-origin"), "*");
        assert!(preflight.field("access-control-allow-headers").contains("Range"));
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    at_both(|at| {
        for index in 0..3 {
            put(at, &format!("/ann/p{index}"), &bytes(index, 100 + index as usize)).unwrap();
        }
        let mut stream = TcpStream::connect(at).unwrap();
        let mut text = String::new();
        for index in [2, 0, 1] {
            text.push_str(&format!("GET /ann/p{index} HTTP/1.1\r\nHost: x\r\n\r\n"));
        }
        text.push_str("GET /ann/p0 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        let mut rest = &all[..];
        for index in [2u64, 0, 1, 0] {
            let end = rest.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
            let answer = read_answer(&mut &rest[..], false).unwrap();
            assert!(answer.status == 200 && answer.body == bytes(index, 100 + index as usize));
            rest = &rest[end + answer.body.len()..];
        }
        assert!(rest.is_empty());
    });
}

#[test]
fn who_asks_for_bulk_only_and_then_for_something_else_gets_it() {
    at_both(|at| {
        let film = bytes(5, 3_000_000);
        put(at, "/ann/film", &film).unwrap();
        put(at, "/ann/small", &bytes(6, 500)).unwrap();
        // In memory: what is cold is not read in turn.
        assert!(get(at, "/ann/film").unwrap().body == film);
        let range = |from: usize, to: usize| {
            format!("GET /ann/film HTTP/1.1\r\nHost: x\r\nRange: bytes={from}-{}\r\n\r\n", to - 1)
        };
        let small = "GET /ann/small HTTP/1.1\r\nHost: x\r\n\r\n".to_owned();
        let mut streams: Vec<_> = (0..8).map(|_| TcpStream::connect(at).unwrap()).collect();
        let rounds: [(String, &[u8]); 7] = [
            (range(0, 900_000), &film[..900_000]),
            (range(900_000, 1_800_000), &film[900_000..1_800_000]),
            (range(1_800_000, 2_700_000), &film[1_800_000..2_700_000]),
            // Less than before, something small, and more than before.
            (range(7, 9), &film[7..9]),
            (small, &bytes(6, 500)),
            (range(0, 3_000_000), &film),
            (range(5, 1_000_005), &film[5..1_000_005]),
        ];
        for (request, expected) in rounds {
            // All ask at once.
            for stream in &mut streams {
                stream.write_all(request.as_bytes()).unwrap();
            }
            for stream in &mut streams {
                assert!(read_answer(stream, false).unwrap().body == expected);
            }
        }
    });
}

#[test]
fn a_replaced_files_reader_finishes_on_the_old_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &["--shards", "1"]);
    let node = up.of("storage")[0].address.clone();
    // Larger than all buffers between the two.
    let old = bytes(1, 30_000_000);
    put(&node, "/ann/film", &old).unwrap();
    let mut stream = TcpStream::connect(&node).unwrap();
    stream.write_all(b"GET /ann/film HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut first = [0; 1000];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(put(&node, "/ann/film", &bytes(2, 1000)).unwrap().status, 200);
    assert!(get(&node, "/ann/film").unwrap().body == bytes(2, 1000));
    let mut all = first.to_vec();
    stream.read_to_end(&mut all).unwrap();
    let body = all.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    assert!(all[body..] == old);
}

#[test]
fn listings_are_paged() {
    at_both(|at| {
        for name in ["l/a", "l/b", "l/c", "m"] {
            put(at, &format!("/cat/{name}"), b"x").unwrap();
        }
        let page = get(at, "/-/v1/users/cat/files?prefix=l%2F&limit=2").unwrap().json();
        let names = |page: &serde_json::Value| -> Vec<String> {
            page["files"]
                .as_array()
                .unwrap()
                .iter()
                .map(|file| file["name"].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(names(&page), ["l/a", "l/b"]);
        let rest = get(at, "/-/v1/users/cat/files?prefix=l/&after=l%2Fb").unwrap().json();
        assert_eq!(names(&rest), ["l/c"]);
    });
}

#[test]
fn curl_and_wget_go_on_where_they_stopped() {
    let test = "curl_and_wget_go_on_where_they_stopped";
    if !has("curl", test) || !has("wget", test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("data"), &["--shards", "1"]);
    let whole = bytes(5, 3_000_000);
    let file = dir.path().join("file.bin");
    std::fs::write(&file, &whole).unwrap();
    let url = format!("http://{}/ann/file.bin", up.http());
    let run = |program: &str, arguments: &[&str]| {
        let status = std::process::Command::new(program)
            .args(arguments)
            .current_dir(dir.path())
            .status()
            .unwrap();
        assert!(status.success(), "{program} {arguments:?}: {status}");
    };
    run("curl", &["-sSf", "-T", "file.bin", &url]);
    for (program, output, arguments) in [
        ("curl", "by-curl", vec!["-sSf", "-C", "-", "-o", "by-curl"]),
        ("wget", "by-wget", vec!["-q", "-c", "-O", "by-wget"]),
    ] {
        std::fs::write(dir.path().join(output), &whole[..1_234_567]).unwrap();
        let mut arguments = arguments;
        arguments.push(&url);
        run(program, &arguments);
        assert!(std::fs::read(dir.path().join(output)).unwrap() == whole, "{program}");
    }
}

#[test]
fn what_is_configured_or_asked_for_stands_in_the_head() {
    let base = crate::harness::Base::start();
    let more = "[[storage.cache_control]]\nprefix = \"ann/live/\"\nvalue = \"no-cache\"\n[[storage.cache_control]]\nprefix = \"\"\nvalue = \"max-age=60\"\n";
    let node = base.storage(101, "node", more);
    for name in ["live/a b.mp4", "film.mp4"] {
        let path = format!("/ann/{}", name.replace(' ', "%20"));
        put(&node.address, &path, &bytes(1, 5000)).unwrap();
        let expected = if name.starts_with("live") { "no-cache" } else { "max-age=60" };
        // From the third on it is answered from memory: the same head.
        for _ in 0..4 {
            let answer = get(&node.address, &path).unwrap();
            assert_eq!(answer.field("cache-control"), expected);
            assert_eq!(answer.field("reel-node"), "101");
            assert_eq!(answer.field("content-type"), "video/mp4");
            assert!(answer.body == bytes(1, 5000));
        }
    }
    let answer = get(&node.address, "/ann/live/a%20b.mp4?download=1").unwrap();
    assert_eq!(answer.field("content-disposition"), "attachment; filename*=UTF-8\'\'a%20b%2Emp4");
}

/// The kernel alone deals 40 connections out so evenly in one of three cases.
#[test]
fn connections_are_spread_evenly_over_shards() {
    let base = crate::harness::Base::start();
    let node = base.storage(101, "node", "");
    let open = || {
        let text = String::from_utf8(get(&node.address, "/-/metrics").unwrap().body).unwrap();
        let shards = text.lines().filter(|line| line.starts_with("reel_shard_connections{"));
        shards.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect::<Vec<u64>>()
    };
    for round in 0..5 {
        let streams: Vec<_> =
            (0..40).map(|_| std::net::TcpStream::connect(&node.address).unwrap()).collect();
        // Others come and go meanwhile: trackers, and whoever asks for the metrics.
        let spread = crate::harness::eventually("all connections are counted", || {
            let open = open();
            (open.iter().sum::<u64>() >= streams.len() as u64).then_some(open)
        });
        assert_eq!(spread.len(), 2);
        assert!(spread.iter().all(|open| *open >= 18), "round {round}: {spread:?}");
        drop(streams);
        crate::harness::eventually("they are gone", || {
            (open().iter().sum::<u64>() <= 3).then_some(())
        });
    }
}

#[test]
fn what_is_not_in_the_page_cache_is_read_past_it() {
    let base = crate::harness::Base::start();
    let node = base.storage(101, "node", "");
    let cold_bytes = || {
        let text = String::from_utf8(get(&node.address, "/-/metrics").unwrap().body).unwrap();
        let line = text.lines().find(|line| line.starts_with("reel_cold_read_bytes_total "));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
    };
    for (name, length) in [("packed", 200_000usize), ("large", 3_333_333)] {
        let payload = bytes(length as u64, length);
        let path = format!("/ann/{name}");
        let uploaded = put(&node.address, &path, &payload).unwrap().json();
        let segment = base.dir.path().join("node").join(uploaded["path"].as_str().unwrap());
        let file = std::fs::File::open(segment).unwrap();
        let length = length as u64;
        for (first, last) in
            [(0, length - 1), (1, 1), (length - 100_000, length - 1), (150_000, length - 7)]
        {
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            let before = cold_bytes();
            let head = format!("GET {path} HTTP/1.1\r\nRange: bytes={first}-{last}");
            let answer = crate::harness::request(&node.address, &head, &[]).unwrap();
            assert_eq!(answer.status, 206);
            assert!(
                answer.body == payload[first as usize..=last as usize],
                "{name} {first}-{last}"
            );
            // What is asked for again is on its way into the page cache, some time: only the first is certain. From a shared
            // volume what is packed is read whole.
            if first == 0 && !(name == "packed" && crate::harness::shared_mounts().is_some()) {
                assert!(cold_bytes() > before, "{name} was sent from the cache");
            }
        }
    }
}
