//! Cluster addresses at a virtual MAC address, which ends in the segment of the address.

use maps_schema::segment::{LEGACY_HOLDING, LEGACY_OPEN, SideWord};
use maps_schema::verdict::Verdict;

use super::ports::{inner, relinked, sealed_behind, sealed_packet, to_far_host};
use crate::case::{Action, Case, Program};
use crate::frames::{Ip, advertisement, arp_reply, arp_request, ethernet, ike, solicitation, tagged, udp};
use crate::world::*;

/// That of a segment.
const fn at(segment: u8) -> [u8; 6] {
    [2, 0xaa, 0xbb, 0xcc, 0xdd, segment]
}

fn world() -> World {
    let mut world = World::plain();
    world.local.virtual_mac = at(0);
    world
}

fn steer(name: impl Into<String>, world: World, frame: Vec<u8>) -> Case {
    Case::new(
        format!("virtual MAC: {}", name.into()),
        Program::Steer,
        world,
        frame,
    )
}

fn inside(name: impl Into<String>, world: World, frame: Vec<u8>) -> Case {
    Case::new(
        format!("virtual MAC: {}", name.into()),
        Program::Inside,
        world,
        frame,
    )
    .of(CONNECTION)
}

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        steer("ARP", world(), arp_request(PEER_MAC, PEER, CLUSTER))
            .ends(Verdict::ArpAnswered, Action::Transmit)
            .out(arp_reply(at(0), CLUSTER, PEER_MAC, PEER)),
        steer(
            "ARP for an address of another segment",
            world(),
            arp_request(PEER_2_MAC, PEER_2, CLUSTER_2),
        )
        .on(OUTSIDE_2_IFINDEX)
        .ends(Verdict::ArpAnswered, Action::Transmit)
        .out(arp_reply(at(1), CLUSTER_2, PEER_2_MAC, PEER_2)),
        steer(
            "ARP by unicast",
            world(),
            relinked(&arp_request(PEER_MAC, PEER, CLUSTER), at(0), PEER_MAC),
        )
        .ends(Verdict::ArpAnswered, Action::Transmit)
        .out(arp_reply(at(0), CLUSTER, PEER_MAC, PEER)),
        steer(
            "solicitation",
            world(),
            solicitation(PEER_MAC, PEER_V6, CLUSTER_V6, &[]),
        )
        .ends(Verdict::NeighbourAnswered, Action::Transmit)
        .out(advertisement(at(3), CLUSTER_V6, PEER_MAC, PEER_V6, 0xe0)),
        steer(
            "solicitation by unicast",
            world(),
            relinked(&solicitation(PEER_MAC, PEER_V6, CLUSTER_V6, &[]), at(3), PEER_MAC),
        )
        .ends(Verdict::NeighbourAnswered, Action::Transmit)
        .out(advertisement(at(3), CLUSTER_V6, PEER_MAC, PEER_V6, 0xe0)),
    ];
    let esp = relinked(&sealed_packet(NEAR_HOST), at(0), PEER_MAC);
    let opened = |case: Case| {
        case.of(CONNECTION)
            .ends(Verdict::EspOpened, Action::Redirect)
            .to(INSIDE_IFINDEX)
            .out(ethernet(NEAR_MAC, INSIDE_MAC, 0x0800, &inner(NEAR_HOST, 63)))
            .events(&[maps_schema::event::EVENT_FIRST_INBOUND])
    };
    cases.push(opened(steer("ESP", world(), esp.clone())));
    cases.push(opened(steer(
        "ESP to the port's own",
        world(),
        sealed_packet(NEAR_HOST),
    )));
    cases.push(opened(
        steer(
            "ESP in the VLAN",
            world(),
            tagged(OUTSIDE_VLAN, &relinked(&esp, at(2), PEER_VLAN_MAC)),
        )
        .on(OUTSIDE_2_IFINDEX),
    ));
    // The stack takes frames to the port's own address only.
    let message = Ip::new(PEER, CLUSTER, 17).with(&udp(500, 500, &ike(0x1111, 0, true)));
    let to_agent = ethernet(at(0), PEER_MAC, 0x0800, &message);
    cases.push(
        steer("IKE reaches the agent", world(), to_agent.clone())
            .ends(Verdict::IkeToAgent, Action::Pass)
            .out(relinked(&to_agent, OUTSIDE_MAC, PEER_MAC)),
    );
    let lonely = relinked(&sealed_packet(NO_NEIGHBOUR), at(0), PEER_MAC);
    cases.push(
        steer("what was opened for the stack", world(), lonely)
            .of(CONNECTION)
            .ends(Verdict::EspOpenedLocal, Action::Pass)
            .out(ethernet(OUTSIDE_MAC, PEER_MAC, 0x0800, &inner(NO_NEIGHBOUR, 64)))
            .events(&[maps_schema::event::EVENT_FIRST_INBOUND]),
    );
    cases.push(
        steer(
            "another one that differs before the last octet",
            world(),
            relinked(&esp, [2, 0xaa, 0xbb, 0xcc, 0xde, 0], PEER_MAC),
        )
        .ends(Verdict::NotForCluster, Action::Pass),
    );
    cases.push(
        steer("none is configured", World::plain(), esp.clone()).ends(Verdict::NotForCluster, Action::Pass),
    );
    // Flooded by a switch that has not learned it: the owner has the frame too.
    let mut other = world();
    other.owner = OTHER;
    cases.push(
        steer("of another member", other.clone(), esp.clone()).ends(Verdict::NotForCluster, Action::Pass),
    );
    let plain = ethernet(at(0), NEAR_MAC, 0x0800, &to_far_host());
    cases.push(
        inside("of another member, from inside", other.clone(), plain.clone())
            .of(0)
            .ends(Verdict::NotForCluster, Action::Pass),
    );
    // Given away a moment ago: the switch still sends it here.
    for (name, phase) in [("open", LEGACY_OPEN), ("closed", LEGACY_HOLDING)] {
        let mut gave = other.clone();
        gave.side = SideWord {
            legacy_owner: ME,
            legacy_phase: phase,
            legacy_epoch: EPOCH - 1,
            ..SideWord::default()
        };
        cases.push(
            inside(format!("a handover that is {name}"), gave, plain.clone())
                .ends(Verdict::SecondHop, Action::Transmit)
                .out(relinked(&plain, OTHER_INSIDE_MAC, INSIDE_MAC)),
        );
    }
    let mut expired = world();
    expired.valid_for_ms = -5;
    expired.side.successor = OTHER;
    cases.push(
        steer("expired: to the successor", expired, esp.clone())
            .ends(Verdict::SecondHop, Action::Transmit)
            .out(relinked(&esp, OTHER_OUTSIDE_MAC, OUTSIDE_MAC)),
    );
    cases.push(
        sealed_behind(
            inside("from inside", world(), plain),
            ethernet(PEER_MAC, OUTSIDE_MAC, 0x0800, &[]),
        )
        .to(OUTSIDE_IFINDEX),
    );
    cases
}
