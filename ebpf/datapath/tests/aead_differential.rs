//! Every suite against aws-lc-rs: all short lengths, random longer ones, and altered packets.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use datapath::aead::{self, AAD_ESN, AAD_PLAIN, Opened, Scratch, TEXT_MAX};
use maps_schema::sad::{SUITE_AES128_GCM, SUITE_AES256_GCM, SUITE_CHACHA20_POLY1305, SaKey};

const SUITES: [(u8, &Algorithm); 3] = [
    (SUITE_AES128_GCM, &AES_128_GCM),
    (SUITE_AES256_GCM, &AES_256_GCM),
    (SUITE_CHACHA20_POLY1305, &CHACHA20_POLY1305),
];

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

    fn fill(&mut self, out: &mut [u8]) {
        for octet in out {
            *octet = self.next() as u8;
        }
    }
}

/// One packet before and after sealing by the other implementation.
struct Case {
    suite: u8,
    key: Vec<u8>,
    salt: [u8; 4],
    iv: [u8; 8],
    aad: Vec<u8>,
    plain: Vec<u8>,
    sealed: Vec<u8>,
    tag: [u8; 16],
}

impl Case {
    fn random(
        random: &mut Random,
        suite: u8,
        algorithm: &'static Algorithm,
        len: usize,
        aad_len: u32,
    ) -> Self {
        let mut case = Self {
            suite,
            key: vec![0; algorithm.key_len()],
            salt: [0; 4],
            iv: [0; 8],
            aad: vec![0; aad_len as usize],
            plain: vec![0; len],
            sealed: Vec::new(),
            tag: [0; 16],
        };
        random.fill(&mut case.key);
        random.fill(&mut case.salt);
        random.fill(&mut case.iv);
        random.fill(&mut case.aad);
        random.fill(&mut case.plain);
        let key = LessSafeKey::new(UnboundKey::new(algorithm, &case.key).unwrap());
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&case.salt);
        nonce[4..].copy_from_slice(&case.iv);
        case.sealed = case.plain.clone();
        let tag = key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(&case.aad),
                &mut case.sealed,
            )
            .unwrap();
        case.tag.copy_from_slice(tag.as_ref());
        case
    }

    fn key(&self) -> SaKey {
        aead::expand(self.suite, &self.key, self.salt, 0x1234_5678).unwrap()
    }

    /// Fills the parameters; what lies behind AAD and text is random, as after an earlier packet.
    fn load(&self, scratch: &mut Scratch, random: &mut Random, text: &[u8]) {
        let (at, len) = (text.len(), 64.min(TEXT_MAX - text.len()));
        random.fill(&mut scratch.text_mut()[at..at + len]);
        scratch.text_mut()[..at].copy_from_slice(text);
        random.fill(&mut scratch.aad);
        scratch.aad[..self.aad.len()].copy_from_slice(&self.aad);
        scratch.aad_len = self.aad.len() as u32;
        scratch.text_len = at as u32;
        random.fill(&mut scratch.iv);
        scratch.iv[..8].copy_from_slice(&self.iv);
        scratch.tag = self.tag;
    }

    fn check(&self, scratch: &mut Scratch, random: &mut Random) {
        let key = self.key();
        let what = format!(
            "suite {}, {} octets, AAD {}",
            self.suite,
            self.plain.len(),
            self.aad.len()
        );
        self.load(scratch, random, &self.plain);
        scratch.tag = [0; 16];
        assert!(aead::seal(&key, scratch), "{what}");
        assert_eq!(
            scratch.text()[..self.plain.len()],
            self.sealed,
            "sealed text, {what}"
        );
        assert_eq!(scratch.tag, self.tag, "tag, {what}");
        self.load(scratch, random, &self.sealed);
        assert_eq!(aead::open(&key, scratch), Opened(true), "{what}");
        assert_eq!(
            scratch.text()[..self.plain.len()],
            self.plain,
            "opened text, {what}"
        );
    }
}

#[test]
fn every_length_up_to_300_is_as_aws_lc_has_it() {
    let mut random = Random::new("short");
    let mut scratch = Scratch::default();
    for (suite, algorithm) in SUITES {
        for len in 0..=300 {
            for aad_len in [AAD_PLAIN, AAD_ESN] {
                Case::random(&mut random, suite, algorithm, len, aad_len).check(&mut scratch, &mut random);
            }
        }
    }
}

#[test]
fn random_lengths_up_to_the_limit_are_as_aws_lc_has_them() {
    let mut random = Random::new("long");
    let mut scratch = Scratch::default();
    for (suite, algorithm) in SUITES {
        for round in 0..300 {
            let len = if round < 20 {
                TEXT_MAX - round
            } else {
                300 + random.below(TEXT_MAX - 300)
            };
            let aad_len = if random.next() & 1 == 0 {
                AAD_PLAIN
            } else {
                AAD_ESN
            };
            Case::random(&mut random, suite, algorithm, len, aad_len).check(&mut scratch, &mut random);
        }
    }
}

#[test]
fn one_altered_bit_anywhere_is_refused() {
    let mut random = Random::new("altered");
    let mut scratch = Scratch::default();
    for (suite, algorithm) in SUITES {
        for round in 0..400 {
            let aad_len = if round & 1 == 0 { AAD_PLAIN } else { AAD_ESN };
            let len = 1 + random.below(700);
            let case = Case::random(&mut random, suite, algorithm, len, aad_len);
            let key = case.key();
            let bit = 1 << random.below(8);
            for part in ["tag", "text", "AAD", "IV"] {
                case.load(&mut scratch, &mut random, &case.sealed);
                match part {
                    "tag" => scratch.tag[random.below(16)] ^= bit,
                    "text" => scratch.text_mut()[random.below(len)] ^= bit,
                    "AAD" => scratch.aad[random.below(aad_len as usize)] ^= bit,
                    _ => scratch.iv[random.below(8)] ^= bit,
                }
                assert_eq!(
                    aead::open(&key, &mut scratch),
                    Opened(false),
                    "suite {suite}, {part}, {len} octets"
                );
            }
            case.load(&mut scratch, &mut random, &case.sealed);
            scratch.text_len -= 1;
            assert_eq!(
                aead::open(&key, &mut scratch),
                Opened(false),
                "suite {suite}, one octet short of {len}"
            );
            case.load(&mut scratch, &mut random, &case.sealed);
            assert_eq!(
                aead::open(&key, &mut scratch),
                Opened(true),
                "suite {suite}, unaltered, {len} octets"
            );
        }
    }
}

#[test]
fn no_key_stream_is_left_behind_the_text() {
    let mut random = Random::new("tail");
    for (suite, algorithm) in SUITES {
        for len in 0..200 {
            let case = Case::random(&mut random, suite, algorithm, len, AAD_PLAIN);
            let mut scratch = Scratch::default();
            scratch.text_mut()[..len].copy_from_slice(&case.sealed);
            scratch.aad[..8].copy_from_slice(&case.aad);
            scratch.iv[..8].copy_from_slice(&case.iv);
            (scratch.aad_len, scratch.text_len, scratch.tag) = (AAD_PLAIN, len as u32, case.tag);
            assert_eq!(aead::open(&case.key(), &mut scratch), Opened(true));
            assert!(
                scratch.text()[len..len + 64].iter().all(|octet| *octet == 0),
                "suite {suite}, {len} octets"
            );
        }
    }
}

#[test]
fn parameters_out_of_range_are_refused_and_nothing_is_touched() {
    let mut random = Random::new("parameters");
    let case = Case::random(&mut random, SUITE_AES128_GCM, &AES_128_GCM, 64, AAD_PLAIN);
    let mut scratch = Scratch::default();
    for (text_len, aad_len) in [
        (TEXT_MAX as u32 + 1, 8),
        (u32::MAX, 8),
        (64, 0),
        (64, 9),
        (64, 16),
        (64, u32::MAX),
    ] {
        case.load(&mut scratch, &mut random, &case.sealed);
        (scratch.text_len, scratch.aad_len) = (text_len, aad_len);
        assert!(!aead::seal(&case.key(), &mut scratch), "{text_len} {aad_len}");
        assert_eq!(
            aead::open(&case.key(), &mut scratch),
            Opened(false),
            "{text_len} {aad_len}"
        );
        assert_eq!(scratch.text()[..64], case.sealed, "{text_len} {aad_len}");
    }
    case.load(&mut scratch, &mut random, &case.sealed);
    assert!(
        !aead::seal(&SaKey::EMPTY, &mut scratch),
        "an empty slot is no key"
    );
}

#[test]
fn keys_of_the_wrong_length_or_suite_are_named() {
    use aead::BadKey::{UnknownSuite, WrongLength};
    let error = |suite, len: usize| aead::expand(suite, &vec![0; len], [0; 4], 1).err();
    assert_eq!(
        error(SUITE_AES128_GCM, 20),
        Some(WrongLength {
            expected: 16,
            given: 20
        })
    );
    assert_eq!(
        error(SUITE_AES256_GCM, 16),
        Some(WrongLength {
            expected: 32,
            given: 16
        })
    );
    assert_eq!(
        error(SUITE_CHACHA20_POLY1305, 0),
        Some(WrongLength {
            expected: 32,
            given: 0
        })
    );
    assert_eq!(error(0, 16), Some(UnknownSuite(0)));
    assert_eq!(error(SUITE_AES128_GCM, 16), None);
}
