//! What a node says of itself.

use crate::message::{Link, SetMember};
use crate::rules::{EpochId, Standing};
use model::{Instant, MemberId};
use std::collections::BTreeSet;

/// Role in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Looking for the others.
    Starting,
    /// Owns the segments.
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
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// This member.
    pub me: SetMember,
    /// Role.
    pub role: Role,
    /// Epoch (with its owner; member 0: none).
    pub epoch: EpochId,
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
    /// The peers.
    pub peers: Vec<PeerStatus>,
    /// Records refused since the start.
    pub refused: u64,
}
