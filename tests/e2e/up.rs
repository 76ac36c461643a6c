//! `reel up` and the client commands, as a newcomer uses them.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::harness::{Up, bytes, eventually, get, kill, put, reel};

#[test]
fn the_full_picture_is_printed_and_stops_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let up = Up::start(
        &data,
        &[
            "--replicas",
            "2",
            "--groups",
            "2",
            "--trackers",
            "3",
            "--http-servers",
            "2",
            "--shards",
            "1",
        ],
    );
    let processes = up.processes();
    let count = |role: &str| processes.iter().filter(|process| process.role == role).count();
    assert_eq!((count("tracker"), count("id"), count("storage"), count("http")), (3, 1, 4, 2));
    for process in &processes {
        assert!(
            up.lines
                .iter()
                .any(|line| line.contains(&process.name) && line.contains(&process.address)),
            "{}",
            process.name
        );
        assert!(data.join("logs").join(format!("{}.log", process.name)).exists());
    }
    assert_eq!(up.lines.last().unwrap(), &format!("ready http://{}", up.http()));
    let mode = std::fs::metadata(data.join("client.toml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = reel().args(["up", "--data"]).arg(&data).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another `reel up` runs there"));
    put(&up.http(), "/ann/kept", &bytes(1, 100_000)).unwrap();
    let (took, code) = up.stop();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(10), "it stopped in {took:?}");
    for process in processes {
        assert!(
            rustix::process::test_kill_process(
                rustix::process::Pid::from_raw(process.pid).unwrap()
            )
            .is_err(),
            "{} is left",
            process.name
        );
    }
    let up = Up::start(
        &data,
        &[
            "--replicas",
            "2",
            "--groups",
            "2",
            "--trackers",
            "3",
            "--http-servers",
            "2",
            "--shards",
            "1",
        ],
    );
    assert!(get(&up.http(), "/ann/kept").unwrap().body == bytes(1, 100_000));
}

#[test]
fn an_upload_in_progress_is_finished_by_a_stop() {
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let up = Up::start(&data, &["--shards", "1"]);
    let body = bytes(6, 4_000_000);
    let mut stream = std::net::TcpStream::connect(up.http()).unwrap();
    stream
        .write_all(
            format!("PUT /ann/late HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len())
                .as_bytes(),
        )
        .unwrap();
    stream.write_all(&body[..2_000_000]).unwrap();
    let stopping = std::thread::spawn(move || up.stop());
    // The stop is under way while the second half is sent.
    std::thread::sleep(Duration::from_millis(300));
    stream.write_all(&body[2_000_000..]).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 201");
    let (took, code) = stopping.join().unwrap();
    assert!(code == Some(0) && took < Duration::from_secs(10), "{took:?}");
    let up = Up::start(&data, &["--shards", "1"]);
    assert!(get(&up.http(), "/ann/late").unwrap().body == body);
}

#[test]
fn children_do_not_outlive_a_killed_up() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &["--shards", "1"]);
    let processes = up.processes();
    kill(up.pid());
    for process in processes {
        eventually(&format!("{} ends", process.name), || {
            rustix::process::test_kill_process(rustix::process::Pid::from_raw(process.pid).unwrap())
                .is_err()
                .then_some(())
        });
    }
    drop(up);
    Up::start(dir.path(), &["--shards", "1"]);
}

#[test]
fn the_client_commands() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("data"), &["--shards", "1"]);
    let file = dir.path().join("film.mp4");
    let whole = bytes(8, 2_345_678);
    std::fs::write(&file, &whole).unwrap();
    let ok = |arguments: &[&str]| {
        let output = up.client(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    };
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_slice(&ok(arguments)).unwrap()
    };
    let path = file.to_str().unwrap();
    let stored = json(&["put", path, "--user", "ann", "--json"]);
    assert_eq!(stored["bytes"], 2_345_678);
    assert_eq!(json(&["stat", "ann/film.mp4", "--json"])["type"], "video/mp4");
    assert!(ok(&["get", "ann/film.mp4", "-o", "-"]) == whole);
    assert!(ok(&["get", "ann/film.mp4", "-o", "-", "--range", "1000-1999"]) == whole[1000..2000]);
    let partial = dir.path().join("partial");
    std::fs::write(&partial, &whole[..1_000_000]).unwrap();
    ok(&["get", "ann/film.mp4", "-o", partial.to_str().unwrap(), "--continue"]);
    assert!(std::fs::read(&partial).unwrap() == whole);
    std::fs::write(&partial, vec![0; 5]).unwrap();
    assert!(
        !up.client(&["get", "ann/film.mp4", "-o", partial.to_str().unwrap(), "--continue"])
            .status
            .success(),
        "another beginning is noticed"
    );
    let url = String::from_utf8(ok(&["url", "ann/film.mp4"])).unwrap();
    assert_eq!(url.trim(), format!("http://{}/ann/film.mp4", up.http()));
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("a/b")).unwrap();
    for (at, name) in ["x.m3u8", "a/1.ts", "a/b/2.ts"].iter().enumerate() {
        std::fs::write(tree.join(name), bytes(at as u64, 1000 + at)).unwrap();
    }
    let tree = tree.to_str().unwrap();
    assert_eq!(json(&["import", tree, "--user", "bob", "--json"])["uploaded"], 3);
    let again = json(&["import", tree, "--user", "bob", "--json"]);
    assert_eq!((again["uploaded"].as_u64(), again["equal"].as_u64()), (Some(0), Some(3)));
    let names: Vec<String> = String::from_utf8(ok(&["ls", "bob", "--json"]))
        .unwrap()
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["name"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(names, ["a/1.ts", "a/b/2.ts", "x.m3u8"]);
    assert_eq!(json(&["groups", "--json"])["groups"][0]["active"], 1);
    assert_eq!(json(&["nodes", "--json"])["nodes"][0]["state"], "active");
    ok(&["rm", "bob/a/1.ts", "bob/x.m3u8"]);
    assert_eq!(up.client(&["rm", "bob/x.m3u8"]).status.code(), Some(1));
}

#[test]
fn standard_input_is_uploaded_in_chunks() {
    use std::io::Write;
    use std::process::Stdio;
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &["--shards", "1"]);
    let body = bytes(11, 3_333_333);
    let mut child = reel()
        .args(["put", "-", "--user", "ann", "--name", "from/stdin", "--config"])
        .arg(dir.path().join("client.toml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&body).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(get(&up.http(), "/ann/from/stdin").unwrap().body == body);
}

#[test]
fn help_pages_man_pages_and_completions_come_from_one_place() {
    for arguments in [
        &["--version"][..],
        &["--help"],
        &["up", "--help"],
        &["man"],
        &["completions", "bash"],
        &["config", "example", "storage"],
    ] {
        let output = reel().args(arguments).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{arguments:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("storage.toml");
    std::fs::write(&path, reel().args(["config", "example", "storage"]).output().unwrap().stdout)
        .unwrap();
    assert!(reel().args(["config", "check"]).arg(&path).status().unwrap().success());
    std::fs::write(
        &path,
        "[storage]\nid = 1\ngroup = 1\nlisten = \"127.0.0.1:1\"\ndata = \"d\"\nshard = 2\n",
    )
    .unwrap();
    let bad = reel().args(["config", "check"]).arg(&path).output().unwrap();
    assert_eq!(bad.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("storage.toml:6: shard: unknown field"));
}
