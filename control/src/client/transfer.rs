//! Uploads and downloads: streamed, checked by CRC-32, and gone on with at another node when one
//! breaks off.

use std::io::SeekFrom;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use reqwest::header;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt};

use super::error::checked;
use super::{Client, ClientError, ROUND_PAUSE, ROUNDS, json};
use crate::api::{Purpose, Uploaded};
use crate::names;

/// Bytes read from a file at a time.
const PIECE: usize = 256 * 1024;
/// Nodes that may break off one download before it fails.
const BREAKS: u32 = 20;

/// Told the bytes that went over since the last call.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// What is uploaded.
pub enum Source {
    /// A file; an upload that fails is tried again elsewhere.
    File {
        /// Its path.
        path: PathBuf,
        /// Its length in bytes.
        bytes: u64,
    },
    /// Something that can be read only once: one try.
    Once(Box<dyn AsyncRead + Send + Unpin>),
}

impl Client {
    /// Uploads `source` as `user`/`name`. Returns what the node stored; its CRC-32 is that of the
    /// bytes read here.
    pub async fn put(
        &self,
        user: &str,
        name: &str,
        content_type: Option<&str>,
        mut source: Source,
        progress: Progress,
    ) -> Result<Uploaded, ClientError> {
        let path = names::encode_path(user, name);
        let mut last = ClientError::Nobody("storage node");
        for round in 0..ROUNDS {
            if round > 0 {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
            let addresses = match self.addresses(user, Purpose::Upload).await {
                Ok(addresses) => addresses,
                Err(error) if error.is_passing() => {
                    last = error;
                    continue;
                }
                Err(error) => return Err(error),
            };
            for node in &addresses.nodes {
                let url = format!("http://{}{path}", node.address);
                let (length, reader, again): (_, Box<dyn AsyncRead + Send + Unpin>, bool) =
                    match &mut source {
                        Source::File { path, bytes } => {
                            (Some(*bytes), Box::new(open(path, 0).await?), true)
                        }
                        Source::Once(reader) => {
                            (None, std::mem::replace(reader, Box::new(tokio::io::empty())), false)
                        }
                    };
                match self
                    .put_once(&url, &node.address, length, content_type, reader, &progress)
                    .await
                {
                    Err(error) if error.is_passing() && again => last = error,
                    result => return result,
                }
            }
        }
        Err(last)
    }

    async fn put_once(
        &self,
        url: &str,
        at: &str,
        length: Option<u64>,
        content_type: Option<&str>,
        reader: Box<dyn AsyncRead + Send + Unpin>,
        progress: &Progress,
    ) -> Result<Uploaded, ClientError> {
        let crc = Arc::new(Mutex::new(crc32fast::Hasher::new()));
        let mut request = self.http.put(url);
        if let Some(content_type) = content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        if let Some(length) = length {
            request = request.header(header::CONTENT_LENGTH, length);
        }
        let body = pieces(reader, Arc::clone(&crc), Arc::clone(progress));
        let response = request.body(reqwest::Body::wrap_stream(body)).send().await;
        let uploaded: Uploaded = json(checked(response, at).await?, at).await?;
        let expected = crc.lock().clone().finalize();
        let found = u32::from_str_radix(&uploaded.crc32, 16).unwrap_or(!expected);
        if found != expected {
            return Err(ClientError::Crc { what: format!("upload to {at}"), found, expected });
        }
        Ok(uploaded)
    }

    /// Downloads `user`/`name` from byte `start` on, up to and without `end`, into `sink`. Goes on
    /// at the exact byte elsewhere when a node breaks off; checks the CRC-32 of a whole file.
    /// Returns the bytes written.
    pub async fn get<W: AsyncWrite + Unpin>(
        &self,
        user: &str,
        name: &str,
        start: u64,
        end: Option<u64>,
        sink: &mut W,
        progress: Progress,
    ) -> Result<u64, ClientError> {
        let path = names::encode_path(user, name);
        let mut download =
            Download { at: start, end, etag: None, crc: crc32fast::Hasher::new(), expected: None };
        let mut breaks = 0;
        let mut rounds = 0;
        let mut group: Option<String> = None;
        loop {
            let addresses = match &group {
                None => self.addresses(user, Purpose::Download).await,
                Some(group) => self.group_addresses(group).await,
            };
            let nodes = match addresses {
                Ok(addresses) => addresses.nodes,
                Err(error) if error.is_passing() && rounds < ROUNDS => Vec::new(),
                Err(ClientError::Refused { status: 404, .. }) => {
                    return Err(ClientError::NotFound(format!("{user}/{name}")));
                }
                Err(error) => return Err(error),
            };
            let mut last = ClientError::Nobody("storage node");
            for node in &nodes {
                let before = download.at;
                match self
                    .get_once(
                        &format!("http://{}{path}", node.address),
                        &node.address,
                        &mut download,
                        sink,
                        &progress,
                    )
                    .await
                {
                    Ok(()) => {
                        download.check(start, &format!("{user}/{name}"))?;
                        return Ok(download.at - start);
                    }
                    Err(ClientError::OtherGroup(other)) => {
                        group = Some(other);
                        break;
                    }
                    Err(ClientError::Refused { status: 404, .. }) => {
                        return Err(ClientError::NotFound(format!("{user}/{name}")));
                    }
                    Err(error) if error.is_passing() => {
                        if download.at > before {
                            breaks += 1;
                        }
                        last = error;
                    }
                    Err(error) => return Err(error),
                }
            }
            rounds += 1;
            if breaks > BREAKS || rounds > ROUNDS + breaks {
                return Err(last);
            }
            if group.is_none() || rounds > 1 {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
        }
    }

    async fn get_once<W: AsyncWrite + Unpin>(
        &self,
        url: &str,
        at: &str,
        download: &mut Download,
        sink: &mut W,
        progress: &Progress,
    ) -> Result<(), ClientError> {
        let mut request = self.http.get(url);
        if download.at > 0 || download.end.is_some() {
            let last = download.end.map_or(String::new(), |end| (end - 1).to_string());
            request = request.header(header::RANGE, format!("bytes={}-{last}", download.at));
        }
        if let Some(etag) = &download.etag {
            request = request.header(header::IF_MATCH, etag);
        }
        let response = checked(request.send().await, at).await?;
        let text = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        download.etag = download.etag.take().or(text("etag"));
        download.expected = text("reel-crc32").and_then(|crc| u32::from_str_radix(&crc, 16).ok());
        let mut left = response.content_length();
        let mut body = response.bytes_stream();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| ClientError::answer(at, &error))?;
            sink.write_all(&piece)
                .await
                .map_err(|source| ClientError::File { path: "output".to_owned(), source })?;
            download.crc.update(&piece);
            download.at += piece.len() as u64;
            left = left.map(|left| left.saturating_sub(piece.len() as u64));
            progress(piece.len() as u64);
        }
        if left.is_some_and(|left| left > 0) {
            return Err(ClientError::Connection {
                at: at.to_owned(),
                reason: "broke off in the middle of the body".to_owned(),
            });
        }
        sink.flush().await.map_err(|source| ClientError::File { path: "output".to_owned(), source })
    }
}

struct Download {
    at: u64,
    end: Option<u64>,
    etag: Option<String>,
    crc: crc32fast::Hasher,
    expected: Option<u32>,
}

impl Download {
    fn check(&self, start: u64, what: &str) -> Result<(), ClientError> {
        let found = self.crc.clone().finalize();
        match self.expected {
            Some(expected) if start == 0 && self.end.is_none() && found != expected => {
                Err(ClientError::Crc { what: what.to_owned(), found, expected })
            }
            _ => Ok(()),
        }
    }
}

/// Opens a local file at an offset.
async fn open(path: &PathBuf, at: u64) -> Result<tokio::fs::File, ClientError> {
    let opened = async {
        let mut file = tokio::fs::File::open(path).await?;
        file.seek(SeekFrom::Start(at)).await?;
        Ok(file)
    };
    opened.await.map_err(|source| ClientError::File { path: path.display().to_string(), source })
}

fn pieces(
    reader: Box<dyn AsyncRead + Send + Unpin>,
    crc: Arc<Mutex<crc32fast::Hasher>>,
    progress: Progress,
) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    stream::try_unfold((reader, crc, progress), |(mut reader, crc, progress)| async move {
        let mut piece = Vec::with_capacity(PIECE);
        let read = (&mut reader).take(PIECE as u64).read_to_end(&mut piece).await?;
        if read == 0 {
            return Ok(None);
        }
        crc.lock().update(&piece);
        progress(read as u64);
        Ok(Some((Bytes::from(piece), (reader, crc, progress))))
    })
}
