//! What the checker stores: small and hashable. [`Ghost`] is the observer, which no member can read.

use cluster::SetMember;
use cluster::rules::{EpochId, Standing};
use datapath::limits::is_tainted;
use maps_schema::sad::{LIMITS_TAINTED, Limits};
use model::{Epoch, Incarnation, MemberId};
use std::collections::BTreeSet;

/// Members 0 and 1 by incarnation; 0 where a member is not in the set.
pub type Lives = [u8; 2];

/// The product's name of member 0 or 1.
pub fn name(member: usize, incarnation: u8) -> SetMember {
    SetMember {
        member: MemberId(member as u8 + 1),
        incarnation: Incarnation(incarnation.into()),
    }
}

/// The product's set.
pub fn wide_set(lives: Lives) -> BTreeSet<SetMember> {
    (0..2)
        .filter(|m| lives[*m] != 0)
        .map(|m| name(m, lives[m]))
        .collect()
}

/// The other way.
pub fn narrow_set(set: &BTreeSet<SetMember>) -> Lives {
    let mut lives = [0; 2];
    for m in set {
        lives[usize::from(m.member.0 - 1)] = m.incarnation.0 as u8;
    }
    lives
}

/// An epoch: (number, owner's member id).
pub type Ep = (u8, u8);

/// The product's epoch.
pub fn wide_epoch(epoch: Ep) -> EpochId {
    EpochId {
        number: Epoch(epoch.0.into()),
        owner: MemberId(epoch.1),
    }
}

/// `maps_schema::sad::Limits` in four octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lim {
    /// L or C.
    pub limit: u8,
    /// S or H.
    pub step: u8,
    /// Bound of earlier epochs.
    pub floor: u8,
    /// Epoch of `limit`.
    pub epoch: u8,
    /// A lost life may have used what is above ([`crate::pair::Pair::taint`]).
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
            limit: limits.limit as u8,
            step: limits.step as u8,
            floor: limits.floor as u8,
            epoch: limits.epoch as u8,
            tainted: is_tainted(limits),
        }
    }
}

/// One SA on one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sa {
    /// Outbound (0) and inbound (1).
    pub limits: [Lim; 2],
    /// Last number given out here.
    pub counter: u8,
    /// Numbers marked in the window here, one bit each.
    pub seen: u8,
}

/// Journal entries by name; positions are consecutive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Journal {
    /// Names.
    pub names: [u8; 4],
    /// Last position.
    pub len: u8,
}

impl Journal {
    /// Appends.
    pub fn push(&mut self, name: u8) {
        self.names[usize::from(self.len)] = name;
        self.len += 1;
    }

    /// Drops what comes after `len`.
    pub fn truncate(&mut self, len: u8) {
        for position in len..self.len {
            self.names[usize::from(position)] = 0;
        }
        self.len = self.len.min(len);
    }

    /// Whether it holds the entry.
    pub fn holds(&self, name: u8) -> bool {
        self.names[..usize::from(self.len)].contains(&name)
    }
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Started, knows nothing.
    Blank,
    /// Wants a snapshot.
    Asking,
    /// Holds it, follows, not in the set.
    Following,
    /// Was told that it is in the set.
    InSync,
    /// Owns, or believes so.
    Owner,
}

/// A raise under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Open {
    /// Version.
    pub version: u8,
    /// Wish.
    pub limit: u8,
    /// Who has not acknowledged.
    pub missing: Lives,
}

/// The owner's side of a join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Join {
    /// The life of the other member that joins.
    pub incarnation: u8,
    /// Position of its snapshot.
    pub snapshot: u8,
    /// It has acknowledged the snapshot.
    pub armed: bool,
    /// Journal position that it has acknowledged.
    pub acknowledged: u8,
}

/// An owner's planned move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Offered {
    /// The epoch that the taker is to make.
    pub next: Ep,
    /// What the taker is left of a lease that nobody may raise: it begins above the first number and ends with the second.
    pub rest: Option<(u8, u8)>,
}

/// A member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// Its host runs.
    pub up: bool,
    /// Which start.
    pub incarnation: u8,
    /// The other's life that it knows.
    pub peer: u8,
    /// What it is.
    pub role: Role,
    /// Epoch in force as it knows.
    pub epoch: Ep,
    /// In-sync set as it knows.
    pub set: Option<Lives>,
    /// Standing of an owner.
    pub standing: Standing,
    /// Its owner words are valid.
    pub valid: bool,
    /// Its maps' entry for the SA.
    pub sa: Option<Sa>,
    /// Versions of raises given out in this epoch.
    pub version: u8,
    /// Open raises: outbound, inbound.
    pub open: [Option<Open>; 2],
    /// Versions armed as a standby.
    pub armed: [u8; 2],
    /// Journal: written (owner) or armed (standby).
    pub journal: Journal,
    /// Position that the standby in the set has acknowledged.
    pub acknowledged: u8,
    /// Position released to the wire.
    pub released: u8,
    /// Who joins.
    pub join: Option<Join>,
    /// A planned move that is offered.
    pub offered: Option<Offered>,
    /// Number that a claim must pass.
    pub claim_above: u8,
    /// Requests to join sent in this life.
    pub requests: u8,
    /// Highest request of the peer's present life that was looked at.
    pub requests_seen: u8,
}

impl Member {
    /// A new life.
    pub fn blank(incarnation: u8, peer: u8) -> Self {
        Self {
            up: true,
            incarnation,
            peer,
            role: Role::Blank,
            epoch: (0, 0),
            set: None,
            standing: Standing::WithStandby,
            valid: false,
            sa: None,
            version: 0,
            open: [None; 2],
            armed: [0; 2],
            journal: Journal::default(),
            acknowledged: 0,
            released: 0,
            join: None,
            offered: None,
            claim_above: 0,
            requests: 0,
            requests_seen: 0,
        }
    }

    /// Its words carry the `alone` flag.
    pub fn alone(&self) -> bool {
        self.standing == Standing::AloneTaker
    }

    /// It serves packets.
    pub fn serves(&self) -> bool {
        self.up && self.role == Role::Owner && self.valid
    }
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Body {
    /// New limit of a direction.
    Raise { direction: u8, version: u8, limit: u8 },
    /// It is armed.
    RaiseAck { direction: u8, version: u8 },
    /// You are out of the set.
    SoloNotice,
    /// An entry.
    Journal { position: u8, entry: u8 },
    /// Everything up to here is armed.
    JournalAck { position: u8 },
    /// Let me join.
    JoinRequest {
        /// Rises with each request of a life; 0 where requests are not named.
        number: u8,
    },
    /// Everything.
    Snapshot {
        limits: Option<[Lim; 2]>,
        journal: Journal,
        /// Number that a claim must pass.
        claim_above: u8,
    },
    /// It is armed.
    SnapshotAck { position: u8 },
    /// You are in the set.
    Joined,
    /// Take over in a planned way.
    Offer {
        /// In this epoch.
        next: Ep,
        /// If this is where the journal ends.
        position: u8,
        /// With this, see [`Offered::rest`].
        rest: Option<(u8, u8)>,
    },
    /// Taker, in its epoch: I have.
    Armed,
}

/// A record on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Record {
    /// Sender: 0 or 1.
    pub from: u8,
    /// Its life.
    pub incarnation: u8,
    /// Its epoch.
    pub epoch: Ep,
    /// What.
    pub body: Body,
}

/// What must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Broken {
    /// R4: a number twice under the key.
    NumberTwice,
    /// R10: a (member, epoch, number) twice under the key.
    NonceTwice,
    /// R6: an inbound number accepted twice.
    AcceptedTwice,
    /// R6, and not on two sides of a split.
    AcceptedTwiceUndocumented,
    /// R3, R8: released, and an in-sync standby does not hold it.
    ReleasedEarly,
    /// R3, R8: a taker lacks an entry that was released while it was in the set.
    EntryLost,
}

/// The observer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ghost {
    /// Numbers sent, with the (member, epoch) of each: the nonces.
    pub sent: BTreeSet<(u8, u8, u8)>,
    /// Inbound numbers accepted, each with the epoch of the member that did.
    pub accepted: BTreeSet<(u8, Ep)>,
    /// Entries released while a standby was in the set: (entry, owner's epoch, life of the standby).
    pub released: BTreeSet<(u8, Ep, u8)>,
    /// Entries named so far.
    pub entries: u8,
    /// Two members served at the same time, or an owner went on alone unfenced.
    pub split: bool,
    /// A taker sent a packet.
    pub taker_sent: bool,
    /// A member entered by joining.
    pub entered: bool,
    /// A planned taker was left numbers, in this epoch.
    pub rest_left: Option<Ep>,
    /// It sent one of them.
    pub rest_sent: bool,
    /// What went wrong, first thing only.
    pub broken: BTreeSet<Broken>,
}

/// How much may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Crashes of a host.
    pub crashes: u8,
    /// Starts after a crash.
    pub restarts: u8,
    /// Suspicions by a standby, right or wrong.
    pub takeovers: u8,
    /// Suspicions by an owner, right or wrong.
    pub exclusions: u8,
    /// Requests to join.
    pub joins: u8,
    /// Wishes for raises: outbound, inbound.
    pub raises: [u8; 2],
    /// Proposals.
    pub entries: u8,
    /// Connections cut.
    pub cuts: u8,
    /// Planned moves.
    pub moves: u8,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The pair.
    pub members: [Member; 2],
    /// Datagrams ever sent: each may arrive never, late, and more than once.
    pub datagrams: BTreeSet<Record>,
    /// Streams by receiver: in order, each record once, until the connection is cut.
    pub streams: [Vec<Record>; 2],
    /// What the witness holds, where there is one: epoch and in-sync set.
    pub witness: (Ep, Lives),
    /// What is left.
    pub budget: Budget,
    /// The observer.
    pub ghost: Ghost,
}
