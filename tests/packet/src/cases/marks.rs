//! DS field and congestion notification (RFC 6040, RFC 2983) through the tunnel, both ways.

use maps_schema::event::EVENT_FIRST_INBOUND;
use maps_schema::sad::SUITE_CHACHA20_POLY1305;
use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Program};
use crate::frames::{Ip, Ip6, Sealer, checksum, ethernet, noise, open_ours, udp};
use crate::world::*;

const SUITE: u8 = SUITE_CHACHA20_POLY1305;
const NAMES: [&str; 4] = ["Not-ECT", "ECT(1)", "ECT(0)", "CE"];

/// What RFC 6040 figure 4 says, by inner and outer codepoint (binary order: Not-ECT, ECT(1), ECT(0), CE); 9: dropped.
const MERGED: [[u8; 4]; 4] = [[0, 0, 0, 9], [1, 1, 1, 3], [2, 1, 2, 3], [3, 3, 3, 3]];

fn outer(v6: bool, tos: u8, esp: &[u8]) -> Vec<u8> {
    if v6 {
        let ip = Ip6 {
            tos,
            ..Ip6::new(PEER_V6, CLUSTER_V6, 50)
        };
        return ethernet(OUTSIDE_MAC, PEER_MAC, 0x86dd, &ip.with(esp));
    }
    let ip = Ip {
        tos,
        ..Ip::new(PEER, CLUSTER, 50)
    };
    ethernet(OUTSIDE_MAC, PEER_MAC, 0x0800, &ip.with(esp))
}

fn inner(v6: bool, tos: u8, ttl: u8, outbound: bool) -> Vec<u8> {
    let payload = udp(1000, 2000, &noise(40));
    if v6 {
        let (from, to) = if outbound {
            (NEAR_HOST_V6, FAR_HOST_V6)
        } else {
            (FAR_HOST_V6, NEAR_HOST_V6)
        };
        return Ip6 {
            tos,
            ttl,
            ..Ip6::new(from, to, 17)
        }
        .with(&payload);
    }
    let (from, to) = if outbound {
        (NEAR_HOST, FAR_HOST)
    } else {
        (FAR_HOST, NEAR_HOST)
    };
    Ip {
        tos,
        ttl,
        ..Ip::new(from, to, 17)
    }
    .with(&payload)
}

fn world(v6: bool) -> World {
    if v6 {
        World::over_v6(SUITE, false, false)
    } else {
        World::plain()
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (inside_v6, outside_v6) in [(false, false), (true, false), (false, true), (true, true)] {
        let families = format!(
            "{} in {}",
            if inside_v6 { 6 } else { 4 },
            if outside_v6 { 6 } else { 4 }
        );
        for (at, row) in MERGED.iter().enumerate() {
            for (met, merged) in row.iter().enumerate() {
                // DSCP 46 inside, 10 outside: the inner one stays.
                let (tos, mark) = (46 << 2 | at as u8, 10 << 2 | met as u8);
                let mut peer = Sealer::peer(SUITE, false, false);
                if inside_v6 {
                    peer = peer.around_v6();
                }
                let frame = outer(outside_v6, mark, &peer.esp(5, &inner(inside_v6, tos, 64, false)));
                let name = format!("ECN in, {families}: {} inside, {} outside", NAMES[at], NAMES[met]);
                let case = Case::new(name, Program::Steer, world(outside_v6), frame).of(CONNECTION);
                cases.push(if *merged == 9 {
                    case.ends(Verdict::EcnDropped, Action::Drop).check(|seen| {
                        if seen.window.packets == 0 && seen.window.edge == 0 {
                            Ok(())
                        } else {
                            Err("the window moved".into())
                        }
                    })
                } else {
                    let out = inner(inside_v6, 46 << 2 | merged, 63, false);
                    assert!(inside_v6 || checksum(&out[..20]) == 0);
                    let ethertype = if inside_v6 { 0x86dd } else { 0x0800 };
                    case.ends(Verdict::EspOpened, Action::Redirect)
                        .out(ethernet(NEAR_MAC, INSIDE_MAC, ethertype, &out))
                        .events(&[EVENT_FIRST_INBOUND])
                });
            }
            for dscp in [None, Some(0), Some(46), Some(63)] {
                let tos = 26 << 2 | at as u8;
                let want = dscp.unwrap_or(26) << 2 | at as u8;
                let mut world = world(outside_v6);
                world.outbound.dscp = dscp.map_or(0, |d: u8| d + 1);
                let ethertype = if inside_v6 { 0x86dd } else { 0x0800 };
                let frame = ethernet(INSIDE_MAC, NEAR_MAC, ethertype, &inner(inside_v6, tos, 64, true));
                let name = format!("marks out, {families}: {} and DSCP {dscp:?}", NAMES[at]);
                let case = Case::new(name, Program::Inside, world, frame).of(CONNECTION);
                cases.push(
                    case.ends(Verdict::EspSealed, Action::Redirect)
                        .any_frame()
                        .check(move |seen| {
                            let ours = open_ours(&seen.frame, SUITE, None, false)?;
                            let seen = if outside_v6 {
                                ours.outer[0] << 4 | ours.outer[1] >> 4
                            } else {
                                ours.outer[1]
                            };
                            if seen != want {
                                return Err(format!("outer type of service {seen:02x}, expected {want:02x}"));
                            }
                            if ours.inner != inner(inside_v6, tos, 63, true) {
                                return Err("the inner packet's marks changed".into());
                            }
                            Ok(())
                        }),
                );
            }
        }
    }
    cases
}
