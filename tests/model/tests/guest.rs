//! Child SAs on another group's segments: what holds, and that each rule is needed.

use cluster::rules_guest::{HostStep, Lodging};
use stateright::{Checker, HasDiscoveries, Model};
use std::collections::BTreeSet;
use std::time::Instant;
use test_model::guest::rules::Rules;
use test_model::guest::state::Bounds;
use test_model::guest::world::{BOTH, FORWARD, HEIR, KEPT, NAMED, ONCE, World};

const PRODUCT: Rules = Rules::PRODUCT;

const NONE: Bounds = Bounds {
    children: 0,
    deletions: 0,
    rosters: 0,
    rekeys: 0,
    sponsors: 0,
    hosts: 0,
    patience: 0,
};

fn holds(name: &str, bounds: Bounds) {
    let since = Instant::now();
    let world = World {
        rules: PRODUCT,
        bounds,
        reaches: false,
    };
    let checker = world.checker().threads(2).spawn_bfs().join();
    let states = checker.unique_state_count();
    println!("{name}: {states} states, {:.1?}", since.elapsed());
    checker.assert_properties();
    assert!(states > 500, "too small to show anything");
}

fn breaks(name: &str, property: &'static str, bounds: Bounds, rules: Rules) {
    let since = Instant::now();
    let wanted = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let world = World {
        rules,
        bounds,
        reaches: false,
    };
    let checker = world.checker().finish_when(wanted).spawn_bfs().join();
    let states = checker.unique_state_count();
    let trace = checker.discovery(property);
    let trace = trace.unwrap_or_else(|| panic!("{name}: no violation of \"{property}\" in {states} states"));
    let actions = trace.into_actions();
    let steps = actions.len();
    println!(
        "{name}: {states} states until a violation in {steps} steps, {:.1?}",
        since.elapsed()
    );
    if std::env::var_os("ESPALIER_MODEL_TRACES").is_some() {
        for action in &actions {
            println!("    {action:?}");
        }
    }
}

#[test]
fn one_child_with_takeovers_of_both_groups() {
    holds(
        "both groups",
        Bounds {
            children: 1,
            deletions: 1,
            rosters: 1,
            sponsors: 1,
            hosts: 1,
            patience: 1,
            ..NONE
        },
    );
}

#[test]
fn two_children_and_rosters_with_a_new_sponsor() {
    holds(
        "two children",
        Bounds {
            children: 2,
            rosters: 1,
            sponsors: 1,
            ..NONE
        },
    );
}

#[test]
fn a_child_follows_its_ike_sa() {
    holds(
        "rekeys",
        Bounds {
            children: 1,
            rekeys: 2,
            sponsors: 1,
            rosters: 1,
            ..NONE
        },
    );
}

/// The worlds are not too small: what is to be guarded against happens in them.
#[test]
fn the_interesting_states_are_reached() {
    let bounds = Bounds {
        deletions: 0,
        ..SMALL
    };
    let world = World {
        rules: PRODUCT,
        bounds,
        reaches: true,
    };
    world.checker().threads(2).spawn_bfs().join().assert_properties();
}

const SMALL: Bounds = Bounds {
    children: 1,
    deletions: 1,
    rosters: 1,
    sponsors: 1,
    hosts: 1,
    patience: 1,
    rekeys: 0,
};

#[test]
fn an_spi_is_installed_out_of_an_offer_only() {
    let rules = Rules {
        lodging: |_, there| if there { Lodging::There } else { Lodging::Install },
        counts: |_, _| true,
        ..PRODUCT
    };
    breaks("whatever is asked for is installed", ONCE, SMALL, rules);
}

#[test]
fn an_offer_is_good_for_one_time() {
    let rules = Rules {
        offers_are_used_up: false,
        counts: |_, _| true,
        ..PRODUCT
    };
    // The removal by a roster leaves the offer as it was.
    breaks("an offer stays", ONCE, SMALL, rules);
}

#[test]
fn the_record_waits_for_the_host() {
    let rules = Rules {
        may_propose: |_| true,
        ..PRODUCT
    };
    breaks("the record goes first", BOTH, SMALL, rules);
}

#[test]
fn a_guest_seals_only_once_it_is_recorded() {
    let rules = Rules {
        may_use: |host, _| host == HostStep::Committed,
        ..PRODUCT
    };
    breaks("used at once", NAMED, SMALL, rules);
}

#[test]
fn a_roster_knows_nothing_of_what_came_after_it() {
    let rules = Rules {
        evicts: |_, _, listed| !listed,
        ..PRODUCT
    };
    breaks("an old roster evicts", KEPT, SMALL, rules);
}

#[test]
fn a_roster_lists_what_is_promised() {
    let rules = Rules {
        lists_promised: false,
        ..PRODUCT
    };
    breaks("promised SPIs are not listed", KEPT, SMALL, rules);
}

#[test]
fn a_roster_sees_what_is_on_its_way_into_the_journal() {
    let rules = Rules {
        rosters_see_proposals: false,
        ..PRODUCT
    };
    breaks("proposals are not seen", HEIR, SMALL, rules);
}

#[test]
fn a_deposed_sponsor_is_not_obeyed() {
    let rules = Rules {
        may_speak: |_, _, _| true,
        ..PRODUCT
    };
    breaks("anybody speaks", HEIR, SMALL, rules);
}

#[test]
fn a_host_remembers_whom_it_has_obeyed() {
    let rules = Rules {
        remembers_epoch: false,
        ..PRODUCT
    };
    breaks("the host lags", HEIR, SMALL, rules);
}

#[test]
fn what_is_said_late_does_not_count() {
    let bounds = Bounds {
        children: 1,
        rekeys: 2,
        ..NONE
    };
    let rules = Rules {
        counts: |_, _| true,
        ..PRODUCT
    };
    breaks("a late move counts", FORWARD, bounds, rules);
}
