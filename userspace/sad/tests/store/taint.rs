//! SAs that a lost standby knew.

use crate::world::{EPOCH, World};
use maps_schema::sad::spi_slot;
use model::{Epoch, Instant, OutboundUse};
use sad::{DataPlane, Direction, Limited};

const BOTH: [Direction; 2] = [Direction::Outbound, Direction::Inbound];

fn range(world: &World, spi: model::EspSpi, alone: bool, epoch: u16) -> (u64, u64) {
    let entry = world.sad.get(spi).expect("it is there");
    let range = datapath::limits::outbound_range(&entry.lease, 0, alone, epoch).expect("no later epoch");
    (range.first, range.last)
}

#[test]
fn a_tainted_sa_keeps_its_owner_s_lease_and_gives_a_taker_nothing_whatever_is_raised() {
    let mut world = World::new(1);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let slot = spi_slot(spi.0);
    world.spend(spi, 3000, 0);
    let before = range(&world, spi, false, EPOCH.low16());
    let plan = world.sad.taint([spi], &BOTH[..1], EPOCH);
    assert_eq!(plan.ops.len(), 1, "the lease; inbound is another matter");
    world.run(plan);
    assert!(world.sad.is_tainted(spi, Direction::Outbound));
    assert!(!world.sad.is_tainted(spi, Direction::Inbound));
    assert_eq!(range(&world, spi, false, EPOCH.low16()), before);
    // The owner still wishes for more, so that whoever hears of it rekeys.
    let plane = &world.plane;
    let raises = world.sad.wants_raises(
        Instant::from_millis(5000),
        |_| Some(EPOCH),
        |slot| plane.counters(slot),
    );
    assert_eq!(raises.len(), 1);
    let plan = world
        .sad
        .apply_raise(&raises[0], Instant::from_millis(5001))
        .expect("of this epoch");
    assert!(plan.is_empty(), "it changes nothing");
    for alone in [false, true] {
        let (first, last) = range(&world, spi, alone, EPOCH.low16() + 2);
        assert!(first > last, "{first}..={last}");
    }
    let published = world.plane.outbound[slot as usize].limits;
    let limits = datapath::limits::read(&published).expect("nobody writes").0;
    assert!(datapath::limits::is_tainted(&limits), "the programs know it too");
}

#[test]
fn a_joiner_taints_what_a_snapshot_holds_and_a_taker_alone_needs_no_cap_for_it() {
    let mut owner = World::new(1);
    let spi = owner.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let fresh = owner.install("10.3.0.0-10.3.0.255", OutboundUse::Now, None);
    let plan = owner.sad.taint([spi], &BOTH, EPOCH);
    owner.run(plan);
    let snapshot = owner.sad.snapshot(Instant::from_millis(9000));
    let mut joiner = World::new(2);
    let plan = joiner
        .sad
        .restore(snapshot, Instant::from_millis(1))
        .expect("it fits");
    joiner.run(plan);
    let plan = joiner.sad.taint_as_told([spi], &BOTH);
    joiner.run(plan);
    let lease = |world: &World, spi| world.sad.get(spi).expect("there").lease;
    assert_eq!(lease(&joiner, spi), lease(&owner, spi));
    let next = Epoch(EPOCH.0 + 2);
    let plane = &joiner.plane;
    let caps = joiner.sad.cap_within(
        ..,
        Limited::Skipped,
        |_| Some((next, true)),
        |slot| plane.counters(slot),
    );
    assert!(
        caps.iter().all(|cap| cap.spi == fresh),
        "what has no number has no upper limit to state"
    );
    assert!(!caps.is_empty());
}
