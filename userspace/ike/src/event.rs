//! What happened, for logs, metrics and for the agent's decision to initiate again.

use model::{EspSpi, IkeSpi};
use std::fmt;
use std::net::SocketAddr;

/// Kinds of events; the names are the labels of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventKind {
    /// An IKE SA is up: both sides are authenticated.
    Established,
    /// An IKE SA that was up, or was being set up, is gone. The agent initiates `start` connections again, with back-off.
    IkeSaDown,
    /// An IKE SA was replaced by a new one.
    IkeSaRekeyed,
    /// An IKE SA is gone in whose place there is a younger one with the same peer, authenticated anew (RFC 7296 2.8.3).
    Reauthenticated,
    /// An IKE SA could not be replaced by one that is authenticated anew. It stays up, and it is tried again.
    ReauthFailed,
    /// A peer was told how long its authentication lasts (RFC 4478), and has not authenticated anew: its IKE SA ends.
    AuthLapsed,
    /// A Child SA is up.
    ChildUp,
    /// A Child SA was replaced by a new one.
    ChildRekeyed,
    /// A Child SA is gone.
    ChildDown,
    /// The peer deleted a Child SA that nothing replaces, and the IKE SA stays.
    ChildClosed,
    /// A Child SA could not be made.
    ChildFailed,
    /// One side could not prove who it is.
    AuthFailed,
    /// No common proposal.
    NoProposal,
    /// No connection matches the peer.
    NoConnection,
    /// The peer did not answer.
    PeerSilent,
    /// The peer deleted an IKE SA that was up, and did not replace it.
    PeerClosed,
    /// The peer says that this is its first IKE SA with us; members that own other segments should
    /// [`crate::Command::Forget`] what they have of it.
    InitialContact,
    /// The peer proved by a QCD token that it has lost the IKE SA (RFC 6290); ours is gone with its children.
    PeerCrashed,
    /// A session was resumed by a ticket (RFC 5723): the IKE SA that it stood for, here or on another member, is replaced.
    Resumed,
    /// A ticket was refused, ours by the peer or the peer's by us; the peers authenticate anew.
    TicketRefused,
    /// Message IDs were synchronised after a failover (RFC 6311), ours or the peer's.
    MessageIdsSynched,
    /// Outgoing sequence numbers were raised after a failover of the peer's cluster (RFC 6311).
    CountersSynched,
    /// A QCD token in clear that is none of this IKE SA's: somebody guesses.
    TokenRefused,
    /// The peer got a virtual address.
    AddressGiven,
    /// There is no virtual address for the peer.
    AddressFailure,
    /// The peer's address or port changed.
    PeerMoved,
    /// The IKE SA and its Child SAs use another address of ours, or of the peer's, by our choice (RFC 4555).
    PathMoved,
    /// We are behind a NAT: send the one octet 0xff (RFC 3948 2.3), without marker, from `local` to `peer`.
    NatKeepalive,
    /// A gateway sends its client elsewhere (RFC 5685): ours us, or we a peer.
    Redirected,
    /// The peer sent what it must not.
    PeerMisbehaved,
    /// First messages need cookies now, or no longer.
    CookieMode,
    /// First messages are dropped: too many half-open IKE SAs.
    Flooded,
    /// A command could not be carried out.
    CommandFailed,
    /// Something of ours is missing, such as free SPIs.
    Trouble,
}

impl EventKind {
    /// Label of a metric.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::IkeSaDown => "ike_sa_down",
            Self::IkeSaRekeyed => "ike_sa_rekeyed",
            Self::Reauthenticated => "reauthenticated",
            Self::ReauthFailed => "reauth_failed",
            Self::AuthLapsed => "auth_lapsed",
            Self::ChildUp => "child_up",
            Self::ChildRekeyed => "child_rekeyed",
            Self::ChildDown => "child_down",
            Self::ChildClosed => "child_closed",
            Self::ChildFailed => "child_failed",
            Self::AuthFailed => "auth_failed",
            Self::NoProposal => "no_proposal",
            Self::NoConnection => "no_connection",
            Self::PeerSilent => "peer_silent",
            Self::PeerClosed => "peer_closed",
            Self::InitialContact => "initial_contact",
            Self::PeerCrashed => "peer_crashed",
            Self::Resumed => "resumed",
            Self::TicketRefused => "ticket_refused",
            Self::MessageIdsSynched => "message_ids_synched",
            Self::CountersSynched => "counters_synched",
            Self::TokenRefused => "token_refused",
            Self::AddressGiven => "address_given",
            Self::AddressFailure => "address_failure",
            Self::PeerMoved => "peer_moved",
            Self::PathMoved => "path_moved",
            Self::NatKeepalive => "nat_keepalive",
            Self::Redirected => "redirected",
            Self::PeerMisbehaved => "peer_misbehaved",
            Self::CookieMode => "cookie_mode",
            Self::Flooded => "flooded",
            Self::CommandFailed => "command_failed",
            Self::Trouble => "trouble",
        }
    }

    /// Whether an operator should look at it.
    pub const fn is_warning(self) -> bool {
        !matches!(
            self,
            Self::Established
                | Self::IkeSaDown
                | Self::PeerClosed
                | Self::IkeSaRekeyed
                | Self::Reauthenticated
                | Self::ChildUp
                | Self::ChildRekeyed
                | Self::ChildDown
                | Self::ChildClosed
                | Self::InitialContact
                | Self::Resumed
                | Self::MessageIdsSynched
                | Self::CountersSynched
                | Self::AddressGiven
                | Self::PeerMoved
                | Self::PathMoved
                | Self::NatKeepalive
        )
    }
}

/// Something that happened. Displayed, it is one sentence with connection and peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// Name of the connection, where known.
    pub connection: Option<String>,
    /// Our address and port, where known.
    pub local: Option<SocketAddr>,
    /// The peer's address and port, where known.
    pub peer: Option<SocketAddr>,
    /// Our SPI of the IKE SA, where there is one.
    pub ike_spi: Option<IkeSpi>,
    /// Our inbound SPI, where it is about a Child SA.
    pub spi_in: Option<EspSpi>,
    /// Name of the child, where one comes up or goes down.
    pub child: Option<String>,
    /// Whether it is about an IKE SA that was up, and not only being set up.
    pub was_up: bool,
    /// Cause, and what to do about it.
    pub text: String,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.connection, self.peer) {
            (Some(connection), Some(peer)) => write!(f, "{connection} ({peer}): {}", self.text),
            (Some(connection), None) => write!(f, "{connection}: {}", self.text),
            (None, Some(peer)) => write!(f, "{peer}: {}", self.text),
            (None, None) => f.write_str(&self.text),
        }
    }
}
