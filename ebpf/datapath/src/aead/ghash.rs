//! GHASH (SP 800-38D 6.4) without tables and without carry-less multiplication in hardware.
//!
//! A carry-less product is had from ordinary ones by spreading the bits: of numbers with bits at every fourth place
//! only, at most 16 products meet at one place, so that carries never reach the next (Pornin, BearSSL, "ctmul"). On top
//! of that: Karatsuba also between the four residues (9 multiplications for 64 by 64 bits instead of 16), four blocks
//! at a time under H^4..H^1, and all masks, bit reversals and the reduction once for the four.
//!
//! GCM numbers bits from the left. Read big-endian, a block is the polynomial reversed; a product then comes out
//! shifted by one, which is made good in the stored powers of H ([`double`]).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::global::global_fn;

/// Powers of H in a key, highest first.
pub(super) const POWERS: usize = 4;
/// Words of them: high and low half, and both bit-reversed.
pub(super) const POWER_WORDS: usize = POWERS * 4;

/// Every fourth bit.
const COMB: u64 = 0x1111_1111_1111_1111;

/// What a 128-bit operand is multiplied as: low, high, their sum, and the three bit-reversed.
const KINDS: usize = 6;

/// Working state of one packet.
#[derive(Clone, Copy, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GhashWork {
    /// The hash so far: low and high half.
    hash: [u64; 2],
    /// The chunk's blocks, by kind.
    operands: [[u64; POWERS]; KINDS],
    /// The powers of H, by kind, spread out as [`comb`] does.
    factors: [[[u64; 9]; POWERS]; KINDS],
    /// The six products.
    products: [u64; KINDS],
}

/// The nine operands of Karatsuba's method over the residues: 0, 1, their sum; 2, 3, their sum; and the sums of both
/// rows.
#[inline(always)]
fn comb(x: u64) -> [u64; 9] {
    let (r0, r1, r2, r3) = (x & COMB, (x >> 1) & COMB, (x >> 2) & COMB, (x >> 3) & COMB);
    [
        r0,
        r1,
        r0 ^ r1,
        r2,
        r3,
        r2 ^ r3,
        r0 ^ r2,
        r1 ^ r3,
        r0 ^ r1 ^ r2 ^ r3,
    ]
}

#[inline(always)]
fn kinds(low: u64, high: u64, reversed_low: u64, reversed_high: u64) -> [u64; KINDS] {
    [
        low,
        high,
        low ^ high,
        reversed_low,
        reversed_high,
        reversed_low ^ reversed_high,
    ]
}

/// One row of Karatsuba's method over four blocks: residues 0 and 1 of every `x`.
#[inline(always)]
fn row<const V: usize>(operands: &[u64; POWERS], factors: &[[u64; 9]; POWERS]) -> u64 {
    let (mut p0, mut p1, mut sum) = (0u64, 0u64, 0u64);
    for b in 0..POWERS {
        let x = match V {
            0 => operands[b],
            1 => operands[b] >> 2,
            _ => operands[b] ^ (operands[b] >> 2),
        };
        let (even, odd) = (x & COMB, (x >> 1) & COMB);
        p0 ^= even.wrapping_mul(factors[b][3 * V]);
        p1 ^= odd.wrapping_mul(factors[b][3 * V + 1]);
        sum ^= (even ^ odd).wrapping_mul(factors[b][3 * V + 2]);
    }
    let (p0, p1, sum) = (p0 & COMB, p1 & COMB, sum & COMB);
    p0 ^ ((p0 ^ p1 ^ sum) << 1) ^ (p1 << 2)
}

/// Sum over four blocks of the low 64 bits of the carry-less products.
#[inline(always)]
fn low_product(operands: &[u64; POWERS], factors: &[[u64; 9]; POWERS]) -> u64 {
    let low = row::<0>(operands, factors);
    let high = row::<1>(operands, factors);
    let sum = row::<2>(operands, factors);
    low ^ ((low ^ high ^ sum) << 2) ^ (high << 4)
}

/// Product of a number with x in GF(2^128), bits reversed: what makes good the shift of a reversed product.
fn double(x: u128) -> u128 {
    (x << 1) ^ ((x >> 127) * 0xc200_0000_0000_0000_0000_0000_0000_0001)
}

/// Product in GF(2^128) of blocks read big-endian (SP 800-38D 6.3), bit by bit; for the key schedule only.
fn multiply(x: u128, mut y: u128) -> u128 {
    let mut z = 0;
    for i in 0..128 {
        z ^= y & (0u128.wrapping_sub((x >> (127 - i)) & 1));
        y = (y >> 1) ^ ((y & 1) * (0xe1 << 120));
    }
    z
}

/// The powers of H as [`start`](GhashWork::start) wants them. `h` is the encrypted zero block, read big-endian.
pub(super) fn expand_powers(h: u128, out: &mut [u64]) {
    let mut power = h;
    for words in out.as_chunks_mut::<4>().0.iter_mut().take(POWERS).rev() {
        let stored = double(power);
        let (low, high) = (stored as u64, (stored >> 64) as u64);
        *words = [low, high, low.reverse_bits(), high.reverse_bits()];
        power = multiply(power, h);
    }
}

global_fn! {
    /// Starts a message under the powers of H. Returns 0.
    pub(super) fn aead_ghash_start(powers: &[u64; POWER_WORDS]; work: &mut GhashWork;) {
        work.hash = [0; 2];
        for b in 0..POWERS {
            let p = kinds(powers[4 * b], powers[4 * b + 1], powers[4 * b + 2], powers[4 * b + 3]);
            for (kind, value) in p.iter().enumerate() {
                work.factors[kind][b] = comb(*value);
            }
        }
        0
    }
}

global_fn! {
    /// Absorbs the four blocks of `chunk`. Returns 0.
    pub(super) fn aead_ghash_chunk(chunk: &[u64; 8]; work: &mut GhashWork;) {
        for b in 0..POWERS {
            let mut high = u64::from_be(chunk[2 * b]);
            let mut low = u64::from_be(chunk[2 * b + 1]);
            if b == 0 {
                low ^= work.hash[0];
                high ^= work.hash[1];
            }
            let values = kinds(low, high, low.reverse_bits(), high.reverse_bits());
            for (kind, value) in values.iter().enumerate() {
                work.operands[kind][b] = *value;
            }
        }
        for kind in 0..KINDS {
            work.products[kind] = low_product(&work.operands[kind], &work.factors[kind]);
        }
        let [low, high, middle, low_up, high_up, middle_up] = work.products;
        let (low_up, high_up, middle_up) =
            (low_up.reverse_bits() >> 1, high_up.reverse_bits() >> 1, middle_up.reverse_bits() >> 1);
        work.hash = reduce([low, low_up ^ middle ^ low ^ high, high ^ middle_up ^ low_up ^ high_up, high_up]);
        0
    }
}

/// Takes 256 bits modulo z^128 + z^127 + z^126 + z^121 + 1, the field's polynomial reversed, by adding the multiples
/// of it that clear the lower half.
#[inline(always)]
fn reduce([v0, v1, v2, v3]: [u64; 4]) -> [u64; 2] {
    let v1 = v1 ^ (v0 << 63) ^ (v0 << 62) ^ (v0 << 57);
    let v2 = v2 ^ v0 ^ (v0 >> 1) ^ (v0 >> 2) ^ (v0 >> 7) ^ (v1 << 63) ^ (v1 << 62) ^ (v1 << 57);
    let v3 = v3 ^ v1 ^ (v1 >> 1) ^ (v1 >> 2) ^ (v1 >> 7);
    [v2, v3]
}

impl GhashWork {
    /// The hash as the two words of a block in memory.
    #[inline(always)]
    pub(super) fn finish(&self) -> [u64; 2] {
        [self.hash[1].to_be(), self.hash[0].to_be()]
    }
}
