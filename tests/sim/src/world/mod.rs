//! The world: members, peers, networks, an ownership engine and one queue of events in virtual time.

mod effects;
mod ending;
mod happen;
mod seats;

use crate::check::{Watch, overlap, parts};
use crate::etcd::Etcd;
use crate::faults::{Fault, Schedule};
use crate::frames::Packet;
use crate::member::{Cx, Effect, Member};
use crate::net::Net;
use crate::peer::Peer;
use crate::rng::Rng;
use crate::sabotage::Sabotage;
use crate::setup::Setup;
use crate::trace::Trace;
use cluster::{GroupRecord, Link, OwnershipAnswer, OwnershipOp};
use model::{GroupId, Instant, MemberId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

/// Something in the queue.
enum What {
    /// A member's event loop looks at its clocks.
    Turn(u8, u64),
    /// A peer does.
    PeerTurn(u8),
    /// A record of the synch channel arrives. `connection`: the number of the connection that carries it.
    Record {
        from: u8,
        to: u8,
        link: Link,
        connection: u64,
        bytes: Vec<u8>,
    },
    /// A member's end of a lost connection notices.
    LinkLost {
        member: u8,
        life: u64,
        peer: u8,
        link: Link,
        connection: u64,
    },
    /// A frame arrives at a member.
    Frame { to: u8, inside: bool, octets: Vec<u8> },
    /// A frame arrives at a peer.
    PeerFrame { to: u8, octets: Vec<u8> },
    /// An agent that is slow gets to what arrived.
    Late { member: u8, life: u64, item: Item },
    /// A host sends.
    Traffic { peer: u8, outbound: bool },
    /// Of the schedule.
    Fault(usize),
    /// A question takes effect at the ownership engine.
    EngineRuns {
        member: u8,
        life: u64,
        token: u64,
        group: GroupId,
        op: OwnershipOp,
        answer: Option<Instant>,
    },
    /// Its answer arrives.
    EngineAnswers {
        member: u8,
        life: u64,
        token: u64,
        answer: OwnershipAnswer,
    },
    /// A watch event arrives.
    EngineTells {
        member: u8,
        life: u64,
        group: GroupId,
        record: Option<GroupRecord>,
    },
    /// Connections are made and lost, checkers look.
    Look,
}

/// What waits for an agent.
enum Item {
    Record {
        from: u8,
        link: Link,
        connection: u64,
        bytes: Vec<u8>,
    },
    /// A connection is there, or is lost.
    Link {
        peer: u8,
        link: Link,
        connection: u64,
        up: bool,
    },
    Ike(crate::frames::IkeDatagram),
    Answer {
        token: u64,
        answer: OwnershipAnswer,
    },
    Tells {
        group: GroupId,
        record: Option<GroupRecord>,
    },
}

struct Entry {
    at: Instant,
    number: u64,
    what: What,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What a place for a member is like at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    Paused,
    /// The agent is gone, the programs run.
    AgentDead,
    Down,
}

struct Seat {
    state: State,
    member: Option<Member>,
    life: u64,
    /// What arrived while the agent did not run.
    inbox: VecDeque<Item>,
    /// When the next turn is due; other turns in the queue are void.
    turn: Instant,
    slow: Duration,
    /// What arrives now is looked at after this time: it may not overtake what came while the agent was slower.
    late_until: Instant,
    /// The connections that the agent knows of, by peer and link: their number, while they are up.
    links: BTreeMap<(u8, Link), u64>,
    up_since: Instant,
}

/// How a run goes on after the faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Faults,
    Healing,
    Quiet { since: Instant },
    Done,
}

/// A run.
pub struct World {
    /// The time.
    pub now: Instant,
    /// The checkers.
    pub watch: Watch,
    /// The story.
    pub trace: Trace,
    /// What kind of cluster.
    pub setup: Setup,
    queue: BinaryHeap<Reverse<Entry>>,
    number: u64,
    rng: Rng,
    seats: Vec<Seat>,
    peers: Vec<Peer>,
    net: Net,
    etcd: Etcd,
    schedule: Schedule,
    heal_at: Instant,
    stage: Stage,
    sabotage: Option<Sabotage>,
    /// Who holds the addresses on the networks, and when that was announced.
    arp: u8,
    packets: u32,
    captured: VecDeque<(u8, Vec<u8>)>,
    datagrams: VecDeque<(u8, u8, Link, u64, Vec<u8>)>,
    /// All members were in sync with equal mirrors since traffic stopped.
    mirrors_settled: bool,
    /// What is wrong with each peer's IKE SAs since traffic stopped; `None`: nothing was, at some point.
    peers_settled: BTreeMap<u8, Option<String>>,
    next_start_over: Instant,
    /// A host was lost that knew alone what a half of a split pair had touched.
    untold: bool,
    /// A steady run judges its synch traffic from here on.
    steady: Option<crate::check::TrafficMark>,
    /// Measure and judge the synch traffic.
    judge_traffic: bool,
}

/// How a run is watched.
#[derive(Clone, Copy, Debug)]
pub struct Ways {
    /// Nothing happens but noise on the synch network.
    pub noise_only: bool,
    /// Nothing happens but that peers begin anew.
    pub anew_only: bool,
    /// Nothing happens but planned takeovers from here on.
    pub planned_from: Option<Instant>,
    /// And some packets may be lost: they are counted.
    pub may_lose: bool,
    /// The synch traffic is judged.
    pub judge_traffic: bool,
    /// A rule to break.
    pub sabotage: Option<Sabotage>,
    /// So many of the last events are kept in words.
    pub keep: usize,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Breaches, in order.
    pub violations: Vec<crate::check::Violation>,
    /// Digest of everything that happened.
    pub digest: u64,
    /// Events.
    pub steps: u64,
    /// The last events, where they were kept.
    pub recent: Vec<String>,
    /// Virtual time.
    pub virtual_ms: u64,
    /// ESP packets.
    pub packets: u64,
    /// Of those, sealed by members with guests.
    pub guest_packets: u64,
    /// Packets that a lenient policy accepted twice.
    pub accepted_twice: u64,
    /// Takeovers, planned ones included.
    pub takeovers: u64,
    /// Planned takeovers.
    pub handovers: u64,
    /// IKE SAs of peers whose place was taken by one that was authenticated later.
    pub reauthenticated: u64,
    /// Packets that never came out, where nothing happens but planned takeovers.
    pub lost: u64,
}

impl World {
    /// A world that is about to begin.
    pub fn new(seed: u64, setup: Setup, schedule: Schedule, heal_at: Instant, ways: Ways) -> Self {
        let Ways {
            judge_traffic,
            sabotage,
            keep,
            ..
        } = ways;
        let rng = Rng::new(seed);
        let now = Instant::from_millis(1000);
        let seats = (0..setup.members)
            .map(|_| Seat {
                state: State::Down,
                member: None,
                life: 0,
                inbox: VecDeque::new(),
                turn: Instant(u64::MAX),
                slow: Duration::ZERO,
                late_until: now,
                links: BTreeMap::new(),
                up_since: now,
            })
            .collect();
        let peers = setup
            .peers
            .iter()
            .map(|kind| Peer::new(kind.peer(), rng.fork(100 + u64::from(kind.number)), now))
            .collect();
        let mut world = Self {
            now,
            watch: Watch::new(setup.facts(&ways)),
            trace: Trace::new(keep),
            queue: BinaryHeap::new(),
            number: 0,
            seats,
            peers,
            net: Net::new(rng.fork(2)),
            etcd: Etcd::new(rng.fork(3)),
            heal_at,
            stage: Stage::Faults,
            sabotage,
            arp: 1,
            packets: 0,
            captured: VecDeque::new(),
            datagrams: VecDeque::new(),
            mirrors_settled: false,
            peers_settled: BTreeMap::new(),
            next_start_over: now,
            untold: false,
            steady: None,
            judge_traffic,
            schedule,
            rng: rng.fork(4),
            setup,
        };
        world.etcd.late_writes = world.setup.late_writes;
        for member in 1..=world.setup.members {
            world.start(member);
        }
        for at in 0..world.schedule.len() {
            let when = world.schedule[at].0;
            world.put(when, What::Fault(at));
        }
        for kind in world.setup.peers.clone() {
            world.put(now, What::PeerTurn(kind.number));
            for outbound in [false, true] {
                let peer = kind.number;
                let first = now + Duration::from_millis(500);
                world.put(first, What::Traffic { peer, outbound });
            }
        }
        world.put(now, What::Look);
        world
    }

    fn put(&mut self, at: Instant, what: What) {
        self.number += 1;
        let number = self.number;
        self.queue.push(Reverse(Entry { at, number, what }));
    }

    /// Runs to the end, or to the first breach.
    pub fn run(mut self) -> Ran {
        while let Some(Reverse(entry)) = self.queue.pop() {
            self.now = self.now.max(entry.at);
            self.happen(entry.what);
            if self.stage == Stage::Done || !self.watch.violations.is_empty() {
                break;
            }
        }
        if !self.watch.violations.is_empty() {
            self.tell_states();
        }
        let guest_packets = self.watch.guest_packets();
        let accepted_twice = self.watch.accepted_twice();
        let lost = self.watch.lost();
        Ran {
            violations: self.watch.violations,
            digest: self.trace.digest,
            steps: self.trace.steps,
            recent: self.trace.recent(),
            virtual_ms: self.now.millis(),
            packets: self.watch.traffic.packets,
            guest_packets,
            accepted_twice,
            takeovers: self.watch.takeovers,
            handovers: self.watch.handovers,
            reauthenticated: self.watch.reauthenticated,
            lost,
        }
    }

    /// What engines and databases hold in the end, for whoever looks into a failure.
    fn tell_states(&mut self) {
        let mut lines = Vec::new();
        let hosts = self
            .peers
            .iter()
            .map(|p| (format!("peer {}", p.number), &p.engine, &p.sad))
            .chain(self.seats.iter().filter_map(|s| {
                let m = s.member.as_ref()?;
                Some((format!("member {} ({:?})", m.me, s.state), &m.engine, &m.sad))
            }));
        for (name, engine, sad) in hosts {
            for sa in engine.status() {
                let children: Vec<String> = sa
                    .children
                    .iter()
                    .map(|c| format!("{}/{} {}", c.spi_in, c.spi_out, c.phase))
                    .collect();
                lines.push(format!(
                    "{name}: IKE SA {} {} next {}/{} outstanding {}: {}",
                    sa.spi,
                    sa.phase,
                    sa.next_send,
                    sa.next_receive,
                    sa.outstanding,
                    children.join(", ")
                ));
            }
            for e in sad.iter() {
                let (spi, outbound) = (e.record.spi_in, e.outbound_in_use);
                lines.push(format!(
                    "{name}: Child SA {spi}, outbound {outbound}, local {}",
                    e.local_only
                ));
            }
        }
        for line in lines {
            self.trace.note(self.now, "end", [0, 0], || line);
        }
    }

    fn seat(&mut self, member: u8) -> &mut Seat {
        &mut self.seats[usize::from(member) - 1]
    }

    /// The agent of a member does something, then what follows from it goes its way.
    fn step(&mut self, member: u8, f: impl FnOnce(&mut Member, &mut Cx<'_>)) {
        let mut effects = Vec::new();
        let now = self.now;
        let seat = &mut self.seats[usize::from(member) - 1];
        let Some(m) = seat.member.as_mut() else { return };
        let mut cx = Cx {
            now,
            effects: &mut effects,
            watch: &mut self.watch,
            trace: &mut self.trace,
        };
        f(m, &mut cx);
        if seat.state == State::Up {
            // What the programs said meanwhile makes the ring buffers readable: the event loop turns at once.
            for _ in 0..16 {
                if m.plane.events.is_empty() && m.plane.slow.is_empty() {
                    break;
                }
                m.fetch(&mut cx);
            }
            let wake = m.next_wake().max(now) + seat.slow;
            if wake < seat.turn || seat.turn < now {
                seat.turn = wake;
                let life = seat.life;
                self.number += 1;
                let number = self.number;
                self.queue.push(Reverse(Entry {
                    at: wake,
                    number,
                    what: What::Turn(member, life),
                }));
            }
        }
        let written = m.plane.was_written();
        if written && self.watch.facts.pair.is_some() {
            self.look_at_leases();
        }
        for effect in effects {
            self.effect(member, effect);
        }
    }

    /// What the programs of the pair's hosts may give out of tainted leases: no number is in both.
    fn look_at_leases(&mut self) {
        let hosts = self.seats.iter().filter_map(|seat| seat.member.as_ref());
        let parts: Vec<_> = hosts.map(parts).collect();
        if let [one, other] = &parts[..]
            && let Some(text) = overlap(one, other)
        {
            self.watch.breach("rests", self.now, text);
        }
    }

    fn peer_step(&mut self, number: u8, f: impl FnOnce(&mut Peer, &mut Cx<'_>)) {
        let mut effects = Vec::new();
        let peer = &mut self.peers[usize::from(number) - 1];
        let mut cx = Cx {
            now: self.now,
            effects: &mut effects,
            watch: &mut self.watch,
            trace: &mut self.trace,
        };
        f(peer, &mut cx);
        for effect in effects {
            if let Effect::Frame { octets, .. } = effect {
                self.receive_from_peer(number, octets);
            }
        }
    }

    fn members(&self) -> std::ops::RangeInclusive<u8> {
        1..=self.setup.members
    }

    fn packet(&mut self, peer: u8, outbound: bool) -> Packet {
        self.packets += 1;
        Packet {
            peer,
            outbound,
            number: self.packets,
        }
    }

    fn note_fault(&mut self, fault: &Fault) {
        self.trace
            .note(self.now, "fault", [self.now.0, 0], || format!("{fault:?}"));
    }

    fn member_id(member: u8) -> MemberId {
        MemberId(member)
    }
}
