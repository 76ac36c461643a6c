//! Keepalived's configuration for machines that share an address. The text stands in
//! `tuning/keepalived/keepalived.conf`, with the reasons for its times.

use std::fmt::Write;
use std::net::IpAddr;

use crate::cli::{KeepalivedArgs, SharedRole};

const TEMPLATE: &str = include_str!("../tuning/keepalived/keepalived.conf");

/// The configuration; `Err` says which argument is wrong.
pub fn config(args: &KeepalivedArgs) -> Result<String, String> {
    let (address, length) = args
        .address
        .split_once('/')
        .and_then(|(ip, length)| Some((ip.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?)))
        .ok_or_else(|| {
            format!("--address {}: not IP/LEN, for example 192.0.2.10/24", args.address)
        })?;
    if length > if address.is_ipv4() { 32 } else { 128 } {
        return Err(format!("--address {}: the prefix length is too large", args.address));
    }
    if args.peers.contains(&args.own) {
        return Err(format!("--peer {}: is --own; name only the other machines", args.own));
    }
    let (role, router_id) = match args.role {
        SharedRole::Http => ("http", 51),
        SharedRole::Tracker => ("tracker", 52),
    };
    let reel = std::env::current_exe().unwrap_or_else(|_| "/usr/local/bin/reel".into());
    let mut peers = String::new();
    for peer in &args.peers {
        let _ = write!(peers, "{}{peer}", if peers.is_empty() { "" } else { "\n        " });
    }
    let own = match args.own {
        IpAddr::V4(own) => own.to_string(),
        IpAddr::V6(own) => format!("[{own}]"),
    };
    Ok(TEMPLATE
        .replace("@ROLE@", role)
        .replace("@TARGET@", &format!("{own}:{}", args.port))
        .replace("@REEL@", &reel.display().to_string())
        .replace("@ROUTER_ID@", &args.router_id.unwrap_or(router_id).to_string())
        .replace("@PRIORITY@", &args.priority.to_string())
        .replace("@INTERFACE@", &args.interface)
        .replace("@OWN@", &args.own.to_string())
        .replace("@PEERS@", &peers)
        .replace("@ADDRESS@", &args.address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(address: &str, peer: &str) -> KeepalivedArgs {
        KeepalivedArgs {
            role: SharedRole::Http,
            address: address.to_owned(),
            port: 80,
            interface: "eth0".to_owned(),
            own: IpAddr::from([192, 0, 2, 1]),
            peers: vec![peer.parse().expect("an address")],
            priority: 150,
            router_id: None,
        }
    }

    #[test]
    fn every_place_is_filled() {
        let text = config(&args("192.0.2.10/24", "192.0.2.2")).expect("good");
        let place = text.split('@').skip(1).find(|rest| rest.starts_with(char::is_uppercase));
        assert_eq!(place, None);
        assert!(text.contains("health 192.0.2.1:80 ") && text.contains("192.0.2.10/24"));
    }

    #[test]
    fn wrong_addresses_are_named() {
        for (address, peer) in [
            ("192.0.2.10", "192.0.2.2"),
            ("192.0.2.10/33", "192.0.2.2"),
            ("host/24", "192.0.2.2"),
            ("192.0.2.10/24", "192.0.2.1"),
        ] {
            let error = config(&args(address, peer)).expect_err(address);
            assert!(error.contains("--address") || error.contains("--peer"), "{error}");
        }
    }
}
