//! Whole conversations of strongSwan, recorded with its secrets: our derivations and ciphers must give the same octets.
//!
//! The files belong to the codec's tests; here only offsets are used, so that this crate needs no codec.

mod common;

use common::hex;
use crypto::{AuthInput, IkeCipher, IkeKeys, Integrity, KeyInputs, Prf, child_keymat, verify_psk_auth};
use model::{EspSuite, IkeSpi, SecretBytes};

/// IKE header and generic header of the SK payload, which stands first in every recorded message.
const PREFIX_LEN: usize = 32;

struct Capture {
    lines: Vec<(String, String)>,
}

impl Capture {
    fn load(text: &str) -> Self {
        let lines = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                line.split_once(" = ")
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
            });
        Self {
            lines: lines.collect(),
        }
    }

    fn all(&self, name: &str) -> Vec<Vec<u8>> {
        self.lines
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, value)| hex(value))
            .collect()
    }

    fn secret(&self, name: &str, index: usize) -> SecretBytes {
        SecretBytes::new(self.all(name).get(index).cloned().unwrap_or_default())
    }

    fn assert_keys(&self, keys: &IkeKeys, index: usize) {
        let keys = [
            ("sk_d", &keys.sk_d),
            ("sk_ai", &keys.sk_ai),
            ("sk_ar", &keys.sk_ar),
            ("sk_ei", &keys.sk_ei),
            ("sk_er", &keys.sk_er),
            ("sk_pi", &keys.sk_pi),
            ("sk_pr", &keys.sk_pr),
        ];
        for (name, key) in keys {
            assert!(
                key.expose() == self.secret(name, index).expose(),
                "{name} of IKE SA {index}"
            );
        }
    }
}

/// The body of the first payload of a type in a chain.
fn body(mut kind: u8, mut chain: &[u8], wanted: u8) -> Vec<u8> {
    loop {
        let len = usize::from(u16::from_be_bytes([chain[2], chain[3]]));
        if kind == wanted {
            return chain[4..len].to_vec();
        }
        (kind, chain) = (chain[0], &chain[len..]);
    }
}

const NONCE: u8 = 40;
const SA: u8 = 33;

fn check(text: &str, prf: Prf, cipher: IkeCipher, suite: EspSuite) {
    let capture = Capture::load(text);
    let messages = capture.all("message");
    let inner = capture.all("inner");
    let spi = |message: &[u8], at: usize| IkeSpi(u64::from_be_bytes(message[at..at + 8].try_into().unwrap()));

    // IKE_SA_INIT: both nonces and SPIs are in clear.
    let nonce = |message: &[u8]| body(message[16], &message[28..], NONCE);
    let (nonce_i, nonce_r) = (nonce(&messages[0]), nonce(&messages[1]));
    let inputs = KeyInputs {
        nonce_i: &nonce_i,
        nonce_r: &nonce_r,
        spi_i: spi(&messages[1], 0),
        spi_r: spi(&messages[1], 8),
    };
    let keys = IkeKeys::derive(prf, cipher, inputs, &capture.secret("g_ir", 0)).unwrap();
    capture.assert_keys(&keys, 0);

    // IKE_AUTH: the AUTH payloads of both sides, and the first Child SA without PFS.
    let psk = SecretBytes::new(b"espalier-test-psk".to_vec());
    for (message, nonce, sk_p, id, auth) in [
        (&messages[0], &nonce_r, &keys.sk_pi, "id_i", "auth_i"),
        (&messages[1], &nonce_i, &keys.sk_pr, "id_r", "auth_r"),
    ] {
        let id_body = &capture.all(id)[0];
        let input = AuthInput {
            message,
            nonce,
            sk_p,
            id_body,
            intermediate: &[],
        };
        assert!(verify_psk_auth(prf, &psk, input, &capture.all(auth)[0]), "{auth}");
    }
    let child = child_keymat(prf, &keys.sk_d, None, &nonce_i, &nonce_r, &[], suite).unwrap();
    assert!(child.initiator.expose() == capture.secret("child_i", 0).expose());
    assert!(child.responder.expose() == capture.secret("child_r", 0).expose());

    // CREATE_CHILD_SA, rekey of the Child SA with PFS: nonces are in messages 4 and 5.
    let inner_nonce = |index: usize| body(messages[index][28], &inner[index - 2], NONCE);
    let g_ir = capture.secret("child_g_ir", 0);
    let (nonce_i, nonce_r) = (inner_nonce(4), inner_nonce(5));
    let child = child_keymat(prf, &keys.sk_d, Some(&g_ir), &nonce_i, &nonce_r, &[], suite).unwrap();
    assert!(child.initiator.expose() == capture.secret("child_i", 1).expose());
    assert!(child.responder.expose() == capture.secret("child_r", 1).expose());

    // CREATE_CHILD_SA, rekey of the IKE SA: the new SPIs are in the proposals of messages 8 and 9.
    let new_spi = |index: usize| spi(&body(messages[index][28], &inner[index - 2], SA), 8);
    let (nonce_i, nonce_r) = (inner_nonce(8), inner_nonce(9));
    let inputs = KeyInputs {
        nonce_i: &nonce_i,
        nonce_r: &nonce_r,
        spi_i: new_spi(8),
        spi_r: new_spi(9),
    };
    let new_keys = keys
        .rekey(prf, cipher, inputs, &capture.secret("g_ir", 1), &[])
        .unwrap();
    capture.assert_keys(&new_keys, 1);

    // Every protected message opens, and sealing it again with its IV gives the same octets (but for random padding).
    for (index, (message, inner)) in messages
        .iter()
        .zip(std::iter::repeat_n(None, 2).chain(inner.iter().map(Some)))
        .enumerate()
    {
        let Some(inner) = inner else { continue };
        let keys = if spi(message, 0) == spi(&messages[0], 0) {
            &keys
        } else {
            &new_keys
        };
        let from_initiator = message[19] & 0x08 != 0;
        let key = if from_initiator {
            keys.initiator_key()
        } else {
            keys.responder_key()
        }
        .unwrap();
        let (prefix, sealed) = message.split_at(PREFIX_LEN);
        assert_eq!(&key.open(prefix, sealed).unwrap(), inner, "message {index}");
        let again = key.seal(prefix, &sealed[..cipher.iv_len()], inner).unwrap();
        // Behind a CBC cipher charon pads with random octets, so the last block differs and the ICV with it.
        let same = if cipher.is_aead() {
            sealed.len()
        } else {
            cipher.iv_len() + inner.len() / 16 * 16
        };
        assert_eq!(again.len(), sealed.len(), "message {index}");
        assert_eq!(again[..same], sealed[..same], "message {index}");
    }
}

#[test]
fn conversation_with_aes_256_gcm_sha_384_and_p256() {
    check(
        include_str!("../../ike-wire/tests/captures/gcm.txt"),
        Prf::HmacSha384,
        IkeCipher::Aes256Gcm16,
        EspSuite::Aes128Gcm16,
    );
}

#[test]
fn conversation_with_chacha20_poly1305_sha_256_and_x25519() {
    check(
        include_str!("../../ike-wire/tests/captures/chapoly.txt"),
        Prf::HmacSha256,
        IkeCipher::ChaCha20Poly1305,
        EspSuite::ChaCha20Poly1305,
    );
}

#[test]
fn conversation_with_aes_256_cbc_hmac_sha_256_and_x25519() {
    check(
        include_str!("../../ike-wire/tests/captures/cbc.txt"),
        Prf::HmacSha256,
        IkeCipher::Aes256Cbc(Integrity::HmacSha256_128),
        EspSuite::Aes256Gcm16,
    );
}
