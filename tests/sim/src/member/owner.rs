//! Ownership: owner words, the engine's life, and the windows of a planned handover.

use super::{Cx, Member, Ownership};
use crate::sabotage::Sabotage;
use cluster::io::{Flip, LegacyPhase};
use maps_schema::sad::{FinalWindow, spi_slot};
use maps_schema::segment::{
    LEGACY_GIVEN, LEGACY_HOLDING, LEGACY_NONE, LEGACY_OPEN, OwnerWord, SEGMENT_ALONE, SideWord,
};
use model::{EspSpi, GroupId};
use zerocopy::{FromBytes, IntoBytes};

impl Member {
    /// Writes the owner and side words of a group's segments.
    pub(super) fn flip(&mut self, cx: &mut Cx<'_>, flip: &Flip) {
        let (owner, mut epoch) = (flip.epoch.owner, flip.epoch.number);
        if self.sabotage == Some(Sabotage::EpochNotRaised) && epoch.0 > 1 {
            epoch.0 = 1;
        }
        let word = OwnerWord {
            owner: owner.0,
            epoch: epoch.low16(),
            valid_until_ms: flip.valid_until.millis(),
        };
        let legacy = flip.legacy.map_or((0, LEGACY_NONE, 0), |l| {
            let phase = match l.phase {
                LegacyPhase::Open => LEGACY_OPEN,
                LegacyPhase::Holding => LEGACY_HOLDING,
                LegacyPhase::Given => LEGACY_GIVEN,
            };
            (l.epoch.owner.0, phase, l.epoch.number.low16())
        });
        let side = SideWord {
            successor: flip.successor.map_or(0, |m| m.0),
            flags: if flip.alone { SEGMENT_ALONE } else { 0 },
            legacy_owner: legacy.0,
            legacy_phase: legacy.1,
            legacy_epoch: legacy.2,
        };
        let (group, layout) = (flip.group, self.layout);
        let before = self.of(group);
        let legacy_owner = flip.legacy.map(|legacy| legacy.epoch.owner);
        if !sad::may_linger_on(
            self.me,
            (before.owner, before.epoch),
            (owner, epoch),
            legacy_owner,
        ) {
            let plan = self
                .sad
                .end_lingering_of(|segment| layout.group_of(segment) == group);
            self.execute(&plan);
        }
        let segments: Vec<_> = self.layout.segments(group).collect();
        for segment in segments {
            self.plane.flip(segment.0, word, side);
        }
        let now = self.of(group);
        if now.epoch != epoch {
            let layout = self.layout;
            self.evidence
                .retain(|spi| layout.group_of_slot(maps_schema::sad::spi_slot(spi.0)) != group);
            self.before.insert(group, now);
            self.sad.set_served(layout.segments(group), owner == self.me);
        }
        self.ownership.insert(
            group,
            Ownership {
                owner: Some(owner),
                epoch,
                alone: flip.alone,
            },
        );
        cx.trace.note(cx.now, "flip", [u64::from(self.me.0), word.pack()], || {
            format!(
                "member {}: group {group}: owner {owner} epoch {} until {} ms, successor {:?}, alone {}, legacy {:?}",
                self.me,
                epoch,
                flip.valid_until.millis(),
                flip.successor.map(|m| m.0),
                flip.alone,
                flip.legacy
            )
        });
        cx.watch.flipped(cx.now, self.me, self.life, flip);
        if !self.owns(group) {
            self.pass_on(cx, group);
        } else if flip.legacy.is_none() {
            let layout = self.layout;
            self.run_held(cx, |slot| layout.group_of_slot(slot) == group);
        }
    }

    /// This member serves now: the engine takes all mirrored IKE SAs and sends what is outstanding again.
    pub(super) fn resume_ike(&mut self, cx: &mut Cx<'_>, group: GroupId) {
        self.release_engine(group);
        self.serving.insert(group);
        let mut lost = 0;
        let records: Vec<_> = self
            .mirror
            .iter()
            .filter(|(spi, _)| self.group_of(**spi) == group)
            .map(|(spi, record)| (*spi, record.clone()))
            .collect();
        for (spi, record) in &records {
            if self.engine.adopt(cx.now, *spi, record).is_err() {
                lost += 1;
            }
        }
        cx.trace.note(
            cx.now,
            "resume",
            [u64::from(self.me.0), records.len() as u64],
            || {
                format!(
                    "member {} serves group {group}: {} IKE SAs ({lost} not readable), {} Child SAs in all",
                    self.me,
                    records.len(),
                    self.sad.len()
                )
            },
        );
        self.adopt_guests(cx, group);
        let adopted = self
            .engine
            .spis()
            .into_iter()
            .filter(|spi| self.group_of(*spi) == group);
        let mut promised: Vec<EspSpi> = adopted
            .flat_map(|spi| self.engine.pending_esp_spis_of(spi))
            .collect();
        promised.sort_unstable();
        for spi in promised {
            if self.group_of_child(spi) == group && self.sad.hold_spi(spi).is_err() {
                cx.trace.note(cx.now, "promised", [u64::from(spi.0), 0], || {
                    format!(
                        "member {}: the slot of {spi}, promised to a peer, is in use",
                        self.me
                    )
                });
            }
        }
        let layout = self.layout;
        let children = self.sad.iter().filter(|e| layout.group_of(e.segment()) == group);
        cx.watch.resumed(cx.now, self.me, self.life, group, children);
        let now = cx.now;
        self.with_engine(cx, |engine, around| engine.resume(now, around));
        self.guests_are_known(group);
        self.redial.clear();
        self.withholding.remove(&group);
        self.suspects_begun.insert(group);
    }

    /// This member serves the group no more.
    pub(super) fn suspend_ike(&mut self, group: GroupId) {
        self.release_engine(group);
        self.guests.machine.suspend(group);
        self.serving.remove(&group);
        self.forks.forget(group);
        let layout = self.layout;
        self.redial.clear();
        self.contacts
            .retain(|spi, _| layout.group_of(spi.segment()) != group);
        self.reported
            .retain(|spi, _| layout.group_of_slot(maps_schema::sad::spi_slot(spi.0)) != group);
    }

    fn release_engine(&mut self, group: GroupId) {
        let spis: Vec<_> = self.engine.export().into_iter().map(|(spi, _)| spi).collect();
        for spi in spis {
            if self.group_of(spi) == group {
                self.engine.release(spi);
            }
        }
        self.pending.retain(|p| p.group != group);
        self.guests.give_up(group);
        let layout = self.layout;
        if self.sabotage != Some(Sabotage::ReservationsKept) {
            self.sad
                .release_unused_spis(|segment| layout.group_of(segment) == group);
        }
    }

    /// Nothing of the group is known here any more.
    pub(super) fn forget(&mut self, group: GroupId) {
        let layout = self.layout;
        self.mirror
            .retain(|spi, _| layout.group_of(spi.segment()) != group);
        self.suspects
            .retain(|spi, _| layout.group_of_slot(maps_schema::sad::spi_slot(spi.0)) != group);
        let gone: Vec<EspSpi> = self
            .sad
            .iter()
            .map(|e| e.record.spi_in)
            .filter(|spi| layout.group_of(spi.segment()) == group)
            .collect();
        let plan = self.sad.forget(gone);
        self.execute(&plan);
    }

    /// Old owner in a planned handover: the windows as they are when no program runs any more.
    pub(super) fn final_windows(&mut self, group: GroupId) -> Vec<u8> {
        let before = self.before.get(&group).copied().unwrap_or_default();
        let mut octets = Vec::new();
        let lingering = self.sad.lingering();
        let lingering = lingering.filter(|entry| self.sad.lingers_below_ceiling(entry.slot()));
        for entry in self.sad.iter().chain(lingering) {
            if self.layout.group_of(entry.segment()) != group {
                continue;
            }
            let Some(counters) = self.plane.counters(entry.slot()) else {
                continue;
            };
            if let Some(window) = entry.final_window(&counters.inbound, before.alone, before.epoch) {
                octets.extend_from_slice(window.as_bytes());
            }
        }
        octets
    }

    /// Owner, about to hand over: the taker is left a part of each lease that nobody may raise. No program runs beside this.
    pub(super) fn leave_rests(&mut self, group: GroupId) -> Vec<cluster::LeaseRest> {
        let layout = self.layout;
        let spis: Vec<EspSpi> = self.suspects.keys().copied().collect();
        let of_group = spis
            .into_iter()
            .filter(|spi| layout.group_of(spi.segment()) == group);
        let (epoch, plane) = (self.of(group).epoch, &self.plane);
        let (plan, rests) = self.sad.leave_rests(of_group, epoch, |slot| plane.counters(slot));
        if self.sabotage != Some(Sabotage::RestsKept) {
            self.execute(&plan);
        }
        let left = rests.into_iter().filter_map(|rest| {
            let counters = self.plane.counters(spi_slot(rest.spi_in.0))?;
            let rest = rest.after(counters.outbound.seq)?;
            let below = u64::from(self.sabotage == Some(Sabotage::RestsBelow));
            Some(cluster::LeaseRest {
                spi_in: rest.spi_in,
                above: rest.above.saturating_sub(below),
                last: rest.last,
            })
        });
        left.collect()
    }

    /// Taker in a planned handover: what the owner has left to it.
    pub(super) fn take_rests(&mut self, epoch: model::Epoch, rests: &[cluster::LeaseRest]) {
        let rests = rests.iter().map(|rest| sad::LeaseRest {
            spi_in: rest.spi_in,
            above: rest.above,
            last: rest.last,
        });
        let plan = self.sad.take_rests(&rests.collect::<Vec<_>>(), epoch);
        self.execute(&plan);
    }

    /// Taker in a planned handover.
    pub(super) fn merge_windows(&mut self, cx: &mut Cx<'_>, octets: &[u8]) {
        for chunk in octets.chunks_exact(size_of::<FinalWindow>()) {
            if let Ok(window) = FinalWindow::read_from_bytes(chunk) {
                self.plane.merge_window(cx.now, &window);
            }
        }
    }
}
