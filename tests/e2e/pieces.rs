//! Whoever asks for nothing but large parts of files is answered by the reactor: as by a connection's own task.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use crate::gateway::lines;
use crate::harness::{Base, bytes, delete, eventually, get, put, read_answer, signal};
use crate::protocol::at_both;

#[test]
fn pieces_are_answered_alike_from_the_first_to_the_last() {
    at_both(|at| {
        let film = bytes(5, 3_000_000);
        put(at, "/ann/film.mp4", &film).unwrap();
        put(at, "/ann/part.m4s", &film[..1_500_000]).unwrap();
        // In memory: what is cold is not read in turn.
        for name in ["film.mp4", "part.m4s"] {
            assert_eq!(get(at, &format!("/ann/{name}")).unwrap().status, 200);
        }
        let mut stream = TcpStream::connect(at).unwrap();
        let mut ask = |what: &str| {
            stream.write_all(format!("{what}\r\nHost: h\r\n\r\n").as_bytes()).unwrap();
            let mut answer = read_answer(&mut stream, what.starts_with("HEAD")).unwrap();
            assert!(answer.fields.remove("date").is_some_and(|date| date.ends_with(" GMT")));
            // An HTTP server gives each its own.
            answer.fields.remove("x-request-id");
            answer
        };
        let part = "GET /ann/film.mp4 HTTP/1.1\r\nRange: bytes=";
        let pieces = [
            (206, format!("{part}1000-700999"), &film[1000..701_000]),
            (206, format!("{part}-500000"), &film[2_500_000..]),
            (206, format!("{part}2100000-"), &film[2_100_000..]),
            (200, "GET /ann/part.m4s HTTP/1.1".to_owned(), &film[..1_500_000]),
            // More than goes in one turn.
            (200, "GET /ann/film.mp4 HTTP/1.1".to_owned(), &film),
        ];
        for (status, what, expected) in &pieces {
            let first = ask(what);
            assert!(first.status == *status && first.body == **expected, "{what}");
            // From the third on the reactor answers what it can.
            for _ in 0..5 {
                let again = ask(what);
                assert_eq!((again.status, &again.fields), (*status, &first.fields));
                assert!(again.body == **expected, "{what}");
            }
        }
        // Between pieces, what is not one.
        let etag = ask(&pieces[0].1).field("etag").to_owned();
        let others = [
            (304, format!("{}\r\nIf-None-Match: {etag}", pieces[0].1)),
            (412, format!("{}\r\nIf-Match: \"other\"", pieces[0].1)),
            (200, format!("{}\r\nIf-Range: \"other\"", pieces[0].1)),
            (206, format!("{}\r\nIf-Range: {etag}", pieces[0].1)),
            (416, format!("{part}3000000-")),
            (206, format!("{part}0-9,700000-1399999")),
            (206, format!("{part}0-9")),
            (200, "HEAD /ann/film.mp4 HTTP/1.1".to_owned()),
            (404, "GET /ann/none HTTP/1.1\r\nRange: bytes=0-499999".to_owned()),
        ];
        for (status, what) in others {
            for _ in 0..3 {
                assert!(ask(&pieces[0].1).body == *pieces[0].2);
            }
            assert_eq!(ask(&what).status, status, "{what}");
        }
        // Replaced: the old bytes are not used any more.
        for _ in 0..3 {
            ask(&pieces[0].1);
        }
        let other = bytes(6, 3_000_000);
        put(at, "/ann/film.mp4", &other).unwrap();
        assert!(ask(&pieces[0].1).body == other[1000..701_000]);
        assert_eq!(delete(at, "/ann/film.mp4").unwrap().status, 204);
        assert_eq!(ask(&pieces[0].1).status, 404);
    });
}

/// A connection that takes a little at a time.
fn slow(address: &str) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_recv_buffer_size(&fd, 8192).unwrap();
    connect(&fd, &address.parse::<SocketAddrV4>().unwrap()).unwrap();
    TcpStream::from(fd)
}

#[test]
fn who_reads_a_piece_slowly_gets_all_of_it_though_the_node_stops() {
    let base = Base::start();
    let log = base.dir.path().join("log");
    let more =
        format!("limits.stop_grace = \"60 s\"\n[storage.access_log]\nfile = \"{}\"", log.display());
    let node = base.storage(101, "a", &more);
    let film = bytes(9, 3_000_000);
    put(&node.address, "/ann/film", &film).unwrap();
    let piece = &film[500_000..2_500_000];
    let ask = b"GET /ann/film HTTP/1.1\r\nHost: h\r\nRange: bytes=500000-2499999\r\n\r\n";
    let mut viewers = [slow(&node.address), slow(&node.address)];
    for viewer in &mut viewers {
        for _ in 0..3 {
            viewer.write_all(ask).unwrap();
            assert!(read_answer(viewer, false).unwrap().body == piece);
        }
    }
    let [mut stays, mut goes] = viewers;
    // More than the kernel takes for it; most requests come one by one.
    for _ in 0..4 {
        goes.write_all(ask).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut first = vec![0; 1000];
    goes.read_exact(&mut first).unwrap();
    drop(goes);
    let broken_off = eventually("the one that goes away is written down", || {
        lines(&log, "/ann/film", 8).into_iter().find(|line| line["status"] == 499)
    });
    assert!(broken_off["sent"].as_u64().unwrap() < piece.len() as u64);
    stays.write_all(ask).unwrap();
    stays.read_exact(&mut first).unwrap();
    signal(node.pid(), rustix::process::Signal::TERM);
    std::thread::sleep(Duration::from_millis(300));
    stays.read_to_end(&mut first).unwrap();
    assert!(read_answer(&mut &first[..], false).unwrap().body == piece, "every byte");
    node.wait();
    let about = lines(&log, "/ann/film", 9);
    let parts: Vec<_> = about.iter().filter(|line| line["status"] == 206).collect();
    assert!(parts.len() >= 7, "{about:?}");
    assert!(parts.iter().all(|line| line["sent"] == first.len()), "{parts:?}");
    assert!(parts.iter().all(|line| line["range"] == "bytes=500000-2499999"));
}
