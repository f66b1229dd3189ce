//! A relay in front of one etcd node, which delays what passes, or holds back a request at the moment when it is sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// What the relay knows, and does.
#[derive(Default)]
struct Rules {
    /// How long each piece takes, in each direction.
    delay: Duration,
    /// The request that holds these octets stays here, and whatever its connection sends afterwards.
    hold: Option<Vec<u8>>,
}

/// A running relay.
pub struct Proxy {
    pub url: String,
    rules: Arc<Mutex<Rules>>,
    /// Whether a request is held.
    held: watch::Receiver<bool>,
    release: watch::Sender<bool>,
    /// Octets that the node has sent since a request was released.
    after: watch::Receiver<Vec<u8>>,
}

#[derive(Clone)]
struct Shared {
    rules: Arc<Mutex<Rules>>,
    held: Arc<watch::Sender<bool>>,
    release: watch::Receiver<bool>,
    after: Arc<watch::Sender<Vec<u8>>>,
}

impl Proxy {
    /// Relays to `http://ADDRESS`.
    pub async fn start(to: &str) -> Self {
        let to: SocketAddr = to
            .strip_prefix("http://")
            .expect("http")
            .parse()
            .expect("an address");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let rules = Arc::new(Mutex::new(Rules::default()));
        let (held_in, held) = watch::channel(false);
        let (release, released) = watch::channel(false);
        let (after_in, after) = watch::channel(Vec::new());
        let shared = Shared {
            rules: Arc::clone(&rules),
            held: Arc::new(held_in),
            release: released,
            after: Arc::new(after_in),
        };
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let Ok(node) = TcpStream::connect(to).await else {
                    continue;
                };
                let (client_in, client_out) = from.into_split();
                let (node_in, node_out) = node.into_split();
                tokio::spawn(requests(client_in, node_out, shared.clone()));
                tokio::spawn(answers(node_in, client_out, shared.clone()));
            }
        });
        Self {
            url,
            rules,
            held,
            release,
            after,
        }
    }

    pub fn delay(&self, delay: Duration) {
        self.rules.lock().expect("lock").delay = delay;
    }

    /// From now on holds back the request that contains `octets`.
    pub fn hold(&self, octets: &str) {
        self.rules.lock().expect("lock").hold = Some(octets.as_bytes().to_vec());
    }

    /// Waits until a request is held back.
    pub async fn holds(&self) {
        let mut held = self.held.clone();
        tokio::time::timeout(super::LONG, held.wait_for(|h| *h))
            .await
            .expect("nothing to hold came by")
            .expect("the relay lives");
    }

    /// Lets the held request, and nothing that was sent behind it, reach the node; waits until the node has sent `octets`.
    pub async fn release_until(&self, octets: &str) {
        self.release.send_replace(true);
        let mut after = self.after.clone();
        let seen = after.wait_for(|bytes| bytes.windows(octets.len()).any(|w| w == octets.as_bytes()));
        tokio::time::timeout(super::LONG, seen)
            .await
            .expect("the node never sent what was waited for")
            .expect("the relay lives");
    }
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut shared: Shared) {
    let mut piece = vec![0; 65536];
    let mut tail = Vec::new();
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        let at = Instant::now() + shared.rules.lock().expect("lock").delay;
        tail.extend_from_slice(&piece[..length]);
        let hold = shared.rules.lock().expect("lock").hold.clone();
        if hold.is_some_and(|h| tail.windows(h.len()).any(|w| w == h)) {
            shared.held.send_replace(true);
            if shared.release.wait_for(|r| *r).await.is_err() {
                return;
            }
            if to.write_all(&piece[..length]).await.is_err() {
                return;
            }
            // What the client sent behind it, the cancellation among it, never arrives. The connection stays open.
            let _ = shared.release.wait_for(|r| !*r).await;
            return;
        }
        tail.drain(..tail.len().saturating_sub(256));
        sleep_until(at).await;
        if to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: Shared) {
    let mut piece = vec![0; 65536];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        if *shared.release.borrow() {
            shared
                .after
                .send_modify(|after| after.extend_from_slice(&piece[..length]));
        }
        let delay = shared.rules.lock().expect("lock").delay;
        sleep_until(Instant::now() + delay).await;
        // The client may have given up; the node's octets still count.
        let _ = to.write_all(&piece[..length]).await;
    }
}
