//! What the disk does without us.

use std::fs::File;
use std::io::{Result, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// One appended write of `bytes` and one fdatasync each, by one writer: how many a second.
pub(crate) fn append_and_sync(folder: &Path, bytes: usize, time: Duration) -> Result<f64> {
    let path = folder.join("floor");
    let mut file = File::create(&path)?;
    let record = vec![0x5a; bytes];
    let started = Instant::now();
    let mut count = 0u64;
    while started.elapsed() < time {
        file.write_all(&record)?;
        file.sync_data()?;
        count += 1;
    }
    let rate = count as f64 / started.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    Ok(rate)
}
