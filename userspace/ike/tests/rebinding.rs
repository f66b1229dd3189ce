//! A NAT gives the peer another port, and an ESP packet is the first to show it (RFC 7296 2.23).

mod world;

use ike::{Command, EventKind};
use std::net::SocketAddr;
use world::{A, B, World};

const BEFORE: &str = "203.0.113.9:2222";
const AFTER: &str = "203.0.113.9:3333";

/// A is behind a NAT unless `nat` says otherwise; MOBIKE as given.
fn up(nat: bool, mobike: bool) -> World {
    let mut world = World::with(11, |side, connection| {
        connection.mobike = mobike;
        if side == B {
            connection.remotes.clear();
        }
        connection.force_encap = !nat && side == B;
    });
    if nat {
        for (inside, outside) in [("192.0.2.1:500", "203.0.113.9:1111"), ("192.0.2.1:4500", BEFORE)] {
            world
                .nat
                .insert(inside.parse().unwrap(), outside.parse().unwrap());
        }
    }
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    world
}

fn seen(world: &mut World, remote: &str) {
    let spi_in = world.spi_in(B);
    let remote = remote.parse().unwrap();
    world.command(B, Command::PeerSeen { spi_in, remote });
    world.settle();
}

fn peer_at(world: &World) -> (SocketAddr, SocketAddr) {
    (
        world.only(B).remote,
        world.sides[B].children.values().next().unwrap().remote,
    )
}

#[test]
fn ike_and_esp_follow_the_packet_and_a_taker_goes_on_there() {
    let mut world = up(true, false);
    let (before, after): (SocketAddr, SocketAddr) = (BEFORE.parse().unwrap(), AFTER.parse().unwrap());
    let spi = world.only(B).spi;
    assert!(world.sides[B].engine.may_move(spi));
    assert_eq!(peer_at(&world), (before, before));
    seen(&mut world, AFTER);
    assert_eq!(peer_at(&world), (after, after));
    let text = world.event(B, EventKind::PeerMoved).to_string();
    assert!(text.contains(BEFORE) && text.contains(AFTER), "{text}");
    world.take_over(B);
    world.settle();
    assert_eq!(world.only(B).remote, after);
    // The mapping is the peer's own: what is sent there arrives.
    world.nat.insert("192.0.2.1:4500".parse().unwrap(), after);
    let spi = world.only(B).spi;
    world.command(B, Command::Liveness { spi });
    world.settle();
    assert!(!world.only(B).outstanding, "the peer answers from there");
}

#[test]
fn who_is_not_behind_a_nat_or_speaks_for_itself_does_not_move_by_esp() {
    let forced = up(false, false);
    let mobile = up(true, true);
    for (mut world, what) in [(forced, "no NAT in between"), (mobile, "MOBIKE")] {
        if what == "MOBIKE" && world.sides[B].engine.may_move(world.only(B).spi) {
            // Not agreed on: only the one who initiated may offer it.
            continue;
        }
        let before = peer_at(&world);
        assert!(!world.sides[B].engine.may_move(world.only(B).spi), "{what}");
        seen(&mut world, AFTER);
        assert_eq!(peer_at(&world), before, "{what}");
        assert!(!world.has_event(B, EventKind::PeerMoved), "{what}");
    }
}

#[test]
fn a_host_behind_a_nat_itself_stays_with_its_peer() {
    let mut world = up(true, false);
    // A is behind the NAT: it must not follow whoever sends (RFC 7296 2.23).
    let spi_in = world.spi_in(A);
    let before = world.only(A).remote;
    let remote = "198.51.100.1:9999".parse().unwrap();
    world.command(A, Command::PeerSeen { spi_in, remote });
    world.settle();
    assert_eq!(world.only(A).remote, before);
    // One that was deleted meanwhile is nobody's.
    let spi_in = model::EspSpi(77);
    world.command(B, Command::PeerSeen { spi_in, remote });
    assert!(!world.has_event(B, EventKind::CommandFailed));
}
