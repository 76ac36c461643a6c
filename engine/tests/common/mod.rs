//! What the tests share.

use std::future::Future;

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
