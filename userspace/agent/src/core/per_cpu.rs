//! Child SAs per CPU (RFC 9611): asked for when a CPU has traffic and no SA of its own.

use std::time::Duration;

use ike::{Command, Resource};
use model::EspSpi;

use super::Core;
use crate::clock;

/// A Child SA for a CPU is asked for no sooner again: the peer may have refused it, or deleted it because it was idle, and
/// RFC 9611 4 warns of two peers that create and delete without end.
const AGAIN: Duration = Duration::from_secs(60);

impl Core {
    /// The shared SA is gone.
    pub(super) fn forget_asked(&mut self, beside: EspSpi) {
        let of_it = self.asked.range((beside, 0)..=(beside, u32::MAX));
        for key in of_it.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.asked.remove(&key);
        }
    }

    /// A packet used the shared SA in `slot` on a CPU that has none of its own.
    pub(super) fn acquire_for_cpu(&mut self, slot: u32, cpu: u32) {
        let Some(entry) = self.sad.by_slot(slot) else {
            return;
        };
        let (beside, ike_spi) = (entry.record.spi_in, entry.record.ike_spi);
        let served = self.groups.serves_segment(entry.segment());
        // The ring may hold what was reported before the SA came up, or the shared one went.
        if !served || !self.sad.is_shared(beside) || self.sad.has_own(slot, cpu) {
            return;
        }
        let (Ok(number), now) = (u16::try_from(cpu), clock::now()) else {
            return;
        };
        let resource = Resource::of_owner(number);
        // Where only members have their own, a member's CPUs share.
        let mut connections = self.engine.config().connections.iter();
        let wanted = connections.find(|c| c.name == entry.record.connection);
        if !wanted.is_some_and(|c| c.resources.contains(&resource)) {
            return;
        }
        let asked = self.asked.get(&(beside, cpu));
        if asked.is_some_and(|at| now.since(*at) < AGAIN) {
            return;
        }
        self.asked.insert((beside, cpu), now);
        self.adopt_first(ike_spi);
        self.engine_command(Command::CreateResourceChild { beside, resource });
    }
}
