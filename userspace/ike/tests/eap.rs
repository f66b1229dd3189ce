//! EAP-MSCHAPv2 within IKE_AUTH (RFC 7296 2.16), with a peer that is written by hand.

mod world;

use crypto::mschapv2::{Exchange, nt_response, verify};
use crypto::{AuthInput, Prf, psk_auth};
use ike::auth::eap::Users;
use ike::{Connection, EventKind, RemoteAuth};
use ike_wire::{
    AuthMethod, Authentication, Eap, EapCode, EapType, ExchangeType, Identification, Identity, NotifyType,
    Payload, PayloadList,
};
use model::SecretBytes;
use std::sync::Arc;
use std::time::Duration;
use world::scripted::{Peer, esp, selectors};
use world::{B, config, connection};

fn gateway() -> Connection {
    let mut connection = connection(B);
    connection.remote_id = None;
    let password = |text: &str| SecretBytes::new(text.as_bytes().to_vec());
    let users = [("alice".to_owned(), password("in wonderland"))];
    connection.remote_auth = RemoteAuth::EapMsChapV2(Arc::new(Users::new(users.into())));
    connection
}

fn id() -> Identification {
    // What a phone says: nothing of interest.
    Identification::from(Identity::Ipv4([192, 0, 2, 1].into()))
}

/// HDR, SK {IDi, SAi2, TSi, TSr} without AUTH; gives the EAP identity request's identifier.
fn begin(peer: &mut Peer) -> u8 {
    let mut payloads = vec![Payload::IdInitiator(id()), esp(0x1000, 20, Some(256))];
    payloads.extend(selectors());
    let answer = peer.request(ExchangeType::IKE_AUTH, &payloads).unwrap();
    // HDR, SK {IDr, AUTH, EAP}
    peer.check_responder_auth(&answer);
    assert!(answer.sa().is_none());
    let eap = answer.eap().expect("EAP");
    assert_eq!(
        (eap.code, eap.body.as_ref().unwrap().0),
        (EapCode::REQUEST, EapType::IDENTITY)
    );
    eap.identifier
}

fn say(peer: &mut Peer, identifier: u8, kind: EapType, data: Vec<u8>) -> PayloadList {
    let eap = Eap {
        code: EapCode::RESPONSE,
        identifier,
        body: Some((kind, data)),
    };
    peer.request(ExchangeType::IKE_AUTH, &[Payload::Eap(eap)])
        .unwrap()
}

/// The response to a challenge.
fn response(challenge: &Eap, user: &str, password: &str) -> Vec<u8> {
    let data = &challenge.body.as_ref().unwrap().1;
    assert_eq!((data[0], data[4]), (1, 16));
    let authenticator: &[u8; 16] = data[5..21].try_into().unwrap();
    let peer = [9; 16];
    let exchange = Exchange {
        authenticator,
        peer: &peer,
        user,
        password,
    };
    let proof = nt_response(exchange);
    let value = [&peer[..], &[0; 8], &proof, &[0]].concat();
    let rest = [&[49][..], &value, user.as_bytes()].concat();
    [&[2, data[1]][..], &(4 + rest.len() as u16).to_be_bytes(), &rest].concat()
}

fn msk(challenge: &Eap, user: &str, password: &str) -> SecretBytes {
    let data = &challenge.body.as_ref().unwrap().1;
    let exchange = Exchange {
        authenticator: data[5..21].try_into().unwrap(),
        peer: &[9; 16],
        user,
        password,
    };
    verify(exchange, &nt_response(exchange)).unwrap().msk
}

fn auth(peer: &Peer, key: &SecretBytes) -> Payload {
    let input = AuthInput {
        message: &peer.init.0,
        nonce: &peer.nonces.1,
        sk_p: &peer.keys.sk_pi,
        id_body: &id().body(),
        intermediate: &[],
    };
    Payload::Authentication(Authentication {
        method: AuthMethod::SHARED_KEY_MIC,
        data: psk_auth(Prf::HmacSha256, key, input),
    })
}

#[test]
fn a_user_gets_in_with_a_takeover_behind_every_round() {
    for dying in [false, true] {
        let mut peer = Peer::with(config(vec![gateway()]), vec![]);
        let takeover = |peer: &mut Peer| {
            if dying {
                peer.world.take_over(B);
            }
        };
        let identifier = begin(&mut peer);
        takeover(&mut peer);
        let answer = say(&mut peer, identifier, EapType::IDENTITY, b"alice".to_vec());
        let challenge = answer.eap().unwrap().clone();
        takeover(&mut peer);
        let data = response(&challenge, "alice", "in wonderland");
        let answer = say(&mut peer, challenge.identifier, EapType::MSCHAPV2, data);
        let confirmed = answer.eap().unwrap().clone();
        let text = String::from_utf8_lossy(&confirmed.body.as_ref().unwrap().1).into_owned();
        assert!(
            text.contains("S="),
            "the gateway proves that it knows the password: {text}"
        );
        takeover(&mut peer);
        let answer = say(&mut peer, confirmed.identifier, EapType::MSCHAPV2, vec![3]);
        assert_eq!(answer.eap().unwrap().code, EapCode::SUCCESS);
        takeover(&mut peer);
        let key = msk(&challenge, "alice", "in wonderland");
        let proof = auth(&peer, &key);
        let answer = peer.request(ExchangeType::IKE_AUTH, &[proof]).unwrap();
        // HDR, SK {AUTH, SAr2, TSi, TSr}
        assert!(answer.sa().is_some() && answer.id_r().is_none(), "{answer:?}");
        let sa = peer.world.only(B);
        assert_eq!((sa.remote_id.as_deref(), sa.children.len()), (Some("alice"), 1));
    }
}

#[test]
fn a_wrong_password_and_an_unknown_user_look_alike_to_the_peer_and_not_in_the_log() {
    let mut told = Vec::new();
    for (user, word) in [("alice", "another password"), ("bob", "no user bob")] {
        let mut peer = Peer::with(config(vec![gateway()]), vec![]);
        let identifier = begin(&mut peer);
        let answer = say(&mut peer, identifier, EapType::IDENTITY, user.as_bytes().to_vec());
        let challenge = answer.eap().unwrap().clone();
        let data = response(&challenge, user, "a guess");
        let answer = say(&mut peer, challenge.identifier, EapType::MSCHAPV2, data);
        let refusal = answer.eap().unwrap().clone();
        let text = String::from_utf8_lossy(&refusal.body.as_ref().unwrap().1).into_owned();
        assert!(text.contains("E=691 R=0"), "{text}");
        told.push(text.len());
        assert!(
            peer.world.has_event(B, EventKind::AuthFailed),
            "said at once: the peer may go away"
        );
        let answer = say(&mut peer, refusal.identifier, EapType::MSCHAPV2, vec![4]);
        assert_eq!(answer.eap().unwrap().code, EapCode::FAILURE);
        assert!(peer.world.status(B).is_empty() && peer.world.sides[B].children.is_empty());
        let text = peer.world.event(B, EventKind::AuthFailed).to_string();
        assert!(text.contains(word) && text.contains("connection t"), "{text}");
    }
    assert_eq!(told[0], told[1]);
}

#[test]
fn success_of_eap_is_nothing_without_the_key_that_came_of_it() {
    let mut peer = Peer::with(config(vec![gateway()]), vec![]);
    let identifier = begin(&mut peer);
    let answer = say(&mut peer, identifier, EapType::IDENTITY, b"alice".to_vec());
    let challenge = answer.eap().unwrap().clone();
    let data = response(&challenge, "alice", "in wonderland");
    let answer = say(&mut peer, challenge.identifier, EapType::MSCHAPV2, data);
    let confirmed = answer.eap().unwrap().identifier;
    say(&mut peer, confirmed, EapType::MSCHAPV2, vec![3]);
    let proof = auth(&peer, &SecretBytes::new(vec![0; 64]));
    let answer = peer.request(ExchangeType::IKE_AUTH, &[proof]).unwrap();
    assert!(answer.notify(NotifyType::AUTHENTICATION_FAILED).is_some());
    assert!(peer.world.status(B).is_empty());
}

#[test]
fn whoever_breaks_the_conversation_off_is_refused_by_name() {
    // Another user's name in the response.
    let mut peer = Peer::with(config(vec![gateway()]), vec![]);
    let identifier = begin(&mut peer);
    let answer = say(&mut peer, identifier, EapType::IDENTITY, b"root".to_vec());
    let challenge = answer.eap().unwrap().clone();
    let data = response(&challenge, "alice", "in wonderland");
    let answer = say(&mut peer, challenge.identifier, EapType::MSCHAPV2, data);
    let text = String::from_utf8_lossy(&answer.eap().unwrap().body.as_ref().unwrap().1).into_owned();
    assert!(text.contains("E=691"), "{text}");
    // Another method.
    let mut peer = Peer::with(config(vec![gateway()]), vec![]);
    let identifier = begin(&mut peer);
    let answer = say(&mut peer, identifier, EapType::IDENTITY, b"alice".to_vec());
    let asked = answer.eap().unwrap().identifier;
    let answer = say(&mut peer, asked, EapType::NAK, vec![13]);
    assert_eq!(answer.eap().unwrap().code, EapCode::FAILURE);
    let text = peer.world.event(B, EventKind::AuthFailed).to_string();
    assert!(text.contains("TLS"), "{text}");
    // An answer to nothing.
    let mut peer = Peer::with(config(vec![gateway()]), vec![]);
    let identifier = begin(&mut peer);
    let answer = say(
        &mut peer,
        identifier.wrapping_add(7),
        EapType::IDENTITY,
        b"alice".to_vec(),
    );
    assert!(answer.notify(NotifyType::AUTHENTICATION_FAILED).is_some());
    // Octets cut off at every length.
    let mut peer = Peer::with(config(vec![gateway()]), vec![]);
    let identifier = begin(&mut peer);
    let answer = say(&mut peer, identifier, EapType::IDENTITY, b"alice".to_vec());
    let challenge = answer.eap().unwrap().clone();
    let whole = response(&challenge, "alice", "in wonderland");
    let answer = say(
        &mut peer,
        challenge.identifier,
        EapType::MSCHAPV2,
        whole[..30].to_vec(),
    );
    assert!(String::from_utf8_lossy(&answer.eap().unwrap().body.as_ref().unwrap().1).contains("E=691"));
    // Silence.
    let mut peer = Peer::with(config(vec![gateway()]), vec![]);
    begin(&mut peer);
    peer.world.pass(Duration::from_secs(31));
    assert!(peer.world.status(B).is_empty() && peer.world.sides[B].journal.is_empty());
}

#[test]
fn without_eap_in_the_configuration_it_is_refused_with_what_is_wanted() {
    let mut peer = Peer::with(config(vec![connection(B)]), vec![]);
    let mut named = vec![Payload::IdInitiator(Identification::from(Identity::Fqdn(
        "a.example".into(),
    )))];
    named.push(esp(0x1000, 20, Some(256)));
    named.extend(selectors());
    let answer = peer.request(ExchangeType::IKE_AUTH, &named).unwrap();
    assert!(answer.notify(NotifyType::AUTHENTICATION_FAILED).is_some());
    let text = peer.world.event(B, EventKind::AuthFailed).to_string();
    assert!(text.contains("by EAP") && text.contains("wants psk"), "{text}");
}
