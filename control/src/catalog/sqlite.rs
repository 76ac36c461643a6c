//! The catalog in an embedded SQLite file (WAL, synchronous=NORMAL: a commit does not wait for the
//! disk; segments that hold the records stay marked until [`super::barrier`] has synced the log).
//! Several processes of one machine may share it.

use std::borrow::Cow;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteRow, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Connection as _, Row as _, Sqlite as Database, Transaction};

use crate::api::GroupSettings;

use super::batch::LOOKUPS;
use super::kept::Kept;
use super::resolve::{Presence, Present, resolve, resolve_new};
use super::{
    CatalogError, Held, Outcome, Result, Row, STATEMENT_TIMEOUT, Stamp, Write, away, prefix_end,
    unknown,
};

/// Connections for reading; writes have one of their own.
const READERS: u32 = LOOKUPS as u32 + 2;
/// How long a process waits for another one's transaction.
const BUSY: Duration = Duration::from_secs(4);
/// Rows of one statement. A batch is cut into pieces of at most the last size, and the last piece
/// is filled up to the next size by saying its last row again (which changes nothing): so there
/// are few statements to prepare, and few to run.
const PIECES: [usize; 12] = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128];
/// Bytes of the log from which on it is folded into the database, beside the commits.
const FOLD_BYTES: u64 = 8 << 20;
/// Pages of the log (4 KiB each) at which a commit folds what is left itself, so that the log begins anew: while
/// commits go on, folding beside them never comes to its end.
const LOG_PAGES: &str = "32768";
/// The columns of a row, as [`row_of`] reads them.
const ROW: &str = "user, name, object, grp, path, bytes, type, crc, modified_ms, hlc, node";
/// Tries of the migration: several processes may start at once.
const MIGRATION_TRIES: u32 = 20;

/// The embedded catalog.
#[derive(Debug, Clone)]
pub struct Sqlite {
    writer: Kept<Database>,
    readers: SqlitePool,
    /// Those of the readers that look-ups use.
    lookups: Kept<Database>,
    /// Folds the log: it waits for the disk, which neither commits nor look-ups should.
    folder: SqlitePool,
    log: PathBuf,
    /// The last batch met no name that had a row.
    meets_new: Arc<AtomicBool>,
}

impl Sqlite {
    pub(super) async fn open(url: &str) -> Result<Self> {
        let file = file_of(url);
        if let Some(parent) = std::path::Path::new(file).parent() {
            std::fs::create_dir_all(parent)
                .map_err(|error| CatalogError::Away(error.to_string()))?;
        }
        let options = SqliteConnectOptions::from_str(&format!("sqlite:{file}"))
            .map_err(away)?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY)
            .pragma("wal_autocheckpoint", LOG_PAGES)
            .statement_cache_capacity(64);
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(STATEMENT_TIMEOUT)
                .connect_with(options.clone())
        };
        // An older build goes on beside a newer one that has added to the tables.
        let mut migrations = sqlx::migrate!("./migrations/sqlite");
        migrations.set_ignore_missing(true);
        let mut tries = 0;
        let writer = loop {
            let opened = async {
                let writer = pool(1).await.map_err(away)?;
                migrations
                    .run(&writer)
                    .await
                    .map_err(|error| CatalogError::Away(error.to_string()))?;
                Ok(writer)
            };
            match opened.await {
                Ok(writer) => break writer,
                Err(error) if tries >= MIGRATION_TRIES => return Err(error),
                Err(_) => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        let readers = pool(READERS).await.map_err(away)?;
        let folder = pool(1).await.map_err(away)?;
        let meets_new = Arc::new(AtomicBool::new(true));
        let (writer, lookups) = (Kept::new(writer, 1), Kept::new(readers.clone(), LOOKUPS));
        Ok(Self { writer, readers, lookups, folder, log: log_of(url), meets_new })
    }

    /// Folds the log into the database when it has grown; commits go on meanwhile.
    pub(super) async fn fold(&self) -> Result<()> {
        if std::fs::metadata(&self.log).map_or(0, |log| log.len()) < FOLD_BYTES {
            return Ok(());
        }
        sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
            .execute(&self.folder)
            .await
            .map(drop)
            .map_err(away)
    }

    pub(super) async fn apply(&self, writes: &[Write]) -> Result<Vec<Outcome>> {
        if self.meets_new.load(Ordering::Relaxed)
            && let Some((outcomes, rows)) = resolve_new(writes)
            && self.insert_new(&rows).await?
        {
            return Ok(outcomes);
        }
        let mut connection = self.writer.lend().await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(away)?;
        let mut keys: Vec<_> = writes.iter().map(Write::key).collect();
        keys.sort_unstable();
        keys.dedup();
        let present = present(&mut transaction, &keys).await?;
        self.meets_new.store(present.is_empty(), Ordering::Relaxed);
        let (outcomes, rows) = resolve(present, writes);
        for piece in pieces(&rows) {
            insert(&mut transaction, &piece, REPLACE_OLDER).await?;
        }
        transaction.commit().await.map_err(unknown)?;
        connection.keep();
        Ok(outcomes)
    }

    /// Writes rows of names that have none; false, and nothing is changed, when one of them has.
    async fn insert_new(&self, rows: &[Cow<'_, Row>]) -> Result<bool> {
        let mut connection = self.writer.lend().await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(away)?;
        let mut written = 0;
        for piece in pieces(rows) {
            written += insert(&mut transaction, &piece, KEEP_PRESENT).await?;
        }
        if written != rows.len() as u64 {
            transaction.rollback().await.map_err(away)?;
            connection.keep();
            return Ok(false);
        }
        transaction.commit().await.map_err(unknown)?;
        connection.keep();
        Ok(true)
    }

    pub(super) async fn lookup(&self, user: &str, name: &str) -> Result<Option<Row>> {
        let mut connection = self.lookups.lend().await?;
        let row = sqlx::query("SELECT user, name, object, grp, path, bytes, type, crc, modified_ms, hlc, node FROM files WHERE user = ? AND name = ?")
            .bind(user)
            .bind(name)
            .fetch_optional(&mut *connection)
            .await
            .and_then(|row| row.as_ref().map(row_of).transpose())
            .map_err(away)?;
        connection.keep();
        Ok(row)
    }

    /// The rows of names, each name once; those there are, in any order.
    pub(super) async fn rows_of(&self, keys: &[(&str, &str)]) -> Result<Vec<Row>> {
        let mut connection = self.lookups.lend().await?;
        let mut rows = Vec::with_capacity(keys.len());
        for piece in pieces(keys) {
            for row in select(&mut connection, ROW, &piece).await? {
                rows.push(row_of(&row).map_err(away)?);
            }
        }
        connection.keep();
        Ok(rows)
    }

    pub(super) async fn list(
        &self,
        user: &str,
        prefix: &str,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Row>> {
        let end = prefix_end(prefix);
        let rows = sqlx::query("SELECT user, name, object, grp, path, bytes, type, crc, modified_ms, hlc, node FROM files WHERE user = ?1 AND name >= ?2 AND name > ?3 AND (?4 IS NULL OR name < ?4) AND object <> 0 ORDER BY name LIMIT ?5")
            .bind(user)
            .bind(prefix)
            .bind(after)
            .bind(end)
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await
            .map_err(away)?;
        rows.iter().map(row_of).collect::<Result<_, _>>().map_err(away)
    }

    pub(super) async fn rows(&self, after: (&str, &str), limit: u32) -> Result<Vec<Row>> {
        let rows = sqlx::query("SELECT user, name, object, grp, path, bytes, type, crc, modified_ms, hlc, node FROM files WHERE (user, name) > (?, ?) ORDER BY user, name LIMIT ?")
            .bind(after.0)
            .bind(after.1)
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await
            .map_err(away)?;
        rows.iter().map(row_of).collect::<Result<_, _>>().map_err(away)
    }

    pub(super) async fn group_of(&self, user: &str) -> Result<Option<u32>> {
        sqlx::query_scalar::<_, i64>("SELECT grp FROM users WHERE name = ?")
            .bind(user)
            .fetch_optional(&self.readers)
            .await
            .map(|group| group.map(|group| group as u32))
            .map_err(away)
    }

    pub(super) async fn groups(&self) -> Result<Vec<(u32, GroupSettings)>> {
        let rows = sqlx::query_as::<_, (i64, i64, bool)>("SELECT id, weight, readonly FROM groups")
            .fetch_all(&self.readers)
            .await
            .map_err(away)?;
        let of = |(id, weight, readonly): (i64, i64, bool)| {
            (id as u32, GroupSettings { weight: weight as u32, readonly })
        };
        Ok(rows.into_iter().map(of).collect())
    }

    pub(super) async fn set_group(
        &self,
        group: u32,
        settings: GroupSettings,
        only_new: bool,
    ) -> Result<bool> {
        let sql = match only_new {
            true => {
                "INSERT INTO groups (id, weight, readonly) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING"
            }
            false => {
                "INSERT INTO groups (id, weight, readonly) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET weight = excluded.weight, readonly = excluded.readonly"
            }
        };
        sqlx::query(sql)
            .bind(i64::from(group))
            .bind(i64::from(settings.weight))
            .bind(settings.readonly)
            .execute(&mut *self.writer.lend().await?)
            .await
            .map(|done| done.rows_affected() > 0)
            .map_err(away)
    }

    pub(super) async fn move_user_from(&self, user: &str, from: u32, to: u32) -> Result<u32> {
        sqlx::query("UPDATE users SET grp = ? WHERE name = ? AND grp = ?")
            .bind(i64::from(to))
            .bind(user)
            .bind(i64::from(from))
            .execute(&mut *self.writer.lend().await?)
            .await
            .map_err(away)?;
        Ok(self.group_of(user).await?.unwrap_or(to))
    }

    pub(super) async fn move_user(&self, user: &str, group: u32) -> Result<()> {
        sqlx::query("UPDATE users SET grp = ? WHERE name = ?")
            .bind(i64::from(group))
            .bind(user)
            .execute(&mut *self.writer.lend().await?)
            .await
            .map(drop)
            .map_err(away)
    }

    pub(super) async fn settle_user(&self, user: &str, proposed: u32) -> Result<u32> {
        sqlx::query_scalar::<_, i64>("INSERT INTO users (name, grp) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING grp")
            .bind(user)
            .bind(i64::from(proposed))
            .fetch_one(&mut *self.writer.lend().await?)
            .await
            .map(|group| group as u32)
            .map_err(away)
    }
}

/// The database file that a URL names.
pub(super) fn file_of(url: &str) -> &str {
    let path = url.strip_prefix("sqlite:").unwrap_or(url);
    let path = path.strip_prefix("//").unwrap_or(path);
    path.split('?').next().unwrap_or(path)
}

/// Its log.
pub(super) fn log_of(url: &str) -> PathBuf {
    let mut path = file_of(url).to_owned();
    path.push_str("-wal");
    PathBuf::from(path)
}

/// Cuts items into pieces of the sizes in [`PIECES`].
fn pieces<T: Clone>(items: &[T]) -> impl Iterator<Item = Vec<T>> {
    let largest = PIECES[PIECES.len() - 1];
    items.chunks(largest).map(move |chunk| {
        let size = PIECES.into_iter().find(|size| *size >= chunk.len()).unwrap_or(largest);
        let mut piece = chunk.to_vec();
        piece.resize(size, chunk[chunk.len() - 1].clone());
        piece
    })
}

/// Columns of these names.
async fn select(
    connection: &mut SqliteConnection,
    columns: &str,
    piece: &[(&str, &str)],
) -> Result<Vec<SqliteRow>> {
    let values = vec!["(?,?)"; piece.len()].join(",");
    let sql = format!("SELECT {columns} FROM files WHERE (user, name) IN (VALUES {values})");
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for (user, name) in piece {
        query = query.bind(*user).bind(*name);
    }
    query.fetch_all(connection).await.map_err(away)
}

async fn present<'a>(
    transaction: &mut Transaction<'_, Database>,
    keys: &[(&'a str, &'a str)],
) -> Result<Presence<'a>> {
    let mut present = Presence::new();
    for piece in pieces(keys) {
        for row in select(transaction, "user, name, object, grp, hlc, node", &piece).await? {
            let read = || -> Result<_, sqlx::Error> {
                let key = keys.binary_search(&(row.try_get(0)?, row.try_get(1)?));
                let stamp = Stamp {
                    hlc: row.try_get::<i64, _>(4)? as u64,
                    node: row.try_get::<i64, _>(5)? as u32,
                };
                let held = Held {
                    object: row.try_get::<i64, _>(2)? as u64,
                    group: row.try_get::<i64, _>(3)? as u32,
                };
                Ok((key, Present { stamp, held }))
            };
            if let (Ok(at), value) = read().map_err(away)? {
                present.insert(keys[at], value);
            }
        }
    }
    Ok(present)
}

/// What becomes of a row that is there: an older one is replaced.
const REPLACE_OLDER: &str = " ON CONFLICT (user, name) DO UPDATE SET object = excluded.object, grp = excluded.grp, \
    path = excluded.path, bytes = excluded.bytes, type = excluded.type, crc = excluded.crc, \
    modified_ms = excluded.modified_ms, hlc = excluded.hlc, node = excluded.node \
    WHERE (excluded.hlc, excluded.node) > (files.hlc, files.node)";
/// What becomes of a row that is there: it stays.
const KEEP_PRESENT: &str = " ON CONFLICT (user, name) DO NOTHING";

/// Writes rows; how many were written.
async fn insert(
    transaction: &mut Transaction<'_, Database>,
    rows: &[Cow<'_, Row>],
    if_present: &str,
) -> Result<u64> {
    let mut sql = String::from(
        "INSERT INTO files (user, name, object, grp, path, bytes, type, crc, modified_ms, hlc, node) VALUES ",
    );
    sql.push_str(&vec!["(?,?,?,?,?,?,?,?,?,?,?)"; rows.len()].join(","));
    sql.push_str(if_present);
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for row in rows {
        query = query
            .bind(&row.user)
            .bind(&row.name)
            .bind(row.object as i64)
            .bind(i64::from(row.group))
            .bind(&row.path)
            .bind(row.bytes as i64)
            .bind(&row.content_type)
            .bind(i64::from(row.crc))
            .bind(row.modified_ms as i64)
            .bind(row.stamp.hlc as i64)
            .bind(i64::from(row.stamp.node));
    }
    query.execute(&mut **transaction).await.map(|done| done.rows_affected()).map_err(away)
}

fn row_of(row: &SqliteRow) -> Result<Row, sqlx::Error> {
    Ok(Row {
        user: row.try_get(0)?,
        name: row.try_get(1)?,
        object: row.try_get::<i64, _>(2)? as u64,
        group: row.try_get::<i64, _>(3)? as u32,
        path: row.try_get(4)?,
        bytes: row.try_get::<i64, _>(5)? as u64,
        content_type: row.try_get(6)?,
        crc: row.try_get::<i64, _>(7)? as u32,
        modified_ms: row.try_get::<i64, _>(8)? as u64,
        stamp: Stamp {
            hlc: row.try_get::<i64, _>(9)? as u64,
            node: row.try_get::<i64, _>(10)? as u32,
        },
    })
}
