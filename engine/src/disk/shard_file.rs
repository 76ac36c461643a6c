//! A file that a shard writes through its own io_uring.

use monoio::buf::IoBuf;

use super::{DIRECT_ALIGN, DiskFile, DiskPool, ReadBuffer, SyncPoint};
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

/// A file that a shard reads past the page cache, through its own io_uring; where the file system cannot,
/// on a disk thread. Not `Send`.
#[derive(Debug)]
pub struct ShardReader {
    file: DiskFile,
    how: ReadHow,
}

#[derive(Debug)]
enum ReadHow {
    Direct(monoio::fs::File),
    Pool(DiskPool),
}

impl ShardReader {
    /// Opens the file once more.
    pub async fn open(file: &DiskFile, pool: &DiskPool) -> Result<Self> {
        let reopened = file.clone();
        let how = match pool.run(move || reopened.reopen_direct()).await? {
            Some(direct) => {
                let adopted = monoio::fs::File::from_std(direct);
                ReadHow::Direct(adopted.map_err(|error| Error::io("adopt", file.path(), error))?)
            }
            None => ReadHow::Pool(pool.clone()),
        };
        Ok(Self { file: file.clone(), how })
    }

    /// Reads the bytes from `offset` on into `buffer`, in whole pages around them; gives the buffer back, and
    /// how many bytes before the first lie in it.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the file ends before; I/O errors.
    pub async fn read(
        &self,
        mut buffer: ReadBuffer,
        offset: u64,
        length: u64,
    ) -> (Result<usize>, Option<ReadBuffer>) {
        let page = DIRECT_ALIGN as u64;
        let from = offset / page * page;
        let before = (offset - from) as usize;
        buffer.begin((offset + length).next_multiple_of(page) as usize - from as usize);
        match &self.how {
            ReadHow::Direct(ring) => {
                let (result, buffer) = ring.read_at(buffer, from).await;
                let result = match result {
                    // Only the file's last page may be short.
                    Ok(read) if read as u64 >= before as u64 + length => Ok(before),
                    Ok(_) => {
                        Err(Error::damaged(self.file.path(), offset, "the file ends too early"))
                    }
                    Err(error) => Err(Error::io("read", self.file.path(), error)),
                };
                (result, Some(buffer))
            }
            ReadHow::Pool(pool) => {
                let file = self.file.clone();
                let read = pool.run(move || {
                    let result = file.read_exact_at(buffer.fill(before + length as usize), from);
                    Ok((result.map(|()| before), buffer))
                });
                match read.await {
                    Ok((result, buffer)) => (result, Some(buffer)),
                    Err(error) => (Err(error), None),
                }
            }
        }
    }
}
