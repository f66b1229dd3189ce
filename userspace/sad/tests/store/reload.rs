//! Policies that change while SAs are up.

use crate::world::*;
use maps_schema::sad::spi_slot;
use maps_schema::spd::{ACTION_DISCARD, ACTION_PROTECT, ACTION_TRAP};
use model::OutboundUse;
use sad::{MapOp, Policy, PolicyAction};

fn other(connection: &str, remote: &str) -> Policy {
    Policy {
        connection: connection.into(),
        ..policy("net", remote)
    }
}

fn ops(world: &mut World, policies: Vec<Policy>) -> Vec<&'static str> {
    let plan = world.sad.configure(policies).expect("policies fit");
    let ops = plan.ops.iter().map(MapOp::name).collect();
    world.run(plan);
    ops
}

#[test]
fn what_does_not_change_is_not_written() {
    let mut world = World::new(1);
    let first = || policy("net", "10.2.0.0-10.2.0.255");
    let second = || other("second", "10.3.0.0-10.3.0.255");
    world.configure(vec![first(), second()]);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    assert!(ops(&mut world, vec![first(), second()]).is_empty());
    // One more in front: nothing but its own prefix is written.
    let third = || other("third", "10.4.0.0-10.4.0.255");
    let written = ops(&mut world, vec![third(), first(), second()]);
    assert_eq!(written, ["put policy"]);
    assert_eq!(
        world.lookup("10.4.0.9").map(|(action, _)| action),
        Some(ACTION_TRAP)
    );
    let slot = spi_slot(spi.0);
    assert_eq!(world.lookup("10.2.0.9"), Some((ACTION_PROTECT, slot)));
    // One less: its prefix goes, the SA of the other one stays.
    let written = ops(&mut world, vec![third(), first()]);
    assert_eq!(written, ["delete policy"]);
    assert_eq!(world.lookup("10.2.0.9"), Some((ACTION_PROTECT, slot)));
    assert_eq!(world.lookup("10.3.0.9"), None);
}

#[test]
fn an_sa_stays_in_use_without_its_policy_and_finds_it_again() {
    let mut world = World::new(1);
    let of = || policy("net", "10.2.0.0-10.2.0.255");
    // A member that has not read the configuration yet: the SA comes from another one.
    world.configure(vec![other("second", "10.3.0.0-10.3.0.255")]);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let slot = spi_slot(spi.0);
    assert_eq!(world.lookup("10.2.0.9"), Some((ACTION_PROTECT, slot)));
    assert_eq!(
        world.sad.children_of("branch").count(),
        0,
        "nobody knows the name"
    );
    world.configure(vec![of(), other("second", "10.3.0.0-10.3.0.255")]);
    assert_eq!(world.sad.children_of("branch").map(|(_, n)| n).sum::<u32>(), 1);
    assert_eq!(world.lookup("10.2.0.9"), Some((ACTION_PROTECT, slot)));
    world.configure(vec![other("second", "10.3.0.0-10.3.0.255")]);
    assert_eq!(
        world.lookup("10.2.0.9"),
        Some((ACTION_PROTECT, slot)),
        "until it is deleted"
    );
    world.apply(model::ChildSaChange::Remove { spi_in: spi });
    assert_eq!(world.lookup("10.2.0.9"), None);
}

#[test]
fn the_order_decides_between_equals_also_after_it_has_changed() {
    let mut world = World::new(1);
    let discard = || Policy {
        connection: String::new(),
        action: PolicyAction::Discard,
        ..policy("none", "10.2.0.0-10.2.0.255")
    };
    let protect = || policy("net", "10.2.0.0-10.2.0.255");
    world.configure(vec![protect(), discard()]);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    assert_eq!(world.lookup("10.2.0.9"), Some((ACTION_PROTECT, spi_slot(spi.0))));
    world.configure(vec![discard(), protect()]);
    assert_eq!(
        world.lookup("10.2.0.9").map(|(action, _)| action),
        Some(ACTION_DISCARD)
    );
    world.configure(vec![protect(), discard()]);
    assert_eq!(world.lookup("10.2.0.9"), Some((ACTION_PROTECT, spi_slot(spi.0))));
}

#[test]
fn policies_that_do_not_fit_leave_everything_as_it_was() {
    let mut world = World::new(1);
    let of = || policy("net", "10.2.0.0-10.2.0.255");
    world.configure(vec![of()]);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let ports = |n: u16| {
        let mut policy = other(&format!("c{n}"), "10.2.0.0-10.2.0.255");
        policy.remote[0].protocol = 6;
        (policy.remote[0].first_port, policy.remote[0].last_port) = (n, n);
        policy
    };
    let too_many: Vec<Policy> = (1..=20).map(ports).collect();
    assert!(world.sad.configure(too_many).is_err());
    assert_eq!(world.lookup("10.2.0.9"), Some((ACTION_PROTECT, spi_slot(spi.0))));
    assert!(ops(&mut world, vec![of()]).is_empty());
}
