//! Session resumption between two engines, and with thieves of tickets in between (RFC 5723).

mod world;

use ike::{Command, Connection, EventKind, IkeSaStatus};
use ike_wire::{ExchangeType, Message, Notify, NotifyType, Payload, encode_message};
use model::SecretBytes;
use proptest::prelude::*;
use std::time::Duration;
use world::*;

const NOW: u64 = 1_800_000_000;

/// Both sides grant tickets and make QCD tokens; side A initiates whenever it is down.
fn world_with(seed: u64, adjust: impl Fn(usize, &mut Connection)) -> World {
    let mut world = World::with_config(seed, |side| {
        let mut connection = connection(side);
        connection.start = side == A;
        connection.retransmit.initial = Duration::from_millis(500);
        adjust(side, &mut connection);
        let mut config = config(vec![connection]);
        config.endpoint.qcd_secret = Some(SecretBytes::new(vec![0x51 + side as u8; 32]));
        config.endpoint.ticket_secret = Some(SecretBytes::new(vec![0x61 + side as u8; 32]));
        config
    });
    for side in &mut world.sides {
        side.around.unix_time = Some(NOW);
    }
    world
}

fn established(seed: u64) -> World {
    let mut world = world_with(seed, |_, _| {});
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    world
}

/// Side B loses everything, and A learns it; gives what A had. The first message of A's next try is in the network.
fn crash(world: &mut World) -> IkeSaStatus {
    let old = world.only(A);
    world.lose_everything(B);
    world.command(A, Command::Liveness { spi: old.spi });
    world.step();
    world.step();
    assert!(world.has_event(A, EventKind::PeerCrashed), "{}", world.story());
    old
}

fn exchange(packet: &Packet) -> ExchangeType {
    Message::parse(&packet.bytes).unwrap().header.exchange
}

fn count(world: &World, side: usize, kind: EventKind) -> usize {
    world.sides[side]
        .events
        .iter()
        .filter(|event| event.kind == kind)
        .count()
}

#[test]
fn after_total_loss_the_session_is_resumed_without_a_key_exchange() {
    let mut world = established(1);
    let old = crash(&mut world);
    // a ---> b  HDR, Ni, N(TICKET_OPAQUE), N(NAT_DETECTION_*)
    let request = Message::parse(&world.net.front().unwrap().bytes).unwrap();
    assert_eq!(request.header.exchange, ExchangeType::IKE_SESSION_RESUME);
    assert_eq!((request.header.spi_r.0, request.header.message_id), (0, 0));
    assert!(request.payloads.ke().is_none() && request.payloads.sa().is_none());
    world.step();
    // a <--- b  HDR, Nr, N(NAT_DETECTION_*), N(CHILDLESS)
    let response = Message::parse(&world.net.front().unwrap().bytes).unwrap();
    assert_eq!(response.header.exchange, ExchangeType::IKE_SESSION_RESUME);
    assert_eq!(response.header.spi_i, request.header.spi_i);
    world.step();
    // a ---> b  HDR, SK {IDi, N(INITIAL_CONTACT), IDr, AUTH, N(QCD), N(TICKET_REQUEST), SAi2, TSi, TSr}
    world.step();
    // a <--- b  HDR, SK {IDr, AUTH, N(QCD), N(TICKET_LT_OPAQUE), SAr2, TSi, TSr}
    world.step();
    assert!(world.net.is_empty());
    world.assert_up(1);
    let new = world.only(A);
    assert!(
        new.spi != old.spi && new.peer_spi != old.peer_spi,
        "RFC 5723 5, note 4"
    );
    assert_eq!(new.suite, old.suite, "algorithms come from the ticket");
    assert!(world.has_event(B, EventKind::Resumed) && !world.has_event(A, EventKind::TicketRefused));
}

#[test]
fn a_session_is_resumed_again_and_again_each_time_with_a_new_ticket() {
    let mut world = established(2);
    for round in 1..=4 {
        world.sides[A].events.clear();
        crash(&mut world);
        assert_eq!(
            exchange(world.net.front().unwrap()),
            ExchangeType::IKE_SESSION_RESUME,
            "{round}"
        );
        world.settle();
        world.assert_up(1);
        // A resumed IKE SA is rekeyed like any other.
        let spi = world.only(A).spi;
        world.command(
            [A, B][round % 2],
            Command::RekeyIke {
                spi: [spi, world.only(B).spi][round % 2],
            },
        );
        world.pass(Duration::from_secs(1));
        world.assert_up(1);
    }
}

#[test]
fn every_suite_and_cookies_and_nats_work() {
    for (index, suite) in [
        "aes128gcm16-prfsha384-x25519",
        "aes256-sha512-prfsha512-ecp256",
        "chacha20poly1305-prfsha256-x25519",
    ]
    .into_iter()
    .enumerate()
    {
        let mut world = world_with(3, |_, connection| {
            connection.ike_proposals = ike(suite);
            connection.force_encap = index == 1;
        });
        world.initiate(A);
        world.settle();
        crash(&mut world);
        let mut config = world.sides[B].engine.config().clone();
        config.endpoint.cookie_threshold = 0;
        world.sides[B].engine.set_config(config);
        world.settle();
        world.assert_up(1);
        assert!(world.has_event(B, EventKind::Resumed) && world.has_event(B, EventKind::CookieMode));
        assert_eq!(world.only(A).remote.port(), if index == 1 { 4500 } else { 500 });
    }
}

#[test]
fn any_member_resumes_the_next_owner_takes_over_in_the_middle() {
    for at in 0..5 {
        for taken in [A, B] {
            let mut world = established(4);
            crash(&mut world);
            for _ in 0..at {
                world.step();
            }
            world.take_over(taken);
            world.pass(Duration::from_secs(30));
            world.assert_up(1);
            assert!(
                world.has_event(B, EventKind::Resumed),
                "{at}, {taken}\n{}",
                world.story()
            );
        }
    }
}

#[test]
fn a_silent_peer_is_resumed_once_it_is_back() {
    let mut world = established(5);
    let spi = world.only(A).spi;
    world.lose_everything(B);
    world.sides[B].around.may_show = false;
    // Nothing arrives: the peer is down for minutes, and a try with the ticket finds nobody.
    let down = |world: &mut World, seconds: u64| {
        let end = world.now + Duration::from_secs(seconds);
        while world.now < end {
            world.net.clear();
            let next = world.sides[A].engine.next_timeout().filter(|at| *at <= end);
            world.now = next.unwrap_or(end).max(world.now);
            world.timeout();
        }
        world.net.clear();
    };
    world.command(A, Command::Liveness { spi });
    down(&mut world, 60);
    assert!(world.status(A).is_empty(), "{}", world.story());
    let mut tries = Vec::new();
    for _ in 0..3 {
        world.initiate(A);
        tries.push(exchange(world.net.front().unwrap()));
        down(&mut world, 60);
    }
    let (resume, init) = (ExchangeType::IKE_SESSION_RESUME, ExchangeType::IKE_SA_INIT);
    assert_eq!(
        tries,
        [resume, init, resume],
        "a peer that does not resume is not asked to for ever"
    );
    world.initiate(A);
    world.settle();
    world.assert_up(1);
}

#[test]
fn a_peer_that_knows_the_key_no_longer_is_connected_to_anew_in_the_same_breath() {
    for case in ["key", "period", "garbage"] {
        let mut world = established(6);
        crash(&mut world);
        match case {
            "key" => {
                let mut config = world.sides[B].engine.config().clone();
                config.endpoint.ticket_secret = Some(SecretBytes::new(vec![0xee; 32]));
                world.sides[B].engine.set_config(config);
            }
            "period" => world.sides[B].around.unix_time = Some(NOW + 3 * 86400),
            _ => {
                let packet = world.net.front_mut().unwrap();
                let len = packet.bytes.len();
                packet.bytes[len - 80] ^= 1;
            }
        }
        let begun = world.now;
        world.step();
        let answer = Message::parse(&world.net.front().unwrap().bytes).unwrap();
        assert!(
            answer.payloads.notify(NotifyType::TICKET_NACK).is_some(),
            "{case}"
        );
        assert_eq!(
            world.sides[B].engine.ike_sa_count(),
            0,
            "no state for a bad ticket"
        );
        world.settle();
        world.assert_up(1);
        assert_eq!(world.now, begun);
        assert!(world.has_event(A, EventKind::TicketRefused) && !world.has_event(B, EventKind::Resumed));
    }
}

#[test]
fn an_expired_ticket_is_not_shown_and_not_taken() {
    // RFC 5723 4.3.1: the client MUST NOT present it.
    let mut world = established(7);
    world.sides[A].around.unix_time = Some(NOW + 8 * 3600);
    crash(&mut world);
    assert_eq!(exchange(world.net.front().unwrap()), ExchangeType::IKE_SA_INIT);
    // And the gateway, whose clock has the last word, does not take it.
    let mut world = established(8);
    crash(&mut world);
    world.sides[B].around.unix_time = Some(NOW + 8 * 3600);
    world.step();
    let answer = Message::parse(&world.net.front().unwrap().bytes).unwrap();
    assert!(answer.payloads.notify(NotifyType::TICKET_NACK).is_some());
    assert!(world.event(B, EventKind::TicketRefused).text.contains("expired"));
}

#[test]
fn a_ticket_of_a_policy_that_is_gone_or_changed_is_refused() {
    type Change = fn(&mut Connection);
    let changes: [(&str, Change); 5] = [
        ("gone", |connection| connection.name = "u".into()),
        ("changed", |connection| {
            connection.psk = SecretBytes::new(b"another".to_vec())
        }),
        ("changed", |connection| {
            connection.remote_id = Some(ike::Identity::parse("c.example"))
        }),
        ("no longer allows", |connection| {
            connection.ike_proposals = ike("aes256-sha512-prfsha512-ecp256")
        }),
        ("not for these addresses", |connection| {
            connection.remotes = vec!["203.0.113.9".parse().unwrap()]
        }),
    ];
    for (word, change) in changes {
        let mut world = established(9);
        crash(&mut world);
        let mut connection = connection(B);
        change(&mut connection);
        let mut config = world.sides[B].engine.config().clone();
        config.connections = vec![connection];
        world.sides[B].engine.set_config(config);
        world.step();
        let answer = Message::parse(&world.net.front().unwrap().bytes).unwrap();
        assert!(
            answer.payloads.notify(NotifyType::TICKET_NACK).is_some(),
            "{word}"
        );
        let text = &world.event(B, EventKind::TicketRefused).text;
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn a_live_ike_sa_is_replaced_by_the_resumed_one_not_doubled() {
    let mut world = established(10);
    let (old_a, old_b) = (world.only(A), world.only(B));
    // A believes that B is gone, but B is not.
    let record = world.sides[A].journal[&old_a.spi].clone();
    world.lose_everything(A);
    world.sides[A].around.may_show = false;
    let (now, spi) = (world.now, old_a.spi);
    let s = &mut world.sides[A];
    s.engine.adopt(now, spi, &record).unwrap();
    s.journal.insert(spi, record);
    world.command(A, Command::Liveness { spi });
    for _ in 0..20 {
        world.net.clear();
        if let Some(at) = world.sides[A].engine.next_timeout() {
            world.now = world.now.max(at);
        }
        let s = &mut world.sides[A];
        // The Child SA was never installed here; only the IKE SA matters.
        s.engine
            .handle(ike::Input::Timeout { now: world.now }, &mut s.around);
        while s.engine.poll().is_some() {}
        if s.engine.ike_sa_count() == 0 {
            break;
        }
    }
    world.sides[A].journal.clear();
    world.net.clear();
    world.initiate(A);
    assert_eq!(
        exchange(world.net.front().unwrap()),
        ExchangeType::IKE_SESSION_RESUME
    );
    world.step();
    assert!(
        world.status(B).iter().any(|sa| sa.spi == old_b.spi),
        "nothing is proved yet"
    );
    world.settle();
    world.assert_up(1);
    let why = &world.event(B, EventKind::IkeSaDown).text;
    assert!(why.contains("resumed"), "not only by INITIAL_CONTACT: {why}");
    assert_ne!(world.only(B).spi, old_b.spi);
    let removed = format!("remove {}", old_b.children[0].spi_in);
    assert!(world.sides[B].changes.contains(&removed));
}

#[test]
fn a_stolen_ticket_is_worth_nothing_and_a_replayed_one_is_refused() {
    let mut world = established(11);
    crash(&mut world);
    let shown = world.net.front().unwrap().clone();
    world.settle();
    world.assert_up(1);
    let before = world.only(B);
    // The same octets from elsewhere, with other SPIs: the ticket is spent.
    let replay = |world: &mut World, spi: u8| {
        let mut packet = shown.clone();
        packet.bytes[7] ^= spi;
        world.deliver(packet);
        world
            .net
            .pop_front()
            .map(|packet| Message::parse(&packet.bytes).unwrap())
    };
    for spi in 1..20 {
        let answer = replay(&mut world, spi).expect("an answer");
        assert!(answer.payloads.notify(NotifyType::TICKET_NACK).is_some());
    }
    assert_eq!(world.sides[B].engine.ike_sa_count(), 1);
    // A member that takes over knows it too, from the record of the IKE SA.
    world.take_over(B);
    world.settle();
    let answer = replay(&mut world, 21).expect("an answer");
    assert!(answer.payloads.notify(NotifyType::TICKET_NACK).is_some());
    // One that lost everything again does not: it answers, but without the old SK_d nobody proves anything.
    world.lose_everything(B);
    world.sides[B]
        .engine
        .set_config(world.sides[B].engine.config().clone());
    let answer = replay(&mut world, 22).expect("an answer");
    assert!(answer.payloads.nonce().is_some());
    assert_eq!(world.status(B)[0].phase, "authenticating");
    let junk = ike_wire::Header {
        message_id: 1,
        exchange: ExchangeType::IKE_AUTH,
        ..answer.header
    };
    let flags = ike_wire::Flags {
        initiator: true,
        version: false,
        response: false,
    };
    let mut bytes = ike_wire::encode_sk_prefix(
        &ike_wire::Header { flags, ..junk },
        ike_wire::PayloadType::ID_I,
        80,
    )
    .unwrap();
    bytes.extend([0x5a; 80]);
    world.deliver(Packet {
        bytes,
        ..shown.clone()
    });
    assert!(world.net.is_empty());
    world.pass(Duration::from_secs(40));
    assert_eq!(world.sides[B].engine.ike_sa_count(), 0, "half-open IKE SAs end");
    assert_ne!(before.spi.0, 0);
}

#[test]
fn an_ike_sa_that_was_deleted_takes_its_ticket_along() {
    for who in [A, B] {
        let mut world = established(12);
        let spi = world.only(who).spi;
        world.command(who, Command::DeleteIke { spi });
        world.settle();
        world.net.clear();
        world.initiate(A);
        assert_eq!(
            exchange(world.net.front().unwrap()),
            ExchangeType::IKE_SA_INIT,
            "{who}"
        );
    }
}

#[test]
fn a_flood_of_tickets_is_bounded_and_meets_cookies() {
    let mut world = established(13);
    crash(&mut world);
    let mut config = world.sides[B].engine.config().clone();
    config.endpoint.cookie_threshold = 10;
    world.sides[B].engine.set_config(config);
    let packet = world.net.pop_front().unwrap();
    let before = world.sides[B].sent.len();
    for index in 0..1000u64 {
        let mut bytes = packet.bytes.clone();
        bytes[..8].copy_from_slice(&(index + 1).to_be_bytes());
        world.deliver(Packet {
            bytes,
            ..packet.clone()
        });
    }
    assert_eq!(world.sides[B].engine.ike_sa_count(), 10);
    let sent = &world.sides[B].sent[before..];
    assert!(
        sent.iter().all(|bytes| bytes.len() <= packet.bytes.len()),
        "nothing is amplified"
    );
    // Bad tickets: no state, a limited number of answers and events.
    let mut world = established(14);
    crash(&mut world);
    let packet = world.net.pop_front().unwrap();
    for index in 0..1000u64 {
        let mut bytes = packet.bytes.clone();
        let len = bytes.len();
        bytes[..8].copy_from_slice(&(index + 1).to_be_bytes());
        bytes[len - 70] ^= 0x80;
        world.deliver(Packet {
            bytes,
            ..packet.clone()
        });
    }
    assert_eq!((world.sides[B].engine.ike_sa_count(), world.net.len()), (0, 100));
    assert_eq!(count(&world, B, EventKind::TicketRefused), 100);
}

#[test]
fn a_forged_refusal_costs_a_handshake_and_a_forged_acceptance_only_time() {
    let mut world = established(15);
    crash(&mut world);
    let request = world.net.pop_front().unwrap();
    let header = Message::parse(&request.bytes).unwrap().header;
    let forged = |payloads: &[Payload]| {
        let flags = ike_wire::Flags {
            initiator: false,
            version: false,
            response: true,
        };
        let header = ike_wire::Header {
            flags,
            spi_r: model::IkeSpi(99),
            ..header
        };
        let bytes = encode_message(&header, payloads).unwrap();
        Packet {
            to: A,
            local: request.remote,
            remote: request.local,
            bytes,
        }
    };
    let nack = forged(&[Payload::Notify(Notify::status(NotifyType::TICKET_NACK))]);
    let elsewhere = Packet {
        remote: "203.0.113.1:500".parse().unwrap(),
        ..nack.clone()
    };
    world.deliver(elsewhere);
    assert!(world.net.is_empty(), "not from the peer's address");
    world.deliver(nack);
    assert_eq!(exchange(world.net.front().unwrap()), ExchangeType::IKE_SA_INIT);
    world.settle();
    world.assert_up(1);

    let mut world = established(16);
    crash(&mut world);
    let request = world.net.pop_front().unwrap();
    let header = Message::parse(&request.bytes).unwrap().header;
    let flags = ike_wire::Flags {
        initiator: false,
        version: false,
        response: true,
    };
    let header = ike_wire::Header {
        flags,
        spi_r: model::IkeSpi(99),
        ..header
    };
    let bytes = encode_message(&header, &[Payload::Nonce(vec![1; 32])]).unwrap();
    let (local, remote) = (request.remote, request.local);
    world.deliver(Packet {
        to: A,
        local,
        remote,
        bytes,
    });
    assert_eq!(exchange(world.net.front().unwrap()), ExchangeType::IKE_AUTH);
    // Keys with a nonce that nobody has: IKE_AUTH is not answered, A gives up and begins anew.
    world.pass(Duration::from_secs(60));
    world.initiate(A);
    world.settle();
    world.assert_up(1);
}

#[test]
fn a_ticket_is_renewed_before_it_expires_and_after_rekeys_by_the_gateway() {
    let mut world = world_with(17, |_, connection| connection.ike_rekey_time = None);
    world.initiate(A);
    world.settle();
    let messages = world.sides[A].sent.len();
    // Eight hours; the engine asks again after six.
    world.pass(Duration::from_secs(5 * 3600));
    assert_eq!(world.sides[A].sent.len(), messages);
    for side in &mut world.sides {
        side.around.unix_time = Some(NOW + 6 * 3600);
    }
    world.pass(Duration::from_secs(2 * 3600));
    assert_eq!(world.sides[A].sent.len(), messages + 1, "{}", world.story());
    for side in &mut world.sides {
        side.around.unix_time = Some(NOW + 9 * 3600);
    }
    let spi = world.only(B).spi;
    world.command(B, Command::RekeyIke { spi });
    world.pass(Duration::from_secs(1));
    crash(&mut world);
    assert_eq!(
        exchange(world.net.front().unwrap()),
        ExchangeType::IKE_SESSION_RESUME
    );
    world.settle();
    world.assert_up(1);
}

#[test]
fn without_clock_or_secret_or_will_nothing_changes() {
    for case in 0..4 {
        let mut world = world_with(18, |side, connection| connection.resumption = case != side);
        match case {
            2 => world.sides[A].around.unix_time = None,
            3 => {
                let mut config = world.sides[B].engine.config().clone();
                config.endpoint.ticket_secret = None;
                world.sides[B].engine.set_config(config);
            }
            _ => {}
        }
        world.initiate(A);
        world.settle();
        world.assert_up(1);
        crash(&mut world);
        assert_eq!(
            exchange(world.net.front().unwrap()),
            ExchangeType::IKE_SA_INIT,
            "{case}"
        );
        world.settle();
        world.assert_up(1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// Whatever stands in the place of a ticket: an answer no longer than the question, and no state.
    #[test]
    fn no_octets_but_a_ticket_make_an_ike_sa(
        ticket in proptest::collection::vec(any::<u8>(), 0..400),
        versioned in any::<bool>(),
    ) {
        let mut world = established(19);
        crash(&mut world);
        let request = world.net.pop_front().unwrap();
        let header = Message::parse(&request.bytes).unwrap().header;
        let mut ticket = ticket;
        if versioned {
            let period = NOW / 86400;
            ticket = [&[1, 0, 0, 0][..], &period.to_be_bytes(), &ticket].concat();
        }
        let payloads = [Payload::Nonce(vec![1; 32]), Payload::Notify(Notify::ticket_opaque(&ticket))];
        let bytes = encode_message(&header, &payloads).unwrap();
        let len = bytes.len();
        world.deliver(Packet { bytes, ..request });
        prop_assert_eq!(world.sides[B].engine.ike_sa_count(), 0);
        prop_assert!(world.net.iter().all(|answer| answer.bytes.len() <= len));
    }
}
