//! AES of four blocks at a time, bitsliced: word `b` of the state holds bit `b` of all 64 octets.
//!
//! The octet in row r, column c of block k (FIPS 197 3.4) sits at bit 16r + 4c + k. ShiftRows is never carried out
//! ("fixslicing", Adomnicai and Peyrin, TCHES 2021): after i rounds the state is kept in frame i mod 4, where the octet
//! of row r is stored j*r columns further right (j the frame). MixColumns takes its neighbours accordingly, the
//! round keys are stored in the frame of their round, and the last round puts the rows straight. Decryption undoes these steps
//! one by one, with the same round keys.

use super::global::global_fn;
use maps_schema::sad::{KEY_WORDS, SUITE_AES256_CBC_SHA256, SUITE_AES256_GCM, SaKey};

/// Words of the round keys of AES-256.
pub(super) const ROUND_KEY_WORDS: usize = 15 * 8;

/// S-box of the octet that lies across `q`, without the constant 0x63, which is part of the round keys. The circuit
/// is that of Boyar and Peralta, "A new combinational logic minimization technique with applications to
/// cryptology" (SEA 2010).
#[inline(always)]
pub(super) fn sub_bytes(q: [u64; 8]) -> [u64; 8] {
    let [x7, x6, x5, x4, x3, x2, x1, x0] = q;

    // Into the tower field.
    let y14 = x3 ^ x5;
    let y13 = x0 ^ x6;
    let y9 = x0 ^ x3;
    let y8 = x0 ^ x5;
    let t0 = x1 ^ x2;
    let y1 = t0 ^ x7;
    let y4 = y1 ^ x3;
    let y12 = y13 ^ y14;
    let y2 = y1 ^ x0;
    let y5 = y1 ^ x6;
    let y3 = y5 ^ y8;
    let t1 = x4 ^ y12;
    let y15 = t1 ^ x5;
    let y20 = t1 ^ x1;
    let y6 = y15 ^ x7;
    let y10 = y15 ^ t0;
    let y11 = y20 ^ y9;
    let y7 = x7 ^ y11;
    let y17 = y10 ^ y11;
    let y19 = y10 ^ y8;
    let y16 = t0 ^ y11;
    let y21 = y13 ^ y16;
    let y18 = x0 ^ y16;

    // Inversion.
    let t2 = y12 & y15;
    let t4 = (y3 & y6) ^ t2;
    let t6 = (y4 & x7) ^ t2;
    let t7 = y13 & y16;
    let t9 = (y5 & y1) ^ t7;
    let t11 = (y2 & y7) ^ t7;
    let t12 = y9 & y11;
    let t14 = (y14 & y17) ^ t12;
    let t16 = (y8 & y10) ^ t12;
    let t21 = t4 ^ t14 ^ y20;
    let t22 = t6 ^ t16 ^ y19;
    let t23 = t9 ^ t14 ^ y21;
    let t24 = t11 ^ t16 ^ y18;
    let t25 = t21 ^ t22;
    let t26 = t21 & t23;
    let t27 = t24 ^ t26;
    let t29 = (t25 & t27) ^ t22;
    let t30 = t23 ^ t24;
    let t33 = ((t22 ^ t26) & t30) ^ t24;
    let t36 = t24 & (t27 ^ t33);
    let t37 = t36 ^ t23 ^ t33;
    let t38 = t27 ^ t36;
    let t40 = t25 ^ (t29 & t38);
    let t41 = t40 ^ t37;
    let t42 = t29 ^ t33;
    let t43 = t29 ^ t40;
    let t44 = t33 ^ t37;
    let t45 = t42 ^ t41;
    let z0 = t44 & y15;
    let z1 = t37 & y6;
    let z2 = t33 & x7;
    let z3 = t43 & y16;
    let z4 = t40 & y1;
    let z5 = t29 & y7;
    let z6 = t42 & y11;
    let z7 = t45 & y17;
    let z8 = t41 & y10;
    let z9 = t44 & y12;
    let z10 = t37 & y3;
    let z11 = t33 & y4;
    let z12 = t43 & y13;
    let z13 = t40 & y5;
    let z14 = t29 & y2;
    let z15 = t42 & y9;
    let z16 = t45 & y14;
    let z17 = t41 & y8;

    // Back, with the affine map less its constant.
    let t46 = z15 ^ z16;
    let t48 = z5 ^ z13;
    let t54 = z6 ^ z7;
    let t53 = z0 ^ z3;
    let t57 = z2 ^ z12 ^ t53;
    let t58 = z4 ^ t46;
    let t59 = z3 ^ t54;
    let t60 = t46 ^ t57;
    let t62 = z7 ^ z8 ^ t58;
    let t63 = z9 ^ z10 ^ t58;
    let t64 = z4 ^ t59;
    let t65 = z14 ^ t57 ^ t62;
    let t66 = z1 ^ t63;
    let s0 = t59 ^ t63;
    let s3 = t53 ^ t66;
    let s4 = z2 ^ z5 ^ t66;
    let s5 = z10 ^ z11 ^ t65;
    let s1 = t64 ^ s3;
    let s2 = z16 ^ z17 ^ t64 ^ t65;
    let s6 = z12 ^ t48 ^ t62;
    let s7 = t48 ^ t60;
    [s7, s6, s5, s4, s3, s2, s1, s0]
}

/// Moves every octet `n` columns left within its row, for all rows alike.
#[inline(always)]
fn columns(x: u64, n: u32) -> u64 {
    let n = n % 4;
    if n == 0 {
        return x;
    }
    let low = (0xffff_u64 >> (4 * n)) * 0x0001_0001_0001_0001;
    ((x >> (4 * n)) & low) | ((x << (16 - 4 * n)) & !low)
}

/// The octets one row below in frame `J`.
#[inline(always)]
fn below<const J: u32>(x: u64) -> u64 {
    columns(x.rotate_right(16), J)
}

/// The octets two rows below in frame `J`.
#[inline(always)]
fn two_below<const J: u32>(x: u64) -> u64 {
    columns(x.rotate_right(32), 2 * J)
}

/// MixColumns in frame `J`: 2a + 3b + c + d = 2(a + b) + b + (c + d), b to d being the rows below a.
#[inline(always)]
fn mix_columns<const J: u32>(s: [u64; 8]) -> [u64; 8] {
    let mut b = [0; 8];
    let mut d = [0; 8];
    let mut out = [0; 8];
    for i in 0..8 {
        b[i] = below::<J>(s[i]);
        d[i] = s[i] ^ b[i];
    }
    for i in 0..8 {
        // Doubling (FIPS 197 4.2.1): bit 7 comes back at bits 0, 1, 3 and 4.
        let doubled = match i {
            0 => d[7],
            1 | 3 | 4 => d[i - 1] ^ d[7],
            _ => d[i - 1],
        };
        out[i] = doubled ^ b[i] ^ two_below::<J>(d[i]);
    }
    out
}

/// The inverse of the S-box's affine map less its constant (FIPS 197 5.3.2).
#[inline(always)]
fn inverse_affine(q: [u64; 8]) -> [u64; 8] {
    core::array::from_fn(|i| q[(i + 2) % 8] ^ q[(i + 5) % 8] ^ q[(i + 7) % 8])
}

/// The inverse of [`sub_bytes`]. With L the affine map and S = L(1/x): the inverse is 1/L'(x), and 1/x = L'(S(x)).
#[inline(always)]
fn inverse_sub_bytes(q: [u64; 8]) -> [u64; 8] {
    inverse_affine(sub_bytes(inverse_affine(q)))
}

/// InvMixColumns in frame `J`: MixColumns of 5a + 4c, c being the row two below a. (The matrix of FIPS 197 5.3.3 is that of
/// 5.1.3 times this one.)
#[inline(always)]
fn inverse_mix_columns<const J: u32>(s: [u64; 8]) -> [u64; 8] {
    let d: [u64; 8] = core::array::from_fn(|i| s[i] ^ two_below::<J>(s[i]));
    // Four times d: bits 6 and 7 come back at bits 0, 1, 3, 4 and 1, 2, 4, 5.
    let (six, seven) = (d[6], d[7]);
    let both = six ^ seven;
    mix_columns::<J>([
        s[0] ^ six,
        s[1] ^ both,
        s[2] ^ d[0] ^ seven,
        s[3] ^ d[1] ^ six,
        s[4] ^ d[2] ^ both,
        s[5] ^ d[3] ^ seven,
        s[6] ^ d[4],
        s[7] ^ d[5],
    ])
}

/// Moves rows 1 and 3 by two columns: from frame 2, where both key sizes end, to frame 0.
#[inline(always)]
fn straighten(x: u64) -> u64 {
    let t = (x ^ (x >> 8)) & 0x00ff_0000_00ff_0000;
    x ^ t ^ (t << 8)
}

/// Exchanges, in the words `low` and `high` apart by `n`, the bits that transposition moves.
#[inline(always)]
fn swap(q: &mut [u64; 8], low: usize, high: usize, n: u32, mask: u64) {
    let t = ((q[low] >> n) ^ q[high]) & mask;
    q[high] ^= t;
    q[low] ^= t << n;
}

/// Transposes word index and bit-in-octet: octets to slices and back.
#[inline(always)]
pub(super) fn transpose(q: &mut [u64; 8]) {
    for (low, high) in [(0, 1), (2, 3), (4, 5), (6, 7)] {
        swap(q, low, high, 1, 0x5555_5555_5555_5555);
    }
    for (low, high) in [(0, 2), (1, 3), (4, 6), (5, 7)] {
        swap(q, low, high, 2, 0x3333_3333_3333_3333);
    }
    for (low, high) in [(0, 4), (1, 5), (2, 6), (3, 7)] {
        swap(q, low, high, 4, 0x0f0f_0f0f_0f0f_0f0f);
    }
}

/// Spreads the four octets of a column to the even octets of a word.
#[inline(always)]
pub(super) fn spread(column: u32) -> u64 {
    let x = column as u64;
    let x = (x | x << 16) & 0x0000_ffff_0000_ffff;
    (x | x << 8) & 0x00ff_00ff_00ff_00ff
}

/// The inverse of [`spread`].
#[inline(always)]
fn gather(x: u64) -> u64 {
    let x = x & 0x00ff_00ff_00ff_00ff;
    let x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
    (x | x >> 16) & 0xffff_ffff
}

/// The words of even and odd columns of a block from its two little-endian words: the inverse of [`block`].
#[inline(always)]
fn halves([low, high]: [u64; 2]) -> [u64; 2] {
    [
        spread(low as u32) | spread(high as u32) << 8,
        spread((low >> 32) as u32) | spread((high >> 32) as u32) << 8,
    ]
}

/// The two little-endian words of a block from its words of even and odd columns.
#[inline(always)]
fn block(even: u64, odd: u64) -> [u64; 2] {
    [
        gather(even) | gather(odd) << 32,
        gather(even >> 8) | gather(odd >> 8) << 32,
    ]
}

#[inline(always)]
fn add_round_key(q: &mut [u64; 8], key: &SaKey, round: usize) {
    for (i, word) in q.iter_mut().enumerate() {
        *word ^= key.schedule[round * 8 + i];
    }
}

/// Rounds of a key.
#[inline(always)]
fn rounds(key: &SaKey) -> usize {
    let suite = key.suite;
    if suite == SUITE_AES256_GCM as u32 || suite == SUITE_AES256_CBC_SHA256 as u32 {
        14
    } else {
        10
    }
}

global_fn! {
    /// Encrypts the four bitsliced blocks in `state`. Returns 0.
    pub(super) fn aead_aes_encrypt(key: &SaKey; state: &mut [u64; 8];) {
        let last = rounds(key);
        let mut q = *state;
        add_round_key(&mut q, key, 0);
        let mut round = 1;
        // Rounds come in fours, one for each frame; both sizes have one more before the last.
        for _ in 0..4 {
            q = mix_columns::<1>(sub_bytes(q));
            add_round_key(&mut q, key, round);
            if round + 1 >= last {
                break;
            }
            q = mix_columns::<2>(sub_bytes(q));
            add_round_key(&mut q, key, round + 1);
            q = mix_columns::<3>(sub_bytes(q));
            add_round_key(&mut q, key, round + 2);
            q = mix_columns::<0>(sub_bytes(q));
            add_round_key(&mut q, key, round + 3);
            round += 4;
        }
        q = sub_bytes(q);
        for word in &mut q {
            *word = straighten(*word);
        }
        add_round_key(&mut q, key, last);
        *state = q;
        0
    }
}

global_fn! {
    /// Decrypts the four bitsliced blocks in `state`. Returns 0.
    pub(super) fn aead_aes_decrypt(key: &SaKey; state: &mut [u64; 8];) {
        let last = rounds(key);
        let mut q = *state;
        add_round_key(&mut q, key, last);
        for word in &mut q {
            *word = straighten(*word);
        }
        // 9 or 13: of frame 1.
        let mut round = last - 1;
        q = inverse_sub_bytes(q);
        add_round_key(&mut q, key, round);
        q = inverse_mix_columns::<1>(q);
        for _ in 0..3 {
            if round <= 4 {
                break;
            }
            q = inverse_sub_bytes(q);
            add_round_key(&mut q, key, round - 1);
            q = inverse_mix_columns::<0>(q);
            q = inverse_sub_bytes(q);
            add_round_key(&mut q, key, round - 2);
            q = inverse_mix_columns::<3>(q);
            q = inverse_sub_bytes(q);
            add_round_key(&mut q, key, round - 3);
            q = inverse_mix_columns::<2>(q);
            q = inverse_sub_bytes(q);
            add_round_key(&mut q, key, round - 4);
            q = inverse_mix_columns::<1>(q);
            round -= 4;
        }
        q = inverse_sub_bytes(q);
        add_round_key(&mut q, key, 0);
        *state = q;
        0
    }
}

global_fn! {
    /// Bitslices the next four counter blocks into `state` and advances the counter. Returns 0.
    pub(super) fn aead_aes_ctr_next(; counter: &mut [u64; 3], state: &mut [u64; 8];) {
        let [even, odd, mut n] = *counter;
        for k in 0..4 {
            state[k] = even;
            // The counter is big-endian in column 3 (SP 800-38D 6.2, inc32).
            state[4 + k] = odd | spread((n as u32).swap_bytes()) << 8;
            n += 1;
        }
        counter[2] = n;
        transpose(state);
        0
    }
}

global_fn! {
    /// XORs the four bitsliced blocks in `state` into `chunk`. Returns 0.
    pub(super) fn aead_aes_xor(; state: &mut [u64; 8], chunk: &mut [u64; 8];) {
        transpose(state);
        for k in 0..4 {
            let [low, high] = block(state[k], state[4 + k]);
            chunk[2 * k] ^= low.to_le();
            chunk[2 * k + 1] ^= high.to_le();
        }
        0
    }
}

global_fn! {
    /// Bitslices the four blocks of `chunk` into `state`. Returns 0.
    pub(super) fn aead_aes_slice(chunk: &[u64; 8]; state: &mut [u64; 8];) {
        for k in 0..4 {
            let [even, odd] = halves([u64::from_le(chunk[2 * k]), u64::from_le(chunk[2 * k + 1])]);
            state[k] = even;
            state[4 + k] = odd;
        }
        transpose(state);
        0
    }
}

global_fn! {
    /// Bitslices `block` XOR `chain` as the first block of `state`. Returns 0.
    pub(super) fn aead_aes_slice_one(block: &[u64; 2], chain: &[u64; 2]; state: &mut [u64; 8];) {
        let [even, odd] = halves([u64::from_le(block[0] ^ chain[0]), u64::from_le(block[1] ^ chain[1])]);
        *state = [even, 0, 0, 0, odd, 0, 0, 0];
        transpose(state);
        0
    }
}

global_fn! {
    /// Puts the first of the four bitsliced blocks in `state` into `block`, and into `chain`. Returns 0.
    pub(super) fn aead_aes_unslice_one(; state: &mut [u64; 8], block: &mut [u64; 2], chain: &mut [u64; 2];) {
        let [low, high] = first_block(state);
        *block = [low.to_le(), high.to_le()];
        *chain = *block;
        0
    }
}

global_fn! {
    /// CBC (SP 800-38A 6.2): puts the four bitsliced blocks in `state`, each XOR the block before it, in the place of `chunk`'s
    /// ciphertext. `chain` is the block before the first, and then `chunk`'s last. Returns 0.
    pub(super) fn aead_aes_unchain(; state: &mut [u64; 8], chunk: &mut [u64; 8], chain: &mut [u64; 2];) {
        transpose(state);
        for k in 0..4 {
            let before = *chain;
            *chain = [chunk[2 * k], chunk[2 * k + 1]];
            let [low, high] = block(state[k], state[4 + k]);
            chunk[2 * k] = low.to_le() ^ before[0];
            chunk[2 * k + 1] = high.to_le() ^ before[1];
        }
        0
    }
}

/// Prepares counter mode: 96-bit nonce, then the counter beginning with 1 (SP 800-38D 7.1, J0).
#[inline(always)]
pub(super) fn start_counter(counter: &mut [u64; 3], nonce: [u32; 3]) {
    *counter = [spread(nonce[0]) | spread(nonce[2]) << 8, spread(nonce[1]), 1];
}

/// The first of four bitsliced blocks, as two little-endian words.
#[inline(always)]
pub(super) fn first_block(state: &mut [u64; 8]) -> [u64; 2] {
    transpose(state);
    block(state[0], state[4])
}

/// The S-box on the four octets of a word, for the key schedule.
fn sub_word(word: u32) -> u32 {
    let mut q: [u64; 8] = core::array::from_fn(|bit| ((word >> bit) & 0x0101_0101) as u64);
    q = sub_bytes(q);
    q.iter().enumerate().fold(0x6363_6363, |out, (bit, slice)| {
        out ^ ((*slice as u32 & 0x0101_0101) << bit)
    })
}

/// Expands a key of 16 or 32 octets (FIPS 197 5.2) into bitsliced round keys, each in its round's frame.
pub(super) fn expand_round_keys(key: &[u8], schedule: &mut [u64; KEY_WORDS]) {
    let (key_columns, rounds) = (key.len() / 4, key.len() / 4 + 6);
    let mut columns_of_key = [0u32; 60];
    for (column, octets) in columns_of_key.iter_mut().zip(key.as_chunks::<4>().0) {
        *column = u32::from_le_bytes(*octets);
    }
    let mut constant = 1u32;
    for i in key_columns..4 * (rounds + 1) {
        let mut t = columns_of_key[i - 1];
        if i % key_columns == 0 {
            t = sub_word(t.rotate_right(8)) ^ constant;
            constant = (constant << 1) ^ ((constant >> 7) * 0x11b);
        } else if key_columns == 8 && i % 8 == 4 {
            t = sub_word(t);
        }
        columns_of_key[i] = columns_of_key[i - key_columns] ^ t;
    }
    for round in 0..=rounds {
        let k = &columns_of_key[4 * round..];
        // The same block four times over.
        let even = spread(k[0]) | spread(k[2]) << 8;
        let odd = spread(k[1]) | spread(k[3]) << 8;
        let mut q = [even, even, even, even, odd, odd, odd, odd];
        transpose(&mut q);
        let frame = if round == rounds { 0 } else { round as u32 % 4 };
        for (bit, slice) in q.iter().enumerate() {
            let mut stored = 0;
            for row in 0..4 {
                let lane = slice & (0xffff << (16 * row));
                stored |= columns(lane, (4 - frame * row % 4) % 4);
            }
            // The constant of the S-box passes MixColumns unchanged.
            let constant = if round > 0 && (0x63 >> bit) & 1 == 1 {
                !0
            } else {
                0
            };
            schedule[8 * round + bit] = stored ^ constant;
        }
    }
}
