//! Key exchange, hashes and the AUTH payload: what must be refused, and what must not depend on who computes it.

use crypto::{
    AuthInput, CryptoError, DhGroup, Prf, ct_eq, nat_detection_hash, psk_auth, sha256, verify_psk_auth,
};
use model::{IkeSpi, SecretBytes};

/// A deterministic source: SHA-256 of a counter.
fn source(seed: u8) -> impl FnMut(&mut [u8]) {
    let mut counter = 0u64;
    move |out: &mut [u8]| {
        for chunk in out.chunks_mut(32) {
            counter += 1;
            chunk.copy_from_slice(&sha256(&[&[seed], &counter.to_be_bytes()])[..chunk.len()]);
        }
    }
}

#[test]
fn both_sides_agree_and_an_exported_key_goes_on_elsewhere() {
    for group in [DhGroup::Curve25519, DhGroup::Ecp256] {
        let ours = group.generate(&mut source(1)).unwrap();
        let theirs = group.generate(&mut source(2)).unwrap();
        assert_eq!(ours.public().len(), group.public_len());
        assert!(ours.public() != theirs.public());

        let moved = group.restore(&ours.export()).unwrap();
        assert_eq!(moved.public(), ours.public());
        let shared = theirs.agree(ours.public()).unwrap();
        assert_eq!(moved.agree(theirs.public()).unwrap().expose(), shared.expose());
    }
}

#[test]
fn points_of_small_order_on_curve25519_are_refused() {
    let key = DhGroup::Curve25519.generate(&mut source(3)).unwrap();
    let mut one = [0; 32];
    one[0] = 1;
    for (name, point) in [("zero", [0; 32]), ("one", one)] {
        assert_eq!(
            key.agree(&point).err(),
            Some(CryptoError::NonContributory),
            "{name}"
        );
    }
}

#[test]
fn points_outside_p256_are_refused() {
    let key = DhGroup::Ecp256.generate(&mut source(4)).unwrap();
    let mut off_curve = DhGroup::Ecp256
        .generate(&mut source(5))
        .unwrap()
        .public()
        .to_vec();
    off_curve[63] ^= 1;
    assert_eq!(key.agree(&off_curve).err(), Some(CryptoError::PeerPublic));
    assert_eq!(
        key.agree(&[0; 64]).err(),
        Some(CryptoError::PeerPublic),
        "infinity as zeros"
    );
    assert!(matches!(
        key.agree(&[4; 65]),
        Err(CryptoError::Length {
            expected: 64,
            got: 65,
            ..
        })
    ));
}

#[test]
fn p256_asks_again_after_an_impossible_scalar_and_gives_up_on_a_broken_source() {
    let mut calls = 0;
    let mut good = source(6);
    let key = DhGroup::Ecp256.generate(&mut |out| {
        calls += 1;
        if calls == 1 { out.fill(0xff) } else { good(out) }
    });
    assert!(key.is_ok());
    assert_eq!(calls, 2);
    assert_eq!(
        DhGroup::Ecp256.generate(&mut |out| out.fill(0)).err(),
        Some(CryptoError::RandomSource)
    );
    assert_eq!(
        DhGroup::Ecp256.restore(&SecretBytes::new(vec![0; 32])).err(),
        Some(CryptoError::PrivateKey)
    );
    assert_eq!(
        DhGroup::Curve25519.restore(&SecretBytes::new(vec![0; 31])).err(),
        Some(CryptoError::PrivateKey)
    );
}

#[test]
fn nat_detection_hash_covers_spis_address_and_port() {
    let hash = |spi_i, spi_r, address: &str| {
        nat_detection_hash(IkeSpi(spi_i), IkeSpi(spi_r), address.parse().unwrap())
    };
    let base = hash(1, 2, "192.0.2.1:500");
    assert_eq!(
        base,
        hash(1, 2, "[::ffff:192.0.2.1]:500"),
        "IPv4 seen through an IPv6 socket"
    );
    for other in [
        hash(3, 2, "192.0.2.1:500"),
        hash(1, 3, "192.0.2.1:500"),
        hash(1, 2, "192.0.2.2:500"),
        hash(1, 2, "192.0.2.1:4500"),
        hash(1, 2, "[2001:db8::1]:500"),
    ] {
        assert_ne!(base, other);
    }
}

#[test]
fn auth_depends_on_every_input() {
    let (psk, sk_p) = (
        SecretBytes::new(b"secret".to_vec()),
        SecretBytes::new(vec![1; 32]),
    );
    let input = AuthInput {
        message: b"message",
        nonce: b"nonce",
        sk_p: &sk_p,
        id_body: b"id",
    };
    let auth = psk_auth(Prf::HmacSha256, &psk, input);
    assert_eq!(auth.len(), 32);
    assert!(verify_psk_auth(Prf::HmacSha256, &psk, input, &auth));

    let other_key = SecretBytes::new(vec![2; 32]);
    let others = [
        (
            "message",
            AuthInput {
                message: b"massage",
                ..input
            },
        ),
        (
            "nonce",
            AuthInput {
                nonce: b"once",
                ..input
            },
        ),
        (
            "SK_p",
            AuthInput {
                sk_p: &other_key,
                ..input
            },
        ),
        (
            "ID",
            AuthInput {
                id_body: b"di",
                ..input
            },
        ),
    ];
    for (name, other) in others {
        assert!(!verify_psk_auth(Prf::HmacSha256, &psk, other, &auth), "{name}");
    }
    assert!(!verify_psk_auth(
        Prf::HmacSha256,
        &SecretBytes::new(b"Secret".to_vec()),
        input,
        &auth
    ));
    assert!(
        !verify_psk_auth(Prf::HmacSha256, &psk, input, &auth[..31]),
        "a shorter one"
    );
}

#[test]
fn comparison_needs_equal_lengths() {
    assert!(ct_eq(b"abc", b"abc"));
    assert!(!ct_eq(b"abc", b"abd"));
    assert!(!ct_eq(b"abc", b"ab"));
}

#[test]
fn ready_keys_may_move_between_threads() {
    fn movable<T: Send + Sync>() {}
    movable::<crypto::SkKey>();
    movable::<crypto::EspKey>();
    movable::<crypto::DhPrivate>();
}
