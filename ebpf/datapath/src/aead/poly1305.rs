//! Poly1305 (RFC 8439 2.5) in 32-bit limbs with 64-bit products: BPF has no wider multiplication.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::global::global_fn;

const LOW: u64 = 0xffff_ffff;

/// Accumulator and one-time key. Limbs are kept in 64-bit words to spare conversions.
#[derive(Clone, Copy, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Poly1305 {
    h: [u64; 5],
    r: [u64; 4],
    s: [u64; 4],
}

impl Poly1305 {
    /// One full block, low word first. A limb stays under 2^32 (the top one under 8), r under 2^28 by its clamping, so
    /// that a sum of four products (one of them by at most 5/4 r) stays under 2^64 without a carry in between.
    #[inline(always)]
    fn block(h: &mut [u64; 5], r: &[u64; 4], block: [u64; 2]) {
        // r1..r3 are multiples of 4: 2^128 * r = 2^130 * r/4 = 5 * r/4 (mod p).
        let (q1, q2, q3) = (r[1] + (r[1] >> 2), r[2] + (r[2] >> 2), r[3] + (r[3] >> 2));
        let s0 = h[0] + (block[0] & LOW);
        let s1 = h[1] + (block[0] >> 32);
        let s2 = h[2] + (block[1] & LOW);
        let s3 = h[3] + (block[1] >> 32);
        let s4 = h[4] + 1;
        let x0 = s0 * r[0] + s1 * q3 + s2 * q2 + s3 * q1 + s4 * (r[0] >> 2) * 5;
        let x1 = s0 * r[1] + s1 * r[0] + s2 * q3 + s3 * q2 + s4 * q1;
        let x2 = s0 * r[2] + s1 * r[1] + s2 * r[0] + s3 * q3 + s4 * q2;
        let x3 = s0 * r[3] + s1 * r[2] + s2 * r[1] + s3 * r[0] + s4 * q3;
        let top = s4 * (r[0] & 3) + (x3 >> 32);
        let u0 = (x0 & LOW) + (top >> 2) * 5;
        let u1 = (x1 & LOW) + (x0 >> 32) + (u0 >> 32);
        let u2 = (x2 & LOW) + (x1 >> 32) + (u1 >> 32);
        let u3 = (x3 & LOW) + (x2 >> 32) + (u2 >> 32);
        *h = [u0 & LOW, u1 & LOW, u2 & LOW, u3 & LOW, (u3 >> 32) + (top & 3)];
    }
}

global_fn! {
    /// Starts a message under the one-time key in the first half of `block` (RFC 8439 2.5.1: r is clamped). Returns 0.
    pub(super) fn aead_poly1305_start(block: &[u64; 8]; state: &mut Poly1305;) {
        let key = [block[0].to_le(), block[1].to_le(), block[2].to_le(), block[3].to_le()];
        let r = [key[0] & 0x0fff_fffc_0fff_ffff, key[1] & 0x0fff_fffc_0fff_fffc];
        state.h = [0; 5];
        state.r = [r[0] & LOW, r[0] >> 32, r[1] & LOW, r[1] >> 32];
        state.s = [key[2] & LOW, key[2] >> 32, key[3] & LOW, key[3] >> 32];
        0
    }
}

global_fn! {
    /// Writes the authenticator, as two words in memory order, to `out`. Returns 0.
    pub(super) fn aead_poly1305_finish(state: &Poly1305; out: &mut [u64; 2];) {
        let h = &state.h;
        // How often p goes into h, by the carry of h + 5 beyond 2^130; each time counts as + 5 in the low 128 bits.
        let mut carry = 5;
        for limb in &h[..4] {
            carry = (carry + limb) >> 32;
        }
        carry = ((carry + h[4]) >> 2) * 5;
        let mut limbs = [0; 4];
        for i in 0..4 {
            carry += h[i] + state.s[i];
            limbs[i] = carry & LOW;
            carry >>= 32;
        }
        *out = [(limbs[0] | limbs[1] << 32).to_le(), (limbs[2] | limbs[3] << 32).to_le()];
        0
    }
}

global_fn! {
    /// Absorbs the first `count` (1 to 4) blocks of `chunk`. Returns 0.
    pub(super) fn aead_poly1305_chunk(chunk: &[u64; 8]; state: &mut Poly1305; count: u32) {
        let (mut h, r) = (state.h, state.r);
        for i in 0..4 {
            if i >= count as usize {
                break;
            }
            Poly1305::block(&mut h, &r, [u64::from_le(chunk[2 * i]), u64::from_le(chunk[2 * i + 1])]);
        }
        state.h = h;
        0
    }
}
