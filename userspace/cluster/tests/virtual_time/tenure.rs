//! A planned restart of a member that is alone: it goes on in the epoch that it had.

use crate::world::World;
use cluster::status::Role;
use cluster::{Solo, Standing};
use model::GroupId;

/// Ends a member as planned and begins its next life, which is told what the last one was.
fn restart_kept(world: &mut World, index: usize) -> bool {
    let tenures = world.members[index]
        .node
        .tenures()
        .expect("it is alone and at rest");
    world.kill(index);
    world.run(700);
    world.restart(index);
    let now = world.now;
    world.members[index].node.go_on(now, &tenures)
}

#[test]
fn a_lone_member_goes_on_in_its_epoch_at_once_and_takes_a_standby_in() {
    let mut world = World::new(3, Solo::Continue);
    world.kill(1);
    world.run_until(3000, "begins alone", |w| w.members[0].is_owner());
    world.propose(0, b"sa");
    world.run(2000);
    let (epoch, position) = (world.members[0].epoch(), world.members[0].status().position);
    assert!(restart_kept(&mut world, 0));
    world.run(10);
    let status = world.members[0].status();
    assert_eq!((status.role, status.epoch), (Role::Active, epoch));
    assert_eq!(
        (status.position, status.standing),
        (position, Some(Standing::AloneTaker))
    );
    assert_eq!(world.members[0].groups[0].resumed, 1, "the engine serves");
    let flip = world.members[0].groups[0]
        .flip
        .clone()
        .expect("words are written");
    assert!(flip.alone && flip.epoch == epoch);
    let until = world.members[0].groups[0].valid_until;
    world.run(200);
    assert!(
        world.members[0].groups[0].valid_until > until,
        "its own loop confirms"
    );
    world.propose(0, b"another");
    world.restart(1);
    world.run_until(3000, "joined", |w| w.settled(0));
    assert_eq!(world.members[0].epoch(), epoch);
}

#[test]
fn an_owner_that_may_have_lost_its_standby_to_a_takeover_stays_within_its_limits() {
    let mut world = World::new(4, Solo::Continue);
    world.run_until(2000, "a pair forms", |w| w.settled(0));
    world.kill(1);
    world.run_until(2000, "goes on alone", |w| {
        w.members[0].standing() == Some(Standing::AloneUnfenced)
    });
    world.run(3000);
    assert!(restart_kept(&mut world, 0));
    world.run(20);
    assert_eq!(world.members[0].standing(), Some(Standing::AloneUnfenced));
    assert!(!world.members[0].groups[0].flip.as_ref().expect("flipped").alone);
}

#[test]
fn a_member_that_is_not_alone_is_told_to_hand_over() {
    let mut world = World::new(5, Solo::Continue);
    world.run_until(2000, "a pair forms", |w| w.settled(0));
    let refused = world.members[0].node.tenures().expect_err("a standby is there");
    assert!(
        refused.contains("member 2 is heard") && refused.contains("drain"),
        "{refused}"
    );
    let standby = world.members[1].node.tenures().expect_err("it owns nothing");
    assert!(standby.contains("member 1 is heard"), "{standby}");
}

#[test]
fn what_is_not_this_members_or_comes_too_late_is_not_gone_on_with() {
    let mut world = World::new(6, Solo::Continue);
    world.kill(1);
    world.run_until(3000, "begins alone", |w| w.members[0].is_owner());
    world.run(2000);
    let tenures = world.members[0].node.tenures().expect("alone");
    let now = world.now;
    assert!(!world.members[0].node.go_on(now, &tenures), "it owns already");
    world.kill(0);
    world.restart(1);
    assert!(!world.members[1].node.go_on(now, &tenures), "another member's");
    assert!(!world.members[1].node.owns(GroupId(0)));
    assert!(!world.members[1].node.go_on(now, &[]), "a group is missing");
}
