//! The anti-replay window (RFC 4303 3.4.3) as a ring of 64-bit blocks (RFC 6479), the takeover floor, the final window of
//! a planned handover, and the high half of extended sequence numbers (RFC 4303 Appendix A2).
//!
//! A window belongs to one CPU. Steps that must not be skipped return proof that the next step takes.

use maps_schema::sad::{FinalWindow, InboundSaRuntime, REPLAY_BLOCKS, REPLAY_WINDOW};
use maps_schema::verdict::Verdict;

use crate::opaque::opaque;

const MASK: u64 = REPLAY_BLOCKS as u64 - 1;
const _: () = assert!(REPLAY_BLOCKS.is_power_of_two());

/// Proof that a number was neither seen nor too old when it was looked at.
#[must_use]
pub struct ReplayChecked {
    seq: u64,
}

/// Proof that a packet's integrity check succeeded.
#[must_use]
pub struct IcvVerified(());

impl IcvVerified {
    /// From the outcome of [`crate::aead::aead_open`].
    #[inline(always)]
    pub fn from_status(status: i32) -> Option<Self> {
        (status == crate::aead::DONE).then_some(Self(()))
    }
}

/// Whether `seq` may be accepted, without changing anything.
///
/// # Errors
/// `ReplayTooOld` or `ReplayDuplicate`.
#[inline(always)]
pub fn check(window: &InboundSaRuntime, seq: u64) -> Result<ReplayChecked, Verdict> {
    // RFC 4303 3.4.3: the first packet has sequence number 1; 0 is never valid.
    if seq == 0 {
        return Err(Verdict::ReplayTooOld);
    }
    if seq > window.edge {
        return Ok(ReplayChecked { seq });
    }
    if window.edge - seq >= REPLAY_WINDOW {
        return Err(Verdict::ReplayTooOld);
    }
    let block = window.blocks[((seq >> 6) & MASK) as usize];
    if (block >> (seq & 63)) & 1 == 1 {
        return Err(Verdict::ReplayDuplicate);
    }
    Ok(ReplayChecked { seq })
}

/// Records a number as seen and moves the right edge where it is higher. Returns the edge before.
#[inline(always)]
pub fn mark(window: &mut InboundSaRuntime, checked: ReplayChecked, _proof: IcvVerified) -> u64 {
    let seq = checked.seq;
    let before = window.edge;
    if seq > before {
        let old_block = before >> 6;
        let steps = (seq >> 6) - old_block;
        let mut i = 0;
        while i < REPLAY_BLOCKS as u64 {
            if i >= steps {
                break;
            }
            i += 1;
            window.blocks[((old_block + i) & MASK) as usize] = 0;
        }
        window.edge = seq;
    }
    window.blocks[((seq >> 6) & MASK) as usize] |= 1 << (seq & 63);
    before
}

/// Bits of a block that stand for numbers up to `number`.
///
/// Without branches: the verifier would follow every combination of "left of", "in" and "right of" over all blocks.
#[inline(always)]
fn seen_up_to(block: u64, number: u64) -> u64 {
    let distance = number.wrapping_sub(block << 6) as i64;
    let before = opaque((distance >> 63) as u64);
    let beyond = opaque((62i64.wrapping_sub(distance) >> 63) as u64);
    !before & (beyond | (u64::MAX >> (63u64.wrapping_sub(distance as u64) & 63)))
}

/// Makes the window that of SA `spi` in epoch `epoch`: a fresh one where the slot was another SA's, and with everything
/// up to `floor` seen where the floor of this epoch has not been applied yet.
#[inline(always)]
pub fn prepare(window: &mut InboundSaRuntime, spi: u32, epoch: u16, floor: u64) {
    let fresh = window.spi != spi;
    if fresh {
        window.spi = spi;
        window.edge = 0;
        window.packets = 0;
        window.bytes = 0;
        window.last_ms = 0;
        let mut i = 0;
        while i < REPLAY_BLOCKS {
            window.blocks[i] = 0;
            i += 1;
        }
    }
    if fresh || window.floor_epoch != epoch as u32 {
        window.floor_epoch = epoch as u32;
        window.floor = floor;
        window.evidence_epoch = epoch as u32;
        window.evidence_count = 0;
        window.evidence_first_ms = 0;
        window.evidence_seq = 0;
        window.above_floor = 0;
        apply_floor(window, floor);
    }
}

/// Counts everything up to `floor` as seen.
#[inline(always)]
fn apply_floor(window: &mut InboundSaRuntime, floor: u64) {
    if floor == 0 {
        return;
    }
    let mut keep = u64::MAX;
    if window.edge < floor {
        keep = 0;
        window.edge = floor;
    }
    let edge_block = window.edge >> 6;
    let mut age = 0;
    while age < REPLAY_BLOCKS as u64 {
        let block = edge_block.wrapping_sub(age);
        let at = (block & MASK) as usize;
        window.blocks[at] = (window.blocks[at] & keep) | seen_up_to(block, floor);
        age += 1;
    }
}

/// Merges the old owner's final window: what it had not seen up to its ceiling becomes acceptable here. `false`, and
/// nothing changed, where the window has no floor: merged before, or none was applied.
#[inline(always)]
pub fn merge(window: &mut InboundSaRuntime, old: &FinalWindow) -> bool {
    if window.floor == 0 {
        return false;
    }
    let floor = if old.floor < window.floor {
        old.floor
    } else {
        window.floor
    };
    if window.edge == window.floor && old.edge < window.edge {
        // Nothing above the floor was accepted: it was the floor that put the edge there, and the peer, at a high rate, may be more
        // than a window away from it.
        window.edge = old.edge;
    }
    window.floor = 0;
    let edge_block = window.edge >> 6;
    // Numbers up to here are left of the old owner's window: seen.
    let old_bottom = old.edge.saturating_sub(REPLAY_WINDOW);
    let mut age = 0;
    while age < REPLAY_BLOCKS as u64 {
        let block = edge_block.wrapping_sub(age);
        let at = (block & MASK) as usize;
        let seen = (old.blocks[at] & seen_up_to(block, old.edge)) | seen_up_to(block, old_bottom);
        let mine = seen_up_to(block, floor);
        window.blocks[at] = (window.blocks[at] & !mine) | (seen & mine);
        age += 1;
    }
    true
}

/// The sequence number that the 32 bits on the wire stand for, given the right edge (RFC 4303 A2.1).
#[inline(always)]
pub const fn infer(edge: u64, low: u32) -> u64 {
    let (edge_low, high) = (edge as u32, edge >> 32);
    let bottom = edge_low.wrapping_sub(REPLAY_WINDOW as u32 - 1);
    let high = if edge_low >= REPLAY_WINDOW as u32 - 1 {
        // Case A: the window lies within one subspace.
        if low >= bottom { high } else { high + 1 }
    } else {
        // Case B: the window spans two subspaces.
        if low >= bottom && high > 0 { high - 1 } else { high }
    };
    (high << 32) | low as u64
}

/// As [`infer`], but where that gives a number beyond the ceiling, and more than half the 32-bit space ahead, the packet
/// is taken for an old one: the ceiling would not let it pass anyway, while an old one is evidence after a takeover.
#[inline(always)]
pub const fn infer_under(edge: u64, low: u32, ceiling: u64) -> u64 {
    let seq = infer(edge, low);
    if seq > ceiling && seq > u32::MAX as u64 && seq - edge > 1 << 31 {
        seq - (1 << 32)
    } else {
        seq
    }
}
