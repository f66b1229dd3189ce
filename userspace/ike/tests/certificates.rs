//! Authentication by certificates (RFC 7296 2.15, RFC 7427, RFC 4945): every kind of key, chains, and whatever is wrong with
//! one.

mod world;

use ike::auth::certificate::KeyKind;
use ike::auth::dn::DnPattern;
use ike::auth::pattern::{IdPattern, WrittenId};
use ike::auth::trust::Trust;
use ike::{Command, Connection, EventKind, Identity, LocalAuth, LocalCertificate, RemoteAuth};
use rcgen::{ExtendedKeyUsagePurpose, KeyPair, SanType};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use world::pki::*;
use world::*;

/// One side's part of a setting.
struct Part {
    kind: KeyKind,
    pair: KeyPair,
    chain: Vec<Vec<u8>>,
    trust: Arc<Trust>,
    rsa_pss: bool,
    ocsp: Option<Vec<u8>>,
}

const NAMES: [&str; 2] = ["a.example", "b.example"];

/// Both sides with certificates of one authority.
fn parts(kind: KeyKind) -> (Ca, [Part; 2]) {
    let ca = Ca::root("CA");
    let part = |side: usize| {
        let pair = key_pair(kind);
        Part {
            kind,
            chain: vec![ca.issue(&Leaf::named(NAMES[side]), &pair)],
            pair,
            trust: Arc::new(Trust::new(std::slice::from_ref(&ca.der), &[], false).unwrap()),
            rsa_pss: true,
            ocsp: None,
        }
    };
    let parts = [part(A), part(B)];
    (ca, parts)
}

fn certified(connection: &mut Connection, part: &Part) {
    connection.psk = model::SecretBytes::default();
    connection.local_auth = LocalAuth::Certificate(Arc::new(LocalCertificate {
        key: "the key".to_owned(),
        kind: part.kind,
        rsa_pss: part.rsa_pss,
        chain: part.chain.clone(),
        ocsp: part.ocsp.clone(),
    }));
    connection.remote_auth = RemoteAuth::Certificate(part.trust.clone());
}

fn world_with(parts: &[Part; 2], adjust: impl Fn(usize, &mut Connection)) -> World {
    let mut world = World::with(31, |side, connection| {
        certified(connection, &parts[side]);
        adjust(side, connection);
    });
    for side in [A, B] {
        world.sides[side].around.unix_time = Some(TODAY);
        let key = Rc::new(Key::new(&parts[side].pair));
        world.sides[side].keys.insert("the key".to_owned(), key);
    }
    world
}

fn world(parts: &[Part; 2]) -> World {
    world_with(parts, |_, _| {})
}

#[test]
fn every_kind_of_key_authenticates_both_sides() {
    for kind in [
        KeyKind::EcdsaP256,
        KeyKind::EcdsaP384,
        KeyKind::EcdsaP521,
        KeyKind::Ed25519,
    ] {
        let (_, parts) = parts(kind);
        let mut world = world(&parts);
        world.initiate(A);
        // a ---> b  HDR, SAi1, KEi, Ni, N(SIGNATURE_HASH_ALGORITHMS)
        // a <--- b  HDR, SAr1, KEr, Nr, CERTREQ, N(SIGNATURE_HASH_ALGORITHMS)
        // a ---> b  HDR, SK {IDi, CERT, CERTREQ, IDr, AUTH, SAi2, TSi, TSr}
        // a <--- b  HDR, SK {IDr, CERT, AUTH, SAr2, TSi, TSr}
        world.settle();
        world.assert_up(1);
        assert_eq!(world.sides[A].sent.len() + world.sides[B].sent.len(), 4);
        assert_eq!(world.only(B).remote_id.as_deref(), Some("a.example"), "{kind:?}");
    }
}

#[test]
fn rsa_keys_sign_by_pss_and_by_pkcs_1() {
    let (_, mut parts) = parts(KeyKind::Rsa);
    for pss in [true, false] {
        parts.iter_mut().for_each(|part| part.rsa_pss = pss);
        let mut world = world(&parts);
        for side in &mut world.sides {
            side.hold_signatures = true;
        }
        world.initiate(A);
        world.settle();
        let name = world.sides[A].to_sign[0].scheme.name();
        assert_eq!(name.contains("PSS"), pss, "{name}");
        for side in [A, B] {
            world.sides[side].hold_signatures = false;
            world.sign(side);
            world.settle();
        }
        world.assert_up(1);
    }
}

#[test]
fn one_side_may_have_a_certificate_and_the_other_a_pre_shared_key() {
    let (_, parts) = parts(KeyKind::EcdsaP256);
    let psk = model::SecretBytes::new(b"shared".to_vec());
    for signer in [A, B] {
        let mut world = world_with(&parts, |side, connection| {
            connection.psk = psk.clone();
            if side == signer {
                connection.remote_auth = RemoteAuth::Psk;
            } else {
                connection.local_auth = LocalAuth::Psk;
            }
        });
        world.initiate(A);
        world.settle();
        world.assert_up(1);
    }
}

#[test]
fn an_intermediate_authority_is_sent_along_and_needed() {
    let root = Ca::root("Root");
    let middle = root.intermediate("Middle");
    let trust = Arc::new(Trust::new(std::slice::from_ref(&root.der), &[], false).unwrap());
    let part = |side: usize| {
        let pair = key_pair(KeyKind::EcdsaP256);
        Part {
            kind: KeyKind::EcdsaP256,
            chain: vec![middle.issue(&Leaf::named(NAMES[side]), &pair), middle.der.clone()],
            pair,
            trust: trust.clone(),
            rsa_pss: true,
            ocsp: None,
        }
    };
    let mut parts = [part(A), part(B)];
    let mut world1 = world(&parts);
    world1.initiate(A);
    world1.settle();
    world1.assert_up(1);
    parts[A].chain.truncate(1);
    let mut world2 = world(&parts);
    world2.initiate(A);
    world2.settle();
    world2.assert_all_gone();
    let text = world2.event(B, EventKind::AuthFailed).to_string();
    assert!(
        text.contains("CN=Middle") && text.contains("intermediate"),
        "{text}"
    );
}

/// Lets A authenticate to B with a certificate that B does not believe. What B says, and what it said to A.
fn refused(leaf: &Leaf<'_>, by: &Ca, trust: Trust, adjust: impl Fn(usize, &mut Connection)) -> String {
    let (_, mut parts) = parts(KeyKind::EcdsaP256);
    parts[A].chain = vec![by.issue(leaf, &parts[A].pair)];
    parts[B].trust = Arc::new(trust);
    let mut world = world_with(&parts, adjust);
    world.initiate(A);
    world.settle();
    world.assert_all_gone();
    let told = world.event(A, EventKind::AuthFailed).to_string();
    assert!(told.contains("AUTHENTICATION_FAILED"), "{told}");
    assert_eq!(world.sides[B].sent.len(), 2, "one answer to each request");
    let text = world.event(B, EventKind::AuthFailed).to_string();
    assert!(
        text.starts_with("192.0.2.1:500: a.example"),
        "the peer is named: {text}"
    );
    text
}

fn one(ca: &Ca) -> Trust {
    Trust::new(std::slice::from_ref(&ca.der), &[], false).unwrap()
}

#[test]
fn what_is_wrong_with_a_certificate_is_said_with_a_remedy() {
    let (ca, other) = (Ca::root("CA"), Ca::root("Other"));
    let leaf = || Leaf::named("a.example");
    let crl = |serials: &[u64], until| {
        Trust::new(
            std::slice::from_ref(&ca.der),
            &[ca.crl(serials, until)],
            until < 0,
        )
        .unwrap()
    };
    let rows: [(&str, Leaf<'_>, &Ca, Trust, &[&str]); 8] = [
        (
            "another authority",
            leaf(),
            &other,
            one(&ca),
            &["issuer is O=Example, CN=Other", "ca_files"],
        ),
        (
            "expired",
            Leaf {
                valid: (-10, -1),
                ..leaf()
            },
            &ca,
            one(&ca),
            &["expired on 2029-12-31", "renew"],
        ),
        (
            "not yet valid",
            Leaf {
                valid: (1, 10),
                ..leaf()
            },
            &ca,
            one(&ca),
            &["not valid before 2030-01-02", "clocks"],
        ),
        ("revoked", leaf(), &ca, crl(&[7], 10), &["revoked", "serial 07"]),
        (
            "strict, and the list has expired",
            leaf(),
            &ca,
            crl(&[], -1),
            &["revocation list", "expired on 2029-12-31"],
        ),
        (
            "strict, and there is no list",
            leaf(),
            &ca,
            Trust::new(std::slice::from_ref(&ca.der), &[], true).unwrap(),
            &[
                "no revocation list and no OCSP response",
                "crl_files",
                "ocsp_files",
            ],
        ),
        (
            "for something else",
            Leaf {
                usages: vec![ExtendedKeyUsagePurpose::CodeSigning],
                ..leaf()
            },
            &ca,
            one(&ca),
            &["extended key usage"],
        ),
        (
            "of another identity",
            Leaf::named("c.example"),
            &ca,
            one(&ca),
            &["its certificate is of c.example", "subjectAltName"],
        ),
    ];
    for (what, leaf, by, trust, words) in rows {
        let text = refused(&leaf, by, trust, |_, _| {});
        for word in words {
            assert!(text.contains(word), "{what}: {word:?} is not in {text}");
        }
    }
}

#[test]
fn a_certificate_of_another_serial_than_the_revoked_one_is_believed() {
    let (ca, mut parts) = parts(KeyKind::EcdsaP256);
    let strict = Trust::new(std::slice::from_ref(&ca.der), &[ca.crl(&[8], 10)], true).unwrap();
    parts[B].trust = Arc::new(strict);
    let mut world = world(&parts);
    world.initiate(A);
    world.settle();
    world.assert_up(1);
}

#[test]
fn the_initiator_does_not_believe_a_responder_of_another_authority_and_takes_it_down_again() {
    let (_, mut parts) = parts(KeyKind::EcdsaP256);
    parts[A].trust = Arc::new(one(&Ca::root("Other")));
    let mut world = world(&parts);
    world.initiate(A);
    world.settle();
    world.assert_all_gone();
    let text = world.event(A, EventKind::AuthFailed).to_string();
    assert!(
        text.contains("b.example is not believed (connection t)"),
        "{text}"
    );
}

#[test]
fn a_signature_of_another_key_is_refused() {
    let (_, parts) = parts(KeyKind::Ed25519);
    let mut world = world(&parts);
    let other = Rc::new(Key::new(&key_pair(KeyKind::Ed25519)));
    world.sides[A].keys.insert("the key".to_owned(), other);
    world.initiate(A);
    world.settle();
    world.assert_all_gone();
    let text = world.event(B, EventKind::AuthFailed).to_string();
    assert!(text.contains("not of the key in its certificate"), "{text}");
}

#[test]
fn each_kind_of_identity_must_be_in_the_certificate() {
    let ca = Ca::root("CA");
    let dn = DnPattern::parse("O=Example, CN=a").unwrap();
    let der = dn.to_der().unwrap();
    let ids = [
        Identity::parse("A.Example"),
        Identity::parse("192.0.2.1"),
        Identity::parse("2001:db8::1"),
        Identity::parse("alice@Example.org"),
        Identity::Other(9, der),
    ];
    let leaf = Leaf {
        alternative: vec![
            dns("a.example"),
            SanType::IpAddress([192, 0, 2, 1].into()),
            SanType::IpAddress("2001:db8::1".parse().unwrap()),
            SanType::Rfc822Name("alice@example.org".try_into().unwrap()),
        ],
        ..Leaf::named("a")
    };
    for id in ids {
        let (_, mut parts) = parts(KeyKind::EcdsaP256);
        parts[A].chain = vec![ca.issue(&leaf, &parts[A].pair)];
        parts[B].trust = Arc::new(one(&ca));
        let mut world = world_with(&parts, |side, connection| match side {
            A => connection.local_id = id.clone(),
            _ => connection.remote_id = None,
        });
        world.initiate(A);
        world.settle();
        world.assert_up(1);
        assert_eq!(world.only(B).remote_id, Some(id.to_string()));
    }
    let strangers = ["b.example", "192.0.2.2", "bob@example.org", "keyid:a.example"];
    for id in strangers.map(Identity::parse) {
        let (_, mut parts) = parts(KeyKind::EcdsaP256);
        parts[A].chain = vec![ca.issue(&leaf, &parts[A].pair)];
        parts[B].trust = Arc::new(one(&ca));
        let mut world = world_with(&parts, |side, connection| match side {
            A => connection.local_id = id.clone(),
            _ => connection.remote_id = None,
        });
        world.initiate(A);
        world.settle();
        world.assert_all_gone();
    }
}

#[test]
fn a_pattern_lets_many_peers_in_and_nobody_else() {
    for (pattern, fits) in [
        ("O=Example, CN=*", true),
        ("O=Else, CN=*", false),
        ("*.example", false),
    ] {
        let ca = Ca::root("CA");
        let (_, mut parts) = parts(KeyKind::EcdsaP256);
        parts[A].chain = vec![ca.issue(&Leaf::named("a.example"), &parts[A].pair)];
        parts[B].trust = Arc::new(one(&ca));
        let WrittenId::Pattern(parsed) = WrittenId::parse(pattern).unwrap() else {
            panic!("a pattern");
        };
        let dn = DnPattern::parse("O=Example, CN=a.example").unwrap();
        let mut world = world_with(&parts, |side, connection| match side {
            A => connection.local_id = Identity::Other(9, dn.to_der().unwrap()),
            _ => {
                connection.remote_id = None;
                connection.remote_pattern = Some(parsed.clone());
            }
        });
        world.initiate(A);
        world.settle();
        if fits {
            world.assert_up(1);
        } else {
            world.assert_all_gone();
            let text = world.event(B, EventKind::AuthFailed).to_string();
            assert!(text.contains("O=Example, CN=a.example"), "{text}");
        }
        assert!(matches!(parsed, IdPattern::Dn(_) | IdPattern::Domain(_)));
    }
}

#[test]
fn a_pre_shared_key_is_no_certificate_and_the_other_way_round() {
    let (_, parts) = parts(KeyKind::EcdsaP256);
    for (certified_side, word) in [(B, "wants a certificate"), (A, "wants a pre-shared key")] {
        let mut world = world_with(&parts, |side, connection| {
            if side != certified_side {
                *connection = connection_of(side);
            }
        });
        world.initiate(A);
        world.settle();
        world.assert_all_gone();
        let text = world.event(B, EventKind::AuthFailed).to_string();
        assert!(text.contains(word) && text.contains("connection t"), "{text}");
    }
}

fn connection_of(side: usize) -> Connection {
    world::connection(side)
}

#[test]
fn a_member_that_takes_over_while_a_signature_is_waited_for_begins_that_step_anew() {
    for dying in [A, B] {
        let (_, parts) = parts(KeyKind::EcdsaP256);
        let mut world = world(&parts);
        world.sides[dying].hold_signatures = true;
        world.initiate(A);
        world.settle();
        assert_eq!(world.sides[dying].to_sign.len(), 1, "{}", world.story());
        let asked = world.sides[dying].to_sign.remove(0);
        world.take_over(dying);
        world.sides[dying].hold_signatures = false;
        // Signatures for the member that is gone come to nothing.
        let input = ike::Input::Signed {
            now: world.now,
            ike_spi: asked.ike_spi,
            token: asked.token,
            signature: Ok(vec![1; 64]),
        };
        let s = &mut world.sides[dying];
        s.engine.handle(input, &mut s.around);
        world.drain(dying, true);
        // The peer repeats its request, or we repeat ours; the signature is asked for once more.
        world.pass(Duration::from_secs(5));
        world.assert_up(1);
    }
}

#[test]
fn a_peer_that_repeats_its_request_while_we_sign_is_answered_once() {
    let (_, parts) = parts(KeyKind::EcdsaP256);
    let mut world = world(&parts);
    world.sides[B].hold_signatures = true;
    world.initiate(A);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.sides[B].to_sign.len(), 1, "asked once\n{}", world.story());
    world.sign(B);
    world.settle();
    world.assert_up(1);
}

#[test]
fn without_a_signature_the_peer_is_refused_and_told() {
    for side in [A, B] {
        let (_, parts) = parts(KeyKind::EcdsaP256);
        let mut world = world(&parts);
        world.sides[side].keys.clear();
        world.initiate(A);
        world.settle();
        world.pass(Duration::from_secs(40));
        world.assert_all_gone();
        let text = world.event(side, EventKind::Trouble).to_string();
        assert!(text.contains("key_file"), "{text}");
    }
    // The signer hangs.
    let (_, parts) = parts(KeyKind::EcdsaP256);
    let mut world = world(&parts);
    world.sides[A].hold_signatures = true;
    world.initiate(A);
    world.settle();
    world.pass(Duration::from_secs(40));
    world.assert_all_gone();
}

#[test]
fn rekeys_reconnections_and_resumption_go_on_under_certificates() {
    let (_, parts) = parts(KeyKind::Ed25519);
    let mut world = world(&parts);
    for side in [A, B] {
        let s = &mut world.sides[side];
        let mut config = s.engine.config().clone();
        config.endpoint.ticket_secret = Some(model::SecretBytes::new(vec![5; 32]));
        s.engine.set_config(config);
    }
    world.initiate(A);
    world.settle();
    let spi = world.only(A).spi;
    world.command(A, Command::RekeyIke { spi });
    world.settle();
    world.assert_up(1);
    // The peer is silent; the ticket spares a second proof by certificate.
    let signed = world.sides[A].sent.len();
    world.lose_everything(B);
    let spi = world.only(A).spi;
    world.command(A, Command::Liveness { spi });
    world.pass(Duration::from_secs(60));
    world.initiate(A);
    world.settle();
    assert!(world.has_event(B, EventKind::Resumed), "{}", world.story());
    assert!(world.sides[A].sent.len() > signed);
}
