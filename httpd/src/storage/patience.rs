//! A disk that hangs lets no request wait for ever.

use std::time::Duration;

use reel_engine::Error;

/// How long one step of a request may wait for a disk: a lookup, a block, a commit.
pub(super) const STEP: Duration = Duration::from_secs(10);

/// Waits for a disk's answer, for a while.
///
/// # Errors
/// Those of the call, and [`Error::Busy`] when it takes too long; it goes on then, unheard.
pub(super) async fn in_time<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    monoio::time::timeout(STEP, call).await.unwrap_or(Err(Error::Busy("the disk's queue")))
}
