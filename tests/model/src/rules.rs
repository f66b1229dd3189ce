//! The decisions under test, replaceable one by one.

use cluster::rules::{
    self, Ack, EpochId, JoinFacts, NoTakeover, RaiseDecision, Solo, Standing, TakeoverPlan,
};
use cluster::{Direction, SetMember, rules_doubt};
use datapath::limits::{self, EpochBehind, InboundRange, OutboundRange};
use maps_schema::sad::Limits;
use model::{Epoch, MemberId};
use std::collections::BTreeSet;

/// An in-sync set.
pub type Set = BTreeSet<SetMember>;

/// `cluster::rules::takeover`.
pub type Takeover =
    fn(EpochId, Epoch, Option<&Set>, SetMember, &Set, u64) -> Result<TakeoverPlan, NoTakeover>;

/// Decision functions of the product, as pointers.
#[derive(Clone, Copy)]
pub struct Rules {
    /// Whether an acknowledgement counts.
    pub ack_counts: fn(EpochId, &Set, u64, &Ack) -> bool,
    /// Position up to which everything is acknowledged.
    pub commit_position: fn(u64, &[u64]) -> u64,
    /// What becomes of a wish for a raise.
    pub decide_raise: fn(Standing, bool, Direction) -> RaiseDecision,
    /// Whose acknowledgement a raise needs.
    pub asked_for_raise: fn(&Set, MemberId, Option<SetMember>) -> Set,
    /// The takeover as a plan.
    pub takeover: Takeover,
    /// Whether a joining member enters the set.
    pub may_enter: fn(&JoinFacts) -> bool,
    /// Who gives way when a split heals.
    pub must_yield: fn(EpochId, EpochId) -> bool,
    /// Whether a record of another epoch is obeyed.
    pub same_epoch: fn(EpochId, EpochId) -> bool,
    /// How an owner stands once its standby is gone; the flag says that a new life of it was seen.
    pub standing_after_loss: fn(bool) -> Standing,
    /// Directions that nobody after this owner may use, once a standby was lost.
    pub tainted_by_loss: fn(Solo, Standing) -> &'static [Direction],
    /// Number that a claim must pass once a standby of this epoch was lost.
    pub claim_above: fn(Epoch, EpochId) -> Epoch,
    /// Outbound numbers.
    pub outbound: fn(&Limits, u8, bool, u16) -> Result<OutboundRange, EpochBehind>,
    /// Inbound numbers.
    pub inbound: fn(&Limits, u8, bool, u16) -> Result<InboundRange, EpochBehind>,
}

impl Rules {
    /// What espalier does.
    pub const PRODUCT: Self = Self {
        ack_counts: rules::ack_counts,
        commit_position: |written, acknowledged| {
            rules::commit_position(written, acknowledged.iter().copied())
        },
        decide_raise: rules::decide_raise,
        asked_for_raise: rules::asked_for_raise,
        takeover: rules::takeover,
        may_enter: rules::may_enter,
        must_yield: rules::must_yield,
        same_epoch: rules::same_epoch,
        standing_after_loss: rules::standing_after_loss,
        tainted_by_loss: rules_doubt::tainted_by_loss,
        claim_above: rules::claim_above,
        outbound: limits::outbound_range,
        inbound: limits::inbound_range,
    };
}
