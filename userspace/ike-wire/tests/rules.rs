//! One row per rule of RFC 7296 3 that the codec enforces.

use ike_wire::*;
use model::{EspSpi, IkeSpi, TrafficSelector};
use std::net::IpAddr;

const HEADER: Header = Header {
    spi_i: IkeSpi(0x0102_0304_0506_0708),
    spi_r: IkeSpi(0x1112_1314_1516_1718),
    exchange: ExchangeType::INFORMATIONAL,
    flags: Flags {
        initiator: true,
        version: false,
        response: true,
    },
    message_id: 0x2122_2324,
};

/// A chain of one payload with this body.
fn one(kind: PayloadType, body: &[u8]) -> Result<PayloadList, WireError> {
    let length = (body.len() as u16 + 4).to_be_bytes();
    parse_chain(kind, &[&[0, 0], &length[..], body].concat())
}

#[test]
fn header_fields_stand_where_rfc_7296_3_1_draws_them() {
    let bytes = encode_message(&HEADER, &[]).unwrap();
    let drawn = [
        &[1, 2, 3, 4, 5, 6, 7, 8][..],                         // IKE SA Initiator's SPI
        &[0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18][..], // IKE SA Responder's SPI
        &[0, 0x20, 37, 0x28][..],                              // Next Payload, version, Exchange Type, Flags
        &[0x21, 0x22, 0x23, 0x24][..],                         // Message ID
        &[0, 0, 0, 28][..],                                    // Length
    ]
    .concat();
    assert_eq!(bytes, drawn);
}

#[test]
fn major_versions_other_than_2_are_named_and_the_header_can_still_be_read() {
    let mut bytes = encode_message(&HEADER, &[]).unwrap();
    bytes[17] = 0x31;
    let error = Message::parse(&bytes).unwrap_err();
    assert_eq!(error, WireError::MajorVersion(3));
    assert_eq!(error.notify().kind, NotifyType::INVALID_MAJOR_VERSION);
    assert_eq!(Header::parse_lenient(&bytes), Ok(HEADER));
    bytes[17] = 0x25;
    assert!(
        Message::parse(&bytes).is_ok(),
        "a higher minor version is ignored"
    );
}

#[test]
fn the_length_field_must_be_the_datagram() {
    let mut bytes = encode_message(&HEADER, &[]).unwrap();
    bytes.push(0);
    let error = WireError::LengthMismatch {
        what: "IKE header",
        stated: 28,
        got: 29,
    };
    assert_eq!(Message::parse(&bytes), Err(error));
    assert_eq!(error.notify(), Notify::status(NotifyType::INVALID_SYNTAX));
}

#[test]
fn unknown_payloads_are_skipped_unless_critical() {
    let unknown = PayloadType(200);
    let skipped = parse_chain(unknown, &[43, 0, 0, 5, 9, 0, 0, 0, 6, 1, 2]).unwrap();
    assert_eq!(skipped.0, [Payload::VendorId(vec![1, 2])]);

    let error = parse_chain(unknown, &[43, 0x80, 0, 5, 9, 0, 0, 0, 6, 1, 2]).unwrap_err();
    assert_eq!(error, WireError::UnsupportedCritical(unknown));
    assert_eq!(
        error.notify(),
        Notify::new(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, vec![200])
    );
    assert_eq!(error.notify().as_unsupported_critical(), Some(unknown));

    // RFC 7296 3.2: the critical bit of a payload that we know is ignored.
    assert!(parse_chain(PayloadType::VENDOR_ID, &[0, 0x80, 0, 4]).is_ok());
}

#[test]
fn payload_lengths_must_fit() {
    for (name, length) in [
        ("below the header", 3u8),
        ("zero", 0),
        ("beyond the end", 9),
        ("short of the end", 7),
    ] {
        assert!(
            parse_chain(PayloadType::VENDOR_ID, &[0, 0, 0, length, 1, 2, 3, 4]).is_err(),
            "{name}"
        );
    }
    assert!(parse_chain(PayloadType::VENDOR_ID, &[0, 0, 0, 8, 1, 2, 3, 4]).is_ok());
    assert!(parse_chain(PayloadType::NONE, &[]).unwrap().is_empty());
}

#[test]
fn encrypted_payloads_end_a_message_and_never_nest() {
    let nested = one(PayloadType::SK, &[0; 40]);
    assert_eq!(nested, Err(WireError::NestedEncryption(PayloadType::SK)));

    let mut bytes = encode_sk_prefix(&HEADER, PayloadType::ID_I, 8).unwrap();
    bytes.extend_from_slice(&[0; 12]);
    bytes[27] += 4;
    let trailing = WireError::Trailing {
        what: "the last payload",
        count: 4,
    };
    assert_eq!(Message::parse(&bytes), Err(trailing));
}

#[test]
fn fragment_numbers_run_from_one_to_the_total() {
    let parse = |number: u16, total: u16, next: u8| {
        let fragment = Fragment { number: 1, total: 1 };
        let mut bytes = encode_skf_prefix(&HEADER, PayloadType(next), fragment, 4).unwrap();
        bytes[32..34].copy_from_slice(&number.to_be_bytes());
        bytes[34..36].copy_from_slice(&total.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        Message::parse(&bytes)
    };
    assert!(parse(1, 3, 35).is_ok());
    assert!(parse(3, 3, 0).is_ok());
    assert!(parse(0, 3, 0).is_err(), "zero");
    assert!(parse(4, 3, 0).is_err(), "above the total");
    assert!(parse(2, 3, 35).is_err(), "a later fragment has no Next Payload");
}

#[test]
fn nonces_have_16_to_256_octets() {
    for (len, ok) in [(15, false), (16, true), (256, true), (257, false)] {
        assert_eq!(one(PayloadType::NONCE, &vec![7; len]).is_ok(), ok, "{len}");
    }
}

#[test]
fn proposals_and_transforms_must_add_up() {
    let good = [
        0, 0, 0, 24, 1, 3, 4, 1, 0xaa, 0xbb, 0xcc,
        0xdd, // proposal 1, ESP, SPI of 4 octets, 1 transform
        0, 0, 0, 12, 1, 0, 0, 20, 0x80, 14, 1, 0, // ENCR_AES_GCM_16, 256 bits
    ];
    let list = one(PayloadType::SA, &good).unwrap();
    let proposal = &list.sa().unwrap().proposals[0];
    assert_eq!(proposal.spi, [0xaa, 0xbb, 0xcc, 0xdd]);
    assert_eq!(
        proposal.transforms,
        [Transform::with_key_bits(TransformType::ENCR, 20, 256)]
    );
    assert_eq!(proposal.transforms[0].key_bits(), Some(256));

    // (why it is wrong, octet, value)
    let rows = [
        ("another proposal announced, none there", 0, 2),
        ("proposal longer than the payload", 3, 25),
        ("proposal shorter than its header", 3, 3),
        ("octets behind the proposal", 3, 20),
        ("SPI longer than the proposal", 6, 17),
        ("more transforms announced than there", 7, 2),
        ("fewer transforms announced than there", 7, 0),
        ("another transform announced, none there", 12, 3),
        ("transform longer than the proposal", 15, 13),
        ("transform shorter than its header", 15, 3),
        ("attribute longer than the transform", 20, 0),
    ];
    for (why, at, value) in rows {
        let mut bad = good;
        bad[at] = value;
        assert!(one(PayloadType::SA, &bad).is_err(), "{why}");
    }
    assert!(one(PayloadType::SA, &[]).is_err(), "no proposal");
}

#[test]
fn transforms_with_unknown_attributes_are_kept_but_not_understood() {
    let long = Attribute {
        kind: 99,
        value: AttributeValue::Long(vec![1, 2, 3]),
    };
    let short = Attribute {
        kind: 98,
        value: AttributeValue::Short(5),
    };
    let mut transform = Transform::with_key_bits(TransformType::ENCR, 20, 256);
    assert!(transform.is_understood());
    assert!(Transform::new(TransformType::PRF, 5).is_understood());
    transform.attributes.push(long);
    assert!(!transform.is_understood());
    let lone = Transform {
        attributes: vec![short],
        ..Transform::new(TransformType(77), 1)
    };
    assert!(!lone.is_understood());
}

#[test]
fn deletes_name_spis_of_their_protocol() {
    let list = one(PayloadType::DELETE, &[3, 4, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2]).unwrap();
    assert_eq!(
        list.deletes().collect::<Vec<_>>(),
        [&Delete::Esp(vec![EspSpi(1), EspSpi(2)])]
    );
    let list = one(PayloadType::DELETE, &[1, 0, 0, 0]).unwrap();
    assert_eq!(list.deletes().collect::<Vec<_>>(), [&Delete::Ike]);
    assert!(
        one(PayloadType::DELETE, &[3, 4, 0, 2, 0, 0, 0, 1]).is_err(),
        "fewer SPIs than announced"
    );
    assert!(
        one(PayloadType::DELETE, &[3, 4, 0, 0, 0, 0, 0, 1]).is_err(),
        "more SPIs than announced"
    );
    assert!(
        one(PayloadType::DELETE, &[3, 8, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2]).is_err(),
        "ESP SPI of 8 octets"
    );
}

#[test]
fn selectors_run_forwards_and_within_one_family() {
    let ts = |first_port: [u8; 2], last_port: [u8; 2], first: [u8; 4], last: [u8; 4]| {
        let body = [
            &[1, 0, 0, 0, 7, 6, 0, 16][..],
            &first_port,
            &last_port,
            &first,
            &last,
        ]
        .concat();
        one(PayloadType::TS_I, &body)
    };
    let (low, high) = ([10, 0, 0, 0], [10, 0, 0, 255]);
    let list = ts([0, 80], [0, 80], low, high).unwrap();
    let expected = TrafficSelector {
        first: IpAddr::from(low),
        last: IpAddr::from(high),
        protocol: 6,
        first_port: 80,
        last_port: 80,
    };
    assert_eq!(list.ts_i().unwrap().selectors, std::slice::from_ref(&expected));
    assert!(ts([0xff, 0xff], [0, 0], low, high).is_ok(), "OPAQUE");
    assert!(ts([0, 81], [0, 80], low, high).is_err(), "ports backwards");
    assert!(
        ts([0, 0], [0xff, 0xff], high, low).is_err(),
        "addresses backwards"
    );
    assert!(one(PayloadType::TS_I, &[0, 0, 0, 0]).is_err(), "none");
    assert!(
        one(PayloadType::TS_I, &[1, 0, 0, 0]).is_err(),
        "fewer than announced"
    );

    let label = one(PayloadType::TS_R, &[1, 0, 0, 0, 10, 0, 0, 6, 1, 2]).unwrap();
    assert_eq!(label.ts_r().unwrap().unknown, [TsType::TS_SECLABEL]);
    assert!(label.ts_r().unwrap().selectors.is_empty());

    let mixed = TrafficSelector {
        last: IpAddr::from([0; 16]),
        ..expected
    };
    assert_eq!(
        encode_chain(&[Payload::TsInitiator(vec![mixed].into())]),
        Err(EncodeError::MixedFamilies)
    );
}

#[test]
fn identities_have_the_length_of_their_type() {
    assert!(
        one(PayloadType::ID_I, &[1, 0, 0, 0, 10, 0, 0]).is_err(),
        "IPv4 of 3 octets"
    );
    assert!(
        one(PayloadType::ID_I, &[1, 0, 0, 0, 10, 0, 0, 1, 1]).is_err(),
        "IPv4 of 5 octets"
    );
    assert_eq!(
        one(PayloadType::ID_I, &[2, 0, 0, 0, 0xff]),
        Err(WireError::Text("ID_FQDN"))
    );
    let list = one(PayloadType::ID_I, &[2, 1, 2, 3, b'a', b'\n']).unwrap();
    let id = list.id_i().unwrap();
    assert_eq!(
        id.body(),
        [2, 1, 2, 3, b'a', b'\n'],
        "AUTH signs reserved octets too"
    );
    assert_eq!(id.identity.to_string(), "a\\n", "no control characters in logs");
}

#[test]
fn notifications_with_data_read_back() {
    let sync = MessageIdSync {
        nonce: 0xdead_beef,
        expected_send: 7,
        expected_recv: 9,
    };
    let notify = Notify::message_id_sync(sync);
    let (_, bytes) = encode_chain(&[Payload::Notify(notify.clone())]).unwrap();
    // RFC 6311: 20 octets, Protocol ID 0, SPI Size 0, type 16422.
    assert_eq!(bytes[..8], [0, 0, 0, 20, 0, 0, 0x40, 0x26]);
    assert_eq!(notify.as_message_id_sync(), Some(sync));
    assert_eq!(
        Notify::invalid_ke(DhTransform::CURVE25519).as_invalid_ke(),
        Some(DhTransform::CURVE25519)
    );
    assert_eq!(
        Notify::about_esp(NotifyType::REKEY_SA, EspSpi(5)).esp_spi(),
        Some(EspSpi(5))
    );
    assert_eq!(
        Notify::signature_hashes(&[2, 3]).as_signature_hashes(),
        Some(vec![2, 3])
    );
    assert_eq!(Notify::new(NotifyType::COOKIE, vec![]).as_cookie(), None, "empty");
    assert_eq!(
        Notify::new(NotifyType::COOKIE, vec![1; 65]).as_cookie(),
        None,
        "too long"
    );
    assert_eq!(
        Notify::new(NotifyType::COOKIE, vec![1; 64]).as_cookie(),
        Some(&[1; 64][..])
    );
    assert_eq!(
        Notify::new(NotifyType::SIGNATURE_HASH_ALGORITHMS, vec![1]).as_signature_hashes(),
        None
    );
    assert!(NotifyType::TS_UNACCEPTABLE.is_error() && !NotifyType::COOKIE.is_error());
}

#[test]
fn what_does_not_fit_is_refused() {
    let long = Payload::VendorId(vec![0; 65_532]);
    assert_eq!(
        encode_chain(&[long]),
        Err(EncodeError::TooLong {
            what: "payload",
            got: 65_536
        })
    );
    let spi = Notify {
        spi: vec![0; 256],
        ..Notify::status(NotifyType::COOKIE)
    };
    assert_eq!(
        encode_chain(&[Payload::Notify(spi)]),
        Err(EncodeError::TooMany {
            what: "octets of SPI",
            got: 256
        })
    );
    let two = [
        Payload::VendorId(vec![0; 40_000]),
        Payload::VendorId(vec![0; 40_000]),
    ];
    assert!(matches!(
        encode_message(&HEADER, &two),
        Err(EncodeError::TooLong { what: "message", .. })
    ));
}

#[test]
fn a_configuration_payload_is_read_attribute_by_attribute_and_its_reserved_bits_are_ignored() {
    let body = [
        &[1, 9, 9, 9][..],    // CFG_REQUEST, reserved
        &[0x80, 1, 0, 0][..], // INTERNAL_IP4_ADDRESS, any, with the reserved bit
        &[0, 8, 0, 17][..],   // INTERNAL_IP6_ADDRESS
        &[0x20; 16][..],
        &[64][..],
        &[0, 3, 0, 4, 192, 0, 2, 53][..], // INTERNAL_IP4_DNS
    ]
    .concat();
    let list = one(PayloadType::CP, &body).unwrap();
    let cp = list.configuration().unwrap();
    assert_eq!(cp.kind, ConfigType::CFG_REQUEST);
    let v4 = cp.of(ConfigAttributeType::INTERNAL_IP4_ADDRESS).next().unwrap();
    assert!(v4.value.is_empty() && v4.as_address().is_none());
    let v6 = cp.of(ConfigAttributeType::INTERNAL_IP6_ADDRESS).next().unwrap();
    assert_eq!(v6.as_address(), Some(IpAddr::from([0x20; 16])));
    let dns = cp.of(ConfigAttributeType::INTERNAL_IP4_DNS).next().unwrap();
    assert_eq!(dns.as_address(), Some("192.0.2.53".parse().unwrap()));
    // An attribute that is longer than the payload.
    assert!(matches!(
        one(PayloadType::CP, &[1, 0, 0, 0, 0, 1, 0, 5, 1]),
        Err(WireError::Truncated { .. })
    ));
}

#[test]
fn an_eap_packet_fills_its_payload() {
    let list = one(PayloadType::EAP, &[2, 7, 0, 6, 1, b'x']).unwrap();
    let eap = list.eap().unwrap();
    assert_eq!((eap.code, eap.identifier), (EapCode::RESPONSE, 7));
    assert_eq!(eap.body, Some((EapType::IDENTITY, b"x".to_vec())));
    let success = one(PayloadType::EAP, &[3, 7, 0, 4]).unwrap();
    assert_eq!(success.eap(), Some(&Eap::outcome(7, true)));
    for length in [5, 7] {
        assert!(
            matches!(
                one(PayloadType::EAP, &[2, 7, 0, length, 1, b'x']),
                Err(WireError::LengthMismatch { .. })
            ),
            "{length}"
        );
    }
}

#[test]
fn a_certificate_request_names_authorities_by_20_octets_each() {
    let asked = CertificateRequest::x509(&[[1; 20], [2; 20]]);
    let (_, chain) = encode_chain(&[Payload::CertificateRequest(asked)]).unwrap();
    let list = parse_chain(PayloadType::CERTREQ, &chain).unwrap();
    let digests: Vec<_> = list.certificate_requests().flat_map(|r| r.digests()).collect();
    assert_eq!(digests, [&[1; 20], &[2; 20]]);
    // What is left over, and other encodings, name nobody.
    let odd = one(PayloadType::CERTREQ, &[4, 1, 2, 3]).unwrap();
    assert_eq!(odd.certificate_requests().flat_map(|r| r.digests()).count(), 0);
    assert!(matches!(
        one(PayloadType::CERT, &[]),
        Err(WireError::Truncated { .. })
    ));
}
