//! A file that a shard writes through its own io_uring.

use monoio::buf::IoBuf;

use super::{DiskFile, DiskPool, SyncPoint};
use crate::error::{Error, Result};

/// A file of one shard: writes and syncs without blocking the shard. Not `Send`.
#[derive(Debug)]
pub struct ShardFile {
    file: DiskFile,
    how: How,
}

#[derive(Debug)]
enum How {
    /// Through the ring of the shard's runtime.
    Ring(monoio::fs::File),
    /// The same, and a write is durable when it is complete.
    Through(monoio::fs::File),
    /// A simulated file has no descriptor: its calls are made where blocking calls are.
    Pool(DiskPool),
}

impl How {
    fn of(std: Option<&std::fs::File>, file: &DiskFile, pool: &DiskPool) -> Result<Self> {
        let Some(std) = std else { return Ok(Self::Pool(pool.clone())) };
        let adopted = std.try_clone().and_then(monoio::fs::File::from_std);
        Ok(Self::Ring(adopted.map_err(|error| Error::io("adopt", file.path(), error))?))
    }
}

impl ShardFile {
    /// Takes over an open file. Must be called on the shard's own thread.
    pub fn adopt(file: DiskFile, pool: &DiskPool) -> Result<Self> {
        let how = How::of(file.std(), &file, pool)?;
        Ok(Self { file, how })
    }

    /// Takes over a file opened by [`super::Volume::open_through`].
    pub fn adopt_through(file: DiskFile, pool: &DiskPool) -> Result<Self> {
        let how = match How::of(file.std(), &file, pool)? {
            How::Ring(ring) => How::Through(ring),
            how => how,
        };
        Ok(Self { file, how })
    }

    /// Takes over a file made by [`super::Volume::create_direct`]: writes bypass the page cache where
    /// the file system can.
    pub fn adopt_direct(file: DiskFile, pool: &DiskPool) -> Result<Self> {
        let how = How::of(file.direct().or(file.std()), &file, pool)?;
        Ok(Self { file, how })
    }

    /// Writes all of `bytes` at `offset` and gives the buffer back. Not durable before
    /// [`ShardFile::sync`].
    pub async fn write_all_at<B>(&self, bytes: B, offset: u64) -> (Result<()>, B)
    where
        B: IoBuf + AsRef<[u8]> + Send + Default,
    {
        match &self.how {
            How::Ring(ring) | How::Through(ring) => {
                let (result, bytes) = ring.write_all_at(bytes, offset).await;
                (result.map_err(|error| Error::io("write", self.file.path(), error)), bytes)
            }
            How::Pool(pool) => {
                let file = self.file.clone();
                let written = pool.run(move || {
                    let result = file.write_all_at(bytes.as_ref(), offset);
                    Ok((result, bytes))
                });
                written.await.unwrap_or_else(|error| (Err(error), B::default()))
            }
        }
    }

    /// Makes what was written survive a power loss (fdatasync). After an error nothing written
    /// since the last good sync may be trusted, whatever a later sync says.
    pub async fn sync(&self, point: SyncPoint) -> Result<()> {
        match &self.how {
            // Each write was durable by itself.
            How::Through(_) => Ok(()),
            How::Ring(ring) => {
                ring.sync_data().await.map_err(|error| Error::io("sync", self.file.path(), error))
            }
            How::Pool(pool) => {
                let file = self.file.clone();
                pool.run(move || file.sync(point)).await
            }
        }
    }
}
