//! What goes into a node and what comes out.

use crate::guest::GuestBody;
use crate::message::{LeaseRest, Link, PeerMark, RaiseItem, RaiseKey, SetMember};
use crate::ownership::{GroupRecord, OwnershipAnswer, OwnershipOp};
use crate::rules::{EpochId, Standing};
use model::{EspSpi, GroupId, IkeSpi, Instant, MemberId};
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
        /// The group that the change belongs to.
        group: GroupId,
        /// The caller's name for it.
        token: u64,
        /// The change.
        entry: Vec<u8>,
        /// The same change, written against what the entries before it have left: for members that speak
        /// [`crate::message::BRIEF_SINCE`]. `None`: that would be no shorter.
        brief: Option<Vec<u8>>,
    },
    /// Owner: raise these limits, of any groups; each is answered by [`Output::RaiseCommitted`] or
    /// [`Output::RaiseRefused`]. Items of groups that this member does not own are dropped.
    Raise {
        /// The time.
        now: Instant,
        /// The limits.
        items: Vec<RaiseItem>,
    },
    /// The agent has carried out an output that asked for it. Where it could not (a map was not written), it must not say
    /// so: a member that is silent for long enough is dropped from the in-sync set and joins anew.
    Armed {
        /// The time.
        now: Instant,
        /// The output's token.
        token: u64,
        /// Raises of SAs that are not known here (not yet, or not any more): nothing was armed for them.
        unknown: Vec<RaiseKey>,
    },
    /// Answer to [`Output::Apply`]: the entry does not fit what this member holds, so it holds something else than the owner
    /// says. It forgets that it is in sync, and joins anew at once.
    DoesNotFit {
        /// The time.
        now: Instant,
        /// The output's token.
        token: u64,
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
    /// Answer to [`Output::RestateLimits`].
    Restated {
        /// The time.
        now: Instant,
        /// The output's token.
        token: u64,
        /// The limits.
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
    /// So many Child SAs of the group were known to a standby that was lost and may have served, and are not rekeyed yet: said whenever
    /// that changes, by owners and standbys.
    Suspects {
        /// The time.
        now: Instant,
        /// Which group.
        group: GroupId,
        /// How many.
        count: usize,
    },
    /// Answer to [`Output::LeaveRests`].
    RestsLeft {
        /// The time.
        now: Instant,
        /// The output's token.
        token: u64,
        /// The rests.
        rests: Vec<LeaseRest>,
    },
    /// Owner: right edges for the standbys' evidence rule, of any groups.
    Report {
        /// Slot, SPI, edge.
        edges: Vec<(u32, EspSpi, u64)>,
    },
    /// [`crate::guest::Act::Say`]: to the owner of a group, or from it, in the group's present epoch.
    SayGuest {
        /// To whom.
        to: MemberId,
        /// About which group.
        group: GroupId,
        /// What.
        body: GuestBody,
    },
    /// Answer to [`Output::DiscardFork`]: IKE SAs whose Child SAs, address or existence the fork changed with their peers, and peers with
    /// which it established IKE SAs of its own. The owner is told until it has dealt with them. Also what a life before this one
    /// had recorded, and could not say any more.
    ForkTouched {
        /// The time.
        now: Instant,
        /// Which group.
        group: GroupId,
        /// Our SPIs.
        touched: Vec<IkeSpi>,
        /// The peers.
        peers: Vec<PeerMark>,
    },
    /// Answer to [`Output::ForkTouched`]: none of these IKE SAs is in use here any more.
    ForkSettled {
        /// The time.
        now: Instant,
        /// Which group.
        group: GroupId,
        /// Who named them.
        member: MemberId,
        /// The output's number.
        number: u64,
    },
    /// The ownership engine answers [`Output::Ownership`].
    OwnershipAnswered {
        /// The time.
        now: Instant,
        /// The output's token.
        token: u64,
        /// What it says.
        answer: OwnershipAnswer,
    },
    /// The ownership engine tells of a key that changed (its watch), or of what it found at its start. May be late or
    /// missing: nothing rests on it.
    OwnershipSeen {
        /// The time.
        now: Instant,
        /// Which group.
        group: GroupId,
        /// What the key holds; `None`: nothing.
        record: Option<GroupRecord>,
    },
    /// Whether this member's own data plane works (programs attached, links up). A member that is not healthy takes
    /// nothing over, and hands over what it owns.
    Health {
        /// The time.
        now: Instant,
        /// `None`: healthy. Else why not, for people.
        trouble: Option<String>,
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
    /// Planned takeovers: these groups go to this member, one after the other. Groups that it owns already are left alone.
    TakeoverTo {
        /// The taker.
        to: MemberId,
        /// Which; `None`: all.
        group: Option<GroupId>,
    },
    /// This member hands over all that it owns and takes no group back but by a command or a failover.
    Drain,
    /// The end of [`Command::Drain`].
    Undrain,
    /// Groups that this member owns go to the members they are meant for, where these are in sync.
    Rebalance,
    /// Nobody that is left may claim the group (all in-sync members are lost): begin again with no SAs. Peers establish
    /// theirs anew. Only where an operator knows that no member of the in-sync set serves any more.
    StartOver {
        /// Which; `None`: every group without an owner that is heard.
        group: Option<GroupId>,
    },
}

/// Why something is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// Not the owner (any more).
    #[error("this member does not own the group of segments")]
    NotOwner,
    /// A planned takeover is under way.
    #[error("a planned takeover is under way")]
    Handover,
    /// The named member is not in the in-sync set.
    #[error("member {0} is not in the in-sync set; wait until `espalier status` shows it in sync")]
    NotInSync(MemberId),
    /// Nobody owns the segments.
    #[error("the group has no owner at the moment")]
    NoOwner,
    /// Already so.
    #[error("member {0} owns the group already")]
    AlreadyOwner(MemberId),
    /// Nothing to do.
    #[error("there is no other member in sync that could take the group")]
    NoTaker,
    /// The taker's data plane is in trouble.
    #[error("member {0} is not healthy: see its `espalier status`")]
    NotHealthy(MemberId),
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
        /// Whose group.
        group: GroupId,
        /// The limits.
        items: Vec<RaiseItem>,
    },
    /// The lost standby may hold the numbers above: rekey the SA instead.
    RaiseRefused {
        /// Whose group.
        group: GroupId,
        /// The limits that were asked for.
        items: Vec<RaiseItem>,
    },
    /// Standby: put the change into mirror and maps, then [`Input::Armed`].
    Apply {
        /// Of which group.
        group: GroupId,
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
        /// Of which group.
        group: GroupId,
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
    /// Owner: cap the limits of all SAs of the group at its current epoch and answer with [`Input::Snapshot`].
    CapLimits {
        /// Which group.
        group: GroupId,
        /// For the answer.
        token: u64,
    },
    /// Owner: compare all counters with the acknowledged limits and answer with [`Input::CapsVerified`].
    VerifyCaps {
        /// Which group.
        group: GroupId,
        /// For the answer.
        token: u64,
    },
    /// Taker, before it serves: limits of these SA directions may be armed at some members of the in-sync set and not at
    /// others. Answer with [`Input::Restated`]: for each SA that is here, the upper limits that hold for this member in
    /// `epoch` (distance k from the SA's record: L + kS, C + kH) as the limit, with the record's present step. They are then
    /// acknowledged by all and come back as [`Output::RaiseCommitted`] before the flip. SAs without upper limits and
    /// unknown ones are left out.
    RestateLimits {
        /// Which group.
        group: GroupId,
        /// For the answer.
        token: u64,
        /// The epoch that this member has claimed.
        epoch: EpochId,
        /// What is in doubt.
        keys: Vec<RaiseKey>,
    },
    /// Joining: forget everything of the group, take this, arm the maps, then [`Input::Armed`].
    InstallSnapshot {
        /// Which group.
        group: GroupId,
        /// For the answer.
        token: u64,
        /// The snapshot.
        bytes: Vec<u8>,
    },
    /// Write these owner and side words to all segments of a group (an atomic store each), then [`Input::Armed`].
    Flip(Flip),
    /// Raise valid-until of every segment of the group, which this member owns in this epoch, by compare-and-swap.
    ExtendValidity {
        /// Which group.
        group: GroupId,
        /// The epoch of the words.
        epoch: EpochId,
        /// Until when.
        until: Instant,
    },
    /// Gratuitous ARP for every cluster address whose segment is in the group, repeated.
    Announce {
        /// Which group.
        group: GroupId,
    },
    /// This member serves now: adopt the group's mirrored IKE SAs and send outstanding octets again.
    ResumeIke {
        /// Which group.
        group: GroupId,
    },
    /// This member serves no more: the IKE engine forgets the group's SAs (the mirror keeps them), and proposals of the
    /// group that are not answered never will be.
    SuspendIke {
        /// Which group.
        group: GroupId,
    },
    /// Owner: a member names IKE SAs that its discarded fork touched, and peers with which it established others. Those that are here are to
    /// be established anew, or (of a named peer, where only that one can begin) checked; then [`Input::ForkSettled`]. The same part may
    /// come again.
    ForkTouched {
        /// Which group.
        group: GroupId,
        /// Who discarded it, in which life; it may be this member.
        from: SetMember,
        /// Names the part.
        number: u64,
        /// Our SPIs.
        touched: Vec<IkeSpi>,
        /// The peers.
        peers: Vec<PeerMark>,
    },
    /// This member's fork lost, or it starts over: forget every SA of the group, and say by [`Input::ForkTouched`] what was touched.
    DiscardFork {
        /// Which group.
        group: GroupId,
    },
    /// Owner, about to hand over a group of which a lost standby knew SAs: leave the taker a part of each of their leases, wait until no
    /// program runs that knew of more, and answer with [`Input::RestsLeft`]. What is left is this owner's no more, whatever becomes
    /// of the handover.
    LeaveRests {
        /// Which group.
        group: GroupId,
        /// For the answer.
        token: u64,
    },
    /// Taker in a planned handover, before its flip: put these into the maps, in the epoch that it is about to make. What is not there
    /// afterwards has no number to send with.
    TakeRests {
        /// Which group.
        group: GroupId,
        /// The epoch.
        epoch: EpochId,
        /// The rests.
        rests: Vec<LeaseRest>,
    },
    /// Old owner in a planned handover: stop serving, drain, answer with [`Input::FinalWindows`].
    CloseLegacy {
        /// Which group.
        group: GroupId,
        /// For the answer.
        token: u64,
    },
    /// Taker: merge the old owner's windows, then run what was held, then [`Input::Armed`].
    MergeWindows {
        /// Which group.
        group: GroupId,
        /// For the answer.
        token: u64,
        /// Windows.
        bytes: Vec<u8>,
    },
    /// Something about guests, in the present epoch of the group: for [`crate::guest::Guests::heard`].
    Guest {
        /// Who says it.
        from: SetMember,
        /// About which group.
        group: GroupId,
        /// What.
        body: GuestBody,
    },
    /// A peer's facts (MAC addresses), from its Hello.
    PeerFacts {
        /// Who.
        peer: MemberId,
        /// The octets that its agent gave.
        facts: Vec<u8>,
    },
    /// The ownership engine is asked; [`Input::OwnershipAnswered`] answers with the token. Only with
    /// [`crate::node::EngineKind::External`].
    Ownership {
        /// For the answer.
        token: u64,
        /// Which group's key.
        group: GroupId,
        /// What.
        op: OwnershipOp,
    },
    /// For logs, the timeline and metrics.
    Event(Event),
}

/// Owner and side words for all segments of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flip {
    /// Which group.
    pub group: GroupId,
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
    /// Planned handover: old owner, its epoch, and how far it has come.
    pub legacy: Option<Legacy>,
}

/// The old owner's part in a planned handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Legacy {
    /// Its epoch.
    pub epoch: EpochId,
    /// How far the handover has come.
    pub phase: LegacyPhase,
}

/// How far a planned handover has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LegacyPhase {
    /// The old owner serves up to its ceilings.
    Open,
    /// At the taker: it holds what is up to the ceilings, until it has the old owner's windows.
    Holding,
    /// At the old owner: it has closed, and passes on what still comes to it, until somebody else owns the group.
    Given,
}

impl Flip {
    /// Whether the words say that a handover is under way: at the old owner, that it serves its part.
    pub fn in_handover(&self) -> bool {
        self.legacy
            .is_some_and(|legacy| legacy.phase != LegacyPhase::Given)
    }
}

/// What happened, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Instant,
    /// The group that it is about; `None`: the whole member.
    pub group: Option<GroupId>,
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
    /// The owner is heard, but has not heard this member for a while: it counts as lost.
    Deaf {
        /// Who.
        peer: MemberId,
        /// For how long its heartbeats have confirmed none of ours, ms.
        unheard_ms: u64,
    },
    /// The owner hears this member again.
    Hears(MemberId),
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
    OwnerIs {
        /// Since when.
        epoch: EpochId,
        /// What this member knew before ([`EpochId::NONE`]: of no owner).
        before: EpochId,
        /// The owner before handed over, and stays in sync.
        planned: bool,
    },
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
    /// Pair: this member holds nothing, and hears no more of an owner that does. It begins anew after this time, unless it hears it again.
    Waits {
        /// The last owner that it knows.
        epoch: EpochId,
        /// How long, ms.
        ms: u64,
    },
    /// This member's fork lost against a higher epoch.
    ForkLost {
        /// Its own.
        mine: EpochId,
        /// The winner.
        theirs: EpochId,
    },
    /// The policies differ: the names of the parts that do.
    PolicyDiffers {
        /// Who.
        member: MemberId,
        /// Parts of the configuration, for example `connection site-a` or `cluster.groups`.
        parts: Vec<String>,
    },
    /// Two agents run with the same member id.
    Twin(MemberId),
    /// A member says that its data plane is in trouble, or is well again (`None`).
    Health {
        /// Who.
        member: MemberId,
        /// Why.
        trouble: Option<String>,
    },
    /// The ownership engine does not answer: what needs it waits.
    EngineSilent {
        /// What it said, if anything.
        why: String,
    },
    /// The ownership engine answers again.
    EngineBack,
    /// Nobody that is heard may take the group over: its in-sync set is lost.
    Orphaned {
        /// The members that could, if they came back in the life that they had.
        in_sync: BTreeSet<SetMember>,
    },
    /// A planned move waits until Child SAs that a lost standby knew are rekeyed, since the taker's release cannot be told which of their
    /// numbers are left.
    MoveWaits {
        /// To whom.
        to: MemberId,
        /// How many SAs.
        suspects: usize,
    },
    /// It waits no longer, though so many are left: what they carry is dropped until they are rekeyed.
    MoveWaitedInVain {
        /// To whom.
        to: MemberId,
        /// How many SAs.
        suspects: usize,
    },
    /// A planned handover ended.
    HandoverDone {
        /// The new epoch.
        epoch: EpochId,
    },
    /// A planned handover was given up.
    HandoverAborted {
        /// To whom.
        to: MemberId,
        /// Why.
        why: String,
    },
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
