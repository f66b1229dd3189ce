//! AES-CBC (RFC 3602) and HMAC-SHA2-256-128 (RFC 4868) over the scratch area: encrypt, then MAC (RFC 4303 3.3.2.1); the MAC is verified
//! before anything is decrypted.
//!
//! In the message area lie, before the text, SPI and sequence number as they are in the packet, and the IV; behind it the upper half of
//! an extended sequence number. All of it is what the MAC covers.

use maps_schema::sad::{KEY_WORDS, SaKey};

use super::aes::{
    ROUND_KEY_WORDS, aead_aes_decrypt, aead_aes_encrypt, aead_aes_slice, aead_aes_slice_one,
    aead_aes_unchain, aead_aes_unslice_one, expand_round_keys,
};
use super::global::global_fn;
use super::scratch::{AAD_ESN, FRONT_WORDS, LOOP_WORDS, MESSAGE_WORDS, Scratch, zero};
use super::sha256::{aead_sha256_block, expand as expand_hmac};
use crate::opaque::opaque;

/// Octets of HMAC's key (RFC 4868 2.1.1).
pub(super) const INTEGRITY_KEY_LEN: usize = 32;
/// Octets of the cipher's block, and of the IV.
pub(super) const BLOCK_LEN: usize = 16;

/// Words of HMAC's two states in a key, behind the round keys.
const HMAC_WORDS: usize = 8;
const _: () = assert!(ROUND_KEY_WORDS + HMAC_WORDS <= KEY_WORDS);

/// Where the IV lies.
const IV_AT: usize = FRONT_WORDS - 2;
/// Where the octets begin that the MAC covers.
const MAC_AT: usize = IV_AT - 1;
/// Words after the text that may be written: what is left of the last chunk of four blocks, or padding of the hash.
const AFTER: usize = 9;

/// Expands a cipher key of 16 or 32 octets and HMAC's behind it.
pub(super) fn expand(key: &[u8], out: &mut SaKey) {
    let Some((cipher, integrity)) = key.split_last_chunk::<INTEGRITY_KEY_LEN>() else {
        return;
    };
    expand_round_keys(cipher, &mut out.schedule);
    if let Some(states) = out.schedule[ROUND_KEY_WORDS..].first_chunk_mut() {
        expand_hmac(integrity, states);
    }
}

/// Whether the text is a whole number of blocks, one at least.
#[inline(always)]
pub(super) fn is_whole(scratch: &Scratch) -> bool {
    scratch.text_len != 0 && scratch.text_len.is_multiple_of(BLOCK_LEN as u32)
}

/// The IV, as the two words that it is in memory.
#[inline(always)]
fn iv(scratch: &Scratch) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = scratch.iv;
    [
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
    ]
}

global_fn! {
    /// Encrypts the two words of `message` at `at`, which is where a block begins. Returns 0.
    fn aead_cbc_seal_block(key: &SaKey; message: &mut [u64; MESSAGE_WORDS], state: &mut [u64; 8], chain: &mut [u64; 2]; at: u32) {
        let at = opaque(at as u64) as usize;
        if at > LOOP_WORDS {
            return 0;
        }
        if let Some(block) = message.get_mut(at..).and_then(|w| w.first_chunk_mut::<2>()) {
            // SAFETY: separate values. (One after the other, so that their stacks do not add up.)
            unsafe {
                aead_aes_slice_one(block, chain, state);
                aead_aes_encrypt(key, state);
                aead_aes_unslice_one(state, block, chain);
            }
        }
        0
    }
}

/// Encrypts the text and leaves the IV in `scratch.iv`. What is there before is the nonce that the IV is made of.
///
/// SP 800-38A, appendix C: an IV that nobody can foresee is had by applying the cipher to a nonce. That is the same as chaining from zero
/// with the nonce as the first block.
#[inline(always)]
fn encrypt(key: &SaKey, scratch: &mut Scratch) {
    let nonce = iv(scratch);
    let end = opaque(scratch.text_end() as u64) as usize;
    let Scratch {
        message, aes, chain, ..
    } = scratch;
    let words = message.words_mut();
    [words[IV_AT], words[IV_AT + 1]] = nonce;
    *chain = [0; 2];
    let mut at = IV_AT;
    // See `LOOP_WORDS` for the second bound.
    while at < end && at < LOOP_WORDS {
        // SAFETY: separate fields, and the key.
        unsafe { aead_cbc_seal_block(key, words, aes, chain, at as u32) };
        at += 2;
    }
    let iv = [words[IV_AT], words[IV_AT + 1]];
    scratch.iv = zerocopy::transmute!(iv);
}

/// Decrypts the text, four blocks at a time.
#[inline(always)]
fn decrypt(key: &SaKey, scratch: &mut Scratch) {
    let end = opaque(scratch.text_end() as u64) as usize;
    scratch.chain = iv(scratch);
    let Scratch {
        message, aes, chain, ..
    } = scratch;
    let words = message.words_mut();
    let mut at = FRONT_WORDS;
    while at < end && at < LOOP_WORDS {
        if let Some(chunk) = words.get_mut(at..).and_then(|w| w.first_chunk_mut()) {
            // SAFETY: separate fields, and the key.
            unsafe {
                aead_aes_slice(chunk, aes);
                aead_aes_decrypt(key, aes);
                aead_aes_unchain(aes, chunk, chain);
            }
        }
        at += 8;
    }
}

global_fn! {
    /// Puts SPI, sequence number and IV before the text, and behind it the number's upper half (with ESN, RFC 4303 2.8.1) and the hash's
    /// padding (FIPS 180-4 5.1.1). Returns the blocks of the hash.
    fn aead_cbc_frame(; scratch: &mut Scratch;) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = scratch.aad;
        let esn = scratch.aad_len == AAD_ESN;
        let (header, tail) = if esn {
            ([a, b, c, d, i, j, k, l], [e, f, g, h, 0x80, 0, 0, 0])
        } else {
            ([a, b, c, d, e, f, g, h], [0x80, 0, 0, 0, 0, 0, 0, 0])
        };
        let iv = iv(scratch);
        let end = opaque(scratch.text_end() as u64) as usize;
        // Header, IV, text; then the tail and the length in words of their own, which the last block ends with.
        let covered = end - MAC_AT;
        let blocks = (covered + 2).div_ceil(8);
        let bits = (64 + 8 * covered as u64 + if esn { 4 } else { 0 }) * 8;
        let words = scratch.message.words_mut();
        words[MAC_AT] = u64::from_ne_bytes(header);
        [words[IV_AT], words[IV_AT + 1]] = iv;
        if end > LOOP_WORDS {
            return 0;
        }
        if let Some(after) = words.get_mut(end..).and_then(|w| w.first_chunk_mut::<AFTER>()) {
            zero(after);
            after[0] = u64::from_ne_bytes(tail);
        }
        let last = opaque((MAC_AT + 8 * blocks - 1) as u64) as usize;
        if let Some(length) = words.get_mut(last) {
            *length = bits.to_be();
        }
        blocks as i32
    }
}

/// Computes the MAC over what [`aead_cbc_frame`] has laid out.
#[inline(always)]
fn authenticate(key: &SaKey, scratch: &mut Scratch) {
    // SAFETY: a reference.
    let blocks = unsafe { aead_cbc_frame(scratch) };
    let end = opaque((MAC_AT + 8 * blocks as usize) as u64) as usize;
    let Scratch {
        message,
        sha,
        block,
        computed,
        ..
    } = scratch;
    let (Some(inner), Some(outer)) = (
        key.schedule[ROUND_KEY_WORDS..].first_chunk::<4>(),
        key.schedule[ROUND_KEY_WORDS + 4..].first_chunk::<4>(),
    ) else {
        return;
    };
    sha.resume(inner);
    let words = message.words_mut();
    let mut at = MAC_AT;
    while at < end && at < LOOP_WORDS {
        if let Some(chunk) = words.get(at..).and_then(|w| w.first_chunk()) {
            // SAFETY: two separate fields.
            unsafe { aead_sha256_block(chunk, sha) };
        }
        at += 8;
    }
    // The outer hash is over one block: the inner one's 32 octets, and the padding of 96 octets.
    let [a, b, c, d] = sha.digest();
    *block = [a, b, c, d, (1u64 << 63).to_be(), 0, 0, (96u64 * 8).to_be()];
    sha.resume(outer);
    // SAFETY: two separate fields.
    unsafe { aead_sha256_block(block, sha) };
    *computed = sha.first_half();
}

/// Encrypts the text and computes its MAC.
#[inline(always)]
pub(super) fn seal(key: &SaKey, scratch: &mut Scratch) {
    encrypt(key, scratch);
    authenticate(key, scratch);
}

/// Computes the MAC and, if it is that of the packet, decrypts the text.
#[inline(always)]
pub(super) fn open(key: &SaKey, scratch: &mut Scratch) -> bool {
    authenticate(key, scratch);
    if !scratch.tag_matches() {
        return false;
    }
    decrypt(key, scratch);
    true
}
