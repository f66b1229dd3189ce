//! Packets from the inside: policy, lease, number, outer header.

use maps_schema::event::{EVENT_ACQUIRE, EVENT_LEASE_EXHAUSTED, EVENT_LEASE_SOFT, SLOW_OUT_FRAGMENT};
use maps_schema::sad::{SA_LOCAL_ONLY, SUITE_CHACHA20_POLY1305};
use maps_schema::segment::{SEGMENT_ALONE, SideWord};
use maps_schema::spd::{ACTION_BYPASS, ACTION_DISCARD, ACTION_TRAP};
use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Observed, Program};
use crate::frames::{Ip, checksum, ethernet, noise, open_ours, udp};
use crate::world::*;

fn packet(ip: Ip, len: usize) -> Vec<u8> {
    ip.with(&udp(1000, 2000, &noise(len)))
}

fn plain_ip() -> Ip {
    Ip {
        tos: 0xb8,
        ..Ip::new(NEAR_HOST, FAR_HOST, 17)
    }
}

fn from_inside(ip: &[u8]) -> Vec<u8> {
    ethernet(INSIDE_MAC, NEAR_MAC, 0x0800, ip)
}

fn inside(name: impl Into<String>, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Inside, world, frame).of(CONNECTION)
}

/// The peer opens the frame with number `seq` and finds the packet of `len` octets with one hop less; the counter stands
/// at the number.
fn sealed(case: Case, suite: u8, esn_high: Option<u32>, encap: bool, seq: u64, len: usize) -> Case {
    case.ends(Verdict::EspSealed, Action::Redirect)
        .any_frame()
        .check(move |seen| {
            if seen.frame[..14] != ethernet(PEER_MAC, OUTSIDE_MAC, 0x0800, &[])[..] {
                return Err(format!("link header {:02x?}", &seen.frame[..14]));
            }
            let ours = open_ours(&seen.frame, suite, esn_high, encap)?;
            if ours.inner
                != packet(
                    Ip {
                        ttl: 63,
                        ..plain_ip()
                    },
                    len,
                )
            {
                return Err(format!("inner packet {:02x?}", ours.inner));
            }
            if ours.outer[1] != 0xb8 || ours.outer[6] != 0x40 || ours.outer[8] != 64 {
                return Err("outer TOS, DF or TTL".into());
            }
            if ours.outer[12..16] != CLUSTER.to_be_bytes() || ours.outer[16..20] != PEER.to_be_bytes() {
                return Err("outer addresses".into());
            }
            if u64::from(ours.seq_low) != seq & 0xffff_ffff || seen.counters.seq != seq {
                return Err(format!(
                    "number {}, counter {}, expected {seq}",
                    ours.seq_low, seen.counters.seq
                ));
            }
            if seen.counters.packets != 1 || seen.counters.bytes != ours.inner.len() as u64 {
                return Err("counters".into());
            }
            if ours.iv[0] != ME || ours.iv[3..] != seq.to_be_bytes()[3..] {
                return Err(format!("IV {:02x?}", ours.iv));
            }
            Ok(())
        })
}

fn simple(case: Case, seq: u64) -> Case {
    sealed(case, SUITE_CHACHA20_POLY1305, None, false, seq, 30)
}

fn epoch_in_iv(epoch: u16) -> impl Fn(&Observed) -> Result<(), String> + Send + Sync {
    move |seen| {
        let ours = open_ours(&seen.frame, SUITE_CHACHA20_POLY1305, None, false)?;
        if ours.iv[1..3] == epoch.to_be_bytes() {
            Ok(())
        } else {
            Err(format!("IV {:02x?}", ours.iv))
        }
    }
}

fn counter_is(seq: u64) -> impl Fn(&Observed) -> Result<(), String> + Send + Sync {
    move |seen| {
        if seen.counters.seq == seq {
            Ok(())
        } else {
            Err(format!("counter {}, expected {seq}", seen.counters.seq))
        }
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (suite, name) in SUITES {
        for esn in [false, true] {
            for encap in [false, true] {
                for len in [0, 1, 2, 3, 64, 1300] {
                    let name = format!("{name}, esn {esn}, encapsulation {encap}: {len} octets are sealed");
                    let frame = from_inside(&packet(plain_ip(), len));
                    let case = inside(name, World::base(suite, esn, encap), frame);
                    cases.push(sealed(case, suite, esn.then_some(0), encap, 1, len));
                }
            }
        }
    }
    cases.extend(leases());
    cases.extend(policies());
    cases.extend(sizes());
    cases
}

fn leases() -> Vec<Case> {
    let frame = || from_inside(&packet(plain_ip(), 30));
    let at = |seq| {
        let mut world = World::plain();
        world.counters.seq = seq;
        world
    };
    let mut cases = vec![
        simple(inside("the last number of the lease", at(999), frame()), 1000).check(epoch_in_iv(EPOCH)),
        simple(inside("half of the lease", at(499), frame()), 500).events(&[EVENT_LEASE_SOFT]),
        inside("the lease is used up: the counter stays", at(1000), frame())
            .ends(Verdict::LeaseExhausted, Action::Drop)
            .events(&[EVENT_LEASE_EXHAUSTED])
            .check(counter_is(1000)),
    ];
    let mut world = at(1000);
    world.counters.exhausted_version = (2 << 16) | u64::from(EPOCH);
    cases.push(
        inside("a used up lease is reported once", world, frame())
            .ends(Verdict::LeaseExhausted, Action::Drop)
            .check(counter_is(1000)),
    );
    let mut world = at(3);
    world.epoch = EPOCH + 1;
    cases.push(
        simple(inside("a taker starts above the lease", world, frame()), 1001).check(epoch_in_iv(EPOCH + 1)),
    );
    let mut world = at(2000);
    world.epoch = EPOCH + 1;
    cases.push(
        inside("a taker has one step", world.clone(), frame())
            .ends(Verdict::LeaseExhausted, Action::Drop)
            .events(&[EVENT_LEASE_EXHAUSTED]),
    );
    world.side = SideWord {
        flags: SEGMENT_ALONE,
        ..SideWord::default()
    };
    cases.push(simple(
        inside("a taker that is alone has no limit", world, frame()),
        2001,
    ));
    let mut world = at(3);
    world.epoch = EPOCH + 1;
    world.outbound.limits = cell(3000, 1000, 1000, EPOCH + 1);
    cases.push(simple(
        inside(
            "a raise after the takeover does not forget the start",
            world,
            frame(),
        ),
        1001,
    ));
    let mut world = at(5000);
    world.outbound.flags |= SA_LOCAL_ONLY;
    cases.push(simple(
        inside(
            "an SA that is known here alone has no lease",
            world.clone(),
            frame(),
        ),
        5001,
    ));
    world.counters.seq = u64::from(u32::MAX) - 1;
    cases.push(simple(
        inside("the last 32-bit number", world.clone(), frame()),
        u64::from(u32::MAX),
    ));
    world.counters.seq += 1;
    cases.push(
        inside("after the last 32-bit number", world, frame()).ends(Verdict::SequenceExhausted, Action::Drop),
    );
    let mut world = World::base(SUITE_CHACHA20_POLY1305, true, false);
    world.outbound.flags |= SA_LOCAL_ONLY;
    world.counters.seq = (3 << 32) + 6;
    let case = inside("esn: the high half is authenticated", world.clone(), frame());
    cases.push(sealed(
        case,
        SUITE_CHACHA20_POLY1305,
        Some(3),
        false,
        (3 << 32) + 7,
        30,
    ));
    world.counters.seq = (1 << 40) - 1;
    cases.push(
        inside("esn: after the last 40-bit number", world, frame())
            .ends(Verdict::SequenceExhausted, Action::Drop),
    );
    let mut world = World::plain();
    world.outbound.limits = cell(1000, 10, 0, EPOCH + 1);
    cases.push(inside("a record of a later epoch", world, frame()).ends(Verdict::EpochBehind, Action::Drop));
    cases
}

fn policies() -> Vec<Case> {
    let frame = || from_inside(&packet(plain_ip(), 30));
    let with = |action| {
        let mut world = World::plain();
        world.policy.rules[0].action = action;
        world
    };
    let to = |destination| from_inside(&Ip::new(NEAR_HOST, destination, 17).with(&udp(1, 2, b"x")));
    let mut cases = vec![
        inside("policy: bypass", with(ACTION_BYPASS), frame()).ends(Verdict::Bypassed, Action::Pass),
        inside("policy: discard", with(ACTION_DISCARD), frame()).ends(Verdict::Discarded, Action::Drop),
        inside("policy: no SA yet", with(ACTION_TRAP), frame())
            .ends(Verdict::NoSa, Action::Drop)
            .events(&[EVENT_ACQUIRE]),
        inside("no policy", World::plain(), to(0x0b00_0001))
            .of(0)
            .ends(Verdict::NoPolicy, Action::Pass),
        inside("to the inside cluster address", World::plain(), to(INSIDE))
            .of(0)
            .ends(Verdict::LocalTraffic, Action::Pass),
        inside(
            "ARP for the inside cluster address",
            World::plain(),
            crate::frames::arp_request(NEAR_MAC, NEAR_HOST, INSIDE),
        )
        .of(0)
        .ends(Verdict::ArpAnswered, Action::Transmit)
        .out(crate::frames::arp_reply(INSIDE_MAC, INSIDE, NEAR_MAC, NEAR_HOST)),
    ];
    let foreign = from_inside(&Ip::new(0x0a03_0001, FAR_HOST, 17).with(&udp(1, 2, b"x")));
    cases.push(
        inside("a source that no rule names", World::plain(), foreign)
            .of(0)
            .ends(Verdict::NoPolicy, Action::Pass),
    );
    let mut world = World::plain();
    world.policy.rules[1] = world.policy.rules[0];
    world.policy.rules[0].action = ACTION_DISCARD;
    world.policy.rules[0].destination_ports = [53, 53];
    cases.push(simple(
        inside("the first rule that matches decides", world.clone(), frame()),
        1,
    ));
    let dns = from_inside(&plain_ip().with(&udp(9, 53, b"x")));
    cases.push(inside("the first rule matches a port", world, dns).ends(Verdict::Discarded, Action::Drop));
    let mut world = World::plain();
    world.outbound.spi = 0;
    cases.push(
        inside("a policy whose SA is gone never lets pass", world, frame())
            .ends(Verdict::NoSa, Action::Drop)
            .events(&[EVENT_ACQUIRE]),
    );
    let mut world = World::plain();
    world.policy.rules[0].slot = SLOT + 1;
    cases.push(inside("an SA of another CPU", world, frame()).ends(Verdict::OtherCpu, Action::Redirect));
    cases.push(simple(
        Case::new("in the cpumap program", Program::EspOut, World::plain(), frame()).of(CONNECTION),
        1,
    ));
    let mut world = World::plain();
    world.owner = OTHER;
    let mut hopped = frame();
    hopped[..12].copy_from_slice(&[OTHER_INSIDE_MAC, INSIDE_MAC].concat());
    cases.push(
        inside("another member's segment", world.clone(), frame())
            .ends(Verdict::SecondHop, Action::Transmit)
            .out(hopped.clone())
            .check(counter_is(0)),
    );
    cases.push(
        Case::new(
            "another member's segment, after the CPU",
            Program::EspOut,
            world.clone(),
            frame(),
        )
        .of(CONNECTION)
        .ends(Verdict::SecondHop, Action::Redirect)
        .out(hopped.clone()),
    );
    let mut again = frame();
    again[6..12].copy_from_slice(&OTHER_INSIDE_MAC);
    cases.push(inside("never a third hop", world.clone(), again).ends(Verdict::NotOwner, Action::Drop));
    world.owner = ME;
    world.valid_for_ms = -5;
    cases.push(
        inside("expired, no successor", world.clone(), frame()).ends(Verdict::OwnerExpired, Action::Drop),
    );
    world.side.successor = OTHER;
    cases.push(
        inside("expired: to the successor", world, frame())
            .ends(Verdict::SecondHop, Action::Transmit)
            .out(hopped),
    );
    let flooded = ethernet([2, 9, 9, 9, 9, 9], NEAR_MAC, 0x0800, &packet(plain_ip(), 30));
    cases.push(
        inside("a frame for another host's MAC address", World::plain(), flooded)
            .of(0)
            .ends(Verdict::NotForCluster, Action::Pass),
    );
    cases
}

fn sizes() -> Vec<Case> {
    // 1500 = 20 + 8 + 8 + 1448 + 16: inner packets up to 1446.
    let fits = 1446 - 28;
    let mut cases = vec![sealed(
        inside(
            "the largest packet that fits",
            World::plain(),
            from_inside(&packet(plain_ip(), fits)),
        ),
        SUITE_CHACHA20_POLY1305,
        None,
        false,
        1,
        fits,
    )];
    let large = packet(plain_ip(), fits + 1);
    let quoted = large[..68].to_vec();
    cases.push(
        inside(
            "one octet more with DF: ICMP says 1446",
            World::plain(),
            from_inside(&large),
        )
        .ends(Verdict::FragmentNeeded, Action::Transmit)
        .any_frame()
        .check(counter_is(0))
        .check(move |seen| {
            let ip = &seen.frame[14..];
            let icmp = &ip[20..];
            let right = seen.frame[..14] == ethernet(NEAR_MAC, INSIDE_MAC, 0x0800, &[])[..]
                && ip.len() == 96
                && checksum(&ip[..20]) == 0
                && ip[9] == 1
                && ip[12..16] == INSIDE.to_be_bytes()
                && ip[16..20] == NEAR_HOST.to_be_bytes()
                && icmp[..2] == [3, 4]
                && checksum(icmp) == 0
                && icmp[6..8] == 1446u16.to_be_bytes()
                && icmp[8..] == quoted[..];
            if right {
                Ok(())
            } else {
                Err(format!("ICMP {:02x?}", seen.frame))
            }
        }),
    );
    let free = packet(
        Ip {
            fragment: 0,
            ..plain_ip()
        },
        fits + 1,
    );
    cases.push(
        inside(
            "one octet more without DF: to the slow path",
            World::plain(),
            from_inside(&free),
        )
        .ends(Verdict::OutFragment, Action::Drop)
        .slow(SLOW_OUT_FRAGMENT)
        .check(counter_is(0)),
    );
    let mut world = World::base(SUITE_CHACHA20_POLY1305, false, true);
    world.outbound.path_mtu = 1400;
    cases.push(
        inside(
            "the path is narrower than the interface",
            world,
            from_inside(&packet(plain_ip(), 1340)),
        )
        .ends(Verdict::FragmentNeeded, Action::Transmit)
        .any_frame()
        .check(|seen| {
            // 1400 - 28 - 32 = 1340, down to a multiple of four, less two.
            if seen.frame[14 + 26..14 + 28] == 1338u16.to_be_bytes() {
                Ok(())
            } else {
                Err("MTU in the ICMP".into())
            }
        }),
    );
    cases
}
