//! What a discarded fork touched is named to the owner until it has been dealt with, whatever is lost.

use crate::world::World;
use cluster::message::{FORKS_SINCE, VERSION};
use cluster::{Link, Solo};
use model::IkeSpi;

/// A pair whose halves both served: member 1's fork, which touched these IKE SAs, has just lost.
fn split(touched: &[u64], seed: u64) -> World {
    let mut world = World::new(seed, Solo::Continue);
    world.run_until(2000, "a pair forms", |w| w.settled(0));
    world.cut = vec![Link::Synch, Link::Outside];
    world.run(1000);
    assert!(world.members[0].is_owner() && world.members[1].is_owner());
    world.members[0].groups[0].touched = touched.iter().copied().map(IkeSpi).collect();
    world
}

fn told(world: &World, member: usize) -> Vec<(u8, Vec<u64>)> {
    let told = &world.members[member].groups[0].told;
    told.iter()
        .map(|(from, _, spis)| (*from, spis.iter().map(|spi| spi.0).collect()))
        .collect()
}

#[test]
fn the_winner_hears_what_the_fork_touched_and_says_so_once_it_is_settled() {
    let mut world = split(&[7, 9], 1);
    world.cut.clear();
    world.run_until(3000, "healed", |w| w.settled(1));
    world.run(100);
    assert_eq!(told(&world, 1), [(1, vec![7, 9])]);
    world.run(5000);
    assert_eq!(told(&world, 1).len(), 1, "it was settled, and is not named again");
}

#[test]
fn it_is_named_again_while_nobody_has_dealt_with_it_and_many_go_in_parts() {
    let many: Vec<u64> = (1..=1500).collect();
    let mut world = split(&many, 2);
    world.members[1].keeps_forks = true;
    world.cut.clear();
    world.run_until(3000, "healed", |w| w.settled(1));
    world.run(3500);
    let before = told(&world, 1);
    assert!(before.len() >= 3 && before.iter().all(|(_, spis)| spis[..] == many[..1024]));
    world.members[1].keeps_forks = false;
    world.run(2500);
    let after = told(&world, 1).split_off(before.len());
    let parts: Vec<usize> = after.iter().map(|(_, spis)| spis.len()).collect();
    assert_eq!(parts, [1024, 476]);
}

#[test]
fn a_winner_that_dies_before_it_has_dealt_with_it_leaves_it_to_whoever_owns_next() {
    let mut world = split(&[7], 3);
    world.members[1].keeps_forks = true;
    world.cut.clear();
    world.run_until(3000, "healed", |w| w.settled(1));
    world.run(100);
    world.kill(1);
    world.run_until(1000, "the loser of the split takes over", |w| {
        w.members[0].is_owner()
    });
    world.run(1500);
    assert_eq!(
        told(&world, 0),
        [(1, vec![7])],
        "its own agent deals with it, once"
    );
}

#[test]
fn nothing_is_named_to_a_member_that_does_not_speak_of_forks_until_it_does() {
    let mut world = World::new(4, Solo::Continue);
    world.members[1].node.speak_at_most(FORKS_SINCE - 1);
    world.relink();
    world.run_until(2000, "a pair forms", |w| w.settled(0));
    world.cut = vec![Link::Synch, Link::Outside];
    world.run(1000);
    world.members[0].groups[0].touched = vec![IkeSpi(7)];
    world.cut.clear();
    world.run_until(3000, "healed", |w| w.settled(1));
    world.run(3000);
    assert!(told(&world, 1).is_empty());
    world.members[1].node.speak_at_most(VERSION);
    world.relink();
    world.run_until(3000, "in sync", |w| w.settled(1));
    world.run(1100);
    assert_eq!(told(&world, 1), [(1, vec![7])]);
}
