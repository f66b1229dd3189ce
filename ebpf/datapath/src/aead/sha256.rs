//! SHA-256 (FIPS 180-4 6.2), a block at a time, and HMAC's two hashes of it (RFC 2104). Constant time by construction: additions,
//! rotations and logic on words, whatever they hold.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::global::global_fn;

/// Words of the state.
const STATE_WORDS: usize = 8;

/// FIPS 180-4 5.3.3.
const INITIAL: [u32; STATE_WORDS] = [
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
];

/// FIPS 180-4 4.2.2.
const ROUND: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];

/// Working space of a hash. It lies in the scratch area: with all of it at hand the compiler keeps more alive than BPF's stack holds.
#[derive(Clone, Copy, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Sha256 {
    /// The state between blocks.
    pub(super) state: [u32; STATE_WORDS],
    /// The state within a block.
    now: [u32; STATE_WORDS],
    /// The last 16 words of the message schedule, a ring.
    words: [u32; 16],
}

/// Round `I`.
#[inline(always)]
fn round<const I: usize>(s: [u32; STATE_WORDS], w: &mut [u32; 16]) -> [u32; STATE_WORDS] {
    if I >= 16 {
        let (near, far) = (w[(I + 14) % 16], w[(I + 1) % 16]);
        let near = near.rotate_right(17) ^ near.rotate_right(19) ^ (near >> 10);
        let far = far.rotate_right(7) ^ far.rotate_right(18) ^ (far >> 3);
        w[I % 16] = w[I % 16]
            .wrapping_add(far)
            .wrapping_add(w[(I + 9) % 16])
            .wrapping_add(near);
    }
    let [a, b, c, d, e, f, g, h] = s;
    let choice = g ^ (e & (f ^ g));
    let majority = (a & b) | (c & (a | b));
    let one = h
        .wrapping_add(e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25))
        .wrapping_add(choice)
        .wrapping_add(const { ROUND[I] })
        .wrapping_add(w[I % 16]);
    let two = (a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22)).wrapping_add(majority);
    [one.wrapping_add(two), a, b, c, d.wrapping_add(one), e, f, g]
}

/// Declares functions of four rounds each, and one that calls them in order.
macro_rules! fours {
    ($($name:ident: $a:literal $b:literal $c:literal $d:literal;)*) => {
        $(
            #[inline(never)]
            fn $name(sha: &mut Sha256) {
                let Sha256 { now, words, .. } = sha;
                let s = round::<$b>(round::<$a>(*now, words), words);
                *now = round::<$d>(round::<$c>(s, words), words);
            }
        )*

        #[inline(always)]
        fn rounds(sha: &mut Sha256) {
            $($name(sha);)*
        }
    };
}

fours! {
    from_0: 0 1 2 3;
    from_4: 4 5 6 7;
    from_8: 8 9 10 11;
    from_12: 12 13 14 15;
    from_16: 16 17 18 19;
    from_20: 20 21 22 23;
    from_24: 24 25 26 27;
    from_28: 28 29 30 31;
    from_32: 32 33 34 35;
    from_36: 36 37 38 39;
    from_40: 40 41 42 43;
    from_44: 44 45 46 47;
    from_48: 48 49 50 51;
    from_52: 52 53 54 55;
    from_56: 56 57 58 59;
    from_60: 60 61 62 63;
}

global_fn! {
    /// Absorbs a block of 64 octets. Returns 0.
    pub(super) fn aead_sha256_block(block: &[u64; 8]; sha: &mut Sha256;) {
        // An index with a constant bound: the verifier follows that, not an iterator.
        #[allow(clippy::needless_range_loop)]
        for k in 0..8 {
            let pair = u64::from_be(block[k]);
            sha.words[2 * k] = (pair >> 32) as u32;
            sha.words[2 * k + 1] = pair as u32;
        }
        sha.now = sha.state;
        rounds(sha);
        for i in 0..STATE_WORDS {
            sha.state[i] = sha.state[i].wrapping_add(sha.now[i]);
        }
        0
    }
}

impl Sha256 {
    fn from(state: [u32; STATE_WORDS]) -> Self {
        Self {
            state,
            now: [0; STATE_WORDS],
            words: [0; 16],
        }
    }

    /// The state as a key's schedule holds it.
    #[inline(always)]
    fn packed(&self) -> [u64; 4] {
        core::array::from_fn(|i| (self.state[2 * i] as u64) << 32 | self.state[2 * i + 1] as u64)
    }

    /// Goes on from a packed state.
    #[inline(always)]
    pub(super) fn resume(&mut self, packed: &[u64; 4]) {
        #[allow(clippy::needless_range_loop)]
        for i in 0..4 {
            self.state[2 * i] = (packed[i] >> 32) as u32;
            self.state[2 * i + 1] = packed[i] as u32;
        }
    }

    /// The hash, as it lies in memory.
    #[inline(always)]
    pub(super) fn digest(&self) -> [u64; 4] {
        self.packed().map(u64::to_be)
    }

    /// Its first half: what AUTH_HMAC_SHA2_256_128 keeps (RFC 4868 2.6).
    #[inline(always)]
    pub(super) fn first_half(&self) -> [u64; 2] {
        let [a, b, ..] = self.digest();
        [a, b]
    }
}

/// States after HMAC's inner and outer key block (RFC 2104 2), packed. The key has 32 octets (RFC 4868 2.1.1).
pub(super) fn expand(key: &[u8; 32], out: &mut [u64; 8]) {
    for (pad, half) in [0x36, 0x5c].into_iter().zip(out.as_chunks_mut::<4>().0) {
        let mut block = [u64::from_ne_bytes([pad; 8]); 8];
        for (word, octets) in block.iter_mut().zip(key.as_chunks::<8>().0) {
            *word ^= u64::from_ne_bytes(*octets);
        }
        let mut sha = Sha256::from(INITIAL);
        // SAFETY: two separate values.
        unsafe { aead_sha256_block(&block, &mut sha) };
        *half = sha.packed();
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    /// FIPS 180-4's example, "abc": one block.
    #[test]
    fn a_known_block_gives_the_known_hash() {
        let mut octets = [0; 64];
        octets[..4].copy_from_slice(b"abc\x80");
        octets[63] = 24;
        let block: [u64; 8] =
            core::array::from_fn(|i| u64::from_ne_bytes(octets[8 * i..8 * i + 8].try_into().unwrap()));
        let mut sha = Sha256::from(INITIAL);
        // SAFETY: two separate values.
        assert_eq!(unsafe { aead_sha256_block(&block, &mut sha) }, 0);
        let hash = [
            0xba7816bf, 0x8f01cfea, 0x414140de, 0x5dae2223, 0xb00361a3, 0x96177a9c, 0xb410ff61, 0xf20015ad,
        ];
        assert_eq!(sha.state, hash);
    }

    /// HMAC of any octets, with the padding put together here.
    fn hmac(key: &[u8; 32], data: &[u8]) -> Sha256 {
        let mut states = [0; 8];
        expand(key, &mut states);
        let hash = |start: &[u64; 4], data: &[u8]| {
            let mut padded = data.to_vec();
            padded.push(0x80);
            padded.resize((padded.len() + 8).next_multiple_of(64) - 8, 0);
            padded.extend((8 * (64 + data.len() as u64)).to_be_bytes());
            let mut sha = Sha256::from([0; STATE_WORDS]);
            sha.resume(start);
            for block in padded.as_chunks::<64>().0 {
                let words =
                    core::array::from_fn(|i| u64::from_ne_bytes(block[8 * i..8 * i + 8].try_into().unwrap()));
                // SAFETY: two separate values.
                unsafe { aead_sha256_block(&words, &mut sha) };
            }
            sha
        };
        let (inner, outer) = (states.first_chunk().unwrap(), states.last_chunk().unwrap());
        let inner = hash(inner, data).digest();
        let octets: Vec<u8> = inner.iter().flat_map(|word| word.to_ne_bytes()).collect();
        hash(outer, &octets)
    }

    /// RFC 4868 2.7.2.2, AUTH256-1 to AUTH256-4: the first 128 bits count.
    #[test]
    fn hmac_is_as_rfc_4868_has_it() {
        let rows: [(&[u8; 32], &[u8], u128); 4] = [
            (&[0x0b; 32], b"Hi There", 0x198a607eb44bfbc69903a0f1cf2bbdc5),
            (
                b"JefeJefeJefeJefeJefeJefeJefeJefe",
                b"what do ya want for nothing?",
                0x167f928588c5cc2eef8e3093caa0e87c,
            ),
            (&[0xaa; 32], &[0xdd; 50], 0xcdcb1220d1ecccea91e53aba3092f962),
            (
                &core::array::from_fn(|i| i as u8 + 1),
                &[0xcd; 50],
                0x372efcf9b40b35c2115b1346903d2ef4,
            ),
        ];
        for (key, data, want) in rows {
            let [a, b] = hmac(key, data).first_half();
            let icv = u128::from(u64::from_be(a)) << 64 | u128::from(u64::from_be(b));
            assert_eq!(icv, want, "{data:02x?}");
        }
    }

    /// Project Wycheproof's HMACs with keys of ESP's length; of those that have no more, the first 128 bits count.
    #[test]
    fn hmac_is_as_wycheproof_has_it() {
        use wycheproof::mac::{TestName, TestSet};
        let (mut equal, mut different) = (0, 0);
        for group in TestSet::load(TestName::HmacSha256).unwrap().test_groups {
            for test in &group.tests {
                let Ok(key) = test.key[..].try_into() else {
                    continue;
                };
                let hash = hmac(key, &test.msg).digest();
                let octets: Vec<u8> = hash.iter().flat_map(|word| word.to_ne_bytes()).collect();
                let same = octets.starts_with(&test.tag) && test.tag.len() * 8 == group.tag_size;
                assert_eq!(same, !test.result.must_fail(), "{}: {}", test.tc_id, test.comment);
                if same { equal += 1 } else { different += 1 }
            }
        }
        assert_eq!((equal, different), (54, 108));
    }
}
