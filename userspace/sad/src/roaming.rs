//! SAs whose peer may turn up at another address without a word of its own: behind a NAT, without MOBIKE (RFC 7296 2.23).

use crate::port::{Direction, MapOp, MapPlan};
use crate::record;
use crate::store::{Sad, policy_of};
use model::EspSpi;

impl Sad {
    /// From now on the programs tell (or no longer tell) when authentic packets of this SA come from another source than its record
    /// names. Only the member that serves the SA needs that: it is not replicated, whoever takes over says so anew.
    pub fn may_move(&mut self, spi_in: EspSpi, may: bool) -> MapPlan {
        let lenient = self
            .get(spi_in)
            .and_then(|entry| policy_of(&self.policies, &entry.record))
            .is_some_and(|(_, policy)| policy.lenient);
        let mut plan = MapPlan::default();
        let Ok(entry) = self.entry_mut_of(spi_in) else {
            return plan;
        };
        if std::mem::replace(&mut entry.may_move, may) == may {
            return plan;
        }
        entry.flags = record::flags(&entry.record, lenient, entry.local_only, may);
        plan.ops.push(MapOp::PutFlags {
            direction: Direction::Inbound,
            slot: entry.slot(),
            spi: spi_in.0,
            flags: entry.flags,
        });
        plan
    }
}
