//! Up to three members under an ownership engine: what holds, and that each rule is needed.

mod keeps;
mod needed;

use cluster::Direction;
use stateright::{Checker, HasDiscoveries, Model};
use std::collections::BTreeSet;
use std::time::Instant;
use test_model::group::rules::Rules;
use test_model::group::state::Left;
use test_model::group::world::World;

/// Larger bounds where the environment asks for them (`ESPALIER_MODEL_BOUNDS=large`).
fn large() -> bool {
    std::env::var("ESPALIER_MODEL_BOUNDS").is_ok_and(|v| v == "large")
}

/// Three members, by the product's rules.
fn world(direction: Direction, bounds: Left) -> World {
    World {
        rules: Rules::PRODUCT,
        bounds,
        direction,
        members: 3,
        steps: &[1],
        limit: 1,
    }
}

/// Explores everything within the bounds; panics with a shortest trace where a property fails.
fn holds(name: &str, world: World) {
    let since = Instant::now();
    let checker = world.checker().spawn_bfs().join();
    println!(
        "{name}: {} states, depth {}, {:.1?}",
        checker.unique_state_count(),
        checker.max_depth(),
        since.elapsed()
    );
    checker.assert_properties();
    assert!(checker.unique_state_count() > 500, "too small to show anything");
}

/// The checker finds a trace that violates `property`.
fn breaks(name: &str, property: &'static str, world: World) {
    let since = Instant::now();
    let wanted = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let checker = world.checker().finish_when(wanted).spawn_bfs().join();
    let trace = checker.discovery(property);
    let states = checker.unique_state_count();
    let trace = trace.unwrap_or_else(|| panic!("{name}: no violation of \"{property}\" in {states} states"));
    let actions = trace.into_actions();
    println!(
        "{name}: {states} states until a violation in {} steps, {:.1?}",
        actions.len(),
        since.elapsed()
    );
    if std::env::var_os("ESPALIER_MODEL_TRACES").is_some() {
        for action in &actions {
            println!("    {action:?}");
        }
    }
    assert!(actions.len() > 1);
}
