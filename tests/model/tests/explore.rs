//! What the product's decisions keep, and that each of them is needed.

use cluster::EpochId;
use cluster::rules::{RaiseDecision, Standing, TakeoverPlan};
use datapath::limits::{InboundRange, OutboundRange};
use model::Epoch;
use stateright::{Checker, HasDiscoveries, Model};
use std::collections::BTreeSet;
use test_model::rules::Rules;
use test_model::state::Left;
use test_model::world::{R3, R4, R6, R10, Start, World, standing_is_solo};

/// One crash with restart, two takeovers (right or wrong), one exclusion (right or wrong), one join.
const FAULTS: Left = Left {
    crashes: 1,
    restarts: 1,
    takeovers: 2,
    exclusions: 1,
    joins: 1,
    outbound_raises: 0,
    inbound_raises: 0,
    entries: 0,
    outbound_max: 0,
    inbound_max: 0,
};
const OUTBOUND: Left = Left {
    outbound_raises: 2,
    outbound_max: 5,
    ..FAULTS
};
const INBOUND: Left = Left {
    inbound_raises: 2,
    inbound_max: 4,
    ..FAULTS
};
const JOURNAL: Left = Left { entries: 3, ..FAULTS };

fn world(bounds: Left) -> World {
    World {
        rules: Rules::PRODUCT,
        bounds,
        taint: true,
        solo_continue: true,
        start: Start::Pair,
    }
}

fn with(bounds: Left, rules: Rules) -> World {
    World {
        rules,
        ..world(bounds)
    }
}

/// Explores everything within the bounds; panics with a shortest trace where a property fails.
fn holds(name: &str, world: World) {
    let checker = world.checker().spawn_bfs().join();
    println!(
        "{name}: {} states, depth {}",
        checker.unique_state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
}

/// The product keeps everything in this world, and with the broken rules the checker finds a violation of `property`.
fn needed(name: &str, property: &'static str, world: World, broken: Rules) {
    breaks(
        name,
        property,
        World {
            rules: broken,
            ..world.clone()
        },
    );
    holds(name, world);
}

/// The checker finds a trace that violates `property`.
fn breaks(name: &str, property: &'static str, world: World) {
    let wanted = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let checker = world.checker().finish_when(wanted).spawn_bfs().join();
    let trace = checker.discovery(property);
    let states = checker.unique_state_count();
    let trace = trace.unwrap_or_else(|| panic!("{name}: no violation of \"{property}\" in {states} states"));
    let steps = trace.into_actions().len();
    println!("{name}: {states} states until a violation in {steps} steps");
    assert!(steps > 1);
}

#[test]
fn outbound_numbers_and_nonces_are_never_used_twice() {
    holds("outbound", world(OUTBOUND));
}

#[test]
fn outbound_numbers_stay_unique_over_two_joins() {
    holds(
        "outbound, two joins",
        world(Left {
            joins: 2,
            outbound_raises: 1,
            outbound_max: 4,
            ..FAULTS
        }),
    );
}

#[test]
fn outbound_numbers_stay_unique_over_two_crashes() {
    holds(
        "outbound, two crashes",
        world(Left {
            crashes: 2,
            restarts: 2,
            joins: 2,
            exclusions: 0,
            outbound_raises: 1,
            outbound_max: 4,
            ..FAULTS
        }),
    );
}

#[test]
fn inbound_numbers_are_accepted_once() {
    holds("inbound", world(INBOUND));
}

#[test]
fn inbound_numbers_are_accepted_once_whatever_the_timing_where_nobody_goes_on_alone() {
    holds(
        "inbound, solo = stop",
        World {
            solo_continue: false,
            ..world(INBOUND)
        },
    );
}

#[test]
fn what_was_sent_is_known_to_the_next_owner() {
    holds("journal", world(JOURNAL));
}

#[test]
fn the_exploration_gets_where_the_rules_matter() {
    let checker = world(OUTBOUND).checker();
    let seen = std::sync::Arc::new(std::sync::Mutex::new([false; 5]));
    let visited = seen.clone();
    let checker = checker
        .visitor(move |path: stateright::Path<_, _>| {
            let state: &test_model::state::State = path.last_state();
            let mut seen = visited.lock().unwrap_or_else(|e| e.into_inner());
            let ghost = &state.ghost;
            for (flag, now) in seen.iter_mut().zip([
                ghost.takeovers == 2,
                ghost.sent_by_taker,
                ghost.split,
                ghost.joined,
                standing_is_solo(state),
            ]) {
                *flag |= now;
            }
        })
        .target_state_count(60_000)
        .spawn_bfs()
        .join();
    assert!(checker.unique_state_count() > 1000);
    let seen = seen.lock().unwrap_or_else(|e| e.into_inner());
    assert_eq!(*seen, [true; 5], "takeovers, taker sends, split, join, solo");
}

#[test]
fn a_taker_that_starts_at_the_mirrored_counter_repeats_numbers() {
    let rules = Rules {
        outbound: |limits, flags, alone, epoch| {
            let range = datapath::limits::outbound_range(limits, flags, alone, epoch)?;
            Ok(OutboundRange { first: 1, ..range })
        },
        ..Rules::PRODUCT
    };
    breaks("lease ignored", R4, with(OUTBOUND, rules));
}

#[test]
fn a_taker_that_ignores_the_ceiling_accepts_replays() {
    let rules = Rules {
        inbound: |limits, flags, alone, epoch| {
            let range = datapath::limits::inbound_range(limits, flags, alone, epoch)?;
            Ok(InboundRange { floor: 0, ..range })
        },
        ..Rules::PRODUCT
    };
    breaks("ceiling ignored", R6, with(INBOUND, rules));
}

#[test]
fn sending_before_the_commit_loses_what_was_sent() {
    let rules = Rules {
        commit_position: |written, _| written,
        ..Rules::PRODUCT
    };
    breaks("commit after send", R3, with(JOURNAL, rules));
}

#[test]
fn a_member_outside_the_in_sync_set_must_not_take_over() {
    let rules = Rules {
        takeover: |old, above, _, me, survivors, position| {
            cluster::rules::takeover(old, above, Some(&BTreeSet::from([me])), me, survivors, position)
        },
        ..Rules::PRODUCT
    };
    let bounds = Left {
        takeovers: 2,
        ..JOURNAL
    };
    breaks("joiner takes over", R3, with(bounds, rules));
}

#[test]
fn an_acknowledgement_of_an_old_incarnation_must_not_count() {
    // The old life is known to have died without taking over, so that the open raise goes on with its successor.
    let known = Rules {
        standing_after_loss: |_| Standing::AloneTaker,
        ..Rules::PRODUCT
    };
    let broken = Rules {
        ack_counts: |epoch, asked, current, ack| {
            ack.epoch == epoch && asked.iter().any(|m| m.member == ack.from.member) && ack.version == current
        },
        ..known
    };
    let bounds = Left {
        crashes: 0,
        restarts: 0,
        exclusions: 0,
        takeovers: 1,
        joins: 1,
        ..OUTBOUND
    };
    let world = World {
        start: Start::StandbyRestarted,
        ..with(bounds, known)
    };
    needed("old incarnation counts", R4, world, broken);
}

#[test]
fn an_acknowledgement_of_another_version_must_not_count() {
    let rules = Rules {
        ack_counts: |epoch, asked, _, ack| ack.epoch == epoch && asked.contains(&ack.from),
        ..Rules::PRODUCT
    };
    breaks("any version counts", R4, with(OUTBOUND, rules));
}

#[test]
fn an_acknowledgement_of_another_epoch_must_not_count() {
    let broken = Rules {
        same_epoch: |_, _| true,
        ack_counts: |_, asked, current, ack| asked.contains(&ack.from) && ack.version == current,
        ..Rules::PRODUCT
    };
    // Ownership goes there and back; an acknowledgement of the first epoch is still on its way.
    let bounds = Left {
        crashes: 0,
        restarts: 0,
        exclusions: 0,
        takeovers: 3,
        joins: 2,
        outbound_raises: 2,
        outbound_max: 7,
        ..FAULTS
    };
    needed("any epoch counts", R4, world(bounds), broken);
}

#[test]
fn a_taker_must_not_acknowledge_the_old_owner_any_more() {
    // Acknowledgements are refused by epoch; a taker that stays in the old one lets the old owner go on.
    let rules = Rules {
        takeover: |old, above, set, me, survivors, position| {
            let plan = cluster::rules::takeover(old, above, set, me, survivors, position)?;
            Ok(TakeoverPlan {
                epoch: EpochId {
                    number: old.number,
                    owner: me.member,
                },
                ..plan
            })
        },
        ..Rules::PRODUCT
    };
    breaks("epoch not raised", R4, with(OUTBOUND, rules));
}

#[test]
fn a_solo_owner_without_fencing_must_not_pass_the_lease() {
    let broken = Rules {
        decide_raise: |_, nobody, _| {
            if nobody {
                RaiseDecision::UseNow
            } else {
                RaiseDecision::Ask
            }
        },
        ..Rules::PRODUCT
    };
    let bounds = Left {
        crashes: 0,
        restarts: 0,
        joins: 0,
        takeovers: 1,
        ..OUTBOUND
    };
    needed(
        "solo owner passes the lease",
        R4,
        World {
            taint: false,
            ..world(bounds)
        },
        broken,
    );
}

#[test]
fn a_new_life_of_the_standby_does_not_fence_the_old_one() {
    let rules = Rules {
        standing_after_loss: |_| Standing::AloneTaker,
        ..Rules::PRODUCT
    };
    breaks("new life taken for a fence", R4, with(OUTBOUND, rules));
}

#[test]
fn an_sa_that_a_lost_life_of_the_standby_knew_must_be_rekeyed() {
    breaks(
        "old SAs go on after a lost fork",
        R4,
        World {
            taint: false,
            ..world(OUTBOUND)
        },
    );
}

#[test]
fn nonces_are_unique_even_where_such_an_sa_goes_on() {
    let world = World {
        taint: false,
        ..world(OUTBOUND)
    };
    let checker = world
        .checker()
        .finish_when(HasDiscoveries::All)
        .spawn_bfs()
        .join();
    assert!(checker.is_done());
    println!("nonces: {} states", checker.unique_state_count());
    checker.assert_no_discovery(R10);
}

#[test]
fn two_lives_of_a_member_must_not_claim_the_same_epoch() {
    let rules = Rules {
        claim_above: |_, _| Epoch(0),
        ..Rules::PRODUCT
    };
    breaks(
        "epoch claimed twice",
        R10,
        World {
            taint: false,
            ..with(OUTBOUND, rules)
        },
    );
}

#[test]
fn a_joining_member_must_acknowledge_everything_before_it_enters() {
    let rules = Rules {
        may_enter: |facts| facts.snapshot_armed,
        ..Rules::PRODUCT
    };
    breaks("enters with a tail missing", R3, with(JOURNAL, rules));
}

#[test]
fn a_joining_member_is_asked_from_the_start_of_its_snapshot() {
    let rules = Rules {
        asked_for_raise: |set, me, _| cluster::rules::asked_for_raise(set, me, None),
        ..Rules::PRODUCT
    };
    breaks(
        "joiner not asked",
        R4,
        with(
            Left {
                takeovers: 2,
                ..OUTBOUND
            },
            rules,
        ),
    );
}
