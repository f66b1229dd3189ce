//! Pseudorandom functions (RFC 7296 2.13, RFC 4868).

use crate::CryptoError;
use aws_lc_rs::hmac;
use model::SecretBytes;
use serde::{Deserialize, Serialize};

/// A negotiated PRF. All take keys of any length, so nonces of any length are whole keys (RFC 7296 2.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Prf {
    /// PRF_HMAC_SHA2_256, transform ID 5.
    HmacSha256,
    /// PRF_HMAC_SHA2_384, transform ID 6.
    HmacSha384,
    /// PRF_HMAC_SHA2_512, transform ID 7.
    HmacSha512,
}

impl Prf {
    /// The PRF of a transform ID of type 2, if it is offered here.
    pub const fn from_transform_id(id: u16) -> Option<Self> {
        match id {
            5 => Some(Self::HmacSha256),
            6 => Some(Self::HmacSha384),
            7 => Some(Self::HmacSha512),
            _ => None,
        }
    }

    /// Transform ID of type 2.
    pub const fn transform_id(self) -> u16 {
        match self {
            Self::HmacSha256 => 5,
            Self::HmacSha384 => 6,
            Self::HmacSha512 => 7,
        }
    }

    /// Octets of the output, which is also the preferred key length (of SK_d, SK_pi, SK_pr).
    pub const fn output_len(self) -> usize {
        match self {
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
        }
    }

    fn algorithm(self) -> hmac::Algorithm {
        match self {
            Self::HmacSha256 => hmac::HMAC_SHA256,
            Self::HmacSha384 => hmac::HMAC_SHA384,
            Self::HmacSha512 => hmac::HMAC_SHA512,
        }
    }

    /// prf(key, parts[0] | parts[1] | ...).
    pub fn compute(self, key: &[u8], parts: &[&[u8]]) -> SecretBytes {
        SecretBytes::new(
            mac(&hmac::Key::new(self.algorithm(), key), parts)
                .as_ref()
                .to_vec(),
        )
    }

    /// prf+(key, seed) (RFC 7296 2.13), the first `len` octets.
    ///
    /// # Errors
    /// [`CryptoError::PrfPlusLength`] above 255 blocks.
    pub fn plus(self, key: &[u8], seed: &[&[u8]], len: usize) -> Result<SecretBytes, CryptoError> {
        let block = self.output_len();
        if len > 255 * block {
            return Err(CryptoError::PrfPlusLength { asked: len });
        }
        let key = hmac::Key::new(self.algorithm(), key);
        // Room for whole blocks, so that no growth leaves copies of keys behind.
        let mut out: Vec<u8> = Vec::with_capacity(len.next_multiple_of(block));
        let mut counter: u8 = 0;
        while out.len() < len {
            // T1 = prf (K, S | 0x01), Tn = prf (K, T(n-1) | S | n)
            counter += 1;
            let mut context = hmac::Context::with_key(&key);
            let previous = out.len().saturating_sub(block);
            context.update(&out[previous..]);
            for part in seed {
                context.update(part);
            }
            context.update(&[counter]);
            out.extend_from_slice(context.sign().as_ref());
        }
        // `truncate` would leave the rest of the last block in the spare room; SecretBytes clears the whole capacity.
        out.truncate(len);
        Ok(SecretBytes::new(out))
    }
}

pub(crate) fn mac(key: &hmac::Key, parts: &[&[u8]]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(part);
    }
    context.sign()
}
