//! EAP-TLS within IKE_AUTH (RFC 5216, RFC 9190), with a peer that is written by hand and a TLS that says what it is told to say.

mod world;

use crypto::{AuthInput, Prf, psk_auth};
use ike::auth::certificate::KeyKind;
use ike::auth::trust::Trust;
use ike::{Connection, EventKind, RemoteAuth, TlsOutcome, TlsRequest};
use ike_wire::{
    AuthMethod, Authentication, Eap, EapCode, EapType, ExchangeType, Identification, Identity, Payload,
    PayloadList,
};
use model::SecretBytes;
use rcgen::SanType;
use std::sync::Arc;
use world::pki::{Ca, Leaf, key_pair};
use world::scripted::{Peer, esp, selectors};
use world::{B, config, connection};

const NAME: &str = "carol@example.org";
/// More than one fragment.
const FLIGHT: usize = 2500;

fn gateway() -> Connection {
    let mut connection = connection(B);
    connection.remote_id = None;
    connection.remote_auth =
        RemoteAuth::EapTls(Arc::new(Trust::new(&[Ca::root("CA").der], &[], false).unwrap()));
    connection
}

fn id() -> Identification {
    Identification::from(Identity::Ipv4([192, 0, 2, 1].into()))
}

fn msk() -> SecretBytes {
    SecretBytes::new(vec![7; 64])
}

fn certificate() -> Vec<u8> {
    let leaf = Leaf {
        alternative: vec![SanType::Rfc822Name(NAME.try_into().unwrap())],
        ..Leaf::named("carol")
    };
    Ca::root("CA").issue(&leaf, &key_pair(KeyKind::EcdsaP256))
}

/// A handshake of two messages of the peer. `ours`: the session was begun here.
fn tls(end: fn() -> TlsOutcome) -> world::Tls {
    let mut ours = false;
    Box::new(move |request: &TlsRequest| {
        assert_eq!(request.connection, "t");
        if request.first {
            ours = true;
            assert_eq!(request.octets, vec![1; 1500]);
            return TlsOutcome::Continue(vec![2; FLIGHT]);
        }
        match ours {
            true => end(),
            false => TlsOutcome::Failed {
                alert: Vec::new(),
                why: "no such session".to_owned(),
            },
        }
    })
}

fn complete() -> TlsOutcome {
    TlsOutcome::Done {
        octets: vec![4; 30],
        msk: msk(),
        certificates: vec![certificate()],
    }
}

fn begin(end: fn() -> TlsOutcome) -> (Peer, Eap) {
    let mut peer = Peer::with(config(vec![gateway()]), vec![]);
    peer.world.sides[B].tls = Some(tls(end));
    let mut payloads = vec![Payload::IdInitiator(id()), esp(0x1000, 20, Some(256))];
    payloads.extend(selectors());
    let answer = peer.request(ExchangeType::IKE_AUTH, &payloads).unwrap();
    let question = answer.eap().unwrap().clone();
    (peer, question)
}

fn say(peer: &mut Peer, to: &Eap, kind: EapType, data: Vec<u8>) -> PayloadList {
    let eap = Eap {
        code: EapCode::RESPONSE,
        identifier: to.identifier,
        body: Some((kind, data)),
    };
    peer.request(ExchangeType::IKE_AUTH, &[Payload::Eap(eap)])
        .unwrap()
}

fn next(peer: &mut Peer, to: &Eap, data: Vec<u8>) -> Eap {
    say(peer, to, EapType::TLS, data).eap().unwrap().clone()
}

fn data(eap: &Eap) -> &[u8] {
    let (kind, data) = eap.body.as_ref().unwrap();
    assert_eq!((eap.code, *kind), (EapCode::REQUEST, EapType::TLS));
    data
}

/// Until the gateway's first message is with the peer.
fn first_flight(peer: &mut Peer, question: &Eap) -> Eap {
    let answer = say(peer, question, EapType::IDENTITY, NAME.as_bytes().to_vec());
    let start = answer.eap().unwrap().clone();
    assert_eq!(data(&start), [0x20]);
    let mut hello = vec![0xc0, 0, 0, 5, 220];
    hello.extend([1; 1000]);
    let more = next(peer, &start, hello);
    assert_eq!(data(&more), [0], "an acknowledgement");
    let mut fragment = next(peer, &more, [&[0][..], &[1; 500]].concat());
    let mut flight = Vec::new();
    let mut head = 5;
    loop {
        let octets = data(&fragment);
        flight.extend_from_slice(&octets[head..]);
        head = 1;
        if octets[0] & 0x40 == 0 {
            break;
        }
        fragment = next(peer, &fragment, vec![0]);
    }
    assert_eq!(flight, vec![2; FLIGHT]);
    fragment
}

fn prove(peer: &mut Peer) -> PayloadList {
    let input = AuthInput {
        message: &peer.init.0,
        nonce: &peer.nonces.1,
        sk_p: &peer.keys.sk_pi,
        id_body: &id().body(),
        intermediate: &[],
    };
    let auth = Authentication {
        method: AuthMethod::SHARED_KEY_MIC,
        data: psk_auth(Prf::HmacSha256, &msk(), input),
    };
    peer.request(ExchangeType::IKE_AUTH, &[Payload::Authentication(auth)])
        .unwrap()
}

#[test]
fn a_peer_gets_in_with_the_key_of_tls_also_over_takeovers_outside_of_the_handshake() {
    for dying in [false, true] {
        let (mut peer, question) = begin(complete);
        if dying {
            peer.world.take_over(B);
        }
        let flight = first_flight(&mut peer, &question);
        let last = next(&mut peer, &flight, vec![0, 3, 3]);
        assert_eq!(data(&last), [&[0][..], &[4; 30]].concat());
        if dying {
            peer.world.take_over(B);
        }
        let success = next(&mut peer, &last, vec![0]);
        assert_eq!(success.code, EapCode::SUCCESS);
        let answer = prove(&mut peer);
        assert!(answer.sa().is_some(), "{answer:?}");
        let sa = peer.world.only(B);
        assert_eq!((sa.remote_id.as_deref(), sa.children.len()), (Some(NAME), 1));
    }
}

#[test]
fn a_takeover_within_the_handshake_ends_it_by_name() {
    let (mut peer, question) = begin(complete);
    let flight = first_flight(&mut peer, &question);
    peer.world.take_over(B);
    peer.world.sides[B].tls = Some(tls(complete));
    let failure = next(&mut peer, &flight, vec![0, 3, 3]);
    assert_eq!(failure.code, EapCode::FAILURE);
    let text = peer.world.event(B, EventKind::AuthFailed).to_string();
    assert!(text.contains(NAME) && text.contains("no such session"), "{text}");
}

#[test]
fn a_member_that_takes_over_before_tls_has_spoken_begins_that_step_anew() {
    let (mut peer, question) = begin(complete);
    peer.world.sides[B].tls = None;
    let answer = say(&mut peer, &question, EapType::IDENTITY, NAME.as_bytes().to_vec());
    let start = answer.eap().unwrap().clone();
    let eap = Eap {
        code: EapCode::RESPONSE,
        identifier: start.identifier,
        body: Some((EapType::TLS, [&[0][..], &[1; 1500]].concat())),
    };
    assert!(
        peer.request(ExchangeType::IKE_AUTH, &[Payload::Eap(eap.clone())])
            .is_none(),
        "TLS is asked"
    );
    peer.world.take_over(B);
    peer.world.sides[B].tls = Some(tls(complete));
    // The peer repeats its request.
    let answer = peer
        .request(ExchangeType::IKE_AUTH, &[Payload::Eap(eap)])
        .unwrap();
    assert_eq!(data(answer.eap().unwrap())[0], 0xc0);
}

#[test]
fn whoever_is_not_believed_is_told_by_an_alert_and_the_log_says_why() {
    let refuse = || TlsOutcome::Failed {
        alert: vec![21; 7],
        why: "an unknown authority".to_owned(),
    };
    let (mut peer, question) = begin(refuse);
    let flight = first_flight(&mut peer, &question);
    let alert = next(&mut peer, &flight, vec![0, 3]);
    assert_eq!(data(&alert), [&[0][..], &[21; 7]].concat());
    let text = peer.world.event(B, EventKind::AuthFailed).to_string();
    assert!(
        text.contains(NAME) && text.contains("unknown authority"),
        "{text}"
    );
    let failure = next(&mut peer, &alert, vec![0]);
    assert_eq!(failure.code, EapCode::FAILURE);
    let events = &peer.world.sides[B].events;
    let failed = events.iter().filter(|event| event.kind == EventKind::AuthFailed);
    assert_eq!(failed.count(), 1);
}

#[test]
fn a_certificate_of_somebody_else_and_another_method_are_refused() {
    let (mut peer, question) = begin(complete);
    let answer = say(
        &mut peer,
        &question,
        EapType::IDENTITY,
        b"dave@example.org".to_vec(),
    );
    let start = answer.eap().unwrap().clone();
    let mut fragment = next(&mut peer, &start, [&[0][..], &[1; 1500]].concat());
    while data(&fragment)[0] & 0x40 != 0 {
        fragment = next(&mut peer, &fragment, vec![0]);
    }
    let failure = next(&mut peer, &fragment, vec![0, 3]);
    assert_eq!(failure.code, EapCode::FAILURE);
    let text = peer.world.event(B, EventKind::AuthFailed).to_string();
    assert!(text.contains(NAME) && text.contains("dave@example.org"), "{text}");

    let (mut peer, question) = begin(complete);
    let answer = say(&mut peer, &question, EapType::IDENTITY, NAME.as_bytes().to_vec());
    let start = answer.eap().unwrap().clone();
    let answer = say(&mut peer, &start, EapType::NAK, vec![26]);
    assert_eq!(answer.eap().unwrap().code, EapCode::FAILURE);
    let text = peer.world.event(B, EventKind::AuthFailed).to_string();
    assert!(text.contains("EAP-TLS"), "{text}");
}
