//! Overlapping policies resolve by longest destination, longest source, protocol, ports, place in the file: against a reference
//! that looks at every policy, and row by row.

use datapath::headers::v4;
use datapath::selectors::{Flow, rule_matches};
use maps_schema::spd::{ACTION_BYPASS, ACTION_DISCARD, ACTION_NONE, ACTION_TRAP, ACTION_TRAP_HOLD, SpdRule};
use model::{MemberId, TrafficSelector};
use proptest::prelude::*;
use sad::lifetime::Lifetimes;
use sad::memory::MemoryPlane;
use sad::{DataPlane, Handling, Policy, PolicyAction, Sad, Settings};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

fn store() -> Sad {
    Sad::new(Settings {
        member: MemberId(1),
        max_slots: 256,
        first_generation: 1,
        outside_mtu: 1500,
        cpus: 1,
        detection: Duration::from_millis(100),
        lifetimes: Lifetimes::default(),
    })
}

/// `10.n.n.n/len`, protocol and ports.
fn net(number: u32, len: u32, protocol: u8, ports: (u16, u16)) -> TrafficSelector {
    let mask = u32::MAX.checked_shl(32 - len).unwrap_or(0);
    let first = (0x0a00_0000 | number) & mask;
    let address = |n: u32| IpAddr::V4(Ipv4Addr::from(n));
    TrafficSelector {
        first: address(first),
        last: address(first | !mask),
        protocol,
        first_port: ports.0,
        last_port: ports.1,
    }
}

const ANY: (u16, u16) = (0, u16::MAX);

fn policy(name: &str, action: PolicyAction, source: TrafficSelector, destination: TrafficSelector) -> Policy {
    let protect = action == PolicyAction::Protect;
    Policy {
        connection: if protect {
            "branch".to_owned()
        } else {
            String::new()
        },
        child: name.to_owned(),
        local: vec![source],
        remote: vec![destination],
        action,
        lenient: false,
        lifetimes: None,
        handling: Handling::default(),
    }
}

fn plane(sad: &mut Sad, policies: Vec<Policy>) -> MemoryPlane {
    let mut plane = MemoryPlane::new(256);
    let plan = sad.configure(policies).expect("fits");
    plane.execute(&plan).expect("executes");
    plane
}

/// As the programs do it: longest prefix, first rule that matches.
fn lookup(plane: &MemoryPlane, flow: &Flow) -> Option<SpdRule> {
    let to = u128::from(flow.destination[0]) << 64 | u128::from(flow.destination[1]);
    let entry = (0..=128u32).rev().find_map(|len| {
        let mask = if len == 0 { 0 } else { u128::MAX << (128 - len) };
        plane.spd.get(&(len, (to & mask).to_be_bytes()))
    })?;
    let rules = entry.rules.iter().take_while(|r| r.action != ACTION_NONE);
    rules.copied().find(|r| rule_matches(r, flow))
}

fn flow(source: u32, destination: u32, protocol: u8, ports: Option<[u16; 2]>) -> Flow {
    Flow {
        source: v4(source),
        destination: v4(destination),
        ports: ports.unwrap_or_default(),
        protocol,
        has_ports: u8::from(ports.is_some()),
        ..Flow::default()
    }
}

#[test]
fn the_narrower_policy_wins_wherever_it_stands_in_the_file() {
    use PolicyAction::{Bypass, Discard, Protect};
    let wide = || net(0, 8, 0, ANY);
    let (from, to) = (0x0a01_0203, 0x0a02_0304);
    let rows: Vec<(&str, Policy, Policy)> = vec![
        (
            "destination before all else",
            policy("a", Bypass, wide(), net(0x0002_0000, 16, 0, ANY)),
            policy(
                "b",
                Discard,
                net(0x0001_0203, 32, 17, (9, 9)),
                net(0, 8, 17, (53, 53)),
            ),
        ),
        (
            "then the source",
            policy(
                "a",
                Bypass,
                net(0x0001_0200, 24, 0, ANY),
                net(0x0002_0000, 16, 0, ANY),
            ),
            policy(
                "b",
                Discard,
                net(0x0001_0000, 16, 17, ANY),
                net(0x0002_0000, 16, 17, (53, 53)),
            ),
        ),
        (
            "then one protocol",
            policy("a", Bypass, wide(), net(0x0002_0000, 16, 17, ANY)),
            policy("b", Discard, wide(), net(0x0002_0000, 16, 0, ANY)),
        ),
        (
            "then fewer destination ports",
            policy("a", Bypass, wide(), net(0x0002_0000, 16, 17, (53, 53))),
            policy("b", Discard, wide(), net(0x0002_0000, 16, 17, (50, 60))),
        ),
        (
            "then fewer source ports",
            policy(
                "a",
                Bypass,
                net(0, 8, 17, (9, 9)),
                net(0x0002_0000, 16, 17, (53, 53)),
            ),
            policy(
                "b",
                Discard,
                net(0, 8, 17, (1, 9)),
                net(0x0002_0000, 16, 17, (53, 53)),
            ),
        ),
        (
            "protection is no reason",
            policy("a", Bypass, wide(), net(0x0002_0300, 24, 0, ANY)),
            policy("b", Protect, wide(), net(0x0002_0000, 16, 0, ANY)),
        ),
    ];
    for (name, narrow, other) in rows {
        let packet = flow(from, to, 17, Some([9, 53]));
        for order in [
            vec![narrow.clone(), other.clone()],
            vec![other.clone(), narrow.clone()],
        ] {
            let plane = plane(&mut store(), order);
            assert_eq!(
                lookup(&plane, &packet).map(|r| r.action),
                Some(ACTION_BYPASS),
                "{name}"
            );
        }
    }
}

#[test]
fn what_is_equally_narrow_is_told_apart_by_its_place() {
    let both = |first, second| {
        vec![
            policy("a", first, net(0, 8, 17, (1, 5)), net(0x0002_0000, 16, 17, ANY)),
            policy("b", second, net(0, 8, 17, (4, 8)), net(0x0002_0000, 16, 17, ANY)),
        ]
    };
    let packet = flow(0x0a01_0203, 0x0a02_0304, 17, Some([4, 53]));
    let of = |first, second| lookup(&plane(&mut store(), both(first, second)), &packet).map(|r| r.action);
    assert_eq!(
        of(PolicyAction::Bypass, PolicyAction::Discard),
        Some(ACTION_BYPASS)
    );
    assert_eq!(
        of(PolicyAction::Discard, PolicyAction::Bypass),
        Some(ACTION_DISCARD)
    );
}

#[test]
fn a_packet_that_no_rule_of_the_longest_prefix_matches_falls_to_the_shorter_one() {
    let policies = vec![
        policy(
            "web",
            PolicyAction::Discard,
            net(0, 8, 6, ANY),
            net(0x0002_0300, 24, 6, (80, 80)),
        ),
        policy(
            "all",
            PolicyAction::Protect,
            net(0, 8, 0, ANY),
            net(0x0002_0000, 16, 0, ANY),
        ),
        policy("rest", PolicyAction::Bypass, net(0, 8, 0, ANY), net(0, 8, 0, ANY)),
    ];
    let mut sad = store();
    let plane = plane(&mut sad, policies);
    let action = |to, port| lookup(&plane, &flow(0x0a01_0001, to, 6, Some([1, port]))).map(|r| r.action);
    assert_eq!(action(0x0a02_0304, 80), Some(ACTION_DISCARD));
    assert_eq!(action(0x0a02_0304, 81), Some(ACTION_TRAP));
    assert_eq!(action(0x0a02_0404, 80), Some(ACTION_TRAP));
    assert_eq!(action(0x0a03_0304, 80), Some(ACTION_BYPASS));
    // A later fragment has no ports: it does not match the narrow one.
    let fragment = flow(0x0a01_0001, 0x0a02_0304, 6, None);
    assert_eq!(lookup(&plane, &fragment).map(|r| r.action), Some(ACTION_TRAP));
    // And so an operator sees it.
    let (lines, left_out) = sad.policy_lines(100);
    let shown: Vec<_> = lines
        .iter()
        .map(|l| (&l.destination[..], l.action, &l.name[..]))
        .collect();
    assert_eq!(
        shown,
        [
            ("10.2.3.0/24", "discard", "web"),
            ("10.2.0.0/16", "trap", "branch/all"),
            ("10.0.0.0/8", "bypass", "rest"),
        ]
    );
    assert_eq!(left_out, 0);
}

#[test]
fn a_policy_that_holds_traps_with_the_packet() {
    let mut held = policy(
        "a",
        PolicyAction::Protect,
        net(0, 8, 0, ANY),
        net(0x0002_0000, 16, 0, ANY),
    );
    held.handling.hold = true;
    let plane = plane(&mut store(), vec![held]);
    let rule = lookup(&plane, &flow(0x0a01_0001, 0x0a02_0001, 17, Some([1, 2]))).expect("a rule");
    assert_eq!((rule.action, rule.connection), (ACTION_TRAP_HOLD, 1));
}

proptest! {
    /// Whatever the policies: what the maps say is what the reference finds among all that match.
    #[test]
    fn every_packet_meets_the_policy_that_precedence_names(
        policies in proptest::collection::vec(
            ((0u32..4, 0u32..9), (0u32..4, 0u32..9), 0u8..3, 0u16..4, 0u16..4, 0u8..3), 1..7),
        packets in proptest::collection::vec((any::<u16>(), any::<u16>(), 0u8..3, 0u16..6), 20),
    ) {
        let protocols = [0u8, 6, 17];
        let configured: Vec<Policy> = policies.iter().enumerate().map(|(at, (s, d, protocol, sp, dp, action))| {
            let protocol = protocols[usize::from(*protocol)];
            // 0: any port; otherwise a few.
            let ports = |p: u16| if p == 0 || protocol == 0 { ANY } else { (p, p + 2) };
            let action = [PolicyAction::Protect, PolicyAction::Bypass, PolicyAction::Discard][usize::from(*action)];
            policy(&at.to_string(), action, net(s.0 << 15, 16 + s.1, protocol, ports(*sp)), net(d.0 << 15, 16 + d.1, protocol, ports(*dp)))
        }).collect();
        let mut sad = store();
        let mut plane = MemoryPlane::new(256);
        plane.execute(&sad.configure(configured.clone()).expect("six rules fit")).expect("executes");
        for (from, to, protocol, port) in packets {
            let protocol = [6u8, 17, 1][usize::from(protocol)];
            let ports = (protocol != 1).then_some([port, port]);
            let (source, destination) = (0x0a00_0000 | u32::from(from) << 1, 0x0a00_0000 | u32::from(to) << 1);
            let packet = flow(source, destination, protocol, ports);
            let number = |ip: IpAddr| match ip { IpAddr::V4(v4) => u32::from(v4), IpAddr::V6(_) => 0 };
            let within = |ts: &TrafficSelector, address: u32, port: Option<u16>| {
                number(ts.first) <= address && address <= number(ts.last)
                    && (ts.protocol == 0 || ts.protocol == protocol)
                    && ((ts.first_port, ts.last_port) == ANY || port.is_some_and(|p| ts.first_port <= p && p <= ts.last_port))
            };
            let span = |ts: &TrafficSelector| number(ts.last) - number(ts.first);
            let width = |ts: &TrafficSelector| ts.last_port - ts.first_port;
            let want = configured.iter().enumerate()
                .filter(|(_, p)| within(&p.local[0], source, ports.map(|p| p[0])) && within(&p.remote[0], destination, ports.map(|p| p[1])))
                .min_by_key(|(at, p)| (span(&p.remote[0]), span(&p.local[0]), p.remote[0].protocol == 0, width(&p.remote[0]), width(&p.local[0]), *at))
                .map(|(_, p)| match p.action {
                    PolicyAction::Protect => ACTION_TRAP,
                    PolicyAction::Bypass => ACTION_BYPASS,
                    PolicyAction::Discard => ACTION_DISCARD,
                });
            prop_assert_eq!(lookup(&plane, &packet).map(|r| r.action), want);
        }
    }
}
