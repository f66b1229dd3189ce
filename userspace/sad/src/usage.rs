//! Octets and packets that an SA has carried, over takeovers: lifetimes that count them (RFC 4301 4.4.2.1).
//!
//! The programs count on each member by themselves. An owner reports its totals; a standby keeps, for each direction, what to add
//! to its own counter to get the reported total, and lowers the limits in its maps by that. So a taker goes on at the last
//! report at least, and nothing need be done at the takeover itself.

use crate::lifetime::{LifetimeKind, Lifetimes};
use crate::port::{Direction, MapOp, MapPlan, SaCounters};
use crate::store::{SaEntry, Sad};
use model::{EspSpi, SegmentId};
use serde::{Deserialize, Serialize};
use std::ops::RangeBounds;

/// Octets and packets of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Inner octets.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
}

/// Both directions of one SA pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// From the peer.
    pub inbound: Carried,
    /// To the peer.
    pub outbound: Carried,
}

/// An owner reports once more of this part of a limit is used up.
const REPORT_PART: u64 = 32;

impl Carried {
    fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            packets: self.packets.saturating_add(other.packets),
        }
    }

    fn less(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            packets: self.packets.saturating_sub(other.packets),
        }
    }

    fn highest(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.max(other.bytes),
            packets: self.packets.max(other.packets),
        }
    }

    /// What a limit of `lifetimes` makes due.
    pub(crate) fn due(self, lifetimes: &Lifetimes) -> Option<LifetimeKind> {
        let over = |used: u64, limit: u64| limit != 0 && used >= limit;
        if over(self.bytes, lifetimes.hard_bytes) || over(self.packets, lifetimes.hard_packets) {
            Some(LifetimeKind::Hard)
        } else if over(self.bytes, lifetimes.soft_bytes) || over(self.packets, lifetimes.soft_packets) {
            Some(LifetimeKind::Soft)
        } else {
            None
        }
    }

    fn is_worth_a_report(self, reported: Self, lifetimes: &Lifetimes) -> bool {
        let grown = self.less(reported);
        let part = |grown: u64, soft: u64, hard: u64| {
            let limit = if soft == 0 { hard } else { soft };
            limit != 0 && grown > limit / REPORT_PART
        };
        part(grown.bytes, lifetimes.soft_bytes, lifetimes.hard_bytes)
            || part(grown.packets, lifetimes.soft_packets, lifetimes.hard_packets)
    }
}

/// What a member's own counters have counted.
fn own(counters: &SaCounters) -> Usage {
    Usage {
        inbound: Carried {
            bytes: counters.inbound.bytes,
            packets: counters.inbound.packets,
        },
        outbound: Carried {
            bytes: counters.outbound.bytes,
            packets: counters.outbound.packets,
        },
    }
}

/// Limit in a record: what is left of `limit` where `base` was carried elsewhere. 0 is "no limit", so the least is 1.
fn left(limit: u64, base: u64) -> u64 {
    if limit == 0 {
        0
    } else {
        limit.saturating_sub(base).max(1)
    }
}

impl SaEntry {
    /// What the SA has carried, on all members that had it.
    pub fn usage(&self, counters: &SaCounters) -> Usage {
        let own = if counters.inbound.spi == self.record.spi_in.0 {
            own(counters)
        } else {
            Usage::default()
        };
        Usage {
            inbound: self.base.inbound.plus(own.inbound),
            outbound: self.base.outbound.plus(own.outbound),
        }
    }

    /// Its limits.
    pub fn lifetimes(&self) -> &Lifetimes {
        &self.lifetimes
    }

    /// Limits of both directions, as the maps are to have them.
    pub(crate) fn life_plan(&self) -> MapPlan {
        let of = [
            (Direction::Inbound, self.record.spi_in.0),
            (Direction::Outbound, self.record.spi_out.0),
        ];
        let ops = of.into_iter().map(|(direction, spi)| {
            let (bytes, packets) = self.limits_left(direction);
            MapOp::PutLife {
                direction,
                slot: self.slot(),
                spi,
                bytes,
                packets,
            }
        });
        MapPlan { ops: ops.collect() }
    }

    /// Limits of the record of a direction: octets and packets.
    pub(crate) fn limits_left(&self, direction: Direction) -> (u64, u64) {
        let base = match direction {
            Direction::Inbound => self.base.inbound,
            Direction::Outbound => self.base.outbound,
        };
        (
            left(self.lifetimes.hard_bytes, base.bytes),
            left(self.lifetimes.hard_packets, base.packets),
        )
    }
}

impl Sad {
    /// Owner: SAs of its segments whose use has grown by a part of a limit that is worth a report. Each is taken for reported;
    /// where the report is lost, the next one follows after the next part.
    pub fn usage_reports(
        &mut self,
        slots: impl RangeBounds<u32>,
        owned: impl Fn(SegmentId) -> bool,
        counters: impl Fn(u32) -> Option<SaCounters>,
    ) -> Vec<(EspSpi, Usage)> {
        let mut reports = Vec::new();
        for (slot, entry) in self.entries.range_mut(slots) {
            if !entry.lifetimes.counts_use() || !owned(entry.segment()) {
                continue;
            }
            let Some(counters) = counters(*slot) else { continue };
            let usage = entry.usage(&counters);
            let (lifetimes, told) = (&entry.lifetimes, &entry.told);
            if usage.inbound.is_worth_a_report(told.inbound, lifetimes)
                || usage.outbound.is_worth_a_report(told.outbound, lifetimes)
            {
                entry.told = usage;
                reports.push((entry.record.spi_in, usage));
            }
        }
        reports
    }

    /// All SAs of some segments whose use counts, for a member that joins.
    pub fn usage_of(
        &self,
        of: impl Fn(SegmentId) -> bool,
        counters: impl Fn(u32) -> Option<SaCounters>,
    ) -> Vec<(EspSpi, Usage)> {
        let counted = self
            .entries
            .values()
            .filter(|e| e.lifetimes.counts_use() && of(e.segment()));
        counted
            .filter_map(|e| Some((e.record.spi_in, e.usage(&counters(e.slot())?))))
            .collect()
    }

    /// The owner's report arrived. Totals never go down: a late one changes nothing.
    pub fn note_usage(
        &mut self,
        spi_in: EspSpi,
        total: Usage,
        counters: impl Fn(u32) -> Option<SaCounters>,
    ) -> MapPlan {
        let Ok(entry) = self.entry_mut_of(spi_in) else {
            return MapPlan::default();
        };
        let slot = entry.slot();
        let counted = counters(slot).unwrap_or_default();
        let known = entry.usage(&counted);
        let total = Usage {
            inbound: total.inbound.highest(known.inbound),
            outbound: total.outbound.highest(known.outbound),
        };
        entry.told = total;
        if total == known {
            return MapPlan::default();
        }
        let grown = |total: Carried, known: Carried, base: Carried| base.plus(total.less(known));
        entry.base = Usage {
            inbound: grown(total.inbound, known.inbound, entry.base.inbound),
            outbound: grown(total.outbound, known.outbound, entry.base.outbound),
        };
        entry.life_plan()
    }
}
