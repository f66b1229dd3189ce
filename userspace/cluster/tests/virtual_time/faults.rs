//! Random faults, seeded: no lost, repeated or reordered record kills an SA (R7), and what was released is known to
//! whoever owns later.

use crate::world::{Dice, World};
use cluster::{Direction, Solo};

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("ESPALIER_SEED")
        .ok()
        .and_then(|s| s.parse::<u64>().ok())
    {
        Some(seed) => seed..seed + 1,
        None => 0..300,
    }
}

#[test]
fn lost_repeated_and_reordered_datagrams_kill_no_entry_and_no_raise() {
    for seed in seeds() {
        println!("seed {seed} (ESPALIER_SEED repeats it)");
        let mut world = World::new(seed, Solo::Continue);
        world.run_until(2000, "a pair forms", |w| w.settled(0));
        (world.loss, world.duplication, world.delay) = (30, 20, 15);
        for round in 0..40u64 {
            world.propose(0, &round.to_be_bytes());
            world.raise(0, (round % 4) as u32, Direction::Outbound, 100 * (round + 1));
            let pause = world.roll(12);
            world.run(pause);
        }
        (world.loss, world.duplication, world.delay) = (0, 0, 0);
        world.run(1500);
        assert!(world.settled(0), "the pair survives");
        assert_eq!(world.members[0].groups[0].committed.len(), 40);
        assert_eq!(
            world.members[0].groups[0].mirror,
            world.members[1].groups[0].mirror
        );
        assert_eq!(
            world.members[0].groups[0].limits, world.members[1].groups[0].limits,
            "what is in use is what is armed"
        );
    }
}

#[test]
fn whatever_was_released_is_known_to_the_next_owner() {
    for seed in seeds() {
        println!("seed {seed} (ESPALIER_SEED repeats it)");
        let mut world = World::new(seed, Solo::Continue);
        let mut dice = Dice::new(seed ^ 0xfau64);
        world.run_until(2000, "a pair forms", |w| w.settled(0));
        (world.loss, world.delay) = (10, 8);
        let mut owner = 0;
        let mut counter = 0u64;
        for _ in 0..4 {
            let before = world.members[owner].groups[0].committed.len();
            for _ in 0..dice.below(12) {
                counter += 1;
                world.propose(owner, &counter.to_be_bytes());
                world.raise(owner, (counter % 3) as u32, Direction::Outbound, 10 * counter);
                let pause = dice.below(4);
                world.run(pause);
            }
            world.kill(owner);
            let released = world.members[owner].groups[0].committed[before..].to_vec();
            let limits = world.members[owner].groups[0].limits.clone();
            let next = 1 - owner;
            world.run_until(1500, "takeover", |w| w.members[next].is_owner());
            for entry in &released {
                assert!(
                    world.members[next].groups[0].mirror.contains(entry),
                    "released entry {entry:?} is not known"
                );
            }
            for (key, limit) in &limits {
                assert!(
                    world.members[next].groups[0].limits.get(key) >= Some(limit),
                    "limit {key:?} {limit} was in use"
                );
            }
            world.restart(owner);
            world.run_until(4000, "rejoined", |w| w.settled(next));
            owner = next;
        }
    }
}

#[test]
fn garbage_and_records_of_other_versions_change_nothing() {
    let mut world = World::new(1, Solo::Continue);
    world.run_until(2000, "a pair forms", |w| w.settled(0));
    world.propose(0, b"sa");
    world.run(10);
    let refused = world.members[1].node.status().refused;
    let before = world.members[1].status();
    let mut dice = Dice::new(42);
    for length in 0..400u64 {
        let bytes: Vec<u8> = (0..length).map(|_| dice.below(256) as u8).collect();
        world.garbage(1, bytes.clone());
        let mut versioned = vec![cluster::message::VERSION];
        versioned.extend(bytes);
        world.garbage(1, versioned);
    }
    let after = world.members[1].status();
    assert!(world.members[1].node.status().refused > refused);
    assert_eq!(
        (after.role, after.epoch, after.position),
        (before.role, before.epoch, before.position)
    );
    world.run(500);
    assert!(world.settled(0));
}
