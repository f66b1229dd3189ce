//! What the product's decisions keep.

use crate::{holds, large, world};
use cluster::Direction;
use test_model::group::state::Left;
use test_model::group::world::World;

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

/// Two takeovers in a row (a third where bounds are large), an exclusion, raises with different steps.
pub(crate) fn takeovers() -> Left {
    Left {
        claims: if large() { 3 } else { 2 },
        exclusions: 1,
        raises: 2,
        alone_uses: 2,
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

#[test]
fn a_member_that_joins_is_a_survivor() {
    let bounds = Left {
        claims: 1,
        exclusions: 1,
        raises: 1,
        joins: 1,
        timeouts: 1,
        alone_uses: 1,
        crashes: 1,
        restarts: 1,
        ..NONE
    };
    holds(
        "join, two members",
        World {
            members: 2,
            ..world(Direction::Outbound, bounds)
        },
    );
}

#[test]
fn a_planned_move_takes_nothing_twice() {
    let bounds = Left {
        claims: 1,
        exclusions: 0,
        raises: 2,
        moves: 1,
        timeouts: 1,
        ..NONE
    };
    holds("planned move, three members", world(Direction::Outbound, bounds));
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
