//! The catalog: user → group, and (user, file) → object, in SQL.
//!
//! SQLite (one machine) or PostgreSQL (a cluster), behind the same calls and the same test suite.
//! Every row carries a version ([`Stamp`]); a write only takes effect over a lower one, so writes
//! may be repeated, reordered and raced, and the end is always the same. A delete leaves a row
//! without an object: the versioned mark that keeps an older write from coming back.

mod batch;
mod kept;
mod postgres;
mod resolve;
mod sqlite;

use std::collections::HashMap;
use std::time::Duration;

use crate::api::GroupSettings;

pub use batch::{Batches, CatalogHandle, run_batches};

/// How long one statement may take, connecting included.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a catalog is [tended](Catalog::tend).
const TEND: Duration = Duration::from_millis(500);

/// Makes durable what was committed so far, in whatever process: SQLite's log is synced (commits
/// themselves do not wait for the disk, see docs/decisions/0002-catalog-durability.md); PostgreSQL
/// has done so with each commit. Blocking.
pub fn barrier(url: &str) -> impl Fn() -> std::io::Result<()> + Send + Sync + 'static {
    let log = url.starts_with("sqlite:").then(|| sqlite::log_of(url));
    move || match log.as_ref().map(std::fs::File::open) {
        Some(Ok(log)) => log.sync_data(),
        // Without a log all is in the database, which was synced before the log went.
        Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Some(Err(error)) => Err(error),
        None => Ok(()),
    }
}

/// A catalog that did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    /// Nothing was changed.
    #[error("the catalog is away: {0}")]
    Away(String),
    /// The connection broke while committing: the change may have taken effect. Writing the same
    /// again settles it.
    #[error("the catalog broke off while committing: {0}")]
    Unknown(String),
    /// A URL that names no catalog.
    #[error("catalog URL {0:?}: must be sqlite:PATH or postgres://…")]
    Url(String),
}

/// The catalog's result.
pub type Result<T, E = CatalogError> = std::result::Result<T, E>;

/// A write's version: higher wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Stamp {
    /// The hybrid logical clock.
    pub hlc: u64,
    /// The node that wrote.
    pub node: u32,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The user.
    pub user: String,
    /// The file name.
    pub name: String,
    /// The object; 0 when the row is the mark of a delete.
    pub object: u64,
    /// The group that holds it.
    pub group: u32,
    /// The segment's path in a data folder.
    pub path: String,
    /// Bytes.
    pub bytes: u64,
    /// Content type.
    pub content_type: String,
    /// CRC-32 of the bytes.
    pub crc: u32,
    /// Milliseconds since 1970.
    pub modified_ms: u64,
    /// The version.
    pub stamp: Stamp,
}

impl Row {
    /// The mark of a delete.
    pub fn mark(user: String, name: String, stamp: Stamp) -> Self {
        Self {
            user,
            name,
            object: 0,
            group: 0,
            path: String::new(),
            bytes: 0,
            content_type: String::new(),
            crc: 0,
            modified_ms: 0,
            stamp,
        }
    }

    /// Whether it is the mark of a delete.
    pub fn is_mark(&self) -> bool {
        self.object == 0
    }
}

/// A change to one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// The name is this row from now on, unless what is there is newer.
    Put {
        /// The row.
        row: Row,
        /// Only when there is no file of that name (`If-None-Match: *`).
        only_new: bool,
    },
    /// A client's delete: whatever is there now goes, with a version above it.
    Delete {
        /// The user.
        user: String,
        /// The file name.
        name: String,
        /// At least this version.
        stamp: Stamp,
    },
    /// A delete that happened at exactly this version (a tombstone offered again).
    Mark {
        /// The user.
        user: String,
        /// The file name.
        name: String,
        /// Its version.
        stamp: Stamp,
    },
}

impl Write {
    fn key(&self) -> (&str, &str) {
        match self {
            Self::Put { row, .. } => (&row.user, &row.name),
            Self::Delete { user, name, .. } | Self::Mark { user, name, .. } => (user, name),
        }
    }
}

/// An object that a name is, or was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The object.
    pub object: u64,
    /// The group that holds it.
    pub group: u32,
}

/// What became of a [`Write`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect. `previous` is the object that lost the name, if one did.
    Done {
        /// The replaced or deleted object.
        previous: Option<Held>,
        /// The version the row has now.
        stamp: Stamp,
    },
    /// What is there is newer: this write lost.
    Lost {
        /// The version that stands.
        winner: Stamp,
        /// The object that stands; `None` for a mark.
        object: Option<u64>,
    },
    /// `only_new`, and there is a file.
    Exists,
    /// A delete of a name that is not there.
    NotFound,
}

/// The catalog. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Catalog {
    /// Embedded.
    Sqlite(sqlite::Sqlite),
    /// A server.
    Postgres(postgres::Postgres),
}

impl Catalog {
    /// Connects, makes what is missing (SQLite's file, tables), and migrates.
    pub async fn open(url: &str) -> Result<Self> {
        if url.starts_with("sqlite:") {
            sqlite::Sqlite::open(url).await.map(Self::Sqlite)
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            postgres::Postgres::open(url).await.map(Self::Postgres)
        } else {
            Err(CatalogError::Url(url.to_owned()))
        }
    }

    /// Applies writes in one transaction, in order; an outcome each.
    pub async fn apply(&self, writes: &[Write]) -> Result<Vec<Outcome>> {
        if writes.is_empty() {
            return Ok(Vec::new());
        }
        match self {
            Self::Sqlite(sqlite) => sqlite.apply(writes).await,
            Self::Postgres(postgres) => postgres.apply(writes).await,
        }
    }

    /// The row of a file; `None` when there is none (a mark counts as none).
    pub async fn lookup(&self, user: &str, name: &str) -> Result<Option<Row>> {
        Ok(self.row(user, name).await?.filter(|row| !row.is_mark()))
    }

    /// Files of a user in order of name, after `after`, that start with `prefix`.
    pub async fn list(
        &self,
        user: &str,
        prefix: &str,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Row>> {
        match self {
            Self::Sqlite(sqlite) => sqlite.list(user, prefix, after, limit).await,
            Self::Postgres(postgres) => postgres.list(user, prefix, after, limit).await,
        }
    }

    /// The rows of several names, marks of deletes too; a row (or none) each.
    pub async fn rows_of(&self, files: &[(String, String)]) -> Result<Vec<Option<Row>>> {
        if let [(user, name)] = files {
            return Ok(vec![self.row(user, name).await?]);
        }
        let mut keys: Vec<_> =
            files.iter().map(|(user, name)| (user.as_str(), name.as_str())).collect();
        keys.sort_unstable();
        keys.dedup();
        let rows = match self {
            Self::Sqlite(sqlite) => sqlite.rows_of(&keys).await?,
            Self::Postgres(postgres) => postgres.rows_of(&keys).await?,
        };
        let found: HashMap<_, _> =
            rows.iter().map(|row| ((row.user.as_str(), row.name.as_str()), row)).collect();
        let row = |(user, name): &(String, String)| {
            found.get(&(user.as_str(), name.as_str())).map(|row| Row::clone(row))
        };
        Ok(files.iter().map(row).collect())
    }

    async fn row(&self, user: &str, name: &str) -> Result<Option<Row>> {
        match self {
            Self::Sqlite(sqlite) => sqlite.lookup(user, name).await,
            Self::Postgres(postgres) => postgres.lookup(user, name).await,
        }
    }

    /// Rows of all users in order of user and name, marks of deletes too, after `after`.
    pub async fn rows(&self, after: (&str, &str), limit: u32) -> Result<Vec<Row>> {
        match self {
            Self::Sqlite(sqlite) => sqlite.rows(after, limit).await,
            Self::Postgres(postgres) => postgres.rows(after, limit).await,
        }
    }

    /// The user's group; `None` for an unknown user.
    pub async fn group_of(&self, user: &str) -> Result<Option<u32>> {
        match self {
            Self::Sqlite(sqlite) => sqlite.group_of(user).await,
            Self::Postgres(postgres) => postgres.group_of(user).await,
        }
    }

    /// The user's group; a new user gets `proposed`. One statement, so that whoever asks at the
    /// same time gets the same answer.
    pub async fn settle_user(&self, user: &str, proposed: u32) -> Result<u32> {
        match self {
            Self::Sqlite(sqlite) => sqlite.settle_user(user, proposed).await,
            Self::Postgres(postgres) => postgres.settle_user(user, proposed).await,
        }
    }

    /// What operators say of groups; those they said nothing of are left out.
    pub async fn groups(&self) -> Result<Vec<(u32, GroupSettings)>> {
        match self {
            Self::Sqlite(sqlite) => sqlite.groups().await,
            Self::Postgres(postgres) => postgres.groups().await,
        }
    }

    /// Keeps what operators say of a group. `only_new`: false, and nothing is changed, when something was said of it
    /// before.
    pub async fn set_group(
        &self,
        group: u32,
        settings: GroupSettings,
        only_new: bool,
    ) -> Result<bool> {
        match self {
            Self::Sqlite(sqlite) => sqlite.set_group(group, settings, only_new).await,
            Self::Postgres(postgres) => postgres.set_group(group, settings, only_new).await,
        }
    }

    /// New files of a user whose group is `from` go to `to` from now on; the group they go to. Whoever asks at the same
    /// time gets the same answer.
    pub async fn move_user_from(&self, user: &str, from: u32, to: u32) -> Result<u32> {
        match self {
            Self::Sqlite(sqlite) => sqlite.move_user_from(user, from, to).await,
            Self::Postgres(postgres) => postgres.move_user_from(user, from, to).await,
        }
    }

    /// A known user's new files go to `group` from now on.
    pub async fn move_user(&self, user: &str, group: u32) -> Result<()> {
        match self {
            Self::Sqlite(sqlite) => sqlite.move_user(user, group).await,
            Self::Postgres(postgres) => postgres.move_user(user, group).await,
        }
    }

    /// Takes `count` segment numbers for ever. PostgreSQL only.
    pub async fn take_numbers(&self, count: u64) -> Result<u64> {
        match self {
            Self::Sqlite(_) => Err(CatalogError::Away(
                "segment numbers are kept in PostgreSQL or in the ID server's mark file".to_owned(),
            )),
            Self::Postgres(postgres) => postgres.take_numbers(count).await,
        }
    }

    /// Upkeep that commits should not wait for; to be called every [`TEND`].
    pub async fn tend(&self) -> Result<()> {
        match self {
            Self::Sqlite(sqlite) => sqlite.fold().await,
            Self::Postgres(_) => Ok(()),
        }
    }

    /// Whether it answers.
    pub async fn ping(&self) -> Result<()> {
        self.group_of("-").await.map(drop)
    }
}

/// Wraps an SQL error before anything was committed.
fn away(error: sqlx::Error) -> CatalogError {
    CatalogError::Away(error.to_string())
}

/// Wraps an error after which the change may have taken effect.
fn unknown(error: impl std::error::Error) -> CatalogError {
    CatalogError::Unknown(error.to_string())
}

/// The first text after all that start with `prefix`, by bytes; `None` when there is none.
fn prefix_end(prefix: &str) -> Option<String> {
    let mut characters: Vec<char> = prefix.chars().collect();
    while let Some(last) = characters.pop() {
        let next = (last as u32 + 1..=char::MAX as u32).find_map(char::from_u32);
        if let Some(next) = next {
            characters.push(next);
            return Some(characters.into_iter().collect());
        }
    }
    None
}
