//! A planned takeover: who serves which numbers, and the final window.

use datapath::replay;
use maps_schema::event::{EVENT_FIRST_INBOUND, SLOW_HELD};
use maps_schema::sad::{
    FinalWindow, LIMITS_TAINTED, REPLAY_WINDOW, SA_CTL_MERGED, SA_CTL_NO_FLOOR, SA_CTL_NO_SA,
    SA_CTL_NOT_OWNER,
};
use maps_schema::segment::{LEGACY_GIVEN, LEGACY_HOLDING, LEGACY_OPEN, SideWord};
use maps_schema::verdict::Verdict;
use zerocopy::IntoBytes;

use crate::case::{Action, Case, Program};
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
    Sealer::peer(maps_schema::sad::SUITE_CHACHA20_POLY1305, false, false).frame(seq, &inner(64))
}

fn hop(seq: u64) -> Vec<u8> {
    let mut frame = frame(seq);
    frame[..12].copy_from_slice(&[OTHER_OUTSIDE_MAC, OUTSIDE_MAC].concat());
    frame
}

fn from_member(seq: u64) -> Vec<u8> {
    let mut frame = frame(seq);
    frame[6..12].copy_from_slice(&OTHER_OUTSIDE_MAC);
    frame
}

/// This member takes over from the other at the next epoch; the old ceiling is 1000.
fn taker(phase: u8) -> World {
    let mut world = World::plain();
    world.epoch = EPOCH + 1;
    world.side = SideWord {
        legacy_owner: OTHER,
        legacy_phase: phase,
        legacy_epoch: EPOCH,
        ..SideWord::default()
    };
    world
}

/// The other member takes over from this one.
fn old_owner() -> World {
    let mut world = World::plain();
    world.owner = OTHER;
    world.epoch = EPOCH + 1;
    world.side = SideWord {
        legacy_owner: ME,
        legacy_phase: LEGACY_OPEN,
        legacy_epoch: EPOCH,
        ..SideWord::default()
    };
    world
}

fn steer(name: &str, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Steer, world, frame).of(CONNECTION)
}

fn opened(case: Case) -> Case {
    case.ends(Verdict::EspOpened, Action::Redirect)
        .out(ethernet(NEAR_MAC, INSIDE_MAC, 0x0800, &inner(63)))
}

/// The old owner saw 1 to 900 except 800, and 950.
fn final_window() -> FinalWindow {
    let mut window = FinalWindow {
        slot: SLOT,
        spi: SPI_IN,
        edge: 950,
        floor: 1000,
        blocks: [0; 32],
    };
    for seq in (1..=900u64).filter(|n| *n != 800).chain([950]) {
        window.blocks[(seq as usize / 64) % 32] |= 1 << (seq % 64);
    }
    window
}

fn control(name: &str, world: World, window: FinalWindow, value: u32) -> Case {
    let mut case = Case::new(name, Program::SaCtl, world, window.as_bytes().to_vec());
    case.action = Action::Value(value);
    case
}

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        steer(
            "taker, open: numbers up to the old ceiling go to the old owner",
            taker(LEGACY_OPEN),
            frame(1000),
        )
        .ends(Verdict::SecondHop, Action::Transmit)
        .out(hop(1000)),
        opened(steer(
            "taker, open: higher ones are served",
            taker(LEGACY_OPEN),
            frame(1001),
        ))
        .events(&[EVENT_FIRST_INBOUND]),
        steer(
            "taker, open: what the old owner sends back is held",
            taker(LEGACY_OPEN),
            from_member(1000),
        )
        .ends(Verdict::HeldForWindow, Action::Drop)
        .slow(SLOW_HELD),
        steer(
            "taker, holding: held, not marked",
            taker(LEGACY_HOLDING),
            frame(800),
        )
        .ends(Verdict::HeldForWindow, Action::Drop)
        .slow(SLOW_HELD)
        .check(|seen| {
            if seen.window.packets == 0 {
                Ok(())
            } else {
                Err("accepted".into())
            }
        }),
    ];
    let mut forged = frame(800);
    forged[60] ^= 1;
    cases.push(
        steer(
            "taker, holding: a forged one is not held",
            taker(LEGACY_HOLDING),
            forged,
        )
        .ends(Verdict::IcvBad, Action::Drop),
    );
    cases.push(
        opened(steer(
            "old owner: serves up to its ceiling",
            old_owner(),
            frame(1000),
        ))
        .events(&[EVENT_FIRST_INBOUND, maps_schema::event::EVENT_CEILING_SOFT]),
    );
    cases.push(
        steer("old owner: higher ones go to the taker", old_owner(), frame(1001))
            .ends(Verdict::SecondHop, Action::Transmit)
            .out(hop(1001)),
    );
    cases.push(
        steer(
            "old owner: higher ones go to the taker, also from a member that does not know yet",
            old_owner(),
            from_member(1001),
        )
        .ends(Verdict::SecondHop, Action::Transmit)
        .out(hop(1001)),
    );
    let mut closed = old_owner();
    closed.side.legacy_phase = LEGACY_GIVEN;
    cases.push(
        steer(
            "old owner, closed: everything goes to the taker",
            closed.clone(),
            frame(5),
        )
        .of(0)
        .ends(Verdict::SecondHop, Action::Transmit)
        .out(hop(5)),
    );
    cases.push(
        steer(
            "old owner, closed: also what a member sent, the taker among them, before it closed",
            closed,
            from_member(5),
        )
        .of(0)
        .ends(Verdict::SecondHop, Action::Transmit)
        .out(hop(5)),
    );
    let mut elsewhere = old_owner();
    elsewhere.side = SideWord::default();
    cases.push(
        steer(
            "another member's segment, which this one has not given it: what a member sent goes nowhere",
            elsewhere,
            from_member(5),
        )
        .of(0)
        .ends(Verdict::NotOwner, Action::Drop),
    );
    cases.push(
        control(
            "the final window: what was not seen becomes acceptable",
            taker(LEGACY_HOLDING),
            final_window(),
            SA_CTL_MERGED,
        )
        .check(|seen| {
            let window = seen.window;
            let bit = |seq: u64| window.blocks[(seq as usize / 64) % 32] >> (seq % 64) & 1;
            let open: Vec<u64> = (1..=1000).filter(|n| bit(*n) == 0).collect();
            let wanted: Vec<u64> = std::iter::once(800).chain(901..=949).chain(951..=1000).collect();
            if open == wanted && window.edge == 950 && window.floor == 0 {
                Ok(())
            } else {
                Err(format!(
                    "acceptable: {open:?}, edge {}, floor {}",
                    window.edge, window.floor
                ))
            }
        }),
    );
    let mut ahead = taker(LEGACY_HOLDING);
    ahead.window.floor_epoch = u32::from(EPOCH) + 1;
    ahead.window.floor = 1000;
    ahead.window.edge = 1003;
    ahead.window.blocks = [u64::MAX; 32];
    cases.push(
        control(
            "the final window where a higher number was accepted already: the edge stays",
            ahead,
            final_window(),
            SA_CTL_MERGED,
        )
        .check(|seen| {
            let window = seen.window;
            let bit = |seq: u64| window.blocks[(seq as usize / 64) % 32] >> (seq % 64) & 1;
            let open: Vec<u64> = (1..=1003).filter(|n| bit(*n) == 0).collect();
            let wanted: Vec<u64> = std::iter::once(800).chain(901..=949).chain(951..=1000).collect();
            if open == wanted && window.edge == 1003 && window.floor == 0 {
                Ok(())
            } else {
                Err(format!(
                    "acceptable: {open:?}, edge {}, floor {}",
                    window.edge, window.floor
                ))
            }
        }),
    );
    cases.extend(skipped());
    let mut merged = taker(LEGACY_HOLDING);
    merged.window.floor_epoch = u32::from(EPOCH) + 1;
    merged.window.edge = 1000;
    merged.window.blocks = final_window().blocks;
    cases.push(control(
        "a final window is merged once",
        merged.clone(),
        final_window(),
        SA_CTL_NO_FLOOR,
    ));
    cases.push(
        opened(steer(
            "after the merge: a held number that was not seen",
            merged.clone(),
            frame(800),
        ))
        .events(&[EVENT_FIRST_INBOUND]),
    );
    cases.push(
        steer("after the merge: a held number that was seen", merged, frame(799))
            .ends(Verdict::ReplayDuplicate, Action::Drop),
    );
    cases.push(control(
        "the final window of a segment that is not ours",
        old_owner(),
        final_window(),
        SA_CTL_NOT_OWNER,
    ));
    let mut other = final_window();
    other.spi += 1 << 24;
    cases.push(control(
        "the final window of a former SA",
        taker(LEGACY_HOLDING),
        other,
        SA_CTL_NO_SA,
    ));
    cases
}

/// A pair that has lost its standby twice: the taker leaves out two epochs, which the lost lives may have claimed. So its floor, 3000, is above the
/// old owner's ceiling of 1000, and numbers in between are neither's while both serve.
fn skipping(phase: u8) -> World {
    let mut world = taker(phase);
    world.epoch = EPOCH + 3;
    world
}

fn skipped() -> Vec<Case> {
    let merged = |name: &str, world: World, wanted: std::ops::Range<u64>| {
        control(name, world, final_window(), SA_CTL_MERGED).check(move |seen| {
            let window = seen.window;
            let open = |seq: &u64| replay::check(&window, *seq).is_ok();
            let found: Vec<u64> = (1..=3000).filter(open).collect();
            if found.iter().copied().eq(wanted.clone()) {
                Ok(())
            } else {
                Err(format!("acceptable: {found:?}, edge {}", window.edge))
            }
        })
    };
    let mut old = old_owner();
    old.epoch = EPOCH + 3;
    let mut cases = vec![
        steer(
            "skipped epochs: what is above the old ceiling goes to the old owner, as all up to the floor",
            skipping(LEGACY_OPEN),
            frame(2000),
        )
        .ends(Verdict::SecondHop, Action::Transmit)
        .out(hop(2000)),
        steer(
            "skipped epochs: the old owner, which may not accept it, gives it back",
            old,
            from_member(2000),
        )
        .ends(Verdict::SecondHop, Action::Transmit)
        .out(hop(2000)),
        steer(
            "skipped epochs: the taker holds what comes back",
            skipping(LEGACY_OPEN),
            from_member(2000),
        )
        .ends(Verdict::HeldForWindow, Action::Drop)
        .slow(SLOW_HELD),
        opened(steer(
            "skipped epochs: what is above the floor is served at once",
            skipping(LEGACY_OPEN),
            frame(3001),
        ))
        .events(&[EVENT_FIRST_INBOUND]),
    ];
    // Nothing above the floor was accepted: the window is the old owner's.
    cases.push(
        control(
            "skipped epochs: with the final window all above the old edge becomes acceptable",
            skipping(LEGACY_HOLDING),
            final_window(),
            SA_CTL_MERGED,
        )
        .check(|seen| {
            let open = [951, 1000, 1001, 2000, 3000].map(|n| replay::check(&seen.window, n).is_ok());
            if open == [true; 5] && seen.window.edge == 950 {
                Ok(())
            } else {
                Err(format!("acceptable: {open:?}, edge {}", seen.window.edge))
            }
        }),
    );
    let mut ahead = skipping(LEGACY_HOLDING);
    ahead.window.floor_epoch = u32::from(ahead.epoch);
    ahead.window.floor = 3000;
    ahead.window.edge = 3001;
    ahead.window.blocks = [u64::MAX; 32];
    cases.push(merged(
        "skipped epochs: also where something above the floor was accepted already",
        ahead.clone(),
        3001 - REPLAY_WINDOW + 1..3001,
    ));
    // A lost life may have accepted what lies between: that stays refused, two headrooms, and no more. What is below has left the window.
    ahead.inbound.limits = {
        let mut limits = cell(1000, 1000, 0, EPOCH);
        for slot in &mut limits.slots {
            slot.epoch |= LIMITS_TAINTED;
        }
        limits
    };
    cases.push(merged(
        "skipped epochs: tainted, what lies between ceiling and floor stays refused",
        ahead,
        0..0,
    ));
    cases
}
