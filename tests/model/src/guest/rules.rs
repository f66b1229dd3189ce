//! The decisions under test, replaceable one by one.

use cluster::EpochId;
use cluster::rules_guest::{self, HostStep, Lodging, Voice};
use model::MemberId;

/// Decision functions of the product, as pointers, and what its surroundings do, as flags.
#[derive(Clone, Copy)]
pub struct Rules {
    /// What a host does with a guest that is to be installed.
    pub lodging: fn(bool, bool) -> Lodging,
    /// Whether somebody may speak for the IKE SAs.
    pub may_speak: fn(EpochId, EpochId, MemberId) -> bool,
    /// Whether what is said of a guest counts.
    pub counts: fn(Option<Voice>, Voice) -> bool,
    /// Whether a roster removes a guest.
    pub evicts: fn(Option<Voice>, Voice, bool) -> bool,
    /// Whether the sponsor proposes its own part.
    pub may_propose: fn(HostStep) -> bool,
    /// Whether a guest may carry outbound traffic.
    pub may_use: fn(HostStep, bool) -> bool,
    /// An offer is good for one installation.
    pub offers_are_used_up: bool,
    /// A host remembers the newest epoch in which a sponsor spoke, whatever it has heard of it otherwise.
    pub remembers_epoch: bool,
    /// A roster lists what is promised to the peer in an exchange that is not finished.
    pub lists_promised: bool,
    /// What the host has proposed, and is not committed, is there as far as a roster is concerned.
    pub rosters_see_proposals: bool,
}

impl Rules {
    /// What espalier does.
    pub const PRODUCT: Self = Self {
        lodging: rules_guest::lodging,
        may_speak: rules_guest::may_speak,
        counts: rules_guest::counts,
        evicts: rules_guest::evicts,
        may_propose: rules_guest::may_propose,
        may_use: rules_guest::may_use,
        offers_are_used_up: true,
        remembers_epoch: true,
        lists_promised: true,
        rosters_see_proposals: true,
    };
}
