//! Commits of the engine: proposed, acknowledged, applied, sent. Nothing is sent before.

use super::guests::Origin;
use super::{Cx, Effect, Member, Pending};
use crate::entry::{self, EntryChange};
use crate::sabotage::Sabotage;
use ike::{Command, Output, Transmit};
use model::{ChildSaChange, Epoch, EspSpi, GroupId, IkeSpi, SecretBytes};
use sad::{Context, LingerUpTo};
use std::collections::BTreeSet;

impl Member {
    pub(super) fn engine_output(&mut self, cx: &mut Cx<'_>, output: Output) {
        match output {
            Output::Commit(commit) if self.guests.wanted() => self.commit_in_parts(cx, commit),
            Output::Commit(commit) => {
                let about: Vec<_> = commit.transmits.iter().filter_map(|t| t.ike_spi).collect();
                // A commit may concern several groups (INITIAL_CONTACT): each has a journal of its own.
                let mut parts: Vec<(GroupId, Vec<EntryChange>)> = Vec::new();
                for change in commit.changes.into_iter().map(EntryChange::from) {
                    let group = self.group_of_change(&change);
                    match parts.iter_mut().find(|(g, _)| *g == group) {
                        Some((_, changes)) => changes.push(change),
                        None => parts.push((group, vec![change])),
                    }
                }
                let mut transmits = commit.transmits;
                let early = self.sabotage == Some(Sabotage::SendBeforeCommit);
                if parts.is_empty() || early {
                    for transmit in transmits.drain(..) {
                        if early {
                            self.transmit(cx, transmit);
                        } else {
                            self.transmit_in_order(cx, transmit);
                        }
                    }
                }
                let first = self.next_token + 1;
                let siblings: BTreeSet<u64> = (first + 1..first + parts.len() as u64).collect();
                for (token, (group, changes)) in (first..).zip(parts) {
                    let main = token == first;
                    let transmits = if main {
                        std::mem::take(&mut transmits)
                    } else {
                        Vec::new()
                    };
                    self.next_token += 1;
                    self.propose_entry(
                        cx,
                        Pending {
                            token,
                            group,
                            changes,
                            transmits,
                            about: about.clone(),
                            alone: self.node.is_alone(group),
                            siblings: if main { siblings.clone() } else { BTreeSet::new() },
                            done: false,
                            origin: Origin::Own,
                        },
                    );
                }
            }
            Output::Transmit(transmit) => self.transmit_in_order(cx, transmit),
            Output::Sign(_) | Output::Tls(_) => unreachable!("connections here use pre-shared keys"),
            Output::Compute(_) => unreachable!("this engine computes its key exchanges itself"),
            Output::Event(event) => {
                cx.trace
                    .note(cx.now, "ike", [u64::from(self.me.0), event.kind as u64], || {
                        format!("member {}: {event}", self.me)
                    });
                if event.kind == ike::EventKind::InitialContact
                    && let Some(ike_spi) = event.ike_spi
                    && let Some(sa) = self.engine.status_of(ike_spi)
                    && let (Some(connection), Some(remote_id)) = (sa.connection, sa.remote_id)
                {
                    let contact = EntryChange::Contact {
                        connection,
                        remote_id,
                        ike_spi,
                    };
                    self.contacts.insert(ike_spi, contact);
                }
                if event.kind == ike::EventKind::Established
                    && let Some(connection) = &event.connection
                {
                    self.redial.remove(connection);
                }
                cx.watch.gateway_event(cx.now, self.me, &event);
            }
        }
    }

    /// Proposes the changes of a commit, or of a part of one, for a group.
    pub(super) fn propose_as(
        &mut self,
        cx: &mut Cx<'_>,
        origin: Origin,
        group: GroupId,
        changes: Vec<EntryChange>,
        (transmits, about): (Vec<Transmit>, Vec<IkeSpi>),
    ) {
        self.next_token += 1;
        let pending = Pending {
            token: self.next_token,
            group,
            changes,
            transmits,
            about,
            alone: self.node.is_alone(group),
            siblings: BTreeSet::new(),
            done: false,
            origin,
        };
        self.propose_entry(cx, pending);
    }

    fn propose_entry(&mut self, cx: &mut Cx<'_>, mut pending: Pending) {
        // What the other members hear of with these IKE SAs.
        let named = pending.changes.iter().filter_map(|change| match change {
            EntryChange::IkePut(spi, _) => self.contacts.remove(spi),
            _ => None,
        });
        let named: Vec<_> = named.collect();
        pending.changes.extend(named);
        let (now, token, group) = (cx.now, pending.token, pending.group);
        let entry = entry::encode(&pending.changes);
        // A stale mirror would be noticed by the next record that is written against it.
        let stale = self.sabotage == Some(Sabotage::StaleRecord);
        let brief = (!stale).then(|| {
            let brief = entry::brief(&pending.changes, |spi| self.last_record(spi));
            entry::encode(&brief)
        });
        self.pending.push_back(pending);
        cx.trace.note(now, "propose", [u64::from(self.me.0), token], || {
            format!("member {}: proposal {token} of group {group}", self.me)
        });
        self.node.handle(cluster::Input::Propose {
            now,
            group,
            token,
            entry,
            brief,
        });
    }

    /// The record of an IKE SA as what is proposed by now has left it.
    fn last_record(&self, spi: IkeSpi) -> Option<&SecretBytes> {
        let mut changes = self.pending.iter().rev().flat_map(|p| p.changes.iter().rev());
        let last = changes.find_map(|change| match change {
            EntryChange::IkePut(of, record) if *of == spi => Some(Some(record)),
            EntryChange::IkeRemove(of) if *of == spi => Some(None),
            _ => None,
        });
        last.unwrap_or_else(|| self.mirror.get(&spi))
    }

    fn group_of_change(&self, change: &EntryChange) -> GroupId {
        match change {
            EntryChange::IkePut(spi, _) | EntryChange::IkeRemove(spi) | EntryChange::IkePatch(spi, ..) => {
                self.group_of(*spi)
            }
            EntryChange::Child(change) => self.group_of_child(entry::spi_of(change)),
            EntryChange::Contact { ike_spi, .. } => self.group_of(*ike_spi),
        }
    }

    /// A message of an IKE SA never overtakes a commit of that IKE SA.
    pub(super) fn transmit_in_order(&mut self, cx: &mut Cx<'_>, transmit: Transmit) {
        let held = transmit.ike_spi.and_then(|spi| self.guests.held_about(spi));
        if let Some(held) = held {
            held.push(transmit);
            return;
        }
        let behind = transmit
            .ike_spi
            .and_then(|spi| self.pending.iter_mut().rev().find(|p| p.about.contains(&spi)));
        match behind {
            Some(pending) => pending.transmits.push(transmit),
            None => self.transmit(cx, transmit),
        }
    }

    pub(super) fn transmit(&mut self, cx: &mut Cx<'_>, mut transmit: Transmit) {
        if self.sabotage == Some(Sabotage::OwnAddress) {
            transmit.local.set_ip([192, 0, 2, 100 + self.me.0].into());
        }
        cx.watch.ike_sent(cx.now, self.me, self.life, &transmit.bytes);
        cx.effects.push(Effect::Ike(transmit));
    }

    /// An entry was acknowledged: its changes take effect, then its messages go out.
    pub(super) fn committed(&mut self, cx: &mut Cx<'_>, token: u64) {
        let Some(at) = self.pending.iter().position(|p| p.token == token) else {
            return;
        };
        cx.trace
            .note(cx.now, "committed", [u64::from(self.me.0), token], || {
                format!("member {}: proposal {token}", self.me)
            });
        let pending = &mut self.pending[at];
        pending.done = true;
        let (group, changes) = (pending.group, std::mem::take(&mut pending.changes));
        let origin = pending.origin;
        let transmits = pending.transmits.clone();
        let alone = pending.alone && self.node.is_alone(group);
        let epoch = self.of(group).epoch;
        self.note_touched(group, &changes, &transmits);
        let failed = self.apply(cx, group, &changes, epoch, alone);
        let known = !self.node.is_alone(group);
        cx.watch.effective(self.me, group, &changes, known);
        self.settled(cx, token);
        self.guests_committed(cx, origin, failed.is_empty());
        for spi_in in failed {
            if self.engine.ike_spi_of_child(spi_in).is_some() {
                self.engine_command(cx, Command::DeleteChild { spi_in });
            }
        }
    }

    /// A proposal is through: messages that waited for it, and for no other, go out.
    fn settled(&mut self, cx: &mut Cx<'_>, token: u64) {
        for pending in &mut self.pending {
            pending.siblings.remove(&token);
        }
        while let Some(at) = self.pending.iter().position(|p| p.done && p.siblings.is_empty()) {
            for transmit in self.pending.remove(at).map(|p| p.transmits).unwrap_or_default() {
                self.transmit(cx, transmit);
            }
        }
    }

    pub(super) fn refused(&mut self, cx: &mut Cx<'_>, token: u64, why: &cluster::Refused) {
        cx.trace
            .note(cx.now, "refused", [u64::from(self.me.0), token], || {
                format!("member {}: proposal {token}: {why}", self.me)
            });
        self.pending.retain(|p| p.token != token);
        // Whoever owns that group now has it in its own hands.
        self.settled(cx, token);
    }

    /// Changes take effect here. Returns the Child SAs whose change did not.
    pub(super) fn apply(
        &mut self,
        cx: &mut Cx<'_>,
        group: GroupId,
        changes: &[EntryChange],
        epoch: Epoch,
        alone: bool,
    ) -> Vec<EspSpi> {
        let mut failed = Vec::new();
        for change in changes {
            if let EntryChange::Child(change) = change {
                let context = Context {
                    now: cx.now,
                    epoch,
                    alone,
                };
                if let Err(error) = self.apply_child(cx, change, context, changes) {
                    let spi = entry::spi_of(change);
                    cx.trace.note(cx.now, "unapplied", [u64::from(spi.0), 0], || {
                        format!("member {}: SA {spi}: {error}", self.me)
                    });
                    failed.push(spi);
                }
            }
        }
        if failed.is_empty() || self.owns(group) {
            for change in changes {
                match change {
                    EntryChange::IkePut(spi, record) => {
                        let stale = self.sabotage == Some(Sabotage::StaleRecord) && !self.owns(group);
                        if !(stale && self.mirror.contains_key(spi)) {
                            self.mirror.insert(*spi, record.clone());
                        }
                    }
                    EntryChange::IkeRemove(spi) => drop(self.mirror.remove(spi)),
                    EntryChange::Child(_) | EntryChange::Contact { .. } | EntryChange::IkePatch(..) => {}
                }
            }
        }
        failed
    }

    fn apply_child(
        &mut self,
        cx: &mut Cx<'_>,
        change: &ChildSaChange,
        context: Context,
        with: &[EntryChange],
    ) -> Result<(), sad::SadError> {
        if let ChildSaChange::Remove { spi_in } = change {
            self.suspects.remove(spi_in);
            self.guests.wishes.remove(spi_in);
            self.asked.retain(|(beside, _), _| beside != spi_in);
            return self.remove_child(cx, *spi_in, with);
        }
        if let ChildSaChange::Install { record, .. } = change
            && self.suspects.contains_key(&record.spi_in)
        {
            let spi_in = record.spi_in;
            // The lost standby may have finished the exchange by itself, and begun at the first number.
            let mut without = change.clone();
            if let ChildSaChange::Install { record, .. } = &mut without
                && self.sabotage != Some(Sabotage::NothingTainted)
            {
                for direction in self.tainted_directions() {
                    match direction {
                        sad::Direction::Outbound => record.limits.lease = 0,
                        sad::Direction::Inbound => record.limits.ceiling = 0,
                    }
                }
            }
            let plan = self.sad.apply(&without, context)?;
            self.execute(&plan);
            self.taint(&[spi_in], context.epoch);
            return Ok(());
        }
        let plan = self.sad.apply(change, context)?;
        self.execute(&plan);
        Ok(())
    }

    /// Its last packets may be under way, unless its IKE SA ends with it and nothing else protects its traffic.
    fn remove_child(
        &mut self,
        cx: &mut Cx<'_>,
        spi_in: EspSpi,
        with: &[EntryChange],
    ) -> Result<(), sad::SadError> {
        let Some(entry) = self.sad.get(spi_in) else {
            return Ok(());
        };
        let (ike_spi, slot) = (entry.record.ike_spi, entry.slot());
        let is_removed = |of: IkeSpi| {
            with.iter()
                .any(|change| matches!(change, EntryChange::IkeRemove(spi) if *spi == of))
        };
        let ends = |of: IkeSpi| is_removed(of) || self.engine.has_ended(of);
        let goes_on = !ends(ike_spi) || self.sad.is_protected_otherwise(spi_in, ends);
        let owner = self.of(self.layout.group_of_slot(slot)).owner;
        let side = self.plane.side(slot as u8);
        let up_to = LingerUpTo::at(self.me, owner, side).filter(|_| goes_on);
        let Some(up_to) = up_to else {
            let plan = self.sad.forget([spi_in]);
            self.execute(&plan);
            return Ok(());
        };
        let plan = self.sad.remove_lingering(spi_in, cx.now, up_to)?;
        self.execute(&plan);
        self.run_waiting(cx, slot);
        Ok(())
    }

    pub(super) fn execute(&mut self, plan: &sad::MapPlan) {
        self.plane.execute(plan).expect("every slot is there");
    }

    /// Standby: an entry of the journal.
    pub(super) fn apply_entry(
        &mut self,
        cx: &mut Cx<'_>,
        group: GroupId,
        token: u64,
        epoch: Epoch,
        octets: &[u8],
    ) {
        if self.withholding.contains(&group) {
            return;
        }
        if self.sabotage == Some(Sabotage::ArmedUnapplied) {
            return self.armed(cx, token);
        }
        let changes = entry::decode::<Vec<EntryChange>>(octets);
        let whole = changes.and_then(|changes| entry::whole(changes, &self.mirror));
        let heard = whole.filter(|changes| {
            let applied = self.apply(cx, group, changes, epoch, false).is_empty();
            cx.watch.mirrored(self.me, group, changes);
            applied
        });
        if let Some(heard) = heard {
            self.armed(cx, token);
            self.heed(cx, heard);
        } else {
            // An acknowledgement covers every earlier position: none until a snapshot is installed.
            self.withholding.insert(group);
            cx.trace.note(cx.now, "withholds", [u64::from(self.me.0), 0], || {
                format!("member {} acknowledges nothing more of group {group}", self.me)
            });
        }
    }

    /// What the owner of another group tells everybody.
    fn heed(&mut self, cx: &mut Cx<'_>, changes: Vec<EntryChange>) {
        if self.sabotage == Some(Sabotage::ContactUnheard) {
            return;
        }
        for change in changes {
            if let EntryChange::Contact {
                connection,
                remote_id,
                ike_spi: except,
            } = change
                && self.owns_any()
            {
                let command = Command::Forget {
                    connection,
                    remote_id,
                    except,
                };
                self.engine_command(cx, command);
            }
        }
    }

    pub(super) fn armed(&mut self, cx: &mut Cx<'_>, token: u64) {
        self.node.handle(cluster::Input::Armed {
            now: cx.now,
            token,
            unknown: Vec::new(),
        });
    }
}
