//! HTTP over the agent's control socket.

use crate::Target;
use agent::api::Failure;
use agent::config::Config;
use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

/// Folder in which agents put their control sockets unless the configuration says otherwise.
const SOCKET_FOLDER: &str = "/run/espalier";

/// No agent answers.
#[derive(Debug)]
pub struct Unreachable(String);

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}

/// A control socket.
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The agent that `target` names; without any, the only one that runs on this host.
    pub fn new(target: &Target) -> Result<Self> {
        let socket = match (&target.socket, &target.config) {
            (Some(socket), _) => socket.clone(),
            (None, Some(config)) => Config::load(config)?.control.socket,
            (None, None) => only_socket(Path::new(SOCKET_FOLDER))?,
        };
        Ok(Self { socket })
    }

    /// `GET path`, as text.
    pub async fn get_text(&self, path: &str) -> Result<String> {
        self.request(Method::GET, path, Bytes::new()).await
    }

    /// `POST path` with a JSON body.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        parse(
            path,
            &self
                .request(Method::POST, path, serde_json::to_vec(body)?.into())
                .await?,
        )
    }

    async fn request(&self, method: Method, path: &str, body: Bytes) -> Result<String> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
            Unreachable(format!(
                "no agent answers at {}: {error}. Is it running (espalier run), and is this its socket (--socket, --config)?",
                self.socket.display()
            ))
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "espalier")
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        let response = sender
            .send_request(request)
            .await
            .context("the agent closed the connection")?;
        let status = response.status();
        let octets = response.into_body().collect().await?.to_bytes();
        driver.abort();
        let text = String::from_utf8(octets.to_vec()).context("the agent's answer is no text")?;
        if !status.is_success() {
            match serde_json::from_str::<Failure>(&text) {
                Ok(failure) => bail!("{}", failure.error),
                Err(_) => bail!("the agent answered {status}: {text}"),
            }
        }
        Ok(text)
    }
}

fn parse<T: DeserializeOwned>(path: &str, text: &str) -> Result<T> {
    serde_json::from_str(text)
        .with_context(|| format!("the agent's answer to {path} is of another version than this binary"))
}

fn only_socket(folder: &Path) -> Result<PathBuf> {
    let mut sockets: Vec<PathBuf> = std::fs::read_dir(folder)
        .map(|entries| {
            entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.extension().is_some_and(|e| e == "sock"))
                .collect()
        })
        .unwrap_or_default();
    sockets.sort();
    match sockets.as_slice() {
        [] => Err(Unreachable(format!(
            "no agent runs on this host (no socket in {}): start one with `espalier run --config FILE`, or name its socket with --socket",
            folder.display()
        ))
        .into()),
        [socket] => Ok(socket.clone()),
        several => {
            let list = several.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
            bail!("several agents run on this host: choose one with --socket ({list})")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("esp-cli-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the test");
        folder
    }

    #[test]
    fn without_a_socket_the_error_says_how_to_start_an_agent() {
        let folder = folder("none");
        let error = only_socket(&folder).expect_err("there is no socket");
        assert!(error.downcast_ref::<Unreachable>().is_some());
        assert!(error.to_string().contains("espalier run"), "{error}");
        std::fs::remove_dir_all(folder).expect("it was just made");
    }

    #[test]
    fn with_two_sockets_the_error_names_both() {
        let folder = folder("two");
        for name in ["a.sock", "b.sock", "c.txt"] {
            std::fs::write(folder.join(name), "").expect("writable");
        }
        let error = only_socket(&folder).expect_err("there are two").to_string();
        assert!(
            error.contains("a.sock") && error.contains("b.sock") && !error.contains("c.txt"),
            "{error}"
        );
        std::fs::remove_dir_all(folder).expect("it was just made");
    }
}
