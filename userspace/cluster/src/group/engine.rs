//! Takeover: in a pair at once, under an ownership engine by a claim that is read, checked, and committed there.

use super::{Claimed, ENGINE_PATIENCE, ENGINE_RETRY, Group, Phase};
use crate::io::{EventKind, Output};
use crate::node::Shared;
use crate::ownership::{GroupRecord, OwnershipAnswer, OwnershipOp};
use crate::rules::{self, NoClaim};
use crate::rules_doubt::{Fate, fate, may_ask};
use model::Instant;
use std::collections::BTreeSet;
use std::time::Duration;

/// The next member in line claims this much later, so that a claim seldom meets another one. The engine decides either way.
const STAGGER: Duration = Duration::from_millis(40);

/// A claim under way, at a standby.
pub(crate) struct Claim {
    step: Step,
    /// What was sent, while its outcome is not known: it is repeated as it was until the record has changed.
    sent: Option<(GroupRecord, GroupRecord)>,
    /// Of the step, or when it is to begin.
    at: Instant,
}

enum Step {
    /// Until `at`.
    Waiting,
    Reading(u64),
    Writing(u64),
}

impl Claim {
    /// Whether a write may be done, or still come to be.
    pub fn is_open(&self) -> bool {
        self.sent.is_some()
    }
}

impl Group {
    /// The owner is silent, or its life is over.
    pub(super) fn owner_lost(&mut self, s: &mut Shared, now: Instant) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        standby.lost.get_or_insert(now);
        self.try_to_take_over(s, now);
    }

    /// The owner is heard again.
    pub(super) fn owner_is_back(&mut self, s: &mut Shared, _now: Instant) {
        let owner = self.epoch.owner;
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        if Self::same_life_as_in(s, standby.set.as_ref(), owner) {
            standby.lost = None;
            standby.deaf_owner = false;
            standby.wary_until = None;
            standby.claim.take_if(|claim| !claim.is_open());
        }
    }

    /// An owner that is heard, but hears nobody, can neither commit anything nor follow a claim of its own.
    pub(super) fn does_the_owner_hear(&mut self, s: &mut Shared, now: Instant) {
        let owner = self.epoch.owner;
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        let deaf = rules::owner_is_deaf(owner, &s.heard(), &s.deaf());
        if deaf == standby.deaf_owner || deaf && (!standby.in_sync() || standby.lost.is_some()) {
            return;
        }
        standby.deaf_owner = deaf;
        if deaf {
            standby.lost = Some(now);
            let unheard = s
                .peers
                .get(&owner)
                .map_or(Duration::ZERO, |p| p.hearing.unheard());
            let unheard_ms = unheard.as_millis() as u64;
            let kind = EventKind::Deaf {
                peer: owner,
                unheard_ms,
            };
            self.event(s, now, kind);
        } else if s.alive(owner) {
            self.event(s, now, EventKind::Hears(owner));
            self.owner_is_back(s, now);
        }
    }

    /// An owner that is alive, but owns nothing: it gave the group to a taker that never served, say. What the engine
    /// holds tells whose it is.
    pub(super) fn look_for_owner(&mut self, s: &mut Shared, now: Instant) {
        if Self::solo(s).is_some() {
            return;
        }
        let (index, epoch) = (usize::from(self.id.0), self.epoch);
        let beat = s
            .peers
            .get(&epoch.owner)
            .and_then(|p| p.beats.get(index).copied());
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        let disowned =
            beat.is_some_and(|beat| !beat.owner || beat.epoch != epoch) && standby.legacy.is_none();
        if !disowned {
            standby.disowned = None;
        } else if now.since(*standby.disowned.get_or_insert(now)) > s.config.suspicion_floor * 3 {
            standby.lost.get_or_insert(now);
        }
    }

    /// While the owner is lost.
    pub(super) fn try_to_take_over(&mut self, s: &mut Shared, now: Instant) {
        let Phase::Standby(standby) = &self.phase else {
            return;
        };
        let (Some(lost), None) = (standby.lost, &standby.claim) else {
            return;
        };
        if !may_ask(standby.holds()) {
            // It may be serving where this member cannot see it: nothing of it is adopted.
            return self.start_anew(s, now);
        }
        // A member whose own data plane does not work leaves the claim to the others, for a while.
        let patience = s.config.suspicion_floor * 5;
        if s.trouble.is_some() && now.since(lost) < patience {
            return;
        }
        if Self::solo(s).is_some() {
            if standby.wary_until.is_some_and(|until| now < until) {
                return;
            }
            return self.take_over_in_pair(s, now);
        }
        let owner = self.epoch.owner;
        let place = standby.set.as_ref().map_or(0, |set| {
            self.rank(set, owner)
                .into_iter()
                .filter(|m| s.alive(*m))
                .position(|m| m == s.me.member)
                .unwrap_or(0)
        });
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        standby.claim = Some(Claim {
            step: Step::Waiting,
            sent: None,
            at: now + STAGGER * place as u32,
        });
        self.claim_progress(s, now);
    }

    fn take_over_in_pair(&mut self, s: &mut Shared, now: Instant) {
        let Phase::Standby(standby) = &self.phase else {
            return;
        };
        let plan = rules::takeover(
            self.epoch,
            standby.claim_above,
            standby.set.as_ref(),
            s.me,
            &BTreeSet::from([s.me]),
            standby.armed,
        );
        match plan {
            Ok(plan) => {
                let claimed = Claimed {
                    epoch: plan.epoch,
                    from: plan.from,
                    in_sync: plan.in_sync,
                    standing: plan.standing,
                    position: plan.position,
                };
                self.become_owner(s, now, claimed);
            }
            // It may be serving where this member cannot see it: nothing of it is adopted.
            Err(_) => self.start_anew(s, now),
        }
    }

    pub(super) fn claim_progress(&mut self, s: &mut Shared, now: Instant) {
        let group = self.id;
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        let Some(claim) = &mut standby.claim else { return };
        let due = match claim.step {
            Step::Waiting => now >= claim.at,
            Step::Reading(_) | Step::Writing(_) => now.since(claim.at) > ENGINE_PATIENCE,
        };
        if due {
            let token = s.token(group);
            claim.step = Step::Reading(token);
            claim.at = now;
            let op = OwnershipOp::Read;
            s.outputs.push_back(Output::Ownership { token, group, op });
        }
    }

    pub fn engine_answered(&mut self, s: &mut Shared, now: Instant, token: u64, answer: OwnershipAnswer) {
        match &self.phase {
            Phase::Starting(_) => self.starting_answered(s, now, token, answer),
            Phase::Owner(_) => self.owner_answered(s, now, token, answer),
            Phase::Standby(_) => self.claim_answered(s, now, token, answer),
        }
    }

    fn claim_answered(&mut self, s: &mut Shared, now: Instant, token: u64, answer: OwnershipAnswer) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        let Some(claim) = &mut standby.claim else { return };
        let writing = match &claim.step {
            Step::Reading(asked) if *asked == token => false,
            Step::Writing(asked) if *asked == token => true,
            _ => return,
        };
        match answer {
            OwnershipAnswer::Written => {
                if writing && let Some((_, new)) = claim.sent.take() {
                    self.claimed(s, now, new);
                }
            }
            OwnershipAnswer::Is(Some(held)) | OwnershipAnswer::Differs(Some(held)) => {
                self.claim_over(s, now, held);
            }
            // Not known, or a key that somebody has deleted: read again. A deleted key is no licence to begin.
            OwnershipAnswer::Unknown(_) | OwnershipAnswer::Is(None) | OwnershipAnswer::Differs(None) => {
                claim.step = Step::Waiting;
                claim.at = now + ENGINE_RETRY;
            }
        }
    }

    /// The record as it was just now: claim, or do not.
    fn claim_over(&mut self, s: &mut Shared, now: Instant, held: GroupRecord) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        if let Some((expected, new)) = standby.claim.as_mut().and_then(|claim| claim.sent.take()) {
            match fate(Some(&expected), &new, Some(&held)) {
                Fate::Done => return self.claimed(s, now, new),
                Fate::Open => return self.write_claim(s, now, expected, new),
                Fate::Void => {}
            }
        }
        if held.epoch > self.epoch && held.epoch.owner == s.me.member && held.in_sync.contains(&s.me) {
            // A planned move names this member, and its old owner was lost before it could say so.
            return self.claimed(s, now, held);
        }
        // Whose life is not the one that the record names, cannot serve by it.
        let deaf_owner = match &self.phase {
            Phase::Standby(standby) if standby.deaf_owner => Some(self.epoch.owner),
            _ => None,
        };
        let lost = rules::lost_members(&held, &s.lives(), deaf_owner);
        match rules::claim(&held, s.me, &lost) {
            Ok(new) => self.write_claim(s, now, held, new),
            // Another member was faster, or the owner is there after all: its own word will come, else this is looked
            // at again.
            Err(NoClaim::OwnerLives) => {
                let Phase::Standby(standby) = &mut self.phase else {
                    return;
                };
                standby.claim = Some(Claim {
                    step: Step::Waiting,
                    sent: None,
                    at: now + ENGINE_RETRY,
                });
            }
            Err(NoClaim::NotInSync(_)) => self.start_anew(s, now),
        }
    }

    fn write_claim(&mut self, s: &mut Shared, now: Instant, expected: GroupRecord, new: GroupRecord) {
        let group = self.id;
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        let token = s.token(group);
        standby.claim = Some(Claim {
            step: Step::Writing(token),
            sent: Some((expected.clone(), new.clone())),
            at: now,
        });
        let expected = Some(expected);
        let op = OwnershipOp::Write { expected, new };
        s.outputs.push_back(Output::Ownership { token, group, op });
    }

    fn claimed(&mut self, s: &mut Shared, now: Instant, record: GroupRecord) {
        let Phase::Standby(standby) = &self.phase else {
            return;
        };
        let position = standby.position();
        let standing = rules::standing_in(&record.in_sync);
        let claimed = Claimed {
            epoch: record.epoch,
            from: self.epoch.owner,
            in_sync: record.in_sync,
            standing,
            position,
        };
        self.become_owner(s, now, claimed);
    }
}
