//! Packets that come before the SA that they belong to (ADR 29): its peer has answered our request and sends already, and the answer is on its
//! way, or being committed.

use dataplane::Entry;
use maps_schema::event::SlowHead;
use maps_schema::sad::spi_slot;
use model::{ChildSaChange, EspSpi, Instant};
use std::time::Duration;

use super::entry::EntryChange;
use super::slow::Frame;
use super::{Core, NotApplied};
use crate::clock;

/// Frames that were in the ring when their SA came, in a second: were the maps other than `sad` believes, each would come back at once.
pub(super) const AGAIN: u32 = 1024;
/// Some hundred IKE SAs are adopted within this time.
const ADOPTED_WITHIN: Duration = Duration::from_millis(300);

impl Core {
    /// An entry is committed, and its messages are about to leave: whose answers bring SAs, the programs are to wait for.
    pub(super) fn await_answers(&mut self, changes: &[EntryChange]) {
        let mut plan = sad::MapPlan::default();
        for (spi, _) in changes.iter().filter_map(EntryChange::as_put) {
            for promised in self.engine.pending_esp_spis_of(spi) {
                // One on another member's segment is served there, and not reserved here.
                plan.extend(self.sad.await_spi(promised));
            }
        }
        self.execute_or_log(&plan);
    }

    pub(super) fn early_frame(&mut self, slow: &SlowHead, frame: Frame) {
        let spi = EspSpi(slow.spi);
        let owned = self.groups.owns(self.groups.layout.group_of_slot(slow.slot));
        if !owned || self.sad.awaits(spi) {
            let octets = frame.octets;
            self.early.put(clock::now(), slow.spi, frame.ifindex, octets);
        } else if self.sad.get(spi).is_some() && self.early_again > 0 {
            // It was in the ring when the SA came.
            self.early_again -= 1;
            self.run_frame(Entry::Steer, slow.slot, frame.ifindex, &frame.octets);
        } else {
            self.slow.lost();
        }
    }

    /// SAs came up: what waited for them goes through the programs again.
    pub(super) fn run_early(&mut self, changes: &[EntryChange], failed: &[(EspSpi, NotApplied)]) {
        for (spi, _) in failed {
            // What waits would come back again and again.
            let plan = self.sad.await_no_more(*spi);
            self.execute_or_log(&plan);
        }
        if self.early.is_empty() {
            return;
        }
        for change in changes {
            if let EntryChange::Child(ChildSaChange::Install { record, .. }) = change {
                self.run_early_of(record.spi_in);
            }
        }
    }

    fn run_early_of(&mut self, spi: EspSpi) {
        for (ifindex, octets) in self.early.take(spi.0) {
            self.run_frame(Entry::Steer, spi_slot(spi.0), ifindex, &octets);
        }
    }

    /// What waited in groups that are other members' now: the programs send it there. Not at once, since the new owner goes on with the
    /// exchange only when it has adopted it.
    fn pass_on_early(&mut self, now: Instant) {
        let gone = |spi: &u32| {
            let group = self.groups.of(EspSpi(*spi).segment());
            !self.groups.owns(group.id) && now.since(group.since) >= ADOPTED_WITHIN
        };
        let spis: Vec<u32> = self.early.keys().filter(gone).collect();
        for spi in spis {
            self.run_early_of(EspSpi(spi));
        }
    }

    /// Once a second.
    pub(super) fn early_turn(&mut self, now: Instant) {
        self.early_again = AGAIN;
        self.pass_on_early(now);
        self.early.expire(now);
        for _ in 0..std::mem::take(&mut self.early.given_up) {
            self.slow.lost();
        }
        let plan = self.sad.end_awaiting();
        self.execute_or_log(&plan);
    }
}
