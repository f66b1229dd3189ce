//! Inbound halves that linger after their SA was removed (ADR 26): when they may, and when they end.

use cluster::io::Flip;
use model::{EspSpi, GroupId, IkeSpi, Instant};
use sad::LingerUpTo;

use super::entry::EntryChange;
use super::{Core, NotApplied};

/// Slots that are emptied in one turn: well below a millisecond.
const ENDS: usize = 64;

impl Core {
    /// Removes an SA. Its last packets may be under way to the programs still. `with`: what else takes effect; with its IKE SA it ends at
    /// once, unless the connection goes on: its peer has authenticated anew, and another SA protects the same traffic.
    pub(super) fn remove_child(
        &mut self,
        spi_in: EspSpi,
        now: Instant,
        with: &[EntryChange],
    ) -> Result<(), NotApplied> {
        // What could not be installed need not be removed.
        let Some(entry) = self.sad.get(spi_in) else {
            return Ok(());
        };
        let (ike_spi, slot, segment) = (entry.record.ike_spi, entry.slot(), entry.segment());
        let is_removed = |of: IkeSpi| {
            with.iter()
                .any(|change| matches!(change, EntryChange::IkeRemove(spi) if *spi == of))
        };
        // What the peer has deleted stays in the engine for a while, to answer its repetitions. Of a guest nobody here knows why it ends.
        let ends = |of: IkeSpi| is_removed(of) || self.engine.has_ended(of);
        let goes_on = !ends(ike_spi)
            || (!self.stops.contains(&entry.record.connection)
                && self.sad.is_protected_otherwise(spi_in, ends));
        let (_, side) = self.segments.get(segment.0);
        let up_to = LingerUpTo::at(self.me, self.groups.of(segment).ownership.owner, side);
        let Some(up_to) = up_to.filter(|_| goes_on) else {
            let plan = self.sad.forget([spi_in]);
            return self.execute(&plan);
        };
        let plan = self.sad.remove_lingering(spi_in, now, up_to)?;
        if let Err(error) = self.execute(&plan) {
            // Half of it may be in the maps. Nothing but an empty slot is what anybody wants now.
            let plan = self.sad.end_lingering_of(|of| of == segment);
            self.execute(&plan)?;
            return Err(error);
        }
        // What waited for a raise need not any more.
        self.run_waiting(slot);
        Ok(())
    }

    /// The moment of some is over.
    pub(super) fn linger_turn(&mut self, now: Instant) {
        if self.sad.lingering_due().is_some_and(|due| due <= now) {
            let plan = self.sad.end_lingering(now, ENDS);
            self.execute_or_log(&plan);
        }
    }

    /// The owner words of a group are about to change. First, so that no program meets the new words with what must not be there.
    pub(super) fn end_lingering_before(&mut self, flip: &Flip) {
        let before = &self.groups.get(flip.group).ownership;
        let before = (before.owner, before.epoch);
        let after = (flip.epoch.owner, flip.epoch.number);
        let legacy = flip.legacy.map(|legacy| legacy.epoch.owner);
        if !sad::may_linger_on(self.me, before, after, legacy) {
            self.end_lingering(flip.group);
        }
    }

    /// Nothing lingers in a group any more.
    pub(super) fn end_lingering(&mut self, group: GroupId) {
        let layout = self.groups.layout;
        let plan = self
            .sad
            .end_lingering_of(|segment| layout.group_of(segment) == group);
        self.execute_or_log(&plan);
    }
}
