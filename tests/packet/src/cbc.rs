//! AES-CBC and HMAC-SHA2-256-128 by aws-lc-rs: the peer of the suites that are no AEAD.

use aws_lc_rs::cipher::{
    AES_128, AES_256, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext, UnboundCipherKey,
};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use maps_schema::sad::SUITE_AES128_CBC_SHA256;

use crate::world::key_octets;

/// Octets of a block, of the IV and of the ICV.
pub const BLOCK: usize = 16;
/// Octets of HMAC's key, behind the cipher's.
const INTEGRITY_KEY: usize = 32;

/// Keys of one direction.
pub struct Keys {
    encrypt: EncryptingKey,
    decrypt: DecryptingKey,
    integrity: hmac::Key,
}

impl Keys {
    /// The keys that the worlds of the case tables have.
    pub fn of(suite: u8, direction: u8) -> Self {
        let material = key_octets(suite, direction);
        let (cipher, integrity) = material.split_at(material.len() - INTEGRITY_KEY);
        let algorithm = if suite == SUITE_AES128_CBC_SHA256 {
            &AES_128
        } else {
            &AES_256
        };
        let key = || UnboundCipherKey::new(algorithm, cipher).expect("a key of the cipher's length");
        Self {
            encrypt: EncryptingKey::cbc(key()).expect("CBC"),
            decrypt: DecryptingKey::cbc(key()).expect("CBC"),
            integrity: hmac::Key::new(hmac::HMAC_SHA256, integrity),
        }
    }

    /// Encrypts whole blocks in place.
    pub fn encrypt(&self, iv: [u8; BLOCK], text: &mut [u8]) {
        self.encrypt
            .less_safe_encrypt(text, EncryptionContext::Iv128(FixedLength::from(iv)))
            .expect("whole blocks");
    }

    /// Decrypts whole blocks in place.
    pub fn decrypt(&self, iv: [u8; BLOCK], text: &mut [u8]) {
        self.decrypt
            .decrypt(text, DecryptionContext::Iv128(FixedLength::from(iv)))
            .expect("whole blocks");
    }

    /// The ICV over a packet's header, IV and ciphertext; with ESN over the upper half of the number behind them (RFC 4303 2.8.1).
    pub fn icv(&self, packet: &[u8], high: Option<u32>) -> [u8; BLOCK] {
        let mut context = hmac::Context::with_key(&self.integrity);
        context.update(packet);
        if let Some(high) = high {
            context.update(&high.to_be_bytes());
        }
        context.sign().as_ref()[..BLOCK].try_into().expect("a longer tag")
    }
}
