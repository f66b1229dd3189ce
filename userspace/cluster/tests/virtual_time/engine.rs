//! Two and three members with an external ownership engine: claims, exclusions and moves are committed there first.

use crate::register::Shape;
use crate::world::World;
use cluster::io::{EventKind, LegacyPhase};
use cluster::message::{BRIEF_SINCE, OLDEST, VERSION};
use cluster::{Command, Direction, Solo, Standing};
use model::{GroupId, MemberId};

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

fn three() -> World {
    let mut world = World::of(1, Shape::engine(3));
    world.run_until(3000, "three members form a cluster", |w| w.settled(A));
    world.propose(A, b"sa");
    world.run(10);
    world
}

fn record(world: &World) -> (u64, u8, usize) {
    let record = &world.register.records[&GroupId(0)];
    (record.epoch.number.0, record.epoch.owner.0, record.in_sync.len())
}

#[test]
fn the_preferred_member_begins_and_the_engine_knows_everybody_who_is_in_sync() {
    let world = three();
    assert_eq!(record(&world), (1, 1, 3));
    for standby in [B, C] {
        assert_eq!(world.members[standby].groups[0].mirror, [b"sa".to_vec()]);
        assert!(!world.serves(standby));
    }
    assert!(world.serves(A));
}

#[test]
fn an_entry_waits_for_every_standby() {
    let mut world = three();
    world.one_way = vec![(C, A)];
    world.propose(A, b"more");
    world.run(50);
    assert_eq!(
        world.members[A].groups[0].committed.len(),
        1,
        "C has not acknowledged it"
    );
    assert_eq!(world.members[B].groups[0].mirror.len(), 2);
    world.run_until(500, "C is silent and leaves the set", |w| record(w).2 == 2);
    world.run(5);
    assert_eq!(world.members[A].groups[0].committed.len(), 2);
    assert!(world.serves(A));
}

#[test]
fn one_survivor_takes_over_and_the_other_follows_without_a_snapshot() {
    let mut world = three();
    world.run(3000);
    let killed = world.now;
    world.kill(A);
    world.run_until(400, "takeover", |w| w.serves(B) || w.serves(C));
    let took = world.now.since(killed).as_millis();
    assert!((75..=160).contains(&took), "took {took} ms");
    let (taker, other) = if world.serves(B) { (B, C) } else { (C, B) };
    world.run_until(200, "the other one follows", |w| w.settled(taker));
    assert_eq!(world.members[other].groups[0].discards, 0);
    assert_eq!(world.members[taker].groups[0].mirror, [b"sa".to_vec()]);
    assert_eq!(world.members[taker].standing(), Some(Standing::WithStandby));
    world.propose(taker, b"new");
    world.run(5);
    assert_eq!(
        world.members[other].groups[0].mirror,
        [b"sa".to_vec(), b"new".to_vec()]
    );
    assert_eq!(world.members[taker].groups[0].committed, [b"new".to_vec()]);
    // And once more: the last one is fenced by the engine, so it has no upper limits.
    world.kill(taker);
    world.run_until(400, "the last one takes over", |w| w.serves(other));
    assert_eq!(world.members[other].standing(), Some(Standing::AloneTaker));
    assert_eq!(world.members[other].groups[0].mirror.len(), 2);
}

#[test]
fn a_survivor_that_lags_takes_a_snapshot_and_the_taker_serves_without_waiting_long() {
    let mut world = three();
    world.one_way = vec![(A, B)];
    world.propose(A, b"B lacks this");
    world.run(5);
    world.kill(A);
    world.one_way.clear();
    world.run_until(600, "takeover", |w| w.serves(B) || w.serves(C));
    let taker = if world.serves(B) { B } else { C };
    world.run_until(2000, "the other one has joined", |w| w.settled(taker));
    assert_eq!(
        world.members[B].groups[0].mirror, world.members[C].groups[0].mirror,
        "whatever the taker held"
    );
}

#[test]
fn limits_that_one_survivor_has_and_the_other_lacks_are_stated_anew_before_anybody_serves() {
    for lacking in [B, C] {
        let mut world = three();
        world.raise(A, 1, Direction::Outbound, 100);
        world.run(30);
        world.one_way = vec![(A, lacking)];
        world.raise(A, 1, Direction::Outbound, 200);
        world.run(3);
        let has = |w: &World, index: usize| w.members[index].groups[0].limits[&(1, true)];
        assert_eq!(has(&world, lacking), 100);
        assert_eq!(has(&world, B + C - lacking), 200);
        assert_eq!(has(&world, A), 100, "not acknowledged by all, so not in use");
        world.kill(A);
        world.one_way.clear();
        world.run_until(600, "takeover", |w| w.serves(B) || w.serves(C));
        assert_eq!(has(&world, B), has(&world, C), "C or B lacked it: {lacking}");
        assert!(has(&world, B) > 100);
        let restated: usize = world.members.iter().map(|m| m.restated).sum();
        assert_eq!(restated, 1);
    }
}

#[test]
fn of_two_claims_the_engine_lets_one_win() {
    for delay in 0..40 {
        let mut world = World::of(delay + 1, Shape::engine(3));
        world.run_until(3000, "three members form a cluster", |w| w.settled(A));
        world.register.delay = delay;
        world.kill(A);
        // They do not hear each other either: both believe to be the last one.
        world.one_way = vec![(B, C), (C, B)];
        world.run(800);
        let owners = [B, C].iter().filter(|i| world.members[**i].is_owner()).count();
        assert_eq!(owners, 1, "engine delay {delay} ms");
        let mut epochs: Vec<_> = world.register.history.iter().map(|(_, r)| r.epoch).collect();
        epochs.dedup();
        let numbers: Vec<u64> = epochs.iter().map(|e| e.number.0).collect();
        assert!(
            numbers.windows(2).all(|w| w[0] < w[1]),
            "an epoch has one owner: {epochs:?}"
        );
    }
}

#[test]
fn a_silent_engine_stops_no_traffic_and_no_acknowledged_change() {
    let mut world = three();
    world.register.down = true;
    for _ in 0..20 {
        world.propose(A, b"x");
        world.raise(A, 3, Direction::Inbound, world.now.millis());
        world.run(100);
        assert!(world.serves(A));
    }
    assert_eq!(world.members[A].groups[0].committed.len(), 21);
}

#[test]
fn a_silent_engine_and_a_lost_standby_stop_what_needs_a_new_acknowledgement_and_say_so() {
    let mut world = three();
    world.register.down = true;
    world.kill(C);
    world.run(1000);
    assert!(world.serves(A), "traffic within the limits goes on");
    world.propose(A, b"waits");
    world.run(1000);
    assert_eq!(world.members[A].groups[0].committed.len(), 1);
    assert!(world.saw(A, |e| matches!(e, EventKind::EngineSilent { .. })));
    assert!(world.members[A].node.status().engine_silent.is_some());
    assert!(world.members[A].status().engine_waits);
    world.register.down = false;
    world.run_until(1000, "it goes on", |w| {
        w.members[A].groups[0].committed.len() == 2
    });
    assert!(world.saw(A, |e| matches!(e, EventKind::EngineBack)));
    assert_eq!(record(&world), (1, 1, 2));
}

#[test]
fn a_takeover_waits_for_the_engine_and_happens_when_it_is_back() {
    let mut world = three();
    world.register.down = true;
    world.kill(A);
    world.run(2000);
    assert!(!world.serves(B) && !world.serves(C), "nobody serves by guess");
    world.register.down = false;
    world.run_until(1000, "takeover", |w| w.serves(B) || w.serves(C));
}

#[test]
fn a_claim_whose_answer_is_lost_is_found_out_by_reading() {
    for seed in 1..60 {
        let mut world = World::of(seed, Shape::engine(3));
        world.run_until(3000, "three members form a cluster", |w| w.settled(A));
        world.register.forgets = 70;
        world.kill(A);
        world.run_until(3000, "takeover", |w| w.serves(B) || w.serves(C));
        let taker = if world.serves(B) { B } else { C };
        world.restart(A);
        world.run_until(8000, "everybody is back", |w| w.settled(taker));
        let history: Vec<_> = world.register.history.iter().map(|(_, r)| r.epoch).collect();
        assert!(
            history.windows(2).all(|w| w[0] <= w[1]),
            "seed {seed}: {history:?}"
        );
    }
}

#[test]
fn an_owner_that_was_paused_finds_out_that_it_was_replaced() {
    let mut world = three();
    world.members[A].paused = true;
    world.run_until(600, "takeover", |w| w.serves(B) || w.serves(C));
    let taker = if world.serves(B) { B } else { C };
    world.run(2000);
    world.members[A].paused = false;
    world.run_until(2000, "it has joined", |w| w.settled(taker));
    assert!(world.saw(A, |e| matches!(e, EventKind::ForkLost { .. })));
    assert_eq!(world.members[A].groups[0].discards, 1);
    assert_eq!(world.members[taker].groups[0].discards, 0);
}

#[test]
fn an_owner_that_restarts_is_replaced_at_once() {
    let mut world = three();
    world.kill(A);
    world.restart(A);
    world.run_until(60, "takeover without waiting for silence", |w| {
        w.serves(B) || w.serves(C)
    });
    let taker = if world.serves(B) { B } else { C };
    world.run_until(3000, "it has joined", |w| w.settled(taker));
    assert_eq!(record(&world).2, 3);
}

#[test]
fn a_joiner_is_asked_while_the_engine_writes_it_in() {
    // The entry of C is written, but the owner does not know yet. What is committed meanwhile C knows too.
    let mut world = three();
    world.kill(C);
    world.run_until(1000, "C is out", |w| record(w).2 == 2);
    world.restart(C);
    world.register.delay = 40;
    world.run_until(3000, "C is written in", |w| record(w).2 == 3);
    assert!(
        world.members[A].status().in_sync.is_some_and(|s| s.len() == 2),
        "A has not heard of it"
    );
    world.one_way = vec![(A, C)];
    world.propose(A, b"late");
    world.run(10);
    assert_eq!(
        world.members[A].groups[0].committed,
        [b"sa".to_vec()],
        "C has to acknowledge it"
    );
}

/// Found by random trouble (seed 5): the snapshot's position was the last one written, and what waited for the other standby
/// was in neither snapshot nor tail.
#[test]
fn a_snapshot_does_not_swallow_entries_that_wait_for_another_standby() {
    let mut world = three();
    world.kill(C);
    world.run_until(1000, "C is out", |w| record(w).2 == 2);
    world.one_way = vec![(B, A)];
    world.propose(A, b"waits for B");
    world.restart(C);
    world.run(60);
    world.one_way.clear();
    world.run_until(4000, "all in sync", |w| w.settled(A));
    world.run(50);
    for member in &world.members {
        assert_eq!(member.groups[0].mirror.last(), Some(&b"waits for B".to_vec()));
    }
}

#[test]
fn a_joiner_that_is_slow_with_its_snapshot_stalls_no_raise_and_misses_none() {
    let mut world = three();
    world.raise(A, 1, Direction::Outbound, 100);
    world.run(10);
    world.kill(C);
    world.run_until(1000, "C is out", |w| record(w).2 == 2);
    world.restart(C);
    world.members[C].slow_snapshot = true;
    world.run(600);
    for limit in [200, 300] {
        world.raise(A, 1, Direction::Outbound, limit);
        world.run(5);
        assert_eq!(
            world.members[A].groups[0].limits[&(1, true)],
            limit,
            "B has acknowledged it"
        );
    }
    assert_eq!(
        world.members[C].groups[0].limits[&(1, true)],
        100,
        "the snapshot's"
    );
    world.release(C);
    world.run_until(1000, "C is in sync", |w| w.settled(A));
    assert_eq!(world.members[C].groups[0].limits[&(1, true)], 300);
}

#[test]
fn a_joiner_that_never_arms_its_snapshot_makes_room_for_another() {
    let mut world = three();
    world.kill(B);
    world.kill(C);
    world.run_until(1000, "A is alone", |w| record(w).2 == 1);
    world.restart(B);
    world.members[B].slow_snapshot = true;
    world.run(500);
    world.restart(C);
    world.run(5000);
    assert_eq!(record(&world).2, 1, "one joins after the other");
    world.run_until(40_000, "C is in sync", |w| record(w).2 == 2);
}

#[test]
fn a_member_that_everybody_has_forgotten_does_not_claim() {
    let mut world = three();
    world.isolated = vec![C];
    world.run_until(1000, "C is out", |w| record(w).2 == 2);
    world.kill(A);
    world.kill(B);
    world.run(2000);
    assert!(!world.serves(C), "C is not in the set");
    assert_eq!(
        world.members[C].groups[0].mirror.len(),
        0,
        "and holds nothing that could be served"
    );
    // A and B come back empty: nobody is left who may claim, and everybody knows it.
    world.isolated.clear();
    world.restart(A);
    world.restart(B);
    world.run_until(5000, "a new beginning", |w| w.settled(A));
    assert!(record(&world).0 > 1);
}

#[test]
fn a_lost_set_waits_for_an_operator() {
    let mut world = three();
    world.kill(B);
    world.kill(C);
    world.run_until(1000, "A is alone", |w| record(w).2 == 1);
    world.kill(A);
    world.restart(B);
    world.run(5000);
    assert!(!world.serves(B), "A may be serving where B cannot see it");
    assert!(world.saw(B, |e| matches!(e, EventKind::Orphaned { .. })));
    world.command(B, Command::StartOver { group: None });
    world.run_until(1000, "a new beginning", |w| w.serves(B));
    assert_eq!(world.members[B].epoch().number.0, 2);
}

#[test]
fn while_the_engine_writes_a_move_everything_goes_on_and_the_taker_has_it_all() {
    let mut world = three();
    world.register.delay = 300;
    world.take_over(A, 3);
    world.run(50);
    world.propose(A, b"more");
    world.raise(A, 1, Direction::Outbound, 100);
    world.run(30);
    assert!(world.serves(A), "the engine has not answered");
    assert_eq!(
        world.members[A].groups[0].committed,
        [b"sa".to_vec(), b"more".to_vec()]
    );
    assert_eq!(world.members[A].groups[0].limits[&(1, true)], 100);
    world.run_until(1000, "the move", |w| w.settled(C));
    assert_eq!(record(&world), (2, 3, 3));
    assert_eq!(
        world.members[C].groups[0].mirror,
        [b"sa".to_vec(), b"more".to_vec()]
    );
    assert_eq!(world.members[C].groups[0].limits[&(1, true)], 100);
}

#[test]
fn an_old_owner_passes_everything_on_until_somebody_else_owns_the_group() {
    let mut world = three();
    let given = |w: &World, index: usize| {
        let flip = w.members[index].groups[0].flip.as_ref();
        flip.and_then(|f| f.legacy)
            .is_some_and(|l| l.phase == LegacyPhase::Given)
    };
    world.take_over(A, 3);
    world.run_until(1000, "the first move", |w| w.settled(C));
    world.run(1000);
    assert!(given(&world, A) && !given(&world, B) && !given(&world, C));
    world.take_over(C, 2);
    world.run_until(1000, "the second move", |w| w.settled(B));
    assert!(given(&world, C) && !given(&world, A) && !given(&world, B));
}

#[test]
fn a_planned_takeover_is_written_first_and_nobody_takes_a_snapshot() {
    let mut world = three();
    world.take_over(A, 3);
    for _ in 0..150 {
        world.run(1);
        let legacy = |i: usize| {
            world.members[i].groups[0]
                .flip
                .as_ref()
                .is_some_and(cluster::io::Flip::in_handover)
        };
        assert!(
            world.serves(A) || world.serves(C) || legacy(A),
            "somebody serves at {:?}",
            world.now
        );
    }
    assert!(world.settled(C));
    assert_eq!(record(&world), (2, 3, 3));
    for member in &world.members {
        assert_eq!(member.groups[0].discards, 0);
        assert_eq!(member.groups[0].mirror, [b"sa".to_vec()]);
    }
    assert!(world.saw(C, |e| matches!(e, EventKind::HandoverDone { .. })));
    world.kill(C);
    world.run_until(400, "takeover from the taker", |w| w.serves(A) || w.serves(B));
}

#[test]
fn any_of_three_that_dies_in_a_planned_takeover_leaves_somebody_serving_who_knows_everything() {
    for victim in [A, B, C] {
        for after in 0..60 {
            let mut world = three();
            world.take_over(A, 2);
            world.run(after);
            world.kill(victim);
            world.run_until(3500, "somebody serves", |w| (0..3).any(|i| w.serves(i)));
            world.run(2500);
            let serving: Vec<usize> = (0..3).filter(|i| world.serves(*i)).collect();
            assert_eq!(
                serving.len(),
                1,
                "victim {victim} after {after} ms: {serving:?}\n{}",
                world.tell()
            );
            assert_eq!(
                world.members[serving[0]].groups[0].mirror,
                [b"sa".to_vec()],
                "victim {victim} after {after} ms"
            );
            assert!(world.members[serving[0]].groups[0].resumed > 0);
        }
    }
}

#[test]
fn a_planned_takeover_waits_out_a_silent_engine_or_is_given_up() {
    let mut world = three();
    world.register.down = true;
    world.take_over(A, 2);
    world.run(500);
    assert!(world.serves(A), "the old owner serves on");
    world.register.down = false;
    world.run_until(3000, "it happens", |w| w.settled(B));
}

#[test]
fn a_member_in_trouble_hands_over_and_takes_nothing() {
    let mut world = three();
    world.health(A, Some("no program on eth0"));
    world.run_until(1500, "it hands over", |w| {
        w.members[B].is_owner() || w.members[C].is_owner()
    });
    let owner = if world.members[B].is_owner() { B } else { C };
    world.run_until(2000, "done", |w| w.settled(owner));
    // The other fit member takes over from it, not the one in trouble.
    world.kill(owner);
    world.run_until(500, "takeover", |w| w.serves(B + C - owner));
}

#[test]
fn a_drained_member_gets_nothing_back_until_it_is_undrained() {
    let mut world = three();
    world.command(A, Command::Drain);
    world.run_until(2000, "drained", |w| {
        !w.members[A].is_owner() && (w.settled(B) || w.settled(C))
    });
    world.command(B, Command::Rebalance);
    world.run(1000);
    assert!(!world.members[A].is_owner());
    world.command(A, Command::Undrain);
    world.run(100);
    world.command(A, Command::Rebalance);
    world.run_until(1000, "home again", |w| w.settled(A));
}

/// The old owner has just written a lost member out of the set when it hands the group over: the taker has not heard of that.
#[test]
fn a_planned_takeover_right_after_an_exclusion_leaves_an_owner_that_can_change_its_set() {
    for pause in 0..24 {
        let mut world = three();
        let owner = (0..3).find(|m| world.members[*m].is_owner()).expect("an owner");
        let (to, lost) = ((owner + 1) % 3, (owner + 2) % 3);
        world.kill(lost);
        world.run_until(1000, "it is written out", |w| {
            w.saw(owner, |kind| matches!(kind, EventKind::Excluded { .. }))
        });
        world.run(pause);
        world.take_over(owner, to as u8 + 1);
        world.run_until(3000, "handed over", |w| w.settled(to));
        world.restart(lost);
        world.run_until(5000, "and it changes its set", |w| w.settled(to));
    }
}

#[test]
fn members_of_two_formats_work_together_and_an_upgrade_one_by_one_loses_nothing() {
    for old in OLDEST..VERSION {
        upgraded_from(old);
    }
}

fn upgraded_from(old: u8) {
    let mut world = World::of(1, Shape::engine(3));
    for index in [A, B, C] {
        world.members[index].node.speak_at_most(old);
    }
    world.relink();
    world.run_until(3000, "a cluster of the old format", |w| w.settled(A));
    let mut entries = 0u64;
    let mut owner = A;
    for upgraded in [C, B, A] {
        if owner == upgraded {
            world.command(owner, Command::Drain);
            world.run_until(2000, "drained", |w| w.settled(B) || w.settled(C));
            owner = if world.members[B].is_owner() { B } else { C };
        }
        world.kill(upgraded);
        world.restart(upgraded);
        world.run_until(3000, "the upgraded member is in sync", |w| w.settled(owner));
        for _ in 0..5 {
            entries += 1;
            world.propose(owner, &entries.to_be_bytes());
            world.run(10);
        }
        let whole = (1..=entries).map(|n| n.to_be_bytes().to_vec());
        assert_eq!(
            world.members[upgraded].groups[0].mirror,
            whole.collect::<Vec<_>>()
        );
        // Entries are brief for whoever reads that, from whoever writes it.
        let brief = owner != A || old >= BRIEF_SINCE;
        assert_eq!(world.members[upgraded].briefs > 0, brief, "{old}, {upgraded}");
        // The pairs that are both upgraded speak the new format.
        let formats: Vec<u8> = (0..3)
            .flat_map(|i| world.members[i].node.status().peers)
            .map(|p| p.speaks)
            .collect();
        let upgraded_pairs = formats.iter().filter(|v| **v == VERSION).count();
        assert_eq!(
            upgraded_pairs,
            [0, 2, 6][[C, B, A]
                .iter()
                .position(|m| *m == upgraded)
                .expect("one of them")]
        );
        // What all must be able to read is written when the last one is upgraded, and not before.
        let all = world.members.iter().map(|m| m.node.all_speak(VERSION));
        assert_eq!(all.collect::<Vec<_>>(), [upgraded == A; 3], "{old}");
    }
}

#[test]
fn the_same_id_twice_is_noticed() {
    let mut world = three();
    world.run(6000);
    // An agent with an older life and the same id goes on speaking.
    let twin = cluster::message::Message {
        from: cluster::SetMember {
            member: MemberId(2),
            incarnation: model::Incarnation(1),
        },
        body: cluster::message::Body::Rebalance,
    };
    world.garbage(A, twin.encode(cluster::message::VERSION));
    assert!(world.saw(A, |e| matches!(e, EventKind::Twin(MemberId(2)))));
    assert!(world.settled(A));
}

/// B's mirror is not what A takes it for: B says so instead of guessing, and has a new one long before anybody would have missed
/// its acknowledgement. Nothing that was proposed is lost, and B is not one that may take over in between.
#[test]
fn a_standby_that_cannot_read_an_entry_joins_anew_at_once() {
    for shape in [Shape::engine(3), Shape::pair(Solo::Continue)] {
        let mut world = World::of(1, shape);
        world.run_until(3000, "a cluster", |w| w.settled(A));
        world.propose(A, b"one");
        world.run(10);
        world.members[B].misfit = true;
        world.propose(A, b"two");
        world.run(3);
        assert!(!world.members[B].misfit, "it came");
        world.run_until(600, "B is in sync again", |w| w.settled(A));
        world.propose(A, b"three");
        world.run(10);
        let all = [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()];
        for member in &world.members {
            assert_eq!(member.groups[0].mirror, all);
        }
        assert_eq!(world.members[A].groups[0].committed, all);
        assert_eq!(world.members[A].refused, 0);
        let joins = world.members[A]
            .events
            .iter()
            .filter(|event| matches!(&event.kind, EventKind::Joining(m) if m.member == MemberId(2)));
        assert_eq!(joins.count(), 2, "the first time, and anew");
    }
}
