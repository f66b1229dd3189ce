//! Each rule is needed: without it, the checker finds a trace that violates a named property.

use crate::keeps::{NONE, late_entry};
use crate::{breaks, world};
use cluster::Direction::{Inbound, Outbound};
use cluster::GroupRecord;
use cluster::rules::{EpochId, JoinFacts};
use cluster::rules_doubt::Fate;
use datapath::limits::{InboundRange, OutboundRange};
use test_model::group::rules::Rules;
use test_model::group::state::{Left, Mirror};
use test_model::group::world::{BEGINS, R3, R4, R6, R7, R8, SET, SURVIVOR, World};

const PRODUCT: Rules = Rules::PRODUCT;

fn with(bounds: Left, rules: Rules) -> World {
    World {
        rules,
        ..world(Outbound, bounds)
    }
}

fn inbound(bounds: Left, rules: Rules) -> World {
    World {
        rules,
        ..world(Inbound, bounds)
    }
}

fn pair(bounds: Left, rules: Rules) -> World {
    World {
        members: 2,
        ..with(bounds, rules)
    }
}

fn small() -> Left {
    Left {
        claims: 2,
        raises: 1,
        exclusions: 1,
        alone_uses: 1,
        ..NONE
    }
}

fn lowering() -> Left {
    Left {
        raises: 0,
        lowerings: 1,
        ..small()
    }
}

/// Four members and three takeovers: the last one by a member that never heard of the doubt.
fn four(rules: Rules) -> World {
    let bounds = Left {
        claims: 3,
        exclusions: 0,
        ..small()
    };
    World {
        members: 4,
        ..with(bounds, rules)
    }
}

const JOURNAL: Left = Left {
    claims: 2,
    exclusions: 1,
    entries: 2,
    ..NONE
};

const JOIN: Left = Left {
    claims: 1,
    exclusions: 1,
    joins: 1,
    crashes: 1,
    restarts: 1,
    ..NONE
};

#[test]
fn limits_in_doubt_must_be_stated_anew() {
    let rules = Rules {
        restates: false,
        ..PRODUCT
    };
    breaks("no exchange of doubts: leases", R4, with(small(), rules));
    breaks("no exchange of doubts: ceilings", R6, inbound(small(), rules));
    let steps = World {
        steps: &[4],
        limit: 3,
        ..inbound(lowering(), rules)
    };
    breaks(
        "no exchange of doubts: a lowered ceiling with another step",
        R6,
        steps,
    );
}

#[test]
fn a_raise_that_supersedes_another_one_inherits_its_first_version() {
    let rules = Rules {
        inherits: false,
        ..PRODUCT
    };
    let bounds = Left { raises: 2, ..small() };
    breaks("first version not inherited", R4, with(bounds, rules));
}

#[test]
fn a_doubt_outlives_the_epoch_in_which_it_arose() {
    let rules = Rules {
        in_next_epoch: |_| None,
        ..PRODUCT
    };
    breaks("doubt forgotten when following", R4, four(rules));
}

#[test]
fn an_open_raise_must_not_be_forgotten() {
    let rules = Rules {
        keeps_raises: false,
        ..PRODUCT
    };
    let bounds = Left {
        expiries: 1,
        ..small()
    };
    breaks("raise forgotten", R4, with(bounds, rules));
}

#[test]
fn a_taker_waits_for_the_acknowledgement_of_its_epoch() {
    let rules = Rules {
        may_serve: |_, _, _, open| open == 0,
        ..PRODUCT
    };
    // The survivor has armed a lowered ceiling that the taker has not heard of.
    let world = World {
        limit: 3,
        steps: &[2],
        ..inbound(lowering(), rules)
    };
    breaks("serves before the others follow", R6, world);
}

#[test]
fn a_taker_waits_for_the_limits_that_it_states_anew() {
    let rules = Rules {
        may_serve: |required, me, following, _| cluster::rules_doubt::may_serve(required, me, following, 0),
        ..PRODUCT
    };
    breaks("serves before its limits are armed", R4, with(small(), rules));
}

#[test]
fn a_smaller_set_counts_once_it_is_written() {
    let rules = Rules {
        shrinks_when_written: false,
        ..PRODUCT
    };
    breaks("shrink before it is written: leases", R4, pair(small(), rules));
    breaks("shrink before it is written: journal", R3, pair(JOURNAL, rules));
}

#[test]
fn a_joiner_is_required_while_its_entry_is_being_written() {
    let rules = Rules {
        required: |known, _| known.clone(),
        ..PRODUCT
    };
    let bounds = Left { entries: 1, ..JOIN };
    breaks("joiner not required", R3, pair(bounds, rules));
}

#[test]
fn a_joiner_is_asked_once_it_has_armed_its_snapshot() {
    let rules = Rules {
        asked_for_raise: |set, me, _| cluster::rules::asked_for_raise(set, me, None),
        ..PRODUCT
    };
    let bounds = Left { raises: 1, ..JOIN };
    breaks("joiner not asked", R4, pair(bounds, rules));
}

#[test]
fn a_joiner_is_asked_for_what_went_into_use_before_that() {
    let rules = Rules {
        joiner_catches_up: false,
        ..PRODUCT
    };
    let bounds = Left { raises: 1, ..JOIN };
    breaks("joiner never hears of it", R4, pair(bounds, rules));
}

#[test]
fn a_joiner_enters_with_everything() {
    let rules = Rules {
        may_enter: |facts| facts.snapshot_armed,
        ..PRODUCT
    };
    let bounds = Left { entries: 1, ..JOIN };
    breaks("enters with an entry missing", R3, pair(bounds, rules));
}

#[test]
fn a_survivor_that_lags_or_holds_a_tail_does_not_follow() {
    let rules = Rules {
        may_follow: |_, _, _, _, _| true,
        ack_counts: |epoch, asked, _, ack| ack.epoch == epoch && asked.contains(&ack.from),
        ..PRODUCT
    };
    breaks("a lagging survivor follows", R3, with(JOURNAL, rules));
    breaks("a survivor with a tail follows", R8, with(JOURNAL, rules));
}

#[test]
fn a_write_without_an_answer_is_not_taken_as_not_done() {
    let rules = Rules {
        fate: |expected, new, found| match cluster::rules_doubt::fate(Some(expected), new, Some(found)) {
            Fate::Open => Fate::Void,
            fate => fate,
        },
        ..PRODUCT
    };
    let bounds = Left {
        timeouts: 1,
        raises: 1,
        ..JOIN
    };
    breaks(
        "an unknown write counts as not done: leases",
        R4,
        pair(bounds, rules),
    );
    let bounds = Left {
        timeouts: 1,
        entries: 1,
        ..JOIN
    };
    breaks(
        "an unknown write counts as not done: journal",
        R3,
        pair(bounds, rules),
    );
}

#[test]
fn the_engine_compares_a_revision_and_not_only_the_value() {
    let rules = Rules {
        compares_revision: false,
        ..PRODUCT
    };
    let bounds = Left {
        timeouts: 1,
        claims: 0,
        joins: 2,
        exclusions: 2,
        ..NONE
    };
    breaks("a late shrink hits an equal record", SET, pair(bounds, rules));
    let bounds = Left {
        claims: 1,
        raises: 1,
        ..bounds
    };
    breaks("a late entry hits an equal record", R4, pair(bounds, rules));
}

#[test]
fn a_claim_compares_the_life() {
    let rules = Rules {
        claim: |record, me, lost| {
            let mut anyone = record.clone();
            if anyone.in_sync.iter().any(|m| m.member == me.member) {
                anyone.in_sync.insert(me);
            }
            let mut claimed = cluster::rules::claim(&anyone, me, lost)?;
            claimed.in_sync.retain(|m| m.member != me.member || *m == me);
            Ok(claimed)
        },
        may_ask: |_| true,
        ..PRODUCT
    };
    breaks("any life of a listed member claims", R7, pair(JOIN, rules));
}

#[test]
fn a_member_that_gave_its_mirror_up_does_not_claim() {
    let rules = Rules {
        may_ask: |_: Mirror| true,
        discards_when_it_asks: || true,
        ..PRODUCT
    };
    let bounds = Left { joins: 1, ..JOURNAL };
    breaks("claims with an empty mirror", R7, with(bounds, rules));
}

#[test]
fn a_mirror_is_kept_until_its_holder_is_out_of_the_set() {
    let rules = Rules {
        discards_when_it_asks: || true,
        ..PRODUCT
    };
    let bounds = Left {
        joins: 1,
        crashes: 2,
        ..JOURNAL
    };
    breaks("mirror thrown away on asking", SURVIVOR, with(bounds, rules));
}

#[test]
fn an_older_life_that_is_remembered_says_nothing_about_the_listed_one() {
    let rules = Rules {
        may_begin_anew: |record, me, lives| {
            record.in_sync.iter().filter(|m| **m != me).all(|m| {
                lives
                    .iter()
                    .any(|l| l.member == m.member && l.incarnation != m.incarnation)
            })
        },
        ..PRODUCT
    };
    let bounds = Left {
        claims: 1,
        exclusions: 2,
        joins: 1,
        crashes: 2,
        restarts: 2,
        beginnings: 1,
        ..NONE
    };
    breaks("an older life taken for a later one", R7, pair(bounds, rules));
}

#[test]
fn a_life_that_a_late_write_lists_though_it_holds_nothing_does_not_keep_a_group_from_beginning_anew() {
    let rules = Rules {
        may_begin_anew: |record, _, lives| cluster::rules_doubt::nobody_left(record, lives),
        ..PRODUCT
    };
    breaks("listed by a late write", BEGINS, pair(late_entry(), rules));
}

#[test]
fn who_is_named_by_a_move_goes_the_way_of_a_taker() {
    let rules = Rules {
        move_is_takeover: false,
        ..PRODUCT
    };
    let bounds = Left {
        claims: 1,
        raises: 2,
        moves: 1,
        ..NONE
    };
    breaks("a move serves at once", R4, with(bounds, rules));
}

#[test]
fn what_is_sent_is_committed_first() {
    let rules = Rules {
        commit_position: |written, _| written,
        ..PRODUCT
    };
    breaks("sent before committed: lost", R3, with(JOURNAL, rules));
    breaks("sent before committed: two answers", R8, with(JOURNAL, rules));
}

#[test]
fn an_acknowledgement_counts_for_its_version_only() {
    let rules = Rules {
        ack_counts: |epoch, asked, _, ack| ack.epoch == epoch && asked.contains(&ack.from),
        ..PRODUCT
    };
    let bounds = Left { raises: 2, ..small() };
    breaks("any version counts", R4, with(bounds, rules));
}

#[test]
fn an_acknowledgement_of_another_epoch_does_not_count() {
    let rules = Rules {
        same_epoch: |_, _| true,
        ack_counts: |_, asked, current, ack| asked.contains(&ack.from) && ack.version == current,
        ..PRODUCT
    };
    let bounds = Left { raises: 2, ..small() };
    breaks("any epoch counts", R4, with(bounds, rules));
}

#[test]
fn a_taker_starts_above_the_lease_and_the_ceiling() {
    let rules = Rules {
        outbound: |limits, flags, alone, epoch| {
            let range = datapath::limits::outbound_range(limits, flags, alone, epoch)?;
            Ok(OutboundRange { first: 1, ..range })
        },
        inbound: |limits, flags, alone, epoch| {
            let range = datapath::limits::inbound_range(limits, flags, alone, epoch)?;
            Ok(InboundRange { floor: 0, ..range })
        },
        ..PRODUCT
    };
    breaks("lease ignored", R4, with(small(), rules));
    breaks("ceiling ignored", R6, inbound(small(), rules));
}

#[test]
fn a_claim_raises_the_epoch() {
    let rules = Rules {
        claim: |record, me, lost| {
            let claimed = cluster::rules::claim(record, me, lost)?;
            Ok(GroupRecord {
                epoch: EpochId {
                    number: record.epoch.number,
                    owner: me.member,
                },
                ..claimed
            })
        },
        ..PRODUCT
    };
    breaks("epoch not raised", R4, with(small(), rules));
}

#[test]
fn a_member_outside_the_set_does_not_claim() {
    let rules = Rules {
        claim: |record, me, lost| {
            let mut anyone = record.clone();
            anyone.in_sync.insert(me);
            cluster::rules::claim(&anyone, me, lost)
        },
        ..PRODUCT
    };
    let bounds = Left {
        raises: 1,
        alone_uses: 1,
        ..small()
    };
    breaks("an excluded member claims", R4, pair(bounds, rules));
}

#[test]
fn the_answer_to_a_claim_comes_before_the_offer_of_a_move() {
    let rules = Rules {
        answer_before_offer: false,
        ..PRODUCT
    };
    let bounds = Left {
        claims: 1,
        moves: 1,
        exclusions: 1,
        ..NONE
    };
    breaks(
        "a claim of its own forgotten for an offer",
        SURVIVOR,
        pair(bounds, rules),
    );
}

#[test]
fn an_owner_whose_last_standby_goes_keeps_its_limits_while_another_member_joins() {
    let rules = Rules {
        joiner_keeps_limits: false,
        may_enter: |facts| {
            cluster::rules::may_enter(&JoinFacts {
                caps_verified: true,
                ..*facts
            })
        },
        ..PRODUCT
    };
    let bounds = Left {
        claims: 2,
        exclusions: 2,
        joins: 1,
        alone_uses: 1,
        ..NONE
    };
    breaks("alone while a member joins", R4, with(bounds, rules));
}

#[test]
fn a_notice_of_exclusion_says_which_join_is_void() {
    let rules = Rules {
        notice_names_join: false,
        ..PRODUCT
    };
    let bounds = Left {
        exclusions: 1,
        joins: 1,
        crashes: 1,
        ..NONE
    };
    breaks("a late notice of exclusion", SURVIVOR, pair(bounds, rules));
}
