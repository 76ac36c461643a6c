//! `reel health`: asks a role how it is, once or again and again for Keepalived.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cli::HealthArgs;
use crate::output::{Failure, say};

/// Bytes of an answer that are looked at: its status line stands at the beginning.
const BEGINNING: usize = 64;

pub fn run(args: &HealthArgs) -> Result<(), Failure> {
    let Some(file) = &args.track else {
        return match check(&args.address, args.timeout.0) {
            Ok(()) => {
                say(format_args!("{} is well", args.address));
                Ok(())
            }
            Err(reason) => Err(Failure::failed(format!("{}: {reason}", args.address))),
        };
    };
    track(args, file)
}

/// Writes 0 into the file while all is well, else 1, for ever: whenever that changes, and at the start.
fn track(args: &HealthArgs, file: &Path) -> Result<(), Failure> {
    let mut said = None;
    loop {
        let begun = Instant::now();
        let checked = check(&args.address, args.timeout.0);
        if said != Some(checked.is_ok()) {
            let value = if checked.is_ok() { "0\n" } else { "1\n" };
            std::fs::write(file, value)
                .map_err(|error| Failure::failed(format!("{}: {error}", file.display())))?;
            match &checked {
                Ok(()) => say(format_args!("{} is well", args.address)),
                Err(reason) => say(format_args!("{}: {reason}", args.address)),
            }
            said = Some(checked.is_ok());
        }
        std::thread::sleep(args.every.0.saturating_sub(begun.elapsed()));
    }
}

fn check(address: &str, timeout: Duration) -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    let deadline = Instant::now() + timeout;
    let target = address.to_socket_addrs().map_err(failed)?.next().ok_or("no such address")?;
    let mut stream = TcpStream::connect_timeout(&target, timeout).map_err(failed)?;
    // A wait of zero would mean for ever.
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_write_timeout(Some(left())).map_err(failed)?;
    let request = format!("GET /-/health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = [0; BEGINNING];
    let mut length = 0;
    while length < answer.len() && !answer[..length].contains(&b'\n') {
        stream.set_read_timeout(Some(left())).map_err(failed)?;
        match stream.read(&mut answer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err(format!("no answer within {timeout:?}"));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    let line = String::from_utf8_lossy(&answer[..length]);
    match line.split_whitespace().nth(1) {
        Some("200") => Ok(()),
        Some(status) => Err(format!("answers {status}")),
        None => Err("closes the connection".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn answering(answer: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut request = [0; 16];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer);
            if answer.is_empty() {
                std::thread::sleep(Duration::from_secs(5));
            }
        });
        address
    }

    #[test]
    fn a_status_tells() {
        let patience = Duration::from_secs(5);
        assert_eq!(check(&answering(b"HTTP/1.1 200 OK\r\n\r\n"), patience), Ok(()));
        let away = check(&answering(b"HTTP/1.1 503 Service Unavailable\r\n\r\n"), patience);
        assert_eq!(away, Err("answers 503".to_owned()));
    }

    #[test]
    fn a_frozen_process_is_not_well() {
        let silent = check(&answering(b""), Duration::from_millis(100));
        assert!(silent.expect_err("silent").contains("no answer within"));
        assert!(check("127.0.0.1:1", Duration::from_secs(1)).is_err(), "nobody listens");
    }
}
