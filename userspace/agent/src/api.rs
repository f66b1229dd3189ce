//! What the control socket answers: the one definition of every `--json` output. The binary's tables are drawn from it.
//!
//! HTTP over the Unix socket of `[control]`: `GET /v1/status`, `GET /v1/sas`, `GET /v1/policies`, `GET /v1/events`,
//! `GET /metrics`,
//! `POST /v1/takeover`, `POST /v1/drain`, `POST /v1/undrain`, `POST /v1/rebalance`, `POST /v1/start-over`, `POST /v1/rekey`,
//! `POST /v1/liveness`, `POST /v1/connection`, `POST /v1/reload`, `POST /v1/reload-pki`. An error is a [`Failure`] with a 4xx or 5xx status.

pub use crate::config::diff::Effect;
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
    /// `hot-standby` or `load-sharing`.
    pub mode: String,
    /// Ownership engine: `pair` or `etcd`.
    pub engine: String,
    /// `active`, `standby`, `joining`, `alone` (active without a standby), `starting` or `stopped`. With several groups:
    /// `active` if it owns any.
    pub role: String,
    /// Member that owns the segments, 0 for none. With several groups this and `epoch` are those of group 0.
    pub owner: u8,
    /// Ownership epoch.
    pub epoch: u64,
    /// Incarnation of this agent.
    pub incarnation: u64,
    /// Members (ids) whose acknowledgement every change waits for; with several groups, those that are in sync in all.
    pub in_sync: Vec<u8>,
    /// Milliseconds for which the owner word is still valid; negative once it has expired.
    pub valid_for_ms: i64,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// Segments by owner.
    pub segments: BTreeMap<u8, u32>,
    /// Groups of segments: the units of ownership, in their order. One in a hot-standby cluster.
    #[serde(default)]
    pub groups: Vec<GroupLine>,
    /// The member is being drained.
    #[serde(default)]
    pub draining: bool,
    /// Why the member's data plane does not work, if it does not.
    #[serde(default)]
    pub trouble: Option<String>,
    /// The ownership engine does not answer.
    #[serde(default)]
    pub engine_silent: Option<EngineSilence>,
    /// Newest format of the records on the synch channel that this member speaks.
    #[serde(default)]
    pub record_format: u8,
    /// Newest one that its release knows.
    #[serde(default)]
    pub record_format_newest: u8,
    /// The cluster secret.
    #[serde(default)]
    pub secret: SecretStatus,
    /// The other members.
    pub members: Vec<MemberStatus>,
    /// Journal.
    pub journal: JournalStatus,
    /// Configured connections.
    pub connections: Vec<ConnectionStatus>,
    /// Pools of virtual addresses.
    #[serde(default)]
    pub pools: Vec<PoolStatus>,
    /// Interfaces and how the programs are attached to them.
    pub interfaces: Vec<InterfaceStatus>,
    /// The last takeover that this member carried out or knows of.
    pub last_takeover: Option<TakeoverStatus>,
    /// The last one of each group.
    #[serde(default)]
    pub takeovers: Vec<TakeoverStatus>,
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

/// One group of segments, seen from here.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GroupLine {
    /// Number.
    pub group: u8,
    /// How many of the 256 segments are in it.
    pub segments: u32,
    /// Member that owns it, 0 for none.
    pub owner: u8,
    /// Ownership epoch.
    pub epoch: u64,
    /// This member's role in it: `active`, `alone`, `standby`, `joining` or `starting`.
    pub role: String,
    /// The member that it is meant for.
    pub home: u8,
    /// The in-sync set, as far as known.
    pub in_sync: Vec<u8>,
    /// How the owner stands, where this member is the owner: `with_standby`, `alone`, `alone_unfenced`.
    pub standing: Option<String>,
    /// Last journal position written (owner) or armed (standby).
    pub position: u64,
    /// Last position that every in-sync member has acknowledged (owner).
    pub committed: u64,
    /// A planned takeover is under way.
    pub handover: bool,
    /// Child SAs that a lost standby knew, and that are not rekeyed yet.
    #[serde(default)]
    pub suspects: u32,
    /// A planned takeover by this member waits for their rekeys.
    #[serde(default)]
    pub move_waits: Option<u8>,
    /// A claim or a change of the in-sync set waits for the ownership engine.
    pub engine_waits: bool,
}

/// The ownership engine does not answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EngineSilence {
    /// For how long, ms.
    pub for_ms: u64,
    /// What it said last, or what happened.
    pub why: String,
}

/// Cluster secrets that this member knows, by names that say nothing of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SecretStatus {
    /// In use.
    pub active: String,
    /// The one that it goes over to with the others.
    pub next: Option<String>,
    /// The one before, which is still honoured.
    pub before: Option<String>,
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
    /// Whether it is in the in-sync set (with several groups: of every one).
    pub in_sync: bool,
    /// Share in load sharing, as configured; 0 for a pure standby.
    #[serde(default)]
    pub weight: u32,
    /// Groups that it owns.
    #[serde(default)]
    pub groups_owned: u32,
    /// Its data plane works, as it says.
    #[serde(default)]
    pub healthy: bool,
    /// It is being drained.
    #[serde(default)]
    pub draining: bool,
    /// Name of the cluster secret that it uses; `None` while it is not heard, or its release does not say it.
    #[serde(default)]
    pub secret: Option<String>,
    /// Format of the records that the two members use with each other; `None` while it is not heard.
    #[serde(default)]
    pub record_format: Option<u8>,
    /// Parts of its configuration that differ from this member's and must not.
    #[serde(default)]
    pub differs: Vec<String>,
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
    /// The peer's addresses in the order in which they are tried, or `any`.
    pub remote: String,
    /// Child SAs.
    pub children: u32,
    /// Why it is down, the last reason.
    pub reason: Option<String>,
    /// Attempts to set it up since it was up last, on the member that initiates it.
    #[serde(default)]
    pub retry: Option<RetryStatus>,
    /// Extensions agreed on with the peer, on the member that serves it: `crash_detection`, `resumption`, `message_id_sync`,
    /// `counter_sync`, `per_resource`.
    #[serde(default)]
    pub agreed: Vec<String>,
    /// The certificate that we prove ourselves by, if it is one.
    #[serde(default)]
    pub certificate: Option<CertificateStatus>,
}

/// Attempts to set up a connection.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RetryStatus {
    /// How many so far, the one under way included.
    pub attempts: u32,
    /// Where the last one went.
    pub last_remote: Option<String>,
    /// Where the next one goes; `None` while one is under way.
    pub next_remote: Option<String>,
    /// In how many milliseconds it is due; `None` while one is under way.
    pub next_in_ms: Option<u64>,
}

/// A pool of virtual addresses.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Name.
    pub name: String,
    /// Network.
    pub network: String,
    /// Addresses that can be given away, by all members together.
    pub size: u32,
    /// Addresses that peers of this member use.
    pub used: u32,
}

/// A certificate of a connection.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// Whose it is.
    pub subject: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// It is not valid after this, seconds since 1970.
    pub not_after: u64,
    /// Days left; negative once it has expired.
    pub days_left: i64,
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

/// A takeover that this member carried out, or that it knows of by another one's word. Times are milliseconds since
/// `started_ns`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TakeoverStatus {
    /// Which group of segments.
    #[serde(default)]
    pub group: u8,
    /// `failover` or `planned`.
    pub kind: String,
    /// Why, one sentence.
    pub reason: String,
    /// The member that owned the segments before.
    pub from: u8,
    /// The member that took them over.
    #[serde(default)]
    pub to: u8,
    /// The new epoch.
    pub epoch: u64,
    /// Time of the last sign of life of the old owner (failover) or of the command (planned): `CLOCK_MONOTONIC`, ns.
    pub started_ns: u64,
    /// The same on the wall clock, ns since 1970.
    pub started_wall_ns: u64,
    /// Each phase's time since `started_ns`, ms: `suspected`, `claimed`, `flipped`, `announced`, `resumed` (all IKE SAs
    /// adopted), `first_packet`, `windows_merged`. Of another member's takeover: `suspected`, `heard_of`.
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
    /// Segment.
    #[serde(default)]
    pub segment: u8,
    /// Whether we initiated it.
    pub initiator: bool,
    /// Our address and port.
    pub local: String,
    /// The peer's.
    pub remote: String,
    /// The peer's identity.
    pub remote_id: String,
    /// Addresses out of our pools that the peer uses.
    #[serde(default)]
    pub virtual_addresses: Vec<String>,
    /// Negotiated algorithms.
    pub suite: String,
    /// Extensions agreed on with the peer, as in [`ConnectionStatus`].
    #[serde(default)]
    pub agreed: Vec<String>,
    /// Seconds since it was established, where known.
    pub age_s: Option<u64>,
    /// Seconds since the peers authenticated each other, which rekeys do not change.
    #[serde(default)]
    pub authenticated_s: Option<u64>,
    /// Seconds until we authenticate anew (as initiator), or until the IKE SA ends unless the peer has done so.
    #[serde(default)]
    pub reauth_in_s: Option<u64>,
    /// Our next request's Message ID.
    pub next_request_id: u32,
    /// The Message ID that we expect from the peer.
    pub expected_request_id: u32,
    /// Its Child SAs.
    pub children: Vec<ChildSa>,
}

/// `GET /v1/policies`: the policies by precedence.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Policies {
    /// Rules: of those that match a packet, the first one decides.
    pub rules: Vec<PolicyRule>,
    /// Rules of SAs that were left out, because there are too many.
    pub left_out: usize,
}

/// One rule.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PolicyRule {
    /// Destination prefix.
    pub destination: String,
    /// Source: a prefix, or first and last address.
    pub source: String,
    /// IP protocol; `None` for any.
    pub protocol: Option<u8>,
    /// First and last source port; `None` for any.
    pub source_ports: Option<(u16, u16)>,
    /// First and last destination port; `None` for any.
    pub destination_ports: Option<(u16, u16)>,
    /// `protect`, `trap` (no SA: dropped), `hold` (no SA: waits for one), `bypass` or `discard`.
    pub action: String,
    /// Connection and child, or the policy's name.
    pub name: String,
    /// Inbound SPI of the SA that protects, hexadecimal.
    pub spi_in: Option<String>,
}

/// What an SA has carried, on all members that had it, and what it may; 0: no limit.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LifeStatus {
    /// Octets in, as far as known here.
    pub bytes_in: u64,
    /// Octets out.
    pub bytes_out: u64,
    /// Packets in.
    pub packets_in: u64,
    /// Packets out.
    pub packets_out: u64,
    /// Either direction is rekeyed at this many octets.
    pub rekey_bytes: u64,
    /// It carries no more octets.
    pub life_bytes: u64,
    /// Either direction is rekeyed at this many packets.
    pub rekey_packets: u64,
    /// It carries no more packets.
    pub life_packets: u64,
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
    /// Transport mode; else tunnel mode.
    #[serde(default)]
    pub transport: bool,
    /// Our selectors.
    pub ts_local: Vec<String>,
    /// The peer's selectors.
    pub ts_remote: Vec<String>,
    /// Segment.
    pub segment: u8,
    /// CPU that serves it.
    pub cpu: u32,
    /// Member that serves it: in load sharing a Child SA may be on segments of another one than its IKE SA (RFC 9611).
    #[serde(default)]
    pub member: u8,
    /// It is on another segment than its IKE SA: for traffic of the member that serves it.
    #[serde(default)]
    pub guest: bool,
    /// Outbound, that CPU or member alone uses it, in place of the one that all may use (RFC 9611).
    #[serde(default)]
    pub bound: bool,
    /// Packets in.
    pub packets_in: u64,
    /// Octets in.
    pub bytes_in: u64,
    /// Packets out.
    pub packets_out: u64,
    /// Octets out.
    pub bytes_out: u64,
    /// Largest outer packet of the path to the peer.
    #[serde(default)]
    pub path_mtu: u16,
    /// Lifetimes in octets and packets, where there are any, and what was carried over all takeovers.
    #[serde(default)]
    pub life: Option<LifeStatus>,
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
    /// The group of segments that it is about; `None`: the whole member.
    #[serde(default)]
    pub group: Option<u8>,
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
    /// Group of segments; all where not given.
    #[serde(default)]
    pub group: Option<u8>,
}

/// `POST /v1/start-over`: begin anew, without SAs, with groups whose in-sync members are all lost.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StartOverRequest {
    /// Group of segments; all that have no owner that is heard where not given.
    pub group: Option<u8>,
    /// The operator knows what is lost, and that no member of the in-sync set serves any more.
    pub yes: bool,
}

/// `POST /v1/stop`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StopRequest {
    /// A planned restart: programs, maps and SAs are kept for the next life.
    #[serde(default)]
    pub keep: bool,
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
    /// The IKE SA of this connection is authenticated anew.
    #[serde(default)]
    pub reauth: Option<String>,
}

/// `POST /v1/liveness`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LivenessRequest {
    /// Connection.
    pub connection: String,
}

/// `POST /v1/connection`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ConnectionRequest {
    /// Connection.
    pub connection: String,
    /// Bring it up; else take it down, and keep it so until it is started again or this agent is.
    pub start: bool,
}

/// `POST /v1/reload`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ReloadRequest {
    /// Say what would change, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// Answer to `POST /v1/reload`. A file that cannot be used is refused as a whole ([`Failure`]).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Nothing was changed.
    pub dry_run: bool,
    /// What is new: connections, children, policies, pools, by their place in the file.
    pub added: Vec<String>,
    /// What is gone.
    pub removed: Vec<String>,
    /// Values that differ.
    pub changed: Vec<ConfigChange>,
    /// Values that differ and stay as they were until the agent is started again.
    pub needs_restart: Vec<ConfigChange>,
    /// One sentence.
    pub text: String,
}

/// A value of the configuration that differs from the one in use.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigChange {
    /// Its place in the file, for example `connections.site-a.dpd_delay`.
    pub path: String,
    /// As it was; `None`: not given.
    pub old: Option<String>,
    /// As it is in the file now; `None`: not given.
    pub new: Option<String>,
    /// What it takes: `at_once`, `next_rekey`, `next_ike_sa`, `new_child_sas`, `new_ike_sas` or `restart`.
    pub effect: Effect,
}

/// `POST /v1/redirect`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RedirectRequest {
    /// Connection.
    pub connection: String,
    /// Address of the gateway that its peers are to go to.
    pub to: String,
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
