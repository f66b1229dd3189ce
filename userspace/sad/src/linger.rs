//! Inbound halves that stay for a moment after their SA was removed (ADR 26): its last packets may be under way to the programs still,
//! while the agent has handled the Delete already. Only a member that served the SA when it was removed lets its half linger, and
//! not beyond that time of service.

use crate::lifetime::LifetimeKind;
use crate::port::{Direction, MapOp, MapPlan};
use crate::prefix::{number, split};
use crate::spd::Holder;
use crate::store::{SaEntry, Sad, SadError, index_of};
use datapath::limits::is_tainted;
use maps_schema::sad::{SA_LOCAL_ONLY, SA_MAY_MOVE};
use maps_schema::segment::{LEGACY_OPEN, SideWord};
use model::{Epoch, EspSpi, IkeSpi, Instant, MemberId, SegmentId};
use std::time::Duration;

/// How long. A packet overtaken by its peer's Delete waits for a CPU: in a cpumap's kernel thread, for NAPI, in a ring to the agent. With
/// some thirty processes for each CPU that was up to a tenth of a second. Ten times as much, and still too short for an SA's slot and
/// keys to be missed by anybody. (strongSwan waits for five seconds, `delete_rekeyed_delay`.)
pub const LINGER: Duration = Duration::from_secs(1);

/// Which numbers may still be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LingerUpTo {
    /// Any: this member is the owner, and the removal is committed. A ceiling is a promise to whoever takes over, and nobody who could
    /// take over has the SA any more.
    End,
    /// Up to the ceiling: in a planned handover another member serves the numbers above.
    Ceiling,
}

impl LingerUpTo {
    /// What member `me` may go on accepting of an SA whose removal takes effect; `None`: nothing, and it removes the SA at once. A standby
    /// has received nothing, so nothing can be under way in it.
    pub fn at(me: MemberId, owner: Option<MemberId>, side: SideWord) -> Option<Self> {
        if owner == Some(me) {
            return Some(Self::End);
        }
        let gives = side.legacy_owner == me.0 && side.legacy_phase == LEGACY_OPEN;
        gives.then_some(Self::Ceiling)
    }
}

/// Whether what lingers at member `me` may stay when a segment's words change from one owner and epoch to another (`legacy`: whose part in
/// a handover they name): it goes on in the same epoch, or it hands over, and serves its part to the end under the rights of that
/// epoch. Otherwise [`Sad::end_lingering_of`] comes before the words.
pub fn may_linger_on(
    me: MemberId,
    before: (Option<MemberId>, Epoch),
    after: (MemberId, Epoch),
    legacy: Option<MemberId>,
) -> bool {
    if after.0 == me {
        before == (Some(me), after.1)
    } else {
        legacy == Some(me)
    }
}

pub(crate) struct Lingering {
    entry: SaEntry,
    until: Instant,
}

impl Sad {
    /// Removes an SA as [`model::ChildSaChange::Remove`] does, but for what comes in: the outbound half ends at once, the inbound one
    /// stays in the maps until [`Sad::end_lingering`], no longer than the SA may live. One that has reached a hard limit goes at once.
    ///
    /// # Errors
    /// [`SadError::Unknown`].
    pub fn remove_lingering(
        &mut self,
        spi: EspSpi,
        now: Instant,
        up_to: LingerUpTo,
    ) -> Result<MapPlan, SadError> {
        let entry = self.get(spi).ok_or(SadError::Unknown(spi))?;
        let hard = entry.lifetimes.hard;
        let end = (!hard.is_zero()).then(|| entry.installed + hard);
        let until = (now + LINGER).min(end.unwrap_or(now + LINGER));
        if until <= now || entry.reported == Some(LifetimeKind::Hard) {
            return Ok(self.remove(spi));
        }
        let slot = entry.slot();
        // What a lost standby may have accepted above a tainted ceiling nobody knows.
        let open = up_to == LingerUpTo::End && !is_tainted(&entry.ceiling);
        // Nobody asks any more where its peer is.
        let flags = entry.flags & !SA_MAY_MOVE | if open { SA_LOCAL_ONLY } else { 0 };
        let mut plan = self.spd.remove(Holder::Slot(slot));
        if let Some(mut entry) = self.take(slot) {
            entry.flags = flags;
            self.lingering_due.insert((until, slot));
            self.lingering.insert(slot, Lingering { entry, until });
        }
        plan.extend(self.siblings.plan(self.settings.cpus));
        plan.ops.push(MapOp::ClearOutbound { slot });
        plan.ops.push(MapOp::PutFlags {
            direction: Direction::Inbound,
            slot,
            spi: spi.0,
            flags,
        });
        Ok(plan)
    }

    /// Whether another SA protects the same traffic with the same peer: the one that is about to go was replaced, together with its IKE
    /// SA. `ends`: IKE SAs that end at the same time. Only what stands at the prefixes of this SA is looked at.
    pub fn is_protected_otherwise(&self, spi: EspSpi, ends: impl Fn(IkeSpi) -> bool) -> bool {
        let Some(entry) = self.get(spi) else {
            return false;
        };
        let is_other = |slot: u32| {
            let other = self.by_slot(slot).map(|other| &other.record);
            other.is_some_and(|other| {
                let this = &entry.record;
                other.ike_spi != this.ike_spi
                    && !ends(other.ike_spi)
                    && (&other.connection, &other.child) == (&this.connection, &this.child)
                    && other.remote.ip() == this.remote.ip()
            })
        };
        let selectors = entry.pairs.iter().map(|(_, remote)| remote);
        let mut prefixes = selectors.flat_map(|ts| split(number(ts.first), number(ts.last)));
        prefixes.all(|prefix| self.spd.slots_at(prefix).any(is_other))
    }

    /// When the next one goes.
    pub fn lingering_due(&self) -> Option<Instant> {
        self.lingering_due.first().map(|(until, _)| *until)
    }

    /// Those whose moment is over go, at most so many.
    pub fn end_lingering(&mut self, now: Instant, most: usize) -> MapPlan {
        let due = self.lingering_due.iter().take_while(|(until, _)| *until <= now);
        let due = due.take(most).map(|(_, slot)| *slot);
        self.end_these(due.collect())
    }

    /// Those of some segments go at once: this member serves them no more, or in another epoch.
    pub fn end_lingering_of(&mut self, of: impl Fn(SegmentId) -> bool) -> MapPlan {
        self.end_lingering_where(|entry| of(entry.segment()))
    }

    /// SAs that are removed, and whose inbound half lingers.
    pub fn lingering(&self) -> impl Iterator<Item = &SaEntry> {
        self.lingering.values().map(|lingering| &lingering.entry)
    }

    /// Whether an inbound half lingers in this slot that may accept numbers up to its ceiling only. What is above waits for nothing.
    pub fn lingers_below_ceiling(&self, slot: u32) -> bool {
        let lingering = self.lingering.get(&slot);
        lingering.is_some_and(|lingering| lingering.entry.flags & SA_LOCAL_ONLY == 0)
    }

    /// The names of connections have changed places: what counts for another one now goes.
    pub(crate) fn end_lingering_renamed(&mut self) -> MapPlan {
        let names = self.connections.clone();
        self.end_lingering_where(|entry| index_of(&names, &entry.record.connection) != entry.connection)
    }

    /// Another SA has come into this slot: it is emptied first.
    pub(crate) fn end_lingering_in(&mut self, slot: u32) -> MapPlan {
        self.end_these(vec![slot])
    }

    /// The slot of the one that has lingered longest in a segment without a free slot may be given out. It goes when the new SA comes.
    pub(crate) fn yield_oldest(&mut self, segment: SegmentId) -> bool {
        let lingering = self
            .lingering_due
            .iter()
            .filter_map(|(_, slot)| self.lingering.get(slot));
        let spis = lingering.map(|lingering| lingering.entry.record.spi_in);
        let mut of_segment = spis.filter(|spi| spi.segment() == segment);
        // What was given out before holds its slot no more.
        let oldest = of_segment.find(|spi| self.spis.holds(*spi));
        oldest.is_some_and(|spi| self.spis.release(spi))
    }

    /// The same for one slot.
    pub(crate) fn yield_slot(&mut self, slot: u32) {
        if let Some(lingering) = self.lingering.get(&slot) {
            self.spis.release(lingering.entry.record.spi_in);
        }
    }

    fn end_lingering_where(&mut self, goes: impl Fn(&SaEntry) -> bool) -> MapPlan {
        let slots = self.lingering.iter().filter(|(_, l)| goes(&l.entry));
        let slots = slots.map(|(slot, _)| *slot).collect();
        self.end_these(slots)
    }

    fn end_these(&mut self, slots: Vec<u32>) -> MapPlan {
        let mut plan = MapPlan::default();
        for slot in slots {
            let Some(Lingering { entry, until }) = self.lingering.remove(&slot) else {
                continue;
            };
            self.lingering_due.remove(&(until, slot));
            let spi = entry.record.spi_in;
            if self.get(spi).is_none() {
                self.spis.release(spi);
            }
            plan.ops.push(MapOp::ClearSlot { slot });
        }
        plan
    }
}
