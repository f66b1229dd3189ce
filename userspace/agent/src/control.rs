//! The control socket: HTTP with JSON over a Unix socket, for the command line; and `/metrics` over TCP.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};

use crate::metrics::Sample;
use crate::status::{EventEntry, Outcome, SaList, Status};

/// A wish of the command line, to the core loop.
pub enum Request {
    /// State of the member.
    Status(oneshot::Sender<Status>),
    /// SAs.
    Sas(oneshot::Sender<SaList>),
    /// Events after a number.
    Events(u64, oneshot::Sender<Vec<EventEntry>>),
    /// Values for /metrics.
    Metrics(oneshot::Sender<Sample>),
    /// Planned takeover, to a member or to the other one.
    Takeover(Option<u8>, oneshot::Sender<Outcome>),
    /// Rekey Child SAs by child's name (`connection/child` or `child`), or one by its inbound SPI.
    Rekey(RekeyWish, oneshot::Sender<Outcome>),
    /// Liveness check of a connection's IKE SAs.
    Liveness(String, oneshot::Sender<Outcome>),
    /// Initiate a connection.
    Initiate(String, oneshot::Sender<Outcome>),
    /// Delete a connection's IKE SAs.
    Terminate(String, oneshot::Sender<Outcome>),
}

/// What to rekey.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RekeyWish {
    /// Name of the child.
    pub child: Option<String>,
    /// Inbound SPI, hex.
    pub spi: Option<String>,
}

/// `POST /v1/takeover`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TakeoverWish {
    /// Member that is to own the segments; the other member of a pair if not given.
    pub to: Option<u8>,
}

/// A command about one connection.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ConnectionWish {
    /// Its name.
    pub connection: String,
}

/// `since=N` of a query.
fn since(uri: &Uri) -> u64 {
    let query = uri.query().unwrap_or_default();
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix("since="))
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

type Core = mpsc::Sender<Request>;

/// The core loop answers at once unless it hangs.
const PATIENCE: Duration = Duration::from_secs(15);

async fn ask<T>(core: &Core, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Response> {
    let failed = |text: &str| (StatusCode::SERVICE_UNAVAILABLE, text.to_owned()).into_response();
    let (answer, wait) = oneshot::channel();
    core.send(request(answer))
        .await
        .map_err(|_| failed("the agent is stopping"))?;
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(_)) => Err(failed("the agent is stopping")),
        Err(_) => Err(failed("the agent does not answer")),
    }
}

fn outcome(outcome: Outcome) -> Response {
    let code = if outcome.done {
        StatusCode::OK
    } else {
        StatusCode::CONFLICT
    };
    (code, Json(outcome)).into_response()
}

async fn command(core: &Core, request: impl FnOnce(oneshot::Sender<Outcome>) -> Request) -> Response {
    match ask(core, request).await {
        Ok(done) => outcome(done),
        Err(response) => response,
    }
}

async fn json<T: Serialize>(core: &Core, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Response {
    match ask(core, request).await {
        Ok(value) => Json(value).into_response(),
        Err(response) => response,
    }
}

async fn metrics(State(core): State<Core>) -> Response {
    match ask(&core, Request::Metrics).await {
        Ok(sample) => match sample.text() {
            Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        },
        Err(response) => response,
    }
}

fn routes(core: Core) -> Router {
    Router::new()
        .route(
            "/v1/status",
            get(async |State(core): State<Core>| json(&core, Request::Status).await),
        )
        .route(
            "/v1/sas",
            get(async |State(core): State<Core>| json(&core, Request::Sas).await),
        )
        .route(
            "/v1/events",
            get(async |State(core): State<Core>, uri: Uri| {
                json(&core, |answer| Request::Events(since(&uri), answer)).await
            }),
        )
        .route(
            "/v1/takeover",
            post(async |State(core): State<Core>, Json(wish): Json<TakeoverWish>| {
                command(&core, |answer| Request::Takeover(wish.to, answer)).await
            }),
        )
        .route(
            "/v1/rekey",
            post(async |State(core): State<Core>, Json(wish): Json<RekeyWish>| {
                command(&core, |answer| Request::Rekey(wish, answer)).await
            }),
        )
        .route(
            "/v1/liveness",
            post(
                async |State(core): State<Core>, Json(wish): Json<ConnectionWish>| {
                    command(&core, |answer| Request::Liveness(wish.connection, answer)).await
                },
            ),
        )
        .route(
            "/v1/initiate",
            post(
                async |State(core): State<Core>, Json(wish): Json<ConnectionWish>| {
                    command(&core, |answer| Request::Initiate(wish.connection, answer)).await
                },
            ),
        )
        .route(
            "/v1/terminate",
            post(
                async |State(core): State<Core>, Json(wish): Json<ConnectionWish>| {
                    command(&core, |answer| Request::Terminate(wish.connection, answer)).await
                },
            ),
        )
        .route("/metrics", get(metrics))
        .with_state(core)
}

/// Serves the control socket. A socket that a dead agent left behind is replaced; that of a live one is not.
///
/// # Errors
/// Another agent listens there, or the socket cannot be made.
pub fn serve_socket(path: &Path, core: Core) -> Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    }
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            bail!(
                "another agent listens on {}; stop it first, or give [control] socket another path",
                path.display()
            );
        }
        std::fs::remove_file(path)
            .with_context(|| format!("cannot remove the stale socket {}", path.display()))?;
    }
    let listener = UnixListener::bind(path)
        .with_context(|| format!("cannot open the control socket {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    tokio::spawn(async move { axum::serve(listener, routes(core)).await });
    Ok(())
}

/// Serves /metrics over TCP.
///
/// # Errors
/// The port is taken.
pub async fn serve_metrics(address: std::net::SocketAddr, core: Core) -> Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} for /metrics; change [control] metrics"))?;
    let router = Router::new().route("/metrics", get(metrics)).with_state(core);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(())
}
