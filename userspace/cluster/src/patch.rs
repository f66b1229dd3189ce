//! A record as what differs from an earlier one: runs that the earlier one has too, and the octets between them.
//!
//! ```text
//! fingerprint of the earlier one (8) | length of the new one | { length | octets | length | place in the earlier one }...
//! ```
//!
//! Lengths and places are varints. A pair whose second length is 0 has no place. Whoever applies a patch to anything but the very
//! octets that it was made for is told so: the fingerprint is that of all of them.

use model::SecretBytes;
use thiserror::Error;

/// Octets of the fingerprint.
const FINGERPRINT: usize = 8;
/// Runs are looked for by so many octets, at every such place of the earlier record.
const SEED: usize = 8;
/// Shorter runs are not worth their lengths and place.
const WORTH: usize = 12;
/// Longest record: as long as a record of the channel.
const LONGEST: usize = crate::message::RECORD_MAX;

/// Why a patch was not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PatchError {
    /// It was made for another record.
    #[error("the change was written for another record than the one that is here")]
    OtherBase,
    /// It says what cannot be.
    #[error("the change of the record is damaged")]
    Damaged,
}

fn fingerprint(record: &[u8]) -> [u8; FINGERPRINT] {
    let digest = crypto::sha256(&[record]);
    std::array::from_fn(|at| digest[at])
}

fn put(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take(patch: &mut &[u8]) -> Result<usize, PatchError> {
    let mut value = 0;
    for place in 0..4 {
        let (octet, rest) = patch.split_first().ok_or(PatchError::Damaged)?;
        *patch = rest;
        value |= usize::from(octet & 0x7f) << (7 * place);
        if octet & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(PatchError::Damaged)
}

fn take_octets<'a>(patch: &mut &'a [u8], length: usize) -> Result<&'a [u8], PatchError> {
    let (octets, rest) = patch.split_at_checked(length).ok_or(PatchError::Damaged)?;
    *patch = rest;
    Ok(octets)
}

fn seed(octets: &[u8], at: usize) -> Option<u64> {
    let seed = octets.get(at..at + SEED)?;
    seed.try_into().ok().map(u64::from_le_bytes)
}

/// Places of seeds in the earlier record. Of equal ones the last place counts.
struct Seeds<'a> {
    base: &'a [u8],
    /// Place + 1; 0: none.
    places: Vec<u32>,
    shift: u32,
}

impl<'a> Seeds<'a> {
    fn of(base: &'a [u8]) -> Self {
        let bits = (base.len() / SEED * 2 + 2).next_power_of_two().trailing_zeros();
        let mut seeds = Self {
            base,
            places: vec![0; 1 << bits],
            shift: u64::BITS - bits,
        };
        for at in (0..base.len()).step_by(SEED) {
            if let Some(seed) = seed(base, at) {
                let slot = seeds.slot(seed);
                seeds.places[slot] = at as u32 + 1;
            }
        }
        seeds
    }

    fn slot(&self, seed: u64) -> usize {
        (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }

    /// A run around `at` in `new`, which begins at `from` or later: where it begins there and in the earlier record, its length.
    fn run(&self, new: &[u8], from: usize, at: usize) -> Option<(usize, usize, usize)> {
        let wanted = seed(new, at)?;
        let place = (self.places[self.slot(wanted)] as usize).checked_sub(1)?;
        if seed(self.base, place) != Some(wanted) {
            return None;
        }
        let before = new[from..at].iter().rev().zip(self.base[..place].iter().rev());
        let before = before.take_while(|(a, b)| a == b).count();
        let after = new[at..].iter().zip(&self.base[place..]);
        let after = after.take_while(|(a, b)| a == b).count();
        Some((at - before, place - before, before + after))
    }
}

/// What differs in `new` from `base`.
pub fn make(base: &[u8], new: &[u8]) -> SecretBytes {
    let seeds = Seeds::of(base);
    // Lengths and places of a run are fewer octets than the run: this does not grow, and leaves no copy behind.
    let mut patch = Vec::with_capacity(FINGERPRINT + new.len() + 16);
    patch.extend_from_slice(&fingerprint(base));
    put(&mut patch, new.len());
    let (mut written, mut at) = (0, 0);
    while at < new.len() {
        let run = seeds
            .run(new, written, at)
            .filter(|(.., length)| *length >= WORTH);
        let Some((begin, place, length)) = run else {
            at += 1;
            continue;
        };
        put(&mut patch, begin - written);
        patch.extend_from_slice(&new[written..begin]);
        put(&mut patch, length);
        put(&mut patch, place);
        written = begin + length;
        at = written;
    }
    if written < new.len() {
        put(&mut patch, new.len() - written);
        patch.extend_from_slice(&new[written..]);
        put(&mut patch, 0);
    }
    SecretBytes::new(patch)
}

/// The record that a patch makes of `base`.
///
/// # Errors
/// [`PatchError`].
pub fn apply(base: &[u8], patch: &[u8]) -> Result<SecretBytes, PatchError> {
    let mut rest = patch;
    if take_octets(&mut rest, FINGERPRINT)? != fingerprint(base) {
        return Err(PatchError::OtherBase);
    }
    let length = take(&mut rest)?;
    if length > LONGEST {
        return Err(PatchError::Damaged);
    }
    let mut new = zeroize::Zeroizing::new(Vec::with_capacity(length));
    while new.len() < length {
        let octets = take(&mut rest)?;
        let octets = take_octets(&mut rest, octets)?;
        let run = take(&mut rest)?;
        let run = match run {
            0 => &[],
            run => {
                let place = take(&mut rest)?;
                base.get(place..)
                    .and_then(|base| base.get(..run))
                    .ok_or(PatchError::Damaged)?
            }
        };
        // A pair of nothing would never end; more than was announced is not written.
        let more = octets.len() + run.len();
        if more == 0 || more > length - new.len() {
            return Err(PatchError::Damaged);
        }
        new.extend_from_slice(octets);
        new.extend_from_slice(run);
    }
    if !rest.is_empty() {
        return Err(PatchError::Damaged);
    }
    Ok(SecretBytes::new(std::mem::take(&mut *new)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Octets that repeat nowhere, from a linear congruence.
    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    fn there_and_back(base: &[u8], new: &[u8]) -> usize {
        let patch = make(base, new);
        assert!(patch.len() <= new.len() + FINGERPRINT + 16, "{}", patch.len());
        let again = apply(base, patch.expose()).map(|record| record.expose().to_vec());
        assert_eq!(again.as_deref(), Ok(new));
        patch.len()
    }

    #[test]
    fn what_is_equal_is_not_said_again_wherever_it_has_moved_to() {
        let base = noise(1, 6000);
        assert!(there_and_back(&base, &base) < 20, "nothing has changed");
        let mut appended = base.clone();
        appended.extend(noise(2, 200));
        assert!(there_and_back(&base, &appended) < 200 + 30);
        let mut two = base.clone();
        two[100] ^= 1;
        two.splice(3000..3010, noise(3, 50));
        assert!(there_and_back(&base, &two) < 50 + 60, "two places");
        let moved = [&base[4000..], &base[..4000]].concat();
        assert!(there_and_back(&base, &moved) < 60);
        assert!(there_and_back(&appended, &base) < 30, "shorter again");
    }

    #[test]
    fn every_record_comes_back_whatever_it_was_written_against() {
        let lengths = [0, 1, 7, 8, 9, 63, 64, 65, 1000];
        for (a, base) in lengths.iter().enumerate() {
            for (b, new) in lengths.iter().enumerate() {
                there_and_back(&noise(a as u64, *base), &noise(b as u64 + 9, *new));
                there_and_back(&vec![7; *base], &vec![7; *new]);
                there_and_back(&noise(5, *base), &noise(5, *new));
            }
        }
    }

    #[test]
    fn another_base_is_told_from_damage_and_neither_is_guessed_at() {
        let (base, new) = (noise(1, 500), [noise(1, 480), noise(2, 40)].concat());
        let patch = make(&base, &new).expose().to_vec();
        let mut other = base.clone();
        other[499] ^= 1;
        let refused = |base: &[u8], patch: &[u8]| apply(base, patch).err();
        assert_eq!(refused(&other, &patch), Some(PatchError::OtherBase));
        for cut in 0..patch.len() {
            assert!(refused(&base, &patch[..cut]).is_some(), "cut after {cut}");
        }
        let longer = [&patch[..], &[0]].concat();
        assert_eq!(refused(&base, &longer), Some(PatchError::Damaged));
        // Any single octet: refused, or (an octet that is copied as it is) another record of the same length.
        for at in 0..patch.len() {
            let mut damaged = patch.clone();
            damaged[at] ^= 0x55;
            if let Ok(record) = apply(&base, &damaged) {
                assert_eq!(record.len(), new.len(), "octet {at}");
            }
        }
        let huge = [&fingerprint(&base)[..], &[0xff, 0xff, 0xff, 0x7f, 0, 0]].concat();
        assert_eq!(refused(&base, &huge), Some(PatchError::Damaged));
        let nothing = [&fingerprint(&base)[..], &[1, 0, 0]].concat();
        assert_eq!(refused(&base, &nothing), Some(PatchError::Damaged));
    }
}
