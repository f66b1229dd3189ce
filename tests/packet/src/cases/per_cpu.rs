//! Child SAs per CPU (RFC 9611): each CPU seals with its own SA and without one with the shared one; each window is by itself.

use maps_schema::event::{EVENT_ACQUIRE, EVENT_ACQUIRE_CPU, EVENT_FIRST_INBOUND};
use maps_schema::sad::SUITE_CHACHA20_POLY1305;
use maps_schema::spd::ACTION_PROTECT;
use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Observed, Program};
use crate::frames::{Ip, Sealer, ethernet, noise, open_ours_of, udp};
use crate::world::*;

type Check = Box<dyn Fn(&Observed) -> Result<(), String> + Send + Sync>;

fn from_inside() -> Vec<u8> {
    let ip = Ip::new(NEAR_HOST, FAR_HOST, 17).with(&udp(1000, 2000, &noise(30)));
    ethernet(INSIDE_MAC, NEAR_MAC, 0x0800, &ip)
}

fn inside(name: &str, world: World, cpu: u32) -> Case {
    Case::new(name, Program::Inside, world, from_inside())
        .of(CONNECTION)
        .on_cpu(cpu)
}

/// The peer opens it with the SA of this SPI, and of all SAs that one alone has given out a number: its first.
fn sealed_with(case: Case, spi: u32) -> Case {
    case.ends(Verdict::EspSealed, Action::Redirect)
        .any_frame()
        .check(move |seen| {
            let ours = open_ours_of(spi, &seen.frame, SUITE_CHACHA20_POLY1305, None, false)?;
            let given = [SPI_OUT, own_spi_out(0), own_spi_out(1)].into_iter().zip([
                seen.counters,
                seen.own[0].1,
                seen.own[1].1,
            ]);
            for (of, counters) in given {
                let wanted = u64::from(of == spi);
                if (counters.seq, counters.packets) != (wanted, wanted) {
                    return Err(format!("SA {of:x}: {counters:?}"));
                }
            }
            if ours.seq_low == 1 {
                Ok(())
            } else {
                Err("not its first number".into())
            }
        })
}

/// Edges of the three windows: of the SA in [`SLOT`], and beside it.
fn edges(wanted: [u64; 3]) -> Check {
    Box::new(move |seen| {
        let found = [seen.window.edge, seen.own[0].0.edge, seen.own[1].0.edge];
        if found == wanted {
            Ok(())
        } else {
            Err(format!("edges {found:?}, expected {wanted:?}"))
        }
    })
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cpu in [0, 1] {
        let name = format!("CPU {cpu} seals with its own SA");
        let case = inside(&name, World::per_cpu(&[0, 1]), cpu);
        cases.push(sealed_with(case, own_spi_out(cpu as usize)));
    }
    let case = inside(
        "the shared SA's CPU without its own uses the shared one",
        World::per_cpu(&[1]),
        0,
    );
    cases.push(sealed_with(case, SPI_OUT).events(&[EVENT_ACQUIRE_CPU]));
    cases.push(
        inside(
            "another CPU without its own moves to the shared one's",
            World::per_cpu(&[0]),
            1,
        )
        .ends(Verdict::OtherCpu, Action::Redirect)
        .events(&[EVENT_ACQUIRE_CPU]),
    );
    // There the packet has been reported, and the shared SA serves whoever has none.
    let mut moved = inside(
        "what was moved is sealed with the shared one",
        World::per_cpu(&[0]),
        0,
    );
    moved.program = Program::EspOut;
    cases.push(sealed_with(moved, SPI_OUT));
    let mut world = World::per_cpu(&[0, 1]);
    world.policy.rules[0].action = ACTION_PROTECT;
    cases.push(sealed_with(
        inside("a rule that is for all CPUs", world, 0),
        SPI_OUT,
    ));
    let mut world = World::per_cpu(&[1]);
    world.own[1] = None;
    cases.push(
        inside("its own SA is just being removed", world, 1)
            .ends(Verdict::NoSa, Action::Drop)
            .events(&[EVENT_ACQUIRE]),
    );
    let mut world = World::per_cpu(&[1]);
    world.local.slots = OWN_SLOTS[1];
    let case = inside("a slot beyond the maps is none", world, 1);
    cases.push(
        case.ends(Verdict::OtherCpu, Action::Redirect)
            .events(&[EVENT_ACQUIRE_CPU]),
    );
    cases.extend(per_member());
    cases.extend(inbound());
    cases
}

/// The policy's SA is another member's, and this one has its own: on one CPU, for all.
fn per_member() -> Vec<Case> {
    let moves = |name: &str, at, cpu| {
        inside(name, World::guest(at), cpu)
            .ends(Verdict::OtherCpu, Action::Redirect)
            .events(&[])
    };
    let seals = |name: &str, at: usize| {
        let case = inside(name, World::guest(at), at as u32);
        sealed_with(case, own_spi_out(at))
    };
    let mut moved = inside("and is sealed with the member's own there", World::guest(0), 0);
    moved.program = Program::EspOut;
    vec![
        seals("the member's own SA, on its CPU", 0),
        seals("the member's own SA, on its other CPU", 1),
        moves("another CPU moves to that of the member's own SA", 0, 1),
        moves("and the other way round", 1, 0),
        sealed_with(moved, own_spi_out(0)),
    ]
}

/// The same number of the peer's, for the SA of each SPI.
fn inbound() -> Vec<Case> {
    let inner = Ip::new(FAR_HOST, NEAR_HOST, 17).with(&udp(1000, 2000, &noise(30)));
    let from = |spi: u32| {
        let peer = Sealer {
            spi,
            ..Sealer::peer(SUITE_CHACHA20_POLY1305, false, false)
        };
        peer.frame(5, &inner)
    };
    let steer = |name: &str, world: World, spi: u32, cpu: u32| {
        Case::new(name, Program::Steer, world, from(spi))
            .of(CONNECTION)
            .on_cpu(cpu)
    };
    // All windows but the last one have seen the number.
    let mut world = World::per_cpu(&[0, 1]);
    let seen = |edge: &mut maps_schema::sad::InboundSaRuntime| {
        edge.edge = 5;
        edge.blocks[0] = 1 << 5;
        edge.packets = 1;
    };
    seen(&mut world.window);
    if let Some(own) = &mut world.own[0] {
        seen(&mut own.window);
    }
    let opened = |case: Case| {
        case.ends(Verdict::EspOpened, Action::Redirect)
            .any_frame()
            .events(&[EVENT_FIRST_INBOUND])
    };
    vec![
        opened(steer(
            "CPU 1 opens what comes for its own SA",
            world.clone(),
            own_spi_in(1),
            1,
        ))
        .check(edges([5, 5, 5])),
        steer(
            "the same number on the shared SA is a replay",
            world.clone(),
            SPI_IN,
            0,
        )
        .ends(Verdict::ReplayDuplicate, Action::Drop)
        .check(edges([5, 5, 0])),
        steer("and on CPU 0's own", world.clone(), own_spi_in(0), 0)
            .ends(Verdict::ReplayDuplicate, Action::Drop)
            .check(edges([5, 5, 0])),
        steer("CPU 0 moves what is for CPU 1's own", world, own_spi_in(1), 0)
            .of(0)
            .ends(Verdict::OtherCpu, Action::Redirect)
            .check(edges([5, 5, 0])),
    ]
}
