//! One member, and others that say what they like on the synch channel: a member that has been broken into, or a release with a
//! fault. The channel vouches for who speaks, and for nothing else.

use crate::choices::Choices;
use crate::entry::{self, EntryChange};
use cluster::message::{Body, GroupBody, Heartbeat, Message, VERSION};
use cluster::node::EngineKind;
use cluster::{
    Command, EpochId, GroupRecord, Input, Layout, Link, Node, NodeConfig, Output, OwnershipAnswer, SetMember,
    Solo,
};
use model::{Epoch, GroupId, Incarnation, Instant, MemberId};
use sad::{Context, Sad, Settings};
use std::collections::BTreeMap;
use std::time::Duration;

/// Steps of one run at most.
const STEPS: usize = 64;
/// Groups of segments.
const GROUPS: u8 = 2;
const ME: MemberId = MemberId(1);

struct Member {
    now: Instant,
    node: Node,
    sad: Sad,
    records: BTreeMap<model::IkeSpi, model::SecretBytes>,
    /// Outputs that wait for an answer of the agent's.
    tokens: Vec<u64>,
}

/// The first octet says who settles ownership, each further one is a step.
pub fn member(octets: &[u8]) {
    let mut choices = Choices::new(octets);
    let Some(shape) = choices.next() else { return };
    let mut member = Member::new(shape);
    for peer in [2, 3] {
        let (now, peer) = (member.now, MemberId(peer));
        member.input(Input::LinkUp {
            now,
            peer,
            link: Link::Synch,
        });
    }
    for _ in 0..STEPS {
        let Some(step) = choices.next() else { break };
        member.step(step, &mut choices);
    }
    // It is alive, and says what it knows.
    for _ in 0..50 {
        member.pass(Duration::from_millis(20));
    }
    let status = member.node.status();
    assert_eq!(status.groups.len(), usize::from(GROUPS));
}

impl Member {
    fn new(shape: u8) -> Self {
        let now = Instant::from_millis(10_000);
        let engine = match shape & 3 {
            0 => EngineKind::External,
            1 => EngineKind::Pair { solo: Solo::Continue },
            _ => EngineKind::Pair { solo: Solo::Stop },
        };
        let members = if shape & 3 == 0 { 1..=3 } else { 1..=2 };
        let config = NodeConfig {
            me: ME,
            incarnation: Incarnation(5),
            members: members.map(|id| (MemberId(id), 1)).collect(),
            layout: Layout::new(GROUPS),
            engine,
            heartbeat: Duration::from_millis(20),
            suspicion_floor: Duration::from_millis(100),
            dead_man: Duration::from_millis(80),
            settle: Duration::from_millis(500),
            rebalance: (shape & 4 != 0).then_some(Duration::from_millis(300)),
            policy: BTreeMap::from([("addresses".to_owned(), [7; 16])]),
            facts: vec![1],
        };
        Self {
            now,
            node: Node::new(config, now),
            sad: Sad::new(Settings {
                member: ME,
                max_slots: 1024,
                cpus: 2,
                first_generation: 1,
                outside_mtu: 1500,
                detection: Duration::from_millis(120),
                lifetimes: sad::lifetime::Lifetimes::default(),
            }),
            records: BTreeMap::new(),
            tokens: Vec::new(),
        }
    }

    fn input(&mut self, input: Input) {
        self.node.handle(input);
        while let Some(output) = self.node.poll() {
            self.output(output);
        }
    }

    /// The least agent. What it cannot do it does not confirm.
    fn output(&mut self, output: Output) {
        match output {
            Output::Apply {
                token, epoch, entry, ..
            } => {
                if let Ok(changes) = entry::decode_entry(&entry, &self.records) {
                    self.changes(&changes, epoch.number);
                    self.tokens.push(token);
                } else {
                    let now = self.now;
                    self.node.handle(Input::DoesNotFit { now, token });
                }
            }
            Output::InstallSnapshot { token, bytes, .. } => {
                let Ok((snapshot, tail)) = entry::decode_snapshot(&bytes) else {
                    return;
                };
                self.records = snapshot.ike;
                drop(self.sad.restore(snapshot.children, self.now));
                for entry in &tail.entries {
                    self.changes(entry, tail.epoch);
                }
                self.tokens.push(token);
            }
            Output::ApplyRaises { token, .. }
            | Output::CapLimits { token, .. }
            | Output::VerifyCaps { token, .. }
            | Output::RestateLimits { token, .. }
            | Output::LeaveRests { token, .. }
            | Output::CloseLegacy { token, .. }
            | Output::MergeWindows { token, .. }
            | Output::Ownership { token, .. } => self.tokens.push(token),
            Output::Flip(flip) => self.tokens.push(flip.token),
            _ => {}
        }
    }

    fn changes(&mut self, changes: &[EntryChange], epoch: Epoch) {
        let context = Context {
            now: self.now,
            epoch,
            alone: false,
        };
        for change in changes {
            match change {
                EntryChange::IkePut(spi, record) => drop(self.records.insert(*spi, record.clone())),
                EntryChange::IkeRemove(spi) => drop(self.records.remove(spi)),
                EntryChange::Child(change) => drop(self.sad.apply(change, context)),
                _ => {}
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        let now = self.now;
        self.input(Input::Tick { now });
    }

    fn step(&mut self, step: u8, choices: &mut Choices<'_>) {
        let now = self.now;
        let peer = MemberId(2 + (step >> 7));
        let group = GroupId(step >> 6 & 1);
        match step & 0x0f {
            0..=6 => {
                let from = SetMember {
                    member: peer,
                    incarnation: Incarnation(u64::from(choices.next().unwrap_or(0) & 3)),
                };
                let epoch = epoch(choices.next().unwrap_or(0));
                if let Ok((body, rest)) = postcard::take_from_bytes::<GroupBody>(choices.rest()) {
                    choices.go_on(rest);
                    self.hear(from, Body::Group { group, epoch, body });
                }
            }
            7 | 8 => {
                let from = SetMember {
                    member: peer,
                    incarnation: Incarnation(u64::from(choices.next().unwrap_or(0) & 3)),
                };
                if let Ok((heartbeat, rest)) = postcard::take_from_bytes::<Heartbeat>(choices.rest()) {
                    choices.go_on(rest);
                    self.hear(from, Body::Heartbeat(heartbeat));
                }
            }
            9 => {
                let bytes = choices.some().to_vec();
                let link = if step & 0x10 == 0 {
                    Link::Synch
                } else {
                    Link::Outside
                };
                self.input(Input::Received {
                    now,
                    peer,
                    link,
                    bytes,
                });
            }
            10 => self.pass(Duration::from_millis(u64::from(choices.next().unwrap_or(1)))),
            11 => {
                let length = self.tokens.len();
                if length > 0 {
                    let at = usize::from(choices.next().unwrap_or(0)) % length;
                    let token = self.tokens.remove(at);
                    self.answer(token, step, choices);
                }
            }
            12 => {
                let token = u64::from(choices.next().unwrap_or(0)) | u64::from(group.0) << 56;
                let entry = choices.some().to_vec();
                self.input(Input::Propose {
                    now,
                    group,
                    token,
                    entry,
                    brief: None,
                });
            }
            13 => {
                let command = match choices.next().unwrap_or(0) % 5 {
                    0 => Command::Drain,
                    1 => Command::Undrain,
                    2 => Command::Rebalance,
                    3 => Command::StartOver { group: Some(group) },
                    _ => Command::TakeoverTo {
                        to: peer,
                        group: Some(group),
                    },
                };
                self.input(Input::Command { now, command });
            }
            14 => {
                let link = Link::Synch;
                if step & 0x10 == 0 {
                    self.input(Input::LinkDown { now, peer, link });
                }
                self.input(Input::LinkUp { now, peer, link });
            }
            _ => {
                for _ in 0..10 {
                    self.pass(Duration::from_millis(20));
                }
            }
        }
    }

    fn hear(&mut self, from: SetMember, body: Body) {
        let bytes = Message { from, body }.encode(VERSION);
        let (now, peer) = (self.now, from.member);
        self.input(Input::Received {
            now,
            peer,
            link: Link::Synch,
            bytes,
        });
    }

    /// The agent has done what was asked for, in one way or another.
    fn answer(&mut self, token: u64, step: u8, choices: &mut Choices<'_>) {
        let now = self.now;
        let input = match step >> 4 & 3 {
            0 => Input::Armed {
                now,
                token,
                unknown: Vec::new(),
            },
            1 => Input::Snapshot {
                now,
                token,
                bytes: choices.some().to_vec(),
            },
            2 => Input::FinalWindows {
                now,
                token,
                bytes: choices.some().to_vec(),
            },
            _ => match choices.next().unwrap_or(0) % 4 {
                0 => Input::CapsVerified {
                    now,
                    token,
                    items: Vec::new(),
                },
                1 => Input::Restated {
                    now,
                    token,
                    items: Vec::new(),
                },
                2 => Input::RestsLeft {
                    now,
                    token,
                    rests: Vec::new(),
                },
                _ => Input::OwnershipAnswered {
                    now,
                    token,
                    answer: ownership_answer(choices),
                },
            },
        };
        self.input(input);
    }
}

/// What may stand in etcd.
fn ownership_answer(choices: &mut Choices<'_>) -> OwnershipAnswer {
    let kind = choices.next().unwrap_or(0);
    let record = postcard::take_from_bytes::<GroupRecord>(choices.rest()).ok();
    let record = record.map(|(record, rest)| {
        choices.go_on(rest);
        record
    });
    match kind & 3 {
        0 => OwnershipAnswer::Is(record),
        1 => OwnershipAnswer::Written,
        2 => OwnershipAnswer::Differs(record),
        _ => OwnershipAnswer::Unknown("silent".to_owned()),
    }
}

/// One of a few epochs, or the last one.
fn epoch(octet: u8) -> EpochId {
    let number = match octet >> 4 {
        0xf => u64::MAX,
        small => u64::from(small),
    };
    EpochId {
        number: Epoch(number),
        owner: MemberId(octet & 3),
    }
}
