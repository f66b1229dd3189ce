//! The ciphers against published vectors (`tests/vectors/aead/published.txt`).

use datapath::aead::{self, Opened, Scratch};
use maps_schema::sad::{SUITE_AES128_GCM, SUITE_AES256_GCM, SUITE_CHACHA20_POLY1305};
use std::collections::HashMap;

const VECTORS: &str = include_str!("../../../tests/vectors/aead/published.txt");

struct Vector(HashMap<String, String>);

impl Vector {
    fn text(&self, name: &str) -> &str {
        self.0
            .get(name)
            .unwrap_or_else(|| panic!("{:?} has no {name}", self.0.get("name")))
    }

    fn octets(&self, name: &str) -> Vec<u8> {
        let digits: Vec<u32> = self
            .text(name)
            .chars()
            .filter(|c| *c != ' ')
            .map(|c| c.to_digit(16).expect("hexadecimal"))
            .collect();
        assert_eq!(
            digits.len() % 2,
            0,
            "{}: {name} has half an octet",
            self.text("name")
        );
        digits
            .chunks_exact(2)
            .map(|pair| (pair[0] * 16 + pair[1]) as u8)
            .collect()
    }

    fn suite(&self) -> u8 {
        match self.text("suite") {
            "aes128-gcm" => SUITE_AES128_GCM,
            "aes256-gcm" => SUITE_AES256_GCM,
            "chacha20-poly1305" => SUITE_CHACHA20_POLY1305,
            other => panic!("unknown suite {other}"),
        }
    }
}

fn vectors() -> Vec<Vector> {
    let lines = VECTORS
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect::<Vec<_>>();
    lines
        .split(|line| line.is_empty())
        .filter(|part| !part.is_empty())
        .map(|part| {
            let pairs = part
                .iter()
                .map(|line| line.split_once(" = ").expect("name = value"));
            Vector(
                pairs
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect(),
            )
        })
        .collect()
}

#[test]
fn published_vectors_seal_and_open() {
    let vectors = vectors();
    assert_eq!(vectors.len(), VECTORS.matches("\nname = ").count());
    for suite in [SUITE_AES128_GCM, SUITE_AES256_GCM, SUITE_CHACHA20_POLY1305] {
        assert!(
            vectors.iter().any(|vector| vector.suite() == suite),
            "no vector of suite {suite}"
        );
    }
    for vector in vectors {
        let name = vector.text("name");
        let salt = vector.octets("salt").try_into().expect("4 octets of salt");
        let key = aead::expand(vector.suite(), &vector.octets("key"), salt, 1).expect(name);
        let (aad, plain, sealed) = (
            vector.octets("aad"),
            vector.octets("plain"),
            vector.octets("sealed"),
        );
        let mut scratch = Scratch::default();
        scratch.iv[..8].copy_from_slice(&vector.octets("iv"));
        scratch.aad[..aad.len()].copy_from_slice(&aad);
        scratch.aad_len = aad.len() as u32;
        scratch.text_len = plain.len() as u32;
        scratch.text_mut()[..plain.len()].copy_from_slice(&plain);
        assert!(aead::seal(&key, &mut scratch), "{name}");
        assert_eq!(scratch.text()[..plain.len()], sealed, "{name}");
        assert_eq!(scratch.tag.as_slice(), vector.octets("tag"), "{name}");
        assert_eq!(aead::open(&key, &mut scratch), Opened(true), "{name}");
        assert_eq!(scratch.text()[..plain.len()], plain, "{name}");
    }
}
