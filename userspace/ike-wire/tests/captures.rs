//! Whole conversations of strongSwan: every payload parses to what charon says it sent, and encodes to the same octets.

use ike_wire::*;
use model::IkeSpi;
use std::net::IpAddr;

const CAPTURES: [(&str, &str); 3] = [
    ("gcm", include_str!("captures/gcm.txt")),
    ("chapoly", include_str!("captures/chapoly.txt")),
    ("cbc", include_str!("captures/cbc.txt")),
];

struct Recorded {
    message: Vec<u8>,
    payloads: String,
    inner: Option<Vec<u8>>,
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |octet: u8| char::from(octet).to_digit(16).expect("hexadecimal digit") as u8;
    text.as_bytes()
        .chunks(2)
        .map(|pair| digit(pair[0]) * 16 + digit(pair[1]))
        .collect()
}

fn recorded(text: &str) -> Vec<Recorded> {
    let mut messages: Vec<Recorded> = Vec::new();
    for (name, value) in text.lines().filter_map(|line| line.split_once(" = ")) {
        match name {
            "message" => messages.push(Recorded {
                message: hex(value),
                payloads: String::new(),
                inner: None,
            }),
            "payloads" => messages.last_mut().unwrap().payloads = value.to_owned(),
            "inner" => messages.last_mut().unwrap().inner = Some(hex(value)),
            _ => {}
        }
    }
    assert_eq!(messages.len(), 14);
    messages
}

/// As charon's log abbreviates payloads.
fn abbreviation(payload: &Payload) -> &'static str {
    match payload.kind() {
        PayloadType::SA => "SA",
        PayloadType::KE => "KE",
        PayloadType::ID_I => "IDi",
        PayloadType::ID_R => "IDr",
        PayloadType::AUTH => "AUTH",
        PayloadType::NONCE => "No",
        PayloadType::NOTIFY => "N",
        PayloadType::DELETE => "D",
        PayloadType::TS_I => "TSi",
        PayloadType::TS_R => "TSr",
        other => panic!("{other} was not recorded"),
    }
}

#[test]
fn every_recorded_message_parses_and_encodes_to_the_same_octets() {
    for (name, text) in CAPTURES {
        for (index, recorded) in recorded(text).iter().enumerate() {
            let at = format!("{name}, message {index}");
            let message = Message::parse(&recorded.message).expect(&at);
            let (payloads, encoded) = match &recorded.inner {
                None => {
                    assert_eq!(message.protected, None, "{at}");
                    let encoded = encode_message(&message.header, &message.payloads).unwrap();
                    (message.payloads, encoded)
                }
                Some(inner) => {
                    let protected = message.protected.expect(&at);
                    assert!(message.payloads.is_empty(), "{at}");
                    let payloads = parse_chain(protected.first, inner).expect(&at);
                    let (first, chain) = encode_chain(&payloads).unwrap();
                    assert_eq!((first, &chain), (protected.first, inner), "{at}");
                    let sealed = protected.sealed(&recorded.message);
                    let mut encoded = encode_sk_prefix(&message.header, first, sealed.len()).unwrap();
                    assert_eq!(encoded, protected.prefix(&recorded.message), "{at}");
                    encoded.extend_from_slice(sealed);
                    (payloads, encoded)
                }
            };
            assert_eq!(encoded, recorded.message, "{at}");
            let names: Vec<_> = payloads.iter().map(abbreviation).collect();
            assert_eq!(names.join(" "), recorded.payloads, "{at}");
        }
    }
}

#[test]
fn every_truncation_of_a_recorded_message_is_an_error() {
    for (name, text) in CAPTURES {
        for (index, recorded) in recorded(text).iter().enumerate() {
            for len in 0..recorded.message.len() {
                assert!(
                    Message::parse(&recorded.message[..len]).is_err(),
                    "{name}, message {index}, {len} octets"
                );
            }
            let Some(inner) = &recorded.inner else { continue };
            let first = Message::parse(&recorded.message)
                .unwrap()
                .protected
                .unwrap()
                .first;
            for len in 0..inner.len() {
                assert!(
                    parse_chain(first, &inner[..len]).is_err(),
                    "{name}, message {index}, inner {len} octets"
                );
            }
        }
    }
}

#[test]
fn the_handshake_means_what_was_configured() {
    // initiator a.example, 10.1.0.0/24   ->   responder b@example.org, 10.2.0.0/24 and 10.2.1.0/24
    let messages = recorded(CAPTURES[0].1);

    // IKE_SA_INIT request: HDR, SAi1, KEi, Ni, N(NAT_DETECTION_*), ...
    let init = Message::parse(&messages[0].message).unwrap();
    assert_eq!(init.header.exchange, ExchangeType::IKE_SA_INIT);
    assert_eq!(
        init.header.flags,
        Flags {
            initiator: true,
            ..Flags::default()
        }
    );
    assert_eq!((init.header.spi_r, init.header.message_id), (IkeSpi(0), 0));
    let proposal = &init.payloads.sa().unwrap().proposals[0];
    assert_eq!(
        (proposal.number, proposal.protocol, proposal.spi.len()),
        (1, ProtocolId::IKE, 0)
    );
    assert_eq!(
        proposal.transforms,
        [
            Transform::with_key_bits(TransformType::ENCR, EncryptionTransform::ENCR_AES_GCM_16.0, 256),
            Transform::new(TransformType::PRF, PrfTransform::PRF_HMAC_SHA2_384.0),
            Transform::new(TransformType::KE, DhTransform::ECP_256.0),
        ]
    );
    let ke = init.payloads.ke().unwrap();
    assert_eq!((ke.group, ke.data.len()), (DhTransform::ECP_256, 64));
    assert_eq!(init.payloads.nonce().unwrap().len(), 32);
    let natd = init.payloads.notify(NotifyType::NAT_DETECTION_SOURCE_IP).unwrap();
    assert!(natd.as_nat_detection().is_some());
    let hashes = init
        .payloads
        .notify(NotifyType::SIGNATURE_HASH_ALGORITHMS)
        .unwrap();
    assert!(hashes.as_signature_hashes().unwrap().contains(&2), "SHA2-256");
    assert!(
        init.payloads
            .notify(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED)
            .is_some()
    );
    assert!(init.payloads.error().is_none());

    // IKE_AUTH request: HDR, SK {IDi, N(INITIAL_CONTACT), IDr, AUTH, SAi2, TSi, TSr, ...}
    let first = Message::parse(&messages[2].message)
        .unwrap()
        .protected
        .unwrap()
        .first;
    let auth = parse_chain(first, messages[2].inner.as_ref().unwrap()).unwrap();
    assert_eq!(auth.id_i().unwrap().identity, Identity::Fqdn("a.example".into()));
    assert_eq!(
        auth.id_r().unwrap().identity,
        Identity::Rfc822("b@example.org".into())
    );
    assert_eq!(auth.auth().unwrap().method, AuthMethod::SHARED_KEY_MIC);
    assert!(auth.notify(NotifyType::INITIAL_CONTACT).is_some());
    assert!(auth.notify(NotifyType::IKEV2_MESSAGE_ID_SYNC_SUPPORTED).is_some());
    let esn: Vec<_> = auth.sa().unwrap().proposals[0]
        .transforms_of(TransformType::ESN)
        .map(|t| t.id)
        .collect();
    assert_eq!(esn, [EsnTransform::NO_ESN.0]);
    let ranges = |ts: &TrafficSelectors| -> Vec<(IpAddr, IpAddr)> {
        ts.selectors
            .iter()
            .map(|selector| (selector.first, selector.last))
            .collect()
    };
    let range = |first: [u8; 4], last: [u8; 4]| (IpAddr::from(first), IpAddr::from(last));
    assert_eq!(
        ranges(auth.ts_i().unwrap()),
        [range([10, 1, 0, 0], [10, 1, 0, 255])]
    );
    assert_eq!(
        ranges(auth.ts_r().unwrap()),
        [
            range([10, 2, 0, 0], [10, 2, 0, 255]),
            range([10, 2, 1, 0], [10, 2, 1, 255])
        ]
    );

    // CREATE_CHILD_SA request: HDR, SK {N(REKEY_SA), ...}; the old inbound SPI is the one deleted in message 6.
    let first = Message::parse(&messages[4].message)
        .unwrap()
        .protected
        .unwrap()
        .first;
    let rekey = parse_chain(first, messages[4].inner.as_ref().unwrap()).unwrap();
    let old = rekey.notify(NotifyType::REKEY_SA).unwrap().esp_spi().unwrap();
    let first = Message::parse(&messages[6].message)
        .unwrap()
        .protected
        .unwrap()
        .first;
    let delete = parse_chain(first, messages[6].inner.as_ref().unwrap()).unwrap();
    assert_eq!(delete.deletes().collect::<Vec<_>>(), [&Delete::Esp(vec![old])]);
}
