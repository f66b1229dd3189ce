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

/// A first message of B is dropped while B's name leads elsewhere, and its repetition answered once it leads to B.
#[test]
fn a_peer_by_name_is_known_by_the_addresses_that_the_name_leads_to() {
    let mut world = World::with(6, |side, connection| {
        if side == A {
            connection.remotes.clear();
            connection.remotes_by_name = true;
        }
    });
    let lead = |world: &mut World, remotes: &[&str]| {
        let remotes = remotes.iter().map(|text| text.parse().unwrap()).collect();
        let side = &mut world.sides[A];
        let connection = "t";
        let input = ike::Input::Remotes {
            connection,
            remotes,
            names: Vec::new(),
        };
        side.engine.handle(input, &mut side.around);
    };
    world.initiate(A);
    assert!(
        world
            .event(A, EventKind::CommandFailed)
            .text
            .contains("no address yet"),
        "it leads nowhere yet"
    );
    lead(&mut world, &["198.51.100.99"]);
    world.initiate(B);
    world.settle();
    assert!(world.has_event(A, EventKind::NoConnection));
    assert!(
        !world.has_event(B, EventKind::NoProposal) && world.net.is_empty(),
        "a refusal would be final"
    );
    assert_eq!(
        world.sides[B].engine.connection_phase("t"),
        ConnectionPhase::Connecting
    );
    lead(&mut world, &["198.51.100.99", "198.51.100.1"]);
    world.pass(Duration::from_secs(3));
    world.settle();
    world.assert_up(1);

    // The IKE SA stays when the name leads elsewhere; the next one goes there.
    lead(&mut world, &["203.0.113.77"]);
    world.settle();
    world.assert_up(1);
    let connection = "t".to_owned();
    let remote = "198.51.100.1".parse().unwrap();
    world.command(
        A,
        Command::Terminate {
            connection: connection.clone(),
        },
    );
    world.settle();
    world.command(A, Command::InitiateTo { connection, remote });
    assert!(
        world.has_event(A, EventKind::CommandFailed),
        "that is none of its addresses any more"
    );
    world.initiate(A);
    assert_eq!(
        world.net.front().map(|packet| packet.local.ip()),
        Some("203.0.113.77".parse().unwrap())
    );
}

#[test]
fn a_child_that_the_peer_ends_is_told_apart_from_one_that_it_replaces() {
    let mut world = World::new(7);
    world.initiate(A);
    world.settle();
    let child = |world: &World, side: usize| world.only(side).children[0].spi_in;
    let spi_in = child(&world, B);
    world.command(B, Command::RekeyChild { spi_in });
    world.settle();
    assert_ne!(child(&world, B), spi_in);
    assert!(
        !world.has_event(A, EventKind::ChildClosed) && world.sides[A].engine.missing_children("t").is_empty(),
        "it was replaced"
    );
    let spi_in = child(&world, B);
    world.command(B, Command::DeleteChild { spi_in });
    world.settle();
    let closed = world.event(A, EventKind::ChildClosed);
    assert_eq!(closed.child.as_deref(), Some("c"));
    assert!(!world.has_event(A, EventKind::PeerClosed), "the IKE SA stays");
    assert!(!world.has_event(B, EventKind::ChildClosed), "it was its own wish");
    assert_eq!(world.sides[A].engine.missing_children("t"), ["c"]);

    let (connection, child) = ("t".to_owned(), "c".to_owned());
    world.command(A, Command::CreateChild { connection, child });
    assert!(
        world.sides[A].engine.missing_children("t").is_empty(),
        "it is on its way"
    );
    world.settle();
    world.assert_up(1);
    let up = world.sides[A]
        .events
        .iter()
        .rev()
        .find(|e| e.kind == EventKind::ChildUp);
    assert_eq!(up.and_then(|e| e.child.as_deref()), Some("c"));
}

#[test]
fn strangers_are_told_of_as_often_as_they_are_answered() {
    for by_name in [false, true] {
        let mut world = World::with(8, |side, connection| {
            connection.remotes_by_name = by_name && side == A;
        });
        world.initiate(B);
        let first = world.net.pop_front().unwrap();
        for number in 0..300_u64 {
            let mut packet = first.clone();
            packet.remote = format!("203.0.113.{}:500", number % 250 + 1).parse().unwrap();
            packet.bytes[..8].copy_from_slice(&(number + 1).to_be_bytes());
            world.deliver(packet);
        }
        let events = world.sides[A].events.iter();
        let told = events
            .filter(|event| event.kind == EventKind::NoConnection)
            .count();
        let answers = if by_name { 0 } else { 100 };
        assert_eq!((told, world.net.len()), (100, answers), "by name: {by_name}");
        world.now = world.now + Duration::from_secs(1);
        world.deliver(first.clone());
        world.settle();
        assert!(!world.has_event(A, EventKind::Flooded));
        world.assert_up(1);
    }
}
