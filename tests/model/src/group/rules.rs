//! The decisions under test, replaceable one by one.

use crate::group::state::Mirror;
use cluster::rules::{self, Ack, EpochId, JoinFacts, NoClaim, NoTakeover, RaiseDecision, Standing};
use cluster::rules_doubt::{self, Doubt, Fate};
use cluster::{Direction, GroupRecord, SetMember};
use datapath::limits::{self, EpochBehind, InboundRange, OutboundRange};
use maps_schema::sad::Limits;
use model::MemberId;
use std::collections::BTreeSet;

/// An in-sync set.
pub type Set = BTreeSet<SetMember>;

/// Decision functions of the product, as pointers, and what its surroundings do, as flags.
#[derive(Clone, Copy)]
pub struct Rules {
    /// The claim over a record.
    pub claim: fn(&GroupRecord, SetMember, &BTreeSet<MemberId>) -> Result<GroupRecord, NoClaim>,
    /// Whether a member may ask for a claim.
    pub may_ask: fn(Mirror) -> bool,
    /// The record without members.
    pub without: fn(&GroupRecord, &Set) -> GroupRecord,
    /// The record with a joiner.
    pub with: fn(&GroupRecord, SetMember) -> GroupRecord,
    /// The record after a planned move.
    pub moved: fn(&GroupRecord, SetMember) -> Result<GroupRecord, NoTakeover>,
    /// Whose acknowledgement is required while a write is under way.
    pub required: fn(&Set, Option<&Set>) -> Set,
    /// Whether a survivor follows without a snapshot.
    pub may_follow: fn(EpochId, u64, u64, EpochId, u64) -> bool,
    /// Whether such a one throws away what it holds.
    pub discards_when_it_asks: fn() -> bool,
    /// Versions that everybody has armed.
    pub settled: fn(Option<u64>, u64) -> u64,
    /// Whether a doubt goes on.
    pub remains: fn(Doubt, u64) -> bool,
    /// What becomes of a doubt in the next epoch.
    pub in_next_epoch: fn(Doubt) -> Option<Doubt>,
    /// Whether a taker serves.
    pub may_serve: fn(&Set, MemberId, &Set, usize) -> bool,
    /// What a read tells of a write without an answer.
    pub fate: fn(&GroupRecord, &GroupRecord, &GroupRecord) -> Fate,
    /// Whether a member that holds nothing may begin anew.
    pub may_begin_anew: fn(&GroupRecord, SetMember, &Set) -> bool,
    /// Whether an acknowledgement counts.
    pub ack_counts: fn(EpochId, &Set, u64, &Ack) -> bool,
    /// Position up to which everything is acknowledged.
    pub commit_position: fn(u64, &[u64]) -> u64,
    /// Whose acknowledgement a raise needs.
    pub asked_for_raise: fn(&Set, MemberId, Option<SetMember>) -> Set,
    /// What becomes of a wish for a raise.
    pub decide_raise: fn(Standing, bool, Direction) -> RaiseDecision,
    /// Whether a joining member enters the set.
    pub may_enter: fn(&JoinFacts) -> bool,
    /// Whether a record of another epoch is obeyed.
    pub same_epoch: fn(EpochId, EpochId) -> bool,
    /// Outbound numbers.
    pub outbound: fn(&Limits, u8, bool, u16) -> Result<OutboundRange, EpochBehind>,
    /// Inbound numbers.
    pub inbound: fn(&Limits, u8, bool, u16) -> Result<InboundRange, EpochBehind>,
    /// A raise that supersedes another one that is open keeps that one's first version.
    pub inherits: bool,
    /// A taker states what is in doubt anew.
    pub restates: bool,
    /// The engine compares a revision that rises with each write, not only the value.
    pub compares_revision: bool,
    /// A smaller set takes effect when the write is done, not when it is asked for.
    pub shrinks_when_written: bool,
    /// A raise that is open is never forgotten.
    pub keeps_raises: bool,
    /// A member named by a planned move goes the way of a taker: it serves once all follow and doubts are stated anew.
    pub move_is_takeover: bool,
    /// A member whose own claim has no answer yet does not act on the offer of a planned move.
    pub answer_before_offer: bool,
    /// An owner is not alone (and has upper limits) while a member joins that holds a snapshot with such limits.
    pub joiner_keeps_limits: bool,
    /// The notice that a member is excluded says which of its joins is void.
    pub notice_names_join: bool,
    /// A joiner that has armed its snapshot is asked for the limits that went into use without it.
    pub joiner_catches_up: bool,
}

impl Rules {
    /// What espalier does.
    pub const PRODUCT: Self = Self {
        claim: rules::claim,
        may_ask: rules_doubt::may_ask,
        without: rules::without,
        with: rules::with,
        moved: rules::moved,
        required: rules::required,
        may_follow: rules::may_follow,
        discards_when_it_asks: rules_doubt::discards_when_it_asks,
        settled: |open, last| rules::settled(open, last),
        remains: Doubt::remains,
        in_next_epoch: |doubt| Some(doubt.in_next_epoch()),
        may_serve: rules_doubt::may_serve,
        fate: |expected, new, found| rules_doubt::fate(Some(expected), new, Some(found)),
        may_begin_anew: rules_doubt::may_begin_anew,
        ack_counts: rules::ack_counts,
        commit_position: |written, acknowledged| {
            rules::commit_position(written, acknowledged.iter().copied())
        },
        asked_for_raise: rules::asked_for_raise,
        decide_raise: rules::decide_raise,
        may_enter: rules::may_enter,
        same_epoch: rules::same_epoch,
        outbound: limits::outbound_range,
        inbound: limits::inbound_range,
        inherits: true,
        restates: true,
        compares_revision: true,
        shrinks_when_written: true,
        keeps_raises: true,
        move_is_takeover: true,
        notice_names_join: true,
        joiner_catches_up: true,
        joiner_keeps_limits: true,
        answer_before_offer: true,
    };
}
