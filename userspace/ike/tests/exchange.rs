//! Key exchanges beside the engine: who dies while one is computed, who does not get one, and who wants very many.

mod world;

use ike::{Command, Connection, EventKind, Input};
use ike_wire::{Message, Notify};
use model::IkeSpi;
use std::time::Duration;
use world::scripted::Peer;
use world::*;

fn adjust(_: usize, connection: &mut Connection) {
    connection.ike_proposals = ike("aes256gcm16-prfsha384-modp2048-ke1_mlkem768");
    connection.children[0].esp_proposals = esp("aes256gcm16-modp2048-ke1_mlkem768");
    connection.retransmit.initial = Duration::from_millis(500);
}

/// What is done, by name; `None`: nothing but the set-up.
type Operation = fn(&World, usize) -> Option<Command>;

const OPERATIONS: [(&str, Operation); 4] = [
    ("set-up", |_, _| None),
    ("rekey of the child", |world, side| {
        let spi_in = world.spi_in(side);
        Some(Command::RekeyChild { spi_in })
    }),
    ("rekey of the IKE SA", |world, side| {
        let spi = world.only(side).spi;
        Some(Command::RekeyIke { spi })
    }),
    ("another child", |_, _| {
        Some(Command::CreateChild {
            connection: "t".into(),
            child: "d".into(),
        })
    }),
];

fn two_children(side: usize, connection: &mut Connection) {
    adjust(side, connection);
    let mut other = connection.children[0].clone();
    other.name = "d".into();
    other.start = false;
    other.local_ts = vec![net([[10, 3, 0], [10, 4, 0]][side])];
    other.remote_ts = vec![net([[10, 4, 0], [10, 3, 0]][side])];
    connection.children.push(other);
}

/// Begins an operation with the key exchanges of one side held back, computes all but the last of `step`, and leaves that one.
/// `false`: there are not so many.
fn begin(world: &mut World, operation: Operation, side: usize, step: usize) -> bool {
    let begin = |world: &mut World| match operation(world, A) {
        Some(command) => world.command(A, command),
        None => world.initiate(A),
    };
    if operation(world, A).is_some() || world.status(A).is_empty() {
        world.sides[side].hold_exchanges = true;
        begin(world);
        world.settle();
    }
    for _ in 0..step {
        if world.sides[side].to_compute.is_empty() {
            return false;
        }
        world.compute(side);
        world.settle();
    }
    !world.sides[side].to_compute.is_empty()
}

#[test]
fn whoever_takes_over_while_a_key_exchange_is_computed_asks_for_its_own() {
    let mut tried = 0;
    for (name, operation) in OPERATIONS {
        for dying in [A, B] {
            for step in 0..8 {
                let mut world = World::with(step as u64 + 1, two_children);
                if name != "set-up" {
                    world.initiate(A);
                    world.settle();
                    world.assert_up(1);
                }
                let before = world.status(A).first().map(|sa| sa.spi);
                let child = before.map(|_| world.spi_in(A));
                if !begin(&mut world, operation, dying, step) {
                    break;
                }
                tried += 1;
                let late = std::mem::take(&mut world.sides[dying].to_compute);
                world.sides[dying].hold_exchanges = false;
                world.take_over(dying);
                let now = world.now;
                for request in late {
                    // For an engine that is gone: nobody waits for it here.
                    let s = &mut world.sides[dying];
                    let computed = request.run(&mut |out| out.fill(7));
                    s.engine.handle(Input::Computed { now, computed }, &mut s.around);
                    world.drain(dying, true);
                }
                world.pass(Duration::from_secs(60));
                // What no member but the dead one knew of is begun anew by whoever wants it.
                if world.status(A).is_empty() {
                    world.initiate(A);
                }
                let as_before = |world: &World| {
                    let known = child.is_some_and(|child| world.spi_in(A) == child);
                    known && before.is_some_and(|before| world.only(A).spi == before)
                };
                if world.sides[A].children.len() == 1
                    && as_before(&world)
                    && let Some(command) = operation(&world, A)
                {
                    world.command(A, command);
                }
                world.pass(Duration::from_secs(60));
                let children = if name == "another child" { 2 } else { 1 };
                world.assert_up(children);
                let misbehaved = |side: usize| world.has_event(side, EventKind::PeerMisbehaved);
                assert!(
                    !misbehaved(A) && !misbehaved(B),
                    "{name}, {step}\n{}",
                    world.story()
                );
            }
        }
    }
    // Each of the eight has its own number of steps; none may be missing unseen.
    assert!(tried >= 16, "only {tried} moments were found");
}

#[test]
fn repetitions_of_what_waits_ask_for_nothing_more() {
    let mut world = World::with(5, two_children);
    world.initiate(A);
    world.settle();
    for (name, operation) in OPERATIONS.into_iter().skip(1) {
        assert!(begin(&mut world, operation, B, 0), "{name}");
        let waiting = world.sides[B].to_compute.len();
        // A repeats its request several times.
        world.pass(Duration::from_secs(3));
        assert_eq!(world.sides[B].to_compute.len(), waiting, "{name}");
        world.sides[B].hold_exchanges = false;
        world.compute(B);
        world.pass(Duration::from_secs(10));
    }
    world.assert_up(2);
}

#[test]
fn what_nobody_has_the_time_for_comes_again() {
    for (name, operation) in OPERATIONS {
        for side in [A, B] {
            let mut world = World::with(6, two_children);
            if name != "set-up" {
                world.initiate(A);
                world.settle();
            }
            assert!(begin(&mut world, operation, side, 0), "{name}");
            let now = world.now;
            for request in std::mem::take(&mut world.sides[side].to_compute) {
                let s = &mut world.sides[side];
                let computed = request.refuse();
                s.engine.handle(Input::Computed { now, computed }, &mut s.around);
                world.drain(side, true);
            }
            world.sides[side].hold_exchanges = false;
            assert!(
                world.sides[side].to_compute.is_empty(),
                "{name}: it asks again without a pause"
            );
            world.pass(Duration::from_secs(30));
            if world.status(A).is_empty() {
                // The agent initiates again, as after any failure.
                assert_eq!((name, side), ("set-up", A));
                world.initiate(A);
                world.pass(Duration::from_secs(30));
            }
            world.assert_up(if name == "another child" { 2 } else { 1 });
        }
    }
}

/// First messages of one hybrid proposal from many strangers, which side B has to compute for.
fn first_message(world: &mut World, number: u64, cookie: Option<Vec<u8>>) -> Vec<u8> {
    let stranger = Peer::first(IkeSpi(0x5_0000 + number), cookie);
    let from = (std::net::Ipv4Addr::new(192, 0, 2, 1), 2000 + number as u16).into();
    let packet = Packet {
        to: B,
        local: (address(B), 500).into(),
        remote: from,
        bytes: stranger,
    };
    let before = world.sides[B].sent.len();
    world.deliver(packet);
    world.net.clear();
    world.sides[B].sent.get(before).cloned().unwrap_or_default()
}

#[test]
fn strangers_prove_their_address_before_many_of_them_are_computed_for() {
    let mut world = World::with(7, |_, _| {});
    world.sides[B].hold_exchanges = true;
    let mut cookies = 0;
    for number in 0..100 {
        let answer = first_message(&mut world, number, None);
        if !answer.is_empty() {
            let message = Message::parse(&answer).unwrap();
            assert!(message.payloads.notifies().any(|n| n.as_cookie().is_some()));
            cookies += 1;
        }
    }
    // The threshold of half-open IKE SAs counts those that are not there yet.
    let waiting = world.sides[B].to_compute.len();
    assert_eq!((waiting, cookies), (64, 36));
    assert!(world.has_event(B, EventKind::CookieMode));
    // With its cookie a stranger is served; without one, or in vain, not.
    let answer = first_message(&mut world, 99, None);
    let message = Message::parse(&answer).unwrap();
    let cookie = message
        .payloads
        .notifies()
        .find_map(Notify::as_cookie)
        .unwrap()
        .to_vec();
    assert!(first_message(&mut world, 99, Some(cookie.clone())).is_empty());
    assert_eq!(world.sides[B].to_compute.len(), waiting + 1);
    // Its repetition waits too, and is answered once.
    assert!(first_message(&mut world, 99, Some(cookie)).is_empty());
    assert_eq!(world.sides[B].to_compute.len(), waiting + 1);
    let before = world.sides[B].sent.len();
    world.compute(B);
    assert_eq!(world.sides[B].sent.len() - before, waiting + 1);
    assert_eq!(world.sides[B].engine.ike_sa_count(), waiting + 1);
}

#[test]
fn a_segment_that_goes_takes_what_waits_with_it() {
    let mut world = World::with(8, |_, _| {});
    world.sides[B].hold_exchanges = true;
    assert!(first_message(&mut world, 1, None).is_empty());
    drop(world.sides[B].engine.remove_segments(|_| true));
    world.compute(B);
    assert_eq!(world.sides[B].engine.ike_sa_count(), 0);
    assert!(world.sides[B].sent.is_empty());
}
