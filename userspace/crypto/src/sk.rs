//! Protection of the SK and SKF payloads: AEAD (RFC 5282, RFC 7634) and AES-CBC with HMAC (RFC 7296 3.14).

use crate::prf::mac;
use crate::{CryptoError, ct_eq};
use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{self, DecryptionContext, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use serde::{Deserialize, Serialize};

const SALT_LEN: usize = 4;
const AEAD_IV_LEN: usize = 8;
const AEAD_ICV_LEN: usize = 16;
const AES_BLOCK: usize = 16;

/// Integrity algorithm beside a cipher that has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Integrity {
    /// AUTH_HMAC_SHA2_256_128, transform ID 12.
    HmacSha256_128,
    /// AUTH_HMAC_SHA2_384_192, transform ID 13.
    HmacSha384_192,
    /// AUTH_HMAC_SHA2_512_256, transform ID 14.
    HmacSha512_256,
}

impl Integrity {
    /// The algorithm of a transform ID of type 3, if it is offered here.
    pub const fn from_transform_id(id: u16) -> Option<Self> {
        match id {
            12 => Some(Self::HmacSha256_128),
            13 => Some(Self::HmacSha384_192),
            14 => Some(Self::HmacSha512_256),
            _ => None,
        }
    }

    /// Transform ID of type 3.
    pub const fn transform_id(self) -> u16 {
        match self {
            Self::HmacSha256_128 => 12,
            Self::HmacSha384_192 => 13,
            Self::HmacSha512_256 => 14,
        }
    }

    /// Octets of SK_ai and SK_ar (RFC 4868 2.1.1: the hash's output).
    pub const fn key_len(self) -> usize {
        match self {
            Self::HmacSha256_128 => 32,
            Self::HmacSha384_192 => 48,
            Self::HmacSha512_256 => 64,
        }
    }

    /// Octets of the ICV: half of the hash.
    pub const fn icv_len(self) -> usize {
        self.key_len() / 2
    }

    fn algorithm(self) -> hmac::Algorithm {
        match self {
            Self::HmacSha256_128 => hmac::HMAC_SHA256,
            Self::HmacSha384_192 => hmac::HMAC_SHA384,
            Self::HmacSha512_256 => hmac::HMAC_SHA512,
        }
    }
}

/// What protects an IKE SA's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum IkeCipher {
    /// ENCR_AES_GCM_16 (20) with a 128-bit key.
    Aes128Gcm16,
    /// ENCR_AES_GCM_16 (20) with a 256-bit key.
    Aes256Gcm16,
    /// ENCR_CHACHA20_POLY1305 (28).
    ChaCha20Poly1305,
    /// ENCR_AES_CBC (12) with a 128-bit key.
    Aes128Cbc(Integrity),
    /// ENCR_AES_CBC (12) with a 256-bit key.
    Aes256Cbc(Integrity),
}

impl IkeCipher {
    /// From the chosen transforms: encryption ID, its key length attribute in bits, integrity ID. `None` where the combination
    /// is not offered here. Integrity absent or NONE (0) goes with AEAD ciphers only, and ChaCha20 has no key length.
    pub const fn from_transforms(
        encryption: u16,
        key_bits: Option<u16>,
        integrity: Option<u16>,
    ) -> Option<Self> {
        match (encryption, key_bits, integrity) {
            (20, Some(128), None | Some(0)) => Some(Self::Aes128Gcm16),
            (20, Some(256), None | Some(0)) => Some(Self::Aes256Gcm16),
            (28, None, None | Some(0)) => Some(Self::ChaCha20Poly1305),
            (12, Some(bits), Some(id)) => match (bits, Integrity::from_transform_id(id)) {
                (128, Some(integrity)) => Some(Self::Aes128Cbc(integrity)),
                (256, Some(integrity)) => Some(Self::Aes256Cbc(integrity)),
                _ => None,
            },
            _ => None,
        }
    }

    /// Encryption transform ID and key length attribute in bits.
    pub const fn transform(self) -> (u16, Option<u16>) {
        match self {
            Self::Aes128Gcm16 => (20, Some(128)),
            Self::Aes256Gcm16 => (20, Some(256)),
            Self::ChaCha20Poly1305 => (28, None),
            Self::Aes128Cbc(_) => (12, Some(128)),
            Self::Aes256Cbc(_) => (12, Some(256)),
        }
    }

    /// The integrity algorithm beside the cipher; `None` for AEAD.
    pub const fn integrity(self) -> Option<Integrity> {
        match self {
            Self::Aes128Cbc(integrity) | Self::Aes256Cbc(integrity) => Some(integrity),
            _ => None,
        }
    }

    /// Whether it is an AEAD.
    pub const fn is_aead(self) -> bool {
        self.integrity().is_none()
    }

    /// Octets of SK_ei and SK_er, with the 4-octet salt of an AEAD (RFC 5282 7.1, RFC 7634 2).
    pub const fn encryption_key_len(self) -> usize {
        match self {
            Self::Aes128Gcm16 => 16 + SALT_LEN,
            Self::Aes256Gcm16 | Self::ChaCha20Poly1305 => 32 + SALT_LEN,
            Self::Aes128Cbc(_) => 16,
            Self::Aes256Cbc(_) => 32,
        }
    }

    /// Octets of SK_ai and SK_ar; 0 for an AEAD (RFC 5282 7).
    pub const fn integrity_key_len(self) -> usize {
        match self.integrity() {
            Some(integrity) => integrity.key_len(),
            None => 0,
        }
    }

    /// Octets of the IV in each message: 8 for AEAD, where it must never repeat; 16 for CBC, where it must be unpredictable.
    pub const fn iv_len(self) -> usize {
        if self.is_aead() { AEAD_IV_LEN } else { AES_BLOCK }
    }

    /// Octets of the ICV.
    pub const fn icv_len(self) -> usize {
        match self.integrity() {
            Some(integrity) => integrity.icv_len(),
            None => AEAD_ICV_LEN,
        }
    }

    /// Octets of IV, ciphertext (with padding and Pad Length) and ICV for `inner_len` octets of payloads.
    pub const fn sealed_len(self, inner_len: usize) -> usize {
        self.iv_len() + inner_len + self.pad_len(inner_len) + 1 + self.icv_len()
    }

    const fn pad_len(self, inner_len: usize) -> usize {
        // AEADs need no padding, but for the Pad Length octet (RFC 5282 3).
        if self.is_aead() {
            0
        } else {
            (inner_len + 1).next_multiple_of(AES_BLOCK) - inner_len - 1
        }
    }
}

enum Protection {
    Aead {
        key: LessSafeKey,
        salt: crate::Secret<SALT_LEN>,
    },
    CbcHmac(Box<CbcHmac>),
}

/// AES-CBC and HMAC of one direction.
pub(crate) struct CbcHmac {
    encrypt: cipher::EncryptingKey,
    decrypt: cipher::DecryptingKey,
    integrity: Integrity,
    mac: hmac::Key,
}

impl CbcHmac {
    pub(crate) fn new(
        algorithm: &'static cipher::Algorithm,
        cipher_key: &[u8],
        integrity: Integrity,
        integrity_key: &[u8],
    ) -> Result<Self, CryptoError> {
        let key = || UnboundCipherKey::new(algorithm, cipher_key).map_err(|_| CryptoError::Provider);
        Ok(Self {
            encrypt: cipher::EncryptingKey::cbc(key()?).map_err(|_| CryptoError::Provider)?,
            decrypt: cipher::DecryptingKey::cbc(key()?).map_err(|_| CryptoError::Provider)?,
            integrity,
            mac: hmac::Key::new(integrity.algorithm(), integrity_key),
        })
    }

    /// Encrypts whole blocks in place.
    pub(crate) fn encrypt(&self, text: &mut [u8], iv: &[u8]) -> Result<(), CryptoError> {
        let context = EncryptionContext::Iv128(fixed_iv(iv)?);
        let done = self.encrypt.less_safe_encrypt(text, context);
        done.map(drop).map_err(|_| CryptoError::Provider)
    }

    /// Decrypts in place.
    ///
    /// # Errors
    /// [`CryptoError::NotBlockAligned`].
    pub(crate) fn decrypt(&self, text: &mut [u8], iv: &[u8]) -> Result<(), CryptoError> {
        if !text.len().is_multiple_of(AES_BLOCK) {
            return Err(CryptoError::NotBlockAligned);
        }
        let context = DecryptionContext::Iv128(fixed_iv(iv)?);
        let done = self.decrypt.decrypt(text, context);
        done.map(drop).map_err(|_| CryptoError::Provider)
    }

    /// The ICV over all parts.
    pub(crate) fn icv(&self, parts: &[&[u8]]) -> Vec<u8> {
        mac(&self.mac, parts).as_ref()[..self.integrity.icv_len()].to_vec()
    }

    /// Whether this is the ICV over all parts, in constant time.
    pub(crate) fn verify(&self, parts: &[&[u8]], icv: &[u8]) -> Result<(), CryptoError> {
        if ct_eq(&self.icv(parts), icv) {
            Ok(())
        } else {
            Err(CryptoError::Integrity)
        }
    }
}

/// Keys of one direction, ready for use.
pub struct SkKey {
    cipher: IkeCipher,
    protection: Protection,
}

impl SkKey {
    /// From SK_e (with salt for an AEAD) and SK_a (empty for an AEAD) of one direction.
    ///
    /// # Errors
    /// [`CryptoError::Length`] where a key does not fit the cipher.
    pub fn new(cipher: IkeCipher, sk_e: &[u8], sk_a: &[u8]) -> Result<Self, CryptoError> {
        check_length("SK_e", cipher.encryption_key_len(), sk_e.len())?;
        check_length("SK_a", cipher.integrity_key_len(), sk_a.len())?;
        let protection = match cipher {
            IkeCipher::Aes128Gcm16 => aead_key(&aead::AES_128_GCM, sk_e)?,
            IkeCipher::Aes256Gcm16 => aead_key(&aead::AES_256_GCM, sk_e)?,
            IkeCipher::ChaCha20Poly1305 => aead_key(&aead::CHACHA20_POLY1305, sk_e)?,
            IkeCipher::Aes128Cbc(integrity) => cbc_keys(&cipher::AES_128, sk_e, integrity, sk_a)?,
            IkeCipher::Aes256Cbc(integrity) => cbc_keys(&cipher::AES_256, sk_e, integrity, sk_a)?,
        };
        Ok(Self { cipher, protection })
    }

    /// The cipher.
    pub fn cipher(&self) -> IkeCipher {
        self.cipher
    }

    /// IV, ciphertext and ICV for an inner payload chain. `prefix` is the message from the IKE header's first octet to the last one
    /// before the IV, with final lengths (see [`IkeCipher::sealed_len`]). `iv` has [`IkeCipher::iv_len`] octets.
    ///
    /// # Errors
    /// [`CryptoError::Length`] for a wrong IV.
    pub fn seal(&self, prefix: &[u8], iv: &[u8], inner: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let cipher = self.cipher;
        check_length("IV", cipher.iv_len(), iv.len())?;
        let pad = cipher.pad_len(inner.len());
        let mut out = Vec::with_capacity(cipher.sealed_len(inner.len()));
        out.extend_from_slice(iv);
        out.extend_from_slice(inner);
        out.resize(out.len() + pad, 0);
        out.push(pad as u8); // at most 15
        let text = &mut out[iv.len()..];
        match &self.protection {
            Protection::Aead { key, salt } => {
                let tag = key
                    .seal_in_place_separate_tag(nonce(salt, iv)?, Aad::from(prefix), text)
                    .map_err(|_| CryptoError::Provider)?;
                out.extend_from_slice(tag.as_ref());
            }
            Protection::CbcHmac(keys) => {
                keys.encrypt(text, iv)?;
                let icv = keys.icv(&[prefix, &out]);
                out.extend_from_slice(&icv);
            }
        }
        Ok(out)
    }

    /// The inner payload chain, without padding. `prefix` as in [`SkKey::seal`], `sealed` is IV, ciphertext and ICV.
    ///
    /// # Errors
    /// [`CryptoError::Truncated`], [`CryptoError::NotBlockAligned`], [`CryptoError::Integrity`], [`CryptoError::Padding`].
    pub fn open(&self, prefix: &[u8], sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let (iv_len, icv_len) = (self.cipher.iv_len(), self.cipher.icv_len());
        let needed = self.cipher.sealed_len(0);
        if sealed.len() < needed {
            return Err(CryptoError::Truncated {
                needed,
                got: sealed.len(),
            });
        }
        let (iv, rest) = sealed.split_at(iv_len);
        let (text, icv) = rest.split_at(rest.len() - icv_len);
        let mut inner = text.to_vec();
        match &self.protection {
            Protection::Aead { key, salt } => {
                key.open_in_place_separate_tag(nonce(salt, iv)?, Aad::from(prefix), icv, &mut inner)
                    .map_err(|_| CryptoError::Integrity)?;
            }
            Protection::CbcHmac(keys) => {
                // Integrity first, over everything before the ICV (RFC 7296 3.14).
                keys.verify(&[prefix, iv, text], icv)?;
                keys.decrypt(&mut inner, iv)?;
            }
        }
        let pad = usize::from(inner.pop().ok_or(CryptoError::Padding)?);
        let len = inner.len().checked_sub(pad).ok_or(CryptoError::Padding)?;
        inner.truncate(len);
        Ok(inner)
    }
}

fn check_length(what: &'static str, expected: usize, got: usize) -> Result<(), CryptoError> {
    if expected == got {
        Ok(())
    } else {
        Err(CryptoError::Length { what, expected, got })
    }
}

fn fixed_iv(iv: &[u8]) -> Result<FixedLength<AES_BLOCK>, CryptoError> {
    let iv: [u8; AES_BLOCK] = iv.try_into().map_err(|_| CryptoError::Length {
        what: "IV",
        expected: AES_BLOCK,
        got: iv.len(),
    })?;
    Ok(FixedLength::from(iv))
}

fn nonce(salt: &crate::Secret<SALT_LEN>, iv: &[u8]) -> Result<Nonce, CryptoError> {
    check_length("IV", AEAD_IV_LEN, iv.len())?;
    let mut nonce = [0; SALT_LEN + AEAD_IV_LEN];
    nonce[..SALT_LEN].copy_from_slice(salt.expose());
    nonce[SALT_LEN..].copy_from_slice(iv);
    Ok(Nonce::assume_unique_for_key(nonce))
}

fn aead_key(algorithm: &'static aead::Algorithm, sk_e: &[u8]) -> Result<Protection, CryptoError> {
    let (key, salt_octets) = sk_e.split_at(sk_e.len() - SALT_LEN);
    let mut salt = [0; SALT_LEN];
    salt.copy_from_slice(salt_octets);
    let key = UnboundKey::new(algorithm, key).map_err(|_| CryptoError::Provider)?;
    Ok(Protection::Aead {
        key: LessSafeKey::new(key),
        salt: crate::Secret::new(salt),
    })
}

fn cbc_keys(
    algorithm: &'static cipher::Algorithm,
    sk_e: &[u8],
    integrity: Integrity,
    sk_a: &[u8],
) -> Result<Protection, CryptoError> {
    let keys = CbcHmac::new(algorithm, sk_e, integrity, sk_a)?;
    Ok(Protection::CbcHmac(Box::new(keys)))
}
