//! A peer behind a NAT whose mapping changed: its packets are opened as ever, and the agent hears from where they came.

use maps_schema::event::{EVENT_FIRST_INBOUND, SLOW_MOVED};
use maps_schema::sad::{SA_MAY_MOVE, SUITE_CHACHA20_POLY1305};
use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Program};
use crate::frames::{Ip, Ip6, Sealer, ethernet, udp};
use crate::world::*;

use super::ports::inner;

fn world(may_move: bool) -> World {
    let mut world = World::base(SUITE_CHACHA20_POLY1305, false, true);
    if may_move {
        world.inbound.flags |= SA_MAY_MOVE;
    }
    world
}

/// From this address and port of the NAT's.
fn from(source: u32, port: u16, seq: u64) -> Vec<u8> {
    let esp = Sealer::peer(SUITE_CHACHA20_POLY1305, false, true).esp(seq, &inner(NEAR_HOST, 64));
    let ip = Ip::new(source, CLUSTER, 17).with(&udp(port, 4500, &esp));
    ethernet(OUTSIDE_MAC, PEER_MAC, 0x0800, &ip)
}

fn opened(name: &str, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Steer, world, frame)
        .of(CONNECTION)
        .ends(Verdict::EspOpened, Action::Redirect)
        .out(ethernet(NEAR_MAC, INSIDE_MAC, 0x0800, &inner(NEAR_HOST, 63)))
        .events(&[EVENT_FIRST_INBOUND])
}

/// The window has seen number 9 and all but 7 before it.
fn at_nine() -> World {
    let mut world = world(true);
    world.window.edge = 9;
    world.window.blocks[0] = 0b11_0111_1110;
    world.window.above_floor = 1;
    world
}

pub fn cases() -> Vec<Case> {
    const ELSEWHERE: u32 = PEER + 7;
    let mut cases = vec![
        opened("moved: from where the peer is", world(true), from(PEER, 4500, 5)),
        opened("moved: another port", world(true), from(PEER, 1024, 5)).slow(SLOW_MOVED),
        opened("moved: another address", world(true), from(ELSEWHERE, 4500, 5)).slow(SLOW_MOVED),
        opened(
            "moved: a peer that may not move",
            world(false),
            from(ELSEWHERE, 1024, 5),
        ),
        opened("moved: newer than all before", at_nine(), from(PEER, 1024, 10))
            .slow(SLOW_MOVED)
            .events(&[]),
        opened(
            "moved: new, but older than the newest",
            at_nine(),
            from(PEER, 1024, 7),
        )
        .events(&[]),
        Case::new(
            "moved: sent again",
            Program::Steer,
            at_nine(),
            from(PEER, 1024, 9),
        )
        .of(CONNECTION)
        .ends(Verdict::ReplayDuplicate, Action::Drop),
    ];
    let mut forged = from(ELSEWHERE, 1024, 10);
    let last = forged.len() - 1;
    forged[last] ^= 1;
    cases.push(
        Case::new("moved: not authentic", Program::Steer, at_nine(), forged)
            .of(CONNECTION)
            .ends(Verdict::IcvBad, Action::Drop),
    );
    // ESP without UDP knows no NAT.
    let esp = Sealer::peer(SUITE_CHACHA20_POLY1305, false, false).esp(5, &inner(NEAR_HOST, 64));
    let ip = Ip::new(ELSEWHERE, CLUSTER, 50).with(&esp);
    let plain = ethernet(OUTSIDE_MAC, PEER_MAC, 0x0800, &ip);
    cases.push(opened("moved: not in UDP", world(true), plain));
    let mut over_v6 = World::over_v6(SUITE_CHACHA20_POLY1305, false, true);
    over_v6.inbound.flags |= SA_MAY_MOVE;
    let esp = Sealer::over_v6(SUITE_CHACHA20_POLY1305, false, true).esp(5, &inner(NEAR_HOST, 64));
    let ip = Ip6::new(PEER_V6, CLUSTER_V6, 17).with_checksum(&udp(1024, 4500, &esp), 6);
    let frame = ethernet(OUTSIDE_MAC, PEER_MAC, 0x86dd, &ip);
    cases.push(opened("moved: another port over IPv6", over_v6, frame).slow(SLOW_MOVED));
    cases
}
