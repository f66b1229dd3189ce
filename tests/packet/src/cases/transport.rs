//! Transport mode: what the gateway itself says and hears.

use maps_schema::event::{EVENT_FIRST_INBOUND, SLOW_ABOVE_CEILING, SLOW_OUTER_FRAGMENT};
use maps_schema::sad::{DF_SET, SUITE_CHACHA20_POLY1305};
use maps_schema::spd::ACTION_TRAP;
use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Program};
use crate::frames::{Ip, Ip6, Sealer, checksum, ethernet, noise, open_sealed, tagged, udp};
use crate::world::*;

const SUITE: u8 = SUITE_CHACHA20_POLY1305;
const GRE: u8 = 47;

fn plain() -> World {
    World::transport(SUITE, false, false, false)
}

fn inside(name: impl Into<String>, world: World, packet: &[u8]) -> Case {
    let ethertype = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
    let frame = ethernet(INSIDE_MAC, NEAR_MAC, ethertype, packet);
    Case::new(name, Program::Inside, world, frame).of(CONNECTION)
}

fn steer(name: impl Into<String>, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Steer, world, frame).of(CONNECTION)
}

fn ours() -> Ip {
    Ip {
        ttl: 7,
        tos: 0xb8,
        ..Ip::new(CLUSTER, PEER, GRE)
    }
}

fn ours_v6() -> Ip6 {
    Ip6 {
        ttl: 7,
        tos: 0xb8,
        ..Ip6::new(CLUSTER_V6, PEER_V6, GRE)
    }
}

/// The header as it was but for length and protocol, and behind it the payload, sealed.
fn sealed(case: Case, suite: u8, high: Option<u32>, encap: bool, payload: &[u8]) -> Case {
    let payload = payload.to_vec();
    case.ends(Verdict::EspSealed, Action::Redirect)
        .any_frame()
        .check(move |seen| {
            let (opened, next) = open_sealed(SPI_OUT, &seen.frame, suite, high, encap)?;
            if (next, &opened.inner) != (GRE, &payload) {
                return Err(format!("next header {next}, payload {:02x?}", opened.inner));
            }
            let outer = &opened.outer;
            let right = if outer[0] >> 4 == 6 {
                (outer[0] & 0xf, outer[1] >> 4, outer[7]) == (0xb, 8, 7)
                    && outer[8..24] == CLUSTER_V6
                    && outer[24..40] == PEER_V6
            } else {
                (outer[1], outer[6], outer[8]) == (0xb8, 0x40, 7)
                    && outer[12..16] == CLUSTER.to_be_bytes()
                    && outer[16..20] == PEER.to_be_bytes()
            };
            if right {
                Ok(())
            } else {
                Err(format!("outer header {:02x?}", &outer[..40]))
            }
        })
}

fn theirs(v6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    if v6 {
        ethernet(
            OUTSIDE_MAC,
            PEER_MAC,
            0x86dd,
            &Ip6::new(PEER_V6, CLUSTER_V6, protocol).with(payload),
        )
    } else {
        ethernet(
            OUTSIDE_MAC,
            PEER_MAC,
            0x0800,
            &Ip::new(PEER, CLUSTER, protocol).with(payload),
        )
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (suite, _) in SUITES {
        for (esn, encap, v6) in [
            (false, false, false),
            (true, false, false),
            (false, true, false),
            (false, false, true),
            (true, true, true),
        ] {
            for len in [1, 2, 3, 4, 200] {
                let what =
                    format!("transport, suite {suite}, ESN {esn}, UDP {encap}, IPv6 {v6}, {len} octets");
                let world = World::transport(suite, esn, encap, v6);
                let payload = noise(len);
                let packet = if v6 {
                    ours_v6().with(&payload)
                } else {
                    ours().with(&payload)
                };
                let case = inside(format!("{what}, out"), world.clone(), &packet);
                cases.push(sealed(case, suite, esn.then_some(0), encap, &payload));
                let peer = Sealer {
                    next_header: GRE,
                    v6,
                    ..Sealer::peer(suite, esn, encap)
                };
                cases.push(
                    steer(format!("{what}, in"), world, peer.frame(5, &payload))
                        .ends(Verdict::EspOpenedLocal, Action::Pass)
                        .out(theirs(v6, GRE, &payload))
                        .events(&[EVENT_FIRST_INBOUND]),
                );
            }
        }
    }
    let peer = Sealer {
        next_header: GRE,
        ..Sealer::peer(SUITE, false, false)
    };
    // 1500 = 20 + 8 + 8 + 1448 + 16: payloads up to 1446.
    let fits = noise(1446);
    cases.push(sealed(
        inside(
            "transport: the largest packet that fits",
            plain(),
            &ours().with(&fits),
        ),
        SUITE,
        None,
        false,
        &fits,
    ));
    let large = noise(1447);
    cases.push(
        inside(
            "transport: a larger one is cut outside, DF or not",
            plain(),
            &ours().with(&large),
        )
        .ends(Verdict::OuterCut, Action::Drop)
        .any_frame()
        .slow_changed(SLOW_OUTER_FRAGMENT)
        .check(move |seen| {
            let (opened, next) = open_sealed(SPI_OUT, &seen.slow[0].1, SUITE, None, false)?;
            if (next, &opened.inner, opened.outer[6]) == (GRE, &large, 0) {
                Ok(())
            } else {
                Err(format!("{:02x?}", &opened.outer[..20]))
            }
        }),
    );
    let last = Ip { ttl: 1, ..ours() };
    cases.push(
        inside("transport: TTL 1 reaches a neighbour", plain(), &last.with(b"x"))
            .ends(Verdict::EspSealed, Action::Redirect)
            .any_frame(),
    );
    let mut world = plain();
    world.outbound.df = DF_SET;
    world.outbound.dscp = 11;
    let loose = Ip {
        fragment: 0,
        ..ours()
    };
    cases.push(
        inside(
            "transport: df and dscp as configured",
            world,
            &loose.with(&noise(40)),
        )
        .ends(Verdict::EspSealed, Action::Redirect)
        .any_frame()
        .check(|seen| match (seen.frame[15], seen.frame[20]) {
            (0x28, 0x40) => Ok(()),
            other => Err(format!("TOS and flags {other:02x?}")),
        }),
    );
    let from_vlan = tagged(
        INSIDE_VLAN,
        &ethernet(INSIDE_MAC, NEAR_MAC, 0x0800, &ours().with(&noise(40))),
    );
    cases.push(sealed(
        Case::new("transport: from a VLAN", Program::Inside, plain(), from_vlan).of(CONNECTION),
        SUITE,
        None,
        false,
        &noise(40),
    ));
    // What is not sealed.
    let refused = |name: &str, world: World, packet: &[u8]| {
        inside(name, world, packet)
            .ends(Verdict::TransportHeader, Action::Drop)
            .check(|seen| match seen.counters.seq {
                0 => Ok(()),
                seq => Err(format!("number {seq} was used")),
            })
    };
    // Rules of an older configuration lead it to an SA whose peer is at an IPv6 address.
    for options in [0, 8] {
        let payload = udp(1000, 2000, &noise(40));
        let other = Ip::new(NEAR_HOST, FAR_HOST, 17).with_options(&vec![1; options], &payload);
        cases.push(refused(
            &format!("transport: another family than the SA's, {options} octets of options"),
            World::transport(SUITE, false, true, true),
            &other,
        ));
    }
    for (what, fragment) in [("first", 0x2000), ("later", 7)] {
        let piece = Ip { fragment, ..ours() };
        cases.push(refused(
            &format!("transport: a {what} piece"),
            plain(),
            &piece.with(&noise(64)),
        ));
    }
    cases.push(
        inside(
            "transport: another protocol stays in clear",
            plain(),
            &Ip::new(CLUSTER, PEER, 17).with(&udp(1, 2, b"x")),
        )
        .of(0)
        .ends(Verdict::NoPolicy, Action::Pass),
    );
    let mut trapped = plain();
    trapped.policy_peer[0].rules[0].action = ACTION_TRAP;
    cases.push(
        inside("transport: without SA", trapped, &ours().with(b"x"))
            .ends(Verdict::NoSa, Action::Drop)
            .events(&[maps_schema::event::EVENT_ACQUIRE]),
    );
    // In clear, what is to be sealed is dropped; what is not, is the gateway's.
    let clear = theirs(false, GRE, &noise(20));
    cases.push(steer("transport: in clear", plain(), clear).ends(Verdict::ClearText, Action::Drop));
    cases.push(
        steer(
            "transport: another protocol in clear",
            plain(),
            theirs(false, 6, &noise(20)),
        )
        .of(0)
        .ends(Verdict::LocalTraffic, Action::Pass),
    );
    // What arrives sealed.
    let mut ports = plain();
    ports.inbound.selectors[0].protocol = 6;
    ports.inbound.selectors[0].remote_ports = [179, 179];
    let tcp = |source: u16| [&source.to_be_bytes()[..], &[1, 2], &noise(16)].concat();
    let bgp = Sealer {
        next_header: 6,
        ..peer
    };
    cases.push(
        steer(
            "transport: ports of the selector",
            ports.clone(),
            bgp.frame(5, &tcp(179)),
        )
        .ends(Verdict::EspOpenedLocal, Action::Pass)
        .out(theirs(false, 6, &tcp(179)))
        .events(&[EVENT_FIRST_INBOUND]),
    );
    let refused = |name: &str, world: World, frame: Vec<u8>, verdict| {
        steer(name, world, frame).ends(verdict, Action::Drop)
    };
    cases.push(refused(
        "transport: other ports",
        ports,
        bgp.frame(5, &tcp(180)),
        Verdict::SelectorMismatch,
    ));
    cases.push(refused(
        "transport: another protocol inside",
        plain(),
        bgp.frame(5, &noise(20)),
        Verdict::SelectorMismatch,
    ));
    let elsewhere = Ip::new(PEER_2, CLUSTER, 50).with(&peer.esp(5, &noise(20)));
    cases.push(refused(
        "transport: from another address",
        plain(),
        ethernet(OUTSIDE_MAC, PEER_MAC, 0x0800, &elsewhere),
        Verdict::SelectorMismatch,
    ));
    let dummy = Sealer {
        next_header: 59,
        ..peer
    };
    cases.push(refused(
        "transport: a dummy packet",
        plain(),
        dummy.frame(5, &noise(20)),
        Verdict::InnerUnsupported,
    ));
    let mut altered = peer.frame(5, &noise(20));
    altered[60] ^= 1;
    cases.push(refused("transport: altered", plain(), altered, Verdict::IcvBad));
    cases.push(
        steer(
            "transport: above the ceiling",
            plain(),
            peer.frame(1001, &noise(20)),
        )
        .ends(Verdict::AboveCeiling, Action::Drop)
        .slow(SLOW_ABOVE_CEILING),
    );
    let empty = peer.frame(5, &[]);
    cases.push(
        steer("transport: nothing inside", plain(), empty)
            .ends(Verdict::EspOpenedLocal, Action::Pass)
            .out(theirs(false, GRE, &[]))
            .events(&[EVENT_FIRST_INBOUND]),
    );
    cases.extend(through_a_nat());
    cases
}

/// A peer whose address a NAT has changed: its stack made the upper layer's checksum for an address that is not in the packet any more.
fn through_a_nat() -> Vec<Case> {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const ICMPV6: u8 = 58;
    let mut cases = Vec::new();
    let behind_v6 = {
        let mut address = PEER_V6;
        address[15] ^= 0x77;
        address
    };
    let payload = |v6: bool, protocol: u8, place: usize, len: usize| {
        let mut text = noise(len);
        if let Some(field) = text.get_mut(place..place + 2) {
            field.fill(0);
            let sum = if v6 {
                Ip6::new(behind_v6, CLUSTER_V6, protocol).checksum(&text)
            } else {
                pseudo(0x0a00_0002, CLUSTER, protocol, &text)
            };
            text[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        }
        text
    };
    // Whole words and not, as much as a frame holds, and what is too short to have a checksum.
    for (v6, protocol, place, lengths) in [
        (false, TCP, 16, &[20, 21, 22, 23, 24, 1400, 16, 17][..]),
        (true, TCP, 16, &[20, 23, 1401, 17][..]),
        (false, UDP, 6, &[8, 9, 1400, 7][..]),
        (true, UDP, 6, &[8, 11, 1400, 7][..]),
        (true, ICMPV6, 2, &[8, 13, 3][..]),
    ] {
        for len in lengths {
            let text = payload(v6, protocol, place, *len);
            let mut want = text.clone();
            if *len >= place + 2 {
                want[place..place + 2].fill(0);
                let sum = match (v6, protocol) {
                    // None is as good, and any other says that it was checked.
                    (false, UDP) => 0,
                    (false, _) => pseudo(PEER, CLUSTER, protocol, &want),
                    (true, _) => Ip6::new(PEER_V6, CLUSTER_V6, protocol).checksum(&want),
                };
                want[place..place + 2].copy_from_slice(&sum.to_be_bytes());
            }
            for encap in [true, false] {
                let mut world = World::transport(SUITE, false, encap, v6);
                world.inbound.selectors[0].protocol = u32::from(protocol);
                let peer = Sealer {
                    next_header: protocol,
                    v6,
                    ..Sealer::peer(SUITE, false, encap)
                };
                // Without UDP no NAT was on the way: what is wrong stays wrong.
                let (what, out) = if encap {
                    ("through a NAT", &want)
                } else {
                    ("without a NAT", &text)
                };
                cases.push(
                    steer(
                        format!("transport {what}: protocol {protocol}, {len} octets, IPv6 {v6}"),
                        world,
                        peer.frame(5, &text),
                    )
                    .ends(Verdict::EspOpenedLocal, Action::Pass)
                    .out(theirs(v6, protocol, out))
                    .events(&[EVENT_FIRST_INBOUND]),
                );
            }
        }
    }
    cases
}

/// Checksum over IPv4's pseudo header and what follows it (RFC 9293 3.1).
fn pseudo(source: u32, destination: u32, protocol: u8, text: &[u8]) -> u16 {
    let length = (text.len() as u16).to_be_bytes();
    let header = [
        &source.to_be_bytes()[..],
        &destination.to_be_bytes(),
        &[0, protocol],
        &length,
    ];
    checksum(&[header.concat().as_slice(), text].concat())
}
