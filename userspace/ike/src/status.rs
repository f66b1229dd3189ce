//! What `espalier status` and `espalier sas` show.

use crate::config::Resource;
use model::{EspSpi, IkeSpi, TrafficSelector};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConnectionPhase {
    /// No IKE SA.
    Down,
    /// An IKE SA is being set up.
    Connecting,
    /// An IKE SA is up, but not all `start` children are.
    Partial,
    /// The IKE SA and all `start` children are up.
    Up,
}

/// An IKE SA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IkeSaStatus {
    /// Connection; `None` before the peer has said who it is.
    pub connection: Option<String>,
    /// Our SPI.
    pub spi: IkeSpi,
    /// The peer's SPI, 0 while it is not known.
    pub peer_spi: IkeSpi,
    /// Whether we were the original initiator.
    pub initiator: bool,
    /// What it is doing, one word.
    pub phase: &'static str,
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// The peer's identity, once authenticated.
    pub remote_id: Option<String>,
    /// Addresses out of our pools that the peer uses.
    pub virtual_addresses: Vec<IpAddr>,
    /// Time since it was established on this member (taken over counts anew).
    pub age: Duration,
    /// Time since the peers authenticated each other, which rekeys do not change; a takeover does not either where it matters.
    pub authenticated: Option<Duration>,
    /// Time until we authenticate anew, or until the peer has to have done so.
    pub reauth_in: Option<Duration>,
    /// Chosen algorithms.
    pub suite: String,
    /// We are behind a NAT.
    pub nat_local: bool,
    /// The peer is behind a NAT.
    pub nat_remote: bool,
    /// Message ID of our next request.
    pub next_send: u32,
    /// Message ID that the peer's next request must have.
    pub next_receive: u32,
    /// A request of ours is unanswered.
    pub outstanding: bool,
    /// What was agreed with the peer beyond RFC 7296.
    pub agreed: Agreed,
    /// Child SAs.
    pub children: Vec<ChildSaStatus>,
}

/// Who the peer of an IKE SA is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IkeSaPeer<'a> {
    /// Connection; `None` before the peer has said who it is.
    pub connection: Option<&'a str>,
    /// The peer's identity, once authenticated.
    pub remote_id: Option<String>,
    /// Whether we were the original initiator.
    pub initiator: bool,
    /// As [`IkeSaStatus::phase`].
    pub phase: &'static str,
}

/// Extensions that both sides of an IKE SA use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// The peer gave a token by which it can prove a crash (RFC 6290).
    pub crash_detection: bool,
    /// The peer granted a ticket, or was granted one (RFC 5723).
    pub resumption: bool,
    /// Message IDs can be synchronised (RFC 6311).
    pub message_id_sync: bool,
    /// Sequence numbers can be raised on request (RFC 6311).
    pub counter_sync: bool,
    /// There may be Child SAs per resource beside a first one (RFC 9611).
    pub per_resource: bool,
}

impl Agreed {
    /// Names of what was agreed, in a fixed order.
    pub fn names(self) -> Vec<&'static str> {
        let all = [
            ("crash_detection", self.crash_detection),
            ("resumption", self.resumption),
            ("message_id_sync", self.message_id_sync),
            ("counter_sync", self.counter_sync),
            ("per_resource", self.per_resource),
        ];
        all.into_iter()
            .filter(|(_, on)| *on)
            .map(|(name, _)| name)
            .collect()
    }
}

/// A Child SA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildSaStatus {
    /// Name in the configuration.
    pub child: String,
    /// Our inbound SPI.
    pub spi_in: EspSpi,
    /// The peer's SPI.
    pub spi_out: EspSpi,
    /// Member and CPU that it is bound to (RFC 9611); `None`: any.
    pub resource: Option<Resource>,
    /// One word: `installed`, `rekeyed` (waits for its deletion), `deleting`.
    pub phase: &'static str,
    /// Chosen algorithms.
    pub suite: String,
    /// UDP encapsulation.
    pub udp_encap: bool,
    /// Narrowed selectors, our side.
    pub ts_local: Vec<TrafficSelector>,
    /// Narrowed selectors, the peer's side.
    pub ts_remote: Vec<TrafficSelector>,
    /// Time since it was installed on this member.
    pub age: Duration,
}

/// Message IDs of an IKE SA, both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageIdWindows {
    /// Message ID of our next request.
    pub next_send: u32,
    /// Whether the request before it is unanswered.
    pub outstanding: bool,
    /// Message ID that the peer's next request must have.
    pub next_receive: u32,
}
