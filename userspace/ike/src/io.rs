//! What goes into the engine and what comes out of it.

use crate::event::Event;
use model::{ChildSaChange, Epoch, EspSpi, IkeSpi, InitialLimits, Instant, MemberId, SecretBytes, SegmentId};
use std::net::SocketAddr;

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
    /// Bring up one more child on the connection's IKE SA (which is initiated first, if need be).
    CreateChild {
        /// Name of the connection.
        connection: String,
        /// Name of the child.
        child: String,
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
    /// Check whether the peer still answers.
    Liveness {
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
    /// One that was allocated (perhaps by the member before a takeover) but never installed.
    fn release_esp_spi(&mut self, spi: EspSpi);
    /// Limits of a new Child SA.
    fn initial_limits(&mut self) -> InitialLimits;
    /// Member and epoch for the IVs of SK payloads of this IKE SA.
    fn iv_prefix(&self, ike_spi: IkeSpi) -> (MemberId, Epoch);
}
