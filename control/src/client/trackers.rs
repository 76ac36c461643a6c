//! Asking trackers: any of them will do, the next when one does not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::error::{ClientError, checked};

/// Every tracker, and which one answered last. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Trackers {
    http: reqwest::Client,
    addresses: Arc<Vec<String>>,
    last: Arc<AtomicUsize>,
}

/// An HTTP client whose calls take at most `timeout`.
pub fn http_client(timeout: Duration) -> reqwest::Client {
    reqwest::Client::builder().timeout(timeout).connect_timeout(timeout).build().unwrap_or_default()
}

impl Trackers {
    /// Trackers at `HOST:PORT` each.
    pub fn new(addresses: Vec<String>, timeout: Duration) -> Self {
        Self { http: http_client(timeout), addresses: Arc::new(addresses), last: Arc::default() }
    }

    /// `GET path` at the tracker that answered last, then at the others. An answer below 500 is
    /// final; 503 is, when all say so.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let count = self.addresses.len();
        let first = self.last.load(Ordering::Relaxed);
        let mut last = ClientError::Nobody("tracker");
        for at in 0..count {
            let index = (first + at) % count;
            let tracker = &self.addresses[index];
            let response = self.http.get(format!("http://{tracker}{path}")).send().await;
            match checked(response, tracker).await {
                Ok(response) => {
                    self.last.store(index, Ordering::Relaxed);
                    match response.json().await {
                        Ok(body) => return Ok(body),
                        Err(error) => last = ClientError::answer(tracker, &error),
                    }
                }
                Err(error) if error.is_passing() => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }
}
