//! The SA store against a data plane in memory: order of a plan, rekey, removal, snapshots, raises.

use maps_schema::sad::{Limits, OutboundSaRuntime, SA_ESN, SA_LOCAL_ONLY, spi_slot};
use maps_schema::spd::{ACTION_NONE, ACTION_PROTECT, ACTION_TRAP, SpdRule};
use model::{
    ChildSaChange, ChildSaRecord, Epoch, EspSpi, EspSuite, IkeSpi, InitialLimits, Instant, MemberId,
    OutboundUse, SecretBytes, SegmentId, TrafficSelector,
};
use sad::lifetime::{LifetimeKind, Lifetimes};
use sad::memory::MemoryPlane;
use sad::{
    Context, DataPlane, Direction, LimitRaise, MapOp, MapPlan, Policy, PolicyAction, Sad, SadError, Settings,
};
use std::time::Duration;

const SEGMENT: SegmentId = SegmentId(4);
const EPOCH: Epoch = Epoch(7);

struct World {
    sad: Sad,
    plane: MemoryPlane,
}

impl World {
    fn new(member: u8) -> Self {
        let settings = Settings {
            member: MemberId(member),
            max_slots: 4096,
            first_generation: 1,
            outside_mtu: 1500,
            detection: Duration::from_millis(100),
            lifetimes: Lifetimes::default(),
        };
        Self {
            sad: Sad::new(settings),
            plane: MemoryPlane::new(4096),
        }
    }

    fn run(&mut self, plan: MapPlan) {
        self.plane.execute(&plan).expect("the plan fits the plane");
    }

    fn configure(&mut self, policies: Vec<Policy>) {
        let plan = self.sad.configure(policies).expect("policies fit");
        self.run(plan);
    }

    fn apply(&mut self, change: ChildSaChange) -> Vec<&'static str> {
        let plan = self.sad.apply(&change, context(false)).expect("change applies");
        let names = plan.ops.iter().map(MapOp::name).collect();
        self.run(plan);
        names
    }

    fn install(&mut self, remote: &str, outbound: OutboundUse, replaces: Option<EspSpi>) -> EspSpi {
        let spi = self.sad.reserve_spi(SEGMENT).expect("slots are free");
        self.apply(ChildSaChange::Install {
            record: Box::new(record(spi, remote)),
            outbound,
            replaces,
        });
        spi
    }

    /// What happens to a packet from 10.1.0.1 to `destination`: action and slot of the first matching rule.
    fn lookup(&self, destination: &str) -> Option<(u8, u32)> {
        let to = u128::from_be_bytes(model::address::mapped(destination.parse().expect("test address")));
        let from = model::address::mapped("10.1.0.1".parse().expect("test address"));
        let entry = (0..=128u32).rev().find_map(|len| {
            let mask = if len == 0 { 0 } else { u128::MAX << (128 - len) };
            self.plane.spd.get(&(len, (to & mask).to_be_bytes()))
        })?;
        let matches = |r: &&SpdRule| r.source_first <= from && from <= r.source_last;
        let rule = entry
            .rules
            .iter()
            .take_while(|r| r.action != ACTION_NONE)
            .find(matches)?;
        Some((rule.action, rule.slot))
    }

    fn spend(&mut self, spi: EspSpi, seq: u64, edge: u64) {
        let runtime = &mut self.plane.runtime[spi_slot(spi.0) as usize];
        (runtime.outbound.seq, runtime.inbound.edge) = (seq, edge);
    }

    fn raises(&mut self, ms: u64) -> Vec<LimitRaise> {
        let plane = &self.plane;
        self.sad.wants_raises(
            Instant::from_millis(ms),
            |_| Some(EPOCH),
            |slot| plane.counters(slot),
        )
    }
}

fn context(alone: bool) -> Context {
    Context {
        now: Instant::from_millis(1000),
        epoch: EPOCH,
        alone,
    }
}

fn ts(range: &str) -> TrafficSelector {
    let (first, last) = range.split_once('-').expect("first-last");
    TrafficSelector {
        first: first.parse().expect("address"),
        last: last.parse().expect("address"),
        protocol: 0,
        first_port: 0,
        last_port: u16::MAX,
    }
}

fn record(spi: EspSpi, remote: &str) -> ChildSaRecord {
    ChildSaRecord {
        connection: "branch".into(),
        child: "net".into(),
        ike_spi: IkeSpi(0x0401_0000_0000_0001),
        spi_in: spi,
        spi_out: EspSpi(0xc000_0000 | spi_slot(spi.0)),
        suite: EspSuite::ChaCha20Poly1305,
        key_in: SecretBytes::new(vec![1; 36]),
        key_out: SecretBytes::new(vec![2; 36]),
        esn: true,
        udp_encap: false,
        local: "192.0.2.1:4500".parse().expect("address"),
        remote: "192.0.2.2:4500".parse().expect("address"),
        ts_local: vec![ts("10.1.0.0-10.1.0.255")],
        ts_remote: vec![ts(remote)],
        limits: InitialLimits {
            lease: 4096,
            lease_step: 4096,
            ceiling: 2,
            headroom: 2,
        },
    }
}

fn policy(child: &str, remote: &str) -> Policy {
    Policy {
        connection: "branch".into(),
        child: child.into(),
        local: vec![ts("10.1.0.0-10.1.0.255")],
        remote: vec![ts(remote)],
        action: PolicyAction::Protect,
        lenient: false,
        lifetimes: None,
    }
}

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

/// A Child SA in another segment than [`SEGMENT`].
fn install_in(world: &mut World, segment: SegmentId, remote: &str) -> EspSpi {
    let spi = world.sad.reserve_spi(segment).expect("slots are free");
    world.apply(ChildSaChange::Install {
        record: Box::new(record(spi, remote)),
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
