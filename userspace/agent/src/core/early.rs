//! Packets that come before the SA that they belong to (ADR 29): its peer has answered our request and sends already, and the answer is on its
//! way, or being committed.

use dataplane::Entry;
use maps_schema::event::SlowFrame;
use maps_schema::sad::spi_slot;
use model::{ChildSaChange, EspSpi, GroupId, Instant};

use super::entry::EntryChange;
use super::slow::Frame;
use super::{Core, NotApplied};
use crate::clock;

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

    pub(super) fn early_frame(&mut self, slow: &SlowFrame, frame: Frame) {
        let spi = EspSpi(slow.spi);
        let owned = self.groups.owns(self.groups.layout.group_of_slot(slow.slot));
        if owned && self.sad.awaits(spi) && self.sad.get(spi).is_none() {
            return self.early.put(clock::now(), slow.spi, frame.ifindex, frame.octets);
        }
        // It was in the ring when the SA came, or its group went to another member.
        if !owned || self.sad.get(spi).is_some() {
            return self.run_frame(Entry::Steer, slow.slot, frame.ifindex, &frame.octets);
        }
        self.slow.lost();
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

    /// Another member owns a group now: the programs send it what waited.
    pub(super) fn pass_on_early(&mut self, group: GroupId) {
        let of_group = |spi: &u32| self.groups.layout.group_of(EspSpi(*spi).segment()) == group;
        let spis: Vec<u32> = self.early.keys().filter(of_group).collect();
        for spi in spis {
            self.run_early_of(EspSpi(spi));
        }
    }

    /// Once a second.
    pub(super) fn early_turn(&mut self, now: Instant) {
        self.early.expire(now);
        for _ in 0..std::mem::take(&mut self.early.given_up) {
            self.slow.lost();
        }
        let plan = self.sad.end_awaiting();
        self.execute_or_log(&plan);
    }
}
