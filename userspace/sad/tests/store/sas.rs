//! One SA after the other: order of a plan, rekey, removal, raises, snapshots.

use crate::world::{EPOCH, SEGMENT, World, context, policy, record, ts};
use maps_schema::sad::{Limits, OutboundSaRuntime, SA_ESN, SA_LOCAL_ONLY, spi_slot};
use maps_schema::spd::{ACTION_PROTECT, ACTION_TRAP};
use model::{ChildSaChange, ChildSaRecord, Epoch, EspSpi, Instant, OutboundUse, SecretBytes};
use sad::lifetime::LifetimeKind;
use sad::{DataPlane, Direction, LimitRaise, MapOp, NamedLimits, Policy, Sad, SadError};

#[test]
fn an_sa_gets_its_keys_and_counters_before_its_records_and_its_policy_last() {
    let mut world = World::new(1);
    world.configure(vec![policy("net", "10.2.0.0-10.2.0.255")]);
    let spi = world.sad.reserve_spi(SEGMENT).expect("slots are free");
    let record = Box::new(record(spi, "10.2.0.0-10.2.0.255"));
    let names = world.apply(ChildSaChange::Install {
        record,
        outbound: OutboundUse::Now,
        replaces: None,
    });
    assert_eq!(
        names,
        [
            "reset runtime",
            "put inbound key",
            "put outbound key",
            "put outbound SA",
            "put inbound SA",
            "put policy"
        ]
    );
    let slot = spi_slot(spi.0);
    let (inbound, outbound) = world.plane.records(slot).expect("slot exists");
    assert_eq!(
        (inbound.spi, inbound.flags, inbound.connection),
        (spi.0, SA_ESN, 1)
    );
    assert_eq!(
        outbound.limits.slots[0],
        Limits {
            limit: 4096,
            step: 4096,
            floor: 0,
            epoch: 7,
            reserved: 0
        }
    );
    assert_eq!(
        inbound.limits.slots[0],
        Limits {
            limit: 2,
            step: 2,
            floor: 0,
            epoch: 7,
            reserved: 0
        }
    );
    assert_eq!(world.plane.keys_in[slot as usize].spi, spi.0);
    assert_eq!(world.lookup("10.2.0.9"), Some((ACTION_PROTECT, slot)));
}

#[test]
fn a_policy_without_sa_traps_before_during_and_after_never_plain() {
    let mut world = World::new(1);
    world.configure(vec![policy("net", "10.2.0.0-10.2.0.255")]);
    assert_eq!(world.lookup("10.2.0.9"), Some((ACTION_TRAP, 0)));
    // Narrowed to half of the policy: the other half still traps.
    let spi = world.install("10.2.0.0-10.2.0.127", OutboundUse::Now, None);
    assert_eq!(world.lookup("10.2.0.9"), Some((ACTION_PROTECT, spi_slot(spi.0))));
    assert_eq!(world.lookup("10.2.0.200"), Some((ACTION_TRAP, 0)));
    let plan = world
        .sad
        .apply(&ChildSaChange::Remove { spi_in: spi }, context(false))
        .expect("removes");
    assert!(
        matches!(plan.ops.last(), Some(MapOp::ClearSlot { .. })),
        "policy first, records last"
    );
    world.run(plan);
    assert_eq!(world.lookup("10.2.0.9"), Some((ACTION_TRAP, 0)));
    assert_eq!(world.lookup("10.3.0.9"), None, "no policy");
    assert_eq!(
        world.plane.records(spi_slot(spi.0)).expect("slot exists").0.spi,
        0
    );
}

#[test]
fn a_rekey_installs_switches_when_told_and_removes() {
    let mut world = World::new(1);
    world.configure(vec![policy("net", "10.2.0.0-10.2.0.255")]);
    let old = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let new = world.install("10.2.0.0-10.2.0.255", OutboundUse::Later, Some(old));
    assert_eq!(
        world.lookup("10.2.0.9"),
        Some((ACTION_PROTECT, spi_slot(old.0))),
        "the responder waits"
    );
    world.apply(ChildSaChange::UseOutbound { spi_in: new });
    assert_eq!(world.lookup("10.2.0.9"), Some((ACTION_PROTECT, spi_slot(new.0))));
    world.apply(ChildSaChange::Remove { spi_in: old });
    assert_eq!(world.lookup("10.2.0.9"), Some((ACTION_PROTECT, spi_slot(new.0))));
    assert_eq!(world.sad.len(), 1);
}

#[test]
fn a_longer_prefix_that_traps_is_not_carried_by_a_wider_sa() {
    let mut world = World::new(1);
    world.configure(vec![
        policy("net", "0.0.0.0-255.255.255.255"),
        policy("own", "10.2.0.0-10.2.0.255"),
    ]);
    let spi = world.install("0.0.0.0-255.255.255.255", OutboundUse::Now, None);
    assert_eq!(
        world.lookup("203.0.113.1"),
        Some((ACTION_PROTECT, spi_slot(spi.0)))
    );
    assert_eq!(world.lookup("10.2.0.9"), Some((ACTION_TRAP, 0)));
}

#[test]
fn ipv4_packets_never_meet_ipv6_policies() {
    let mut world = World::new(1);
    let mut six = policy("net", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
    six.local = vec![ts("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")];
    world.configure(vec![six]);
    assert_eq!(world.lookup("10.9.9.9"), None);
    assert!(!world.plane.spd.is_empty());
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let mut world = World::new(1);
    let many: Vec<Policy> = (0..9)
        .map(|i| Policy {
            local: vec![ts(&format!("10.1.{i}.0-10.1.{i}.255"))],
            ..policy(&format!("c{i}"), "10.2.0.0-10.2.0.255")
        })
        .collect();
    let error = world
        .sad
        .configure(many)
        .err()
        .expect("nine rules under one prefix")
        .to_string();
    assert!(
        error.contains("9 rules") && error.contains("10.2.0.0/24"),
        "{error}"
    );

    let spi = world.sad.reserve_spi(SEGMENT).expect("slots are free");
    let mut five = record(spi, "10.2.0.0-10.2.0.255");
    five.ts_remote = (0..5).map(|i| ts(&format!("10.2.{i}.0-10.2.{i}.255"))).collect();
    let install = |r: ChildSaRecord| ChildSaChange::Install {
        record: Box::new(r),
        outbound: OutboundUse::Now,
        replaces: None,
    };
    assert!(matches!(
        world.sad.apply(&install(five), context(false)),
        Err(SadError::TooManySelectors { pairs: 5, .. })
    ));
    let mut short = record(spi, "10.2.0.0-10.2.0.255");
    short.key_in = SecretBytes::new(vec![1; 20]);
    assert!(matches!(
        world.sad.apply(&install(short), context(false)),
        Err(SadError::KeyLength { octets: 20, .. })
    ));
    assert!(world.sad.is_empty());
    world.apply(install(record(spi, "10.2.0.0-10.2.0.255")));
    assert!(matches!(
        world
            .sad
            .apply(&install(record(spi, "10.2.0.0-10.2.0.255")), context(false)),
        Err(SadError::Installed(_))
    ));
    assert!(matches!(
        world.sad.apply(
            &ChildSaChange::Remove {
                spi_in: EspSpi(0x0900_0004)
            },
            context(false)
        ),
        Err(SadError::Unknown(_))
    ));
}

#[test]
fn a_lease_is_renewed_at_half_and_asked_for_once() {
    let mut world = World::new(1);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    assert!(world.raises(1000).is_empty(), "an idle SA costs nothing");
    world.spend(spi, 2047, 0);
    assert!(world.raises(1100).is_empty());
    world.spend(spi, 2048, 0);
    let raises = world.raises(1200);
    assert_eq!(raises.len(), 1);
    let raise = raises[0];
    assert_eq!(
        (raise.direction, raise.spi, raise.limits.epoch),
        (Direction::Outbound, spi, 7)
    );
    assert!(raise.limits.limit > 4096 && raise.limits.limit == 2048 + raise.limits.step);
    assert!(world.raises(1210).is_empty(), "under way");
    assert_eq!(world.raises(2000).len(), 1, "lost: asked for again");
    let plan = world
        .sad
        .apply_raise(&raise, Instant::from_millis(2001))
        .expect("same epoch");
    assert_eq!(plan.ops.len(), 1);
    world.run(plan);
    let published = world
        .plane
        .records(spi_slot(spi.0))
        .expect("slot exists")
        .1
        .limits;
    assert_eq!(published.slots[(published.version & 1) as usize], raise.limits);
    assert!(
        world
            .sad
            .apply_raise(&raise, Instant::from_millis(2002))
            .expect("old news")
            .is_empty()
    );
    assert!(world.raises(2100).is_empty());
}

/// "Not here" counts as an acknowledgement: an SA that is here and refuses its limits must not pass for it.
#[test]
fn a_standby_arms_all_limits_or_says_which_sa_refuses_them() {
    let mut world = World::new(2);
    world.configure(vec![policy("net", "10.2.0.0-10.2.0.255")]);
    let spi = world.install("10.2.0.0-10.2.0.127", OutboundUse::Now, None);
    let slot = spi_slot(spi.0);
    let lease = |slot, spi, limit| NamedLimits {
        slot,
        spi,
        direction: Direction::Outbound,
        limit,
        step: 4096,
    };
    let ours = 0xc000_0000 | slot;
    let held = |world: &World| world.sad.get(spi).expect("installed").lease.limit;
    let now = Instant::from_millis(1001);

    let wanted = [
        lease(slot + 1, 7, 9000),
        lease(slot, ours + 1, 9000),
        lease(slot, ours, 9000),
    ];
    let (plan, armed) = world.sad.arm(&wanted, EPOCH, now);
    assert_eq!(plan.ops.len(), 1);
    world.run(plan);
    assert_eq!(
        armed.expect("of this epoch"),
        [0, 1],
        "no such SA, and a former SA of the slot"
    );
    assert_eq!(held(&world), 9000);

    let late = Epoch(EPOCH.0 - 1);
    let (plan, armed) = world
        .sad
        .arm(&[lease(slot + 1, 7, 9000), lease(slot, ours, 12_000)], late, now);
    assert!(plan.is_empty());
    assert!(matches!(armed, Err(SadError::EpochBehind(of)) if of == spi));
    assert_eq!(held(&world), 9000);
}

#[test]
fn a_packet_above_the_ceiling_raises_it_past_the_packet_and_headroom_grows_with_bursts() {
    let mut world = World::new(1);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let slot = spi_slot(spi.0);
    let mut steps = Vec::new();
    let mut needed = 3;
    for round in 0..8u64 {
        let counters = world.plane.counters(slot).expect("slot exists");
        let now = Instant::from_millis(1000 + round * 10);
        let raise = world
            .sad
            .wants_raise(slot, Direction::Inbound, Some(needed), now, EPOCH, &counters)
            .expect("above the ceiling");
        assert!(raise.limits.limit >= needed);
        let plan = world.sad.apply_raise(&raise, now).expect("same epoch");
        world.run(plan);
        world.spend(spi, 0, raise.limits.limit);
        needed = raise.limits.limit + 1;
        steps.push(raise.limits.step);
    }
    assert!(
        steps.windows(2).skip(1).all(|w| w[1] >= 2 * w[0]),
        "grows geometrically: {steps:?}"
    );
    let counters = world.plane.counters(slot).expect("slot exists");
    let inside = world.sad.wants_raise(
        slot,
        Direction::Inbound,
        Some(1),
        Instant::from_millis(1100),
        EPOCH,
        &counters,
    );
    assert!(
        inside.is_none_or(|r| r.limits.limit > needed),
        "a packet below the ceiling asks for nothing by itself"
    );
}

#[test]
fn a_raise_after_a_takeover_keeps_the_floor_and_an_old_epoch_is_refused() {
    let mut world = World::new(2);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let slot = spi_slot(spi.0);
    let next = Epoch(EPOCH.0 + 1);
    // The taker's program started at L + 1 and has used half of its step.
    world.spend(spi, 4096 + 2048, 0);
    let plane = &world.plane;
    let raises = world.sad.wants_raises(
        Instant::from_millis(5000),
        |_| Some(next),
        |slot| plane.counters(slot),
    );
    assert_eq!(raises.len(), 1);
    assert_eq!((raises[0].limits.floor, raises[0].limits.epoch), (4096, 8));
    let plan = world
        .sad
        .apply_raise(&raises[0], Instant::from_millis(5001))
        .expect("newer epoch");
    world.run(plan);
    let range = datapath::limits::outbound_range(&raises[0].limits, 0, false, 8).expect("same epoch");
    assert_eq!(range.first, 4097);
    let old = LimitRaise {
        limits: Limits {
            limit: 1 << 20,
            step: 1,
            floor: 0,
            epoch: 7,
            reserved: 0,
        },
        ..raises[0]
    };
    assert!(
        matches!(world.sad.apply_raise(&old, Instant::from_millis(5002)), Err(SadError::EpochBehind(s)) if s == spi)
    );
    assert_eq!(
        world.sad.by_slot(slot).expect("still there").lease,
        raises[0].limits
    );
}

#[test]
fn sas_made_alone_have_no_limits_until_caps_that_cover_their_counters_are_applied_for_a_join() {
    let mut world = World::new(1);
    let spi = world.sad.reserve_spi(SEGMENT).expect("slots are free");
    let install = ChildSaChange::Install {
        record: Box::new(record(spi, "10.2.0.0-10.2.0.255")),
        outbound: OutboundUse::Now,
        replaces: None,
    };
    let plan = world.sad.apply(&install, context(true)).expect("installs");
    world.run(plan);
    let slot = spi_slot(spi.0);
    let flags = |world: &World| {
        world
            .plane
            .records(slot)
            .map(|(i, o)| (i.flags & SA_LOCAL_ONLY, o.flags & SA_LOCAL_ONLY))
    };
    assert_eq!(flags(&world), Some((SA_LOCAL_ONLY, SA_LOCAL_ONLY)));
    world.spend(spi, 1_000_000, 2_000_000);
    assert!(world.raises(2000).is_empty(), "nothing to renew");

    let plane = &world.plane;
    let caps = world
        .sad
        .cap_for_join(|_| (EPOCH, true), |slot| plane.counters(slot));
    assert_eq!(caps.len(), 2);
    for cap in &caps {
        let used = if cap.direction == Direction::Outbound {
            1_000_000
        } else {
            2_000_000
        };
        assert!(cap.limits.limit > used, "{cap:?}");
        let plan = world
            .sad
            .apply_raise(cap, Instant::from_millis(2001))
            .expect("same epoch");
        world.run(plan);
    }
    let plan = world.sad.known_to_standby([spi]);
    world.run(plan);
    assert_eq!(flags(&world), Some((0, 0)));
    let (inbound, outbound) = world.plane.records(slot).expect("slot exists");
    let plane = &world.plane;
    assert!(
        world
            .sad
            .cap_for_join(|_| (EPOCH, true), |slot| plane.counters(slot))
            .is_empty(),
        "done"
    );
    assert!(datapath::limits::read(&outbound.limits).expect("quiet").0.limit > 1_000_000);
    assert!(datapath::limits::read(&inbound.limits).expect("quiet").0.limit > 2_000_000);
}

#[test]
fn only_sas_without_upper_limits_are_capped_for_a_join() {
    let mut world = World::new(1);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    world.spend(spi, 9000, 70);
    let next = Epoch(EPOCH.0 + 1);
    let plane = &world.plane;
    let caps = |epoch, alone| {
        world
            .sad
            .cap_for_join(|_| (epoch, alone), |slot| plane.counters(slot))
    };
    assert!(
        caps(EPOCH, true).is_empty(),
        "an owner left alone keeps to what its lost standby acknowledged"
    );
    assert!(caps(next, false).is_empty(), "a taker with standbys has limits");
    let limits: Vec<_> = caps(next, true).iter().map(|c| (c.direction, c.limits)).collect();
    assert_eq!(
        limits,
        [
            (
                Direction::Outbound,
                Limits {
                    limit: 9000 + 4096,
                    step: 4096,
                    floor: 4096,
                    epoch: 8,
                    reserved: 0
                }
            ),
            (
                Direction::Inbound,
                Limits {
                    limit: 72,
                    step: 2,
                    floor: 2,
                    epoch: 8,
                    reserved: 0
                }
            ),
        ]
    );
}

#[test]
fn a_snapshot_restores_the_same_maps_on_another_member_and_keeps_live_counters_here() {
    let mut world = World::new(1);
    let policies = vec![policy("net", "10.2.0.0-10.2.0.255")];
    world.configure(policies.clone());
    let old = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let new = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, Some(old));
    world.spend(new, 3000, 1);
    let raise = world.raises(2000)[0];
    let plan = world
        .sad
        .apply_raise(&raise, Instant::from_millis(2000))
        .expect("same epoch");
    world.run(plan);
    let now = Instant::from_millis(61_000);
    let snapshot = world.sad.snapshot(now);

    let mut joiner = World::new(2);
    joiner.configure(policies);
    let plan = joiner.sad.restore(snapshot.clone(), now).expect("restores");
    joiner.run(plan);
    assert_eq!(joiner.plane.spd, world.plane.spd);
    for spi in [old, new] {
        let slot = spi_slot(spi.0);
        let (here, there) = (
            world.sad.by_slot(slot).expect("here"),
            joiner.sad.by_slot(slot).expect("there"),
        );
        assert_eq!(
            (here.lease, here.ceiling, here.installed),
            (there.lease, there.ceiling, there.installed)
        );
        let (a, b) = (
            world.plane.records(slot).expect("slot"),
            joiner.plane.records(slot).expect("slot"),
        );
        assert_eq!(
            (a.0.selectors, a.0.flags, a.1.spi),
            (b.0.selectors, b.0.flags, b.1.spi)
        );
    }

    // On a member that has the SAs already, counters live on, and SAs that are not in the snapshot go.
    let extra = world.install("10.9.0.0-10.9.0.255", OutboundUse::Now, None);
    let plan = world.sad.restore(snapshot, now).expect("restores");
    world.run(plan);
    assert_eq!(
        world.plane.counters(spi_slot(new.0)).expect("slot").outbound.seq,
        3000
    );
    assert!(world.sad.get(extra).is_none());
    assert_eq!(world.plane.spd, joiner.plane.spd);
}

#[test]
fn a_reused_slot_starts_with_fresh_counters() {
    let mut world = World::new(1);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    world.spend(spi, 999, 999);
    world.apply(ChildSaChange::Remove { spi_in: spi });
    let again = EspSpi(spi.0 + (1 << 24));
    let change = ChildSaChange::Install {
        record: Box::new(record(again, "10.2.0.0-10.2.0.255")),
        outbound: OutboundUse::Now,
        replaces: None,
    };
    world.apply(change);
    let counters = world.plane.counters(spi_slot(spi.0)).expect("slot exists");
    assert_eq!(counters.outbound, OutboundSaRuntime::default());
    assert_eq!((counters.inbound.spi, counters.inbound.edge), (again.0, 0));
}

#[test]
fn lifetimes_are_reported_once_each() {
    let mut world = World::new(1);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let due = |world: &mut World, seconds: u64| {
        let plane = &world.plane;
        world
            .sad
            .due(Instant::from_millis(1000 + seconds * 1000), |slot| {
                plane.counters(slot)
            })
    };
    assert!(due(&mut world, 60).is_empty());
    let soft = due(&mut world, 3300);
    assert_eq!(
        soft.iter().map(|e| (e.spi_in, e.kind)).collect::<Vec<_>>(),
        [(spi, LifetimeKind::Soft)]
    );
    assert!(due(&mut world, 3301).is_empty());
    assert_eq!(
        due(&mut world, 3600).iter().map(|e| e.kind).collect::<Vec<_>>(),
        [LifetimeKind::Hard]
    );
    assert!(due(&mut world, 3700).is_empty());
}

#[test]
fn a_ceiling_of_a_faster_time_comes_down_to_the_edge_and_only_as_the_newest_limits() {
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
    let plane = &world.plane;
    let lowerings =
        |sad: &Sad, ms| sad.wants_lowerings(Instant::from_millis(ms), EPOCH, |slot| plane.counters(slot));
    assert!(lowerings(&world.sad, 1100).is_empty(), "a burst has pauses");
    let lower = *lowerings(&world.sad, 3000)
        .first()
        .expect("thousands of numbers of room at no rate");
    assert!((40_000..40_100).contains(&lower.limits.limit), "{lower:?}");
    let late = world.sad.apply_raise(&lower, early).expect("same epoch");
    assert!(
        late.is_empty(),
        "an ordinary raise never lowers: it may be a late copy"
    );
    let plan = world
        .sad
        .apply_newest(&lower, Instant::from_millis(3000))
        .expect("same epoch");
    assert_eq!(plan.ops.len(), 1);
    world.run(plan);
    assert_eq!(
        world.sad.by_slot(slot).map(|e| e.ceiling.limit),
        Some(lower.limits.limit)
    );
}
