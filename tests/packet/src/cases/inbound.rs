//! ESP from the peer: RFC 4303 3.4, the ceiling, the takeover floor.

use maps_schema::event::{
    EVENT_CEILING_SOFT, EVENT_EVIDENCE, EVENT_FIRST_INBOUND, SLOW_ABOVE_CEILING, SLOW_AWAITED, SLOW_LONG_MAX,
};
use maps_schema::sad::{InboundSa, REPLAY_WINDOW, SA_ESN, SA_LOCAL_ONLY, SUITE_CHACHA20_POLY1305};
use maps_schema::segment::{LEGACY_OPEN, SEGMENT_ALONE, SideWord};
use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Observed, Program};
use crate::frames::{Ip, Sealer, ethernet, noise, udp};
use crate::world::*;

/// An inner packet from behind the peer to the inside host.
fn inner(len: usize) -> Vec<u8> {
    Ip::new(FAR_HOST, NEAR_HOST, 17).with(&udp(1000, 2000, &noise(len)))
}

/// The same after forwarding: one hop less.
fn forwarded(len: usize) -> Vec<u8> {
    let ip = Ip {
        ttl: 63,
        ..Ip::new(FAR_HOST, NEAR_HOST, 17)
    };
    ethernet(
        NEAR_MAC,
        INSIDE_MAC,
        0x0800,
        &ip.with(&udp(1000, 2000, &noise(len))),
    )
}

fn peer() -> Sealer {
    Sealer::peer(SUITE_CHACHA20_POLY1305, false, false)
}

fn steer(name: impl Into<String>, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Steer, world, frame).of(CONNECTION)
}

/// Opened and forwarded, as the first packet in this epoch.
fn opened(case: Case, len: usize) -> Case {
    case.ends(Verdict::EspOpened, Action::Redirect)
        .out(forwarded(len))
        .events(&[EVENT_FIRST_INBOUND])
}

fn dropped(case: Case, verdict: Verdict) -> Case {
    case.ends(verdict, Action::Drop).check(unmarked)
}

/// Nothing was accepted.
fn unmarked(seen: &Observed) -> Result<(), String> {
    if seen.window.packets == 0 {
        Ok(())
    } else {
        Err("a packet was accepted".into())
    }
}

fn edge_is(edge: u64) -> impl Fn(&Observed) -> Result<(), String> + Send + Sync {
    move |seen| {
        let bit = seen.window.blocks[(edge as usize / 64) % 32] >> (edge % 64) & 1;
        if seen.window.edge == edge && seen.window.packets == 1 && bit == 1 {
            Ok(())
        } else {
            Err(format!(
                "edge {} (bit {bit}, {} packets), expected {edge}",
                seen.window.edge, seen.window.packets
            ))
        }
    }
}

/// A world in which this member took over at an epoch one higher: floor 1000, ceiling 2000.
fn taken_over() -> World {
    let mut world = World::plain();
    world.epoch = EPOCH + 1;
    world.inbound.reported_edge = 900;
    world
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (suite, name) in SUITES {
        for esn in [false, true] {
            for encap in [false, true] {
                let label = format!("{name}, esn {esn}, encapsulation {encap}");
                let world = World::base(suite, esn, encap);
                let peer = Sealer::peer(suite, esn, encap);
                for len in [1, 22, 63, 64, 1370] {
                    let frame = peer.frame(5, &inner(len));
                    let case = steer(
                        format!("{label}: {len} octets are opened and forwarded"),
                        world.clone(),
                        frame,
                    );
                    cases.push(opened(case, len).check(edge_is(5)));
                }
                let mut frame = peer.frame(5, &inner(64));
                let last = frame.len() - 1;
                frame[last] ^= 1;
                cases.push(dropped(
                    steer(format!("{label}: one wrong bit in the ICV"), world.clone(), frame),
                    Verdict::IcvBad,
                ));
                let mut frame = peer.frame(5, &inner(64));
                frame[if encap { 50 } else { 42 }] ^= 0x80;
                cases.push(dropped(
                    steer(format!("{label}: one wrong bit in the IV"), world.clone(), frame),
                    Verdict::IcvBad,
                ));
            }
        }
    }
    cases.extend(awaited());
    cases.extend(windows());
    cases.extend(limits());
    cases.extend(contents());
    cases
}

fn windows() -> Vec<Case> {
    let seen = |numbers: &[u64], edge: u64| {
        let mut world = World::plain();
        world.inbound.limits = cell(100_000, 1000, 0, EPOCH);
        world.window.edge = edge;
        world.window.above_floor = 1;
        for n in numbers {
            world.window.blocks[(*n as usize / 64) % 32] |= 1 << (n % 64);
        }
        world
    };
    let frame = |seq| peer().frame(seq, &inner(30));
    let ok = |case: Case| case.ends(Verdict::EspOpened, Action::Redirect).out(forwarded(30));
    let mut cases = vec![
        dropped(
            steer("number 0 is never valid", seen(&[], 0), frame(0)),
            Verdict::ReplayTooOld,
        ),
        dropped(
            steer("a number seen before", seen(&[4990], 5000), frame(4990)),
            Verdict::ReplayDuplicate,
        ),
        dropped(
            steer("the right edge again", seen(&[5000], 5000), frame(5000)),
            Verdict::ReplayDuplicate,
        ),
        ok(steer(
            "a late number within the window",
            seen(&[4991, 4989], 5000),
            frame(4990),
        )),
        ok(steer(
            "the last number of the window",
            seen(&[], 5000),
            frame(5001 - REPLAY_WINDOW),
        )),
        dropped(
            steer(
                "one left of the window",
                seen(&[], 5000),
                frame(5000 - REPLAY_WINDOW),
            ),
            Verdict::ReplayTooOld,
        ),
        ok(steer(
            "a jump past the whole window",
            seen(&[5000], 5000),
            frame(9999),
        ))
        .check(|seen| {
            let bits: u32 = seen.window.blocks.iter().map(|b| b.count_ones()).sum();
            if bits == 1 && seen.window.edge == 9999 {
                Ok(())
            } else {
                Err(format!("{bits} bits after a jump"))
            }
        }),
    ];
    let mut world = seen(&[7], 7);
    world.window.spi = 0x0200_0104;
    world.window.packets = 99;
    cases.push(
        opened(
            steer(
                "a window of the slot's former SA counts for nothing",
                world,
                frame(7),
            ),
            30,
        )
        .check(edge_is(7)),
    );
    let esn = Sealer::peer(SUITE_CHACHA20_POLY1305, true, false);
    let wrap = |edge: u64| {
        let mut world = World::base(SUITE_CHACHA20_POLY1305, true, false);
        world.inbound.limits = cell(1 << 34, 1000, 0, EPOCH);
        world.window.edge = edge;
        world.window.above_floor = 1;
        world
    };
    let over = (1u64 << 32) + 3;
    cases.push(
        ok(steer(
            "esn: the low half wraps",
            wrap((1 << 32) - 10),
            esn.frame(over, &inner(30)),
        ))
        .check(edge_is(over)),
    );
    let late = (1u64 << 32) - 5;
    cases.push(ok(steer(
        "esn: a late number of the former half",
        wrap(over),
        esn.frame(late, &inner(30)),
    )));
    cases.push(dropped(
        steer(
            "esn: authentic with the wrong high half only",
            wrap(over),
            esn.frame(over + 9 + (1 << 32), &inner(30)),
        ),
        Verdict::IcvBad,
    ));
    cases
}

/// RFC 7296 2.8: the peer has its SA as soon as it answers, and we as soon as we have used the answer.
fn awaited() -> Vec<Case> {
    let asked_for = |spi| {
        let mut world = World::plain();
        world.inbound = InboundSa {
            spi,
            awaited: SPI_IN,
            ..world.inbound
        };
        world
    };
    let waits = |name: &str, world: World| {
        steer(name, world, peer().frame(7, &inner(30)))
            .of(0)
            .ends(Verdict::HeldForAnswer, Action::Drop)
            .slow(SLOW_AWAITED)
            .check(unmarked)
    };
    let none_before = World {
        inbound: InboundSa {
            awaited: SPI_IN,
            ..InboundSa::default()
        },
        ..World::plain()
    };
    let older = SPI_IN + (1 << 24);
    let mut third = peer();
    third.spi = SPI_IN + (2 << 24);
    let mut given = none_before.clone();
    (given.owner, given.epoch) = (OTHER, EPOCH + 1);
    given.side = SideWord {
        legacy_owner: ME,
        legacy_phase: LEGACY_OPEN,
        legacy_epoch: EPOCH,
        ..SideWord::default()
    };
    let mut padded = peer().frame(7, &inner(30));
    padded.resize(SLOW_LONG_MAX + 1, 0);
    vec![
        steer(
            "an SA that was asked for by who gives the group away",
            given,
            peer().frame(7, &inner(30)),
        )
        .of(0)
        .ends(Verdict::SecondHop, Action::Transmit)
        .any_frame(),
        waits("an SA that was asked for", none_before),
        waits("the same in the slot of an older one", asked_for(older)),
        steer(
            "an SA that was asked for, and a packet of a third one",
            asked_for(older),
            third.frame(7, &inner(30)),
        )
        .of(0)
        .ends(Verdict::UnknownSpi, Action::Drop),
        steer(
            "an SA that was asked for, and a packet that is too long to wait",
            asked_for(0),
            padded,
        )
        .of(0)
        .ends(Verdict::SlowTooLong, Action::Drop),
    ]
}

fn limits() -> Vec<Case> {
    let frame = |seq| peer().frame(seq, &inner(30));
    let mut cases = Vec::new();
    let ok = |case: Case| opened(case, 30);
    cases.push(
        ok(steer("the ceiling itself", World::plain(), frame(1000)))
            .events(&[EVENT_FIRST_INBOUND, EVENT_CEILING_SOFT]),
    );
    let above = steer(
        "above the ceiling: authenticated, unmarked, kept for the raise",
        World::plain(),
        frame(1001),
    );
    cases.push(
        above
            .ends(Verdict::AboveCeiling, Action::Drop)
            .slow(SLOW_ABOVE_CEILING)
            .check(unmarked)
            .check(|seen| {
                if seen.window.edge == 0 {
                    Ok(())
                } else {
                    Err("the window moved".into())
                }
            }),
    );
    let mut forged = frame(1001);
    forged[60] ^= 4;
    cases.push(dropped(
        steer("above the ceiling, forged: not kept", World::plain(), forged),
        Verdict::IcvBad,
    ));
    cases.push(ok(steer(
        "half of the headroom is not passed yet",
        World::plain(),
        frame(500),
    )));
    cases.push(
        ok(steer("past half of the headroom", World::plain(), frame(501)))
            .events(&[EVENT_FIRST_INBOUND, EVENT_CEILING_SOFT]),
    );
    let mut world = World::plain();
    world.inbound.flags |= SA_LOCAL_ONLY;
    cases.push(ok(steer(
        "an SA that is known here alone has no ceiling",
        world,
        frame(70_000),
    )));

    cases.push(
        dropped(
            steer(
                "a taker: the old ceiling counts as seen",
                taken_over(),
                frame(1000),
            ),
            Verdict::BelowTakeoverFloor,
        )
        .check(|seen| {
            if seen.window.floor == 1000 && seen.window.edge == 1000 && seen.window.evidence_count == 1 {
                Ok(())
            } else {
                Err(format!("floor {}, edge {}", seen.window.floor, seen.window.edge))
            }
        }),
    );
    cases.push(
        dropped(
            steer(
                "a taker: a capture from before the reported edge is no evidence",
                taken_over(),
                frame(900),
            ),
            Verdict::BelowTakeoverFloor,
        )
        .check(|seen| {
            if seen.window.evidence_count == 0 {
                Ok(())
            } else {
                Err("counted".into())
            }
        }),
    );
    let mut forged = frame(950);
    forged[60] ^= 4;
    cases.push(
        dropped(
            steer(
                "a taker: forged below the floor is no evidence",
                taken_over(),
                forged,
            ),
            Verdict::IcvBad,
        )
        .check(|seen| {
            if seen.window.evidence_count == 0 {
                Ok(())
            } else {
                Err("counted".into())
            }
        }),
    );
    cases.push(ok(steer("a taker: one above the floor", taken_over(), frame(1001))).check(edge_is(1001)));
    cases.push(
        steer("a taker: above floor and headroom", taken_over(), frame(2001))
            .ends(Verdict::AboveCeiling, Action::Drop)
            .slow(SLOW_ABOVE_CEILING),
    );
    let mut world = taken_over();
    world.side = SideWord {
        flags: SEGMENT_ALONE,
        ..SideWord::default()
    };
    cases.push(ok(steer(
        "a taker that is alone has no ceiling",
        world,
        frame(2001),
    )));
    let mut world = taken_over();
    world.inbound.limits = cell(3000, 1000, 1000, EPOCH + 1);
    cases.push(dropped(
        steer(
            "a raise after the takeover does not forget the floor",
            world,
            frame(1000),
        ),
        Verdict::BelowTakeoverFloor,
    ));
    let evidence = |count, seq| {
        let mut world = taken_over();
        world.window.floor_epoch = u32::from(EPOCH) + 1;
        world.window.evidence_epoch = u32::from(EPOCH) + 1;
        world.window.floor = 1000;
        world.window.edge = 1000;
        world.window.blocks = [u64::MAX; 32];
        world.window.evidence_count = count;
        world.window.evidence_seq = seq;
        world.window.evidence_first_ms = 1;
        world
    };
    cases.push(
        dropped(
            steer(
                "the fourth rising number is evidence",
                evidence(3, 950),
                frame(951),
            ),
            Verdict::BelowTakeoverFloor,
        )
        .events(&[EVENT_EVIDENCE]),
    );
    cases.push(dropped(
        steer(
            "a number that does not rise is none",
            evidence(3, 951),
            frame(951),
        ),
        Verdict::BelowTakeoverFloor,
    ));
    cases.push(dropped(
        steer(
            "evidence is reported once",
            evidence(4 | 1 << 31, 950),
            frame(951),
        ),
        Verdict::BelowTakeoverFloor,
    ));
    let mut world = evidence(3, 950);
    world.window.above_floor = 5;
    cases.push(dropped(
        steer(
            "something authentic above the floor ends the evidence",
            world,
            frame(951),
        ),
        Verdict::ReplayDuplicate,
    ));
    let mut world = World::plain();
    world.inbound.limits = cell(1000, 10, 0, EPOCH + 1);
    cases.push(dropped(
        steer("a record of a later epoch", world, frame(5)),
        Verdict::EpochBehind,
    ));
    cases
}

fn contents() -> Vec<Case> {
    let world = World::plain;
    let mut cases = Vec::new();
    let full = peer().esp(5, &inner(30));
    cases.push(dropped(
        steer("too short for IV and ICV", world(), peer().frame_of(&full[..31])),
        Verdict::EspTruncated,
    ));
    cases.push(
        steer(
            "too short for SPI and number",
            world(),
            peer().frame_of(&full[..7]),
        )
        .of(0)
        .ends(Verdict::EspTruncated, Action::Drop),
    );
    let mut other = peer();
    other.spi = SPI_IN + (1 << 24);
    cases.push(
        steer(
            "another generation of the slot",
            world(),
            other.frame(5, &inner(30)),
        )
        .of(0)
        .ends(Verdict::UnknownSpi, Action::Drop),
    );
    other.spi = (SPI_IN & !0xfffff) | SLOTS;
    cases.push(
        steer("a slot beyond the maps", world(), other.frame(5, &inner(30)))
            .of(0)
            .ends(Verdict::UnknownSpi, Action::Drop),
    );
    let mut padded = inner(30);
    padded.extend([1, 2, 9, 3, 4]);
    cases.push(dropped(
        steer(
            "padding that does not count up",
            world(),
            peer().frame_of(&peer().esp_of_text(5, padded)),
        ),
        Verdict::PaddingBad,
    ));
    let mut long = inner(30);
    long.extend([255, 4]);
    cases.push(dropped(
        steer(
            "more padding than text",
            world(),
            peer().frame_of(&peer().esp_of_text(5, long)),
        ),
        Verdict::PaddingBad,
    ));
    let mut padded = inner(30);
    padded.extend(1..=200);
    padded.extend([200, 4]);
    cases.push(opened(
        steer(
            "200 octets of good padding",
            world(),
            peer().frame_of(&peer().esp_of_text(5, padded)),
        ),
        30,
    ));
    let mut extra = inner(30);
    extra.extend([0; 40]);
    cases.push(opened(
        steer(
            "octets behind the inner packet (TFC) are cut",
            world(),
            peer().frame(5, &extra),
        ),
        30,
    ));
    for (next_header, verdict) in [
        (41, Verdict::InnerMalformed),
        (59, Verdict::InnerUnsupported),
        (6, Verdict::PaddingBad),
    ] {
        let mut sealer = peer();
        sealer.next_header = next_header;
        let name = format!("next header {next_header}");
        cases.push(dropped(
            steer(name, world(), sealer.frame(5, &inner(30))),
            verdict,
        ));
    }
    let mut broken = inner(30);
    broken[0] = 0x65;
    cases.push(dropped(
        steer("an inner packet of version 6", world(), peer().frame(5, &broken)),
        Verdict::InnerMalformed,
    ));
    let mut broken = inner(30);
    broken[3] = 0xff;
    cases.push(dropped(
        steer(
            "an inner packet longer than its text",
            world(),
            peer().frame(5, &broken),
        ),
        Verdict::InnerMalformed,
    ));
    let foreign = Ip::new(0x0a03_0001, NEAR_HOST, 17).with(&udp(1, 2, b"x"));
    cases.push(dropped(
        steer(
            "an inner source outside the selectors",
            world(),
            peer().frame(5, &foreign),
        ),
        Verdict::SelectorMismatch,
    ));
    let mut narrow = world();
    narrow.inbound.selectors[0].local_ports = [2001, 2001];
    cases.push(dropped(
        steer(
            "an inner port outside the selectors",
            narrow.clone(),
            peer().frame(5, &inner(30)),
        ),
        Verdict::SelectorMismatch,
    ));
    narrow.inbound.selectors[1] = world().inbound.selectors[0];
    narrow.inbound.selector_count = 2;
    cases.push(opened(
        steer(
            "the second pair of selectors fits",
            narrow,
            peer().frame(5, &inner(30)),
        ),
        30,
    ));
    let local = Ip::new(FAR_HOST, NO_NEIGHBOUR, 17).with(&udp(1, 2, b"x"));
    cases.push(
        steer(
            "no neighbour known: the plain packet goes to the stack",
            world(),
            peer().frame(5, &local),
        )
        .ends(Verdict::EspOpenedLocal, Action::Pass)
        .out(ethernet(OUTSIDE_MAC, PEER_MAC, 0x0800, &local))
        .events(&[EVENT_FIRST_INBOUND]),
    );
    let mut unknown = world();
    unknown.inbound.suite = 9;
    cases.push(dropped(
        steer(
            "a suite that is not carried",
            unknown,
            peer().frame(5, &inner(30)),
        ),
        Verdict::SuiteUnknown,
    ));
    let mut esn = world();
    esn.inbound.flags |= SA_ESN;
    cases.push(dropped(
        steer(
            "a peer without esn on an SA with",
            esn,
            peer().frame(5, &inner(30)),
        ),
        Verdict::IcvBad,
    ));
    let frame = peer().frame(5, &inner(30));
    cases.push(
        opened(
            Case::new("in the cpumap program", Program::EspIn, world(), frame.clone()).of(CONNECTION),
            30,
        )
        .check(edge_is(5)),
    );
    let mut tagged = frame[..12].to_vec();
    tagged.extend([0x81, 0x00, 0xe0, 0x00]);
    tagged.extend(&frame[12..]);
    cases.push(opened(
        steer("under a tag that carries a priority only", world(), tagged),
        30,
    ));
    let mut trailed = frame;
    trailed.extend([0; 6]);
    cases.push(opened(
        steer("with octets behind the datagram", world(), trailed),
        30,
    ));
    cases
}
