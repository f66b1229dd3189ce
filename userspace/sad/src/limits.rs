//! Sizes of leases and ceilings, and when to raise them. The meaning of the numbers is in [`datapath::limits`].

use crate::port::{Direction, SaCounters};
use datapath::limits::{inbound_range, outbound_range, raised, sequence_max};
use maps_schema::sad::{Limits, SA_LOCAL_ONLY};
use model::{Epoch, EspSpi, Instant};
use std::time::Duration;

/// Smallest lease.
pub const LEASE_MIN: u64 = 1 << 12;
/// Largest lease.
pub const LEASE_MAX: u64 = 1 << 24;
/// A lease lasts about this long at the SA's rate.
pub const LEASE_TIME: Duration = Duration::from_secs(60);
/// Smallest headroom: what an idle SA would lose of its first packets after a takeover.
pub const HEADROOM_MIN: u64 = 2;
/// Largest headroom. Beyond it a burst pays round trips instead.
pub const HEADROOM_MAX: u64 = 1 << 20;

/// New limits of one direction of one SA, to be acknowledged by every in-sync standby before they apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitRaise {
    /// Slot of the SA.
    pub slot: u32,
    /// Our inbound SPI, in both directions: it names the SA pair.
    pub spi: EspSpi,
    /// Lease or ceiling.
    pub direction: Direction,
    /// The limits. `floor` is carried over from the record that the raise was computed from.
    pub limits: Limits,
}

/// Measured behaviour of one direction, kept by `sad` between scans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meter {
    seen: u64,
    at: Option<Instant>,
    /// Packets per second: of the last intervals, halved weight per interval.
    rate: u64,
    raised_at: Option<Instant>,
    /// Highest number that a raise is under way for; a second wish below it is not repeated before `RETRY`.
    pending: Option<(u64, Instant)>,
}

/// A raise that was neither applied nor refused is wished again after this time.
const RETRY: Duration = Duration::from_millis(250);
/// A ceiling is not lowered sooner after a raise: a burst has pauses.
const LOWER_AFTER: Duration = Duration::from_millis(700);
/// Headroom that is not worth lowering.
const LOWER_ROOM: u64 = 8;
/// Shortest interval that a rate is measured over.
const INTERVAL: Duration = Duration::from_millis(50);

impl Meter {
    /// Takes note of a counter. Returns the rate, packets per second.
    pub(crate) fn observe(&mut self, counter: u64, now: Instant) -> u64 {
        let Some(at) = self.at else {
            (self.seen, self.at) = (counter, Some(now));
            return self.rate;
        };
        let elapsed = now.since(at);
        if elapsed < INTERVAL {
            return self.rate;
        }
        let packets = counter.saturating_sub(self.seen);
        let fresh = u128::from(packets) * 1_000_000_000 / elapsed.as_nanos();
        let fresh = u64::try_from(fresh).unwrap_or(u64::MAX);
        self.rate = if fresh > self.rate {
            fresh
        } else {
            self.rate / 2 + fresh / 2
        };
        (self.seen, self.at) = (counter, Some(now));
        self.rate
    }

    /// Whether a raise that covers `needed` is under way.
    fn is_pending(&self, needed: u64, now: Instant) -> bool {
        self.pending
            .is_some_and(|(limit, at)| needed <= limit && now.since(at) < RETRY)
    }

    /// Whether it has come to rest: no rate that is still going down, and no wish that may have to be repeated.
    pub(crate) fn is_at_rest(&self, now: Instant) -> bool {
        let waits = self.pending.is_some_and(|(_, at)| now.since(at) < RETRY);
        self.rate == 0 && !waits
    }

    /// A raise to this limit is under way: none below it is wished for meanwhile.
    pub(crate) fn expect(&mut self, limit: u64, now: Instant) {
        self.pending = Some((limit, now));
    }

    /// The wish was acknowledged and applied.
    pub(crate) fn applied(&mut self, now: Option<Instant>) {
        self.pending = None;
        if now.is_some() {
            self.raised_at = now;
        }
    }
}

/// Size of the next lease: a minute at the measured rate; doubled while leases are used up in less than half of that
/// (the measurement lags behind a burst).
pub(crate) fn lease_step(current: u64, rate: u64, since_last_raise: Option<Duration>) -> u64 {
    let wanted = rate.saturating_mul(LEASE_TIME.as_secs());
    let grown = match since_last_raise {
        Some(elapsed) if elapsed < LEASE_TIME / 4 => current.saturating_mul(2),
        _ => current / 2,
    };
    wanted.max(grown).clamp(LEASE_MIN, LEASE_MAX)
}

/// Size of the next headroom: what arrives while a failure is detected; doubled when the ceiling was hit or raised
/// again within the detection time.
pub(crate) fn headroom_step(
    current: u64,
    rate: u64,
    detection: Duration,
    overshoot: Option<u64>,
    since_last_raise: Option<Duration>,
) -> u64 {
    let wanted = u128::from(rate) * detection.as_nanos() / 1_000_000_000;
    let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
    let grown = match (overshoot, since_last_raise) {
        (Some(over), Some(elapsed)) if elapsed < detection * 4 => {
            current.saturating_mul(2).max(over.min(current * 4))
        }
        (Some(_), _) | (None, None) => current,
        (None, Some(elapsed)) if elapsed < detection / 4 => current.saturating_mul(2),
        (None, Some(_)) => current / 2,
    };
    wanted.max(grown).clamp(HEADROOM_MIN, HEADROOM_MAX)
}

/// What the owner knows of one direction when it considers a raise.
#[derive(Clone, Copy)]
pub(crate) struct Situation<'a> {
    pub slot: u32,
    pub spi: EspSpi,
    pub flags: u8,
    pub current: &'a Limits,
    pub epoch: Epoch,
    pub now: Instant,
    pub detection: Duration,
}

impl Situation<'_> {
    /// A raise of the lease, when half of it is spent.
    pub(crate) fn lease(&self, meter: &mut Meter, counters: &SaCounters) -> Option<LimitRaise> {
        if self.flags & SA_LOCAL_ONLY != 0 {
            return None;
        }
        let seq = counters.outbound.seq;
        let range = outbound_range(self.current, self.flags, false, self.epoch.low16()).ok()?;
        let rate = meter.observe(seq, self.now);
        // A taker's lease is not touched before it is used: an idle SA costs nothing, also after a takeover.
        if seq < range.soft.max(range.first) {
            return None;
        }
        let step = lease_step(
            self.current.step,
            rate,
            meter.raised_at.map(|at| self.now.since(at)),
        );
        let limit = seq
            .saturating_add(step)
            .max(range.last)
            .min(sequence_max(self.flags));
        if limit <= range.last {
            return None;
        }
        self.raise(meter, Direction::Outbound, seq.saturating_add(1), limit, step)
    }

    /// A raise of the ceiling, when half of the headroom is used or a packet waits above it.
    pub(crate) fn ceiling(
        &self,
        meter: &mut Meter,
        counters: &SaCounters,
        needed: Option<u64>,
    ) -> Option<LimitRaise> {
        if self.flags & SA_LOCAL_ONLY != 0 {
            return None;
        }
        let range = inbound_range(self.current, self.flags, false, self.epoch.low16()).ok()?;
        let edge = counters.inbound.edge.max(range.floor);
        let rate = meter.observe(counters.inbound.edge, self.now);
        let overshoot = needed.filter(|n| *n > range.ceiling).map(|n| n - range.ceiling);
        let used = counters.inbound.edge > range.floor && edge >= range.soft;
        if overshoot.is_none() && !used {
            return None;
        }
        let since = meter.raised_at.map(|at| self.now.since(at));
        let step = headroom_step(self.current.step, rate, self.detection, overshoot, since);
        let needed = edge.saturating_add(1).max(needed.unwrap_or(0));
        let limit = needed.saturating_add(step).max(range.ceiling);
        let limit = limit.min(sequence_max(self.flags));
        if limit <= range.ceiling {
            return None;
        }
        self.raise(meter, Direction::Inbound, needed, limit, step)
    }

    /// Whether the ceiling will be lowered as soon as the SA has been quiet for long enough.
    pub(crate) fn is_far_above(&self, counters: &SaCounters) -> bool {
        if self.flags & SA_LOCAL_ONLY != 0 || self.current.epoch != u32::from(self.epoch.low16()) {
            return false;
        }
        let range = inbound_range(self.current, self.flags, false, self.epoch.low16());
        range.is_ok_and(|range| {
            let edge = counters.inbound.edge.max(range.floor);
            range.ceiling.saturating_sub(edge) > LOWER_ROOM * 4
        })
    }

    /// Whether the limits can be judged at all: a record of a later epoch than the segment's says nothing yet.
    pub(crate) fn is_behind(&self) -> bool {
        outbound_range(self.current, self.flags, false, self.epoch.low16()).is_err()
    }

    /// A ceiling nearer to the edge, where the present one is of a time when the SA was much faster.
    pub(crate) fn lower_ceiling(&self, meter: &Meter, counters: &SaCounters) -> Option<LimitRaise> {
        let settled =
            meter.pending.is_none() && meter.raised_at.is_none_or(|at| self.now.since(at) >= LOWER_AFTER);
        // Only within the epoch of the limits: a takeover's arithmetic is not to be touched.
        if !settled || self.flags & SA_LOCAL_ONLY != 0 || self.current.epoch != u32::from(self.epoch.low16())
        {
            return None;
        }
        let range = inbound_range(self.current, self.flags, false, self.epoch.low16()).ok()?;
        let edge = counters.inbound.edge.max(range.floor);
        let wanted = u128::from(meter.rate) * self.detection.as_nanos() / 1_000_000_000;
        let step = u64::try_from(wanted)
            .unwrap_or(u64::MAX)
            .clamp(HEADROOM_MIN, HEADROOM_MAX);
        let room = range.ceiling.saturating_sub(edge);
        if room <= step.max(LOWER_ROOM).saturating_mul(4) {
            return None;
        }
        let limits = raised(
            self.current,
            edge.saturating_add(step * 2),
            step,
            self.epoch.low16(),
        )
        .ok()?;
        Some(LimitRaise {
            slot: self.slot,
            spi: self.spi,
            direction: Direction::Inbound,
            limits,
        })
    }

    /// Limits in the current epoch for a direction that has none now, or has passed them; `None` where there are limits and the
    /// counter lies within.
    pub(crate) fn cap(&self, direction: Direction, alone: bool, counters: &SaCounters) -> Option<LimitRaise> {
        let epoch = self.epoch.low16();
        let (used, last, minimum) = match direction {
            Direction::Outbound => {
                let range = outbound_range(self.current, self.flags, alone, epoch).ok()?;
                (counters.outbound.seq.max(range.first - 1), range.last, LEASE_MIN)
            }
            Direction::Inbound => {
                let range = inbound_range(self.current, self.flags, alone, epoch).ok()?;
                (
                    counters.inbound.edge.max(range.floor),
                    range.ceiling,
                    HEADROOM_MIN,
                )
            }
        };
        if last != u64::MAX && used <= last {
            return None;
        }
        let step = self.current.step.max(minimum);
        let limits = raised(self.current, used.saturating_add(step), step, epoch).ok()?;
        Some(LimitRaise {
            slot: self.slot,
            spi: self.spi,
            direction,
            limits,
        })
    }

    fn raise(
        &self,
        meter: &mut Meter,
        direction: Direction,
        needed: u64,
        limit: u64,
        step: u64,
    ) -> Option<LimitRaise> {
        if meter.is_pending(needed, self.now) {
            return None;
        }
        let limits = raised(self.current, limit, step, self.epoch.low16()).ok()?;
        meter.pending = Some((limit, self.now));
        Some(LimitRaise {
            slot: self.slot,
            spi: self.spi,
            direction,
            limits,
        })
    }
}
