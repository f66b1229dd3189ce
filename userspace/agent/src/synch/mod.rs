//! The synch channel: QUIC with mutual TLS 1.3 between members, one connection per link and pair.
//!
//! Of a pair, the member with the lower id dials. Streams carry records that must arrive in order, as frames with a
//! length in front; datagrams carry what is outdated by the next one. Only a peer whose certificate is signed by the
//! cluster's CA and names a configured member gets further than the TLS handshake, so garbage on the port changes
//! nothing. Queues are bounded: a peer that does not keep up loses its connection and comes back with a snapshot.

mod frame;
mod link;
mod tls;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use bytes::Bytes;
use model::MemberId;
use tokio::sync::mpsc;

use crate::pki::Identity;
use link::{Dialer, Listener, Shared, Slot};

/// One of the two paths between a pair of members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinkId {
    /// The synch network.
    Synch,
    /// The outside network.
    Outside,
}

impl LinkId {
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
    /// Handshakes and peers that were refused.
    pub refused: AtomicU64,
}

impl SynchCounters {
    pub(crate) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// What the channel is configured with.
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

/// The running channel.
pub struct Synch {
    slots: HashMap<(MemberId, LinkId), Arc<Slot>>,
    counters: Arc<SynchCounters>,
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
    /// A socket cannot be opened or the identity is unusable.
    pub fn start(
        config: &SynchConfig,
        identity: &Identity,
        events: mpsc::Sender<SynchEvent>,
    ) -> Result<Self> {
        let counters = Arc::new(SynchCounters::default());
        let mut slots = HashMap::new();
        let mut endpoints = Vec::new();
        let members = config.peers.iter().map(|p| p.0).collect::<Vec<_>>();
        for (link, listen) in &config.listen {
            let mut endpoint = tls::endpoint(*listen, config, identity)
                .with_context(|| format!("cannot open the {} link on {listen}", link.name()))?;
            endpoint.set_default_client_config(tls::client(config, identity)?);
            let mut listening = HashMap::new();
            for (peer, _, address) in config.peers.iter().filter(|p| p.1 == *link) {
                let slot = Arc::new(Slot::default());
                slots.insert((*peer, *link), slot.clone());
                let shared = Shared {
                    peer: *peer,
                    link: *link,
                    slot,
                    events: events.clone(),
                    counters: counters.clone(),
                };
                if config.me < *peer {
                    let name = crate::pki::member_name(&config.cluster, *peer);
                    tokio::spawn(
                        Dialer {
                            endpoint: endpoint.clone(),
                            address: *address,
                            name,
                            shared,
                        }
                        .run(),
                    );
                } else {
                    listening.insert(*peer, shared);
                }
            }
            let listener = Listener {
                endpoint: endpoint.clone(),
                cluster: config.cluster.clone(),
                members: members.clone(),
                peers: listening,
                counters: counters.clone(),
            };
            tokio::spawn(listener.run());
            endpoints.push(endpoint);
        }
        Ok(Self {
            slots,
            counters,
            endpoints,
        })
    }

    /// Queues a record for the peer's stream.
    ///
    /// # Errors
    /// The link is down, or the queue is full (then the connection is closed, since a gap cannot be tolerated).
    pub fn send_record(&self, peer: MemberId, link: LinkId, record: Vec<u8>) -> Result<(), SendError> {
        self.slots
            .get(&(peer, link))
            .ok_or(SendError::Down)?
            .send_record(record)
    }

    /// Sends a datagram, best effort.
    pub fn send_datagram(&self, peer: MemberId, link: LinkId, datagram: Bytes) {
        let length = datagram.len();
        let sent = self
            .slots
            .get(&(peer, link))
            .is_some_and(|slot| slot.send_datagram(datagram));
        let counter = if sent {
            &self.counters.datagram_sent
        } else {
            &self.counters.datagram_lost
        };
        SynchCounters::add(counter, if sent { length } else { 1 });
    }

    /// Closes the connection to a peer; it comes back by itself, fresh.
    pub fn reset(&self, peer: MemberId, link: LinkId, why: &str) {
        if let Some(slot) = self.slots.get(&(peer, link)) {
            slot.close(why);
        }
    }

    /// Counters.
    pub fn counters(&self) -> &SynchCounters {
        &self.counters
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
