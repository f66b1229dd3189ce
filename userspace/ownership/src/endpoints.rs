//! The endpoints of one etcd cluster, each with a connection of its own, and reads that do not wait for a dead one.
//!
//! The client library's balancer is not used: it would give every other request to an endpoint that is frozen until a
//! keep-alive notices. Here a read that is not answered soon is asked elsewhere as well, and whoever answers first is asked
//! first the next time.

use crate::error::{Fault, said};
use anyhow::{Context, Result, bail};
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, sleep, sleep_until};

/// Most endpoints of a configuration.
const ENDPOINTS_MAX: usize = 16;
/// An etcd server by default refuses HTTP/2 pings more often than every 5 s, and all of them on a connection without streams.
const HTTP2_PING: Duration = Duration::from_secs(6);
const HTTP2_PING_ANSWER: Duration = Duration::from_secs(2);
/// For connections without streams.
const TCP_KEEPALIVE: Duration = Duration::from_secs(5);
/// A read that is not answered for this long goes to the next endpoint as well. A healthy etcd on spinning disks needs less,
/// and a takeover has no time for more.
const PATIENCE: Duration = Duration::from_millis(50);
/// How often the certificates' files are looked at.
const FILES: Duration = Duration::from_secs(5);
/// First and longest wait before an endpoint that failed is asked again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));

/// Paths of what TLS needs, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTls {
    /// Certificate of the authority that the servers' certificates come from. No other one is trusted.
    pub ca: PathBuf,
    /// This member's client certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// When the three files were last changed.
type Changed = [Option<SystemTime>; 3];

/// One etcd server.
#[derive(Clone)]
pub struct Endpoint {
    /// As configured.
    pub url: String,
    client: Client,
}

impl Endpoint {
    /// A handle on the one connection to this endpoint.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// What this endpoint said, with its address.
    ///
    /// With TLS 1.3 a server that refuses the client's certificate does so after the client believes the handshake to be
    /// over, and the reason is lost below HTTP/2: then the connection is just closed.
    fn said(&self, error: &etcd_client::Error) -> String {
        let said = said(error);
        let closed =
            self.url.starts_with("https:") && said.contains("closed") && !said.contains("ertificate");
        let hint = if closed {
            "; does the server accept this member's client certificate?"
        } else {
            ""
        };
        format!("{}: {said}{hint}", self.url)
    }
}

/// All of them, and which one to ask first.
pub struct Endpoints {
    /// Replaced as a whole, in the same order, when the certificates change.
    all: RwLock<Arc<[Endpoint]>>,
    count: usize,
    preferred: AtomicUsize,
    timeout: Duration,
    /// The files, and when they had last been changed before they were read.
    tls: Option<(EtcdTls, Changed)>,
}

impl Endpoints {
    /// Checks addresses and certificates. Connects to nothing yet: an etcd that is down stops no start.
    ///
    /// # Errors
    /// No endpoint, too many, one that is no URL, a file that cannot be read, a certificate that is none.
    pub fn new(urls: &[String], tls: Option<&EtcdTls>, timeout: Duration) -> Result<Self> {
        if urls.is_empty() || urls.len() > ENDPOINTS_MAX {
            bail!(
                "etcd needs 1 to {ENDPOINTS_MAX} endpoints, there are {}",
                urls.len()
            );
        }
        if timeout.is_zero() {
            bail!("the request time-out of etcd must not be 0");
        }
        // Before they are read: a change in between is then seen as one.
        let tls_and_time = tls.map(|tls| (tls.clone(), changed_at(tls)));
        Ok(Self {
            all: RwLock::new(clients(urls, tls, timeout)?),
            count: urls.len(),
            preferred: AtomicUsize::new(0),
            timeout,
            tls: tls_and_time,
        })
    }

    /// Watches the files of the certificates; where one changes, requests go over new connections from then on. A watch that
    /// is under way stays on its old one. Ends at once without TLS.
    pub async fn follow_files(self: Arc<Self>) {
        let Some((tls, mut used)) = self.tls.clone() else {
            return;
        };
        let tls = &tls;
        let mut refused = None;
        loop {
            sleep(FILES).await;
            let now = changed_at(tls);
            if now == used || Some(&now) == refused.as_ref() {
                continue;
            }
            let urls: Vec<String> = self.all().iter().map(|e| e.url.clone()).collect();
            match clients(&urls, Some(tls), self.timeout) {
                Ok(all) => {
                    *self.all.write().unwrap_or_else(PoisonError::into_inner) = all;
                    used = now;
                    refused = None;
                    tracing::info!("the certificates for etcd have changed; new connections use them");
                }
                Err(error) => {
                    // Perhaps only one of two files is new yet. The other one's change is looked at again.
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the new certificates for etcd are not used"
                    );
                    refused = Some(now);
                }
            }
        }
    }

    fn all(&self) -> Arc<[Endpoint]> {
        Arc::clone(&self.all.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The time-out of a request.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// One of them; numbers go round.
    pub fn get(&self, number: usize) -> Endpoint {
        self.all()[number % self.count].clone()
    }

    /// The one that answered last.
    pub fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    /// How long an endpoint may think before the next one is asked as well.
    fn patience(&self) -> Duration {
        (self.timeout / 10).min(PATIENCE)
    }

    /// Asks until somebody answers, at most until `deadline`. Returns the endpoint that did, and what it said.
    ///
    /// Only for what may be executed several times: reads, and the creation of a key that is the same for all.
    ///
    /// # Errors
    /// [`Fault::Silent`] with the last thing heard.
    pub async fn ask<T, F>(
        &self,
        what: &str,
        deadline: Instant,
        question: impl Fn(Client) -> F,
    ) -> Result<(usize, T), Fault>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let all = self.all();
        let mut running = FuturesUnordered::new();
        let mut busy = vec![false; all.len()];
        let mut next = self.preferred();
        let mut failures = 0;
        let mut start_at = Instant::now();
        let mut last = None;
        loop {
            tokio::select! {
                biased;
                Some((number, answer)) = running.next(), if !running.is_empty() => {
                    let error = match answer {
                        Ok(answer) => {
                            self.preferred.store(number, Ordering::Relaxed);
                            return Ok((number, answer));
                        }
                        Err(error) => error,
                    };
                    busy[number] = false;
                    last = Some(all[number].said(&error));
                    failures += 1;
                    // Each of them at once, then all of them again after a while: in an election nobody has an answer.
                    let rounds = (failures / all.len()).min(8) as u32;
                    let wait = match failures % all.len() {
                        0 => (BACK_OFF.0 * 2u32.pow(rounds - 1)).min(BACK_OFF.1),
                        _ => Duration::ZERO,
                    };
                    start_at = Instant::now() + wait;
                }
                () = sleep_until(deadline) => {
                    return Err(Fault::Silent {
                        what: what.to_owned(),
                        within: self.timeout,
                        last: last.unwrap_or_else(|| "no endpoint said anything".to_owned()),
                    });
                }
                () = sleep_until(start_at), if busy.contains(&false) => {
                    let free = (next..next + all.len()).map(|n| n % all.len()).find(|n| !busy[*n]);
                    if let Some(number) = free {
                        busy[number] = true;
                        next = number + 1;
                        let answer = question(all[number].client());
                        running.push(async move { (number, answer.await) });
                    }
                    start_at = Instant::now() + self.patience();
                }
            }
        }
    }
}

/// One connection for each URL, made when it is first used.
fn clients(urls: &[String], tls: Option<&EtcdTls>, timeout: Duration) -> Result<Arc<[Endpoint]>> {
    let mut options = ConnectOptions::new()
        .with_keep_alive(HTTP2_PING, HTTP2_PING_ANSWER)
        .with_keep_alive_while_idle(false)
        .with_tcp_keepalive(TCP_KEEPALIVE)
        .with_connect_timeout(timeout)
        // A server that has lost its leader says so at once instead of waiting for one.
        .with_require_leader(true);
    if let Some(tls) = tls {
        options = options.with_tls(
            TlsOptions::new()
                .ca_certificate(Certificate::from_pem(read(&tls.ca)?))
                .identity(Identity::from_pem(read(&tls.cert)?, read(&tls.key)?)),
        );
    }
    let mut all = Vec::with_capacity(urls.len());
    for url in urls {
        let scheme = url.split_once("://").map(|(scheme, _)| scheme);
        match (scheme, tls) {
            (Some("http"), None) | (Some("https"), Some(_)) => {}
            (Some("http"), Some(_)) => {
                bail!("etcd endpoint {url} is not encrypted, but certificates are configured: write https")
            }
            (Some("https"), None) => bail!("etcd endpoint {url} needs certificates: ca, cert and key"),
            _ => bail!("etcd endpoint {url:?} must begin with http:// or https://"),
        }
        // Without a user name nothing in there waits; `unconstrained`, so that the runtime's budget does not make it.
        let connected = tokio::task::unconstrained(Client::connect([url], Some(options.clone())))
            .now_or_never()
            .context("the etcd client waits where it never did")?;
        let client = connected.map_err(|e| anyhow::anyhow!("etcd endpoint {url}: {}", said(&e)))?;
        all.push(Endpoint {
            url: url.clone(),
            client,
        });
    }
    Ok(all.into())
}

/// When the files were last changed; a file that cannot be looked at counts as one that never was.
fn changed_at(tls: &EtcdTls) -> Changed {
    [&tls.ca, &tls.cert, &tls.key].map(|path| fs::metadata(path).and_then(|m| m.modified()).ok())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {} for etcd", path.display()))
}
