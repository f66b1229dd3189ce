//! What an owner leaves to whom it hands over in a planned way: final windows, and the rest of leases that nobody may raise.

use crate::port::{Direction, MapOp, MapPlan, SaCounters};
use crate::store::{SaEntry, Sad};
use datapath::limits::{EpochBehind, inbound_range, inherited, outbound_range, shortened};
use datapath::replay;
use maps_schema::sad::{FinalWindow, InboundSaRuntime, SA_LENIENT, spi_slot};
use model::{Epoch, EspSpi};

/// The rest of the lease of an SA that a lost standby knew: outbound numbers that the owner leaves to the taker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRest {
    /// Our inbound SPI: it names the SA pair.
    pub spi_in: EspSpi,
    /// The taker begins above this number.
    pub above: u64,
    /// Last number that it may use.
    pub last: u64,
}

impl Sad {
    /// The owner in `epoch` is about to hand over. Half of what is left of the lease of each of these SAs that a lost standby knew goes to
    /// the taker; the owner goes on with the other half, since traffic does not wait for the move.
    ///
    /// Once the plan is in the maps and no program runs that began before, [`LeaseRest::above`] is to be raised to the counter
    /// ([`LeaseRest::after`]): only then may the taker be told. SAs that are not here, or not tainted, are left out.
    pub fn leave_rests(
        &mut self,
        spis: impl IntoIterator<Item = EspSpi>,
        epoch: Epoch,
        counters: impl Fn(u32) -> Option<SaCounters>,
    ) -> (MapPlan, Vec<LeaseRest>) {
        let (mut plan, mut rests) = (MapPlan::default(), Vec::new());
        let epoch = epoch.low16();
        for spi_in in spis {
            let slot = spi_slot(spi_in.0);
            let Some(entry) = self.entries.get_mut(&slot).filter(|e| e.record.spi_in == spi_in) else {
                continue;
            };
            // A counter that cannot be read, or is another SA's, says nothing of what is left.
            let Some(counters) = counters(slot).filter(|c| entry.is_runtime(c)) else {
                continue;
            };
            let Ok(range) = outbound_range(&entry.lease, entry.flags, false, epoch) else {
                continue;
            };
            let used = counters.outbound.seq.max(range.first.saturating_sub(1));
            let kept = used.saturating_add(range.last.saturating_sub(used) / 2);
            let Some(short) = shortened(&entry.lease, kept, epoch) else {
                continue;
            };
            rests.push(LeaseRest {
                spi_in,
                above: short.limit,
                last: entry.lease.limit,
            });
            entry.lease = short;
            plan.ops.push(entry.publish_lease());
        }
        (plan, rests)
    }

    /// A member that takes over in `epoch` is left these. SAs that are not here, or not tainted here, are left out. Doing it twice changes
    /// nothing.
    pub fn take_rests(&mut self, rests: &[LeaseRest], epoch: Epoch) -> MapPlan {
        let mut plan = MapPlan::default();
        for rest in rests {
            let Some(entry) = self
                .entries
                .get_mut(&spi_slot(rest.spi_in.0))
                .filter(|e| e.record.spi_in == rest.spi_in)
            else {
                continue;
            };
            if let Some(lease) = inherited(&entry.lease, rest.above, rest.last, epoch.low16()) {
                entry.lease = lease;
                plan.ops.push(entry.publish_lease());
            }
        }
        plan
    }
}

impl LeaseRest {
    /// The same, where the counter had come further than half before the maps said so. `None`: nothing is left.
    pub fn after(self, counter: u64) -> Option<Self> {
        let above = self.above.max(counter);
        (above < self.last).then_some(Self { above, ..self })
    }
}

impl SaEntry {
    fn publish_lease(&self) -> MapOp {
        MapOp::PublishLimits {
            direction: Direction::Outbound,
            slot: self.slot(),
            spi: self.record.spi_out.0,
            limits: self.lease,
        }
    }

    /// The window of the owner in `epoch`, once it accepts nothing more. `runtime` is what the programs have in the SA's slot; an SA that
    /// has received nothing in this epoch has a window all the same: all up to the epoch's floor is seen.
    ///
    /// `None`: it cannot be told any more, since the taker has raised the ceiling in its own epoch before this owner received anything.
    pub fn final_window(&self, runtime: &InboundSaRuntime, alone: bool, epoch: Epoch) -> Option<FinalWindow> {
        let (spi, epoch) = (self.record.spi_in.0, epoch.low16());
        let mut window = *runtime;
        let ceiling = match inbound_range(&self.ceiling, self.flags, alone, epoch) {
            Ok(range) => {
                let lenient = self.flags & SA_LENIENT != 0;
                let floor = if lenient {
                    range.floor.min(self.reported_edge)
                } else {
                    range.floor
                };
                // What the programs do with the first packet of an epoch. Without it a window of an earlier time, when this member
                // owned the SA already, would pass for the present one.
                replay::prepare(&mut window, spi, epoch, floor);
                range.ceiling
            }
            // What the taker begins above is what this owner ended with.
            Err(EpochBehind) if window.spi == spi && window.floor_epoch == u32::from(epoch) => {
                self.ceiling.floor
            }
            Err(EpochBehind) => return None,
        };
        Some(FinalWindow {
            slot: self.slot(),
            spi,
            edge: window.edge,
            floor: ceiling,
            blocks: window.blocks,
        })
    }
}
