//! Quick crash detection between two engines, and with liars in between (RFC 6290).

mod world;

use ike::{Command, EventKind};
use ike_wire::{ExchangeType, Flags, Header, Message, Notify, NotifyType, Payload, encode_message};
use model::SecretBytes;
use proptest::prelude::*;
use std::time::Duration;
use world::*;

const SECRETS: [u8; 2] = [0x51, 0x52];

/// Both sides make tokens; side A initiates whenever it is down.
fn world(seed: u64) -> World {
    World::with_config(seed, |side| {
        let mut connection = connection(side);
        connection.start = side == A;
        connection.retransmit.initial = Duration::from_millis(500);
        let mut config = config(vec![connection]);
        config.endpoint.qcd_secret = Some(SecretBytes::new(vec![SECRETS[side]; 32]));
        config
    })
}

fn established(seed: u64) -> World {
    let mut world = world(seed);
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    world
}

/// The token that a side makes for the present IKE SA, computed by the RFC's formula.
fn token_of(world: &World, maker: usize) -> [u8; 32] {
    let sa = world.only(maker);
    let (spi_i, spi_r) = if sa.initiator {
        (sa.spi, sa.peer_spi)
    } else {
        (sa.peer_spi, sa.spi)
    };
    let input = [
        &[SECRETS[maker]; 32][..],
        &spi_i.0.to_be_bytes(),
        &spi_r.0.to_be_bytes(),
    ]
    .concat();
    crypto::sha256(&[&input])
}

/// A message in clear to `victim`, as the peer of its present IKE SA would send it after a crash.
fn in_clear(world: &World, victim: usize, payloads: &[Payload]) -> Packet {
    let sa = world.only(victim);
    let (spi_i, spi_r) = if sa.initiator {
        (sa.spi, sa.peer_spi)
    } else {
        (sa.peer_spi, sa.spi)
    };
    let header = Header {
        spi_i,
        spi_r,
        exchange: ExchangeType::INFORMATIONAL,
        flags: Flags {
            initiator: !sa.initiator,
            version: false,
            response: true,
        },
        message_id: sa.next_send,
    };
    Packet {
        to: victim,
        local: sa.local,
        remote: sa.remote,
        bytes: encode_message(&header, payloads).unwrap(),
    }
}

fn notify(kind: NotifyType) -> Payload {
    Payload::Notify(Notify::status(kind))
}

fn token(octets: &[u8]) -> Payload {
    Payload::Notify(Notify::qcd_token(octets))
}

#[test]
fn a_peer_that_lost_everything_is_found_out_by_one_packet_and_connected_again() {
    let mut world = established(1);
    let old = world.only(A);
    assert!(old.agreed.crash_detection && old.agreed.message_id_sync && old.agreed.counter_sync);
    assert!(!old.agreed.resumption && !old.agreed.per_resource);
    world.lose_everything(B);
    world.command(A, Command::Liveness { spi: old.spi });
    let begun = world.now;
    // a ---> b  HDR, SK {}
    // a <--- b  HDR, N(INVALID_IKE_SPI), N(QCD_TOKEN)
    let question = world.net.front().unwrap().bytes.clone();
    world.step();
    let answer = Message::parse(&world.net.front().unwrap().bytes).unwrap();
    let asked = Message::parse(&question).unwrap().header;
    assert_eq!(
        (answer.header.spi_i, answer.header.spi_r, answer.header.message_id),
        (asked.spi_i, asked.spi_r, asked.message_id),
        "RFC 6290 4.5: SPIs and Message ID are taken from the request"
    );
    assert!(answer.payloads.notify(NotifyType::INVALID_IKE_SPI).is_some());
    assert!(world.net.front().unwrap().bytes.len() < question.len() + 20);
    // a ---> b  HDR, SAi1, KEi, Ni ...
    world.settle();
    world.assert_up(1);
    assert_ne!(world.only(A).spi, old.spi);
    assert_eq!(world.now, begun, "no time was lost");
    assert!(world.has_event(A, EventKind::PeerCrashed));
    let removed = format!("remove {}", old.children[0].spi_in);
    assert!(
        world.sides[A].changes.contains(&removed),
        "the Child SA went by a committed change"
    );
}

#[test]
fn where_a_side_has_it_switched_off_it_gives_no_token_and_believes_none() {
    for off in [A, B] {
        let mut world = World::with_config(90, |side| {
            let mut connection = connection(side);
            connection.crash_detection = side != off;
            let mut config = config(vec![connection]);
            config.endpoint.qcd_secret = Some(SecretBytes::new(vec![SECRETS[side]; 32]));
            config
        });
        world.initiate(A);
        world.settle();
        world.assert_up(1);
        assert!(!world.only(1 - off).agreed.crash_detection, "it was given none");
        let spi = world.only(off).spi;
        world.lose_everything(1 - off);
        world.command(off, Command::Liveness { spi });
        world.settle();
        assert_eq!(world.only(off).spi, spi, "only its own patience ends it");
        assert!(!world.has_event(off, EventKind::PeerCrashed));
    }
}

#[test]
fn the_responder_believes_the_initiators_token_just_as_well() {
    let mut world = established(2);
    let old = world.only(B);
    world.lose_everything(A);
    world.command(B, Command::Liveness { spi: old.spi });
    world.settle();
    assert!(world.has_event(B, EventKind::PeerCrashed));
    world.assert_all_gone();
}

#[test]
fn tokens_are_given_anew_after_every_rekey_of_the_ike_sa_by_either_side() {
    for who in [A, B] {
        for crashed in [A, B] {
            let mut world = established(3);
            for _ in 0..3 {
                let spi = world.only(who).spi;
                world.command(who, Command::RekeyIke { spi });
                world.pass(Duration::from_secs(1));
                world.assert_up(1);
            }
            let spi = world.only(1 - crashed).spi;
            world.lose_everything(crashed);
            world.command(1 - crashed, Command::Liveness { spi });
            world.settle();
            assert!(
                world.has_event(1 - crashed, EventKind::PeerCrashed),
                "{}",
                world.story()
            );
        }
    }
}

#[test]
fn the_taker_of_an_ike_sa_knows_the_peers_token() {
    let mut world = established(4);
    world.take_over(A);
    world.settle();
    let spi = world.only(A).spi;
    world.lose_everything(B);
    world.command(A, Command::Liveness { spi });
    world.settle();
    world.assert_up(1);
    assert!(world.has_event(A, EventKind::PeerCrashed));
}

#[test]
fn no_token_is_shown_while_the_ike_sa_may_live_elsewhere() {
    let mut world = established(5);
    let spi = world.only(A).spi;
    // Another member has it: this one knows nothing, and does not know that nobody does.
    world.sides[B].engine.clear();
    world.sides[B].around.may_show = false;
    world.command(A, Command::Liveness { spi });
    world.step();
    let answer = Message::parse(&world.net.pop_front().unwrap().bytes).unwrap();
    assert!(answer.payloads.notify(NotifyType::INVALID_IKE_SPI).is_some());
    assert!(
        answer
            .payloads
            .notify(NotifyType::QUICK_CRASH_DETECTION)
            .is_none()
    );
}

#[test]
fn no_token_is_shown_for_an_ike_sa_that_lives() {
    let mut world = established(6);
    world.sides[B].around.may_show = true;
    let sa = world.only(A);
    world.command(A, Command::Liveness { spi: sa.spi });
    let request = world.net.front().unwrap().clone();
    world.settle();
    // Damaged, replayed, and of another exchange: nothing makes the owner show it.
    for octet in [18, 23, 40, request.bytes.len() - 1] {
        let mut packet = request.clone();
        packet.bytes[octet] ^= 1;
        world.deliver(packet);
    }
    world.deliver(request);
    let shown = world.sides[B].sent.iter().any(|bytes| {
        let message = Message::parse(bytes).unwrap();
        message
            .payloads
            .notify(NotifyType::QUICK_CRASH_DETECTION)
            .is_some()
    });
    assert!(!shown, "{}", world.story());
}

#[test]
fn a_token_is_shown_to_protected_requests_only_and_at_a_limited_rate() {
    let mut world = established(7);
    let sa = world.only(A);
    world.lose_everything(B);
    world.command(A, Command::Liveness { spi: sa.spi });
    let request = world.net.pop_front().unwrap();
    let mut response = request.clone();
    response.bytes[19] |= 0x20;
    world.deliver(response);
    assert!(world.net.is_empty(), "a response is not answered");
    let plain = in_clear(&world, A, &[notify(NotifyType(40_000))]);
    let mut bytes = plain.bytes.clone();
    bytes[19] = 0x08;
    world.deliver(Packet {
        bytes,
        ..request.clone()
    });
    let answer = Message::parse(&world.net.pop_front().unwrap().bytes).unwrap();
    assert!(
        answer
            .payloads
            .notify(NotifyType::QUICK_CRASH_DETECTION)
            .is_none(),
        "a message in clear earns no token"
    );
    for _ in 0..1000 {
        world.deliver(request.clone());
    }
    assert_eq!(world.net.len(), 100, "per second");
}

#[test]
fn forged_tokens_end_nothing_and_are_reported_once() {
    let mut world = established(8);
    let right = token_of(&world, B);
    let own = token_of(&world, A);
    let mut flipped = right;
    flipped[31] ^= 1;
    let hint = notify(NotifyType::INVALID_IKE_SPI);
    let lies: Vec<Vec<Payload>> = vec![
        vec![hint.clone(), token(&flipped)],
        vec![hint.clone(), token(&own)],
        vec![hint.clone(), token(&right[..31])],
        vec![hint.clone(), token(&[right.to_vec(), vec![0]].concat())],
        vec![hint.clone(), token(&right[..15])],
        vec![hint.clone(), token(&[])],
        // Without the error that it belongs to.
        vec![token(&right)],
        vec![notify(NotifyType::INVALID_SYNTAX), token(&right)],
        // A guesser's fifth try in one message is not looked at.
        vec![
            hint.clone(),
            token(&[1; 16]),
            token(&[2; 16]),
            token(&[3; 16]),
            token(&[4; 16]),
            token(&right),
        ],
        vec![hint.clone()],
    ];
    for lie in lies {
        let packet = in_clear(&world, A, &lie);
        for _ in 0..20 {
            world.deliver(packet.clone());
        }
        world.settle();
        world.assert_up(1);
    }
    // The right token for other SPIs.
    let mut packet = in_clear(&world, A, &[hint.clone(), token(&right)]);
    packet.bytes[15] ^= 1;
    world.deliver(packet);
    world.settle();
    world.assert_up(1);
    let reported = |world: &World| {
        let events = world.sides[A].events.iter();
        events
            .filter(|event| event.kind == EventKind::TokenRefused)
            .count()
    };
    assert_eq!(reported(&world), 1, "and not once a packet");
    assert!(!world.has_event(A, EventKind::PeerCrashed));
    // Four are tried, so the fourth one counts.
    let packet = in_clear(
        &world,
        A,
        &[
            hint,
            token(&[1; 16]),
            token(&[2; 16]),
            token(&[3; 16]),
            token(&right),
        ],
    );
    world.deliver(packet);
    assert!(world.has_event(A, EventKind::PeerCrashed));
}

#[test]
fn a_connection_that_is_not_ours_to_start_is_left_to_the_peer_or_the_owner() {
    for (start, may_initiate) in [(false, true), (true, false)] {
        let mut world = World::with_config(9, |side| {
            let mut connection = connection(side);
            connection.start = start;
            let mut config = config(vec![connection]);
            config.endpoint.qcd_secret = Some(SecretBytes::new(vec![SECRETS[side]; 32]));
            config
        });
        world.initiate(A);
        world.settle();
        world.sides[A].around.may_initiate = may_initiate;
        let spi = world.only(A).spi;
        world.lose_everything(B);
        world.command(A, Command::Liveness { spi });
        world.settle();
        world.assert_all_gone();
        assert!(world.has_event(A, EventKind::IkeSaDown));
    }
}

#[test]
fn without_a_secret_there_are_no_tokens_but_the_peers_are_taken() {
    for crashed in [A, B] {
        let mut world = World::with_config(10, |side| {
            let mut config = config(vec![connection(side)]);
            config.endpoint.qcd_secret = (side == B).then(|| SecretBytes::new(vec![SECRETS[B]; 32]));
            config
        });
        world.initiate(A);
        world.settle();
        let spi = world.only(1 - crashed).spi;
        world.lose_everything(crashed);
        world.command(1 - crashed, Command::Liveness { spi });
        world.settle();
        assert_eq!(world.has_event(1 - crashed, EventKind::PeerCrashed), crashed == B);
    }
}

#[test]
fn a_crash_in_the_middle_of_a_rekey_is_found_out_too() {
    for at in 0..6 {
        let mut world = established(11);
        let spi = world.only(A).spi;
        world.command(A, Command::RekeyIke { spi });
        for _ in 0..at {
            world.step();
        }
        world.net.clear();
        world.lose_everything(B);
        world.pass(Duration::from_secs(20));
        let spis: Vec<_> = world.status(A).iter().map(|sa| sa.spi).collect();
        for spi in spis {
            world.command(A, Command::Liveness { spi });
        }
        world.pass(Duration::from_secs(100));
        assert!(
            world.has_event(A, EventKind::PeerCrashed),
            "at {at}\n{}",
            world.story()
        );
        world.assert_up(1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// Whatever is said in clear without the token changes nothing.
    #[test]
    fn no_guess_in_clear_changes_the_record(
        kinds in proptest::collection::vec(prop_oneof![Just(4u16), Just(11), Just(16419), any::<u16>()], 0..6),
        data in proptest::collection::vec(any::<u8>(), 0..140),
    ) {
        let mut world = established(12);
        let record = |world: &World| world.sides[A].engine.export()[0].1.expose().to_vec();
        let before = record(&world);
        let payloads: Vec<_> = kinds
            .iter()
            .map(|kind| Payload::Notify(Notify::new(NotifyType(*kind), data.clone())))
            .collect();
        let packet = in_clear(&world, A, &payloads);
        let hinted = kinds.iter().any(|kind| *kind == 4 || *kind == 11);
        world.deliver(packet);
        if !hinted {
            prop_assert!(record(&world) == before);
        }
        world.settle();
        world.assert_up(1);
    }
}
