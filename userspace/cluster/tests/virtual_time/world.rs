//! Two nodes in virtual time: a network that loses, delays, duplicates and reorders; agents that are as simple as an
//! agent can be (a mirror of entries, limits as numbers).

use cluster::io::EventKind;
use cluster::{Command, Direction, Event, Input, Link, Node, NodeConfig, Output, RaiseItem, Solo};
use model::{Incarnation, Instant, MemberId};
use std::collections::{BTreeMap, VecDeque};
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

/// One member: its node and the least agent.
pub struct Member {
    pub node: Node,
    pub alive: bool,
    pub paused: bool,
    /// Entries that took effect, by token order (owner) or applied (standby).
    pub mirror: Vec<Vec<u8>>,
    /// Proposals by token.
    proposed: BTreeMap<u64, Vec<u8>>,
    pub committed: Vec<Vec<u8>>,
    pub refused: usize,
    /// Highest limit published, by slot.
    pub limits: BTreeMap<(u32, bool), u64>,
    /// Limits that this member, as a standby, has armed.
    pub events: Vec<Event>,
    pub serving: bool,
    pub valid_until: Instant,
    pub raise_refused: Vec<RaiseItem>,
    /// Last flip.
    pub flip: Option<cluster::io::Flip>,
    pub discards: usize,
}

struct Flight {
    at: Instant,
    from: usize,
    to: usize,
    link: Link,
    bytes: Vec<u8>,
}

pub struct World {
    pub now: Instant,
    pub members: Vec<Member>,
    dice: Dice,
    datagrams: Vec<Flight>,
    streams: VecDeque<Flight>,
    /// Per cent of datagrams lost, duplicated.
    pub loss: u64,
    pub duplication: u64,
    /// Longest delay of a datagram, ms.
    pub delay: u64,
    /// Nothing passes on this link.
    pub cut: Vec<Link>,
    lives: u64,
    next_token: u64,
}

fn config(me: u8, incarnation: u64, solo: Solo) -> NodeConfig {
    NodeConfig {
        me: MemberId(me),
        incarnation: Incarnation(incarnation),
        peer: Some(MemberId(3 - me)),
        preferred: me == 1,
        heartbeat: Duration::from_millis(20),
        suspicion_floor: Duration::from_millis(100),
        dead_man: Duration::from_millis(80),
        settle: Duration::from_millis(500),
        solo,
        digest: [7; 32],
        facts: vec![me],
    }
}

impl World {
    pub fn new(seed: u64, solo: Solo) -> Self {
        let now = Instant::from_millis(1000);
        let members = (1..=2)
            .map(|id| Member::new(config(id, u64::from(id), solo), now))
            .collect();
        let mut world = Self {
            now,
            members,
            dice: Dice::new(seed),
            datagrams: Vec::new(),
            streams: VecDeque::new(),
            loss: 0,
            duplication: 0,
            delay: 0,
            cut: Vec::new(),
            lives: 10,
            next_token: 1,
        };
        world.link_all();
        world
    }

    fn link_all(&mut self) {
        for index in 0..2 {
            for link in [Link::Synch, Link::Outside] {
                let (now, peer) = (self.now, MemberId(2 - index as u8));
                self.members[index].node.handle(Input::LinkUp { now, peer, link });
            }
            self.settle(index);
        }
    }

    /// Member 2 starts over with another policy.
    pub fn differ(&mut self) {
        let mut other = config(2, 2, Solo::Continue);
        other.digest = [8; 32];
        self.members[1] = Member::new(other, self.now);
        self.link_all();
    }

    pub fn kill(&mut self, index: usize) {
        self.members[index].alive = false;
        self.streams.retain(|f| f.from != index && f.to != index);
    }

    pub fn restart(&mut self, index: usize, solo: Solo) {
        self.lives += 1;
        self.members[index] = Member::new(config(index as u8 + 1, self.lives, solo), self.now);
        let now = self.now;
        for link in [Link::Synch, Link::Outside] {
            for i in 0..2 {
                let peer = MemberId(2 - i as u8);
                self.members[i].node.handle(Input::LinkDown { now, peer, link });
                if self.members[i].alive {
                    self.members[i].node.handle(Input::LinkUp { now, peer, link });
                }
            }
        }
        self.settle(0);
        self.settle(1);
    }

    /// Lets `ms` milliseconds pass.
    pub fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now = self.now + Duration::from_millis(1);
            self.deliver();
            for index in 0..2 {
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
        panic!("not within {ms} ms: {what}");
    }

    fn deliver(&mut self) {
        let mut due = Vec::new();
        let now = self.now;
        self.datagrams.retain_mut(|flight| {
            if flight.at <= now {
                due.push(Flight {
                    at: now,
                    bytes: std::mem::take(&mut flight.bytes),
                    ..*flight
                });
                false
            } else {
                true
            }
        });
        let mut later = VecDeque::new();
        while let Some(flight) = self.streams.pop_front() {
            if flight.at <= now && !self.members[flight.to].paused {
                due.push(flight)
            } else {
                later.push_back(flight)
            }
        }
        self.streams = later;
        for flight in due {
            if self.cut.contains(&flight.link) || !self.members[flight.to].alive {
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

    pub fn propose(&mut self, index: usize, entry: &[u8]) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        let now = self.now;
        self.members[index].proposed.insert(token, entry.to_vec());
        self.members[index].node.handle(Input::Propose {
            now,
            token,
            entry: entry.to_vec(),
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

    /// Carries out what the node wants, as an agent would.
    fn settle(&mut self, index: usize) {
        while let Some(output) = self.members[index].node.poll() {
            let now = self.now;
            let member = &mut self.members[index];
            match output {
                Output::SendStream { link, bytes, .. } => {
                    self.streams.push_back(Flight {
                        at: now + Duration::from_millis(1),
                        from: index,
                        to: 1 - index,
                        link,
                        bytes,
                    });
                }
                Output::SendDatagram { link, bytes, .. } => self.datagram(index, link, bytes),
                Output::Committed { token } => {
                    let entry = member.proposed.remove(&token).expect("a token that was proposed");
                    member.mirror.push(entry.clone());
                    member.committed.push(entry);
                }
                Output::Refused { token, .. } => {
                    member.proposed.remove(&token);
                    member.refused += 1;
                }
                Output::RaiseCommitted { items } => {
                    for item in items {
                        member
                            .limits
                            .insert((item.slot, item.direction == Direction::Outbound), item.limit);
                    }
                }
                Output::RaiseRefused { items } => member.raise_refused.extend(items),
                Output::Apply { token, entry, .. } => {
                    member.mirror.push(entry);
                    member.node.handle(Input::Armed {
                        now,
                        token,
                        unknown: vec![],
                    });
                }
                Output::ApplyRaises { token, items, .. } => {
                    for item in items {
                        let key = (item.slot, item.direction == Direction::Outbound);
                        let known = member.limits.entry(key).or_insert(0);
                        *known = (*known).max(item.limit);
                    }
                    member.node.handle(Input::Armed {
                        now,
                        token,
                        unknown: vec![],
                    });
                }
                Output::CapLimits { token } => {
                    let limits: Vec<((u32, bool), u64)> =
                        member.limits.iter().map(|(k, v)| (*k, *v)).collect();
                    let bytes = postcard::to_stdvec(&(&member.mirror, limits)).expect("plain data");
                    member.node.handle(Input::Snapshot { now, token, bytes });
                }
                Output::VerifyCaps { token } => {
                    member.node.handle(Input::CapsVerified {
                        now,
                        token,
                        items: vec![],
                    });
                }
                Output::InstallSnapshot { token, bytes } => {
                    type Snapshot = (Vec<Vec<u8>>, Vec<((u32, bool), u64)>);
                    let (mirror, limits): Snapshot = postcard::from_bytes(&bytes).expect("what was sent");
                    member.mirror = mirror;
                    member.limits = limits.into_iter().collect();
                    member.node.handle(Input::Armed {
                        now,
                        token,
                        unknown: vec![],
                    });
                }
                Output::Flip(flip) => {
                    member.serving = flip.epoch.owner.0 == index as u8 + 1;
                    member.valid_until = flip.valid_until;
                    let token = flip.token;
                    member.flip = Some(flip);
                    member.node.handle(Input::Armed {
                        now,
                        token,
                        unknown: vec![],
                    });
                }
                Output::ExtendValidity { until, .. } => member.valid_until = until,
                Output::DiscardFork => {
                    member.mirror.clear();
                    member.limits.clear();
                    member.discards += 1;
                }
                Output::CloseLegacy { token } => {
                    member.node.handle(Input::FinalWindows {
                        now,
                        token,
                        bytes: b"windows".to_vec(),
                    });
                }
                Output::MergeWindows { token, bytes } => {
                    assert_eq!(bytes, b"windows");
                    member.node.handle(Input::Armed {
                        now,
                        token,
                        unknown: vec![],
                    });
                }
                Output::Event(event) => member.events.push(event),
                Output::ApplyReport { .. }
                | Output::Announce
                | Output::ResumeIke
                | Output::SuspendIke
                | Output::PeerFacts { .. } => {}
            }
        }
    }

    fn datagram(&mut self, from: usize, link: Link, bytes: Vec<u8>) {
        let copies = if self.dice.percent(self.loss) {
            0
        } else {
            1 + u64::from(self.dice.percent(self.duplication))
        };
        for _ in 0..copies {
            let delay = 1 + if self.delay > 0 {
                self.dice.below(self.delay)
            } else {
                0
            };
            let at = self.now + Duration::from_millis(delay);
            self.datagrams.push(Flight {
                at,
                from,
                to: 1 - from,
                link,
                bytes: bytes.clone(),
            });
        }
    }

    pub fn roll(&mut self, bound: u64) -> u64 {
        self.dice.below(bound)
    }

    /// Both are there, member `owner` + 1 owns, and the other is in sync.
    pub fn settled(&self, owner: usize) -> bool {
        let status = self.members[owner].node.status();
        let other = self.members[1 - owner].node.status();
        self.members[owner].node.is_owner()
            && status.in_sync.as_ref().is_some_and(|s| s.len() == 2)
            && other.role == cluster::status::Role::Standby
            && other.epoch == status.epoch
    }

    pub fn serves(&self, index: usize) -> bool {
        let m = &self.members[index];
        m.alive && m.serving && self.now <= m.valid_until
    }

    pub fn saw(&self, index: usize, wanted: impl Fn(&EventKind) -> bool) -> bool {
        self.members[index].events.iter().any(|e| wanted(&e.kind))
    }
}

impl Member {
    fn new(config: NodeConfig, now: Instant) -> Self {
        Self {
            node: Node::new(config, now),
            alive: true,
            paused: false,
            mirror: Vec::new(),
            proposed: BTreeMap::new(),
            committed: Vec::new(),
            refused: 0,
            limits: BTreeMap::new(),
            events: Vec::new(),
            serving: false,
            valid_until: Instant(0),
            raise_refused: Vec::new(),
            flip: None,
            discards: 0,
        }
    }
}
