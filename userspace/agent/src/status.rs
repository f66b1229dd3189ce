//! What the control socket answers: the shapes of its JSON, shared with the command line.

use serde::{Deserialize, Serialize};

/// `GET /v1/status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Name of the cluster.
    pub cluster: String,
    /// This member's id.
    pub member: u8,
    /// This member's name.
    pub member_name: String,
    /// `active`, `standby`, `joining` or `down`.
    pub role: String,
    /// Ownership epoch.
    pub epoch: u64,
    /// Owner of the segments, as far as this member knows; 0 for nobody.
    pub owner: u8,
    /// Segments that this member owns.
    pub segments_owned: u32,
    /// Members that have acknowledged all current values, the owner included.
    pub in_sync: Vec<u8>,
    /// The other members.
    pub peers: Vec<PeerStatus>,
    /// Seconds since the agent started.
    pub uptime_seconds: f64,
    /// How the programs run.
    pub data_plane: DataPlaneStatus,
    /// Configured connections.
    pub connections: Vec<ConnectionStatus>,
    /// IKE SAs on this member: served, or mirrored on a standby.
    pub ike_sas: u64,
    /// Child SAs on this member.
    pub child_sas: u64,
    /// Smallest part of a lease that is left among all SAs, 0 to 1; `None` without SAs.
    pub lease_headroom_lowest: Option<f64>,
    /// Smallest part of a headroom that is left among all SAs, 0 to 1; `None` without SAs.
    pub ceiling_headroom_lowest: Option<f64>,
    /// Journal entries that wait for an acknowledgement.
    pub commits_pending: u64,
    /// The last takeover that this member carried out.
    pub last_takeover: Option<TakeoverReport>,
    /// Octets of the synch channel.
    pub synch: SynchStatus,
}

/// Another member.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its id.
    pub id: u8,
    /// Its name.
    pub name: String,
    /// The synch link is up.
    pub synch_up: bool,
    /// The outside link is up.
    pub outside_up: bool,
    /// Milliseconds since its last sign of life; `None` before the first.
    pub last_seen_ms: Option<f64>,
}

/// How the programs run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DataPlaneStatus {
    /// Mode on each interface: `native` or `generic`.
    pub attached: Vec<(String, String)>,
    /// CPUs that serve SAs.
    pub cpus: u32,
    /// Slots of the cluster.
    pub slots: u32,
    /// Folder of the pins.
    pub pin_dir: String,
}

/// A configured connection.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// Its name.
    pub name: String,
    /// `up`, `connecting`, `down`; on a standby `mirrored` or `down`.
    pub phase: String,
    /// IKE SAs.
    pub ike_sas: u64,
    /// Child SAs.
    pub child_sas: u64,
    /// Verdicts that are not 0: name and packets.
    pub verdicts: Vec<(String, u64)>,
}

/// Octets of the synch channel.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct SynchStatus {
    /// In streams, sent.
    pub stream_sent: u64,
    /// In streams, received.
    pub stream_received: u64,
    /// As datagrams, sent.
    pub datagram_sent: u64,
    /// As datagrams, received.
    pub datagram_received: u64,
    /// Datagrams lost on this host.
    pub datagram_lost: u64,
    /// Connections refused.
    pub refused: u64,
}

/// A takeover, with the time of each phase.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TakeoverReport {
    /// Why.
    pub reason: String,
    /// An operator or a stopping agent asked for it.
    pub planned: bool,
    /// Epoch that it began.
    pub epoch: u64,
    /// Wall-clock time of the flip, seconds since 1970.
    pub flipped_at: f64,
    /// From the last sign of life of the old owner to the suspicion, ms.
    pub detect_ms: Option<f64>,
    /// From the suspicion to the claim that the in-sync members acknowledged, ms.
    pub claim_ms: Option<f64>,
    /// Writing the owner words, ms.
    pub flip_ms: Option<f64>,
    /// From the flip to the first announcement, ms.
    pub announce_ms: Option<f64>,
    /// Taking over the IKE SAs, ms (ESP traffic flows meanwhile).
    pub adopt_ms: Option<f64>,
    /// From the flip to the first authentic inbound packet, ms.
    pub first_packet_ms: Option<f64>,
    /// From the last sign of life of the old owner to the flip, ms.
    pub total_ms: Option<f64>,
    /// IKE SAs taken over.
    pub ike_sas: u64,
    /// Child SAs taken over.
    pub child_sas: u64,
}

/// One entry of `GET /v1/sas`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SaStatus {
    /// Connection.
    pub connection: String,
    /// Child.
    pub child: String,
    /// Our IKE SPI, 16 hex digits.
    pub ike_spi: String,
    /// Our inbound SPI, 8 hex digits.
    pub spi_in: String,
    /// The peer's SPI, 8 hex digits.
    pub spi_out: String,
    /// Slot of both directions.
    pub slot: u32,
    /// Segment.
    pub segment: u8,
    /// CPU that serves it.
    pub cpu: u32,
    /// Suite.
    pub suite: String,
    /// Extended sequence numbers.
    pub esn: bool,
    /// UDP encapsulation.
    pub udp_encap: bool,
    /// Our outer address.
    pub local: String,
    /// The peer's outer address.
    pub remote: String,
    /// Selectors, our side.
    pub ts_local: Vec<String>,
    /// Selectors, the peer's side.
    pub ts_remote: Vec<String>,
    /// Outbound policies point at it.
    pub outbound_in_use: bool,
    /// No standby knows it.
    pub local_only: bool,
    /// Seconds since it was installed.
    pub age_seconds: f64,
    /// Last outbound sequence number.
    pub seq_out: u64,
    /// Acknowledged lease and its size.
    pub lease: u64,
    /// Size of the lease.
    pub lease_step: u64,
    /// Highest inbound sequence number accepted.
    pub edge_in: u64,
    /// Acknowledged ceiling.
    pub ceiling: u64,
    /// Headroom.
    pub headroom: u64,
    /// Low 16 bits of the epoch of lease and ceiling.
    pub limits_epoch: u32,
    /// Right edge that the owner last reported to the standby.
    pub reported_edge: u64,
    /// Packets in.
    pub packets_in: u64,
    /// Inner octets in.
    pub bytes_in: u64,
    /// Packets out.
    pub packets_out: u64,
    /// Inner octets out.
    pub bytes_out: u64,
}

/// One entry of `GET /v1/ike`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct IkeStatus {
    /// Connection, once known.
    pub connection: Option<String>,
    /// Our SPI, 16 hex digits.
    pub spi: String,
    /// The peer's SPI, 16 hex digits.
    pub peer_spi: String,
    /// What it is doing.
    pub phase: String,
    /// Our address and port.
    pub local: String,
    /// The peer's address and port.
    pub remote: String,
    /// The peer's identity.
    pub remote_id: Option<String>,
    /// Algorithms.
    pub suite: String,
    /// Seconds.
    pub age_seconds: f64,
    /// Message ID of our next request.
    pub next_send: u32,
    /// Message ID that the peer's next request must have.
    pub next_receive: u32,
    /// A request of ours is unanswered.
    pub outstanding: bool,
    /// Child SAs.
    pub children: u64,
}

/// `GET /v1/sas`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SaList {
    /// IKE SAs served here.
    pub ike_sas: Vec<IkeStatus>,
    /// Child SAs.
    pub child_sas: Vec<SaStatus>,
}

/// One entry of the event log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EventEntry {
    /// Rises by one with every event.
    pub number: u64,
    /// Wall-clock time, seconds since 1970.
    pub wall: f64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub monotonic_ns: u64,
    /// What, one word.
    pub kind: String,
    /// One sentence.
    pub text: String,
}

/// What a command did, or why it was refused.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Whether it was taken.
    pub done: bool,
    /// One sentence.
    pub message: String,
}
