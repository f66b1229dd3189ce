//! The pair as a stateright model on the product's decisions. See `docs/MODEL.md` for what is modelled and what is not.
//!
//! Each test of the first group explores everything within its bounds; each of the second group breaks one decision and
//! expects a counterexample, so that the first group is known to look where it matters.

mod decisions;
mod moves;
mod pair;
mod receive;
mod state;
mod steps;

use cluster::SetMember;
use cluster::rules::{self, EpochId, RaiseDecision, TakeoverPlan};
use datapath::limits;
use decisions::Decisions;
use model::Epoch;
use pair::{Engine, NOTHING, Pair};
use state::Budget;
use stateright::{Checker, HasDiscoveries, Model};
use std::collections::BTreeSet;
use std::time::Instant;

const R4: &str = "R4: no sequence number is sent twice under the key";
const R10: &str = "R10: no nonce is used twice under the key";
const R3: &str = "R3, R8: what is released is held by every in-sync standby and by every taker";
const R6: &str = "R6: no inbound number is accepted twice";

/// One takeover, one exclusion, one join; nothing dies.
const SPLIT: Budget = Budget {
    takeovers: 1,
    exclusions: 1,
    joins: 1,
    ..NOTHING
};
/// As above, and one host dies and comes back with a new life.
const RESTART: Budget = Budget {
    crashes: 1,
    restarts: 1,
    ..SPLIT
};

/// A standby is lost and comes back, then a planned move; it may take over unseen before, or whoever is left afterwards.
const PLANNED: Budget = Budget { moves: 1, ..RESTART };

fn outbound(engine: Engine, budget: Budget) -> Pair {
    Pair {
        engine,
        taint: true,
        strict: false,
        late_requests: false,
        named_joins: false,
        rules: Decisions::default(),
        budget: Budget {
            raises: [2, 0],
            ..budget
        },
        outbound_max: 5,
        inbound_max: 0,
    }
}

fn inbound(engine: Engine, budget: Budget) -> Pair {
    Pair {
        budget: Budget {
            raises: [0, 2],
            ..budget
        },
        outbound_max: 0,
        inbound_max: 3,
        ..outbound(engine, budget)
    }
}

fn journal(engine: Engine, budget: Budget) -> Pair {
    Pair {
        budget: Budget {
            entries: 3,
            cuts: 1,
            ..budget
        },
        outbound_max: 0,
        ..outbound(engine, budget)
    }
}

/// Explores all of it: every property holds, and every `sometimes` happens.
fn holds(name: &str, pair: Pair) {
    let start = Instant::now();
    let checker = pair
        .checker()
        .threads(1)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    println!(
        "{name}: {} unique states, depth {}, {:?}",
        checker.unique_state_count(),
        checker.max_depth(),
        start.elapsed()
    );
    checker.assert_properties();
}

/// The checker finds a way to violate `property`; the shortest is printed.
fn breaks(name: &str, property: &'static str, pair: Pair) {
    let checker = pair
        .checker()
        .threads(1)
        .finish_when(HasDiscoveries::AnyOf(BTreeSet::from([property])))
        .spawn_bfs()
        .join();
    let states = checker.unique_state_count();
    let path = checker.discovery(property);
    let steps = path.map(stateright::Path::into_actions);
    let Some(steps) = steps else {
        panic!(
            "{name}: {states} unique states, and \"{property}\" holds in all of them: the model is too weak"
        );
    };
    println!(
        "{name}: {states} unique states until a violation in {} steps",
        steps.len()
    );
    for step in &steps {
        println!("    {step:?}");
    }
    assert!(!steps.is_empty());
}

// ---- What the decisions keep

#[test]
fn a_pair_that_stops_without_confirmation_repeats_no_number_over_two_takeovers() {
    let budget = Budget {
        crashes: 1,
        takeovers: 2,
        joins: 1,
        ..NOTHING
    };
    holds("stop, outbound", outbound(Engine::Stop, budget));
}

#[test]
fn a_pair_that_stops_without_confirmation_accepts_no_replay_over_two_takeovers() {
    let budget = Budget {
        crashes: 1,
        takeovers: 2,
        joins: 1,
        ..NOTHING
    };
    holds("stop, inbound", inbound(Engine::Stop, budget));
}

#[test]
fn both_halves_of_a_split_pair_repeat_no_number_and_no_nonce() {
    holds("split, outbound", outbound(Engine::Continue, SPLIT));
}

#[test]
fn both_halves_of_a_split_pair_may_accept_the_same_packet_but_neither_accepts_it_twice() {
    holds("split, inbound", inbound(Engine::Continue, SPLIT));
    // What the design says a split under `continue` does not keep: it really happens.
    breaks(
        "split, inbound, as if fenced",
        R6,
        Pair {
            strict: true,
            ..inbound(Engine::Continue, SPLIT)
        },
    );
}

#[test]
fn a_member_that_comes_back_with_a_new_life_makes_nobody_repeat_a_number() {
    holds("split and restart, outbound", outbound(Engine::Continue, RESTART));
    holds("stop and restart, outbound", outbound(Engine::Stop, RESTART));
}

#[test]
fn a_member_that_comes_back_with_a_new_life_makes_nobody_accept_a_replay() {
    holds("split and restart, inbound", inbound(Engine::Continue, RESTART));
    holds("stop and restart, inbound", inbound(Engine::Stop, RESTART));
}

#[test]
fn a_planned_move_after_a_standby_was_lost_makes_nobody_repeat_a_number() {
    holds("planned, outbound", outbound(Engine::Continue, PLANNED));
    let again = Budget {
        crashes: 2,
        takeovers: 2,
        ..PLANNED
    };
    let pair = outbound(Engine::Continue, again);
    holds(
        "planned, and the taker dies",
        Pair {
            budget: Budget {
                raises: [1, 0],
                ..pair.budget
            },
            ..pair
        },
    );
    holds("planned, inbound", inbound(Engine::Continue, PLANNED));
}

#[test]
fn a_planned_move_leaves_the_taker_all_that_was_released() {
    holds("planned, journal", journal(Engine::Continue, PLANNED));
}

#[test]
fn with_a_witness_nothing_is_repeated_and_no_replay_accepted() {
    holds("witness, outbound", outbound(Engine::Witness, RESTART));
    holds("witness, inbound", inbound(Engine::Witness, RESTART));
}

#[test]
fn a_request_to_join_that_arrives_late_makes_numbers_repeat() {
    // Streams keep their order; two links do not keep it between them. `late_requests` is what a request on the outside
    // link does when the synch link comes back meanwhile. It must be told apart from a present one.
    let late = |named| Pair {
        late_requests: true,
        named_joins: named,
        ..outbound(
            Engine::Stop,
            Budget {
                takeovers: 2,
                ..SPLIT
            },
        )
    };
    breaks("late request", R4, late(false));
    holds("late request, joins are named", late(true));
}

#[test]
fn what_is_released_is_known_to_the_next_owner() {
    holds("stop, journal", journal(Engine::Stop, RESTART));
    holds("split, journal", journal(Engine::Continue, RESTART));
    holds("witness, journal", journal(Engine::Witness, RESTART));
}

// ---- That each decision is needed

fn with(pair: Pair, rules: Decisions) -> Pair {
    Pair { rules, ..pair }
}

fn product() -> Decisions {
    Decisions::default()
}

#[test]
fn an_acknowledgement_of_an_old_epoch_that_counts_repeats_numbers() {
    let rules = Decisions {
        ack_counts: |_, asked, current, ack| asked.contains(&ack.from) && ack.version == current,
        ..product()
    };
    breaks("(a) old epoch", R4, with(outbound(Engine::Stop, SPLIT), rules));
}

#[test]
fn an_acknowledgement_of_an_old_life_that_counts_repeats_numbers() {
    let rules = Decisions {
        ack_counts: |epoch, asked, current, ack| {
            epoch == ack.epoch && asked.iter().any(|m| m.member == ack.from.member) && ack.version == current
        },
        ..product()
    };
    breaks("(a) old life", R4, with(outbound(Engine::Stop, SPLIT), rules));
}

#[test]
fn an_acknowledgement_of_another_version_that_counts_repeats_numbers() {
    let rules = Decisions {
        ack_counts: |epoch, asked, _, ack| epoch == ack.epoch && asked.contains(&ack.from),
        ..product()
    };
    breaks(
        "(a) other version",
        R4,
        with(outbound(Engine::Stop, SPLIT), rules),
    );
}

#[test]
fn a_taker_that_goes_on_from_its_own_counter_repeats_numbers() {
    let rules = Decisions {
        outbound: |limits, flags, alone, epoch| {
            let range = limits::outbound_range(limits, flags, alone, epoch)?;
            Ok(limits::OutboundRange { first: 1, ..range })
        },
        ..product()
    };
    breaks(
        "(b) lease ignored",
        R4,
        with(outbound(Engine::Stop, SPLIT), rules),
    );
}

#[test]
fn a_taker_that_ignores_the_ceiling_accepts_replays() {
    let rules = Decisions {
        inbound: |limits, flags, alone, epoch| {
            let range = limits::inbound_range(limits, flags, alone, epoch)?;
            Ok(limits::InboundRange { floor: 0, ..range })
        },
        ..product()
    };
    breaks(
        "(c) ceiling ignored",
        R6,
        with(inbound(Engine::Stop, SPLIT), rules),
    );
}

#[test]
fn a_raise_that_forgets_what_a_takeover_skipped_accepts_replays() {
    let rules = Decisions {
        raised: |old, limit, step, epoch| {
            Ok(maps_schema::sad::Limits {
                floor: 0,
                ..limits::raised(old, limit, step, epoch)?
            })
        },
        ..product()
    };
    breaks(
        "(c) floor forgotten",
        R6,
        with(inbound(Engine::Stop, SPLIT), rules),
    );
}

#[test]
fn sending_before_the_acknowledgement_leaves_the_taker_without_what_was_sent() {
    let rules = Decisions {
        commit_position: |written, _| written,
        ..product()
    };
    breaks(
        "(d) commit after send",
        R3,
        with(journal(Engine::Stop, SPLIT), rules),
    );
}

fn takes_over_anyway(
    old: EpochId,
    above: Epoch,
    set: Option<&decisions::Set>,
    me: SetMember,
    survivors: &decisions::Set,
    position: u64,
) -> Result<TakeoverPlan, rules::NoTakeover> {
    let _ = set;
    rules::takeover(old, above, Some(&BTreeSet::from([me])), me, survivors, position)
}

#[test]
fn an_excluded_standby_that_takes_over_repeats_numbers_and_accepts_replays() {
    let rules = Decisions {
        takeover: takes_over_anyway,
        ..product()
    };
    breaks(
        "(e) excluded, outbound",
        R4,
        with(outbound(Engine::Witness, SPLIT), rules),
    );
    breaks(
        "(e) excluded, inbound",
        R6,
        with(inbound(Engine::Witness, SPLIT), rules),
    );
}

#[test]
fn an_unfenced_solo_owner_that_passes_its_last_lease_repeats_numbers() {
    let rules = Decisions {
        decide_raise: |_, asked_nobody, _| {
            if asked_nobody {
                RaiseDecision::UseNow
            } else {
                RaiseDecision::Ask
            }
        },
        ..product()
    };
    let pair = Pair {
        taint: false,
        ..outbound(Engine::Continue, SPLIT)
    };
    breaks("(f) past the last lease", R4, with(pair, rules));
}

#[test]
fn a_raise_without_the_joining_member_repeats_numbers() {
    let rules = Decisions {
        asked_for_raise: |set, me, _| rules::asked_for_raise(set, me, None),
        ..product()
    };
    let budget = Budget {
        takeovers: 2,
        ..SPLIT
    };
    breaks(
        "joiner not asked",
        R4,
        with(outbound(Engine::Stop, budget), rules),
    );
}

#[test]
fn two_halves_of_which_neither_gives_way_stay_split() {
    let rules = Decisions {
        must_yield: |_, _| false,
        ..product()
    };
    let entered = |rules| {
        let budget = Budget {
            exclusions: 0,
            ..SPLIT
        };
        let checker = with(outbound(Engine::Continue, budget), rules)
            .checker()
            .threads(1)
            .spawn_bfs()
            .join();
        checker.discovery("a member enters by joining").is_some()
    };
    assert!(entered(product()), "the loser joins the winner");
    assert!(!entered(rules), "the loser joins nobody");
}

#[test]
fn an_owner_that_leaves_a_part_of_its_lease_and_goes_on_with_all_of_it_repeats_numbers() {
    let rules = Decisions {
        shortened: |limits, kept, epoch| limits::shortened(limits, kept, epoch).map(|_| *limits),
        ..product()
    };
    let pair = with(outbound(Engine::Continue, PLANNED), rules);
    breaks("lease not cut short", R4, pair);
}

#[test]
fn a_planned_taker_that_may_raise_what_it_was_left_repeats_numbers() {
    let rules = Decisions {
        inherited: |limits, above, last, epoch| {
            limits::inherited(limits, above, last, epoch).map(|limits| maps_schema::sad::Limits {
                epoch: limits.epoch & 0xffff,
                ..limits
            })
        },
        ..product()
    };
    let pair = with(outbound(Engine::Continue, PLANNED), rules);
    breaks("no taint on what is left", R4, pair);
}

#[test]
fn a_planned_taker_that_begins_at_its_own_counter_repeats_numbers() {
    let rules = Decisions {
        inherited: |limits, _, last, epoch| limits::inherited(limits, 0, last, epoch),
        ..product()
    };
    let pair = with(outbound(Engine::Continue, PLANNED), rules);
    breaks("begins at its own counter", R4, pair);
}

#[test]
fn without_the_taint_a_lost_life_that_took_over_unseen_makes_numbers_and_nonces_repeat() {
    let bare = |pair: Pair| Pair { taint: false, ..pair };
    breaks("no taint, stop", R4, bare(outbound(Engine::Stop, RESTART)));
    breaks(
        "no taint, continue",
        R4,
        bare(outbound(Engine::Continue, RESTART)),
    );
    breaks("no taint, inbound", R6, bare(inbound(Engine::Stop, RESTART)));
    let budget = Budget {
        crashes: 2,
        takeovers: 2,
        ..RESTART
    };
    let rules = Decisions {
        claim_above: |_, _| Epoch(0),
        ..product()
    };
    let pair = bare(outbound(Engine::Stop, budget));
    breaks("no taint, two lives claim one epoch", R10, with(pair, rules));
}
