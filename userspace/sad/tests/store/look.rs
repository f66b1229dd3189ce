//! One look at an SA, ages in order, and restoring many SAs in one plan.

use crate::world::{EPOCH, World, policy};
use maps_schema::sad::spi_slot;
use model::{ChildSaChange, EspSpi, Instant, OutboundUse};
use sad::lifetime::LifetimeKind;
use sad::{DataPlane, Direction, Limited, Look, MapOp};

fn look(world: &mut World, spi: EspSpi, ms: u64) -> Look {
    let slot = spi_slot(spi.0);
    let counters = world.plane.counters(slot).expect("slot exists");
    let look = world.sad.look(slot, Instant::from_millis(ms), EPOCH, &counters);
    look.expect("an SA is there")
}

#[test]
fn an_sa_that_carries_nothing_is_at_rest_at_once() {
    let mut world = World::new(1);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let seen = look(&mut world, spi, 2000);
    assert!(seen.at_rest);
    assert!(seen.raises.is_empty() && seen.lowering.is_none() && seen.due.is_none());
}

#[test]
fn an_sa_is_at_rest_only_when_its_rate_is_down_and_nothing_waits() {
    let mut world = World::new(1);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    look(&mut world, spi, 2000);
    world.spend(spi, 3000, 1);
    let seen = look(&mut world, spi, 2100);
    let directions = seen
        .raises
        .iter()
        .map(|raise| raise.direction)
        .collect::<Vec<_>>();
    assert_eq!(
        directions,
        [Direction::Outbound, Direction::Inbound],
        "half of each is used"
    );
    assert!(!seen.at_rest, "two wishes are under way");
    let repeated = look(&mut world, spi, 2500);
    assert_eq!(
        repeated.raises.len(),
        2,
        "they were lost: wished again without any packet"
    );
    for raise in &repeated.raises {
        let plan = world
            .sad
            .apply_raise(raise, Instant::from_millis(2510))
            .expect("same epoch");
        world.run(plan);
    }
    assert!(
        !look(&mut world, spi, 2600).at_rest,
        "the rate is still going down"
    );
    let rest = (0..40).position(|n| look(&mut world, spi, 2700 + n * 100).at_rest);
    assert!(rest.is_some_and(|n| n > 3), "{rest:?}");
}

#[test]
fn a_ceiling_that_is_to_come_down_keeps_an_sa_awake_until_it_has() {
    let mut world = World::new(1);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let slot = spi_slot(spi.0);
    let counters = world.plane.counters(slot).expect("slot exists");
    let early = Instant::from_millis(1000);
    let burst = world
        .sad
        .wants_raise(slot, Direction::Inbound, Some(50_000), early, EPOCH, &counters)
        .expect("above the ceiling");
    let plan = world.sad.apply_raise(&burst, early).expect("same epoch");
    world.run(plan);
    world.spend(spi, 0, 40_000);
    let mut lowered = 0;
    for ms in (1100..60_000).step_by(100) {
        let seen = look(&mut world, spi, ms);
        assert!(
            !seen.at_rest || lowered > 0,
            "at {ms} ms its ceiling lies far above"
        );
        if seen.at_rest {
            let room = world.sad.by_slot(slot).expect("installed").ceiling.limit - 40_000;
            assert!(room <= 32, "{room} numbers of room after {lowered} steps");
            return;
        }
        if let Some(lowering) = seen.lowering {
            lowered += 1;
            let plan = world
                .sad
                .apply_newest(&lowering, Instant::from_millis(ms))
                .expect("same epoch");
            world.run(plan);
        }
    }
    panic!("never at rest");
}

#[test]
fn a_counter_that_ran_past_its_first_limits_is_found_by_the_pass_that_compares() {
    let mut world = World::new(1);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let pass = |world: &World, limited| {
        let plane = &world.plane;
        let of = |_| Some((EPOCH, true));
        let caps = world.sad.cap_within(.., limited, of, |slot| plane.counters(slot));
        let caps = caps.into_iter();
        caps.map(|cap| (cap.direction, cap.limits.limit))
            .collect::<Vec<_>>()
    };
    world.spend(spi, 4096, 2);
    assert!(
        pass(&world, Limited::Compared).is_empty(),
        "both at their limits, not above"
    );
    world.spend(spi, 4096, 40);
    assert!(pass(&world, Limited::Skipped).is_empty());
    assert_eq!(pass(&world, Limited::Compared), [(Direction::Inbound, 42)]);
}

#[test]
fn numbers_make_a_lifetime_due_in_a_look_and_once_only() {
    let mut world = World::new(1);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    world.spend(spi, 1 << 39, 0);
    let due = look(&mut world, spi, 2000)
        .due
        .expect("half of the IV's space is used");
    assert_eq!((due.spi_in, due.kind), (spi, LifetimeKind::Soft));
    assert!(look(&mut world, spi, 2100).due.is_none());
    let mut by_age = |seconds: u64| {
        let plane = &world.plane;
        let now = Instant::from_millis(1000 + seconds * 1000);
        world
            .sad
            .due_by_age(now, 9, |_| true, |slot| plane.counters(slot))
    };
    assert!(by_age(3300).is_empty(), "soft was reported by number");
    assert_eq!(by_age(3600).len(), 1, "hard comes by age");
}

#[test]
fn ages_come_in_their_order_and_a_few_at_once() {
    let mut world = World::new(1);
    let spis = (0..5).map(|i| world.install(&format!("10.2.{i}.0-10.2.{i}.255"), OutboundUse::Now, None));
    let spis = spis.collect::<Vec<_>>();
    world.apply(ChildSaChange::Remove { spi_in: spis[0] });
    let by_age = |world: &mut World, seconds: u64, owned: bool| {
        let plane = &world.plane;
        let now = Instant::from_millis(1000 + seconds * 1000);
        let due = world
            .sad
            .due_by_age(now, 3, |_| owned, |slot| plane.counters(slot));
        due.into_iter()
            .map(|due| (due.spi_in, due.kind))
            .collect::<Vec<_>>()
    };
    assert!(by_age(&mut world, 2900, true).is_empty());
    assert!(by_age(&mut world, 3240, false).is_empty(), "another member's");
    let first = by_age(&mut world, 3240, true);
    assert_eq!(first.len(), 3);
    let second = by_age(&mut world, 3240, true);
    assert_eq!(second.len(), 1, "one was removed");
    let mut all = first
        .iter()
        .chain(&second)
        .map(|(spi, _)| *spi)
        .collect::<Vec<_>>();
    all.sort_unstable();
    assert_eq!(all, spis[1..]);
    assert!(by_age(&mut world, 3500, true).is_empty(), "each once");
    let hard = by_age(&mut world, 3600, true);
    assert_eq!(
        hard.iter().map(|(_, kind)| *kind).collect::<Vec<_>>(),
        [LifetimeKind::Hard; 3]
    );
}

#[test]
fn a_restored_sa_keeps_its_age() {
    let mut owner = World::new(1);
    let spi = owner.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let entry = owner.sad.get(spi).expect("installed");
    let old = entry.snapshot(Instant::from_millis(1000 + 3_000_000));
    let mut joiner = World::new(2);
    let now = Instant::from_millis(500_000);
    let plan = joiner.sad.restore_some(vec![old], now).expect("restores");
    joiner.run(plan);
    let by_age = |joiner: &mut World, seconds: u64| {
        let plane = &joiner.plane;
        let now = Instant::from_millis(500_000 + seconds * 1000);
        joiner
            .sad
            .due_by_age(now, 9, |_| true, |slot| plane.counters(slot))
            .len()
    };
    // Uptime here is shorter than the SA is old; the age counts from where this host's clock begins.
    assert_eq!(by_age(&mut joiner, 1), 0);
    assert_eq!(by_age(&mut joiner, 3240 - 500), 1);
}

#[test]
fn many_sas_are_restored_by_one_plan_that_writes_each_policy_entry_once() {
    let now = Instant::from_millis(2000);
    let mut owner = World::new(1);
    let policies = vec![policy("net", "10.2.0.0-10.2.0.255")];
    owner.configure(policies.clone());
    for _ in 0..7 {
        owner.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    }
    let later = owner.install("10.2.0.0-10.2.0.255", OutboundUse::Later, None);
    let mut joiner = World::new(2);
    joiner.configure(policies);
    for round in 0..2 {
        let plan = joiner
            .sad
            .restore_some(owner.sad.snapshot(now), now)
            .expect("restores");
        let names = plan.ops.iter().map(MapOp::name).collect::<Vec<_>>();
        let count = |name: &str| names.iter().filter(|n| **n == name).count();
        assert_eq!(count("put inbound key"), 8, "{names:?}");
        assert!(count("put policy") <= 1, "round {round}: {names:?}");
        let last_key = names.iter().rposition(|n| n.ends_with("key")).expect("keys");
        let first_record = names.iter().position(|n| n.ends_with("SA")).expect("records");
        assert!(last_key < first_record, "keys before records");
        joiner.run(plan);
        assert_eq!(joiner.plane.spd, owner.plane.spd, "round {round}");
        for entry in owner.sad.iter() {
            let there = joiner.sad.get(entry.record.spi_in).expect("restored");
            assert_eq!(there.outbound_in_use, entry.outbound_in_use);
            assert_eq!(
                joiner.plane.records(entry.slot()).map(|(i, _)| i.spi),
                Some(entry.record.spi_in.0)
            );
        }
    }
    assert!(!joiner.sad.get(later).expect("restored").outbound_in_use);
}
