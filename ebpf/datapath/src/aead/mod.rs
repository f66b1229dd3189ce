//! ESP's ciphers: ChaCha20-Poly1305 (RFC 8439, RFC 7634), AES-GCM (RFC 4106), and for old peers AES-CBC with HMAC-SHA2-256-128
//! (RFC 3602, RFC 4868), in constant time.
//!
//! One source for BPF and for the host. The caller copies the ciphertext (or the plaintext with its trailer) into
//! [`Scratch::text_mut`], fills `iv`, `aad`, `aad_len`, `text_len` (and `tag`, to open), and calls [`seal`] or [`open`];
//! a program calls [`aead_seal`] or [`aead_open`], which the verifier walks once however often they are called.
//!
//! Nothing here branches on, or indexes by, a secret. Lengths and the outcome are public.

mod aes;
mod cbc;
mod chacha20;
mod chacha20_poly1305;
mod gcm;
mod ghash;
pub(crate) mod global;
mod poly1305;
mod scratch;
mod sha256;

use maps_schema::sad::{
    SUITE_AES128_CBC_SHA256, SUITE_AES128_GCM, SUITE_AES256_CBC_SHA256, SUITE_AES256_GCM, SUITE_CBC,
    SUITE_CHACHA20_POLY1305, SUITE_LAST, SaKey,
};

use global::global_fn;
pub use scratch::{AAD_ESN, AAD_PLAIN, Scratch, TAG_LEN, TEXT_MAX};

/// [`aead_open`], [`aead_seal`]: done, and authentic.
pub const DONE: i32 = 0;
/// [`aead_open`]: the tag is not that of the packet.
pub const NOT_AUTHENTIC: i32 = 1;
/// A pointer was null: nothing was done.
pub const NULL_POINTER: i32 = -1;
/// `text_len` or `aad_len` is out of range, or the key is of no suite known here: nothing was done.
pub const BAD_PARAMETER: i32 = -2;

/// Why a key could not be expanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadKey {
    /// The number is none of `SUITE_*`.
    UnknownSuite(u8),
    /// The suite's keys have `expected` octets; this one has `given`.
    WrongLength {
        /// Octets that the suite wants, without salt.
        expected: usize,
        /// Octets that were given.
        given: usize,
    },
}

impl core::fmt::Display for BadKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::UnknownSuite(suite) => write!(f, "ESP suite {suite} is not carried by the kernel lane"),
            Self::WrongLength { expected, given } => {
                write!(
                    f,
                    "ESP key of {given} octets (without salt) where the suite wants {expected}"
                )
            }
        }
    }
}

impl core::error::Error for BadKey {}

/// Octets of a suite's key: of the cipher, and behind it HMAC's; without the four of the salt.
pub const fn key_len(suite: u8) -> Option<usize> {
    match suite {
        SUITE_AES128_GCM => Some(16),
        SUITE_AES256_GCM | SUITE_CHACHA20_POLY1305 => Some(32),
        SUITE_AES128_CBC_SHA256 => Some(16 + cbc::INTEGRITY_KEY_LEN),
        SUITE_AES256_CBC_SHA256 => Some(32 + cbc::INTEGRITY_KEY_LEN),
        _ => None,
    }
}

/// Expands the key of one SA for the programs. `key` has [`key_len`] octets; suites without a salt ignore it.
pub fn expand(suite: u8, key: &[u8], salt: [u8; 4], spi: u32) -> Result<SaKey, BadKey> {
    let expected = key_len(suite).ok_or(BadKey::UnknownSuite(suite))?;
    if key.len() != expected {
        return Err(BadKey::WrongLength {
            expected,
            given: key.len(),
        });
    }
    let mut out = SaKey {
        spi,
        suite: suite as u32,
        salt,
        ..SaKey::EMPTY
    };
    if suite == SUITE_CHACHA20_POLY1305 {
        for (word, octets) in out.schedule.iter_mut().zip(key.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*octets);
        }
    } else if suite >= SUITE_CBC {
        cbc::expand(key, &mut out);
    } else {
        gcm::expand(key, &mut out);
    }
    Ok(out)
}

/// Whether the tag was that of the packet. Only if so does the text area hold the plaintext.
#[must_use = "a packet that is not authentic must be dropped"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened(pub bool);

/// Encrypts the text in place and leaves its tag in `scratch.tag`. `false`, and nothing done, if a length is out of
/// range or the suite is unknown.
#[must_use = "an unsealed text must not be sent"]
pub fn seal(key: &SaKey, scratch: &mut Scratch) -> bool {
    // SAFETY: both come from references to separate values.
    unsafe { aead_seal(key, scratch) == DONE }
}

/// Verifies the tag and decrypts the text in place. Without a match the text area is left in an unspecified state.
pub fn open(key: &SaKey, scratch: &mut Scratch) -> Opened {
    // SAFETY: both come from references to separate values.
    unsafe { Opened(aead_open(key, scratch) == DONE) }
}

global_fn! {
    /// Checks the parameters and puts an AEAD's nonce in place: salt, then IV (RFC 4106 4, RFC 7634 2). Returns [`DONE`] or
    /// [`BAD_PARAMETER`].
    fn aead_prepare(key: &SaKey; scratch: &mut Scratch;) {
        if !scratch.is_sane() {
            return BAD_PARAMETER;
        }
        if key.suite >= SUITE_CBC as u32 && key.suite <= SUITE_LAST as u32 {
            return if cbc::is_whole(scratch) { DONE } else { BAD_PARAMETER };
        }
        let [a, b, c, d, e, f, g, h, ..] = scratch.iv;
        let nonce =
            [u32::from_le_bytes(key.salt), u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])];
        if key.suite == SUITE_CHACHA20_POLY1305 as u32 {
            chacha20_poly1305::load(key, &mut scratch.chacha, nonce);
        } else if key.suite == SUITE_AES128_GCM as u32 || key.suite == SUITE_AES256_GCM as u32 {
            aes::start_counter(&mut scratch.counter, nonce);
        } else {
            return BAD_PARAMETER;
        }
        DONE
    }
}

global_fn! {
    /// Encrypts and authenticates `scratch`'s text in place. Returns [`DONE`], [`BAD_PARAMETER`] or [`NULL_POINTER`].
    pub fn aead_seal(key: &SaKey; scratch: &mut Scratch;) {
        // SAFETY: both come from references to separate values.
        if unsafe { aead_prepare(key, scratch) } != DONE {
            return BAD_PARAMETER;
        }
        if key.suite == SUITE_CHACHA20_POLY1305 as u32 {
            chacha20_poly1305::start(scratch);
            chacha20_poly1305::crypt(scratch);
            chacha20_poly1305::authenticate(scratch);
        } else if key.suite >= SUITE_CBC as u32 {
            cbc::seal(key, scratch);
        } else {
            gcm::start(key, scratch);
            gcm::seal(key, scratch);
        }
        scratch.store_tag();
        DONE
    }
}

global_fn! {
    /// Verifies and decrypts `scratch`'s text in place. Returns [`DONE`], [`NOT_AUTHENTIC`], [`BAD_PARAMETER`] or
    /// [`NULL_POINTER`]; the text may be used with [`DONE`] only.
    pub fn aead_open(key: &SaKey; scratch: &mut Scratch;) {
        // SAFETY: both come from references to separate values.
        if unsafe { aead_prepare(key, scratch) } != DONE {
            return BAD_PARAMETER;
        }
        if key.suite == SUITE_CHACHA20_POLY1305 as u32 {
            chacha20_poly1305::start(scratch);
            chacha20_poly1305::authenticate(scratch);
            if !scratch.tag_matches() {
                return NOT_AUTHENTIC;
            }
            chacha20_poly1305::crypt(scratch);
        } else if key.suite >= SUITE_CBC as u32 {
            if !cbc::open(key, scratch) {
                return NOT_AUTHENTIC;
            }
        } else {
            gcm::start(key, scratch);
            if !gcm::open(key, scratch) {
                return NOT_AUTHENTIC;
            }
        }
        scratch.clear_tail();
        DONE
    }
}
