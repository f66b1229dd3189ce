//! Look-up of the policy for a destination: a hash table, asked for each prefix length that there is, longest first.
//!
//! What a look-up costs depends on the number of lengths, not on that of prefixes. The agent changes the table while programs read
//! it; what it changes, and in which order, is in `sad::policy_table`. A look-up sees the table before a change or after it
//! or, where it cannot tell, is repeated: each change first raises [`SpdHead::changes`].

use maps_schema::spd::{
    HALF_HIGH, HALF_LOW, HALF_NONE, SPD_PROBES, SPD_WAYS, SpdBucket, SpdEntry, SpdHead, SpdPlace, WAY_MORE,
    WAY_NUMBER, WAY_TAG,
};

use crate::headers::{self, Address, is_v4};
use crate::limits::volatile;
use crate::opaque::opaque;

/// Look-ups of one packet before it gives up.
const ATTEMPTS: u32 = 3;

/// The arrays of a table.
pub trait Table {
    /// What look-ups begin with.
    fn head(&self) -> Option<&SpdHead>;
    /// A bucket.
    fn bucket(&self, at: u32) -> Option<&SpdBucket>;
    /// A place.
    fn place(&self, at: u32) -> Option<&SpdPlace>;
    /// [`probe`], in a function of its own where that pays.
    fn probe(&self, destination: Address, half: u32, lengths: u64) -> u32;
}

/// The table was changed during each of the attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changing;

/// The rules for a destination.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// The rules. They count if [`holds`] after they were read.
    pub entry: &'a SpdEntry,
    /// One more than the place; 0 for rules that nobody changes.
    number: u32,
    stamp: u64,
}

impl<'a> Policy<'a> {
    /// Rules that nobody changes meanwhile.
    pub const fn fixed(entry: &'a SpdEntry) -> Self {
        Self {
            entry,
            number: 0,
            stamp: 0,
        }
    }
}

/// Hash of a prefix, by the value of its last bit and the half of the address in which that lies: sums of 32-bit words times odd
/// numbers that nobody outside knows, so that nobody can choose prefixes that meet in one bucket.
#[inline(always)]
pub fn hash(multipliers: &[u64; 6], prefix: Address, half: u32, lowest: u64) -> u64 {
    let [high, low] = prefix;
    let sum = (high >> 32)
        .wrapping_mul(multipliers[0])
        .wrapping_add((high & 0xffff_ffff).wrapping_mul(multipliers[1]))
        .wrapping_add((low >> 32).wrapping_mul(multipliers[2]))
        .wrapping_add((low & 0xffff_ffff).wrapping_mul(multipliers[3]))
        .wrapping_add(lowest.wrapping_mul(multipliers[4]))
        .wrapping_add((half as u64).wrapping_mul(multipliers[5]));
    sum ^ sum >> 32
}

/// The bucket of a hash, and its tag where a way has it.
#[inline(always)]
pub fn home(hash: u64, bucket_mask: u64) -> (u32, u64) {
    (((hash >> 40) & bucket_mask) as u32, hash << WAY_TAG)
}

/// The first address of the prefix around a destination.
#[inline(always)]
pub fn cut(destination: Address, half: u32, lowest: u64) -> Address {
    let mask = lowest.wrapping_neg();
    match half {
        HALF_LOW => [destination[0], destination[1] & mask],
        HALF_HIGH => [destination[0] & mask, 0],
        _ => [0, 0],
    }
}

/// Number in the way with this tag, 0 for none; without a branch by way, each of which the verifier would follow.
#[inline(always)]
fn number_of(bucket: &SpdBucket, tag: u64) -> (u32, u64) {
    let mut number = 0;
    let mut last = 0;
    for at in 0..SPD_WAYS {
        let way = volatile(&bucket.ways[at]);
        // 0 where the tags are equal; else 1 to 2^44 - 1. All ones, or 0.
        let equal = opaque(((way ^ tag) >> WAY_TAG).wrapping_sub(1)) as i64 >> 63;
        number |= way & WAY_NUMBER & equal as u64;
        last = way;
    }
    (number as u32, last)
}

/// One more than the place of the longest prefix around a destination, among those whose last bits are in one half; 0 for none.
#[inline(always)]
pub fn probe(table: &impl Table, destination: Address, half: u32, lengths: u64) -> u32 {
    let Some(head) = table.head() else {
        return 0;
    };
    let mut lengths = lengths;
    let mut done = 0;
    // As many as there are bits: a bound that the verifier sees.
    while done < 64 {
        if lengths == 0 {
            break;
        }
        let lowest = lengths & lengths.wrapping_neg();
        lengths ^= lowest;
        let prefix = cut(destination, half, lowest);
        let (mut at, tag) = home(hash(&head.multipliers, prefix, half, lowest), head.bucket_mask);
        let mut step = 0;
        while step < SPD_PROBES {
            let Some(bucket) = table.bucket(at) else {
                return 0;
            };
            let (number, last) = number_of(bucket, tag);
            if number != 0
                && let Some(place) = table.place(number - 1)
                && is_of(place, prefix, half, lowest)
            {
                return number;
            }
            if last & WAY_MORE == 0 {
                break;
            }
            at = (at + 1) & head.bucket_mask as u32;
            step += 1;
        }
        done += 1;
    }
    0
}

/// Whether a place holds this prefix.
#[inline(always)]
fn is_of(place: &SpdPlace, prefix: Address, half: u32, lowest: u64) -> bool {
    let [high, low] = headers::address(&volatile(&place.key).destination);
    let other = (high ^ prefix[0]) | (low ^ prefix[1]) | (volatile(&place.lowest) ^ lowest);
    other | (volatile(&place.half) ^ half) as u64 == 0
}

/// The rules of the longest prefix around a destination.
///
/// # Errors
/// [`Changing`].
#[inline(always)]
pub fn look_up(table: &impl Table, destination: Address) -> Result<Option<Policy<'_>>, Changing> {
    let Some(head) = table.head() else {
        return Ok(None);
    };
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let changes = volatile(&head.changes);
        let number = if is_v4(destination) {
            table.probe(destination, HALF_LOW, volatile(&head.lengths_v4))
        } else {
            longest_v6(table, head, destination)
        };
        let place = table.place(number.wrapping_sub(1));
        let stamp = place.map_or(0, |place| volatile(&place.stamp));
        // Unchanged until here: what was found is the longest prefix, and this stamp belongs to it.
        if table
            .head()
            .is_some_and(|head| volatile(&head.changes) == changes)
        {
            return Ok(place.map(|place| Policy {
                entry: &place.entry,
                number,
                stamp,
            }));
        }
        attempt += 1;
    }
    Err(Changing)
}

#[inline(always)]
fn longest_v6(table: &impl Table, head: &SpdHead, destination: Address) -> u32 {
    let mut number = table.probe(destination, HALF_LOW, volatile(&head.lengths_v6[0]));
    if number == 0 {
        number = table.probe(destination, HALF_HIGH, volatile(&head.lengths_v6[1]));
    }
    if number == 0 {
        number = table.probe(destination, HALF_NONE, volatile(&head.lengths_v6[2]));
    }
    number
}

/// Whether nothing was written to the place of these rules since they were found. To be asked after they were read.
#[inline(always)]
pub fn holds(table: &impl Table, policy: &Policy<'_>) -> bool {
    policy.number == 0
        || table
            .place(policy.number - 1)
            .is_some_and(|place| volatile(&place.stamp) == policy.stamp)
}
