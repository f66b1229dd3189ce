//! Security Associations as the programs see them. Configuration (written by the agent) is apart from runtime
//! (written by the programs), and both are apart from keys, so that operators can dump the first two.

use core::mem::size_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The SA uses extended sequence numbers (RFC 4303 2.2.1).
pub const SA_ESN: u8 = 1 << 0;
/// ESP is carried in UDP (RFC 3948); the ports are in the record.
pub const SA_UDP_ENCAP: u8 = 1 << 1;
/// Lenient anti-replay after takeover: the window bottom is the last reported edge. Counted, never the default.
pub const SA_LENIENT: u8 = 1 << 2;
/// Known to this member alone (made while alone): no upper limit applies until a standby has acknowledged it.
pub const SA_LOCAL_ONLY: u8 = 1 << 3;
/// Transport mode (RFC 4303 3.1.1): what follows the IP header is sealed, and the header stays.
pub const SA_TRANSPORT: u8 = 1 << 4;
/// Inbound: the peer is behind a NAT and says nothing of its own when its address changes (no MOBIKE): a new source of its packets is
/// told to the agent (RFC 7296 2.23).
pub const SA_MAY_MOVE: u8 = 1 << 5;

/// AES-GCM with a 16-octet ICV and a 128-bit key (RFC 4106).
pub const SUITE_AES128_GCM: u8 = 1;
/// AES-GCM with a 16-octet ICV and a 256-bit key (RFC 4106).
pub const SUITE_AES256_GCM: u8 = 2;
/// ChaCha20-Poly1305 (RFC 7634).
pub const SUITE_CHACHA20_POLY1305: u8 = 3;
/// AES-CBC with a 128-bit key (RFC 3602) and HMAC-SHA2-256-128 (RFC 4868).
pub const SUITE_AES128_CBC_SHA256: u8 = SUITE_CBC;
/// AES-CBC with a 256-bit key (RFC 3602) and HMAC-SHA2-256-128 (RFC 4868).
pub const SUITE_AES256_CBC_SHA256: u8 = SUITE_CBC + 1;

/// First of the suites that are no AEAD: the number's bit that tells them from the others, so that lengths follow from it without a branch.
pub const SUITE_CBC: u8 = 1 << 2;
/// The last suite.
pub const SUITE_LAST: u8 = SUITE_AES256_CBC_SHA256;

/// In [`Limits::epoch`]: numbers above the limit may have been used by a member that was lost, without anybody's knowledge. The owner
/// of the epoch keeps what it has; no later one may use the SA in this direction.
pub const LIMITS_TAINTED: u32 = 1 << 16;

/// What every in-sync standby has acknowledged for one direction of one SA.
///
/// Outbound: `limit` is the lease L, `step` its size S. Inbound: `limit` is the ceiling C, `step` the headroom H.
/// The effective values follow from the distance between the segment's epoch and `epoch` (`datapath::limits`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Limits {
    /// L or C: a sequence number.
    pub limit: u64,
    /// S or H: a count of sequence numbers, at least 1 once the SA is acknowledged.
    pub step: u64,
    /// Numbers up to here count as used (outbound) or seen (inbound) in every epoch: the highest lower bound that any
    /// takeover so far gave. 0 for a new SA. Without it a raise in a new epoch would forget what the takeover skipped;
    /// `datapath::limits::raised` computes it.
    pub floor: u64,
    /// Low 16 bits of the ownership epoch in which `limit` was acknowledged, and [`LIMITS_TAINTED`].
    pub epoch: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

/// [`Limits`] under a two-slot version: the writer fills the slot that is not in use, then raises `version`.
///
/// A reader takes `slots[version & 1]` and checks that `version` did not move; it never waits for the writer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LimitsCell {
    /// Number of publications; its lowest bit selects the slot in use.
    pub version: u64,
    /// The slot in use and the one being prepared.
    pub slots: [Limits; 2],
}

/// One pair of traffic selectors of an SA (RFC 7296 2.9), as inclusive ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SelectorPair {
    /// First remote address.
    pub remote_first: [u8; 16],
    /// Last remote address.
    pub remote_last: [u8; 16],
    /// First local address.
    pub local_first: [u8; 16],
    /// Last local address.
    pub local_last: [u8; 16],
    /// First and last remote port (0..=65535 for any).
    pub remote_ports: [u16; 2],
    /// First and last local port.
    pub local_ports: [u16; 2],
    /// IP protocol, 0 for any.
    pub protocol: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

/// Selector pairs held in an SA record; an SA with more is refused by `sad`.
pub const SELECTORS_PER_SA: usize = 4;

/// An inbound SA: one direction, ESP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InboundSa {
    /// SPI in host order; 0 where the slot is empty. Written last when an SA is installed.
    pub spi: u32,
    /// Connection index for counters; 0 is "none".
    pub connection: u16,
    /// `SUITE_*`.
    pub suite: u8,
    /// `SA_*` flags.
    pub flags: u8,
    /// Ceiling and headroom.
    pub limits: LimitsCell,
    /// The right edge that the owner last reported: base of the evidence rule after a takeover.
    pub reported_edge: u64,
    /// Inner octets that it may carry in all; 0: no limit (RFC 4301 4.4.2.1).
    pub life_bytes: u64,
    /// Packets that it may carry in all; 0: no limit.
    pub life_packets: u64,
    /// Number of valid entries in `selectors`.
    pub selector_count: u32,
    /// The SPI of this slot whose packets are to be taken, in host order: that of the SA; before there is one, of the SA that the agent has
    /// asked a peer for, whose packets may come before the peer's answer is used (RFC 7296 2.8). 0 for none.
    pub awaited: u32,
    /// What inner packets are checked against.
    pub selectors: [SelectorPair; SELECTORS_PER_SA],
}

/// Width of the replay window in sequence numbers that can be accepted (RFC 6479: one block less than the ring).
pub const REPLAY_WINDOW: u64 = (REPLAY_BLOCKS as u64 - 1) * 64;
/// 64-bit blocks of the replay ring, a power of two.
pub const REPLAY_BLOCKS: usize = 32;

/// The changing part of an inbound SA. Written on the SA's CPU only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InboundSaRuntime {
    /// The SPI that this window belongs to; on a mismatch with the record the program starts a fresh window.
    pub spi: u32,
    /// Low 16 bits of the epoch for which the takeover floor was last applied.
    pub floor_epoch: u32,
    /// The takeover floor in effect, 0 for none (and once the final window of a planned handover is merged).
    pub floor: u64,
    /// Right edge: the highest sequence number accepted.
    pub edge: u64,
    /// RFC 6479 ring: bit `seq & 63` of block `(seq / 64) & (REPLAY_BLOCKS - 1)`.
    pub blocks: [u64; REPLAY_BLOCKS],
    /// Packets accepted.
    pub packets: u64,
    /// Inner octets accepted.
    pub bytes: u64,
    /// `CLOCK_MONOTONIC` milliseconds of the last accepted packet.
    pub last_ms: u64,
    /// Evidence after takeover: authentic packets between reported edge and floor with rising numbers.
    pub evidence_count: u32,
    /// Low 16 bits of the epoch that the evidence belongs to.
    pub evidence_epoch: u32,
    /// Time of the first of them, milliseconds.
    pub evidence_first_ms: u64,
    /// Highest sequence number among them.
    pub evidence_seq: u64,
    /// Authentic packets above the floor since the takeover; any clears the evidence.
    pub above_floor: u64,
}

/// An outbound SA: one direction, ESP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OutboundSa {
    /// The peer's SPI in host order; 0 where the slot is empty. Written last when an SA is installed.
    pub spi: u32,
    /// Connection index for counters; 0 is "none".
    pub connection: u16,
    /// `SUITE_*`.
    pub suite: u8,
    /// `SA_*` flags.
    pub flags: u8,
    /// Lease and its size.
    pub limits: LimitsCell,
    /// Outer source address.
    pub outer_src: [u8; 16],
    /// Outer destination address.
    pub outer_dst: [u8; 16],
    /// UDP source and destination port, host order, with `SA_UDP_ENCAP`.
    pub encap_ports: [u16; 2],
    /// Largest outer packet, octets.
    pub path_mtu: u16,
    /// Largest segment that TCP may announce through the tunnel, both ways: octets, [`MSS_OFF`] or [`MSS_AUTO`].
    pub mss_clamp: u16,
    /// `DF_*`: the "don't fragment" bit of outer IPv4 headers.
    pub df: u8,
    /// DSCP of outer headers, plus one; 0: that of the inner packet.
    pub dscp: u8,
    /// Reserved, 0.
    pub reserved: [u8; 6],
    /// Inner octets that it may carry in all; 0: no limit (RFC 4301 4.4.2.1).
    pub life_bytes: u64,
    /// Packets that it may carry in all; 0: no limit.
    pub life_packets: u64,
}

/// [`OutboundSa::df`]: that of the inner packet; set around IPv6.
pub const DF_COPY: u8 = 0;
/// [`OutboundSa::df`]: set.
pub const DF_SET: u8 = 1;
/// [`OutboundSa::df`]: clear; what does not fit is cut outside.
pub const DF_CLEAR: u8 = 2;
/// [`OutboundSa::mss_clamp`]: TCP announces what it likes.
pub const MSS_OFF: u16 = 0;
/// [`OutboundSa::mss_clamp`]: what fits the path.
pub const MSS_AUTO: u16 = u16::MAX;

/// The changing part of an outbound SA. `seq` is shared by all CPUs and changed by atomic operations only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OutboundSaRuntime {
    /// Last sequence number given out.
    pub seq: u64,
    /// Packets sent.
    pub packets: u64,
    /// Inner octets sent.
    pub bytes: u64,
    /// `CLOCK_MONOTONIC` milliseconds of the last packet.
    pub last_ms: u64,
    /// For which lease exhaustion was last reported: (limits version + 1) << 16, and the epoch.
    pub exhausted_version: u64,
}

/// The final window of an old owner, input of the program `sa_ctl` (as the data of a test run).
///
/// Numbers up to `floor` that the old owner had not seen become acceptable to the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FinalWindow {
    /// Slot of the SA.
    pub slot: u32,
    /// Our SPI.
    pub spi: u32,
    /// Right edge of the old owner's window.
    pub edge: u64,
    /// The old owner's ceiling: it accepted nothing above.
    pub floor: u64,
    /// The old owner's replay ring.
    pub blocks: [u64; REPLAY_BLOCKS],
}

/// Return value of `sa_ctl`: merged.
pub const SA_CTL_MERGED: u32 = 0;
/// Return value of `sa_ctl`: no such SA in the slot.
pub const SA_CTL_NO_SA: u32 = 1;
/// Return value of `sa_ctl`: this member is not the valid owner of the SA's segment.
pub const SA_CTL_NOT_OWNER: u32 = 2;
/// Return value of `sa_ctl`: the window has no floor (any more): nothing to merge, or merged before.
pub const SA_CTL_NO_FLOOR: u32 = 3;
/// Return value of `sa_ctl`: run on another CPU than the SA's.
pub const SA_CTL_WRONG_CPU: u32 = 4;
/// Return value of `sa_ctl`: the input is no [`FinalWindow`], or a helper failed.
pub const SA_CTL_BAD_INPUT: u32 = 5;

/// 64-bit words of an expanded key: the largest suite's round keys and hash key.
pub const KEY_WORDS: usize = 136;

/// An expanded ESP key. `datapath::aead::expand` fills it; nothing else reads `schedule`.
#[derive(Clone, Copy, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SaKey {
    /// SPI that this key belongs to, checked against the record before use.
    pub spi: u32,
    /// `SUITE_*`.
    pub suite: u32,
    /// The 4 secret octets of the nonce (RFC 4106 4, RFC 7634 2); AES-CBC has none.
    pub salt: [u8; 4],
    /// Reserved, 0.
    pub reserved: u32,
    /// Key schedule, layout private to `datapath::aead`.
    pub schedule: [u64; KEY_WORDS],
}

const _: () = {
    assert!(size_of::<Limits>() == 32);
    assert!(size_of::<LimitsCell>() == 72);
    assert!(size_of::<SelectorPair>() == 80);
    assert!(size_of::<InboundSa>() == 112 + SELECTORS_PER_SA * 80);
    assert!(size_of::<InboundSaRuntime>() == 80 + REPLAY_BLOCKS * 8);
    assert!(size_of::<FinalWindow>() == 24 + REPLAY_BLOCKS * 8);
    assert!(size_of::<OutboundSa>() == 144);
    assert!(size_of::<OutboundSaRuntime>() == 40);
    assert!(size_of::<SaKey>() == 16 + KEY_WORDS * 8);
    assert!(size_of::<CpuSlot>() == 8);
    assert!(REPLAY_BLOCKS.is_power_of_two());
};

impl Default for InboundSaRuntime {
    fn default() -> Self {
        zerocopy::FromZeros::new_zeroed()
    }
}

impl SaKey {
    /// An empty slot.
    pub const EMPTY: Self = Self {
        spi: 0,
        suite: 0,
        salt: [0; 4],
        reserved: 0,
        schedule: [0; KEY_WORDS],
    };
}

/// Slot of an ESP SPI that a member of this cluster allocated: the low 20 bits.
pub const fn spi_slot(spi: u32) -> u32 {
    spi & 0x000f_ffff
}

/// Segment of such an SPI: slot mod 256.
pub const fn spi_segment(spi: u32) -> u8 {
    (spi & 0xff) as u8
}

/// Member that allocated such an SPI (1 to 16).
pub const fn spi_member(spi: u32) -> u8 {
    ((spi >> 20) & 0xf) as u8 + 1
}

/// Slots with the same number above the segment, side by side: as many as there are segments.
const ROW: u32 = 256;

/// CPU that serves a slot, and the index within that CPU's arrays. Neighbouring slots of one segment are on neighbouring CPUs, so
/// that every segment has slots of every CPU (ADR 10).
pub const fn slot_place(slot: u32, cpus: u32) -> (u32, u32) {
    if cpus == 0 {
        return (0, slot);
    }
    let (row, segment) = (slot / ROW, slot % ROW);
    ((segment + row) % cpus, row / cpus * ROW + segment)
}

/// The slot at a place: the inverse of [`slot_place`].
pub const fn slot_at(cpu: u32, index: u32, cpus: u32) -> u32 {
    if cpus == 0 {
        return index;
    }
    let (turn, segment) = (index / ROW, index % ROW);
    let ahead = (cpu % cpus + cpus - segment % cpus) % cpus;
    (turn * cpus + ahead) * ROW + segment
}

/// Entries that each CPU's arrays need for so many slots.
pub const fn slots_per_cpu(slots: u32, cpus: u32) -> u32 {
    let rows = slots.div_ceil(ROW);
    let turns = if cpus == 0 { rows } else { rows.div_ceil(cpus) };
    if turns == 0 { ROW } else { turns * ROW }
}

/// What a CPU uses in place of a shared outbound SA (RFC 9611); the index is the shared one's slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CpuSlot {
    /// One more than the slot of this CPU's own outbound SA; 0 for none.
    pub number: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_a_place_of_its_own_and_every_segment_is_on_every_cpu() {
        for cpus in [1, 2, 3, 4, 6, 8, 64] {
            let slots = 1 << 14;
            let entries = slots_per_cpu(slots, cpus);
            for slot in 0..slots {
                let (cpu, index) = slot_place(slot, cpus);
                assert!(cpu < cpus && index < entries, "{slot} of {cpus}");
                assert_eq!(slot_at(cpu, index, cpus), slot);
            }
            for segment in 0..ROW {
                let of_segment = (0..cpus).map(|row| slot_place(row * ROW + segment, cpus).0);
                assert_eq!(
                    of_segment.fold(0u64, |cpus, cpu| cpus | 1 << cpu),
                    u64::MAX >> (64 - cpus)
                );
            }
        }
        assert_eq!(slot_place(7, 0), (0, 7));
    }
}
