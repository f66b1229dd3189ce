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
    for group in DhGroup::ALL {
        let ours = group.generate(&mut source(1)).unwrap();
        assert_eq!(ours.public().len(), group.public_len(), "{group:?}");
        assert_eq!(DhGroup::from_transform_id(group.transform_id()), Some(group));

        let moved = group.restore(&ours.export()).unwrap();
        assert_eq!(moved.public(), ours.public(), "{group:?}");
        let (shared, answer) = group.respond(&mut source(2), ours.public()).unwrap();
        assert_eq!(answer.len(), group.response_len(), "{group:?}");
        assert!(answer != ours.public(), "{group:?}");
        assert_eq!(
            moved.agree(&answer).unwrap().expose(),
            shared.expose(),
            "{group:?}"
        );
        assert_eq!(
            ours.agree(&answer).unwrap().expose(),
            shared.expose(),
            "{group:?}"
        );

        let (again, _) = group.respond(&mut source(3), ours.public()).unwrap();
        assert_ne!(again.expose(), shared.expose(), "{group:?}");
    }
}

#[test]
fn values_of_the_wrong_length_are_refused_before_any_arithmetic() {
    for group in DhGroup::ALL {
        let key = group.generate(&mut source(7)).unwrap();
        for len in [0, 1, group.response_len() - 1, group.response_len() + 1, 4096] {
            let length = |error| matches!(error, Some(CryptoError::Length { got, .. }) if got == len);
            assert!(length(key.agree(&vec![1; len]).err()), "{group:?} {len}");
        }
        for len in [0, 1, group.public_len() - 1, group.public_len() + 1, 4096] {
            let answer = group.respond(&mut source(8), &vec![1; len]).map(drop);
            assert!(
                matches!(answer, Err(CryptoError::Length { got, .. }) if got == len),
                "{group:?} {len}"
            );
        }
        let short = SecretBytes::new(vec![1; key.export().len() - 1]);
        assert_eq!(
            group.restore(&short).err(),
            Some(CryptoError::PrivateKey),
            "{group:?}"
        );
    }
}

/// The exponents are SHA-256 of "a" or "b" and the size, stretched; Python's pow() gave the rest.
#[test]
fn modp_groups_agree_with_another_implementation() {
    let rows = [
        (
            DhGroup::Modp2048,
            "f7a559740962d435fbe367905bee63ef810f4eb78505a29be575acce7b022c2f",
            "2fa66a7df3d0fbb45605dd15cf04732c80cd0f44f955037b10222c1892b5c734",
            "2e5d63cdb6285f550748b89f3f004c2a56a5746d5da32617a88412cb1e1dd05f",
        ),
        (
            DhGroup::Modp3072,
            "fb048cfb599a79ca5795dd385bcf59845f2b9e0aa512cf51535bb0fd9d87d036",
            "203f3308ae2c3520bfe06cdece531914fbfb035182c4f2bb32fb9bc573df4d29",
            "2cfec715de646dfbb272c04143cd8cf2c68290ba4d951d95054069ce2ed281fc",
        ),
        (
            DhGroup::Modp4096,
            "9fb511d2ff8c25b532ddc8d8f54087b9dc20c21bfd72b01dfc07ef64ef7675f0",
            "8481dae5e106ad2758dda85b5ea730d55d3ebeaa7d2760903fa75dcc3ce81f42",
            "aa22c636688fdf9b34c00a59f53d0916b2db5263fd55c0a3c53b0ef07825f5dc",
        ),
    ];
    for (group, public_a, public_b, shared) in rows {
        let size = group.public_len() * 8;
        let stretched = |side: &str| {
            let seed = format!("{side}{size}");
            move |out: &mut [u8]| {
                for (chunk, counter) in out.chunks_mut(32).zip(0u8..) {
                    chunk.copy_from_slice(&sha256(&[seed.as_bytes(), &[counter]])[..chunk.len()]);
                }
            }
        };
        let a = group.generate(&mut stretched("a")).unwrap();
        let b = group.generate(&mut stretched("b")).unwrap();
        let digest = |octets: &[u8]| {
            let digest = sha256(&[octets]);
            digest
                .iter()
                .map(|octet| format!("{octet:02x}"))
                .collect::<String>()
        };
        assert_eq!(digest(a.public()), public_a, "{group:?}");
        assert_eq!(digest(b.public()), public_b, "{group:?}");
        assert_eq!(digest(a.agree(b.public()).unwrap().expose()), shared, "{group:?}");
        assert_eq!(digest(b.agree(a.public()).unwrap().expose()), shared, "{group:?}");
    }
}

/// RFC 6989 2.1: 1 < r < p - 1.
#[test]
fn values_outside_of_a_modp_group_are_refused() {
    for group in [DhGroup::Modp2048, DhGroup::Modp3072, DhGroup::Modp4096] {
        let key = group.generate(&mut source(9)).unwrap();
        let len = group.public_len();
        let number = |low: u8| {
            let mut octets = vec![0; len];
            octets[len - 1] = low;
            octets
        };
        // p and p - 1 begin and end with 64 ones; only the private part of the crate knows what stands between.
        let all_ones = vec![0xff; len];
        for (name, value) in [("0", number(0)), ("1", number(1)), ("2^n - 1", all_ones)] {
            assert_eq!(
                key.agree(&value).err(),
                Some(CryptoError::PeerPublic),
                "{group:?} {name}"
            );
            let answer = group.respond(&mut source(10), &value).map(drop);
            assert_eq!(answer.err(), Some(CryptoError::PeerPublic), "{group:?} {name}");
        }
        assert!(key.agree(&number(2)).is_ok(), "{group:?} 2");
        let broken = group.generate(&mut |out| out.fill(0));
        assert_eq!(broken.err(), Some(CryptoError::RandomSource), "{group:?}");
    }
}

/// A ciphertext that somebody changed gives another secret, not an error (FIPS 203 6.3).
#[test]
fn ml_kem_rejects_implicitly() {
    for group in [DhGroup::MlKem768, DhGroup::MlKem1024] {
        let key = group.generate(&mut source(1)).unwrap();
        let (shared, mut ciphertext) = group.respond(&mut source(2), key.public()).unwrap();
        ciphertext[100] ^= 1;
        let other = key.agree(&ciphertext).unwrap();
        assert_ne!(other.expose(), shared.expose(), "{group:?}");
        assert_eq!(
            other.expose(),
            key.agree(&ciphertext).unwrap().expose(),
            "{group:?}"
        );
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
        intermediate: &[],
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
        (
            "IntAuth",
            AuthInput {
                intermediate: b"more",
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
