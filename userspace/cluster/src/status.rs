//! What a node says of itself.

use crate::message::{Link, SetMember};
use crate::rules::{EpochId, Standing};
use model::{GroupId, Instant, MemberId};
use std::collections::BTreeSet;

/// Role in one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Looking for the others.
    Starting,
    /// Owns the group.
    Active,
    /// Mirrors, and may take over.
    Standby,
    /// Mirrors, not yet in the in-sync set.
    Joining,
}

/// A peer, seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Who.
    pub member: MemberId,
    /// Heard and not suspected.
    pub alive: bool,
    /// Suspected.
    pub suspected: bool,
    /// Last heard.
    pub last_heard: Option<Instant>,
    /// Threshold, ms.
    pub threshold_ms: u64,
    /// Links that are up.
    pub links: BTreeSet<Link>,
    /// Its data plane works, as it says.
    pub healthy: bool,
    /// It is being drained.
    pub draining: bool,
    /// Format of records that goes to it.
    pub speaks: u8,
    /// Parts of its policy that differ from ours.
    pub differs: Vec<String>,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// Which.
    pub group: GroupId,
    /// This member's role in it.
    pub role: Role,
    /// Epoch (with its owner; member 0: none).
    pub epoch: EpochId,
    /// The member that it is meant for.
    pub home: MemberId,
    /// The in-sync set, where known.
    pub in_sync: Option<BTreeSet<SetMember>>,
    /// How the owner stands, where this member is the owner.
    pub standing: Option<Standing>,
    /// Journal position written or armed.
    pub position: u64,
    /// Committed position (owner).
    pub committed: u64,
    /// Raises under way.
    pub raises_open: usize,
    /// Until when the owner word is valid (owner).
    pub valid_until: Instant,
    /// A planned handover is under way.
    pub handover: bool,
    /// Child SAs that a lost standby knew, and that are not rekeyed yet.
    pub suspects: usize,
    /// A planned move waits for their rekeys: to whom.
    pub move_waits: Option<MemberId>,
    /// A claim or a change of the in-sync set waits for the ownership engine.
    pub engine_waits: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// This member.
    pub me: SetMember,
    /// The groups, in their order.
    pub groups: Vec<GroupStatus>,
    /// The peers.
    pub peers: Vec<PeerStatus>,
    /// Records refused since the start.
    pub refused: u64,
    /// This member is being drained.
    pub draining: bool,
    /// Why its data plane does not work, if it does not.
    pub trouble: Option<String>,
    /// The ownership engine does not answer: since when and why.
    pub engine_silent: Option<(Instant, String)>,
}

impl NodeStatus {
    /// Groups that this member owns.
    pub fn owned(&self) -> impl Iterator<Item = &GroupStatus> {
        self.groups.iter().filter(|g| g.role == Role::Active)
    }
}
