//! The control socket: HTTP with JSON over a Unix socket, for the command line; and `/metrics` over TCP.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Json;
use axum::Router;
use axum::extract::{FromRequest, Request as HttpRequest, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::api::{
    ConnectionRequest, Done, Failure, IkeSa, LivenessRequest, LoggedEvent, Policies, RedirectRequest,
    RekeyRequest, ReloadReport, ReloadRequest, StartOverRequest, Status, StopRequest, TakeoverRequest,
};
use crate::clock;
use crate::metrics::Sample;
use crate::text::on_one_line;

/// What a command came to: one sentence, or cause and remedy.
pub type Outcome = Result<String, String>;

/// A wish of the command line, to the core loop.
pub enum Request {
    /// State of the member.
    Status(oneshot::Sender<Status>),
    /// SAs.
    Sas(oneshot::Sender<Vec<IkeSa>>),
    /// `GET /v1/policies`.
    Policies(oneshot::Sender<Policies>),
    /// The event log.
    Events(oneshot::Sender<Vec<LoggedEvent>>),
    /// Values for /metrics.
    Metrics(oneshot::Sender<Sample>),
    /// Planned takeover.
    Takeover(TakeoverRequest, oneshot::Sender<Outcome>),
    /// Stop the agent.
    Stop(StopRequest, oneshot::Sender<Outcome>),
    /// Hand over everything and take nothing back.
    Drain(oneshot::Sender<Outcome>),
    /// The end of it.
    Undrain(oneshot::Sender<Outcome>),
    /// Groups go to the members that they are meant for.
    Rebalance(oneshot::Sender<Outcome>),
    /// Begin anew with lost groups.
    StartOver(StartOverRequest, oneshot::Sender<Outcome>),
    /// Rekey.
    Rekey(RekeyRequest, oneshot::Sender<Outcome>),
    /// Liveness check of a connection's IKE SAs.
    Liveness(LivenessRequest, oneshot::Sender<Outcome>),
    /// Bring a connection up or down.
    Connection(ConnectionRequest, oneshot::Sender<Outcome>),
    /// Read the configuration again.
    Reload(ReloadRequest, oneshot::Sender<Result<ReloadReport, String>>),
    /// Send a connection's peers to another gateway.
    Redirect(RedirectRequest, oneshot::Sender<Outcome>),
    /// Read certificates, authorities and revocation lists again.
    ReloadPki(oneshot::Sender<Outcome>),
}

/// Answers get so much time when the agent stops.
const CLOSING: Duration = Duration::from_millis(500);

type Core = mpsc::Sender<Request>;

/// The core loop answers at once unless it hangs, and the end of a command comes within its own limit: at most 42 s for the
/// move of 64 groups.
const PATIENCE: Duration = Duration::from_secs(45);

fn failure(code: StatusCode, text: &str) -> Response {
    (
        code,
        Json(Failure {
            error: text.to_owned(),
        }),
    )
        .into_response()
}

/// What a request wishes, as JSON. One that cannot be read is refused in the same form as all others.
struct Wish<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Wish<T> {
    type Rejection = Response;

    async fn from_request(request: HttpRequest, state: &S) -> Result<Self, Response> {
        match Json::from_request(request, state).await {
            Ok(Json(wish)) => Ok(Self(wish)),
            // It quotes fields as they came.
            Err(why) => Err(failure(why.status(), &on_one_line(why.body_text()))),
        }
    }
}

/// A command that this version does not know.
async fn unknown(method: Method, uri: Uri) -> Response {
    let text = format!(
        "this agent knows no {method} {}; its version and that of the command line differ",
        uri.path()
    );
    failure(StatusCode::NOT_FOUND, &text)
}

async fn ask<T>(core: &Core, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Response> {
    let failed = |text: &str| failure(StatusCode::SERVICE_UNAVAILABLE, text);
    let (answer, wait) = oneshot::channel();
    core.send(request(answer))
        .await
        .map_err(|_| failed("the agent is stopping"))?;
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(_)) => Err(failed("the agent is stopping")),
        Err(_) => Err(failed("the agent did not finish in time; see espalier events")),
    }
}

async fn command(core: &Core, request: impl FnOnce(oneshot::Sender<Outcome>) -> Request) -> Response {
    let began = clock::now();
    match ask(core, request).await {
        Ok(Ok(text)) => {
            let took_ms = clock::now().since(began).as_secs_f64() * 1000.0;
            Json(Done { text, took_ms }).into_response()
        }
        Ok(Err(why)) => failure(StatusCode::CONFLICT, &why),
        Err(response) => response,
    }
}

async fn json<T: Serialize + Send + 'static>(
    core: &Core,
    request: impl FnOnce(oneshot::Sender<T>) -> Request,
) -> Response {
    match ask(core, request).await {
        Ok(value) => encoded(value).await,
        Err(response) => response,
    }
}

/// As JSON; made beside the core loop, which shares this thread: a list may have a hundred thousand SAs.
async fn encoded<T: Serialize + Send + 'static>(value: T) -> Response {
    match tokio::task::spawn_blocking(move || serde_json::to_vec(&value)).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Ok(Err(error)) => failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
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

/// What the control socket answers: an error is a [`Failure`], always.
pub fn routes(core: mpsc::Sender<Request>) -> Router {
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
            "/v1/policies",
            get(async |State(core): State<Core>| json(&core, Request::Policies).await),
        )
        .route(
            "/v1/events",
            get(async |State(core): State<Core>| json(&core, Request::Events).await),
        )
        .route(
            "/v1/takeover",
            post(
                async |State(core): State<Core>, Wish(wish): Wish<TakeoverRequest>| {
                    command(&core, |answer| Request::Takeover(wish, answer)).await
                },
            ),
        )
        .route(
            "/v1/stop",
            post(async |State(core): State<Core>, Wish(wish): Wish<StopRequest>| {
                command(&core, |answer| Request::Stop(wish, answer)).await
            }),
        )
        .route(
            "/v1/drain",
            post(async |State(core): State<Core>| command(&core, Request::Drain).await),
        )
        .route(
            "/v1/undrain",
            post(async |State(core): State<Core>| command(&core, Request::Undrain).await),
        )
        .route(
            "/v1/rebalance",
            post(async |State(core): State<Core>| command(&core, Request::Rebalance).await),
        )
        .route(
            "/v1/start-over",
            post(
                async |State(core): State<Core>, Wish(wish): Wish<StartOverRequest>| {
                    command(&core, |answer| Request::StartOver(wish, answer)).await
                },
            ),
        )
        .route(
            "/v1/rekey",
            post(async |State(core): State<Core>, Wish(wish): Wish<RekeyRequest>| {
                command(&core, |answer| Request::Rekey(wish, answer)).await
            }),
        )
        .route(
            "/v1/liveness",
            post(
                async |State(core): State<Core>, Wish(wish): Wish<LivenessRequest>| {
                    command(&core, |answer| Request::Liveness(wish, answer)).await
                },
            ),
        )
        .route(
            "/v1/connection",
            post(
                async |State(core): State<Core>, Wish(wish): Wish<ConnectionRequest>| {
                    command(&core, |answer| Request::Connection(wish, answer)).await
                },
            ),
        )
        .route(
            "/v1/reload",
            post(
                async |State(core): State<Core>, Wish(wish): Wish<ReloadRequest>| match ask(&core, |answer| {
                    Request::Reload(wish, answer)
                })
                .await
                {
                    Ok(Ok(report)) => Json(report).into_response(),
                    Ok(Err(why)) => failure(StatusCode::CONFLICT, &why),
                    Err(response) => response,
                },
            ),
        )
        .route(
            "/v1/redirect",
            post(
                async |State(core): State<Core>, Wish(wish): Wish<RedirectRequest>| {
                    command(&core, |answer| Request::Redirect(wish, answer)).await
                },
            ),
        )
        .route(
            "/v1/reload-pki",
            post(async |State(core): State<Core>| command(&core, Request::ReloadPki).await),
        )
        .route("/metrics", get(metrics))
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .with_state(core)
}

/// The control socket's file, removed when dropped; unless another agent has put its own there meanwhile.
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
    end: Arc<Notify>,
    server: JoinHandle<std::io::Result<()>>,
}

impl SocketFile {
    /// Answers that are on their way are sent to their end; nobody is listened to any more.
    pub async fn close(mut self) {
        self.end.notify_one();
        // Whoever does not read its answer is not waited for.
        let _ = tokio::time::timeout(CLOSING, &mut self.server).await;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Serves the control socket. A socket that a dead agent left behind is replaced; that of a live one is not.
///
/// # Errors
/// Another agent listens there, or the socket cannot be made.
pub fn serve_socket(path: &Path, core: Core) -> Result<SocketFile> {
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
    let inode = std::fs::symlink_metadata(path)?.ino();
    let end = Arc::new(Notify::new());
    let told = end.clone();
    let server = tokio::spawn(async move {
        let server = axum::serve(listener, routes(core));
        server
            .with_graceful_shutdown(async move { told.notified().await })
            .await
    });
    Ok(SocketFile {
        path: path.to_owned(),
        inode,
        end,
        server,
    })
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
