//! A member that serves a group adopts its mirrored IKE SAs: in turns, so that heartbeats and owner words do not wait for
//! a hundred thousand of them, and the IKE SA that somebody asks for first.

use std::time::Duration;

use model::{EspSpi, GroupId, IkeSpi, Instant};

use super::Core;
use super::around::Around;
use super::secrets::Known;
use crate::clock;

/// IKE SAs are adopted for this long before the core does something else.
const TURN: Duration = Duration::from_millis(2);

impl Core {
    /// This member serves the group now: the engine takes its mirrored IKE SAs and sends what is outstanding again.
    pub(super) fn resume_ike(&mut self, id: GroupId) {
        let began = clock::now();
        let layout = self.groups.layout;
        let forgotten = self
            .engine
            .remove_segments(|segment| layout.group_of(segment) == id);
        drop(forgotten);
        let waiting = self.mirrored(id).map(|(spi, _)| *spi).collect();
        self.snapshots.forget(id);
        let group = self.groups.get_mut(id);
        group.pending.clear();
        group.held.clear();
        group.adopting = waiting;
        group.adoption = Some((began, 0));
        group.withholding = false;
        group.resumed = true;
        // Connections that are down are initiated at once.
        self.redial.clear();
        self.inherit_fates(id);
        self.adopt_turn(began);
        self.begin_suspects(id);
    }

    /// Whether there is something left to adopt.
    pub(super) fn is_adopting(&self) -> bool {
        self.groups.iter().any(|g| g.adoption.is_some())
    }

    /// Adopts for as long as a turn may take.
    pub(super) fn adopt_turn(&mut self, now: Instant) {
        let until = now + TURN;
        let under_way = self.groups.iter().filter(|g| g.adoption.is_some()).map(|g| g.id);
        for id in under_way.collect::<Vec<_>>() {
            while let Some(spi) = self.groups.get_mut(id).adopting.pop_first() {
                self.adopt(id, spi);
                if clock::now() > until {
                    self.resume_adopted();
                    return;
                }
            }
            self.resume_adopted();
            self.adoption_ended(id);
        }
    }

    /// Somebody asks for an IKE SA that is not adopted yet: it is, before the others.
    pub(super) fn adopt_first(&mut self, spi: IkeSpi) {
        let id = self.groups.layout.group_of(spi.segment());
        if self.groups.get_mut(id).adopting.remove(&spi) {
            self.adopt(id, spi);
            self.resume_adopted();
        }
    }

    fn adopt(&mut self, id: GroupId, spi: IkeSpi) {
        // Its deletion may have been committed meanwhile.
        let Some(record) = self.mirror.get(&spi) else {
            return;
        };
        if let Err(error) = self.engine.adopt(clock::now(), spi, record) {
            if let Some((_, lost)) = &mut self.groups.get_mut(id).adoption {
                *lost += 1;
            }
            tracing::warn!(%spi, %error, "an IKE SA was not taken over; its peer will notice and begin anew");
            return;
        }
        let layout = self.groups.layout;
        let elsewhere = |esp: &EspSpi| layout.group_of(esp.segment()) != id;
        let mut plan = sad::MapPlan::default();
        let sponsor = &mut self.guests.machine.sponsor;
        for guest in self.engine.esp_spis_of(spi).filter(elsewhere) {
            sponsor.adopt(guest, spi, true);
        }
        for promised in self.engine.pending_esp_spis_of(spi) {
            if elsewhere(&promised) {
                sponsor.adopt(promised, spi, false);
                continue;
            }
            if let Err(error) = self.sad.hold_spi(promised) {
                tracing::warn!(%promised, %error, "an unfinished exchange will come to nothing");
            }
            plan.extend(self.sad.await_spi(promised));
        }
        self.execute_or_log(&plan);
        self.watch_sources_of(spi);
    }

    fn resume_adopted(&mut self) {
        let mut around = Around {
            known: Known::of(self.me, &self.segments, &self.mirror),
            sad: &mut self.sad,
            groups: &self.groups,
            node: &self.node,
            guests: &mut self.guests.machine,
            steer_key: self.steer_key,
            counters: &self.counters,
            advances: Vec::new(),
        };
        self.engine.resume(clock::now(), &mut around);
        self.settle();
    }

    fn adoption_ended(&mut self, id: GroupId) {
        let Some((began, lost)) = self.groups.get_mut(id).adoption.take() else {
            return;
        };
        if self.guests.wanted {
            self.guests.machine.sponsor.ready(id);
        }
        let took = clock::now().since(began).as_secs_f64() * 1000.0;
        let taken = (self.mirrored(id).count()).saturating_sub(lost as usize);
        let layout = self.groups.layout;
        let children = self.sad.iter().filter(|e| layout.group_of(e.segment()) == id);
        let children = children.count();
        self.adopted(id, taken, children);
        self.log.note_of(
            id,
            "resumed",
            format!("{taken} IKE SAs and {children} Child SAs served, {took:.1} ms"),
        );
        self.reload_adopted();
        self.go_on_stopping(id);
        if !self.is_adopting() {
            let late = std::mem::take(&mut self.late);
            self.heed(late);
        }
    }
}
