//! What TCP announces as its largest segment, lowered on the way through: both directions, both families.

use maps_schema::event::EVENT_FIRST_INBOUND;
use maps_schema::sad::{MSS_AUTO, SUITE_CHACHA20_POLY1305};
use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Program};
use crate::frames::{Ip, Ip6, Sealer, checksum, ethernet, noise, open_ours};
use crate::world::*;

const SUITE: u8 = SUITE_CHACHA20_POLY1305;
const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;

/// A TCP packet with these options (padded to words), and its checksum.
fn tcp(v6: bool, outbound: bool, ttl: u8, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut options = options.to_vec();
    while !options.len().is_multiple_of(4) {
        options.push(0);
    }
    let offset = ((20 + options.len()) / 4) as u8;
    let segment = [
        &[0x12, 0x34, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8][..],
        &[offset << 4, flags, 0xff, 0xff, 0, 0, 0, 0],
        &options,
        payload,
    ]
    .concat();
    if v6 {
        let (from, to) = if outbound {
            (NEAR_HOST_V6, FAR_HOST_V6)
        } else {
            (FAR_HOST_V6, NEAR_HOST_V6)
        };
        return Ip6 {
            ttl,
            ..Ip6::new(from, to, 6)
        }
        .with_checksum(&segment, 16);
    }
    let (from, to) = if outbound {
        (NEAR_HOST, FAR_HOST)
    } else {
        (FAR_HOST, NEAR_HOST)
    };
    let len = (segment.len() as u16).to_be_bytes();
    let pseudo = [
        &from.to_be_bytes()[..],
        &to.to_be_bytes(),
        &[0, 6],
        &len,
        &segment,
    ]
    .concat();
    let sum = checksum(&pseudo).to_be_bytes();
    let mut segment = segment;
    segment[16..18].copy_from_slice(&sum);
    Ip {
        ttl,
        ..Ip::new(from, to, 6)
    }
    .with(&segment)
}

fn mss(value: u16) -> [u8; 4] {
    let [a, b] = value.to_be_bytes();
    [2, 4, a, b]
}

struct Row<'a> {
    name: &'a str,
    v6: bool,
    clamp: u16,
    flags: u8,
    before: &'a [u8],
    after: &'a [u8],
}

/// The packet with `before` as its options leaves with `after`, and with the right checksum: both ways.
fn both_ways(row: &Row<'_>) -> [Case; 2] {
    let Row {
        name,
        v6,
        clamp,
        flags,
        ..
    } = *row;
    let payload = noise(5);
    let packet = |outbound, ttl, options: &[u8]| tcp(v6, outbound, ttl, flags, options, &payload);
    let ethertype = if v6 { 0x86dd } else { 0x0800 };
    let mut world = World::plain();
    world.outbound.mss_clamp = clamp;
    let frame = ethernet(INSIDE_MAC, NEAR_MAC, ethertype, &packet(true, 64, row.before));
    let want = packet(true, 63, row.after);
    let out = Case::new(
        format!("segments out: {name}"),
        Program::Inside,
        world.clone(),
        frame,
    )
    .of(CONNECTION)
    .ends(Verdict::EspSealed, Action::Redirect)
    .any_frame()
    .check(move |seen| {
        let ours = open_ours(&seen.frame, SUITE, None, false)?;
        if ours.inner == want {
            Ok(())
        } else {
            Err(format!("inner\n  {:02x?}\nexpected\n  {want:02x?}", ours.inner))
        }
    });
    let mut peer = Sealer::peer(SUITE, false, false);
    if v6 {
        peer = peer.around_v6();
    }
    let back = Case::new(
        format!("segments in: {name}"),
        Program::Steer,
        world,
        peer.frame(5, &packet(false, 64, row.before)),
    )
    .of(CONNECTION)
    .ends(Verdict::EspOpened, Action::Redirect)
    .out(ethernet(
        NEAR_MAC,
        INSIDE_MAC,
        ethertype,
        &packet(false, 63, row.after),
    ))
    .events(&[EVENT_FIRST_INBOUND]);
    [out, back]
}

pub fn cases() -> Vec<Case> {
    let (large, small) = (mss(1460), mss(536));
    // Inner packets up to 1446: less 40 or 60 octets of headers.
    let (four, six) = (mss(1406), mss(1386));
    let given = mss(1200);
    let stamps = [8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    let last = [&stamps[..], &[3, 3, 7, 4, 2], &large].concat();
    let last_clamped = [&stamps[..], &[3, 3, 7, 4, 2], &four].concat();
    let odd = [&[1], &large[..]].concat();
    let odd_clamped = [&[1], &four[..]].concat();
    let full = [&[1; 36], &large[..]].concat();
    let full_clamped = [&[1; 36], &four[..]].concat();
    let behind_end = [&[0], &large[..]].concat();
    let no_length = [&[8, 0], &large[..]].concat();
    let beyond = [&[8, 200], &large[..]].concat();
    let long = [2, 6, 0xff, 0xff, 0, 0];
    let twice = [large, large].concat();
    let twice_clamped = [four, large].concat();
    let same = |name, clamp, flags, options| Row {
        name,
        v6: false,
        clamp,
        flags,
        before: options,
        after: options,
    };
    let lowered = |name, clamp, flags, before, after| Row {
        name,
        v6: false,
        clamp,
        flags,
        before,
        after,
    };
    let rows = [
        lowered("auto, SYN", MSS_AUTO, SYN, &large[..], &four[..]),
        lowered("auto, SYN and ACK", MSS_AUTO, SYN_ACK, &large, &four),
        Row {
            name: "auto, IPv6",
            v6: true,
            clamp: MSS_AUTO,
            flags: SYN,
            before: &large,
            after: &six,
        },
        lowered("as configured", 1200, SYN, &large, &given),
        lowered("the last of many options", MSS_AUTO, SYN, &last, &last_clamped),
        lowered("at an odd place", MSS_AUTO, SYN, &odd, &odd_clamped),
        lowered(
            "at the very end of forty octets",
            MSS_AUTO,
            SYN,
            &full,
            &full_clamped,
        ),
        lowered("the first of two counts", MSS_AUTO, SYN, &twice, &twice_clamped),
        same("not raised", MSS_AUTO, SYN, &small),
        same("exactly what fits", MSS_AUTO, SYN, &four),
        same("off", 0, SYN, &large),
        same("no SYN", MSS_AUTO, ACK, &large),
        same("no options", MSS_AUTO, SYN, &[]),
        same("behind the end of the list", MSS_AUTO, SYN, &behind_end),
        same("behind an option without length", MSS_AUTO, SYN, &no_length),
        same("behind an option that reaches beyond", MSS_AUTO, SYN, &beyond),
        same("an option of another length", MSS_AUTO, SYN, &long),
    ];
    let mut cases: Vec<Case> = rows.iter().flat_map(both_ways).collect();
    // The header says more than is there.
    for keep in [1, 12, 13, 14, 18, 20, 23] {
        let mut packet = tcp(false, false, 64, SYN, &large, &[]);
        packet.truncate(20 + keep);
        packet[2..4].copy_from_slice(&(20 + keep as u16).to_be_bytes());
        packet[10..12].fill(0);
        let sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut out = packet.clone();
        out[8] = 63;
        out[10..12].fill(0);
        let sum = checksum(&out[..20]);
        out[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut world = World::plain();
        world.outbound.mss_clamp = MSS_AUTO;
        cases.push(
            Case::new(
                format!("segments in: a header of {keep} octets stays as it is"),
                Program::Steer,
                world,
                Sealer::peer(SUITE, false, false).frame(5, &packet),
            )
            .of(CONNECTION)
            .ends(Verdict::EspOpened, Action::Redirect)
            .out(ethernet(NEAR_MAC, INSIDE_MAC, 0x0800, &out))
            .events(&[EVENT_FIRST_INBOUND]),
        );
    }
    cases
}
