//! Leases and ceilings: which sequence numbers a member may use or accept. One arithmetic for the programs, for
//! `sad` and for the model check.
//!
//! `k` is the distance from the epoch of an SA's limits to the epoch of its segment's owner word. At `k = 0` the
//! owner spends up to the lease L and accepts up to the ceiling C. At `k > 0` a taker starts where nobody before it
//! can have been: above L + (k-1)S outbound, above C + (k-1)H inbound. `Limits::floor` carries the highest such
//! bound of earlier epochs, so that a raise in the current epoch does not forget it.
//!
//! Limits may be *tainted* (`LIMITS_TAINTED`): a standby that is lost may have used the numbers above L unseen. The owner of their
//! epoch goes on up to L. Whoever takes over from it has no number at all, alone or not, and no raise changes that: the SA
//! is to be rekeyed. Only in a planned takeover the owner leaves a part of its own numbers to the taker ([`shortened`], [`inherited`]).

use crate::counter::Counter;
use maps_schema::sad::{LIMITS_TAINTED, Limits, LimitsCell, SA_ESN, SA_LOCAL_ONLY};

/// Largest distance between epochs that counts as "ahead"; a larger one means that the record is the newer.
pub const MAX_DISTANCE: u16 = 0x7fff;

/// Highest sequence number without extended sequence numbers (RFC 4303 2.2).
pub const SEQUENCE_MAX: u64 = u32::MAX as u64;
/// Highest sequence number with extended sequence numbers: the IV has 40 bits for it.
pub const SEQUENCE_MAX_ESN: u64 = (1 << 40) - 1;

/// The record's limits are of a later epoch than the owner word: this member's view of the segment is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochBehind;

/// The limits changed under the reader more often than it was willing to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contended;

/// Outbound numbers a member may use: `first..=last`. Empty where `first > last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboundRange {
    /// Lowest number it may use; its counter must be at least `first - 1` before it adds.
    pub first: u64,
    /// Highest number it may use.
    pub last: u64,
    /// `EVENT_LEASE_SOFT` is due when exactly this number is given out; 0 where there is no limit to renew.
    pub soft: u64,
}

/// Inbound numbers a member may accept: `floor + 1 ..= ceiling`, window permitting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundRange {
    /// All up to here counts as seen.
    pub floor: u64,
    /// The window may not move past this.
    pub ceiling: u64,
    /// `EVENT_CEILING_SOFT` is due when the right edge passes this; `u64::MAX` where there is no ceiling.
    pub soft: u64,
}

/// Distance from the epoch of a record to the epoch of the owner word, 16-bit and wrapping.
///
/// # Errors
/// [`EpochBehind`] where the record is of the later epoch.
#[inline(always)]
pub const fn distance(record_epoch: u16, word_epoch: u16) -> Result<u16, EpochBehind> {
    let k = word_epoch.wrapping_sub(record_epoch);
    if k > MAX_DISTANCE { Err(EpochBehind) } else { Ok(k) }
}

/// `k * step`, saturating. BPF has no 128-bit product to look for an overflow in, so the factor is bounded instead.
#[inline(always)]
const fn steps(k: u16, step: u64) -> u64 {
    if step > u64::MAX >> 16 {
        if k == 0 { 0 } else { u64::MAX }
    } else {
        k as u64 * step
    }
}

/// Lower bound that `limits` give at distance `k`: everything up to it may have been used by somebody.
#[inline(always)]
const fn lower_bound(limits: &Limits, k: u16) -> u64 {
    if k == 0 {
        return limits.floor;
    }
    let taken = limits.limit.saturating_add(steps(k - 1, limits.step));
    if taken > limits.floor { taken } else { limits.floor }
}

/// Upper bound at distance `k`, or `None` where there is none.
#[inline(always)]
const fn upper_bound(limits: &Limits, flags: u8, alone: bool, k: u16) -> Option<u64> {
    if is_tainted(limits) && k > 0 {
        return Some(lower_bound(limits, k));
    }
    if flags & SA_LOCAL_ONLY != 0 || (alone && k > 0) {
        return None;
    }
    Some(limits.limit.saturating_add(steps(k, limits.step)))
}

/// Whether somebody who is lost may have used the numbers above these limits.
#[inline(always)]
pub const fn is_tainted(limits: &Limits) -> bool {
    limits.epoch & LIMITS_TAINTED != 0
}

/// Limits that somebody else has tainted already: as [`tainted_outbound`] left them, told without the flag.
pub const fn with_taint(limits: Limits) -> Limits {
    Limits {
        epoch: limits.epoch | LIMITS_TAINTED,
        ..limits
    }
}

/// Outbound limits of an SA that a lost standby knew, as the owner in `epoch` leaves them to every later owner: what it may use
/// itself stays, and there is nothing above.
///
/// # Errors
/// [`EpochBehind`] where the limits are of a later epoch.
pub const fn tainted_outbound(limits: &Limits, epoch: u16) -> Result<Limits, EpochBehind> {
    let raised = match outbound_range(limits, 0, false, epoch) {
        Ok(range) => raised(limits, range.last, limits.step, epoch),
        Err(e) => Err(e),
    };
    match raised {
        Ok(limits) => Ok(with_taint(limits)),
        Err(e) => Err(e),
    }
}

/// As [`tainted_outbound`], for what may be accepted.
///
/// # Errors
/// [`EpochBehind`] where the limits are of a later epoch.
pub const fn tainted_inbound(limits: &Limits, epoch: u16) -> Result<Limits, EpochBehind> {
    let raised = match inbound_range(limits, 0, false, epoch) {
        Ok(range) => raised(limits, range.ceiling, limits.step, epoch),
        Err(e) => Err(e),
    };
    match raised {
        Ok(limits) => Ok(with_taint(limits)),
        Err(e) => Err(e),
    }
}

/// Tainted outbound limits of the owner in `epoch`, cut short: it goes on up to `kept` and leaves the numbers above to somebody whom it
/// hands over to in a planned way. Those were its own, so nobody else can have used them. It never gets them back.
///
/// `None` where there is nothing to leave: they are not tainted, not of this epoch, or end at `kept` or below.
pub const fn shortened(limits: &Limits, kept: u64, epoch: u16) -> Option<Limits> {
    if !is_tainted(limits) || limits.epoch as u16 != epoch || kept >= limits.limit {
        return None;
    }
    Some(Limits {
        limit: if kept > limits.floor { kept } else { limits.floor },
        ..*limits
    })
}

/// Tainted outbound limits at a member that takes over in `epoch`, to which the owner before left the numbers `above + 1 ..= last`
/// ([`shortened`]). They are this epoch's alone: whoever comes after has no number, as before.
///
/// `None` where these limits are not tainted, or of this epoch or a later one: then they say by themselves what the taker has (it was told
/// before, by a handover to the same epoch that was given up; the owner has not used what it left since).
pub const fn inherited(limits: &Limits, above: u64, last: u64, epoch: u16) -> Option<Limits> {
    if !is_tainted(limits) || !matches!(distance(limits.epoch as u16, epoch), Ok(1..)) {
        return None;
    }
    let floor = if above > limits.floor { above } else { limits.floor };
    Some(with_taint(Limits {
        limit: if last > floor { last } else { floor },
        // So that half of what there is left has it rekeyed.
        step: last.saturating_sub(floor),
        floor,
        epoch: epoch as u32,
        reserved: 0,
    }))
}

/// Highest sequence number an SA with these `SA_*` flags can carry.
#[inline(always)]
pub const fn sequence_max(flags: u8) -> u64 {
    if flags & SA_ESN != 0 {
        SEQUENCE_MAX_ESN
    } else {
        SEQUENCE_MAX
    }
}

/// Which outbound numbers the owner in epoch `word_epoch` may use.
///
/// `flags` are the SA's `SA_*`, `alone` is the segment's flag. The end of the sequence number space is not part of
/// the lease: see [`sequence_max`].
///
/// # Errors
/// [`EpochBehind`] where the limits are of a later epoch.
#[inline(always)]
pub const fn outbound_range(
    limits: &Limits,
    flags: u8,
    alone: bool,
    word_epoch: u16,
) -> Result<OutboundRange, EpochBehind> {
    let k = match distance(limits.epoch as u16, word_epoch) {
        Ok(k) => k,
        Err(e) => return Err(e),
    };
    let first = lower_bound(limits, k).saturating_add(1);
    Ok(match upper_bound(limits, flags, alone, k) {
        Some(last) => OutboundRange {
            first,
            last,
            soft: last.saturating_sub(limits.step / 2),
        },
        None => OutboundRange {
            first,
            last: u64::MAX,
            soft: 0,
        },
    })
}

/// Which inbound numbers the owner in epoch `word_epoch` may accept.
///
/// # Errors
/// [`EpochBehind`] where the limits are of a later epoch.
#[inline(always)]
pub const fn inbound_range(
    limits: &Limits,
    flags: u8,
    alone: bool,
    word_epoch: u16,
) -> Result<InboundRange, EpochBehind> {
    let k = match distance(limits.epoch as u16, word_epoch) {
        Ok(k) => k,
        Err(e) => return Err(e),
    };
    let floor = lower_bound(limits, k);
    Ok(match upper_bound(limits, flags, alone, k) {
        Some(ceiling) => InboundRange {
            floor,
            ceiling,
            soft: ceiling.saturating_sub(limits.step / 2),
        },
        None => InboundRange {
            floor,
            ceiling: u64::MAX,
            soft: u64::MAX,
        },
    })
}

/// The limits that follow `old` when `limit` and `step` are published in epoch `epoch`: the floor is carried over,
/// raised to what a takeover between the two epochs skipped.
///
/// Every member that applies a raise computes its maps' limits with this function. Limits of an earlier epoch than
/// `old` are refused. Tainted limits stay what they are: a raise of them gives no number to anybody.
///
/// # Errors
/// [`EpochBehind`] where `old` is of a later epoch than `epoch`.
pub const fn raised(old: &Limits, limit: u64, step: u64, epoch: u16) -> Result<Limits, EpochBehind> {
    let k = match distance(old.epoch as u16, epoch) {
        Ok(k) => k,
        Err(e) => return Err(e),
    };
    let floor = lower_bound(old, k);
    let new = Limits {
        limit,
        step,
        floor,
        epoch: epoch as u32,
        reserved: 0,
    };
    if !is_tainted(old) {
        return Ok(new);
    }
    Ok(with_taint(Limits {
        limit: if k == 0 { old.limit } else { floor },
        ..new
    }))
}

/// Attempts of [`read`] before it gives up.
pub const READ_ATTEMPTS: u32 = 4;

/// Reads the limits in use by the two-slot version protocol, and their version.
///
/// The writer fills the slot that is not in use, then raises `version`; a version that did not move between the two
/// reads proves that the slot was not being written.
///
/// # Errors
/// [`Contended`] where the version moved in every one of [`READ_ATTEMPTS`] attempts.
#[inline(always)]
pub fn read(cell: &LimitsCell) -> Result<(Limits, u64), Contended> {
    let mut attempt = 0;
    while attempt < READ_ATTEMPTS {
        let version = volatile(&cell.version);
        let slot = if version & 1 == 0 {
            &cell.slots[0]
        } else {
            &cell.slots[1]
        };
        let limits = Limits {
            limit: volatile(&slot.limit),
            step: volatile(&slot.step),
            floor: volatile(&slot.floor),
            epoch: volatile(&slot.epoch),
            reserved: 0,
        };
        if volatile(&cell.version) == version {
            return Ok((limits, version));
        }
        attempt += 1;
    }
    Err(Contended)
}

/// Publishes limits in a cell that only the caller writes: fills the free slot, then raises the version.
///
/// For tests and for building new records; `dataplane` does the same on mapped memory.
pub fn publish(cell: &mut LimitsCell, limits: Limits) {
    let next = cell.version.wrapping_add(1);
    cell.slots[(next & 1) as usize] = limits;
    cell.version = next;
}

/// Result of taking one outbound number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// This number is the caller's alone.
    Number(u64),
    /// The lease has no number left.
    Exhausted,
    /// The counter moved too often while it was being raised to the start of the range.
    Contended,
}

/// Attempts to raise a counter to the start of the range.
const RAISE_ATTEMPTS: u32 = 4;

/// Takes the next number from `counter` within `range`.
///
/// The limit is checked before the atomic add, so that an SA without lease does not run its counter away, and again
/// after it, because other CPUs add at the same time.
#[inline(always)]
pub fn take(counter: &Counter, range: &OutboundRange) -> Take {
    let start = range.first.saturating_sub(1);
    let mut attempt = 0;
    let mut current = counter.get();
    while current < start {
        if attempt == RAISE_ATTEMPTS {
            return Take::Contended;
        }
        attempt += 1;
        let seen = counter.compare_exchange(current, start);
        current = if seen == current { start } else { seen };
    }
    if current >= range.last {
        return Take::Exhausted;
    }
    let number = counter.fetch_add(1).saturating_add(1);
    if number > range.last || number < range.first {
        Take::Exhausted
    } else {
        Take::Number(number)
    }
}

/// A read that the compiler neither repeats, tears nor moves across another one: the other side writes concurrently.
#[inline(always)]
pub(crate) fn volatile<T: Copy>(field: &T) -> T {
    // SAFETY: a shared reference is valid, aligned and initialised.
    unsafe { core::ptr::read_volatile(field) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(limit: u64, step: u64, epoch: u32) -> Limits {
        Limits {
            limit,
            step,
            floor: 0,
            epoch,
            reserved: 0,
        }
    }

    #[test]
    fn the_owner_spends_up_to_the_lease() {
        let r = outbound_range(&limits(4096, 4096, 7), 0, false, 7).unwrap();
        assert_eq!((r.first, r.last, r.soft), (1, 4096, 2048));
    }

    #[test]
    fn a_taker_starts_above_the_lease_and_has_one_step() {
        let r = outbound_range(&limits(4096, 1000, 7), 0, false, 8).unwrap();
        assert_eq!((r.first, r.last, r.soft), (4097, 5096, 4596));
        let r = outbound_range(&limits(4096, 1000, 7), 0, false, 10).unwrap();
        assert_eq!((r.first, r.last), (6097, 7096));
    }

    #[test]
    fn a_taker_accepts_above_the_ceiling_only() {
        let r = inbound_range(&limits(100, 10, 0xffff), 0, false, 1).unwrap();
        assert_eq!((r.floor, r.ceiling), (110, 120));
    }

    #[test]
    fn alone_lifts_the_upper_limit_of_a_taker_but_not_of_the_owner() {
        assert_eq!(outbound_range(&limits(100, 10, 3), 0, true, 3).unwrap().last, 100);
        let r = outbound_range(&limits(100, 10, 3), 0, true, 4).unwrap();
        assert_eq!((r.first, r.last), (101, u64::MAX));
    }

    #[test]
    fn a_local_sa_has_no_upper_limit() {
        assert_eq!(
            outbound_range(&limits(0, 1, 3), SA_LOCAL_ONLY, false, 3)
                .unwrap()
                .last,
            u64::MAX
        );
        assert_eq!(
            inbound_range(&limits(0, 1, 3), SA_LOCAL_ONLY, false, 3)
                .unwrap()
                .ceiling,
            u64::MAX
        );
    }

    #[test]
    fn nobody_after_the_owner_has_a_number_of_tainted_limits() {
        // The owner took over in epoch 8, so it has L + S.
        let tainted = tainted_outbound(&limits(4096, 1000, 7), 8).unwrap();
        let range = |limits: &Limits, alone, epoch| outbound_range(limits, 0, alone, epoch).unwrap();
        let own = range(&tainted, false, 8);
        assert_eq!((own.first, own.last, own.soft), (4097, 5096, 4596));
        assert_eq!(range(&raised(&tainted, 9000, 1000, 8).unwrap(), false, 8), own);
        for (alone, epoch) in [(false, 9), (true, 9), (true, 200)] {
            let nothing = range(&tainted, alone, epoch);
            assert_eq!(take(&Counter::new(0), &nothing), Take::Exhausted);
            let raised = raised(&tainted, u64::MAX, 1000, epoch).unwrap();
            assert_eq!(
                take(&Counter::new(0), &range(&raised, alone, epoch)),
                Take::Exhausted
            );
            let again = tainted_outbound(&raised, epoch).unwrap();
            assert_eq!(
                take(&Counter::new(0), &range(&again, alone, epoch + 1)),
                Take::Exhausted
            );
        }
        assert_eq!(
            tainted_outbound(&tainted, 8),
            Ok(tainted),
            "a second loss changes nothing"
        );
        let tainted = tainted_inbound(&limits(100, 10, 7), 7).unwrap();
        let range = inbound_range(&tainted, 0, true, 9).unwrap();
        assert!(range.floor >= 100 && range.ceiling <= range.floor);
    }

    #[test]
    fn a_planned_taker_of_tainted_limits_has_what_the_owner_left_and_nobody_else_has_it() {
        let tainted = tainted_outbound(&limits(4096, 4096, 7), 7).unwrap();
        let range = |limits: &Limits, alone, epoch| outbound_range(limits, 0, alone, epoch).unwrap();
        let owner = shortened(&tainted, 1000, 7).unwrap();
        assert_eq!(range(&owner, false, 7), range(&limits(1000, 4096, 7), false, 7));
        let taker = inherited(&tainted, 1000, 4096, 8).unwrap();
        let share = range(&taker, false, 8);
        assert_eq!((share.first, share.last, share.soft), (1001, 4096, 2548));
        assert_eq!(shortened(&owner, 1000, 7), None, "it is left already");
        assert_eq!(shortened(&owner, 4096, 7), None, "nothing comes back");
        for (limits, alone, epoch) in [
            (&owner, false, 8),
            (&owner, true, 9),
            (&taker, false, 9),
            (&taker, true, 12),
        ] {
            let nothing = range(limits, alone, epoch);
            assert_eq!(take(&Counter::new(0), &nothing), Take::Exhausted, "epoch {epoch}");
        }
        // And on to the next one, which may be the first again: its own record is of an earlier epoch.
        let kept = shortened(&taker, 2000, 8).unwrap();
        let back = inherited(&owner, 2000, 4096, 9).unwrap();
        assert_eq!(
            (range(&kept, false, 8).last, range(&back, false, 9).first),
            (2000, 2001)
        );
        let untainted = limits(4096, 4096, 7);
        assert_eq!(shortened(&untainted, 1000, 7), None);
        assert_eq!(inherited(&untainted, 1000, 4096, 8), None);
        assert_eq!(inherited(&taker, 1000, 4096, 7), None, "a late word");
        let empty = inherited(&tainted, 4096, 4096, 8).unwrap();
        assert_eq!(take(&Counter::new(0), &range(&empty, true, 8)), Take::Exhausted);
    }

    #[test]
    fn limits_of_a_later_epoch_are_refused() {
        assert_eq!(outbound_range(&limits(1, 1, 8), 0, false, 7), Err(EpochBehind));
        assert_eq!(
            inbound_range(&limits(1, 1, 0), 0, false, 0xffff),
            Err(EpochBehind)
        );
        assert_eq!(distance(0, 0x7fff), Ok(0x7fff));
        assert_eq!(distance(0, 0x8000), Err(EpochBehind));
    }

    #[test]
    fn a_raise_in_a_new_epoch_keeps_what_the_takeover_skipped() {
        let old = limits(4096, 1000, 7);
        let new = raised(&old, 6000, 1000, 8).unwrap();
        assert_eq!(outbound_range(&new, 0, false, 8).unwrap().first, 4097);
        let newer = raised(&new, 9000, 1000, 8).unwrap();
        assert_eq!(outbound_range(&newer, 0, false, 8).unwrap().first, 4097);
        assert_eq!(raised(&newer, 1, 1, 7), Err(EpochBehind));
    }

    #[test]
    fn a_counter_below_the_range_is_raised_and_never_passes_the_lease() {
        let counter = Counter::new(3);
        let range = OutboundRange {
            first: 11,
            last: 12,
            soft: 0,
        };
        assert_eq!(take(&counter, &range), Take::Number(11));
        assert_eq!(take(&counter, &range), Take::Number(12));
        assert_eq!(take(&counter, &range), Take::Exhausted);
        assert_eq!(counter.get(), 12);
    }

    #[test]
    fn a_published_cell_reads_back() {
        let mut cell = LimitsCell::default();
        for limit in 1..5 {
            publish(&mut cell, limits(limit, 1, 0));
            assert_eq!(read(&cell).unwrap(), (limits(limit, 1, 0), limit));
        }
    }
}
