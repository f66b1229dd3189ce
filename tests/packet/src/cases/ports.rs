//! Several interfaces on a side: who answers where, and which interface a packet leaves on.

use maps_schema::sad::SUITE_CHACHA20_POLY1305;
use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Program};
use crate::frames::{Ip, Sealer, arp_reply, arp_request, ethernet, noise, open_ours, udp};
use crate::world::*;

fn steer(name: impl Into<String>, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Steer, world, frame)
}

fn inside(name: impl Into<String>, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Inside, world, frame).of(CONNECTION)
}

pub(super) fn relinked(frame: &[u8], to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    [&to[..], &from, &frame[12..]].concat()
}

pub(super) fn sealed_packet(to: u32) -> Vec<u8> {
    Sealer::peer(SUITE_CHACHA20_POLY1305, false, false).frame(5, &inner(to, 64))
}

pub(super) fn inner(to: u32, ttl: u8) -> Vec<u8> {
    Ip {
        ttl,
        ..Ip::new(FAR_HOST, to, 17)
    }
    .with(&udp(1, 2, b"x"))
}

pub(super) fn of(owner: u8) -> World {
    World {
        owner,
        ..World::plain()
    }
}

/// The peer of the base world is reached by the routing table, whatever the interface.
pub(super) fn towards(peer: u32) -> World {
    let mut world = World::plain();
    world.local.own_device = 0;
    world.outbound.outer_dst = mapped(peer);
    world
}

pub(super) fn to_far_host() -> Vec<u8> {
    Ip::new(NEAR_HOST, FAR_HOST, 17).with(&udp(1000, 2000, &noise(30)))
}

/// Sealed for the peer, behind this link header.
pub(super) fn sealed_behind(case: Case, link: Vec<u8>) -> Case {
    case.ends(Verdict::EspSealed, Action::Redirect)
        .any_frame()
        .check(move |seen| {
            let Some(datagram) = seen.frame.strip_prefix(&link[..]) else {
                return Err(format!("link header {:02x?}", &seen.frame[..18]));
            };
            let untagged = ethernet([0; 6], [0; 6], 0x0800, datagram);
            let ours = open_ours(&untagged, SUITE_CHACHA20_POLY1305, None, false)?;
            let mut wanted = to_far_host();
            wanted[8] = 63;
            if ours.inner[..8] == wanted[..8] && ours.inner[12..] == wanted[12..] && ours.inner[8] == 63 {
                Ok(())
            } else {
                Err(format!("inner packet {:02x?}", ours.inner))
            }
        })
}

pub fn cases() -> Vec<Case> {
    let plain = World::plain;
    let mut cases = Vec::new();

    cases.push(
        steer(
            "ARP for the second network's address, there",
            plain(),
            arp_request(PEER_2_MAC, PEER_2, CLUSTER_2),
        )
        .on(OUTSIDE_2_IFINDEX)
        .ends(Verdict::ArpAnswered, Action::Transmit)
        .out(arp_reply(OUTSIDE_2_MAC, CLUSTER_2, PEER_2_MAC, PEER_2)),
    );
    cases.push(
        steer(
            "ARP for the second network's address, on the first",
            plain(),
            arp_request(PEER_MAC, PEER, CLUSTER_2),
        )
        .ends(Verdict::NotForCluster, Action::Pass),
    );
    let foreign = ethernet(OUTSIDE_2_MAC, PEER_2_MAC, 0x0800, &sealed_packet(NEAR_HOST)[14..]);
    cases.push(
        steer(
            "ESP to an address of the first network arrives on the second",
            plain(),
            foreign.clone(),
        )
        .of(CONNECTION)
        .on(OUTSIDE_2_IFINDEX)
        .ends(Verdict::EspOpened, Action::Redirect)
        .to(INSIDE_IFINDEX)
        .out(ethernet(NEAR_MAC, INSIDE_MAC, 0x0800, &inner(NEAR_HOST, 63)))
        .events(&[maps_schema::event::EVENT_FIRST_INBOUND]),
    );
    cases.push(
        steer(
            "an interface that is none of the cluster's",
            plain(),
            foreign.clone(),
        )
        .on(1)
        .ends(Verdict::NotForCluster, Action::Pass),
    );
    cases.push(
        steer(
            "the wrong interface's MAC address",
            plain(),
            relinked(&foreign, OUTSIDE_MAC, PEER_2_MAC),
        )
        .on(OUTSIDE_2_IFINDEX)
        .ends(Verdict::NotForCluster, Action::Pass),
    );
    cases.push(
        steer("second hop on the network of arrival", of(OTHER), foreign.clone())
            .on(OUTSIDE_2_IFINDEX)
            .ends(Verdict::SecondHop, Action::Transmit)
            .out(relinked(&foreign, OTHER_OUTSIDE_2_MAC, OUTSIDE_2_MAC)),
    );
    let mut from_member = foreign;
    from_member[6..12].copy_from_slice(&OTHER_OUTSIDE_2_MAC);
    cases.push(
        steer("no third hop on any network", of(OTHER), from_member)
            .on(OUTSIDE_2_IFINDEX)
            .ends(Verdict::NotOwner, Action::Drop),
    );
    cases.push(
        steer(
            "opened for a host on the second inside network",
            plain(),
            sealed_packet(NEAR_2_HOST),
        )
        .of(CONNECTION)
        .ends(Verdict::EspOpened, Action::Redirect)
        .to(INSIDE_2_IFINDEX)
        .out(ethernet(
            NEAR_2_MAC,
            INSIDE_2_MAC,
            0x0800,
            &inner(NEAR_2_HOST, 63),
        ))
        .events(&[maps_schema::event::EVENT_FIRST_INBOUND]),
    );

    let here = ethernet(INSIDE_2_MAC, NEAR_2_MAC, 0x0800, &to_far_host());
    cases.push(
        sealed_behind(
            inside(
                "from the second inside network to a peer on the second outside one",
                towards(PEER_2),
                here.clone(),
            )
            .on(INSIDE_2_IFINDEX),
            ethernet(PEER_2_MAC, OUTSIDE_2_MAC, 0x0800, &[]),
        )
        .to(OUTSIDE_2_IFINDEX),
    );
    cases.push(
        sealed_behind(
            inside(
                "to a peer on the first outside network",
                towards(PEER),
                here.clone(),
            )
            .on(INSIDE_2_IFINDEX),
            ethernet(PEER_MAC, OUTSIDE_MAC, 0x0800, &[]),
        )
        .to(OUTSIDE_IFINDEX),
    );
    let mut elsewhere = towards(PEER_2);
    elsewhere.local.own_device = OUTSIDE_IFINDEX;
    cases.push(
        inside(
            "a route over another interface than the only outside one: through the stack",
            elsewhere,
            here.clone(),
        )
        .on(INSIDE_2_IFINDEX)
        .ends(Verdict::EspSealed, Action::Pass)
        .any_frame()
        .check(|seen| {
            if seen.frame[..14] == ethernet(INSIDE_2_MAC, INSIDE_2_MAC, 0x0800, &[])[..] {
                Ok(())
            } else {
                Err(format!("link header {:02x?}", &seen.frame[..14]))
            }
        }),
    );
    cases.push(
        inside(
            "ARP for the inside address on a network that it is not of",
            plain(),
            arp_request(NEAR_2_MAC, NEAR_2_HOST, INSIDE),
        )
        .of(0)
        .on(INSIDE_2_IFINDEX)
        .ends(Verdict::NotForCluster, Action::Pass),
    );
    cases.push(
        inside("a frame from the outside meets the inside program", plain(), here)
            .of(0)
            .on(OUTSIDE_IFINDEX)
            .ends(Verdict::NotForCluster, Action::Pass),
    );
    cases
}
