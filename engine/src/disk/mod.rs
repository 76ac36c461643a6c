//! All I/O on disk goes through here.
//!
//! Two doors: [`ShardFile`] writes and syncs through the shard's own io_uring; [`DiskPool`] runs
//! what io_uring cannot do without blocking (open, create, rename, unlink, folder syncs) on threads
//! of its own, so that a shard never blocks.

mod file;
mod pool;
mod sys;

pub use file::ShardFile;
pub use pool::{DiskPool, Job};
pub use sys::{
    create_dirs, create_new, fill_with_zeros, free_bytes, open_read, open_write, read_exact_at,
    read_resident, remove_if_there, replace_file, sync_dir, sync_file, write_all_at,
};
