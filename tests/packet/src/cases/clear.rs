//! What arrives outside in clear: dropped where a policy wants it protected, and only there (RFC 4301 5.2).

use maps_schema::event::SLOW_PATH_ERROR;
use maps_schema::spd::{
    ACTION_BYPASS, ACTION_DISCARD, ACTION_NONE, ACTION_PROTECT_PER_CPU, ACTION_TRAP, ACTION_TRAP_HOLD,
};
use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Program};
use crate::frames::{Ip, Ip6, Sealer, ethernet, ike, noise, tagged, udp};
use crate::world::*;

fn steer(name: impl Into<String>, world: World, packet: &[u8]) -> Case {
    let ethertype = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
    let frame = ethernet(OUTSIDE_MAC, PEER_MAC, ethertype, packet);
    Case::new(name, Program::Steer, world, frame)
}

fn dropped(case: Case) -> Case {
    case.of(CONNECTION).ends(Verdict::ClearText, Action::Drop)
}

fn passed(case: Case, verdict: Verdict) -> Case {
    case.ends(verdict, Action::Pass)
}

fn forged(protocol: u8, payload: &[u8]) -> Vec<u8> {
    Ip::new(FAR_HOST, NEAR_HOST, protocol).with(payload)
}

fn forged_v6(protocol: u8, payload: &[u8]) -> Vec<u8> {
    Ip6::new(FAR_HOST_V6, NEAR_HOST_V6, protocol).with(payload)
}

/// A policy between the hosts behind the peer and the outside cluster addresses.
fn to_cluster() -> World {
    let mut world = World::plain();
    (
        world.policy.rules[0].source_first,
        world.policy.rules[0].source_last,
    ) = (mapped(CLUSTER), mapped(CLUSTER));
    (
        world.policy_v6.rules[0].source_first,
        world.policy_v6.rules[0].source_last,
    ) = (CLUSTER_V6, CLUSTER_V6);
    world
}

pub fn cases() -> Vec<Case> {
    let plain = World::plain;
    let packet = forged(17, &udp(1000, 2000, &noise(30)));
    let six = forged_v6(17, &udp(1000, 2000, &noise(30)));
    let mut cases = vec![
        dropped(steer("in clear, as a host behind the peer", plain(), &packet)),
        dropped(steer("the same over IPv6", plain(), &six)),
        dropped(steer("a TCP segment in clear", plain(), &forged(6, &noise(20)))),
        dropped(steer(
            "an ICMP message in clear",
            plain(),
            &forged(1, &[8, 0, 0, 0, 0, 1, 0, 1]),
        )),
        passed(
            steer(
                "in clear from elsewhere",
                plain(),
                &Ip::new(PEER, NEAR_HOST, 17).with(&udp(1, 2, b"x")),
            ),
            Verdict::NotForCluster,
        ),
        passed(
            steer(
                "in clear to a host of no policy",
                plain(),
                &Ip::new(FAR_HOST, 0x0a63_0001, 17).with(&udp(1, 2, b"x")),
            ),
            Verdict::NotForCluster,
        ),
    ];
    for (what, action) in [
        ("without SA", ACTION_TRAP),
        ("holding", ACTION_TRAP_HOLD),
        ("with SAs per CPU", ACTION_PROTECT_PER_CPU),
    ] {
        let mut world = plain();
        world.policy.rules[0].action = action;
        cases.push(dropped(steer(
            format!("in clear, a policy {what}"),
            world,
            &packet,
        )));
    }
    for (what, action, verdict, does) in [
        ("bypass", ACTION_BYPASS, Verdict::Bypassed, Action::Pass),
        ("discard", ACTION_DISCARD, Verdict::Discarded, Action::Drop),
    ] {
        let mut world = plain();
        world.policy.rules[0].action = action;
        cases.push(
            steer(format!("in clear, the policy says {what}"), world, &packet)
                .of(CONNECTION)
                .ends(verdict, does),
        );
    }
    let mut gone = plain();
    gone.policy.rules[0].action = ACTION_NONE;
    cases.push(passed(
        steer("an entry without rules", gone, &packet),
        Verdict::NotForCluster,
    ));
    // Rules are written from our side: its source is the packet's destination, ports too.
    let mut ports = plain();
    ports.policy.rules[0].protocol = 17;
    ports.policy.rules[0].source_ports = [2000, 2000];
    ports.policy.rules[0].destination_ports = [1000, 1000];
    cases.push(dropped(steer("ports of the policy", ports.clone(), &packet)));
    cases.push(passed(
        steer(
            "ports the other way round",
            ports.clone(),
            &forged(17, &udp(2000, 1000, &noise(30))),
        ),
        Verdict::NotForCluster,
    ));
    cases.push(passed(
        steer(
            "another protocol than the policy's",
            ports.clone(),
            &forged(6, &noise(20)),
        ),
        Verdict::NotForCluster,
    ));
    // A bypass before it, as for one service.
    let mut service = plain();
    service.policy.rules[1] = service.policy.rules[0];
    service.policy.rules[0] = ports.policy.rules[0];
    service.policy.rules[0].action = ACTION_BYPASS;
    cases.push(
        steer("a bypass before the policy", service.clone(), &packet)
            .of(CONNECTION)
            .ends(Verdict::Bypassed, Action::Pass),
    );
    cases.push(dropped(steer(
        "what the bypass does not hold",
        service,
        &forged(17, &udp(1000, 2001, &noise(30))),
    )));
    let frame = ethernet(OUTSIDE_MAC, PEER_MAC, 0x0800, &packet);
    let vlan = tagged(
        OUTSIDE_VLAN,
        &ethernet(OUTSIDE_2_MAC, PEER_VLAN_MAC, 0x0800, &packet),
    );
    cases.push(dropped(
        Case::new("in clear in a VLAN", Program::Steer, plain(), vlan).on(OUTSIDE_2_IFINDEX),
    ));
    // The stack takes what is sent to all for itself where it bears its address.
    let mut broadcast = frame.clone();
    broadcast[..6].fill(0xff);
    cases.push(dropped(Case::new(
        "in clear to all",
        Program::Steer,
        plain(),
        broadcast,
    )));
    let mut flooded = frame;
    flooded[0] ^= 4;
    cases.push(passed(
        Case::new(
            "in clear to another host's MAC address",
            Program::Steer,
            plain(),
            flooded,
        ),
        Verdict::NotForCluster,
    ));
    cases.push(dropped(steer(
        "behind extension headers",
        ports6(),
        &forged_v6(
            60,
            &[&[17, 0, 1, 4, 0, 0, 0, 0][..], &udp(1000, 2000, b"x")].concat(),
        ),
    )));
    let chain = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let deep = [chain(60), chain(60), chain(60), chain(60), chain(17)].concat();
    cases.push(
        steer("behind too many of them", ports6(), &forged_v6(60, &deep))
            .ends(Verdict::InnerExtension, Action::Drop),
    );
    // Traffic of the gateway itself: only where a policy is about it; and IKE and ESP never are.
    let own = |protocol: u8, payload: &[u8]| Ip::new(FAR_HOST, CLUSTER, protocol).with(payload);
    let gre = own(47, &noise(20));
    cases.push(passed(
        steer("to the gateway, no policy", plain(), &gre),
        Verdict::LocalTraffic,
    ));
    cases.push(dropped(steer("to the gateway, a policy", to_cluster(), &gre)));
    cases.push(dropped(steer(
        "UDP to the gateway, a policy",
        to_cluster(),
        &own(17, &udp(1, 53, b"x")),
    )));
    for port in [500, 4500] {
        let marker: &[u8] = if port == 4500 { &[0; 4] } else { &[] };
        let message = [marker, &ike(7, 0, true)].concat();
        cases.push(passed(
            steer(
                format!("IKE on port {port} whatever the policy"),
                to_cluster(),
                &own(17, &udp(500, port, &message)),
            ),
            Verdict::IkeToAgent,
        ));
        let first = Ip {
            fragment: 0x2000,
            ..Ip::new(FAR_HOST, CLUSTER, 17)
        };
        cases.push(passed(
            steer(
                format!("a first piece of IKE on port {port}"),
                to_cluster(),
                &first.with(&udp(500, port, &message)),
            ),
            Verdict::OuterFragment,
        ));
    }
    let piece = |protocol, fragment| Ip {
        fragment,
        ..Ip::new(FAR_HOST, CLUSTER, protocol)
    };
    cases.push(passed(
        steer(
            "a later piece of UDP",
            to_cluster(),
            &piece(17, 100).with(&noise(64)),
        ),
        Verdict::OuterFragment,
    ));
    cases.push(passed(
        steer(
            "a piece of ESP",
            to_cluster(),
            &piece(50, 0x2000).with(&noise(64)),
        ),
        Verdict::OuterFragment,
    ));
    for (what, fragment) in [("first", 0x2000), ("later", 100)] {
        cases.push(dropped(steer(
            format!("a {what} piece of GRE"),
            to_cluster(),
            &piece(47, fragment).with(&noise(64)),
        )));
    }
    cases.push(dropped(steer(
        "a first piece of other UDP",
        to_cluster(),
        &piece(17, 0x2000).with(&udp(1, 53, &noise(56))),
    )));
    let own6 = |protocol: u8, payload: &[u8]| Ip6::new(FAR_HOST_V6, CLUSTER_V6, protocol).with(payload);
    let options = |next: u8, payload: &[u8]| own6(60, &[&chain(next)[..], payload].concat());
    cases.push(dropped(steer(
        "over IPv6, behind options",
        to_cluster(),
        &options(47, &noise(20)),
    )));
    cases.push(passed(
        steer(
            "ESP over IPv6, behind options",
            to_cluster(),
            &options(50, &noise(40)),
        ),
        Verdict::OuterExtension,
    ));
    cases.extend(path_errors());
    let sealed = Sealer::peer(maps_schema::sad::SUITE_CHACHA20_POLY1305, false, false).frame(5, &packet);
    cases.push(
        Case::new(
            "sealed, it is what the policy wants",
            Program::Steer,
            plain(),
            sealed,
        )
        .of(CONNECTION)
        .ends(Verdict::EspOpened, Action::Redirect)
        .any_frame()
        .events(&[maps_schema::event::EVENT_FIRST_INBOUND]),
    );
    cases
}

/// Routers' errors about sealed packets, from somewhere on the way.
fn path_errors() -> Vec<Case> {
    const ROUTER: u32 = 0xc0a8_0afe;
    let router_v6 = v6(0xa, 0xfe);
    let error = |kind: [u8; 2], quoted: &[u8]| {
        let message = [&kind[..], &[0, 0, 0, 0, 5, 0x14], quoted].concat();
        Ip::new(ROUTER, CLUSTER, 1).with(&message)
    };
    let error_v6 = |kind: [u8; 2], quoted: &[u8]| {
        let message = [&kind[..], &[0, 0, 0, 0, 5, 0x14], quoted].concat();
        Ip6::new(router_v6, CLUSTER_V6, 58).with(&message)
    };
    let esp = &Ip::new(CLUSTER, PEER, 50).with(&noise(1400))[..28];
    let encap = &Ip::new(CLUSTER, PEER, 17).with(&udp(4500, 4500, &noise(1400)))[..28];
    let esp_v6 = &Ip6::new(CLUSTER_V6, PEER_V6, 50).with(&noise(1400))[..];
    let told = |name: &str, packet: &[u8]| {
        steer(name, World::plain(), packet)
            .ends(Verdict::PathError, Action::Pass)
            .slow(SLOW_PATH_ERROR)
    };
    let left = |name: &str, packet: &[u8]| {
        steer(name, World::plain(), packet).ends(Verdict::LocalTraffic, Action::Pass)
    };
    let mut cases = vec![
        told("fragmentation needed about ESP", &error([3, 4], esp)),
        told("fragmentation needed about ESP in UDP", &error([3, 4], encap)),
        told("Packet Too Big about ESP", &error_v6([2, 0], esp_v6)),
        left("another error about ESP", &error([3, 1], esp)),
        left("another ICMPv6 error about ESP", &error_v6([1, 0], esp_v6)),
        left(
            "fragmentation needed about IKE on port 500",
            &error(
                [3, 4],
                &Ip::new(CLUSTER, PEER, 17).with(&udp(500, 500, &noise(9)))[..28],
            ),
        ),
        left(
            "fragmentation needed about somebody else's ESP",
            &error([3, 4], &Ip::new(ROUTER, PEER, 50).with(&noise(9))),
        ),
        left(
            "fragmentation needed about TCP",
            &error([3, 4], &Ip::new(CLUSTER, PEER, 6).with(&noise(9))),
        ),
        left("fragmentation needed that ends early", &error([3, 4], &esp[..11])),
    ];
    let mut passed_on = ethernet(OUTSIDE_MAC, PEER_MAC, 0x0800, &error([3, 4], esp));
    passed_on[6..12].copy_from_slice(&OTHER_OUTSIDE_MAC);
    cases.push(
        Case::new(
            "fragmentation needed, told by a member",
            Program::Steer,
            World::plain(),
            passed_on,
        )
        .ends(Verdict::LocalTraffic, Action::Pass),
    );
    cases
}

/// The IPv6 policy is about UDP from port 1000 only.
fn ports6() -> World {
    let mut world = World::plain();
    world.policy_v6.rules[0].protocol = 17;
    world.policy_v6.rules[0].destination_ports = [1000, 1000];
    world
}
