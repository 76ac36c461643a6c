//! A group's nodes come to hold the same objects, whatever happened to one of them.

use crate::harness::{
    Base, Role, bytes, delete, eventually, get, nodes_keep_copies, put, reel, shared_mounts,
    signal, wait_healthy,
};

fn by_id(node: &Role, object: &str) -> Option<Vec<u8>> {
    get(&node.address, &format!("/-/v1/objects/{object}"))
        .ok()
        .filter(|answer| answer.status == 200)
        .map(|answer| answer.body)
}

fn upload(node: &Role, path: &str, body: &[u8]) -> String {
    let answer = put(&node.address, path, body).unwrap();
    assert!(
        answer.status < 300,
        "{path}: {} {}",
        answer.status,
        String::from_utf8_lossy(&answer.body)
    );
    answer.json()["object"].as_str().unwrap().to_owned()
}

#[test]
fn a_wiped_node_fills_itself_up_again() {
    if !nodes_keep_copies("a_wiped_node_fills_itself_up_again") {
        return;
    }
    let base = Base::start();
    let one = base.storage(101, "one", "");
    let two = base.storage(102, "two", "");
    let mut objects = Vec::new();
    for index in 0..40u64 {
        let length = if index.is_multiple_of(10) { 2_000_000 } else { 5_000 };
        let node = if index.is_multiple_of(2) { &one } else { &two };
        objects.push((
            index,
            length,
            upload(node, &format!("/ann/{index}"), &bytes(index, length)),
        ));
    }
    for (index, length, object) in &objects {
        for node in [&one, &two] {
            let body = eventually("both hold it", || by_id(node, object));
            assert!(body == bytes(*index, *length));
        }
    }
    one.kill();
    std::fs::remove_dir_all(base.dir.path().join("one")).unwrap();
    // Until trackers call the old life silent, the empty folder would be a second node of that id.
    let one = eventually("the wiped node may join", || {
        Role::start("storage", base.dir.path(), &base.storage_config(101, "one", "")).ok()
    });
    for (index, length, object) in &objects {
        let body = eventually("the wiped node holds it again", || by_id(&one, object));
        assert!(body == bytes(*index, *length));
    }
    crate::harness::wait_healthy(&one.address);
}

#[test]
fn deletes_and_replaces_reach_the_peer() {
    let base = Base::start();
    let one = base.storage(101, "one", "");
    let two = base.storage(102, "two", "");
    let gone = upload(&one, "/ann/gone", &bytes(1, 3000));
    let old = upload(&one, "/ann/replaced", &bytes(2, 2_000_000));
    for object in [&gone, &old] {
        // Of a shared volume's segment that is being written, only its node answers by id.
        let holder = if shared_mounts().is_some() { &one } else { &two };
        eventually("the peer holds it", || by_id(holder, object));
    }
    assert_eq!(delete(&two.address, "/ann/gone").unwrap().status, 204);
    upload(&two, "/ann/replaced", &bytes(3, 100));
    for node in [&one, &two] {
        eventually("the deleted object is dead", || by_id(node, &gone).is_none().then_some(()));
        eventually("the replaced object is dead", || by_id(node, &old).is_none().then_some(()));
        eventually("the name is gone", || {
            (get(&node.address, "/ann/gone").unwrap().status == 404).then_some(())
        });
        eventually("the name is the new file", || {
            (get(&node.address, "/ann/replaced").unwrap().body == bytes(3, 100)).then_some(())
        });
    }
}

#[test]
fn writers_of_one_name_at_two_nodes_agree_in_the_end() {
    let base = Base::start();
    let one = base.storage(101, "one", "");
    let two = base.storage(102, "two", "");
    std::thread::scope(|scope| {
        for (seed, node) in [(1u64, &one), (2, &two)] {
            scope.spawn(move || {
                for round in 0..60u64 {
                    let answer =
                        put(&node.address, "/ann/same", &bytes(seed * 1000 + round, 2000)).unwrap();
                    assert!(answer.status < 300);
                }
            });
        }
    });
    let winner = eventually("both nodes show the same", || {
        let (first, second) =
            (get(&one.address, "/ann/same").ok()?, get(&two.address, "/ann/same").ok()?);
        (first.status == 200
            && first.field("etag") == second.field("etag")
            && first.body == second.body)
            .then_some(first.body)
    });
    assert!(
        winner == bytes(1059, 2000) || winner == bytes(2059, 2000),
        "the last of one of the writers"
    );
}

#[test]
fn a_node_asks_its_peer_before_it_says_that_an_object_is_not_there() {
    let base = Base::start();
    let one = base.storage(101, "one", "");
    let body = bytes(1, 2_000_000);
    upload(&one, "/ann/x", &body);
    // The second node has nothing when it starts; it answers at once all the same.
    let two =
        Role::start("storage", base.dir.path(), &base.storage_config(102, "two", "")).unwrap();
    let answer = eventually("it answers", || {
        get(&two.address, "/ann/x").ok().filter(|answer| answer.status == 200)
    });
    assert!(answer.body == body);
}

#[test]
fn an_answered_upload_is_on_both_nodes_with_ack_2() {
    if !nodes_keep_copies("an_answered_upload_is_on_both_nodes_with_ack_2") {
        return;
    }
    let base = Base::start();
    let one = base.storage(101, "one", "ack = 2");
    let two = base.storage(102, "two", "ack = 2");
    for index in 0..20u64 {
        let object = upload(&one, &format!("/ann/{index}"), &bytes(index, 10_000));
        assert!(by_id(&two, &object).unwrap() == bytes(index, 10_000));
    }
    let object = upload(&one, "/ann/large", &bytes(99, 4_000_000));
    assert!(by_id(&two, &object).unwrap() == bytes(99, 4_000_000));
}

#[test]
fn an_upload_that_too_few_nodes_could_hold_is_refused_or_says_so() {
    if !nodes_keep_copies("an_upload_that_too_few_nodes_could_hold_is_refused_or_says_so") {
        return;
    }
    let base = Base::start();
    let one = base.storage(101, "one", "ack = 2");
    let refused = put(&one.address, "/ann/x", b"bytes").unwrap();
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["error"], "too_few_nodes");
    assert_eq!(get(&one.address, "/ann/x").unwrap().status, 404, "nothing was stored");
    one.kill();
    let one = eventually("it may join again", || {
        let config = base.storage_config(101, "one", "ack = 2\nack_degraded = \"warn\"");
        Role::start("storage", base.dir.path(), &config).ok()
    });
    crate::harness::wait_healthy(&one.address);
    let warned = put(&one.address, "/ann/x", b"bytes").unwrap();
    assert_eq!((warned.status, warned.field("reel-degraded")), (201, "held by 1 nodes of 2"));
    let two = base.storage(102, "two", "ack = 2");
    let full = eventually("the peer is known", || {
        let answer = put(&one.address, "/ann/y", b"bytes").unwrap();
        (answer.status < 300 && answer.field("reel-degraded").is_empty()).then_some(answer)
    });
    assert!(by_id(&two, full.json()["object"].as_str().unwrap()).is_some());
}

#[test]
fn a_large_upload_is_sent_to_the_peers_while_it_comes_in() {
    if !nodes_keep_copies("a_large_upload_is_sent_to_the_peers_while_it_comes_in") {
        return;
    }
    let base = Base::start();
    let one = base.storage(101, "one", "ack = 2");
    let two = base.storage(102, "two", "ack = 2");
    let body = bytes(5, 20_000_123);
    let copies = || {
        let metrics = String::from_utf8(get(&two.address, "/-/metrics").unwrap().body).unwrap();
        let copies = metrics
            .lines()
            .find_map(|line| line.strip_prefix("reel_copies_received_total ")?.parse::<u32>().ok());
        copies.unwrap_or(0)
    };
    // One that a busy peer does not take in time it pulls.
    eventually("an upload is pushed, not pulled", || {
        let answer = put(&one.address, "/ann/film", &body).unwrap();
        if answer.status >= 300 {
            return None;
        }
        let object = answer.json()["object"].as_str().unwrap().to_owned();
        assert!(by_id(&two, &object).unwrap() == body);
        (copies() > 0).then_some(())
    });
    let segments = || get(&two.address, "/-/health").unwrap().json()["segments"].as_u64().unwrap();
    let before = segments();
    // A client that goes away in the middle leaves nothing at either.
    {
        use std::io::Write;
        let mut stream = std::net::TcpStream::connect(&one.address).unwrap();
        let head = "PUT /ann/broken HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&body[..9_000_000]).unwrap();
    }
    eventually("the broken copy is gone", || (segments() <= before).then_some(()));
    assert_eq!(get(&two.address, "/ann/broken").unwrap().status, 404);
}

#[test]
fn trackers_show_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let up = crate::harness::Up::start(
        dir.path(),
        &["--trackers", "3", "--groups", "2", "--replicas", "2", "--shards", "1"],
    );
    let trackers = up.of("tracker");
    let same = || {
        let views: Vec<Vec<u8>> = trackers
            .iter()
            .filter_map(|tracker| Some(get(&tracker.address, "/-/v1/nodes").ok()?.body))
            .collect();
        (views.len() == 3 && views[0] == views[1] && views[1] == views[2]).then_some(views)
    };
    let views = eventually("all trackers agree", same);
    let json: serde_json::Value = serde_json::from_slice(&views[0]).unwrap();
    assert_eq!(json["nodes"].as_array().unwrap().len(), 4);
    crate::harness::kill(trackers[1].pid);
    eventually("the restarted tracker agrees again", || {
        same().filter(|views| views[1].len() > 100)
    });
}

/// A node that is killed while it sends the body; the other one goes on at that byte.
fn broken_off_in_mid_body(read: impl FnOnce(&Base, &mut dyn FnMut()) -> Vec<u8>) {
    let base = Base::start();
    // Larger than all buffers on the way.
    let body = bytes(77, 60_000_000);
    let nodes = [base.storage(101, "one", "ack = 2"), base.storage(102, "two", "ack = 2")];
    eventually("both nodes take it", || {
        put(&nodes[0].address, "/ann/film", &body).ok().filter(|answer| answer.status < 300)
    });
    let whole = read(&base, &mut || {
        // The one that serves has a request in progress.
        let serving = eventually("one of the nodes serves", || {
            nodes.iter().find(|node| {
                get(&node.address, "/-/health").is_ok_and(|health| health.json()["load"] == 1)
            })
        });
        crate::harness::kill(serving.pid());
    });
    assert!(whole == body, "{} of {} bytes", whole.len(), body.len());
}

/// Reads slowly at first, so that the body is still under way when `then` is called.
fn read_in_two(mut from: impl std::io::Read, then: &mut dyn FnMut()) -> Vec<u8> {
    let mut whole = vec![0; 1_000_000];
    from.read_exact(&mut whole).unwrap();
    then();
    from.read_to_end(&mut whole).unwrap();
    whole
}

#[test]
fn an_http_server_goes_on_at_the_exact_byte_when_a_node_dies() {
    use std::io::Write;
    broken_off_in_mid_body(|base, then| {
        let http = Role::start(
            "http",
            base.dir.path(),
            &format!(
                "trackers = [\"{}\"]\n[http]\nlisten = \"127.0.0.1:0\"\nshards = 1\n",
                base.tracker.address
            ),
        )
        .unwrap();
        crate::harness::wait_healthy(&http.address);
        let mut stream = std::net::TcpStream::connect(&http.address).unwrap();
        stream
            .write_all(b"GET /ann/film HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let whole = read_in_two(stream, then);
        let metrics = String::from_utf8(get(&http.address, "/-/metrics").unwrap().body).unwrap();
        let count = metrics.lines().find_map(|line| {
            line.strip_prefix("reel_upstream_resumed_total ")?.parse::<u32>().ok()
        });
        assert_eq!(count, Some(1), "it went on once");
        let head = whole.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        whole[head..].to_vec()
    });
}

#[test]
fn the_client_goes_on_at_the_exact_byte_when_a_node_dies() {
    broken_off_in_mid_body(|base, then| {
        let mut child = crate::harness::reel()
            .args(["get", "ann/film", "-o", "-"])
            .env("REEL_TRACKERS", &base.tracker.address)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let whole = read_in_two(child.stdout.take().unwrap(), then);
        assert!(child.wait().unwrap().success());
        whole
    });
}

/// The copies of a node as it tells them: segment, whether it is settled, living objects.
fn copies(node: &Role) -> Vec<(u64, bool, u64)> {
    let answer = get(&node.address, "/-/v1/copies").unwrap();
    let copy = |copy: &serde_json::Value| {
        let number = |key: &str| copy[key].as_u64().unwrap();
        (number("segment"), copy["settled"].as_bool().unwrap(), number("objects"))
    };
    answer.json()["copies"].as_array().unwrap().iter().map(copy).collect()
}

/// A node of one shard, so that its small files lie in one segment.
fn one_shard(base: &Base, id: u32, folder: &str, more: &str) -> Role {
    let config = base.storage_config(id, folder, more).replace("shards = 2", "shards = 1");
    let node = Role::start("storage", base.dir.path(), &config).unwrap();
    wait_healthy(&node.address);
    node
}

fn stop(node: Role) {
    signal(node.pid(), rustix::process::Signal::TERM);
    node.wait();
}

/// Stops a node whose segments are sealed then, and complete at the peer: a stop in order seals, and the peer hears of that
/// in the next life.
fn seal(node: Role, peer: &Role, start: impl Fn() -> Role) {
    stop(node);
    let node = start();
    eventually("the peer's copies are complete", || {
        copies(peer).iter().all(|(_, settled, _)| *settled).then_some(())
    });
    stop(node);
}

#[test]
fn copies_that_differ_are_found_and_what_is_dead_is_buried_again() {
    if !nodes_keep_copies("copies_that_differ_are_found_and_what_is_dead_is_buried_again") {
        return;
    }
    let base = Base::start();
    let start = |id, folder, more| one_shard(&base, id, folder, more);
    let one = start(101, "one", "");
    let two = start(102, "two", "");
    // The dead are few: the segment is not compacted.
    upload(&one, "/ann/kept", &bytes(1, 300_000));
    let gone = put(&one.address, "/ann/gone", &bytes(2, 3000)).unwrap().json();
    let text = |key: &str| gone[key].as_str().unwrap().to_owned();
    let (object, path) = (text("object"), text("path"));
    eventually("the peer holds it", || by_id(&two, &object));
    assert_eq!(delete(&one.address, "/ann/gone").unwrap().status, 204);
    eventually("it is dead at the peer", || by_id(&two, &object).is_none().then_some(()));
    seal(one, &two, || start(101, "one", ""));
    // Its mark gets lost at the first node.
    let slot = usize::from_str_radix(&object[object.len() - 4..], 16).unwrap();
    let table = base.dir.path().join("one").join(path).with_extension("idx");
    let mut file = std::fs::File::options().write(true).open(&table).unwrap();
    let mark = reel_engine::format::table::ENTRIES_AT + slot * 16 + 7;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(mark as u64)).unwrap();
    std::io::Write::write_all(&mut file, &[0]).unwrap();
    let one = start(101, "one", "");
    assert!(by_id(&one, &object).is_some(), "it lives again");
    let verify = || {
        let trackers = base.tracker.address.as_str();
        reel().env("REEL_TRACKERS", trackers).args(["verify", "--cluster"]).output().unwrap()
    };
    let found = verify();
    let said = String::from_utf8_lossy(&found.stdout).into_owned();
    assert_eq!(found.status.code(), Some(1), "{said}");
    assert!(said.contains("node 101 has 2 objects, node 102 has 1 objects"), "{said}");
    one.kill();
    let often = "[storage.upkeep]\ncompare_every = \"1 s\"\n";
    let one = start(101, "one", often);
    eventually("it is buried again", || by_id(&one, &object).is_none().then_some(()));
    let equal = eventually("all is equal", || {
        let found = verify();
        (found.status.code() == Some(0)).then_some(found)
    });
    let said = String::from_utf8_lossy(&equal.stdout).into_owned();
    assert!(said.contains("0 differ"), "{said}");
    assert!(get(&one.address, "/ann/kept").unwrap().body == bytes(1, 300_000));
}

#[test]
fn an_object_that_lacks_in_a_copy_is_put_back_from_a_peer() {
    if !nodes_keep_copies("an_object_that_lacks_in_a_copy_is_put_back_from_a_peer") {
        return;
    }
    let base = Base::start();
    let start = |id, folder, more| one_shard(&base, id, folder, more);
    let one = start(101, "one", "");
    let two = start(102, "two", "");
    upload(&one, "/ann/before", &bytes(1, 3000));
    let film = put(&one.address, "/ann/film", &bytes(2, 5000)).unwrap().json();
    let text = |key: &str| film[key].as_str().unwrap().to_owned();
    let (object, path) = (text("object"), text("path"));
    upload(&one, "/ann/after", &bytes(3, 3000));
    eventually("the peer holds it", || by_id(&two, &object));
    seal(one, &two, || start(101, "one", ""));
    // Its head becomes illegible, and the table that would still know of it is lost.
    let segment = base.dir.path().join("one").join(path);
    let slot = usize::from_str_radix(&object[object.len() - 4..], 16).unwrap();
    let content = std::fs::read(&segment).unwrap();
    let mut starts = content.windows(4).enumerate().filter(|(_, four)| four == b"RREC");
    let (at, _) = starts.nth(slot).unwrap();
    let file = std::fs::File::options().write(true).open(&segment).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff], at as u64 + 20).unwrap();
    std::fs::remove_file(segment.with_extension("idx")).unwrap();
    let one = start(101, "one", "");
    assert!(by_id(&one, &object).is_none(), "it lacks");
    assert!(get(&one.address, "/ann/film").unwrap().body == bytes(2, 5000), "from the peer");
    stop(one);
    let one = start(101, "one", "[storage.upkeep]\ncompare_every = \"1 s\"\n");
    let body = eventually("it is put back", || by_id(&one, &object));
    assert!(body == bytes(2, 5000));
    two.kill();
    for (name, seed, length) in [("before", 1, 3000), ("film", 2, 5000), ("after", 3, 3000)] {
        let path = format!("/ann/{name}");
        assert!(get(&one.address, &path).unwrap().body == bytes(seed, length), "{name}");
    }
}

#[test]
fn a_node_drains_when_its_peers_hold_all() {
    let base = Base::start();
    let one = base.storage(101, "one", "");
    let two = base.storage(102, "two", "");
    for index in 0..50 {
        upload(&one, &format!("/ann/{index}"), &bytes(index, 20_000));
    }
    let drain = |id: &str| {
        let trackers = base.tracker.address.as_str();
        reel().env("REEL_TRACKERS", trackers).args(["node", "drain", id]).output().unwrap()
    };
    let drained = drain("101");
    let said = String::from_utf8_lossy(&drained.stdout).into_owned();
    assert_eq!(drained.status.code(), Some(0), "{said} {drained:?}");
    assert!(said.contains("its peers hold all that it holds"), "{said}");
    assert_eq!(put(&one.address, "/ann/new", b"x").unwrap().status, 503);
    one.kill();
    for index in 0..50 {
        assert_eq!(get(&two.address, &format!("/ann/{index}")).unwrap().body, bytes(index, 20_000));
    }
    let unknown = drain("7");
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no node 7"));
}
