//! Outbound numbers that jump ahead for a peer whose cluster has failed over.

use crate::world::{EPOCH, World};
use datapath::counter::Counter;
use datapath::limits::{Take, outbound_range, take};
use maps_schema::sad::spi_slot;
use model::{Epoch, Instant, OutboundUse};
use sad::{DataPlane, Direction};

const NOW: Instant = Instant::from_millis(2000);

#[test]
fn the_next_number_lies_above_the_jump_here_and_a_taker_begins_above_the_raised_lease() {
    let mut world = World::new(1);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let slot = spi_slot(spi.0);
    world.spend(spi, 3000, 0);
    let counters = world.plane.counters(slot).expect("it is there");
    let raise = world
        .sad
        .advance(spi, 10_000, NOW, EPOCH, &counters)
        .expect("numbers are left");
    assert_eq!((raise.limits.floor, raise.limits.limit), (13_000, 13_000 + 4096));
    assert!(world.raises(2001).is_empty(), "no other raise overtakes it");
    // Published once everybody has armed the lease.
    let plan = world.sad.apply_raise(&raise, NOW).expect("of this epoch");
    world.run(plan);
    let entry = world.sad.get(spi).expect("there");
    let counter = Counter::new(3000);
    let range = outbound_range(&entry.lease, 0, false, EPOCH.low16()).expect("of this epoch");
    assert_eq!(take(&counter, &range), Take::Number(13_001));
    // A standby heard of the lease alone.
    let mut standby = World::new(2);
    let named = |world: &World, direction| sad::NamedLimits {
        slot,
        spi: world.sad.raise_spi(&raise).expect("there"),
        direction,
        limit: raise.limits.limit,
        step: raise.limits.step,
    };
    let snapshot = world.sad.snapshot(NOW);
    let wanted = named(&world, Direction::Outbound);
    let mut before = snapshot;
    before[0].record.limits.lease = 4096;
    before[0].lease.floor = 0;
    let plan = standby.sad.restore(before, NOW).expect("it fits");
    standby.run(plan);
    let (plan, unknown) = standby.sad.arm(&[wanted], EPOCH, NOW);
    standby.run(plan);
    assert_eq!(unknown.expect("it takes them"), []);
    let lease = standby.sad.get(spi).expect("there").lease;
    let range = outbound_range(&lease, 0, true, EPOCH.low16() + 1).expect("a later epoch");
    assert_eq!(range.first, 13_000 + 4096 + 1);
}

#[test]
fn numbers_that_would_run_out_or_are_another_owners_are_not_raised() {
    let mut world = World::new(1);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let counters = world.plane.counters(spi_slot(spi.0)).expect("it is there");
    let far = datapath::limits::SEQUENCE_MAX_ESN - 10;
    assert!(world.sad.advance(spi, far, NOW, EPOCH, &counters).is_none());
    assert!(world.sad.advance(spi, u64::MAX, NOW, EPOCH, &counters).is_none());
    let next = Epoch(EPOCH.0 - 1);
    assert!(
        world.sad.advance(spi, 5, NOW, next, &counters).is_none(),
        "a stale epoch"
    );
    let plan = world.sad.taint([spi], &[Direction::Outbound], EPOCH);
    world.run(plan);
    assert!(world.sad.advance(spi, 5, NOW, EPOCH, &counters).is_none());
}
