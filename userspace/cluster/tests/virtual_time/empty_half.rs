//! A member of a pair that has nothing, and knows that another one has something: it waits before it begins anew; what it does alone then
//! is told to the one that has something; and who wins is who has more.

use crate::world::World;
use cluster::io::EventKind;
use cluster::message::PeerMark;
use cluster::{Command, EpochId, Link, Solo, Standing};
use model::{Epoch, IkeSpi, MemberId};

/// How long the first member of this world waits after it has heard of an owner: ten times the settling time.
const PATIENCE: u64 = 5000;

fn epoch(number: u64, owner: u8) -> EpochId {
    EpochId {
        number: Epoch(number),
        owner: MemberId(owner),
    }
}

fn cut(world: &mut World, cut: bool) {
    world.cut = if cut {
        vec![Link::Synch, Link::Outside]
    } else {
        Vec::new()
    };
}

/// Member 1 was the owner, has lost its state to member 2's claim, and is cut off again before it has got it back.
///
/// ```text
/// 1 owns (epoch 1)     2 in sync
///   |------- cut ------- |
/// 1 goes on alone      2 takes over (epoch 2)
///   |------ healed ------|
/// 1 gives way, joins   2 serves
///   |------- cut ------- |
/// 1 has nothing        2 serves
/// ```
fn with_an_empty_half(seed: u64) -> World {
    let mut world = World::new(seed, Solo::Continue);
    world.run_until(2000, "a pair forms", |w| w.settled(0));
    world.propose(0, b"sa");
    world.run(10);
    cut(&mut world, true);
    world.run(1000);
    assert!(world.members[0].is_owner() && world.members[1].is_owner());
    cut(&mut world, false);
    world.run_until(500, "the lower claim gives way", |w| !w.members[0].is_owner());
    cut(&mut world, true);
    world.run(300);
    assert_eq!(world.members[1].epoch(), epoch(2, 2));
    assert!(world.members[0].groups[0].mirror.is_empty());
    assert!(world.saw(0, |kind| matches!(kind, EventKind::Waits { ms: PATIENCE, .. })));
    world
}

#[test]
fn it_does_not_begin_while_the_other_half_may_be_serving_and_joins_when_it_hears_it() {
    let mut world = with_an_empty_half(1);
    for _ in 0..PATIENCE - 500 {
        world.run(1);
        assert!(!world.members[0].is_owner(), "at {:?}", world.now);
    }
    cut(&mut world, false);
    world.run_until(3000, "it joins", |w| w.settled(1));
    assert_eq!(world.members[0].groups[0].mirror, [b"sa".to_vec()]);
    assert_eq!(world.members[1].epoch(), epoch(2, 2));
}

#[test]
fn if_the_other_one_is_dead_indeed_it_begins_after_a_bounded_time_or_at_once_when_it_is_told_to() {
    for told in [false, true] {
        let mut world = with_an_empty_half(2);
        world.kill(1);
        if told {
            world.command(0, Command::StartOver { group: None });
            world.run(50);
        } else {
            world.run(PATIENCE);
        }
        assert!(world.serves(0), "told: {told}");
        assert_eq!(world.members[0].standing(), Some(Standing::AloneTaker));
    }
}

#[test]
fn a_life_that_has_heard_of_no_owner_is_as_quick_as_ever() {
    let mut world = with_an_empty_half(3);
    world.kill(0);
    world.restart(0);
    world.run(600);
    assert!(world.members[0].is_owner());
}

/// What it did alone in the end is named by its peers, after what its first fork had touched and could not be told: its own agent is
/// no judge of that.
#[test]
fn what_it_does_alone_after_all_is_named_to_who_has_something_and_it_gives_way() {
    let mut world = World::new(4, Solo::Continue);
    world.run_until(2000, "a pair forms", |w| w.settled(0));
    cut(&mut world, true);
    world.run(1000);
    world.members[0].groups[0].touched = vec![IkeSpi(7)];
    cut(&mut world, false);
    world.run_until(500, "the lower claim gives way", |w| !w.members[0].is_owner());
    cut(&mut world, true);
    world.run_until(PATIENCE + 1000, "begins alone", |w| w.members[0].is_owner());
    assert!(
        world.members[0].node.may_give_way(model::GroupId(0)),
        "it is recorded"
    );
    for at in 0..20 {
        world.propose(0, &[at]);
    }
    world.run(3000);
    assert!(world.members[0].groups[0].told.is_empty());
    let mark = PeerMark::of("site", None);
    world.members[0].groups[0].met = vec![mark];
    cut(&mut world, false);
    world.run_until(3000, "it gives way again", |w| w.settled(1));
    world.run(1500);
    assert_eq!(world.members[1].epoch(), epoch(2, 2), "whatever it has written");
    let told = &world.members[1].groups[0];
    let spis = told.told.iter().flat_map(|(_, _, spis)| spis).collect::<Vec<_>>();
    assert_eq!((spis, &told.named[..]), (vec![&IkeSpi(7)], &[mark][..]));
    assert!(!world.members[0].node.owes_a_fork(model::GroupId(0)));
}

#[test]
fn what_a_fork_touched_is_forgotten_once_the_other_member_has_nothing_but_what_this_one_has() {
    let mut world = World::new(5, Solo::Continue);
    world.run_until(2000, "a pair forms", |w| w.settled(0));
    cut(&mut world, true);
    world.run(1000);
    world.members[0].groups[0].touched = vec![IkeSpi(7)];
    cut(&mut world, false);
    world.run_until(500, "the lower claim gives way", |w| !w.members[0].is_owner());
    world.kill(1);
    cut(&mut world, false);
    world.run_until(PATIENCE + 1000, "begins alone", |w| w.members[0].is_owner());
    assert!(world.members[0].node.owes_a_fork(model::GroupId(0)));
    world.restart(1);
    world.run_until(2000, "the new life joins", |w| w.settled(0));
    assert!(!world.members[0].node.owes_a_fork(model::GroupId(0)));
    world.kill(0);
    world.run_until(500, "it takes over", |w| w.members[1].is_owner());
    world.run(1500);
    assert!(world.members[1].groups[0].told.is_empty());
}

/// Nobody has ever taken over in this pair. The host of member 2 is started again while the links are cut.
#[test]
fn an_owner_with_a_long_journal_does_not_give_way_to_one_that_was_started_while_it_was_cut_off() {
    let mut world = World::new(6, Solo::Continue);
    world.run_until(2000, "a pair forms", |w| w.settled(0));
    for at in 0..100 {
        world.propose(0, &[at]);
        world.run(3);
    }
    world.kill(1);
    cut(&mut world, true);
    world.restart(1);
    world.run_until(3000, "it begins", |w| w.members[1].is_owner());
    for at in 0..5 {
        world.propose(1, &[at]);
    }
    assert_eq!(world.members[1].epoch(), epoch(1, 2), "higher than (1, 1)");
    cut(&mut world, false);
    world.relink();
    world.run_until(3000, "the newcomer gives way", |w| w.settled(0));
    assert_eq!(world.members[1].groups[0].mirror.len(), 100);
    assert_eq!(world.members[0].groups[0].discards, 0);
}

/// A preferred member that is started again hears a standby which is about to take over from its last life: there is state.
#[test]
fn a_new_life_does_not_begin_where_a_standby_holds_something() {
    for after in 0..40 {
        let mut world = World::new(7 + after, Solo::Continue);
        world.run_until(2000, "a pair forms", |w| w.settled(0));
        world.propose(0, b"sa");
        world.run(5);
        world.kill(0);
        world.run(after);
        world.restart(0);
        world.run_until(2000, "it joins", |w| w.settled(1));
        assert!(
            !world.saw(0, |kind| matches!(kind, EventKind::Claimed { .. })),
            "started again after {after} ms"
        );
    }
}
