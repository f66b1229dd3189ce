//! AES-GCM over the scratch area (SP 800-38D 7).

use maps_schema::sad::{KEY_WORDS, SaKey};

use super::aes::{
    ROUND_KEY_WORDS, aead_aes_ctr_next, aead_aes_encrypt, aead_aes_xor, expand_round_keys, first_block,
};
use super::ghash::{POWER_WORDS, aead_ghash_chunk, aead_ghash_start, expand_powers};
use super::scratch::{FRONT_WORDS, LOOP_WORDS, Scratch, aead_frame};
use crate::opaque::opaque;

const _: () = assert!(KEY_WORDS == ROUND_KEY_WORDS + POWER_WORDS);

/// Where the AAD block lies, and where, for counter mode, the pre-counter block J0 belongs: one before the text.
const BEFORE_TEXT: usize = FRONT_WORDS - 2;

/// Expands a key of 16 or 32 octets: round keys, then the powers of H = E(0).
pub(super) fn expand(key: &[u8], out: &mut SaKey) {
    expand_round_keys(key, &mut out.schedule);
    let mut state = [0; 8];
    // SAFETY: two separate values.
    unsafe { aead_aes_encrypt(out, &mut state) };
    let [low, high] = first_block(&mut state);
    expand_powers(
        ((low.swap_bytes() as u128) << 64) | high.swap_bytes() as u128,
        &mut out.schedule[ROUND_KEY_WORDS..],
    );
}

/// Sets up both halves of the cipher. The nonce is in place.
#[inline(always)]
pub(super) fn start(key: &SaKey, scratch: &mut Scratch) {
    if let Some(powers) = key.schedule.last_chunk::<POWER_WORDS>() {
        // SAFETY: the key and a field of the scratch area.
        unsafe { aead_ghash_start(powers, &mut scratch.ghash) };
    }
}

/// XORs key stream into the next `chunks` times four blocks, beginning with the one at word `at`.
#[inline(always)]
fn crypt(key: &SaKey, scratch: &mut Scratch, mut at: usize, end: usize) {
    let Scratch {
        counter,
        aes,
        message,
        ..
    } = scratch;
    let words = message.words_mut();
    let end = opaque(end as u64) as usize;
    // See `LOOP_WORDS` for the second bound.
    while at < end && at < LOOP_WORDS {
        if let Some(chunk) = words.get_mut(at..).and_then(|w| w.first_chunk_mut()) {
            // One after the other, not one in the other: that would add up their stacks, of which BPF has 512 octets.
            // SAFETY: separate fields, and the key.
            unsafe {
                aead_aes_ctr_next(counter, aes);
                aead_aes_encrypt(key, aes);
                aead_aes_xor(aes, chunk);
            }
        }
        at += 8;
    }
}

/// GHASH over AAD, ciphertext and lengths: complete chunks of four blocks, filled up with zero blocks in front, which
/// do not change a hash that begins with zero.
#[inline(always)]
fn hash(scratch: &mut Scratch) -> [u64; 2] {
    // SAFETY: a reference.
    unsafe { aead_frame(scratch, 1) };
    let blocks = scratch.blocks() as usize;
    let end = opaque((BEFORE_TEXT + 2 * blocks) as u64) as usize;
    // Not end less the chunks' length: of that the verifier cannot tell that it is positive.
    let mut at = BEFORE_TEXT - 2 * (blocks.wrapping_neg() & 3);
    let Scratch { ghash, message, .. } = scratch;
    let words = message.words_mut();
    while at < end && at < LOOP_WORDS {
        if let Some(chunk) = words.get(at..).and_then(|w| w.first_chunk()) {
            // SAFETY: two separate fields.
            unsafe { aead_ghash_chunk(chunk, ghash) };
        }
        at += 8;
    }
    ghash.finish()
}

/// Encrypts the text and computes its tag.
#[inline(always)]
pub(super) fn seal(key: &SaKey, scratch: &mut Scratch) {
    let words = scratch.message.words_mut();
    words[BEFORE_TEXT] = 0;
    words[BEFORE_TEXT + 1] = 0;
    let end = scratch.text_end();
    crypt(key, scratch, BEFORE_TEXT, end);
    let words = scratch.message.words_mut();
    let mask = [words[BEFORE_TEXT], words[BEFORE_TEXT + 1]];
    let hash = hash(scratch);
    scratch.computed = [mask[0] ^ hash[0], mask[1] ^ hash[1]];
}

/// Computes the tag and, if it is that of the packet, decrypts the text. The first chunk of key stream covers the tag
/// and three blocks of text, so these are decrypted in any case.
#[inline(always)]
pub(super) fn open(key: &SaKey, scratch: &mut Scratch) -> bool {
    let hash = hash(scratch);
    let words = scratch.message.words_mut();
    words[BEFORE_TEXT] = hash[0];
    words[BEFORE_TEXT + 1] = hash[1];
    crypt(key, scratch, BEFORE_TEXT, FRONT_WORDS);
    let words = scratch.message.words_mut();
    scratch.computed = [words[BEFORE_TEXT], words[BEFORE_TEXT + 1]];
    if !scratch.tag_matches() {
        return false;
    }
    let end = scratch.text_end();
    crypt(key, scratch, BEFORE_TEXT + 8, end);
    true
}
