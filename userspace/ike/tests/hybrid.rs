//! Fragments (RFC 7383), and additional key exchanges in IKE_INTERMEDIATE and IKE_FOLLOWUP_KE (RFC 9242, RFC 9370): two engines,
//! rough networks, takeovers at every point.

mod world;

use ike::{Command, Connection, EventKind};
use ike_wire::{ExchangeType, Message};
use std::time::Duration;
use world::*;

const HYBRID_IKE: &str = "aes256gcm16-prfsha384-x25519-ke1_mlkem768";
const HYBRID_ESP: &str = "aes256gcm16-x25519-ke1_mlkem768";

fn hybrid(_: usize, connection: &mut Connection) {
    connection.ike_proposals = ike(HYBRID_IKE);
    connection.children[0].esp_proposals = esp(HYBRID_ESP);
    connection.retransmit.initial = Duration::from_millis(500);
}

fn up(seed: u64, adjust: impl Fn(usize, &mut Connection)) -> World {
    let mut world = World::with(seed, adjust);
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    world
}

/// Exchange types of all requests of a side, once each.
fn requests(world: &World, side: usize) -> Vec<ExchangeType> {
    let mut all: Vec<(u32, ExchangeType)> = world.sides[side]
        .sent
        .iter()
        .map(|bytes| Message::parse(bytes).unwrap().header)
        .filter(|header| !header.flags.response)
        .map(|header| (header.message_id, header.exchange))
        .collect();
    all.dedup();
    all.into_iter().map(|(_, exchange)| exchange).collect()
}

#[test]
fn an_additional_key_exchange_comes_before_ike_auth() {
    let world = up(1, hybrid);
    let expected = [
        ExchangeType::IKE_SA_INIT,
        ExchangeType::IKE_INTERMEDIATE,
        ExchangeType::IKE_AUTH,
    ];
    assert_eq!(requests(&world, A), expected);
    assert_eq!(world.only(B).suite, "aes256gcm16-prfsha384-x25519-ke1_mlkem768");
}

#[test]
fn every_combination_of_additional_key_exchanges_works() {
    for (number, more) in [
        "ke1_mlkem768",
        "ke1_mlkem1024",
        "ke1_ecp384-ke2_mlkem768",
        "ke3_mlkem768-ke7_mlkem1024",
        "ke1_mlkem768-ke2_mlkem1024-ke3_ecp256-ke4_modp2048",
        "ke1_mlkem768-ke1_none",
    ]
    .into_iter()
    .enumerate()
    {
        for cipher in ["aes128gcm16-prfsha256", "aes256-sha512"] {
            let text = format!("{cipher}-x25519-{more}");
            let mut world = up(number as u64, |_, connection| {
                connection.ike_proposals = ike(&text);
                connection.children[0].esp_proposals = esp(&format!("aes128gcm16-x25519-{more}"));
            });
            let (spi, child) = (world.only(A).spi, world.spi_in(A));
            world.command(A, Command::RekeyChild { spi_in: child });
            world.settle();
            world.assert_up(1);
            world.command(A, Command::RekeyIke { spi });
            world.settle();
            world.assert_up(1);
            assert_ne!(world.only(A).spi, spi, "{text}");
            assert_ne!(world.spi_in(A), child, "{text}");
            let trouble = |side: usize| world.has_event(side, EventKind::PeerMisbehaved);
            assert!(!trouble(A) && !trouble(B), "{text}\n{}", world.story());
        }
    }
}

#[test]
fn a_peer_without_additional_key_exchanges_is_met_where_they_are_optional() {
    let plain = "aes256gcm16-prfsha384-x25519";
    let optional = "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke1_none";
    for (a, b) in [(optional, plain), (plain, optional)] {
        let world = up(2, |side, connection| connection.ike_proposals = ike([a, b][side]));
        assert!(!requests(&world, A).contains(&ExchangeType::IKE_INTERMEDIATE));
    }
    // Two proposals serve the same end, as RFC 9370 2.2.5.1 has it.
    let world = up(3, |side, connection| {
        connection.ike_proposals = ike([&format!("{HYBRID_IKE},{plain}"), plain][side]);
    });
    assert_eq!(world.only(A).suite, plain);
    let mut world = World::with(4, |side, connection| {
        connection.ike_proposals = ike([HYBRID_IKE, plain][side]);
    });
    world.initiate(A);
    world.settle();
    assert!(world.status(A).is_empty() && world.has_event(A, EventKind::NoProposal));
}

/// Cut to the bone, so that every message but the shortest has many fragments.
fn small(side: usize, connection: &mut Connection) {
    hybrid(side, connection);
    connection.fragment_size = 160;
}

#[test]
fn long_messages_go_in_fragments_that_fit() {
    let mut world = up(5, small);
    let child = world.spi_in(A);
    world.command(
        B,
        Command::RekeyChild {
            spi_in: world.spi_in(B),
        },
    );
    world.settle();
    world.assert_up(1);
    assert_ne!(world.spi_in(A), child);
    for side in &world.sides {
        let mut fragments = 0;
        for bytes in &side.sent {
            let message = Message::parse(bytes).unwrap();
            if message.header.exchange == ExchangeType::IKE_SA_INIT {
                continue;
            }
            assert!(bytes.len() + 28 + 4 <= 160, "{} octets", bytes.len());
            let fragment = message.protected.unwrap().fragment;
            fragments += usize::from(fragment.is_some());
        }
        assert!(fragments > 15, "{fragments}");
    }
}

#[test]
fn fragments_are_used_only_where_both_sides_can() {
    for without in [A, B] {
        let world = up(6, |side, connection| {
            small(side, connection);
            connection.fragmentation = side != without;
        });
        let protected = |bytes: &Vec<u8>| Message::parse(bytes).unwrap().protected;
        let sent = world.sides.iter().flat_map(|side| &side.sent);
        assert!(sent.filter_map(protected).all(|sealed| sealed.fragment.is_none()));
    }
}

/// Loss, duplication and disorder of single fragments, with takeovers in between.
#[test]
fn fragments_that_are_lost_repeated_or_out_of_order_come_right_in_the_end() {
    for seed in 0..24 {
        let mut world = World::with(seed, small);
        let mut rng = Rng(seed);
        world.initiate(A);
        for step in 0..400 {
            if world.net.is_empty() {
                world.now = world.now + Duration::from_millis(400);
                world.timeout();
                continue;
            }
            let at = rng.below(world.net.len() as u64) as usize;
            match rng.below(10) {
                0 => drop(world.net.remove(at)),
                1 => {
                    let packet = world.net[at].clone();
                    world.net.push_back(packet);
                }
                2 if step % 7 == 0 && step < 100 => world.take_over((step % 2) as usize),
                _ => {
                    let packet = world.net.remove(at).unwrap();
                    world.deliver(packet);
                }
            }
        }
        world.pass(Duration::from_secs(60));
        world.trace.push(format!("(seed {seed})"));
        world.assert_up(1);
    }
}

#[test]
fn a_repeated_fragmented_request_is_answered_once_with_the_same_octets() {
    let mut world = up(7, small);
    let spi = world.only(A).spi;
    world.command(A, Command::RekeyIke { spi });
    let request: Vec<Packet> = world.net.iter().cloned().collect();
    assert!(request.len() > 1);
    while world.net.front().is_some_and(|packet| packet.to == B) {
        world.step();
    }
    let answer: Vec<Vec<u8>> = world.net.iter().map(|packet| packet.bytes.clone()).collect();
    assert!(answer.len() > 1);
    world.net.clear();
    for packet in request {
        world.deliver(packet);
    }
    let again: Vec<Vec<u8>> = world.net.iter().map(|packet| packet.bytes.clone()).collect();
    assert!(
        again == answer,
        "RFC 7383 2.6.1: only the first fragment is answered"
    );
}

#[test]
fn a_repeated_intermediate_request_is_answered_although_its_keys_are_gone() {
    for adjust in [hybrid as fn(usize, &mut Connection), small] {
        let mut world = World::with(8, adjust);
        world.initiate(A);
        world.step();
        world.step();
        let request: Vec<Packet> = world.net.iter().cloned().collect();
        while world.net.front().is_some_and(|packet| packet.to == B) {
            world.step();
        }
        let answer: Vec<Vec<u8>> = world.net.iter().map(|packet| packet.bytes.clone()).collect();
        assert!(!answer.is_empty());
        world.net.clear();
        // A taker does the same.
        world.take_over(B);
        for packet in request {
            world.deliver(packet);
        }
        let again: Vec<Vec<u8>> = world.net.iter().map(|packet| packet.bytes.clone()).collect();
        assert!(again == answer);
        world.pass(Duration::from_secs(10));
        world.assert_up(1);
    }
}

#[test]
fn a_changed_intermediate_exchange_is_noticed() {
    // Whoever is between the two sides and has broken x25519 only cannot replace ML-KEM's part.
    for flip in [40, 200, 1000] {
        let mut world = World::with(9, hybrid);
        world.initiate(A);
        world.step();
        world.step();
        let mut packet = world.net.pop_front().unwrap();
        packet.bytes[flip] ^= 1;
        let before = (world.only(B).next_receive, world.sides[B].sent.len());
        world.deliver(packet);
        while world.step() {}
        assert_eq!((world.only(B).next_receive, world.sides[B].sent.len()), before);
        world.pass(Duration::from_secs(10));
        world.assert_up(1);
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Story {
    Handshake,
    NewChild,
    RekeyChild,
    RekeyIke,
    CrossingChildRekeys,
    CrossingIkeRekeys,
}

const STORIES: [Story; 6] = [
    Story::Handshake,
    Story::NewChild,
    Story::RekeyChild,
    Story::RekeyIke,
    Story::CrossingChildRekeys,
    Story::CrossingIkeRekeys,
];

fn begin(story: Story, who: usize, seed: u64) -> World {
    let mut world = World::with(seed, |side, connection| {
        hybrid(side, connection);
        let nets = [net([10, 1, 9]), net([10, 2, 9])];
        let mut child = ike::ChildConfig::new("d", vec![nets[side].clone()], vec![nets[1 - side].clone()]);
        child.start = false;
        child.esp_proposals = esp("chacha20poly1305-x25519-ke1_mlkem768-ke2_ecp384");
        connection.children.push(child);
    });
    if story == Story::Handshake {
        world.initiate(who);
        return world;
    }
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    let children = [world.spi_in(A), world.spi_in(B)];
    let spis = [world.only(A).spi, world.only(B).spi];
    match story {
        Story::Handshake => unreachable!("returned above"),
        Story::NewChild => {
            let (connection, child) = ("t".to_owned(), "d".to_owned());
            world.command(who, Command::CreateChild { connection, child });
        }
        Story::RekeyChild => world.command(
            who,
            Command::RekeyChild {
                spi_in: children[who],
            },
        ),
        Story::RekeyIke => world.command(who, Command::RekeyIke { spi: spis[who] }),
        Story::CrossingChildRekeys => {
            for side in [who, 1 - who] {
                world.command(
                    side,
                    Command::RekeyChild {
                        spi_in: children[side],
                    },
                );
            }
        }
        Story::CrossingIkeRekeys => {
            for side in [who, 1 - who] {
                world.command(side, Command::RekeyIke { spi: spis[side] });
            }
        }
    }
    world
}

fn finish(mut world: World, story: Story, what: &str) {
    world.pass(Duration::from_secs(300));
    world.trace.push(format!("(this was {what})"));
    world.assert_up(if story == Story::NewChild { 2 } else { 1 });
    for side in &world.sides {
        assert_eq!(side.journal.len(), 1, "{what}: {} keeps leftovers", side.name);
        assert!(
            side.engine.pending_esp_spis().is_empty(),
            "{what}: promises are kept"
        );
        let trouble = side.events.iter().find(|event| {
            matches!(
                event.kind,
                EventKind::PeerSilent
                    | EventKind::PeerMisbehaved
                    | EventKind::Trouble
                    | EventKind::ChildFailed
            )
        });
        assert!(trouble.is_none(), "{what}: {trouble:?}\n{}", world.story());
    }
}

#[test]
fn crossing_rekeys_with_additional_key_exchanges_end_well_in_any_order() {
    for story in [Story::CrossingChildRekeys, Story::CrossingIkeRekeys] {
        for seed in 0..20 {
            let mut world = begin(story, (seed % 2) as usize, seed);
            let mut rng = Rng(seed);
            for _ in 0..200 {
                if world.net.is_empty() {
                    break;
                }
                let at = rng.below(world.net.len() as u64) as usize;
                let packet = world.net.remove(at).unwrap();
                world.deliver(packet);
            }
            finish(world, story, &format!("{story:?}, seed {seed}"));
        }
    }
}

#[test]
fn takeover_at_any_point_of_an_additional_key_exchange_changes_nothing() {
    for (number, story) in STORIES.into_iter().enumerate() {
        for who in [A, B] {
            let seed = 1000 + number as u64;
            let mut counting = begin(story, who, seed);
            let mut length = 0;
            while counting.step() {
                length += 1;
            }
            assert!(length >= 4, "{story:?}");
            for at in 0..=length {
                for (taken, lost) in [(A, false), (B, false), (A, true), (B, true)] {
                    let mut world = begin(story, who, seed);
                    for _ in 0..at {
                        world.step();
                    }
                    if lost {
                        world.net.clear();
                    }
                    world.take_over(taken);
                    let what =
                        format!("{story:?} by {who}, takeover of {taken} after {at}, in flight lost: {lost}");
                    finish(world, story, &what);
                }
            }
        }
    }
}

#[test]
fn a_responder_forgets_an_unfinished_series_and_the_initiator_begins_anew() {
    for (who, other) in [(A, B), (B, A)] {
        let mut world = begin(Story::RekeyChild, who, 77);
        world.step();
        world.step();
        // The IKE_FOLLOWUP_KE request is under way for longer than the responder waits.
        let late = world.net.pop_front().unwrap();
        assert_eq!(late.to, other);
        assert_eq!(world.sides[other].engine.pending_esp_spis().len(), 1);
        world.now = world.now + Duration::from_secs(21);
        let s = &mut world.sides[other];
        s.engine
            .handle(ike::Input::Timeout { now: world.now }, &mut s.around);
        world.drain(other, true);
        assert!(world.sides[other].engine.pending_esp_spis().is_empty());
        world.deliver(late);
        finish(world, Story::RekeyChild, "a late IKE_FOLLOWUP_KE");
    }
}
