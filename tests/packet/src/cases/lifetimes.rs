//! Lifetimes in octets and packets (RFC 4301 4.4.2.1): what the limit does not hold is neither sent nor delivered; and packets
//! that wait for an SA.

use maps_schema::event::{EVENT_ACQUIRE, EVENT_FIRST_INBOUND, SLOW_NO_SA};
use maps_schema::sad::SUITE_CHACHA20_POLY1305;
use maps_schema::spd::ACTION_TRAP_HOLD;
use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Program};
use crate::frames::{Ip, Sealer, ethernet, noise, udp};
use crate::world::*;

/// Octets of the inner packets here.
const LEN: u64 = 128;

fn packet(outbound: bool, ttl: u8) -> Vec<u8> {
    let (from, to) = if outbound {
        (NEAR_HOST, FAR_HOST)
    } else {
        (FAR_HOST, NEAR_HOST)
    };
    Ip {
        ttl,
        ..Ip::new(from, to, 17)
    }
    .with(&udp(1000, 2000, &noise(LEN as usize - 28)))
}

/// Limit of octets and packets; those carried so far; whether one more is carried.
const ROWS: [(&str, u64, u64, u64, u64, bool); 9] = [
    ("no limit", 0, 0, u64::MAX / 2, u64::MAX / 2, true),
    ("the last packet", 0, 10, 5000, 9, true),
    ("after the last packet", 0, 10, 5000, 10, false),
    ("long after the last packet", 0, 10, 5000, 11, false),
    ("the octets fit exactly", 10_000, 0, 10_000 - LEN, 9, true),
    ("one octet too many", 10_000, 0, 10_001 - LEN, 9, false),
    ("octets used up", 10_000, 0, 10_000, 9, false),
    ("packets used up, octets left", 10_000, 10, 0, 10, false),
    ("octets used up, packets left", 10_000, 10, 10_000, 0, false),
];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, bytes, packets, carried, count, goes) in ROWS {
        let mut world = World::plain();
        (world.outbound.life_bytes, world.outbound.life_packets) = (bytes, packets);
        (world.counters.bytes, world.counters.packets, world.counters.seq) = (carried, count, 7);
        let frame = ethernet(INSIDE_MAC, NEAR_MAC, 0x0800, &packet(true, 64));
        let case = Case::new(format!("lifetime out: {name}"), Program::Inside, world, frame).of(CONNECTION);
        cases.push(if goes {
            case.ends(Verdict::EspSealed, Action::Redirect)
                .any_frame()
                .check(move |seen| {
                    if (seen.counters.packets, seen.counters.bytes) == (count + 1, carried + LEN) {
                        Ok(())
                    } else {
                        Err("it was not counted".into())
                    }
                })
        } else {
            case.ends(Verdict::LifetimeExpired, Action::Drop)
                .check(move |seen| {
                    let c = &seen.counters;
                    if (c.packets, c.bytes, c.seq) == (count, carried, 7) {
                        Ok(())
                    } else {
                        Err("the counters moved".into())
                    }
                })
        });
        let mut world = World::plain();
        (world.inbound.life_bytes, world.inbound.life_packets) = (bytes, packets);
        (world.window.bytes, world.window.packets, world.window.edge) = (carried, count, 4);
        let frame = Sealer::peer(SUITE_CHACHA20_POLY1305, false, false).frame(5, &packet(false, 64));
        let case = Case::new(format!("lifetime in: {name}"), Program::Steer, world, frame).of(CONNECTION);
        cases.push(if goes {
            case.ends(Verdict::EspOpened, Action::Redirect)
                .out(ethernet(NEAR_MAC, INSIDE_MAC, 0x0800, &packet(false, 63)))
                .events(&[EVENT_FIRST_INBOUND])
                .check(move |seen| {
                    if (seen.window.packets, seen.window.bytes) == (count + 1, carried + LEN) {
                        Ok(())
                    } else {
                        Err("it was not counted".into())
                    }
                })
        } else {
            case.ends(Verdict::LifetimeExpired, Action::Drop)
                .check(move |seen| {
                    let w = &seen.window;
                    if (w.packets, w.bytes, w.edge) == (count, carried, 4) {
                        Ok(())
                    } else {
                        Err("the window moved".into())
                    }
                })
        });
    }
    let mut world = World::plain();
    world.policy.rules[0].action = ACTION_TRAP_HOLD;
    let frame = ethernet(INSIDE_MAC, NEAR_MAC, 0x0800, &packet(true, 64));
    cases.push(
        Case::new(
            "policy: no SA yet, and the packet waits",
            Program::Inside,
            world,
            frame,
        )
        .of(CONNECTION)
        .ends(Verdict::HeldForSa, Action::Drop)
        .events(&[EVENT_ACQUIRE])
        .slow(SLOW_NO_SA),
    );
    cases
}
