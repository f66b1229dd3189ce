//! The core: one thread owns the IKE engine, the SA database, the replica and the data plane, and moves values between
//! them. Nothing decides here; the order in which things take effect is all that this module is about.

mod answer;
mod around;
mod capabilities;
mod convert;
mod entry;
mod event_loop;
mod limits;
mod member;
mod orders;
mod owner;
mod setup;
mod slow;
mod suspects;
mod timeline;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::rc::Rc;

use cluster::Node;
use dataplane::{CounterReader, Plane, Runner, Segments};
use ike::{Command, Engine, Input, Output, Transmit};
use model::{Epoch, EspSpi, IkeSpi, Instant, MemberId, SecretBytes};
use sad::{DataPlane, Sad};

use crate::clock;
use crate::config::Config;
use crate::events::EventLog;
use crate::net::announce::Announcer;
use crate::net::ports::Ports;
use crate::net::socket::IkeSockets;
use crate::synch::Synch;
use around::Around;
use entry::EntryChange;

pub use event_loop::run;

/// A commit of the engine that waits for its acknowledgement.
struct Pending {
    token: u64,
    changes: Vec<EntryChange>,
    transmits: Vec<Transmit>,
    /// IKE SAs that the commit is about: their later messages wait behind it.
    about: Vec<IkeSpi>,
    /// Proposed while there was no standby: nobody else can know of it.
    alone: bool,
}

/// Why a change or a raise did not take effect.
#[derive(Debug, thiserror::Error)]
enum NotApplied {
    #[error("refused: {0}")]
    Refused(#[from] sad::SadError),
    #[error("the maps were not written: {0}")]
    Maps(#[from] sad::PlanError),
}

/// Who owns the segments, as the maps have it. The pair engine moves all segments together.
#[derive(Clone, Copy, Debug, Default)]
struct Ownership {
    owner: Option<MemberId>,
    epoch: Epoch,
    alone: bool,
}

/// When a connection is to be initiated again.
#[derive(Clone, Copy, Default)]
struct Redial {
    not_before: Instant,
    attempts: u32,
}

struct Core {
    config: Config,
    me: MemberId,
    steer_key: [u64; 2],
    started: Instant,
    incarnation: u64,
    log: EventLog,

    engine: Engine,
    sad: Sad,
    plane: Plane,
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

    sockets: Rc<IkeSockets>,
    announcer: Announcer,
    ports: Ports,

    /// Committed records of IKE SAs: what a snapshot is made of, and what a taker adopts.
    mirror: BTreeMap<IkeSpi, SecretBytes>,
    ownership: Ownership,
    /// Ownership in the epoch before: the old owner's rights in a planned handover.
    before: Ownership,
    pending: VecDeque<Pending>,
    slow: slow::Waiting,
    takeover: timeline::Takeovers,
    /// Announcements that are still to be repeated, and when.
    announce_next: Option<(u32, Instant)>,
    redial: HashMap<String, Redial>,
    /// Why each connection went down last.
    reasons: HashMap<String, String>,
    /// Standby: an entry could not be armed; nothing is acknowledged until the next snapshot.
    withholding: bool,
    suspects: suspects::Suspects,
    /// When it was last said that another member's policy differs.
    policy_warned: Option<Instant>,
    /// Commands of operators that wait for their outcome.
    orders: orders::Orders,
    /// Child SAs rekeyed on evidence in this epoch.
    evidence: HashSet<EspSpi>,
    /// Child SAs rekeyed since a raise was refused, and when.
    refused: HashMap<EspSpi, Instant>,
    /// Right edges as reported to the standby.
    reported: HashMap<EspSpi, u64>,
    ike_events: BTreeMap<&'static str, u64>,
}

impl Core {
    fn owns(&self) -> bool {
        self.ownership.owner == Some(self.me)
    }

    /// Hands an input to the engine and sees all its consequences through.
    fn engine_input(&mut self, input: Input<'_>) {
        let mut around = Around {
            sad: &mut self.sad,
            member: self.me,
            epoch: self.ownership.epoch,
            steer_key: self.steer_key,
        };
        self.engine.handle(input, &mut around);
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
            } else {
                break;
            }
        }
        self.settling = false;
    }

    fn engine_output(&mut self, output: Output) {
        match output {
            Output::Commit(commit) => {
                let about = commit
                    .transmits
                    .iter()
                    .filter_map(|t| t.ike_spi)
                    .collect::<Vec<_>>();
                let changes = commit
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
                self.next_token += 1;
                let token = self.next_token;
                let entry = entry::encode_entry(&changes);
                self.pending.push_back(Pending {
                    token,
                    changes,
                    transmits: commit.transmits,
                    about,
                    alone: self.node.is_alone(),
                });
                self.node.handle(cluster::Input::Propose {
                    now: clock::now(),
                    token,
                    entry,
                });
            }
            Output::Transmit(transmit) => self.transmit_in_order(transmit),
            Output::Event(event) => self.engine_event(&event),
        }
    }

    /// A message of an IKE SA never overtakes a commit of that IKE SA.
    fn transmit_in_order(&mut self, transmit: Transmit) {
        let behind = transmit
            .ike_spi
            .and_then(|spi| self.pending.iter_mut().rev().find(|p| p.about.contains(&spi)));
        match behind {
            Some(pending) => pending.transmits.push(transmit),
            None => self.transmit(&transmit),
        }
    }

    fn transmit(&mut self, transmit: &Transmit) {
        if let Err(error) = self
            .sockets
            .send_ike(transmit.local, transmit.remote, &transmit.bytes)
        {
            tracing::warn!(remote = %transmit.remote, %error, "cannot send an IKE message; it will be repeated");
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
        if let Some(connection) = &event.connection {
            match event.kind {
                EventKind::Established => {
                    self.redial.remove(connection);
                    self.reasons.remove(connection);
                }
                kind if kind.is_warning() || kind == EventKind::IkeSaDown => {
                    self.reasons.insert(connection.clone(), event.text.clone());
                }
                _ => {}
            }
        }
        self.orders_event(event);
        if event.kind.is_warning() {
            self.log.warn(event.kind.name(), event.to_string());
        } else {
            self.log.note(event.kind.name(), event.to_string());
        }
    }

    /// An entry was acknowledged: its changes take effect, then its messages go out.
    fn committed(&mut self, token: u64) {
        let Some(at) = self.pending.iter().position(|p| p.token == token) else {
            return;
        };
        debug_assert_eq!(at, 0, "commits are acknowledged in their order");
        let Some(pending) = self.pending.remove(at) else {
            return;
        };
        // The standby that was there when it was proposed may know the SA, though it never acknowledged it.
        let alone = pending.alone && self.node.is_alone();
        let failed = self.apply(&pending.changes, self.ownership.epoch, alone);
        self.orders_committed(&pending.changes, &failed);
        for (spi_in, error) in &failed {
            self.log.warn(
                "child_not_applied",
                format!("SA {spi_in}: {error}; it is deleted rather than left half installed"),
            );
        }
        for transmit in &pending.transmits {
            self.transmit(transmit);
        }
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
        if let Err(error) = self.plane.execute(plan) {
            tracing::debug!(%error, "a plan is executed once more");
            self.plane.execute(plan)?;
        }
        Ok(())
    }

    /// Executes a plan that nothing waits for.
    fn execute_or_log(&mut self, plan: &sad::MapPlan) {
        if let Err(error) = self.execute(plan) {
            self.log.warn("data_plane", error.to_string());
        }
    }

    /// Initiates what is to be up and is not, with growing pauses.
    fn redial(&mut self, now: Instant) {
        if !self.owns() {
            return;
        }
        let wanted = self
            .config
            .connections
            .iter()
            .filter(|c| c.start == crate::config::Start::Initiate);
        let names = wanted.map(|c| c.name.clone()).collect::<Vec<_>>();
        for name in names {
            let phase = self.engine.connection_phase(&name);
            let redial = self.redial.entry(name.clone()).or_default();
            if phase != ike::ConnectionPhase::Down || now < redial.not_before {
                continue;
            }
            redial.attempts += 1;
            let pause = std::time::Duration::from_secs(1 << redial.attempts.min(5));
            redial.not_before = now + pause;
            self.engine_command(Command::Initiate { connection: name });
        }
    }

    /// Once a second: lifetimes by number, connections to initiate.
    fn every_second(&mut self) {
        let now = clock::now();
        self.takeover_overdue();
        if !self.owns() {
            return;
        }
        self.sweep_waiting();
        let counters = self.counters.clone();
        for due in self.sad.due(now, |slot| counters.counters(slot)) {
            let command = match due.kind {
                sad::lifetime::LifetimeKind::Soft => Command::RekeyChild { spi_in: due.spi_in },
                sad::lifetime::LifetimeKind::Hard => Command::DeleteChild { spi_in: due.spi_in },
            };
            self.log.note(
                "lifetime",
                format!(
                    "{}/{} SA {}: {:?}",
                    due.connection, due.child, due.spi_in, due.kind
                ),
            );
            self.engine_command(command);
        }
        self.rekey_suspects();
        self.redial(now);
    }
}
