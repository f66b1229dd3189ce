//! The checkers: they look at what leaves and enters, at owner words and at what is in the databases, and know nothing of how
//! the code under test comes to it. One file for each requirement of docs/ARCHITECTURE.md's list.

mod dead_man;
mod liveness;
mod mirror;
mod one_ike_sa;
mod planned;
mod r01_survivor;
mod r03_message_ids;
mod r04_sequence;
mod r05_synch_traffic;
mod r06_replay;
mod r07_synch_loss;
mod r08_one_answer;
mod r09_guests;
mod r10_nonces;
mod r11_addresses;
mod r12_spis;
mod r13_garbage;
mod rests;
mod truth;

use crate::around::Drawn;
use crate::entry::EntryChange;
use crate::frames::Packet;
use crate::plane::Esp;
use cluster::io::{EventKind, Flip};
use cluster::{Event, Layout};
use model::{EspSpi, GroupId, Instant, MemberId};
use sad::SaEntry;
use std::collections::BTreeMap;

pub use liveness::{SERVICE_WITHIN, TAKEOVER_WITHIN};
pub use mirror::{MirrorView, differences, view as mirror_of};
pub use one_ike_sa::more_or_less;
pub use r09_guests::disagreements;
pub use rests::{Part, Parts, overlap, parts};
pub use truth::Truth;

/// A breach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Requirement, for example `R4`.
    pub rule: &'static str,
    /// When it was seen.
    pub at: Instant,
    /// What.
    pub text: String,
}

/// What a run is, as far as rules depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The embedded pair engine, and whether its owner goes on alone (`solo = "continue"`): a split keeps only what
    /// docs/SYNCH-CHANNEL.md says.
    pub pair: Option<bool>,
    /// The cut of the segments.
    pub layout: Layout,
    /// The cluster's outside address.
    pub address: u32,
    /// Nothing happens but loss, duplication and disorder on the synch network: then no SA may die.
    pub noise_only: bool,
    /// Nothing happens but that peers begin anew: then no member keeps what it has of their lives before.
    pub anew_only: bool,
    /// Nothing happens but planned takeovers from here on: then no packet is lost.
    pub planned_from: Option<Instant>,
    /// And where some may be lost: they are counted.
    pub may_lose: bool,
    /// Key of the steering hash.
    pub steer_key: [u64; 2],
}

/// All checkers of a run.
pub struct Watch {
    /// What a run is.
    pub facts: Facts,
    /// What was found.
    pub violations: Vec<Violation>,
    /// Who owned what, and when the cluster was split.
    pub truth: Truth,
    /// Messages of the synch channel, in octets, and data packets.
    pub traffic: r05_synch_traffic::Traffic,
    /// Takeover and service.
    pub liveness: liveness::Liveness,
    survivor: r01_survivor::Survivor,
    ids: r03_message_ids::MessageIds,
    sequence: r04_sequence::Sequence,
    replay: r06_replay::Replay,
    loss: r07_synch_loss::SynchLoss,
    answers: r08_one_answer::Answers,
    guests: r09_guests::GuestSas,
    nonces: r10_nonces::Nonces,
    planned: planned::Planned,
    spis: r12_spis::Spis,
    /// When each peer has last established an IKE SA.
    pub established: BTreeMap<u8, Instant>,
    /// Takeovers (claims from another member).
    pub takeovers: u64,
    /// Planned ones that were completed.
    pub handovers: u64,
    /// IKE SAs of peers whose place was taken by one that was authenticated later.
    pub reauthenticated: u64,
    /// Inner packets that came through, by peer and direction.
    pub delivered: BTreeMap<(u8, bool), u64>,
}

impl Watch {
    /// Nothing seen yet.
    pub fn new(facts: Facts) -> Self {
        Self {
            facts,
            violations: Vec::new(),
            truth: Truth::new(facts.pair),
            traffic: Default::default(),
            liveness: Default::default(),
            survivor: Default::default(),
            ids: Default::default(),
            sequence: Default::default(),
            replay: Default::default(),
            loss: Default::default(),
            answers: Default::default(),
            guests: Default::default(),
            nonces: Default::default(),
            planned: Default::default(),
            spis: Default::default(),
            established: BTreeMap::new(),
            takeovers: 0,
            handovers: 0,
            reauthenticated: 0,
            delivered: BTreeMap::new(),
        }
    }

    /// Whether members may be unable to hear each other, or were until a moment ago.
    pub fn truth_troubled(&self) -> bool {
        self.truth.troubled()
    }

    /// Packets that members sealed with SAs of their own beside another member's IKE SA.
    pub fn guest_packets(&self) -> u64 {
        self.guests.packets
    }

    /// Packets that a lenient policy accepted twice, each counted by the programs.
    pub fn accepted_twice(&self) -> u64 {
        self.replay.counted
    }

    /// Packets that were on their way where only planned takeovers happen, and never came out.
    pub fn lost(&self) -> u64 {
        self.planned.lost()
    }

    /// Notes a breach.
    pub fn breach(&mut self, rule: &'static str, at: Instant, text: String) {
        self.violations.push(Violation { rule, at, text });
    }

    fn found(&mut self, rule: &'static str, at: Instant, found: Result<(), String>) {
        if let Err(text) = found {
            self.breach(rule, at, text);
        }
    }

    /// A member sealed or opened an ESP packet.
    pub fn esp(&mut self, now: Instant, me: MemberId, esp: &Esp, frame: &[u8]) {
        let layout = self.facts.layout;
        let group = layout.group_of_slot(maps_schema::sad::spi_slot(esp.spi));
        // The old owner in a planned handover serves up to its ceiling, by no clock.
        if self.truth.claims(group, me) {
            let found = dead_man::serves(now, me, &self.truth);
            self.found("dead-man", now, found);
        }
        if esp.opened {
            let found = self.replay.accepted(now, me, esp, group, &self.truth);
            self.found("R6", now, found);
            if let Some(packet) = Packet::read(frame) {
                self.delivered(now, packet);
            }
            return;
        }
        self.traffic.packets += 1;
        let found = self.sequence.sent(now, me, esp);
        self.found("R4", now, found);
        let found = self.sequence.one_sender(now, me, esp, &self.truth);
        self.found("R8", now, found);
        let found = self.guests.sealed(me, esp, frame);
        self.found("R9", now, found);
        let found = self.nonces.esp(me, esp);
        self.found("R10", now, found);
        let found = r11_addresses::esp(self.facts.address, frame);
        self.found("R11", now, found);
    }

    /// A member sent an IKE message.
    pub fn ike_sent(&mut self, now: Instant, me: MemberId, life: u64, bytes: &[u8]) {
        let group = crate::frames::segment_of_sent(bytes).map(|segment| self.facts.layout.group_of(segment));
        let found = self.nonces.ike(me, bytes);
        self.found("R10", now, found);
        let found = self.ids.sent(now, me, bytes, group, &self.truth);
        self.found("R3", now, found);
        let found = self.answers.sent(now, (me, life), bytes, group, &self.truth);
        self.found("R8", now, found);
    }

    /// A peer sent an IKE message: its IVs count as well.
    pub fn peer_ike_sent(&mut self, now: Instant, bytes: &[u8]) {
        let found = self.nonces.ike(MemberId(0), bytes);
        self.found("R10", now, found);
    }

    /// An IKE message left with this source address.
    pub fn ike_source(&mut self, now: Instant, local: std::net::IpAddr) {
        let found = r11_addresses::ike(self.facts.address, local);
        self.found("R11", now, found);
    }

    /// An SPI was allocated.
    pub fn drawn(&mut self, now: Instant, me: MemberId, life: u64, spi: Drawn) {
        let live = match spi {
            Drawn::Esp(spi) => self.survivor.holds(spi),
            Drawn::Ike(_) => false,
        };
        let found = self.spis.drawn(me, life, spi, live);
        self.found("R12", now, found);
    }

    /// A commit took effect at the owner. `known`: a standby is in sync.
    pub fn effective(&mut self, me: MemberId, group: GroupId, changes: &[EntryChange], known: bool) {
        self.survivor.effective(me, group, changes, known);
        self.guests.effective(self.facts.layout, changes);
    }

    /// The record of their IKE SA names these guests, for whoever owns it next.
    pub fn guests_recorded(&mut self, guests: &[EspSpi]) {
        self.guests.recorded(guests);
    }

    /// Messages leave that tell a peer of these guests.
    pub fn guests_promised(&mut self, now: Instant, me: MemberId, guests: &[EspSpi]) {
        let found = self.guests.promised(me, guests);
        self.found("R9", now, found);
    }

    /// A standby has taken an entry over.
    pub fn mirrored(&mut self, me: MemberId, group: GroupId, changes: &[EntryChange]) {
        self.survivor.mirrored(me, group, changes);
    }

    /// A joining member has taken a snapshot over.
    pub fn installed(&mut self, _now: Instant, me: MemberId, group: GroupId) {
        self.survivor.forget(me, group);
    }

    /// A member forgot a group.
    pub fn discarded(&mut self, _now: Instant, me: MemberId, group: GroupId) {
        self.survivor.forget(me, group);
    }

    /// A member serves from here on, with these Child SAs.
    pub fn resumed<'a>(
        &mut self,
        now: Instant,
        me: MemberId,
        _life: u64,
        group: GroupId,
        children: impl Iterator<Item = &'a SaEntry>,
    ) {
        let children = children.collect::<Vec<_>>();
        self.guests.resumed(self.facts.layout, &children);
        let found = self.survivor.resumed(me, group, children.into_iter());
        self.found("R1", now, found);
    }

    /// A member wrote owner words.
    pub fn flipped(&mut self, now: Instant, me: MemberId, life: u64, flip: &Flip) {
        self.truth.flipped(now, me, life, flip);
    }

    /// The node says something.
    pub fn node_event(&mut self, now: Instant, me: MemberId, _life: u64, event: &Event) {
        let Some(group) = event.group else { return };
        match &event.kind {
            EventKind::Claimed { from, planned, .. } => {
                self.survivor.claimed(me, group, *from);
                if from.0 == 0 {
                    self.truth.fresh(now, group);
                    self.survivor.fresh(group);
                } else {
                    self.takeovers += 1;
                    self.handovers += u64::from(*planned);
                }
            }
            EventKind::Excluded { member, .. } => self.truth.excluded(now, group, *member),
            EventKind::WasExcluded => self.liveness.is_out(me, group),
            EventKind::InSync(set) => {
                if set.len() > 1 {
                    self.survivor.known(me, group);
                }
                self.truth.in_sync(group, set);
                self.liveness.in_sync(me, group, set);
            }
            _ => {}
        }
    }

    /// The cluster's engine says something.
    pub fn gateway_event(&mut self, now: Instant, me: MemberId, event: &ike::Event) {
        if self.facts.noise_only {
            let found = self.loss.event(&format!("member {me}"), event);
            self.found("R7", now, found);
        }
    }

    /// A peer's engine says something.
    pub fn peer_event(&mut self, now: Instant, peer: u8, event: &ike::Event) {
        if event.kind == ike::EventKind::Established {
            self.established.insert(peer, now);
        }
        self.reauthenticated += u64::from(event.kind == ike::EventKind::Reauthenticated);
        if self.facts.noise_only {
            let found = self.loss.event(&format!("peer {peer}"), event);
            self.found("R7", now, found);
        }
    }

    /// A member handled a record that cannot be read: its state before and after.
    pub fn garbage(&mut self, now: Instant, me: MemberId, before: u64, after: u64) {
        let found = r13_garbage::unchanged(me, before, after);
        self.found("R13", now, found);
    }

    /// A host behind a peer sent a packet that left the peer.
    pub fn peer_sent(&mut self, now: Instant, packet: Packet) {
        self.traffic.packets += 1;
        self.entered(now, packet);
    }

    /// A packet is on its way through the cluster, from inside or from a peer.
    pub fn entered(&mut self, now: Instant, packet: Packet) {
        let (flows, since) = (&self.liveness, Instant::default());
        let up = [false, true]
            .iter()
            .all(|way| flows.flows(packet.peer, *way, since));
        if self.facts.planned_from.is_some_and(|from| now >= from) && up {
            self.planned.entered(now, packet);
        }
    }

    /// The run is over.
    pub fn ended(&mut self, now: Instant) {
        if self.facts.may_lose {
            return;
        }
        let found = self.planned.ended();
        self.found("planned", now, found);
    }

    /// An inner packet has arrived where it was to go.
    pub fn delivered(&mut self, now: Instant, packet: Packet) {
        *self.delivered.entry((packet.peer, packet.outbound)).or_default() += 1;
        self.liveness.delivered(now, packet);
        self.planned.delivered(packet);
    }
}

/// Synch traffic at one moment.
pub type TrafficMark = r05_synch_traffic::Traffic;
