//! What the node wants done.

use super::{Cx, Effect, Member};
use crate::entry::{EntryChange, spi_of};
use crate::plane::{inside_mac, outside_mac, reached_at};
use crate::sabotage::Sabotage;
use cluster::io::EventKind;
use cluster::rules_doubt::tainted_by_loss;
use cluster::{Input, Output, Standing};
use model::{ChildSaChange, EspSpi};
use std::collections::BTreeSet;

/// A rekey of an SA that nobody may send on, and that came to nothing, is followed by a new IKE SA after this time.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(10);

fn installs(changes: &[EntryChange]) -> impl Iterator<Item = EspSpi> {
    changes.iter().filter_map(|change| match change {
        EntryChange::Child(change @ ChildSaChange::Install { .. }) => Some(spi_of(change)),
        _ => None,
    })
}

impl Member {
    pub(super) fn node_output(&mut self, cx: &mut Cx<'_>, output: Output) {
        let now = cx.now;
        match output {
            Output::SendStream {
                peer: to,
                link,
                bytes,
            } => {
                cx.effects.push(Effect::Stream { to, link, bytes });
            }
            Output::SendDatagram {
                peer: to,
                link,
                bytes,
            } => {
                cx.effects.push(Effect::Datagram { to, link, bytes });
            }
            Output::Committed { token } => self.committed(cx, token),
            Output::Refused { token, why } => self.refused(cx, token, &why),
            Output::RaiseCommitted { group, items } => self.raise_committed(cx, group, &items),
            Output::RaiseRefused { items, .. } => self.raise_refused(cx, &items),
            Output::Apply {
                group,
                token,
                epoch,
                entry,
                ..
            } => self.apply_entry(cx, group, token, epoch.number, &entry),
            Output::ApplyRaises {
                token, epoch, items, ..
            } => {
                let named: Vec<_> = items.iter().map(super::limits::named).collect();
                let (plan, armed) = self.sad.arm(&named, epoch.number, now);
                self.execute(&plan);
                // What an SA refuses is not armed: this member keeps silent, and is dropped from the set.
                if let Ok(unknown) = armed {
                    let unknown = unknown.into_iter().map(|place| items[place].key()).collect();
                    self.node.handle(Input::Armed { now, token, unknown });
                }
            }
            Output::ApplyReport { edges } => {
                for (_, spi, edge) in edges {
                    let plan = self.sad.report_edge(spi, edge);
                    self.execute(&plan);
                }
            }
            Output::CapLimits { group, token } => self.cap_limits(cx, group, token),
            Output::VerifyCaps { group, token } => {
                let caps = self.caps(group);
                let items = caps.iter().filter_map(|raise| self.raise_item(raise)).collect();
                self.node.handle(Input::CapsVerified { now, token, items });
            }
            Output::RestateLimits {
                token, epoch, keys, ..
            } => {
                let items = self.restated(&keys, epoch.number.low16());
                self.node.handle(Input::Restated { now, token, items });
            }
            Output::InstallSnapshot { group, token, bytes } => {
                self.install_snapshot(cx, group, token, &bytes)
            }
            Output::Flip(flip) => {
                if self.sabotage != Some(Sabotage::FlipLost) || flip.epoch.number.0 <= 1 {
                    self.flip(cx, &flip);
                }
                self.armed(cx, flip.token);
            }
            Output::ExtendValidity { group, epoch, until } => {
                let segments: Vec<_> = self.layout.segments(group).collect();
                for segment in segments {
                    self.plane.extend_validity(
                        segment.0,
                        epoch.owner.0,
                        epoch.number.low16(),
                        until.millis(),
                    );
                }
            }
            Output::Announce { group } => cx.effects.push(Effect::Announce(group)),
            Output::ResumeIke { group } => self.resume_ike(cx, group),
            Output::SuspendIke { group } => self.suspend_ike(group),
            Output::DiscardFork { group } => {
                self.suspend_ike(group);
                self.forget(group);
                cx.watch.discarded(now, self.me, group);
                self.tell_touched(cx, group);
            }
            Output::ForkTouched {
                group,
                from,
                number,
                touched,
                peers,
            } => self.fork_touched(cx, group, from, number, (&touched, &peers)),
            Output::LeaveRests { group, token } => {
                let rests = self.leave_rests(group);
                self.node.handle(Input::RestsLeft { now, token, rests });
            }
            Output::TakeRests { epoch, rests, .. } => self.take_rests(epoch.number, &rests),
            Output::CloseLegacy { group, token } => {
                let bytes = self.final_windows(group);
                self.node.handle(Input::FinalWindows { now, token, bytes });
            }
            Output::MergeWindows { token, bytes, .. } => {
                self.merge_windows(cx, &bytes);
                self.armed(cx, token);
            }
            Output::Guest { from, group, body } => self.guest_heard(cx, from, group, body),
            Output::PeerFacts { peer, .. } => {
                // The facts' encoding is the agent's business; here every member's addresses follow from its id.
                let macs = (outside_mac(peer.0), inside_mac(peer.0));
                self.plane.set_member(peer.0, reached_at(macs));
            }
            Output::Ownership { token, group, op } => cx.effects.push(Effect::Ownership { token, group, op }),
            Output::Event(event) => self.node_event(cx, &event),
        }
    }

    fn node_event(&mut self, cx: &mut Cx<'_>, event: &cluster::Event) {
        cx.trace.note(cx.now, "node", [u64::from(self.me.0), 0], || {
            format!(
                "member {}: group {:?}: {:?}",
                self.me,
                event.group.map(|g| g.0),
                event.kind
            )
        });
        if let Some(group) = event.group {
            match &event.kind {
                EventKind::InSync(set) if set.len() > 1 && self.owns(group) => {
                    self.suspects_begun.insert(group);
                    self.forks.end(group);
                }
                EventKind::Standing(Standing::AloneUnfenced) => {
                    self.suspect_shared(group);
                }
                _ => {}
            }
        }
        cx.watch.node_event(cx.now, self.me, self.life, event);
    }

    /// The standby is lost and may be serving: it knows every SA that is not this member's alone.
    fn suspect_shared(&mut self, group: model::GroupId) {
        let installed = self.sad.iter().filter(|e| !e.local_only).map(|e| e.record.spi_in);
        let proposed = self.pending.iter().filter(|p| !p.alone);
        let proposed = proposed.flat_map(|p| installs(&p.changes));
        // Its requests are in the journal: a standby that takes over repeats them, and the peer gives it the same answers.
        let asked = self.engine.pending_esp_spis();
        let all: Vec<_> = installed
            .chain(proposed)
            .chain(asked)
            .filter(|spi| self.group_of_child(*spi) == group)
            .collect();
        for spi in &all {
            self.suspects.insert(*spi, None);
        }
        self.suspects_begun.remove(&group);
        self.taint(&all, self.of(group).epoch);
    }

    /// Leaves no number of these SAs to an owner after the one in `epoch`.
    pub(super) fn taint(&mut self, spis: &[model::EspSpi], epoch: model::Epoch) {
        if self.sabotage == Some(Sabotage::NothingTainted) {
            return;
        }
        let plan = self
            .sad
            .taint(spis.iter().copied(), &self.tainted_directions(), epoch);
        self.execute(&plan);
    }

    pub(super) fn tainted_directions(&self) -> Vec<sad::Direction> {
        let directions = tainted_by_loss(self.solo, Standing::AloneUnfenced).iter();
        directions.map(|d| super::limits::from_wire(*d)).collect()
    }

    /// The node is told how many there are, where that has changed.
    pub(super) fn tell_suspects(&mut self, cx: &mut Cx<'_>) {
        for group in self.layout.groups() {
            let of_group = self
                .suspects
                .keys()
                .filter(|spi| self.group_of_child(**spi) == group);
            let count = of_group.count();
            if self.suspects_told.insert(group, count).unwrap_or(0) != count {
                let now = cx.now;
                self.node_input(cx, Input::Suspects { now, group, count });
            }
        }
    }

    /// Exchanges under way at the loss have come to nothing: their SAs are no suspects any more.
    fn forget_unmade_suspects(&mut self) {
        let mut coming: BTreeSet<_> = self.engine.pending_esp_spis().into_iter().collect();
        coming.extend(self.pending.iter().flat_map(|p| installs(&p.changes)));
        let (sad, layout) = (&self.sad, self.layout);
        let serving = &self.serving;
        self.suspects.retain(|spi, _| {
            let group = layout.group_of_slot(maps_schema::sad::spi_slot(spi.0));
            !serving.contains(&group) || sad.get(*spi).is_some() || coming.contains(spi)
        });
    }

    /// Once a second: some of the SAs that a lost standby knew.
    pub(super) fn rekey_suspects(&mut self, cx: &mut Cx<'_>) {
        self.forget_unmade_suspects();
        let due: Vec<_> = self
            .suspects
            .iter()
            .filter(|(spi, asked)| {
                asked.is_none_or(|at| cx.now.since(at) >= AGAIN)
                    && self.suspects_begun.contains(&self.group_of_child(**spi))
                    && self.sad.get(**spi).is_some_and(sad::SaEntry::carries_outbound)
                    && self.engine.ike_spi_of_child(**spi).is_some()
            })
            .map(|(spi, asked)| (*spi, asked.is_some()))
            .take(20)
            .collect();
        for (spi_in, before) in due {
            self.suspects.insert(spi_in, Some(cx.now));
            let command = match self.engine.ike_spi_of_child(spi_in) {
                Some(spi) if before && !self.engine.awaits_answer(spi) => ike::Command::Reestablish { spi },
                _ => ike::Command::RekeyChild { spi_in },
            };
            self.engine_command(cx, command);
        }
    }
}
