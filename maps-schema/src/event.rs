//! What the programs tell the agent: rare events, and frames that need the slow path.

use core::mem::size_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An outbound SA passed half of its lease: renew it.
pub const EVENT_LEASE_SOFT: u32 = 1;
/// An outbound SA has no number left under its lease; reported once per lease.
pub const EVENT_LEASE_EXHAUSTED: u32 = 2;
/// An inbound SA passed half of its headroom: raise the ceiling.
pub const EVENT_CEILING_SOFT: u32 = 3;
/// Evidence for a rekey is complete (rising authentic numbers under the takeover floor).
pub const EVENT_EVIDENCE: u32 = 4;
/// The first authentic packet that this member accepted in an epoch.
pub const EVENT_FIRST_INBOUND: u32 = 5;
/// A packet met a policy without SA. `slot` is the connection index, `seq` the last 32 bits of the inner source and
/// destination. At most a few per second and CPU.
pub const EVENT_ACQUIRE: u32 = 6;
/// A packet used the SA that all CPUs may use, since its own CPU has none (RFC 9611). `slot` is that SA's, `spi` the CPU. At most
/// a few per second and CPU.
pub const EVENT_ACQUIRE_CPU: u32 = 7;
/// The route to an outbound SA's peer carries less than the SA's record says; `seq` is what it carries, octets.
pub const EVENT_PATH_MTU: u32 = 8;
/// A frame is longer than the MTU of the device that it arrived on: somebody merged packets. `slot` is the port's number, `seq`
/// the octets of the packet. At most a few per second and CPU.
pub const EVENT_MERGED: u32 = 12;

/// A rare event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Event {
    /// `EVENT_*`.
    pub kind: u32,
    /// Slot of the SA.
    pub slot: u32,
    /// SPI of the SA (ours inbound, the peer's outbound).
    pub spi: u32,
    /// Low 16 bits of the epoch.
    pub epoch: u32,
    /// Sequence number that caused it.
    pub seq: u64,
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub time_ns: u64,
}

/// An authentic inbound packet above the ceiling: raise, wait for the acknowledgement, run it again.
pub const SLOW_ABOVE_CEILING: u32 = 1;
/// An inbound packet up to the old ceiling while the final window of a planned handover is awaited.
pub const SLOW_HELD: u32 = 2;
/// An outbound packet larger than the path with DF clear: fragment it, run the pieces.
pub const SLOW_OUT_FRAGMENT: u32 = 3;
/// An outbound packet for which the lease has no number at the moment.
pub const SLOW_NO_LEASE: u32 = 4;
/// A sealed packet that is larger than the path and may be cut: its pieces go out.
pub const SLOW_OUTER_FRAGMENT: u32 = 5;
/// A packet of a policy without SA that is to wait for one. `slot` is the connection index.
pub const SLOW_NO_SA: u32 = 6;
/// An opened packet whose TTL is used up, in the clear behind a link header: its sender is told.
pub const SLOW_TTL_EXCEEDED: u32 = 7;
/// A router's ICMP error about a sealed packet that was too large: the other members are to hear it too. The stack has it already.
pub const SLOW_PATH_ERROR: u32 = 8;
/// An authentic inbound packet, newer than all before, from another source than the SA's peer was at (`SA_MAY_MOVE`). The packet
/// itself goes its way: this copy tells the new address. At most one a millisecond and SA.
pub const SLOW_MOVED: u32 = 9;

/// An inbound packet of an SA that the agent has asked its peer for and not installed yet.
pub const SLOW_AWAITED: u32 = 10;

/// A packet for the host's stack that another CPU was to work on, in generic mode: from there it would not arrive (ADR 33).
pub const SLOW_TO_STACK: u32 = 11;

/// Longest frame of a [`SlowFrame`], octets (a page less headroom and shared info of a live frame).
pub const SLOW_FRAME_MAX: usize = 3456;
/// Longest frame that goes this way at all, octets: the largest text that the programs carry, and headers.
pub const SLOW_LONG_MAX: usize = 16_512;

/// What the programs say of a frame for the slow path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SlowHead {
    /// `SLOW_*`.
    pub kind: u32,
    /// Interface on which it arrived.
    pub ifindex: u32,
    /// Slot of the SA.
    pub slot: u32,
    /// SPI of the SA.
    pub spi: u32,
    /// Sequence number (inferred, with ESN), 0 where none.
    pub seq: u64,
    /// Octets of the frame.
    pub length: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

/// A record of the slow path's ring: the Ethernet frame as it arrived, behind its head.
#[repr(C)]
pub struct SlowRecord<const N: usize> {
    /// What is said of it.
    pub head: SlowHead,
    /// The frame; `head.length` octets of it are in use.
    pub frame: [u8; N],
}

/// A frame of one page at most.
pub type SlowFrame = SlowRecord<SLOW_FRAME_MAX>;
/// A longer one.
pub type SlowLong = SlowRecord<SLOW_LONG_MAX>;

const _: () = {
    assert!(size_of::<Event>() == 32);
    assert!(size_of::<SlowFrame>() == 32 + SLOW_FRAME_MAX);
    assert!(size_of::<SlowLong>() == 32 + SLOW_LONG_MAX);
};
