//! What the cluster node wants done: journal entries, snapshots, raises, words; and what it is told.

use cluster::{Input, Link, Output, RaiseItem};
use model::{ChildSaChange, Epoch, EspSpi, GroupId, MemberId};
use sad::{Context, Direction, LimitRaise, NamedLimits};

use super::entry::{self, DecodeError, EntryChange};
use super::lost::Told;
use super::{Core, NotApplied, suspects};
use crate::clock;
use crate::net::ports::{Macs, second_hop};
use crate::pki::SecretId;
use crate::synch::{LinkId, SynchEvent};
use maps_schema::steer::MAX_PORTS;

/// What a member tells the other about itself, in its hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// MAC addresses of its interfaces.
    pub macs: Macs,
    /// Names of the cluster secrets that it knows, the one in use first. Releases that know one secret only do not say it, and
    /// do not read it.
    pub secrets: Vec<SecretId>,
    /// What losses have made of connections. Said only where there is something to say: releases before do not read it.
    pub fates: Told,
}

impl Facts {
    pub fn encode(&self) -> Vec<u8> {
        // Growing a vector cannot fail, and plain data has a postcard form.
        let octets = postcard::to_stdvec(&(&self.macs, &self.secrets)).expect("serialises");
        match self.fates.is_empty() {
            true => octets,
            false => postcard::to_extend(&self.fates, octets).expect("serialises"),
        }
    }

    fn decode(octets: &[u8]) -> Result<Self, postcard::Error> {
        let (macs, rest) = postcard::take_from_bytes(octets)?;
        let (secrets, rest) = match rest {
            [] => (Vec::new(), rest),
            rest => postcard::take_from_bytes(rest)?,
        };
        let fates = match rest {
            [] => Told::new(),
            rest => postcard::from_bytes(rest)?,
        };
        Ok(Self { macs, secrets, fates })
    }
}

fn link_id(link: Link) -> LinkId {
    match link {
        Link::Synch => LinkId::Synch,
        Link::Outside => LinkId::Outside,
    }
}

fn link(id: LinkId) -> Link {
    match id {
        LinkId::Synch => Link::Synch,
        LinkId::Outside => Link::Outside,
    }
}

fn to_wire(direction: Direction) -> cluster::Direction {
    match direction {
        Direction::Inbound => cluster::Direction::Inbound,
        Direction::Outbound => cluster::Direction::Outbound,
    }
}

/// Limits as the SA database takes them.
fn named(item: &RaiseItem) -> NamedLimits {
    NamedLimits {
        slot: item.slot,
        spi: item.spi,
        direction: from_wire(item.direction),
        limit: item.limit,
        step: item.step,
    }
}

fn from_wire(direction: cluster::Direction) -> Direction {
    match direction {
        cluster::Direction::Inbound => Direction::Inbound,
        cluster::Direction::Outbound => Direction::Outbound,
    }
}

impl Core {
    /// Something came over the synch channel.
    pub(super) fn synch_event(&mut self, event: SynchEvent) {
        let now = clock::now();
        let input = match event {
            SynchEvent::Up(peer, id) => {
                self.log
                    .note("link_up", format!("{} link to member {peer} is up", id.name()));
                Input::LinkUp {
                    now,
                    peer,
                    link: link(id),
                }
            }
            SynchEvent::Down(peer, id, why) => {
                self.log.warn(
                    "link_down",
                    format!("{} link to member {peer} is down: {why}", id.name()),
                );
                Input::LinkDown {
                    now,
                    peer,
                    link: link(id),
                }
            }
            SynchEvent::Record(peer, id, bytes) => Input::Received {
                now,
                peer,
                link: link(id),
                bytes,
            },
            SynchEvent::Datagram(peer, id, bytes) => Input::Received {
                now,
                peer,
                link: link(id),
                bytes: bytes.into(),
            },
        };
        self.node_input(input);
    }

    /// Hands an input to the node and sees all its consequences through.
    pub(super) fn node_input(&mut self, input: Input) {
        self.node.handle(input);
        self.settle();
    }

    pub(super) fn armed(&mut self, token: u64) {
        self.node.handle(Input::Armed {
            now: clock::now(),
            token,
            unknown: Vec::new(),
        });
    }

    pub(super) fn node_output(&mut self, output: Output) {
        let output = match output {
            // What follows a snapshot waits until it is installed.
            Output::Apply { group, .. } | Output::ApplyRaises { group, .. } => {
                match self.snapshots.behind(group, output) {
                    Some(output) => output,
                    None => return,
                }
            }
            other => other,
        };
        match output {
            Output::SendStream { peer, link, bytes } => {
                if let Err(why) = self.synch.send_record(peer, link_id(link), bytes) {
                    tracing::debug!(%peer, %why, "a record was not sent; the peer gets it after the reconnection");
                }
            }
            Output::SendDatagram { peer, link, bytes } => {
                self.synch.send_datagram(peer, link_id(link), bytes.into());
            }
            Output::Committed { token } => self.committed(token),
            Output::Refused { token, why } => {
                for group in self.groups.iter_mut() {
                    group.pending.retain(|p| p.token != token);
                }
                tracing::debug!(%why, "a commit was refused");
            }
            Output::RaiseCommitted { group, items } => self.raise_committed(group, &items),
            Output::RaiseRefused { items, .. } => self.raise_refused(&items),
            Output::Apply {
                group,
                token,
                epoch,
                entry,
                ..
            } => self.apply_entry(group, token, epoch.number, &entry),
            Output::ApplyRaises {
                group,
                token,
                epoch,
                items,
            } => self.apply_raises(group, token, epoch.number, &items),
            Output::ApplyReport { edges } => {
                for (_, spi, edge) in edges {
                    let plan = self.sad.report_edge(spi, edge);
                    self.execute_or_log(&plan);
                }
            }
            Output::CapLimits { group, token } => self.cap_limits(group, token),
            Output::VerifyCaps { group, token } => self.verify_caps(group, token),
            Output::RestateLimits {
                token, epoch, keys, ..
            } => {
                let items = self.restated(epoch.number, &keys);
                self.node.handle(Input::Restated {
                    now: clock::now(),
                    token,
                    items,
                });
            }
            Output::InstallSnapshot { group, token, bytes } => self.install_snapshot(group, token, bytes),
            Output::Flip(flip) => {
                self.flip(&flip);
                self.armed(flip.token);
            }
            Output::ExtendValidity { group, epoch, until } => self.extend_validity(group, epoch, until),
            Output::Announce { group } => self.announce(group),
            Output::ResumeIke { group } => self.resume_ike(group),
            Output::SuspendIke { group } => self.suspend_ike(group),
            Output::DiscardFork { group } => self.discard_fork(group),
            Output::ForkTouched {
                group,
                from,
                number,
                touched,
                peers,
            } => self.fork_touched(group, from, number, &touched, &peers),
            Output::LeaveRests { group, token } => {
                let rests = self.leave_rests(group);
                self.node.handle(Input::RestsLeft {
                    now: clock::now(),
                    token,
                    rests,
                });
            }
            Output::TakeRests { group, epoch, rests } => self.take_rests(group, epoch.number, &rests),
            Output::CloseLegacy { group, token } => {
                let bytes = self.final_windows(group);
                self.node.handle(Input::FinalWindows {
                    now: clock::now(),
                    token,
                    bytes,
                });
            }
            Output::MergeWindows { group, token, bytes } => self.merge_windows(group, token, bytes),
            Output::Guest { from, group, body } => self.guest_heard(from, group, body),
            Output::PeerFacts { peer, facts } => self.peer_facts(peer, &facts),
            Output::Ownership { token, group, op } => self.ask_ownership(token, group, op),
            Output::Event(event) => self.node_event(&event),
        }
    }

    /// Standby: limits of the owner. What is not in the maps is not acknowledged.
    fn apply_raises(&mut self, group: GroupId, token: u64, epoch: Epoch, items: &[RaiseItem]) {
        tracing::trace!(?items, "raise to arm");
        if self.groups.get(group).withholding {
            return;
        }
        let named: Vec<_> = items.iter().map(named).collect();
        let (plan, armed) = self.sad.arm(&named, epoch, clock::now());
        let written = self.execute(&plan);
        let unknown = match armed.map_err(NotApplied::from) {
            Ok(unknown) => unknown,
            // Limits that an SA refuses (its record is of a later epoch, say) are as little armed as those that the maps did not take.
            Err(error) => return self.withhold(group, &format!("a raise: {error}")),
        };
        if let Err(error) = written {
            return self.withhold(group, &format!("a raise: {error}"));
        }
        let unknown = unknown.into_iter().map(|place| items[place].key()).collect();
        self.node.handle(Input::Armed {
            now: clock::now(),
            token,
            unknown,
        });
    }

    /// An acknowledgement covers what came before it: from here on there is none until a snapshot is installed. The owner
    /// drops this member from the set for its silence, and it joins anew.
    pub(super) fn withhold(&mut self, group: GroupId, what: &str) {
        self.groups.get_mut(group).withholding = true;
        self.log.warn_of(
            group,
            "journal",
            format!("not armed, this member acknowledges nothing more of the group until it has joined anew: {what}"),
        );
    }

    /// The raise that the synch channel names; `None` where the SA is not here.
    pub(super) fn raise_of(&self, item: &RaiseItem, epoch: Epoch) -> Option<LimitRaise> {
        self.sad.raise_of(
            item.slot,
            item.spi,
            from_wire(item.direction),
            item.limit,
            item.step,
            epoch,
        )
    }

    /// The synch channel's name for a raise.
    pub(super) fn raise_item(&self, raise: &LimitRaise) -> Option<RaiseItem> {
        Some(RaiseItem {
            slot: raise.slot,
            spi: self.sad.raise_spi(raise)?,
            direction: to_wire(raise.direction),
            limit: raise.limits.limit,
            step: raise.limits.step,
        })
    }

    /// Standby: an entry of the journal.
    fn apply_entry(&mut self, group: GroupId, token: u64, epoch: Epoch, octets: &[u8]) {
        if self.groups.get(group).withholding {
            return;
        }
        let failed = match entry::decode_entry(octets, &self.mirror) {
            Ok(changes) => match self.apply(group, &changes, epoch, false).into_iter().next() {
                None => {
                    self.heed(changes);
                    return self.armed(token);
                }
                Some((spi_in, error)) => format!("SA {spi_in}: {error}"),
            },
            Err(error @ DecodeError::Patch { .. }) => return self.begin_mirror_anew(group, token, &error),
            Err(error) => error.to_string(),
        };
        self.withhold(group, &format!("an entry: {failed}"));
    }

    /// An entry was written against a record that is not here: this mirror is not what the owner takes it for, and nothing to
    /// take over with. The node says so, and has this member join anew at once.
    fn begin_mirror_anew(&mut self, group: GroupId, token: u64, error: &DecodeError) {
        self.groups.get_mut(group).withholding = true;
        self.log.warn_of(
            group,
            "journal",
            format!("this member's mirror is not the owner's, it joins anew: {error}"),
        );
        self.node.handle(Input::DoesNotFit {
            now: clock::now(),
            token,
        });
    }

    /// What the owner of another group tells everybody.
    pub(super) fn heed(&mut self, changes: Vec<EntryChange>) {
        for change in changes {
            match change {
                EntryChange::Contact {
                    connection,
                    remote_id,
                    ike_spi,
                } if self.groups.owns_any() => {
                    if self.is_adopting() {
                        // Only the engine knows whose an IKE SA is.
                        self.late.push(EntryChange::Contact {
                            connection,
                            remote_id,
                            ike_spi,
                        });
                        continue;
                    }
                    self.engine_command(ike::Command::Forget {
                        connection,
                        remote_id,
                        except: ike_spi,
                    });
                }
                EntryChange::Stop { connection, ending } => self.stops.stop(&connection, ending),
                EntryChange::Start(connection) => self.stops.start(&connection),
                EntryChange::Acquire(connection) if self.initiates(&connection) => {
                    self.attempt(&connection, clock::now());
                }
                _ => {}
            }
        }
    }

    /// The other member's MAC addresses: where the second hop goes, and whose frames are not forwarded again.
    fn peer_facts(&mut self, peer: MemberId, octets: &[u8]) {
        let facts = match Facts::decode(octets) {
            Ok(facts) => facts,
            Err(error) => {
                self.log.warn(
                    "peer_facts",
                    format!("member {peer} said what cannot be read: {error}"),
                );
                return;
            }
        };
        if self.facts.get(&peer) == Some(&facts) {
            return;
        }
        let mut written = self.plane.set_member(peer.0, &second_hop(&facts.macs));
        for (_, mac) in facts.macs.iter().take(MAX_PORTS) {
            written = written.and_then(|()| self.plane.put_member_mac(*mac, peer.0));
        }
        let secrets = facts.secrets.clone();
        self.facts.insert(peer, facts);
        self.follow_secret(peer, &secrets);
        if let Err(error) = written {
            self.log.warn(
                "peer_facts",
                format!("the second hop to member {peer} was not written: {error}"),
            );
        }
    }

    /// Entries of the owner's IKE engine take effect here. Returns the Child SAs (by inbound SPI) whose change did not.
    pub(super) fn apply(
        &mut self,
        group: GroupId,
        changes: &[EntryChange],
        epoch: Epoch,
        alone: bool,
    ) -> Vec<(EspSpi, NotApplied)> {
        let mut failed = Vec::new();
        for change in changes {
            if let EntryChange::Child(change) = change {
                let context = Context {
                    now: clock::now(),
                    epoch,
                    alone,
                };
                if let Err(error) = self.apply_child(change, context, changes) {
                    failed.push((change.spi_in(), error));
                }
            }
        }
        // A standby keeps no record of an IKE SA whose Child SAs it lacks; the owner's engine deletes the Child SAs.
        if failed.is_empty() || self.groups.owns(group) {
            for change in changes {
                match change {
                    EntryChange::IkePut(spi, record) => drop(self.mirror.insert(*spi, record.clone())),
                    EntryChange::IkeRemove(spi) => {
                        self.stops.ended(*spi);
                        self.mirror.remove(spi);
                    }
                    EntryChange::Used(used) => self.note_usage(group, used),
                    EntryChange::Child(_)
                    | EntryChange::Contact { .. }
                    | EntryChange::Acquire(_)
                    | EntryChange::Stop { .. }
                    | EntryChange::Start(_) => {}
                }
            }
        }
        failed
    }

    /// `with`: all changes of the entry.
    fn apply_child(
        &mut self,
        change: &ChildSaChange,
        context: Context,
        with: &[EntryChange],
    ) -> Result<(), NotApplied> {
        if let ChildSaChange::Remove { spi_in } = change {
            self.groups.of_mut(spi_in.segment()).suspects.remove(*spi_in);
            self.refused.remove(spi_in);
            self.advancing.retain(|_, raise| raise.spi != *spi_in);
            self.forget_asked(*spi_in);
            self.reported.remove(spi_in);
            self.guests.wishes.remove(spi_in);
            return self.remove_child(*spi_in, context.now, with);
        }
        if let ChildSaChange::Install { record, .. } = change
            && self.is_suspect(record.spi_in)
        {
            let spi_in = record.spi_in;
            let without = suspects::without_numbers(change, &self.tainted_directions());
            let mut plan = self.sad.apply(&without, context)?;
            plan.extend(self.taint(vec![spi_in], context.epoch));
            return self.execute(&plan);
        }
        let plan = self.sad.apply(change, context)?;
        self.execute(&plan)
    }
}

#[cfg(test)]
mod tests {
    use super::super::lost::Fate;
    use super::*;

    #[test]
    fn a_release_that_knows_one_secret_only_reads_the_facts_of_one_that_knows_more_and_the_other_way_round() {
        #[derive(serde::Serialize, serde::Deserialize)]
        struct Before {
            macs: Macs,
        }
        let macs: Macs = Default::default();
        let before = postcard::to_stdvec(&Before { macs: macs.clone() }).unwrap();
        let read = Facts::decode(&before).unwrap();
        assert_eq!((&read.macs, read.secrets.len()), (&macs, 0));
        let dir = std::env::temp_dir().join(format!("esp-facts-{}", std::process::id()));
        crate::pki::init(&dir, "lab", 1).unwrap();
        let secrets = crate::pki::Secrets::load(&dir).unwrap().ids();
        std::fs::remove_dir_all(&dir).unwrap();
        let mut facts = Facts {
            macs,
            secrets,
            fates: Told::new(),
        };
        let octets = facts.encode();
        assert_eq!(Facts::decode(&octets).unwrap(), facts);
        // The release before reads the secrets and nothing behind them.
        facts.fates = Told::from([(7, Fate::Rest), (9, Fate::Up)]);
        let longer = facts.encode();
        assert_eq!(longer[..octets.len()], octets);
        assert_eq!(Facts::decode(&longer).unwrap(), facts);
        assert!(Facts::decode(&longer[..longer.len() - 1]).is_err());
        assert_eq!(postcard::from_bytes::<Before>(&octets).unwrap().macs, facts.macs);
        assert!(Facts::decode(&octets[..octets.len() - 1]).is_err());
    }
}
