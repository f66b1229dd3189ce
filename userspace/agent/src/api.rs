//! What the control socket answers: the one definition of every `--json` output. The binary's tables are drawn from it.
//!
//! HTTP over the Unix socket of `[control]`: `GET /v1/status`, `GET /v1/sas`, `GET /v1/events`, `GET /metrics`,
//! `POST /v1/takeover`, `POST /v1/rekey`, `POST /v1/liveness`, `POST /v1/reload-pki`. An error is a [`Failure`] with a 4xx or 5xx status.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `GET /v1/status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Name of the cluster.
    pub cluster: String,
    /// This member's id.
    pub member: u8,
    /// This member's name.
    pub name: String,
    /// `active`, `standby`, `joining`, `alone` (active without a standby), `starting` or `stopped`.
    pub role: String,
    /// Member that owns the segments, 0 for none.
    pub owner: u8,
    /// Ownership epoch.
    pub epoch: u64,
    /// Incarnation of this agent.
    pub incarnation: u64,
    /// Members (ids) whose acknowledgement every change waits for.
    pub in_sync: Vec<u8>,
    /// Milliseconds for which the owner word is still valid; negative once it has expired.
    pub valid_for_ms: i64,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// Segments by owner.
    pub segments: BTreeMap<u8, u32>,
    /// The other members.
    pub members: Vec<MemberStatus>,
    /// Journal.
    pub journal: JournalStatus,
    /// Configured connections.
    pub connections: Vec<ConnectionStatus>,
    /// Interfaces and how the programs are attached to them.
    pub interfaces: Vec<InterfaceStatus>,
    /// The last takeover that this member carried out.
    pub last_takeover: Option<TakeoverStatus>,
    /// Packets by verdict, all connections together; verdicts that never happened are left out.
    pub verdicts: BTreeMap<String, u64>,
    /// The synch channel: this member's certificate, its links, what was refused.
    #[serde(default)]
    pub channel: ChannelStatus,
}

/// The synch channel.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ChannelStatus {
    /// This member's certificate: serial number, hexadecimal.
    pub certificate: String,
    /// Common name of the CA that signed it.
    pub issuer: String,
    /// It is not valid after this, seconds since 1970.
    pub not_after: u64,
    /// Days left; negative once it has expired.
    pub days_left: i64,
    /// Whether links are still to be renewed with a new certificate.
    pub renewing: bool,
    /// Every configured link.
    pub links: Vec<ChannelLink>,
    /// Connections that became a link's, since the start.
    pub connections: u64,
    /// Connections refused or closed for what the other side did, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// A link to another member.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ChannelLink {
    /// Member.
    pub member: u8,
    /// `synch` or `outside`.
    pub link: String,
    /// Seconds for which the present connection has been there; `None` while there is none.
    pub up_s: Option<u64>,
    /// Round trip, milliseconds.
    pub rtt_ms: Option<f64>,
    /// The other member's release.
    pub release: Option<String>,
    /// Lowest and highest version of records that the other member reads.
    pub records: Option<(u8, u8)>,
    /// The other member's certificate: serial number, hexadecimal.
    pub certificate: Option<String>,
    /// Days until it expires.
    pub days_left: Option<i64>,
}

/// Another member, seen from here.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Id.
    pub id: u8,
    /// Name.
    pub name: String,
    /// `up`, `suspected` or `down`.
    pub state: String,
    /// Whether it is in the in-sync set.
    pub in_sync: bool,
    /// Links over which it was heard within the suspicion threshold.
    pub links_up: Vec<String>,
    /// Milliseconds since its last heartbeat on any link.
    pub last_heartbeat_ms: Option<u64>,
    /// Present suspicion threshold, milliseconds.
    pub suspicion_ms: u64,
}

/// The journal.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Last position written (owner) or applied (standby).
    pub position: u64,
    /// Last position that every in-sync member has acknowledged.
    pub committed: u64,
    /// Octets sent on the synch channel since the start.
    pub synch_bytes_sent: u64,
    /// Octets received on it.
    pub synch_bytes_received: u64,
}

/// A configured connection.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// Name.
    pub name: String,
    /// `up`, `connecting`, `down` or `mirrored` (on a standby).
    pub state: String,
    /// The peer's address, where known.
    pub remote: String,
    /// Child SAs.
    pub children: u32,
    /// Why it is down, the last reason.
    pub reason: Option<String>,
}

/// An interface with a program.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Name.
    pub name: String,
    /// `outside` or `inside`.
    pub side: String,
    /// `native` or `generic`.
    pub mode: String,
    /// MTU.
    pub mtu: u32,
}

/// A takeover that this member carried out. Times are milliseconds since `started_ns`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TakeoverStatus {
    /// `failover` or `planned`.
    pub kind: String,
    /// Why, one sentence.
    pub reason: String,
    /// The member that owned the segments before.
    pub from: u8,
    /// The new epoch.
    pub epoch: u64,
    /// Time of the last sign of life of the old owner (failover) or of the command (planned): `CLOCK_MONOTONIC`, ns.
    pub started_ns: u64,
    /// The same on the wall clock, ns since 1970.
    pub started_wall_ns: u64,
    /// Each phase's time since `started_ns`, ms: `suspected`, `claimed`, `flipped`, `announced`, `first_packet`.
    pub phases_ms: BTreeMap<String, f64>,
    /// Child SAs taken over.
    pub child_sas: u32,
    /// IKE SAs taken over.
    pub ike_sas: u32,
    /// Child SAs rekeyed on evidence since.
    pub evidence_rekeys: u32,
}

/// `GET /v1/sas`: a list of these.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct IkeSa {
    /// Connection.
    pub connection: String,
    /// Phase or `mirrored`.
    pub state: String,
    /// Our SPI, hexadecimal.
    pub spi_local: String,
    /// The peer's SPI.
    pub spi_remote: String,
    /// Whether we initiated it.
    pub initiator: bool,
    /// Our address and port.
    pub local: String,
    /// The peer's.
    pub remote: String,
    /// The peer's identity.
    pub remote_id: String,
    /// Negotiated algorithms.
    pub suite: String,
    /// Seconds since it was established, where known.
    pub age_s: Option<u64>,
    /// Our next request's Message ID.
    pub next_request_id: u32,
    /// The Message ID that we expect from the peer.
    pub expected_request_id: u32,
    /// Its Child SAs.
    pub children: Vec<ChildSa>,
}

/// A Child SA.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ChildSa {
    /// Child's name in the configuration.
    pub name: String,
    /// Inbound SPI, hexadecimal.
    pub spi_in: String,
    /// Outbound SPI.
    pub spi_out: String,
    /// Suite.
    pub suite: String,
    /// Extended sequence numbers.
    pub esn: bool,
    /// UDP encapsulation.
    pub udp_encap: bool,
    /// Our selectors.
    pub ts_local: Vec<String>,
    /// The peer's selectors.
    pub ts_remote: Vec<String>,
    /// Segment.
    pub segment: u8,
    /// CPU that serves it.
    pub cpu: u32,
    /// Packets in.
    pub packets_in: u64,
    /// Octets in.
    pub bytes_in: u64,
    /// Packets out.
    pub packets_out: u64,
    /// Octets out.
    pub bytes_out: u64,
    /// Right edge of the replay window.
    pub edge: u64,
    /// Ceiling in force.
    pub ceiling: u64,
    /// Last outbound sequence number.
    pub seq: u64,
    /// Lease in force.
    pub lease: u64,
}

/// `GET /v1/events`: a list of these, oldest first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LoggedEvent {
    /// `CLOCK_MONOTONIC`, ns.
    pub monotonic_ns: u64,
    /// ns since 1970.
    pub wall_ns: u64,
    /// Short name.
    pub kind: String,
    /// One sentence.
    pub text: String,
}

/// `POST /v1/takeover`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TakeoverRequest {
    /// Member that is to own the segments; the standby (or this member, if it is one) where not given.
    pub to: Option<u8>,
}

/// `POST /v1/rekey`: one of the fields.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RekeyRequest {
    /// All Child SAs of this connection.
    pub connection: Option<String>,
    /// The Child SA with this inbound SPI, hexadecimal.
    pub spi: Option<String>,
    /// The IKE SA of this connection.
    pub ike: Option<String>,
}

/// `POST /v1/liveness`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LivenessRequest {
    /// Connection.
    pub connection: String,
}

/// Answer to a command that was carried out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Done {
    /// What happened, one sentence.
    pub text: String,
    /// How long it took, ms.
    pub took_ms: f64,
}

/// Answer to a command that was not.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Failure {
    /// Cause and remedy.
    pub error: String,
}
