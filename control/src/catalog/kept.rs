//! Connections that are kept between uses. A pool asks the database whether it is there with each lending and again with
//! each return: two round trips about a statement that is one itself. What is asked all the time knows without.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, Database, Pool};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{CatalogError, Result, STATEMENT_TIMEOUT, away};

/// A connection that rested for longer is asked whether it is there still. One that went within that time is found out by
/// its next use, which is done again with another one: see [`Kept::forget`].
const TRUSTED: Duration = Duration::from_secs(1);
/// After so long the pool has it back, and replaces it when it is too old.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// Some of a pool's connections. Cheap to clone.
#[derive(Debug)]
pub(super) struct Kept<D: Database>(Arc<Inner<D>>);

impl<D: Database> Clone for Kept<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Inner<D: Database> {
    pool: Pool<D>,
    /// Connections that may be lent.
    free: Semaphore,
    /// Those at rest; the last to come is the first to go.
    at_rest: Mutex<Vec<AtRest<D>>>,
}

#[derive(Debug)]
struct AtRest<D: Database> {
    connection: PoolConnection<D>,
    /// When the pool lent it.
    taken: Instant,
    since: Instant,
}

impl<D: Database> Kept<D> {
    /// At most so many of the pool's connections; the pool has as many at least, and others use no more than the rest.
    pub(super) fn new(pool: Pool<D>, most: usize) -> Self {
        Self(Arc::new(Inner { pool, free: Semaphore::new(most), at_rest: Mutex::default() }))
    }

    /// A connection, when there is one within [`STATEMENT_TIMEOUT`].
    pub(super) async fn lend(&self) -> Result<Lent<'_, D>> {
        let inner = &*self.0;
        let free = tokio::time::timeout(STATEMENT_TIMEOUT, inner.free.acquire())
            .await
            .map_err(|_| CatalogError::Away("its connections are all in use".to_owned()))?
            .map_err(|error| CatalogError::Away(error.to_string()))?;
        let (connection, taken) = match inner.rested().await {
            Some(rested) => (rested.connection, rested.taken),
            None => (inner.pool.acquire().await.map_err(away)?, Instant::now()),
        };
        Ok(Lent { connection, taken, inner, _free: free })
    }

    /// The pool has back those at rest, and tries each before it lends it again: one of them was found broken.
    pub(super) fn forget(&self) {
        self.0.at_rest.lock().clear();
    }
}

impl<D: Database> Inner<D> {
    /// A connection that rested, and is good still.
    async fn rested(&self) -> Option<AtRest<D>> {
        let mut rested = self.at_rest.lock().pop()?;
        if rested.since.elapsed() >= TRUSTED {
            tokio::time::timeout(STATEMENT_TIMEOUT, rested.connection.ping()).await.ok()?.ok()?;
        }
        Some(rested)
    }
}

/// A connection for one use. Dropped, it goes to the pool, which looks after it: a failed or interrupted use may have
/// left anything behind.
pub(super) struct Lent<'a, D: Database> {
    connection: PoolConnection<D>,
    taken: Instant,
    inner: &'a Inner<D>,
    _free: SemaphorePermit<'a>,
}

impl<D: Database> Lent<'_, D> {
    /// Keeps it for the next use, after one that was completed.
    pub(super) fn keep(self) {
        let Self { connection, taken, inner, .. } = self;
        if taken.elapsed() < KEPT_FOR {
            inner.at_rest.lock().push(AtRest { connection, taken, since: Instant::now() });
        }
    }
}

impl<D: Database> Deref for Lent<'_, D> {
    type Target = D::Connection;

    fn deref(&self) -> &Self::Target {
        &self.connection
    }
}

impl<D: Database> DerefMut for Lent<'_, D> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.connection
    }
}
