//! One-way loss on every link: an owner that is heard and hears nobody, and members that nobody hears.

use crate::register::Shape;
use crate::world::World;
use cluster::io::EventKind;
use cluster::{Solo, Standing};
use model::GroupId;

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

/// Within this time after the last confirmed heartbeat another member serves: the threshold (100 ms), three heartbeats more,
/// one that was under way, the claim.
const SERVED_WITHIN_MS: u64 = 220;

fn formed(shape: Shape) -> World {
    let mut world = World::of(3, shape);
    world.run_until(3000, "a cluster forms", |w| w.settled(A));
    world.run(1000);
    world.propose(A, b"sa");
    world.run(10);
    world
}

/// Nothing reaches a member any more, not even what the engine answers.
fn deafen(world: &mut World, deaf: usize) {
    let others = (0..world.members.len()).filter(|m| *m != deaf);
    world.one_way = others.map(|m| (m, deaf)).collect();
    world.register.unheard = vec![deaf];
}

/// Nothing that a member says reaches another one.
fn silence(world: &mut World, mute: usize) {
    let others = (0..world.members.len()).filter(|m| *m != mute);
    world.one_way = others.map(|m| (mute, m)).collect();
}

fn heal(world: &mut World) {
    world.one_way.clear();
    world.register.unheard.clear();
}

fn is_deaf(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Deaf { .. })
}

#[test]
fn an_owner_that_hears_nobody_is_taken_over_under_an_engine_and_yields_when_it_hears_again() {
    for members in [2, 3] {
        let mut world = formed(Shape::engine(members));
        deafen(&mut world, A);
        // It cannot be committed by an owner that hears no acknowledgement.
        world.propose(A, b"stuck");
        let others: Vec<usize> = (1..usize::from(members)).collect();
        world.run_until(SERVED_WITHIN_MS, "another member serves", |w| {
            others.iter().any(|m| w.serves(*m))
        });
        let taker = others.iter().copied().find(|m| world.serves(*m)).expect("serves");
        assert!(world.saw(taker, is_deaf));
        let token = world.members[taker].groups[0].committed.len();
        world.propose(taker, b"new");
        world.run_until(100, "commits go on", |w| {
            w.members[taker].groups[0].committed.len() > token
        });
        let record = world.register.records[&GroupId(0)].clone();
        assert!(record.in_sync.iter().all(|m| m.member.0 != 1), "{record:?}");
        assert_eq!(
            world.members[taker].standing(),
            Some(if members == 3 {
                Standing::WithStandby
            } else {
                Standing::AloneTaker
            })
        );
        world.run(3000);
        heal(&mut world);
        world.run_until(3000, "the old owner has joined", |w| w.settled(taker));
        assert_eq!(
            world.members[A].groups[0].mirror, world.members[taker].groups[0].mirror,
            "{members} members"
        );
    }
}

/// Its write of a smaller set would be done, and nobody could claim any more.
#[test]
fn a_deaf_owner_leaves_the_record_alone() {
    let mut world = formed(Shape::engine(3));
    let before = world.register.history.len();
    deafen(&mut world, A);
    // The others sleep, so that nobody claims.
    (world.members[B].paused, world.members[C].paused) = (true, true);
    world.run(3000);
    assert_eq!(world.register.history.len(), before);
    // One whose standbys are lost, and that hears the engine, goes on alone.
    world.register.unheard.clear();
    world.run_until(1500, "it goes on alone", |w| {
        w.members[A].standing() == Some(Standing::AloneTaker)
    });
}

#[test]
fn a_standby_that_nobody_hears_takes_nothing_over() {
    let mut world = formed(Shape::engine(3));
    silence(&mut world, B);
    world.propose(A, b"more");
    world.run_until(250, "B leaves the set", |w| {
        w.register.records[&GroupId(0)].in_sync.len() == 2
    });
    world.run(3000);
    assert!(world.serves(A) && world.register.records[&GroupId(0)].epoch.number.0 == 1);
    assert!(!world.saw(B, is_deaf) && !world.saw(C, is_deaf));
    heal(&mut world);
    world.run_until(3000, "B has joined", |w| w.settled(A));
}

/// The engine is slow to carry out that B is excluded: B hears that C does not hear it either, and blames nobody.
#[test]
fn a_standby_that_nobody_hears_takes_nothing_over_while_the_engine_is_slow() {
    let mut world = formed(Shape::engine(3));
    world.register.delay = 400;
    silence(&mut world, B);
    world.run(2000);
    assert!(world.serves(A) && world.register.records[&GroupId(0)].epoch.number.0 == 1);
    assert!(!world.saw(B, is_deaf), "{}", world.tell());
}

/// Of two members nobody can say which one is at fault. The owner goes on, commits after it has missed its standby, and says so to it.
#[test]
fn the_owner_of_a_pair_that_may_go_on_alone_does_and_its_standby_joins_anew() {
    let mut world = formed(Shape::pair(Solo::Continue));
    deafen(&mut world, A);
    world.propose(A, b"more");
    world.run_until(150, "it goes on alone", |w| {
        w.members[A].groups[0].committed.len() == 2
    });
    assert_eq!(world.members[A].standing(), Some(Standing::AloneUnfenced));
    world.run(20);
    assert!(world.saw(B, |kind| matches!(kind, EventKind::WasExcluded)));
    world.run(3000);
    assert!(world.serves(A) && !world.serves(B));
    assert!(!world.saw(B, is_deaf));
    heal(&mut world);
    world.run_until(3000, "B has joined", |w| w.settled(A));
    assert_eq!(world.members[B].epoch().number.0, 1, "nobody took over");
}

/// The connections to an owner that hears nothing are given up in the end, and made anew once it hears again. Its first heartbeats
/// then confirm what they confirmed last: that was long ago, and means nothing any more.
#[test]
fn an_owner_that_is_heard_again_is_given_time_to_confirm() {
    for phase in 0..20 {
        let mut world = formed(Shape::pair(Solo::Continue));
        deafen(&mut world, A);
        world.run(2500 + phase);
        world.isolated = vec![A];
        world.run(700);
        world.isolated.clear();
        heal(&mut world);
        // Streams are there at once, datagrams are slow: A's next heartbeats confirm nothing.
        world.delay = 40;
        world.run_until(3000, "B has joined", |w| w.settled(A));
        world.run(500);
        assert!(!world.saw(B, is_deaf), "phase {phase}\n{}", world.tell());
        assert!(world.serves(A));
    }
}

/// Under `solo = "stop"` the owner's words expire, since nobody confirms them; the standby sees that and takes over, after that.
#[test]
fn the_owner_of_a_pair_that_may_not_go_on_alone_is_taken_over_and_never_at_the_same_time() {
    let mut world = formed(Shape::pair(Solo::Stop));
    deafen(&mut world, A);
    for _ in 0..SERVED_WITHIN_MS {
        world.run(1);
        assert!(
            !(world.serves(A) && world.serves(B)),
            "both serve\n{}",
            world.tell()
        );
    }
    assert!(world.serves(B), "{}", world.tell());
    assert!(world.saw(B, is_deaf));
    world.propose(B, b"new");
    world.run(20);
    assert_eq!(world.members[B].groups[0].committed.len(), 1);
    heal(&mut world);
    world.run_until(3000, "A has joined", |w| w.settled(B));
}

/// A link that is lost in one direction only, while the other link works, is no deafness; and neither is a pause of either.
#[test]
fn pauses_and_lossy_links_pass_for_no_deafness() {
    for shape in [
        Shape::pair(Solo::Continue),
        Shape::pair(Solo::Stop),
        Shape::engine(3),
    ] {
        let mut world = formed(shape);
        for member in [A, B] {
            world.members[member].paused = true;
            world.run(85);
            world.members[member].paused = false;
            world.run(500);
        }
        (world.loss, world.delay) = (40, 15);
        world.run(5000);
        (world.loss, world.delay) = (0, 0);
        world.run(3000);
        for member in 0..world.members.len() {
            assert!(!world.saw(member, is_deaf), "{}", world.tell());
        }
    }
}
