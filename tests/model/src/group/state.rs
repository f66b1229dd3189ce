//! What the checker stores. Sets and epochs are kept in a few octets and turned into the product's types for each decision.

pub use crate::state::Lim;
use cluster::rules_doubt::Doubt;
pub use cluster::rules_doubt::Mirror;
use cluster::{EpochId, GroupRecord, SetMember};
use model::{Epoch, Incarnation, MemberId};
use std::collections::{BTreeMap, BTreeSet};

/// Members at most.
pub const MEMBERS: usize = 4;
/// Numbers that the ghost can tell apart.
pub const NUMBERS: u8 = 15;

/// The life of each member that a set lists; 0 where it lists none.
pub type Lives = [u8; MEMBERS];

/// Member at an index, in one of its lives, as the product names it.
pub fn name(at: usize, life: u8) -> SetMember {
    SetMember {
        member: member_id(at),
        incarnation: Incarnation(life.into()),
    }
}

/// Member at an index as the product names it.
pub fn member_id(at: usize) -> MemberId {
    MemberId(at as u8 + 1)
}

/// A set as the product has it.
pub fn wide(lives: &Lives) -> BTreeSet<SetMember> {
    (0..MEMBERS)
        .filter(|at| lives[*at] != 0)
        .map(|at| name(at, lives[at]))
        .collect()
}

/// The other way.
pub fn narrow(set: &BTreeSet<SetMember>) -> Lives {
    let mut lives = [0; MEMBERS];
    for m in set {
        lives[usize::from(m.member.0) - 1] = m.incarnation.0 as u8;
    }
    lives
}

/// An epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ep {
    /// The number.
    pub number: u8,
    /// Index of who made it.
    pub owner: u8,
}

impl Ep {
    /// As the product has it.
    pub fn wide(self) -> EpochId {
        EpochId {
            number: Epoch(self.number.into()),
            owner: member_id(self.owner.into()),
        }
    }

    /// The other way.
    pub fn narrow(epoch: EpochId) -> Self {
        Self {
            number: epoch.number.0 as u8,
            owner: epoch.owner.0 - 1,
        }
    }
}

/// What the engine's key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Epoch and owner.
    pub epoch: Ep,
    /// The in-sync set.
    pub set: Lives,
    /// Rises with every write.
    pub revision: u8,
}

impl Key {
    /// As the product has it.
    pub fn wide(&self) -> GroupRecord {
        GroupRecord {
            epoch: self.epoch.wide(),
            in_sync: wide(&self.set),
        }
    }

    /// The key after a write of `record` over this one.
    pub fn then(&self, record: &GroupRecord) -> Self {
        Self {
            epoch: Ep::narrow(record.epoch),
            set: narrow(&record.in_sync),
            revision: self.revision + 1,
        }
    }
}

/// What a write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Purpose {
    /// Ownership for the writer.
    Claim,
    /// Fewer members.
    Shrink,
    /// One more.
    Enter,
    /// Ownership for another member.
    Move,
}

/// How far a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Landed {
    /// On its way.
    NotYet,
    /// Done.
    Done,
    /// The key held something else.
    Failed,
}

/// A write whose answer the member has not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Write {
    /// What it compares with.
    pub expected: Key,
    /// What it writes.
    pub new: Key,
    /// What it is for.
    pub purpose: Purpose,
    /// How far it is.
    pub landed: Landed,
}

/// What a member is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Knows nothing.
    Blank,
    /// Asked to join.
    Asking,
    /// Holds the snapshot of its join, follows.
    Following,
    /// In the set, and told so.
    InSync,
    /// Its claim is written; does not serve yet.
    Taking,
    /// Serves, or believes so.
    Owner,
}

/// A raise that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Open {
    /// Its version.
    pub version: u8,
    /// Version of the first raise since all of them agreed.
    pub first: u8,
    /// The wish.
    pub limit: u8,
    /// With this step.
    pub step: u8,
    /// Who has not acknowledged.
    pub missing: Lives,
}

/// The owner's view of a joining member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Joiner {
    /// Who.
    pub at: u8,
    /// In which life.
    pub life: u8,
    /// Its number for this join.
    pub id: u8,
    /// It acknowledged the snapshot.
    pub armed: bool,
    /// Limits went into use without it since its snapshot.
    pub owed: bool,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    /// Runs.
    pub up: bool,
    /// Which start.
    pub life: u8,
    /// What it is in.
    pub role: Role,
    /// Epoch in force, as it knows.
    pub epoch: Ep,
    /// It holds the SA and the journal.
    pub mirror: bool,
    /// Limits of the SA's direction.
    pub lim: Lim,
    /// Outbound: last number given out here. Inbound: the edge.
    pub counter: u8,
    /// Inbound numbers accepted here.
    pub seen: u16,
    /// Names of the entries.
    pub journal: Vec<u8>,
    /// Standby: highest version armed.
    pub armed: u8,
    /// What the others may not have.
    pub doubt: Option<Doubt>,
    /// A write without an answer.
    pub write: Option<Write>,
    /// Owner: the set as it knows.
    pub known: Lives,
    /// Owner: versions given out.
    pub version: u8,
    /// Owner: an open raise.
    pub open: Option<Open>,
    /// Taker: somebody's limits are in doubt.
    pub restate: bool,
    /// Taker: who follows.
    pub following: Lives,
    /// Owner: journal position that each has acknowledged.
    pub acknowledged: [u8; MEMBERS],
    /// Owner: `SEGMENT_ALONE`.
    pub alone: bool,
    /// Owner: entries whose octets went on the wire.
    pub sent: u8,
    /// Owner: no raises and entries, a planned move is being written.
    pub frozen: bool,
    /// Owner: who joins.
    pub join: Option<Joiner>,
    /// Owner: number of the last join of each that was let begin.
    pub admitted: [u8; MEMBERS],
    /// Number of the member's own last join: 16 x life, and counting.
    pub join_id: u8,
    /// It has looked into the key, was in no set, and has thrown away what it held.
    pub gave_up: bool,
}

impl Member {
    /// Nothing but a life.
    pub fn blank(life: u8) -> Self {
        Self {
            up: life != 0,
            life,
            role: Role::Blank,
            epoch: Ep { number: 0, owner: 0 },
            mirror: false,
            lim: Lim {
                limit: 0,
                step: 1,
                floor: 0,
                epoch: 0,
                tainted: false,
            },
            counter: 0,
            seen: 0,
            journal: Vec::new(),
            armed: 0,
            doubt: None,
            write: None,
            known: [0; MEMBERS],
            version: 0,
            open: None,
            restate: false,
            following: [0; MEMBERS],
            acknowledged: [0; MEMBERS],
            alone: false,
            sent: 0,
            frozen: false,
            join: None,
            admitted: [0; MEMBERS],
            join_id: life.saturating_mul(16),
            gave_up: false,
        }
    }

    /// What it holds.
    pub fn holds(&self) -> Mirror {
        if self.mirror { Mirror::Whole } else { Mirror::None }
    }

    /// Believes to own, serving or about to.
    pub fn leads(&self) -> bool {
        self.up && matches!(self.role, Role::Taking | Role::Owner)
    }
}

/// A record on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Record {
    /// Index of who says it.
    pub from: u8,
    /// In which life.
    pub life: u8,
    /// In which epoch.
    pub epoch: Ep,
    /// What.
    pub body: Body,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Body {
    /// New limits.
    Raise {
        /// Version.
        version: u8,
        /// Limit.
        limit: u8,
        /// Step.
        step: u8,
    },
    /// They are armed.
    RaiseAck {
        /// Version.
        version: u8,
    },
    /// A taker names itself.
    NewEpoch {
        /// The epoch that it was in.
        old: Ep,
        /// Where its mirror ends.
        position: u8,
        /// The set.
        set: Lives,
    },
    /// A survivor follows.
    EpochAck {
        /// Where its mirror ends.
        position: u8,
        /// Its limits are in doubt.
        doubtful: bool,
    },
    /// A journal entry.
    Entry {
        /// Position.
        position: u8,
        /// Name.
        entry: u8,
    },
    /// All up to here is armed.
    EntryAck {
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
        /// For whom.
        to: u8,
        /// Number of the join.
        id: u8,
        /// Limits.
        lim: Lim,
        /// Journal.
        journal: Vec<u8>,
        /// Raises up to this version are part of it.
        through: u8,
    },
    /// It is armed.
    SnapshotAck {
        /// Number of the join.
        id: u8,
        /// Where it ends.
        position: u8,
    },
    /// You are in the set.
    Joined {
        /// Who.
        to: u8,
        /// Number of the join.
        id: u8,
    },
    /// You are not.
    Excluded {
        /// Who, in which life.
        to: (u8, u8),
        /// Number of the join that is void.
        id: u8,
    },
    /// Planned move: the record names you.
    Offer {
        /// The new key.
        key: Key,
    },
}

/// What an observer of wire and engine has seen. Decides nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ghost {
    /// Numbers used by (owner, epoch): nonces, and with that outbound numbers.
    pub used: BTreeMap<(u8, u8), u16>,
    /// Inbound numbers accepted by somebody.
    pub accepted: u16,
    /// Entries whose octets were sent, by position - 1.
    pub wire: Vec<u8>,
    /// Violations.
    pub broken: BTreeSet<Broken>,
    /// Epochs in which somebody served, one bit each.
    pub served: u16,
    /// A taker stated limits anew.
    pub restated: bool,
    /// A member entered the set.
    pub entered: bool,
    /// The group began anew, without this SA.
    pub anew: bool,
}

/// What must never happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Broken {
    /// R4.
    OutboundTwice,
    /// R10.
    NonceTwice,
    /// R6.
    InboundTwice,
    /// R3: a taker lacks an entry whose octets are on the wire.
    EntryLost,
    /// R8: two different entries at one position are on the wire.
    Forked,
    /// R7: a taker lacks the SA.
    SaLost,
    /// A group began anew while somebody held it.
    BegunAnew,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State {
    /// The engine's key.
    pub key: Key,
    /// Writes nobody waits for, that may still be done.
    pub late: Vec<Write>,
    /// Members.
    pub members: [Member; MEMBERS],
    /// Records, sorted.
    pub network: Vec<Record>,
    /// The observer.
    pub ghost: Ghost,
    /// Bounds.
    pub left: Left,
}

/// Bounds of the exploration: what may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Left {
    /// Claims that are written (suspicions, right or wrong).
    pub claims: u8,
    /// Exclusions by an owner or taker, right or wrong.
    pub exclusions: u8,
    /// Raises.
    pub raises: u8,
    /// Lowerings of a ceiling.
    pub lowerings: u8,
    /// Raises that are forgotten (a broken rule).
    pub expiries: u8,
    /// Journal entries.
    pub entries: u8,
    /// Crashes.
    pub crashes: u8,
    /// New lives.
    pub restarts: u8,
    /// Requests to join.
    pub joins: u8,
    /// Answers of the engine that do not arrive.
    pub timeouts: u8,
    /// Planned moves.
    pub moves: u8,
    /// Groups that begin anew.
    pub beginnings: u8,
    /// Numbers used without upper limit, by one that is alone.
    pub alone_uses: u8,
}
