//! A peer that is written from the RFC, not from the engine, and sends what a well-behaved one never would.

mod world;

use ike::{Command, EventKind, Input, Output};
use ike_wire::{
    AuthMethod, Delete, ExchangeType, Message, Notify, NotifyType, Payload, PayloadType, ProtocolId,
};
use model::EspSpi;
use world::scripted::*;
use world::{A, B, World, config, connection, net};

#[test]
fn the_engine_agrees_with_a_peer_written_from_the_rfc() {
    let mut peer = Peer::established();
    assert_eq!(peer.world.only(B).children.len(), 1);
    assert!(
        peer.request(ExchangeType::INFORMATIONAL, &[]).unwrap().is_empty(),
        "liveness check"
    );
    let delete = [Payload::Delete(Delete::Esp(vec![EspSpi(0x1000), EspSpi(0x9999)]))];
    let answer = peer.request(ExchangeType::INFORMATIONAL, &delete).unwrap();
    assert!(matches!(answer.deletes().next(), Some(Delete::Esp(spis)) if spis.len() == 1));
    let answer = peer
        .request(ExchangeType::INFORMATIONAL, &[Payload::Delete(Delete::Ike)])
        .unwrap();
    assert!(answer.is_empty());
    assert!(peer.world.status(B).is_empty() && peer.world.sides[B].children.is_empty());
}

#[test]
fn unknown_notifications_and_uncritical_payloads_are_ignored() {
    let mut peer = Peer::new(vec![Payload::Notify(Notify::status(NotifyType(60_000)))]);
    let mut payloads = peer.auth(b"a secret that both know");
    payloads.push(Payload::Notify(Notify::status(NotifyType(61_000))));
    payloads.push(Payload::VendorId(b"whoever".to_vec()));
    assert!(
        peer.request(ExchangeType::IKE_AUTH, &payloads)
            .unwrap()
            .auth()
            .is_some(),
        "childless IKE_AUTH"
    );
    // Payload type 200, not critical, 4 octets of body.
    let answer = peer.request_raw(
        ExchangeType::INFORMATIONAL,
        PayloadType(200),
        &[0, 0, 0, 8, 1, 2, 3, 4],
    );
    assert!(answer.unwrap().is_empty());
    assert_eq!(peer.world.only(B).phase, "established");
}

#[test]
fn a_critical_payload_that_is_unknown_is_refused_by_name_and_the_ike_sa_stays() {
    let mut peer = Peer::established();
    let answer = peer.request_raw(
        ExchangeType::INFORMATIONAL,
        PayloadType(200),
        &[0, 0x80, 0, 8, 1, 2, 3, 4],
    );
    let answer = answer.unwrap();
    let refused = answer
        .notify(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD)
        .expect("refusal");
    assert_eq!(refused.as_unsupported_critical(), Some(PayloadType(200)));
    assert_eq!(peer.world.only(B).phase, "established");
    assert!(peer.request(ExchangeType::INFORMATIONAL, &[]).is_some());
}

#[test]
fn an_authentic_message_that_is_malformed_ends_the_ike_sa() {
    let mut peer = Peer::established();
    let answer = peer
        .request_raw(
            ExchangeType::INFORMATIONAL,
            PayloadType::DELETE,
            &[0, 0, 0, 99, 1],
        )
        .unwrap();
    assert!(answer.notify(NotifyType::INVALID_SYNTAX).is_some());
    assert!(peer.world.status(B).is_empty() && peer.world.sides[B].children.is_empty());
    assert!(peer.has_event(EventKind::PeerMisbehaved));
    // It repeats that answer, and says no more.
    assert!(peer.request(ExchangeType::INFORMATIONAL, &[]).is_none());
}

#[test]
fn requests_outside_the_window_are_not_answered() {
    let mut peer = Peer::established();
    for id in [peer.next + 1, peer.next + 100, 0, u32::MAX] {
        let bytes = peer.seal(ExchangeType::INFORMATIONAL, id, PayloadType::NONE, &[]);
        assert_eq!(exchange(&mut peer.world, local(), &bytes), None, "{id}");
    }
    assert!(peer.request(ExchangeType::INFORMATIONAL, &[]).is_some());
}

#[test]
fn implicit_iv_and_foreign_ciphers_are_refused_for_esp() {
    let mut peer = Peer::established();
    // AES-GCM with implicit IV (30), ChaCha20-Poly1305 with implicit IV (31), 3DES (3).
    for (cipher, bits) in [(30, Some(256)), (31, None), (3, None)] {
        let mut payloads = vec![esp(0x2000, cipher, bits), Payload::Nonce(vec![1; 32])];
        payloads.extend(selectors());
        let answer = peer.request(ExchangeType::CREATE_CHILD_SA, &payloads).unwrap();
        assert!(
            answer.notify(NotifyType::NO_PROPOSAL_CHOSEN).is_some(),
            "{cipher}"
        );
    }
    assert_eq!(peer.world.only(B).children.len(), 1);
}

#[test]
fn requests_that_lack_something_are_refused_and_cost_no_spi() {
    let mut peer = Peer::established();
    let nonce = || Payload::Nonce(vec![1; 32]);
    let [ts_i, ts_r] = selectors();
    let sa = || esp(0x2000, 20, Some(256));
    let rows: Vec<(Vec<Payload>, NotifyType)> = vec![
        (vec![], NotifyType::INVALID_SYNTAX),
        (vec![sa()], NotifyType::INVALID_SYNTAX),
    ];
    for (payloads, expected) in rows {
        let mut fresh = Peer::established();
        let answer = fresh.request(ExchangeType::CREATE_CHILD_SA, &payloads).unwrap();
        assert!(answer.notify(expected).is_some());
    }
    let reserved_spi = vec![esp(77, 20, Some(256)), nonce(), ts_i.clone(), ts_r.clone()];
    let answer = peer
        .request(ExchangeType::CREATE_CHILD_SA, &reserved_spi)
        .unwrap();
    assert!(answer.notify(NotifyType::NO_PROPOSAL_CHOSEN).is_some());
    let swapped = vec![
        sa(),
        nonce(),
        Payload::TsInitiator(vec![net([10, 2, 0])].into()),
        Payload::TsResponder(vec![net([10, 1, 0])].into()),
    ];
    let answer = peer.request(ExchangeType::CREATE_CHILD_SA, &swapped).unwrap();
    assert!(answer.notify(NotifyType::TS_UNACCEPTABLE).is_some());
    let rekey_of_nothing = vec![
        Payload::Notify(Notify::about_esp(NotifyType::REKEY_SA, EspSpi(0x4242))),
        sa(),
        nonce(),
        ts_i,
        ts_r,
    ];
    let answer = peer
        .request(ExchangeType::CREATE_CHILD_SA, &rekey_of_nothing)
        .unwrap();
    let lost = answer
        .notify(NotifyType::CHILD_SA_NOT_FOUND)
        .expect("CHILD_SA_NOT_FOUND");
    assert_eq!(lost.esp_spi(), Some(EspSpi(0x4242)));
    assert_eq!(
        peer.world.sides[B].around.allocated.len(),
        1,
        "one SPI for the one Child SA"
    );
}

#[test]
fn a_peer_cannot_take_all_child_sas() {
    let mut peer = Peer::established();
    let mut refused = false;
    for index in 0..300 {
        let mut payloads = vec![esp(0x2000 + index, 20, Some(256)), Payload::Nonce(vec![1; 32])];
        payloads.extend(selectors());
        let answer = peer.request(ExchangeType::CREATE_CHILD_SA, &payloads).unwrap();
        refused |= answer.notify(NotifyType::NO_ADDITIONAL_SAS).is_some();
    }
    assert!(refused && peer.world.only(B).children.len() == 256);
}

#[test]
fn wrong_proofs_and_other_methods_are_refused_alike() {
    let mut peer = Peer::new(vec![]);
    let payloads = peer.auth(b"guess");
    let answer = peer.request(ExchangeType::IKE_AUTH, &payloads).unwrap();
    assert!(answer.notify(NotifyType::AUTHENTICATION_FAILED).is_some() && answer.len() == 1);

    let mut peer = Peer::new(vec![]);
    let mut payloads = peer.auth(b"a secret that both know");
    if let Some(Payload::Authentication(auth)) = payloads.last_mut() {
        auth.method = AuthMethod::DIGITAL_SIGNATURE;
    }
    let answer = peer.request(ExchangeType::IKE_AUTH, &payloads).unwrap();
    assert!(answer.notify(NotifyType::AUTHENTICATION_FAILED).is_some() && answer.len() == 1);
    assert!(peer.has_event(EventKind::AuthFailed) && peer.world.status(B).is_empty());
}

#[test]
fn before_authentication_nothing_but_ike_auth_is_served() {
    let mut peer = Peer::new(vec![]);
    for kind in [
        ExchangeType::CREATE_CHILD_SA,
        ExchangeType::INFORMATIONAL,
        ExchangeType(99),
    ] {
        assert!(peer.request(kind, &[]).is_none());
    }
    let payloads = peer.auth(b"a secret that both know");
    assert!(
        peer.request(ExchangeType::IKE_AUTH, &payloads)
            .unwrap()
            .auth()
            .is_some()
    );
}

#[test]
fn another_major_version_is_answered_in_clear() {
    let mut world = World::new(1);
    world.initiate(A);
    let mut packet = world.net.pop_front().unwrap();
    packet.bytes[17] = 0x30;
    let s = &mut world.sides[B];
    let input = Input::Datagram {
        now: world.now,
        local: packet.local,
        remote: packet.remote,
        bytes: &packet.bytes,
    };
    s.engine.handle(input, &mut s.around);
    let Some(Output::Transmit(answer)) = s.engine.poll() else {
        panic!("no answer")
    };
    let message = Message::parse(&answer.bytes).unwrap();
    assert!(
        message
            .payloads
            .notify(NotifyType::INVALID_MAJOR_VERSION)
            .is_some()
    );
    assert!(answer.ike_spi.is_none() && s.engine.ike_sa_count() == 0);
}

#[test]
fn a_child_that_the_peer_lost_is_made_anew() {
    let mut peer = Peer::established();
    let spi_in = peer.world.spi_in(B);
    peer.world.command(B, Command::RekeyChild { spi_in });
    // <--- SK {N(REKEY_SA), SA, Ni, TSi, TSr}
    let (header, request) = peer.expect_request();
    assert_eq!(
        request.notify(NotifyType::REKEY_SA).and_then(Notify::esp_spi),
        Some(spi_in)
    );
    // ---> SK {N(CHILD_SA_NOT_FOUND)}
    peer.respond(
        header,
        &[Payload::Notify(Notify::about_esp(
            NotifyType::CHILD_SA_NOT_FOUND,
            spi_in,
        ))],
    );
    assert!(peer.world.sides[B].children.is_empty());
    // <--- SK {SA, Ni, TSi, TSr}
    let (_, request) = peer.expect_request();
    assert!(request.sa().is_some() && request.notify(NotifyType::REKEY_SA).is_none());
}

#[test]
fn a_peer_that_is_busy_is_asked_again_later_but_not_for_ever() {
    let mut peer = Peer::established();
    let spi_in = peer.world.spi_in(B);
    peer.world.command(B, Command::RekeyChild { spi_in });
    let mut asked = 0;
    while !peer.world.net.is_empty() {
        asked += 1;
        let (header, request) = peer.expect_request();
        assert!(request.notify(NotifyType::REKEY_SA).is_some());
        peer.respond(
            header,
            &[Payload::Notify(Notify::status(NotifyType::TEMPORARY_FAILURE))],
        );
        assert!(peer.world.net.is_empty(), "not at once");
        if let Some(at) = peer.world.sides[B].engine.next_timeout() {
            peer.world.now = at;
            peer.world.timeout();
        }
    }
    assert_eq!(asked, 9);
    assert_eq!(
        peer.world.sides[B].around.allocated.len(),
        1,
        "SPIs of refused offers are given back"
    );
    assert_eq!(peer.world.only(B).children[0].phase, "installed");
}

#[test]
fn an_answer_beyond_the_offer_is_not_installed_and_taken_back() {
    let mut peer = Peer::established();
    let child = "c".to_owned();
    let spi_in = peer.world.spi_in(B);
    peer.world.command(B, Command::DeleteChild { spi_in });
    let (header, _) = peer.expect_request();
    peer.respond(header, &[Payload::Delete(Delete::Esp(vec![EspSpi(0x1000)]))]);
    peer.world.command(
        B,
        Command::CreateChild {
            connection: "t".into(),
            child,
        },
    );
    let (header, _) = peer.expect_request();
    // Wider selectors than the engine asked for.
    let wide = model::TrafficSelector {
        last: [10, 255, 255, 255].into(),
        ..net([10, 0, 0])
    };
    let payloads = [
        esp(0x3000, 20, Some(256)),
        Payload::Nonce(vec![8; 32]),
        Payload::TsInitiator(vec![wide.clone()].into()),
        Payload::TsResponder(vec![wide].into()),
    ];
    peer.respond(header, &payloads);
    assert!(peer.world.sides[B].children.is_empty() && peer.has_event(EventKind::PeerMisbehaved));
    let (_, request) = peer.expect_request();
    assert!(
        request.deletes().next().is_some(),
        "what the peer installed has to go again"
    );
}

/// A request for a Child SA like the first one, for a resource of the peer's.
fn further(spi: u32, cipher: u16, bits: Option<u16>, selectors: [Payload; 2], data: Vec<u8>) -> Vec<Payload> {
    let mut payloads = vec![esp(spi, cipher, bits), Payload::Nonce(vec![9; 32])];
    payloads.extend(selectors);
    payloads.push(Payload::Notify(Notify::new(NotifyType::SA_RESOURCE_INFO, data)));
    payloads
}

/// An established IKE SA with an engine that has two CPUs to offer.
fn with_resources() -> Peer {
    let mut peer = Peer::established();
    let mut connection = connection(B);
    connection.resources = (0..2)
        .map(|cpu| ike::Resource {
            member: model::MemberId(1),
            cpu,
        })
        .collect();
    peer.world.sides[B].engine.set_config(config(vec![connection]));
    peer
}

#[test]
fn further_child_sas_get_identifiers_of_their_own_until_there_are_twice_as_many_as_cpus() {
    let mut peer = with_resources();
    let mut identifiers = std::collections::BTreeMap::new();
    for index in 0..4 {
        // What the peer calls its resource is its own affair, however long.
        let data = vec![index as u8; index as usize * 100];
        let request = further(0x2000 + index, 20, Some(256), selectors(), data);
        let answer = peer.request(ExchangeType::CREATE_CHILD_SA, &request).unwrap();
        assert!(answer.error().is_none(), "{answer:?}");
        let info = answer
            .notify(NotifyType::SA_RESOURCE_INFO)
            .expect("SA_RESOURCE_INFO");
        assert_eq!(
            (info.protocol, info.spi.len(), info.data.len()),
            (ProtocolId::NONE, 0, 8)
        );
        *identifiers.entry(info.data.clone()).or_insert(0) += 1;
    }
    assert_eq!(
        identifiers.into_values().collect::<Vec<_>>(),
        [2, 2],
        "spread over both CPUs"
    );
    let request = further(0x3000, 20, Some(256), selectors(), vec![]);
    let answer = peer.request(ExchangeType::CREATE_CHILD_SA, &request).unwrap();
    let refusal = answer.error().expect("refusal");
    assert_eq!((refusal.kind, refusal.data.len()), (NotifyType::TS_MAX_QUEUE, 0));
    assert_eq!(peer.world.only(B).children.len(), 5);
}

#[test]
fn a_further_child_sa_with_other_properties_than_the_first_is_refused() {
    let mut peer = with_resources();
    let other = [
        Payload::TsInitiator(vec![net([10, 1, 0])].into()),
        Payload::TsResponder(
            vec![model::TrafficSelector {
                last: [10, 2, 0, 9].into(),
                ..net([10, 2, 0])
            }]
            .into(),
        ),
    ];
    let rows = [
        (
            further(0x2000, 20, Some(256), other, vec![]),
            NotifyType::TS_UNACCEPTABLE,
        ),
        (
            further(0x2000, 28, None, selectors(), vec![]),
            NotifyType::NO_PROPOSAL_CHOSEN,
        ),
    ];
    for (request, expected) in rows {
        let answer = peer.request(ExchangeType::CREATE_CHILD_SA, &request).unwrap();
        assert_eq!(
            answer.error().map(|error| error.kind),
            Some(expected),
            "{answer:?}"
        );
        assert_eq!(peer.world.only(B).children.len(), 1);
    }
    let spis = peer.world.sides[B].around.allocated.len();
    assert_eq!(spis, 1, "a refusal leaks no SPI");
}
