//! The programs' AEADs against Project Wycheproof's vectors.
//!
//! The programs take ESP's AAD only, 8 or 12 octets; most vectors have another. The ciphertext does not depend on it, and the vector's tag is
//! carried over: where it differs from the provider's under the vector's AAD, the provider's tag under ESP's AAD is made to differ in the same
//! bits. Nonces of other lengths than ESP's cannot be expressed; they are counted.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use datapath::aead::{self, Opened, Scratch};
use maps_schema::sad::{SUITE_AES128_GCM, SUITE_AES256_GCM, SUITE_CHACHA20_POLY1305};
use wycheproof::aead::{Test, TestName, TestSet};

#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    /// Vectors whose AAD is as long as ESP's: nothing was carried over.
    as_it_is: usize,
    /// Valid vectors under both of ESP's AADs.
    opened: usize,
    /// Invalid vectors under both of ESP's AADs.
    refused: usize,
    /// Nonces or keys of other lengths.
    other: usize,
}

/// Ciphertext and tag by the provider.
fn sealed(key: &LessSafeKey, nonce: [u8; 12], aad: &[u8], plain: &[u8]) -> (Vec<u8>, [u8; 16]) {
    let mut text = plain.to_vec();
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = key.seal_in_place_separate_tag(nonce, Aad::from(aad), &mut text);
    let tag = tag.expect("sealed").as_ref().try_into().expect("16 octets");
    (text, tag)
}

fn load(scratch: &mut Scratch, nonce: [u8; 12], aad: &[u8], text: &[u8]) {
    scratch.iv[..8].copy_from_slice(&nonce[4..]);
    scratch.aad[..aad.len()].copy_from_slice(aad);
    scratch.aad_len = aad.len() as u32;
    scratch.text_len = text.len() as u32;
    scratch.text_mut()[..text.len()].copy_from_slice(text);
}

fn check(suite: u8, algorithm: &'static Algorithm, test: &Test, nonce: [u8; 12], count: &mut Count) {
    let (what, valid) = ((suite, test.tc_id, &test.comment), !test.result.must_fail());
    let salt = nonce[..4].try_into().expect("four octets");
    let key = aead::expand(suite, &test.key, salt, 1).expect("a key");
    let provider = LessSafeKey::new(UnboundKey::new(algorithm, &test.key).expect("a key"));
    // Counter mode is its own inverse, and tags need not be right for that.
    let (plain, _) = sealed(&provider, nonce, &[], &test.ct);
    let ((_, theirs), len) = (sealed(&provider, nonce, &test.aad, &plain), test.ct.len());
    assert_eq!(theirs == test.tag[..], valid, "{what:?}");
    if valid {
        assert_eq!(plain, test.pt[..], "{what:?}");
    }
    let mut scratch = Scratch::default();
    let mut both = |aad: &[u8], icv: [u8; 16]| {
        load(&mut scratch, nonce, aad, &test.ct);
        scratch.tag = icv;
        assert_eq!(aead::open(&key, &mut scratch), Opened(valid), "{what:?}");
        if valid {
            assert_eq!(scratch.text()[..len], plain, "{what:?}");
            load(&mut scratch, nonce, aad, &plain);
            assert!(aead::seal(&key, &mut scratch), "{what:?}");
            assert_eq!(scratch.text()[..len], test.ct[..], "{what:?}");
            assert_eq!(scratch.tag, icv, "{what:?}");
        }
    };
    if [8, 12].contains(&test.aad.len()) {
        both(&test.aad, test.tag[..].try_into().expect("16 octets"));
        count.as_it_is += 1;
    }
    for aad in [&[0x5a; 8][..], &[0xc3; 12]] {
        let (_, mut icv) = sealed(&provider, nonce, aad, &plain);
        for (octet, (theirs, given)) in icv.iter_mut().zip(theirs.iter().zip(&test.tag[..])) {
            *octet ^= theirs ^ given;
        }
        both(aad, icv);
    }
    match valid {
        true => count.opened += 1,
        false => count.refused += 1,
    }
}

fn run(name: TestName, suites: &[(u8, &'static Algorithm)]) -> Count {
    let mut count = Count::default();
    for group in TestSet::load(name).expect("vectors").test_groups {
        assert_eq!(group.tag_size, 128);
        let suite = suites
            .iter()
            .find(|(_, algorithm)| 8 * algorithm.key_len() == group.key_size);
        for test in &group.tests {
            match (suite, test.nonce[..].try_into()) {
                (Some((suite, algorithm)), Ok(nonce)) => check(*suite, algorithm, test, nonce, &mut count),
                _ => count.other += 1,
            }
        }
    }
    count
}

#[test]
fn aes_gcm() {
    let suites = [(SUITE_AES128_GCM, &AES_128_GCM), (SUITE_AES256_GCM, &AES_256_GCM)];
    let expected = Count {
        as_it_is: 4,
        opened: 79,
        refused: 54,
        other: 183,
    };
    assert_eq!(run(TestName::AesGcm, &suites), expected);
}

#[test]
fn chacha20_poly1305() {
    let suites = [(SUITE_CHACHA20_POLY1305, &CHACHA20_POLY1305)];
    let expected = Count {
        as_it_is: 47,
        opened: 256,
        refused: 60,
        other: 9,
    };
    assert_eq!(run(TestName::ChaCha20Poly1305, &suites), expected);
}
