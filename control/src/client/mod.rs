//! The client: asks any tracker which nodes may be used, picks one, tries the next when it fails.

mod config;
mod error;
mod trackers;
mod transfer;

use std::time::Duration;

use serde::de::DeserializeOwned;

pub use config::{ClientConfig, Found};
pub use error::{ClientError, checked};
pub use trackers::{PARTIAL, Trackers, http_client};
pub use transfer::{Progress, Source};

use crate::api::{
    Address, Addresses, CopiesPage, FileView, Files, GroupSettings, Groups, Moved, Nodes, Purpose,
};
use crate::names;
use crate::status::Told;

/// How long a tracker may take to answer.
const TRACKER_TIMEOUT: Duration = Duration::from_secs(3);
/// Rounds over all nodes of a group before an operation fails.
const ROUNDS: u32 = 3;
/// Between rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(300);

/// A client of a cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    trackers: Trackers,
    /// Without a time limit over all: bodies may be long. Connecting and silence are limited.
    http: reqwest::Client,
    /// The first HTTP server, for [`Client::url`].
    gateway: Option<String>,
}

impl Client {
    /// A client of the cluster in `config`.
    pub fn new(config: ClientConfig) -> Self {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(3))
            .read_timeout(Duration::from_secs(60))
            .build()
            .unwrap_or_default();
        Self {
            trackers: Trackers::new(config.trackers, TRACKER_TIMEOUT),
            http,
            gateway: config.http.into_iter().next(),
        }
    }

    /// All nodes, as a tracker sees them.
    pub async fn nodes(&self) -> Result<Nodes, ClientError> {
        self.trackers.get("/-/v1/nodes?detail=1").await
    }

    /// All nodes as each tracker sees them.
    pub async fn nodes_of_each(&self) -> Vec<Told> {
        let asked = self.trackers.each::<Nodes>("/-/v1/nodes?detail=1").await;
        asked.into_iter().map(|(tracker, nodes)| Told { tracker, nodes }).collect()
    }

    /// Tells every tracker that a silent node is gone for good; what each says.
    pub async fn retire_node(&self, id: u32) -> Vec<(String, Result<(), ClientError>)> {
        self.trackers.delete_at_each(&format!("/-/v1/nodes/{id}")).await
    }

    /// All groups.
    pub async fn groups(&self) -> Result<Groups, ClientError> {
        self.trackers.get("/-/v1/groups").await
    }

    /// Says what a group is to be from now on; with `only_new` it must not be there yet.
    pub async fn set_group(
        &self,
        group: u32,
        settings: GroupSettings,
        only_new: bool,
    ) -> Result<(), ClientError> {
        let create = u8::from(only_new);
        self.trackers.put(&format!("/-/v1/groups/{group}?create={create}"), &settings).await
    }

    /// The nodes that `user` may use.
    pub async fn addresses(&self, user: &str, purpose: Purpose) -> Result<Addresses, ClientError> {
        let purpose = match purpose {
            Purpose::Upload => "upload",
            Purpose::Download => "download",
        };
        self.trackers
            .get(&format!("/-/v1/addresses?user={}&for={purpose}", names::encode_query(user)))
            .await
    }

    async fn group_addresses(&self, group: &str) -> Result<Addresses, ClientError> {
        self.trackers.get(&format!("/-/v1/addresses?group={group}&for=download")).await
    }

    /// A file's URL at the cluster's HTTP server, or at a node when none is configured.
    pub async fn url(&self, user: &str, name: &str) -> Result<String, ClientError> {
        let host = match &self.gateway {
            Some(host) => host.clone(),
            None => first(self.addresses(user, Purpose::Download).await?)?.address,
        };
        Ok(format!("http://{host}{}", names::encode_path(user, name)))
    }

    /// A file's row, without its bytes.
    pub async fn stat(&self, user: &str, name: &str) -> Result<FileView, ClientError> {
        let listing = self.page(user, name, None, 1).await?;
        let found = listing.files.into_iter().find(|file| file.name == name);
        found.ok_or_else(|| ClientError::NotFound(format!("{user}/{name}")))
    }

    /// Files of `user` whose names start with `prefix`, all of them, in order.
    pub async fn list(&self, user: &str, prefix: &str) -> Result<Vec<FileView>, ClientError> {
        let mut files = Vec::new();
        let mut after = None;
        loop {
            let page = self.page(user, prefix, after.as_deref(), 1000).await?;
            files.extend(page.files);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(files),
            }
        }
    }

    async fn page(
        &self,
        user: &str,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Files, ClientError> {
        let mut path = format!(
            "/-/v1/users/{user}/files?limit={limit}&prefix={}",
            names::encode_query(prefix)
        );
        if let Some(after) = after {
            path.push_str("&after=");
            path.push_str(&names::encode_query(after));
        }
        let addresses = self.addresses(user, Purpose::Download).await?;
        self.at_any(&addresses, |node| {
            let request = self.http.get(format!("http://{}{path}", node.address));
            async move { json(checked(request.send().await, &node.address).await?, &node.address).await }
        })
        .await
    }

    /// Deletes a file.
    pub async fn remove(&self, user: &str, name: &str) -> Result<(), ClientError> {
        let path = names::encode_path(user, name);
        let mut addresses = self.addresses(user, Purpose::Download).await?;
        for _ in 0..2 {
            let result = self
                .at_any(&addresses, |node| {
                    let request = self.http.delete(format!("http://{}{path}", node.address));
                    async move { checked(request.send().await, &node.address).await.map(drop) }
                })
                .await;
            match result {
                Err(ClientError::OtherGroup(group)) => {
                    addresses = self.group_addresses(&group).await?
                }
                result => return result,
            }
        }
        Err(ClientError::Nobody("node of the file's group"))
    }

    /// What a node's copies hold.
    pub async fn copies(
        &self,
        node: &Address,
        after: Option<u64>,
        limit: Option<u32>,
    ) -> Result<CopiesPage, ClientError> {
        let mut url = format!("http://{}/-/v1/copies?", node.address);
        if let Some(after) = after {
            url.push_str(&format!("after={after}&"));
        }
        if let Some(limit) = limit {
            url.push_str(&format!("limit={limit}"));
        }
        json(checked(self.http.get(url).send().await, &node.address).await?, &node.address).await
    }

    /// Asks a node to take no more uploads.
    pub async fn drain(&self, node: &Address) -> Result<(), ClientError> {
        let request = self.http.put(format!("http://{}/-/v1/drain", node.address)).body("");
        checked(request.send().await, &node.address).await.map(drop)
    }

    /// The active nodes of a group.
    pub async fn nodes_of(&self, group: u32) -> Result<Addresses, ClientError> {
        self.group_addresses(&group.to_string()).await
    }

    /// Moves a file to the group of the nodes `to` from that of `from`.
    pub async fn move_file(
        &self,
        (user, name): (&str, &str),
        to: &Addresses,
        from: &Addresses,
    ) -> Result<Moved, ClientError> {
        let sources: Vec<&str> = from.nodes.iter().map(|node| node.address.as_str()).collect();
        let path =
            format!("/-/v1/moves{}?from={}", names::encode_path(user, name), sources.join(","));
        self.at_any(to, |node| {
            let request = self.http.put(format!("http://{}{path}", node.address)).body("");
            async move { json(checked(request.send().await, &node.address).await?, &node.address).await }
        })
        .await
    }

    /// Tries `call` at one node after the other, in rounds, until one succeeds or the error is
    /// final.
    async fn at_any<'a, T, F>(
        &self,
        addresses: &'a Addresses,
        call: impl Fn(&'a Address) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut last = ClientError::Nobody("storage node");
        for round in 0..ROUNDS {
            if round > 0 {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
            for node in &addresses.nodes {
                match call(node).await {
                    Err(error) if error.is_passing() => last = error,
                    result => return result,
                }
            }
        }
        Err(last)
    }
}

fn first(addresses: Addresses) -> Result<Address, ClientError> {
    addresses.nodes.into_iter().next().ok_or(ClientError::Nobody("storage node"))
}

async fn json<T: DeserializeOwned>(
    response: reqwest::Response,
    from: &str,
) -> Result<T, ClientError> {
    response.json().await.map_err(|error| ClientError::answer(from, &error))
}
