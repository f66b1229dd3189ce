//! The core: one thread owns the IKE engine, the SA database, the replica and the data plane, and moves values between
//! them. Nothing decides here; the order in which things take effect is all that this module is about.

mod adopt;
mod answer;
mod around;
mod capabilities;
mod certificates;
mod children;
mod command;
mod connections;
pub(crate) mod convert;
mod devices;
mod dial;
mod digest;
mod early;
mod engine;
mod entry;
mod event_loop;
mod forks;
mod groups;
mod guests;
mod health;
mod held;
mod keep;
mod limits;
mod linger;
mod long;
mod lost;
mod member;
mod names;
mod onward;
mod orders;
mod owner;
mod pace;
mod path;
mod per_cpu;
mod pulse;
mod reload;
mod repair;
mod roaming;
mod sas;
mod scan;
mod secrets;
mod setup;
mod slow;
mod snapshot;
mod stops;
mod suspects;
mod timeline;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use cluster::Node;
use cluster::guest::sponsor::Part;
use dataplane::{CounterReader, Plane, Runner, Segments};
use ike::{Command, Commit, Engine, Input, Output, Transmit};
use model::{EspSpi, GroupId, IkeSpi, Instant, MemberId, SecretBytes};
use sad::{DataPlane, LimitRaise, Sad};
use tun_rs::AsyncDevice;

use crate::clock;
use crate::config::Config;
use crate::credentials::signer::Signer;
use crate::events::EventLog;
use crate::exchange::Computers;
use crate::net::announce::Announcer;
use crate::net::ports::Ports;
use crate::net::socket::IkeSockets;
use crate::synch::Synch;
pub(crate) use around::random;

use around::Around;
use entry::EntryChange;
use groups::{Groups, Origin, Pending};
use secrets::Known;

pub use event_loop::run;

/// Changes in one entry of the journal; those of one commit are never torn apart.
const ENTRY_CHANGES: usize = 256;

/// Why a change or a raise did not take effect.
#[derive(Debug, thiserror::Error)]
enum NotApplied {
    #[error("refused: {0}")]
    Refused(#[from] sad::SadError),
    #[error("the maps were not written: {0}")]
    Maps(#[from] sad::PlanError),
}

/// How an operator wants the agent to stop.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// As on SIGTERM: what another member can take is handed over first.
    Leave,
    /// At once; everything is kept for the next life.
    Kept,
}

struct Core {
    config: Config,
    me: MemberId,
    steer_key: [u64; 2],
    /// Cluster secrets: the one in use, and those that are honoured beside it.
    secrets: crate::pki::Secrets,
    policies: secrets::Policies,
    started: Instant,
    incarnation: u64,
    log: EventLog,

    engine: Engine,
    /// Has the private keys.
    signer: Signer,
    /// Computes key exchanges.
    computers: Computers,
    certificates: certificates::Certificates,
    sad: Sad,
    plane: Plane,
    /// Questions about the interfaces.
    devices: devices::Questions,
    runner: Runner,
    counters: CounterReader,
    segments: Segments,
    node: Node,
    synch: Synch,
    /// What other members said of themselves.
    facts: HashMap<MemberId, member::Facts>,
    /// Outputs of the node that wait behind those in hand.
    deferred: VecDeque<cluster::Output>,
    settling: bool,
    next_token: u64,
    attached: Vec<crate::api::InterfaceStatus>,
    /// Devices whose programs run in generic mode.
    generic: Vec<u32>,

    sockets: Rc<IkeSockets>,
    /// Messages that leave at the end of this turn.
    outgoing: Vec<Transmit>,
    announcer: Announcer,
    /// What the stack is given.
    tun: Rc<AsyncDevice>,
    ports: Ports,

    /// Committed records of IKE SAs: what a snapshot is made of, and what a taker adopts.
    mirror: BTreeMap<IkeSpi, SecretBytes>,
    groups: Groups,
    slow: slow::Waiting,
    onward: onward::Onward,
    /// Packets that wait for an SA.
    held: held::Held,
    /// Packets of SAs that peers were asked for, by SPI.
    early: held::Held,
    /// How many of them may go through the programs at once in this second.
    early_again: u32,
    paths: path::Paths,
    takeover: timeline::Takeovers,
    /// Commands about ownership that wait for their end.
    wishes: command::Wishes,
    /// Windows of old owners that are being merged.
    merging: VecDeque<owner::Merging>,
    /// Snapshots that are taken or installed.
    snapshots: snapshot::Snapshots,
    scan: scan::Scan,
    health: health::Health,
    /// The external ownership engine, where there is one.
    ownership_engine: Option<ownership::Engine>,
    /// Lists of SAs that are being put together.
    listings: Vec<sas::Listing>,
    /// Peers that began anew, by the IKE SA that says so: the other members hear of it with that IKE SA's next commit.
    contacts: HashMap<IkeSpi, EntryChange>,
    /// Such peers as long as not all IKE SAs are adopted.
    late: Vec<EntryChange>,
    /// Connections that traffic asked for here and another member is to initiate, and when that was passed on.
    acquired: HashMap<String, Instant>,
    redial: HashMap<String, dial::Redial>,
    /// Connections that are to be something else than their `start` says, since they were lost.
    wanted: HashMap<String, dial::Wanted>,
    /// Children that are missing while their connection is up.
    children: children::Children,
    /// What of these the other members were told last.
    told: lost::Told,
    /// What the names of peers lead to.
    names: names::Names,
    reload: reload::Reload,
    /// Connections that an operator has stopped: they are not initiated by themselves.
    stops: stops::Stops,
    /// Why each connection went down last.
    reasons: HashMap<String, String>,
    /// When it was last said in what another member's policy differs, and in what.
    policy_warned: BTreeMap<MemberId, (Instant, Vec<String>)>,
    /// Commands of operators that wait for their outcome.
    orders: orders::Orders,
    /// Outbound numbers that are to begin above these as soon as the lease is raised, by slot: for peers whose cluster has failed over.
    advancing: BTreeMap<u32, LimitRaise>,
    /// Child SAs rekeyed since a raise was refused, and when.
    refused: HashMap<EspSpi, Instant>,
    /// IKE SAs of which a fork was discarded: their peers are still to be asked for Message IDs.
    forked: VecDeque<IkeSpi>,
    /// What forks of other members touched that lost against this one.
    forks: forks::Forks,
    /// What this member does alone, for its next life.
    kept_forks: forks::KeptForks,
    /// Child SAs on segments of other members than their IKE SAs'.
    guests: guests::MemberSas,
    /// Child SAs that were asked for, for a CPU or member beside a shared one, and when.
    asked: BTreeMap<(EspSpi, u32), Instant>,
    /// Right edges as reported to the standby.
    reported: HashMap<EspSpi, u64>,
    ike_events: BTreeMap<&'static str, u64>,
    /// An operator has told the agent to stop.
    stopping: Option<Stop>,
}

impl Core {
    /// Hands an input to the engine and sees all its consequences through.
    fn engine_input(&mut self, input: Input<'_>) {
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
        self.engine.handle(input, &mut around);
        let advances = around.advances;
        self.advance(advances);
        self.settle();
    }

    fn engine_command(&mut self, command: Command) {
        self.engine_input(Input::Command {
            now: clock::now(),
            command,
        });
    }

    /// Moves outputs on until nobody has any left. What is called from here and calls it again leaves the work to the
    /// first one, so that outputs keep their order.
    fn settle(&mut self) {
        if self.settling {
            return;
        }
        self.settling = true;
        loop {
            if let Some(output) = self.deferred.pop_front() {
                self.node_output(output);
            } else if let Some(output) = self.node.poll() {
                self.node_output(output);
            } else if let Some(output) = self.engine.poll() {
                self.engine_output(output);
            } else if let Some(act) = self.guests.machine.poll() {
                self.guest_act(act);
            } else {
                break;
            }
        }
        self.settling = false;
    }

    fn engine_output(&mut self, output: Output) {
        match output {
            Output::Commit(commit) => {
                for (group, (part, guests)) in self.split(commit) {
                    self.commit_with_guests(group, part, guests);
                }
            }
            Output::Transmit(transmit) => self.transmit_in_order(transmit),
            Output::Sign(request) => self.signer.sign(request),
            Output::Tls(request) => self.signer.tls(request),
            Output::Compute(request) => self.computers.ask(request),
            Output::Event(event) => self.engine_event(&event),
        }
    }

    /// A commit for each group: what one input brings about may concern IKE SAs of several (a peer that began anew). What it does with
    /// guests is apart: that is for the journals of their hosts.
    fn split(&self, commit: Commit) -> BTreeMap<GroupId, (Commit, Part)> {
        let layout = self.groups.layout;
        let mut parts: BTreeMap<GroupId, (Commit, Part)> = BTreeMap::new();
        for change in commit.changes {
            match change {
                ike::Change::ChildSa(change) if self.sponsor_of(&change).is_some() => {
                    let group = self.sponsor_of(&change).unwrap_or_default();
                    parts.entry(group).or_default().1.add(change);
                }
                change => {
                    let group = layout.group_of(change.segment());
                    parts.entry(group).or_default().0.changes.push(change);
                }
            }
        }
        for transmit in commit.transmits {
            // What belongs to no IKE SA goes with what there is.
            let first = parts.keys().next().copied().unwrap_or_default();
            let group = transmit
                .ike_spi
                .map_or(first, |spi| layout.group_of(spi.segment()));
            parts.entry(group).or_default().0.transmits.push(transmit);
        }
        parts
    }

    fn propose(&mut self, group: GroupId, commit: Commit) {
        if !self.groups.owns(group) {
            // The engine holds IKE SAs of this member's groups only.
            tracing::warn!(%group, "a commit for a group of another member was dropped");
            return;
        }
        let about = commit.transmits.iter().filter_map(|t| t.ike_spi);
        let about = about.collect::<Vec<_>>();
        let mut changes = commit
            .changes
            .into_iter()
            .map(EntryChange::from)
            .collect::<Vec<_>>();
        if changes.is_empty() {
            for transmit in commit.transmits {
                self.transmit_in_order(transmit);
            }
            return;
        }
        self.add_contacts(&mut changes);
        self.propose_changes(group, changes, commit.transmits, about);
    }

    /// What the other members hear of with these IKE SAs.
    fn add_contacts(&mut self, changes: &mut Vec<EntryChange>) {
        if self.contacts.is_empty() {
            return;
        }
        let named = changes.iter().filter_map(|change| match change {
            EntryChange::IkePut(spi, _) => self.contacts.remove(spi),
            _ => None,
        });
        let named = named.collect::<Vec<_>>();
        changes.extend(named);
    }

    fn propose_changes(
        &mut self,
        group: GroupId,
        changes: Vec<EntryChange>,
        transmits: Vec<Transmit>,
        about: Vec<IkeSpi>,
    ) {
        if let Some(open) = self.groups.get_mut(group).open_entry() {
            // Those that wait for the outcome of their own stand alone: they are never open.
            open.changes.extend(changes);
            open.transmits.extend(transmits);
            open.about.extend(about);
            if open.changes.len() >= ENTRY_CHANGES {
                self.propose_entry(group);
            }
            return;
        }
        self.propose_as(Origin::Own, group, changes, transmits, about);
    }

    fn propose_as(
        &mut self,
        origin: Origin,
        group: GroupId,
        changes: Vec<EntryChange>,
        transmits: Vec<Transmit>,
        about: Vec<IkeSpi>,
    ) {
        // What was committed before goes before.
        self.propose_entry(group);
        self.next_token += 1;
        let token = self.next_token;
        self.groups.get_mut(group).pending.push_back(Pending {
            token,
            changes,
            transmits,
            about,
            alone: false,
            proposed: false,
            origin,
        });
        if origin != Origin::Own {
            self.propose_entry(group);
        }
    }

    /// Proposes what has been committed to since the last entry, as one entry for each group: one record, one acknowledgement. An
    /// entry takes effect as a whole or not at all, which is no less than each of its commits asks for. While an entry of the group
    /// is under way, the next one stays open (ADR 23): acknowledgements come in order, so it would wait for that one anyway.
    fn propose_turn(&mut self) {
        let open = self.groups.iter_mut().filter(|group| !group.is_under_way());
        let open = open.filter_map(|group| group.open_entry().map(|_| ()).map(|()| group.id));
        for group in open.collect::<Vec<_>>() {
            self.propose_entry(group);
        }
        self.settle();
    }

    fn propose_entry(&mut self, group: GroupId) {
        let alone = self.node.is_alone(group);
        let briefly = self.node.writes_briefly(group);
        let Some(open) = self.groups.get(group).pending.back().filter(|p| !p.proposed) else {
            return;
        };
        let (token, entry) = (open.token, entry::encode_entry(&open.changes));
        let brief = briefly
            .then(|| entry::encode_brief(&open.changes, |spi| self.last_record(group, spi)))
            .flatten();
        if let Some(open) = self.groups.get_mut(group).open_entry() {
            open.proposed = true;
            open.alone = alone;
        }
        self.node.handle(cluster::Input::Propose {
            now: clock::now(),
            group,
            token,
            entry,
            brief,
        });
    }

    /// The end of a turn: what it has brought about leaves together.
    fn end_turn(&mut self) {
        self.propose_turn();
        self.tell_suspects();
        self.computers.hand_over();
        self.send_queued();
    }

    /// The record of an IKE SA as the entries of the group that are written by now have left it, committed or not.
    fn last_record(&self, group: GroupId, spi: IkeSpi) -> Option<&SecretBytes> {
        let pending = self.groups.get(group).pending.iter().rev().filter(|p| p.proposed);
        let mut changes = pending.flat_map(|p| p.changes.iter().rev());
        let last = changes.find_map(|change| match change {
            EntryChange::IkePut(of, record) if *of == spi => Some(Some(record)),
            EntryChange::IkeRemove(of) if *of == spi => Some(None),
            _ => None,
        });
        last.unwrap_or_else(|| self.mirror.get(&spi))
    }

    /// A message of an IKE SA never overtakes a commit of that IKE SA.
    fn transmit_in_order(&mut self, transmit: Transmit) {
        if let Some(spi) = transmit.ike_spi {
            let group = self.groups.of_mut(spi.segment());
            if let Some(held) = group.held.iter_mut().rev().find(|h| h.about.contains(&spi)) {
                held.transmits.push(transmit);
                return;
            }
            if let Some(pending) = group.pending.iter_mut().rev().find(|p| p.about.contains(&spi)) {
                pending.transmits.push(transmit);
                return;
            }
        }
        self.outgoing.push(transmit);
    }

    /// Sends a message at the end of this turn.
    fn transmit(&mut self, transmit: &Transmit) {
        self.outgoing.push(transmit.clone());
    }

    /// Sends the messages of this turn.
    fn send_queued(&mut self) {
        self.sockets.send_all(&self.outgoing, |transmit, error| {
            tracing::warn!(remote = %transmit.remote, %error, "cannot send an IKE message; it will be repeated");
        });
        self.outgoing.clear();
    }

    /// Key exchanges are computed: what waits for them goes on.
    fn computed(&mut self, all: Vec<ike::Computed>) {
        for computed in all {
            self.engine_input(Input::Computed {
                now: clock::now(),
                computed,
            });
        }
    }

    fn engine_event(&mut self, event: &ike::Event) {
        use ike::EventKind;
        *self.ike_events.entry(event.kind.name()).or_default() += 1;
        if event.kind == EventKind::NatKeepalive {
            if let (Some(local), Some(peer)) = (event.local, event.peer) {
                // RFC 3948 2.3: one octet, best effort.
                let _ = self.sockets.send(local, peer, &[0xff]);
            }
            return;
        }
        self.dial_event(event);
        use EventKind::{AuthFailed, NoConnection, NoProposal};
        if matches!(event.kind, NoConnection | NoProposal | AuthFailed) {
            self.stranger();
        }
        if event.kind == EventKind::InitialContact
            && let Some(spi) = event.ike_spi
            && let Some(sa) = self.engine.status_of(spi)
            && let (Some(connection), Some(remote_id)) = (sa.connection, sa.remote_id)
        {
            let contact = EntryChange::Contact {
                connection,
                remote_id,
                ike_spi: spi,
            };
            if self.is_adopting() {
                self.late.push(contact.clone());
            }
            self.contacts.insert(spi, contact);
        }
        self.orders_event(event);
        if event.kind.is_warning() {
            self.log.warn(event.kind.name(), event.to_string());
        } else {
            self.log.note(event.kind.name(), event.to_string());
        }
    }

    /// Events of the IKE engine by kind, and key exchanges that were not computed as they should be.
    fn ike_event_counts(&self) -> Vec<(&'static str, u64)> {
        let exchanges = [
            ("exchange_refused", self.computers.refused()),
            ("exchange_in_loop", self.engine.computed_here()),
        ];
        let events = self.ike_events.iter().map(|(kind, n)| (*kind, *n));
        events.chain(exchanges).collect()
    }

    /// An entry was acknowledged: its changes take effect, then its messages go out.
    fn committed(&mut self, token: u64) {
        let found = self.groups.iter().find_map(|g| {
            let at = g.pending.iter().position(|p| p.token == token)?;
            Some((g.id, at))
        });
        let Some((id, at)) = found else { return };
        debug_assert_eq!(at, 0, "commits of a group are acknowledged in their order");
        let group = self.groups.get_mut(id);
        let epoch = group.ownership.epoch;
        let Some(pending) = group.pending.remove(at) else {
            return;
        };
        // The standby that was there when it was proposed may know the SA, though it never acknowledged it.
        let alone = pending.alone && self.node.is_alone(id);
        self.note_touched(id, &pending.changes, &pending.transmits);
        let failed = self.apply(id, &pending.changes, epoch, alone);
        self.snapshots.took_effect(id, &pending.changes);
        self.watch_sources(&pending.changes);
        self.run_held_for(&pending.changes);
        self.run_early(&pending.changes, &failed);
        self.await_answers(&pending.changes);
        self.orders_committed(&pending.changes, &failed);
        for (spi_in, error) in &failed {
            self.log.warn(
                "child_not_applied",
                format!("SA {spi_in}: {error}; it is deleted rather than left half installed"),
            );
        }
        self.outgoing.extend(pending.transmits);
        self.guests_committed(pending.origin, failed.is_empty());
        for (spi_in, _) in failed {
            // A failed removal has left the engine already.
            if self.engine.ike_spi_of_child(spi_in).is_some() {
                self.engine_command(Command::DeleteChild { spi_in });
            }
        }
    }

    fn execute(&mut self, plan: &sad::MapPlan) -> Result<(), NotApplied> {
        if plan.is_empty() {
            return Ok(());
        }
        // Plans are idempotent: once more costs nothing and mends what was passing.
        let mut done = self.plane.execute(plan);
        if let Err(error) = &done {
            tracing::debug!(%error, "a plan is executed once more");
            done = self.plane.execute(plan);
        }
        self.health.wrote(&done);
        Ok(done?)
    }

    /// Executes a plan that nothing waits for.
    fn execute_or_log(&mut self, plan: &sad::MapPlan) {
        if let Err(error) = self.execute(plan) {
            self.log.warn("data_plane", error.to_string());
        }
    }

    /// Once a second: what depends on no number of SAs.
    fn every_second(&mut self) {
        let now = clock::now();
        self.look_after_health();
        self.watch_certificates();
        self.wishes_turn(now);
        self.forget_old_paths(now);
        self.held.expire(now);
        self.early_turn(now);
        self.forget_settled_forks();
        self.slow.counts[6] += std::mem::take(&mut self.held.given_up);
        self.names_turn(now);
        self.tell_fates();
        if !self.groups.owns_any() {
            return;
        }
        self.sweep_waiting();
        self.ask_for_members();
        self.rekey_suspects();
        self.reestablish();
        self.ask_message_ids();
        self.reload_children();
        self.redial(now);
    }
}
