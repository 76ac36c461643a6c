//! A node is killed in the middle of a body: the HTTP server goes on at another one, and the client gets
//! every byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::{Up, bytes, eventually, get, kill, put};

/// Downloads; `REEL_RESUMES` asks for more.
const DOWNLOADS: usize = 8;
/// Bytes of the film: more than all buffers on the way hold.
const FILM: usize = 40_000_000;

/// Reads a film through the HTTP server, kills the node that sends it after `kill_at` bytes, and returns the
/// longest time that the client waited for a byte after that.
fn download(up: &Up, film: &[u8], kill_at: usize) -> Duration {
    let mut stream = TcpStream::connect(up.http()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET /ann/film HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut reader = BufReader::with_capacity(64 << 10, stream);
    let mut node = String::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("reel-node:") {
            node = value.trim().to_owned();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    // Node 101 is `storage-1-1`.
    let name = format!("storage-{}-{}", &node[..1], node[1..].trim_start_matches('0'));
    let victim = up.of("storage").into_iter().find(|process| process.name == name);
    let victim = victim.unwrap_or_else(|| panic!("{name} of {node:?} is not in up.json"));
    let mut body = vec![0; film.len()];
    let mut done = 0;
    let mut killed = false;
    let mut longest = Duration::ZERO;
    while done < film.len() {
        if done >= kill_at && !killed {
            kill(victim.pid);
            killed = true;
        }
        let asked = Instant::now();
        let read = reader.read(&mut body[done..]).unwrap();
        assert!(read > 0, "broke off after {done} bytes");
        if killed {
            longest = longest.max(asked.elapsed());
        }
        done += read;
    }
    assert!(body == film, "every byte as it was uploaded");
    // It comes back, and both serve again before the next one dies.
    eventually("the node is back", || {
        let now = up.of("storage").into_iter().find(|process| process.name == name)?;
        (now.pid != victim.pid && get(&now.address, "/-/health").ok()?.status == 200).then_some(())
    });
    longest
}

#[test]
fn downloads_whose_node_is_killed_end_bit_equal() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &["--replicas", "2", "--ack", "all", "--shards", "1"]);
    let film = bytes(11, FILM);
    eventually("both nodes take it", || {
        put(&up.http(), "/ann/film", &film).ok().filter(|answer| answer.status < 300)
    });
    let count = std::env::var("REEL_RESUMES").ok().and_then(|count| count.parse().ok());
    let count: usize = count.unwrap_or(DOWNLOADS);
    let mut pauses: Vec<Duration> = (0..count)
        .map(|index| download(&up, &film, 1_000_000 + index * 7_654_321 % (FILM / 2)))
        .collect();
    pauses.sort();
    println!(
        "{count} of {count} downloads whose node was killed in mid-body are bit-equal; longest pause a client saw: median {:?}, worst {:?}",
        pauses[count / 2],
        pauses[count - 1]
    );
}
