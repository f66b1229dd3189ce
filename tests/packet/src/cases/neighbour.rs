//! Neighbour solicitations for cluster addresses (RFC 4861).

use maps_schema::verdict::Verdict;

use super::ports::{of, relinked};
use crate::case::{Action, Case, Program};
use crate::frames::{Ip6, advertisement, solicitation, tagged};
use crate::world::*;

const ANY: [u8; 16] = [0; 16];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

fn steer(name: impl Into<String>, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Steer, world, frame)
}

fn inside(name: impl Into<String>, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Inside, world, frame)
}

pub fn cases() -> Vec<Case> {
    let mut cases = neighbours();
    cases.extend(odd_solicitations());
    cases
}

fn expired() -> World {
    World {
        valid_for_ms: -5,
        ..World::plain()
    }
}

fn neighbours() -> Vec<Case> {
    let plain = World::plain;
    let option = [&[1, 1][..], &PEER_MAC].concat();
    let ask = solicitation(PEER_MAC, PEER_LINK, CLUSTER_V6, &option);
    let answer = advertisement(OUTSIDE_MAC, CLUSTER_V6, PEER_MAC, PEER_LINK, 0xe0);
    let mut cases = vec![
        steer("solicitation for the cluster address", plain(), ask.clone())
            .ends(Verdict::NeighbourAnswered, Action::Transmit)
            .out(answer.clone()),
        steer("solicitation, not the owner", of(OTHER), ask.clone())
            .ends(Verdict::NeighbourNotOwner, Action::Drop),
        steer("solicitation, owner without agent", expired(), ask.clone())
            .ends(Verdict::NeighbourNotOwner, Action::Drop),
        steer(
            "solicitation for another host",
            plain(),
            solicitation(PEER_MAC, PEER_LINK, v6(0xa, 9), &option),
        )
        .ends(Verdict::NotForCluster, Action::Pass),
        steer(
            "solicitation for the inside address from outside",
            plain(),
            solicitation(PEER_MAC, PEER_LINK, INSIDE_V6, &option),
        )
        .ends(Verdict::NotForCluster, Action::Pass),
        steer(
            "an advertisement is the host's",
            plain(),
            advertisement(PEER_MAC, PEER_V6, OUTSIDE_MAC, CLUSTER_V6, 0x60),
        )
        .ends(Verdict::LocalTraffic, Action::Pass),
        // A confirmation (RFC 4861 7.3): to the address itself, and without option: the answer is longer than the question.
        steer(
            "solicitation by unicast without option",
            plain(),
            relinked(
                &solicitation(PEER_MAC, PEER_LINK, CLUSTER_V6, &[]),
                OUTSIDE_MAC,
                PEER_MAC,
            ),
        )
        .ends(Verdict::NeighbourAnswered, Action::Transmit)
        .out(answer.clone()),
        steer(
            "solicitation by unicast for another MAC address",
            plain(),
            relinked(&ask, [2, 9, 9, 9, 9, 9], PEER_MAC),
        )
        .ends(Verdict::NotForCluster, Action::Pass),
        steer(
            "solicitation with a nonce (RFC 7527): the answer is shorter",
            plain(),
            solicitation(
                PEER_MAC,
                PEER_LINK,
                CLUSTER_V6,
                &[&option[..], &[14, 1, 1, 2, 3, 4, 5, 6]].concat(),
            ),
        )
        .ends(Verdict::NeighbourAnswered, Action::Transmit)
        .out(answer),
        steer(
            "a probe for duplicates: all are told",
            plain(),
            solicitation(PEER_MAC, ANY, CLUSTER_V6, &[]),
        )
        .ends(Verdict::NeighbourAnswered, Action::Transmit)
        .out(advertisement(
            OUTSIDE_MAC,
            CLUSTER_V6,
            ALL_NODES_MAC,
            ALL_NODES,
            0xa0,
        )),
        steer(
            "solicitation in the VLAN",
            plain(),
            tagged(
                OUTSIDE_VLAN,
                &solicitation(PEER_VLAN_MAC, PEER_LINK, CLUSTER_V6, &[]),
            ),
        )
        .on(OUTSIDE_2_IFINDEX)
        .ends(Verdict::NeighbourAnswered, Action::Transmit)
        .out(tagged(
            OUTSIDE_VLAN,
            &advertisement(OUTSIDE_2_MAC, CLUSTER_V6, PEER_VLAN_MAC, PEER_LINK, 0xe0),
        )),
        steer(
            "solicitation on a network that the address is not of",
            plain(),
            solicitation(PEER_2_MAC, PEER_LINK, CLUSTER_V6, &option),
        )
        .on(OUTSIDE_2_IFINDEX)
        .ends(Verdict::NotForCluster, Action::Pass),
    ];
    let near = [&[1, 1][..], &NEAR_MAC].concat();
    cases.push(
        inside(
            "solicitation for the inside address",
            plain(),
            solicitation(NEAR_MAC, NEAR_HOST_V6, INSIDE_V6, &near),
        )
        .of(0)
        .ends(Verdict::NeighbourAnswered, Action::Transmit)
        .out(advertisement(INSIDE_MAC, INSIDE_V6, NEAR_MAC, NEAR_HOST_V6, 0xe0)),
    );
    cases
}

fn odd_solicitations() -> Vec<Case> {
    let option = [&[1, 1][..], &PEER_MAC].concat();
    let ask = |source, options: &[u8]| solicitation(PEER_MAC, source, CLUSTER_V6, options);
    let icmp = 14 + 40;
    // One octet of a right one changed; the checksum made right again, unless it is what is wrong.
    let changed = |at: usize, to: u8, checksum: bool| {
        let mut frame = ask(PEER_LINK, &option);
        frame[at] = to;
        if checksum {
            let address = |at: usize| frame[at..at + 16].try_into().expect("16 octets");
            let ip = Ip6::new(address(14 + 8), address(14 + 24), 58);
            frame[icmp + 2..icmp + 4].fill(0);
            let sum = ip.checksum(&frame[icmp..]);
            frame[icmp + 2..icmp + 4].copy_from_slice(&sum.to_be_bytes());
        }
        frame
    };
    let mut seven = ask(PEER_LINK, &option);
    seven[14 + 5] -= 1;
    seven.pop();
    let mut to_one = ask(ANY, &[]);
    to_one[14 + 24..14 + 40].copy_from_slice(&CLUSTER_V6);
    let mut cases = Vec::new();
    for (name, frame) in [
        ("another hop limit", changed(14 + 7, 254, true)),
        ("a wrong checksum", changed(icmp + 2, 0x55, false)),
        ("a code", changed(icmp + 1, 1, true)),
        ("an option of no length", changed(icmp + 25, 0, true)),
        ("an option beyond the end", changed(icmp + 25, 2, true)),
        ("a length that is no multiple of eight", seven),
        ("a probe with a link-layer address", ask(ANY, &option)),
        ("a probe to one host", to_one),
        (
            "more options than are looked at",
            ask(PEER_LINK, &option.repeat(6)),
        ),
    ] {
        cases.push(
            steer(format!("solicitation with {name}"), World::plain(), frame)
                .ends(Verdict::Malformed, Action::Drop),
        );
    }
    let mut cut = ask(PEER_LINK, &[]);
    cut[14 + 5] = 16;
    cut.truncate(icmp + 16);
    cases.push(
        steer("solicitation without target", World::plain(), cut).ends(Verdict::NotForCluster, Action::Pass),
    );
    cases
}
