//! The policy map against a slow reference, and its cost.

use maps_schema::sad::spi_slot;
use maps_schema::spd::{ACTION_NONE, ACTION_PROTECT, ACTION_TRAP};
use model::{
    ChildSaChange, ChildSaRecord, Epoch, EspSpi, EspSuite, IkeSpi, InitialLimits, Instant, MemberId,
    OutboundUse, SecretBytes, SegmentId, TrafficSelector,
};
use proptest::prelude::*;
use sad::lifetime::Lifetimes;
use sad::memory::MemoryPlane;
use sad::{Context, DataPlane, Policy, PolicyAction, Sad, Settings};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const SLOTS: u32 = 1 << 14;

fn store() -> (Sad, MemoryPlane) {
    let settings = Settings {
        member: MemberId(1),
        max_slots: SLOTS,
        cpus: 2,
        first_generation: 1,
        outside_mtu: 1500,
        detection: Duration::from_millis(100),
        lifetimes: Lifetimes::default(),
    };
    (Sad::new(settings), MemoryPlane::new(SLOTS))
}

/// A prefix within 10.0.0.0/8 as a selector.
fn net(number: u32, len: u32) -> TrafficSelector {
    let mask = u32::MAX.checked_shl(32 - len).unwrap_or(0);
    let first = (0x0a00_0000 | number) & mask;
    let address = |n: u32| IpAddr::V4(Ipv4Addr::from(n));
    TrafficSelector {
        first: address(first),
        last: address(first | !mask),
        protocol: 0,
        first_port: 0,
        last_port: u16::MAX,
    }
}

fn sa(spi: EspSpi, child: usize, remote: TrafficSelector) -> ChildSaChange {
    let record = ChildSaRecord {
        connection: "branch".into(),
        child: child.to_string(),
        ike_spi: IkeSpi(1),
        spi_in: spi,
        spi_out: EspSpi(0xc000_0001),
        suite: EspSuite::ChaCha20Poly1305,
        key_in: SecretBytes::new(vec![1; 36]),
        key_out: SecretBytes::new(vec![2; 36]),
        form: model::SaForm::default(),
        udp_encap: false,
        local: "192.0.2.1:4500".parse().expect("address"),
        remote: "192.0.2.2:4500".parse().expect("address"),
        ts_local: vec![net(0, 8)],
        ts_remote: vec![remote],
        limits: InitialLimits {
            lease: 4096,
            lease_step: 4096,
            ceiling: 2,
            headroom: 2,
        },
    };
    ChildSaChange::Install {
        record: Box::new(record),
        outbound: OutboundUse::Now,
        replaces: None,
    }
}

const CONTEXT: Context = Context {
    now: Instant(0),
    epoch: Epoch(1),
    alone: false,
};

fn lookup(plane: &MemoryPlane, to: u32) -> Option<(u8, u32)> {
    let to = u128::from_be_bytes(model::address::mapped(IpAddr::V4(Ipv4Addr::from(to))));
    let entry = (0..=128u32).rev().find_map(|len| {
        let mask = if len == 0 { 0 } else { u128::MAX << (128 - len) };
        plane.spd.get(&(len, (to & mask).to_be_bytes()))
    })?;
    Some((entry.rules[0].action, entry.rules[0].slot)).filter(|r| r.0 != ACTION_NONE)
}

struct Live {
    spi: EspSpi,
    child: usize,
    number: u32,
    len: u32,
}

proptest! {
    /// Policies and SAs come and go in any order; every destination meets the rule that the reference finds: longest
    /// prefix, then order of configuration, then the SA switched to last, then the trap.
    #[test]
    fn every_destination_meets_the_right_rule(
        policies in proptest::collection::vec((0u32..8, 0u32..9), 1..5),
        steps in proptest::collection::vec((any::<bool>(), any::<u8>(), 0u32..4), 0..25),
    ) {
        let (mut sad, mut plane) = store();
        // /16 to /24 around 10.number.0.0.
        let nets: Vec<(u32, u32)> = policies.iter().map(|(n, extra)| (n << 13, 16 + extra)).collect();
        let configured = nets.iter().enumerate().map(|(at, (n, len))| Policy {
            connection: "branch".into(),
            child: at.to_string(),
            local: vec![net(0, 8)],
            remote: vec![net(*n, *len)],
            action: PolicyAction::Protect,
            lenient: false,
            lifetimes: None,
            handling: sad::Handling::default(),
        });
        plane.execute(&sad.configure(configured.collect()).expect("fits")).expect("executes");
        let mut live: Vec<Live> = Vec::new();
        for (add, pick, narrower) in steps {
            if add || live.is_empty() {
                let child = usize::from(pick) % nets.len();
                let (number, len) = (nets[child].0, nets[child].1 + narrower);
                let spi = sad.reserve_spi(SegmentId(pick)).expect("slots are free");
                match sad.apply(&sa(spi, child, net(number, len)), CONTEXT) {
                    Ok(plan) => plane.execute(&plan).expect("executes"),
                    Err(error) => {
                        prop_assert!(error.to_string().contains("rules apply"), "{}", error);
                        sad.release_spi(spi);
                        continue;
                    }
                }
                live.push(Live { spi, child, number, len });
            } else {
                let gone = live.remove(usize::from(pick) % live.len());
                let plan = sad.apply(&ChildSaChange::Remove { spi_in: gone.spi }, CONTEXT).expect("removes");
                plane.execute(&plan).expect("executes");
            }
            for to in (0..16u32).map(|i| 0x0a00_0000 | (i << 12) | 7).chain([0x0a00_0087, 0x0a00_2007, 0x0a00_0207]) {
                let within = |n: u32, len: u32| (to ^ (0x0a00_0000 | n)) >> (32 - len) == 0;
                let traps = nets.iter().enumerate().filter(|(_, (n, len))| within(*n, *len));
                let traps = traps.map(|(at, (_, len))| ((32 - len, at, usize::MAX), (ACTION_TRAP, 0)));
                let sas = live.iter().enumerate().filter(|(_, l)| within(l.number, l.len)).map(|(age, l)| {
                    ((32 - l.len, l.child, usize::MAX - 1 - age), (ACTION_PROTECT, spi_slot(l.spi.0)))
                });
                let want = traps.chain(sas).min_by_key(|(rank, _)| *rank).map(|(_, rule)| rule);
                prop_assert_eq!(lookup(&plane, to), want, "to {}", Ipv4Addr::from(to));
            }
        }
        let all: Vec<_> = live.drain(..).map(|l| l.spi).collect();
        for spi in all {
            plane.execute(&sad.apply(&ChildSaChange::Remove { spi_in: spi }, CONTEXT).expect("removes")).expect("executes");
        }
        prop_assert!(plane.spd.values().flat_map(|e| e.rules).all(|r| r.action == ACTION_TRAP || r.action == ACTION_NONE));
    }
}

#[test]
fn an_sa_costs_the_same_number_of_writes_however_many_there_are() {
    let (mut sad, mut plane) = store();
    let remote = |i: u32| net(0x0080_0000 + i, 32);
    for i in 0..8000 {
        let spi = sad.reserve_spi(SegmentId(i as u8)).expect("slots are free");
        let plan = sad.apply(&sa(spi, 0, remote(i)), CONTEXT).expect("applies");
        assert_eq!(plan.ops.len(), 6, "SA number {i}");
        plane.execute(&plan).expect("executes");
    }
    assert_eq!(sad.clear().ops.len(), 2 * 8000);
}
