//! The HTTP server in front of nodes: it does not wait for a slow one, and what it passes on can be followed in
//! the access logs.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{
    Base, PATIENCE, Role, bytes, eventually, get, put, read_answer, request, signal,
};

fn http(base: &Base, more: &str) -> Role {
    let config = format!(
        "trackers = [\"{}\"]\n[http]\nlisten = \"127.0.0.1:0\"\nshards = 1\n{more}\n",
        base.tracker.address
    );
    let role = Role::start("http", base.dir.path(), &config).unwrap();
    eventually("the HTTP server reaches a node", || {
        (get(&role.address, "/-/health").ok()?.status == 200).then_some(())
    });
    role
}

fn metric(address: &str, name: &str) -> u64 {
    let text = String::from_utf8(get(address, "/-/metrics").unwrap().body).unwrap();
    let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0, |value| value.parse().unwrap())
}

#[test]
fn a_node_that_does_not_answer_is_not_waited_for() {
    let base = Base::start();
    let more = "ack = \"all\"\n";
    let nodes = [base.storage(101, "a", more), base.storage(102, "b", more)];
    let http = http(&base, "hedge_after = \"20 ms\"");
    eventually("both nodes take it", || {
        put(&http.address, "/ann/film", &bytes(3, 100_000))
            .ok()
            .filter(|answer| answer.status < 300)
    });
    wait_active(&base, 2);
    // Stopped in its tracks: the kernel still takes connections and requests for it.
    signal(nodes[0].pid(), rustix::process::Signal::STOP);
    for _ in 0..8 {
        let answer = get(&http.address, "/ann/film").unwrap();
        assert_eq!((answer.status, answer.field("reel-node")), (200, "102"));
        assert!(answer.body == bytes(3, 100_000));
    }
    let (begun, won) = (
        metric(&http.address, "reel_upstream_hedges_total"),
        metric(&http.address, "reel_upstream_hedges_won_total"),
    );
    signal(nodes[0].pid(), rustix::process::Signal::CONT);
    assert!(begun >= 1 && won == begun, "{begun} begun, {won} won");
}

/// Waits until the tracker names so many nodes for downloads.
fn wait_active(base: &Base, count: usize) {
    eventually(&format!("{count} active nodes"), || {
        let named = get(&base.tracker.address, "/-/v1/addresses?user=ann&for=download").ok()?;
        let nodes = named.json()["nodes"].as_array().map_or(0, Vec::len);
        (nodes == count).then_some(())
    });
}

#[test]
fn a_node_that_came_after_the_trackers_were_asked_is_found_when_the_other_is_silent() {
    let base = Base::start();
    let first = base.storage(101, "a", "");
    // What the trackers say is kept for longer than this test takes.
    let http = http(&base, "address_age = \"600 s\"");
    put(&first.address, "/ann/film", &bytes(4, 100_000)).unwrap();
    assert_eq!(get(&http.address, "/ann/film").unwrap().field("reel-node"), "101");
    let _second = base.storage(102, "b", "");
    wait_active(&base, 2);
    signal(first.pid(), rustix::process::Signal::STOP);
    let answer = get(&http.address, "/ann/film").unwrap();
    signal(first.pid(), rustix::process::Signal::CONT);
    assert_eq!((answer.status, answer.field("reel-node")), (200, "102"));
    assert!(answer.body == bytes(4, 100_000));
}

/// The lines of an access log about a path, once there are so many.
pub fn lines(file: &Path, path: &str, count: usize) -> Vec<serde_json::Value> {
    eventually(&format!("{count} lines about {path}"), || {
        let text = std::fs::read_to_string(file).ok()?;
        let whole = text.rsplit_once('\n')?.0;
        let lines: Vec<serde_json::Value> =
            whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let about: Vec<_> = lines.into_iter().filter(|line| line["path"] == path).collect();
        (about.len() >= count).then_some(about)
    })
}

#[test]
fn a_request_can_be_followed_through_the_access_logs() {
    let base = Base::start();
    let log = |name: &str| base.dir.path().join(name);
    let section = |role: &str| {
        format!("[{role}.access_log]\nfile = \"{}\"", log(&format!("{role}.log")).display())
    };
    let node = base.storage(101, "a", &section("storage"));
    let http = http(&base, &section("http"));
    put(&http.address, "/ann/film", b"0123456789").unwrap();
    let own = request(
        &http.address,
        "GET /ann/film HTTP/1.1\r\nX-Request-Id: my-own.7\r\nRange: bytes=2-4",
        &[],
    )
    .unwrap();
    assert_eq!((own.status, own.field("x-request-id")), (206, "my-own.7"));
    let given = get(&http.address, "/ann/film").unwrap();
    let id = given.field("x-request-id").to_owned();
    assert!(!id.is_empty() && id != "my-own.7");
    for (role, file) in [("http", log("http.log")), ("storage", log("storage.log"))] {
        let about = lines(&file, "/ann/film", 3);
        assert_eq!(about.len(), 3, "{role}");
        assert_eq!((&about[0]["method"], &about[0]["status"]), (&"PUT".into(), &201.into()));
        assert_eq!(about[1]["request_id"], "my-own.7", "{role}");
        assert_eq!(about[1]["range"], "bytes=2-4", "{role}");
        assert_eq!(about[2]["request_id"], id.as_str(), "{role}");
        assert_eq!((&about[2]["client"], &about[2]["status"]), (&"127.0.0.1".into(), &200.into()));
        assert!(about[2]["sent"].as_u64().unwrap() > 10 && about[2]["micros"].is_u64());
    }
    // Renamed away, it begins anew: what rotates logs need not tell the process.
    std::fs::rename(log("storage.log"), log("storage.log.1")).unwrap();
    eventually("a new file", || {
        get(&node.address, "/ann/other").unwrap();
        log("storage.log").exists().then_some(())
    });
    // Not an id: it is not repeated.
    let bad = request(&node.address, "GET /ann/film HTTP/1.1\r\nX-Request-Id: a b", &[]).unwrap();
    assert_eq!((bad.status, bad.field("x-request-id")), (200, ""));
}

#[test]
fn answers_from_memory_are_the_same_as_those_before_them() {
    let base = Base::start();
    let node = base.storage(101, "a", "");
    put(&node.address, "/ann/clip", &bytes(5, 5000)).unwrap();
    let mut stream = TcpStream::connect(&node.address).unwrap();
    let mut ask = |head: &str| {
        stream.write_all(format!("{head}\r\nHost: h\r\n\r\n").as_bytes()).unwrap();
        read_answer(&mut stream, head.starts_with("HEAD")).unwrap()
    };
    let mut first = ask("GET /ann/clip HTTP/1.1");
    first.fields.remove("date");
    // From the third on they come from memory.
    for _ in 0..6 {
        let mut again = ask("GET /ann/clip HTTP/1.1");
        assert!(again.fields.remove("date").is_some_and(|date| date.ends_with(" GMT")));
        assert_eq!(again.fields, first.fields);
        assert!(again.body == bytes(5, 5000));
    }
    let etag = first.field("etag").to_owned();
    assert_eq!(ask(&format!("GET /ann/clip HTTP/1.1\r\nIf-None-Match: {etag}")).status, 304);
    assert_eq!(ask("HEAD /ann/clip HTTP/1.1").body.len(), 0);
    assert_eq!(ask("GET /ann/clip HTTP/1.1\r\nX-Request-Id: 7").field("x-request-id"), "7");
    assert_eq!(ask("GET /ann/clip HTTP/1.1").fields.get("x-request-id"), None);
    // Replaced: what is in memory is not used any more.
    put(&node.address, "/ann/clip", &bytes(6, 4000)).unwrap();
    assert!(ask("GET /ann/clip HTTP/1.1").body == bytes(6, 4000));
}

#[test]
fn a_new_http_server_takes_over_while_the_old_one_finishes_its_viewers() {
    let base = Base::start();
    let _node = base.storage(101, "a", "");
    let old = http(&base, "limits.stop_grace = \"60 s\"");
    let film = bytes(8, 30_000_000);
    put(&old.address, "/ann/film", &film).unwrap();
    // A viewer that has begun, and an idle connection.
    let mut viewer = TcpStream::connect(&old.address).unwrap();
    viewer.write_all(b"GET /ann/film HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut first = vec![0; 100_000];
    viewer.read_exact(&mut first).unwrap();
    let config = |shards| {
        format!(
            "trackers = [\"{}\"]\n[http]\nlisten = \"{}\"\nshards = {shards}\n",
            base.tracker.address, old.address
        )
    };
    let refused = Role::start("http", base.dir.path(), &config(1)).err().unwrap();
    assert!(refused.contains("is in use by another server"), "{refused}");
    let address = old.address.clone();
    let ask = move || {
        let mut stream = TcpStream::connect(&address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /ann/film HTTP/1.1\r\nHost: h\r\nRange: bytes=0-9\r\n\r\n")?;
        read_answer(&mut stream, false)
    };
    // Connections come all the time, while one takes over from the other: none is lost.
    let (done, asker) = (Arc::new(AtomicBool::new(false)), ask.clone());
    let asking = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            let mut answers = 0;
            while !done.load(Ordering::Relaxed) {
                let answer = asker().unwrap_or_else(|error| panic!("after {answers}: {error}"));
                assert!(answer.status == 206 && answer.body == bytes(8, 10));
                answers += 1;
            }
            answers
        }
    });
    let take_over = |shards| {
        Role::start_with("http", &["--take-over"], base.dir.path(), &config(shards)).unwrap()
    };
    // Each with another number of shards: more than there are sockets, and fewer.
    let second = take_over(3);
    signal(old.pid(), rustix::process::Signal::TERM);
    eventually("connections come to the second one only", || {
        // What reaches the first one meanwhile is answered, and told that it goes.
        (ask().unwrap().field("connection") != "close").then_some(())
    });
    let third = take_over(1);
    signal(second.pid(), rustix::process::Signal::TERM);
    second.wait();
    for _ in 0..20 {
        assert_eq!(ask().unwrap().field("connection"), "");
    }
    done.store(true, Ordering::Relaxed);
    assert!(asking.join().unwrap() > 20);
    let mut rest = Vec::new();
    viewer.read_to_end(&mut rest).unwrap();
    first.extend_from_slice(&rest);
    let end = first.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    assert!(first[end..] == film[..], "every byte, from the one that was to stop");
    old.wait();
    assert_eq!(get(&third.address, "/ann/film").unwrap().status, 200);
}
