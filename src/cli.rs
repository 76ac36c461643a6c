//! Every subcommand and flag, once: help, completions and the man page come from here.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use reel_control::config::{ByteSize, Span};

/// Reelstore: a distributed store for media files that streams them over HTTP.
///
/// `reel up` starts a whole cluster on this machine. The client commands find it by --config,
/// REEL_CONFIG, REEL_TRACKERS (HOST:PORT,HOST:PORT) or ./reel-data/client.toml, in that order.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "reel", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What every client command takes.
#[derive(Debug, Clone, Args)]
pub struct ClientOptions {
    /// The client's configuration
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Prints JSON for programs instead of text for people
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Starts a whole cluster on this machine
    Up(UpArgs),
    /// Runs a tracker in the foreground
    Tracker(RoleArgs),
    /// Runs an ID server in the foreground
    Id(RoleArgs),
    /// Runs a storage node in the foreground
    Storage(RoleArgs),
    /// Runs an HTTP server (gateway) in the foreground
    Http(HttpArgs),
    /// Judges every byte of data folders that no process uses
    ///
    /// Exit codes: 0 clean, 1 something is wrong (each finding is a line) or could not be judged.
    Fsck(FsckArgs),
    /// Fills a catalog from the segments of data folders
    ///
    /// Stop the node first. Records carry user, name and version, so the highest version of each name
    /// wins, whatever is in the catalog; running it twice changes nothing.
    RebuildCatalog(RebuildCatalogArgs),
    /// Moves files from one group to another while everything runs
    ///
    /// Each file is copied and checked, then its row is switched, then the old object goes: readers find it at every
    /// moment. Ended in the middle, it is gone on with by running it again.
    Rebalance(RebalanceArgs),
    /// Checks a configuration, or prints an example
    Config(ConfigArgs),
    /// Uploads files
    Put(PutArgs),
    /// Downloads a file
    Get(GetArgs),
    /// Shows what is known of a file
    Stat(TargetArgs),
    /// Deletes files
    Rm(RmArgs),
    /// Lists a user's files
    Ls(LsArgs),
    /// Uploads a folder tree
    Import(ImportArgs),
    /// Prints a file's URL
    Url(TargetArgs),
    /// Lists the groups
    Groups(ClientOptions),
    /// Says what becomes of new users and new files at one group
    Group(GroupArgs),
    /// Lists the storage nodes
    Nodes(ClientOptions),
    /// Does something about one storage node
    Node(NodeArgs),
    /// The cluster on one screen: groups, nodes, and what is wrong with them
    ///
    /// Exit codes: 0 all is well, 1 something is wrong (each problem is said, the worst first, with what to do).
    Status(ClientOptions),
    /// Compares the copies that the nodes of each group have
    ///
    /// By digests of slots, lengths and checksums: no payload is read (that is the scrub's, and `reel fsck`'s). Exit codes: 0
    /// all are equal, 1 some differ, or could not be compared.
    Verify(VerifyArgs),
    /// Asks a role whether it is well
    ///
    /// Exit codes: 0 it is, 1 it is not. With --track it goes on for ever, for Keepalived (`reel config keepalived`).
    Health(HealthArgs),
    /// Prints a completion script for a shell
    Completions(CompletionsArgs),
    /// Prints the man page
    Man(ManArgs),
}

impl Command {
    /// The options of a client command; `None` for the others.
    pub fn client_options(&self) -> Option<ClientOptions> {
        match self {
            Self::Put(args) => Some(args.client.clone()),
            Self::Get(args) => Some(args.client.clone()),
            Self::Stat(args) | Self::Url(args) => Some(args.client.clone()),
            Self::Rm(args) => Some(args.client.clone()),
            Self::Ls(args) => Some(args.client.clone()),
            Self::Import(args) => Some(args.client.clone()),
            Self::Node(args) => Some(args.client.clone()),
            Self::Group(args) => Some(args.client.clone()),
            Self::Rebalance(args) => Some(args.client.clone()),
            Self::Verify(args) => Some(args.client.clone()),
            Self::Groups(options) | Self::Nodes(options) | Self::Status(options) => {
                Some(options.clone())
            }
            _ => None,
        }
    }
}

#[derive(Debug, Args)]
pub struct UpArgs {
    /// Where everything is kept
    #[arg(long, default_value = "./reel-data", value_name = "DIR")]
    pub data: PathBuf,
    /// Where the first HTTP server listens
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub http: SocketAddr,
    /// Trackers
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=9))]
    pub trackers: u32,
    /// Groups of storage nodes
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=99))]
    pub groups: u32,
    /// Storage nodes in each group
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=9))]
    pub replicas: u32,
    /// HTTP servers
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=9))]
    pub http_servers: u32,
    /// The catalog, instead of an SQLite file in DIR: postgres://… or sqlite:PATH
    #[arg(long, value_name = "URL")]
    pub catalog: Option<String>,
    /// How many nodes of a group hold an upload before it is answered
    #[arg(long, default_value = "1", value_name = "N", value_parser = ["1", "2", "all"])]
    pub ack: String,
    /// A mounted volume that keeps the copies instead of the nodes (replication = "shared"): files lie in
    /// MOUNT/group-N
    #[arg(long, value_name = "MOUNT", conflicts_with = "ack")]
    pub shared: Option<PathBuf>,
    /// Shards of each storage node and HTTP server; one a core when left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub shards: Option<u32>,
}

#[derive(Debug, Args)]
pub struct RoleArgs {
    /// The role's configuration
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Ends when the parent process does (`reel up` sets it)
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

#[derive(Debug, Args)]
pub struct HttpArgs {
    #[command(flatten)]
    pub role: RoleArgs,
    /// Serves beside the one that has the address now, which is to be stopped next: its viewers finish there
    /// (`limits.stop_grace`), new ones come here
    #[arg(long)]
    pub take_over: bool,
}

#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Whom to ask for /-/health
    #[arg(value_name = "HOST:PORT")]
    pub address: String,
    /// How long the answer may take
    #[arg(long, default_value = "400 ms", value_name = "TIME")]
    pub timeout: Span,
    /// Writes 0 into FILE while all is well, else 1, for ever
    #[arg(long, value_name = "FILE")]
    pub track: Option<PathBuf>,
    /// From one question to the next, with --track
    #[arg(long, default_value = "200 ms", value_name = "TIME")]
    pub every: Span,
}

#[derive(Debug, Args)]
pub struct FsckArgs {
    /// A node's data folders
    #[arg(required = true, value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
    /// Makes missing and damaged slot tables, and damaged segment headers, anew first
    #[arg(long)]
    pub repair_tables: bool,
    /// Compares objects and rows too: sqlite:PATH or postgres://…
    #[arg(long, value_name = "URL")]
    pub catalog: Option<String>,
    /// Prints JSON for programs instead of text for people
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct RebuildCatalogArgs {
    /// A node's data folders
    #[arg(long, required = true, num_args = 1.., value_name = "DIR")]
    pub data: Vec<PathBuf>,
    /// The catalog: sqlite:PATH or postgres://…
    #[arg(long, value_name = "URL")]
    pub catalog: String,
    /// Prints JSON for programs instead of text for people
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub client: ClientOptions,
    /// All groups, all nodes
    #[arg(long, required = true)]
    pub cluster: bool,
}

#[derive(Debug, Args)]
pub struct NodeArgs {
    #[command(flatten)]
    pub client: ClientOptions,
    #[command(subcommand)]
    pub action: NodeAction,
}

#[derive(Debug, Subcommand)]
pub enum NodeAction {
    /// A node is to go: it takes no more uploads, and this waits until its peers hold all that it holds
    ///
    /// Readers of what it is sending finish. Then stop it (SIGTERM), and retire it. Started again, it takes uploads again.
    Drain {
        /// The node's id
        id: u32,
        /// How long to wait
        #[arg(long, default_value = "10 min", value_name = "TIME")]
        timeout: Span,
    },
    /// A node that is silent is gone for good: trackers forget it, and uploads wait for it no more
    ///
    /// Its group's other nodes hold what it held. An empty node with the same id takes its place without this: it fills
    /// itself up. Should a retired node ever start again, it joins again and catches up.
    Retire {
        /// The node's id
        id: u32,
    },
}

#[derive(Debug, Args)]
pub struct GroupArgs {
    #[command(flatten)]
    pub client: ClientOptions,
    #[command(subcommand)]
    pub action: GroupAction,
}

#[derive(Debug, Subcommand)]
pub enum GroupAction {
    /// Makes a group known before its nodes join
    ///
    /// Not needed otherwise: a group is there as soon as a node of it has joined.
    Create {
        /// The group
        group: u32,
        /// Percent of its share of new users; 0 for none
        #[arg(long, default_value_t = 100, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=10_000))]
        weight: u32,
        /// It takes no new files
        #[arg(long)]
        readonly: bool,
    },
    /// How many new users go to a group: percent of its share, which its free bytes say
    Weight {
        /// The group
        group: u32,
        /// 100 is as it comes, 0 none
        #[arg(value_parser = clap::value_parser!(u32).range(0..=10_000))]
        percent: u32,
    },
    /// A group takes no new files: those of its users go to other groups
    ///
    /// What is there is served as ever, and can be replaced elsewhere and deleted.
    Readonly {
        /// The group
        group: u32,
        /// It takes files again
        #[arg(long)]
        off: bool,
    },
}

#[derive(Debug, Args)]
pub struct RebalanceArgs {
    #[command(flatten)]
    pub client: ClientOptions,
    /// The group that has the files
    #[arg(long, value_name = "GROUP")]
    pub from: u32,
    /// The group that gets them
    #[arg(long, value_name = "GROUP")]
    pub to: u32,
    /// The catalog: sqlite:PATH or postgres://…
    #[arg(long, value_name = "URL")]
    pub catalog: String,
    /// Only this user's files; may be given several times
    #[arg(long = "user", value_name = "USER")]
    pub users: Vec<String>,
    /// Ends when about so much was moved, for example 100GiB
    #[arg(long, value_name = "SIZE")]
    pub bytes: Option<ByteSize>,
    /// Files that are moved at once
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: u16,
    /// Also sends new files of the users whose files were moved to the new group
    #[arg(long)]
    pub new_files: bool,
    /// Only says what would be moved
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub action: ConfigAction,
}

#[derive(Debug, Subcommand)]
pub enum ConfigAction {
    /// Checks a file; errors name file, line and key
    Check {
        /// The file
        file: PathBuf,
    },
    /// Prints a commented example
    Example {
        /// The role
        role: Role,
    },
    /// Prints Keepalived's configuration for one of the machines that share an address
    Keepalived(KeepalivedArgs),
}

#[derive(Debug, Args)]
pub struct KeepalivedArgs {
    /// What listens behind the address
    #[arg(long)]
    pub role: SharedRole,
    /// The shared address, with its prefix length
    #[arg(long, value_name = "IP/LEN")]
    pub address: String,
    /// The port that is asked for /-/health
    #[arg(long, value_name = "PORT")]
    pub port: u16,
    /// The network interface that gets the address
    #[arg(long, value_name = "NAME")]
    pub interface: String,
    /// This machine's own address
    #[arg(long, value_name = "IP")]
    pub own: std::net::IpAddr,
    /// The others' own addresses
    #[arg(long = "peer", required = true, value_name = "IP")]
    pub peers: Vec<std::net::IpAddr>,
    /// The highest one that is well has the address; no two machines have the same
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=254))]
    pub priority: u8,
    /// Unique among the shared addresses of a network; 51 for http and 52 for tracker when left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=255))]
    pub router_id: Option<u8>,
}

/// Roles that may share an address.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SharedRole {
    Http,
    Tracker,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Role {
    Tracker,
    Id,
    Storage,
    Http,
}

#[derive(Debug, Args)]
pub struct PutArgs {
    #[command(flatten)]
    pub client: ClientOptions,
    /// Files to upload; `-` is standard input (with --name)
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Whose files they become
    #[arg(long)]
    pub user: String,
    /// The name to store it under (one file only); the file's own name when left out
    #[arg(long)]
    pub name: Option<String>,
    /// The content type; guessed from the name when left out
    #[arg(long = "type", value_name = "TYPE")]
    pub content_type: Option<String>,
}

#[derive(Debug, Args)]
pub struct GetArgs {
    #[command(flatten)]
    pub client: ClientOptions,
    /// USER/NAME
    #[arg(value_name = "USER/NAME")]
    pub target: String,
    /// Where to write; `-` is standard output. The name's last part when left out
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Bytes A to B, both included; B may be left out
    #[arg(long, value_name = "A-B", conflicts_with = "resume")]
    pub range: Option<String>,
    /// Goes on with a partial FILE
    #[arg(long = "continue", id = "resume")]
    pub resume: bool,
}

#[derive(Debug, Args)]
pub struct TargetArgs {
    #[command(flatten)]
    pub client: ClientOptions,
    /// USER/NAME
    #[arg(value_name = "USER/NAME")]
    pub target: String,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    #[command(flatten)]
    pub client: ClientOptions,
    /// USER/NAME
    #[arg(required = true, value_name = "USER/NAME")]
    pub targets: Vec<String>,
}

#[derive(Debug, Args)]
pub struct LsArgs {
    #[command(flatten)]
    pub client: ClientOptions,
    /// USER, or USER/PREFIX
    #[arg(value_name = "USER[/PREFIX]")]
    pub target: String,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    #[command(flatten)]
    pub client: ClientOptions,
    /// The folder
    pub dir: PathBuf,
    /// Whose files they become
    #[arg(long)]
    pub user: String,
    /// Put before every name
    #[arg(long, default_value = "", value_name = "PREFIX")]
    pub prefix: String,
    /// Uploads at a time
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub jobs: u32,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Writes a page for every subcommand into this folder instead
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
