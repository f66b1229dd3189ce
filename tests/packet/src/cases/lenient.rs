//! Lenient anti-replay: after a failover only what is up to the last reported edge counts as seen. What comes between that and the floor of a
//! strict policy is opened and counted.

use maps_schema::event::{EVENT_FIRST_INBOUND, SLOW_HELD};
use maps_schema::sad::{FinalWindow, SA_CTL_MERGED, SA_LENIENT, SUITE_CHACHA20_POLY1305};
use maps_schema::segment::{LEGACY_HOLDING, LEGACY_OPEN, SideWord};
use maps_schema::verdict::Verdict;
use zerocopy::IntoBytes;

use crate::case::{Action, Case, Observed, Program};
use crate::frames::{Ip, Sealer, ethernet, udp};
use crate::world::*;

fn inner(ttl: u8) -> Vec<u8> {
    Ip {
        ttl,
        ..Ip::new(FAR_HOST, NEAR_HOST, 17)
    }
    .with(&udp(1, 2, b"payload"))
}

fn frame(seq: u64) -> Vec<u8> {
    Sealer::peer(SUITE_CHACHA20_POLY1305, false, false).frame(seq, &inner(64))
}

fn steer(name: &str, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Steer, world, frame).of(CONNECTION)
}

fn opened(case: Case, verdict: Verdict) -> Case {
    case.ends(verdict, Action::Redirect)
        .out(ethernet(NEAR_MAC, INSIDE_MAC, 0x0800, &inner(63)))
}

/// The window's right edge, and whether so many packets were accepted.
fn window_is(edge: u64, packets: u64) -> impl Fn(&Observed) -> Result<(), String> + Send + Sync {
    move |seen| {
        let now = (seen.window.edge, seen.window.packets);
        if now == (edge, packets) {
            Ok(())
        } else {
            Err(format!("edge and packets {now:?}, expected {edge} and {packets}"))
        }
    }
}

/// This member took over; the old ceiling is 1000, the old owner's last report said 900.
fn taken_over(lenient: bool) -> World {
    let mut world = World::plain();
    world.epoch = EPOCH + 1;
    world.inbound.reported_edge = 900;
    if lenient {
        world.inbound.flags |= SA_LENIENT;
    }
    world
}

/// The same in a planned way, which is under way.
fn taking(phase: u8) -> World {
    let mut world = taken_over(true);
    world.side = SideWord {
        legacy_owner: OTHER,
        legacy_phase: phase,
        legacy_epoch: EPOCH,
        ..SideWord::default()
    };
    world
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for seq in [901, 950, 1000] {
        cases.push(
            steer(
                &format!("strict: {seq}, above the reported edge, is refused after a takeover"),
                taken_over(false),
                frame(seq),
            )
            .ends(Verdict::BelowTakeoverFloor, Action::Drop)
            .check(window_is(1000, 0)),
        );
        cases.push(
            opened(
                steer(
                    &format!(
                        "lenient: {seq}, above the reported edge, is opened after a takeover, and counted"
                    ),
                    taken_over(true),
                    frame(seq),
                ),
                Verdict::OpenedLenient,
            )
            .events(&[EVENT_FIRST_INBOUND])
            .check(window_is(seq, 1)),
        );
    }
    cases.push(
        steer(
            "lenient: the reported edge itself was seen",
            taken_over(true),
            frame(900),
        )
        .ends(Verdict::BelowTakeoverFloor, Action::Drop)
        .check(window_is(900, 0)),
    );
    let mut forged = frame(950);
    forged[60] ^= 1;
    cases.push(
        steer("lenient: a forged one is not", taken_over(true), forged)
            .ends(Verdict::IcvBad, Action::Drop)
            .check(window_is(900, 0)),
    );
    cases.push(
        opened(
            steer(
                "lenient: above the old ceiling nothing is special",
                taken_over(true),
                frame(1001),
            ),
            Verdict::EspOpened,
        )
        .events(&[EVENT_FIRST_INBOUND]),
    );
    // One was accepted at 950, in this epoch.
    let mut seen = taken_over(true);
    seen.window.floor_epoch = u32::from(seen.epoch);
    seen.window.floor = 900;
    seen.window.edge = 950;
    seen.window.above_floor = 1;
    seen.window.blocks = [u64::MAX; 32];
    cases.push(
        steer(
            "lenient: twice at this member it is not",
            seen.clone(),
            frame(950),
        )
        .ends(Verdict::ReplayDuplicate, Action::Drop),
    );
    seen.inbound.limits = cell(3000, 1000, 1000, EPOCH + 1);
    cases.push(opened(
        steer("lenient: also counted after a raise", seen, frame(951)),
        Verdict::OpenedLenient,
    ));
    let mut owner = World::plain();
    owner.inbound.flags |= SA_LENIENT;
    cases.push(
        opened(
            steer(
                "lenient: an owner in its own epoch counts nothing",
                owner,
                frame(5),
            ),
            Verdict::EspOpened,
        )
        .events(&[EVENT_FIRST_INBOUND]),
    );
    let mut unsaid = taken_over(true);
    unsaid.inbound.reported_edge = 0;
    cases.push(
        opened(
            steer("lenient: nothing was ever reported", unsaid, frame(5)),
            Verdict::OpenedLenient,
        )
        .events(&[EVENT_FIRST_INBOUND]),
    );
    let mut hop = frame(950);
    hop[..12].copy_from_slice(&[OTHER_OUTSIDE_MAC, OUTSIDE_MAC].concat());
    cases.push(
        steer(
            "lenient: in a planned takeover the old owner serves what is up to its ceiling",
            taking(LEGACY_OPEN),
            frame(950),
        )
        .ends(Verdict::SecondHop, Action::Transmit)
        .out(hop),
    );
    cases.push(
        steer(
            "lenient: then that is held until its window is merged",
            taking(LEGACY_HOLDING),
            frame(950),
        )
        .ends(Verdict::HeldForWindow, Action::Drop)
        .slow(SLOW_HELD),
    );
    // The old owner saw 950.
    let mut window = FinalWindow {
        slot: SLOT,
        spi: SPI_IN,
        edge: 950,
        floor: 1000,
        blocks: [0; 32],
    };
    window.blocks[950 / 64] |= 1 << (950 % 64);
    let mut merge = Case::new(
        "lenient: the old owner's window is merged all the same",
        Program::SaCtl,
        taking(LEGACY_HOLDING),
        window.as_bytes().to_vec(),
    );
    merge.action = Action::Value(SA_CTL_MERGED);
    cases.push(merge.check(window_is(950, 0)));
    let mut merged = taken_over(true);
    merged.window.floor_epoch = u32::from(merged.epoch);
    merged.window.floor = 0;
    merged.window.edge = 950;
    merged.window.blocks[950 / 64] |= 1 << (950 % 64);
    cases.push(
        opened(
            steer(
                "lenient: after that windows are exact, and nothing is counted",
                merged.clone(),
                frame(951),
            ),
            Verdict::EspOpened,
        )
        .events(&[EVENT_FIRST_INBOUND]),
    );
    cases.push(
        steer(
            "lenient: what the old owner of a planned takeover accepted is refused",
            merged,
            frame(950),
        )
        .ends(Verdict::ReplayDuplicate, Action::Drop),
    );
    cases
}
