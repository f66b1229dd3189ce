//! Claims about every input: no panic, no unbounded work, and what we encode is what we parse.

use ike_wire::view::MAX_PAYLOADS;
use ike_wire::*;
use model::{EspSpi, IkeSpi, TrafficSelector};
use proptest::collection::vec;
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

fn octets(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..max)
}

fn header() -> impl Strategy<Value = Header> {
    (
        any::<u64>(),
        any::<u64>(),
        any::<u8>(),
        any::<[bool; 3]>(),
        any::<u32>(),
    )
        .prop_map(
            |(spi_i, spi_r, exchange, [initiator, version, response], message_id)| Header {
                spi_i: IkeSpi(spi_i),
                spi_r: IkeSpi(spi_r),
                exchange: ExchangeType(exchange),
                flags: Flags {
                    initiator,
                    version,
                    response,
                },
                message_id,
            },
        )
}

fn transform() -> impl Strategy<Value = Transform> {
    let value = prop_oneof![
        any::<u16>().prop_map(AttributeValue::Short),
        octets(6).prop_map(AttributeValue::Long),
    ];
    let attribute = (0u16..0x8000, value).prop_map(|(kind, value)| Attribute { kind, value });
    (any::<u8>(), any::<u16>(), vec(attribute, 0..3)).prop_map(|(kind, id, attributes)| Transform {
        kind: TransformType(kind),
        id,
        attributes,
    })
}

fn proposal() -> impl Strategy<Value = Proposal> {
    (any::<u8>(), any::<u8>(), octets(9), vec(transform(), 0..5)).prop_map(
        |(number, protocol, spi, transforms)| Proposal {
            number,
            protocol: ProtocolId(protocol),
            spi,
            transforms,
        },
    )
}

fn selector() -> impl Strategy<Value = TrafficSelector> {
    let v4 = any::<[u32; 2]>().prop_map(|mut ends| {
        ends.sort_unstable();
        ends.map(|end| IpAddr::from(Ipv4Addr::from(end)))
    });
    let v6 = any::<[u128; 2]>().prop_map(|mut ends| {
        ends.sort_unstable();
        ends.map(|end| IpAddr::from(Ipv6Addr::from(end)))
    });
    let ports = prop_oneof![
        any::<[u16; 2]>().prop_map(|mut ends| {
            ends.sort_unstable();
            ends
        }),
        Just([u16::MAX, 0]), // OPAQUE
    ];
    (prop_oneof![v4, v6], ports, any::<u8>()).prop_map(
        |([first, last], [first_port, last_port], protocol)| TrafficSelector {
            first,
            last,
            protocol,
            first_port,
            last_port,
        },
    )
}

fn identification() -> impl Strategy<Value = Identification> {
    let identity = prop_oneof![
        any::<[u8; 4]>().prop_map(|ip| Identity::Ipv4(ip.into())),
        any::<[u8; 16]>().prop_map(|ip| Identity::Ipv6(ip.into())),
        "[a-z.é]{0,20}".prop_map(Identity::Fqdn),
        "[a-z.@]{0,20}".prop_map(Identity::Rfc822),
        octets(20).prop_map(Identity::DerAsn1Dn),
        octets(20).prop_map(Identity::KeyId),
        (100u8..=255, octets(20)).prop_map(|(kind, data)| Identity::Other {
            kind: IdType(kind),
            data
        }),
    ];
    (identity, any::<[u8; 3]>()).prop_map(|(identity, reserved)| Identification { identity, reserved })
}

fn payload() -> impl Strategy<Value = Payload> {
    prop_oneof![
        vec(proposal(), 1..4)
            .prop_map(|proposals| Payload::SecurityAssociation(SecurityAssociation { proposals })),
        (any::<u16>(), octets(70)).prop_map(|(group, data)| Payload::KeyExchange(KeyExchange {
            group: DhTransform(group),
            data
        })),
        identification().prop_map(Payload::IdInitiator),
        identification().prop_map(Payload::IdResponder),
        (any::<u8>(), octets(40)).prop_map(|(encoding, data)| Payload::Certificate(Certificate {
            encoding: CertEncoding(encoding),
            data
        })),
        (any::<u8>(), octets(40)).prop_map(|(encoding, authorities)| {
            Payload::CertificateRequest(CertificateRequest {
                encoding: CertEncoding(encoding),
                authorities,
            })
        }),
        (any::<u8>(), octets(70)).prop_map(|(method, data)| Payload::Authentication(Authentication {
            method: AuthMethod(method),
            data
        })),
        vec(any::<u8>(), 16..=256).prop_map(Payload::Nonce),
        (any::<u8>(), octets(9), any::<u16>(), octets(30)).prop_map(|(protocol, spi, kind, data)| {
            Payload::Notify(Notify {
                protocol: ProtocolId(protocol),
                spi,
                kind: NotifyType(kind),
                data,
            })
        }),
        Just(Payload::Delete(Delete::Ike)),
        vec(any::<u32>(), 0..5)
            .prop_map(|spis| Payload::Delete(Delete::Esp(spis.into_iter().map(EspSpi).collect()))),
        vec(any::<u32>(), 0..5).prop_map(|spis| Payload::Delete(Delete::Other {
            protocol: ProtocolId::AH,
            spi_len: 4,
            spis: spis.into_iter().flat_map(u32::to_be_bytes).collect(),
        })),
        octets(40).prop_map(Payload::VendorId),
        vec(selector(), 1..5).prop_map(|selectors| Payload::TsInitiator(selectors.into())),
        vec(selector(), 1..5).prop_map(|selectors| Payload::TsResponder(selectors.into())),
        (any::<u8>(), vec((0u16..0x8000, octets(20)), 0..4)).prop_map(|(kind, attributes)| {
            let attribute = |(kind, value)| ConfigAttribute::new(ConfigAttributeType(kind), value);
            let attributes = attributes.into_iter().map(attribute).collect();
            Payload::Configuration(Configuration::new(ConfigType(kind), attributes))
        }),
        (any::<[u8; 2]>(), proptest::option::of((any::<u8>(), octets(40)))).prop_map(
            |([code, identifier], body)| Payload::Eap(Eap {
                code: EapCode(code),
                identifier,
                body: body.map(|(kind, data)| (EapType(kind), data)),
            })
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn messages_survive_the_round_trip(header in header(), payloads in vec(payload(), 0..8)) {
        let bytes = encode_message(&header, &payloads).unwrap();
        let message = Message::parse(&bytes).unwrap();
        prop_assert_eq!(message.header, header);
        prop_assert_eq!(message.payloads.0, payloads);
        prop_assert_eq!(message.protected, None);
    }

    #[test]
    fn chains_survive_the_round_trip_inside_an_encrypted_payload(
        header in header(), payloads in vec(payload(), 0..8), sealed in octets(60),
    ) {
        let (first, chain) = encode_chain(&payloads).unwrap();
        prop_assert_eq!(parse_chain(first, &chain).unwrap().0, payloads);

        let prefix = encode_sk_prefix(&header, first, sealed.len()).unwrap();
        let bytes = [&prefix[..], &sealed].concat();
        let protected = Message::parse(&bytes).unwrap().protected.unwrap();
        prop_assert_eq!((protected.first, protected.fragment), (first, None));
        prop_assert_eq!((protected.prefix(&bytes), protected.sealed(&bytes)), (&prefix[..], &sealed[..]));
    }

    #[test]
    fn fragments_survive_the_round_trip(header in header(), a in 1u16.., b in 1u16.., sealed in octets(60)) {
        let fragment = Fragment { number: a.min(b), total: a.max(b) };
        let prefix = encode_skf_prefix(&header, PayloadType::ID_I, fragment, sealed.len()).unwrap();
        let bytes = [&prefix[..], &sealed].concat();
        let protected = Message::parse(&bytes).unwrap().protected.unwrap();
        prop_assert_eq!(protected.fragment, Some(fragment));
        let first = if fragment.number == 1 { PayloadType::ID_I } else { PayloadType::NONE };
        prop_assert_eq!(protected.first, first);
        prop_assert_eq!((protected.prefix(&bytes), protected.sealed(&bytes)), (&prefix[..], &sealed[..]));
    }

    #[test]
    fn garbage_never_panics(first in any::<u8>(), bytes in octets(300)) {
        let _ = Message::parse(&bytes);
        let _ = Header::parse_lenient(&bytes);
        let _ = parse_chain(PayloadType(first), &bytes);
    }

    // Garbage alone rarely gets past the first length; so damage something good.
    #[test]
    fn damaged_messages_never_panic_and_what_still_parses_can_be_encoded(
        header in header(), payloads in vec(payload(), 1..6),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = encode_message(&header, &payloads).unwrap();
        for (at, octet) in damage {
            let at = at.index(bytes.len());
            bytes[at] = octet;
        }
        if let Ok(message) = Message::parse(&bytes) {
            let again = encode_message(&message.header, &message.payloads).unwrap();
            prop_assert!(again.len() <= bytes.len(), "no more octets than came in");
            let reparsed = Message::parse(&again);
            // Selectors of unknown types are not encoded; a payload of them alone cannot be sent.
            let sendable = message.payloads.iter().all(|payload| match payload {
                Payload::TsInitiator(ts) | Payload::TsResponder(ts) => ts.unknown.is_empty(),
                _ => true,
            });
            if sendable {
                prop_assert_eq!(reparsed.unwrap().payloads, message.payloads);
            }
        }
    }

    #[test]
    fn a_chain_of_empty_payloads_is_cut_off(extra in 1usize..1000) {
        let empty_vendor_id = [PayloadType::VENDOR_ID.0, 0, 0, 4];
        let bytes = empty_vendor_id.repeat(MAX_PAYLOADS + extra);
        prop_assert_eq!(
            parse_chain(PayloadType::VENDOR_ID, &bytes),
            Err(WireError::TooManyPayloads { max: MAX_PAYLOADS })
        );
    }
}
