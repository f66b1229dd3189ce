//! ChaCha20-Poly1305 over the scratch area (RFC 8439 2.8).

use maps_schema::sad::SaKey;

use super::chacha20::{BLOCKS, CONSTANTS, COUNTER, aead_chacha_block, aead_chacha_xor};
use super::poly1305::{
    CHUNK_BLOCKS, CHUNKS, aead_poly1305_chunks, aead_poly1305_few, aead_poly1305_finish,
    aead_poly1305_powers, aead_poly1305_start,
};
use super::scratch::{FRONT_WORDS, LOOP_WORDS, Scratch, aead_frame};
use crate::opaque::opaque;

/// From so many blocks on, what four at once save is more than their powers of r cost.
const WORTH_POWERS: u32 = 12;

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
    // SAFETY: separate fields.
    unsafe {
        aead_chacha_block(&mut scratch.chacha, &mut scratch.block);
        aead_poly1305_start(&scratch.block, &mut scratch.poly);
    }
}

/// XORs the key stream into the text, from block 1 on. The octets behind the text come out as key stream.
#[inline(always)]
pub(super) fn crypt(scratch: &mut Scratch) {
    let end = opaque(scratch.text_end() as u64) as usize;
    let Scratch { chacha, message, .. } = scratch;
    let words = message.words_mut();
    let mut at = FRONT_WORDS;
    // See `LOOP_WORDS` for the second bound.
    while at < end && at < LOOP_WORDS {
        let count = ((end - at).div_ceil(8) as u32).min(BLOCKS);
        // SAFETY: two separate fields.
        unsafe { aead_chacha_xor(chacha, words, at as u32, count) };
        at += 8 * BLOCKS as usize;
    }
}

/// Computes the authenticator over AAD, ciphertext and lengths (RFC 8439 2.8).
#[inline(always)]
pub(super) fn authenticate(scratch: &mut Scratch) {
    // SAFETY: a reference.
    unsafe { aead_frame(scratch, 0) };
    let mut blocks = opaque(scratch.blocks() as u64) as u32;
    let Scratch {
        poly,
        message,
        computed,
        ..
    } = scratch;
    let words = message.words_mut();
    let mut at = FRONT_WORDS - 2;
    if blocks >= WORTH_POWERS {
        // SAFETY: a reference.
        unsafe { aead_poly1305_powers(poly) };
        // What does not fill a chunk goes first, so that the rest is full ones.
        let first = blocks % CHUNK_BLOCKS as u32;
        if first > 0
            && let Some(chunk) = words.get(at..).and_then(|w| w.first_chunk())
        {
            // SAFETY: two separate fields.
            unsafe { aead_poly1305_few(chunk, poly, first) };
        }
        at += 2 * first as usize;
        blocks -= first;
        let mut chunks = blocks / CHUNK_BLOCKS as u32;
        while chunks > 0 && at < LOOP_WORDS {
            // SAFETY: two separate fields.
            unsafe { aead_poly1305_chunks(words, poly, at as u32, chunks.min(CHUNKS)) };
            at += 8 * CHUNKS as usize;
            chunks = chunks.saturating_sub(CHUNKS);
        }
        blocks = 0;
    }
    while blocks > 0 && at < LOOP_WORDS {
        if let Some(chunk) = words.get(at..).and_then(|w| w.first_chunk()) {
            // SAFETY: two separate fields.
            unsafe { aead_poly1305_few(chunk, poly, blocks) };
        }
        at += 8;
        blocks = blocks.saturating_sub(4);
    }
    // SAFETY: two separate fields.
    unsafe { aead_poly1305_finish(poly, computed) };
}
