//! The policy table in the programs' memory. What is written when, `sad::policy_table` says.

use crate::error::LoadError;
use crate::load::Plane;
use crate::mapped::MappedArray;
use crate::maps;
use maps_schema::names::{MAP_SPD, MAP_SPD_HEAD, MAP_SPD_INDEX};
use maps_schema::spd::{HALF_LEFT, SpdBucket, SpdEntry, SpdHead, SpdKey, SpdPlace, spd_buckets, spd_places};
use sad::policy_table::{Lengths, Memory, PolicyTable};
use sad::port::MapOp;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::mem::{offset_of, size_of};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use zerocopy::{FromBytes, Immutable, IntoBytes};

const _: () = {
    assert!(offset_of!(SpdPlace, stamp).is_multiple_of(8) && offset_of!(SpdPlace, half).is_multiple_of(8));
    assert!(offset_of!(SpdPlace, length) == offset_of!(SpdPlace, half) + 4);
    assert!(offset_of!(SpdHead, changes).is_multiple_of(8));
};

/// The arrays, and what is in them.
pub(crate) struct Policies {
    table: PolicyTable,
    memory: Mapped,
}

struct Mapped {
    head: MappedArray<SpdHead>,
    buckets: MappedArray<SpdBucket>,
    places: MappedArray<SpdPlace>,
}

impl Policies {
    /// Opens the arrays pinned in `folder`: those of a former run with all that is in them, or new ones.
    pub(crate) fn open(folder: &Path, slots: u32, adopt: bool) -> Result<Self, LoadError> {
        let places = spd_places(slots);
        let memory = Mapped {
            head: mapped(folder, MAP_SPD_HEAD, 1)?,
            buckets: mapped(folder, MAP_SPD_INDEX, spd_buckets(places))?,
            places: mapped(folder, MAP_SPD, places)?,
        };
        let table = if adopt {
            PolicyTable::found(
                memory.head.read(0).unwrap_or_default(),
                places,
                |at| memory.buckets.read(at).unwrap_or_default(),
                |at| memory.places.read(at).unwrap_or_default(),
            )
        } else {
            let table = PolicyTable::new(places, unforeseeable());
            memory.head.write(0, table.head(), 0, size_of::<SpdHead>());
            table
        };
        Ok(Self { table, memory })
    }

    /// Carries an operation out if it is about policies.
    pub(crate) fn execute(&mut self, op: &MapOp) -> Option<Result<(), String>> {
        match op {
            MapOp::PutSpd {
                prefix_len,
                key,
                entry,
            } => {
                if self.holds(*prefix_len, key, entry) {
                    return Some(Ok(()));
                }
                let put = self
                    .table
                    .put(&mut self.memory, *prefix_len, key.destination, entry);
                Some(put.map_err(|error| error.to_string()))
            }
            MapOp::DeleteSpd { prefix_len, key } => {
                self.table.delete(&mut self.memory, *prefix_len, key.destination);
                Some(Ok(()))
            }
            _ => None,
        }
    }

    /// Whether these are the rules of a prefix already: then nothing is written, and no place changes hands.
    fn holds(&self, prefix_len: u32, key: &SpdKey, entry: &SpdEntry) -> bool {
        let found = self.table.where_is(prefix_len, key.destination);
        let held = found.and_then(|(_, place)| self.memory.places.read(place));
        held.is_some_and(|held| held.entry == *entry)
    }

    /// Every prefix: length and first address.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = (u32, [u8; 16])> {
        self.table.prefixes()
    }
}

impl Plane {
    /// Index in map `SPD_INDEX` and in map `SPD` of a prefix (length in bits of the mapped address); `None` where it is not there.
    pub fn policy_place(&self, prefix_len: u32, key: &SpdKey) -> Option<(u32, u32)> {
        self.policies.table.where_is(prefix_len, key.destination)
    }
}

/// Multipliers that differ by table: the keys of std's hash maps come from the operating system's randomness.
fn unforeseeable() -> [u64; 6] {
    let keys = RandomState::new();
    std::array::from_fn(|at| {
        let mut hasher = keys.build_hasher();
        hasher.write_usize(at);
        hasher.finish()
    })
}

fn mapped<T>(folder: &Path, name: &str, entries: u32) -> Result<MappedArray<T>, LoadError>
where
    T: FromBytes + IntoBytes + Immutable,
{
    let map = maps::get(folder, name)?;
    MappedArray::map(map.as_fd(), entries)
        .map_err(|e| LoadError::kernel(format!("map {name} into memory"), e))
}

/// Release: what was stored before is seen before. Indices are the table's own, within the arrays.
impl Memory for Mapped {
    fn way(&mut self, bucket: u32, way: usize, word: u64) {
        if let Some(at) = self.buckets.word(bucket, way * 8) {
            at.store(word, Ordering::Release);
        }
    }

    fn stamp(&mut self, place: u32, stamp: u64) {
        if let Some(at) = self.places.word(place, offset_of!(SpdPlace, stamp)) {
            // Not only release: what follows a 0 must not be seen before it.
            at.swap(stamp, Ordering::SeqCst);
        }
    }

    fn fill(&mut self, place: u32, content: &SpdPlace) {
        let stamp = offset_of!(SpdPlace, stamp);
        self.places.write(place, content, 0, stamp);
        self.places
            .write(place, content, stamp + 8, size_of::<SpdPlace>());
    }

    fn leave(&mut self, place: u32) {
        let left = SpdPlace {
            half: HALF_LEFT,
            ..SpdPlace::default()
        };
        let at = offset_of!(SpdPlace, half);
        self.places.write(place, &left, at, at + 8);
    }

    fn lengths(&mut self, of: Lengths, sum: u64) {
        let offset = match of {
            Lengths::V4 => offset_of!(SpdHead, lengths_v4),
            Lengths::V6(half) => offset_of!(SpdHead, lengths_v6) + 8 * half as usize,
        };
        if let Some(at) = self.head.word(0, offset) {
            at.store(sum, Ordering::Release);
        }
    }

    fn changes(&mut self, count: u64) {
        if let Some(at) = self.head.word(0, offset_of!(SpdHead, changes)) {
            at.swap(count, Ordering::SeqCst);
        }
    }
}
