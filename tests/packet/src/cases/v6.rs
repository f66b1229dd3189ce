//! IPv6 outside, inside, and mixed with IPv4.

use maps_schema::event::{EVENT_FIRST_INBOUND, SLOW_ABOVE_CEILING};
use maps_schema::sad::{SUITE_AES128_GCM, SUITE_AES256_CBC_SHA256, SUITE_CHACHA20_POLY1305};
use maps_schema::verdict::Verdict;

use super::ports::{of, relinked};
use crate::case::{Action, Case, Program};
use crate::frames::{
    Ip, Ip6, Sealer, advertisement, ethernet, ike, noise, open_ours, solicitation, tagged, udp,
};
use crate::world::*;

const SUITE: u8 = SUITE_CHACHA20_POLY1305;
const ANY: [u8; 16] = [0; 16];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn steer(name: impl Into<String>, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Steer, world, frame)
}

fn inside(name: impl Into<String>, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Inside, world, frame).of(CONNECTION)
}

fn over_v6() -> World {
    World::over_v6(SUITE, false, false)
}

fn inner_v6(ttl: u8, len: usize) -> Vec<u8> {
    Ip6 {
        ttl,
        tos: 0xb8,
        ..Ip6::new(FAR_HOST_V6, NEAR_HOST_V6, 17)
    }
    .with(&udp(1000, 2000, &noise(len)))
}

fn inner_v4(ttl: u8, len: usize) -> Vec<u8> {
    Ip {
        ttl,
        ..Ip::new(FAR_HOST, NEAR_HOST, 17)
    }
    .with(&udp(1000, 2000, &noise(len)))
}

/// Opened, and sent to the host on the inside network with one hop less.
fn opened(case: Case, inner: &[u8]) -> Case {
    let ethertype = if inner[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
    case.of(CONNECTION)
        .ends(Verdict::EspOpened, Action::Redirect)
        .to(INSIDE_IFINDEX)
        .out(ethernet(NEAR_MAC, INSIDE_MAC, ethertype, inner))
        .events(&[EVENT_FIRST_INBOUND])
}

fn from_inside(packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
    ethernet(INSIDE_MAC, NEAR_MAC, ethertype, packet)
}

fn out_v6(ttl: u8, payload: &[u8]) -> Vec<u8> {
    Ip6 {
        ttl,
        tos: 0xb8,
        ..Ip6::new(NEAR_HOST_V6, FAR_HOST_V6, 17)
    }
    .with(payload)
}

fn out_v4(ttl: u8, len: usize) -> Vec<u8> {
    Ip {
        ttl,
        tos: 0xb8,
        ..Ip::new(NEAR_HOST, FAR_HOST, 17)
    }
    .with(&udp(1000, 2000, &noise(len)))
}

/// The peer opens it and finds `inner`; the outer header has the traffic class, no flow label, and 64 hops.
fn sealed(case: Case, suite: u8, esn: Option<u32>, encap: bool, inner: Vec<u8>) -> Case {
    case.ends(Verdict::EspSealed, Action::Redirect)
        .to(OUTSIDE_IFINDEX)
        .any_frame()
        .check(move |seen| {
            let ours = open_ours(&seen.frame, suite, esn, encap)?;
            let ethertype = if ours.outer[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
            if seen.frame[..14] != ethernet(PEER_MAC, OUTSIDE_MAC, ethertype, &[])[..] {
                return Err(format!("link header {:02x?}", &seen.frame[..14]));
            }
            if ours.inner != inner {
                return Err(format!("inner packet {:02x?}", ours.inner));
            }
            let right = if ethertype == 0x86dd {
                ours.outer[..4] == [0x6b, 0x80, 0, 0]
                    && ours.outer[7] == 64
                    && ours.outer[8..24] == CLUSTER_V6
                    && ours.outer[24..40] == PEER_V6
            } else {
                ours.outer[1] == 0xb8
                    && ours.outer[6] == 0x40
                    && ours.outer[12..16] == CLUSTER.to_be_bytes()
                    && ours.outer[16..20] == PEER.to_be_bytes()
            };
            if right {
                Ok(())
            } else {
                Err(format!("outer header {:02x?}", &ours.outer[..40]))
            }
        })
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for suite in [SUITE_CHACHA20_POLY1305, SUITE_AES128_GCM, SUITE_AES256_CBC_SHA256] {
        for (esn, encap) in [(false, false), (false, true), (true, false), (true, true)] {
            for len in [0, 1, 3, 64, 700, 1300] {
                let name = |what: &str| {
                    format!("{what}: suite {suite}, esn {esn}, encapsulation {encap}, {len} octets")
                };
                let world = || World::over_v6(suite, esn, encap);
                let high = esn.then_some(0);
                let peer = Sealer::over_v6(suite, esn, encap);
                let six = peer.around_v6();
                cases.push(opened(
                    steer(name("6 in 6 in"), world(), six.frame(5, &inner_v6(64, len))),
                    &inner_v6(63, len),
                ));
                cases.push(opened(
                    steer(name("4 in 6 in"), world(), peer.frame(5, &inner_v4(64, len))),
                    &inner_v4(63, len),
                ));
                let over_v4 = Sealer::peer(suite, esn, encap).around_v6();
                cases.push(opened(
                    steer(
                        name("6 in 4 in"),
                        World::base(suite, esn, encap),
                        over_v4.frame(5, &inner_v6(64, len)),
                    ),
                    &inner_v6(63, len),
                ));
                let payload = udp(1000, 2000, &noise(len));
                let frame = from_inside(&out_v6(64, &payload));
                let case = inside(name("6 in 6 out"), world(), frame.clone());
                cases.push(sealed(case, suite, high, encap, out_v6(63, &payload)));
                let case = inside(name("6 in 4 out"), World::base(suite, esn, encap), frame);
                cases.push(sealed(case, suite, high, encap, out_v6(63, &payload)));
                let case = inside(name("4 in 6 out"), world(), from_inside(&out_v4(64, len)));
                cases.push(sealed(case, suite, high, encap, out_v4(63, len)));
            }
        }
    }
    cases.extend(inbound());
    cases.extend(outbound());
    cases.extend(extensions());
    cases
}

fn inbound() -> Vec<Case> {
    let peer = Sealer::over_v6(SUITE, false, false).around_v6();
    let frame = peer.frame(5, &inner_v6(64, 30));
    let mut cases = vec![
        steer("v6: ESP of another member's segment", of(OTHER), frame.clone())
            .ends(Verdict::SecondHop, Action::Transmit)
            .out(relinked(&frame, OTHER_OUTSIDE_MAC, OUTSIDE_MAC)),
        steer(
            "v6: above the ceiling",
            over_v6(),
            peer.frame(1001, &inner_v6(64, 30)),
        )
        .of(CONNECTION)
        .ends(Verdict::AboveCeiling, Action::Drop)
        .slow(SLOW_ABOVE_CEILING),
    ];
    // The link header says IPv6, and what is left of the packet is IPv4.
    let lonely = Ip::new(FAR_HOST, NO_NEIGHBOUR, 17).with(&udp(1, 2, b"x"));
    let four = Sealer::over_v6(SUITE, false, false);
    for vlan in [false, true] {
        let dress = |frame: Vec<u8>| {
            if vlan { tagged(0, &frame) } else { frame }
        };
        cases.push(
            steer(
                format!("4 in 6 for the stack: the EtherType changes, tag {vlan}"),
                over_v6(),
                dress(four.frame(5, &lonely)),
            )
            .of(CONNECTION)
            .ends(Verdict::EspOpenedLocal, Action::Pass)
            .out(dress(ethernet(OUTSIDE_MAC, PEER_MAC, 0x0800, &lonely)))
            .events(&[EVENT_FIRST_INBOUND]),
        );
    }
    for (name, inner, verdict) in [
        (
            "a source outside the selectors",
            Ip6::new(v6(7, 5), NEAR_HOST_V6, 17).with(&udp(1, 2, b"x")),
            Verdict::SelectorMismatch,
        ),
        (
            "a destination outside the selectors",
            Ip6::new(FAR_HOST_V6, v6(7, 5), 17).with(&udp(1, 2, b"x")),
            Verdict::SelectorMismatch,
        ),
        (
            "a mapped IPv4 address is no IPv6 address",
            Ip6::new(mapped(FAR_HOST), mapped(NEAR_HOST), 17).with(&udp(1, 2, b"x")),
            Verdict::InnerMalformed,
        ),
        (
            "IPv4 under next header 41",
            inner_v4(64, 30),
            Verdict::InnerMalformed,
        ),
        (
            "shorter than its header",
            inner_v6(64, 30)[..39].to_vec(),
            Verdict::InnerMalformed,
        ),
        (
            "a payload length beyond the packet",
            inner_v6(64, 30)[..60].to_vec(),
            Verdict::InnerMalformed,
        ),
    ] {
        cases.push(
            steer(format!("v6: {name}"), over_v6(), peer.frame(5, &inner))
                .of(CONNECTION)
                .ends(verdict, Action::Drop),
        );
    }
    // `::/0` holds no IPv4 address, although the maps hold those as mapped ones.
    let mut everything = over_v6();
    everything.inbound.selector_count = 1;
    everything.inbound.selectors[0].remote_first = ANY;
    everything.inbound.selectors[0].remote_last = [0xff; 16];
    everything.inbound.selectors[0].local_first = ANY;
    everything.inbound.selectors[0].local_last = [0xff; 16];
    cases.push(opened(
        steer("all of IPv6 is selected: IPv6", everything.clone(), frame.clone()),
        &inner_v6(63, 30),
    ));
    cases.push(
        steer(
            "all of IPv6 is selected: not IPv4",
            everything,
            four.frame(5, &inner_v4(64, 30)),
        )
        .of(CONNECTION)
        .ends(Verdict::SelectorMismatch, Action::Drop),
    );
    let ours = 0x4201_aaaa_bbbb_cccc;
    let message = ike(0x1111, ours, true);
    let to_cluster = |port: u16, payload: &[u8]| {
        let ip = Ip6::new(PEER_V6, CLUSTER_V6, 17).with_checksum(&udp(port, port, payload), 6);
        ethernet(OUTSIDE_MAC, PEER_MAC, 0x86dd, &ip)
    };
    for (port, payload) in [(500, message.clone()), (4500, [&[0; 4], &message[..]].concat())] {
        let frame = to_cluster(port, &payload);
        cases.push(
            steer(format!("v6: IKE {port}"), over_v6(), frame.clone())
                .ends(Verdict::IkeToAgent, Action::Pass),
        );
        cases.push(
            steer(
                format!("v6: IKE {port} of another member"),
                of(OTHER),
                frame.clone(),
            )
            .ends(Verdict::SecondHop, Action::Transmit)
            .out(relinked(&frame, OTHER_OUTSIDE_MAC, OUTSIDE_MAC)),
        );
    }
    cases.push(
        steer("v6: NAT keepalive", over_v6(), to_cluster(4500, &[0xff]))
            .ends(Verdict::NatKeepalive, Action::Drop),
    );
    cases.push(
        steer("v6: another UDP port", over_v6(), to_cluster(5353, b"hello"))
            .ends(Verdict::LocalTraffic, Action::Pass),
    );
    let elsewhere = ethernet(
        OUTSIDE_MAC,
        PEER_MAC,
        0x86dd,
        &Ip6::new(PEER_V6, v6(0xa, 9), 50).with(&noise(64)),
    );
    cases.push(
        steer("v6: ESP to another host", over_v6(), elsewhere).ends(Verdict::NotForCluster, Action::Pass),
    );
    let flooded = relinked(&frame, [2, 9, 9, 9, 9, 9], PEER_MAC);
    cases.push(
        steer("v6: a frame for another host's MAC address", over_v6(), flooded)
            .ends(Verdict::NotForCluster, Action::Pass),
    );
    let mut cut = frame.clone();
    cut.truncate(60);
    cases.push(steer("v6: a datagram cut short", over_v6(), cut).ends(Verdict::NotForCluster, Action::Pass));
    let short = ethernet(
        OUTSIDE_MAC,
        PEER_MAC,
        0x86dd,
        &Ip6::new(PEER_V6, CLUSTER_V6, 50).with(&noise(7)),
    );
    cases.push(steer("v6: ESP of seven octets", over_v6(), short).ends(Verdict::EspTruncated, Action::Drop));
    cases
}

fn outbound() -> Vec<Case> {
    let payload = udp(1000, 2000, &noise(30));
    let frame = from_inside(&out_v6(64, &payload));
    // 1500 = 40 + 8 + 8 + 1428 + 16: inner packets up to 1426.
    let fits = udp(1000, 2000, &noise(1426 - 48));
    let over = udp(1000, 2000, &noise(1427 - 48));
    let mut cases = vec![
        inside(
            "v6: another member's segment, from inside",
            of(OTHER),
            frame.clone(),
        )
        .ends(Verdict::SecondHop, Action::Transmit)
        .out(relinked(&frame, OTHER_INSIDE_MAC, INSIDE_MAC)),
        sealed(
            inside(
                "v6: the largest packet that fits",
                over_v6(),
                from_inside(&out_v6(64, &fits)),
            ),
            SUITE,
            None,
            false,
            out_v6(63, &fits),
        ),
        inside("v6: one octet more", over_v6(), from_inside(&out_v6(64, &over)))
            .ends(Verdict::PacketTooBig, Action::Transmit)
            .any_frame(),
        inside(
            "4 in 6: one octet more with DF: ICMP says 1426",
            over_v6(),
            from_inside(&out_v4(64, 1427 - 28)),
        )
        .ends(Verdict::FragmentNeeded, Action::Transmit)
        .any_frame()
        .check(|seen| {
            if seen.frame[14 + 26..14 + 28] == 1426u16.to_be_bytes() {
                Ok(())
            } else {
                Err(format!("ICMP {:02x?}", seen.frame))
            }
        }),
    ];
    let to = |destination, source| Ip6::new(source, destination, 17).with(&payload);
    for (name, packet, verdict) in [
        ("no policy", to(v6(9, 1), NEAR_HOST_V6), Verdict::NoPolicy),
        (
            "to the inside cluster address",
            to(INSIDE_V6, NEAR_HOST_V6),
            Verdict::LocalTraffic,
        ),
        (
            "from a link-local source",
            to(FAR_HOST_V6, PEER_LINK),
            Verdict::LocalTraffic,
        ),
        (
            "to a link-local destination",
            to(PEER_LINK, NEAR_HOST_V6),
            Verdict::LocalTraffic,
        ),
        (
            "to a multicast group",
            to(ALL_NODES, NEAR_HOST_V6),
            Verdict::LocalTraffic,
        ),
        (
            "mapped addresses do not match IPv4 policies",
            to(mapped(FAR_HOST), mapped(NEAR_HOST)),
            Verdict::NotForCluster,
        ),
    ] {
        cases.push(
            inside(format!("v6 out: {name}"), over_v6(), from_inside(&packet))
                .of(0)
                .ends(verdict, Action::Pass),
        );
    }
    // A confirmation that a neighbour is still there, for an address behind the peer: of this link, whatever the policy.
    let mut probe = solicitation(NEAR_MAC, NEAR_HOST_V6, FAR_HOST_V6, &[1, 1, 2, 0, 0, 0, 1, 5]);
    probe[..6].copy_from_slice(&INSIDE_MAC);
    let advert = advertisement(NEAR_MAC, NEAR_HOST_V6, INSIDE_MAC, FAR_HOST_V6, 0x60);
    for (name, frame) in [("solicitation", probe), ("advertisement", advert)] {
        cases.push(
            inside(
                format!("v6 out: a neighbour {name} is not protected"),
                over_v6(),
                frame,
            )
            .of(0)
            .ends(
                if name == "solicitation" {
                    Verdict::NotForCluster
                } else {
                    Verdict::LocalTraffic
                },
                Action::Pass,
            ),
        );
    }
    cases
}

fn extensions() -> Vec<Case> {
    let mut cases = Vec::new();
    let esp = Sealer::over_v6(SUITE, false, false)
        .around_v6()
        .esp(5, &inner_v6(64, 30));
    for (name, next, verdict) in [
        ("hop-by-hop options", 0, Verdict::OuterExtension),
        ("a routing header", 43, Verdict::OuterExtension),
        ("a fragment header", 44, Verdict::OuterFragment),
        ("destination options", 60, Verdict::OuterExtension),
    ] {
        let payload = [&[50, 0, 0, 1, 0, 0, 0, 9][..], &esp].concat();
        let frame = ethernet(
            OUTSIDE_MAC,
            PEER_MAC,
            0x86dd,
            &Ip6::new(PEER_V6, CLUSTER_V6, next).with(&payload),
        );
        cases.push(
            steer(format!("outside, {name}: to the stack"), over_v6(), frame.clone())
                .ends(verdict, Action::Pass),
        );
        cases.push(
            steer(
                format!("outside, {name}: to the owner's"),
                of(OTHER),
                frame.clone(),
            )
            .ends(Verdict::SecondHop, Action::Transmit)
            .out(relinked(&frame, OTHER_OUTSIDE_MAC, OUTSIDE_MAC)),
        );
        // Only what was put together is another member's than the address (ADR 31).
        let (verdict, action) = match verdict {
            Verdict::OuterFragment => (verdict, Action::Pass),
            _ => (Verdict::NotOwner, Action::Drop),
        };
        cases.push(
            steer(
                format!("outside, {name}, from a member, not the owner"),
                of(OTHER),
                relinked(&frame, OUTSIDE_MAC, OTHER_OUTSIDE_MAC),
            )
            .ends(verdict, action),
        );
    }
    let peer = Sealer::over_v6(SUITE, false, false).around_v6();
    let chain = |ttl: u8, headers: &[u8], first: u8| {
        Ip6 {
            ttl,
            ..Ip6::new(FAR_HOST_V6, NEAR_HOST_V6, first)
        }
        .with(&[headers, &udp(7, 9, b"x")].concat())
    };
    let options = [
        60, 0, 1, 4, 0, 0, 0, 0, 17, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let fragment = [17, 0, 0, 1, 0, 0, 0, 7];
    let later = [17, 0, 0, 9, 0, 0, 0, 7];
    let mut ports = over_v6();
    ports.inbound.selectors[1].protocol = 17;
    ports.inbound.selectors[1].local_ports = [9, 9];
    for (name, headers, first, verdict) in [
        ("two sets of options", &options[..], 0u8, None),
        ("a first fragment", &fragment, 44, None),
        (
            "a later fragment has no ports",
            &later,
            44,
            Some(Verdict::SelectorMismatch),
        ),
        (
            "options of another protocol",
            &[6, 0, 1, 4, 0, 0, 0, 0],
            0,
            Some(Verdict::SelectorMismatch),
        ),
        (
            "five headers",
            &[60, 0, 0, 0, 0, 0, 0, 0].repeat(5)[..],
            60,
            Some(Verdict::InnerExtension),
        ),
        (
            "options beyond the packet",
            &[17, 200, 0, 0, 0, 0, 0, 0],
            60,
            Some(Verdict::InnerExtension),
        ),
    ] {
        let case = steer(
            format!("inside ESP, {name}"),
            ports.clone(),
            peer.frame(5, &chain(64, headers, first)),
        );
        cases.push(match verdict {
            None => opened(case, &chain(63, headers, first)),
            Some(verdict) => case.of(CONNECTION).ends(verdict, Action::Drop),
        });
    }
    let out = |headers: &[u8], first: u8| {
        Ip6::new(NEAR_HOST_V6, FAR_HOST_V6, first).with(&[headers, &udp(7, 9, b"x")].concat())
    };
    let mut dns = over_v6();
    dns.policy_v6.rules[0].destination_ports = [9, 9];
    let mut hopped = out(&options, 0);
    hopped[7] = 63;
    cases.push(
        inside(
            "out, behind options: the port matches",
            dns.clone(),
            from_inside(&out(&options, 0)),
        )
        .ends(Verdict::EspSealed, Action::Redirect)
        .any_frame()
        .check(move |seen| {
            let ours = open_ours(&seen.frame, SUITE, None, false)?;
            if ours.inner == hopped {
                Ok(())
            } else {
                Err(format!("inner packet {:02x?}", ours.inner))
            }
        }),
    );
    cases.push(
        inside(
            "out, a later fragment has no port",
            dns,
            from_inside(&out(&later, 44)),
        )
        .of(0)
        .ends(Verdict::NoPolicy, Action::Pass),
    );
    cases.push(
        inside(
            "out, more headers than are looked behind",
            over_v6(),
            from_inside(&out(&[60, 0, 0, 0, 0, 0, 0, 0].repeat(6), 60)),
        )
        .of(0)
        .ends(Verdict::InnerExtension, Action::Drop),
    );
    cases
}
