//! The catalog in PostgreSQL.

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::postgres::{
    PgArguments, PgConnectOptions, PgDatabaseError, PgPool, PgPoolOptions, PgRow, PgSeverity,
};
use sqlx::query::Query;
use sqlx::{Connection as _, Postgres as Database, Row as _};

use crate::api::GroupSettings;

use super::batch::LOOKUPS;
use super::kept::Kept;
use super::resolve::{Presence, Present, resolve, resolve_new};
use super::{
    CatalogError, Held, Outcome, Result, Row, STATEMENT_TIMEOUT, Stamp, Write, away, prefix_end,
    unknown,
};

/// Connections of one process: one for writes, those for look-ups, and some for the rest.
const CONNECTIONS: u32 = 1 + LOOKUPS as u32 + 3;
/// Tries of a transaction that met another writer of the same new name.
const TRIES: u32 = 6;

/// Every statement finds its rows by the primary key. Without statistics (a table that is new, or has grown since
/// they were gathered) the planner would rather read all of it.
const BY_INDEX: [(&str, &str); 3] =
    [("enable_seqscan", "off"), ("enable_hashjoin", "off"), ("enable_mergejoin", "off")];

/// Inserts rows, a parameter a column.
macro_rules! insert_rows {
    ($rest:literal) => {
        concat!(
            r#"INSERT INTO files ("user", name, object, grp, path, bytes, type, crc, modified_ms, hlc, node)
               SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::bigint[],
                                    $7::text[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[]) "#,
            $rest
        )
    };
}

/// All rows when none of the names has one, or else none.
const INSERT_NEW: &str = insert_rows!(
    r#"WHERE NOT EXISTS (SELECT FROM unnest($1::text[], $2::text[]) AS k(u, n)
                         JOIN files f ON f."user" = k.u AND f.name = k.n)"#
);
/// The rows that are newer than what is there, which is what was there when it was locked ($12, $13): another name of
/// which there is a row now was inserted since, and its row stays.
const INSERT_NEWER: &str = insert_rows!(
    r#"ON CONFLICT ("user", name) DO UPDATE SET object = excluded.object, grp = excluded.grp,
         path = excluded.path, bytes = excluded.bytes, type = excluded.type, crc = excluded.crc,
         modified_ms = excluded.modified_ms, hlc = excluded.hlc, node = excluded.node
       WHERE (excluded.hlc, excluded.node) > (files.hlc, files.node)
         AND (files."user", files.name) IN (SELECT * FROM unnest($12::text[], $13::text[]))"#
);

/// The catalog on a server.
#[derive(Debug, Clone)]
pub struct Postgres {
    pool: PgPool,
    writer: Kept<Database>,
    lookups: Kept<Database>,
    /// The last batch met no name that had a row.
    meets_new: Arc<AtomicBool>,
}

impl Postgres {
    pub(super) async fn open(url: &str) -> Result<Self> {
        let options = PgConnectOptions::from_str(url)
            .map_err(away)?
            .options([("statement_timeout", STATEMENT_TIMEOUT.as_millis().to_string())])
            .options(BY_INDEX)
            .application_name("reel");
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(STATEMENT_TIMEOUT)
            .max_lifetime(Duration::from_secs(1800))
            .connect_with(options)
            .await
            .map_err(away)?;
        // An older build goes on beside a newer one that has added to the tables.
        let mut migrations = sqlx::migrate!("./migrations/postgres");
        migrations.set_ignore_missing(true);
        migrations.run(&pool).await.map_err(|error| CatalogError::Away(error.to_string()))?;
        let (writer, lookups) = (Kept::new(pool.clone(), 1), Kept::new(pool.clone(), LOOKUPS));
        Ok(Self { pool, writer, lookups, meets_new: Arc::new(AtomicBool::new(true)) })
    }

    pub(super) async fn apply(&self, writes: &[Write]) -> Result<Vec<Outcome>> {
        if self.meets_new.load(Ordering::Relaxed)
            && let Some((outcomes, rows)) = resolve_new(writes)
        {
            match self.insert_new(&rows).await? {
                Inserted::All => return Ok(outcomes),
                Inserted::Nothing => {}
                // Who looks finds these rows when they are there, and they are done.
                Inserted::Unknown => return self.look_and_write(writes).await.map_err(unknown),
            }
        }
        self.look_and_write(writes).await
    }

    async fn look_and_write(&self, writes: &[Write]) -> Result<Vec<Outcome>> {
        for _ in 0..TRIES {
            if let Some(outcomes) = self.try_to_write(writes).await? {
                return Ok(outcomes);
            }
        }
        Err(CatalogError::Away("too many writers of the same name at once".to_owned()))
    }

    /// Writes rows of names that have none, unless one of them has. One statement, which is its own transaction: one round
    /// trip.
    async fn insert_new(&self, rows: &[Cow<'_, Row>]) -> Result<Inserted> {
        let mut connection = self.writer.lend().await?;
        let written = match insert(INSERT_NEW, rows).execute(&mut *connection).await {
            Ok(done) if done.rows_affected() > 0 => Inserted::All,
            Ok(_) => Inserted::Nothing,
            // Another one inserted a name meanwhile.
            Err(error) if is_unique_violation(&error) => Inserted::Nothing,
            Err(error) if is_broken(&error) => return Ok(Inserted::Unknown),
            Err(error) => return Err(away(error)),
        };
        connection.keep();
        Ok(written)
    }

    /// One transaction; `None` when another one inserted a name in between, or the connection is gone: try again.
    async fn try_to_write(&self, writes: &[Write]) -> Result<Option<Vec<Outcome>>> {
        let mut connection = self.writer.lend().await?;
        let mut transaction = match connection.begin().await {
            Ok(transaction) => transaction,
            Err(error) if is_broken(&error) => return Ok(None),
            Err(error) => return Err(away(error)),
        };
        let mut keys: Vec<_> = writes.iter().map(Write::key).collect();
        keys.sort_unstable();
        keys.dedup();
        let (users, names): (Vec<&str>, Vec<&str>) = keys.iter().copied().unzip();
        let found = sqlx::query(
            r#"SELECT f."user", f.name, f.object, f.grp, f.hlc, f.node FROM files f
               JOIN unnest($1::text[], $2::text[]) AS k(u, n) ON f."user" = k.u AND f.name = k.n
               ORDER BY f."user", f.name FOR UPDATE OF f"#,
        )
        .bind(&users)
        .bind(&names)
        .fetch_all(&mut *transaction)
        .await
        .map_err(away)?;
        let mut present = Presence::new();
        for row in &found {
            if let (Ok(at), value) = presence_of(row, &keys).map_err(away)? {
                present.insert(keys[at], value);
            }
        }
        self.meets_new.store(present.is_empty(), Ordering::Relaxed);
        let (present_users, present_names): (Vec<&str>, Vec<&str>) =
            present.keys().copied().unzip();
        let (outcomes, rows) = resolve(present, writes);
        let written = insert(INSERT_NEWER, &rows)
            .bind(present_users)
            .bind(present_names)
            .execute(&mut *transaction)
            .await
            .map_err(away)?;
        if written.rows_affected() != rows.len() as u64 {
            transaction.rollback().await.map_err(away)?;
            connection.keep();
            return Ok(None);
        }
        transaction.commit().await.map_err(unknown)?;
        connection.keep();
        Ok(Some(outcomes))
    }

    pub(super) async fn lookup(&self, user: &str, name: &str) -> Result<Option<Row>> {
        let query = || {
            sqlx::query(r#"SELECT "user", name, object, grp, path, bytes, type, crc, modified_ms, hlc, node FROM files WHERE "user" = $1 AND name = $2"#)
                .bind(user)
                .bind(name)
        };
        let rows = self.read(query).await?;
        rows.first().map(row_of).transpose().map_err(away)
    }

    /// The rows of names, each name once; those there are, in any order.
    pub(super) async fn rows_of(&self, keys: &[(&str, &str)]) -> Result<Vec<Row>> {
        let (users, names): (Vec<&str>, Vec<&str>) = keys.iter().copied().unzip();
        let query = || {
            sqlx::query(
                r#"SELECT f."user", f.name, f.object, f.grp, f.path, f.bytes, f.type, f.crc, f.modified_ms, f.hlc, f.node
                   FROM unnest($1::text[], $2::text[]) AS k(u, n) JOIN files f ON f."user" = k.u AND f.name = k.n"#,
            )
            .bind(&users)
            .bind(&names)
        };
        let rows = self.read(query).await?;
        rows.iter().map(row_of).collect::<Result<_, _>>().map_err(away)
    }

    /// A look-up's rows; asked for again when its connection turns out to be gone.
    async fn read<'q>(
        &self,
        query: impl Fn() -> Query<'q, Database, PgArguments>,
    ) -> Result<Vec<PgRow>> {
        let mut connection = self.lookups.lend().await?;
        let mut found = query().fetch_all(&mut *connection).await;
        if found.as_ref().is_err_and(is_broken) {
            drop(connection);
            self.lookups.forget();
            connection = self.lookups.lend().await?;
            found = query().fetch_all(&mut *connection).await;
        }
        let rows = found.map_err(away)?;
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
        let rows = sqlx::query(
            r#"SELECT "user", name, object, grp, path, bytes, type, crc, modified_ms, hlc, node FROM files
               WHERE "user" = $1 AND name >= $2 AND name > $3 AND ($4::text IS NULL OR name < $4) AND object <> 0
               ORDER BY name LIMIT $5"#,
        )
        .bind(user)
        .bind(prefix)
        .bind(after)
        .bind(prefix_end(prefix))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(away)?;
        rows.iter().map(row_of).collect::<Result<_, _>>().map_err(away)
    }

    pub(super) async fn rows(&self, after: (&str, &str), limit: u32) -> Result<Vec<Row>> {
        let rows = sqlx::query(
            r#"SELECT "user", name, object, grp, path, bytes, type, crc, modified_ms, hlc, node FROM files
               WHERE ("user", name) > ($1, $2) ORDER BY "user", name LIMIT $3"#,
        )
        .bind(after.0)
        .bind(after.1)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(away)?;
        rows.iter().map(row_of).collect::<Result<_, _>>().map_err(away)
    }

    pub(super) async fn group_of(&self, user: &str) -> Result<Option<u32>> {
        sqlx::query_scalar::<_, i64>("SELECT grp FROM users WHERE name = $1")
            .bind(user)
            .fetch_optional(&self.pool)
            .await
            .map(|group| group.map(|group| group as u32))
            .map_err(away)
    }

    pub(super) async fn groups(&self) -> Result<Vec<(u32, GroupSettings)>> {
        let rows = sqlx::query_as::<_, (i64, i64, bool)>("SELECT id, weight, readonly FROM groups")
            .fetch_all(&self.pool)
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
                "INSERT INTO groups (id, weight, readonly) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING"
            }
            false => {
                "INSERT INTO groups (id, weight, readonly) VALUES ($1, $2, $3) ON CONFLICT (id) DO UPDATE SET weight = excluded.weight, readonly = excluded.readonly"
            }
        };
        sqlx::query(sql)
            .bind(i64::from(group))
            .bind(i64::from(settings.weight))
            .bind(settings.readonly)
            .execute(&self.pool)
            .await
            .map(|done| done.rows_affected() > 0)
            .map_err(away)
    }

    pub(super) async fn move_user_from(&self, user: &str, from: u32, to: u32) -> Result<u32> {
        sqlx::query("UPDATE users SET grp = $1 WHERE name = $2 AND grp = $3")
            .bind(i64::from(to))
            .bind(user)
            .bind(i64::from(from))
            .execute(&self.pool)
            .await
            .map_err(away)?;
        Ok(self.group_of(user).await?.unwrap_or(to))
    }

    pub(super) async fn move_user(&self, user: &str, group: u32) -> Result<()> {
        sqlx::query("UPDATE users SET grp = $1 WHERE name = $2")
            .bind(i64::from(group))
            .bind(user)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(away)
    }

    pub(super) async fn settle_user(&self, user: &str, proposed: u32) -> Result<u32> {
        sqlx::query_scalar::<_, i64>("INSERT INTO users (name, grp) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING grp")
            .bind(user)
            .bind(i64::from(proposed))
            .fetch_one(&self.pool)
            .await
            .map(|group| group as u32)
            .map_err(away)
    }

    pub(super) async fn take_numbers(&self, count: u64) -> Result<u64> {
        sqlx::query_scalar::<_, i64>("INSERT INTO segment_numbers (mark) VALUES (1 + $1) ON CONFLICT (one) DO UPDATE SET mark = segment_numbers.mark + $1 RETURNING mark - $1")
            .bind(count as i64)
            .fetch_one(&self.pool)
            .await
            .map(|first| first as u64)
            .map_err(away)
    }
}

/// A statement of [`insert_rows`] with its rows.
fn insert(statement: &'static str, rows: &[Cow<'_, Row>]) -> Query<'static, Database, PgArguments> {
    let column = |pick: fn(&Row) -> i64| rows.iter().map(|row| pick(row)).collect::<Vec<i64>>();
    let text = |pick: fn(&Row) -> &str| rows.iter().map(|row| pick(row)).collect::<Vec<&str>>();
    sqlx::query(statement)
        .bind(text(|row| &row.user))
        .bind(text(|row| &row.name))
        .bind(column(|row| row.object as i64))
        .bind(column(|row| i64::from(row.group)))
        .bind(text(|row| &row.path))
        .bind(column(|row| row.bytes as i64))
        .bind(text(|row| &row.content_type))
        .bind(column(|row| i64::from(row.crc)))
        .bind(column(|row| row.modified_ms as i64))
        .bind(column(|row| row.stamp.hlc as i64))
        .bind(column(|row| i64::from(row.stamp.node)))
}

fn is_unique_violation(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(DatabaseError::is_unique_violation)
}

/// Whether the connection is gone, and with it what became of a statement. The server says of a statement that it undid an
/// error; what ends the session (a server that stops) is worse than one, and may come after the commit.
fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(said) => said
            .try_downcast_ref::<PgDatabaseError>()
            .is_none_or(|said| !matches!(said.severity(), PgSeverity::Error)),
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => true,
        _ => false,
    }
}

/// What became of an insert of new names.
enum Inserted {
    All,
    /// One of them is there.
    Nothing,
    /// The connection broke: all, or nothing.
    Unknown,
}

/// Which of the sorted keys a row has, and what it says.
fn presence_of(
    row: &PgRow,
    keys: &[(&str, &str)],
) -> Result<(Result<usize, usize>, Present), sqlx::Error> {
    let key = keys.binary_search(&(row.try_get(0)?, row.try_get(1)?));
    let stamp =
        Stamp { hlc: row.try_get::<i64, _>(4)? as u64, node: row.try_get::<i64, _>(5)? as u32 };
    let held =
        Held { object: row.try_get::<i64, _>(2)? as u64, group: row.try_get::<i64, _>(3)? as u32 };
    Ok((key, Present { stamp, held }))
}

fn row_of(row: &PgRow) -> Result<Row, sqlx::Error> {
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
