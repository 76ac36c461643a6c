//! Asking trackers: any of them will do, the next when one does not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use super::error::{ClientError, checked};

/// Says that a tracker does not hear nodes of the group that other trackers hear: one of those has the better view.
pub const PARTIAL: &str = "reel-partial";

/// How long a tracker may be silent before the next one is asked beside it.
const PATIENCE: Duration = Duration::from_millis(200);

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

    /// `GET path` at the tracker that answered last, then at the others: the next one is asked when one fails,
    /// and beside it when it has not answered after [`PATIENCE`]. An answer below 500 is final; 503 is, when all
    /// say so. An answer by a worse view ([`PARTIAL`]) is used only when there is no better one.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let count = self.addresses.len();
        let first = self.last.load(Ordering::Relaxed);
        let mut others = (0..count).map(|at| (first + at) % count);
        // Those that are still asked when an answer has come are dropped with it.
        let mut asked = JoinSet::new();
        let mut last = ClientError::Nobody("tracker");
        let mut partial = None;
        loop {
            if let Some(index) = others.next() {
                asked.spawn(self.clone().ask(index, path.to_owned()));
            } else if asked.is_empty() {
                return partial.ok_or(last);
            }
            let answered = match tokio::time::timeout(PATIENCE, asked.join_next()).await {
                Ok(Some(Ok(answered))) => answered,
                // Nothing yet; or, nobody is asked any more.
                Err(_) | Ok(_) => continue,
            };
            let (index, answered) = answered;
            match answered {
                Ok(response) => {
                    let is_partial = response.headers().contains_key(PARTIAL);
                    match response.json().await {
                        Ok(body) if is_partial => partial = Some(body),
                        Ok(body) => {
                            self.last.store(index, Ordering::Relaxed);
                            return Ok(body);
                        }
                        Err(error) => last = ClientError::answer(&self.addresses[index], &error),
                    }
                }
                Err(error) if error.is_passing() => last = error,
                Err(error) => return Err(error),
            }
        }
    }

    /// `PUT path` at one tracker after the other, until one takes it.
    pub async fn put(&self, path: &str, body: &impl Serialize) -> Result<(), ClientError> {
        let mut last = ClientError::Nobody("tracker");
        for tracker in self.addresses.iter() {
            let sent = self.http.put(format!("http://{tracker}{path}")).json(body).send().await;
            match checked(sent, tracker).await {
                Err(error) if error.is_passing() => last = error,
                answer => return answer.map(drop),
            }
        }
        Err(last)
    }

    /// `DELETE path` at every tracker.
    pub async fn delete_at_each(&self, path: &str) -> Vec<(String, Result<(), ClientError>)> {
        let mut answers = Vec::new();
        for tracker in self.addresses.iter() {
            let response = self.http.delete(format!("http://{tracker}{path}")).send().await;
            answers.push((tracker.clone(), checked(response, tracker).await.map(drop)));
        }
        answers
    }

    /// `GET path` at every tracker.
    pub async fn each<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &str,
    ) -> Vec<(String, Result<T, ClientError>)> {
        let mut answers = Vec::new();
        for index in 0..self.addresses.len() {
            let (trackers, path) = (self.clone(), path.to_owned());
            answers.push(tokio::spawn(async move {
                let tracker = trackers.addresses[index].clone();
                let answer = match trackers.ask(index, path).await.1 {
                    Ok(response) => {
                        response.json().await.map_err(|error| ClientError::answer(&tracker, &error))
                    }
                    Err(error) => Err(error),
                };
                (tracker, answer)
            }));
        }
        let mut told = Vec::with_capacity(answers.len());
        for answer in answers {
            // Only a panic would take one away.
            told.extend(answer.await.ok());
        }
        told
    }

    async fn ask(
        self,
        index: usize,
        path: String,
    ) -> (usize, Result<reqwest::Response, ClientError>) {
        let tracker = &self.addresses[index];
        let response = self.http.get(format!("http://{tracker}{path}")).send().await;
        (index, checked(response, tracker).await)
    }
}
