//! Child SAs per member (RFC 9611, ADR 11): `userspace/agent/src/core/guests.rs` in small.

use super::{Cx, Member, Ownership};
use crate::entry::EntryChange;
use crate::plane::Plane;
use crate::sabotage::Sabotage;
use cluster::guest::sponsor::Part;
use cluster::guest::{Act, Found, GuestBody, Guests, Known, Owners, View, Wish};
use cluster::{EpochId, Input, Layout, Node, SetMember};
use ike::{Change, Command, Commit, Engine, Transmit};
use model::{ChildSaChange, EspSpi, GroupId, IkeSpi, Instant, MemberId};
use sad::{SaEntry, Sad};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// From one turn to the next.
const TURN: Duration = Duration::from_millis(50);
/// Families that one turn brings to a new owner's view.
const STALE: usize = 64;
/// Sooner than the agent does, since a run is short.
const WISH_AGAIN: Duration = Duration::from_secs(2);

/// Whose commit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// This member's engine's.
    Own,
    /// This member's engine's, with guests: the sponsor's job.
    Sponsor(u64),
    /// Another member's engine's: the host's job.
    Host(u64),
}

/// A commit of the engine that does something with guests, or waits for one that does.
struct Held {
    group: GroupId,
    job: u64,
    /// Until it begins.
    part: Option<Part>,
    /// Until it is proposed.
    changes: Vec<EntryChange>,
    transmits: Vec<Transmit>,
    about: BTreeSet<IkeSpi>,
    /// Guests that it installs.
    installs: Vec<EspSpi>,
}

/// What a member keeps for Child SAs per member.
pub(super) struct MemberSas {
    pub machine: Guests,
    /// What sponsors were asked for, and when it was said last.
    pub wishes: BTreeMap<EspSpi, (Wish, Instant)>,
    /// SPIs that are kept ready, by CPU.
    pub ready: Vec<(u16, usize)>,
    /// Segment of the last SPI that was reserved for another member.
    pub segment: u8,
    due: Instant,
    next_job: u64,
    /// In the order in which they came.
    held: VecDeque<Held>,
}

impl MemberSas {
    pub fn new(me: MemberId, layout: Layout, ready: Vec<(u16, usize)>, now: Instant) -> Self {
        Self {
            machine: Guests::new(me, layout),
            wishes: BTreeMap::new(),
            ready,
            segment: 0,
            due: now,
            next_job: 0,
            held: VecDeque::new(),
        }
    }

    /// A connection has Child SAs per member.
    pub fn wanted(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When there is something to do next.
    pub fn due(&self) -> Instant {
        if self.wanted() {
            self.due
        } else {
            Instant(u64::MAX)
        }
    }

    /// Where a message about this IKE SA waits.
    pub fn held_about(&mut self, spi: IkeSpi) -> Option<&mut Vec<Transmit>> {
        let mut held = self.held.iter_mut().rev();
        let behind = held.find(|held| held.about.contains(&spi))?;
        Some(&mut behind.transmits)
    }

    /// Commits of a group that wait will not come to anything here.
    pub fn give_up(&mut self, group: GroupId) {
        self.held.retain(|held| held.group != group);
    }
}

/// Who owns what.
pub(super) struct Ownerships<'a> {
    pub me: MemberId,
    pub now: Instant,
    pub layout: Layout,
    pub node: &'a Node,
    pub ownership: &'a BTreeMap<GroupId, Ownership>,
    pub serving: &'a BTreeSet<GroupId>,
    pub plane: &'a Plane,
}

impl Owners for Ownerships<'_> {
    fn epoch(&self, group: GroupId) -> EpochId {
        self.node.epoch(group)
    }

    fn serves(&self, group: GroupId) -> bool {
        let owns = self.ownership.get(&group).and_then(|o| o.owner) == Some(self.me);
        self.node.owns(group) && owns && self.serving.contains(&group)
    }

    fn has_all(&self, group: GroupId) -> bool {
        let until = self.layout.segments(group).next();
        let until = until.map_or(0, |segment| self.plane.word(segment.0).valid_until_ms);
        self.now <= Instant::from_millis(until) && self.serves(group)
    }
}

struct Surroundings<'a> {
    owners: Ownerships<'a>,
    sad: &'a Sad,
    engine: &'a Engine,
}

impl Owners for Surroundings<'_> {
    fn epoch(&self, group: GroupId) -> EpochId {
        self.owners.epoch(group)
    }

    fn serves(&self, group: GroupId) -> bool {
        self.owners.serves(group)
    }

    fn has_all(&self, group: GroupId) -> bool {
        self.owners.has_all(group)
    }
}

fn found(entry: &SaEntry) -> Found {
    Found {
        spi_in: entry.record.spi_in,
        spi_out: entry.record.spi_out,
        ike_spi: entry.record.ike_spi,
        remote: entry.record.remote,
        in_use: entry.carries_outbound(),
    }
}

impl View for Surroundings<'_> {
    fn sa(&self, spi_in: EspSpi) -> Option<Found> {
        self.sad.get(spi_in).map(found)
    }

    fn guests(&self, group: GroupId, of: GroupId, first: IkeSpi, last: IkeSpi) -> Vec<Found> {
        let layout = self.owners.layout;
        self.sad
            .guests()
            .filter(|e| layout.group_of(e.segment()) == group)
            .filter(|e| layout.group_of(e.record.ike_spi.segment()) == of)
            .filter(|e| (first..=last).contains(&e.record.ike_spi))
            .map(found)
            .collect()
    }

    fn known(&self, ike_spi: IkeSpi, spi_in: EspSpi) -> Option<Known> {
        let sa = self.engine.status_of(ike_spi)?;
        let child = sa.children.iter().find(|child| child.spi_in == spi_in)?;
        Some(Known {
            ike_spi,
            remote: sa.remote,
            in_use: child.phase == "installed",
        })
    }
}

/// A commit's own part for one group: changes, messages, and what it does with guests.
#[derive(Default)]
struct GroupPart {
    changes: Vec<EntryChange>,
    transmits: Vec<Transmit>,
    guests: Part,
}

fn command_of(spi_in: EspSpi, wish: Wish) -> Command {
    match wish {
        Wish::Rekey => Command::RekeyChild { spi_in },
        Wish::Delete => Command::DeleteChild { spi_in },
        Wish::Repair { delta } => Command::RepairInbound { spi_in, delta },
    }
}

impl Member {
    fn with_guests<T>(&mut self, now: Instant, work: impl FnOnce(&mut Guests, &dyn View) -> T) -> T {
        let view = Surroundings {
            owners: Ownerships {
                me: self.me,
                now,
                layout: self.layout,
                node: &self.node,
                ownership: &self.ownership,
                serving: &self.serving,
                plane: &self.plane,
            },
            sad: &self.sad,
            engine: &self.engine,
        };
        work(&mut self.guests.machine, &view)
    }

    /// The group of the IKE SA, where the change is about a guest.
    fn sponsor_of(&self, change: &ChildSaChange) -> Option<GroupId> {
        let ike_spi = match change {
            ChildSaChange::Install { record, .. } => record.ike_spi,
            other => self.guests.machine.sponsor.ike_spi_of(other.spi_in())?,
        };
        let group = self.group_of(ike_spi);
        (group != self.group_of_child(change.spi_in())).then_some(group)
    }

    /// A commit of the engine, cut by groups; what it does with guests is for the journals of their hosts.
    pub(super) fn commit_in_parts(&mut self, cx: &mut Cx<'_>, commit: Commit) {
        let mut parts: BTreeMap<GroupId, GroupPart> = BTreeMap::new();
        for change in commit.changes {
            let sponsor = match &change {
                Change::ChildSa(change) => self.sponsor_of(change),
                Change::IkeSa(_) => None,
            };
            match (change, sponsor) {
                (Change::ChildSa(change), Some(group)) => {
                    let guests = &mut parts.entry(group).or_default().guests;
                    let early = self.sabotage == Some(Sabotage::GuestUsedAtOnce);
                    match change {
                        ChildSaChange::Bind { spi_in, now: true } if early => {
                            let use_now = ChildSaChange::Bind { spi_in, now: true };
                            match guests.before.iter_mut().find(|(spi, _)| *spi == spi_in) {
                                Some((_, changes)) => changes.push(use_now),
                                None => guests.add(use_now),
                            }
                        }
                        change => guests.add(change),
                    }
                }
                (change, _) => {
                    let group = self.layout.group_of(change.segment());
                    let changes = &mut parts.entry(group).or_default().changes;
                    changes.push(EntryChange::from(change));
                }
            }
        }
        for transmit in commit.transmits {
            let first = parts.keys().next().copied().unwrap_or_default();
            let group = transmit.ike_spi.map_or(first, |spi| self.group_of(spi));
            parts.entry(group).or_default().transmits.push(transmit);
        }
        for (group, part) in parts {
            self.commit_with_guests(cx, group, part);
        }
    }

    fn commit_with_guests(&mut self, cx: &mut Cx<'_>, group: GroupId, part: GroupPart) {
        let GroupPart {
            changes,
            transmits,
            guests,
        } = part;
        let of_changes = changes.iter().filter_map(|change| match change {
            EntryChange::IkePut(spi, _) | EntryChange::IkeRemove(spi) => Some(*spi),
            _ => None,
        });
        let of_transmits = transmits.iter().filter_map(|t| t.ike_spi);
        let about: BTreeSet<IkeSpi> = of_changes.chain(of_transmits.clone()).collect();
        let mut held = self.guests.held.iter().filter(|held| held.group == group);
        let waits = held.any(|held| !held.about.is_disjoint(&about));
        if !self.owns(group) {
            return;
        }
        if guests.is_empty() && !waits {
            if changes.is_empty() {
                for transmit in transmits {
                    self.transmit_in_order(cx, transmit);
                }
                return;
            }
            let about = of_transmits.collect();
            return self.propose_as(cx, Origin::Own, group, changes, (transmits, about));
        }
        let installs = guests.before.iter().filter(|(_, changes)| {
            let first = changes.first();
            matches!(first, Some(ChildSaChange::Install { .. }))
        });
        let installs = installs.map(|(spi_in, _)| *spi_in).collect();
        self.guests.next_job += 1;
        let job = self.guests.next_job;
        self.guests.held.push_back(Held {
            group,
            job,
            part: Some(guests),
            changes,
            transmits,
            about,
            installs,
        });
        self.begin_held(cx, group);
    }

    /// Begins whatever waits for nothing that came before.
    fn begin_held(&mut self, cx: &Cx<'_>, group: GroupId) {
        let mut before: BTreeSet<IkeSpi> = BTreeSet::new();
        let mut ready = Vec::new();
        for held in self.guests.held.iter_mut().filter(|held| held.group == group) {
            if held.about.is_disjoint(&before)
                && let Some(part) = held.part.take()
            {
                ready.push((held.job, part));
            }
            before.extend(held.about.iter().copied());
        }
        let now = cx.now;
        for (job, part) in ready {
            self.with_guests(now, |guests, view| {
                guests.sponsor.begin(now, view, job, group, part);
            });
        }
    }

    pub(super) fn guest_act(&mut self, cx: &mut Cx<'_>, act: Act) {
        match act {
            Act::Say {
                body: GuestBody::Roster { .. },
                ..
            } if self.sabotage == Some(Sabotage::RosterUnsaid) => {}
            Act::Say { to, group, body } => {
                let asked = match &body {
                    GuestBody::Change { voice, spi_in, .. } => Some((voice.number, *spi_in)),
                    _ => None,
                };
                if to == self.me {
                    let from = self.node.me();
                    self.guest_heard(cx, from, group, body);
                } else {
                    self.node.handle(Input::SayGuest { to, group, body });
                }
                if let Some((number, spi_in)) =
                    asked.filter(|_| self.sabotage == Some(Sabotage::GuestUnconfirmed))
                {
                    let from = SetMember {
                        member: to,
                        incarnation: model::Incarnation(0),
                    };
                    let done = true;
                    let body = GuestBody::Answer { spi_in, number, done };
                    self.guest_heard(cx, from, group, body);
                }
            }
            Act::Propose { group, job, changes } => {
                let changes: Vec<_> = changes.into_iter().map(EntryChange::Child).collect();
                if self.sabotage == Some(Sabotage::GuestUnjournalled) {
                    let epoch = self.of(group).epoch;
                    let applied = self.apply(cx, group, &changes, epoch, false).is_empty();
                    cx.watch.effective(self.me, group, &changes, true);
                    return self.guests_committed(cx, Origin::Host(job), applied);
                }
                self.propose_as(cx, Origin::Host(job), group, changes, (Vec::new(), Vec::new()));
            }
            Act::Release(spi) => self.sad.release_spi(spi),
            Act::Ready(job) => self.propose_held(cx, job),
            Act::Done(job, failed) => self.guests_done(cx, job, &failed),
            Act::Lost(spi_in) => {
                cx.trace.note(cx.now, "guest-lost", [u64::from(spi_in.0), 0], || {
                    format!("member {}: its host does not have guest {spi_in}", self.me)
                });
                self.engine_command(cx, Command::DeleteChild { spi_in });
            }
            Act::Wished(spi_in, wish) => {
                if self.guests.machine.sponsor.ike_spi_of(spi_in).is_some() {
                    self.engine_command(cx, command_of(spi_in, wish));
                }
            }
        }
    }

    pub(super) fn guest_heard(&mut self, cx: &Cx<'_>, from: SetMember, group: GroupId, body: GuestBody) {
        let now = cx.now;
        self.with_guests(now, |guests, view| guests.heard(now, view, from, group, body));
    }

    /// The hosts have what comes first: the IKE SA's record is proposed.
    fn propose_held(&mut self, cx: &mut Cx<'_>, job: u64) {
        let Some(held) = self.guests.held.iter_mut().find(|held| held.job == job) else {
            return;
        };
        let (group, changes) = (held.group, std::mem::take(&mut held.changes));
        if changes.is_empty() {
            return self.guests_committed(cx, Origin::Sponsor(job), true);
        }
        self.propose_as(cx, Origin::Sponsor(job), group, changes, (Vec::new(), Vec::new()));
    }

    /// A commit has taken effect.
    pub(super) fn guests_committed(&mut self, cx: &mut Cx<'_>, origin: Origin, applied: bool) {
        let now = cx.now;
        match origin {
            Origin::Own => {}
            Origin::Sponsor(job) => {
                if let Some(held) = self.guests.held.iter().find(|held| held.job == job) {
                    cx.watch.guests_recorded(&held.installs);
                }
                self.with_guests(now, |guests, view| guests.sponsor.own_committed(now, view, job));
            }
            Origin::Host(job) => {
                self.with_guests(now, |guests, view| guests.host.committed(view, job, applied));
            }
        }
    }

    /// All that a commit is about has happened, or will not: its messages leave.
    fn guests_done(&mut self, cx: &mut Cx<'_>, job: u64, failed: &[EspSpi]) {
        let Some(at) = self.guests.held.iter().position(|held| held.job == job) else {
            return;
        };
        let Some(done) = self.guests.held.remove(at) else {
            return;
        };
        let promised = done.installs.iter().filter(|spi| !failed.contains(spi));
        let promised: Vec<EspSpi> = promised.copied().collect();
        cx.watch.guests_promised(cx.now, self.me, &promised);
        for transmit in done.transmits {
            self.transmit(cx, transmit);
        }
        for spi_in in failed {
            cx.trace
                .note(cx.now, "guest-failed", [u64::from(spi_in.0), 0], || {
                    format!("member {}: guest {spi_in} was not taken by its host", self.me)
                });
            self.engine_command(cx, Command::DeleteChild { spi_in: *spi_in });
        }
        self.begin_held(cx, done.group);
    }

    /// Has something done with the peer of an SA: by this member's engine, or by the sponsor's.
    pub(super) fn have_done(&mut self, cx: &mut Cx<'_>, spi_in: EspSpi, wish: Wish) {
        let Some(ike_spi) = self.sad.get(spi_in).map(|e| e.record.ike_spi) else {
            return;
        };
        if self.owns(self.group_of(ike_spi)) {
            return self.engine_command(cx, command_of(spi_in, wish));
        }
        self.guests.wishes.insert(spi_in, (wish, cx.now));
        self.say_wish(ike_spi, spi_in, wish);
    }

    fn say_wish(&mut self, ike_spi: IkeSpi, spi_in: EspSpi, wish: Wish) {
        let group = self.group_of(ike_spi);
        let to = self.node.epoch(group).owner;
        let body = GuestBody::Wish { spi_in, wish };
        self.node.handle(Input::SayGuest { to, group, body });
    }

    /// Sponsors that have not done what they were asked for are asked again.
    fn wish_again(&mut self, now: Instant) {
        let mut again = Vec::new();
        let sad = &self.sad;
        self.guests.wishes.retain(|spi_in, (wish, said)| {
            let Some(entry) = sad.get(*spi_in) else {
                return false;
            };
            // A new SA carries what it carried.
            let open = *wish == Wish::Delete || entry.carries_outbound();
            if open && now.since(*said) >= WISH_AGAIN {
                *said = now;
                again.push((entry.record.ike_spi, *spi_in, *wish));
            }
            open
        });
        for (ike_spi, spi_in, wish) in again {
            self.say_wish(ike_spi, spi_in, wish);
        }
    }

    /// Now and then.
    pub(super) fn guests_turn(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        self.guests.due = now + TURN;
        if self.sad.is_stale() {
            let plan = self.sad.republish(STALE);
            self.execute(&plan);
        }
        self.keep_ready(cx);
        self.wish_again(now);
        self.with_guests(now, |guests, view| guests.tick(now, view));
        self.settle(cx);
    }

    /// Taker: the guests of the IKE SAs that its engine has adopted.
    pub(super) fn adopt_guests(&mut self, cx: &mut Cx<'_>, group: GroupId) {
        if self.sabotage == Some(Sabotage::GuestsForgotten) {
            return;
        }
        let layout = self.layout;
        let adopted = self.engine.spis().into_iter();
        for spi in adopted.filter(|spi| layout.group_of(spi.segment()) == group) {
            let elsewhere = |esp: &EspSpi| layout.group_of(esp.segment()) != group;
            let sponsor = &mut self.guests.machine.sponsor;
            let here: Vec<EspSpi> = self.engine.esp_spis_of(spi).filter(elsewhere).collect();
            cx.watch.guests_recorded(&here);
            for guest in here {
                sponsor.adopt(guest, spi, true);
            }
            for promised in self.engine.pending_esp_spis_of(spi).filter(elsewhere) {
                sponsor.adopt(promised, spi, false);
            }
        }
    }

    /// All IKE SAs of the group are known here now.
    pub(super) fn guests_are_known(&mut self, group: GroupId) {
        if self.guests.wanted() {
            self.guests.machine.sponsor.ready(group);
        }
    }
}
