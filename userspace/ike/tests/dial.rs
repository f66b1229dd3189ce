//! Who begins, where, and what an engine says of a loss.

mod world;

use ike::{Command, ConnectionPhase, EventKind};
use std::time::Duration;
use world::{A, B, World};

/// Nothing gets through until A's patience ends.
fn hear_nothing(world: &mut World) {
    world.net.clear();
    for _ in 0..20 {
        let next = world.sides[A].engine.next_timeout().unwrap_or(world.now);
        world.now = world.now.max(next);
        world.timeout();
        world.net.clear();
    }
}

#[test]
fn one_of_several_addresses_is_initiated_to() {
    let mut world = World::with(1, |side, connection| {
        if side == A {
            connection.remotes.insert(0, "198.51.100.99".parse().unwrap());
        }
    });
    let to = |world: &mut World, remote: &str| {
        let remote = remote.parse().unwrap();
        let connection = "t".to_owned();
        world.command(A, Command::InitiateTo { connection, remote });
    };
    to(&mut world, "203.0.113.3");
    assert!(
        world.has_event(A, EventKind::CommandFailed),
        "that is none of its addresses"
    );
    // Nobody is there.
    to(&mut world, "198.51.100.99");
    assert_eq!(
        world.sides[A].engine.connection_phase("t"),
        ConnectionPhase::Connecting
    );
    hear_nothing(&mut world);
    assert_eq!(world.sides[A].engine.connection_phase("t"), ConnectionPhase::Down);
    let silent = world.event(A, EventKind::PeerSilent);
    assert!(!silent.was_up, "it was never up: {silent:?}");
    to(&mut world, "198.51.100.1");
    world.settle();
    world.assert_up(1);
}

#[test]
fn a_peer_that_falls_silent_is_told_apart_from_one_that_ends_the_connection() {
    let mut world = World::new(2);
    world.initiate(A);
    world.settle();
    let connection = "t".to_owned();
    world.command(B, Command::Terminate { connection });
    world.settle();
    let closed = world.event(A, EventKind::PeerClosed);
    assert!(closed.was_up && closed.connection.as_deref() == Some("t"));
    assert!(!world.has_event(B, EventKind::PeerClosed), "it was its own wish");

    let mut world = World::new(3);
    world.initiate(A);
    world.settle();
    let spi = world.only(A).spi;
    world.command(A, Command::Liveness { spi });
    hear_nothing(&mut world);
    assert!(world.event(A, EventKind::PeerSilent).was_up);
    assert!(!world.has_event(A, EventKind::PeerClosed));
}

#[test]
fn a_rekey_of_the_ike_sa_is_no_end_of_the_connection() {
    let mut world = World::new(4);
    world.initiate(A);
    world.settle();
    let spi = world.only(A).spi;
    world.command(A, Command::RekeyIke { spi });
    world.settle();
    assert_ne!(world.only(A).spi, spi);
    assert!(!world.has_event(A, EventKind::PeerClosed) && !world.has_event(B, EventKind::PeerClosed));
}

#[test]
fn other_times_hold_without_a_message_once_the_timers_are_started_anew() {
    let mut world = World::with(5, |_, connection| {
        connection.dpd_delay = None;
        connection.ike_rekey_time = None;
        connection.child_rekey_time = None;
    });
    world.initiate(A);
    world.settle();
    let mut config = world.sides[A].engine.config().clone();
    config.connections[0].dpd_delay = Some(Duration::from_secs(5));
    world.sides[A].engine.set_config(config);
    let spi = world.only(A).spi;
    let sent = world.only(A).next_send;
    world.pass(Duration::from_secs(20));
    assert_eq!(world.only(A).next_send, sent, "the timers are what they were");
    world.command(A, Command::RestartTimers { spi });
    assert!(world.net.is_empty(), "nothing is sent for it");
    world.pass(Duration::from_secs(12));
    assert!(world.only(A).next_send >= sent + 2, "it looks after its peer");
    assert_eq!(world.only(A).spi, spi);
}
