//! ESP packets with the provider's AEADs: for the agent's slow path and as the oracle of tests (RFC 4303, 4106, 7634).

use crate::CryptoError;
use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use model::{EspSpi, EspSuite, SecretBytes};

const SALT_LEN: usize = 4;
const HEADER_LEN: usize = 8;
const IV_LEN: usize = 8;
const ICV_LEN: usize = 16;

/// Key and salt of one direction, ready for use.
pub struct EspKey {
    key: LessSafeKey,
    salt: crate::Secret<SALT_LEN>,
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
    /// From cipher key and 4-octet salt.
    ///
    /// # Errors
    /// [`CryptoError::Length`] where they do not fit the suite.
    pub fn new(suite: EspSuite, key_and_salt: &SecretBytes) -> Result<Self, CryptoError> {
        let (octets, expected) = (key_and_salt.expose(), suite.key_len() + SALT_LEN);
        if octets.len() != expected {
            return Err(CryptoError::Length {
                what: "ESP key with salt",
                expected,
                got: octets.len(),
            });
        }
        let (key, salt_octets) = octets.split_at(suite.key_len());
        let algorithm = match suite {
            EspSuite::Aes128Gcm16 => &aead::AES_128_GCM,
            EspSuite::Aes256Gcm16 => &aead::AES_256_GCM,
            EspSuite::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        };
        let mut salt = [0; SALT_LEN];
        salt.copy_from_slice(salt_octets);
        let key = UnboundKey::new(algorithm, key).map_err(|_| CryptoError::Provider)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            salt: crate::Secret::new(salt),
        })
    }

    /// A whole ESP packet: header, IV, ciphertext, ICV. `iv` must never repeat under this key. Padding aligns the trailer to 4
    /// octets with the default content 1, 2, 3 (RFC 4303 2.4).
    ///
    /// # Errors
    /// [`CryptoError::Provider`] only.
    pub fn seal(
        &self,
        spi: EspSpi,
        sequence: u64,
        esn: bool,
        iv: [u8; IV_LEN],
        next_header: u8,
        payload: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        let pad = ((payload.len() + 2).next_multiple_of(4) - payload.len() - 2) as u8; // at most 3
        let mut out = Vec::with_capacity(HEADER_LEN + IV_LEN + payload.len() + 5 + ICV_LEN);
        out.extend_from_slice(&spi.0.to_be_bytes());
        out.extend_from_slice(&(sequence as u32).to_be_bytes());
        out.extend_from_slice(&iv);
        out.extend_from_slice(payload);
        out.extend(1..=pad);
        out.extend_from_slice(&[pad, next_header]);
        let aad = associated_data(spi, sequence, esn);
        let tag = self
            .key
            .seal_in_place_separate_tag(
                self.nonce(iv),
                Aad::from(aad.as_slice()),
                &mut out[HEADER_LEN + IV_LEN..],
            )
            .map_err(|_| CryptoError::Provider)?;
        out.extend_from_slice(tag.as_ref());
        Ok(out)
    }

    /// Opens a whole ESP packet. `sequence_high`: upper half of the sequence number with ESN, `None` without. The window is the
    /// caller's business.
    ///
    /// # Errors
    /// [`CryptoError::Truncated`], [`CryptoError::Integrity`], [`CryptoError::Padding`].
    pub fn open(&self, packet: &[u8], sequence_high: Option<u32>) -> Result<EspOpened, CryptoError> {
        let needed = HEADER_LEN + IV_LEN + 2 + ICV_LEN;
        let truncated = CryptoError::Truncated {
            needed,
            got: packet.len(),
        };
        if packet.len() < needed {
            return Err(truncated);
        }
        let (spi, rest) = packet.split_first_chunk::<4>().ok_or(truncated)?;
        let (low, rest) = rest.split_first_chunk::<4>().ok_or(truncated)?;
        let (iv, rest) = rest.split_first_chunk::<IV_LEN>().ok_or(truncated)?;
        let (text, icv) = rest.split_at(rest.len() - ICV_LEN);
        let spi = EspSpi(u32::from_be_bytes(*spi));
        let sequence = u64::from(sequence_high.unwrap_or(0)) << 32 | u64::from(u32::from_be_bytes(*low));
        let aad = associated_data(spi, sequence, sequence_high.is_some());
        let mut payload = text.to_vec();
        self.key
            .open_in_place_separate_tag(self.nonce(*iv), Aad::from(aad.as_slice()), icv, &mut payload)
            .map_err(|_| CryptoError::Integrity)?;
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

    fn nonce(&self, iv: [u8; IV_LEN]) -> Nonce {
        let mut nonce = [0; SALT_LEN + IV_LEN];
        nonce[..SALT_LEN].copy_from_slice(self.salt.expose());
        nonce[SALT_LEN..].copy_from_slice(&iv);
        Nonce::assume_unique_for_key(nonce)
    }
}

/// [`EspKey::seal`] with keys that are used once.
///
/// # Errors
/// As [`EspKey::new`] and [`EspKey::seal`].
#[allow(clippy::too_many_arguments)] // one argument per field of the packet
pub fn esp_seal(
    suite: EspSuite,
    key_and_salt: &SecretBytes,
    spi: EspSpi,
    sequence: u64,
    esn: bool,
    iv: [u8; IV_LEN],
    next_header: u8,
    payload: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    EspKey::new(suite, key_and_salt)?.seal(spi, sequence, esn, iv, next_header, payload)
}

/// [`EspKey::open`] with keys that are used once.
///
/// # Errors
/// As [`EspKey::new`] and [`EspKey::open`].
pub fn esp_open(
    suite: EspSuite,
    key_and_salt: &SecretBytes,
    packet: &[u8],
    sequence_high: Option<u32>,
) -> Result<EspOpened, CryptoError> {
    EspKey::new(suite, key_and_salt)?.open(packet, sequence_high)
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
