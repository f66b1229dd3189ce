//! What of an SA stays for a moment after it was removed, and what ends it (ADR 26).

use crate::world::{EPOCH, SEGMENT, World, context, policy, record};
use maps_schema::sad::{SA_ESN, SA_LOCAL_ONLY, SaKey, spi_slot};
use maps_schema::segment::{LEGACY_GIVEN, LEGACY_HOLDING, LEGACY_OPEN, SideWord};
use maps_schema::spd::{ACTION_PROTECT, ACTION_TRAP};
use model::{ChildSaChange, ChildSaRecord, Epoch, EspSpi, IkeSpi, Instant, MemberId, OutboundUse, SegmentId};
use sad::lifetime::{LifetimeKind, Lifetimes};
use sad::{DataPlane, Direction, LINGER, LingerUpTo, MapOp, Policy, Sad, SadError, Settings, may_linger_on};
use std::time::Duration;

const NETWORK: &str = "10.2.0.0-10.2.0.255";
const T0: Instant = Instant::from_millis(1000);

fn world() -> World {
    let mut world = World::new(1);
    world.configure(vec![policy("net", NETWORK)]);
    world
}

fn remove(world: &mut World, spi: EspSpi, up_to: LingerUpTo) -> Vec<&'static str> {
    let plan = world.sad.remove_lingering(spi, T0, up_to).expect("is there");
    let names = plan.ops.iter().map(MapOp::name).collect();
    world.run(plan);
    names
}

/// Inbound and outbound SPI in a slot, inbound flags, and whether there are keys.
fn slot(world: &World, slot: u32) -> ((u32, u32), u8, [bool; 2]) {
    let (inbound, outbound) = world.plane.records(slot).expect("slot exists");
    let at = slot as usize;
    let is_key = |key: &SaKey| key.spi != 0 || key.schedule.iter().any(|word| *word != 0);
    let keys = [&world.plane.keys_in[at], &world.plane.keys_out[at]].map(is_key);
    ((inbound.spi, outbound.spi), inbound.flags, keys)
}

fn end(world: &mut World, at: Instant) -> Vec<&'static str> {
    let plan = world.sad.end_lingering(at, 64);
    let names = plan.ops.iter().map(MapOp::name).collect();
    world.run(plan);
    names
}

#[test]
fn the_way_out_ends_at_once_and_the_way_in_a_moment_later() {
    let mut world = world();
    let old = world.install(NETWORK, OutboundUse::Now, None);
    let new = world.install(NETWORK, OutboundUse::Now, Some(old));
    let at = spi_slot(old.0);
    let names = remove(&mut world, old, LingerUpTo::End);
    assert_eq!(names.last_chunk(), Some(&["clear outbound SA", "put flags"]));
    // No member that could take over has the SA: there is no ceiling.
    assert_eq!(
        slot(&world, at),
        ((old.0, 0), SA_ESN | SA_LOCAL_ONLY, [true, false])
    );
    assert_eq!(world.lookup("10.2.0.9"), Some((ACTION_PROTECT, spi_slot(new.0))));
    // It is gone for everybody who asks: lists, snapshots, the next life, rounds.
    assert!(world.sad.get(old).is_none() && world.sad.by_slot(at).is_none());
    assert_eq!((world.sad.len(), world.sad.snapshot(T0).len()), (1, 1));
    let full = world.sad.full_plan().expect("a plan");
    let of_old = |op: &&MapOp| matches!(op, MapOp::PutInbound { slot, .. } if *slot == at);
    assert_eq!(full.ops.iter().filter(of_old).count(), 0);
    let change = ChildSaChange::Remove { spi_in: old };
    let again = world.sad.apply(&change, context(false));
    assert!(matches!(again, Err(SadError::Unknown(spi)) if spi == old));

    let due = T0 + LINGER;
    assert_eq!(world.sad.lingering_due(), Some(due));
    assert!(end(&mut world, T0 + (LINGER - Duration::from_millis(1))).is_empty());
    assert_eq!(world.sad.lingering().count(), 1);
    assert_eq!(end(&mut world, due), ["clear slot"]);
    assert_eq!(slot(&world, at), ((0, 0), 0, [false, false]));
    assert_eq!(
        (world.sad.lingering_due(), world.sad.lingering().count()),
        (None, 0)
    );

    world.apply(ChildSaChange::Remove { spi_in: new });
    assert_eq!(world.lookup("10.2.0.9"), Some((ACTION_TRAP, 0)));
}

#[test]
fn the_ceiling_stays_where_somebody_else_serves_above_it_or_may_have() {
    let mut world = world();
    let handed_over = world.install(NETWORK, OutboundUse::Now, None);
    let tainted = world.install(NETWORK, OutboundUse::Now, None);
    let open = world.install(NETWORK, OutboundUse::Now, None);
    let plan = world.sad.taint([tainted], &[Direction::Inbound], EPOCH);
    world.run(plan);
    remove(&mut world, handed_over, LingerUpTo::Ceiling);
    remove(&mut world, tainted, LingerUpTo::End);
    remove(&mut world, open, LingerUpTo::End);
    for (spi, below) in [(handed_over, true), (tainted, true), (open, false)] {
        let (_, flags, _) = slot(&world, spi_slot(spi.0));
        assert_eq!(flags & SA_LOCAL_ONLY == 0, below, "{spi}");
        assert_eq!(world.sad.lingers_below_ceiling(spi_slot(spi.0)), below, "{spi}");
    }
    assert!(!world.sad.lingers_below_ceiling(99), "an empty slot");
}

#[test]
fn nothing_outlives_a_hard_limit() {
    let lifetimes = Lifetimes {
        soft: Duration::from_secs(5),
        hard: Duration::from_millis(10_300),
        hard_packets: 100,
        ..Lifetimes::NONE
    };
    let mut world = World::new(1);
    world.configure(vec![Policy {
        lifetimes: Some(lifetimes),
        ..policy("net", NETWORK)
    }]);
    let old = world.install(NETWORK, OutboundUse::Now, None);
    let used_up = world.install(NETWORK, OutboundUse::Now, None);
    // Both were made at T0. One carries all that it may.
    world.plane.runtime[spi_slot(used_up.0) as usize].inbound.packets = 100;
    let plane = &world.plane;
    let due = world.sad.due(T0, |slot| plane.counters(slot));
    assert!(
        matches!(&due[..], [one] if one.spi_in == used_up && one.kind == LifetimeKind::Hard),
        "{due:?}"
    );
    let late = T0 + Duration::from_secs(10);
    let plan = world
        .sad
        .remove_lingering(old, late, LingerUpTo::End)
        .expect("is there");
    world.run(plan);
    assert_eq!(world.sad.lingering_due(), Some(T0 + lifetimes.hard));
    remove(&mut world, used_up, LingerUpTo::End);
    assert_eq!(slot(&world, spi_slot(used_up.0)), ((0, 0), 0, [false, false]));
    let aged = world.install(NETWORK, OutboundUse::Now, None);
    let end_of_life = T0 + lifetimes.hard;
    let plan = world.sad.remove_lingering(aged, end_of_life, LingerUpTo::End);
    world.run(plan.expect("is there"));
    assert_eq!(world.sad.lingering().count(), 1, "the first one only");
}

#[test]
fn a_slot_is_not_given_out_while_something_lingers_in_it_unless_there_is_no_other() {
    let settings = Settings {
        member: MemberId(1),
        max_slots: 512,
        cpus: 2,
        first_generation: 1,
        outside_mtu: 1500,
        detection: Duration::from_millis(100),
        lifetimes: Lifetimes::default(),
    };
    let mut world = world();
    world.sad = Sad::new(settings);
    let first = world.install(NETWORK, OutboundUse::Now, None);
    remove(&mut world, first, LingerUpTo::End);
    let second = world.install(NETWORK, OutboundUse::Now, None);
    assert_ne!(spi_slot(first.0), spi_slot(second.0));
    // The segment has two slots. The third SA's SPI is another one, and until it comes the first one's way in stays.
    let third = world.sad.reserve_spi(SEGMENT).expect("what lingers gives way");
    assert_eq!(spi_slot(first.0), spi_slot(third.0));
    assert_ne!(first, third);
    assert_eq!(slot(&world, spi_slot(first.0)).0, (first.0, 0));
    assert_eq!(world.sad.reserve_spi(SEGMENT), None, "both are taken");
    let names = world.apply(ChildSaChange::Install {
        record: Box::new(record(third, NETWORK)),
        outbound: OutboundUse::Now,
        replaces: None,
    });
    assert_eq!(names.first_chunk(), Some(&["clear slot", "reset runtime"]));
    assert_eq!(slot(&world, spi_slot(third.0)).0.0, third.0);
    assert!(end(&mut world, T0 + LINGER).is_empty(), "it is gone already");
    assert_eq!(slot(&world, spi_slot(third.0)).0.0, third.0);
    assert_eq!(
        world.sad.reserve_spi(SEGMENT),
        None,
        "and its slot was freed once"
    );
}

#[test]
fn an_exchange_that_comes_to_nothing_leaves_what_lingers_to_its_time() {
    let mut world = world();
    let spi = world.install(NETWORK, OutboundUse::Now, None);
    remove(&mut world, spi, LingerUpTo::End);
    // Another member's SA for the same slot, refused for its keys: nothing has changed.
    let other = EspSpi(0x0910_0000 | spi_slot(spi.0));
    let mut broken = record(other, NETWORK);
    broken.key_in = model::SecretBytes::new(vec![1; 3]);
    let install = |record| ChildSaChange::Install {
        record: Box::new(record),
        outbound: OutboundUse::Now,
        replaces: None,
    };
    let refused = world.sad.apply(&install(broken), context(false));
    assert!(matches!(refused, Err(SadError::KeyLength { .. })));
    assert_eq!(slot(&world, spi_slot(spi.0)).0, (spi.0, 0));
    // The whole one takes its place, also out of a snapshot.
    let mut twin = world.sad.snapshot(T0);
    assert!(twin.is_empty());
    let mut elsewhere = self::world();
    elsewhere.apply(install(record(other, NETWORK)));
    twin.extend(elsewhere.sad.snapshot(T0));
    let plan = world.sad.restore_some(twin, T0).expect("restores");
    world.run(plan);
    assert_eq!(slot(&world, spi_slot(spi.0)).0.0, other.0);
    assert_eq!(slot(&world, spi_slot(spi.0)).2, [true, true]);
    assert!(end(&mut world, T0 + LINGER).is_empty());
}

#[test]
fn what_lingers_ends_with_the_service_of_its_segment() {
    let mut world = world();
    let spi = world.install(NETWORK, OutboundUse::Now, None);
    remove(&mut world, spi, LingerUpTo::End);
    let plan = world
        .sad
        .end_lingering_of(|segment| segment == SegmentId(SEGMENT.0 + 1));
    assert!(plan.is_empty(), "another segment");
    let plan = world.sad.end_lingering_of(|segment| segment == SEGMENT);
    world.run(plan);
    assert_eq!(slot(&world, spi_slot(spi.0)), ((0, 0), 0, [false, false]));
    let spi = world.install(NETWORK, OutboundUse::Now, None);
    remove(&mut world, spi, LingerUpTo::End);
    let plan = world.sad.clear();
    world.run(plan);
    assert_eq!(slot(&world, spi_slot(spi.0)), ((0, 0), 0, [false, false]));
    assert_eq!(world.sad.lingering().count(), 0);
}

const ME: MemberId = MemberId(1);
const OTHER: MemberId = MemberId(2);
const THIRD: MemberId = MemberId(3);

#[test]
fn only_who_serves_an_sa_lets_its_way_in_linger() {
    let side = |owner: MemberId, phase| SideWord {
        legacy_owner: owner.0,
        legacy_phase: phase,
        ..SideWord::default()
    };
    let quiet = SideWord::default();
    assert_eq!(LingerUpTo::at(ME, Some(ME), quiet), Some(LingerUpTo::End));
    assert_eq!(LingerUpTo::at(ME, Some(OTHER), quiet), None, "a standby");
    assert_eq!(LingerUpTo::at(ME, None, quiet), None, "nobody's");
    let gives = LingerUpTo::at(ME, Some(OTHER), side(ME, LEGACY_OPEN));
    assert_eq!(gives, Some(LingerUpTo::Ceiling), "the taker serves what is above");
    assert_eq!(LingerUpTo::at(ME, Some(OTHER), side(ME, LEGACY_GIVEN)), None);
    for phase in [LEGACY_OPEN, LEGACY_HOLDING] {
        let takes = LingerUpTo::at(ME, Some(ME), side(OTHER, phase));
        assert_eq!(takes, Some(LingerUpTo::End));
        assert_eq!(LingerUpTo::at(ME, Some(OTHER), side(THIRD, phase)), None);
    }
}

#[test]
fn what_lingers_does_not_outlive_the_epoch_in_which_it_was_served() {
    let (mine, others) = ((Some(ME), Epoch(5)), (Some(OTHER), Epoch(6)));
    assert!(may_linger_on(ME, mine, (ME, Epoch(5)), None), "another flag");
    assert!(!may_linger_on(ME, mine, (ME, Epoch(6)), None), "another epoch");
    assert!(!may_linger_on(ME, mine, (OTHER, Epoch(6)), None), "taken over");
    // Open, then given.
    assert!(
        may_linger_on(ME, mine, (OTHER, Epoch(6)), Some(ME)),
        "handed over"
    );
    assert!(may_linger_on(ME, others, (OTHER, Epoch(6)), Some(ME)));
    assert!(!may_linger_on(ME, others, (OTHER, Epoch(6)), None), "for good");
    // It takes, or comes back: what might linger is of a time before the other member's.
    assert!(!may_linger_on(ME, others, (ME, Epoch(7)), Some(OTHER)));
    assert!(!may_linger_on(ME, others, (ME, Epoch(7)), None));
    assert!(!may_linger_on(ME, others, (THIRD, Epoch(7)), Some(OTHER)));
}

/// What differs in the record of another SA.
type Changed = fn(&mut ChildSaRecord);

#[test]
fn an_sa_is_protected_otherwise_where_one_of_another_ike_sa_that_stays_does_the_same() {
    let mut world = world();
    let old = world.install(NETWORK, OutboundUse::Now, None);
    let stays = |_: IkeSpi| false;
    assert!(!world.sad.is_protected_otherwise(old, stays), "it is alone");
    let sibling = world.install(NETWORK, OutboundUse::Now, None);
    assert!(!world.sad.is_protected_otherwise(old, stays), "it ends as well");
    world.apply(ChildSaChange::Remove { spi_in: sibling });

    let put = |world: &mut World, change: Changed| {
        let spi = world.sad.reserve_spi(SEGMENT).expect("a free slot");
        let mut record = record(spi, NETWORK);
        record.ike_spi = IkeSpi(record.ike_spi.0 + 1);
        change(&mut record);
        world.apply(ChildSaChange::Install {
            record: Box::new(record.clone()),
            outbound: OutboundUse::Now,
            replaces: None,
        });
        record
    };
    let others: [(&str, Changed); 4] = [
        ("another peer", |record| {
            record.remote.set_ip([203, 0, 113, 99].into())
        }),
        ("another connection", |record| record.connection.push('x')),
        ("another child", |record| record.child.push('x')),
        ("less traffic", |record| {
            record.ts_remote[0].last = [10, 2, 0, 127].into()
        }),
    ];
    for (what, change) in others {
        let other = put(&mut world, change);
        assert!(!world.sad.is_protected_otherwise(old, stays), "{what}");
        world.apply(ChildSaChange::Remove { spi_in: other.spi_in });
    }
    // The peer's port may be another one.
    let new = put(&mut world, |record| record.remote.set_port(4501));
    assert!(world.sad.is_protected_otherwise(old, stays));
    let ends = |of: IkeSpi| of == new.ike_spi;
    assert!(!world.sad.is_protected_otherwise(old, ends), "both end at once");
    assert!(
        !world.sad.is_protected_otherwise(EspSpi(1), stays),
        "nobody has it"
    );
}
