//! A pair from start to takeover, as the design tells it.

use crate::world::World;
use cluster::io::EventKind;
use cluster::message::Policy;
use cluster::node::SharedPolicy;
use cluster::{Direction, Solo, Standing};

fn pair() -> World {
    let mut world = World::new(1, Solo::Continue);
    world.run_until(2000, "a pair forms", |w| w.settled(0));
    world
}

/// A standby whose SA refuses limits keeps silent: the limits are used only once it is out of the set, and it joins anew.
#[test]
fn limits_that_a_standby_could_not_arm_are_not_used_while_it_may_take_over() {
    let mut world = World::new(1, Solo::Continue);
    world.run_until(2000, "a pair forms", |w| w.settled(0));
    world.raise(0, 1, Direction::Inbound, 100);
    world.run(20);
    let used = |w: &World| w.members[0].groups[0].limits.get(&(1, false)).copied();
    assert_eq!(used(&world), Some(100));
    world.members[1].refuses_limits = true;
    world.raise(0, 1, Direction::Inbound, 200);
    while world.members[0]
        .status()
        .in_sync
        .is_some_and(|set| set.len() == 2)
    {
        assert_eq!(
            used(&world),
            Some(100),
            "the standby could take over, and has not armed more"
        );
        world.run(1);
    }
    assert_eq!(used(&world), Some(200), "nobody else needs to know");
    world.members[1].refuses_limits = false;
    world.run_until(3000, "it has joined anew", |w| w.settled(0));
    assert!(world.saw(0, |kind| matches!(kind, EventKind::Excluded { .. })));
}

#[test]
fn the_preferred_member_begins_and_the_other_joins_by_snapshot() {
    let world = pair();
    assert_eq!(world.members[0].epoch().number.0, 1);
    assert!(world.serves(0));
    assert!(!world.serves(1));
}

#[test]
fn a_member_alone_begins_after_the_settling_time() {
    let mut world = World::new(1, Solo::Continue);
    world.kill(0);
    world.run(900);
    assert!(!world.members[1].is_owner(), "the other one may still come");
    world.run(300);
    assert!(world.members[1].is_owner());
    assert_eq!(world.members[1].standing(), Some(Standing::AloneTaker));
}

#[test]
fn an_entry_is_released_only_after_the_standby_has_armed_it() {
    let mut world = pair();
    world.propose(0, b"sa");
    assert!(
        world.members[0].groups[0].committed.is_empty(),
        "the acknowledgement takes a round trip"
    );
    assert!(world.members[1].groups[0].mirror.is_empty());
    world.run(1);
    assert_eq!(
        world.members[1].groups[0].mirror,
        [b"sa".to_vec()],
        "armed at the standby"
    );
    assert!(
        world.members[0].groups[0].committed.is_empty(),
        "but the owner does not know yet"
    );
    world.run(1);
    assert_eq!(world.members[0].groups[0].committed, [b"sa".to_vec()]);
}

#[test]
fn a_killed_owner_is_followed_by_its_standby_at_the_suspicion_floor() {
    let mut world = pair();
    world.run(3000);
    world.propose(0, b"sa");
    world.run(5);
    let killed = world.now;
    world.kill(0);
    world.run_until(400, "takeover", |w| w.members[1].is_owner());
    let took = world.now.since(killed).as_millis();
    assert!((75..=130).contains(&took), "took {took} ms");
    assert!(world.serves(1));
    let flip = world.members[1].groups[0].flip.as_ref().expect("a flip");
    assert!(flip.alone, "a taker alone has no upper limits");
    assert_eq!(flip.epoch.number.0, 2);
    assert_eq!(world.members[1].groups[0].mirror, [b"sa".to_vec()]);
    world.propose(1, b"more");
    assert_eq!(
        world.members[1].groups[0].committed,
        [b"more".to_vec()],
        "alone, nothing waits"
    );
}

#[test]
fn a_killed_standby_leaves_a_healthy_owner_serving_without_a_gap() {
    let mut world = pair();
    world.propose(0, b"never acknowledged");
    world.kill(1);
    for _ in 0..400 {
        world.run(1);
        assert!(world.serves(0), "at {:?}", world.now);
    }
    assert_eq!(
        world.members[0].groups[0].committed,
        [b"never acknowledged".to_vec()]
    );
    assert_eq!(world.members[0].standing(), Some(Standing::AloneUnfenced));
    world.raise(0, 1, Direction::Outbound, 500);
    assert_eq!(
        world.members[0].raise_refused.len(),
        1,
        "unfenced: stay below the acknowledged lease, rekey"
    );
    world.raise(0, 1, Direction::Inbound, 500);
    assert_eq!(world.members[0].groups[0].limits.get(&(1, false)), Some(&500));
}

#[test]
fn with_solo_stop_an_owner_without_standby_stops_serving() {
    let mut world = World::new(1, Solo::Stop);
    world.run_until(2000, "a pair forms", |w| w.settled(0));
    world.run(200);
    assert!(world.serves(0));
    world.kill(1);
    world.run(120);
    assert!(!world.serves(0), "nobody confirms");
    world.propose(0, b"waits");
    world.run(3000);
    assert!(world.members[0].groups[0].committed.is_empty());
    world.restart(1);
    world.run_until(3000, "the standby is back", |w| w.settled(0));
    world.run(100);
    assert!(world.serves(0));
}

#[test]
fn a_restarted_member_rejoins_by_snapshot_as_standby() {
    let mut world = pair();
    world.propose(0, b"before");
    world.run(10);
    world.kill(0);
    world.run_until(400, "takeover", |w| w.members[1].is_owner());
    world.propose(1, b"meanwhile");
    world.restart(0);
    world.run_until(2000, "rejoined", |w| w.settled(1));
    assert_eq!(
        world.members[0].groups[0].mirror,
        [b"before".to_vec(), b"meanwhile".to_vec()]
    );
    assert_eq!(world.members[1].standing(), Some(Standing::WithStandby));
    assert!(world.serves(1) && !world.serves(0));
    world.propose(1, b"tail");
    world.run(5);
    assert_eq!(world.members[0].groups[0].mirror.last(), Some(&b"tail".to_vec()));
    world.kill(1);
    world.run_until(400, "and takes over in its turn", |w| w.members[0].is_owner());
    assert_eq!(world.members[0].epoch().number.0, 3);
}

#[test]
fn an_owner_that_restarts_faster_than_it_is_suspected_is_followed_at_once() {
    let mut world = pair();
    world.propose(0, b"sa");
    world.run(10);
    world.kill(0);
    world.run(20);
    world.restart(0);
    world.run_until(50, "takeover on the news of another incarnation", |w| {
        w.members[1].is_owner()
    });
    world.run_until(2000, "rejoined", |w| w.settled(1));
    assert_eq!(world.members[0].groups[0].mirror, [b"sa".to_vec()]);
}

#[test]
fn a_paused_owner_gives_way_when_it_wakes() {
    let mut world = pair();
    world.propose(0, b"sa");
    world.run(100);
    world.members[0].paused = true;
    world.run(1500);
    assert!(world.members[1].is_owner());
    assert!(!world.serves(0), "the dead-man's switch has stopped it");
    world.members[0].paused = false;
    for _ in 0..1000 {
        world.run(1);
        assert!(!world.serves(0), "it never serves on its old word");
    }
    assert!(world.settled(1), "it discarded its fork and joined");
    assert_eq!(world.members[0].groups[0].discards, 1);
}

#[test]
fn a_planned_takeover_moves_ownership_without_a_moment_of_nobody() {
    let mut world = pair();
    world.propose(0, b"sa");
    world.take_over(0, 2);
    for _ in 0..100 {
        world.run(1);
        let legacy = world.members[0].groups[0]
            .flip
            .as_ref()
            .is_some_and(cluster::io::Flip::in_handover);
        assert!(
            world.serves(0) || world.serves(1) || legacy,
            "somebody serves at {:?}",
            world.now
        );
    }
    assert!(world.settled(1));
    assert_eq!(world.members[1].groups[0].mirror, [b"sa".to_vec()]);
    assert!(world.saw(1, |e| matches!(e, EventKind::HandoverDone { .. })));
    assert!(
        world.members[1].groups[0]
            .flip
            .as_ref()
            .is_some_and(|f| f.legacy.is_none()),
        "the handover is over"
    );
    assert_eq!(
        world.members[0].groups[0].discards, 0,
        "the old owner keeps its mirror"
    );
    world.propose(1, b"new");
    world.run(3);
    assert_eq!(world.members[0].groups[0].mirror.last(), Some(&b"new".to_vec()));
    world.kill(1);
    world.run_until(400, "the old owner can take over again", |w| w.serves(0));
}

#[test]
fn a_standby_can_be_told_to_take_over() {
    let mut world = pair();
    world.take_over(1, 2);
    world.run_until(200, "handover", |w| w.settled(1));
}

#[test]
fn a_taker_that_dies_in_the_middle_of_a_handover_leaves_the_owner_serving() {
    for after in 0..40 {
        let mut world = pair();
        world.propose(0, b"sa");
        world.run(5);
        world.take_over(0, 2);
        world.run(after);
        world.kill(1);
        world.run(600);
        assert!(world.serves(0), "killed {after} ms after the command");
        assert_eq!(
            world.members[0].groups[0].mirror,
            [b"sa".to_vec()],
            "killed {after} ms after the command"
        );
    }
}

#[test]
fn an_owner_that_dies_in_the_middle_of_a_handover_is_followed() {
    for after in 0..40 {
        let mut world = pair();
        world.propose(0, b"sa");
        world.run(5);
        world.take_over(0, 2);
        world.run(after);
        world.kill(0);
        world.run(600);
        assert!(world.serves(1), "killed {after} ms after the command");
        assert_eq!(
            world.members[1].groups[0].mirror,
            [b"sa".to_vec()],
            "killed {after} ms after the command"
        );
    }
}

#[test]
fn members_with_different_policies_do_not_form_a_cluster() {
    let mut world = World::new(1, Solo::Continue);
    world.differ();
    world.run(3000);
    assert!(!world.settled(0));
    assert!(world.saw(0, |e| matches!(e, EventKind::PolicyDiffers { .. })));
}

/// The same policy under a key.
fn policy(key: u8) -> Policy {
    let part = |at: u8| (format!("part {at}"), [key * 16 + at; 16]);
    (0..3).map(part).collect()
}

fn keyed(present: u8, next: Option<u8>) -> SharedPolicy {
    SharedPolicy {
        present: policy(present),
        next: next.map(policy),
    }
}

#[test]
fn members_change_the_key_of_their_policy_one_after_the_other_and_one_that_was_left_behind_is_named() {
    let mut world = pair();
    let share = |world: &mut World, index: usize, policy| {
        world.members[index].node.share(policy, Vec::new());
        world.run(10);
    };
    let differs = |world: &World, index: usize| world.members[index].node.status().peers[0].differs.clone();
    for index in [0, 1] {
        share(&mut world, index, keyed(1, Some(2)));
    }
    // The first one goes over. The other has not followed, and knows what that is.
    share(&mut world, 0, keyed(2, None));
    assert_eq!(differs(&world, 1), Vec::<String>::new());
    share(&mut world, 1, keyed(2, None));
    for index in [0, 1] {
        assert_eq!(differs(&world, index), Vec::<String>::new());
    }
    world.propose(0, b"sa");
    world.run(10);
    assert!(world.settled(0));

    // A life that knows the old key only is refused with the one word that says why, and let in once it knows better.
    world.kill(1);
    world.restart(1);
    world.members[1].node.share(keyed(1, None), Vec::new());
    world.relink();
    world.run(2000);
    assert!(!world.settled(0));
    for index in [0, 1] {
        assert_eq!(differs(&world, index), ["cluster.secret"]);
    }
    share(&mut world, 1, keyed(2, None));
    world.run_until(2000, "it joins", |w| w.settled(0));
    // Another difference is still named by its part.
    let mut other = policy(2);
    other.insert("part 1".to_owned(), [0; 16]);
    let other = SharedPolicy {
        present: other,
        next: None,
    };
    share(&mut world, 1, other);
    assert_eq!(differs(&world, 0), ["part 1"]);
}

#[test]
fn both_heal_a_split_and_the_higher_claim_wins() {
    let mut world = pair();
    world.propose(0, b"sa");
    world.run(10);
    world.cut = vec![cluster::Link::Synch, cluster::Link::Outside];
    world.run(1000);
    assert!(
        world.members[0].is_owner() && world.members[1].is_owner(),
        "continue: both go on"
    );
    world.cut.clear();
    world.run_until(3000, "healed", |w| w.settled(1));
    assert_eq!(
        world.members[0].groups[0].discards, 1,
        "the loser discards its fork"
    );
    assert_eq!(world.members[0].groups[0].mirror, [b"sa".to_vec()]);
}

#[test]
fn a_dead_synch_link_does_not_hold_up_raises() {
    let mut world = pair();
    world.cut = vec![cluster::Link::Synch];
    world.raise(0, 1, Direction::Inbound, 500);
    world.run(40);
    assert_eq!(
        world.members[0].groups[0].limits.get(&(1, false)),
        Some(&500),
        "acknowledged over the outside link"
    );
    assert_eq!(world.members[1].groups[0].limits.get(&(1, false)), Some(&500));
}

/// A member has read another configuration.
fn read_again(world: &mut World, index: usize, policy: &cluster::message::Policy) {
    let shared = cluster::node::SharedPolicy {
        present: policy.clone(),
        next: None,
    };
    world.members[index].node.share(shared, Vec::new());
}

/// Both members read their configuration again, one after the other.
#[test]
fn members_that_change_their_policy_one_after_the_other_stay_in_sync_and_tell_what_differs_meanwhile() {
    let mut world = pair();
    let changed = std::collections::BTreeMap::from([("addresses".to_owned(), [9; 16])]);
    read_again(&mut world, 1, &changed);
    world.run(50);
    for index in [0, 1] {
        let differs = world.members[index].node.status().peers[0].differs.clone();
        assert_eq!(differs, ["addresses"], "member {index}");
    }
    assert!(world.settled(0), "the standby is still in the set");
    world.propose(0, b"an entry meanwhile");
    world.run(5);
    assert_eq!(world.members[0].groups[0].committed.len(), 1);

    read_again(&mut world, 0, &changed);
    world.run(50);
    for index in [0, 1] {
        let differs = world.members[index].node.status().peers[0].differs.clone();
        assert!(differs.is_empty(), "member {index}: {differs:?}");
    }
    assert!(world.settled(0));
    assert_eq!(world.members[0].epoch().number.0, 1, "nobody took over");
}
