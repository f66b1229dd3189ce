//! The ownership engine of the tests: a register for each group that is slow, silent, or does what it is told without saying
//! so. And the shapes of clusters.

use crate::world::World;
use cluster::{EngineKind, GroupRecord, Input, Layout, NodeConfig, OwnershipAnswer, OwnershipOp, Solo};
use model::{GroupId, Incarnation, Instant, MemberId};
use std::collections::BTreeMap;
use std::time::Duration;

pub(crate) struct Ask {
    /// When the engine does it.
    pub at: Instant,
    pub from: usize,
    pub incarnation: u64,
    pub token: u64,
    pub group: GroupId,
    pub op: OwnershipOp,
    /// Done, and on its way back.
    pub answer: Option<OwnershipAnswer>,
}

/// The engine: a register for each group.
#[derive(Default)]
pub struct Register {
    pub records: BTreeMap<GroupId, GroupRecord>,
    /// Every record that was ever written, in order.
    pub history: Vec<(GroupId, GroupRecord)>,
    pub(crate) asks: Vec<Ask>,
    /// Nothing is done, and nobody is answered.
    pub down: bool,
    /// These members cannot reach it.
    pub unreachable: Vec<usize>,
    /// These members reach it, but its answers do not reach them.
    pub unheard: Vec<usize>,
    /// Per cent of writes that are done, but whose answer is lost.
    pub forgets: u64,
    pub delay: u64,
}

/// What to build.
#[derive(Clone)]
pub struct Shape {
    pub members: u8,
    pub groups: u8,
    pub engine: EngineKind,
    pub weights: Vec<u32>,
    pub rebalance: Option<Duration>,
}

impl Shape {
    pub fn pair(solo: Solo) -> Self {
        Self {
            members: 2,
            groups: 1,
            engine: EngineKind::Pair { solo },
            weights: vec![1, 0],
            rebalance: None,
        }
    }

    /// Members with an external engine: one group, preferred member 1.
    pub fn engine(members: u8) -> Self {
        let mut weights = vec![0; usize::from(members)];
        weights[0] = 1;
        Self {
            members,
            groups: 1,
            engine: EngineKind::External,
            weights,
            rebalance: None,
        }
    }

    /// Members that share the load evenly.
    pub fn sharing(members: u8, groups: u8) -> Self {
        Self {
            members,
            groups,
            engine: EngineKind::External,
            weights: vec![1; usize::from(members)],
            rebalance: None,
        }
    }

    pub(crate) fn config(&self, me: usize, incarnation: u64) -> NodeConfig {
        let id = |index: usize| MemberId(index as u8 + 1);
        NodeConfig {
            me: id(me),
            incarnation: Incarnation(incarnation),
            members: self
                .weights
                .iter()
                .enumerate()
                .map(|(i, w)| (id(i), *w))
                .collect(),
            layout: Layout::new(self.groups),
            engine: self.engine,
            heartbeat: Duration::from_millis(20),
            suspicion_floor: Duration::from_millis(100),
            dead_man: Duration::from_millis(80),
            settle: Duration::from_millis(500),
            rebalance: self.rebalance,
            policy: BTreeMap::from([("addresses".to_owned(), [7; 16])]),
            facts: vec![me as u8],
        }
    }
}

impl World {
    pub(crate) fn engine_works(&mut self) {
        let now = self.now;
        let (due, later) = std::mem::take(&mut self.register.asks)
            .into_iter()
            .partition(|ask| ask.at <= now);
        self.register.asks = later;
        for ask in due {
            let mut ask: Ask = ask;
            let Some(answer) = ask.answer.take() else {
                let cut = self.register.down || self.register.unreachable.contains(&ask.from);
                let answer = if cut {
                    OwnershipAnswer::Unknown("no answer".to_owned())
                } else {
                    self.register_does(&ask)
                };
                let (mut answer, mut at) = (answer, now + Duration::from_millis(self.register.delay));
                if self.register.unheard.contains(&ask.from) {
                    // The agent waits no longer.
                    answer = OwnershipAnswer::Unknown("no answer".to_owned());
                    at = now + Duration::from_millis(500);
                }
                self.register.asks.push(Ask {
                    at,
                    answer: Some(answer),
                    ..ask
                });
                continue;
            };
            let member = &mut self.members[ask.from];
            let same_life = member.node.status().me.incarnation.0 == ask.incarnation;
            if member.alive && same_life {
                let token = ask.token;
                member
                    .node
                    .handle(Input::OwnershipAnswered { now, token, answer });
                self.settle(ask.from);
            }
        }
    }

    pub(crate) fn register_does(&mut self, ask: &Ask) -> OwnershipAnswer {
        let there = self.register.records.get(&ask.group).cloned();
        match &ask.op {
            OwnershipOp::Read => OwnershipAnswer::Is(there),
            OwnershipOp::Write { expected, new } if *expected == there => {
                if let Some(there) = &there {
                    assert!(new.epoch >= there.epoch, "epochs only rise");
                }
                self.register.records.insert(ask.group, new.clone());
                self.register.history.push((ask.group, new.clone()));
                let forgets = self.register.forgets;
                if self.dice.percent(forgets) {
                    OwnershipAnswer::Unknown("the answer was lost".to_owned())
                } else {
                    OwnershipAnswer::Written
                }
            }
            OwnershipOp::Write { .. } => OwnershipAnswer::Differs(there),
        }
    }
}
