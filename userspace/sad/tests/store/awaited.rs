//! What the programs know of SAs that peers were asked for (ADR 29).

use crate::world::{SEGMENT, World, policy, record};
use maps_schema::sad::spi_slot;
use model::{ChildSaChange, EspSpi, OutboundUse};
use sad::{DataPlane, LingerUpTo, MapOp};

const NETWORK: &str = "10.2.0.0-10.2.0.255";

fn world() -> World {
    let mut world = World::new(1);
    world.configure(vec![policy("net", NETWORK)]);
    world
}

/// Asks a peer for an SA.
fn ask(world: &mut World) -> EspSpi {
    let spi = world.sad.reserve_spi(SEGMENT).expect("slots are free");
    assert_eq!(names(world, spi), ["put awaited SPI"]);
    spi
}

/// What it takes to wait for an SPI.
fn names(world: &mut World, spi: EspSpi) -> Vec<&'static str> {
    let plan = world.sad.await_spi(spi);
    let names = plan.ops.iter().map(MapOp::name).collect();
    world.run(plan);
    names
}

/// SPI of the SA in a slot, and the one that is awaited there.
fn slot(world: &World, spi: EspSpi) -> (u32, u32) {
    let (inbound, _) = world.plane.records(spi_slot(spi.0)).expect("slot exists");
    (inbound.spi, inbound.awaited)
}

fn sweep(world: &mut World) -> usize {
    let plan = world.sad.end_awaiting();
    let count = plan.ops.len();
    world.run(plan);
    count
}

#[test]
fn an_spi_is_awaited_from_the_request_to_the_end_of_its_sa() {
    let mut world = world();
    let spi = ask(&mut world);
    assert!(world.sad.awaits(spi));
    assert_eq!(slot(&world, spi), (0, spi.0));
    assert_eq!(names(&mut world, spi), [""; 0], "once");
    assert_eq!(sweep(&mut world), 0, "it is under way");
    world.apply(ChildSaChange::Install {
        record: Box::new(record(spi, NETWORK)),
        outbound: OutboundUse::Now,
        replaces: None,
    });
    assert!(!world.sad.awaits(spi));
    // So there is no moment at which the programs know neither.
    assert_eq!(slot(&world, spi), (spi.0, spi.0));
    assert_eq!(names(&mut world, spi), [""; 0], "it is there");
    world.apply(ChildSaChange::Remove { spi_in: spi });
    assert_eq!(slot(&world, spi), (0, 0));
}

#[test]
fn an_exchange_that_comes_to_nothing_leaves_nothing_that_waits() {
    let mut world = world();
    let (given_up, other) = (ask(&mut world), ask(&mut world));
    world.sad.release_spi(given_up);
    assert!(!world.sad.awaits(given_up));
    assert_eq!(sweep(&mut world), 1);
    assert_eq!(slot(&world, given_up), (0, 0));
    assert_eq!((slot(&world, other), sweep(&mut world)), ((0, other.0), 0));
    // A group that goes to another member takes its exchanges with it.
    world.sad.release_unused_spis(|segment| segment == SEGMENT);
    assert_eq!((sweep(&mut world), slot(&world, other)), (1, (0, 0)));
    // Nobody asked for these.
    assert_eq!(names(&mut world, other), [""; 0]);
    assert_eq!(names(&mut world, EspSpi(0x0500_0104)), [""; 0]);
}

#[test]
fn who_goes_on_with_an_exchange_waits_for_its_answer() {
    let mut world = World::new(2);
    let theirs = EspSpi(0x0500_0204);
    world.sad.hold_spi(theirs).expect("the slot is free");
    assert_eq!(names(&mut world, theirs), ["put awaited SPI"]);
    let plan = world.sad.full_plan().expect("plan");
    assert_eq!(
        plan.ops.iter().map(MapOp::name).collect::<Vec<_>>(),
        ["put awaited SPI"]
    );
}

#[test]
fn what_lingers_in_the_slot_of_an_awaited_spi_goes_on_to_be_opened() {
    let mut world = world();
    let old = world.install(NETWORK, OutboundUse::Now, None);
    let now = model::Instant::from_millis(1000);
    let plan = world.sad.remove_lingering(old, now, LingerUpTo::End);
    world.run(plan.expect("is there"));
    // Another member of the cluster had given the slot out, and its exchange is gone on with here.
    let new = EspSpi(old.0 + (1 << 24));
    world.sad.hold_spi(new).expect("what lingers yields");
    assert_eq!(names(&mut world, new), ["put awaited SPI"]);
    assert_eq!(slot(&world, old), (old.0, new.0));
    // It is not the awaited one any more.
    let plan = world.sad.await_no_more(old);
    world.run(plan);
    assert_eq!(slot(&world, old), (old.0, new.0));
}
