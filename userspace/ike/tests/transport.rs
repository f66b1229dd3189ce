//! Transport mode (RFC 7296 1.3.1): agreed to, declined, refused, rekeyed and taken over.

mod world;

use ike::{ChildConfig, Command, Connection, EventKind};
use model::{SaMode, TrafficSelector};
use std::time::Duration;
use world::*;

fn host(side: usize, protocol: u8) -> TrafficSelector {
    TrafficSelector {
        first: address(side),
        last: address(side),
        protocol,
        first_port: 0,
        last_port: u16::MAX,
    }
}

/// The connection's only child is between the two addresses.
fn between_addresses(side: usize, connection: &mut Connection, mode: SaMode) {
    let mut child = ChildConfig::new("c", vec![host(side, 47)], vec![host(1 - side, 47)]);
    child.mode = mode;
    connection.children = vec![child];
}

fn both(side: usize, connection: &mut Connection) {
    between_addresses(side, connection, SaMode::Transport);
}

fn in_transport_mode(world: &World) {
    world.assert_up(1);
    for side in [A, B] {
        let child = world.sides[side].children.values().next().unwrap();
        assert_eq!(child.form.mode, SaMode::Transport, "{}", world.story());
        assert_eq!(child.ts_local, [host(side, 47)]);
        assert_eq!(child.ts_remote, [host(1 - side, 47)]);
    }
}

#[test]
fn both_sides_agree_and_every_rekey_stays_in_transport_mode() {
    let mut world = World::with(1, both);
    world.initiate(A);
    world.settle();
    in_transport_mode(&world);
    assert!(
        world
            .event(A, EventKind::ChildUp)
            .to_string()
            .contains("in transport mode")
    );
    for side in [A, B, A] {
        let spi_in = world.spi_in(side);
        world.command(side, Command::RekeyChild { spi_in });
        world.settle();
        in_transport_mode(&world);
        assert_ne!(world.spi_in(side), spi_in);
        // The mode is a matter of the Child SA, not of the IKE SA that it was made in.
        let spi = world.only(side).spi;
        world.command(side, Command::RekeyIke { spi });
        world.settle();
        in_transport_mode(&world);
    }
}

#[test]
fn a_taker_knows_the_mode_at_every_point_of_a_handshake_and_of_a_rekey() {
    for rekey in [false, true] {
        for side in [A, B] {
            for steps in 0..8 {
                let mut world = World::with(2, |side, connection| {
                    both(side, connection);
                    connection.retransmit.initial = Duration::from_millis(500);
                    // Further exchanges on the way to the new SA.
                    connection.children[0].esp_proposals = esp("aes128gcm16-x25519-ke1_ecp256");
                });
                world.initiate(A);
                if rekey {
                    world.settle();
                    let spi_in = world.spi_in(A);
                    world.command(A, Command::RekeyChild { spi_in });
                }
                for _ in 0..steps {
                    world.step();
                }
                // A responder that has committed nothing yet has nothing to take over.
                world.take_over(side);
                world.settle();
                world.pass(Duration::from_secs(3));
                in_transport_mode(&world);
            }
        }
    }
}

#[test]
fn a_peer_that_declines_is_told_to_delete_what_it_made() {
    let mut world = World::with(3, |side, connection| {
        let mode = if side == A {
            SaMode::Transport
        } else {
            SaMode::Tunnel
        };
        between_addresses(side, connection, mode);
    });
    // A --->  ... N(USE_TRANSPORT_MODE)      B --->  ... without it: tunnel mode
    // A --->  SK {D}
    world.initiate(A);
    world.settle();
    let text = world.event(A, EventKind::ChildFailed).to_string();
    assert!(
        text.contains("tunnel mode where we asked for transport mode"),
        "{text}"
    );
    for side in [A, B] {
        assert!(world.sides[side].children.is_empty(), "{}", world.story());
        assert_eq!(world.only(side).children.len(), 0);
    }
    assert!(world.sides[A].around.allocated.is_empty());
}

#[test]
fn tunnel_mode_is_refused_where_transport_mode_is_configured() {
    let mut world = World::with(4, |side, connection| {
        let mode = if side == A {
            SaMode::Tunnel
        } else {
            SaMode::Transport
        };
        between_addresses(side, connection, mode);
    });
    world.initiate(A);
    world.settle();
    let text = world.event(B, EventKind::ChildFailed).to_string();
    assert!(text.contains("the peer asks for tunnel mode"), "{text}");
    assert!(
        world
            .event(A, EventKind::ChildFailed)
            .to_string()
            .contains("TS_UNACCEPTABLE")
    );
    assert!(world.sides.iter().all(|side| side.children.is_empty()));
}

#[test]
fn a_child_in_the_mode_that_is_asked_for_goes_before_one_in_the_other() {
    let mut world = World::with(5, |side, connection| {
        both(side, connection);
        if side == B {
            let tunnel = ChildConfig::new("t", vec![host(B, 47)], vec![host(A, 47)]);
            connection.children.insert(0, tunnel);
        }
    });
    world.initiate(A);
    world.settle();
    let child = world.sides[B].children.values().next().unwrap();
    assert_eq!((child.child.as_str(), child.form.mode), ("c", SaMode::Transport));
}

#[test]
fn selectors_beyond_the_two_addresses_are_narrowed_to_them() {
    let mut world = World::with(6, |side, connection| {
        both(side, connection);
        if side == B {
            let wide = [net([198, 51, 100]), net([192, 0, 2])];
            connection.children[0].local_ts = vec![wide[0].clone()];
            connection.children[0].remote_ts = vec![wide[1].clone()];
        }
    });
    world.initiate(A);
    world.settle();
    in_transport_mode(&world);
    // From the other side: it asks for what the addresses leave.
    let mut world = World::with(6, |side, connection| {
        both(side, connection);
        if side == A {
            connection.children[0].local_ts = vec![net([192, 0, 2])];
            connection.children[0].remote_ts = vec![net([198, 51, 100])];
        }
    });
    world.initiate(A);
    world.settle();
    in_transport_mode(&world);
}

#[test]
fn forced_encapsulation_changes_nothing() {
    let mut world = World::with(7, |side, connection| {
        both(side, connection);
        connection.force_encap = true;
    });
    world.initiate(A);
    world.settle();
    in_transport_mode(&world);
    assert!(
        world
            .sides
            .iter()
            .all(|side| side.children.values().all(|c| c.udp_encap))
    );
}

/// Addresses of the two, and what a NAT makes of them.
const SEEN: [&str; 2] = ["203.0.113.9", "203.0.113.20"];

/// NATs before the sides of `behind`; each side has the other one's address as it sees it, but for what `adjust` changes.
fn behind_nats(seed: u64, behind: &[usize], adjust: fn(usize, &mut Connection)) -> World {
    let seen = |side: usize| -> std::net::IpAddr {
        if behind.contains(&side) {
            SEEN[side].parse().unwrap()
        } else {
            address(side)
        }
    };
    let mut world = World::with(seed, |side, connection| {
        both(side, connection);
        let peer = seen(1 - side);
        connection.remotes = vec![peer];
        connection.children[0].remote_ts[0].first = peer;
        connection.children[0].remote_ts[0].last = peer;
        adjust(side, connection);
    });
    for side in behind {
        for port in [500, 4500] {
            let (inside, outside) = ((address(*side), port), (seen(*side), port));
            world.nat.insert(inside.into(), outside.into());
        }
    }
    world
}

/// ```text
///   A 192.0.2.1 --- NAT 203.0.113.9 --- B     A --->  TSi 192.0.2.1, TSr B      B puts 203.0.113.9 in its place
///                                             A <---  TSi 192.0.2.1, TSr B
/// ```
#[test]
fn each_side_has_the_addresses_that_it_sees_behind_any_nat() {
    for behind in [&[A][..], &[B], &[A, B]] {
        let mut world = behind_nats(8, behind, |_, _| {});
        world.initiate(A);
        world.settle();
        let check = |world: &World| {
            for side in [A, B] {
                assert_eq!(world.only(side).children.len(), 1, "{}", world.story());
                let [ours, theirs] = [side, 1 - side].map(|side| &world.sides[side].children);
                assert_eq!(ours.len(), 1, "{}", world.story());
                let child = ours.values().next().unwrap();
                let there = theirs.get(&child.spi_out).unwrap();
                assert!(there.key_in.expose() == child.key_out.expose(), "keys differ");
                let peer = 1 - side;
                let seen = if behind.contains(&peer) {
                    SEEN[peer].parse().unwrap()
                } else {
                    address(peer)
                };
                assert_eq!(child.form.mode, SaMode::Transport, "{}", world.story());
                assert!(child.udp_encap);
                assert_eq!(child.ts_local, [host(side, 47)], "{behind:?}");
                let [remote] = &child.ts_remote[..] else {
                    panic!("{:?}", child.ts_remote);
                };
                assert_eq!((remote.first, remote.last, remote.protocol), (seen, seen, 47));
            }
        };
        check(&world);
        // Whoever rekeys: each asks for what it sees.
        for side in [A, B, A] {
            let spi_in = world.spi_in(side);
            world.command(side, Command::RekeyChild { spi_in });
            world.settle();
            check(&world);
            assert_ne!(world.spi_in(side), spi_in, "{}", world.story());
        }
        for side in [A, B] {
            world.take_over(side);
            world.settle();
            let spi_in = world.spi_in(side);
            world.command(side, Command::RekeyChild { spi_in });
            world.settle();
            check(&world);
        }
    }
}

#[test]
fn a_nat_that_the_configuration_does_not_know_is_named() {
    // B knows the peer by the address behind its NAT.
    let mut world = behind_nats(9, &[A], |side, connection| {
        if side == B {
            connection.remotes = vec![];
            connection.children[0].remote_ts = vec![host(A, 47)];
        }
    });
    world.initiate(A);
    world.settle();
    let text = world.event(B, EventKind::ChildFailed).to_string();
    assert!(
        text.contains("`remote` has to be the address that the peer is seen at"),
        "{text}"
    );
    assert!(world.sides.iter().all(|side| side.children.is_empty()));
    assert_eq!(world.only(B).children.len(), 0, "the IKE SA stays");
}
