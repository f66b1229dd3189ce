//! Requests on the agent's control socket. HTTP itself is read by a library; here it is what becomes of method, path and body.

use agent::api::{Done, Failure};
use agent::control::{Outcome, Request, routes};
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request as HttpRequest, StatusCode};
use serde::Serialize;
use std::sync::{Arc, Mutex};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tower_service::Service;

/// Longest answer to a request of this core, octets.
const ANSWER_MAX: usize = 1 << 16;

/// The first line is method and path, what follows is the body.
pub fn control(octets: &[u8]) {
    let end = octets.iter().position(|octet| *octet == b'\n');
    let (line, body) = octets.split_at(end.unwrap_or(octets.len()));
    let body = body.get(1..).unwrap_or_default();
    let Some((method, path)) = std::str::from_utf8(line)
        .ok()
        .and_then(|line| line.split_once(' '))
    else {
        return;
    };
    thread_local!(static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime"));
    RUNTIME.with(|runtime| runtime.block_on(ask(method, path, body)));
}

async fn ask(method: &str, path: &str, body: &[u8]) {
    let agrees = body.len().is_multiple_of(2);
    let Some(first) = request(method, path, body, agrees).await else {
        return;
    };
    let Some(wish) = first else { return };
    // The command line writes what the agent reads.
    let again = request(method, path, wish.as_bytes(), agrees).await;
    assert_eq!(again, Some(Some(wish)), "{method} {path}");
}

/// One request, and the wish that came of it; `None`: it is none that HTTP has.
async fn request(method: &str, path: &str, body: &[u8], agrees: bool) -> Option<Option<String>> {
    let request = HttpRequest::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_vec()))
        .ok()?;
    let is_head = request.method() == Method::HEAD;
    let (core, requests) = mpsc::channel(1);
    let asked = Arc::default();
    let answering = tokio::spawn(answer(requests, Arc::clone(&asked), agrees));
    let response = routes(core).call(request).await.expect("an answer, always");
    answering.await.expect("the core");
    let status = response.status();
    let text = to_bytes(response.into_body(), ANSWER_MAX)
        .await
        .expect("a short answer");
    let mut asked = std::mem::take(&mut *asked.lock().expect("nobody else"));
    assert!(asked.len() <= 1, "one wish of one request");
    let refused = match status {
        StatusCode::OK => {
            let done: Done = serde_json::from_slice(&text).expect("an answer to a command");
            assert!(agrees && asked.len() == 1 && done.text == SAID);
            None
        }
        // The core has refused it, or has ended.
        StatusCode::CONFLICT | StatusCode::SERVICE_UNAVAILABLE => Some(1),
        StatusCode::BAD_REQUEST
        | StatusCode::NOT_FOUND
        | StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::UNPROCESSABLE_ENTITY => Some(0),
        other => panic!("{method} {path} ended with {other}"),
    };
    if let Some(wishes) = refused {
        assert_eq!(asked.len(), wishes, "{method} {path}: {status}");
        // The answer to HEAD has no body, whatever it is.
        if !is_head {
            let failure: Failure = serde_json::from_slice(&text).expect("a failure by name");
            assert!(!failure.error.is_empty() && !failure.error.contains(char::is_control));
        }
    }
    Some(asked.pop().flatten())
}

/// What this core says.
const SAID: &str = "as you say";

/// A core that notes each wish, and does it or refuses it. Lists it does not give.
async fn answer(mut requests: mpsc::Receiver<Request>, asked: Arc<Mutex<Vec<Option<String>>>>, agrees: bool) {
    let say = |wish: Option<String>, answer: oneshot::Sender<Outcome>| {
        // Whoever asked may have gone.
        let _ = answer.send(if agrees { Ok(SAID.into()) } else { Err(SAID.into()) });
        wish
    };
    while let Some(request) = requests.recv().await {
        let wish = match request {
            Request::Takeover(wish, answer) => say(text(&wish), answer),
            Request::Stop(wish, answer) => say(text(&wish), answer),
            Request::StartOver(wish, answer) => say(text(&wish), answer),
            Request::Rekey(wish, answer) => say(text(&wish), answer),
            Request::Liveness(wish, answer) => say(text(&wish), answer),
            Request::Connection(wish, answer) => say(text(&wish), answer),
            Request::Redirect(wish, answer) => say(text(&wish), answer),
            Request::Reload(wish, _) => text(&wish),
            Request::Drain(answer)
            | Request::Undrain(answer)
            | Request::Rebalance(answer)
            | Request::ReloadPki(answer) => say(None, answer),
            Request::Status(_)
            | Request::Sas(_)
            | Request::Policies(_)
            | Request::Events(_)
            | Request::Metrics(_) => None,
        };
        asked.lock().expect("nobody else").push(wish);
    }
}

fn text(wish: &impl Serialize) -> Option<String> {
    Some(serde_json::to_string(wish).expect("a wish"))
}
