//! The synch channel: QUIC with mutual TLS 1.3 between members, one connection per link and pair.
//!
//! Of a pair, the member with the lower id dials. Streams carry records that must arrive in order, as frames; datagrams
//! carry what is outdated by the next one. A datagram that is not from a member's configured address ends in the kernel;
//! only a peer whose certificate is signed by the cluster's CA, is not revoked, and names the member configured at its
//! address gets further than the TLS handshake. Garbage on the port changes nothing. Queues are bounded, each peer has
//! its own: one that does not keep up loses its connection and comes back, and the others do not notice.

mod dial;
mod filter;
mod frame;
mod gate;
mod link;
mod listen;
mod refusal;
mod reload;
mod status;
mod tls;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use bytes::Bytes;
use model::MemberId;
use tokio::sync::{Notify, mpsc, watch};

use crate::pki::Identity;
use dial::Dialer;
use link::{Shared, Slot, code};
use listen::{Caller, Listener};
pub use refusal::{Refusal, Refusals};
use tls::Credentials;

/// Lowest and highest version of records that this release reads: what it tells its peers.
const RECORD_VERSIONS: (u8, u8) = (cluster::message::OLDEST, cluster::message::VERSION);

/// One of the two paths between a pair of members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinkId {
    /// The synch network.
    Synch,
    /// The outside network.
    Outside,
}

impl LinkId {
    /// Both, in the order in which they are renewed.
    pub const ALL: [Self; 2] = [Self::Synch, Self::Outside];

    /// For logs and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Synch => "synch",
            Self::Outside => "outside",
        }
    }
}

/// What the channel tells the core loop.
#[derive(Debug)]
pub enum SynchEvent {
    /// A link came up.
    Up(MemberId, LinkId),
    /// A link went down; a new `Up` follows when it is back.
    Down(MemberId, LinkId, String),
    /// A record from the peer's stream, in order.
    Record(MemberId, LinkId, Vec<u8>),
    /// A datagram.
    Datagram(MemberId, LinkId, Bytes),
}

/// Octets that the channel has carried.
#[derive(Default)]
pub struct SynchCounters {
    /// Octets sent in streams.
    pub stream_sent: AtomicU64,
    /// Octets received in streams.
    pub stream_received: AtomicU64,
    /// Octets sent as datagrams.
    pub datagram_sent: AtomicU64,
    /// Octets received as datagrams.
    pub datagram_received: AtomicU64,
    /// Datagrams that were not sent or not taken, because a queue was full.
    pub datagram_lost: AtomicU64,
    /// Connections that became a link's.
    pub connections: AtomicU64,
}

impl SynchCounters {
    pub(crate) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// What the channel is configured with.
#[derive(Clone)]
pub struct SynchConfig {
    /// Name of the cluster.
    pub cluster: String,
    /// This member.
    pub me: MemberId,
    /// This member's address on each link.
    pub listen: Vec<(LinkId, SocketAddr)>,
    /// Every other member's address on each link.
    pub peers: Vec<(MemberId, LinkId, SocketAddr)>,
    /// A connection without any sign of life for this long is closed.
    pub idle: std::time::Duration,
}

/// Records that may wait for a peer; more close the connection.
const STREAM_QUEUE: usize = 16_384;
/// Octets of records that may wait for a peer; more close the connection.
const QUEUE_OCTETS: usize = 256 << 20;

/// What an address of a member may cause before it has shown a certificate.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Handshakes under way at a time.
    half_open: usize,
    /// Handshakes begun at once.
    burst: u32,
    /// Handshakes begun in a second, in the long run.
    per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            half_open: 4,
            burst: 16,
            per_second: 20,
        }
    }
}

/// What all tasks of the channel share.
struct Inner {
    config: SynchConfig,
    slots: HashMap<(MemberId, LinkId), Arc<Slot>>,
    counters: Arc<SynchCounters>,
    refusals: Arc<Refusals>,
    credentials: watch::Sender<Arc<Credentials>>,
    renew: Arc<Notify>,
}

/// The running channel.
pub struct Synch {
    inner: Arc<Inner>,
    endpoints: Vec<quinn::Endpoint>,
}

/// Why a record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no connection.
    #[error("the link is down")]
    Down,
    /// The peer does not keep up; the connection was closed.
    #[error("the peer does not keep up")]
    Backlogged,
}

impl Synch {
    /// Opens the sockets and starts dialling. Needs a tokio runtime.
    ///
    /// # Errors
    /// A socket cannot be bound, or the certificates do not fit together.
    pub fn start(
        config: &SynchConfig,
        identity: &Identity,
        events: mpsc::Sender<SynchEvent>,
    ) -> Result<Self> {
        Self::start_with(config, identity, events, Limits::default())
    }

    fn start_with(
        config: &SynchConfig,
        identity: &Identity,
        events: mpsc::Sender<SynchEvent>,
        limits: Limits,
    ) -> Result<Self> {
        let current = Arc::new(Credentials::new(config, identity, 1)?);
        if let Err(error) = current.check_own(config) {
            // Alone it can serve all the same.
            tracing::warn!("no other member will talk to this one: {error:#}");
        }
        let credentials = watch::Sender::new(current.clone());
        let counters = Arc::new(SynchCounters::default());
        let refusals = Arc::new(Refusals::default());
        let mut slots = HashMap::new();
        let mut endpoints = Vec::new();
        for (link, listen) in &config.listen {
            let peers = config.peers.iter().filter(|p| p.1 == *link).collect::<Vec<_>>();
            let addresses = peers.iter().map(|p| p.2).collect::<Vec<_>>();
            let endpoint = tls::endpoint((*link, *listen), &addresses, identity, &current, refusals.clone())
                .with_context(|| format!("cannot open the {} link on {listen}", link.name()))?;
            let mut callers = HashMap::new();
            for (peer, _, address) in &peers {
                let slot = Arc::new(Slot::default());
                slots.insert((*peer, *link), slot.clone());
                let shared = Shared {
                    peer: *peer,
                    link: *link,
                    dials: config.me < *peer,
                    slot,
                    order: Arc::default(),
                    events: events.clone(),
                    counters: counters.clone(),
                    refusals: refusals.clone(),
                };
                if shared.dials {
                    let dialer = Dialer {
                        endpoint: endpoint.clone(),
                        address: *address,
                        name: crate::pki::member_name(&config.cluster, *peer),
                        credentials: credentials.subscribe(),
                        shared,
                    };
                    tokio::spawn(dialer.run());
                } else {
                    callers.insert(*address, Caller::new(shared, limits));
                }
            }
            let listener = Listener {
                endpoint: endpoint.clone(),
                link: *link,
                cluster: config.cluster.clone(),
                callers,
                members: peers.iter().map(|p| (p.2, p.0)).collect(),
                limits,
                credentials: credentials.subscribe(),
                refusals: refusals.clone(),
            };
            tokio::spawn(listener.run());
            endpoints.push(endpoint);
        }
        let inner = Arc::new(Inner {
            config: config.clone(),
            slots,
            counters,
            refusals,
            credentials,
            renew: Arc::default(),
        });
        tokio::spawn(reload::renew(Arc::downgrade(&inner), inner.renew.clone()));
        tokio::spawn(reload::watch_expiry(Arc::downgrade(&inner)));
        Ok(Self { inner, endpoints })
    }

    /// Queues a record for the peer's stream.
    ///
    /// # Errors
    /// The link is down, or the queue is full (then the connection is closed, since a gap cannot be tolerated).
    pub fn send_record(&self, peer: MemberId, link: LinkId, record: Vec<u8>) -> Result<(), SendError> {
        let slot = self.inner.slots.get(&(peer, link)).ok_or(SendError::Down)?;
        slot.send_record(record, || {
            let who = format_args!("member {peer}");
            self.inner
                .refusals
                .note(Refusal::Backlogged, &who, link.name(), "");
        })
    }

    /// Sends a datagram, best effort.
    pub fn send_datagram(&self, peer: MemberId, link: LinkId, datagram: Bytes) {
        let length = datagram.len();
        let sent = self
            .inner
            .slots
            .get(&(peer, link))
            .is_some_and(|slot| slot.send_datagram(datagram));
        let counter = if sent {
            &self.inner.counters.datagram_sent
        } else {
            &self.inner.counters.datagram_lost
        };
        SynchCounters::add(counter, if sent { length } else { 1 });
    }

    /// Closes the connection to a peer; it comes back by itself, fresh.
    pub fn reset(&self, peer: MemberId, link: LinkId, why: &str) {
        if let Some(slot) = self.inner.slots.get(&(peer, link)) {
            slot.close(code::RESET, why);
        }
    }

    /// Counters.
    pub fn counters(&self) -> &SynchCounters {
        &self.inner.counters
    }

    /// What was refused.
    pub fn refusals(&self) -> &Refusals {
        &self.inner.refusals
    }

    /// Lowest and highest version of records that a peer reads, as it said on the link that is up; `None` while none is.
    pub fn record_versions(&self, peer: MemberId) -> Option<(u8, u8)> {
        let slots = LinkId::ALL
            .iter()
            .filter_map(|link| self.inner.slots.get(&(peer, *link)));
        slots
            .filter_map(|slot| slot.facts())
            .map(|facts| facts.greeting.records)
            .next()
    }

    /// Says goodbye on all connections.
    pub async fn close(&self) {
        for endpoint in &self.endpoints {
            endpoint.close(0_u32.into(), b"the agent stops");
        }
        for endpoint in &self.endpoints {
            let _ = tokio::time::timeout(std::time::Duration::from_millis(200), endpoint.wait_idle()).await;
        }
    }
}

#[cfg(test)]
mod tests;
