//! What goes into a node and what comes out.

use crate::message::{Link, RaiseItem, RaiseKey, SetMember};
use crate::rules::{EpochId, Standing};
use model::{EspSpi, Instant, MemberId};
use std::collections::BTreeSet;
use thiserror::Error;

/// Something that happened.
pub enum Input {
    /// [`crate::Node::next_wake`] has come, or at any other time.
    Tick {
        /// The time.
        now: Instant,
    },
    /// A channel to the peer is up.
    LinkUp {
        /// The time.
        now: Instant,
        /// Who.
        peer: MemberId,
        /// Which.
        link: Link,
    },
    /// It is down. A hint, never a trigger.
    LinkDown {
        /// The time.
        now: Instant,
        /// Who.
        peer: MemberId,
        /// Which.
        link: Link,
    },
    /// A record came, by stream or as a datagram.
    Received {
        /// The time.
        now: Instant,
        /// From whom, as the channel authenticated it.
        peer: MemberId,
        /// By which link.
        link: Link,
        /// The octets.
        bytes: Vec<u8>,
    },
    /// Owner: journal this; [`Output::Committed`] or [`Output::Refused`] answers with the token.
    Propose {
        /// The time.
        now: Instant,
        /// The caller's name for it.
        token: u64,
        /// The change.
        entry: Vec<u8>,
    },
    /// Owner: raise these limits; each is answered by [`Output::RaiseCommitted`] or [`Output::RaiseRefused`].
    Raise {
        /// The time.
        now: Instant,
        /// The limits.
        items: Vec<RaiseItem>,
    },
    /// The agent has carried out an output that asked for it.
    Armed {
        /// The time.
        now: Instant,
        /// The output's token.
        token: u64,
        /// Raises that it could not arm (SA not known here yet).
        unknown: Vec<RaiseKey>,
    },
    /// Answer to [`Output::CapLimits`]: limits are capped and published; this is the state of all SAs.
    Snapshot {
        /// The time.
        now: Instant,
        /// The output's token.
        token: u64,
        /// Encoded by the agent.
        bytes: Vec<u8>,
    },
    /// Answer to [`Output::VerifyCaps`]: raises that are still needed; none: every counter lies within its cap.
    CapsVerified {
        /// The time.
        now: Instant,
        /// The output's token.
        token: u64,
        /// Raises.
        items: Vec<RaiseItem>,
    },
    /// Answer to [`Output::CloseLegacy`].
    FinalWindows {
        /// The time.
        now: Instant,
        /// The output's token.
        token: u64,
        /// Encoded by the agent.
        bytes: Vec<u8>,
    },
    /// Owner: right edges for the standby's evidence rule.
    Report {
        /// Slot, SPI, edge.
        edges: Vec<(u32, EspSpi, u64)>,
    },
    /// An operator wants something.
    Command {
        /// The time.
        now: Instant,
        /// What.
        command: Command,
    },
}

/// What an operator may want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A planned takeover by this member.
    TakeoverTo(MemberId),
}

/// Why something is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// Not the owner (any more).
    #[error("this member does not own the segments")]
    NotOwner,
    /// A planned takeover is under way.
    #[error("a planned takeover is under way")]
    Handover,
    /// The named member is not in the in-sync set.
    #[error("member {0} is not in the in-sync set; wait until `espalier status` shows it in sync")]
    NotInSync(MemberId),
    /// Nobody owns the segments.
    #[error("the cluster has no owner at the moment")]
    NoOwner,
    /// Already so.
    #[error("member {0} owns the segments already")]
    AlreadyOwner(MemberId),
    /// It did not work out.
    #[error("{0}")]
    Failed(String),
}

/// What comes out. No `Debug`: entries and snapshots hold keys.
pub enum Output {
    /// Put this on the peer's stream of a link (in order, reliable while the link is up).
    SendStream {
        /// To whom.
        peer: MemberId,
        /// Which link.
        link: Link,
        /// The record.
        bytes: Vec<u8>,
    },
    /// Send this as a datagram.
    SendDatagram {
        /// To whom.
        peer: MemberId,
        /// Which link.
        link: Link,
        /// The record.
        bytes: Vec<u8>,
    },
    /// A proposal is known to every in-sync standby: it may take effect.
    Committed {
        /// The proposal's token.
        token: u64,
    },
    /// It will never be.
    Refused {
        /// The proposal's token.
        token: u64,
        /// Why.
        why: Refused,
    },
    /// These limits are acknowledged: publish them in the maps.
    RaiseCommitted {
        /// The limits.
        items: Vec<RaiseItem>,
    },
    /// The lost standby may hold the numbers above: rekey the SA instead.
    RaiseRefused {
        /// The limits that were asked for.
        items: Vec<RaiseItem>,
    },
    /// Standby: put the change into mirror and maps, then [`Input::Armed`].
    Apply {
        /// For the answer.
        token: u64,
        /// Its position.
        position: u64,
        /// The epoch in which it was written.
        epoch: EpochId,
        /// The change.
        entry: Vec<u8>,
    },
    /// Standby: put the limits into the maps (epoch: the current one), then [`Input::Armed`].
    ApplyRaises {
        /// For the answer.
        token: u64,
        /// Epoch of the limits.
        epoch: EpochId,
        /// The limits.
        items: Vec<RaiseItem>,
    },
    /// Standby: edges that the owner reported.
    ApplyReport {
        /// Slot, SPI, edge.
        edges: Vec<(u32, EspSpi, u64)>,
    },
    /// Owner: cap the limits of all SAs at the current epoch and answer with [`Input::Snapshot`].
    CapLimits {
        /// For the answer.
        token: u64,
    },
    /// Owner: compare all counters with the acknowledged limits and answer with [`Input::CapsVerified`].
    VerifyCaps {
        /// For the answer.
        token: u64,
    },
    /// Joining: forget everything, take this, arm the maps, then [`Input::Armed`].
    InstallSnapshot {
        /// For the answer.
        token: u64,
        /// The snapshot.
        bytes: Vec<u8>,
    },
    /// Write these owner and side words to all segments (an atomic store each), then [`Input::Armed`].
    Flip(Flip),
    /// Raise valid-until of every segment that this member owns in this epoch, by compare-and-swap.
    ExtendValidity {
        /// The epoch of the words.
        epoch: EpochId,
        /// Until when.
        until: Instant,
    },
    /// Gratuitous ARP for every cluster address, repeated.
    Announce,
    /// This member serves now: adopt the mirrored IKE SAs and send outstanding octets again.
    ResumeIke,
    /// This member serves no more: the IKE engine forgets its SAs (the mirror keeps them).
    SuspendIke,
    /// This member's fork lost, or it starts over: forget every SA.
    DiscardFork,
    /// Old owner in a planned handover: stop serving, drain, answer with [`Input::FinalWindows`].
    CloseLegacy {
        /// For the answer.
        token: u64,
    },
    /// Taker: merge the old owner's windows, then run what was held, then [`Input::Armed`].
    MergeWindows {
        /// For the answer.
        token: u64,
        /// Windows.
        bytes: Vec<u8>,
    },
    /// A peer's facts (MAC addresses), from its Hello.
    PeerFacts {
        /// Who.
        peer: MemberId,
        /// The octets that its agent gave.
        facts: Vec<u8>,
    },
    /// For logs, the timeline and metrics.
    Event(Event),
}

/// Owner and side words for all segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flip {
    /// For the answer.
    pub token: u64,
    /// Owner and epoch.
    pub epoch: EpochId,
    /// Valid until, for the owner itself; others never serve, whatever the word says.
    pub valid_until: Instant,
    /// Whom to pass packets to once the word has expired.
    pub successor: Option<MemberId>,
    /// The in-sync set is the owner alone, since its epoch began.
    pub alone: bool,
    /// Planned handover: old owner, its epoch, and whether the taker holds instead of second-hopping.
    pub legacy: Option<Legacy>,
}

/// The old owner's part in a planned handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Legacy {
    /// Its epoch.
    pub epoch: EpochId,
    /// The taker holds what is up to the ceilings.
    pub holding: bool,
}

/// What happened, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Instant,
    /// What.
    pub kind: EventKind,
}

/// Kinds of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A peer is heard again.
    PeerHeard(MemberId),
    /// A peer's silence passed the threshold.
    Suspected {
        /// Who.
        peer: MemberId,
        /// When it was last heard.
        last_heard: Instant,
        /// The threshold, ms.
        threshold_ms: u64,
    },
    /// This member claimed an epoch.
    Claimed {
        /// Which.
        epoch: EpochId,
        /// From whom (0: nobody).
        from: MemberId,
        /// Planned or not.
        planned: bool,
    },
    /// The owner words name this member.
    Flipped(EpochId),
    /// The addresses were announced.
    Announced(EpochId),
    /// Another member owns the segments.
    OwnerIs(EpochId),
    /// The in-sync set.
    InSync(BTreeSet<SetMember>),
    /// How the owner stands.
    Standing(Standing),
    /// A member joins, by snapshot.
    Joining(SetMember),
    /// A member was dropped from the in-sync set.
    Excluded {
        /// Who.
        member: MemberId,
        /// Why.
        reason: String,
    },
    /// This member was excluded and will join again.
    WasExcluded,
    /// This member's fork lost against a higher epoch.
    ForkLost {
        /// Its own.
        mine: EpochId,
        /// The winner.
        theirs: EpochId,
    },
    /// The policies differ.
    PolicyDiffers(MemberId),
    /// A planned handover ended.
    HandoverDone {
        /// The new epoch.
        epoch: EpochId,
    },
    /// A planned handover was given up.
    HandoverAborted(String),
    /// A record was refused.
    RecordRefused {
        /// From whom.
        peer: MemberId,
        /// Why.
        reason: String,
    },
    /// This agent did not run for a while.
    LocalStall {
        /// How long, ms.
        ms: u64,
    },
}
