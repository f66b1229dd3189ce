//! AES-GCM against NIST's vectors (CAVP; `tests/vectors/aead/nist-gcm.txt`): what the programs run, and the provider.
//!
//! The programs take ESP's AAD only, 8 or 12 octets; NIST's has 0 to 90. The ciphertext does not depend on it. The tag is the sum of an
//! encrypted block and GHASH (SP 800-38D 7.1), so NIST's tag plus the difference of both GHASHes is the tag under ESP's AAD. The
//! GHASH for that is written here, bit by bit.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_128, AES_256, EncryptingKey, UnboundCipherKey};
use datapath::aead::{self, Opened, Scratch};
use maps_schema::sad::{SUITE_AES128_GCM, SUITE_AES256_GCM};

const VECTORS: &str = include_str!("../../../tests/vectors/aead/nist-gcm.txt");

struct Vector<'a> {
    line: &'a str,
    what: &'a str,
    key: Vec<u8>,
    iv: [u8; 12],
    aad: Vec<u8>,
    plain: Vec<u8>,
    sealed: Vec<u8>,
    tag: [u8; 16],
}

fn octets(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = match text {
        "-" => Vec::new(),
        text => text
            .chars()
            .map(|c| c.to_digit(16).expect("hexadecimal") as u8)
            .collect(),
    };
    digits
        .as_chunks()
        .0
        .iter()
        .map(|[high, low]| high << 4 | low)
        .collect()
}

fn vectors() -> impl Iterator<Item = Vector<'static>> {
    let lines = VECTORS.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [what, key, iv, aad, plain, sealed, tag] = fields[..] else {
            panic!("seven fields: {line}")
        };
        Vector {
            line,
            what,
            key: octets(key),
            iv: octets(iv).try_into().expect("96 bits"),
            aad: octets(aad),
            plain: octets(plain),
            sealed: octets(sealed),
            tag: octets(tag).try_into().expect("128 bits"),
        }
    })
}

/// Product in GCM's field (SP 800-38D 6.3).
fn times(x: u128, y: u128) -> u128 {
    let (mut product, mut v) = (0, y);
    for bit in (0..128).rev() {
        if x >> bit & 1 == 1 {
            product ^= v;
        }
        v = v >> 1 ^ if v & 1 == 1 { 0xe1 << 120 } else { 0 };
    }
    product
}

fn ghash(h: u128, aad: &[u8], text: &[u8]) -> u128 {
    let padded = |part: &[u8]| {
        let mut blocks = part.to_vec();
        blocks.resize(part.len().next_multiple_of(16), 0);
        blocks
    };
    let mut blocks = [padded(aad), padded(text)].concat();
    blocks.extend((8 * aad.len() as u64).to_be_bytes());
    blocks.extend((8 * text.len() as u64).to_be_bytes());
    let blocks = blocks
        .as_chunks()
        .0
        .iter()
        .map(|block| u128::from_be_bytes(*block));
    blocks.fold(0, |y, block| times(y ^ block, h))
}

fn hash_key(key: &[u8]) -> u128 {
    let cipher = if key.len() == 16 { &AES_128 } else { &AES_256 };
    let key = EncryptingKey::ecb(UnboundCipherKey::new(cipher, key).expect("key")).expect("ECB");
    let mut block = [0; 16];
    key.encrypt(&mut block).expect("a block");
    u128::from_be_bytes(block)
}

impl Vector<'_> {
    fn suite(&self) -> u8 {
        if self.key.len() == 16 {
            SUITE_AES128_GCM
        } else {
            SUITE_AES256_GCM
        }
    }

    /// NIST's tag carried over to another AAD.
    fn tag_with(&self, aad: &[u8]) -> [u8; 16] {
        let h = hash_key(&self.key);
        let difference = ghash(h, &self.aad, &self.sealed) ^ ghash(h, aad, &self.sealed);
        (u128::from_be_bytes(self.tag) ^ difference).to_be_bytes()
    }

    fn scratch(&self, aad: &[u8], text: &[u8]) -> Scratch {
        let mut scratch = Scratch::default();
        scratch.iv[..8].copy_from_slice(&self.iv[4..]);
        scratch.aad[..aad.len()].copy_from_slice(aad);
        scratch.aad_len = aad.len() as u32;
        scratch.text_len = text.len() as u32;
        scratch.text_mut()[..text.len()].copy_from_slice(text);
        scratch
    }
}

#[test]
fn the_programs_cipher() {
    let (mut sealed, mut opened, mut refused) = (0, 0, 0);
    for vector in vectors() {
        let salt = vector.iv[..4].try_into().expect("four octets");
        let key = aead::expand(vector.suite(), &vector.key, salt, 1).expect(vector.line);
        for aad in [&[0x5a; 8][..], &[0xc3; 12]] {
            let tag = vector.tag_with(aad);
            let len = vector.sealed.len();
            let mut scratch = vector.scratch(aad, &vector.sealed);
            scratch.tag = tag;
            let outcome = aead::open(&key, &mut scratch);
            assert_eq!(outcome, Opened(vector.what != "refuse"), "{}", vector.line);
            if vector.what == "refuse" {
                refused += 1;
                continue;
            }
            assert_eq!(scratch.text()[..len], vector.plain, "{}", vector.line);
            opened += 1;
            let mut scratch = vector.scratch(aad, &vector.plain);
            assert!(aead::seal(&key, &mut scratch), "{}", vector.line);
            assert_eq!(scratch.text()[..len], vector.sealed, "{}", vector.line);
            assert_eq!(scratch.tag, tag, "{}", vector.line);
            sealed += 1;
        }
    }
    assert_eq!((sealed, opened, refused), (500, 500, 200));
}

#[test]
fn the_providers_cipher() {
    let (mut sealed, mut refused) = (0, 0);
    for vector in vectors() {
        let algorithm = if vector.key.len() == 16 {
            &AES_128_GCM
        } else {
            &AES_256_GCM
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, &vector.key).expect("key"));
        let nonce = || Nonce::assume_unique_for_key(vector.iv);
        let mut text = [&vector.sealed[..], &vector.tag].concat();
        let opened = key.open_in_place(nonce(), Aad::from(&vector.aad), &mut text);
        if vector.what == "refuse" {
            assert!(opened.is_err(), "{}", vector.line);
            refused += 1;
            continue;
        }
        assert_eq!(opened.expect(vector.line), vector.plain, "{}", vector.line);
        let mut text = vector.plain.clone();
        let tag = key.seal_in_place_separate_tag(nonce(), Aad::from(&vector.aad), &mut text);
        assert_eq!(text, vector.sealed, "{}", vector.line);
        assert_eq!(tag.expect("sealed").as_ref(), vector.tag, "{}", vector.line);
        sealed += 1;
    }
    assert_eq!((sealed, refused), (250, 100));
}
