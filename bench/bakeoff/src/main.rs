//! `reel-bakeoff RUNTIME ADDRESS`: answers every request with 4 KiB from memory, on one thread.
//!
//! The same work on each runtime: read until the head is whole, write one buffer. `bakeoff.sh` runs
//! them in turn on one core with wrk on another, and prints CPU per request.

use std::net::SocketAddr;

const BODY: usize = 4096;

fn response() -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: {BODY}\r\n\r\n").into_bytes();
    bytes.resize(bytes.len() + BODY, b'x');
    bytes
}

/// Whether what was read so far ends a request (wrk sends one at a time).
fn is_whole(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\r\n\r\n")
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, runtime, address] = arguments.as_slice() else {
        eprintln!("usage: reel-bakeoff monoio|tokio-uring|glommio|tokio ADDRESS");
        std::process::exit(2);
    };
    let address: SocketAddr = address.parse().expect("an address");
    match runtime.as_str() {
        "monoio" => on_monoio(address),
        "tokio-uring" => on_tokio_uring(address),
        "glommio" => on_glommio(address),
        "tokio" => on_tokio(address),
        other => panic!("no runtime {other}"),
    }
}

fn on_monoio(address: SocketAddr) {
    use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build().expect("io_uring");
    runtime.block_on(async move {
        let listener = monoio::net::TcpListener::bind(address).expect("bind");
        loop {
            let (mut stream, _) = listener.accept().await.expect("accept");
            monoio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let (mut input, mut output) = (vec![0u8; 4096], response());
                loop {
                    let (read, back) = stream.read(input).await;
                    input = back;
                    let Ok(read @ 1..) = read else { return };
                    if is_whole(&input[..read]) {
                        let (written, back) = stream.write_all(output).await;
                        output = back;
                        if written.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
}

fn on_tokio_uring(address: SocketAddr) {
    tokio_uring::start(async move {
        let listener = tokio_uring::net::TcpListener::bind(address).expect("bind");
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            tokio_uring::spawn(async move {
                let _ = stream.set_nodelay(true);
                let (mut input, mut output) = (vec![0u8; 4096], response());
                loop {
                    let (read, back) = stream.read(input).await;
                    input = back;
                    let Ok(read @ 1..) = read else { return };
                    if is_whole(&input[..read]) {
                        let (written, back) = stream.write_all(output).await;
                        output = back;
                        if written.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
}

fn on_glommio(address: SocketAddr) {
    use futures_lite::io::{AsyncReadExt, AsyncWriteExt};
    let executor = glommio::LocalExecutorBuilder::default().make().expect("io_uring");
    executor.run(async move {
        let listener = glommio::net::TcpListener::bind(address).expect("bind");
        loop {
            let mut stream = listener.accept().await.expect("accept");
            glommio::spawn_local(async move {
                let _ = stream.set_nodelay(true);
                let (mut input, output) = (vec![0u8; 4096], response());
                loop {
                    let Ok(read @ 1..) = stream.read(&mut input).await else { return };
                    if is_whole(&input[..read]) && stream.write_all(&output).await.is_err() {
                        return;
                    }
                }
            })
            .detach();
        }
    });
}

fn on_tokio(address: SocketAddr) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("epoll");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let listener = tokio::net::TcpListener::bind(address).await.expect("bind");
        loop {
            let (mut stream, _) = listener.accept().await.expect("accept");
            tokio::task::spawn_local(async move {
                let _ = stream.set_nodelay(true);
                let (mut input, output) = (vec![0u8; 4096], response());
                loop {
                    let Ok(read @ 1..) = stream.read(&mut input).await else { return };
                    if is_whole(&input[..read]) && stream.write_all(&output).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
}
