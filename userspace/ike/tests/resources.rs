//! Per-resource Child SAs between two engines (RFC 9611).

mod world;

use ike::{Command, Connection, EventKind, Resource};
use ike_wire::{Message, NotifyType};
use model::{EspSpi, MemberId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use world::*;

fn resource(member: u8, cpu: u16) -> Resource {
    Resource {
        member: MemberId(member),
        cpu,
    }
}

/// Two members with two CPUs each.
fn four() -> Vec<Resource> {
    [(1, 0), (1, 1), (2, 0), (2, 1)]
        .map(|(member, cpu)| resource(member, cpu))
        .into()
}

fn world_with(seed: u64, adjust: impl Fn(usize, &mut Connection)) -> World {
    let mut world = World::with(seed, |side, connection| {
        connection.resources = four();
        connection.retransmit.initial = Duration::from_millis(500);
        adjust(side, connection);
    });
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    world
}

fn create(world: &mut World, side: usize, resource: Resource) {
    let beside = any_shared(world, side);
    world.command(side, Command::CreateResourceChild { beside, resource });
    world.settle();
}

/// The Child SA that all CPUs may use, or an SPI that is none.
fn any_shared(world: &World, side: usize) -> EspSpi {
    let children = world.only(side).children;
    let shared = children.iter().find(|child| child.resource.is_none());
    shared.map_or(EspSpi(1), |child| child.spi_in)
}

/// How many Child SAs each resource of a side has; `None`: the one that all may use.
fn spread(world: &World, side: usize) -> BTreeMap<Option<Resource>, usize> {
    let mut spread = BTreeMap::new();
    for child in world.only(side).children {
        *spread.entry(child.resource).or_default() += 1;
    }
    spread
}

/// The Child SA that all CPUs may use.
fn first(world: &World, side: usize) -> EspSpi {
    let sa = world.only(side);
    let mut general = sa.children.iter().filter(|child| child.resource.is_none());
    let first = general.next().expect("one that all may use");
    assert!(general.next().is_none());
    first.spi_in
}

#[test]
fn every_resource_gets_a_child_sa_with_the_same_selectors_and_keys_of_its_own() {
    let mut world = world_with(1, |_, _| {});
    let general = [first(&world, A), first(&world, B)];
    for resource in four() {
        create(&mut world, A, resource);
    }
    world.assert_up(5);
    let all_once: BTreeMap<_, _> = four()
        .into_iter()
        .map(Some)
        .chain([None])
        .map(|r| (r, 1))
        .collect();
    assert_eq!(spread(&world, A), all_once);
    assert_eq!(
        spread(&world, B),
        all_once,
        "the peer puts each on the resource with the fewest"
    );
    for side in [A, B] {
        let children: Vec<_> = world.sides[side].children.values().collect();
        let keys: BTreeSet<_> = children
            .iter()
            .map(|child| child.key_in.expose().to_vec())
            .collect();
        assert_eq!(keys.len(), 5);
        let selectors: BTreeSet<_> = children
            .iter()
            .map(|child| format!("{:?}", (&child.ts_local, child.suite)))
            .collect();
        assert_eq!(selectors.len(), 1);
        // Policies still use the one that every CPU may use.
        assert_eq!(world.sides[side].outbound["c"], general[side]);
        // One is shared, the others are bound to their CPUs and in use there.
        let shared = BTreeSet::from([general[side]]);
        assert_eq!(world.sides[side].shared, shared);
        let bound = &world.sides[side].bound;
        assert!(bound.len() == 4 && bound.values().all(|used| *used), "{bound:?}");
        // The SPI of each was reserved by the member that serves it.
        for child in world.only(side).children {
            assert_eq!(
                world.sides[side].around.on_resource.get(&child.spi_in).copied(),
                child.resource
            );
        }
    }
    // A second one for the same resource is not asked for.
    create(&mut world, A, resource(1, 0));
    assert_eq!(spread(&world, A), all_once);
}

#[test]
fn both_sides_may_ask_at_once() {
    let mut world = world_with(3, |_, _| {});
    for (mine, theirs) in four().into_iter().zip(four().into_iter().rev()) {
        for (side, resource) in [(A, mine), (B, theirs)] {
            let beside = first(&world, side);
            world.command(side, Command::CreateResourceChild { beside, resource });
        }
        world.settle();
    }
    let sa = world.only(A);
    assert!((5..=9).contains(&sa.children.len()), "{}", sa.children.len());
    world.assert_up(sa.children.len());
    assert_eq!(spread(&world, A).len(), 5, "no resource is without");
}

#[test]
fn two_sides_with_traffic_on_all_cpus_at_once_end_up_with_one_for_each() {
    let cpus = [resource(0, 0), resource(0, 1)];
    for reversed in [false, true] {
        let mut world = world_with(12, |_, connection| connection.resources = cpus.into());
        let beside = [first(&world, A), first(&world, B)];
        for at in [0, 1] {
            let theirs = if reversed { 1 - at } else { at };
            for (side, resource) in [(A, cpus[at]), (B, cpus[theirs])] {
                let beside = beside[side];
                world.command(side, Command::CreateResourceChild { beside, resource });
            }
        }
        world.settle();
        for side in [A, B] {
            let spread = spread(&world, side);
            let one_each = cpus.into_iter().map(Some).chain([None]).map(|r| (r, 1));
            assert_eq!(spread, one_each.collect(), "reversed: {reversed}");
        }
    }
}

#[test]
fn twice_as_many_as_there_are_cpus_and_then_ts_max_queue() {
    let mut world = world_with(4, |side, connection| {
        // A has many CPUs, B one.
        connection.resources = if side == A {
            (0..10).map(|cpu| resource(1, cpu)).collect()
        } else {
            vec![resource(1, 0)]
        };
    });
    for cpu in 0..10 {
        create(&mut world, A, resource(1, cpu));
    }
    world.assert_up(3);
    assert_eq!(
        spread(&world, B),
        BTreeMap::from([(None, 1), (Some(resource(1, 0)), 2)])
    );
    let refusals: Vec<_> = world.sides[A]
        .events
        .iter()
        .filter(|event| event.kind == EventKind::ChildFailed)
        .collect();
    assert_eq!(refusals.len(), 8);
    assert!(
        refusals.iter().all(|event| event.text.contains("TS_MAX_QUEUE")),
        "{}",
        refusals[0].text
    );
    // Other children are not concerned: the first one can be rekeyed, one that is deleted makes room.
    let spi_in = world
        .only(A)
        .children
        .iter()
        .find(|child| child.resource.is_some())
        .unwrap()
        .spi_in;
    world.command(A, Command::DeleteChild { spi_in });
    world.settle();
    world.assert_up(2);
    create(&mut world, A, resource(1, 9));
    world.assert_up(3);
}

#[test]
fn a_member_without_reserved_spis_says_ts_max_queue_too() {
    let mut world = world_with(5, |_, _| {});
    world.sides[B].around.reserved = 0;
    create(&mut world, A, resource(1, 0));
    world.assert_up(1);
    assert!(
        world
            .event(A, EventKind::ChildFailed)
            .text
            .contains("TS_MAX_QUEUE")
    );
    world.sides[A].around.reserved = 0;
    create(&mut world, A, resource(1, 1));
    assert!(world.has_event(A, EventKind::Trouble));
    world.assert_up(1);
}

#[test]
fn a_rekey_by_either_side_stays_on_the_resource() {
    for who in [A, B] {
        let mut world = world_with(6, |_, _| {});
        for resource in four() {
            create(&mut world, A, resource);
        }
        let (before, general) = ([spread(&world, A), spread(&world, B)], first(&world, who));
        let children = world.only(who).children;
        for child in children {
            world.command(who, Command::RekeyChild { spi_in: child.spi_in });
            world.settle();
            assert_eq!([spread(&world, A), spread(&world, B)], before);
        }
        world.assert_up(5);
        for side in [A, B] {
            let bound = &world.sides[side].bound;
            assert!(
                bound.len() == 4 && bound.values().all(|used| *used),
                "the old ones are gone, and the new ones in use on both sides: {bound:?}"
            );
            assert_eq!(world.sides[side].shared.len(), 1);
        }
        assert_ne!(first(&world, who), general);
        assert_eq!(
            world.sides[who].outbound["c"],
            first(&world, who),
            "policies follow the general one only"
        );
        assert_eq!(world.sides[1 - who].outbound["c"], first(&world, 1 - who));
        // And there may be more beside the rekeyed one.
        let spi_in = world
            .only(A)
            .children
            .iter()
            .find(|child| child.resource == Some(resource(2, 1)))
            .unwrap()
            .spi_in;
        world.command(A, Command::DeleteChild { spi_in });
        world.settle();
        create(&mut world, A, resource(2, 1));
        assert_eq!([spread(&world, A), spread(&world, B)], before);
    }
}

/// Both sides take the same Child SA for the first one, and their policies use it.
fn assert_agreed_on_first(world: &World) {
    let of = |side: usize| {
        let first = first(world, side);
        let children = world.only(side).children;
        let child = children.into_iter().find(|child| child.spi_in == first);
        child.expect("it is one of them")
    };
    assert_eq!((of(A).spi_in, of(A).spi_out), (of(B).spi_out, of(B).spi_in));
    for side in [A, B] {
        assert_eq!(world.sides[side].outbound["c"], of(side).spi_in);
    }
}

fn ask_for_first(world: &mut World, side: usize) {
    let (connection, child) = ("t".into(), "c".into());
    world.command(side, Command::CreateChild { connection, child });
}

/// The first one's deletion by B crosses A's request for a further one (simulation, seed 50002749).
#[test]
fn while_the_first_one_is_being_deleted_further_ones_are_put_off() {
    for windows in [1, 4] {
        let mut world = world_with(13, |_, connection| connection.window = windows);
        let (of_a, of_b) = (first(&world, A), first(&world, B));
        world.command(B, Command::DeleteChild { spi_in: of_b });
        let further = resource(1, 1);
        world.command(
            A,
            Command::CreateResourceChild {
                beside: of_a,
                resource: further,
            },
        );
        world.settle();
        ask_for_first(&mut world, A);
        world.settle();
        let refused = world.event(B, EventKind::ChildFailed);
        assert!(refused.text.contains("it will ask again"), "{}", refused.text);
        assert_agreed_on_first(&world);
        // It asks again, and there is a first one now.
        world.pass(Duration::from_secs(5));
        world.assert_up(2);
        assert_agreed_on_first(&world);
        assert_eq!(spread(&world, A), BTreeMap::from([(None, 1), (Some(further), 1)]));
    }
}

/// As above, but the request is on its way until the deletion is over: it is one for a first one to B, which A cannot know.
#[test]
fn a_further_one_whose_first_is_gone_when_the_answer_comes_is_deleted_again() {
    for windows in [1, 4] {
        let mut world = world_with(15, |_, connection| connection.window = windows);
        let (of_a, of_b) = (first(&world, A), first(&world, B));
        world.command(
            A,
            Command::CreateResourceChild {
                beside: of_a,
                resource: resource(1, 1),
            },
        );
        let late = world.net.pop_back().expect("the request");
        world.command(B, Command::DeleteChild { spi_in: of_b });
        world.settle();
        assert!(world.only(A).children.is_empty() && world.only(B).children.is_empty());
        // The policies want one again, at once.
        ask_for_first(&mut world, A);
        world.deliver(late);
        world.settle();
        let gone = world.event(A, EventKind::ChildFailed);
        assert!(gone.text.contains("this one goes, too"), "{}", gone.text);
        world.assert_up(1);
        assert_agreed_on_first(&world);
    }
}

#[test]
fn a_new_first_one_does_not_overtake_the_deletion_of_the_old_one() {
    let mut world = world_with(16, |_, connection| connection.window = 4);
    world.pass(Duration::from_secs(1));
    create(&mut world, A, resource(1, 0));
    let old = first(&world, A);
    world.command(A, Command::DeleteChild { spi_in: old });
    ask_for_first(&mut world, A);
    // The Delete alone, though there is room for more.
    assert_eq!(world.net.len(), 1);
    world.settle();
    world.assert_up(2);
    assert_ne!(first(&world, A), old);
    assert_agreed_on_first(&world);
}

#[test]
fn a_takeover_at_any_point_keeps_every_child_sa_on_its_resource() {
    for taken in [A, B] {
        for at in 0..6 {
            let mut world = world_with(7, |_, _| {});
            create(&mut world, A, resource(1, 1));
            let command = Command::CreateResourceChild {
                beside: first(&world, A),
                resource: resource(2, 0),
            };
            world.command(A, command);
            let spi_in = first(&world, B);
            world.command(B, Command::RekeyChild { spi_in });
            for _ in 0..at {
                world.step();
            }
            world.take_over(taken);
            world.pass(Duration::from_secs(30));
            world.assert_up(3);
            let expected = BTreeMap::from([(None, 1), (Some(resource(1, 1)), 1), (Some(resource(2, 0)), 1)]);
            assert_eq!(spread(&world, A), expected, "{taken} {at}\n{}", world.story());
            let spi = world.only(A).spi;
            world.command(A, Command::RekeyIke { spi });
            world.pass(Duration::from_secs(1));
            assert_eq!(spread(&world, A), expected, "they move with the IKE SA's rekey");
            create(&mut world, A, resource(1, 0));
            world.assert_up(4);
        }
    }
}

#[test]
fn a_peer_that_does_not_want_any_is_not_asked() {
    for side_without in [A, B] {
        let mut world = world_with(8, |side, connection| {
            if side == side_without {
                connection.resources.clear();
            }
        });
        let sent = world.sides[A].sent.len();
        create(&mut world, A, resource(1, 0));
        world.assert_up(1);
        assert_eq!(world.sides[A].sent.len(), sent);
        assert!(world.has_event(A, EventKind::CommandFailed));
    }
    let clear = |world: &World| {
        let sent = world.sides[A].sent.iter();
        sent.filter_map(|bytes| Message::parse(bytes).ok())
            .any(|message| message.payloads.notify(NotifyType::SA_RESOURCE_INFO).is_some())
    };
    assert!(!clear(&world_with(9, |_, _| {})), "never in clear");
}

#[test]
fn other_algorithms_than_those_of_the_first_are_not_offered_and_not_accepted() {
    let mut world = world_with(10, |_, connection| {
        connection.children[0].esp_proposals = esp("aes256gcm16-chacha20poly1305");
    });
    create(&mut world, A, resource(1, 0));
    world.assert_up(2);
    let suites: BTreeSet<_> = world.sides[A]
        .children
        .values()
        .map(|child| format!("{:?}", child.suite))
        .collect();
    assert_eq!(suites.len(), 1);
    // A's configuration changes, so that it asks for something else: B refuses.
    let mut config = world.sides[A].engine.config().clone();
    config.connections[0].children[0].esp_proposals = esp("chacha20poly1305");
    world.sides[A].engine.set_config(config);
    create(&mut world, A, resource(1, 1));
    world.assert_up(3);
    let suites: BTreeSet<_> = world.sides[A]
        .children
        .values()
        .map(|child| format!("{:?}", child.suite))
        .collect();
    assert_eq!(suites.len(), 1, "the first one's, whatever is configured now");
}

#[test]
fn without_the_first_child_sa_or_for_an_unknown_resource_nothing_is_begun() {
    let mut world = world_with(11, |_, _| {});
    create(&mut world, A, resource(9, 9));
    assert!(
        world
            .event(A, EventKind::CommandFailed)
            .text
            .contains("member 9 CPU 9")
    );
    let spi_in = first(&world, A);
    world.command(A, Command::DeleteChild { spi_in });
    world.settle();
    world.sides[A].events.clear();
    create(&mut world, A, resource(1, 0));
    assert!(world.has_event(A, EventKind::CommandFailed));
    world.assert_up(0);
    // The agent's Initiate brings the first one back, whatever else is up.
    world.initiate(A);
    world.settle();
    create(&mut world, A, resource(1, 0));
    world.assert_up(2);
    let spi_in = first(&world, A);
    world.command(A, Command::DeleteChild { spi_in });
    world.settle();
    world.initiate(A);
    world.settle();
    assert!(first(&world, A) != spi_in);
}

#[test]
fn what_the_peer_asks_for_goes_to_members_that_can_take_it() {
    let mut world = world_with(13, |_, _| {});
    let away = [resource(1, 0), resource(1, 1)];
    world.sides[B].around.gone = away.into();
    for (member, cpu) in [(1, 0), (1, 1), (2, 0)] {
        create(&mut world, A, resource(member, cpu));
    }
    let at_b = spread(&world, B);
    assert!(
        away.iter().all(|away| !at_b.contains_key(&Some(*away))),
        "{at_b:?}"
    );
    assert_eq!(at_b.values().sum::<usize>(), 4);
    world.sides[B].around.gone = four().into_iter().collect();
    create(&mut world, A, resource(2, 1));
    world.assert_up(4);
    assert!(
        world
            .event(A, EventKind::ChildFailed)
            .text
            .contains("TS_MAX_QUEUE")
    );
}

#[test]
fn a_child_sa_for_a_member_that_is_gone_is_deleted_when_it_would_be_rekeyed() {
    let mut world = world_with(14, |_, _| {});
    for resource in four() {
        create(&mut world, A, resource);
    }
    world.sides[A].around.gone = [resource(2, 1)].into();
    let children = world.only(A).children;
    let of = |resource| {
        children
            .iter()
            .find(|child| child.resource == Some(resource))
            .unwrap()
            .spi_in
    };
    for gone in [resource(2, 1), resource(2, 0)] {
        world.command(A, Command::RekeyChild { spi_in: of(gone) });
        world.settle();
    }
    world.assert_up(5);
    assert!(
        world
            .only(A)
            .children
            .iter()
            .any(|child| child.spi_in == of(resource(2, 1))),
        "it may be back"
    );
    world.pass(Duration::from_secs(60));
    world.assert_up(4);
    let left = spread(&world, A);
    assert_eq!(left.get(&Some(resource(2, 1))), None);
    assert_eq!(
        left.get(&Some(resource(2, 0))),
        Some(&1),
        "the others are rekeyed as ever"
    );
    // It is back, and gets a new one.
    world.sides[A].around.gone.clear();
    create(&mut world, A, resource(2, 1));
    world.assert_up(5);
}
