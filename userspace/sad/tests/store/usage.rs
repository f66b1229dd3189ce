//! Lifetimes in octets and packets, over takeovers; path MTUs.

use crate::world::*;
use maps_schema::sad::{DF_CLEAR, MSS_AUTO, spi_slot};
use model::{ChildSaChange, EspSpi, Instant, OutboundUse};
use sad::lifetime::{LifetimeKind, Lifetimes};
use sad::{Carried, DataPlane, DontFragment, Handling, Usage};

const LIMITS: Lifetimes = Lifetimes {
    soft_bytes: 8_000,
    hard_bytes: 10_000,
    soft_packets: 80,
    hard_packets: 100,
    ..Lifetimes::NONE
};

fn limited(handling: Handling) -> World {
    let mut world = World::new(1);
    let mut policy = policy("net", "10.2.0.0-10.2.0.255");
    (policy.lifetimes, policy.handling) = (Some(LIMITS), handling);
    world.configure(vec![policy]);
    world
}

/// The programs of this member have carried this.
fn carried(world: &mut World, spi: EspSpi, inbound: (u64, u64), outbound: (u64, u64)) {
    let runtime = &mut world.plane.runtime[spi_slot(spi.0) as usize];
    (runtime.inbound.bytes, runtime.inbound.packets) = inbound;
    (runtime.outbound.bytes, runtime.outbound.packets) = outbound;
}

fn due(world: &mut World) -> Option<LifetimeKind> {
    let plane = &world.plane;
    let mut due = world
        .sad
        .due(Instant::from_millis(2000), |slot| plane.counters(slot));
    assert!(due.len() <= 1);
    due.pop().map(|d| d.kind)
}

fn reports(world: &mut World) -> Vec<(EspSpi, Usage)> {
    let plane = &world.plane;
    world.sad.usage_reports(.., |_| true, |slot| plane.counters(slot))
}

/// Octets and packets that the maps of this member still let through: in, out.
fn left(world: &World, spi: EspSpi) -> [(u64, u64); 2] {
    let (inbound, outbound) = world.plane.records(spi_slot(spi.0)).expect("the slot");
    [
        (inbound.life_bytes, inbound.life_packets),
        (outbound.life_bytes, outbound.life_packets),
    ]
}

#[test]
fn either_direction_and_either_count_is_reported_once_soft_and_once_hard() {
    for (name, inbound, outbound, want) in [
        ("one octet short", (7_999, 0), (7_999, 0), None),
        ("octets in", (8_000, 0), (0, 0), Some(LifetimeKind::Soft)),
        ("octets out", (0, 0), (8_000, 0), Some(LifetimeKind::Soft)),
        ("packets in", (0, 80), (0, 0), Some(LifetimeKind::Soft)),
        ("packets out", (0, 0), (0, 80), Some(LifetimeKind::Soft)),
        ("the end in octets", (0, 0), (10_000, 0), Some(LifetimeKind::Hard)),
        (
            "the end in packets",
            (0, 100),
            (8_000, 0),
            Some(LifetimeKind::Hard),
        ),
    ] {
        let mut world = limited(Handling::default());
        let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
        assert_eq!(left(&world, spi), [(10_000, 100), (10_000, 100)]);
        carried(&mut world, spi, inbound, outbound);
        assert_eq!(due(&mut world), want, "{name}");
        assert_eq!(due(&mut world), None, "{name}: once");
        if want == Some(LifetimeKind::Soft) {
            carried(&mut world, spi, (10_000, 0), (0, 0));
            assert_eq!(due(&mut world), Some(LifetimeKind::Hard), "{name}: then the end");
        }
    }
}

#[test]
fn a_taker_goes_on_at_what_was_reported() {
    let (mut owner, mut standby) = (limited(Handling::default()), limited(Handling::default()));
    let spi = owner.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    standby.apply(ChildSaChange::Install {
        record: Box::new(record(spi, "10.2.0.0-10.2.0.255")),
        outbound: OutboundUse::Now,
        replaces: None,
    });
    carried(&mut owner, spi, (100, 1), (200, 2));
    assert!(reports(&mut owner).is_empty(), "less than a 32nd part of a limit");
    carried(&mut owner, spi, (3_000, 30), (5_000, 20));
    let told = reports(&mut owner);
    assert!(reports(&mut owner).is_empty(), "told once");
    let want = Usage {
        inbound: Carried {
            bytes: 3_000,
            packets: 30,
        },
        outbound: Carried {
            bytes: 5_000,
            packets: 20,
        },
    };
    assert_eq!(told, [(spi, want)]);
    let note = |world: &mut World, usage| {
        let plane = &world.plane;
        let plan = world.sad.note_usage(spi, usage, |slot| plane.counters(slot));
        let ops = plan.ops.len();
        world.run(plan);
        ops
    };
    assert_eq!(note(&mut standby, want), 2);
    assert_eq!(note(&mut standby, want), 0, "said twice");
    assert_eq!(left(&standby, spi), [(7_000, 70), (5_000, 80)]);
    // The standby takes over, and carries as much as is left until the rekey.
    carried(&mut standby, spi, (1_000, 1), (2_999, 3));
    assert_eq!(due(&mut standby), None);
    carried(&mut standby, spi, (1_000, 1), (3_000, 3));
    assert_eq!(due(&mut standby), Some(LifetimeKind::Soft));
    // It reports totals; the old owner, which counted further than it said, does not count anything twice.
    let told = reports(&mut standby);
    assert_eq!(told[0].1.outbound.bytes, 8_000);
    assert_eq!(told[0].1.inbound.packets, 31);
    carried(&mut owner, spi, (3_000, 30), (5_500, 22));
    note(&mut owner, told[0].1);
    assert_eq!(
        left(&owner, spi),
        // In: 10,000 less 1,000 of the other one; out: 8,000 in all, of which 5,500 are its own count.
        [(9_000, 99), (7_500, 99)]
    );
    let usage = owner
        .sad
        .get(spi)
        .map(|e| e.usage(&owner.plane.counters(e.slot()).expect("counters")));
    assert_eq!(usage, Some(told[0].1));
    // A late report of less changes nothing.
    assert_eq!(note(&mut owner, want), 0);
    // A joiner is told of all.
    let plane = &owner.plane;
    assert_eq!(owner.sad.usage_of(|_| true, |slot| plane.counters(slot)), told);
}

#[test]
fn what_is_used_up_elsewhere_is_not_without_limit_here() {
    let mut world = limited(Handling::default());
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let all = Carried {
        bytes: 10_000,
        packets: 100,
    };
    let usage = Usage {
        inbound: all,
        outbound: all,
    };
    let plane = &world.plane;
    let plan = world.sad.note_usage(spi, usage, |slot| plane.counters(slot));
    world.run(plan);
    assert_eq!(left(&world, spi), [(1, 1), (1, 1)], "0 would be no limit");
    assert_eq!(due(&mut world), Some(LifetimeKind::Hard));
}

#[test]
fn a_restored_snapshot_keeps_what_was_counted() {
    let mut world = limited(Handling::default());
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    carried(&mut world, spi, (100, 1), (100, 1));
    let usage = Usage {
        outbound: Carried {
            bytes: 4_100,
            packets: 41,
        },
        ..Usage::default()
    };
    let plane = &world.plane;
    let plan = world.sad.note_usage(spi, usage, |slot| plane.counters(slot));
    world.run(plan);
    let before = left(&world, spi);
    assert_eq!(before[1], (6_000, 60));
    let snapshot = world.sad.snapshot(Instant::from_millis(3000));
    let plan = world
        .sad
        .restore(snapshot, Instant::from_millis(3000))
        .expect("its own");
    world.run(plan);
    assert_eq!(left(&world, spi), before);
}

#[test]
fn headers_and_sizes_of_the_policy_are_in_the_record() {
    let mut world = limited(Handling {
        mtu: Some(1400),
        df: DontFragment::Clear,
        dscp: Some(0),
        mss_clamp: MSS_AUTO,
        hold: false,
    });
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let slot = spi_slot(spi.0);
    let out = |world: &World| world.plane.records(slot).expect("the slot").1;
    let sa = out(&world);
    assert_eq!(
        (sa.path_mtu, sa.df, sa.dscp, sa.mss_clamp),
        (1400, DF_CLEAR, 1, MSS_AUTO)
    );
    // A route is heard of that carries less; what carries more, and what cannot be, changes nothing or little.
    assert!(world.sad.learn_path_mtu(slot, 1400).is_none());
    let (of, mtu, plan) = world.sad.learn_path_mtu(slot, 1300).expect("narrower");
    assert_eq!((of, mtu), (spi, 1300));
    world.run(plan);
    assert_eq!(out(&world).path_mtu, 1300);
    let (_, mtu, plan) = world.sad.learn_path_mtu(slot, 68).expect("narrower");
    world.run(plan);
    assert_eq!(
        (mtu, out(&world).path_mtu),
        (576, 576),
        "a forged error goes no further"
    );
    let plan = world.sad.forget_path_mtu(spi);
    world.run(plan);
    assert_eq!(out(&world).path_mtu, 1400);
    assert!(world.sad.forget_path_mtu(spi).is_empty());
    // Another address of the peer's is another path.
    let (_, _, plan) = world.sad.learn_path_mtu(slot, 1200).expect("narrower");
    world.run(plan);
    world.apply(ChildSaChange::MovePeer {
        spi_in: spi,
        remote: "192.0.2.77:4500".parse().expect("address"),
    });
    assert_eq!(out(&world).path_mtu, 1400);
}
