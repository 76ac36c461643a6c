//! What the tests on a real disk share.

use std::future::Future;
use std::path::Path;

use bytes::Bytes;

pub fn run<T>(future: impl Future<Output = T>) -> T {
    monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .enable_timer()
        .build()
        .unwrap()
        .block_on(future)
}

pub fn payload(seed: u64, length: usize) -> Bytes {
    (0..length).map(|at| ((at as u64).wrapping_mul(seed * 2 + 1) >> 3) as u8).collect()
}

/// What is on the disk now, as after a crash of the process. Without another program: between its fork and its start it would
/// hold the lock of a store that a test beside closes.
pub fn crash_image(from: &Path) -> tempfile::TempDir {
    fn fill(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let to = to.join(path.file_name().unwrap());
            if path.is_dir() {
                std::fs::create_dir(&to).unwrap();
                fill(&path, &to);
            } else {
                std::fs::copy(&path, &to).unwrap();
            }
        }
    }
    let to = tempfile::tempdir().unwrap();
    fill(from, to.path());
    to
}
