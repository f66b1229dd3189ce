//! What arrives outside and is no ESP of ours: ARP, IKE, fragments, other members' segments, other hosts.

use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Program};
use crate::frames::{Ip, Sealer, arp_reply, arp_request, ethernet, ike, noise, udp};
use crate::world::*;

fn steer(name: impl Into<String>, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Steer, world, frame)
}

fn from_peer(ip: &[u8]) -> Vec<u8> {
    ethernet(OUTSIDE_MAC, PEER_MAC, 0x0800, ip)
}

fn to_cluster(source_port: u16, port: u16, payload: &[u8]) -> Vec<u8> {
    from_peer(&Ip::new(PEER, CLUSTER, 17).with(&udp(source_port, port, payload)))
}

fn hop(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[..12].copy_from_slice(&[OTHER_OUTSIDE_MAC, OUTSIDE_MAC].concat());
    frame
}

fn of_other() -> World {
    World {
        owner: OTHER,
        ..World::plain()
    }
}

fn expired() -> World {
    World {
        valid_for_ms: -5,
        ..World::plain()
    }
}

fn from_member(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[6..12].copy_from_slice(&OTHER_OUTSIDE_MAC);
    frame
}

pub fn cases() -> Vec<Case> {
    let plain = World::plain;
    let peer = Sealer::peer(maps_schema::sad::SUITE_CHACHA20_POLY1305, false, false);
    let esp = peer.frame(5, &Ip::new(FAR_HOST, NEAR_HOST, 17).with(&udp(1, 2, b"x")));
    let mut cases = Vec::new();

    let ask = arp_request(PEER_MAC, PEER, CLUSTER);
    cases.push(
        steer("ARP for the cluster address", plain(), ask.clone())
            .ends(Verdict::ArpAnswered, Action::Transmit)
            .out(arp_reply(OUTSIDE_MAC, CLUSTER, PEER_MAC, PEER)),
    );
    cases.push(steer("ARP, not the owner", of_other(), ask.clone()).ends(Verdict::ArpNotOwner, Action::Drop));
    cases.push(steer("ARP, owner without agent", expired(), ask).ends(Verdict::ArpNotOwner, Action::Drop));
    cases.push(
        steer(
            "ARP for another host",
            plain(),
            arp_request(PEER_MAC, PEER, PEER + 1),
        )
        .ends(Verdict::NotForCluster, Action::Pass),
    );
    cases.push(
        steer(
            "ARP for the inside address from outside",
            plain(),
            arp_request(PEER_MAC, PEER, INSIDE),
        )
        .ends(Verdict::NotForCluster, Action::Pass),
    );
    let reply = arp_reply(PEER_MAC, PEER, OUTSIDE_MAC, CLUSTER);
    cases.push(steer("an ARP reply", plain(), reply).ends(Verdict::NotForCluster, Action::Pass));

    cases.push(
        steer("ESP of another member's segment", of_other(), esp.clone())
            .ends(Verdict::SecondHop, Action::Transmit)
            .out(hop(&esp)),
    );
    cases.push(
        Case::new(
            "ESP of another member's segment, after the CPU",
            Program::EspIn,
            of_other(),
            esp.clone(),
        )
        .ends(Verdict::SecondHop, Action::Redirect)
        .out(hop(&esp)),
    );
    cases.push(
        steer("never a third hop", of_other(), from_member(&esp)).ends(Verdict::NotOwner, Action::Drop),
    );
    cases.push(
        steer(
            "the owner's MAC address is not known",
            World { owner: 3, ..plain() },
            esp.clone(),
        )
        .ends(Verdict::SecondHopUnknown, Action::Drop),
    );
    cases.push(
        steer("nobody owns it", World { owner: 0, ..plain() }, esp.clone())
            .ends(Verdict::OwnerExpired, Action::Drop),
    );
    cases.push(
        steer("expired, no successor", expired(), esp.clone()).ends(Verdict::OwnerExpired, Action::Drop),
    );
    let mut world = expired();
    world.side.successor = OTHER;
    cases.push(
        steer("expired: to the successor", world.clone(), esp.clone())
            .ends(Verdict::SecondHop, Action::Transmit)
            .out(hop(&esp)),
    );
    cases.push(
        steer("expired, from a member: not back", world, from_member(&esp))
            .ends(Verdict::NotOwner, Action::Drop),
    );
    let mut odd = peer;
    odd.spi = SPI_IN + 1;
    cases.push(
        steer("an SA of another CPU", plain(), odd.frame(5, b"")).ends(Verdict::OtherCpu, Action::Redirect),
    );

    // IKE: segment 0x42 in our SPI, whichever of the two it is.
    let ours = 0x4201_aaaa_bbbb_cccc;
    for (name, message) in [
        ("as responder", ike(0x1111, ours, true)),
        ("as initiator", ike(ours, 0x1111, false)),
        ("a first message", ike(0x1111, 0, true)),
    ] {
        let marked = [&[0; 4], &message[..]].concat();
        for (port, frame) in [
            (500, to_cluster(500, 500, &message)),
            (4500, to_cluster(4500, 4500, &marked)),
        ] {
            cases.push(
                steer(format!("IKE {port} {name}"), plain(), frame.clone())
                    .ends(Verdict::IkeToAgent, Action::Pass),
            );
            cases.push(
                steer(
                    format!("IKE {port} {name}, of another member"),
                    of_other(),
                    frame.clone(),
                )
                .ends(Verdict::SecondHop, Action::Transmit)
                .out(hop(&frame)),
            );
            cases.push(
                steer(format!("IKE {port} {name}, without agent"), expired(), frame)
                    .ends(Verdict::OwnerExpired, Action::Drop),
            );
        }
    }
    cases.push(
        steer(
            "IKE shorter than its header",
            plain(),
            to_cluster(500, 500, &noise(19)),
        )
        .ends(Verdict::Malformed, Action::Drop),
    );
    cases.push(
        steer("NAT keepalive", plain(), to_cluster(4500, 4500, &[0xff]))
            .ends(Verdict::NatKeepalive, Action::Drop),
    );
    cases.push(
        steer(
            "UDP 4500 of three octets",
            plain(),
            to_cluster(4500, 4500, &[1, 2, 3]),
        )
        .ends(Verdict::Malformed, Action::Drop),
    );
    let mut lying = to_cluster(4500, 4500, &noise(40));
    lying[14 + 24] = 0xff;
    cases.push(
        steer("a UDP length beyond the datagram", plain(), lying).ends(Verdict::Malformed, Action::Drop),
    );
    cases.push(
        steer("another UDP port", plain(), to_cluster(9, 5353, b"hello"))
            .ends(Verdict::LocalTraffic, Action::Pass),
    );
    let ping = from_peer(&Ip::new(PEER, CLUSTER, 1).with(&[8, 0, 0, 0, 0, 1, 0, 1]));
    cases.push(steer("ping to the cluster address", plain(), ping).ends(Verdict::LocalTraffic, Action::Pass));

    let piece = from_peer(
        &Ip {
            fragment: 0x2000,
            ..Ip::new(PEER, CLUSTER, 50)
        }
        .with(&noise(64)),
    );
    cases.push(steer("an outer fragment", plain(), piece.clone()).ends(Verdict::OuterFragment, Action::Pass));
    let later = from_peer(
        &Ip {
            fragment: 8,
            ..Ip::new(PEER, CLUSTER, 50)
        }
        .with(&noise(64)),
    );
    cases.push(
        steer("a later fragment, not the owner", of_other(), later.clone())
            .ends(Verdict::SecondHop, Action::Transmit)
            .out(hop(&later)),
    );
    // The datagram's owner is not known before it is put together, and then it is cut again.
    let mut sent_on = later;
    sent_on[6..12].copy_from_slice(&OTHER_OUTSIDE_MAC);
    cases.push(
        steer(
            "a later fragment from a member, not the owner",
            of_other(),
            sent_on,
        )
        .ends(Verdict::OuterFragment, Action::Pass),
    );
    cases
        .push(steer("a fragment, without agent", expired(), piece).ends(Verdict::OwnerExpired, Action::Drop));

    let elsewhere = from_peer(&Ip::new(PEER, CLUSTER + 7, 50).with(&noise(64)));
    cases.push(steer("ESP to another host", plain(), elsewhere).ends(Verdict::NotForCluster, Action::Pass));
    let flooded = ethernet([2, 9, 9, 9, 9, 9], PEER_MAC, 0x0800, &esp[14..]);
    cases.push(
        steer("a frame for another host's MAC address", of_other(), flooded)
            .ends(Verdict::NotForCluster, Action::Pass),
    );
    let v6 = ethernet(OUTSIDE_MAC, PEER_MAC, 0x86dd, &noise(60));
    cases.push(steer("IPv6", plain(), v6).ends(Verdict::NotForCluster, Action::Pass));
    let mut broken = esp.clone();
    broken[14] = 0x43;
    cases.push(
        steer("a header length below five words", plain(), broken).ends(Verdict::NotForCluster, Action::Pass),
    );
    let mut cut = esp;
    cut.truncate(30);
    cases.push(steer("a datagram cut short", plain(), cut).ends(Verdict::NotForCluster, Action::Pass));
    cases
}
