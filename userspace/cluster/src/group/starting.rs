//! A member that has no part in the group yet: it looks for the owner, and begins where there is none.

use super::{Claimed, ENGINE_PATIENCE, ENGINE_RETRY, Group, Phase};
use crate::io::{EventKind, Output};
use crate::node::Shared;
use crate::ownership::{GroupRecord, OwnershipAnswer, OwnershipOp};
use crate::rules::{self, EpochId, Standing};
use crate::rules_begin::{self, FirstOwner};
use crate::rules_doubt::may_begin_anew;
use model::{Instant, MemberId};
use std::collections::BTreeSet;
use std::time::Duration;

pub(crate) struct Starting {
    since: Instant,
    /// A question to the engine, and when it was asked.
    asked: Option<(u64, Instant, Question)>,
    /// Not before.
    next: Instant,
    /// An operator has said that nobody serves.
    forced: bool,
    orphaned: bool,
    /// This life has heard of an owner: there was state.
    knows: bool,
}

#[derive(Clone, PartialEq, Eq)]
enum Question {
    Read,
    Write(GroupRecord),
}

impl Starting {
    pub fn new(now: Instant) -> Self {
        Self {
            since: now,
            asked: None,
            next: now,
            forced: false,
            orphaned: false,
            knows: false,
        }
    }

    /// Again, after this life has heard of an owner.
    fn again(now: Instant) -> Self {
        Self {
            knows: true,
            ..Self::new(now)
        }
    }

    pub fn waits(&self) -> bool {
        self.asked.is_some()
    }
}

impl Group {
    pub(super) fn tick_starting(&mut self, s: &mut Shared, now: Instant) {
        if Self::solo(s).is_some() {
            if self.may_begin(s, now) {
                self.begin(s, now);
            }
            return;
        }
        let Phase::Starting(starting) = &mut self.phase else {
            return;
        };
        if starting
            .asked
            .as_ref()
            .is_some_and(|(_, at, _)| now.since(*at) > ENGINE_PATIENCE)
        {
            starting.asked = None;
        }
        if starting.asked.is_none() && now >= starting.next {
            self.ask_at_start(s, now, Question::Read);
        }
    }

    /// Whether this member is the one to begin, as far as the others and the time go.
    fn may_begin(&self, s: &Shared, now: Instant) -> bool {
        let Phase::Starting(starting) = &self.phase else {
            return false;
        };
        if starting.forced {
            return true;
        }
        let pair = Self::solo(s).is_some();
        // Heard, and heard to own nothing: heartbeats say so, other records do not. A standby of a pair that holds something is about to
        // take over from a life that has ended.
        let others_heard = s.peers.values().all(|p| {
            p.detector.alive()
                && p.beats
                    .get(usize::from(self.id.0))
                    .is_some_and(|beat| !(beat.owner || pair && beat.position > 0))
        });
        let settle = if s.peers.is_empty() {
            Duration::ZERO
        } else {
            rules_begin::patience(s.config.settle, pair && starting.knows)
        };
        let preferred = self.home == s.me.member || s.peers.is_empty();
        rules_begin::first_owner(preferred, others_heard, now.since(starting.since), settle) == FirstOwner::Me
    }

    /// Pair engine: nobody owns, so this member does.
    fn begin(&mut self, s: &mut Shared, now: Instant) {
        let epoch = EpochId {
            number: rules_begin::BEGINS,
            owner: s.me.member,
        };
        self.begun(s, now, epoch);
    }

    fn begun(&mut self, s: &mut Shared, now: Instant, epoch: EpochId) {
        let claimed = Claimed {
            epoch,
            from: MemberId(0),
            in_sync: BTreeSet::from([s.me]),
            standing: Standing::AloneTaker,
            position: 0,
        };
        self.become_owner(s, now, claimed);
    }

    fn ask_at_start(&mut self, s: &mut Shared, now: Instant, question: Question) {
        let group = self.id;
        let Phase::Starting(starting) = &mut self.phase else {
            return;
        };
        let token = s.token(group);
        let op = OwnershipOp::Read;
        starting.asked = Some((token, now, question));
        s.outputs.push_back(Output::Ownership { token, group, op });
    }

    fn write_at_start(&mut self, s: &mut Shared, now: Instant, expected: Option<GroupRecord>) {
        let group = self.id;
        let new = rules::start_over(expected.as_ref(), s.me);
        let Phase::Starting(starting) = &mut self.phase else {
            return;
        };
        let token = s.token(group);
        starting.asked = Some((token, now, Question::Write(new.clone())));
        let op = OwnershipOp::Write { expected, new };
        s.outputs.push_back(Output::Ownership { token, group, op });
    }

    /// The watch tells of news.
    pub(super) fn read_again(&mut self, s: &mut Shared, now: Instant) {
        if let Phase::Starting(starting) = &self.phase
            && starting.asked.is_none()
        {
            self.ask_at_start(s, now, Question::Read);
        }
    }

    pub(super) fn starting_answered(
        &mut self,
        s: &mut Shared,
        now: Instant,
        token: u64,
        answer: OwnershipAnswer,
    ) {
        let Phase::Starting(starting) = &mut self.phase else {
            return;
        };
        if starting
            .asked
            .as_ref()
            .is_none_or(|(asked, _, _)| *asked != token)
        {
            return;
        }
        let Some((_, _, question)) = starting.asked.take() else {
            return;
        };
        starting.next = now + ENGINE_RETRY;
        let held = match (answer, question) {
            (OwnershipAnswer::Written, Question::Write(new)) => return self.begun(s, now, new.epoch),
            (OwnershipAnswer::Is(held) | OwnershipAnswer::Differs(held), _) => held,
            // Not known: read again, and see below.
            _ => return,
        };
        match held {
            // A write of this life whose outcome was not known.
            Some(held) if held.epoch.owner == s.me.member && held.in_sync == BTreeSet::from([s.me]) => {
                self.begun(s, now, held.epoch);
            }
            Some(held) => {
                let lives = s.lives();
                let over = may_begin_anew(&held, s.me, &lives);
                let Phase::Starting(starting) = &mut self.phase else {
                    return;
                };
                if over || starting.forced {
                    if self.may_begin(s, now) {
                        self.write_at_start(s, now, Some(held));
                    }
                    return;
                }
                let waited = now.since(starting.since) > s.config.settle * 2;
                let mut others = held.in_sync.iter().filter(|m| **m != s.me);
                let nobody = others.all(|m| !lives.contains(m));
                if nobody && waited && !std::mem::replace(&mut starting.orphaned, true) {
                    let in_sync = held.in_sync;
                    self.event(s, now, EventKind::Orphaned { in_sync });
                }
            }
            None => {
                if self.may_begin(s, now) {
                    self.write_at_start(s, now, None);
                }
            }
        }
    }

    /// An operator's word: nobody serves the group any more.
    pub fn start_over(&mut self, s: &mut Shared, now: Instant) {
        let owner = self.epoch.owner;
        match &mut self.phase {
            Phase::Starting(starting) => {
                starting.forced = true;
                starting.next = now;
            }
            // A standby in sync takes over by itself; one that holds nothing and hears no owner would wait for ever.
            Phase::Standby(standby) if !standby.in_sync() && !s.alive(owner) => {
                let group = self.id;
                s.outputs.push_back(Output::DiscardFork { group });
                self.pending.clear();
                let mut starting = Starting::again(now);
                starting.forced = true;
                self.phase = Phase::Starting(starting);
            }
            _ => {
                let why = "the group has an owner, or a member that takes it over".to_owned();
                let to = s.me.member;
                self.event(s, now, EventKind::HandoverAborted { to, why });
            }
        }
    }

    /// Back to the beginning: nothing of the group is held here.
    pub(super) fn start_anew(&mut self, s: &mut Shared, now: Instant) {
        let (group, epoch) = (self.id, self.epoch);
        s.outputs.push_back(Output::DiscardFork { group });
        self.pending.clear();
        self.phase = Phase::Starting(Starting::again(now));
        if Self::solo(s).is_some() {
            let settle = rules_begin::patience(s.config.settle, true);
            let first = self.home == s.me.member;
            let ms = (settle * if first { 1 } else { 2 }).as_millis() as u64;
            self.event(s, now, EventKind::Waits { epoch, ms });
        }
    }
}
