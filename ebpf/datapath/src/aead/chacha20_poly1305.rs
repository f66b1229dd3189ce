//! ChaCha20-Poly1305 over the scratch area (RFC 8439 2.8).

use maps_schema::sad::SaKey;

use super::chacha20::{CONSTANTS, COUNTER, aead_chacha_xor};
use super::poly1305::aead_poly1305_chunk;
use super::scratch::{FRONT_WORDS, Scratch};

/// Sets up the cipher and derives the packet's Poly1305 key from block 0 (RFC 8439 2.6).
#[inline(always)]
pub(super) fn start(key: &SaKey, scratch: &mut Scratch, nonce: [u32; 3]) {
    let state = &mut scratch.chacha;
    state[..4].copy_from_slice(&CONSTANTS);
    for i in 0..4 {
        state[4 + 2 * i] = key.schedule[i] as u32;
        state[5 + 2 * i] = (key.schedule[i] >> 32) as u32;
    }
    state[COUNTER] = 0;
    state[13..].copy_from_slice(&nonce);
    scratch.block = [0; 8];
    // SAFETY: two separate fields.
    unsafe { aead_chacha_xor(&mut scratch.chacha, &mut scratch.block) };
    let b = &scratch.block;
    scratch
        .poly
        .start([b[0].to_le(), b[1].to_le(), b[2].to_le(), b[3].to_le()]);
}

/// XORs the key stream into the text, from block 1 on. The octets behind the text come out as key stream.
#[inline(always)]
pub(super) fn crypt(scratch: &mut Scratch) {
    let end = scratch.text_end();
    let Scratch { chacha, message, .. } = scratch;
    let words = message.words_mut();
    let mut at = FRONT_WORDS;
    while at < end {
        if let Some(chunk) = words.get_mut(at..).and_then(|w| w.first_chunk_mut()) {
            // SAFETY: two separate fields.
            unsafe { aead_chacha_xor(chacha, chunk) };
        }
        at += 8;
    }
}

/// Computes the authenticator over AAD, ciphertext and lengths (RFC 8439 2.8).
#[inline(always)]
pub(super) fn authenticate(scratch: &mut Scratch) {
    let (aad_len, len) = (scratch.aad_len as u64, scratch.text_len as u64);
    scratch.frame([aad_len.to_le(), len.to_le()]);
    let mut blocks = scratch.blocks();
    let Scratch { poly, message, .. } = scratch;
    let words = message.words_mut();
    let mut at = FRONT_WORDS - 2;
    while blocks > 0 {
        if let Some(chunk) = words.get(at..).and_then(|w| w.first_chunk()) {
            // SAFETY: two separate fields.
            unsafe { aead_poly1305_chunk(chunk, poly, blocks) };
        }
        at += 8;
        blocks = blocks.saturating_sub(4);
    }
    let tag = poly.finish();
    scratch.computed = [tag[0].to_le(), tag[1].to_le()];
}
