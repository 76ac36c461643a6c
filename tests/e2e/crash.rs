//! kill -9 of a storage node in the middle of uploads, again and again: nothing answered is lost,
//! no wrong bytes, no half files.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::{Base, Role, bytes, get, put};

/// What may be under a name: the seed and length of the last answered upload, and of those that
/// were sent after it without an answer.
#[derive(Debug, Clone, Default)]
struct Expected {
    answered: Option<(u64, usize)>,
    maybe: Vec<(u64, usize)>,
}

#[derive(Default)]
struct Model {
    files: Mutex<HashMap<String, Expected>>,
    seeds: AtomicU64,
    answered: AtomicU64,
}

impl Model {
    /// Uploads once, and keeps book.
    fn upload(&self, address: &str, name: &str, length: usize) -> bool {
        let seed = self.seeds.fetch_add(1, Ordering::Relaxed) + 1;
        self.files.lock().unwrap().entry(name.to_owned()).or_default().maybe.push((seed, length));
        let answer = put(address, &format!("/crash/{name}"), &bytes(seed, length));
        let done = matches!(&answer, Ok(answer) if answer.status == 200 || answer.status == 201);
        if done {
            let mut files = self.files.lock().unwrap();
            let expected = files.get_mut(name).unwrap();
            expected.answered = Some((seed, length));
            expected.maybe.clear();
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
        done
    }

    /// Compares what is stored under the given names with what may be there.
    fn check(&self, address: &str, names: &[String]) {
        for name in names {
            let expected = self.files.lock().unwrap()[name].clone();
            let answer = get(address, &format!("/crash/{name}")).unwrap();
            match answer.status {
                200 => {
                    let mut may = expected.maybe.clone();
                    may.extend(expected.answered);
                    let fits = may.iter().any(|(seed, length)| {
                        *length == answer.body.len() && bytes(*seed, *length) == answer.body
                    });
                    assert!(
                        fits,
                        "{name}: {} bytes that were never uploaded under that name",
                        answer.body.len()
                    );
                }
                404 => assert!(expected.answered.is_none(), "{name}: an answered upload is lost"),
                status => panic!("{name}: {status} {}", String::from_utf8_lossy(&answer.body)),
            }
        }
    }
}

#[test]
fn nothing_answered_is_lost_when_a_node_is_killed_in_the_middle_of_uploads() {
    let rounds: u64 = std::env::var("REEL_CRASH_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(20);
    let base = Base::start();
    let config = base.storage_config(101, "node", "lease = 64");
    let model = Arc::new(Model::default());
    let mut node = Role::start("storage", base.dir.path(), &config).unwrap();
    crate::harness::wait_healthy(&node.address);
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..6u64)
            .map(|writer| {
                let (model, stop, address) =
                    (Arc::clone(&model), Arc::clone(&stop), node.address.clone());
                std::thread::spawn(move || {
                    let mut count = 0;
                    while !stop.load(Ordering::Relaxed) {
                        count += 1;
                        let done = match writer {
                            0 => model.upload(
                                &address,
                                &format!("large-{round}-{count}"),
                                3_000_000 + count,
                            ),
                            1 => model.upload(
                                &address,
                                &format!("replaced-{}", count % 5),
                                10_000 + count,
                            ),
                            _ => model.upload(
                                &address,
                                &format!("small-{round}-{writer}-{count}"),
                                100 * count,
                            ),
                        };
                        if !done {
                            break;
                        }
                    }
                })
            })
            .collect();
        // Not a wait for anything: the moment of the crash is what varies.
        std::thread::sleep(Duration::from_millis(40 + round * 37 % 300));
        node.kill();
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().unwrap();
        }
        node = Role::start("storage", base.dir.path(), &config).unwrap();
        slowest = slowest.max(first_answer(&node));
        let mut names: Vec<String> = model.files.lock().unwrap().keys().cloned().collect();
        names.sort();
        // All of this round and of the names that are replaced; a share of the older ones.
        let this = format!("-{round}-");
        let chosen: Vec<String> = names
            .into_iter()
            .enumerate()
            .filter(|(at, name)| {
                name.contains(&this)
                    || name.starts_with("replaced")
                    || (*at as u64 + round).is_multiple_of(16)
            })
            .map(|(_, name)| name)
            .collect();
        model.check(&node.address, &chosen);
        crate::harness::wait_healthy(&node.address);
    }
    let names: Vec<String> = model.files.lock().unwrap().keys().cloned().collect();
    model.check(&node.address, &names);
    println!(
        "{rounds} rounds of kill -9: {} uploads answered, {} names, 0 lost, 0 wrong, 0 half; slowest start to first answer {slowest:?}",
        model.answered.load(Ordering::Relaxed),
        names.len()
    );
    assert!(slowest < Duration::from_secs(1), "a restart took {slowest:?} to serve");
}

/// From the start of the process to its first answer to a read.
fn first_answer(node: &Role) -> Duration {
    crate::harness::eventually("the node answers a read", || {
        get(&node.address, "/crash/replaced-1")
            .ok()
            .filter(|answer| answer.status == 200 || answer.status == 404)
    });
    Instant::now() - node.started
}
