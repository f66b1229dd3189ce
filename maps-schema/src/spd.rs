//! Outbound policy: longest prefix of the inner destination, then the first rule that matches.

use core::mem::size_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// LPM key data: inner destination (IPv4 mapped). The prefix length is 96 + n for an IPv4 /n.
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

const _: () = {
    assert!(size_of::<SpdKey>() == 16);
    assert!(size_of::<SpdRule>() == 48);
    assert!(size_of::<SpdEntry>() == 48 * RULES_PER_PREFIX);
};
