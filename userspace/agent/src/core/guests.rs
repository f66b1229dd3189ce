//! Child SAs per member (RFC 9611, ADR 11): those on segments of another group than their IKE SA's. `cluster::guest` says in which order
//! things happen; here it meets journal, SA database and engine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cluster::guest::sponsor::Part;
use cluster::guest::{Act, Found, GuestBody, Guests, Known, Owners, View, Wish};
use cluster::{EpochId, Input, Layout, Node, SetMember};
use dataplane::Segments;
use ike::{Command, Commit, Engine, Resource};
use model::{ChildSaChange, EspSpi, GroupId, IkeSpi, Instant, MemberId, SegmentId};
use sad::{SaEntry, Sad};

use super::Core;
use super::entry::EntryChange;
use super::groups::{Groups, Held, Origin};
use crate::clock;
use crate::config::{Config, PerResource};

/// From one turn to the next.
const TURN: Duration = Duration::from_millis(50);
/// SPIs that are kept ready for each other member: as many IKE SAs can have a Child SA here at the same moment.
const READY: usize = 16;
/// The same for each CPU, where CPUs have SAs of their own.
const READY_ON_CPU: usize = 4;
/// A Child SA for a member is asked for no sooner again.
const AGAIN: Duration = Duration::from_secs(60);
/// Shared SAs that a second's look for missing Child SAs goes over.
const LOOKS: usize = 1024;
/// Families that one turn brings to a new owner's view.
const STALE: usize = 64;
/// What a sponsor is asked to do, it is asked again after this time, and not more often than that.
const WISH_AGAIN: Duration = Duration::from_secs(5);
const WISHES_MAX: u32 = 24;

/// What this member keeps for Child SAs per member.
pub struct MemberSas {
    pub machine: Guests,
    /// A connection has some.
    pub wanted: bool,
    /// SPIs that are kept ready, by CPU.
    ready: Vec<(u16, usize)>,
    /// Segment of the last SPI that was reserved for another member.
    segment: u8,
    due: Instant,
    next_job: u64,
    /// Shared SA that the look for missing ones has come to.
    at: Option<sad::FamilyKey>,
    /// What sponsors are asked for, when it was said last, and how often.
    pub wishes: BTreeMap<EspSpi, (Wish, Instant, u32)>,
}

impl MemberSas {
    pub fn new(config: &Config, layout: Layout, cpus: u32) -> Self {
        let mut of = config.connections.iter().map(|c| c.extensions.per_resource);
        let wanted = of.clone().any(PerResource::has_members);
        let ready = if of.any(|of| of == PerResource::Both) {
            let cpus = 0..cpus.min(u32::from(Resource::ANY_CPU));
            cpus.map(|cpu| (cpu as u16, READY_ON_CPU)).collect()
        } else {
            vec![(0, READY)]
        };
        Self {
            machine: Guests::new(config.cluster.member, layout),
            wanted,
            ready,
            segment: 0,
            due: Instant::default(),
            next_job: 0,
            at: None,
            wishes: BTreeMap::new(),
        }
    }
}

/// The CPU that a resource of another member names, if any.
pub fn cpu_of(resource: Resource) -> Option<u16> {
    (resource.cpu != Resource::ANY_CPU).then_some(resource.cpu)
}

/// Who owns what.
pub struct Ownerships<'a> {
    pub node: &'a Node,
    pub groups: &'a Groups,
    pub words: &'a Segments,
}

impl Owners for Ownerships<'_> {
    fn epoch(&self, group: GroupId) -> EpochId {
        self.node.epoch(group)
    }

    fn serves(&self, group: GroupId) -> bool {
        self.node.owns(group) && self.groups.owns(group) && self.groups.get(group).resumed
    }

    fn has_all(&self, group: GroupId) -> bool {
        // Once its word has expired, another member may have taken over without having been heard yet.
        let until = self.groups.layout.segments(group).next();
        let until = until.map_or(0, |segment| self.words.get(segment.0).0.valid_until_ms);
        let valid = clock::now() <= Instant::from_millis(until);
        valid && self.serves(group) && self.groups.get(group).adoption.is_none()
    }
}

/// Everything that the machine looks at.
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
        let layout = self.owners.groups.layout;
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

impl Core {
    fn with_guests<T>(&mut self, work: impl FnOnce(&mut Guests, &dyn View) -> T) -> T {
        let view = Surroundings {
            owners: Ownerships {
                node: &self.node,
                groups: &self.groups,
                words: &self.segments,
            },
            sad: &self.sad,
            engine: &self.engine,
        };
        work(&mut self.guests.machine, &view)
    }

    /// The group of the IKE SA, where the change is about a guest.
    pub(super) fn sponsor_of(&self, change: &ChildSaChange) -> Option<GroupId> {
        let layout = self.groups.layout;
        let ike_spi = match change {
            ChildSaChange::Install { record, .. } => record.ike_spi,
            other => self.guests.machine.sponsor.ike_spi_of(other.spi_in())?,
        };
        let group = layout.group_of(ike_spi.segment());
        (group != layout.group_of(change.spi_in().segment())).then_some(group)
    }

    /// A commit of the engine for a group, and what it does with guests.
    pub(super) fn commit_with_guests(&mut self, group: GroupId, commit: Commit, part: Part) {
        let of_changes = commit.changes.iter().filter_map(|change| match change {
            ike::Change::IkeSa(ike::IkeSaChange::Put { spi, .. } | ike::IkeSaChange::Remove { spi }) => {
                Some(*spi)
            }
            ike::Change::ChildSa(_) => None,
        });
        let of_transmits = commit.transmits.iter().filter_map(|t| t.ike_spi);
        let about: BTreeSet<IkeSpi> = of_changes.chain(of_transmits).collect();
        let held = self.groups.get(group).held.iter();
        let waits = held.flat_map(|held| &held.about).any(|spi| about.contains(spi));
        if part.is_empty() && !waits {
            return self.propose(group, commit);
        }
        if !self.groups.owns(group) {
            tracing::warn!(%group, "a commit for a group of another member was dropped");
            return;
        }
        let replaces = |(_, changes): &(EspSpi, Vec<ChildSaChange>)| match changes.first() {
            Some(ChildSaChange::Install { replaces, .. }) => *replaces,
            _ => None,
        };
        let replaced = part.before.iter().filter_map(replaces).collect();
        self.guests.next_job += 1;
        let job = self.guests.next_job;
        self.groups.get_mut(group).held.push_back(Held {
            job,
            part: Some(part),
            changes: commit.changes.into_iter().map(EntryChange::from).collect(),
            transmits: commit.transmits,
            about: about.into_iter().collect(),
            replaced,
        });
        self.begin_held(group);
    }

    /// Begins whatever waits for nothing that came before.
    fn begin_held(&mut self, group: GroupId) {
        let mut before: BTreeSet<IkeSpi> = BTreeSet::new();
        let mut ready = Vec::new();
        for held in &mut self.groups.get_mut(group).held {
            let free = held.about.iter().all(|spi| !before.contains(spi));
            if free && let Some(part) = held.part.take() {
                ready.push((held.job, part));
            }
            before.extend(held.about.iter().copied());
        }
        for (job, part) in ready {
            self.with_guests(|guests, view| {
                guests.sponsor.begin(clock::now(), view, job, group, part);
            });
        }
    }

    fn held_of(&mut self, job: u64) -> Option<(GroupId, &mut Held)> {
        self.groups.iter_mut().find_map(|group| {
            let id = group.id;
            let held = group.held.iter_mut().find(|held| held.job == job)?;
            Some((id, held))
        })
    }

    /// Something is to be done.
    pub(super) fn guest_act(&mut self, act: Act) {
        match act {
            Act::Say { to, group, body } if to == self.me => {
                let from = self.node.me();
                self.guest_heard(from, group, body);
            }
            Act::Say { to, group, body } => self.node.handle(Input::SayGuest { to, group, body }),
            Act::Propose { group, job, changes } => {
                let changes = changes.into_iter().map(EntryChange::Child).collect();
                self.propose_as(Origin::Host(job), group, changes, Vec::new(), Vec::new());
            }
            Act::Release(spi) => self.sad.release_spi(spi),
            Act::Ready(job) => self.propose_held(job),
            Act::Done(job, failed) => self.guests_done(job, &failed),
            Act::Lost(spi_in) => {
                self.log.warn(
                    "guest_lost",
                    format!("SA {spi_in}: the member that is to serve it does not have it; deleting it with the peer"),
                );
                self.engine_command(Command::DeleteChild { spi_in });
            }
            Act::Wished(spi_in, wish) => {
                if let Some(ike_spi) = self.guests.machine.sponsor.ike_spi_of(spi_in) {
                    self.adopt_first(ike_spi);
                    self.engine_command(command_of(spi_in, wish));
                }
            }
        }
    }

    pub(super) fn guest_heard(&mut self, from: SetMember, group: GroupId, body: GuestBody) {
        self.with_guests(|guests, view| guests.heard(clock::now(), view, from, group, body));
    }

    /// The hosts have what comes first: the IKE SA's record is proposed.
    fn propose_held(&mut self, job: u64) {
        let Some((group, held)) = self.held_of(job) else {
            return;
        };
        let mut changes = std::mem::take(&mut held.changes);
        if changes.is_empty() {
            return self.guests_committed(Origin::Sponsor(job), true);
        }
        self.add_contacts(&mut changes);
        self.propose_as(Origin::Sponsor(job), group, changes, Vec::new(), Vec::new());
    }

    /// A commit has taken effect.
    pub(super) fn guests_committed(&mut self, origin: Origin, applied: bool) {
        match origin {
            Origin::Own => {}
            Origin::Sponsor(job) => {
                self.with_guests(|guests, view| guests.sponsor.own_committed(clock::now(), view, job));
            }
            Origin::Host(job) => self.with_guests(|guests, view| guests.host.committed(view, job, applied)),
        }
    }

    /// All that a commit is about has happened, or will not: its messages leave.
    fn guests_done(&mut self, job: u64, failed: &[EspSpi]) {
        let Some((group, _)) = self.held_of(job) else {
            return;
        };
        let held = &mut self.groups.get_mut(group).held;
        let Some(at) = held.iter().position(|held| held.job == job) else {
            return;
        };
        let Some(done) = held.remove(at) else { return };
        for transmit in &done.transmits {
            self.transmit(transmit);
        }
        for spi_in in failed {
            self.log.warn(
                "guest_failed",
                format!(
                    "SA {spi_in}: the member that is to serve it did not take it; deleting it with the peer"
                ),
            );
            self.engine_command(Command::DeleteChild { spi_in: *spi_in });
        }
        if failed.is_empty() {
            self.orders_replaced(&done.replaced);
        }
        self.begin_held(group);
    }

    /// Has something done with the peer of an SA: by this member's engine, or by the sponsor's.
    pub(super) fn have_done(&mut self, spi_in: EspSpi, wish: Wish) {
        let Some(entry) = self.sad.get(spi_in) else { return };
        let ike_spi = entry.record.ike_spi;
        if self.groups.owns_segment(ike_spi.segment()) {
            self.adopt_first(ike_spi);
            return self.engine_command(command_of(spi_in, wish));
        }
        self.guests.wishes.insert(spi_in, (wish, clock::now(), 1));
        self.say_wish(ike_spi, spi_in, wish);
    }

    fn say_wish(&mut self, ike_spi: IkeSpi, spi_in: EspSpi, wish: Wish) {
        let group = self.groups.layout.group_of(ike_spi.segment());
        let to = self.node.epoch(group).owner;
        let body = GuestBody::Wish { spi_in, wish };
        self.node.handle(Input::SayGuest { to, group, body });
    }

    /// Sponsors that have not done what they were asked for are asked again.
    fn wish_again(&mut self, now: Instant) {
        let mut again = Vec::new();
        let sad = &self.sad;
        self.guests.wishes.retain(|spi_in, (wish, said, times)| {
            let Some(entry) = sad.get(*spi_in) else {
                return false;
            };
            // A new SA carries what it carried.
            let open = *wish == Wish::Delete || entry.carries_outbound();
            if open && now.since(*said) >= WISH_AGAIN {
                (*said, *times) = (now, *times + 1);
                again.push((entry.record.ike_spi, *spi_in, *wish));
            }
            open && *times <= WISHES_MAX
        });
        for (ike_spi, spi_in, wish) in again {
            self.say_wish(ike_spi, spi_in, wish);
        }
    }

    /// In every turn of the loop; something is to be done now and then.
    pub(super) fn guests_turn(&mut self, now: Instant) {
        if now < self.guests.due {
            return;
        }
        self.guests.due = now + TURN;
        if self.sad.is_stale() {
            let plan = self.sad.republish(STALE);
            self.execute_or_log(&plan);
        }
        if !self.guests.wanted {
            return;
        }
        self.keep_ready(now);
        self.wish_again(now);
        self.with_guests(|guests, view| guests.tick(now, view));
        self.settle();
    }

    /// SPIs of this member's segments for the other members' IKE SAs.
    fn keep_ready(&mut self, now: Instant) {
        let layout = self.groups.layout;
        let (groups, sad, last) = (&self.groups, &mut self.sad, &mut self.guests.segment);
        if layout.count() == 1 {
            return;
        }
        let per_cpu = self.guests.ready.len() > 1;
        let mut reserve = |cpu: u16| {
            // One segment after the other, so that those of a member that dies spread over the takers.
            for _ in 0..=u8::MAX {
                *last = last.wrapping_add(1);
                let segment = SegmentId(*last);
                if !groups.serves_segment(segment) {
                    continue;
                }
                return match per_cpu {
                    true => sad.reserve_spi_on(segment, u32::from(cpu)),
                    false => sad.reserve_spi(segment),
                };
            }
            None
        };
        let lives = self.node.lives();
        let host = &mut self.guests.machine.host;
        host.keep_ready(now, &lives, &self.guests.ready, &mut reserve);
    }

    /// Once a second: Child SAs that members lack beside shared ones.
    pub(super) fn ask_for_members(&mut self) {
        if !self.guests.wanted {
            return;
        }
        let now = clock::now();
        let mut wanted = Vec::new();
        let (from, mut at) = (self.guests.at.take(), None);
        let mut looks = 0;
        for (key, entry) in self.sad.shared_after(from.as_ref()).take(LOOKS) {
            looks += 1;
            let ike_spi = entry.record.ike_spi;
            if self.groups.serves_segment(ike_spi.segment()) && self.engine.contains(ike_spi) {
                wanted.extend(self.lacking(now, entry));
            }
            at = Some(key);
        }
        self.guests.at = at.filter(|_| looks == LOOKS);
        for (beside, resource) in wanted {
            self.asked.insert((beside, asked_key(resource)), now);
            self.engine_command(Command::CreateResourceChild { beside, resource });
        }
    }

    /// Members, or their CPUs, that have no Child SA beside a shared one, and could have one now.
    fn lacking(&self, now: Instant, shared: &SaEntry) -> Vec<(EspSpi, Resource)> {
        let record = &shared.record;
        let connections = &self.engine.config().connections;
        let Some(connection) = connections.iter().find(|c| c.name == record.connection) else {
            return Vec::new();
        };
        let of_members = connection.resources.iter();
        let of_members = of_members.filter(|r| r.member != MemberId(0) && r.member != self.me);
        let mut of_members = of_members.copied().peekable();
        if of_members.peek().is_none() {
            return Vec::new();
        }
        let Some(sa) = self.engine.status_of(record.ike_spi) else {
            return Vec::new();
        };
        let owners = Ownerships {
            node: &self.node,
            groups: &self.groups,
            words: &self.segments,
        };
        let there = |resource: &Resource| {
            let mut children = sa.children.iter();
            children
                .any(|c| c.child == record.child && c.resource == Some(*resource) && c.phase != "deleting")
        };
        let asked = |resource: &Resource| {
            let key = (record.spi_in, asked_key(*resource));
            let at = self.asked.get(&key);
            at.is_some_and(|at| now.since(*at) < AGAIN)
        };
        let sponsor = &self.guests.machine.sponsor;
        of_members
            .filter(|resource| !there(resource) && !asked(resource))
            .filter(|resource| sponsor.has(&owners, resource.member, cpu_of(*resource)))
            .map(|resource| (record.spi_in, resource))
            .collect()
    }
}

/// Names a resource of another member among what was asked for; CPUs of the owner's are below.
fn asked_key(resource: Resource) -> u32 {
    u32::from(resource.member.0) << 16 | u32::from(resource.cpu)
}

fn command_of(spi_in: EspSpi, wish: Wish) -> Command {
    match wish {
        Wish::Rekey => Command::RekeyChild { spi_in },
        Wish::Delete => Command::DeleteChild { spi_in },
        Wish::Repair { delta } => Command::RepairInbound { spi_in, delta },
    }
}
