//! Outbound numbers that jump ahead because the peer's cluster has failed over (RFC 6311 5.2).

use crate::limits::{LEASE_MIN, LimitRaise};
use crate::port::{Direction, SaCounters};
use crate::store::Sad;
use datapath::limits::{is_tainted, outbound_range, raised, sequence_max};
use maps_schema::sad::spi_slot;
use model::{Epoch, EspSpi, Instant};

impl Sad {
    /// The raise of a lease after which the next outbound number lies more than `delta` above the last one so far. Its floor is what the
    /// programs begin above once it is published; a standby that has armed the lease begins above that, so it need not know the
    /// floor. The counter itself is left to the programs.
    ///
    /// `None`: there is no such SA in use here, its numbers would run out, or they are another owner's; it is to be rekeyed.
    pub fn advance(
        &mut self,
        spi_in: EspSpi,
        delta: u64,
        now: Instant,
        epoch: Epoch,
        counters: &SaCounters,
    ) -> Option<LimitRaise> {
        let slot = spi_slot(spi_in.0);
        let entry = self.entries.get_mut(&slot)?;
        if entry.record.spi_in != spi_in || !entry.is_runtime(counters) || is_tainted(&entry.lease) {
            return None;
        }
        let epoch = epoch.low16();
        let range = outbound_range(&entry.lease, entry.flags, false, epoch).ok()?;
        let floor = counters.outbound.seq.max(range.first - 1).checked_add(delta)?;
        let step = entry.lease.step.max(LEASE_MIN);
        let bounded = if range.last == u64::MAX { 0 } else { range.last };
        // Above the present one in any case, so that it is a raise for everybody who hears of it.
        let limit = floor.saturating_add(step).max(bounded.saturating_add(1));
        if limit > sequence_max(entry.flags) {
            return None;
        }
        let mut limits = raised(&entry.lease, limit, step, epoch).ok()?;
        limits.floor = limits.floor.max(floor);
        entry.meters[0].expect(limit, now);
        Some(LimitRaise {
            slot,
            spi: spi_in,
            direction: Direction::Outbound,
            limits,
        })
    }
}
