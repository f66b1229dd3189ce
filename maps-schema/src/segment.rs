//! Segments: the unit of ownership (256 of them). The owner word is read by every packet.

use core::mem::size_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Number of segments.
pub const SEGMENTS: usize = 256;

/// The owner's in-sync set is itself alone: a taker has no upper limits at a distance of one epoch or more.
pub const SEGMENT_ALONE: u8 = 1 << 0;

/// No planned handover under way.
pub const LEGACY_NONE: u8 = 0;
/// The old owner still serves inbound numbers up to its ceiling; the taker second-hops those to it.
pub const LEGACY_OPEN: u8 = 1;
/// The old owner has closed; the taker holds what is up to the ceiling until the final window is merged.
pub const LEGACY_HOLDING: u8 = 2;
/// The old owner has closed: it serves nothing, and passes everything on to the taker, also what came from a member.
pub const LEGACY_GIVEN: u8 = 3;

/// One segment. Two words, each stored at once; `owner` is extended by compare-and-swap only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Segment {
    /// [`OwnerWord`] in its packed form.
    pub owner: u64,
    /// [`SideWord`] in its packed form.
    pub side: u64,
}

const _: () = assert!(size_of::<Segment>() == 16);

/// Owner, epoch and valid-until of a segment: owner 8 bits | epoch 16 | valid-until in ms 40.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnerWord {
    /// Member that serves the segment, 0 for none.
    pub owner: u8,
    /// Low 16 bits of the ownership epoch.
    pub epoch: u16,
    /// `CLOCK_MONOTONIC` milliseconds up to which the owner may serve (dead-man's switch), 40 bits.
    pub valid_until_ms: u64,
}

/// Mask of the 40-bit millisecond field.
pub const VALID_UNTIL_MASK: u64 = (1 << 40) - 1;

impl OwnerWord {
    /// Packs into one 64-bit word.
    pub const fn pack(self) -> u64 {
        ((self.owner as u64) << 56) | ((self.epoch as u64) << 40) | (self.valid_until_ms & VALID_UNTIL_MASK)
    }

    /// Reads a packed word.
    pub const fn unpack(word: u64) -> Self {
        Self {
            owner: (word >> 56) as u8,
            epoch: (word >> 40) as u16,
            valid_until_ms: word & VALID_UNTIL_MASK,
        }
    }
}

/// What goes with the owner word and changes only together with a flip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SideWord {
    /// Member to pass the segment's packets to when the owner's word has expired, 0 for none.
    pub successor: u8,
    /// `SEGMENT_*` flags.
    pub flags: u8,
    /// The old owner in a planned handover, 0 for none.
    pub legacy_owner: u8,
    /// `LEGACY_*`.
    pub legacy_phase: u8,
    /// Low 16 bits of the old owner's epoch.
    pub legacy_epoch: u16,
}

impl SideWord {
    /// Packs into one 64-bit word.
    pub const fn pack(self) -> u64 {
        ((self.successor as u64) << 56)
            | ((self.flags as u64) << 48)
            | ((self.legacy_owner as u64) << 40)
            | ((self.legacy_phase as u64) << 32)
            | (self.legacy_epoch as u64)
    }

    /// Reads a packed word.
    pub const fn unpack(word: u64) -> Self {
        Self {
            successor: (word >> 56) as u8,
            flags: (word >> 48) as u8,
            legacy_owner: (word >> 40) as u8,
            legacy_phase: (word >> 32) as u8,
            legacy_epoch: word as u16,
        }
    }
}
