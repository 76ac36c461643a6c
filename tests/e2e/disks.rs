//! Disks that fill up and disks that fail, and what is left of names when the catalog is lost: on real
//! file systems.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use reel_control::catalog::{Catalog, Row, Stamp, Write};

use crate::harness::{
    Base, Role, bytes, delete, eventually, get, has, nodes_keep_copies, put, reel, wait_healthy,
};

/// An ext4 of its own in a file, mounted. Unmounted when dropped.
struct Mounted {
    _image: tempfile::NamedTempFile,
    dir: tempfile::TempDir,
}

impl Mounted {
    /// `None` where that cannot be had (not root, no loop devices): said, or with
    /// REEL_TEST_REQUIRE=all an error.
    fn ext4(mib: u64, test: &str) -> Option<Self> {
        if !has("mkfs.ext4", test) || !has("mount", test) {
            return None;
        }
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(mib << 20).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image.path()).status().unwrap();
        assert!(made.success());
        let mounted = Command::new("mount")
            .args(["-o", "loop"])
            .arg(image.path())
            .arg(dir.path())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        if !mounted.success() {
            let required = std::env::var("REEL_TEST_REQUIRE").is_ok_and(|value| value == "all");
            assert!(!required, "{test} needs root and a loop device");
            eprintln!("skipped: {test} needs root and a loop device");
            return None;
        }
        Some(Self { _image: image, dir })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The file system fails: everything that would write gives an error from now on.
    fn fail(&self) {
        let status =
            Command::new("mount").args(["-o", "remount,abort"]).arg(self.path()).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn name(index: u64) -> String {
    format!("/ann/file-{index}")
}

/// A storage node's configuration with these data folders.
fn config(base: &Base, folders: &[&Path], more: &str) -> String {
    let list: Vec<String> = folders.iter().map(|folder| format!("{folder:?}")).collect();
    let config = base.storage_config(101, "unused", more);
    let unused = format!("data = \"{}\"", base.dir.path().join("unused").display());
    config.replace(&unused, &format!("data = [{}]", list.join(", ")))
}

fn fsck_is_clean(folders: &[&Path]) {
    let output = reel().arg("fsck").args(folders).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_full_disk_refuses_uploads_and_takes_them_again_after_deletes() {
    if !nodes_keep_copies("a_full_disk_refuses_uploads_and_takes_them_again_after_deletes") {
        return;
    }
    let Some(disk) = Mounted::ext4(96, "a_full_disk") else { return };
    let base = Base::start();
    let data = disk.path().join("data");
    let more = "segment_bytes = \"4 MiB\"\nreserve = \"12 MiB\"\n[storage.upkeep]\nshare = 100\n";
    let config = config(&base, &[&data], more);
    let node = Role::start("storage", base.dir.path(), &config).unwrap();
    wait_healthy(&node.address);
    let body = |index| bytes(index, 48_000);
    let mut stored = 0;
    loop {
        let answer = put(&node.address, &name(stored), &body(stored)).unwrap();
        if answer.status == 507 {
            assert_eq!(answer.json()["error"], "no_space");
            break;
        }
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
        stored += 1;
        assert!(stored < 5_000, "it never fills up");
    }
    assert!(stored > 200, "only {stored} uploads fitted");
    assert_eq!(put(&node.address, "/ann/large", &bytes(7, 3_000_000)).unwrap().status, 507);
    for index in 0..stored {
        assert_eq!(get(&node.address, &name(index)).unwrap().body, body(index), "nothing is lost");
    }
    for index in (0..stored).filter(|index| !index.is_multiple_of(4)) {
        assert_eq!(delete(&node.address, &name(index)).unwrap().status, 204, "deletes work");
    }
    // Compaction gives the space back by itself.
    let again = bytes(99, 2_000_000);
    eventually("uploads work again", || {
        (put(&node.address, "/ann/again", &again).unwrap().status < 300).then_some(())
    });
    for index in 0..stored {
        let answer = get(&node.address, &name(index)).unwrap();
        match index % 4 {
            0 => assert_eq!(answer.body, body(index)),
            _ => assert_eq!(answer.status, 404),
        }
    }
    println!("full after {stored} uploads; after deletes it takes uploads again");
    crate::harness::signal(node.pid(), rustix::process::Signal::TERM);
    eventually("the folder is free", || {
        let output = reel().arg("fsck").arg(&data).output().unwrap();
        output.status.success().then_some(())
    });
}

#[test]
fn a_disk_that_fails_takes_only_its_objects_out() {
    if !nodes_keep_copies("a_disk_that_fails_takes_only_its_objects_out") {
        return;
    }
    let Some(disk) = Mounted::ext4(512, "a_disk_that_fails") else { return };
    let Some(other) = Mounted::ext4(256, "a_disk_that_fails") else { return };
    let base = Base::start();
    let (good, bad) = (other.path().join("data"), disk.path().join("data"));
    let config = config(&base, &[&bad, &good], "reserve = \"16 MiB\"\nsegment_bytes = \"4 MiB\"\n");
    let node = Role::start("storage", base.dir.path(), &config).unwrap();
    wait_healthy(&node.address);
    let body = |index: u64| bytes(index, if index.is_multiple_of(10) { 1_500_000 } else { 30_000 });
    let mut paths = BTreeMap::new();
    for index in 0..60 {
        let answer = put(&node.address, &name(index), &body(index)).unwrap();
        assert_eq!(answer.status, 201);
        paths.insert(index, answer.json()["path"].as_str().unwrap().to_owned());
    }
    // The disk with more room was chosen; some more are put on the other by filling the first up.
    let filler = std::fs::File::create(disk.path().join("filler")).unwrap();
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, 400 << 20).unwrap();
    let on_good = |path: &String| good.join(path).exists();
    let mut next = 60;
    eventually("uploads go to the other disk", || {
        let answer = put(&node.address, &name(next), &body(next)).unwrap();
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
        let path = answer.json()["path"].as_str().unwrap().to_owned();
        let there = on_good(&path);
        paths.insert(next, path);
        next += 1;
        there.then_some(())
    });
    disk.fail();
    // What was to be written to the failing disk is written to the other one: no upload is refused.
    for _ in 0..20 {
        let answer = put(&node.address, &name(next), &body(next)).unwrap();
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
        paths.insert(next, answer.json()["path"].as_str().unwrap().to_owned());
        next += 1;
    }
    let mut served = 0;
    for (index, path) in &paths {
        let answer = get(&node.address, &name(*index)).unwrap();
        if on_good(path) {
            assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
            served += 1;
        }
        if answer.status == 200 {
            assert_eq!(answer.body, body(*index));
        }
    }
    assert!(served > 0);
    let deleted = paths.iter().find(|(_, path)| !on_good(path)).unwrap().0;
    assert_eq!(
        delete(&node.address, &name(*deleted)).unwrap().status,
        204,
        "its objects are deleted"
    );
    assert_eq!(get(&node.address, &name(*deleted)).unwrap().status, 404);
    let health = get(&node.address, "/-/health").unwrap();
    assert_eq!(health.status, 200, "one good disk serves");
    assert_eq!(health.json()["failing_folders"][0]["folder"], bad.display().to_string());
    let metrics = String::from_utf8(get(&node.address, "/-/metrics").unwrap().body).unwrap();
    assert!(metrics.contains(&format!("reel_folder_failing{{folder=\"{}\"}} 1", bad.display())));
    println!(
        "one disk of two failed: {served} objects on the other were served, {} in all",
        paths.len()
    );
}

async fn rows(url: &str) -> Vec<Row> {
    let catalog = Catalog::open(url).await.unwrap();
    let mut rows: Vec<Row> = Vec::new();
    loop {
        let after = rows.last().map_or(("", ""), |row| (row.user.as_str(), row.name.as_str()));
        let page = catalog.rows(after, 100).await.unwrap();
        if page.is_empty() {
            return rows;
        }
        rows.extend(page);
    }
}

#[test]
fn a_lost_catalog_is_made_again_row_by_row() {
    if !nodes_keep_copies("a_lost_catalog_is_made_again_row_by_row") {
        return;
    }
    let base = Base::start();
    let folders: [PathBuf; 2] = [base.dir.path().join("a"), base.dir.path().join("b")];
    let folders: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
    let config = config(&base, &folders, "segment_bytes = \"4 MiB\"\n");
    let node = Role::start("storage", base.dir.path(), &config).unwrap();
    wait_healthy(&node.address);
    for index in 0..400u64 {
        let body = bytes(index, if index.is_multiple_of(50) { 1_200_000 } else { 9_000 });
        assert!(put(&node.address, &name(index % 300), &body).unwrap().status < 300);
    }
    for index in 0..300u64 {
        if index.is_multiple_of(7) {
            assert_eq!(delete(&node.address, &name(index)).unwrap().status, 204);
        }
    }
    crate::harness::signal(node.pid(), rustix::process::Signal::TERM);
    let url = format!("sqlite:{}", base.dir.path().join("catalog.db").display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    eventually("the folders are free, and all is clean", || {
        let output = reel().arg("fsck").args(&folders).args(["--catalog", &url]).output().unwrap();
        output.status.success().then_some(())
    });
    let before = runtime.block_on(rows(&url));
    assert_eq!(before.len(), 300);
    let again = format!("sqlite:{}", base.dir.path().join("again.db").display());
    let rebuild = || {
        let output = reel()
            .arg("rebuild-catalog")
            .arg("--data")
            .args(&folders)
            .args(["--catalog", &again])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    print!("{}", rebuild());
    assert_eq!(runtime.block_on(rows(&again)), before, "row by row");
    rebuild();
    assert_eq!(runtime.block_on(rows(&again)), before, "twice changes nothing");
    // A row that is lost, and one that names nothing, are found.
    fsck_is_clean(&folders);
    let empty = format!("sqlite:{}", base.dir.path().join("empty.db").display());
    let output = reel().arg("fsck").args(&folders).args(["--catalog", &empty]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("no row names object"));
}

#[test]
fn the_sweep_buries_what_no_row_names_and_nothing_else() {
    let base = Base::start();
    let more = "[storage.upkeep]\nsweep_every = \"1 s\"\norphan_grace = \"1 ms\"\nshare = 100\n";
    let config = base.storage_config(101, "node", more);
    let node = Role::start("storage", base.dir.path(), &config).unwrap();
    wait_healthy(&node.address);
    let mut objects = Vec::new();
    for index in 0..20 {
        let answer = put(&node.address, &name(index), &bytes(index, 3_000)).unwrap();
        objects.push(answer.json()["object"].as_str().unwrap().to_owned());
    }
    crate::harness::signal(node.pid(), rustix::process::Signal::TERM);
    let data = base.dir.path().join("node");
    eventually("the folder is free", || {
        reel().arg("fsck").arg(&data).output().unwrap().status.success().then_some(())
    });
    // A delete whose tombstone was lost: the row is a mark, the object lives.
    let url = format!("sqlite:{}", base.dir.path().join("catalog.db").display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let catalog = Catalog::open(&url).await.unwrap();
        let row = catalog.lookup("ann", "file-7").await.unwrap().unwrap();
        let stamp = Stamp { hlc: row.stamp.hlc + 1, node: row.stamp.node };
        let mark = Write::Mark { user: "ann".into(), name: "file-7".into(), stamp };
        catalog.apply(&[mark]).await.unwrap();
    });
    let node = Role::start("storage", base.dir.path(), &config).unwrap();
    wait_healthy(&node.address);
    let by_id =
        |index: usize| get(&node.address, &format!("/-/v1/objects/{}", objects[index])).unwrap();
    eventually("the orphan is buried", || (by_id(7).status == 404).then_some(()));
    for index in (0..20).filter(|index| *index != 7) {
        assert_eq!(by_id(index).body, bytes(index as u64, 3_000));
        assert_eq!(get(&node.address, &name(index as u64)).unwrap().status, 200);
    }
}

#[test]
fn what_the_scrub_finds_damaged_is_repaired_from_a_peer() {
    let name = "what_the_scrub_finds_damaged_is_repaired_from_a_peer";
    damaged_objects_are_repaired(name, "scrub_every = \"1 s\"\nshare = 100\n", |_| {});
}

#[test]
fn what_a_reader_finds_damaged_is_repaired_from_a_peer() {
    let name = "what_a_reader_finds_damaged_is_repaired_from_a_peer";
    damaged_objects_are_repaired(name, "", |node| {
        // Of the small one nobody notices anything: the peer's bytes are sent.
        assert_eq!(get(node, "/ann/small").unwrap().body, bytes(1, 9_000));
        // The large one breaks off in the middle: what has been sent is right.
        assert!(get(node, "/ann/large").is_err());
    });
}

#[test]
fn a_segment_whose_file_was_removed_is_copied_anew() {
    let name = "a_segment_whose_file_was_removed_is_copied_anew";
    a_lost_copy_comes_back(name, "", |file| std::fs::remove_file(file).unwrap());
}

#[test]
fn a_copy_that_cannot_be_opened_is_set_aside_and_copied_anew() {
    let name = "a_copy_that_cannot_be_opened_is_set_aside_and_copied_anew";
    let upkeep = "\n[storage.upkeep]\ncompare_every = \"1 s\"\n";
    a_lost_copy_comes_back(name, upkeep, |file| {
        let mut content = std::fs::read(file).unwrap();
        content[4_100] ^= 1;
        std::fs::write(file, content).unwrap();
    });
}

/// The file of a large object is spoilt at the first of two nodes.
fn a_lost_copy_comes_back(test: &str, more: &str, spoil: impl Fn(&Path)) {
    if !nodes_keep_copies(test) {
        return;
    }
    let base = Base::start();
    let config = base.storage_config(101, "first", &format!("ack = 2{more}"));
    let first = Role::start("storage", base.dir.path(), &config).unwrap();
    let _second = base.storage(102, "second", "");
    wait_healthy(&first.address);
    let answer = eventually("both nodes take it", || {
        put(&first.address, "/ann/large", &bytes(2, 1_500_000)).ok().filter(|it| it.status < 300)
    });
    let json = answer.json();
    let data = base.dir.path().join("first");
    let file = data.join(json["path"].as_str().unwrap());
    crate::harness::signal(first.pid(), rustix::process::Signal::TERM);
    let fsck = || reel().arg("fsck").arg(&data).output().unwrap().status.success();
    eventually("the folder is free", || fsck().then_some(()));
    let before = std::fs::read(&file).unwrap();
    spoil(&file);
    let spoilt = std::fs::read(&file).ok();
    let first = Role::start("storage", base.dir.path(), &config).unwrap();
    wait_healthy(&first.address);
    let object = format!("/-/v1/objects/{}", json["object"].as_str().unwrap());
    eventually("it is here again", || {
        let answer = get(&first.address, &object).unwrap();
        (answer.status == 200 && answer.body == bytes(2, 1_500_000)).then_some(())
    });
    assert!(std::fs::read(&file).unwrap() == before);
    assert!(std::fs::read(file.with_added_extension("damaged")).ok() == spoilt);
    crate::harness::signal(first.pid(), rustix::process::Signal::TERM);
    eventually("the folder is free, and clean", || fsck().then_some(()));
}

/// A byte of a small object and one in the middle of a large one are damaged at the first of two nodes; `find` lets it be
/// found.
fn damaged_objects_are_repaired(test: &str, upkeep: &str, find: impl Fn(&str)) {
    if !nodes_keep_copies(test) {
        return;
    }
    let base = Base::start();
    let more = format!("[storage.upkeep]\n{upkeep}");
    let config = base.storage_config(101, "first", &more);
    let first = Role::start("storage", base.dir.path(), &config).unwrap();
    let second = base.storage(102, "second", "");
    wait_healthy(&first.address);
    let files = [("/ann/small", bytes(1, 9_000)), ("/ann/large", bytes(2, 1_500_000))];
    for (name, body) in &files {
        let answer = put(&first.address, name, body).unwrap();
        let object = answer.json()["object"].as_str().unwrap().to_owned();
        eventually("the peer has a copy", || {
            let answer = get(&second.address, &format!("/-/v1/objects/{object}")).unwrap();
            (answer.status == 200 && answer.body == *body).then_some(())
        });
    }
    crate::harness::signal(first.pid(), rustix::process::Signal::TERM);
    let data = base.dir.path().join("first");
    let fsck = || reel().arg("fsck").arg(&data).output().unwrap().status.success();
    eventually("the folder is free, and clean", || fsck().then_some(()));
    for ((_, body), byte) in files.iter().zip([4_321, 700_000]) {
        let damaged = walk(&data).into_iter().find_map(|path| {
            let content = std::fs::read(&path).unwrap();
            let at = content.windows(5_000).position(|window| window == &body[..5_000])?;
            Some((path, content, at))
        });
        let (path, mut content, at) = damaged.unwrap();
        content[at + byte] ^= 0x10;
        std::fs::write(&path, &content).unwrap();
    }
    assert!(!fsck());
    let first = Role::start("storage", base.dir.path(), &config).unwrap();
    wait_healthy(&first.address);
    find(&first.address);
    eventually("they are repaired", || {
        let metrics = String::from_utf8(get(&first.address, "/-/metrics").unwrap().body).unwrap();
        metrics.contains("reel_repaired_objects_total 2").then_some(())
    });
    for (name, body) in &files {
        assert!(get(&first.address, name).unwrap().body == *body);
    }
    crate::harness::signal(first.pid(), rustix::process::Signal::TERM);
    eventually("the folder is free, and clean again", || fsck().then_some(()));
}

#[test]
fn fsck_says_what_where_and_what_to_do() {
    let base = Base::start();
    let node = base.storage(101, "node", "segment_bytes = \"4 MiB\"");
    for index in 0..20 {
        assert_eq!(put(&node.address, &name(index), &bytes(index, 5_000)).unwrap().status, 201);
    }
    let data = base.dir.path().join("node");
    let fsck = |arguments: &[&str]| reel().arg("fsck").args(arguments).arg(&data).output().unwrap();
    let held = fsck(&[]);
    let said = String::from_utf8_lossy(&held.stderr).into_owned();
    assert_eq!(held.status.code(), Some(1));
    assert!(said.contains("is in use by node 101"), "{said}");
    crate::harness::signal(node.pid(), rustix::process::Signal::TERM);
    eventually("the folder is free", || fsck(&[]).status.success().then_some(()));
    let table =
        walk(&data).into_iter().find(|path| path.extension().is_some_and(|e| e == "idx")).unwrap();
    let mut damaged = std::fs::read(&table).unwrap();
    damaged[4096] ^= 1;
    std::fs::write(&table, &damaged).unwrap();
    let found = fsck(&["--json"]);
    assert_eq!(found.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
    let finding = &json["folders"][0]["report"]["findings"][0];
    assert_eq!((finding["kind"].as_str(), finding["offset"].as_u64()), (Some("table"), Some(4096)));
    assert!(fsck(&["--repair-tables"]).status.success());
    assert!(fsck(&[]).status.success());
    let nothing = reel().args(["fsck", "/nowhere/at/all"]).output().unwrap();
    assert_eq!(nothing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("/nowhere/at/all"));
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path);
        }
    }
    found
}
