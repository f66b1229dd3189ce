//! ESP packets with the provider's ciphers: the oracle of tests, and of the lab's judge (RFC 4303, 4106, 7634; 3602 with 4868).

use crate::CryptoError;
use crate::sk::{CbcHmac, Integrity};
use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher;
use model::{EspSpi, EspSuite, SecretBytes};

const SALT_LEN: usize = 4;
const HEADER_LEN: usize = 8;
const NONCE_LEN: usize = 8;
const BLOCK_LEN: usize = 16;
const ICV_LEN: usize = 16;

/// Keys of one direction, ready for use.
pub struct EspKey(Protection);

enum Protection {
    Aead {
        key: LessSafeKey,
        salt: crate::Secret<SALT_LEN>,
    },
    CbcHmac(Box<CbcHmac>),
}

/// A packet that was authentic.
pub struct EspOpened {
    /// SPI of its header.
    pub spi: EspSpi,
    /// Sequence number; the upper half is the caller's guess, now verified.
    pub sequence: u64,
    /// Protocol of the payload (4 IPv4, 41 IPv6, 59 dummy).
    pub next_header: u8,
    /// Payload without padding and trailer.
    pub payload: Vec<u8>,
}

impl EspKey {
    /// From keying material: cipher key and 4-octet salt, or cipher key and integrity key.
    ///
    /// # Errors
    /// [`CryptoError::Length`] where it does not fit the suite.
    pub fn new(suite: EspSuite, material: &SecretBytes) -> Result<Self, CryptoError> {
        let (octets, expected) = (material.expose(), suite.material_len());
        if octets.len() != expected {
            return Err(CryptoError::Length {
                what: "ESP keying material",
                expected,
                got: octets.len(),
            });
        }
        let (key, rest) = octets.split_at(suite.key_len());
        let aead = |algorithm| {
            let mut salt = [0; SALT_LEN];
            salt.copy_from_slice(rest);
            let key = UnboundKey::new(algorithm, key).map_err(|_| CryptoError::Provider)?;
            Ok(Protection::Aead {
                key: LessSafeKey::new(key),
                salt: crate::Secret::new(salt),
            })
        };
        let cbc = |algorithm| {
            let keys = CbcHmac::new(algorithm, key, Integrity::HmacSha256_128, rest)?;
            Ok(Protection::CbcHmac(Box::new(keys)))
        };
        let protection = match suite {
            EspSuite::Aes128Gcm16 => aead(&aead::AES_128_GCM),
            EspSuite::Aes256Gcm16 => aead(&aead::AES_256_GCM),
            EspSuite::ChaCha20Poly1305 => aead(&aead::CHACHA20_POLY1305),
            EspSuite::Aes128CbcSha256 => cbc(&cipher::AES_128),
            EspSuite::Aes256CbcSha256 => cbc(&cipher::AES_256),
        };
        protection.map(Self)
    }

    /// Octets of the IV, and what the text is a multiple of.
    fn sizes(&self) -> (usize, usize) {
        match self.0 {
            Protection::Aead { .. } => (NONCE_LEN, 4),
            Protection::CbcHmac(_) => (BLOCK_LEN, BLOCK_LEN),
        }
    }

    /// A whole ESP packet: header, IV, ciphertext, ICV. `nonce` must never repeat under this key: it is an AEAD's IV, and what AES-CBC's
    /// is made of (SP 800-38A, appendix C). Padding has the default content 1, 2, 3 (RFC 4303 2.4).
    ///
    /// # Errors
    /// [`CryptoError::Provider`] only.
    pub fn seal(
        &self,
        spi: EspSpi,
        sequence: u64,
        esn: bool,
        nonce: [u8; NONCE_LEN],
        next_header: u8,
        payload: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        let (iv_len, block) = self.sizes();
        let pad = ((payload.len() + 2).next_multiple_of(block) - payload.len() - 2) as u8; // at most 15
        let mut out = Vec::with_capacity(HEADER_LEN + iv_len + payload.len() + block + 1 + ICV_LEN);
        out.extend_from_slice(&spi.0.to_be_bytes());
        out.extend_from_slice(&(sequence as u32).to_be_bytes());
        out.extend_from_slice(&nonce);
        out.resize(HEADER_LEN + iv_len, 0);
        out.extend_from_slice(payload);
        out.extend(1..=pad);
        out.extend_from_slice(&[pad, next_header]);
        match &self.0 {
            Protection::Aead { key, salt } => {
                let aad = Aad::from(associated_data(spi, sequence, esn));
                let text = &mut out[HEADER_LEN + NONCE_LEN..];
                let tag = key
                    .seal_in_place_separate_tag(aead_nonce(salt, nonce), aad, text)
                    .map_err(|_| CryptoError::Provider)?;
                out.extend_from_slice(tag.as_ref());
            }
            Protection::CbcHmac(keys) => {
                // The nonce, encrypted, is the IV: the same as chaining from zero with the nonce as the first block.
                keys.encrypt(&mut out[HEADER_LEN..], &[0; BLOCK_LEN])?;
                let high = high_half(esn.then_some((sequence >> 32) as u32));
                let icv = keys.icv(&[&out, &high]);
                out.extend_from_slice(&icv);
            }
        }
        Ok(out)
    }

    /// Opens a whole ESP packet. `sequence_high`: upper half of the sequence number with ESN, `None` without. The window is the
    /// caller's business.
    ///
    /// # Errors
    /// [`CryptoError::Truncated`], [`CryptoError::NotBlockAligned`], [`CryptoError::Integrity`], [`CryptoError::Padding`].
    pub fn open(&self, packet: &[u8], sequence_high: Option<u32>) -> Result<EspOpened, CryptoError> {
        let (iv_len, _) = self.sizes();
        let needed = HEADER_LEN + iv_len + 2 + ICV_LEN;
        let truncated = CryptoError::Truncated {
            needed,
            got: packet.len(),
        };
        if packet.len() < needed {
            return Err(truncated);
        }
        let (covered, icv) = packet.split_at(packet.len() - ICV_LEN);
        let (spi, rest) = covered.split_first_chunk::<4>().ok_or(truncated)?;
        let (low, rest) = rest.split_first_chunk::<4>().ok_or(CryptoError::Padding)?;
        let (iv, text) = rest.split_at(iv_len);
        let spi = EspSpi(u32::from_be_bytes(*spi));
        let sequence = u64::from(sequence_high.unwrap_or(0)) << 32 | u64::from(u32::from_be_bytes(*low));
        let mut payload = text.to_vec();
        match &self.0 {
            Protection::Aead { key, salt } => {
                let nonce = iv.try_into().map_err(|_| CryptoError::Padding)?;
                let aad = Aad::from(associated_data(spi, sequence, sequence_high.is_some()));
                key.open_in_place_separate_tag(aead_nonce(salt, nonce), aad, icv, &mut payload)
                    .map_err(|_| CryptoError::Integrity)?;
            }
            Protection::CbcHmac(keys) => {
                keys.verify(&[covered, &high_half(sequence_high)], icv)?;
                keys.decrypt(&mut payload, iv)?;
            }
        }
        let next_header = payload.pop().ok_or(CryptoError::Padding)?;
        let pad = usize::from(payload.pop().ok_or(CryptoError::Padding)?);
        let len = payload.len().checked_sub(pad).ok_or(CryptoError::Padding)?;
        payload.truncate(len);
        Ok(EspOpened {
            spi,
            sequence,
            next_header,
            payload,
        })
    }
}

/// RFC 4303 2.8.1: with ESN a MAC of its own covers the upper half of the number as if it stood behind the packet.
fn high_half(high: Option<u32>) -> Vec<u8> {
    high.map(|high| high.to_be_bytes().to_vec()).unwrap_or_default()
}

fn aead_nonce(salt: &crate::Secret<SALT_LEN>, iv: [u8; NONCE_LEN]) -> Nonce {
    let mut nonce = [0; SALT_LEN + NONCE_LEN];
    nonce[..SALT_LEN].copy_from_slice(salt.expose());
    nonce[SALT_LEN..].copy_from_slice(&iv);
    Nonce::assume_unique_for_key(nonce)
}

/// [`EspKey::seal`] with keys that are used once.
///
/// # Errors
/// As [`EspKey::new`] and [`EspKey::seal`].
#[allow(clippy::too_many_arguments)] // one argument per field of the packet
pub fn esp_seal(
    suite: EspSuite,
    material: &SecretBytes,
    spi: EspSpi,
    sequence: u64,
    esn: bool,
    nonce: [u8; NONCE_LEN],
    next_header: u8,
    payload: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    EspKey::new(suite, material)?.seal(spi, sequence, esn, nonce, next_header, payload)
}

/// [`EspKey::open`] with keys that are used once.
///
/// # Errors
/// As [`EspKey::new`] and [`EspKey::open`].
pub fn esp_open(
    suite: EspSuite,
    material: &SecretBytes,
    packet: &[u8],
    sequence_high: Option<u32>,
) -> Result<EspOpened, CryptoError> {
    EspKey::new(suite, material)?.open(packet, sequence_high)
}

// SPI and sequence number, 64-bit with ESN (RFC 4106 5, RFC 7634 2.1).
fn associated_data(spi: EspSpi, sequence: u64, esn: bool) -> Vec<u8> {
    let mut aad = spi.0.to_be_bytes().to_vec();
    if esn {
        aad.extend_from_slice(&sequence.to_be_bytes());
    } else {
        aad.extend_from_slice(&(sequence as u32).to_be_bytes());
    }
    aad
}
