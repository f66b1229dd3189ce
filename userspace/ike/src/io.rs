//! What goes into the engine and what comes out of it.

use crate::config::Resource;
use crate::event::Event;
use crate::exchange::{ComputeRequest, Computed};
use crate::pool::PoolShare;
use model::{
    ChildSaChange, Epoch, EspSpi, EspSuite, IkeSpi, InitialLimits, Instant, MemberId, SecretBytes, SegmentId,
};
use std::net::{IpAddr, SocketAddr};

/// Something that happened.
pub enum Input<'a> {
    /// An IKE message, without the non-ESP marker.
    Datagram {
        /// Time of arrival.
        now: Instant,
        /// Our address and port that it came to.
        local: SocketAddr,
        /// The sender's address and port.
        remote: SocketAddr,
        /// The octets.
        bytes: &'a [u8],
    },
    /// [`crate::Engine::next_timeout`] has come.
    Timeout {
        /// The time.
        now: Instant,
    },
    /// A signature that a [`SignRequest`] asked for.
    Signed {
        /// The time.
        now: Instant,
        /// [`SignRequest::ike_spi`].
        ike_spi: IkeSpi,
        /// [`SignRequest::token`]. One that is not waited for any more is ignored.
        token: u64,
        /// The signature (of ECDSA as DER), or why there is none.
        signature: Result<Vec<u8>, String>,
    },
    /// What an [`Output::Tls`] asked for. Where it is not waited for any more, it is ignored.
    Tls {
        /// The time.
        now: Instant,
        /// [`TlsRequest::ike_spi`].
        ike_spi: IkeSpi,
        /// [`TlsRequest::token`].
        token: u64,
        /// What TLS says.
        outcome: TlsOutcome,
    },
    /// What an [`Output::Compute`] asked for. Where it is not waited for any more, it is ignored.
    Computed {
        /// The time.
        now: Instant,
        /// What [`ComputeRequest::run`] gave.
        computed: Computed,
    },
    /// The names of a connection's peer lead to these addresses now. IKE SAs that are up stay where they are: a peer that has moved
    /// falls silent, or says so itself (RFC 4555).
    Remotes {
        /// Name of the connection; one that the engine does not know is ignored.
        connection: &'a str,
        /// As [`crate::Connection::remotes`].
        remotes: Vec<IpAddr>,
        /// As [`crate::Connection::names`].
        names: Vec<(String, Vec<IpAddr>)>,
    },
    /// The operator or the agent wants something.
    Command {
        /// The time.
        now: Instant,
        /// What.
        command: Command,
    },
}

/// What the operator or the agent may want. Outcomes are reported by events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Bring up a connection and its `start` children. Does nothing where all are up or on their way, so it may be
    /// repeated.
    Initiate {
        /// Name of the connection.
        connection: String,
    },
    /// As [`Command::Initiate`]; where an IKE SA has to be set up, to this one of the peer's addresses.
    InitiateTo {
        /// Name of the connection.
        connection: String,
        /// One of [`crate::Connection::remotes`].
        remote: IpAddr,
    },
    /// The connection's configuration has changed: the timers of an IKE SA of it and of its Child SAs start anew. Nothing is
    /// sent.
    RestartTimers {
        /// Our SPI.
        spi: IkeSpi,
    },
    /// An authentic packet, newer than all before on its Child SA, came from another address or port than the peer was at (RFC 7296
    /// 2.23). Nothing happens where the peer must not move so ([`crate::Engine::may_move`]).
    PeerSeen {
        /// Our inbound SPI.
        spi_in: EspSpi,
        /// Where it came from.
        remote: SocketAddr,
    },
    /// The IKE SA and its Child SAs are to use another address of ours (RFC 4555), since the present one is of no use any more.
    MoveLocal {
        /// Our SPI.
        spi: IkeSpi,
        /// [`crate::Connection::local`] or one of [`crate::Connection::further_locals`].
        local: IpAddr,
    },
    /// Bring up one more child on the connection's IKE SA (which is initiated first, if need be).
    CreateChild {
        /// Name of the connection.
        connection: String,
        /// Name of the child.
        child: String,
    },
    /// Bring up one more Child SA with the selectors of one that is up, for a CPU of a member (RFC 9611).
    CreateResourceChild {
        /// Our inbound SPI of the one that all may use.
        beside: EspSpi,
        /// What it is for; one of [`crate::Connection::resources`].
        resource: Resource,
    },
    /// Replace a Child SA by a new one.
    RekeyChild {
        /// Our inbound SPI.
        spi_in: EspSpi,
    },
    /// Replace an IKE SA by a new one; children stay up.
    RekeyIke {
        /// Our SPI.
        spi: IkeSpi,
    },
    /// Replace an IKE SA that we initiated by one that is authenticated anew (RFC 7296 2.8.3). The old one ends once the new one and its
    /// children are up.
    Reauthenticate {
        /// Our SPI.
        spi: IkeSpi,
    },
    /// Check whether the peer still answers.
    Liveness {
        /// Our SPI.
        spi: IkeSpi,
    },
    /// After a takeover the peer's sequence numbers on this Child SA are below what counts as seen. The peer is asked to raise
    /// those of all its Child SAs (RFC 6311 5.2), where it can and once per epoch; otherwise the Child SA is rekeyed.
    RepairInbound {
        /// Our inbound SPI.
        spi_in: EspSpi,
        /// By how much, at least.
        delta: u64,
    },
    /// Ask the peer for its Message IDs: a fork of this IKE SA was discarded (RFC 6311 5.1). Only with
    /// [`crate::MidSync::OnFork`].
    SyncMessageIds {
        /// Our SPI.
        spi: IkeSpi,
        /// Message IDs that the fork may have used beyond what this member knows.
        margin: u32,
    },
    /// Send the peer, which initiated, to another gateway (RFC 5685).
    Redirect {
        /// Our SPI.
        spi: IkeSpi,
        /// Where to.
        to: IpAddr,
    },
    /// Another owner of this IKE SA has gone on with the peer, and what it did there is lost: nobody can tell which Child SAs the peer
    /// has. Where this side initiates the connection, the IKE SA is dropped without a word and begun anew (the new one says
    /// INITIAL_CONTACT); else it is deleted, so that the peer begins anew.
    Reestablish {
        /// Our SPI.
        spi: IkeSpi,
    },
    /// Delete a Child SA.
    DeleteChild {
        /// Our inbound SPI.
        spi_in: EspSpi,
    },
    /// Delete an IKE SA and its children.
    DeleteIke {
        /// Our SPI.
        spi: IkeSpi,
    },
    /// Drop the IKE SAs with a peer without a word: it began anew with another member (INITIAL_CONTACT).
    Forget {
        /// Name of the connection.
        connection: String,
        /// The peer's identity as [`crate::IkeSaStatus::remote_id`] shows it.
        remote_id: String,
        /// The IKE SA that stays.
        except: IkeSpi,
    },
    /// Delete all IKE SAs of a connection.
    Terminate {
        /// Name of the connection.
        connection: String,
    },
}

/// What comes out.
pub enum Output {
    /// All changes are journalled and acknowledged before any of the transmits is sent or any change takes effect.
    Commit(Commit),
    /// Octets already committed (retransmission) or exempt (cookie, stateless error). One that names an IKE SA must not
    /// overtake a commit of that IKE SA which is not acknowledged yet.
    Transmit(Transmit),
    /// A signature is needed. Nothing is committed before it has come: a member that takes over meanwhile begins this step anew.
    Sign(SignRequest),
    /// A message for TLS, in a conversation of EAP-TLS. Nothing is committed before the outcome has come.
    Tls(TlsRequest),
    /// A key exchange is to be computed, with [`crate::Engine::exchange_beside`] only. Nothing is committed before it has come.
    Compute(ComputeRequest),
    /// For logs and metrics.
    Event(Event),
}

/// A change of state and the messages that depend on it.
#[derive(Default)]
pub struct Commit {
    /// In the order in which they take effect.
    pub changes: Vec<Change>,
    /// Sent after the acknowledgement, in this order.
    pub transmits: Vec<Transmit>,
}

/// Octets that are to be signed. The engine has no private keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignRequest {
    /// Our SPI of the IKE SA that waits.
    pub ike_spi: IkeSpi,
    /// Names this request, for [`Input::Signed`].
    pub token: u64,
    /// [`crate::LocalCertificate::key`].
    pub key: String,
    /// How.
    pub scheme: crypto::SignatureScheme,
    /// What; not secret.
    pub octets: Vec<u8>,
}

/// A message of a peer that authenticates by EAP-TLS. The engine has no TLS: who has goes on with the session of this IKE SA. No
/// standby knows that session, so after a takeover there is none, and the peer has to begin anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsRequest {
    /// Our SPI of the IKE SA that waits.
    pub ike_spi: IkeSpi,
    /// Names this request, for [`Input::Tls`].
    pub token: u64,
    /// Name of the connection: our certificate, and whom to believe.
    pub connection: String,
    /// It begins a session; else it goes on with one.
    pub first: bool,
    /// TLS records.
    pub octets: Vec<u8>,
}

/// What TLS says to a message. No `Debug`: it may hold a key.
pub enum TlsOutcome {
    /// The handshake goes on with these records.
    Continue(Vec<u8>),
    /// The handshake is complete.
    Done {
        /// Our last records.
        octets: Vec<u8>,
        /// RFC 5216 2.3, RFC 9190 2.3: 64 octets.
        msk: SecretBytes,
        /// The peer's certificates (DER), its own first. They are believed.
        certificates: Vec<Vec<u8>>,
    },
    /// The peer is refused, or has refused us.
    Failed {
        /// Records with an alert for the peer, if it is to have one.
        alert: Vec<u8>,
        /// Why, and what to do.
        why: String,
    },
}

/// A message to send. With local port 4500 the agent puts the non-ESP marker in front (RFC 3948 2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// Our SPI of the IKE SA it belongs to; `None`: stateless.
    pub ike_spi: Option<IkeSpi>,
    /// The octets.
    pub bytes: Vec<u8>,
}

/// A change that the standbys must know.
pub enum Change {
    /// Of an IKE SA.
    IkeSa(IkeSaChange),
    /// Of a Child SA.
    ChildSa(ChildSaChange),
}

impl Change {
    /// The segment that it belongs to.
    pub fn segment(&self) -> SegmentId {
        match self {
            Self::IkeSa(IkeSaChange::Put { spi, .. } | IkeSaChange::Remove { spi }) => spi.segment(),
            Self::ChildSa(change) => change.spi_in().segment(),
        }
    }
}

/// A change of an IKE SA.
pub enum IkeSaChange {
    /// This is all that is needed to go on elsewhere.
    Put {
        /// Our SPI.
        spi: IkeSpi,
        /// For [`crate::Engine::adopt`].
        record: SecretBytes,
    },
    /// It is gone.
    Remove {
        /// Our SPI.
        spi: IkeSpi,
    },
}

/// What the engine may ask of its surroundings while it handles an input.
pub trait Surroundings {
    /// Fills `out` with octets fit for keys.
    fn random(&mut self, out: &mut [u8]);
    /// A new IKE SPI of ours. `peer`: the initiator's SPI, when we respond (its hash gives the segment; the connection
    /// is not known yet then and empty). `connection`: its name, when we initiate.
    fn ike_spi(&mut self, peer: Option<IkeSpi>, connection: &str) -> IkeSpi;
    /// A new IKE SPI in the segment of `old`, which it replaces in a rekey.
    fn successor_ike_spi(&mut self, old: IkeSpi) -> IkeSpi;
    /// An inbound ESP SPI in the IKE SA's segment; `None`: no slot is free.
    fn esp_spi(&mut self, ike_spi: IkeSpi) -> Option<EspSpi>;
    /// An inbound ESP SPI for a Child SA of this IKE SA that a CPU of some member serves; that member has reserved it, and it need
    /// not be in the IKE SA's segment. `None`: there is none (left).
    fn resource_esp_spi(&mut self, _ike_spi: IkeSpi, _resource: Resource) -> Option<EspSpi> {
        None
    }
    /// Whether [`Surroundings::resource_esp_spi`] would give one.
    fn has_resource(&self, _ike_spi: IkeSpi, _resource: Resource) -> bool {
        true
    }
    /// One that was allocated (perhaps by the member before a takeover) but never installed.
    fn release_esp_spi(&mut self, spi: EspSpi);
    /// Limits of a new Child SA.
    fn initial_limits(&mut self) -> InitialLimits;
    /// Member and epoch for the IVs of SK payloads of this IKE SA.
    fn iv_prefix(&self, ike_spi: IkeSpi) -> (MemberId, Epoch);
    /// Whether it is certain that no member has an IKE SA with this SPI of ours, which the engine does not know, so that its
    /// QCD token may be shown in clear (RFC 6290 9.2: a token that is shown while the IKE SA lives lets anybody kill it).
    /// Only the owner of the SPI's segment can be certain, in an epoch that it began with the group's whole state.
    fn may_show_qcd(&self, _spi: IkeSpi) -> bool {
        false
    }
    /// Raises the next outbound sequence number of a Child SA (named by our inbound SPI) by `delta` as soon as the standbys have
    /// acknowledged it. `false`: this cannot be done; the Child SA is then rekeyed instead.
    fn advance_outbound(&mut self, _spi_in: EspSpi, _delta: u64) -> bool {
        false
    }
    /// Seconds since 1970, for the lifetimes of tickets; members' clocks may differ by minutes. `None`: no tickets.
    fn unix_time(&self) -> Option<u64> {
        None
    }
    /// The part of address pools that this IKE SA may have addresses of. It must be the same for all IKE SAs that the engine has or
    /// will have, and no other member's at the same time. `None`: not all IKE SAs of that part are here yet, so nobody can say
    /// what is free; the peer's request is left for its repetition.
    fn pool_share(&self, _ike_spi: IkeSpi) -> Option<PoolShare> {
        Some(PoolShare::WHOLE)
    }
    /// Whether every member can read the record of a Child SA with this suite. `false`: it is neither offered nor accepted.
    fn members_know(&self, _suite: EspSuite) -> bool {
        true
    }
    /// Whether this member is the one to initiate the connection: the engine asks before it does so by itself.
    fn may_initiate(&self, _connection: &str) -> bool {
        true
    }
}
