//! One look at one SA: everything that its counters call for.

use crate::lifetime::LifetimeEvent;
use crate::limits::LimitRaise;
use crate::port::{Direction, SaCounters};
use crate::store::{SaEntry, Sad};
use maps_schema::sad::SA_LOCAL_ONLY;
use model::{Epoch, Instant};
use std::time::Duration;

/// What a look at an SA came to.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Raises of its lease and of its ceiling.
    pub raises: Vec<LimitRaise>,
    /// A ceiling that lies far above what the SA needs; see [`Sad::wants_lowerings`].
    pub lowering: Option<LimitRaise>,
    /// It has reached a limit of age or number.
    pub due: Option<LifetimeEvent>,
    /// Nothing comes of another look before its counters or its limits change.
    pub at_rest: bool,
}

impl Sad {
    /// Looks at one SA of a segment that this member owns in `epoch`. `None` where there is no SA in the slot.
    ///
    /// Whoever calls this for SAs whose counters moved, and again until they are at rest, need not look at the others.
    pub fn look(&mut self, slot: u32, now: Instant, epoch: Epoch, counters: &SaCounters) -> Option<Look> {
        let detection = self.settings.detection;
        let entry = self.entries.get_mut(&slot)?;
        if !entry.is_runtime(counters) {
            // The window is not this SA's so far: nothing has been received or sent by it.
            let due = entry.due(now, &SaCounters::default());
            self.note_age(slot);
            return Some(Look {
                due,
                at_rest: true,
                ..Look::default()
            });
        }
        let mut look = Look::default();
        for direction in [Direction::Outbound, Direction::Inbound] {
            look.raises
                .extend(entry.wish(direction, None, now, epoch, detection, counters));
        }
        look.lowering = entry.lowering(now, epoch, detection, counters);
        look.due = entry.due(now, counters);
        look.at_rest = entry.is_at_rest(now, epoch, detection, counters);
        if look.due.is_some() {
            self.note_age(slot);
        }
        Some(look)
    }
}

impl SaEntry {
    fn is_at_rest(&self, now: Instant, epoch: Epoch, detection: Duration, counters: &SaCounters) -> bool {
        let lease = self.situation(&self.lease, now, epoch, detection);
        let ceiling = self.situation(&self.ceiling, now, epoch, detection);
        if self.flags & SA_LOCAL_ONLY != 0 || lease.is_behind() || ceiling.is_behind() {
            return true;
        }
        self.meters.iter().all(|meter| meter.is_at_rest(now)) && !ceiling.is_far_above(counters)
    }
}
