//! Outbound policy: longest prefix of the inner destination, then the first rule that matches.
//!
//! Prefixes are in a hash table of three arrays: [`SpdHead`] says which lengths there are, [`SpdBucket`] where a prefix of one of them
//! is, [`SpdPlace`] holds it with its rules. `datapath::spd` looks up, `sad::policy_table` writes.

use core::mem::size_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A prefix's first address: inner destination (IPv4 mapped). The prefix length is 96 + n for an IPv4 /n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SpdKey {
    /// Destination address.
    pub destination: [u8; 16],
}

/// Nothing here (end of the rules).
pub const ACTION_NONE: u8 = 0;
/// Encrypt with the SA in `slot`.
pub const ACTION_PROTECT: u8 = 1;
/// A policy without an SA at the moment: dropped and reported, never sent in clear.
pub const ACTION_TRAP: u8 = 2;
/// Pass to the stack in clear.
pub const ACTION_BYPASS: u8 = 3;
/// Drop.
pub const ACTION_DISCARD: u8 = 4;
/// As [`ACTION_PROTECT`], where each CPU may have an SA of its own in place of the one in `slot` (map `CPU_SLOT`).
pub const ACTION_PROTECT_PER_CPU: u8 = 5;
/// As [`ACTION_TRAP`], and the agent holds the packet for the SA.
pub const ACTION_TRAP_HOLD: u8 = 6;

/// One policy rule under a destination prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SpdRule {
    /// First inner source address.
    pub source_first: [u8; 16],
    /// Last inner source address.
    pub source_last: [u8; 16],
    /// First and last source port.
    pub source_ports: [u16; 2],
    /// First and last destination port.
    pub destination_ports: [u16; 2],
    /// Slot of the outbound SA, with `ACTION_PROTECT` and `ACTION_PROTECT_PER_CPU`.
    pub slot: u32,
    /// Connection index for counters.
    pub connection: u16,
    /// IP protocol, 0 for any.
    pub protocol: u8,
    /// `ACTION_*`.
    pub action: u8,
}

/// Rules under one destination prefix; more are refused by `sad`.
pub const RULES_PER_PREFIX: usize = 8;

/// All rules of one destination prefix, in order of decreasing precedence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SpdEntry {
    /// Rules; the first with `ACTION_NONE` ends the list.
    pub rules: [SpdRule; RULES_PER_PREFIX],
}

/// Prefixes that a bucket points to.
pub const SPD_WAYS: usize = 8;
/// Buckets, from a prefix's own on, in which it may be.
pub const SPD_PROBES: u32 = 4;
/// Most prefixes of a table.
pub const SPD_PLACES_MAX: u32 = 1 << 17;
/// Least prefixes of a table.
pub const SPD_PLACES_MIN: u32 = 1 << 13;

/// Prefixes that the tables of a member with so many SA slots have room for.
pub const fn spd_places(slots: u32) -> u32 {
    let wanted = slots.saturating_mul(4);
    if wanted <= SPD_PLACES_MIN {
        SPD_PLACES_MIN
    } else if wanted >= SPD_PLACES_MAX {
        SPD_PLACES_MAX
    } else {
        wanted.next_power_of_two()
    }
}

/// Buckets that belong to so many places: filled, a bucket has two prefixes on average.
pub const fn spd_buckets(places: u32) -> u32 {
    places / 2
}

/// In a way: one more than the place, 0 where there is none.
pub const WAY_NUMBER: u64 = (1 << 18) - 1;
/// In the last way of a bucket: prefixes of this bucket, or of one before it, are in the next one.
pub const WAY_MORE: u64 = 1 << 19;
/// Shift of what a way holds of the prefix's hash, its low 44 bits.
pub const WAY_TAG: u32 = 20;

/// Where prefixes are whose hash leads here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SpdBucket {
    /// Number, flag and tag (`WAY_*`); no two of one tag.
    pub ways: [u64; SPD_WAYS],
}

/// A prefix's last bit lies in the low half of the address.
pub const HALF_LOW: u32 = 0;
/// In the high half.
pub const HALF_HIGH: u32 = 1;
/// The prefix is of length 0.
pub const HALF_NONE: u32 = 2;
/// No prefix: nothing points here any more, and the rules count for packets only that have found them before.
pub const HALF_LEFT: u32 = 3;

/// A prefix and its rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SpdPlace {
    /// First address.
    pub key: SpdKey,
    /// Value of the prefix's last bit within its half of the address: of the lowest one that counts. 1 with `HALF_NONE`.
    pub lowest: u64,
    /// Another one for whatever is written here; 0 while it is being written.
    pub stamp: u64,
    /// `HALF_*`.
    pub half: u32,
    /// Length, bits.
    pub length: u32,
    /// The rules.
    pub entry: SpdEntry,
    /// Reserved, 0: a place begins where a cache line does.
    pub reserved: [u64; 3],
}

/// What look-ups begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SpdHead {
    /// Of the hash: unforeseeable, odd.
    pub multipliers: [u64; 6],
    /// Raised before anything else is changed.
    pub changes: u64,
    /// Lengths of IPv4 prefixes that there are, as the sum of their `lowest`.
    pub lengths_v4: u64,
    /// Lengths of IPv6 prefixes, by `HALF_*`.
    pub lengths_v6: [u64; 3],
    /// One less than the number of buckets, which is a power of two.
    pub bucket_mask: u64,
}

const _: () = {
    assert!(size_of::<SpdBucket>() == 64);
    assert!(size_of::<SpdPlace>().is_multiple_of(64));
    assert!(SPD_PLACES_MAX < WAY_NUMBER as u32);
    assert!(size_of::<SpdHead>() == 96);
    assert!(size_of::<SpdKey>() == 16);
    assert!(size_of::<SpdRule>() == 48);
    assert!(size_of::<SpdEntry>() == 48 * RULES_PER_PREFIX);
};
