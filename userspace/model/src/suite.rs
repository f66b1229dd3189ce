//! ESP suites.

use serde::{Deserialize, Serialize};

/// An AEAD suite for ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EspSuite {
    /// RFC 4106 with a 128-bit key and a 16-octet ICV.
    Aes128Gcm16,
    /// RFC 4106 with a 256-bit key and a 16-octet ICV.
    Aes256Gcm16,
    /// RFC 7634.
    ChaCha20Poly1305,
}

impl EspSuite {
    /// Octets of the cipher key, without the 4-octet salt.
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm16 => 16,
            Self::Aes256Gcm16 | Self::ChaCha20Poly1305 => 32,
        }
    }
}
