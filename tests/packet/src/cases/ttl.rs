//! Packets whose TTL or hop limit ends here: the sender is told, in the tunnel too.

use maps_schema::event::{EVENT_FIRST_INBOUND, SLOW_TTL_EXCEEDED};
use maps_schema::sad::SUITE_CHACHA20_POLY1305;
use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Observed, Program};
use crate::frames::{Ip, Ip6, Sealer, checksum, ethernet, noise, tagged, udp};
use crate::world::*;

const SUITE: u8 = SUITE_CHACHA20_POLY1305;

fn inside(name: impl Into<String>, world: World, packet: &[u8]) -> Case {
    let ethertype = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
    let frame = ethernet(INSIDE_MAC, NEAR_MAC, ethertype, packet);
    Case::new(name, Program::Inside, world, frame).of(CONNECTION)
}

fn dying(protocol: u8, payload: &[u8]) -> Vec<u8> {
    Ip {
        ttl: 1,
        ..Ip::new(NEAR_HOST, FAR_HOST, protocol)
    }
    .with(payload)
}

fn dying_v6(protocol: u8, payload: &[u8]) -> Vec<u8> {
    Ip6 {
        ttl: 1,
        ..Ip6::new(NEAR_HOST_V6, FAR_HOST_V6, protocol)
    }
    .with(payload)
}

fn nothing_sent(seen: &Observed) -> Result<(), String> {
    if seen.counters.seq == 0 && seen.counters.packets == 0 {
        Ok(())
    } else {
        Err("a number was used".into())
    }
}

/// ICMP Time Exceeded about `packet` to the inside host, from the inside cluster address.
fn told(case: Case, packet: &[u8], tag: Option<u16>) -> Case {
    let packet = packet.to_vec();
    let v6 = packet[0] >> 4 == 6;
    case.ends(Verdict::TimeExceeded, Action::Transmit)
        .any_frame()
        .check(nothing_sent)
        .check(move |seen| {
            let mut link = ethernet(NEAR_MAC, INSIDE_MAC, if v6 { 0x86dd } else { 0x0800 }, &[]);
            if let Some(tag) = tag {
                link = tagged(tag, &link);
            }
            let Some(ip) = seen.frame.strip_prefix(&link[..]) else {
                return Err(format!("link header {:02x?}", &seen.frame[..18]));
            };
            let (header, message) = ip.split_at(if v6 { 40 } else { 20 });
            let right = if v6 {
                let answer = Ip6::new(INSIDE_V6, NEAR_HOST_V6, 58);
                header == &answer.with(message)[..40]
                    && answer.checksum(message) == 0
                    && message[..2] == [3, 0]
                    && message[8..] == packet[..packet.len().min(1232)]
            } else {
                let answer = Ip {
                    fragment: 0,
                    ..Ip::new(INSIDE, NEAR_HOST, 1)
                };
                header == &answer.with(message)[..20]
                    && checksum(message) == 0
                    && message[..2] == [11, 0]
                    && message[8..] == packet[..packet.len().min(548)]
            };
            if right && message[4..8] == [0; 4] {
                Ok(())
            } else {
                Err(format!("ICMP {:02x?}", ip))
            }
        })
}

/// Opened, and given to the slow path in the clear, up to the length that an error quotes.
fn told_far(name: String, world: World, sealed: Vec<u8>, packet: &[u8]) -> Case {
    let quoted = packet[..packet.len().min(1232)].to_vec();
    let ethertype = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
    let want = ethernet(OUTSIDE_MAC, PEER_MAC, ethertype, &quoted);
    Case::new(name, Program::Steer, world, sealed)
        .of(CONNECTION)
        .ends(Verdict::TimeExceededFar, Action::Drop)
        .any_frame()
        .slow_changed(SLOW_TTL_EXCEEDED)
        .events(&[EVENT_FIRST_INBOUND])
        .check(move |seen| match &seen.slow[..] {
            [(_, frame)] if *frame == want => Ok(()),
            other => Err(format!("slow path {other:02x?}")),
        })
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // Odd lengths, short ones, and those beyond what is quoted.
    for len in [0, 1, 2, 3, 21, 500, 520, 521, 1400] {
        let packet = dying(17, &udp(1000, 33434, &noise(len)));
        let case = inside(format!("TTL: {len} octets of UDP"), World::plain(), &packet);
        cases.push(told(case, &packet, None));
        if len < 1398 {
            let packet = dying_v6(17, &udp(1000, 33434, &noise(len)));
            let case = inside(format!("hop limit: {len} octets of UDP"), World::plain(), &packet);
            cases.push(told(case, &packet, None));
        }
    }
    let long = dying_v6(17, &udp(1000, 33434, &noise(1300)));
    cases.push(told(
        inside("hop limit: more than is quoted", World::plain(), &long),
        &long,
        None,
    ));
    let packet = dying(17, &udp(1000, 33434, &noise(30)));
    let from_vlan = tagged(INSIDE_VLAN, &ethernet(INSIDE_MAC, NEAR_MAC, 0x0800, &packet));
    cases.push(told(
        Case::new("TTL in a VLAN", Program::Inside, World::plain(), from_vlan).of(CONNECTION),
        &packet,
        Some(INSIDE_VLAN),
    ));
    let echo = dying(1, &[8, 0, 0, 0, 0, 1, 0, 1]);
    cases.push(told(
        inside("TTL of an echo request", World::plain(), &echo),
        &echo,
        None,
    ));
    let silent = |name: &str, world: World, packet: Vec<u8>| {
        inside(name, world, &packet)
            .ends(Verdict::TtlExceeded, Action::Drop)
            .check(nothing_sent)
    };
    cases.push(silent(
        "TTL: no error about an error",
        World::plain(),
        dying(1, &[11, 0, 0, 0, 0, 0, 0, 0]),
    ));
    cases.push(silent(
        "hop limit: no error about an error",
        World::plain(),
        dying_v6(58, &[3, 0, 0, 0, 0, 0, 0, 0]),
    ));
    let mut piece = Ip {
        ttl: 1,
        fragment: 5,
        ..Ip::new(NEAR_HOST, FAR_HOST, 17)
    };
    cases.push(silent(
        "TTL: no error about a later piece",
        World::plain(),
        piece.with(&noise(40)),
    ));
    piece.fragment = 0x2000;
    let first = piece.with(&udp(1000, 33434, &noise(40)));
    cases.push(told(
        inside("TTL: an error about a first piece", World::plain(), &first),
        &first,
        None,
    ));
    let mut nowhere = World::plain();
    nowhere.local.inside_address = [0; 16];
    nowhere.local.inside_address_v6 = [0; 16];
    cases.push(silent(
        "TTL: no address to tell from",
        nowhere.clone(),
        packet.clone(),
    ));
    cases.push(silent(
        "hop limit: no address to tell from",
        nowhere,
        dying_v6(17, &udp(1, 2, b"x")),
    ));
    let peer = Sealer::peer(SUITE, false, false);
    for len in [0, 3, 500, 1300] {
        let packet = Ip {
            ttl: 1,
            ..Ip::new(FAR_HOST, NEAR_HOST, 17)
        }
        .with(&udp(1000, 33434, &noise(len)));
        cases.push(told_far(
            format!("TTL of an opened packet, {len} octets of UDP"),
            World::plain(),
            peer.frame(5, &packet),
            &packet,
        ));
        let packet = Ip6 {
            ttl: 1,
            ..Ip6::new(FAR_HOST_V6, NEAR_HOST_V6, 17)
        }
        .with(&udp(1000, 33434, &noise(len)));
        let v6 = Sealer::over_v6(SUITE, false, true).around_v6();
        cases.push(told_far(
            format!("hop limit of an opened packet over IPv6, {len} octets of UDP"),
            World::over_v6(SUITE, false, true),
            v6.frame(5, &packet),
            &packet,
        ));
    }
    cases
}
