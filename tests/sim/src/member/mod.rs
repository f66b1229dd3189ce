//! One member: the real node, engine, SA database and data plane, and between them what `userspace/agent` does, without
//! sockets. The order of effects is the agent's (userspace/agent/src/core).

mod commits;
mod forks;
mod guest_offers;
mod guests;
mod limits;
mod outputs;
mod owner;
mod per_cpu;
mod slow;
mod snapshot;

use crate::around::{Around, Clock, GuestSpis};
use crate::check::Watch;
use crate::entry::EntryChange;
use crate::plane::{Host, Outcome, Plane};
use crate::rng::Rng;
use crate::sabotage::Sabotage;
use crate::trace::Trace;
use cluster::{EngineKind, Input, Layout, Link, Node, NodeConfig, OwnershipOp, Solo};
use ike::{Command, Engine, EngineConfig, Transmit};
use model::{Epoch, EspSpi, GroupId, IkeSpi, InitialLimits, Instant, MemberId, SecretBytes, SegmentId};
use sad::{LimitRaise, Sad, Settings};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Looks at all SAs this often.
pub const SCAN: Duration = Duration::from_millis(100);

/// What leaves a member.
pub enum Effect {
    /// A record on the stream of a link.
    Stream {
        /// To whom.
        to: MemberId,
        /// Which link.
        link: Link,
        /// The record.
        bytes: Vec<u8>,
    },
    /// A record as a datagram.
    Datagram {
        /// To whom.
        to: MemberId,
        /// Which link.
        link: Link,
        /// The record.
        bytes: Vec<u8>,
    },
    /// A frame, out of an interface.
    Frame {
        /// Interface.
        ifindex: u32,
        /// Octets.
        octets: Vec<u8>,
    },
    /// An IKE message from the agent's socket.
    Ike(Transmit),
    /// The addresses of a group are here.
    Announce(GroupId),
    /// A question to the ownership engine.
    Ownership {
        /// For the answer.
        token: u64,
        /// Whose key.
        group: GroupId,
        /// What.
        op: OwnershipOp,
    },
}

/// What a step of a host may touch.
pub struct Cx<'a> {
    /// The time.
    pub now: Instant,
    /// What leaves.
    pub effects: &'a mut Vec<Effect>,
    /// The checkers.
    pub watch: &'a mut Watch,
    /// The story.
    pub trace: &'a mut Trace,
}

/// A commit of the engine that waits for its acknowledgement.
struct Pending {
    token: u64,
    group: GroupId,
    changes: Vec<EntryChange>,
    transmits: Vec<Transmit>,
    about: Vec<IkeSpi>,
    alone: bool,
    /// Proposals of the same commit for other groups: its messages wait for all of them.
    siblings: BTreeSet<u64>,
    /// Its changes have taken effect.
    done: bool,
    origin: guests::Origin,
}

/// Who owns a group, as the maps have it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ownership {
    /// The owner.
    pub owner: Option<MemberId>,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its in-sync set is itself alone.
    pub alone: bool,
}

/// What a member is made of at a start.
pub struct MemberConfig {
    /// The node.
    pub node: NodeConfig,
    /// The engine.
    pub engine: EngineConfig,
    /// The data plane.
    pub host: Host,
    /// Policies.
    pub policies: Vec<sad::Policy>,
    /// First limits of new SAs.
    pub limits: InitialLimits,
    /// Raises are cut to this many numbers above what is needed, so that limits are met often.
    pub step_max: u64,
    /// SPIs that are kept ready for each other member, by CPU; none where no connection has Child SAs per member.
    pub ready: Vec<(u16, usize)>,
    /// Its wall clock, where connections ask for it.
    pub clock: Option<Clock>,
    /// Connections that this cluster initiates.
    pub initiates: Vec<String>,
    /// A rule to break.
    pub sabotage: Option<Sabotage>,
}

/// One member in one life.
pub struct Member {
    /// Who.
    pub me: MemberId,
    /// Which start.
    pub life: u64,
    /// Layout.
    pub layout: Layout,
    /// The node under test.
    pub node: Node,
    /// The engine under test.
    pub engine: Engine,
    /// The SA database under test.
    pub sad: Sad,
    /// The data plane under test.
    pub plane: Plane,
    /// Committed records of IKE SAs.
    pub mirror: BTreeMap<IkeSpi, SecretBytes>,
    /// Who owns what, as the maps have it.
    pub ownership: BTreeMap<GroupId, Ownership>,
    before: BTreeMap<GroupId, Ownership>,
    /// Groups whose IKE SAs the engine has. A taker's words may name it before that: until then it must not initiate anything.
    serving: BTreeSet<GroupId>,
    pending: VecDeque<Pending>,
    slow: slow::Waiting,
    /// When the rekey of each was begun last.
    suspects: BTreeMap<EspSpi, Option<Instant>>,
    suspects_begun: BTreeSet<GroupId>,
    suspects_told: BTreeMap<GroupId, usize>,
    forks: forks::Forks,
    /// Child SAs per member.
    guests: guests::MemberSas,
    /// What the owner of a pair does alone: it says what a loss taints.
    solo: Solo,
    evidence: BTreeSet<EspSpi>,
    refused: BTreeMap<EspSpi, Instant>,
    advancing: BTreeMap<u32, LimitRaise>,
    /// Child SAs that were asked for, for a CPU or member beside a shared one, and when.
    asked: BTreeMap<(EspSpi, u32), Instant>,
    reported: BTreeMap<EspSpi, u64>,
    withholding: BTreeSet<GroupId>,
    redial: BTreeMap<String, (Instant, u32)>,
    /// Peers that began anew, by the IKE SA with whose record the others hear of it.
    contacts: BTreeMap<IkeSpi, EntryChange>,
    rng: Rng,
    next_token: u64,
    settling: bool,
    deferred: VecDeque<cluster::Output>,
    steer_key: [u64; 2],
    limits: InitialLimits,
    step_max: u64,
    clock: Option<Clock>,
    initiates: Vec<String>,
    sabotage: Option<Sabotage>,
    first_snapshots: BTreeMap<GroupId, Vec<u8>>,
    next_scan: Instant,
    next_second: Instant,
}

impl Member {
    /// A member that has just started and knows nothing.
    pub fn new(config: MemberConfig, rng: Rng, now: Instant) -> Self {
        let me = config.node.me;
        let guests = guests::MemberSas::new(me, config.node.layout, config.ready, now);
        let solo = match config.node.engine {
            EngineKind::Pair { solo } => solo,
            EngineKind::External => Solo::Stop,
        };
        let mut rng = rng;
        let spi_member = match config.sabotage {
            Some(Sabotage::SpiOfMemberOne) => MemberId(1),
            _ => me,
        };
        let mut sad = Sad::new(Settings {
            member: spi_member,
            max_slots: config.host.slots(),
            cpus: config.host.cpus,
            first_generation: rng.range(1, 200) as u8,
            outside_mtu: 1500,
            detection: Duration::from_millis(100),
            lifetimes: sad::lifetime::Lifetimes::NONE,
        });
        let mut plane = Plane::new(&config.host, config.sabotage);
        plane.set_member(me.0, crate::plane::reached_at(config.host.macs));
        let plan = sad.configure(config.policies).expect("the policies fit");
        plane.execute(&plan).expect("the maps are there");
        Self {
            me,
            life: config.node.incarnation.0,
            layout: config.node.layout,
            steer_key: config.host.steer_key,
            node: Node::new(config.node, now),
            engine: Engine::new(config.engine),
            sad,
            plane,
            mirror: BTreeMap::new(),
            ownership: BTreeMap::new(),
            before: BTreeMap::new(),
            serving: BTreeSet::new(),
            pending: VecDeque::new(),
            slow: slow::Waiting::default(),
            suspects: BTreeMap::new(),
            suspects_begun: BTreeSet::new(),
            suspects_told: BTreeMap::new(),
            forks: forks::Forks::default(),
            guests,
            solo,
            evidence: BTreeSet::new(),
            refused: BTreeMap::new(),
            advancing: BTreeMap::new(),
            asked: BTreeMap::new(),
            reported: BTreeMap::new(),
            withholding: BTreeSet::new(),
            redial: BTreeMap::new(),
            contacts: BTreeMap::new(),
            rng,
            next_token: 0,
            settling: false,
            deferred: VecDeque::new(),
            limits: config.limits,
            step_max: config.step_max,
            clock: config.clock,
            initiates: config.initiates,
            sabotage: config.sabotage,
            first_snapshots: BTreeMap::new(),
            next_scan: now,
            next_second: now,
        }
    }

    fn of(&self, group: GroupId) -> Ownership {
        self.ownership.get(&group).copied().unwrap_or_default()
    }

    fn group_of(&self, spi: IkeSpi) -> GroupId {
        self.layout.group_of(spi.segment())
    }

    fn group_of_child(&self, spi: EspSpi) -> GroupId {
        self.layout.group_of_slot(maps_schema::sad::spi_slot(spi.0))
    }

    /// Whether the maps say that this member owns the group.
    pub fn owns(&self, group: GroupId) -> bool {
        self.of(group).owner == Some(self.me)
    }

    fn owns_any(&self) -> bool {
        self.layout.groups().any(|g| self.owns(g))
    }

    /// The next time at which the agent has something to do by itself.
    pub fn next_wake(&self) -> Instant {
        let engine = self
            .engine
            .next_timeout()
            .filter(|_| self.owns_any())
            .unwrap_or(Instant(u64::MAX));
        let guests = self.guests.due();
        [
            engine,
            self.node.next_wake(),
            self.next_scan,
            self.next_second,
            guests,
            self.sad.lingering_due().unwrap_or(Instant(u64::MAX)),
        ]
        .into_iter()
        .min()
        .unwrap_or(self.next_scan)
    }

    /// The turn of the agent's event loop that looks at clocks.
    pub fn turn(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        if self.engine.next_timeout().is_some_and(|at| at <= now) && self.owns_any() {
            self.engine_input(cx, ike::Input::Timeout { now });
        }
        if self.node.next_wake() <= now {
            self.node_input(cx, Input::Tick { now });
        }
        if self.next_scan <= now {
            self.next_scan = now + SCAN;
            self.fetch(cx);
            self.scan_limits(cx);
            self.report_edges(cx);
        }
        if self.sad.lingering_due().is_some_and(|at| at <= now) {
            let plan = self.sad.end_lingering(now, usize::MAX);
            self.execute(&plan);
        }
        if self.guests.due() <= now {
            self.guests_turn(cx);
        }
        if self.next_second <= now {
            self.next_second = now + Duration::from_secs(1);
            self.every_second(cx);
        }
        self.tell_suspects(cx);
    }

    fn every_second(&mut self, cx: &mut Cx<'_>) {
        if !self.owns_any() {
            return;
        }
        self.sweep_waiting(cx);
        self.ask_for_members(cx);
        self.rekey_suspects(cx);
        self.reestablish(cx);
        self.redial(cx);
    }

    /// Initiates what is to be up and is not, with growing pauses.
    fn redial(&mut self, cx: &mut Cx<'_>) {
        for name in self.initiates.clone() {
            let segment = crate::around::segment_of_name(self.steer_key, &name);
            let phase = self.engine.connection_phase(&name);
            let (not_before, attempts) = self.redial.get(&name).copied().unwrap_or_default();
            if !self.serving.contains(&self.layout.group_of(segment))
                || !matches!(phase, ike::ConnectionPhase::Down | ike::ConnectionPhase::Partial)
                || cx.now < not_before
            {
                continue;
            }
            let pause = Duration::from_secs(1 << attempts.min(2));
            self.redial.insert(name.clone(), (cx.now + pause, attempts + 1));
            self.engine_command(cx, Command::Initiate { connection: name });
        }
    }

    /// Hands an input to the engine and sees all its consequences through.
    pub fn engine_input(&mut self, cx: &mut Cx<'_>, input: ike::Input<'_>) {
        self.with_engine(cx, |engine, around| engine.handle(input, around));
        self.settle(cx);
    }

    fn with_engine(&mut self, cx: &mut Cx<'_>, f: impl FnOnce(&mut Engine, &mut Around<'_>)) {
        let (ownership, layout) = (&self.ownership, self.layout);
        let told = self.sabotage != Some(Sabotage::IvWithoutSender);
        let epoch_of = |segment: SegmentId| {
            told.then(|| {
                ownership
                    .get(&layout.group_of(segment))
                    .copied()
                    .unwrap_or_default()
                    .epoch
            })
        };
        let mut drawn = Vec::new();
        let plane = &self.plane;
        let counters = |slot| plane.counters(slot);
        let owners = guests::Ownerships {
            me: self.me,
            now: cx.now,
            layout,
            node: &self.node,
            ownership,
            serving: &self.serving,
            plane,
        };
        let mut around = Around {
            sad: &mut self.sad,
            rng: &mut self.rng,
            member: self.me,
            epoch_of: &epoch_of,
            steer_key: self.steer_key,
            limits: self.limits,
            drawn: &mut drawn,
            now: cx.now,
            unix_time: self.clock.map(|clock| clock.unix_time(cx.now)),
            counters: &counters,
            advances: Vec::new(),
            guests: Some(GuestSpis {
                sponsor: &mut self.guests.machine.sponsor,
                owners: &owners,
            }),
        };
        f(&mut self.engine, &mut around);
        let advances = around.advances;
        self.advance(cx, advances);
        for spi in drawn {
            cx.watch.drawn(cx.now, self.me, self.life, spi);
        }
    }

    fn engine_command(&mut self, cx: &mut Cx<'_>, command: Command) {
        let now = cx.now;
        self.engine_input(cx, ike::Input::Command { now, command });
    }

    /// Hands an input to the node and sees all its consequences through.
    pub fn node_input(&mut self, cx: &mut Cx<'_>, input: Input) {
        self.node.handle(input);
        self.settle(cx);
    }

    /// A link of the synch channel came up or went down.
    pub fn link(&mut self, cx: &mut Cx<'_>, peer: MemberId, link: Link, up: bool) {
        let now = cx.now;
        if up {
            self.node_input(cx, Input::LinkUp { now, peer, link });
            return;
        }
        self.node_input(cx, Input::LinkDown { now, peer, link });
        if self.sabotage == Some(Sabotage::LinkLossKills) && !self.owns_any() {
            let all: Vec<GroupId> = self.layout.groups().collect();
            for group in all {
                self.forget(group);
            }
        }
    }

    /// A record of the synch channel.
    pub fn record(&mut self, cx: &mut Cx<'_>, peer: MemberId, link: Link, bytes: Vec<u8>) {
        let now = cx.now;
        if self.sabotage == Some(Sabotage::GarbageDrains)
            && cluster::message::Message::decode(&bytes).is_err()
        {
            let command = cluster::Command::Drain;
            self.node_input(cx, Input::Command { now, command });
        }
        self.node_input(
            cx,
            Input::Received {
                now,
                peer,
                link,
                bytes,
            },
        );
    }

    /// Moves outputs on until nobody has any left.
    fn settle(&mut self, cx: &mut Cx<'_>) {
        if self.settling {
            return;
        }
        self.settling = true;
        loop {
            if let Some(output) = self.deferred.pop_front() {
                self.node_output(cx, output);
            } else if let Some(output) = self.node.poll() {
                self.node_output(cx, output);
            } else if let Some(output) = self.engine.poll() {
                self.engine_output(cx, output);
            } else if let Some(act) = self.guests.machine.poll() {
                self.guest_act(cx, act);
            } else {
                break;
            }
        }
        self.settling = false;
    }

    /// A frame arrives. The programs run whether the agent does or not; `agent` is false where it does not.
    pub fn frame(&mut self, cx: &mut Cx<'_>, inside: bool, octets: Vec<u8>, agent: bool) -> Option<Vec<u8>> {
        let mut datagram = None;
        match self.plane.run(cx.now, inside, octets) {
            Outcome::Gone(verdict) => {
                cx.trace
                    .note(cx.now, "dropped", [u64::from(self.me.0), verdict as u64], || {
                        format!("member {}: {verdict:?}", self.me)
                    });
            }
            Outcome::Stack(verdict, octets) => {
                if verdict == maps_schema::verdict::Verdict::IkeToAgent {
                    datagram = Some(octets);
                }
            }
            Outcome::Send { ifindex, octets, esp } => {
                if let Some(esp) = esp {
                    cx.watch.esp(cx.now, self.me, &esp, &octets);
                }
                cx.effects.push(Effect::Frame { ifindex, octets });
            }
        }
        if agent {
            self.fetch(cx);
        }
        datagram
    }

    /// Events and frames of the programs' ring buffers.
    pub fn fetch(&mut self, cx: &mut Cx<'_>) {
        let events = std::mem::take(&mut self.plane.events);
        if !events.is_empty() {
            self.program_events(cx, &events);
        }
        for frame in std::mem::take(&mut self.plane.slow) {
            self.slow_frame(cx, frame);
        }
    }

    /// An IKE message that the programs left to the agent's socket.
    pub fn ike_datagram(&mut self, cx: &mut Cx<'_>, from: &crate::frames::IkeDatagram) {
        let Some(segment) = crate::frames::segment_of(self.steer_key, &from.bytes) else {
            return;
        };
        if !self.serving.contains(&self.layout.group_of(segment)) {
            return;
        }
        let now = cx.now;
        self.engine_input(
            cx,
            ike::Input::Datagram {
                now,
                local: from.local,
                remote: from.remote,
                bytes: &from.bytes,
            },
        );
    }
}
