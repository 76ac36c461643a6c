//! Which processes there are, where they listen, and their configurations.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::net;

use crate::cli::UpArgs;
use crate::output::Failure;

/// One process to run.
#[derive(Debug, Clone)]
pub struct Process {
    /// `tracker`, `id`, `storage` or `http`.
    pub role: &'static str,
    /// Its name, unique in the cluster.
    pub name: String,
    /// Where it speaks HTTP.
    pub address: SocketAddr,
    /// Its folder.
    pub data: PathBuf,
    /// Its configuration's text.
    pub config: String,
}

/// All of them.
#[derive(Debug)]
pub struct Plan {
    /// The cluster's folder.
    pub data: PathBuf,
    /// In the order to start them.
    pub processes: Vec<Process>,
    /// Sockets that keep the ports for the children while this process runs: bound, shared, and
    /// not listening.
    _ports: Vec<OwnedFd>,
}

impl Plan {
    /// Chooses names and ports.
    pub fn make(args: &UpArgs) -> Result<Self, Failure> {
        let data = std::path::absolute(&args.data)
            .map_err(|error| Failure::failed(format!("{}: {error}", args.data.display())))?;
        if TcpListener::bind(args.http).is_err() {
            return Err(Failure::failed(format!(
                "{} is in use by another server: stop it, or give another --http",
                args.http
            )));
        }
        let mut ports = Vec::new();
        let mut reserve = |address: SocketAddr| -> Result<SocketAddr, Failure> {
            let (socket, address) =
                reserve(address).map_err(|error| Failure::failed(format!("{address}: {error}")))?;
            ports.push(socket);
            Ok(address)
        };
        let any = SocketAddr::new(args.http.ip(), 0);
        let mut names: Vec<(&'static str, String, SocketAddr, (u32, u32))> = Vec::new();
        for tracker in 1..=args.trackers {
            names.push(("tracker", format!("tracker-{tracker}"), reserve(any)?, (0, 0)));
        }
        names.push(("id", "id-1".to_owned(), reserve(any)?, (0, 0)));
        for group in 1..=args.groups {
            for replica in 1..=args.replicas {
                names.push((
                    "storage",
                    format!("storage-{group}-{replica}"),
                    reserve(any)?,
                    (group, replica),
                ));
            }
        }
        for server in 1..=args.http_servers {
            let address = if server == 1 { args.http } else { any };
            names.push(("http", format!("http-{server}"), reserve(address)?, (0, 0)));
        }
        let of = |role: &str| -> Vec<String> {
            names
                .iter()
                .filter(|(known, ..)| *known == role)
                .map(|(.., address, _)| address.to_string())
                .collect()
        };
        let catalog = match &args.catalog {
            Some(url) => url.clone(),
            None => format!("sqlite:{}", data.join("catalog.db").display()),
        };
        let common =
            Common {
                trackers: of("tracker"),
                id_servers: of("id"),
                catalog,
                ack: args.ack.clone(),
                shared: match &args.shared {
                    Some(mount) => Some(std::path::absolute(mount).map_err(|error| {
                        Failure::failed(format!("{}: {error}", mount.display()))
                    })?),
                    None => None,
                },
                shards: args.shards,
            };
        let processes = names
            .into_iter()
            .map(|(role, name, address, place)| {
                let folder = data.join(&name);
                let config = common.config(role, &name, address, &folder, place);
                Process { role, name, address, data: folder, config }
            })
            .collect();
        Ok(Self { data, processes, _ports: ports })
    }

    /// Where the first HTTP server listens.
    pub fn first_http(&self) -> SocketAddr {
        let first = self.processes.iter().find(|process| process.role == "http");
        first.map_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)), |process| process.address)
    }

    /// Where a process's configuration lies.
    pub fn config_path(&self, process: &Process) -> PathBuf {
        self.data.join("config").join(format!("{}.toml", process.name))
    }

    /// Writes the configurations of all, and the client's.
    pub fn write(&self) -> Result<(), Failure> {
        for folder in ["config", "logs"] {
            let folder = self.data.join(folder);
            std::fs::create_dir_all(&folder)
                .map_err(|error| Failure::failed(format!("{}: {error}", folder.display())))?;
        }
        for process in &self.processes {
            write_private(&self.config_path(process), &process.config)?;
        }
        let list = |role: &str| -> Vec<String> {
            self.processes
                .iter()
                .filter(|process| process.role == role)
                .map(|process| process.address.to_string())
                .collect()
        };
        let client = format!(
            "# Written by `reel up`: where the client finds the cluster.\ntrackers = {:?}\nhttp = {:?}\n",
            list("tracker"),
            list("http")
        );
        write_private(&self.data.join("client.toml"), &client)
    }
}

/// Replaces a file that only its owner may read.
pub fn write_private(path: &Path, text: &str) -> Result<(), Failure> {
    let beside = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
}

/// Binds a port without listening, so that children can share it and nobody else gets it.
fn reserve(address: SocketAddr) -> std::io::Result<(OwnedFd, SocketAddr)> {
    let family =
        if address.is_ipv6() { net::AddressFamily::INET6 } else { net::AddressFamily::INET };
    let socket =
        net::socket_with(family, net::SocketType::STREAM, net::SocketFlags::CLOEXEC, None)?;
    net::sockopt::set_socket_reuseport(&socket, true)?;
    net::sockopt::set_socket_reuseaddr(&socket, true)?;
    net::bind(&socket, &address)?;
    let address = SocketAddr::try_from(net::getsockname(&socket)?)?;
    Ok((socket, address))
}

struct Common {
    trackers: Vec<String>,
    id_servers: Vec<String>,
    catalog: String,
    ack: String,
    /// The volume that keeps the copies.
    shared: Option<PathBuf>,
    shards: Option<u32>,
}

impl Common {
    fn config(
        &self,
        role: &str,
        name: &str,
        address: SocketAddr,
        data: &Path,
        place: (u32, u32),
    ) -> String {
        let (trackers, ids, catalog) = (&self.trackers, &self.id_servers, &self.catalog);
        let mut text = format!(
            "# Written by `reel up` for {name}.\ncluster = \"reel\"\ntrackers = {trackers:?}\nid_servers = {ids:?}\ncatalog = {catalog:?}\n\n[{role}]\nlisten = \"{address}\"\n"
        );
        if role == "storage" {
            let (group, replica) = place;
            let ack = if self.ack == "all" { "\"all\"".to_owned() } else { self.ack.clone() };
            let (data, replication) = match &self.shared {
                Some(mount) => (mount.join(format!("group-{group}")), "shared"),
                None => (data.to_owned(), "pull"),
            };
            let _ = write!(
                text,
                "id = {}\nname = \"{name}\"\ngroup = {group}\ndata = {data:?}\nreplication = \"{replication}\"\nack = {ack}\n",
                group * 100 + replica
            );
        }
        if role == "id" {
            let _ = writeln!(text, "mark = {:?}", data.join("mark"));
        }
        if let (Some(shards), "storage" | "http") = (self.shards, role) {
            let _ = writeln!(text, "shards = {shards}");
        }
        text
    }
}
