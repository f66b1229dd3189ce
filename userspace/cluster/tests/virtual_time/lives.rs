//! Members that die, restart and are cut off at the wrong moment: what their lives must not do to each other.

use crate::world::World;
use cluster::io::EventKind;
use cluster::{Direction, Link, Solo, Standing};

fn pair() -> World {
    let mut world = World::new(1, Solo::Continue);
    world.run_until(2000, "a pair forms", |w| w.settled(0));
    world.propose(0, b"sa");
    world.raise(0, 1, Direction::Outbound, 100);
    world.run(10);
    world
}

fn cut(world: &mut World) {
    world.cut = vec![Link::Synch, Link::Outside];
}

#[test]
fn a_preferred_member_that_hears_the_owner_before_its_heartbeat_does_not_claim() {
    let mut world = pair();
    world.kill(0);
    world.run_until(400, "takeover", |w| w.members[1].is_owner());
    // Streams arrive (Hello among them), datagrams (heartbeats) do not.
    world.loss = 100;
    world.restart(0);
    for _ in 0..60 {
        world.run(1);
        assert!(!world.members[0].is_owner(), "at {:?}", world.now);
    }
    world.loss = 0;
    world.run_until(2000, "joined", |w| w.settled(1));
    assert_eq!(world.members[1].groups[0].discards, 0);
}

#[test]
fn a_member_that_started_cut_off_and_holds_nothing_gives_way_to_one_that_does() {
    let mut world = pair();
    world.kill(1);
    world.run(300);
    cut(&mut world);
    world.restart(1);
    world.run(2500);
    assert!(world.members[1].is_owner(), "it hears nobody, so it begins");
    assert!(
        world.members[1].epoch() > world.members[0].epoch(),
        "and compares higher"
    );
    world.cut.clear();
    world.run_until(3000, "healed", |w| w.settled(0));
    assert_eq!(
        world.members[0].groups[0].discards, 0,
        "the member with SAs keeps them"
    );
    assert_eq!(world.members[1].groups[0].mirror, [b"sa".to_vec()]);
}

#[test]
fn two_lives_of_a_member_never_own_under_the_same_epoch() {
    let mut world = pair();
    // The standby takes over unseen and dies unseen.
    cut(&mut world);
    world.run_until(400, "split", |w| w.members[1].is_owner());
    let first = world.members[1].epoch();
    world.kill(1);
    world.run(150);
    world.cut.clear();
    assert!(world.members[0].is_owner() && world.members[0].epoch().number.0 == 1);
    // Its next life joins the old owner, and takes over from it.
    world.restart(1);
    world.run_until(2000, "rejoined", |w| w.settled(0));
    world.kill(0);
    world.run_until(400, "takeover", |w| w.members[1].is_owner());
    assert!(world.members[1].epoch().number > first.number, "{first:?}");
}

#[test]
fn a_planned_takeover_by_the_next_life_does_not_repeat_the_epoch_either() {
    let mut world = pair();
    cut(&mut world);
    world.run_until(400, "split", |w| w.members[1].is_owner());
    let first = world.members[1].epoch();
    world.kill(1);
    world.run(150);
    world.cut.clear();
    world.restart(1);
    world.run_until(2000, "rejoined", |w| w.settled(0));
    world.take_over(0, 2);
    world.run_until(300, "handover", |w| w.settled(1));
    assert!(world.members[1].epoch().number > first.number, "{first:?}");
}

#[test]
fn a_new_life_of_the_standby_is_no_fence_for_its_old_one() {
    let mut world = pair();
    world.kill(1);
    world.run(20);
    world.restart(1);
    world.run(2);
    assert_eq!(world.members[0].standing(), Some(Standing::AloneUnfenced));
    let refused = world.members[0].raise_refused.len();
    world.raise(0, 1, Direction::Outbound, 200);
    assert_eq!(
        world.members[0].raise_refused.len(),
        refused + 1,
        "whoever could acknowledge it now"
    );
    world.run_until(2000, "rejoined", |w| w.settled(0));
    world.raise(0, 2, Direction::Outbound, 200);
    world.run(5);
    assert_eq!(world.members[1].groups[0].limits.get(&(2, true)), Some(&200));
}

#[test]
fn with_solo_stop_a_restarted_standby_comes_back() {
    let mut world = World::new(1, Solo::Stop);
    world.run_until(2000, "a pair forms", |w| w.settled(0));
    world.kill(1);
    world.run(20);
    world.restart(1);
    world.run_until(2000, "rejoined", |w| w.settled(0));
    world.run(50);
    assert!(world.serves(0));
}

#[test]
fn an_excluded_standby_joins_anew_before_it_may_take_over() {
    let mut world = pair();
    // The owner does not hear the standby for a while; the standby hears the owner again before its own threshold.
    world.members[1].paused = true;
    world.run_until(400, "excluded", |w| {
        w.saw(0, |e| matches!(e, EventKind::Excluded { .. }))
    });
    world.propose(0, b"alone");
    assert_eq!(world.members[0].groups[0].committed.len(), 2);
    world.members[1].paused = false;
    world.run_until(500, "it learns of it", |w| {
        w.saw(1, |e| matches!(e, EventKind::WasExcluded))
    });
    world.run_until(2000, "rejoined", |w| w.settled(0));
    assert_eq!(
        world.members[1].groups[0].mirror,
        [b"sa".to_vec(), b"alone".to_vec()]
    );
}

#[test]
fn preferred_or_not_two_members_that_hear_each_other_find_an_owner() {
    for seed in 0..50 {
        let mut world = World::new(seed, Solo::Continue);
        world.kill(0);
        world.kill(1);
        world.restart(1);
        let pause = world.roll(1500);
        world.run(pause);
        world.restart(0);
        world.run_until(4000, "an owner with a standby", |w| w.settled(0) || w.settled(1));
    }
}

/// Found by chaos: a standby that was stopped for seconds, excluded meanwhile, and that hears nobody at first when it goes on
/// (its connections are made anew), claimed with what it held.
#[test]
fn a_standby_that_was_paused_listens_before_it_claims() {
    let mut world = pair();
    world.members[1].paused = true;
    world.run(2400);
    assert!(
        world.members[0]
            .status()
            .in_sync
            .is_some_and(|set| set.len() == 1),
        "excluded"
    );
    world.propose(0, b"while it slept");
    cut(&mut world);
    world.members[1].paused = false;
    world.run(500);
    assert!(!world.members[1].is_owner(), "it may have been excluded");
    world.cut.clear();
    world.run_until(2000, "joined anew", |w| w.settled(0));
    assert_eq!(world.members[0].groups[0].discards, 0);
    assert_eq!(
        world.members[1].groups[0].mirror.last(),
        Some(&b"while it slept".to_vec())
    );
}

#[test]
fn a_standby_that_was_paused_takes_over_all_the_same_when_the_owner_is_gone() {
    let mut world = pair();
    world.members[1].paused = true;
    world.run(50);
    world.kill(0);
    world.run(600);
    world.members[1].paused = false;
    world.run_until(1500, "takeover", |w| w.serves(1));
    assert_eq!(world.members[1].groups[0].mirror, [b"sa".to_vec()]);
}
