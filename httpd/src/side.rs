//! The process's one tokio thread: what talks JSON or SQL lives there, never on a shard.

use std::future::Future;
use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// How long tasks may take to end when the thread is stopped.
const GRACE: Duration = Duration::from_millis(500);

/// The running side thread.
pub(crate) struct Side {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Side {
    /// Starts the thread `reel-control`.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread =
            std::thread::Builder::new().name("reel-control".to_owned()).spawn(move || {
                runtime.block_on(async {
                    let _ = stopped.await;
                });
                runtime.shutdown_timeout(GRACE);
            })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Where shards and others spawn control-plane work.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Runs `call` there and waits for its result, from an ordinary thread.
    pub(crate) fn wait<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (done, result) = std::sync::mpsc::sync_channel(1);
        self.handle.spawn(async move {
            let _ = done.send(call.await);
        });
        result.recv().ok()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
