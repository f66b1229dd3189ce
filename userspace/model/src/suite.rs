//! ESP suites.

use serde::{Deserialize, Serialize};

/// A suite for ESP. In a record it is its place in this list, so new ones go to the end; members of earlier releases refuse records
/// that name one that they do not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EspSuite {
    /// RFC 4106 with a 128-bit key and a 16-octet ICV.
    Aes128Gcm16,
    /// RFC 4106 with a 256-bit key and a 16-octet ICV.
    Aes256Gcm16,
    /// RFC 7634.
    ChaCha20Poly1305,
    /// AES-CBC (RFC 3602) with a 128-bit key and AUTH_HMAC_SHA2_256_128 (RFC 4868): for old peers.
    Aes128CbcSha256,
    /// AES-CBC (RFC 3602) with a 256-bit key and AUTH_HMAC_SHA2_256_128 (RFC 4868): for old peers.
    Aes256CbcSha256,
}

impl EspSuite {
    /// Whether cipher and integrity check are one algorithm.
    pub const fn is_aead(self) -> bool {
        !matches!(self, Self::Aes128CbcSha256 | Self::Aes256CbcSha256)
    }

    /// Octets of the cipher key, without salt.
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm16 | Self::Aes128CbcSha256 => 16,
            Self::Aes256Gcm16 | Self::ChaCha20Poly1305 | Self::Aes256CbcSha256 => 32,
        }
    }

    /// Octets of the integrity key (RFC 4868 2.1.1); an AEAD has none.
    pub const fn integrity_key_len(self) -> usize {
        if self.is_aead() { 0 } else { 32 }
    }

    /// Octets of the salt, which an AEAD's nonce begins with (RFC 4106 4, RFC 7634 2).
    pub const fn salt_len(self) -> usize {
        if self.is_aead() { 4 } else { 0 }
    }

    /// Octets of keying material of one direction, in this order: cipher key, integrity key (RFC 7296 2.17), salt (RFC 4106 8.1).
    pub const fn material_len(self) -> usize {
        self.key_len() + self.integrity_key_len() + self.salt_len()
    }
}
