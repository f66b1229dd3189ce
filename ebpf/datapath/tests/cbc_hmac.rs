//! AES-CBC with HMAC-SHA2-256-128 against published vectors and aws-lc-rs: every number of blocks, altered packets, the IV.

use aws_lc_rs::cipher::{
    AES_128, AES_256, Algorithm, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext,
    UnboundCipherKey,
};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use datapath::aead::{self, AAD_ESN, AAD_PLAIN, Opened, Scratch, TEXT_MAX};
use maps_schema::sad::{SUITE_AES128_CBC_SHA256, SUITE_AES256_CBC_SHA256, SaKey};
use std::collections::BTreeSet;

const BLOCK: usize = 16;
const SUITES: [(u8, &Algorithm, usize); 2] = [
    (SUITE_AES128_CBC_SHA256, &AES_128, 16),
    (SUITE_AES256_CBC_SHA256, &AES_256, 32),
];
const VECTORS: &str = include_str!("../../../tests/vectors/cbc/published.txt");

/// SplitMix64: enough for test data, and its whole state is the seed that a failure prints.
struct Random(u64);

impl Random {
    /// Seeded by `AEAD_SEED` if set, else by the time; printed, so that a failure can be repeated.
    fn new(test: &str) -> Self {
        let seed = match std::env::var("AEAD_SEED") {
            Ok(seed) => seed.parse().expect("AEAD_SEED is a decimal number"),
            Err(_) => std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap()
                .as_nanos() as u64,
        };
        println!("{test}: AEAD_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn octets(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// The other implementation.
struct Peer {
    algorithm: &'static Algorithm,
    cipher: Vec<u8>,
    integrity: hmac::Key,
}

impl Peer {
    fn new(algorithm: &'static Algorithm, material: &[u8]) -> Self {
        let (cipher, integrity) = material.split_at(material.len() - 32);
        Self {
            algorithm,
            cipher: cipher.to_vec(),
            integrity: hmac::Key::new(hmac::HMAC_SHA256, integrity),
        }
    }

    fn encrypted(&self, iv: [u8; BLOCK], plain: &[u8]) -> Vec<u8> {
        let key = UnboundCipherKey::new(self.algorithm, &self.cipher).unwrap();
        let mut text = plain.to_vec();
        EncryptingKey::cbc(key)
            .unwrap()
            .less_safe_encrypt(&mut text, EncryptionContext::Iv128(FixedLength::from(iv)))
            .unwrap();
        text
    }

    /// One block under the cipher alone.
    fn block(&self, block: [u8; BLOCK]) -> [u8; BLOCK] {
        self.encrypted([0; BLOCK], &block).try_into().unwrap()
    }

    fn block_inverse(&self, block: [u8; BLOCK]) -> [u8; BLOCK] {
        let key = UnboundCipherKey::new(self.algorithm, &self.cipher).unwrap();
        let mut text = block;
        DecryptingKey::cbc(key)
            .unwrap()
            .decrypt(&mut text, DecryptionContext::Iv128(FixedLength::from([0; BLOCK])))
            .unwrap();
        text
    }

    /// SPI, low half, IV, ciphertext; with ESN the high half behind them (RFC 4303 2.8.1).
    fn icv(&self, aad: &[u8], iv: &[u8], sealed: &[u8]) -> [u8; 16] {
        let mut context = hmac::Context::with_key(&self.integrity);
        context.update(&aad[..4]);
        context.update(&aad[aad.len() - 4..]);
        context.update(iv);
        context.update(sealed);
        context.update(&aad[4..aad.len() - 4]);
        context.sign().as_ref()[..16].try_into().unwrap()
    }
}

/// One packet before and after sealing by the other implementation.
struct Case {
    key: Box<SaKey>,
    nonce: [u8; BLOCK],
    iv: [u8; BLOCK],
    aad: Vec<u8>,
    plain: Vec<u8>,
    sealed: Vec<u8>,
    tag: [u8; 16],
    what: String,
}

impl Case {
    fn random(random: &mut Random, suite: usize, blocks: usize, aad_len: u32) -> Self {
        let (suite, algorithm, key_len) = SUITES[suite];
        let material = random.octets(key_len + 32);
        let peer = Peer::new(algorithm, &material);
        let nonce: [u8; BLOCK] = random.octets(BLOCK).try_into().unwrap();
        let (aad, plain) = (random.octets(aad_len as usize), random.octets(blocks * BLOCK));
        let iv = peer.block(nonce);
        let sealed = peer.encrypted(iv, &plain);
        Self {
            key: Box::new(aead::expand(suite, &material, [0; 4], 0x1234_5678).unwrap()),
            nonce,
            iv,
            tag: peer.icv(&aad, &iv, &sealed),
            what: format!("suite {suite}, {blocks} blocks, AAD {aad_len}"),
            aad,
            plain,
            sealed,
        }
    }

    /// Fills the parameters; what lies behind AAD and text is random, as after an earlier packet.
    fn load(&self, scratch: &mut Scratch, random: &mut Random, iv: [u8; BLOCK], text: &[u8]) {
        let (at, len) = (text.len(), 96.min(TEXT_MAX - text.len()));
        scratch.text_mut()[at..at + len].copy_from_slice(&random.octets(len));
        scratch.text_mut()[..at].copy_from_slice(text);
        scratch.aad.copy_from_slice(&random.octets(16));
        scratch.aad[..self.aad.len()].copy_from_slice(&self.aad);
        scratch.aad_len = self.aad.len() as u32;
        scratch.text_len = at as u32;
        scratch.iv = iv;
        scratch.tag = self.tag;
    }

    fn check(&self, scratch: &mut Scratch, random: &mut Random) {
        let (what, len) = (&self.what, self.plain.len());
        self.load(scratch, random, self.nonce, &self.plain);
        scratch.tag = [0; 16];
        assert!(aead::seal(&self.key, scratch), "{what}");
        assert_eq!(scratch.iv, self.iv, "IV, {what}");
        assert_eq!(scratch.text()[..len], self.sealed, "sealed text, {what}");
        assert_eq!(scratch.tag, self.tag, "tag, {what}");
        self.load(scratch, random, self.iv, &self.sealed);
        assert_eq!(aead::open(&self.key, scratch), Opened(true), "{what}");
        assert_eq!(scratch.text()[..len], self.plain, "opened text, {what}");
    }
}

fn octets(digits: &str) -> Vec<u8> {
    let digit = |c: u8| (c as char).to_digit(16).expect("hexadecimal") as u8;
    assert_eq!(digits.len() % 2, 0, "{digits} has half an octet");
    digits
        .as_bytes()
        .chunks_exact(2)
        .map(|pair| digit(pair[0]) * 16 + digit(pair[1]))
        .collect()
}

/// The vectors' IVs are not made of a nonce; the one that would give them is found by decrypting them.
#[test]
fn published_vectors_seal_and_open() {
    let parts: Vec<&str> = VECTORS.split("\n\n").filter(|p| p.starts_with("name")).collect();
    assert_eq!(parts.len(), 6);
    for part in parts {
        let field = |name: &str| {
            let value = part
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{name} = ")));
            value.unwrap_or_else(|| panic!("{part} has no {name}"))
        };
        let (name, mut material) = (field("name"), octets(field("key")));
        let (suite, algorithm, _) = *SUITES
            .iter()
            .find(|(.., key_len)| *key_len == material.len())
            .expect(name);
        material.extend([0x0b; 32]);
        let peer = Peer::new(algorithm, &material);
        let iv: [u8; BLOCK] = octets(field("iv")).try_into().expect("16 octets of IV");
        let (plain, sealed) = (octets(field("plain")), octets(field("sealed")));
        let key = aead::expand(suite, &material, [0; 4], 1).expect(name);
        let mut scratch = Scratch::default();
        scratch.iv = peer.block_inverse(iv);
        (scratch.aad_len, scratch.text_len) = (AAD_PLAIN, plain.len() as u32);
        scratch.text_mut()[..plain.len()].copy_from_slice(&plain);
        assert!(aead::seal(&key, &mut scratch), "{name}");
        assert_eq!(scratch.iv, iv, "{name}");
        assert_eq!(scratch.text()[..plain.len()], sealed, "{name}");
        assert_eq!(scratch.tag, peer.icv(&[0; 8], &iv, &sealed), "{name}");
        assert_eq!(aead::open(&key, &mut scratch), Opened(true), "{name}");
        assert_eq!(scratch.text()[..plain.len()], plain, "{name}");
    }
}

/// Project Wycheproof's, whose text is padded by PKCS #5. Those with wrong padding are no other ciphertext to us than those with right one, so
/// what they decrypt to is the provider's to say; an empty text is none.
#[test]
fn wycheproof_vectors_seal_and_open() {
    use wycheproof::cipher::{TestName, TestSet};
    let (mut sealed, mut opened, mut refused) = (0, 0, 0);
    let mut scratch = Scratch::default();
    for group in TestSet::load(TestName::AesCbcPkcs5).unwrap().test_groups {
        let Some(&(suite, algorithm, key_len)) = SUITES.iter().find(|s| 8 * s.2 == group.key_size) else {
            assert_eq!(group.key_size, 192);
            continue;
        };
        for test in &group.tests {
            let (what, len) = (test.tc_id, test.ct.len());
            let material = [&test.key[..], &[0x0b; 32]].concat();
            assert_eq!(material.len(), key_len + 32, "{what}");
            let (peer, iv) = (
                Peer::new(algorithm, &material),
                test.nonce[..].try_into().unwrap(),
            );
            let key = aead::expand(suite, &material, [0; 4], 1).unwrap();
            scratch.iv = iv;
            scratch.tag = peer.icv(&[0; 8], &iv, &test.ct);
            (scratch.aad_len, scratch.text_len) = (AAD_PLAIN, len as u32);
            scratch.text_mut()[..len].copy_from_slice(&test.ct);
            let outcome = aead::open(&key, &mut scratch);
            assert_eq!(outcome, Opened(len > 0 && len.is_multiple_of(BLOCK)), "{what}");
            if outcome != Opened(true) {
                assert!(test.result.must_fail(), "{what}: {}", test.comment);
                refused += 1;
                continue;
            }
            let plain = scratch.text()[..len].to_vec();
            assert_eq!(peer.encrypted(iv, &plain), test.ct[..], "{what}");
            opened += 1;
            if test.result.must_fail() {
                continue;
            }
            let padding = BLOCK - test.pt.len() % BLOCK;
            assert_eq!(
                plain,
                [&test.pt[..], &vec![padding as u8; padding]].concat(),
                "{what}"
            );
            scratch.iv = peer.block_inverse(iv);
            assert!(aead::seal(&key, &mut scratch), "{what}");
            assert_eq!(scratch.iv, iv, "{what}");
            assert_eq!(scratch.text()[..len], test.ct[..], "{what}");
            sealed += 1;
        }
    }
    assert_eq!((sealed, opened, refused), (48, 142, 2));
}

#[test]
fn every_number_of_blocks_is_as_aws_lc_has_it() {
    let mut random = Random::new("blocks");
    let mut scratch = Scratch::default();
    for suite in 0..SUITES.len() {
        for blocks in (1..=130).chain([TEXT_MAX / BLOCK - 3, TEXT_MAX / BLOCK - 1, TEXT_MAX / BLOCK]) {
            for aad_len in [AAD_PLAIN, AAD_ESN] {
                Case::random(&mut random, suite, blocks, aad_len).check(&mut scratch, &mut random);
            }
        }
    }
}

#[test]
fn one_altered_bit_anywhere_is_refused_before_anything_is_decrypted() {
    let mut random = Random::new("altered");
    let mut scratch = Scratch::default();
    for suite in 0..SUITES.len() {
        for round in 0..300 {
            let aad_len = if round & 1 == 0 { AAD_PLAIN } else { AAD_ESN };
            let blocks = 1 + random.below(40);
            let case = Case::random(&mut random, suite, blocks, aad_len);
            let len = case.sealed.len();
            let bit = 1 << random.below(8);
            for part in ["tag", "text", "AAD", "IV"] {
                case.load(&mut scratch, &mut random, case.iv, &case.sealed);
                match part {
                    "tag" => scratch.tag[random.below(16)] ^= bit,
                    "text" => scratch.text_mut()[random.below(len)] ^= bit,
                    "AAD" => scratch.aad[random.below(aad_len as usize)] ^= bit,
                    _ => scratch.iv[random.below(BLOCK)] ^= bit,
                }
                let before = scratch.text()[..len].to_vec();
                let outcome = aead::open(&case.key, &mut scratch);
                assert_eq!(outcome, Opened(false), "{part}, {}", case.what);
                assert_eq!(scratch.text()[..len], before, "{part}, {}", case.what);
            }
            if blocks > 1 {
                case.load(&mut scratch, &mut random, case.iv, &case.sealed);
                scratch.text_len -= BLOCK as u32;
                let outcome = aead::open(&case.key, &mut scratch);
                assert_eq!(outcome, Opened(false), "one block short, {}", case.what);
            }
            case.load(&mut scratch, &mut random, case.iv, &case.sealed);
            assert_eq!(aead::open(&case.key, &mut scratch), Opened(true), "{}", case.what);
        }
    }
}

/// With ESN the MAC covers the high half, without it does not: nothing that holds for the one holds for the other.
#[test]
fn a_mac_over_the_high_half_is_not_one_without() {
    let mut random = Random::new("esn");
    let mut scratch = Scratch::default();
    for suite in 0..SUITES.len() {
        let case = Case::random(&mut random, suite, 3, AAD_ESN);
        case.load(&mut scratch, &mut random, case.iv, &case.sealed);
        // The same packet, read as one of an SA without ESN.
        scratch.aad_len = AAD_PLAIN;
        scratch.aad[4..8].copy_from_slice(&case.aad[8..]);
        assert_eq!(
            aead::open(&case.key, &mut scratch),
            Opened(false),
            "{}",
            case.what
        );
    }
}

/// RFC 3602 3 wants IVs that cannot be foreseen; nonces that differ by one give IVs that look like anything.
#[test]
fn nonces_side_by_side_give_ivs_that_have_nothing_in_common() {
    let mut random = Random::new("IVs");
    let mut scratch = Scratch::default();
    let case = Case::random(&mut random, 1, 1, AAD_PLAIN);
    let mut seen = BTreeSet::new();
    let (mut before, mut differing) = ([0; BLOCK], 0);
    const PACKETS: u64 = 4096;
    for seq in 0..PACKETS {
        let mut nonce = [0; BLOCK];
        nonce[..8].copy_from_slice(&(0x0200_0700_0000_0000 | seq).to_be_bytes());
        case.load(&mut scratch, &mut random, nonce, &case.plain);
        assert!(aead::seal(&case.key, &mut scratch));
        assert!(seen.insert(scratch.iv), "the IV of {seq} was there before");
        if seq > 0 {
            let bits = before.iter().zip(scratch.iv).map(|(a, b)| (a ^ b).count_ones());
            differing += u64::from(bits.sum::<u32>());
        }
        before = scratch.iv;
    }
    // 64 of 128 on average; the mean of 4095 is within 1 of that but for one run in 10^29.
    let mean = differing as f64 / (PACKETS - 1) as f64;
    assert!((63.0..65.0).contains(&mean), "{mean} bits differ");
}

#[test]
fn nothing_is_left_behind_the_text() {
    let mut random = Random::new("tail");
    let mut scratch = Scratch::default();
    for suite in 0..SUITES.len() {
        for blocks in 1..=16 {
            let case = Case::random(&mut random, suite, blocks, AAD_PLAIN);
            let len = case.plain.len();
            case.load(&mut scratch, &mut random, case.iv, &case.sealed);
            assert_eq!(aead::open(&case.key, &mut scratch), Opened(true));
            assert_eq!(scratch.text()[len..len + 64], [0; 64], "{}", case.what);
        }
    }
}

#[test]
fn a_text_that_is_no_whole_number_of_blocks_is_refused_and_not_touched() {
    let mut random = Random::new("ragged");
    let mut scratch = Scratch::default();
    for suite in 0..SUITES.len() {
        let case = Case::random(&mut random, suite, 4, AAD_PLAIN);
        for (text_len, aad_len) in [
            (0, AAD_PLAIN),
            (1, AAD_PLAIN),
            (8, AAD_PLAIN),
            (63, AAD_PLAIN),
            (60, AAD_ESN),
            (TEXT_MAX as u32 + 16, AAD_PLAIN),
            (u32::MAX, AAD_PLAIN),
            (64, 16),
        ] {
            case.load(&mut scratch, &mut random, case.iv, &case.sealed);
            (scratch.text_len, scratch.aad_len) = (text_len, aad_len);
            assert!(!aead::seal(&case.key, &mut scratch), "{text_len} {aad_len}");
            let outcome = aead::open(&case.key, &mut scratch);
            assert_eq!(outcome, Opened(false), "{text_len} {aad_len}");
            assert_eq!(scratch.text()[..64], case.sealed, "{text_len} {aad_len}");
        }
    }
}

#[test]
fn keys_of_the_wrong_length_are_named() {
    use aead::BadKey::WrongLength;
    for (suite, _, key_len) in SUITES {
        let expected = key_len + 32;
        for given in [0, key_len, expected - 1, expected + 1] {
            let error = aead::expand(suite, &vec![0; given], [0; 4], 1).err();
            assert_eq!(error, Some(WrongLength { expected, given }));
        }
        assert!(aead::expand(suite, &vec![0; expected], [0; 4], 1).is_ok());
    }
}
