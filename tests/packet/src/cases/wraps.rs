//! Sequence numbers at every wrap: 2^31, 2^32 and its multiples, and the end of the IV's 40 bits; both ways, with ESN (RFC 4303
//! 2.2.1, Appendix A).

use maps_schema::event::EVENT_FIRST_INBOUND;
use maps_schema::sad::{SA_LOCAL_ONLY, SUITE_CHACHA20_POLY1305};
use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Program};
use crate::frames::{Ip, Sealer, ethernet, noise, open_ours, udp};
use crate::world::*;

const SUITE: u8 = SUITE_CHACHA20_POLY1305;
const WRAP: u64 = 1 << 32;

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
    .with(&udp(1000, 2000, &noise(30)))
}

/// An SA with ESN and no limits but those of the numbers.
fn world() -> World {
    let mut world = World::base(SUITE, true, false);
    world.outbound.flags |= SA_LOCAL_ONLY;
    world.inbound.flags |= SA_LOCAL_ONLY;
    world
}

/// The next number out, from a counter that stands one below.
fn out(seq: u64) -> Case {
    let mut world = world();
    world.counters.seq = seq - 1;
    let frame = ethernet(INSIDE_MAC, NEAR_MAC, 0x0800, &packet(true, 64));
    Case::new(format!("esn out: number {seq:#x}"), Program::Inside, world, frame)
        .of(CONNECTION)
        .ends(Verdict::EspSealed, Action::Redirect)
        .any_frame()
        .check(move |seen| {
            // The high half is authenticated, the low one is on the wire, 40 bits are in the IV.
            let ours = open_ours(&seen.frame, SUITE, Some((seq >> 32) as u32), false)?;
            if u64::from(ours.seq_low) != seq % WRAP
                || ours.iv[3..] != seq.to_be_bytes()[3..]
                || ours.inner != packet(true, 63)
                || seen.counters.seq != seq
            {
                return Err(format!(
                    "number {:#x}, counter {:#x}",
                    ours.seq_low, seen.counters.seq
                ));
            }
            Ok(())
        })
}

/// `seq` arrives at a window whose right edge is `edge` and that has seen nothing else.
fn arrives(edge: u64, seq: u64) -> Case {
    let mut world = world();
    world.window.edge = edge;
    let frame = Sealer::peer(SUITE, true, false).frame(seq, &packet(false, 64));
    Case::new(
        format!("esn in: number {seq:#x} at edge {edge:#x}"),
        Program::Steer,
        world,
        frame,
    )
    .of(CONNECTION)
}

fn accepted(edge: u64, seq: u64) -> Case {
    arrives(edge, seq)
        .ends(Verdict::EspOpened, Action::Redirect)
        .out(ethernet(NEAR_MAC, INSIDE_MAC, 0x0800, &packet(false, 63)))
        .events(&[EVENT_FIRST_INBOUND])
        .check(move |seen| {
            let bit = seen.window.blocks[(seq as usize / 64) % 32] >> (seq % 64) & 1;
            if seen.window.edge == edge.max(seq) && bit == 1 {
                Ok(())
            } else {
                Err(format!("edge {:#x}, bit {bit}", seen.window.edge))
            }
        })
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for wrap in [1 << 31, WRAP, WRAP + (1 << 31), 2 * WRAP, 7 * WRAP, 255 * WRAP] {
        for seq in [wrap - 1, wrap, wrap + 1] {
            cases.push(out(seq));
        }
        // Over the wrap, onto it, and late from before it.
        for (edge, seq) in [
            (wrap - 2, wrap - 1),
            (wrap - 1, wrap),
            (wrap - 1, wrap + 1),
            (wrap - 1, wrap + 1000),
            (wrap - 100, wrap + 100),
            (wrap, wrap - 1),
            (wrap + 1, wrap - 1),
            (wrap + 500, wrap - 500),
            (wrap + 1000, wrap - 900),
        ] {
            cases.push(accepted(edge, seq));
        }
        // Left of the window it would be a number of the next round, and is not authentic as that.
        cases.push(arrives(wrap + 2000, wrap - 10).ends(Verdict::IcvBad, Action::Drop));
    }
    // The end of 40 bits.
    cases.push(out((1 << 40) - 2));
    cases.push(out((1 << 40) - 1));
    for seq in [1 << 40, (1 << 40) + 1, u64::MAX - 1] {
        let mut world = world();
        world.counters.seq = seq - 1;
        let frame = ethernet(INSIDE_MAC, NEAR_MAC, 0x0800, &packet(true, 64));
        cases.push(
            Case::new(
                format!("esn out: no number {seq:#x}"),
                Program::Inside,
                world,
                frame,
            )
            .of(CONNECTION)
            .ends(Verdict::SequenceExhausted, Action::Drop)
            .check(move |seen| {
                if seen.counters.seq == seq - 1 {
                    Ok(())
                } else {
                    Err("the counter moved".into())
                }
            }),
        );
    }
    cases
}
