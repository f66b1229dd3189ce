//! The decisions under test, one pointer each: the product's by default, a broken one in a mutation test.

use cluster::rules::{
    self, Ack, EpochId, JoinFacts, NoTakeover, RaiseDecision, Solo, Standing, TakeoverPlan,
};
use cluster::{Direction, SetMember};
use datapath::limits::{self, EpochBehind, InboundRange, OutboundRange};
use maps_schema::sad::Limits;
use model::{Epoch, MemberId};
use std::collections::BTreeSet;

/// An in-sync set as the product has it.
pub type Set = BTreeSet<SetMember>;

/// `cluster::rules::takeover`.
pub type Takeover =
    fn(EpochId, Epoch, Option<&Set>, SetMember, &Set, u64) -> Result<TakeoverPlan, NoTakeover>;

/// What members decide with.
#[derive(Clone, Copy)]
pub struct Decisions {
    /// Whether an acknowledgement counts.
    pub ack_counts: fn(EpochId, &Set, u64, &Ack) -> bool,
    /// Up to where the journal is committed.
    pub commit_position: fn(u64, &[u64]) -> u64,
    /// Whose acknowledgement a raise needs.
    pub asked_for_raise: fn(&Set, MemberId, Option<SetMember>) -> Set,
    /// What becomes of a wish for a raise.
    pub decide_raise: fn(Standing, bool, Direction) -> RaiseDecision,
    /// Plans a takeover, or refuses it.
    pub takeover: Takeover,
    /// How an owner stands after a loss; the flag: that very life gave its place up.
    pub standing_after_loss: fn(bool) -> Standing,
    /// Directions that nobody after this owner may use, after a loss.
    pub tainted_by_loss: fn(Solo, Standing) -> &'static [Direction],
    /// Number that later claims must pass after a loss.
    pub claim_above: fn(Epoch, EpochId) -> Epoch,
    /// Who gives way.
    pub must_yield: fn(EpochId, EpochId) -> bool,
    /// Whether a joining member enters.
    pub may_enter: fn(&JoinFacts) -> bool,
    /// Outbound numbers.
    pub outbound: fn(&Limits, u8, bool, u16) -> Result<OutboundRange, EpochBehind>,
    /// Inbound numbers.
    pub inbound: fn(&Limits, u8, bool, u16) -> Result<InboundRange, EpochBehind>,
    /// Limits after a raise.
    pub raised: fn(&Limits, u64, u64, u16) -> Result<Limits, EpochBehind>,
    /// What an owner keeps of a lease that nobody may raise, when it hands over in a planned way.
    pub shortened: fn(&Limits, u64, u16) -> Option<Limits>,
    /// What the taker is left of it.
    pub inherited: fn(&Limits, u64, u64, u16) -> Option<Limits>,
}

impl Default for Decisions {
    fn default() -> Self {
        Self {
            ack_counts: rules::ack_counts,
            commit_position: |written, acknowledged| {
                rules::commit_position(written, acknowledged.iter().copied())
            },
            asked_for_raise: rules::asked_for_raise,
            decide_raise: rules::decide_raise,
            takeover: rules::takeover,
            standing_after_loss: rules::standing_after_loss,
            tainted_by_loss: cluster::rules_doubt::tainted_by_loss,
            claim_above: rules::claim_above,
            must_yield: rules::must_yield,
            may_enter: rules::may_enter,
            outbound: limits::outbound_range,
            inbound: limits::inbound_range,
            raised: limits::raised,
            shortened: limits::shortened,
            inherited: limits::inherited,
        }
    }
}
