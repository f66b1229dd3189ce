//! One group of segments at a time, and long work in parts.

use crate::world::{EPOCH, SEGMENT, World, policy, record};
use maps_schema::sad::spi_slot;
use maps_schema::spd::ACTION_PROTECT;
use model::{ChildSaChange, EspSpi, IkeSpi, Instant, OutboundUse, SegmentId};
use sad::{DataPlane, Direction, SadError};

/// A Child SA in another segment than [`SEGMENT`].
/// With an IKE SA of the same segment.
fn install_in(world: &mut World, segment: SegmentId, remote: &str) -> EspSpi {
    let spi = world.sad.reserve_spi(segment).expect("slots are free");
    let mut record = record(spi, remote);
    record.ike_spi = IkeSpi(u64::from(segment.0) << 56 | 1);
    world.apply(ChildSaChange::Install {
        record: Box::new(record),
        outbound: OutboundUse::Now,
        replaces: None,
    });
    spi
}

#[test]
fn one_group_is_restored_and_cleared_and_the_others_stay() {
    // Two groups: even and odd segments.
    let even = |segment: SegmentId| segment.0.is_multiple_of(2);
    let now = Instant::from_millis(2000);
    let mut owner = World::new(1);
    let mine = owner.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let other = install_in(&mut owner, SegmentId(5), "10.3.0.0-10.3.0.255");
    let snapshot = owner.sad.snapshot_where(even, now);
    assert_eq!(snapshot.len(), 1);

    let mut joiner = World::new(2);
    let stale = joiner.install("10.8.0.0-10.8.0.255", OutboundUse::Now, None);
    let kept = install_in(&mut joiner, SegmentId(7), "10.9.0.0-10.9.0.255");
    joiner.spend(kept, 77, 7);
    let plan = joiner
        .sad
        .restore_where(even, snapshot.clone(), now)
        .expect("restores");
    joiner.run(plan);
    assert!(joiner.sad.get(stale).is_none() && joiner.sad.get(mine).is_some());
    assert!(joiner.sad.get(kept).is_some() && joiner.sad.get(other).is_none());
    assert_eq!(
        joiner.lookup("10.2.0.1"),
        Some((ACTION_PROTECT, spi_slot(mine.0)))
    );
    assert_eq!(
        joiner.lookup("10.9.0.1"),
        Some((ACTION_PROTECT, spi_slot(kept.0)))
    );

    // What is of another group is refused as a whole, and nothing has changed.
    let foreign = owner.sad.snapshot(now);
    let refused = joiner.sad.restore_where(even, foreign, now);
    assert!(matches!(refused, Err(SadError::Foreign(spi)) if spi == other));
    assert!(joiner.sad.get(mine).is_some() && joiner.sad.get(kept).is_some());

    let plan = joiner.sad.clear_where(even);
    joiner.run(plan);
    assert!(joiner.sad.get(mine).is_none());
    let counters = joiner.plane.counters(spi_slot(kept.0)).expect("slot");
    assert_eq!(counters.outbound.seq, 77, "the other group is untouched");
}

#[test]
fn a_snapshot_taken_and_restored_in_parts_is_the_same() {
    let now = Instant::from_millis(2000);
    let mut owner = World::new(1);
    let policies = vec![policy("net", "10.2.0.0-10.2.0.255")];
    owner.configure(policies.clone());
    let old = owner.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let new = owner.install("10.2.0.0-10.2.0.255", OutboundUse::Now, Some(old));
    let mut parts = Vec::new();
    for spi in [new, old] {
        let entry = owner.sad.get(spi).expect("installed");
        parts.push((entry.switched(), entry.snapshot(now)));
    }
    parts.sort_by_key(|(switched, _)| *switched);
    let mut joiner = World::new(2);
    joiner.configure(policies);
    let plan = joiner.sad.forget([old, new]);
    assert!(plan.is_empty(), "nothing is there yet");
    for (_, part) in parts {
        let plan = joiner.sad.restore_some(vec![part], now).expect("restores");
        joiner.run(plan);
    }
    assert_eq!(joiner.plane.spd, owner.plane.spd);
    assert_eq!(joiner.lookup("10.2.0.1"), Some((ACTION_PROTECT, spi_slot(new.0))));
}

#[test]
fn a_round_in_parts_sees_every_sa_once() {
    let mut world = World::new(1);
    let spis = (0..5).map(|i| world.install(&format!("10.2.{i}.0-10.2.{i}.255"), OutboundUse::Now, None));
    let spis = spis.collect::<Vec<_>>();
    for spi in &spis {
        world.spend(*spi, 3000, 1);
    }
    let middle = spi_slot(spis[2].0);
    let plane = &world.plane;
    let mut seen = Vec::new();
    for slots in [0..=middle, middle + 1..=u32::MAX] {
        let part = world.sad.wants_raises_within(
            slots,
            Instant::from_millis(2000),
            |_| Some(EPOCH),
            |slot| plane.counters(slot),
        );
        seen.extend(
            part.iter()
                .filter(|r| r.direction == Direction::Outbound)
                .map(|r| r.spi),
        );
    }
    seen.sort_unstable();
    let mut all = spis.clone();
    all.sort_unstable();
    assert_eq!(seen, all);
    let none = world.sad.wants_raises_within(
        ..,
        Instant::from_millis(9000),
        |_| None,
        |slot| plane.counters(slot),
    );
    assert!(none.is_empty(), "segments of another owner are left alone");
}

#[test]
fn the_sas_of_a_connection_are_counted_by_segment() {
    let mut world = World::new(1);
    world.configure(vec![policy("net", "10.2.0.0-10.2.0.255")]);
    let first = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    install_in(&mut world, SegmentId(9), "10.2.0.0-10.2.0.255");
    let counts = |world: &World| world.sad.children_of("branch").collect::<Vec<_>>();
    assert_eq!(counts(&world), [(SEGMENT, 2), (SegmentId(9), 1)]);
    world.apply(ChildSaChange::Remove { spi_in: first });
    assert_eq!(counts(&world), [(SEGMENT, 1), (SegmentId(9), 1)]);
    let snapshot = world.sad.snapshot(Instant::from_millis(1));
    let plan = world
        .sad
        .restore(snapshot, Instant::from_millis(2))
        .expect("restores");
    world.run(plan);
    assert_eq!(counts(&world), [(SEGMENT, 1), (SegmentId(9), 1)]);
    assert_eq!(world.sad.children_of("nobody").count(), 0);
}
