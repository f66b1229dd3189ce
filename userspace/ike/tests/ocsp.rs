//! OCSP responses beside revocation lists (RFC 6960), from files and from the peer itself (RFC 4806).

mod world;

use ike::auth::certificate::KeyKind;
use ike::auth::ocsp::Response;
use ike::auth::trust::Trust;
use ike::{EventKind, LocalAuth, LocalCertificate, RemoteAuth};
use rcgen::{ExtendedKeyUsagePurpose, KeyPair};
use std::rc::Rc;
use std::sync::Arc;
use world::pki::*;
use world::*;
use x509_ocsp::CertStatus;

const SIGNS_OCSP: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::OcspSigning;

fn strict(ca: &Ca, crls: &[Vec<u8>], responses: &[Vec<u8>]) -> Trust {
    let trust = Trust::new(std::slice::from_ref(&ca.der), crls, true).unwrap();
    trust.with_ocsp(responses).unwrap()
}

/// Somebody who may, or may not, sign responses for this authority.
fn responder(ca: &Ca, usages: Vec<ExtendedKeyUsagePurpose>, valid: (i64, i64)) -> (KeyPair, Vec<u8>) {
    let pair = key_pair(KeyKind::EcdsaP256);
    let leaf = Leaf {
        usages,
        serial: 99,
        valid,
        ..Leaf::named("ocsp.example")
    };
    let der = ca.issue(&leaf, &pair);
    (pair, der)
}

/// A meets B with a certificate (serial number 7) and this response about it.
fn meet(ca: &Ca, response: Option<Vec<u8>>, trust: Trust) -> World {
    let pairs = [key_pair(KeyKind::EcdsaP256), key_pair(KeyKind::EcdsaP256)];
    let trusts = [
        Arc::new(Trust::new(std::slice::from_ref(&ca.der), &[], false).unwrap()),
        Arc::new(trust),
    ];
    let mut world = World::with(31, |side, connection| {
        connection.psk = model::SecretBytes::default();
        let name = ["a.example", "b.example"][side];
        connection.local_auth = LocalAuth::Certificate(Arc::new(LocalCertificate {
            key: "the key".to_owned(),
            kind: KeyKind::EcdsaP256,
            rsa_pss: true,
            chain: vec![ca.issue(&Leaf::named(name), &pairs[side])],
            ocsp: response.clone().filter(|_| side == A),
        }));
        connection.remote_auth = RemoteAuth::Certificate(trusts[side].clone());
    });
    for side in [A, B] {
        world.sides[side].around.unix_time = Some(TODAY);
        let key = Rc::new(Key::new(&pairs[side]));
        world.sides[side].keys.insert("the key".to_owned(), key);
    }
    world
}

#[test]
fn whoever_wants_to_know_is_sent_a_response_with_the_certificate_in_both_roles() {
    for initiator in [A, B] {
        let ca = Ca::root("CA");
        let response = ca.ocsp(&Said::of(CertStatus::good()));
        let mut world = meet(&ca, Some(response), strict(&ca, &[], &[]));
        world.initiate(initiator);
        world.settle();
        world.assert_up(1);
    }
}

#[test]
fn who_does_not_ask_is_not_sent_one() {
    let ca = Ca::root("CA");
    let relaxed = Trust::new(std::slice::from_ref(&ca.der), &[], false).unwrap();
    // B would refuse A if it saw this.
    let mut world = meet(&ca, Some(ca.ocsp(&Said::of(revoked()))), relaxed);
    world.initiate(A);
    world.settle();
    world.assert_up(1);
}

#[test]
fn a_responder_that_the_issuer_has_authorised_is_believed() {
    let ca = Ca::root("CA");
    let (pair, der) = responder(&ca, vec![SIGNS_OCSP], (-10, 10));
    let response = ocsp(&ca, &Said::of(CertStatus::good()), &pair, &der, true);
    // By file, too.
    for (stapled, files) in [(Some(response.clone()), vec![]), (None, vec![response])] {
        let mut world = meet(&ca, stapled, strict(&ca, &[], &files));
        world.initiate(A);
        world.settle();
        world.assert_up(1);
    }
}

#[test]
fn what_is_wrong_with_a_response_is_said() {
    let (ca, other) = (Ca::root("CA"), Ca::root("Other"));
    let good = || Said::of(CertStatus::good());
    let delegated = |usages, valid, by: &Ca, sent_along| {
        let (pair, der) = responder(by, usages, valid);
        ocsp(&ca, &good(), &pair, &der, sent_along)
    };
    let forged = {
        // Says that it is of the authority, and is not.
        let key = key_pair(KeyKind::EcdsaP256);
        ocsp(&ca, &good(), &key, &ca.der, false)
    };
    let rows: [(&str, Vec<u8>, &str); 12] = [
        (
            "revoked",
            ca.ocsp(&Said::of(revoked())),
            "revoked since 2029-12-30",
        ),
        (
            "unknown",
            ca.ocsp(&Said::of(CertStatus::unknown())),
            "does not know",
        ),
        (
            "stale",
            ca.ocsp(&Said {
                until: Some(-1),
                from: -3,
                ..good()
            }),
            "good until 2029-12-31",
        ),
        (
            "stale, without nextUpdate",
            ca.ocsp(&Said {
                until: None,
                from: -3,
                ..good()
            }),
            "good until 2029-12-30",
        ),
        (
            "of tomorrow",
            ca.ocsp(&Said { from: 1, ..good() }),
            "in the future",
        ),
        (
            "of another certificate",
            ca.ocsp(&Said { serial: 8, ..good() }),
            "no OCSP response",
        ),
        ("of another authority", other.ocsp(&good()), "no OCSP response"),
        ("forged", forged, "neither by the issuer"),
        (
            "by somebody without authority",
            delegated(vec![], (-10, 10), &ca, true),
            "neither by the issuer",
        ),
        (
            "by somebody of another authority",
            delegated(vec![SIGNS_OCSP], (-10, 10), &other, true),
            "neither by the issuer",
        ),
        (
            "by somebody whose authority has ended",
            delegated(vec![SIGNS_OCSP], (-10, -1), &ca, true),
            "neither by the issuer",
        ),
        ("no response", b"0\x03\x0a\x01\x03".to_vec(), "TryLater"),
    ];
    for (what, response, word) in rows {
        let mut world = meet(&ca, Some(response), strict(&ca, &[], &[]));
        world.initiate(A);
        world.settle();
        world.assert_all_gone();
        let text = world.event(B, EventKind::AuthFailed).to_string();
        assert!(text.contains(word), "{what}: {word:?} is not in {text}");
    }
}

#[test]
fn a_revocation_counts_where_nothing_else_is_asked_for_and_the_newest_response_decides() {
    let ca = Ca::root("CA");
    let old = Said {
        from: -5,
        until: Some(-2),
        ..Said::of(revoked())
    };
    let files = [ca.ocsp(&old)];
    let relaxed = |files: &[Vec<u8>]| {
        let trust = Trust::new(std::slice::from_ref(&ca.der), &[], false).unwrap();
        trust.with_ocsp(files).unwrap()
    };
    let mut world = meet(&ca, None, relaxed(&files));
    world.initiate(A);
    world.settle();
    world.assert_all_gone();
    let text = world.event(B, EventKind::AuthFailed).to_string();
    assert!(text.contains("revoked since"), "{text}");
    let files = [files[0].clone(), ca.ocsp(&Said::of(CertStatus::good()))];
    let mut world = meet(&ca, None, relaxed(&files));
    world.initiate(A);
    world.settle();
    world.assert_up(1);
}

#[test]
fn lists_and_responses_go_together_and_each_certificate_of_a_chain_needs_one() {
    let root = Ca::root("Root");
    let middle = root.intermediate("Middle");
    let pair = key_pair(KeyKind::EcdsaP256);
    let leaf = middle.issue(&Leaf::named("a.example"), &pair);
    let chain: [&[u8]; 2] = [&leaf, &middle.der];
    // The intermediate authority has another curve than what `ocsp` signs with, so it has a responder.
    let (responder, der) = responder(&middle, vec![SIGNS_OCSP], (-10, 10));
    let about_leaf = ocsp(&middle, &Said::of(CertStatus::good()), &responder, &der, true);
    let verify = |crls: &[Vec<u8>]| {
        strict(&root, crls, std::slice::from_ref(&about_leaf))
            .verify(&chain, &[], TODAY)
            .map(|facts| facts.subject_text)
    };
    verify(&[root.crl(&[], 10)]).unwrap();
    for (crls, word) in [
        (vec![], "CN=Middle"),
        (vec![root.crl(&[], -1)], "expired on 2029-12-31"),
        (vec![root.crl(&[], 10), root.crl(&[], -1)], "CN=Middle"),
        (vec![middle.crl(&[7], 10)], "revoked"),
    ] {
        let why = verify(&crls).unwrap_err();
        assert!(why.contains(word), "{word:?} is not in {why}");
    }
    let alone = strict(&root, &[root.crl(&[], 10)], &[]);
    let why = alone.verify(&chain, &[], TODAY).unwrap_err();
    assert!(why.contains("ocsp_files"), "{why}");
    alone.verify(&chain, &[&about_leaf], TODAY).unwrap();
}

#[test]
fn no_octets_of_a_response_can_be_changed_without_notice() {
    let ca = Ca::root("CA");
    let pair = key_pair(KeyKind::EcdsaP256);
    let leaf = ca.issue(&Leaf::named("a.example"), &pair);
    let response = ca.ocsp(&Said::of(revoked()));
    let trust = Trust::new(std::slice::from_ref(&ca.der), &[], false).unwrap();
    let revoked = |response: &[u8]| trust.verify(&[&leaf], &[response], TODAY).is_err();
    assert!(revoked(&response));
    let good = ca.ocsp(&Said::of(CertStatus::good()));
    let strict = strict(&ca, &[], &[]);
    strict.verify(&[&leaf], &[&good], TODAY).unwrap();
    let mut believed = 0;
    for at in 0..good.len() {
        let mut other = good.clone();
        other[at] ^= 1;
        believed += usize::from(strict.verify(&[&leaf], &[&other], TODAY).is_ok());
        let _ = Response::read(&good[..at]);
    }
    assert_eq!(believed, 0);
}
