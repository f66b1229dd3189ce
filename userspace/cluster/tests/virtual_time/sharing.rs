//! Load sharing: groups of segments spread over the members, and moved.

use crate::register::Shape;
use crate::world::World;
use cluster::{Command, Direction};
use model::{GroupId, MemberId};
use std::time::Duration;

fn sharing(members: u8, groups: u8) -> World {
    let mut world = World::of(1, Shape::sharing(members, groups));
    world.run_until(8000, "the groups are spread", World::all_settled);
    world
}

fn shares(world: &World) -> Vec<usize> {
    world.members.iter().map(|m| m.owned().len()).collect()
}

#[test]
fn groups_go_to_the_members_they_are_meant_for() {
    let world = sharing(3, 16);
    assert_eq!(shares(&world), [6, 5, 5]);
    for group in 0..16 {
        let serving = (0..3).filter(|i| world.serves_in(*i, group)).count();
        assert_eq!(serving, 1, "group {group}");
    }
}

#[test]
fn entries_and_raises_stay_in_their_group() {
    let mut world = sharing(2, 4);
    let owner_of = |w: &World, group: u8| {
        (0..2)
            .find(|i| w.members[*i].node.owns(GroupId(group)))
            .expect("owned")
    };
    for group in 0..4 {
        let owner = owner_of(&world, group);
        world.propose_in(owner, GroupId(group), &[group]);
        world.raise(
            owner,
            256 + u32::from(group),
            Direction::Outbound,
            50 + u64::from(group),
        );
    }
    world.run(10);
    for member in &world.members {
        for group in 0..4u8 {
            let part = &member.groups[usize::from(group)];
            assert_eq!(part.mirror, [vec![group]]);
            let key = (256 + u32::from(group), true);
            assert_eq!(part.limits.get(&key), Some(&(50 + u64::from(group))));
            assert_eq!(part.limits.len(), 1);
        }
    }
}

#[test]
fn the_groups_of_a_lost_member_spread_over_the_others() {
    let mut world = sharing(4, 16);
    assert_eq!(shares(&world), [4, 4, 4, 4]);
    world.run(100);
    world.kill(0);
    world.run_until(1000, "all are served", |w| {
        (0..16).all(|group| (1..4).any(|i| w.serves_in(i, group)))
    });
    let after = shares(&world);
    // The lost member's last view is not counted.
    assert!(after[1..].iter().all(|n| *n >= 5), "{after:?}");
}

#[test]
fn every_group_of_a_drained_member_moves_without_a_moment_of_nobody() {
    let mut world = sharing(3, 16);
    world.command(1, Command::Drain);
    for _ in 0..3000 {
        world.run(1);
        for group in 0..16 {
            let somebody = (0..3).any(|i| {
                world.serves_in(i, group)
                    || world.members[i].groups[group]
                        .flip
                        .as_ref()
                        .is_some_and(cluster::io::Flip::in_handover)
            });
            assert!(somebody, "group {group} at {:?}", world.now);
        }
    }
    assert_eq!(shares(&world), [8, 0, 8]);
    assert!(
        world
            .members
            .iter()
            .flat_map(|m| &m.groups)
            .all(|g| g.discards == 0)
    );
}

#[test]
fn rebalancing_brings_groups_home_by_command() {
    let mut world = sharing(3, 16);
    world.kill(2);
    world.run_until(2000, "two have them all", |w| {
        w.members[0].owned().len() + w.members[1].owned().len() == 16
    });
    world.restart(2);
    world.run_until(6000, "it has joined", World::all_settled);
    assert_eq!(world.members[2].owned().len(), 0, "nothing moves by itself");
    world.command(2, Command::Rebalance);
    world.run_until(4000, "home", |w| shares(w) == [6, 5, 5]);
}

#[test]
fn rebalancing_happens_by_itself_where_that_is_configured() {
    let mut shape = Shape::sharing(3, 8);
    shape.rebalance = Some(Duration::from_secs(5));
    let mut world = World::of(1, shape);
    world.run_until(8000, "the groups are spread", World::all_settled);
    let before = shares(&world);
    world.kill(1);
    world.run(1000);
    world.restart(1);
    world.run_until(4000, "it has joined", World::all_settled);
    assert_eq!(world.members[1].owned().len(), 0, "not at once");
    world.run_until(9000, "home", |w| shares(w) == before);
}

#[test]
fn one_group_moves_by_command_and_the_others_stay() {
    let mut world = sharing(2, 4);
    let group = world.members[0].owned()[0];
    let command = Command::TakeoverTo {
        to: MemberId(2),
        group: Some(GroupId(group)),
    };
    // Given at the taker.
    world.command(1, command);
    world.run_until(500, "moved", |w| w.settled_in(1, usize::from(group)));
    assert_eq!(shares(&world), [1, 3]);
}
