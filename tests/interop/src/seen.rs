//! Which numbers have been seen, a bit each: sequence numbers and IVs are dense, so hours of traffic fit.

use std::collections::HashMap;

const WORDS: usize = 64;
const BLOCK_BITS: u32 = (WORDS * 64).trailing_zeros();

/// A set of numbers that come in dense runs.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    blocks: HashMap<u64, Box<[u64; WORDS]>>,
}

impl Seen {
    /// Enters a number; false if it was there already.
    pub fn insert(&mut self, number: u64) -> bool {
        let block = self
            .blocks
            .entry(number >> BLOCK_BITS)
            .or_insert_with(|| Box::new([0; WORDS]));
        let (word, bit) = ((number >> 6) as usize % WORDS, 1 << (number & 63));
        let fresh = block[word] & bit == 0;
        block[word] |= bit;
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_fresh_once_and_its_neighbours_are_others() {
        let mut seen = Seen::default();
        for number in [0, 1, 63, 64, 4095, 4096, u64::MAX, 1 << 40] {
            assert!(seen.insert(number), "{number} is fresh");
            assert!(!seen.insert(number), "{number} was there");
        }
        assert!((2..63).all(|n| seen.insert(n)));
    }
}
