//! Members in virtual time: a network that loses, delays, duplicates and reorders; an ownership engine that is slow, silent,
//! or does what it is told without saying so; agents that are as simple as an agent can be (a mirror of entries, limits as
//! numbers).

use crate::register::{Register, Shape};
use cluster::io::{EventKind, Flip};
use cluster::message::PeerMark;
use cluster::status::{GroupStatus, Role};
use cluster::{
    Command, Direction, EpochId, Event, Input, LeaseRest, Link, Node, NodeConfig, RaiseItem, Solo, Standing,
};
use model::{GroupId, IkeSpi, Instant, MemberId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// A small generator (xorshift64*): the same seed gives the same run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// What a member holds of one group.
#[derive(Default)]
pub struct Part {
    /// Entries that took effect, by token order (owner) or applied (standby).
    pub mirror: Vec<Vec<u8>>,
    pub committed: Vec<Vec<u8>>,
    /// Highest limit published or armed, by slot and whether it is a lease.
    pub limits: BTreeMap<(u32, bool), u64>,
    pub serving: bool,
    pub valid_until: Instant,
    /// Last flip.
    pub flip: Option<Flip>,
    pub discards: usize,
    /// IKE SAs that this member's fork touched, for when it is discarded.
    pub touched: Vec<IkeSpi>,
    /// Peers with which it began IKE SAs of its own.
    pub met: Vec<PeerMark>,
    /// What others, or itself, named as touched by a fork: member, number, SPIs.
    pub told: Vec<(u8, u64, Vec<IkeSpi>)>,
    /// Peers that were named beside.
    pub named: Vec<PeerMark>,
    pub resumed: usize,
}

/// One member: its node and the least agent.
pub struct Member {
    pub node: Node,
    pub alive: bool,
    pub paused: bool,
    pub groups: Vec<Part>,
    /// Proposals by token.
    pub(crate) proposed: BTreeMap<u64, (GroupId, Vec<u8>)>,
    pub refused: usize,
    pub events: Vec<Event>,
    pub raise_refused: Vec<RaiseItem>,
    pub restated: usize,
    /// It does not get to what a fork touched.
    pub keeps_forks: bool,
    /// Entries that came in the brief form.
    pub briefs: usize,
    /// The next entry does not fit what it holds.
    pub misfit: bool,
    /// Its SAs refuse every limit.
    pub refuses_limits: bool,
    /// A snapshot is not armed until [`World::release`] says so.
    pub slow_snapshot: bool,
    pub(crate) held: Vec<u64>,
    /// What its agent leaves of leases when the node wants that.
    pub rests: Vec<LeaseRest>,
    /// What it was left, and for which epoch.
    pub rests_taken: Vec<(EpochId, Vec<LeaseRest>)>,
}

/// Group 0, of which the tests of hot standby speak.
impl Member {
    pub fn epoch(&self) -> EpochId {
        self.node.epoch(GroupId(0))
    }
    pub fn is_owner(&self) -> bool {
        self.node.owns(GroupId(0))
    }
    pub fn standing(&self) -> Option<Standing> {
        self.node.standing(GroupId(0))
    }
    pub fn status(&self) -> GroupStatus {
        self.node.status().groups[0].clone()
    }
    pub fn owned(&self) -> Vec<u8> {
        let status = self.node.status();
        status.owned().map(|g| g.group.0).collect()
    }
}

pub(crate) struct Flight {
    pub at: Instant,
    pub from: usize,
    pub to: usize,
    pub link: Link,
    pub bytes: Vec<u8>,
}

pub struct World {
    pub now: Instant,
    pub shape: Shape,
    pub members: Vec<Member>,
    pub register: Register,
    pub(crate) dice: Dice,
    pub(crate) datagrams: Vec<Flight>,
    pub(crate) streams: VecDeque<Flight>,
    /// Streams that have lost a record: they break, and come back as new ones once something passes again.
    broken: BTreeSet<(usize, usize)>,
    /// Per cent of datagrams lost, duplicated.
    pub loss: u64,
    pub duplication: u64,
    /// Longest delay of a datagram, ms.
    pub delay: u64,
    /// Nothing passes on this link.
    pub cut: Vec<Link>,
    /// Nothing passes from the first to the second member, on any link.
    pub one_way: Vec<(usize, usize)>,
    /// These members hear nobody and are heard by nobody.
    pub isolated: Vec<usize>,
    lives: u64,
    next_token: u64,
}

impl World {
    pub fn new(seed: u64, solo: Solo) -> Self {
        Self::of(seed, Shape::pair(solo))
    }

    pub fn of(seed: u64, shape: Shape) -> Self {
        let now = Instant::from_millis(1000);
        let members = (0..usize::from(shape.members))
            .map(|i| Member::new(shape.config(i, i as u64 + 1), now))
            .collect();
        let mut world = Self {
            now,
            shape,
            members,
            register: Register {
                delay: 2,
                ..Register::default()
            },
            dice: Dice::new(seed),
            datagrams: Vec::new(),
            streams: VecDeque::new(),
            broken: BTreeSet::new(),
            loss: 0,
            duplication: 0,
            delay: 0,
            cut: Vec::new(),
            one_way: Vec::new(),
            isolated: Vec::new(),
            lives: 10,
            next_token: 1,
        };
        for index in 0..world.members.len() {
            world.links(index, true);
        }
        world
    }

    fn everybody(&self) -> std::ops::Range<usize> {
        0..self.members.len()
    }

    /// All links between a member and the others, seen from it.
    fn links(&mut self, index: usize, up: bool) {
        for other in self.everybody().filter(|other| *other != index) {
            self.links_between(index, other, up);
        }
    }

    fn links_between(&mut self, index: usize, other: usize, up: bool) {
        let (now, peer) = (self.now, MemberId(other as u8 + 1));
        for link in [Link::Synch, Link::Outside] {
            self.members[index].node.handle(if up {
                Input::LinkUp { now, peer, link }
            } else {
                Input::LinkDown { now, peer, link }
            });
        }
        self.settle(index);
    }

    /// All links come up anew.
    pub fn relink(&mut self) {
        for index in self.everybody() {
            self.links(index, false);
            self.links(index, true);
        }
    }

    /// Member 2 starts over with another policy.
    pub fn differ(&mut self) {
        let mut other = self.shape.config(1, 2);
        other.policy.insert("addresses".to_owned(), [8; 16]);
        other.policy.insert("connection site-a".to_owned(), [1; 16]);
        self.members[1] = Member::new(other, self.now);
        for index in self.everybody() {
            self.links(index, true);
        }
    }

    pub fn kill(&mut self, index: usize) {
        self.members[index].alive = false;
        self.streams.retain(|f| f.from != index && f.to != index);
    }

    pub fn restart(&mut self, index: usize) {
        self.lives += 1;
        self.members[index] = Member::new(self.shape.config(index, self.lives), self.now);
        for other in self.everybody().filter(|other| *other != index) {
            if self.members[other].alive {
                self.links_between(other, index, false);
                self.links_between(other, index, true);
                self.links_between(index, other, true);
            }
        }
    }

    /// Lets `ms` milliseconds pass.
    pub fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now = self.now + Duration::from_millis(1);
            self.deliver();
            self.mend_streams();
            self.engine_works();
            for index in self.everybody() {
                let member = &mut self.members[index];
                if member.alive && !member.paused && self.now >= member.node.next_wake() {
                    member.node.handle(Input::Tick { now: self.now });
                    self.settle(index);
                }
            }
        }
    }

    /// Runs until `done`, for at most `ms`.
    pub fn run_until(&mut self, ms: u64, what: &str, done: impl Fn(&World) -> bool) {
        for _ in 0..ms {
            if done(self) {
                return;
            }
            self.run(1);
        }
        panic!("not within {ms} ms: {what}\n{}", self.tell());
    }

    /// The end of everybody's events, for a failure.
    pub fn tell(&self) -> String {
        let mut text = String::new();
        for (index, member) in self.members.iter().enumerate() {
            text.push_str(&format!(
                "member {} (alive {}, paused {}): {:?}\n",
                index + 1,
                member.alive,
                member.paused,
                member.node.status().groups
            ));
            let from = member.events.len().saturating_sub(12);
            for event in &member.events[from..] {
                text.push_str(&format!(
                    "    {} ms {:?} {:?}\n",
                    event.at.millis(),
                    event.group,
                    event.kind
                ));
            }
        }
        text.push_str(&format!("engine: {:?}\n", self.register.records));
        text
    }

    fn passes(&self, flight: &Flight) -> bool {
        !self.cut.contains(&flight.link)
            && !self.one_way.contains(&(flight.from, flight.to))
            && !self.isolated.contains(&flight.from)
            && !self.isolated.contains(&flight.to)
            && self.members[flight.to].alive
    }

    fn deliver(&mut self) {
        let mut due = Vec::new();
        let now = self.now;
        self.datagrams.retain_mut(|flight| {
            if flight.at <= now {
                let bytes = std::mem::take(&mut flight.bytes);
                due.push((
                    false,
                    Flight {
                        at: now,
                        bytes,
                        ..*flight
                    },
                ));
                false
            } else {
                true
            }
        });
        let mut later = VecDeque::new();
        while let Some(flight) = self.streams.pop_front() {
            if flight.at <= now && !self.members[flight.to].paused {
                due.push((true, flight))
            } else {
                later.push_back(flight)
            }
        }
        self.streams = later;
        for (stream, flight) in due {
            if !self.passes(&flight) {
                if stream {
                    let (a, b) = (flight.from.min(flight.to), flight.from.max(flight.to));
                    self.broken.insert((a, b));
                }
                continue;
            }
            if self.members[flight.to].paused {
                self.datagrams.push(Flight {
                    at: now + Duration::from_millis(1),
                    ..flight
                });
                continue;
            }
            let peer = MemberId(flight.from as u8 + 1);
            let input = Input::Received {
                now,
                peer,
                link: flight.link,
                bytes: flight.bytes,
            };
            self.members[flight.to].node.handle(input);
            self.settle(flight.to);
        }
    }

    fn mend_streams(&mut self) {
        let mended: Vec<(usize, usize)> = self
            .broken
            .iter()
            .copied()
            .filter(|(a, b)| {
                let cut = [(*a, *b), (*b, *a)].iter().any(|way| self.one_way.contains(way))
                    || [a, b].iter().any(|i| self.isolated.contains(i))
                    || self.cut.contains(&Link::Synch);
                !cut && [a, b]
                    .iter()
                    .all(|i| self.members[**i].alive && !self.members[**i].paused)
            })
            .collect();
        for (a, b) in mended {
            self.broken.remove(&(a, b));
            // What was under way on the old connection is gone.
            self.streams
                .retain(|f| (f.from, f.to) != (a, b) && (f.from, f.to) != (b, a));
            for (index, other) in [(a, b), (b, a)] {
                self.links_between(index, other, false);
            }
            for (index, other) in [(a, b), (b, a)] {
                self.links_between(index, other, true);
            }
        }
    }

    pub fn propose(&mut self, index: usize, entry: &[u8]) -> u64 {
        self.propose_in(index, GroupId(0), entry)
    }

    pub fn propose_in(&mut self, index: usize, group: GroupId, entry: &[u8]) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        let now = self.now;
        self.members[index]
            .proposed
            .insert(token, (group, entry.to_vec()));
        self.members[index].node.handle(Input::Propose {
            now,
            group,
            token,
            entry: entry.to_vec(),
            brief: Some(crate::agent::brief(entry)),
        });
        self.settle(index);
        token
    }

    pub fn raise(&mut self, index: usize, slot: u32, direction: Direction, limit: u64) {
        let item = RaiseItem {
            slot,
            spi: slot + 256,
            direction,
            limit,
            step: 10,
        };
        self.members[index].node.handle(Input::Raise {
            now: self.now,
            items: vec![item],
        });
        self.settle(index);
    }

    pub fn command(&mut self, index: usize, command: Command) {
        self.members[index].node.handle(Input::Command {
            now: self.now,
            command,
        });
        self.settle(index);
    }

    pub fn take_over(&mut self, index: usize, to: u8) {
        let to = MemberId(to);
        self.command(index, Command::TakeoverTo { to, group: None });
    }

    /// So many Child SAs of group 0 were known to a standby that was lost.
    pub fn suspects(&mut self, index: usize, count: usize) {
        self.members[index].node.handle(Input::Suspects {
            now: self.now,
            group: GroupId(0),
            count,
        });
        self.settle(index);
    }

    pub fn health(&mut self, index: usize, trouble: Option<&str>) {
        let trouble = trouble.map(str::to_owned);
        self.members[index].node.handle(Input::Health {
            now: self.now,
            trouble,
        });
        self.settle(index);
    }

    pub fn garbage(&mut self, index: usize, bytes: Vec<u8>) {
        let peer = MemberId(2 - index as u8);
        self.members[index].node.handle(Input::Received {
            now: self.now,
            peer,
            link: Link::Synch,
            bytes,
        });
        self.settle(index);
    }

    /// Arms the snapshots that were held back.
    pub fn release(&mut self, index: usize) {
        self.members[index].slow_snapshot = false;
        for token in std::mem::take(&mut self.members[index].held) {
            self.arm(index, token);
        }
        self.settle(index);
    }

    pub(crate) fn arm(&mut self, index: usize, token: u64) {
        self.members[index].node.handle(Input::Armed {
            now: self.now,
            token,
            unknown: vec![],
        });
    }

    pub fn roll(&mut self, bound: u64) -> u64 {
        self.dice.below(bound)
    }

    /// Everybody that lives is there, member `owner` + 1 owns group 0, and the others are in sync.
    pub fn settled(&self, owner: usize) -> bool {
        self.settled_in(owner, 0)
    }

    pub fn settled_in(&self, owner: usize, group: usize) -> bool {
        let status = self.members[owner].node.status().groups[group].clone();
        let living = self.members.iter().filter(|m| m.alive).count();
        self.members[owner].alive
            && status.role == Role::Active
            && status.in_sync.as_ref().is_some_and(|set| set.len() == living)
            && !status.engine_waits
            && !status.handover
            && self
                .members
                .iter()
                .enumerate()
                .filter(|(i, m)| m.alive && *i != owner)
                .all(|(_, m)| {
                    let other = &m.node.status().groups[group];
                    other.role == Role::Standby && other.epoch == status.epoch
                })
    }

    /// Every group has an owner, and everybody that lives is in sync.
    pub fn all_settled(&self) -> bool {
        (0..usize::from(self.shape.groups))
            .all(|group| self.everybody().any(|owner| self.settled_in(owner, group)))
    }

    pub fn serves(&self, index: usize) -> bool {
        self.serves_in(index, 0)
    }

    pub fn serves_in(&self, index: usize, group: usize) -> bool {
        let m = &self.members[index];
        m.alive && m.groups[group].serving && self.now <= m.groups[group].valid_until
    }

    pub fn saw(&self, index: usize, wanted: impl Fn(&EventKind) -> bool) -> bool {
        self.members[index].events.iter().any(|e| wanted(&e.kind))
    }
}

impl Member {
    fn new(config: NodeConfig, now: Instant) -> Self {
        let groups = config.layout.groups().map(|_| Part::default()).collect();
        Self {
            node: Node::new(config, now),
            alive: true,
            paused: false,
            groups,
            proposed: BTreeMap::new(),
            refused: 0,
            events: Vec::new(),
            raise_refused: Vec::new(),
            restated: 0,
            keeps_forks: false,
            briefs: 0,
            misfit: false,
            refuses_limits: false,
            slow_snapshot: false,
            held: Vec::new(),
            rests: Vec::new(),
            rests_taken: Vec::new(),
        }
    }
}
