//! Every process of a cluster is killed in turn under load: answered uploads stay, reads never
//! fail.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::{Process, Up, bytes, eventually, get, is_healthy, kill, put, shared_mounts};

struct Answered {
    path: String,
    seed: u64,
    length: usize,
    object: String,
    group: u64,
}

struct Load {
    stop: AtomicBool,
    servers: Vec<String>,
    /// The HTTP server that is being killed, and is not asked.
    victim: Mutex<Option<String>>,
    files: Mutex<Vec<Arc<Answered>>>,
    seeds: AtomicU64,
    reads: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Load {
    fn is_victim(&self, server: &str) -> bool {
        self.victim.lock().unwrap().as_deref() == Some(server)
    }

    fn write(&self, writer: u64) {
        let mut count = 0u64;
        while !self.stop.load(Ordering::Relaxed) {
            count += 1;
            let server = &self.servers[(writer + count) as usize % self.servers.len()];
            let seed = self.seeds.fetch_add(1, Ordering::Relaxed) + 1;
            let length =
                if count.is_multiple_of(25) { 2_500_000 } else { (seed % 40_000) as usize };
            let path = format!("/user-{}/dir-{writer}/{count}", seed % 8);
            if let Ok(answer) = put(server, &path, &bytes(seed, length))
                && answer.status == 201
            {
                let json = answer.json();
                let object = json["object"].as_str().unwrap().to_owned();
                let group = json["group"].as_u64().unwrap();
                self.files.lock().unwrap().push(Arc::new(Answered {
                    path,
                    seed,
                    length,
                    object,
                    group,
                }));
            }
        }
    }

    fn read(&self, reader: u64) {
        let mut state = reader + 1;
        while !self.stop.load(Ordering::Relaxed) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let file = {
                let files = self.files.lock().unwrap();
                if files.is_empty() {
                    continue;
                }
                // Often one of the newest: those are the ones that may be on one node only.
                let span = if state & (1 << 40) == 0 { files.len().min(20) } else { files.len() };
                Arc::clone(&files[files.len() - 1 - (state >> 33) as usize % span])
            };
            let server = &self.servers[(state >> 20) as usize % self.servers.len()];
            if self.is_victim(server) {
                continue;
            }
            let result = get(server, &file.path);
            // It may have become the victim meanwhile: then it was not a living one.
            if self.is_victim(server) {
                continue;
            }
            self.reads.fetch_add(1, Ordering::Relaxed);
            let problem = match result {
                Ok(answer) if answer.status != 200 => {
                    format!(
                        "{} from {server}: {} {}",
                        file.path,
                        answer.status,
                        String::from_utf8_lossy(&answer.body)
                    )
                }
                Ok(answer) if answer.body != bytes(file.seed, file.length) => {
                    format!("{}: wrong bytes", file.path)
                }
                Ok(_) => continue,
                Err(error) => format!("{} from {server}: {error}", file.path),
            };
            self.failures.lock().unwrap().push(problem);
        }
    }
}

/// Kills a process, and waits until its successor is healthy.
fn kill_and_wait(up: &Up, process: &Process) {
    kill(process.pid);
    let successor = eventually(&format!("{} runs again", process.name), || {
        up.processes().into_iter().find(|now| now.name == process.name && now.pid != process.pid)
    });
    eventually(&format!("{} is healthy again", process.name), || {
        is_healthy(&successor.address).then_some(())
    });
}

/// Runs the load, kills everything in turn, and compares what both nodes of each group hold.
fn killed_in_turn(catalog: Option<&str>) {
    let dir = tempfile::tempdir().unwrap();
    let mut arguments = vec![
        "--trackers",
        "3",
        "--groups",
        "2",
        "--replicas",
        "2",
        "--http-servers",
        "2",
        "--shards",
        "1",
    ];
    if let Some(url) = catalog {
        arguments.extend(["--catalog", url]);
    }
    let up = Up::start(dir.path(), &arguments);
    let load = Arc::new(Load {
        stop: AtomicBool::new(false),
        servers: up.of("http").into_iter().map(|process| process.address).collect(),
        victim: Mutex::new(None),
        files: Mutex::default(),
        seeds: AtomicU64::new(0),
        reads: AtomicU64::new(0),
        failures: Mutex::default(),
    });
    let threads: Vec<_> = (0..3)
        .flat_map(|index| {
            let (writing, reading) = (Arc::clone(&load), Arc::clone(&load));
            [
                std::thread::spawn(move || writing.write(index)),
                std::thread::spawn(move || reading.read(index)),
            ]
        })
        .collect();
    let some = |more: usize| {
        let from = load.files.lock().unwrap().len();
        eventually("uploads go on", || {
            (load.files.lock().unwrap().len() >= from + more).then_some(())
        });
    };
    some(30);
    for role in ["tracker", "id", "storage", "http"] {
        for process in up.of(role) {
            if role == "http" {
                *load.victim.lock().unwrap() = Some(process.address.clone());
            }
            kill_and_wait(&up, &process);
            *load.victim.lock().unwrap() = None;
            some(30);
        }
    }
    load.stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    let failures = load.failures.lock().unwrap();
    assert!(
        failures.is_empty(),
        "{} reads failed: {:#?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
    let files = load.files.lock().unwrap();
    on_both_nodes(&up, &files);
    println!(
        "every process killed in turn: {} uploads answered, each bit for bit on both nodes of its group; {} reads, 0 failed",
        files.len(),
        load.reads.load(Ordering::Relaxed)
    );
}

fn on_both_nodes(up: &Up, files: &[Arc<Answered>]) {
    let nodes = up.of("storage");
    let started = Instant::now();
    for file in files {
        let expected = bytes(file.seed, file.length);
        let own: Vec<&Process> = nodes
            .iter()
            .filter(|node| node.name.starts_with(&format!("storage-{}-", file.group)))
            .collect();
        assert_eq!(own.len(), 2);
        for node in own {
            // By id: this path never asks the peer. Nobody but its node has all of a shared volume's segment that is being
            // written; there it is asked for by name.
            let path = match shared_mounts() {
                None => format!("/-/v1/objects/{}", file.object),
                Some(_) => file.path.clone(),
            };
            let answer = eventually(&format!("{} is on {}", file.path, node.name), || {
                get(&node.address, &path).ok().filter(|answer| answer.status == 200)
            });
            assert!(answer.body == expected, "{} differs on {}", file.path, node.name);
        }
    }
    assert!(started.elapsed() < Duration::from_secs(300));
}

#[test]
fn reads_never_fail_and_uploads_stay_while_every_process_is_killed_in_turn() {
    killed_in_turn(None);
}

#[test]
fn the_same_with_postgresql_as_the_catalog() {
    let Some(postgres) = postgres::Postgres::start("the_same_with_postgresql_as_the_catalog")
    else {
        return;
    };
    killed_in_turn(Some(&postgres.url()));
}

#[path = "../../control/tests/postgres/mod.rs"]
mod postgres;

#[test]
fn without_the_catalog_known_files_are_read_and_uploads_wait_for_better_times() {
    let test = "without_the_catalog_known_files_are_read_and_uploads_wait_for_better_times";
    let Some(postgres) = postgres::Postgres::start(test) else { return };
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &["--shards", "1", "--catalog", &postgres.url()]);
    let node = up.of("storage")[0].address.clone();
    assert_eq!(put(&node, "/ann/known", &bytes(1, 5000)).unwrap().status, 201);
    postgres.crash();
    let refused = eventually("uploads are refused", || {
        put(&node, "/ann/late", b"late").ok().filter(|answer| answer.status == 503)
    });
    assert_eq!(refused.json()["error"], "catalog_away");
    for _ in 0..20 {
        let known = get(&node, "/ann/known").unwrap();
        assert!(known.status == 200 && known.body == bytes(1, 5000));
    }
    assert_eq!(get(&node, "/ann/never-asked-for").unwrap().status, 503);
    assert!(!is_healthy(&node));
    postgres.begin();
    eventually("it recovers by itself", || is_healthy(&node).then_some(()));
    assert_eq!(
        put(&node, "/ann/late", b"later").unwrap().status,
        201,
        "the refused upload left nothing"
    );
    assert_eq!(get(&node, "/ann/late").unwrap().body, b"later");
}

#[test]
fn uploads_go_on_without_the_id_server_and_reads_without_the_trackers() {
    let dir = tempfile::tempdir().unwrap();
    let base = crate::harness::Base::start();
    let node = base.storage(101, "node", "");
    let http = crate::harness::Role::start(
        "http",
        dir.path(),
        &format!("trackers = [\"{}\"]\n[http]\nlisten = \"127.0.0.1:0\"\n", base.tracker.address),
    )
    .unwrap();
    crate::harness::wait_healthy(&http.address);
    let redirecting = crate::harness::Role::start(
        "http",
        dir.path(),
        &format!("trackers = [\"{}\"]\n[http]\nlisten = \"127.0.0.1:0\"\nmode = \"redirect\"\nwrites = false\n", base.tracker.address),
    )
    .unwrap();
    assert_eq!(put(&http.address, "/ann/a", b"a").unwrap().status, 201);
    let sent_on = get(&redirecting.address, "/ann/a").unwrap();
    assert_eq!(
        (sent_on.status, sent_on.field("location")),
        (307, format!("http://{}/ann/a", node.address).as_str())
    );
    assert_eq!(put(&redirecting.address, "/ann/a", b"b").unwrap().status, 405);
    let crate::harness::Base { dir: _kept, tracker, id } = base;
    id.kill();
    for index in 0..50 {
        assert_eq!(
            put(&node.address, &format!("/ann/{index}"), &bytes(index, 2_000_000)).unwrap().status,
            201
        );
    }
    assert_eq!(get(&http.address, "/ann/a").unwrap().body, b"a");
    tracker.kill();
    // Many connections, so that every shard is asked.
    for _ in 0..20 {
        assert_eq!(get(&http.address, "/ann/a").unwrap().body, b"a");
    }
    assert!(get(&node.address, "/ann/49").unwrap().body == bytes(49, 2_000_000));
}

#[test]
fn two_id_servers_on_postgresql_never_give_a_number_twice() {
    let Some(postgres) =
        postgres::Postgres::start("two_id_servers_on_postgresql_never_give_a_number_twice")
    else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let config = format!("catalog = \"{}\"\n[id]\nlisten = \"127.0.0.1:0\"\n", postgres.url());
    let mut numbers = Vec::new();
    for round in 0..3 {
        let servers: Vec<_> = (0..2)
            .map(|_| crate::harness::Role::start("id", dir.path(), &config).unwrap())
            .collect();
        for _ in 0..5 {
            for server in &servers {
                let body = format!("{{\"cluster\":\"reel\",\"node\":{round},\"count\":10}}");
                let head = format!(
                    "POST /-/v1/lease HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {}",
                    body.len()
                );
                let lease = crate::harness::request(&server.address, &head, body.as_bytes())
                    .unwrap()
                    .json();
                let first = lease["first"].as_u64().unwrap();
                numbers.extend(first..first + lease["count"].as_u64().unwrap());
            }
        }
        // kill -9 of both; the next ones go on above.
        servers.into_iter().for_each(crate::harness::Role::kill);
    }
    let count = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!((numbers.len(), count), (300, 300));
}
