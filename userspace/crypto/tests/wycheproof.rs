//! Project Wycheproof's vectors, through the interfaces that the engine uses.

use crypto::{CryptoError, DhGroup, IkeCipher, Integrity, Prf, SkKey, hmac_sha256};
use model::SecretBytes;
use wycheproof::TestResult;

#[test]
fn x25519() {
    use wycheproof::xdh::{TestName, TestSet};
    let (mut agreed, mut refused) = (0, 0);
    for group in TestSet::load(TestName::X25519).unwrap().test_groups {
        for test in group.tests {
            let key = DhGroup::Curve25519
                .restore(&SecretBytes::new(test.private_key.to_vec()))
                .unwrap();
            match key.agree(&test.public_key) {
                Ok(shared) => {
                    assert!(!test.result.must_fail(), "{}: {}", test.tc_id, test.comment);
                    assert_eq!(shared.expose(), &test.shared_secret[..], "{}", test.tc_id);
                    agreed += 1;
                }
                // Points of small order: the RFC lets us refuse them, and we do.
                Err(CryptoError::NonContributory) => {
                    assert!(test.shared_secret.iter().all(|o| *o == 0), "{}", test.tc_id);
                    refused += 1;
                }
                Err(error) => panic!("{}: {error}", test.tc_id),
            }
        }
    }
    assert!(agreed > 450 && refused > 20, "{agreed}, {refused}");
}

#[test]
fn ecdh() {
    use wycheproof::ecdh::{TestName, TestSet};
    for (name, group) in [
        (TestName::EcdhSecp256r1Ecpoint, DhGroup::Ecp256),
        (TestName::EcdhSecp384r1Ecpoint, DhGroup::Ecp384),
        (TestName::EcdhSecp521r1Ecpoint, DhGroup::Ecp521),
    ] {
        let (mut agreed, mut refused) = (0, 0);
        for test in TestSet::load(name)
            .unwrap()
            .test_groups
            .iter()
            .flat_map(|g| &g.tests)
        {
            // IKE's encoding has no marker in front, and compressed points do not exist.
            let Some((4, point)) = test.public_key.split_first().map(|(mark, point)| (*mark, point)) else {
                continue;
            };
            let len = group.public_len() / 2;
            let scalar = &test.private_key[test.private_key.len().saturating_sub(len)..];
            let mut padded = vec![0; len - scalar.len()];
            padded.extend_from_slice(scalar);
            let key = group.restore(&SecretBytes::new(padded)).unwrap();
            match key.agree(point) {
                Ok(shared) => {
                    assert!(
                        !test.result.must_fail(),
                        "{group:?} {}: {}",
                        test.tc_id,
                        test.comment
                    );
                    assert_eq!(
                        shared.expose(),
                        &test.shared_secret[..],
                        "{group:?} {}",
                        test.tc_id
                    );
                    agreed += 1;
                }
                Err(error) => {
                    assert_eq!(
                        test.result,
                        TestResult::Invalid,
                        "{group:?} {}: {error}",
                        test.tc_id
                    );
                    refused += 1;
                }
            }
        }
        assert!(agreed > 100 && refused > 0, "{group:?}: {agreed}, {refused}");
    }
}

#[test]
fn ml_kem_decapsulation() {
    use wycheproof::mlkem::{TestName, TestSet};
    for (name, group) in [
        (TestName::MlKem768SemiExpandedDecaps, DhGroup::MlKem768),
        (TestName::MlKem1024SemiExpandedDecaps, DhGroup::MlKem1024),
    ] {
        let (mut agreed, mut refused) = (0, 0);
        for test in TestSet::load(name)
            .unwrap()
            .test_groups
            .iter()
            .flat_map(|g| &g.tests)
        {
            let (Some(key), Some(ciphertext)) = (&test.decaps_key, &test.ct) else {
                panic!("{}: without key or ciphertext", test.tc_id);
            };
            let shared = group
                .restore(&SecretBytes::new(key.to_vec()))
                .and_then(|key| key.agree(ciphertext));
            match (shared, &test.shared_secret) {
                (Ok(shared), Some(expected)) if !test.result.must_fail() => {
                    assert_eq!(shared.expose(), &expected[..], "{group:?} {}", test.tc_id);
                    agreed += 1;
                }
                (Ok(_), _) => assert!(
                    !test.result.must_fail(),
                    "{group:?} {}: {}",
                    test.tc_id,
                    test.comment
                ),
                (Err(error), _) => {
                    assert!(test.result.must_fail(), "{group:?} {}: {error}", test.tc_id);
                    refused += 1;
                }
            }
        }
        assert!(agreed > 2 && refused > 2, "{group:?}: {agreed}, {refused}");
    }
}

/// Where the encapsulation key stands in a decapsulation key.
#[test]
fn ml_kem_keys() {
    use wycheproof::mlkem::{TestName, TestSet};
    for (name, group) in [
        (TestName::MlKem768KeyGenSeed, DhGroup::MlKem768),
        (TestName::MlKem1024KeyGenSeed, DhGroup::MlKem1024),
    ] {
        let mut restored = 0;
        for test in TestSet::load(name)
            .unwrap()
            .test_groups
            .iter()
            .flat_map(|g| &g.tests)
        {
            if let (Some(public), Some(key)) = (&test.encaps_key, &test.decaps_key) {
                let key = group.restore(&SecretBytes::new(key.to_vec())).unwrap();
                assert_eq!(key.public(), &public[..], "{group:?} {}", test.tc_id);
                restored += 1;
            }
        }
        assert!(restored > 2, "{group:?}: {restored}");
    }
}

#[test]
fn ml_kem_encapsulation_checks_the_peers_key() {
    use wycheproof::mlkem::{TestName, TestSet};
    for (name, group) in [
        (TestName::MlKem768Encaps, DhGroup::MlKem768),
        (TestName::MlKem1024Encaps, DhGroup::MlKem1024),
    ] {
        let (mut taken, mut refused) = (0, 0);
        for test in TestSet::load(name)
            .unwrap()
            .test_groups
            .iter()
            .flat_map(|g| &g.tests)
        {
            let key = test.encaps_key.as_ref().expect("ek");
            // The provider's randomness cannot be given, so only the verdict is compared.
            let answer = group.respond(&mut |out| out.fill(7), key);
            assert_eq!(
                answer.is_err(),
                test.result.must_fail(),
                "{group:?} {}: {}",
                test.tc_id,
                test.comment
            );
            match answer {
                Ok(_) => taken += 1,
                Err(_) => refused += 1,
            }
        }
        assert!(taken > 0 && refused > 0, "{group:?}: {taken}, {refused}");
    }
}

/// SK payloads end with padding and its length: what of a plaintext is left without them.
fn without_padding(text: &[u8]) -> Option<&[u8]> {
    let (pad, rest) = text.split_last()?;
    rest.get(..rest.len().checked_sub(usize::from(*pad))?)
}

#[test]
fn aeads_of_sk_payloads() {
    use wycheproof::aead::{TestName, TestSet};
    for name in [TestName::AesGcm, TestName::ChaCha20Poly1305] {
        let (mut opened, mut refused) = (0, 0);
        for group in TestSet::load(name).unwrap().test_groups {
            let cipher = match (name, group.key_size) {
                (TestName::AesGcm, 128) => IkeCipher::Aes128Gcm16,
                (TestName::AesGcm, 256) => IkeCipher::Aes256Gcm16,
                (TestName::ChaCha20Poly1305, 256) => IkeCipher::ChaCha20Poly1305,
                _ => continue,
            };
            if (group.nonce_size, group.tag_size) != (96, 128) {
                continue;
            }
            for test in &group.tests {
                let (salt, iv) = test.nonce.split_at(4);
                let key = SkKey::new(cipher, &[&test.key[..], salt].concat(), &[]).unwrap();
                let sealed = [iv, &test.ct[..], &test.tag[..]].concat();
                let result = key.open(&test.aad, &sealed);
                if test.ct.is_empty() {
                    assert!(
                        matches!(result, Err(CryptoError::Truncated { .. })),
                        "{}",
                        test.tc_id
                    );
                } else if test.result.must_fail() {
                    assert_eq!(
                        result.err(),
                        Some(CryptoError::Integrity),
                        "{cipher:?} {}",
                        test.tc_id
                    );
                    refused += 1;
                } else {
                    match without_padding(&test.pt) {
                        Some(inner) => assert_eq!(result.unwrap(), inner, "{cipher:?} {}", test.tc_id),
                        None => assert_eq!(result.err(), Some(CryptoError::Padding), "{}", test.tc_id),
                    }
                    opened += 1;
                }
            }
        }
        assert!(opened > 60 && refused > 30, "{name:?}: {opened}, {refused}");
    }
}

/// The vectors' padding is PKCS #5's, which as an SK payload's is one octet longer than it. Which of those with wrong padding decrypt to an
/// SK payload is chance, but none may be taken for one that is not authentic.
#[test]
fn aes_cbc_of_sk_payloads() {
    use wycheproof::cipher::{TestName, TestSet};
    let (mut opened, mut other) = (0, 0);
    for group in TestSet::load(TestName::AesCbcPkcs5).unwrap().test_groups {
        let cipher = match group.key_size {
            128 => IkeCipher::Aes128Cbc(Integrity::HmacSha256_128),
            256 => IkeCipher::Aes256Cbc(Integrity::HmacSha256_128),
            _ => continue,
        };
        for test in &group.tests {
            let (prefix, mac_key) = ([0xa5; 32], [0x0b; 32]);
            let key = SkKey::new(cipher, &test.key, &mac_key).unwrap();
            let mut sealed = [&test.nonce[..], &test.ct].concat();
            let mac = hmac_sha256(&mac_key, &[&prefix, &sealed]);
            sealed.extend(&mac[..16]);
            let result = key.open(&prefix, &sealed);
            if test.result.must_fail() {
                assert_ne!(result.err(), Some(CryptoError::Integrity), "{}", test.tc_id);
                other += 1;
                continue;
            }
            match test.pt.split_last() {
                Some((_, inner)) => assert_eq!(result.unwrap(), inner, "{cipher:?} {}", test.tc_id),
                None => assert_eq!(result.err(), Some(CryptoError::Padding), "{}", test.tc_id),
            }
            opened += 1;
        }
    }
    assert_eq!((opened, other), (48, 96));
}

/// Few of these vectors are as long as the shortest SK payload, an IV and a block; none of them is an invalid one, so a bit of each is altered.
#[test]
fn hmac_of_sk_payloads() {
    use wycheproof::mac::{TestName, TestSet};
    for (name, integrity) in [
        (TestName::HmacSha256, Integrity::HmacSha256_128),
        (TestName::HmacSha384, Integrity::HmacSha384_192),
        (TestName::HmacSha512, Integrity::HmacSha512_256),
    ] {
        let mut authentic = 0;
        for group in TestSet::load(name).unwrap().test_groups {
            if (group.key_size, group.tag_size) != (8 * integrity.key_len(), 8 * integrity.icv_len()) {
                continue;
            }
            for test in group.tests.iter().filter(|test| test.msg.len() >= 32) {
                assert!(!test.result.must_fail(), "{}", test.tc_id);
                let key = SkKey::new(IkeCipher::Aes128Cbc(integrity), &[0x5c; 16], &test.key).unwrap();
                let (prefix, sealed) = test.msg.split_at(test.msg.len() % 16);
                // Any block may be the end of the prefix, also the last one before an IV and a block.
                for blocks in 0..=sealed.len() / 16 - 2 {
                    let (more, sealed) = sealed.split_at(16 * blocks);
                    let prefix = [prefix, more].concat();
                    let mut packet = [sealed, &test.tag].concat();
                    let outcome = key.open(&prefix, &packet).err();
                    assert_ne!(
                        outcome,
                        Some(CryptoError::Integrity),
                        "{integrity:?} {}",
                        test.tc_id
                    );
                    authentic += 1;
                    for at in sealed.len()..packet.len() {
                        packet[at] ^= 0x80;
                        let outcome = key.open(&prefix, &packet).err();
                        assert_eq!(
                            outcome,
                            Some(CryptoError::Integrity),
                            "{integrity:?} {}",
                            test.tc_id
                        );
                        packet[at] ^= 0x80;
                    }
                }
            }
        }
        assert_eq!(authentic, 39, "{integrity:?}");
    }
}

#[test]
fn hmac_as_prf() {
    use wycheproof::mac::{TestName, TestSet};
    for (name, prf) in [
        (TestName::HmacSha256, Prf::HmacSha256),
        (TestName::HmacSha384, Prf::HmacSha384),
        (TestName::HmacSha512, Prf::HmacSha512),
    ] {
        let (mut equal, mut different) = (0, 0);
        for test in TestSet::load(name)
            .unwrap()
            .test_groups
            .iter()
            .flat_map(|g| &g.tests)
        {
            let tag = prf.compute(&test.key, &[&test.msg]);
            let same = tag.expose().starts_with(&test.tag);
            assert_eq!(
                same,
                !test.result.must_fail(),
                "{prf:?} {}: {}",
                test.tc_id,
                test.comment
            );
            if same { equal += 1 } else { different += 1 }
        }
        assert!(equal > 30 && different > 30, "{prf:?}: {equal}, {different}");
    }
}
