//! Frames that lie in several buffers: what devices with large MTUs, and drivers that split headers off, hand to the programs.

use maps_schema::event::{
    EVENT_CEILING_SOFT, EVENT_FIRST_INBOUND, EVENT_MERGED, SLOW_ABOVE_CEILING, SLOW_LONG_MAX,
};
use maps_schema::sad::{SUITE_CBC, SUITE_CHACHA20_POLY1305};
use maps_schema::steer::SLOW_PATH_MAC;
use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Observed, Program};
use crate::frames::{
    Ip, Ip6, Sealer, advertisement, checksum, ethernet, noise, open_ours, solicitation, tagged, udp,
};
use crate::world::*;

const SUITE: u8 = SUITE_CHACHA20_POLY1305;
/// Largest inner packet that fits 9000 octets sealed over IPv4: 20, ESP 8, IV 8, text of 8948 with its trailer, ICV 16.
const LARGEST: usize = 8946;
/// With AES-CBC: IV 16, text of 8928.
const LARGEST_CBC: usize = 8926;

/// A world with jumbo frames on every link.
fn world(suite: u8) -> World {
    let mut world = World::base(suite, false, false);
    world.local.outside_mtu = u32::from(DEVICE_MTU);
    world.outbound.path_mtu = DEVICE_MTU;
    world
}

/// A datagram of `len` octets from behind the peer.
fn inner(len: usize, to: u32, ttl: u8) -> Vec<u8> {
    Ip {
        ttl,
        ..Ip::new(FAR_HOST, to, 17)
    }
    .with(&udp(1000, 2000, &noise(len - 28)))
}

fn steer(name: impl Into<String>, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Steer, world, frame).of(CONNECTION)
}

fn inside(name: impl Into<String>, world: World, len: usize) -> Case {
    let packet = Ip::new(NEAR_HOST, FAR_HOST, 17).with(&udp(1000, 2000, &noise(len - 28)));
    let frame = ethernet(INSIDE_MAC, NEAR_MAC, 0x0800, &packet);
    Case::new(name, Program::Inside, world, frame).of(CONNECTION)
}

/// What was sealed is the packet of `len` octets, one hop further.
fn holds(suite: u8, len: usize) -> impl Fn(&Observed) -> Result<(), String> + Send + Sync {
    move |seen| {
        let ours = open_ours(&seen.frame, suite, None, false)?;
        let want = Ip {
            ttl: 63,
            ..Ip::new(NEAR_HOST, FAR_HOST, 17)
        }
        .with(&udp(1000, 2000, &noise(len - 28)));
        if ours.inner == want {
            Ok(())
        } else {
            Err(format!("inner packet of {} octets differs", ours.inner.len()))
        }
    }
}

fn nothing_accepted(seen: &Observed) -> Result<(), String> {
    if seen.window.packets == 0 {
        Ok(())
    } else {
        Err("a packet was accepted".into())
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (suite, name) in SUITES {
        // The first sizes lie around the end of the first buffer and around what was the largest text once.
        let largest = if suite < SUITE_CBC { LARGEST } else { LARGEST_CBC };
        for len in [3400, 3500, 3600, 4080, 4096, 4200, 8000, largest] {
            let peer = Sealer::peer(suite, false, false);
            let frame = peer.frame(5, &inner(len, NEAR_HOST, 64));
            cases.push(
                steer(format!("{name}: {len} octets are opened"), world(suite), frame)
                    .ends(Verdict::EspOpened, Action::Redirect)
                    .to(INSIDE_IFINDEX)
                    .events(&[EVENT_FIRST_INBOUND])
                    .out(ethernet(NEAR_MAC, INSIDE_MAC, 0x0800, &inner(len, NEAR_HOST, 63))),
            );
            cases.push(
                inside(format!("{name}: {len} octets are sealed"), world(suite), len)
                    .ends(Verdict::EspSealed, Action::Redirect)
                    .to(OUTSIDE_IFINDEX)
                    .any_frame()
                    .check(holds(suite, len)),
            );
        }
    }
    cases.extend(refused());
    cases.extend(merged());
    cases.extend(merged_outside());
    cases.extend(exits());
    cases.extend(split());
    cases.extend(padded());
    cases
}

/// What does not fit, or is not authentic.
fn refused() -> Vec<Case> {
    let peer = Sealer::peer(SUITE, false, false);
    let mut wrong = peer.frame(5, &inner(8000, NEAR_HOST, 64));
    wrong[6000] ^= 1;
    let above = peer.frame(1001, &inner(8000, NEAR_HOST, 64));
    let mut padded = above.clone();
    padded.resize(SLOW_LONG_MAX + 1, 0);
    vec![
        inside(
            "one octet more than the path carries is told",
            world(SUITE),
            LARGEST + 1,
        )
        .ends(Verdict::FragmentNeeded, Action::Transmit)
        .any_frame(),
        steer("a wrong bit far behind the first buffer", world(SUITE), wrong)
            .ends(Verdict::IcvBad, Action::Drop)
            .check(nothing_accepted),
        steer("above the ceiling: it waits as others do", world(SUITE), above)
            .ends(Verdict::AboveCeiling, Action::Drop)
            .slow(SLOW_ABOVE_CEILING)
            .check(nothing_accepted),
        // The slow path carries less: the raise is asked for all the same.
        steer("above the ceiling, too long to wait for it", world(SUITE), padded)
            .ends(Verdict::SlowTooLong, Action::Drop)
            .events(&[EVENT_CEILING_SOFT])
            .check(nothing_accepted),
    ]
}

/// What is longer than the device's MTU was made by GRO or TSO out of several packets.
fn merged() -> Vec<Case> {
    let device = usize::from(DEVICE_MTU);
    let told = |name: &str, world: World, len: usize| {
        inside(name, world, len)
            .ends(Verdict::Merged, Action::Drop)
            .events(&[EVENT_MERGED])
            .check(move |seen| match seen.events[..] {
                [(_, octets)] if octets == len as u64 && seen.counters.seq == 0 => Ok(()),
                _ => Err(format!("{:?}, number {}", seen.events, seen.counters.seq)),
            })
    };
    // The path would carry it.
    let mut wide = world(SUITE);
    (wide.local.outside_mtu, wide.outbound.path_mtu) = (16_000, 16_000);
    vec![
        told("one octet more than the device carries", world(SUITE), device + 1),
        told("merged, and the path would carry it", wide, device + 500),
        told("merged, and longer than any text", world(SUITE), 20_000),
        inside(
            "as much as the device carries is told as ever",
            world(SUITE),
            device,
        )
        .ends(Verdict::FragmentNeeded, Action::Transmit)
        .any_frame(),
    ]
}

/// ESP packets in UDP that GRO has merged: one header, and behind it the first packet and what followed the others' headers.
fn merged_outside() -> Vec<Case> {
    let of = |suite: u8, v6: bool, count: u64, len: usize| {
        let peer = Sealer {
            v6,
            ..Sealer::peer(suite, false, true)
        };
        let packets = (0..count).map(|at| peer.esp(5 + at, &inner(len, NEAR_HOST, 64)));
        peer.frame_of(&packets.collect::<Vec<_>>().concat())
    };
    let over = |suite: u8, v6: bool| {
        let mut world = if v6 {
            World::over_v6(suite, false, true)
        } else {
            World::base(suite, false, true)
        };
        world.local.outside_mtu = u32::from(DEVICE_MTU);
        world
    };
    let told = |name: &str, suite: u8, v6: bool, frame: Vec<u8>| {
        let octets = (frame.len() - 14) as u64;
        steer(format!("merged outside: {name}"), over(suite, v6), frame)
            .ends(Verdict::Merged, Action::Drop)
            .events(&[EVENT_MERGED])
            .check(nothing_accepted)
            .check(move |seen| match seen.events[..] {
                [(_, said)] if said == octets => Ok(()),
                _ => Err(format!("{:?}, not {octets} octets", seen.events)),
            })
    };
    let mut cases = Vec::new();
    for (suite, name) in SUITES {
        let frame = of(suite, false, 7, 1400);
        cases.push(told(&format!("{name}, seven packets"), suite, false, frame));
    }
    // One octet more than whole blocks.
    let mut ragged = of(SUITE_CBC, false, 7, 1400);
    ragged.push(0);
    let ragged = longer(ragged);
    let mut by_agent = of(SUITE, false, 7, 1400);
    by_agent[6..12].copy_from_slice(&SLOW_PATH_MAC);
    let below = of(SUITE, false, 6, 1400);
    assert!(below.len() - 14 <= usize::from(DEVICE_MTU), "{}", below.len());
    let named = |name: &str, frame| {
        steer(format!("merged outside: {name}"), over(SUITE, false), frame)
            .ends(Verdict::IcvBad, Action::Drop)
            .check(nothing_accepted)
    };
    cases.extend([
        told("over IPv6", SUITE, true, of(SUITE, true, 7, 1400)),
        told("no whole blocks", SUITE_CBC, false, ragged),
        told("longer than any text", SUITE, false, of(SUITE, false, 12, 1400)),
        // Who merges less than the MTU is not known by the length.
        named("no longer than the MTU of the device", below),
        named("a datagram that the agent has from the stack is none", by_agent),
    ]);
    cases
}

/// The frame with an octet more: its UDP datagram, over IPv4, says so.
fn longer(mut frame: Vec<u8>) -> Vec<u8> {
    let len = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&len.to_be_bytes());
    frame[38..40].copy_from_slice(&(len - 20).to_be_bytes());
    frame[24..26].fill(0);
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Devices that do not take what lies in several buffers, or nothing at all.
fn exits() -> Vec<Case> {
    let peer = Sealer::peer(SUITE, false, false);
    let mut out = world(SUITE);
    out.local.own_device = 0;
    out.outbound.outer_dst = mapped(PEER_2);
    let mut refusing = World::plain();
    refusing.no_redirect = true;
    let mut elsewhere = world(SUITE);
    elsewhere.owner = OTHER;
    let large = peer.frame(5, &inner(8000, NEAR_HOST, 64));
    // The other member is reached through the VLAN only, on a device of the second port.
    let mut over_vlan = elsewhere.clone();
    over_vlan.owner = FAR_MEMBER;
    let hop = Case::new(
        "a second hop through the port of arrival",
        Program::Steer,
        elsewhere,
        large.clone(),
    )
    .ends(Verdict::SecondHop, Action::Transmit);
    let mut onward = large.clone();
    onward[..6].copy_from_slice(&OTHER_OUTSIDE_MAC);
    onward[6..12].copy_from_slice(&OUTSIDE_MAC);
    vec![
        steer(
            "opened, and the device of the route takes whole frames only",
            world(SUITE),
            peer.frame(5, &inner(8000, NEAR_2_HOST, 64)),
        )
        .ends(Verdict::PiecesToStack, Action::Pass)
        .events(&[EVENT_FIRST_INBOUND])
        .out(ethernet(
            OUTSIDE_MAC,
            PEER_MAC,
            0x0800,
            &inner(8000, NEAR_2_HOST, 64),
        )),
        inside(
            "sealed, and the device of the route takes whole frames only",
            out,
            8000,
        )
        .ends(Verdict::PiecesToStack, Action::Pass)
        .any_frame()
        .check(holds(SUITE, 8000)),
        steer(
            "opened, and no device takes redirected frames",
            refusing.clone(),
            Sealer::peer(SUITE, false, false).frame(5, &inner(500, NEAR_HOST, 64)),
        )
        .ends(Verdict::EspOpenedLocal, Action::Pass)
        .events(&[EVENT_FIRST_INBOUND])
        .out(ethernet(
            OUTSIDE_MAC,
            PEER_MAC,
            0x0800,
            &inner(500, NEAR_HOST, 64),
        )),
        inside("sealed, and no device takes redirected frames", refusing, 500)
            .ends(Verdict::EspSealed, Action::Pass)
            .any_frame()
            .check(holds(SUITE, 500)),
        hop.out(onward),
        Case::new(
            "a second hop through a device that takes whole frames only",
            Program::Steer,
            over_vlan,
            large,
        )
        .ends(Verdict::ExitRefuses, Action::Drop),
    ]
}

/// Drivers that put the headers into a buffer of their own.
fn split() -> Vec<Case> {
    let peer = Sealer::peer(SUITE, false, false);
    let frame = || peer.frame(5, &inner(1300, NEAR_HOST, 64));
    let opened = ethernet(NEAR_MAC, INSIDE_MAC, 0x0800, &inner(1300, NEAR_HOST, 63));
    let packet = Ip6::new(NEAR_HOST_V6, FAR_HOST_V6, 17).with(&udp(1000, 2000, &noise(1200)));
    let mut cases = Vec::new();
    // Link and IP header; these and a part of the ESP header; and so little that even the IP header is split.
    for first in [34, 38, 50, 20] {
        cases.push(
            steer(
                format!("first buffer of {first} octets: opened"),
                world(SUITE),
                frame(),
            )
            .split_at(first)
            .ends(Verdict::EspOpened, Action::Redirect)
            .events(&[EVENT_FIRST_INBOUND])
            .out(opened.clone()),
        );
        cases.push(
            inside(
                format!("first buffer of {first} octets: sealed"),
                world(SUITE),
                1300,
            )
            .split_at(first)
            .ends(Verdict::EspSealed, Action::Redirect)
            .any_frame()
            .check(holds(SUITE, 1300)),
        );
    }
    cases.push(
        Case::new(
            "first buffer of 54 octets: IPv6 inside is sealed",
            Program::Inside,
            world(SUITE),
            ethernet(INSIDE_MAC, NEAR_MAC, 0x86dd, &packet),
        )
        .of(CONNECTION)
        .split_at(54)
        .ends(Verdict::EspSealed, Action::Redirect)
        .any_frame(),
    );
    let vlan = Sealer::peer(SUITE, false, false).frame(5, &inner(8000, NEAR_VLAN_HOST, 64));
    cases.push(
        steer(
            "opened into a VLAN: the device below it takes frames in several buffers",
            world(SUITE),
            vlan,
        )
        .ends(Verdict::EspOpened, Action::Redirect)
        .events(&[EVENT_FIRST_INBOUND])
        .out(tagged(
            INSIDE_VLAN,
            &ethernet(
                NEAR_VLAN_MAC,
                INSIDE_MAC,
                0x0800,
                &inner(8000, NEAR_VLAN_HOST, 63),
            ),
        )),
    );
    cases
}

/// Octets behind the packet, more of them than the first buffer holds.
fn padded() -> Vec<Case> {
    let with_tail = |mut frame: Vec<u8>| {
        frame.resize(9000, 0x5a);
        frame
    };
    let peer = Sealer::peer(SUITE, false, false);
    let packet = |ttl| {
        let ip = Ip::new(NEAR_HOST, FAR_HOST, 17);
        Ip { ttl, ..ip }.with(&udp(1000, 2000, &noise(72)))
    };
    let ask = solicitation(
        PEER_MAC,
        PEER_LINK,
        CLUSTER_V6,
        &[&[1, 1][..], &PEER_MAC].concat(),
    );
    let told = advertisement(OUTSIDE_MAC, CLUSTER_V6, PEER_MAC, PEER_LINK, 0xe0);
    let mut cases = Vec::new();
    for first in [3400, 64] {
        cases.extend([
            steer(
                format!("octets behind an ESP packet, first buffer of {first}: opened"),
                world(SUITE),
                with_tail(peer.frame(5, &inner(100, NEAR_HOST, 64))),
            )
            .split_at(first)
            .ends(Verdict::EspOpened, Action::Redirect)
            .events(&[EVENT_FIRST_INBOUND])
            .out(ethernet(NEAR_MAC, INSIDE_MAC, 0x0800, &inner(100, NEAR_HOST, 63))),
            Case::new(
                format!("octets behind a packet from inside, first buffer of {first}: sealed"),
                Program::Inside,
                world(SUITE),
                with_tail(ethernet(INSIDE_MAC, NEAR_MAC, 0x0800, &packet(64))),
            )
            .of(CONNECTION)
            .split_at(first)
            .ends(Verdict::EspSealed, Action::Redirect)
            .any_frame()
            .check(
                move |seen| match open_ours(&seen.frame, SUITE, None, false)?.inner {
                    inner if inner == packet(63) => Ok(()),
                    inner => Err(format!("inner packet of {} octets differs", inner.len())),
                },
            ),
            Case::new(
                format!("octets behind a solicitation, first buffer of {first}: answered"),
                Program::Steer,
                world(SUITE),
                with_tail(ask.clone()),
            )
            .split_at(first)
            .ends(Verdict::NeighbourAnswered, Action::Transmit)
            .out(told.clone()),
        ]);
    }
    cases
}
