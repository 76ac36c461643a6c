//! Files move between groups, and `reel status` says how they are.

use std::process::Output;
use std::time::{Duration, Instant};

use crate::harness::{Base, Role, bytes, eventually, get, put, reel, request, wait_healthy};

fn client(base: &Base, arguments: &[&str]) -> Output {
    reel().args(arguments).env("REEL_TRACKERS", &base.tracker.address).output().unwrap()
}

fn catalog(base: &Base) -> String {
    format!("sqlite:{}", base.dir.path().join("catalog.db").display())
}

fn in_group_two(base: &Base) -> Role {
    let config = base.storage_config(201, "other", "").replace("group = 1", "group = 2");
    let node = Role::start("storage", base.dir.path(), &config).unwrap();
    wait_healthy(&node.address);
    node
}

#[test]
fn a_file_moves_to_another_group_and_is_found_there() {
    let base = Base::start();
    let one = base.storage(101, "one", "");
    let small = put(&one.address, "/ann/a%20b/small", &bytes(1, 5_000)).unwrap();
    assert_eq!(small.status, 201);
    assert_eq!(put(&one.address, "/ann/large", &bytes(2, 3_000_000)).unwrap().status, 201);
    let two = in_group_two(&base);
    for (path, body) in [("/ann/a%20b/small", bytes(1, 5_000)), ("/ann/large", bytes(2, 3_000_000))]
    {
        let line =
            format!("PUT /-/v1/moves{path}?from={} HTTP/1.1\r\nContent-Length: 0", one.address);
        let moved = request(&two.address, &line, &[]).unwrap();
        assert_eq!(moved.status, 200, "{}", String::from_utf8_lossy(&moved.body));
        assert_eq!(moved.json()["moved"], true);
        assert!(get(&two.address, path).unwrap().body == body);
        let elsewhere = get(&one.address, path).unwrap();
        assert_eq!((elsewhere.status, elsewhere.field("reel-group")), (421, "2"));
        let again = request(&two.address, &line, &[]).unwrap();
        assert_eq!(again.json()["moved"], false, "it is there already");
    }
    let object = small.json()["object"].as_str().unwrap().to_owned();
    eventually("the old object is buried", || {
        (get(&one.address, &format!("/-/v1/objects/{object}")).unwrap().status == 404).then_some(())
    });
    // Nobody may bury an object that a name still is.
    let living = get(&two.address, "/ann/large").unwrap();
    let id = living.field("etag").trim_matches('"').split('-').next().unwrap().to_owned();
    let line = format!("DELETE /-/v1/objects/{id}?user=ann&name=large HTTP/1.1");
    assert_eq!(request(&two.address, &line, &[]).unwrap().status, 409);
    let nowhere = request(
        &two.address,
        "PUT /-/v1/moves/ann/none?from=127.0.0.1:1 HTTP/1.1\r\nContent-Length: 0",
        &[],
    );
    assert_eq!(nowhere.unwrap().json()["moved"], false);
}

#[test]
fn a_group_is_emptied_into_another_one() {
    let base = Base::start();
    let one = base.storage(101, "one", "");
    for at in 0..60 {
        let path = format!("/user-{}/file-{at}", at % 3);
        assert_eq!(put(&one.address, &path, &bytes(at, 2_000)).unwrap().status, 201);
    }
    let two = in_group_two(&base);
    eventually("the trackers know group 2", || {
        let groups = client(&base, &["groups"]);
        String::from_utf8_lossy(&groups.stdout).contains("\n    2 ").then_some(())
    });
    let catalog = catalog(&base);
    let arguments = ["rebalance", "--from", "1", "--to", "2", "--catalog", &catalog];
    let dry = client(&base, &[&arguments[..], &["--dry-run"]].concat());
    assert!(String::from_utf8_lossy(&dry.stdout).starts_with("60 files with"), "{dry:?}");
    let part = client(&base, &[&arguments[..], &["--user", "user-1", "--new-files"]].concat());
    assert!(part.status.success(), "{part:?}");
    assert!(String::from_utf8_lossy(&part.stdout).starts_with("20 files with"), "{part:?}");
    let all = client(&base, &arguments);
    assert!(String::from_utf8_lossy(&all.stdout).starts_with("40 files with"), "{all:?}");
    for at in 0..60 {
        let path = format!("/user-{}/file-{at}", at % 3);
        assert!(get(&two.address, &path).unwrap().body == bytes(at, 2_000));
    }
    let same = client(&base, &["rebalance", "--from", "1", "--to", "1", "--catalog", &catalog]);
    assert_eq!(same.status.code(), Some(2));
    let none = client(&base, &["rebalance", "--from", "9", "--to", "1", "--catalog", &catalog]);
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&none.stderr).contains("there is no group 9"), "{none:?}");
}

#[test]
fn status_says_what_is_wrong() {
    let base = Base::start();
    let one = base.storage(101, "one", "");
    let two = base.storage(102, "two", "");
    let well = eventually("all is well", || {
        let status = client(&base, &["status"]);
        status.status.success().then_some(status)
    });
    let text = String::from_utf8(well.stdout).unwrap();
    assert!(
        text.contains("group 1: 2 of 2 nodes active") && text.contains("all is well"),
        "{text}"
    );
    two.kill();
    eventually("the loss is seen", || {
        let status = client(&base, &["status"]);
        let text = String::from_utf8_lossy(&status.stdout).into_owned();
        let seen = text.contains("AT RISK: group 1: one of its 2 nodes is active");
        (status.status.code() == Some(1) && seen).then_some(())
    });
    let retired = client(&base, &["node", "retire", "102"]);
    assert!(retired.status.success(), "{retired:?}");
    let nodes = client(&base, &["nodes"]);
    // By the first column: another one may say "102 ms ago".
    let ids = String::from_utf8(nodes.stdout).unwrap();
    let ids: Vec<_> = ids.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(ids, ["id", "101"]);
    assert_eq!(client(&base, &["node", "retire", "102"]).status.code(), Some(1), "it is gone");
    drop(one);
}

#[test]
fn health_asks_a_role() {
    let base = Base::start();
    let well = reel().args(["health", &base.tracker.address]).output().unwrap();
    assert!(well.status.success(), "{well:?}");
    let address = base.tracker.address.clone();
    drop(base);
    let dead = reel().args(["health", &address]).output().unwrap();
    assert_eq!(dead.status.code(), Some(1));
}

#[test]
fn a_readonly_group_sends_new_files_elsewhere_and_keeps_what_it_has() {
    let base = Base::start();
    let one = base.storage(101, "one", "");
    let dir = base.dir.path().join("files");
    std::fs::create_dir_all(&dir).unwrap();
    let upload = |name: &str, seed: u64| {
        std::fs::write(dir.join(name), bytes(seed, 5000)).unwrap();
        let file = dir.join(name).display().to_string();
        client(&base, &["put", "--user", "bob", &file])
    };
    assert!(upload("old", 1).status.success());
    assert!(upload("goes", 4).status.success());
    let object_of = |name: &str| {
        let stat = client(&base, &["stat", "--json", &format!("bob/{name}")]);
        let stat: serde_json::Value = serde_json::from_slice(&stat.stdout).unwrap();
        format!("/-/v1/objects/{}", stat["object"].as_str().unwrap())
    };
    let (old, goes) = (object_of("old"), object_of("goes"));
    let other = in_group_two(&base);
    wait_healthy(&other.address);
    let said = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let closed = client(&base, &["group", "readonly", "1"]);
    assert!(said(&closed).contains("go to other groups"), "{closed:?}");
    assert!(said(&client(&base, &["groups"])).contains("readonly"));
    eventually("new files go to the other group", || {
        assert!(upload("new", 2).status.success());
        let stat = client(&base, &["stat", "--json", "bob/new"]);
        let stat: serde_json::Value = serde_json::from_slice(&stat.stdout).unwrap();
        (stat["group"] == 2).then_some(())
    });
    for (name, seed) in [("old", 1), ("new", 2)] {
        let to = dir.join(format!("{name}-back")).display().to_string();
        let got = client(&base, &["get", &format!("bob/{name}"), "--output", &to]);
        assert!(got.status.success(), "{got:?}");
        assert_eq!(std::fs::read(&to).unwrap(), bytes(seed, 5000), "{name}");
    }
    // Replaced in the other group, which says so; and would it not be heard, what this node remembers of the name is not
    // believed for longer than the promised 3 s.
    assert!(get(&one.address, "/bob/old").unwrap().body == bytes(1, 5000));
    let read = Instant::now();
    assert!(upload("old", 3).status.success());
    std::thread::sleep(Duration::from_secs(3).saturating_sub(read.elapsed()));
    let answer = get(&one.address, "/bob/old").unwrap();
    assert_eq!((answer.status, answer.field("reel-group")), (421, "2"));
    assert_eq!(request(&other.address, "DELETE /bob/goes HTTP/1.1", &[]).unwrap().status, 204);
    for (what, object) in [("replaced", &old), ("deleted", &goes)] {
        eventually(&format!("its group buries what was {what} elsewhere"), || {
            (get(&one.address, object).unwrap().status == 404).then_some(())
        });
    }
    let unknown = client(&base, &["group", "weight", "9", "50"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no group 9"));
    assert!(client(&base, &["group", "create", "9", "--weight", "0"]).status.success());
    let again = client(&base, &["group", "create", "9"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("group 9 is there already"));
}
