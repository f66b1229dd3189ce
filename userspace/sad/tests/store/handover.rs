//! What an owner leaves to whom it hands over in a planned way.

use crate::world::{EPOCH, SEGMENT, World, context, record};
use datapath::limits::outbound_range;
use datapath::replay;
use maps_schema::sad::{InboundSaRuntime, spi_slot};
use model::{ChildSaChange, Epoch, EspSpi, Instant, OutboundUse};
use sad::{DataPlane, Direction, LeaseRest, LimitRaise};

const NEXT: Epoch = Epoch(EPOCH.0 + 1);
const REMOTE: &str = "10.2.0.0-10.2.0.255";

/// An owner, and a member that has joined it by snapshot after the owner's first standby was lost.
fn after_a_loss(spent: u64) -> (World, World, EspSpi) {
    let mut owner = World::new(1);
    let spi = owner.install(REMOTE, OutboundUse::Now, None);
    owner.spend(spi, spent, 0);
    owner.plane.runtime[spi_slot(spi.0) as usize].inbound.spi = spi.0;
    let plan = owner.sad.taint([spi], &[Direction::Outbound], EPOCH);
    owner.run(plan);
    let snapshot = owner.sad.snapshot(Instant::from_millis(9000));
    let mut joiner = World::new(2);
    let plan = joiner
        .sad
        .restore(snapshot, Instant::from_millis(1))
        .expect("it fits");
    joiner.run(plan);
    let plan = joiner.sad.taint_as_told([spi], &[Direction::Outbound]);
    joiner.run(plan);
    (owner, joiner, spi)
}

/// What the programs of a member may use.
fn range(world: &World, spi: EspSpi, epoch: Epoch) -> (u64, u64) {
    let record = &world.plane.outbound[spi_slot(spi.0) as usize];
    let limits = datapath::limits::read(&record.limits).expect("nobody writes").0;
    let range = outbound_range(&limits, 0, false, epoch.low16()).expect("no later epoch");
    (range.first, range.last)
}

fn leave(world: &mut World, spi: EspSpi, epoch: Epoch) -> Vec<LeaseRest> {
    let plane = &world.plane;
    let (plan, rests) = world.sad.leave_rests([spi], epoch, |slot| plane.counters(slot));
    world.run(plan);
    rests
}

#[test]
fn the_owner_keeps_half_of_what_is_left_and_the_taker_has_the_other_half_for_one_epoch() {
    let (mut owner, mut taker, spi) = after_a_loss(1000);
    assert_eq!(range(&owner, spi, EPOCH), (1, 4096));
    let rests = leave(&mut owner, spi, EPOCH);
    assert_eq!(range(&owner, spi, EPOCH), (1, 2548));
    let told = LeaseRest {
        spi_in: spi,
        above: 2548,
        last: 4096,
    };
    assert_eq!(rests, [told]);
    let (first, last) = range(&taker, spi, NEXT);
    assert!(first > last, "before it is told it has nothing");
    let plan = taker.sad.take_rests(&rests, NEXT);
    taker.run(plan);
    assert_eq!(range(&taker, spi, NEXT), (2549, 4096));
    assert!(taker.sad.take_rests(&rests, NEXT).is_empty(), "told twice");
    for world in [&owner, &taker] {
        let (first, last) = range(world, spi, Epoch(NEXT.0 + 1));
        assert!(first > last, "whoever takes over after a failure has none");
    }
    // Back again, in a planned way.
    taker.spend(spi, 3000, 0);
    taker.plane.runtime[spi_slot(spi.0) as usize].inbound.spi = spi.0;
    let rests = leave(&mut taker, spi, NEXT);
    let plan = owner.sad.take_rests(&rests, Epoch(NEXT.0 + 1));
    owner.run(plan);
    assert_eq!(range(&taker, spi, NEXT).1, 3548);
    assert_eq!(range(&owner, spi, Epoch(NEXT.0 + 1)), (3549, 4096));
}

#[test]
fn a_counter_that_has_passed_the_half_meanwhile_is_not_given_away() {
    let rest = LeaseRest {
        spi_in: EspSpi(1),
        above: 100,
        last: 200,
    };
    assert_eq!(rest.after(90), Some(rest));
    assert_eq!(rest.after(150), Some(LeaseRest { above: 150, ..rest }));
    assert_eq!(rest.after(200), None);
}

#[test]
fn an_sa_that_no_lost_standby_knew_is_left_by_the_arithmetic_of_epochs_alone() {
    let (mut owner, mut taker, spi) = after_a_loss(1000);
    let other = owner.install("10.3.0.0-10.3.0.255", OutboundUse::Now, None);
    owner.plane.runtime[spi_slot(other.0) as usize].inbound.spi = other.0;
    assert!(leave(&mut owner, other, EPOCH).is_empty());
    let before = taker.sad.get(spi).expect("there").lease;
    let stranger = LeaseRest {
        spi_in: other,
        above: 1,
        last: 9,
    };
    assert!(taker.sad.take_rests(&[stranger], NEXT).is_empty());
    assert_eq!(taker.sad.get(spi).expect("there").lease, before);
}

/// A member with an SA whose ceiling of 100 is of this epoch.
fn with_ceiling_of(epoch: Epoch) -> (World, EspSpi) {
    let mut world = World::new(1);
    let spi = world.sad.reserve_spi(SEGMENT).expect("slots are free");
    let mut record = record(spi, REMOTE);
    record.limits.ceiling = 100;
    let change = ChildSaChange::Install {
        record: Box::new(record),
        outbound: OutboundUse::Now,
        replaces: None,
    };
    let at = sad::Context {
        epoch,
        ..context(false)
    };
    let plan = world.sad.apply(&change, at).expect("applies");
    world.run(plan);
    (world, spi)
}

fn raise_to(world: &World, spi: EspSpi, limit: u64, epoch: Epoch) -> LimitRaise {
    let raise = world
        .sad
        .raise_of(spi_slot(spi.0), spi.0, Direction::Inbound, limit, 10, epoch);
    raise.expect("it is there")
}

/// A window in which these numbers were accepted in an epoch that began with this floor.
fn window(spi: EspSpi, epoch: Epoch, floor: u64, accepted: &[u64]) -> InboundSaRuntime {
    let mut window = InboundSaRuntime::default();
    replay::prepare(&mut window, spi.0, epoch.low16(), floor);
    for seq in accepted {
        let checked = replay::check(&window, *seq).expect("not seen");
        let proof = replay::IcvVerified::from_status(datapath::aead::DONE).expect("done");
        replay::mark(&mut window, checked, proof);
    }
    window
}

/// What the taker, whose floor is `ceiling`, accepts of 1 to 120 once it has merged what the old owner says.
fn taker_accepts(world: &World, spi: EspSpi, old: &InboundSaRuntime, ceiling: u64) -> Vec<u64> {
    let entry = world.sad.get(spi).expect("there");
    let mut mine = window(spi, NEXT, ceiling, &[]);
    if let Some(last) = entry.final_window(old, false, EPOCH) {
        replay::merge(&mut mine, &last, false);
    }
    (1..=120)
        .filter(|seq| replay::check(&mine, *seq).is_ok())
        .collect()
}

#[test]
fn an_sa_that_has_received_nothing_yet_loses_nothing_by_the_move() {
    let (world, spi) = with_ceiling_of(EPOCH);
    let of_a_former_sa = window(EspSpi(spi.0 ^ 1 << 24), EPOCH, 0, &[1, 2, 3]);
    for never_used in [InboundSaRuntime::default(), of_a_former_sa] {
        assert_eq!(
            taker_accepts(&world, spi, &never_used, 100),
            (1..=120).collect::<Vec<_>>()
        );
    }
}

#[test]
fn a_window_of_an_earlier_time_as_owner_opens_nothing_that_was_seen_since() {
    // This member owned the SA once and saw 1 to 20; the owner after it went on to 100, and died. Nothing has come since.
    let (world, spi) = with_ceiling_of(Epoch(EPOCH.0 - 1));
    let stale = window(spi, Epoch(EPOCH.0 - 3), 0, &(1..=20).collect::<Vec<_>>());
    assert_eq!(
        taker_accepts(&world, spi, &stale, 102),
        (101..=120).collect::<Vec<_>>()
    );
}

#[test]
fn a_taker_that_has_raised_the_ceiling_meanwhile_gets_the_window_all_the_same() {
    let (mut world, spi) = with_ceiling_of(EPOCH);
    let seen = window(spi, EPOCH, 0, &(1..=90).collect::<Vec<_>>());
    let raise = raise_to(&world, spi, 130, NEXT);
    let plan = world
        .sad
        .apply_raise(&raise, Instant::from_millis(3000))
        .expect("a later epoch");
    world.run(plan);
    assert_eq!(
        taker_accepts(&world, spi, &seen, 100),
        (91..=120).collect::<Vec<_>>()
    );
    let nothing_here = InboundSaRuntime::default();
    let entry = world.sad.get(spi).expect("there");
    assert!(
        entry.final_window(&nothing_here, false, EPOCH).is_none(),
        "whether a floor was to be applied cannot be told any more"
    );
}
