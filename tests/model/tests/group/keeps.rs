//! What the product's decisions keep.

use crate::{holds, large, world};
use cluster::Direction;
use stateright::{Checker, Model, Path};
use std::sync::{Arc, Mutex};
use test_model::group::state::{Body, Left, Role, State};
use test_model::group::world::{Action, World};

pub(crate) const NONE: Left = Left {
    claims: 0,
    exclusions: 0,
    raises: 0,
    lowerings: 0,
    expiries: 0,
    entries: 0,
    crashes: 0,
    restarts: 0,
    joins: 0,
    timeouts: 0,
    moves: 0,
    beginnings: 0,
    alone_uses: 0,
};

/// Two takeovers in a row, an exclusion, raises with different steps.
pub(crate) fn takeovers() -> Left {
    Left {
        claims: 2,
        exclusions: 1 + u8::from(large()),
        raises: 2,
        alone_uses: 1,
        ..NONE
    }
}

#[test]
fn outbound_numbers_are_used_once_over_two_takeovers() {
    let world = world(Direction::Outbound, takeovers());
    holds(
        "outbound, three members",
        World {
            steps: &[1, 2],
            ..world
        },
    );
}

#[test]
fn inbound_numbers_are_accepted_once_over_two_takeovers() {
    let world = world(Direction::Inbound, takeovers());
    holds(
        "inbound, three members",
        World {
            steps: &[1, 2],
            ..world
        },
    );
}

#[test]
fn a_ceiling_that_goes_down_makes_nobody_accept_a_replay() {
    let bounds = Left {
        raises: u8::from(large()),
        lowerings: 1,
        ..takeovers()
    };
    holds(
        "inbound with lowering, three members",
        World {
            steps: &[1, 3],
            limit: 3,
            ..world(Direction::Inbound, bounds)
        },
    );
}

#[test]
fn what_was_sent_is_known_to_the_next_owner() {
    let bounds = Left {
        raises: 0,
        entries: 3,
        alone_uses: 0,
        ..takeovers()
    };
    holds("journal, three members", world(Direction::Outbound, bounds));
}

/// A pair with an engine: a member is lost, comes back in a new life (or was only slow), joins, takes over.
fn joining() -> Left {
    Left {
        claims: 2,
        exclusions: 1,
        joins: 1,
        timeouts: 1,
        alone_uses: 1,
        crashes: 1,
        restarts: 1,
        ..NONE
    }
}

fn pair(direction: Direction, bounds: Left) -> World {
    World {
        members: 2,
        ..world(direction, bounds)
    }
}

#[test]
fn a_member_that_joins_repeats_no_number() {
    holds(
        "join, outbound, two members",
        pair(
            Direction::Outbound,
            Left {
                raises: 1,
                ..joining()
            },
        ),
    );
}

#[test]
fn a_member_that_joins_accepts_no_replay() {
    holds(
        "join, inbound, two members",
        pair(
            Direction::Inbound,
            Left {
                raises: 1,
                ..joining()
            },
        ),
    );
}

#[test]
fn a_member_that_joins_knows_what_was_sent() {
    holds(
        "join, journal, two members",
        pair(
            Direction::Outbound,
            Left {
                entries: 2,
                ..joining()
            },
        ),
    );
}

#[test]
fn a_member_that_joins_twice_within_one_life_is_a_survivor() {
    let bounds = Left {
        crashes: 0,
        restarts: 0,
        joins: 2,
        exclusions: 2,
        raises: 1,
        ..joining()
    };
    holds("two joins, two members", pair(Direction::Outbound, bounds));
}

#[test]
fn a_third_member_joins_while_two_go_on() {
    let bounds = Left {
        claims: 2,
        exclusions: 1,
        joins: 1,
        raises: 1,
        timeouts: 1,
        alone_uses: 1,
        ..NONE
    };
    holds(
        "join, outbound, three members",
        world(Direction::Outbound, bounds),
    );
}

#[test]
fn a_third_member_that_joins_knows_what_was_sent() {
    let bounds = Left {
        claims: 2,
        exclusions: 1,
        joins: 1,
        entries: 2,
        ..NONE
    };
    holds("join, journal, three members", world(Direction::Outbound, bounds));
}

#[test]
fn a_group_begins_anew_only_when_nobody_holds_it() {
    let bounds = Left {
        claims: 1,
        exclusions: 2,
        joins: 1,
        crashes: 2,
        restarts: 2,
        beginnings: 1,
        ..NONE
    };
    holds("all begin anew, two members", pair(Direction::Outbound, bounds));
}

/// An owner dies while its write that adds a joiner is on its way; the joiner looks, is in no set, and gives up; then the write is done.
pub(crate) fn late_entry() -> Left {
    Left {
        exclusions: 1,
        joins: 1,
        crashes: 1,
        restarts: 1,
        beginnings: 1,
        ..NONE
    }
}

#[test]
fn a_group_that_nobody_can_go_on_with_can_be_begun_anew() {
    let bounds = Left {
        claims: 1,
        timeouts: 1,
        ..late_entry()
    };
    holds("late entry, two members", pair(Direction::Outbound, bounds));
}

#[test]
fn a_planned_move_takes_no_number_twice() {
    let bounds = Left {
        claims: 1,
        raises: 1 + u8::from(large()),
        moves: 1,
        timeouts: 1,
        alone_uses: 1,
        ..NONE
    };
    holds(
        "planned move, outbound, three members",
        world(Direction::Outbound, bounds),
    );
}

#[test]
fn a_planned_move_leaves_one_journal() {
    let bounds = Left {
        claims: 1,
        entries: 2,
        moves: 1,
        timeouts: 1,
        ..NONE
    };
    holds(
        "planned move, journal, three members",
        world(Direction::Outbound, bounds),
    );
}

#[test]
fn outbound_numbers_are_used_once_over_three_takeovers_among_four() {
    let bounds = Left {
        claims: 3,
        raises: 1,
        exclusions: u8::from(large()),
        alone_uses: 1,
        ..NONE
    };
    let world = world(Direction::Outbound, bounds);
    holds("outbound, four members", World { members: 4, ..world });
}

/// Which of the `interesting` facts are true in some state of a world.
fn reached<const N: usize>(world: World, interesting: fn(&State) -> [bool; N]) -> [bool; N] {
    let seen = Arc::new(Mutex::new([false; N]));
    let visited = seen.clone();
    let checker = world.checker().visitor(move |path: Path<State, Action>| {
        let mut seen = visited.lock().unwrap_or_else(|e| e.into_inner());
        for (flag, now) in seen.iter_mut().zip(interesting(path.last_state())) {
            *flag |= now;
        }
    });
    checker.target_state_count(20_000).spawn_bfs().join();
    let seen = seen.lock().unwrap_or_else(|e| e.into_inner());
    *seen
}

#[test]
fn the_exploration_gets_where_the_rules_matter() {
    let three = Left {
        raises: 1,
        ..takeovers()
    };
    let seen = reached(world(Direction::Outbound, three), |state| {
        let owners = state.members.iter().filter(|m| m.up && m.role == Role::Owner);
        [
            state.ghost.restated,
            state.ghost.served == 0b1110,
            owners.count() == 3,
        ]
    });
    assert_eq!(
        seen, [true; 3],
        "limits stated anew, two takers served, three believe to own"
    );
    let joins = Left {
        raises: 1,
        ..joining()
    };
    let seen = reached(pair(Direction::Outbound, joins), |state| {
        let taken = state.ghost.entered && state.ghost.served > 0b10;
        let life = state
            .members
            .iter()
            .any(|m| m.role == Role::InSync && m.life == 2);
        [state.ghost.entered, taken, life, !state.late.is_empty()]
    });
    assert_eq!(
        seen, [true; 4],
        "a member entered, took over, in a new life, with a late write"
    );
    let moves = Left {
        claims: 1,
        raises: 1,
        moves: 1,
        timeouts: 1,
        ..NONE
    };
    let seen = reached(world(Direction::Outbound, moves), |state| {
        let moved = state.network.iter().any(|r| matches!(r.body, Body::Offer { .. }));
        [
            moved,
            moved && state.ghost.served & 0b100 != 0,
            moved && state.ghost.restated,
        ]
    });
    assert_eq!(
        seen, [true; 3],
        "moved, the new owner serves, with limits stated anew"
    );
}

/// Too large for every run.
const LARGE: Left = Left {
    claims: 2,
    exclusions: 2,
    joins: 2,
    raises: 1,
    timeouts: 1,
    alone_uses: 1,
    ..NONE
};

fn holds_if_large(name: &str, world: World) {
    if large() {
        holds(name, world);
    }
}

#[test]
fn large_join_after_a_crash() {
    let bounds = Left {
        exclusions: 1,
        joins: 1,
        crashes: 1,
        restarts: 1,
        ..LARGE
    };
    holds_if_large(
        "large: join after a crash, three members",
        world(Direction::Outbound, bounds),
    );
}

#[test]
fn large_join_inbound() {
    let bounds = Left {
        exclusions: 1,
        joins: 1,
        ..LARGE
    };
    holds_if_large(
        "large: join, inbound, three members",
        world(Direction::Inbound, bounds),
    );
}

#[test]
fn large_join_journal() {
    let bounds = Left {
        raises: 0,
        entries: 2,
        alone_uses: 0,
        timeouts: 0,
        joins: 1,
        ..LARGE
    };
    holds_if_large(
        "large: join, journal, three members",
        world(Direction::Outbound, bounds),
    );
}

#[test]
fn large_move_and_join() {
    let bounds = Left {
        claims: 1,
        moves: 1,
        exclusions: 1,
        joins: 1,
        ..LARGE
    };
    holds_if_large("large: planned move and join", world(Direction::Outbound, bounds));
}

#[test]
fn large_two_moves() {
    let bounds = Left {
        claims: 1,
        moves: 2,
        exclusions: 0,
        joins: 0,
        ..LARGE
    };
    holds_if_large("large: two moves", world(Direction::Outbound, bounds));
}

#[test]
fn large_pair() {
    let bounds = Left {
        claims: 3,
        crashes: 2,
        restarts: 2,
        raises: 2,
        ..LARGE
    };
    holds_if_large("large: pair", pair(Direction::Outbound, bounds));
}

#[test]
fn large_joins() {
    holds_if_large(
        "large: joins, outbound, three members",
        world(Direction::Outbound, LARGE),
    );
}
