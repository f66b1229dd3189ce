//! The table of prefixes that `datapath::spd` looks up in: which words change, and in which order, while packets are looked up.
//!
//! A prefix that is new or gets other rules is written to a place that nothing points to, then one word of its bucket points to it.
//! A prefix that goes is forgotten by its bucket first, then its place is emptied. Places come back in the order in which they were
//! left, the oldest first.

use crate::prefix::MAPPED_IPV4;
use crate::prefix::Prefix;
use datapath::headers;
use datapath::spd::{hash, home};
use maps_schema::spd::{
    HALF_HIGH, HALF_LOW, HALF_NONE, SPD_PROBES, SPD_WAYS, SpdBucket, SpdEntry, SpdHead, SpdKey, SpdPlace,
    WAY_MORE, WAY_NUMBER, WAY_TAG, spd_buckets,
};
use std::collections::{HashMap, VecDeque};
use thiserror::Error;

/// Where a table is. Each call is one store of a word that others may read at any time, but for [`Memory::fill`].
pub trait Memory {
    /// Stores a word of a bucket.
    fn way(&mut self, bucket: u32, way: usize, word: u64);
    /// Stores the stamp of a place.
    fn stamp(&mut self, place: u32, stamp: u64);
    /// Writes all of a place but its stamp, which is 0.
    fn fill(&mut self, place: u32, content: &SpdPlace);
    /// Stores half (`HALF_LEFT`) and length (0) of a place, which are one word.
    fn leave(&mut self, place: u32);
    /// Stores the lengths in use: of IPv4, or of IPv6 by half.
    fn lengths(&mut self, of: Lengths, sum: u64);
    /// Stores [`SpdHead::changes`].
    fn changes(&mut self, count: u64);
}

/// A word of lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lengths {
    /// IPv4 prefixes.
    V4,
    /// IPv6 prefixes, by `HALF_*`.
    V6(u32),
}

/// Why a prefix cannot be put into the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TableError {
    /// No free place.
    #[error("the policy table holds {0} prefixes and no more: raise `slots`, or merge selectors")]
    Full(u32),
    /// All buckets of a prefix are full.
    #[error(
        "no room near the place of a prefix in the policy table, of {used} prefixes: raise `slots`, or merge selectors"
    )]
    Crowded {
        /// Prefixes in the table.
        used: u32,
    },
    /// A length beyond 128.
    #[error("prefix length {0} is beyond 128")]
    Length(u32),
}

/// Length and first address.
type Key = (u32, [u8; 16]);

#[derive(Clone, Copy)]
struct At {
    bucket: u32,
    way: usize,
    place: u32,
}

/// What the arrays hold.
pub struct PolicyTable {
    head: SpdHead,
    buckets: Vec<SpdBucket>,
    /// Prefixes that lie behind a bucket though they belong into it or one before it.
    beyond: Vec<u32>,
    at: HashMap<Key, At>,
    free: VecDeque<u32>,
    places: u32,
    stamp: u64,
    /// Prefixes of each length: IPv4, IPv6.
    counts: [[u32; 129]; 2],
}

/// Half and lowest bit of a length.
fn last_bit(length: u32) -> (u32, u64) {
    match length {
        0 => (HALF_NONE, 1),
        1..=64 => (HALF_HIGH, 1 << (64 - length)),
        _ => (HALF_LOW, 1 << (128 - length)),
    }
}

fn is_ipv4(length: u32, first: &[u8; 16]) -> bool {
    MAPPED_IPV4.contains(Prefix {
        first: u128::from_be_bytes(*first),
        len: length as u8,
    })
}

impl PolicyTable {
    /// An empty table of `places` (a power of two) under these multipliers, which nobody can foresee.
    pub fn new(places: u32, multipliers: [u64; 6]) -> Self {
        let buckets = spd_buckets(places).max(1);
        Self {
            head: SpdHead {
                multipliers: multipliers.map(|m| m | 1),
                bucket_mask: u64::from(buckets) - 1,
                ..SpdHead::default()
            },
            buckets: vec![SpdBucket::default(); buckets as usize],
            beyond: vec![0; buckets as usize],
            at: HashMap::new(),
            free: (0..places).collect(),
            places,
            stamp: 0,
            counts: [[0; 129]; 2],
        }
    }

    /// The table that is in memory, of a process before this one.
    pub fn found(
        head: SpdHead,
        places: u32,
        bucket: impl Fn(u32) -> SpdBucket,
        place: impl Fn(u32) -> SpdPlace,
    ) -> Self {
        let mut table = Self::new(places, head.multipliers);
        table.head = head;
        let mut used = vec![false; places as usize];
        for at in 0..table.buckets.len() as u32 {
            let content = bucket(at);
            for (way, word) in content.ways.into_iter().enumerate() {
                let number = (word & WAY_NUMBER) as u32;
                if number == 0 || number > places {
                    continue;
                }
                let held = place(number - 1);
                table.stamp = table.stamp.max(held.stamp);
                used[number as usize - 1] = true;
                let found = At {
                    bucket: at,
                    way,
                    place: number - 1,
                };
                for passed in table.passed(held.length, &held.key.destination, at) {
                    table.beyond[passed as usize] += 1;
                }
                table.count(held.length, &held.key.destination, 1);
                table.at.insert((held.length, held.key.destination), found);
            }
            table.buckets[at as usize] = content;
        }
        table.free.retain(|place| !used[*place as usize]);
        table
    }

    /// What look-ups begin with.
    pub fn head(&self) -> &SpdHead {
        &self.head
    }

    /// Every prefix: length and first address.
    pub fn prefixes(&self) -> impl Iterator<Item = (u32, [u8; 16])> {
        self.at.keys().copied()
    }

    /// Bucket and place of a prefix.
    pub fn where_is(&self, length: u32, first: [u8; 16]) -> Option<(u32, u32)> {
        self.at.get(&(length, first)).map(|at| (at.bucket, at.place))
    }

    /// Puts a prefix there, or other rules in place of those that it has.
    ///
    /// # Errors
    /// [`TableError`]; nothing has changed then.
    pub fn put(
        &mut self,
        memory: &mut impl Memory,
        length: u32,
        first: [u8; 16],
        entry: &SpdEntry,
    ) -> Result<(), TableError> {
        if length > 128 {
            return Err(TableError::Length(length));
        }
        let before = self.at.get(&(length, first)).copied();
        let (bucket, way, tag) = self.room(before, length, &first)?;
        let place = self.free.pop_front().ok_or(TableError::Full(self.places))?;
        self.change(memory);
        let (half, lowest) = last_bit(length);
        self.stamp += 1;
        memory.stamp(place, 0);
        memory.fill(
            place,
            &SpdPlace {
                key: SpdKey { destination: first },
                lowest,
                stamp: 0,
                half,
                length,
                entry: *entry,
                reserved: [0; 3],
            },
        );
        memory.stamp(place, self.stamp);
        if before.is_none() {
            for passed in self.passed(length, &first, bucket) {
                self.beyond[passed as usize] += 1;
                if self.beyond[passed as usize] == 1 {
                    self.store(memory, passed, SPD_WAYS - 1, |word| word | WAY_MORE);
                }
            }
        }
        let number = u64::from(place) + 1;
        self.store(memory, bucket, way, |word| word & WAY_MORE | tag | number);
        self.at.insert((length, first), At { bucket, way, place });
        match before {
            Some(before) => {
                // Again: who begins from here on does not meet the old place.
                self.change(memory);
                memory.leave(before.place);
                self.free.push_back(before.place);
            }
            // Last: a length without prefixes would cost look-ups for nothing.
            None => {
                self.count(length, &first, 1);
                self.publish_length(memory, length, &first);
            }
        }
        Ok(())
    }

    /// Removes a prefix; its absence is no error.
    pub fn delete(&mut self, memory: &mut impl Memory, length: u32, first: [u8; 16]) {
        let Some(at) = self.at.remove(&(length, first)) else {
            return;
        };
        self.change(memory);
        self.store(memory, at.bucket, at.way, |word| word & WAY_MORE);
        for passed in self.passed(length, &first, at.bucket) {
            self.beyond[passed as usize] -= 1;
            if self.beyond[passed as usize] == 0 {
                self.store(memory, passed, SPD_WAYS - 1, |word| word & !WAY_MORE);
            }
        }
        self.count(length, &first, -1);
        self.publish_length(memory, length, &first);
        self.change(memory);
        memory.stamp(at.place, 0);
        memory.fill(at.place, &SpdPlace::default());
        self.free.push_back(at.place);
    }

    /// Bucket, way and tag for a prefix.
    fn room(
        &self,
        before: Option<At>,
        length: u32,
        first: &[u8; 16],
    ) -> Result<(u32, usize, u64), TableError> {
        let (own, tag) = self.home(length, first);
        if let Some(before) = before {
            return Ok((before.bucket, before.way, tag));
        }
        for step in 0..SPD_PROBES {
            let at = (own + step) & self.head.bucket_mask as u32;
            let ways = &self.buckets[at as usize].ways;
            let alike = |word: &u64| word & WAY_NUMBER != 0 && (word ^ tag) >> WAY_TAG == 0;
            if !ways.iter().any(alike)
                && let Some(way) = ways.iter().position(|word| word & WAY_NUMBER == 0)
            {
                return Ok((at, way, tag));
            }
        }
        Err(TableError::Crowded {
            used: self.at.len() as u32,
        })
    }

    fn home(&self, length: u32, first: &[u8; 16]) -> (u32, u64) {
        let (half, lowest) = last_bit(length);
        let hash = hash(&self.head.multipliers, headers::address(first), half, lowest);
        home(hash, self.head.bucket_mask)
    }

    /// Buckets that a look-up for a prefix passes before it comes to `bucket`.
    fn passed(&self, length: u32, first: &[u8; 16], bucket: u32) -> Vec<u32> {
        let mask = self.head.bucket_mask as u32;
        let (own, _) = self.home(length, first);
        (0..bucket.wrapping_sub(own) & mask)
            .map(|step| (own + step) & mask)
            .collect()
    }

    fn store(&mut self, memory: &mut impl Memory, bucket: u32, way: usize, change: impl Fn(u64) -> u64) {
        let word = &mut self.buckets[bucket as usize].ways[way];
        *word = change(*word);
        memory.way(bucket, way, *word);
    }

    fn change(&mut self, memory: &mut impl Memory) {
        self.head.changes += 1;
        memory.changes(self.head.changes);
    }

    fn count(&mut self, length: u32, first: &[u8; 16], by: i32) {
        let family = usize::from(!is_ipv4(length, first));
        let count = &mut self.counts[family][length as usize];
        *count = count.wrapping_add_signed(by);
    }

    /// Stores the word of lengths that a prefix belongs to, where it is another one now.
    fn publish_length(&mut self, memory: &mut impl Memory, length: u32, first: &[u8; 16]) {
        let (half, lowest) = last_bit(length);
        let v4 = is_ipv4(length, first);
        let word = if v4 {
            &mut self.head.lengths_v4
        } else {
            &mut self.head.lengths_v6[half as usize]
        };
        let there = self.counts[usize::from(!v4)][length as usize] > 0;
        let sum = if there { *word | lowest } else { *word & !lowest };
        if sum != *word {
            *word = sum;
            memory.lengths(if v4 { Lengths::V4 } else { Lengths::V6(half) }, sum);
        }
    }
}
