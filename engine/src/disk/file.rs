//! A file that a shard writes through its own io_uring.

use std::fs::File;
use std::path::PathBuf;

use monoio::buf::IoBuf;

use crate::error::{Error, Result};

/// A file of one shard: writes and syncs without blocking the shard. Not `Send`.
#[derive(Debug)]
pub struct ShardFile {
    file: monoio::fs::File,
    path: PathBuf,
}

impl ShardFile {
    /// Takes over an open file. Must be called on the shard's own thread.
    pub fn adopt(file: File, path: PathBuf) -> Result<Self> {
        match monoio::fs::File::from_std(file) {
            Ok(file) => Ok(Self { file, path }),
            Err(error) => Err(Error::io("adopt", &path, error)),
        }
    }

    /// Writes all of `bytes` at `offset` and gives the buffer back. Not durable before
    /// [`ShardFile::sync`].
    pub async fn write_all_at<B: IoBuf>(&self, bytes: B, offset: u64) -> (Result<()>, B) {
        let (result, bytes) = self.file.write_all_at(bytes, offset).await;
        (result.map_err(|error| Error::io("write", &self.path, error)), bytes)
    }

    /// Makes what was written survive a power loss (fdatasync). After an error nothing written
    /// since the last good sync may be trusted, whatever a later sync says.
    pub async fn sync(&self) -> Result<()> {
        self.file.sync_data().await.map_err(|error| Error::io("sync", &self.path, error))
    }
}
