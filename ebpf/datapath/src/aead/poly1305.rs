//! Poly1305 (RFC 8439 2.5) in five limbs of 26 bits with 64-bit products: BPF has no wider multiplication.
//!
//! Four blocks are taken at once, each times its own power of r: (h + m0) r^4 + m1 r^3 + m2 r^2 + m3 r. Their products do not
//! depend on each other, and they share one carry. The powers cost four multiplications; a message of few blocks takes
//! them one by one ([`aead_poly1305_few`]).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::BAD_PARAMETER;
use super::global::global_fn;
use super::scratch::{MESSAGE_WORDS, zero};
use crate::opaque::opaque;

const LOW: u64 = 0xffff_ffff;
const LIMB: u64 = 0x3ff_ffff;
const LIMBS: usize = 5;
/// Blocks of a chunk.
pub(super) const CHUNK_BLOCKS: usize = 4;
/// Chunks that one call of [`aead_poly1305_chunks`] may take.
pub(super) const CHUNKS: u32 = 8;

/// A power of r: its limbs, then limbs 1 to 4 times 5. A product that would stand at 2^130 or above counts five times below,
/// since 2^130 = 5 (mod p).
type Power = [u64; 2 * LIMBS - 1];

/// Accumulator and one-time key.
#[derive(Clone, Copy, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Poly1305 {
    h: [u64; LIMBS],
    /// r^4 to r.
    powers: [Power; CHUNK_BLOCKS],
    s: [u64; 4],
}

/// The limbs of a full block with the bit above it (RFC 8439 2.5.1), low word first.
#[inline(always)]
fn limbs(low: u64, high: u64) -> [u64; LIMBS] {
    [
        low & LIMB,
        (low >> 26) & LIMB,
        (low >> 52 | high << 12) & LIMB,
        (high >> 14) & LIMB,
        (high >> 40) | 1 << 24,
    ]
}

/// Adds a product to `sum`. Limbs of `m` stay under 2^28, those of the power under 2^29 (five times 2^26 and a little), so the
/// twenty products of a chunk stay under 2^62.
#[inline(always)]
fn add_product(sum: &mut [u64; LIMBS], m: &[u64; LIMBS], power: &Power) {
    for j in 0..LIMBS {
        for i in 0..LIMBS {
            let factor = if i >= j {
                power[i - j]
            } else {
                power[2 * LIMBS - 1 + i - j]
            };
            sum[i] += m[j] * factor;
        }
    }
}

/// Brings the limbs to 26 bits, limb 1 and 4 to a little more.
#[inline(always)]
fn carried(mut d: [u64; LIMBS]) -> [u64; LIMBS] {
    // Two chains, from limb 0 and from limb 3, so that neither waits for the other.
    d[1] += d[0] >> 26;
    d[4] += d[3] >> 26;
    (d[0], d[3]) = (d[0] & LIMB, d[3] & LIMB);
    d[2] += d[1] >> 26;
    d[0] += (d[4] >> 26) * 5;
    (d[1], d[4]) = (d[1] & LIMB, d[4] & LIMB);
    d[3] += d[2] >> 26;
    d[1] += d[0] >> 26;
    (d[2], d[0]) = (d[2] & LIMB, d[0] & LIMB);
    d[4] += d[3] >> 26;
    d[3] &= LIMB;
    d
}

#[inline(always)]
fn power(r: [u64; LIMBS]) -> Power {
    [
        r[0],
        r[1],
        r[2],
        r[3],
        r[4],
        5 * r[1],
        5 * r[2],
        5 * r[3],
        5 * r[4],
    ]
}

global_fn! {
    /// Starts a message under the one-time key in the first half of `block` (RFC 8439 2.5.1: r is clamped). Returns 0.
    pub(super) fn aead_poly1305_start(block: &[u64; 8]; state: &mut Poly1305;) {
        let key = [block[0].to_le(), block[1].to_le(), block[2].to_le(), block[3].to_le()];
        let mut r = limbs(key[0] & 0x0fff_fffc_0fff_ffff, key[1] & 0x0fff_fffc_0fff_fffc);
        // A number, not a block: the bit above it does not belong to it.
        r[LIMBS - 1] ^= 1 << 24;
        zero(&mut state.h);
        state.powers[CHUNK_BLOCKS - 1] = power(r);
        state.s = [key[2] & LOW, key[2] >> 32, key[3] & LOW, key[3] >> 32];
        0
    }
}

global_fn! {
    /// Makes the powers that [`aead_poly1305_chunks`] needs. Returns 0.
    pub(super) fn aead_poly1305_powers(; state: &mut Poly1305;) {
        let r = state.powers[CHUNK_BLOCKS - 1];
        let mut last = [r[0], r[1], r[2], r[3], r[4]];
        for at in [2, 1, 0] {
            let mut sum = [0; LIMBS];
            add_product(&mut sum, &last, &r);
            last = carried(sum);
            state.powers[at] = power(last);
        }
        0
    }
}

global_fn! {
    /// Absorbs the first `count` (1 to 4) blocks of `chunk`, one after the other; needs r only. Returns 0.
    pub(super) fn aead_poly1305_few(chunk: &[u64; 8]; state: &mut Poly1305; count: u32) {
        let mut h = state.h;
        for b in 0..CHUNK_BLOCKS {
            if b >= count as usize {
                break;
            }
            let m = limbs(u64::from_le(chunk[2 * b]), u64::from_le(chunk[2 * b + 1]));
            for i in 0..LIMBS {
                h[i] += m[i];
            }
            let mut sum = [0; LIMBS];
            add_product(&mut sum, &h, &state.powers[CHUNK_BLOCKS - 1]);
            h = carried(sum);
        }
        state.h = h;
        0
    }
}

global_fn! {
    /// Absorbs `count` (at most [`CHUNKS`]) times four blocks from word `at` on. Returns 0.
    pub(super) fn aead_poly1305_chunks(words: &[u64; MESSAGE_WORDS]; state: &mut Poly1305; at: u32, count: u32) {
        let mut at = at as usize;
        let mut h = state.h;
        for done in 0..CHUNKS {
            if done >= count {
                break;
            }
            let mut sum = [0; LIMBS];
            for b in 0..CHUNK_BLOCKS as u64 {
                // Opaque: unrolled, the four blocks would need more registers and stack than BPF has.
                let b = opaque(b) as usize % CHUNK_BLOCKS;
                // Opaque too: else it becomes a pointer that is moved before it is compared, which the verifier refuses.
                let place = opaque(at as u64) as usize;
                let Some([low, high]) = words.get(place..).and_then(|w| w.first_chunk()) else {
                    return BAD_PARAMETER;
                };
                let mut m = limbs(u64::from_le(*low), u64::from_le(*high));
                if b == 0 {
                    for i in 0..LIMBS {
                        m[i] += h[i];
                    }
                }
                add_product(&mut sum, &m, &state.powers[b]);
                at += 2;
            }
            h = carried(sum);
        }
        state.h = h;
        0
    }
}

global_fn! {
    /// Writes the authenticator, as two words in memory order, to `out`. Returns 0.
    pub(super) fn aead_poly1305_finish(state: &Poly1305; out: &mut [u64; 2];) {
        // 26-bit limbs with what is left of carries, as four words of 32 bits and the rest.
        let [h0, h1, h2, h3, h4] = state.h;
        let mut words = [0; 4];
        let mut carry = h0 + (h1 << 26);
        words[0] = carry & LOW;
        carry = (carry >> 32) + (h2 << 20);
        words[1] = carry & LOW;
        carry = (carry >> 32) + (h3 << 14);
        words[2] = carry & LOW;
        carry = (carry >> 32) + (h4 << 8);
        words[3] = carry & LOW;
        let top = carry >> 32;
        // How often p goes into h, by the carry of h + 5 beyond 2^130; each time counts as + 5 in the low 128 bits.
        let mut carry = 5;
        for word in words {
            carry = (carry + word) >> 32;
        }
        carry = ((carry + top) >> 2) * 5;
        for (word, s) in words.iter_mut().zip(state.s) {
            carry += *word + s;
            *word = carry & LOW;
            carry >>= 32;
        }
        *out = [(words[0] | words[1] << 32).to_le(), (words[2] | words[3] << 32).to_le()];
        0
    }
}
