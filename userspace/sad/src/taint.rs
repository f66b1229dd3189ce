//! SAs that a lost standby knew, and whose numbers it may have used unseen (`datapath::limits::is_tainted`).

use crate::port::{Direction, MapOp, MapPlan};
use crate::store::{SaEntry, Sad};
use datapath::limits::{is_tainted, tainted_inbound, tainted_outbound, with_taint};
use maps_schema::sad::{Limits, spi_slot};
use model::{Epoch, EspSpi};

impl Sad {
    /// Leaves no number of these directions of these SAs to an owner after the one in `epoch`. SAs that are not here are left out, and
    /// so are those that no standby knows. Doing it twice changes nothing.
    pub fn taint(
        &mut self,
        spis: impl IntoIterator<Item = EspSpi>,
        directions: &[Direction],
        epoch: Epoch,
    ) -> MapPlan {
        let epoch = epoch.low16();
        // Limits of a later epoch are those of an owner after this one: it has its own word on them.
        self.taint_where(spis, directions, |direction, limits| match direction {
            Direction::Inbound => tainted_inbound(&limits, epoch).ok(),
            Direction::Outbound => tainted_outbound(&limits, epoch).ok(),
        })
    }

    /// As [`Sad::taint`] on a member that has the SAs from the owner's snapshot, which holds the limits as they were left there and
    /// names the SAs: what is not said is only that they are tainted.
    pub fn taint_as_told(
        &mut self,
        spis: impl IntoIterator<Item = EspSpi>,
        directions: &[Direction],
    ) -> MapPlan {
        self.taint_where(spis, directions, |_, limits| Some(with_taint(limits)))
    }

    fn taint_where(
        &mut self,
        spis: impl IntoIterator<Item = EspSpi>,
        directions: &[Direction],
        tainted: impl Fn(Direction, Limits) -> Option<Limits>,
    ) -> MapPlan {
        let mut plan = MapPlan::default();
        for spi_in in spis {
            let Some(entry) = self
                .entries
                .get_mut(&spi_slot(spi_in.0))
                .filter(|e| e.record.spi_in == spi_in && !e.local_only)
            else {
                continue;
            };
            for direction in directions {
                plan.ops
                    .extend(entry.change_limits(*direction, |limits| tainted(*direction, limits)));
            }
        }
        plan
    }

    /// Whether a lost standby may have used numbers of this direction that nobody knows of: it is never raised again.
    pub fn is_tainted(&self, spi_in: EspSpi, direction: Direction) -> bool {
        self.get(spi_in).is_some_and(|entry| match direction {
            Direction::Inbound => is_tainted(&entry.ceiling),
            Direction::Outbound => is_tainted(&entry.lease),
        })
    }
}

impl SaEntry {
    /// Puts others in the place of a direction's limits; the write that the maps need, if they are different.
    fn change_limits(
        &mut self,
        direction: Direction,
        to: impl FnOnce(Limits) -> Option<Limits>,
    ) -> Option<MapOp> {
        let (current, spi) = match direction {
            Direction::Inbound => (&mut self.ceiling, self.record.spi_in.0),
            Direction::Outbound => (&mut self.lease, self.record.spi_out.0),
        };
        let limits = to(*current).filter(|limits| limits != current)?;
        *current = limits;
        Some(MapOp::PublishLimits {
            direction,
            slot: spi_slot(self.record.spi_in.0),
            spi,
            limits,
        })
    }
}
