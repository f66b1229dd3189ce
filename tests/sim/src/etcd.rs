//! An ownership engine in the simulated world: a linearizable register for each group, with delays, outages, and answers that
//! get lost after the write was done. Real etcd is tested elsewhere; this is what can happen around it.

use crate::rng::Rng;
use cluster::{GroupRecord, OwnershipAnswer, OwnershipOp};
use model::{GroupId, Instant};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a member waits for an answer.
pub const TIMEOUT: Duration = Duration::from_millis(500);

/// What becomes of a question: when it takes effect at the engine, and when (and whether) the answer is back.
pub struct Plan {
    /// When the operation is carried out; `None`: never.
    pub at: Option<Instant>,
    /// When the member hears the answer; `None`: it hears of the time-out only.
    pub answer: Option<Instant>,
}

/// The register.
pub struct Etcd {
    rng: Rng,
    keys: BTreeMap<GroupId, GroupRecord>,
    /// It answers nobody.
    pub down: bool,
    /// Extra delay, milliseconds.
    pub slow_ms: u64,
    /// Answers that get lost after the operation was carried out, in a thousand.
    pub lost_answers: u64,
    /// A question that the member has given up may be carried out all the same, later (docs/SIMULATION.md, open findings).
    pub late_writes: bool,
    /// Every value that a key ever had: the checkers look at it.
    pub history: Vec<(Instant, GroupId, GroupRecord)>,
}

impl Etcd {
    /// Nothing in it.
    pub fn new(rng: Rng) -> Self {
        Self {
            rng,
            keys: BTreeMap::new(),
            down: false,
            slow_ms: 0,
            lost_answers: 0,
            late_writes: false,
            history: Vec::new(),
        }
    }

    /// Works as it should from here on.
    pub fn heal(&mut self) {
        (self.down, self.slow_ms, self.lost_answers) = (false, 0, 0);
    }

    /// What becomes of a question asked now. `there` and `back`: whether the way is open.
    pub fn plan(&mut self, now: Instant, there: bool, back: bool) -> Plan {
        let trip = |rng: &mut Rng, slow: u64| {
            Duration::from_micros(300 + rng.below(1500)) + Duration::from_millis(rng.below(slow + 1))
        };
        if self.down || !there {
            return Plan {
                at: None,
                answer: None,
            };
        }
        let at = now + trip(&mut self.rng, self.slow_ms);
        if at.since(now) > TIMEOUT && !self.late_writes {
            return Plan {
                at: None,
                answer: None,
            };
        }
        let answer = at + trip(&mut self.rng, self.slow_ms);
        let lost = !back || self.rng.permille(self.lost_answers) || answer.since(now) > TIMEOUT;
        Plan {
            at: Some(at),
            answer: (!lost).then_some(answer),
        }
    }

    /// Carries an operation out.
    pub fn run(&mut self, now: Instant, group: GroupId, op: &OwnershipOp) -> OwnershipAnswer {
        let held = self.keys.get(&group).cloned();
        match op {
            OwnershipOp::Read => OwnershipAnswer::Is(held),
            OwnershipOp::Write { expected, new } => {
                if held != *expected {
                    return OwnershipAnswer::Differs(held);
                }
                self.history.push((now, group, new.clone()));
                self.keys.insert(group, new.clone());
                OwnershipAnswer::Written
            }
        }
    }

    /// What a key holds.
    pub fn get(&self, group: GroupId) -> Option<&GroupRecord> {
        self.keys.get(&group)
    }
}
