//! The space of malformed packets, row by row: every cut, every wrong length, version, padding and next header. Each has its verdict,
//! and leaves window and counters as they were.

use maps_schema::event::EVENT_FIRST_INBOUND;
use maps_schema::sad::SUITE_CHACHA20_POLY1305;
use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Program};
use crate::frames::{Ip, Ip6, Sealer, checksum, ethernet, ike, noise, udp};
use crate::world::*;

const SUITE: u8 = SUITE_CHACHA20_POLY1305;
/// What an ESP packet with nothing inside has: SPI and number, IV, padding and trailer, ICV.
const ESP_LEAST: usize = 8 + 8 + 4 + 16;

fn world(v6: bool) -> World {
    if v6 {
        World::over_v6(SUITE, false, false)
    } else {
        World::plain()
    }
}

/// Nothing of the SA changed.
fn untouched(case: Case) -> Case {
    let (window, counters) = (case.world.window, case.world.counters);
    case.check(move |seen| {
        if seen.window != window {
            return Err(format!("the window changed to {:?}", seen.window));
        }
        if seen.counters != counters {
            return Err(format!("the counters changed to {:?}", seen.counters));
        }
        Ok(())
    })
}

fn steer(name: impl Into<String>, v6: bool, frame: Vec<u8>) -> Case {
    untouched(Case::new(name, Program::Steer, world(v6), frame))
}

fn opened(name: impl Into<String>, frame: Vec<u8>, inner: &[u8]) -> Case {
    let mut out = inner.to_vec();
    out[8] -= 1;
    out[10..12].fill(0);
    let len = usize::from(out[0] & 15) * 4;
    let sum = checksum(&out[..len]);
    out[10..12].copy_from_slice(&sum.to_be_bytes());
    Case::new(name, Program::Steer, World::plain(), frame)
        .of(CONNECTION)
        .ends(Verdict::EspOpened, Action::Redirect)
        .out(ethernet(NEAR_MAC, INSIDE_MAC, 0x0800, &out))
        .events(&[EVENT_FIRST_INBOUND])
}

/// A datagram from the peer to the cluster address with the protocol and this payload.
fn datagram(v6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    if v6 {
        Ip6::new(PEER_V6, CLUSTER_V6, protocol).with(payload)
    } else {
        Ip::new(PEER, CLUSTER, protocol).with(payload)
    }
}

fn outside(v6: bool, packet: &[u8]) -> Vec<u8> {
    let ethertype = if v6 { 0x86dd } else { 0x0800 };
    ethernet(OUTSIDE_MAC, PEER_MAC, ethertype, packet)
}

fn inner(len: usize) -> Vec<u8> {
    Ip::new(FAR_HOST, NEAR_HOST, 17).with(&udp(1000, 2000, &noise(len)))
}

fn peer() -> Sealer {
    Sealer::peer(SUITE, false, false)
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(cut_frames());
    cases.extend(cut_datagrams());
    cases.extend(outer_headers());
    cases.extend(trailers());
    cases.extend(inner_headers());
    cases.extend(from_inside());
    cases
}

/// A frame that ends before its datagram does: the host's stack counts it. Below 14 octets there is no frame.
fn cut_frames() -> Vec<Case> {
    let mut cases = Vec::new();
    let esp = peer().esp(5, &inner(2));
    for v6 in [false, true] {
        for (what, protocol, payload) in [
            ("ESP", 50, esp.clone()),
            ("ESP in UDP", 17, udp(4500, 4500, &esp)),
            ("IKE", 17, udp(500, 500, &ike(1, 0, true))),
        ] {
            let frame = outside(v6, &datagram(v6, protocol, &payload));
            for keep in 14..frame.len() {
                cases.push(
                    steer(
                        format!("{what}, IPv6 {v6}: the frame ends after {keep} octets"),
                        v6,
                        frame[..keep].to_vec(),
                    )
                    .ends(Verdict::NotForCluster, Action::Pass),
                );
            }
        }
    }
    cases
}

/// A datagram that is short and says so; as it is, and filled up to the least length of a frame.
fn cut_datagrams() -> Vec<Case> {
    let mut cases = Vec::new();
    let esp = peer().esp(5, &inner(2));
    let esp_verdict = |len: usize| match len {
        0..8 => (Verdict::EspTruncated, 0),
        8..ESP_LEAST => (Verdict::EspTruncated, CONNECTION),
        _ => (Verdict::IcvBad, CONNECTION),
    };
    for v6 in [false, true] {
        for filled in [false, true] {
            let mut row = |name: String, packet: Vec<u8>, verdict, connection, action| {
                let mut frame = outside(v6, &packet);
                if filled && frame.len() < 60 {
                    frame.resize(60, 0);
                }
                cases.push(
                    steer(format!("{name}, IPv6 {v6}, filled {filled}"), v6, frame)
                        .of(connection)
                        .ends(verdict, action),
                );
            };
            for keep in 0..esp.len() {
                let (verdict, connection) = esp_verdict(keep);
                row(
                    format!("ESP of {keep} octets"),
                    datagram(v6, 50, &esp[..keep]),
                    verdict,
                    connection,
                    Action::Drop,
                );
                let (verdict, connection) = match keep {
                    // Too short for an SPI, or for a keepalive that has the right octet.
                    0..4 => (Verdict::Malformed, 0),
                    _ => esp_verdict(keep),
                };
                row(
                    format!("ESP of {keep} octets in UDP"),
                    datagram(v6, 17, &udp(4500, 4500, &esp[..keep])),
                    verdict,
                    connection,
                    Action::Drop,
                );
            }
            let message = ike(1, 0, true);
            for keep in 0..message.len() {
                row(
                    format!("IKE of {keep} octets"),
                    datagram(v6, 17, &udp(500, 500, &message[..keep])),
                    Verdict::Malformed,
                    0,
                    Action::Drop,
                );
                let marked = [&[0; 4], &message[..keep]].concat();
                row(
                    format!("IKE of {keep} octets behind the marker"),
                    datagram(v6, 17, &udp(4500, 4500, &marked)),
                    Verdict::Malformed,
                    0,
                    Action::Drop,
                );
            }
            for keep in 0..8 {
                row(
                    format!("{keep} octets of a UDP header"),
                    datagram(v6, 17, &udp(4500, 4500, &[])[..keep]),
                    Verdict::Malformed,
                    0,
                    Action::Drop,
                );
            }
            for length in (0..8).chain([8 + esp.len() as u16 + 1, u16::MAX]) {
                let mut lying = udp(4500, 4500, &esp);
                lying[4..6].copy_from_slice(&length.to_be_bytes());
                row(
                    format!("a UDP length of {length}"),
                    datagram(v6, 17, &lying),
                    Verdict::Malformed,
                    0,
                    Action::Drop,
                );
            }
            // The datagram ends before the packet around it: what counts is the datagram.
            for keep in [8, ESP_LEAST - 1, ESP_LEAST, esp.len() - 1] {
                let mut lying = udp(4500, 4500, &esp);
                lying[4..6].copy_from_slice(&(8 + keep as u16).to_be_bytes());
                let (verdict, connection) = esp_verdict(keep);
                row(
                    format!("a UDP length for {keep} octets of ESP"),
                    datagram(v6, 17, &lying),
                    verdict,
                    connection,
                    Action::Drop,
                );
            }
        }
    }
    cases
}

/// Versions, header lengths and total lengths that cannot be. The host's stack counts them.
fn outer_headers() -> Vec<Case> {
    let mut cases = Vec::new();
    let esp = peer().esp(5, &inner(2));
    let four = datagram(false, 50, &esp);
    let six = datagram(true, 50, &esp);
    for version in (0..16u8).filter(|v| *v != 4) {
        let mut packet = four.clone();
        packet[0] = version << 4 | 5;
        cases.push(
            steer(
                format!("IPv4 with version {version}"),
                false,
                outside(false, &packet),
            )
            .ends(Verdict::NotForCluster, Action::Pass),
        );
    }
    for version in (0..16u8).filter(|v| *v != 6) {
        let mut packet = six.clone();
        packet[0] = version << 4;
        cases.push(
            steer(
                format!("IPv6 with version {version}"),
                true,
                outside(true, &packet),
            )
            .ends(Verdict::NotForCluster, Action::Pass),
        );
    }
    for words in 0..5u8 {
        let mut packet = four.clone();
        packet[0] = 0x40 | words;
        cases.push(
            steer(
                format!("a header of {words} words"),
                false,
                outside(false, &packet),
            )
            .ends(Verdict::NotForCluster, Action::Pass),
        );
    }
    for total in (0..20).chain([four.len() as u16 + 1, 0x7fff, u16::MAX]) {
        let mut packet = four.clone();
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        cases.push(
            steer(
                format!("a total length of {total}"),
                false,
                outside(false, &packet),
            )
            .ends(Verdict::NotForCluster, Action::Pass),
        );
    }
    for length in [six.len() as u16 - 39, 0x7fff, u16::MAX] {
        let mut packet = six.clone();
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        cases.push(
            steer(
                format!("a payload length of {length}"),
                true,
                outside(true, &packet),
            )
            .ends(Verdict::NotForCluster, Action::Pass),
        );
    }
    // With options of every length the packet is what it is.
    for words in 6..=15u8 {
        let options = vec![1; usize::from(words - 5) * 4];
        let mut packet = [&four[..20], &options, &esp].concat();
        packet[0] = 0x40 | words;
        let total = packet.len() as u16;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[10..12].fill(0);
        let sum = checksum(&packet[..usize::from(words) * 4]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        cases.push(opened(
            format!("ESP behind {words} words of IPv4 header"),
            outside(false, &packet),
            &inner(2),
        ));
    }
    cases
}

/// Padding, its length, and the next header, all authentic.
fn trailers() -> Vec<Case> {
    let mut cases = Vec::new();
    let whole = inner(20);
    let with = |pad: &[u8], length: u8, next: u8| {
        let text = [&whole[..], pad, &[length, next]].concat();
        let sealer = peer();
        sealer.frame_of(&sealer.esp_of_text(5, text))
    };
    let right: Vec<u8> = (1..=255).collect();
    for length in 0..=255u8 {
        let pad = &right[..usize::from(length)];
        cases.push(opened(
            format!("padding of {length} octets"),
            with(pad, length, 4),
            &whole,
        ));
        if length == 0 {
            continue;
        }
        // One octet is wrong: each in its turn.
        let mut wrong = pad.to_vec();
        let at = usize::from(length.wrapping_mul(37)) % wrong.len();
        wrong[at] ^= 1 << (length & 7);
        cases.push(
            steer(
                format!("padding of {length} octets, octet {at} wrong"),
                false,
                with(&wrong, length, 4),
            )
            .of(CONNECTION)
            .ends(Verdict::PaddingBad, Action::Drop),
        );
    }
    // A length beyond the text: the packet has 48 octets.
    for length in [49, 50, 100, 200, 255] {
        cases.push(
            steer(
                format!("a padding length of {length} for nothing"),
                false,
                with(&[], length, 4),
            )
            .of(CONNECTION)
            .ends(Verdict::PaddingBad, Action::Drop),
        );
    }
    for next in 0..=255u8 {
        let verdict = match next {
            4 => continue,
            41 => Verdict::InnerMalformed,
            59 => Verdict::InnerUnsupported,
            _ => Verdict::PaddingBad,
        };
        cases.push(
            steer(
                format!("next header {next} around IPv4"),
                false,
                with(&[], 0, next),
            )
            .of(CONNECTION)
            .ends(verdict, Action::Drop),
        );
    }
    // Octets behind the packet and before the padding hide its length (RFC 4303 2.7).
    cases.push(opened(
        "octets that hide the length",
        with(&[&noise(64)[..], &[1, 2]].concat(), 2, 4),
        &whole,
    ));
    cases
}

/// What is inside is authentic, and no packet.
fn inner_headers() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut row = |name: String, six: bool, inner: &[u8], verdict| {
        let sealer = if six { peer().around_v6() } else { peer() };
        cases.push(
            steer(name, false, sealer.frame(5, inner))
                .of(CONNECTION)
                .ends(verdict, Action::Drop),
        );
    };
    let four = inner(20);
    let six = Ip6::new(FAR_HOST_V6, NEAR_HOST_V6, 17).with(&udp(1, 2, &noise(20)));
    for keep in 0..four.len() {
        row(
            format!("an inner packet of which {keep} octets are there"),
            false,
            &four[..keep],
            Verdict::InnerMalformed,
        );
    }
    for keep in 0..six.len() {
        row(
            format!("an inner IPv6 packet of which {keep} octets are there"),
            true,
            &six[..keep],
            Verdict::InnerMalformed,
        );
    }
    for version in (0..16u8).filter(|v| *v != 4) {
        let mut packet = four.clone();
        packet[0] = version << 4 | 5;
        row(
            format!("inner version {version}"),
            false,
            &packet,
            Verdict::InnerMalformed,
        );
    }
    for words in 0..5u8 {
        let mut packet = four.clone();
        packet[0] = 0x40 | words;
        row(
            format!("an inner header of {words} words"),
            false,
            &packet,
            Verdict::InnerMalformed,
        );
    }
    // Longer than the packet, which has 48 octets.
    for words in 13..=15u8 {
        let mut packet = four.clone();
        packet[0] = 0x40 | words;
        row(
            format!("an inner header of {words} words, beyond the packet"),
            false,
            &packet,
            Verdict::InnerMalformed,
        );
    }
    for total in (0..20).chain([49, 4096, u16::MAX]) {
        let mut packet = four.clone();
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        row(
            format!("an inner total length of {total}"),
            false,
            &packet,
            Verdict::InnerMalformed,
        );
    }
    // A chain of extension headers that ends in the middle of one.
    let chain = [
        60, 0, 1, 4, 0, 0, 0, 0, 43, 0, 1, 4, 0, 0, 0, 0, 44, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        17, 0, 0, 1, 0, 0, 0, 7,
    ];
    for keep in 0..chain.len() {
        let packet = Ip6::new(FAR_HOST_V6, NEAR_HOST_V6, 0).with(&chain[..keep]);
        row(
            format!("inner extension headers that end after {keep} octets"),
            true,
            &packet,
            Verdict::InnerExtension,
        );
    }
    for length in 1..=255u8 {
        let packet = Ip6::new(FAR_HOST_V6, NEAR_HOST_V6, 60).with(&[17, length, 1, 4, 0, 0, 0, 0]);
        row(
            format!("an inner extension header of length {length}, beyond the packet"),
            true,
            &packet,
            Verdict::InnerExtension,
        );
    }
    // Ports that are not there match no selector of ports.
    for (what, fragment, keep) in [
        ("a fragment of no octets", 0x2000, 0),
        ("a fragment of three octets", 0x2000, 3),
        ("a later fragment", 0x0001, 8),
        ("half of the ports", 0, 2),
    ] {
        let packet = Ip {
            fragment,
            ..Ip::new(FAR_HOST, NEAR_HOST, 17)
        }
        .with(&udp(1000, 2000, &[])[..keep]);
        let mut world = World::plain();
        world.inbound.selectors[0].protocol = 17;
        world.inbound.selectors[0].local_ports = [2000, 2000];
        cases.push(untouched(
            Case::new(
                format!("inside, {what}: there are no ports"),
                Program::Steer,
                world,
                peer().frame(5, &packet),
            )
            .of(CONNECTION)
            .ends(Verdict::SelectorMismatch, Action::Drop),
        ));
    }
    cases
}

/// From the inside: nothing that is no packet is sealed.
fn from_inside() -> Vec<Case> {
    let mut cases = Vec::new();
    let four = Ip::new(NEAR_HOST, FAR_HOST, 17).with(&udp(1000, 2000, &noise(20)));
    let six = Ip6::new(NEAR_HOST_V6, FAR_HOST_V6, 17).with(&udp(1, 2, &noise(20)));
    let mut row = |name: String, ethertype: u16, packet: &[u8]| {
        let frame = ethernet(INSIDE_MAC, NEAR_MAC, ethertype, packet);
        cases.push(untouched(
            Case::new(
                format!("from inside: {name}"),
                Program::Inside,
                World::plain(),
                frame,
            )
            .ends(Verdict::NotForCluster, Action::Pass),
        ));
    };
    for keep in 0..four.len() {
        row(format!("{keep} octets of IPv4"), 0x0800, &four[..keep]);
    }
    for keep in 0..six.len() {
        row(format!("{keep} octets of IPv6"), 0x86dd, &six[..keep]);
    }
    for first in (0..=255u8).filter(|first| first >> 4 != 4 || first & 15 < 5) {
        let mut packet = four.clone();
        packet[0] = first;
        row(format!("a first octet of {first:02x}"), 0x0800, &packet);
    }
    for total in (0..20).chain([four.len() as u16 + 1, u16::MAX]) {
        let mut packet = four.clone();
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        row(format!("a total length of {total}"), 0x0800, &packet);
    }
    row("IPv4 that says it is IPv6".to_owned(), 0x86dd, &four);
    row("IPv6 that says it is IPv4".to_owned(), 0x0800, &six);
    cases
}
