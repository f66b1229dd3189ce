//! SPIs that were given to peers in requests of ours (ADR 29): a peer has its SA as soon as it answers, and may send before its answer is
//! used here (RFC 7296 2.8). The programs give such packets to the agent, which keeps them until the SA is installed.

use crate::port::{MapOp, MapPlan};
use crate::store::Sad;
use maps_schema::sad::spi_slot;
use model::EspSpi;

impl Sad {
    /// The request that names this SPI is about to leave. Nothing to do for one that is installed, not reserved here, or awaited already.
    pub fn await_spi(&mut self, spi: EspSpi) -> MapPlan {
        let reserved = self.spis.holds(spi) && self.get(spi).is_none();
        if !reserved || !self.awaited.insert(spi) {
            return MapPlan::default();
        }
        let slot = spi_slot(spi.0);
        MapPlan {
            ops: vec![MapOp::PutAwaited { slot, spi: spi.0 }],
        }
    }

    /// Whether packets with this SPI are to wait.
    pub fn awaits(&self, spi: EspSpi) -> bool {
        self.awaited.contains(&spi) && self.spis.holds(spi)
    }

    /// Nobody waits for the SPIs of exchanges that have come to nothing. As many steps as there are unfinished exchanges.
    pub fn end_awaiting(&mut self) -> MapPlan {
        let over: Vec<_> = self
            .awaited
            .iter()
            .filter(|spi| !self.spis.holds(**spi))
            .copied()
            .collect();
        let mut plan = MapPlan::default();
        for spi in over {
            plan.extend(self.await_no_more(spi));
        }
        plan
    }

    /// Nobody waits for this SPI: what could be written of its SA is not enough to serve it.
    pub fn await_no_more(&mut self, spi: EspSpi) -> MapPlan {
        self.awaited.remove(&spi);
        let slot = spi_slot(spi.0);
        MapPlan {
            ops: vec![MapOp::ClearAwaited { slot, spi: spi.0 }],
        }
    }
}
