//! What bad input and faults get: a clear line, the right status, nothing half visible.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;

use crate::harness::{
    Base, Role, Up, bytes, eventually, get, nodes_keep_copies, put, reel, shared_mounts,
};

#[test]
fn a_body_cut_short_leaves_nothing() {
    let base = Base::start();
    let node = base.storage(101, "node", "");
    for (name, length) in [("small", 10_000usize), ("large", 5_000_000)] {
        let mut stream = TcpStream::connect(&node.address).unwrap();
        stream
            .write_all(
                format!("PUT /ann/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")
                    .as_bytes(),
            )
            .unwrap();
        stream.write_all(&bytes(1, length - 1)).unwrap();
        drop(stream);
        let then = put(&node.address, &format!("/ann/after-{name}"), b"x").unwrap();
        assert_eq!(then.status, 201);
        assert_eq!(get(&node.address, &format!("/ann/{name}")).unwrap().status, 404);
    }
    // The unfinished large one is gone from the disk too.
    let folder = base.dir.path().join("node").join("active");
    eventually("only segments of whole records are left", || {
        (std::fs::read_dir(&folder).unwrap().count() <= 2).then_some(())
    });
}

/// The segment file and payload offset of an object that was uploaded to a fresh node.
fn payload_at(base: &Base, folder: &str, path: &str, payload: &[u8]) -> (std::fs::File, u64) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(base.dir.path().join(folder).join(path))
        .unwrap();
    let mut content = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut content, 0).unwrap();
    let probe = &payload[..32];
    let at = content.windows(32).position(|window| window == probe).unwrap();
    (file, at as u64)
}

#[test]
fn a_damaged_object_is_never_served_as_right() {
    let base = Base::start();
    let node = base.storage(101, "node", "");
    for (name, length) in [("small", 4096usize), ("middle", 200_000), ("large", 3_000_000)] {
        let payload = bytes(length as u64, length);
        let uploaded = put(&node.address, &format!("/ann/{name}"), &payload).unwrap().json();
        let (file, at) = payload_at(&base, "node", uploaded["path"].as_str().unwrap(), &payload);
        file.write_all_at(&[payload[100] ^ 1], at + 100).unwrap();
        let answer = get(&node.address, &format!("/ann/{name}")).unwrap();
        assert_eq!(
            (answer.status, answer.json()["error"].as_str()),
            (500, Some("damaged")),
            "{name}"
        );
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(
            message.contains(uploaded["object"].as_str().unwrap()),
            "it names the object: {message}"
        );
        file.write_all_at(&[payload[100]], at + 100).unwrap();
        assert!(get(&node.address, &format!("/ann/{name}")).unwrap().body == payload);
    }
}

#[test]
fn a_damaged_or_missing_object_is_read_from_a_peer() {
    if !nodes_keep_copies("a_damaged_or_missing_object_is_read_from_a_peer") {
        return;
    }
    let base = Base::start();
    let one = base.storage(101, "one", "ack = 2");
    let two = base.storage(102, "two", "ack = 2");
    let payload = bytes(4, 50_000);
    let uploaded = eventually("both nodes take it", || {
        put(&one.address, "/ann/x", &payload).ok().filter(|answer| answer.status < 300)
    });
    let path = uploaded.json()["path"].as_str().unwrap().to_owned();
    let (file, at) = payload_at(&base, "two", &path, &payload);
    file.write_all_at(&[payload[7] ^ 4], at + 7).unwrap();
    let answer = get(&two.address, "/ann/x").unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.body == payload, "the peer's bytes");
    drop(one);
}

#[test]
fn a_lost_slot_table_is_rebuilt() {
    let base = Base::start();
    let node = base.storage(101, "node", "");
    let mut paths = Vec::new();
    for index in 0..20u64 {
        let answer = put(&node.address, &format!("/ann/{index}"), &bytes(index, 3000)).unwrap();
        paths.push(answer.json()["path"].as_str().unwrap().to_owned());
    }
    // A stop in order seals the segments; their tables are then removed.
    crate::harness::signal(node.pid(), rustix::process::Signal::TERM);
    eventually("it has stopped", || {
        Role::start("storage", base.dir.path(), &base.storage_config(101, "node", ""))
            .ok()
            .map(Role::kill)
    });
    for path in &paths {
        let _ = std::fs::remove_file(base.dir.path().join("node").join(path).with_extension("idx"));
    }
    let node = base.storage(101, "node", "");
    for index in 0..20u64 {
        assert!(get(&node.address, &format!("/ann/{index}")).unwrap().body == bytes(index, 3000));
    }
}

#[test]
fn a_second_owner_of_a_folder_is_told_who_holds_it() {
    let base = Base::start();
    let node = base.storage(101, "node", "");
    let said = Role::start("storage", base.dir.path(), &base.storage_config(101, "node", ""))
        .err()
        .unwrap();
    assert!(said.contains(&format!("is in use by node 101, process {}", node.pid())), "{said}");
}

#[test]
fn two_nodes_with_one_id_are_refused() {
    let base = Base::start();
    let _node = base.storage(101, "node", "");
    let said = Role::start("storage", base.dir.path(), &base.storage_config(101, "other", ""))
        .err()
        .unwrap();
    let refused = match shared_mounts() {
        None => "node id 101 is in use",
        // They would have one folder there.
        Some(_) => "is in use by node 101",
    };
    assert!(said.contains(refused), "{said}");
}

#[test]
fn a_folder_of_another_node_is_refused() {
    if !nodes_keep_copies("a_folder_of_another_node_is_refused") {
        return;
    }
    let base = Base::start();
    base.storage(101, "node", "").kill();
    let said = Role::start("storage", base.dir.path(), &base.storage_config(102, "node", ""))
        .err()
        .unwrap();
    assert!(
        said.contains("belongs to node 101 of group 1") && said.contains("not to node 102"),
        "{said}"
    );
}

#[test]
fn a_tracker_of_another_cluster_refuses_the_node() {
    let base = Base::start();
    let config = format!("cluster = \"other\"\n{}", base.storage_config(101, "node", ""));
    let said = Role::start("storage", base.dir.path(), &config).err().unwrap();
    assert!(said.contains("this is cluster \"reel\", the request is for \"other\""), "{said}");
}

#[test]
fn a_port_in_use_is_said_so() {
    let base = Base::start();
    let node = base.storage(101, "node", "");
    let config = base
        .storage_config(102, "other", "")
        .replace("listen = \"127.0.0.1:0\"", &format!("listen = \"{}\"", node.address));
    let said = Role::start("storage", base.dir.path(), &config).err().unwrap();
    assert!(said.contains(&format!("{} is in use by another server", node.address)), "{said}");
}

#[test]
fn an_unknown_format_is_refused_by_name() {
    let base = Base::start();
    base.storage(101, "node", "").kill();
    let path = base.dir.path().join("node").join("superblock");
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&[9], 8).unwrap();
    let said = Role::start("storage", base.dir.path(), &base.storage_config(101, "node", ""))
        .err()
        .unwrap();
    assert!(said.contains("format version 9 is not known to this build"), "{said}");
}

#[test]
fn without_room_uploads_get_507_and_reads_go_on() {
    let base = Base::start();
    let node = base.storage(101, "node", "");
    assert_eq!(put(&node.address, "/ann/x", b"x").unwrap().status, 201);
    node.kill();
    // More than any disk has is to stay free.
    let config = base.storage_config(101, "node", "reserve = \"1000000 TiB\"");
    let node = Role::start("storage", base.dir.path(), &config).unwrap();
    let refused = eventually("the node is up", || {
        put(&node.address, "/ann/y", b"y")
            .ok()
            .filter(|answer| answer.json()["error"] != "catalog_away")
    });
    assert_eq!((refused.status, refused.json()["error"].as_str()), (507, Some("no_space")));
    assert_eq!(get(&node.address, "/ann/x").unwrap().body, b"x");
    assert_eq!(crate::harness::delete(&node.address, "/ann/x").unwrap().status, 204);
}

#[test]
fn the_commands_mistakes_have_their_exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("data"), &["--shards", "1"]);
    let code = |arguments: &[&str]| {
        let output = up.client(arguments);
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(code(&["get", "ann/none", "-o", "-"]).0, 1);
    assert_eq!(code(&["get", "ann"]).0, 2);
    assert_eq!(code(&["put", "--user", "Ann", "x"]).0, 2);
    assert_eq!(code(&["stat", "ann/none"]).0, 1);
    assert_eq!(code(&["frobnicate"]).0, 2);
    let (status, said) = code(&["put", "--user", "ann", "/no/such/file"]);
    assert!(status == 1 && said.contains("/no/such/file") && said.lines().count() == 1, "{said}");
    let nowhere = reel()
        .args(["ls", "ann"])
        .current_dir(dir.path())
        .env("REEL_TRACKERS", "127.0.0.1:1")
        .output()
        .unwrap();
    assert_eq!(nowhere.status.code(), Some(1));
    let unknown = reel().args(["ls", "ann"]).current_dir(dir.path()).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
}
