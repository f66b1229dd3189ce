//! Talks HTTP over the agent's control socket.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// The agent is not there.
#[derive(Debug)]
pub struct NotRunning(pub String);

impl std::fmt::Display for NotRunning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for NotRunning {}

/// Longer than the agent's own patience with its core loop.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client of one control socket.
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    async fn request(&self, method: Method, path: &str, body: Vec<u8>) -> Result<(StatusCode, Bytes)> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
            let shown = self.socket.display();
            NotRunning(match error.kind() {
                std::io::ErrorKind::NotFound => {
                    format!("there is no control socket {shown}; is the agent running? Else give --socket or --config")
                }
                std::io::ErrorKind::ConnectionRefused => {
                    format!("nobody listens on {shown}; the agent has died: see its log, and start it again")
                }
                std::io::ErrorKind::PermissionDenied => format!("{shown} is not permitted; run as root"),
                _ => format!("cannot connect to {shown}: {error}"),
            })
        })?;
        let exchange = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "espalier")
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(body)))?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok::<_, anyhow::Error>((status, response.into_body().collect().await?.to_bytes()))
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(result) => result,
            Err(_) => Err(NotRunning(format!("the agent on {} does not answer", self.socket.display())).into()),
        }
    }

    pub async fn text(&self, path: &str) -> Result<String> {
        let (status, body) = self.request(Method::GET, path, Vec::new()).await?;
        let text = String::from_utf8_lossy(&body).into_owned();
        if !status.is_success() {
            bail!("the agent answered {status}: {text}");
        }
        Ok(text)
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let text = self.text(path).await?;
        serde_json::from_str(&text).context("the agent's answer is of another version; use the same version for both")
    }

    /// A command: a refusal (409) has an answer too.
    pub async fn post<W: Serialize, T: DeserializeOwned>(&self, path: &str, wish: &W) -> Result<T> {
        let (status, body) = self.request(Method::POST, path, serde_json::to_vec(wish)?).await?;
        if !status.is_success() && status != StatusCode::CONFLICT {
            bail!("the agent answered {status}: {}", String::from_utf8_lossy(&body));
        }
        serde_json::from_slice(&body).context("the agent's answer is of another version; use the same version for both")
    }
}
