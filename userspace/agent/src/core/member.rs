//! What the cluster node wants done: journal entries, snapshots, raises, words; and what it is told.

use cluster::{Input, Link, Output, RaiseItem};
use model::{ChildSaChange, Epoch, EspSpi, MemberId};
use sad::{Context, DataPlane, Direction, LimitRaise};
use serde::{Deserialize, Serialize};

use super::entry::{self, Snapshot};
use super::suspects::Suspects;
use super::{Core, NotApplied};
use crate::clock;
use crate::net::ports::{Macs, second_hop};
use crate::synch::{LinkId, SynchEvent};
use maps_schema::steer::MAX_PORTS;

/// Caps are repeated until no SA is without limits; traffic between two looks makes another one necessary.
const CAP_ROUNDS: usize = 16;

/// What a member tells the other about itself, in its hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// MAC addresses of its interfaces.
    pub macs: Macs,
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

    fn armed(&mut self, token: u64) {
        self.node.handle(Input::Armed {
            now: clock::now(),
            token,
            unknown: Vec::new(),
        });
    }

    pub(super) fn node_output(&mut self, output: Output) {
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
                self.pending.retain(|p| p.token != token);
                tracing::debug!(%why, "a commit was refused");
            }
            Output::RaiseCommitted { items } => self.raise_committed(&items),
            Output::RaiseRefused { items } => self.raise_refused(&items),
            Output::Apply {
                token, epoch, entry, ..
            } => self.apply_entry(token, epoch.number, &entry),
            Output::ApplyRaises { token, epoch, items } => {
                tracing::trace!(?items, "raise to arm");
                let mut unknown = Vec::new();
                for item in &items {
                    match self.raise_of(item, epoch.number) {
                        Some(raise) => match self.apply_newest(&raise) {
                            Ok(()) => {}
                            // What is not in the maps is not acknowledged: the owner asks again.
                            Err(error) => {
                                tracing::warn!(?item, %error, "a raise was not armed");
                                unknown.push(item.key());
                            }
                        },
                        None => unknown.push(item.key()),
                    }
                }
                self.node.handle(Input::Armed {
                    now: clock::now(),
                    token,
                    unknown,
                });
            }
            Output::ApplyReport { edges } => {
                for (_, spi, edge) in edges {
                    let plan = self.sad.report_edge(spi, edge);
                    self.execute_or_log(&plan);
                }
            }
            Output::CapLimits { token } => self.cap_limits(token),
            Output::VerifyCaps { token } => {
                let caps = self.caps();
                let items = caps.iter().filter_map(|raise| self.raise_item(raise)).collect();
                self.node.handle(Input::CapsVerified {
                    now: clock::now(),
                    token,
                    items,
                });
            }
            Output::InstallSnapshot { token, bytes } => self.install_snapshot(token, &bytes),
            Output::Flip(flip) => {
                self.flip(&flip);
                self.armed(flip.token);
            }
            Output::ExtendValidity { epoch, until } => self.extend_validity(epoch, until),
            Output::Announce => self.announce(),
            Output::ResumeIke => self.resume_ike(),
            Output::SuspendIke => self.suspend_ike(),
            Output::DiscardFork => self.discard_fork(),
            Output::CloseLegacy { token } => {
                let bytes = self.final_windows();
                self.node.handle(Input::FinalWindows {
                    now: clock::now(),
                    token,
                    bytes,
                });
            }
            Output::MergeWindows { token, bytes } => {
                self.merge_windows(&bytes);
                self.armed(token);
            }
            Output::PeerFacts { peer, facts } => self.peer_facts(peer, &facts),
            Output::Event(event) => self.node_event(&event),
        }
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
    fn apply_entry(&mut self, token: u64, epoch: Epoch, octets: &[u8]) {
        if self.withholding {
            return;
        }
        let failed = match entry::decode_entry(octets) {
            Ok(changes) => match self.apply(&changes, epoch, false).into_iter().next() {
                None => return self.armed(token),
                Some((spi_in, error)) => format!("SA {spi_in}: {error}"),
            },
            Err(error) => error.to_string(),
        };
        // An acknowledgement covers every earlier position: from here on there is none until a snapshot is installed.
        // The owner drops this member from the set for its silence, and it joins anew.
        self.withholding = true;
        self.log.warn(
            "journal",
            format!("an entry is not armed, this member acknowledges nothing more until it has joined anew: {failed}"),
        );
    }

    /// Limits for every SA that has no upper ones.
    fn caps(&self) -> Vec<LimitRaise> {
        let (epoch, alone) = (self.ownership.epoch, self.ownership.alone);
        self.sad
            .cap_for_join(|_| (epoch, alone), |slot| self.counters.counters(slot))
    }

    /// Owner: a member joins. From here on every SA has limits, and the snapshot says which.
    fn cap_limits(&mut self, token: u64) {
        for _ in 0..CAP_ROUNDS {
            let caps = self.caps();
            if caps.is_empty() {
                break;
            }
            let spis = caps.iter().map(|cap| cap.spi).collect::<Vec<EspSpi>>();
            for cap in &caps {
                self.apply_raise_or_log(cap);
            }
            let plan = self.sad.known_to_standby(spis);
            self.execute_or_log(&plan);
            if let Err(error) = self.runner.drain_cpus() {
                self.log
                    .warn("join", format!("the CPUs were not drained: {error}"));
            }
        }
        // Entries that are committed by now belong to the snapshot, since its position is behind them.
        let mut later = Vec::new();
        while let Some(output) = self.node.poll() {
            match output {
                Output::Committed { token } => self.committed(token),
                other => later.push(other),
            }
        }
        self.deferred.extend(later);
        let snapshot = Snapshot {
            ike: self.mirror.clone(),
            children: self.sad.snapshot(clock::now()),
            suspects: self.suspects.spis(),
        };
        let bytes = entry::encode_snapshot(&snapshot);
        self.log.note(
            "snapshot",
            format!(
                "snapshot of {} IKE and {} Child SAs, {} octets",
                snapshot.ike.len(),
                snapshot.children.len(),
                bytes.len()
            ),
        );
        self.node.handle(Input::Snapshot {
            now: clock::now(),
            token,
            bytes,
        });
    }

    /// Joining: takes the owner's state in place of its own.
    fn install_snapshot(&mut self, token: u64, bytes: &[u8]) {
        let snapshot = match entry::decode_snapshot(bytes) {
            Ok(snapshot) => snapshot,
            Err(error) => {
                self.log.warn("snapshot", error.to_string());
                return;
            }
        };
        self.mirror = snapshot.ike;
        self.suspects = Suspects::of(snapshot.suspects);
        match self.sad.restore(snapshot.children, clock::now()) {
            Ok(plan) => {
                if let Err(error) = self.plane.execute(&plan) {
                    // Not armed: this member must not take over.
                    self.log
                        .warn("snapshot", format!("the snapshot was not installed: {error}"));
                    return;
                }
                self.log.note(
                    "snapshot",
                    format!(
                        "snapshot installed: {} IKE and {} Child SAs",
                        self.mirror.len(),
                        self.sad.len()
                    ),
                );
                self.withholding = false;
                self.armed(token);
            }
            Err(error) => self
                .log
                .warn("snapshot", format!("the snapshot was not installed: {error}")),
        }
    }

    /// The other member's MAC addresses: where the second hop goes, and whose frames are not forwarded again.
    fn peer_facts(&mut self, peer: MemberId, octets: &[u8]) {
        let facts: Facts = match postcard::from_bytes(octets) {
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
        self.facts.insert(peer, facts);
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
        changes: &[entry::EntryChange],
        epoch: Epoch,
        alone: bool,
    ) -> Vec<(EspSpi, NotApplied)> {
        use entry::EntryChange;
        let mut failed = Vec::new();
        for change in changes {
            if let EntryChange::Child(change) = change {
                let context = Context {
                    now: clock::now(),
                    epoch,
                    alone,
                };
                if let Err(error) = self.apply_child(change, context) {
                    failed.push((entry::spi_of(change), error));
                }
            }
        }
        // A standby keeps no record of an IKE SA whose Child SAs it lacks; the owner's engine deletes the Child SAs.
        if failed.is_empty() || self.owns() {
            for change in changes {
                match change {
                    EntryChange::IkePut(spi, record) => drop(self.mirror.insert(*spi, record.clone())),
                    EntryChange::IkeRemove(spi) => drop(self.mirror.remove(spi)),
                    EntryChange::Child(_) => {}
                }
            }
        }
        failed
    }

    fn apply_child(&mut self, change: &ChildSaChange, context: Context) -> Result<(), NotApplied> {
        if let ChildSaChange::Remove { spi_in } = change {
            self.suspects.remove(*spi_in);
            // What could not be installed need not be removed.
            if self.sad.get(*spi_in).is_none() {
                return Ok(());
            }
        }
        let plan = self.sad.apply(change, context)?;
        self.execute(&plan)
    }
}
