//! What the checker stores: small, hashable, and nothing that a member could not know, apart from [`Ghost`].

use cluster::{Direction, EpochId, SetMember, Standing};
use datapath::limits::is_tainted;
use maps_schema::sad::{LIMITS_TAINTED, Limits};
use model::{Incarnation, MemberId};
use std::collections::BTreeSet;

/// Member number 0 or 1 as the product names it.
pub fn member_id(member: usize) -> MemberId {
    MemberId(member as u8 + 1)
}

/// `maps_schema::sad::Limits` in four octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lim {
    /// L or C.
    pub limit: u8,
    /// S or H.
    pub step: u8,
    /// Highest bound of earlier epochs.
    pub floor: u8,
    /// Epoch of `limit`.
    pub epoch: u8,
    /// Numbers above it may have been used by a life that was lost unseen.
    pub tainted: bool,
}

impl Lim {
    /// As the product has it.
    pub fn wide(self) -> Limits {
        Limits {
            limit: self.limit.into(),
            step: self.step.into(),
            floor: self.floor.into(),
            epoch: u32::from(self.epoch) | if self.tainted { LIMITS_TAINTED } else { 0 },
            reserved: 0,
        }
    }

    /// The other way.
    pub fn narrow(limits: &Limits) -> Self {
        Self {
            limit: limits.limit.min(250) as u8,
            step: limits.step as u8,
            floor: limits.floor as u8,
            epoch: limits.epoch as u8,
            tainted: is_tainted(limits),
        }
    }
}

/// Both directions of the SA on one member: maps of the agent and of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sa {
    /// Lease.
    pub outbound: Lim,
    /// Ceiling.
    pub inbound: Lim,
    /// Last outbound number given out here.
    pub counter: u8,
    /// Inbound numbers accepted here, one bit each.
    pub seen: u16,
}

/// What a member is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Knows nothing.
    Blank,
    /// Asked for a snapshot.
    Asking,
    /// Has it, follows.
    Following,
    /// In the set, and told so.
    InSync,
    /// Owns, or believes so.
    Owner,
}

/// A raise that waits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Open {
    /// Its version.
    pub version: u8,
    /// The wish.
    pub limit: u8,
    /// Who has not acknowledged.
    pub missing: BTreeSet<SetMember>,
}

/// The owner's view of a joining member.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Joiner {
    /// Who.
    pub member: SetMember,
    /// Its number for this join.
    pub id: u8,
    /// It acknowledged the snapshot.
    pub armed: bool,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// Runs.
    pub up: bool,
    /// Which start.
    pub incarnation: u8,
    /// What it is in.
    pub role: Role,
    /// Epoch in force, as it knows.
    pub epoch: EpochId,
    /// The set as it knows.
    pub set: Option<BTreeSet<SetMember>>,
    /// As an owner.
    pub standing: Standing,
    /// `SEGMENT_ALONE` in its owner words.
    pub alone: bool,
    /// The SA.
    pub sa: Option<Sa>,
    /// Versions given out so far.
    pub version: u8,
    /// Open raises: outbound, inbound.
    pub open: [Option<Open>; 2],
    /// Highest versions armed here: outbound, inbound.
    pub armed_version: [u8; 2],
    /// The journal: names of entries, by position - 1.
    pub journal: Vec<u8>,
    /// Entries that the standby has acknowledged.
    pub acknowledged: u8,
    /// Entries whose octets this member has put on the wire in its epoch.
    pub sent: u8,
    /// Owner: who joins.
    pub join: Option<Joiner>,
    /// Joining: number of the join, unique over the lives of the member.
    pub join_id: u8,
    /// Owner: the last join that was let begin.
    pub admitted: Option<(SetMember, u8)>,
    /// Lost lives of the other member may have claimed epochs up to this number.
    pub claim_above: u8,
}

impl Member {
    /// Its name in sets.
    pub fn name(&self, member: usize) -> SetMember {
        SetMember {
            member: member_id(member),
            incarnation: Incarnation(self.incarnation.into()),
        }
    }

    /// Nothing but an incarnation.
    pub fn blank(incarnation: u8) -> Self {
        Self {
            up: true,
            incarnation,
            role: Role::Blank,
            epoch: EpochId::NONE,
            set: None,
            standing: Standing::WithStandby,
            alone: false,
            sa: None,
            version: 0,
            open: [None, None],
            armed_version: [0, 0],
            journal: Vec::new(),
            acknowledged: 0,
            sent: 0,
            join: None,
            join_id: incarnation * 16,
            admitted: None,
            claim_above: 0,
        }
    }
}

/// A record on its way. The network keeps every record for ever: it may be lost (never taken), reordered, duplicated.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Record {
    /// Who says it.
    pub from: SetMember,
    /// In which epoch.
    pub epoch: EpochId,
    /// What.
    pub body: Body,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Body {
    /// Heartbeat of an owner.
    Owns,
    /// New limit.
    Raise {
        /// 0 outbound, 1 inbound.
        direction: u8,
        /// Version.
        version: u8,
        /// Limit.
        limit: u8,
    },
    /// It is armed.
    RaiseAck {
        /// 0 outbound, 1 inbound.
        direction: u8,
        /// Version.
        version: u8,
    },
    /// An entry.
    Journal {
        /// Position.
        position: u8,
        /// Name.
        entry: u8,
    },
    /// Everything up to here is armed.
    JournalAck {
        /// Position.
        position: u8,
    },
    /// Let me join.
    JoinRequest {
        /// Number of the join.
        id: u8,
    },
    /// Everything.
    Snapshot {
        /// Number of the join.
        id: u8,
        /// The SA; counters and windows are not part of it.
        sa: Option<Sa>,
        /// The journal.
        journal: Vec<u8>,
        /// Raise versions given out up to here are part of it.
        version: u8,
        /// A claim must be above this.
        claim_above: u8,
    },
    /// It is armed.
    SnapshotAck {
        /// Number of the join.
        id: u8,
    },
    /// You are in the set.
    Joined {
        /// Number of the join.
        id: u8,
    },
    /// You are not.
    SoloNotice {
        /// Number of the join that is void.
        id: u8,
    },
}

/// What an observer of the wire has seen. Decides nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ghost {
    /// Outbound numbers seen, one bit each.
    pub outbound: u16,
    /// Nonces seen: (member, low bits of the epoch, number).
    pub nonces: BTreeSet<(u8, u16, u8)>,
    /// Inbound numbers accepted by somebody, one bit each.
    pub accepted: u16,
    /// Those among them that an owner accepted whose standby may have taken over unseen.
    pub accepted_unfenced: u16,
    /// Entries whose octets were sent, unless by one half of a split.
    pub wire: Vec<(u8, u8)>,
    /// Violations found so far.
    pub broken: BTreeSet<Broken>,
    /// Takeovers so far.
    pub takeovers: u8,
    /// Packets sent by a taker.
    pub sent_by_taker: bool,
    /// Two members believed to own at the same time.
    pub split: bool,
    /// A member came into the set by joining.
    pub joined: bool,
}

/// What must never happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Broken {
    /// An outbound sequence number twice under one key (R4).
    OutboundTwice,
    /// A nonce twice under one key (R10).
    NonceTwice,
    /// An inbound number accepted twice, and not by the halves of a split (R6).
    InboundTwice,
    /// A taker lacks an entry whose octets are on the wire (R3, R8).
    EntryLost,
    /// A member that was told that it is in the set could not take over.
    NoSurvivor,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The pair.
    pub members: [Member; 2],
    /// Records.
    pub network: BTreeSet<Record>,
    /// The observer.
    pub ghost: Ghost,
    /// Crashes, exclusions, joins and raises that may still happen.
    pub left: Left,
}

/// Bounds of the exploration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Left {
    /// Crashes.
    pub crashes: u8,
    /// Starts after a crash.
    pub restarts: u8,
    /// Suspicions, right or wrong, by a standby.
    pub takeovers: u8,
    /// Suspicions, right or wrong, by an owner.
    pub exclusions: u8,
    /// Requests to join.
    pub joins: u8,
    /// Raises of a lease.
    pub outbound_raises: u8,
    /// Raises of a ceiling.
    pub inbound_raises: u8,
    /// Journal entries.
    pub entries: u8,
    /// Outbound numbers are at most this; 0: no outbound packets.
    pub outbound_max: u8,
    /// Inbound numbers are at most this.
    pub inbound_max: u8,
}

/// Index of a direction.
pub fn index(direction: Direction) -> usize {
    match direction {
        Direction::Outbound => 0,
        Direction::Inbound => 1,
    }
}
