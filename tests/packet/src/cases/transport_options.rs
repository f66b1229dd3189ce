//! Transport mode with IP options and extension headers: what nodes on the way look at stays before ESP, in both directions.

use maps_schema::event::{EVENT_FIRST_INBOUND, SLOW_OUTER_FRAGMENT};
use maps_schema::sad::SUITE_CHACHA20_POLY1305;
use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Observed, Program};
use crate::frames::{Ip, Ip6, Sealer, ethernet, extensions, noise, open_sealed, tagged, udp};
use crate::world::*;

const SUITE: u8 = SUITE_CHACHA20_POLY1305;
const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const GRE: u8 = 47;
const ESP: u8 = 50;
const DESTINATION: u8 = 60;

/// Router alert (RFC 2113).
const ALERT: &[u8] = &[0x94, 4, 0, 0];
/// Record route (RFC 791 3.1) with room for one address, and the end of the list.
const RECORD: &[u8] = &[7, 7, 4, 0, 0, 0, 0, 0];
/// Timestamps with room for nine: all that a header holds.
const TIMESTAMPS: &[u8] = &{
    let mut option = [0; 40];
    (option[0], option[1], option[2]) = (68, 40, 5);
    option
};
/// Strict source route with nothing left of it, and a router alert.
const ROUTED_ALERT: &[u8] = &[0x89, 7, 8, 192, 168, 10, 1, 0x94, 4, 0, 0, 0];

/// An extension header: its type, and what follows next header and length.
type Header = (u8, &'static [u8]);

/// Router alert (RFC 2711).
const ALERT_V6: Header = (HOP_BY_HOP, &[5, 2, 0, 0, 1, 0]);
/// A routing header of type 2 (RFC 6275 6.4) that is not at its end.
const ROUTE: Header = (
    ROUTING,
    &[
        2, 1, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7,
    ],
);
/// One that is.
const ROUTE_DONE: Header = (
    ROUTING,
    &[
        2, 0, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7,
    ],
);
/// Destination options: padding (RFC 8200 4.2).
const PADDING: Header = (DESTINATION, &[1, 4, 0, 0, 0, 0]);

fn frame_of(packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
    ethernet(INSIDE_MAC, NEAR_MAC, ethertype, packet)
}

fn from_peer(packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
    ethernet(OUTSIDE_MAC, PEER_MAC, ethertype, packet)
}

fn inside(name: impl Into<String>, world: World, packet: &[u8]) -> Case {
    Case::new(name, Program::Inside, world, frame_of(packet)).of(CONNECTION)
}

fn steer(name: impl Into<String>, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Steer, world, frame).of(CONNECTION)
}

/// The frame leaves with exactly this header, and behind it this payload, sealed as `next`.
fn leaves_as(case: Case, sa: Sa, header: Vec<u8>, next: u8, payload: &[u8]) -> Case {
    let payload = payload.to_vec();
    case.ends(Verdict::EspSealed, Action::Redirect)
        .any_frame()
        .check(move |seen| holds(&seen.frame, sa, &header, next, &payload))
}

/// Suite, extended numbers, in UDP.
type Sa = (u8, bool, bool);

fn holds(
    frame: &[u8],
    (suite, esn, encap): Sa,
    header: &[u8],
    next: u8,
    payload: &[u8],
) -> Result<(), String> {
    let (opened, named) = open_sealed(SPI_OUT, frame, suite, esn.then_some(0), encap)?;
    if (named, &opened.inner[..]) != (next, payload) {
        return Err(format!("next header {named}, payload {:02x?}", opened.inner));
    }
    let found = &opened.outer[..opened.header_len];
    if found == header {
        Ok(())
    } else {
        Err(format!("header {found:02x?}\n    not {header:02x?}"))
    }
}

/// A packet that stays as long as it was is cut nowhere but at its head.
fn cut_at_the_head(seen: &Observed) -> Result<(), String> {
    match seen.cut_behind {
        None | Some(0) => Ok(()),
        Some(octets) => Err(format!("{octets} octets were cut off at the end")),
    }
}

fn arrives_as(case: Case, packet: &[u8]) -> Case {
    case.ends(Verdict::EspOpenedLocal, Action::Pass)
        .out(from_peer(packet))
        .events(&[EVENT_FIRST_INBOUND])
}

pub fn cases() -> Vec<Case> {
    let mut cases = ipv4_both_ways();
    cases.extend(ipv4_sizes());
    cases.extend(ipv6_out());
    cases.extend(ipv6_refused());
    cases.extend(ipv6_in());
    cases
}

fn ours() -> Ip {
    Ip {
        ttl: 7,
        tos: 0xb8,
        ..Ip::new(CLUSTER, PEER, GRE)
    }
}

/// The header of a sealed packet, of `len` octets in all: number 1 is its identification.
fn ours_sealed(options: &[u8], encap: bool, len: usize) -> Vec<u8> {
    let ip = Ip {
        id: 1,
        protocol: if encap { UDP } else { ESP },
        ..ours()
    };
    let header_len = 20 + options.len();
    ip.with_options(options, &vec![0; len - header_len])[..header_len].to_vec()
}

/// Octets of ESP, and of UDP before it, around so many.
fn esp_len((suite, _, encap): Sa, payload: usize) -> usize {
    let (iv, block) = if suite < maps_schema::sad::SUITE_CBC {
        (8, 4)
    } else {
        (16, 16)
    };
    8 * usize::from(encap) + 8 + iv + (payload + 2).next_multiple_of(block) + 16
}

fn ipv4_both_ways() -> Vec<Case> {
    let mut cases = Vec::new();
    for (suite, _) in SUITES {
        for (esn, encap) in [(false, false), (true, false), (false, true), (true, true)] {
            let sa = (suite, esn, encap);
            for (what, options) in [
                ("a router alert", ALERT),
                ("a route to record", RECORD),
                ("timestamps", TIMESTAMPS),
                ("a source route", ROUTED_ALERT),
            ] {
                for len in [0, 1, 40, 300] {
                    let name =
                        format!("options: {what}, suite {suite}, ESN {esn}, UDP {encap}, {len} octets");
                    let world = World::transport(suite, esn, encap, false);
                    let payload = noise(len);
                    let out = inside(
                        format!("{name}, out"),
                        world.clone(),
                        &ours().with_options(options, &payload),
                    );
                    let header = ours_sealed(options, encap, 20 + options.len() + esp_len(sa, len));
                    cases.push(leaves_as(out, sa, header, GRE, &payload));
                    cases.push(
                        arrives_as(
                            steer(format!("{name}, in"), world, theirs(sa, GRE, options, &payload)),
                            &theirs_opened(GRE).with_options(options, &payload),
                        )
                        .check(cut_at_the_head),
                    );
                }
            }
        }
    }
    let (world, sa) = (
        World::transport(SUITE, false, false, false),
        (SUITE, false, false),
    );
    // Through VLANs, where all headers stand four octets further.
    let packet = ours().with_options(TIMESTAMPS, &noise(50));
    let out = Case::new(
        "options: from a VLAN",
        Program::Inside,
        world.clone(),
        tagged(INSIDE_VLAN, &frame_of(&packet)),
    );
    let header = ours_sealed(TIMESTAMPS, false, 60 + esp_len(sa, 50));
    cases.push(leaves_as(out.of(CONNECTION), sa, header, GRE, &noise(50)));
    let opened = theirs_opened(GRE).with_options(TIMESTAMPS, &noise(50));
    let into_vlan = |mut frame: Vec<u8>| {
        frame[..6].copy_from_slice(&OUTSIDE_2_MAC);
        tagged(OUTSIDE_VLAN, &frame)
    };
    let case = steer(
        "options: into a VLAN",
        world.clone(),
        into_vlan(theirs(sa, GRE, TIMESTAMPS, &noise(50))),
    );
    cases.push(
        arrives_as(case.on(OUTSIDE_2_IFINDEX), &opened)
            .out(into_vlan(from_peer(&opened)))
            .check(cut_at_the_head),
    );
    // Where the first buffer ends before, in, and behind the options.
    for first in [30, 40, 60, 90] {
        let out = inside(
            format!("options: first buffer of {first} octets, out"),
            world.clone(),
            &packet,
        );
        let header = ours_sealed(TIMESTAMPS, false, 60 + esp_len(sa, 50));
        cases.push(leaves_as(out.split_at(first), sa, header, GRE, &noise(50)));
        let case = steer(
            format!("options: first buffer of {first} octets, in"),
            world.clone(),
            theirs(sa, GRE, TIMESTAMPS, &noise(50)),
        );
        cases.push(arrives_as(case.split_at(first), &opened));
    }
    // What selectors are about is behind the options.
    cases.push(
        inside(
            "options: another protocol stays in clear",
            world.clone(),
            &Ip::new(CLUSTER, PEER, UDP).with_options(ALERT, &udp(1, 2, b"x")),
        )
        .of(0)
        .ends(Verdict::NoPolicy, Action::Pass),
    );
    cases.push(
        steer(
            "options: another protocol inside",
            world,
            theirs(sa, TCP, ALERT, &noise(20)),
        )
        .ends(Verdict::SelectorMismatch, Action::Drop),
    );
    cases
}

/// What the peer sends, with options of its own.
fn theirs((suite, esn, encap): Sa, next_header: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let peer = Sealer {
        next_header,
        ..Sealer::peer(suite, esn, encap)
    };
    let esp = peer.esp(5, payload);
    let (protocol, esp) = if encap {
        (UDP, udp(4500, 4500, &esp))
    } else {
        (ESP, esp)
    };
    from_peer(&theirs_opened(protocol).with_options(options, &esp))
}

fn theirs_opened(protocol: u8) -> Ip {
    Ip {
        id: 0x1234,
        tos: 0x28,
        ..Ip::new(PEER, CLUSTER, protocol)
    }
}

/// Options take room from what fits the path.
fn ipv4_sizes() -> Vec<Case> {
    let mut cases = Vec::new();
    let world = World::transport(SUITE, false, false, false);
    let sa = (SUITE, false, false);
    // 1500 = 20 + 40 + 8 + 8 + 1408 + 16, of which two are the trailer.
    for (options, most) in [(ALERT, 1442), (RECORD, 1438), (TIMESTAMPS, 1406)] {
        let len = 20 + options.len();
        let fits = noise(most);
        let case = inside(
            format!(
                "options: the largest packet that fits with {} octets",
                options.len()
            ),
            world.clone(),
            &ours().with_options(options, &fits),
        );
        let header = ours_sealed(options, false, len + esp_len(sa, most));
        cases.push(leaves_as(case, sa, header, GRE, &fits));
        let large = noise(most + 1);
        let header = {
            let ip = Ip {
                id: 1,
                protocol: ESP,
                fragment: 0,
                ..ours()
            };
            ip.with_options(options, &vec![0; esp_len(sa, most + 1)])[..len].to_vec()
        };
        cases.push(
            inside(
                format!(
                    "options: a larger one with {} octets is cut outside",
                    options.len()
                ),
                world.clone(),
                &ours().with_options(options, &large),
            )
            .ends(Verdict::OuterCut, Action::Drop)
            .any_frame()
            .slow_changed(SLOW_OUTER_FRAGMENT)
            .check(move |seen| holds(&seen.slow[0].1, sa, &header, GRE, &large)),
        );
    }
    cases
}

fn ours_v6(protocol: u8) -> Ip6 {
    Ip6 {
        ttl: 7,
        tos: 0xb8,
        ..Ip6::new(CLUSTER_V6, PEER_V6, protocol)
    }
}

/// A packet of ours with a chain of extension headers.
fn chained(headers: &[Header], next: u8, payload: &[u8]) -> Vec<u8> {
    let (first, chain) = extensions(headers, next);
    ours_v6(first).with(&[chain.as_slice(), payload].concat())
}

fn ipv6_out() -> Vec<Case> {
    let mut cases = Vec::new();
    let last: Header = (HOP_BY_HOP, &[1; 62]);
    let long: Header = (DESTINATION, &[0; 254]);
    // What stays, and what is sealed. A routing header that is not at its end, in UDP: see below.
    let rows: [(&str, &[Header], &[Header]); 10] = [
        ("a router alert", &[ALERT_V6], &[]),
        ("a route", &[ROUTE_DONE], &[]),
        ("a router alert and a route", &[ALERT_V6, ROUTE_DONE], &[]),
        ("destination options", &[], &[PADDING]),
        ("long destination options", &[], &[long]),
        ("a router alert and destination options", &[ALERT_V6], &[PADDING]),
        ("destination options before a route", &[PADDING, ROUTE_DONE], &[]),
        (
            "destination options on both sides of a route",
            &[ALERT_V6, PADDING, ROUTE_DONE],
            &[PADDING],
        ),
        ("64 octets, as many as may stay", &[last], &[]),
        ("64 octets, and destination options", &[last], &[PADDING]),
    ];
    for (suite, _) in SUITES {
        for (esn, encap) in [(false, false), (true, true)] {
            let sa = (suite, esn, encap);
            for (what, kept, sealed) in rows {
                for len in [0, 1, 300] {
                    let payload = noise(len);
                    let (next, text) = extensions(sealed, GRE);
                    let text = [text, payload.clone()].concat();
                    let (first, chain) = extensions(kept, if encap { UDP } else { ESP });
                    let behind = vec![0; esp_len(sa, text.len())];
                    let header = ours_v6(first).with(&[chain.as_slice(), &behind].concat());
                    let header = header[..40 + chain.len()].to_vec();
                    let case = inside(
                        format!(
                            "extension headers: {what}, suite {suite}, ESN {esn}, UDP {encap}, {len} octets"
                        ),
                        World::transport(suite, esn, encap, true),
                        &chained(&[kept, sealed].concat(), GRE, &payload),
                    );
                    cases.push(leaves_as(case, sa, header, next, &text));
                }
            }
        }
    }
    let (world, sa) = (World::transport(SUITE, false, false, true), (SUITE, false, false));
    let (first, chain) = extensions(&[ROUTE], ESP);
    let header = ours_v6(first).with(&[chain.as_slice(), &vec![0; esp_len(sa, 30)]].concat());
    let on_the_way = inside(
        "extension headers: a route that is not at its end",
        world.clone(),
        &chained(&[ROUTE], GRE, &noise(30)),
    );
    cases.push(leaves_as(on_the_way, sa, header[..64].to_vec(), GRE, &noise(30)));
    // Behind a tag they end just before the end of what is looked at.
    let (first, chain) = extensions(&[last], ESP);
    let header = ours_v6(first).with(&[chain.as_slice(), &vec![0; esp_len(sa, 30)]].concat());
    let from_vlan = Case::new(
        "extension headers: 64 octets from a VLAN",
        Program::Inside,
        world.clone(),
        tagged(INSIDE_VLAN, &frame_of(&chained(&[last], GRE, &noise(30)))),
    );
    cases.push(leaves_as(
        from_vlan.of(CONNECTION),
        sa,
        header[..104].to_vec(),
        GRE,
        &noise(30),
    ));
    // 1500 = 40 + 8 + 8 + 8 + 1420 + 16, of which two are the trailer.
    for (what, len) in [
        ("the largest packet that fits", 1418),
        ("one that is cut outside", 1419),
    ] {
        let payload = noise(len);
        let (first, chain) = extensions(&[ALERT_V6], ESP);
        let header = ours_v6(first).with(&[chain.as_slice(), &vec![0; esp_len(sa, len)]].concat());
        let header = header[..48].to_vec();
        let case = inside(
            format!("extension headers: {what}"),
            world.clone(),
            &chained(&[ALERT_V6], GRE, &payload),
        );
        cases.push(if len == 1418 {
            leaves_as(case, sa, header, GRE, &payload)
        } else {
            case.ends(Verdict::OuterCut, Action::Drop)
                .any_frame()
                .slow_changed(SLOW_OUTER_FRAGMENT)
                .check(move |seen| holds(&seen.slow[0].1, sa, &header, GRE, &payload))
        });
    }
    cases
}

/// What is not sealed, and uses no number.
fn ipv6_refused() -> Vec<Case> {
    let refused = |name: &str, encap: bool, packet: &[u8]| {
        inside(
            format!("extension headers: {name}"),
            World::transport(SUITE, false, encap, true),
            packet,
        )
        .ends(Verdict::TransportHeader, Action::Drop)
        .check(|seen| match seen.counters.seq {
            0 => Ok(()),
            seq => Err(format!("number {seq} was used")),
        })
    };
    let too_long: Header = (HOP_BY_HOP, &[1; 70]);
    let whole: Header = (FRAGMENT, &[0, 0, 1, 2, 3, 4]);
    let piece: Header = (FRAGMENT, &[0, 1, 1, 2, 3, 4]);
    let longest: Header = (HOP_BY_HOP, &[1; 62]);
    vec![
        inside(
            "extension headers: more than is looked at of a frame",
            World::transport(SUITE, false, false, true),
            &chained(&[longest, PADDING, PADDING], GRE, &noise(20)),
        )
        .of(0)
        .ends(Verdict::InnerExtension, Action::Drop),
        refused("72 octets to stay", false, &chained(&[too_long], GRE, &noise(20))),
        refused("a fragment", false, &chained(&[piece], GRE, &noise(24))),
        refused(
            "a fragment that is a whole datagram",
            false,
            &chained(&[ALERT_V6, whole], GRE, &noise(24)),
        ),
        refused(
            "hop-by-hop options that are not the first",
            false,
            &chained(&[PADDING, ALERT_V6], GRE, &noise(24)),
        ),
        refused(
            "a route that is not at its end, in UDP",
            true,
            &chained(&[ALERT_V6, ROUTE], GRE, &noise(24)),
        ),
        inside(
            "extension headers: another protocol stays in clear",
            World::transport(SUITE, false, false, true),
            &chained(&[ALERT_V6, PADDING], UDP, &udp(1, 2, b"x")),
        )
        .of(0)
        .ends(Verdict::NoPolicy, Action::Pass),
    ]
}

/// Destination options that the peer has sealed. What it sends before ESP is the stack's.
fn ipv6_in() -> Vec<Case> {
    let sealed = |sa: Sa, headers: &[Header], next: u8, payload: &[u8]| {
        let (suite, esn, encap) = sa;
        let (next_header, chain) = extensions(headers, next);
        let peer = Sealer {
            next_header,
            v6: true,
            ..Sealer::peer(suite, esn, encap)
        };
        peer.frame(5, &[chain.as_slice(), payload].concat())
    };
    let opened = |headers: &[Header], next: u8, payload: &[u8]| {
        let (first, chain) = extensions(headers, next);
        Ip6::new(PEER_V6, CLUSTER_V6, first).with(&[chain.as_slice(), payload].concat())
    };
    let mut cases = Vec::new();
    for (suite, _) in SUITES {
        for (esn, encap) in [(false, false), (true, true)] {
            let sa = (suite, esn, encap);
            for headers in [&[PADDING][..], &[PADDING, PADDING, PADDING, PADDING]] {
                let case = steer(
                    format!(
                        "extension headers: {} inside, suite {suite}, ESN {esn}, UDP {encap}",
                        headers.len()
                    ),
                    World::transport(suite, esn, encap, true),
                    sealed(sa, headers, GRE, &noise(77)),
                );
                cases.push(arrives_as(case, &opened(headers, GRE, &noise(77))));
            }
        }
    }
    let plain = (SUITE, false, false);
    let mut bgp = World::transport(SUITE, false, false, true);
    bgp.inbound.selectors[0].protocol = u32::from(TCP);
    bgp.inbound.selectors[0].remote_ports = [179, 179];
    let tcp = |source: u16| [&source.to_be_bytes()[..], &[1, 2], &noise(16)].concat();
    let case = steer(
        "extension headers: ports of the selector behind them",
        bgp.clone(),
        sealed(plain, &[PADDING], TCP, &tcp(179)),
    );
    cases.push(arrives_as(case, &opened(&[PADDING], TCP, &tcp(179))));
    let refused = |name: &str, world: &World, frame: Vec<u8>, verdict| {
        steer(format!("extension headers: {name}"), world.clone(), frame).ends(verdict, Action::Drop)
    };
    let gre = World::transport(SUITE, false, false, true);
    let piece: Header = (FRAGMENT, &[0, 1, 1, 2, 3, 4]);
    let beyond = Sealer {
        next_header: DESTINATION,
        v6: true,
        ..Sealer::peer(SUITE, false, false)
    };
    cases.extend([
        refused(
            "other ports behind them",
            &bgp,
            sealed(plain, &[PADDING], TCP, &tcp(180)),
            Verdict::SelectorMismatch,
        ),
        refused(
            "another protocol behind them",
            &gre,
            sealed(plain, &[PADDING], TCP, &tcp(179)),
            Verdict::SelectorMismatch,
        ),
        refused(
            "five inside",
            &gre,
            sealed(plain, &[PADDING; 5], GRE, &noise(20)),
            Verdict::InnerExtension,
        ),
        refused(
            "a fragment inside",
            &gre,
            sealed(plain, &[piece], GRE, &noise(20)),
            Verdict::InnerExtension,
        ),
        refused(
            "longer than the packet",
            &gre,
            beyond.frame(5, &[GRE, 3, 1, 4, 0, 0, 0, 0]),
            Verdict::InnerExtension,
        ),
    ]);
    // A NAT has changed the peer's address, and what counts it in stands behind the options.
    let elsewhere = {
        let mut address = PEER_V6;
        address[15] ^= 0x77;
        address
    };
    for (protocol, place) in [(TCP, 16), (UDP, 6)] {
        let mut world = World::transport(SUITE, false, true, true);
        world.inbound.selectors[0].protocol = u32::from(protocol);
        let summed = |source: [u8; 16]| {
            let mut text = noise(101);
            text[place..place + 2].fill(0);
            let sum = Ip6::new(source, CLUSTER_V6, protocol).checksum(&text);
            text[place..place + 2].copy_from_slice(&sum.to_be_bytes());
            text
        };
        let headers = &[PADDING, (DESTINATION, &[0xa5; 14])];
        let case = steer(
            format!("extension headers: protocol {protocol} behind them, through a NAT"),
            world,
            sealed((SUITE, false, true), headers, protocol, &summed(elsewhere)),
        );
        cases.push(arrives_as(case, &opened(headers, protocol, &summed(PEER_V6))));
    }
    cases
}
