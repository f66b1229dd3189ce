//! Windows larger than one (RFC 7296 2.3): several requests under way in both directions, in any order, over takeovers.

mod world;

use ike::{ChildConfig, Command, Connection};
use ike_wire::{ExchangeType, Message, Notify, NotifyType, Payload};
use std::time::Duration;
use world::scripted::Peer;
use world::*;

const CHILDREN: u8 = 5;

/// Children `c` and `c1` to `c5`, of which the first one comes with the IKE SA.
fn adjust(windows: [u32; 2]) -> impl Fn(usize, &mut Connection) {
    move |side, connection| {
        connection.window = windows[side];
        connection.retransmit.initial = Duration::from_millis(500);
        for number in 1..=CHILDREN {
            let nets = [net([10, 1, number]), net([10, 2, number])];
            let mut child = ChildConfig::new(
                &format!("c{number}"),
                vec![nets[side].clone()],
                vec![nets[1 - side].clone()],
            );
            child.start = false;
            child.esp_proposals = connection.children[0].esp_proposals.clone();
            connection.children.push(child);
        }
    }
}

fn up(seed: u64, windows: [u32; 2]) -> World {
    let mut world = World::with(seed, adjust(windows));
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    world
}

fn ask(world: &mut World, side: usize, number: u8) {
    world.command(
        side,
        Command::CreateChild {
            connection: "t".into(),
            child: format!("c{number}"),
        },
    );
}

#[test]
fn as_many_requests_go_out_as_both_sides_allow() {
    for (windows, expected) in [
        ([1, 1], 1),
        ([4, 1], 1),
        ([1, 4], 1),
        ([2, 4], 2),
        ([4, 4], 4),
        ([64, 64], 5),
    ] {
        for side in [A, B] {
            let mut world = up(1, windows);
            for number in 1..=CHILDREN {
                ask(&mut world, side, number);
            }
            assert_eq!(world.net.len(), expected, "{windows:?}\n{}", world.story());
            world.settle();
            world.assert_up(6);
        }
    }
}

#[test]
fn a_new_ike_sa_begins_with_windows_of_one_and_they_grow_again() {
    for side in [A, B] {
        let mut world = up(2, [4, 4]);
        let spi = world.only(side).spi;
        world.command(side, Command::RekeyIke { spi });
        world.settle();
        assert_ne!(world.only(side).spi, spi);
        for number in 1..=CHILDREN {
            ask(&mut world, 1 - side, number);
        }
        assert_eq!(world.net.len(), 4, "{}", world.story());
        world.settle();
        world.assert_up(6);
    }
}

#[test]
fn what_concerns_the_whole_ike_sa_waits_for_all_that_is_under_way() {
    let mut world = up(3, [4, 4]);
    let spi = world.only(A).spi;
    ask(&mut world, A, 1);
    ask(&mut world, A, 2);
    world.command(A, Command::RekeyIke { spi });
    ask(&mut world, A, 3);
    assert_eq!(world.net.len(), 2, "{}", world.story());
    world.settle();
    world.assert_up(4);
    assert_ne!(world.only(A).spi, spi);
    // A deletion of the same kind.
    ask(&mut world, A, 4);
    world.command(
        A,
        Command::Terminate {
            connection: "t".into(),
        },
    );
    world.settle();
    assert!(world.status(A).is_empty(), "{}", world.story());
}

/// Both sides want things at the same time; packets are lost, doubled and overtake each other.
fn rough(world: &mut World, rng: &mut Rng, steps: usize) {
    for _ in 0..steps {
        if world.net.is_empty() {
            world.now = world.now + Duration::from_millis(300);
            world.timeout();
            continue;
        }
        let at = rng.below(world.net.len() as u64) as usize;
        let packet = world.net.remove(at).unwrap();
        match rng.below(10) {
            0 => {}
            1 => {
                world.deliver(packet.clone());
                world.deliver(packet);
            }
            _ => world.deliver(packet),
        }
    }
}

#[test]
fn rough_networks_and_takeovers_at_any_time_lose_and_double_nothing() {
    for seed in 0..40 {
        let mut rng = Rng(seed + 1);
        let mut world = up(seed, [4, 3]);
        for number in 1..=CHILDREN {
            ask(&mut world, usize::from(number % 2), number);
        }
        let first = world.spi_in(A);
        world.command(A, Command::RekeyChild { spi_in: first });
        for _ in 0..3 {
            let steps = rng.below(12) as usize;
            rough(&mut world, &mut rng, steps);
            let dying = rng.below(2) as usize;
            world.take_over(dying);
        }
        world.pass(Duration::from_secs(120));
        // What stood in the queue only is asked for again, by whoever wants it.
        for number in 1..=CHILDREN {
            ask(&mut world, usize::from(number % 2), number);
        }
        world.pass(Duration::from_secs(120));
        let status = world.only(A);
        assert_eq!(status.phase, "established", "seed {seed}\n{}", world.story());
        let mut names: Vec<_> = status.children.iter().map(|child| child.child.clone()).collect();
        names.sort();
        assert_eq!(
            names,
            ["c", "c1", "c2", "c3", "c4", "c5"],
            "seed {seed}\n{}",
            world.story()
        );
        world.assert_up(6);
    }
}

#[test]
fn a_taker_sends_all_requests_again_with_the_same_octets_and_repeats_all_responses() {
    let mut world = up(5, [4, 4]);
    for number in 1..=4 {
        ask(&mut world, A, number);
    }
    let requests: Vec<_> = world.net.iter().map(|packet| packet.bytes.clone()).collect();
    world.take_over(A);
    let again: Vec<_> = world
        .net
        .iter()
        .skip(4)
        .map(|packet| packet.bytes.clone())
        .collect();
    assert_eq!(requests, again);
    world.net.truncate(4);
    // B answers the last two; both answers are lost with the member that sent them.
    for packet in world.net.split_off(2) {
        world.deliver(packet);
    }
    let answers: Vec<_> = world.net.drain(2..).map(|packet| packet.bytes).collect();
    assert_eq!(answers.len(), 2);
    world.take_over(B);
    world.net.clear();
    for (request, answer) in requests[2..].iter().zip(&answers) {
        let packet = Packet {
            to: B,
            local: (address(B), 500).into(),
            remote: (address(A), 500).into(),
            bytes: request.clone(),
        };
        world.deliver(packet);
        assert_eq!(
            world.net.pop_back().map(|packet| packet.bytes).as_ref(),
            Some(answer)
        );
    }
    assert_eq!(world.only(B).children.len(), 3);
    world.pass(Duration::from_secs(10));
    world.assert_up(5);
}

/// An INFORMATIONAL request with this Message ID; whether it was answered.
fn probe(peer: &mut Peer, id: u32) -> bool {
    peer.next = id;
    peer.request(ExchangeType::INFORMATIONAL, &[]).is_some()
}

#[test]
fn message_ids_beyond_the_window_are_not_answered() {
    for (window, reach) in [(1, 1), (3, 3)] {
        let mut ours = connection(B);
        ours.window = window;
        let mut peer = Peer::with(config(vec![ours]), vec![]);
        let mut payloads: Vec<Payload> = peer.auth(b"a secret that both know");
        let size = Notify::new(NotifyType::SET_WINDOW_SIZE, 9u32.to_be_bytes().to_vec());
        payloads.push(Payload::Notify(size));
        let answer = peer.request(ExchangeType::IKE_AUTH, &payloads).unwrap();
        let said = answer
            .notify(NotifyType::SET_WINDOW_SIZE)
            .map(|notify| notify.data.clone());
        assert_eq!(said, (window > 1).then(|| window.to_be_bytes().to_vec()));
        assert!(!probe(&mut peer, 2 + reach));
        // The highest first, then those that it overtook.
        for id in (2..2 + reach).rev() {
            assert!(probe(&mut peer, id), "{id}");
        }
        assert!(probe(&mut peer, 2 + reach));
    }
}

#[test]
fn requests_under_way_are_in_the_stream_under_different_message_ids() {
    let mut world = up(7, [4, 4]);
    for number in 1..=4 {
        ask(&mut world, B, number);
    }
    let ids: Vec<u32> = world
        .net
        .iter()
        .map(|packet| Message::parse(&packet.bytes).unwrap().header.message_id)
        .collect();
    assert_eq!(ids, [0, 1, 2, 3]);
    // Answers in the opposite order.
    let mut requests: Vec<_> = world.net.drain(..).collect();
    requests.reverse();
    for request in requests {
        world.deliver(request);
    }
    world.settle();
    world.assert_up(5);
}
