//! ChaCha20-Poly1305 over the scratch area (RFC 8439 2.8).

use maps_schema::sad::SaKey;

use super::chacha20::{CONSTANTS, COUNTER, aead_chacha_xor};
use super::poly1305::{aead_poly1305_chunk, aead_poly1305_finish, aead_poly1305_start};
use super::scratch::{FRONT_WORDS, Scratch, aead_frame};

/// Puts key and nonce in place (RFC 8439 2.3).
#[inline(always)]
pub(super) fn load(key: &SaKey, state: &mut [u32; 16], nonce: [u32; 3]) {
    state[..4].copy_from_slice(&CONSTANTS);
    for i in 0..4 {
        state[4 + 2 * i] = key.schedule[i] as u32;
        state[5 + 2 * i] = (key.schedule[i] >> 32) as u32;
    }
    state[COUNTER] = 0;
    state[13..].copy_from_slice(&nonce);
}

/// Derives the packet's Poly1305 key from block 0 (RFC 8439 2.6). Key and nonce are in place.
#[inline(always)]
pub(super) fn start(scratch: &mut Scratch) {
    scratch.block = [0; 8];
    // SAFETY: separate fields.
    unsafe {
        aead_chacha_xor(&mut scratch.chacha, &mut scratch.block);
        aead_poly1305_start(&scratch.block, &mut scratch.poly);
    }
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
    // SAFETY: a reference.
    unsafe { aead_frame(scratch, 0) };
    let mut blocks = scratch.blocks();
    let Scratch {
        poly,
        message,
        computed,
        ..
    } = scratch;
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
    // SAFETY: two separate fields.
    unsafe { aead_poly1305_finish(poly, computed) };
}
