//! Packets that do not fit the path: told to their sender, cut, or on a path that is narrower than was known.

use maps_schema::event::{EVENT_PATH_MTU, SLOW_OUT_FRAGMENT, SLOW_OUTER_FRAGMENT};
use maps_schema::sad::{DF_CLEAR, DF_SET, SUITE_CHACHA20_POLY1305};
use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Observed, Program};
use crate::frames::{Ip, Ip6, ethernet, noise, open_ours, tagged, udp};
use crate::world::*;

const SUITE: u8 = SUITE_CHACHA20_POLY1305;

fn inside(name: impl Into<String>, world: World, packet: &[u8]) -> Case {
    let ethertype = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
    let frame = ethernet(INSIDE_MAC, NEAR_MAC, ethertype, packet);
    Case::new(name, Program::Inside, world, frame).of(CONNECTION)
}

/// A packet of `len` octets in all.
fn six(len: usize) -> Vec<u8> {
    Ip6::new(NEAR_HOST_V6, FAR_HOST_V6, 17).with(&udp(1000, 2000, &noise(len - 48)))
}

fn four(len: usize, fragment: u16) -> Vec<u8> {
    Ip {
        fragment,
        ..Ip::new(NEAR_HOST, FAR_HOST, 17)
    }
    .with(&udp(1000, 2000, &noise(len - 28)))
}

fn nothing_sent(seen: &Observed) -> Result<(), String> {
    if seen.counters.seq == 0 && seen.counters.packets == 0 {
        Ok(())
    } else {
        Err("a number was used".into())
    }
}

/// Packet Too Big about `packet`, to the inside host: as long as every link carries, with the right checksum.
fn told(case: Case, packet: &[u8], mtu: u32, tag: Option<u16>) -> Case {
    let packet = packet.to_vec();
    case.ends(Verdict::PacketTooBig, Action::Transmit)
        .any_frame()
        .check(nothing_sent)
        .check(move |seen| {
            let mut link = ethernet(NEAR_MAC, INSIDE_MAC, 0x86dd, &[]);
            if let Some(tag) = tag {
                link = tagged(tag, &link);
            }
            let Some(ip) = seen.frame.strip_prefix(&link[..]) else {
                return Err(format!("link header {:02x?}", &seen.frame[..18]));
            };
            let (header, message) = ip.split_at(40);
            let answer = Ip6::new(INSIDE_V6, NEAR_HOST_V6, 58);
            let right = ip.len() == 1280
                && header == &answer.with(message)[..40]
                && answer.checksum(message) == 0
                && message[..2] == [2, 0]
                && message[4..8] == mtu.to_be_bytes()
                && message[8..] == packet[..1232];
            if right {
                Ok(())
            } else {
                Err(format!("ICMPv6 {:02x?}", &ip[..56]))
            }
        })
}

/// Sealed whole, with DF clear, and given to the slow path.
fn cut(case: Case, packet: &[u8]) -> Case {
    let mut inner = packet.to_vec();
    if inner[0] >> 4 == 6 {
        inner[7] = 63;
    } else {
        inner[8] = 63;
        inner[10..12].fill(0);
        let sum = crate::frames::checksum(&inner[..20]);
        inner[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    case.ends(Verdict::OuterCut, Action::Drop)
        .any_frame()
        .slow_changed(SLOW_OUTER_FRAGMENT)
        .check(move |seen| {
            let ours = open_ours(&seen.slow[0].1, SUITE, None, false)?;
            if ours.inner != inner {
                return Err(format!("inner packet {:02x?}", ours.inner));
            }
            if ours.outer[0] >> 4 == 4 && ours.outer[6..8] != [0, 0] {
                return Err("DF is set".into());
            }
            Ok(())
        })
}

fn df_is(want: u8) -> impl Fn(&Observed) -> Result<(), String> + Send + Sync {
    move |seen| {
        let ours = open_ours(&seen.frame, SUITE, None, false)?;
        if ours.outer[6] == want {
            Ok(())
        } else {
            Err(format!("outer flags {:02x}", ours.outer[6]))
        }
    }
}

pub fn cases() -> Vec<Case> {
    let over_v6 = || World::over_v6(SUITE, false, false);
    let mut cases = Vec::new();
    // IPv6 inner packets up to 1446 fit over IPv4, up to 1426 over IPv6 (see the tables of both).
    for (what, world, fits) in [
        ("6 in 4", World::plain(), 1446),
        ("6 in 6", over_v6(), 1426),
        ("6 in 4 in UDP", World::base(SUITE, false, true), 1438),
    ] {
        let large = six(fits + 1);
        let case = inside(
            format!("{what}: one octet more: Packet Too Big"),
            world.clone(),
            &large,
        );
        cases.push(told(case, &large, fits as u32, None));
        let odd = six(fits + 2);
        let case = inside(format!("{what}: two octets more: Packet Too Big"), world, &odd);
        cases.push(told(case, &odd, fits as u32, None));
    }
    let large = six(1447);
    let mut world = World::plain();
    world.local.inside_address_v6 = [0; 16];
    cases.push(
        inside("no address to tell from", world, &large)
            .ends(Verdict::TooBig, Action::Drop)
            .check(nothing_sent),
    );
    let from_vlan = tagged(INSIDE_VLAN, &ethernet(INSIDE_MAC, NEAR_MAC, 0x86dd, &large));
    cases.push(told(
        Case::new(
            "too big from a VLAN: the answer bears the tag",
            Program::Inside,
            World::plain(),
            from_vlan,
        )
        .of(CONNECTION),
        &large,
        1446,
        Some(INSIDE_VLAN),
    ));
    // RFC 4443 2.4 (e).
    let icmp = |kind: u8| {
        let payload = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &noise(1447 - 48)].concat();
        Ip6::new(NEAR_HOST_V6, FAR_HOST_V6, 58).with(&payload)
    };
    for kind in [0, 1, 2, 3, 4, 127] {
        cases.push(
            inside(
                format!("no error about an error of type {kind}"),
                World::plain(),
                &icmp(kind),
            )
            .ends(Verdict::TooBig, Action::Drop)
            .check(nothing_sent),
        );
    }
    let echo = icmp(128);
    cases.push(told(
        inside("an echo request is no error", World::plain(), &echo),
        &echo,
        1446,
        None,
    ));
    let mut world = World::plain();
    world.policy_v6.rules[0].source_first = [0; 16];
    world.policy_v6.rules[0].source_last = [0xff; 16];
    let mut nobody = six(1447);
    nobody[8..24].fill(0);
    cases.push(
        inside("nobody is told nothing", world, &nobody)
            .ends(Verdict::TooBig, Action::Drop)
            .check(nothing_sent),
    );
    // RFC 8200 5: below 1280 octets nobody need go.
    let mut narrow = World::plain();
    narrow.outbound.path_mtu = 1280;
    let large = six(1281);
    cases.push(told(
        inside(
            "a path of 1280: the sender is told 1280, not less",
            narrow.clone(),
            &large,
        ),
        &large,
        1280,
        None,
    ));
    for (what, world) in [
        ("over IPv4", narrow),
        ("over IPv6", {
            let mut world = over_v6();
            world.outbound.path_mtu = 1280;
            world
        }),
    ] {
        for len in [1280, 1250] {
            let packet = six(len);
            cases.push(cut(
                inside(
                    format!("a path of 1280 {what}: {len} octets are cut outside"),
                    world.clone(),
                    &packet,
                ),
                &packet,
            ));
        }
    }
    // `df`.
    for (what, df, inner, outer) in [
        ("copy, set", 0, 0x4000, 0x40),
        ("copy, clear", 0, 0, 0),
        ("set, clear", DF_SET, 0, 0x40),
        ("clear, set", DF_CLEAR, 0x4000, 0),
    ] {
        let mut world = World::plain();
        world.outbound.df = df;
        let case = inside(format!("DF: {what} in the packet"), world, &four(200, inner));
        cases.push(
            case.ends(Verdict::EspSealed, Action::Redirect)
                .any_frame()
                .check(df_is(outer)),
        );
    }
    for (what, df, outer) in [("copy", 0, 0x40), ("set", DF_SET, 0x40), ("clear", DF_CLEAR, 0)] {
        let mut world = World::plain();
        world.outbound.df = df;
        let case = inside(format!("DF: {what}, around IPv6"), world, &six(200));
        cases.push(
            case.ends(Verdict::EspSealed, Action::Redirect)
                .any_frame()
                .check(df_is(outer)),
        );
    }
    let mut clear = World::plain();
    clear.outbound.df = DF_CLEAR;
    for packet in [four(1447, 0x4000), four(1447, 0), six(1447), six(3000)] {
        let (version, flags) = (packet[0] >> 4, packet[6]);
        cases.push(cut(
            inside(
                format!(
                    "DF clear: {} octets of IPv{version} ({flags:02x}) are cut outside",
                    packet.len()
                ),
                clear.clone(),
                &packet,
            ),
            &packet,
        ));
    }
    let mut clear = over_v6();
    clear.outbound.df = DF_CLEAR;
    let large = six(1427);
    cases.push(told(
        inside("DF clear over IPv6: there is no such bit", clear.clone(), &large),
        &large,
        1426,
        None,
    ));
    cases.push(
        inside("DF clear over IPv6: cut inside", clear, &four(1427, 0))
            .ends(Verdict::OutFragment, Action::Drop)
            .slow(SLOW_OUT_FRAGMENT)
            .check(nothing_sent),
    );
    // The kernel knows of a path of 1400 octets to this peer, the record does not.
    let mut narrow = World::plain();
    narrow.outbound.outer_dst = mapped(PEER_NARROW);
    let mtu_event = |seen: &Observed| match seen.events[..] {
        [(EVENT_PATH_MTU, NARROW_MTU)] => Ok(()),
        _ => Err(format!("events {:?}", seen.events)),
    };
    for (what, packet) in [("IPv4", four(1380, 0x4000)), ("IPv6", six(1380))] {
        cases.push(
            inside(
                format!("a narrow route, DF: {what} is dropped and the path told"),
                narrow.clone(),
                &packet,
            )
            .ends(Verdict::PathTooSmall, Action::Drop)
            .any_frame()
            .events(&[EVENT_PATH_MTU])
            .check(mtu_event),
        );
    }
    cases.push(
        inside(
            "a narrow route, no DF: the stack cuts",
            narrow.clone(),
            &four(1380, 0),
        )
        .ends(Verdict::EspSealed, Action::Pass)
        .any_frame()
        .events(&[EVENT_PATH_MTU])
        .check(mtu_event)
        .check(|seen| {
            // A frame that the stack takes for its own.
            if seen.frame[..14] == ethernet(INSIDE_MAC, INSIDE_MAC, 0x0800, &[])[..] {
                open_ours(&seen.frame, SUITE, None, false).map(drop)
            } else {
                Err(format!("link header {:02x?}", &seen.frame[..14]))
            }
        }),
    );
    cases.push(
        inside("a narrow route carries what fits", narrow, &four(1340, 0x4000))
            .ends(Verdict::EspSealed, Action::Redirect)
            .any_frame(),
    );
    cases
}
