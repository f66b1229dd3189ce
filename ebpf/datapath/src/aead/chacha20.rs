//! ChaCha20 (RFC 8439 2.3), one block after the other.

use core::sync::atomic::{Ordering, compiler_fence};

use super::global::global_fn;
use super::scratch::{MESSAGE_WORDS, zero};

/// "expand 32-byte k" (RFC 8439 2.3).
pub(super) const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];
/// The state word that counts blocks.
pub(super) const COUNTER: usize = 12;

macro_rules! quarter {
    ($a:ident, $b:ident, $c:ident, $d:ident) => {
        $a = $a.wrapping_add($b);
        $d = ($d ^ $a).rotate_left(16);
        $c = $c.wrapping_add($d);
        $b = ($b ^ $c).rotate_left(12);
        $a = $a.wrapping_add($b);
        $d = ($d ^ $a).rotate_left(8);
        $c = $c.wrapping_add($d);
        $b = ($b ^ $c).rotate_left(7);
    };
}

/// Two state words as they lie in memory, little-endian.
#[inline(always)]
fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// Blocks that one call of [`aead_chacha_xor`] may take. A return costs tens of cycles where the kernel guards returns against
/// speculation; the verifier walks through all of them.
pub(super) const BLOCKS: u32 = 8;

global_fn! {
    /// XORs key stream into the next `count` (at most [`BLOCKS`]) blocks of 64 octets from word `at` on, advancing the counter of
    /// `state`. Returns 0.
    pub(super) fn aead_chacha_xor(; state: &mut [u32; 16], words: &mut [u64; MESSAGE_WORDS]; at: u32, count: u32) {
        let mut at = at as usize;
        for done in 0..BLOCKS {
            if done >= count {
                break;
            }
            if let Some(chunk) = words.get_mut(at..).and_then(|w| w.first_chunk_mut()) {
                xor_block(state, chunk);
            }
            at += 8;
        }
        0
    }
}

global_fn! {
    /// The key stream block of `state`, whose counter it advances. Returns 0.
    pub(super) fn aead_chacha_block(; state: &mut [u32; 16], block: &mut [u64; 8];) {
        zero(block);
        xor_block(state, block);
        0
    }
}

/// Sixteen locals: LLVM allocates them better than anything written by hand for BPF's ten registers.
#[inline(always)]
fn xor_block(state: &mut [u32; 16], chunk: &mut [u64; 8]) {
    let [mut a0, mut a1, mut a2, mut a3, mut b0, mut b1, mut b2, mut b3, ..] = *state;
    let [.., mut c0, mut c1, mut c2, mut c3, mut d0, mut d1, mut d2, mut d3] = *state;
    for _ in 0..10 {
        quarter!(a0, b0, c0, d0);
        quarter!(a1, b1, c1, d1);
        quarter!(a2, b2, c2, d2);
        quarter!(a3, b3, c3, d3);
        quarter!(a0, b1, c2, d3);
        quarter!(a1, b2, c3, d0);
        quarter!(a2, b3, c0, d1);
        quarter!(a3, b0, c1, d2);
    }
    // Makes the compiler load the initial state again instead of keeping all of it on BPF's small stack.
    compiler_fence(Ordering::SeqCst);
    chunk[0] ^= pair(a0.wrapping_add(state[0]), a1.wrapping_add(state[1])).to_le();
    chunk[1] ^= pair(a2.wrapping_add(state[2]), a3.wrapping_add(state[3])).to_le();
    chunk[2] ^= pair(b0.wrapping_add(state[4]), b1.wrapping_add(state[5])).to_le();
    chunk[3] ^= pair(b2.wrapping_add(state[6]), b3.wrapping_add(state[7])).to_le();
    chunk[4] ^= pair(c0.wrapping_add(state[8]), c1.wrapping_add(state[9])).to_le();
    chunk[5] ^= pair(c2.wrapping_add(state[10]), c3.wrapping_add(state[11])).to_le();
    chunk[6] ^= pair(d0.wrapping_add(state[12]), d1.wrapping_add(state[13])).to_le();
    chunk[7] ^= pair(d2.wrapping_add(state[14]), d3.wrapping_add(state[15])).to_le();
    state[COUNTER] = state[COUNTER].wrapping_add(1);
}
