//! Tagged frames: a VLAN is a port of its own, whose frames arrive and leave on the device below it.

use maps_schema::event::{EVENT_FIRST_INBOUND, SLOW_ABOVE_CEILING};
use maps_schema::sad::SUITE_CHACHA20_POLY1305;
use maps_schema::verdict::Verdict;

use super::ports::{inner, of, relinked, sealed_behind, sealed_packet, to_far_host, towards};
use crate::case::{Action, Case, Program};
use crate::frames::{Sealer, arp_reply, arp_request, ethernet, noise, tagged};
use crate::world::*;

fn steer(name: impl Into<String>, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Steer, world, frame).on(OUTSIDE_2_IFINDEX)
}

fn inside(name: impl Into<String>, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Inside, world, frame).of(CONNECTION)
}

pub fn cases() -> Vec<Case> {
    let plain = World::plain;
    let mut cases = Vec::new();
    let ask = arp_request(PEER_VLAN_MAC, PEER_VLAN, CLUSTER_VLAN);
    let answer = arp_reply(OUTSIDE_2_MAC, CLUSTER_VLAN, PEER_VLAN_MAC, PEER_VLAN);
    cases.push(
        steer("ARP under the tag", plain(), tagged(OUTSIDE_VLAN, &ask))
            .ends(Verdict::ArpAnswered, Action::Transmit)
            .out(tagged(OUTSIDE_VLAN, &answer)),
    );
    let urgent = 0xe000 | OUTSIDE_VLAN;
    cases.push(
        steer("ARP under the tag with a priority", plain(), tagged(urgent, &ask))
            .ends(Verdict::ArpAnswered, Action::Transmit)
            .out(tagged(urgent, &answer)),
    );
    cases.push(
        steer("ARP for the VLAN's address without tag", plain(), ask.clone())
            .ends(Verdict::NotForCluster, Action::Pass),
    );
    cases.push(
        steer("ARP under another tag", plain(), tagged(OUTSIDE_VLAN + 1, &ask))
            .ends(Verdict::NotForCluster, Action::Pass),
    );
    cases.push(
        steer(
            "ARP under the tag on another device",
            plain(),
            tagged(OUTSIDE_VLAN, &ask),
        )
        .on(OUTSIDE_IFINDEX)
        .ends(Verdict::NotForCluster, Action::Pass),
    );
    for (name, kind) in [("802.1Q", [0x81, 0]), ("802.1ad", [0x88, 0xa8])] {
        let twice = [&ask[..12], &kind, &[0, 5], &tagged(OUTSIDE_VLAN, &ask)[12..]].concat();
        let case = steer(format!("a tag behind a tag of {name}"), plain(), twice.clone());
        // Without looking: the first EtherType is no VLAN's that the program knows, or the second one is a tag's.
        cases.push(case.ends(Verdict::StackedVlan, Action::Pass));
        let mut second = tagged(OUTSIDE_VLAN, &ask);
        second[16..18].copy_from_slice(&kind);
        cases.push(
            steer(format!("the tag, and behind it one of {name}"), plain(), second)
                .ends(Verdict::StackedVlan, Action::Pass),
        );
    }
    let mut cut = tagged(OUTSIDE_VLAN, &ask);
    cut.truncate(17);
    cases.push(steer("cut within the tag", plain(), cut).ends(Verdict::NotForCluster, Action::Pass));

    let esp = ethernet(
        OUTSIDE_2_MAC,
        PEER_VLAN_MAC,
        0x0800,
        &sealed_packet(NEAR_HOST)[14..],
    );
    let esp = tagged(OUTSIDE_VLAN, &esp);
    cases.push(
        steer("ESP under the tag is opened", plain(), esp.clone())
            .of(CONNECTION)
            .ends(Verdict::EspOpened, Action::Redirect)
            .to(INSIDE_IFINDEX)
            .out(ethernet(NEAR_MAC, INSIDE_MAC, 0x0800, &inner(NEAR_HOST, 63)))
            .events(&[EVENT_FIRST_INBOUND]),
    );
    cases.push(
        steer(
            "ESP under the tag for a host without neighbour entry: the tag stays for the stack",
            plain(),
            tagged(
                OUTSIDE_VLAN,
                &ethernet(
                    OUTSIDE_2_MAC,
                    PEER_VLAN_MAC,
                    0x0800,
                    &sealed_packet(NO_NEIGHBOUR)[14..],
                ),
            ),
        )
        .of(CONNECTION)
        .ends(Verdict::EspOpenedLocal, Action::Pass)
        .out(tagged(
            OUTSIDE_VLAN,
            &ethernet(OUTSIDE_2_MAC, PEER_VLAN_MAC, 0x0800, &inner(NO_NEIGHBOUR, 64)),
        ))
        .events(&[EVENT_FIRST_INBOUND]),
    );
    let above = Sealer::peer(SUITE_CHACHA20_POLY1305, false, false).frame(1001, &inner(NEAR_HOST, 64));
    cases.push(
        steer(
            "above the ceiling: the frame goes to the slow path with its tag",
            plain(),
            tagged(OUTSIDE_VLAN, &relinked(&above, OUTSIDE_2_MAC, PEER_VLAN_MAC)),
        )
        .of(CONNECTION)
        .ends(Verdict::AboveCeiling, Action::Drop)
        .slow(SLOW_ABOVE_CEILING),
    );
    cases.push(
        Case::new(
            "opened for a host in the inside VLAN",
            Program::Steer,
            plain(),
            sealed_packet(NEAR_VLAN_HOST),
        )
        .of(CONNECTION)
        .ends(Verdict::EspOpened, Action::Redirect)
        .to(INSIDE_IFINDEX)
        .out(tagged(
            INSIDE_VLAN,
            &ethernet(NEAR_VLAN_MAC, INSIDE_MAC, 0x0800, &inner(NEAR_VLAN_HOST, 63)),
        ))
        .events(&[EVENT_FIRST_INBOUND]),
    );
    cases.push(
        steer("second hop in the VLAN", of(FAR_MEMBER), esp.clone())
            .ends(Verdict::SecondHop, Action::Transmit)
            .out(relinked(&esp, OTHER_OUTSIDE_2_MAC, OUTSIDE_2_MAC)),
    );
    let bare = [&esp[..12], &esp[16..]].concat();
    cases.push(
        steer(
            "second hop out of the VLAN, where the member is not reached",
            of(OTHER),
            esp.clone(),
        )
        .ends(Verdict::SecondHop, Action::Redirect)
        .to(OUTSIDE_IFINDEX)
        .out(relinked(&bare, OTHER_OUTSIDE_MAC, OUTSIDE_MAC)),
    );
    cases.push(
        steer("second hop into the VLAN", of(FAR_MEMBER), bare.clone())
            .ends(Verdict::SecondHop, Action::Redirect)
            .to(OUTSIDE_2_IFINDEX)
            .out(relinked(&esp, OTHER_OUTSIDE_2_MAC, OUTSIDE_2_MAC)),
    );

    let plain_frame = ethernet(INSIDE_2_MAC, NEAR_2_MAC, 0x0800, &to_far_host());
    cases.push(
        sealed_behind(
            inside(
                "to a peer in the outside VLAN",
                towards(PEER_VLAN),
                plain_frame.clone(),
            )
            .on(INSIDE_2_IFINDEX),
            tagged(OUTSIDE_VLAN, &ethernet(PEER_VLAN_MAC, OUTSIDE_2_MAC, 0x0800, &[])),
        )
        .to(OUTSIDE_2_IFINDEX),
    );
    let tagged_inside = tagged(
        INSIDE_VLAN,
        &ethernet(INSIDE_MAC, NEAR_VLAN_MAC, 0x0800, &to_far_host()),
    );
    cases.push(
        sealed_behind(
            inside("from the inside VLAN", towards(PEER), tagged_inside.clone()),
            ethernet(PEER_MAC, OUTSIDE_MAC, 0x0800, &[]),
        )
        .to(OUTSIDE_IFINDEX),
    );
    cases.push(
        inside(
            "sealed, but no neighbour: to the stack under the tag it came with",
            towards(PEER + 9),
            tagged_inside.clone(),
        )
        .ends(Verdict::EspSealed, Action::Pass)
        .any_frame()
        .check(|seen| {
            let link = tagged(INSIDE_VLAN, &ethernet(INSIDE_MAC, INSIDE_MAC, 0x0800, &[]));
            if seen.frame.starts_with(&link) {
                Ok(())
            } else {
                Err(format!("link header {:02x?}", &seen.frame[..18]))
            }
        }),
    );
    let mut narrow = towards(PEER);
    narrow.outbound.path_mtu = 576;
    let large =
        crate::frames::Ip::new(NEAR_VLAN_HOST, FAR_HOST, 17).with(&crate::frames::udp(1, 2, &noise(600)));
    cases.push(
        inside(
            "too big: the ICMP goes back under the tag",
            narrow,
            tagged(INSIDE_VLAN, &ethernet(INSIDE_MAC, NEAR_VLAN_MAC, 0x0800, &large)),
        )
        .ends(Verdict::FragmentNeeded, Action::Transmit)
        .any_frame()
        .check(|seen| {
            let link = tagged(INSIDE_VLAN, &ethernet(NEAR_VLAN_MAC, INSIDE_MAC, 0x0800, &[]));
            let right = seen.frame.starts_with(&link)
                && seen.frame.len() == 18 + 96
                && crate::frames::checksum(&seen.frame[18..38]) == 0
                && seen.frame[38..40] == [3, 4];
            if right {
                Ok(())
            } else {
                Err(format!("{:02x?}", seen.frame))
            }
        }),
    );
    cases.push(
        inside(
            "another member's segment, from a network where it is not reached: into the VLAN",
            of(FAR_MEMBER),
            plain_frame.clone(),
        )
        .on(INSIDE_2_IFINDEX)
        .ends(Verdict::SecondHop, Action::Redirect)
        .to(INSIDE_IFINDEX)
        .out(tagged(
            INSIDE_VLAN,
            &relinked(&plain_frame, OTHER_INSIDE_VLAN_MAC, INSIDE_MAC),
        )),
    );
    let ask = arp_request(NEAR_VLAN_MAC, NEAR_VLAN_HOST, INSIDE);
    cases.push(
        inside(
            "ARP for the inside address in the VLAN",
            plain(),
            tagged(INSIDE_VLAN, &ask),
        )
        .of(0)
        .ends(Verdict::ArpAnswered, Action::Transmit)
        .out(tagged(
            INSIDE_VLAN,
            &arp_reply(INSIDE_MAC, INSIDE, NEAR_VLAN_MAC, NEAR_VLAN_HOST),
        )),
    );
    cases
}
