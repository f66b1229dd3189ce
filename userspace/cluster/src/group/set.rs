//! Who is in sync: members that leave the set or enter it, in a pair at once, under an ownership engine by a committed write.

use super::follow::Follow;
use super::handover::OwnerHandover;
use super::{AfterFlip, ENGINE_PATIENCE, ENGINE_RETRY, Group, Phase};
use crate::io::{EventKind, Output};
use crate::message::{GroupBody, SetMember};
use crate::node::Shared;
use crate::ownership::{GroupRecord, OwnershipAnswer, OwnershipOp};
use crate::rules::{self, Solo, Standing};
use crate::rules_doubt::{Fate, adopts, fate};
use model::{Instant, MemberId};
use std::collections::BTreeSet;

/// How the owner lost a standby.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// It does not answer.
    Silent,
    /// It is back as a new incarnation. What the old one did unseen, nobody knows.
    NewLife,
    /// The very incarnation that had the place says that it holds nothing.
    GaveUp,
}

/// What a write is for.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Purpose {
    Shrink(BTreeSet<SetMember>),
    Enter(SetMember),
    Move(MemberId),
}

/// A write whose outcome is not known yet. It is repeated until it is: another one could only be a guess.
pub(crate) struct Writing {
    expected: GroupRecord,
    new: GroupRecord,
    purpose: Purpose,
    token: Option<u64>,
    asked: Instant,
}

impl Writing {
    pub fn set(&self) -> &BTreeSet<SetMember> {
        &self.new.in_sync
    }
}

impl Group {
    pub(super) fn standby_silent(&mut self, s: &mut Shared, now: Instant, member: MemberId, reason: &str) {
        let members = self.lives_of(member);
        self.lose(s, now, members, reason, Loss::Silent);
    }

    pub(super) fn standby_restarted(&mut self, s: &mut Shared, now: Instant, old: SetMember) {
        self.lose(
            s,
            now,
            BTreeSet::from([old]),
            "its agent was restarted",
            Loss::NewLife,
        );
    }

    /// The lives of a member that the owner counts with.
    fn lives_of(&self, member: MemberId) -> BTreeSet<SetMember> {
        let Phase::Owner(owner) = &self.phase else {
            return BTreeSet::new();
        };
        owner
            .required()
            .into_iter()
            .chain(owner.join.as_ref().map(|j| j.member))
            .filter(|m| m.member == member)
            .collect()
    }

    /// The joiner is gone, or begins again.
    pub(super) fn drop_join(&mut self, s: &mut Shared) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let Some(join) = owner.join.take() else { return };
        // While a write that adds it is under way its acknowledgement stays required.
        if owner.required().contains(&join.member) {
            return;
        }
        let complete = owner.raises.excuse(join.member);
        if owner.required().len() == 1 {
            owner.journal.forget_all();
        }
        let blocked = owner.follow.as_ref().is_some_and(Follow::blocks);
        let freed = owner.standing == Standing::AloneTaker && !join.began_alone() && !blocked;
        self.raises_complete(s, complete);
        if freed {
            // Its snapshot kept this owner within limits (see `flip_as_owner`).
            self.flip_as_owner(s, None, AfterFlip::Nothing);
        }
    }

    /// Members (standbys, or the joiner) are gone.
    pub(super) fn lose(
        &mut self,
        s: &mut Shared,
        now: Instant,
        members: BTreeSet<SetMember>,
        reason: &str,
        loss: Loss,
    ) {
        let solo = Self::solo(s);
        let Phase::Owner(owner) = &self.phase else { return };
        if owner.join.as_ref().is_some_and(|j| members.contains(&j.member)) {
            self.drop_join(s);
        }
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let lost: BTreeSet<SetMember> = owner.standbys().intersection(&members).copied().collect();
        if lost.is_empty() {
            return;
        }
        match solo {
            Some(Solo::Stop) if loss == Loss::Silent => {}
            Some(_) => {
                let epoch = self.epoch;
                owner.standing = rules::standing_after_loss(loss == Loss::GaveUp);
                if loss != Loss::GaveUp {
                    owner.claim_above = rules::claim_above(owner.claim_above, epoch);
                }
                self.excluded(s, now, &lost, reason);
            }
            None => {
                let taker = owner
                    .handover
                    .as_ref()
                    .filter(|h| h.offered_epoch().is_some())
                    .map(OwnerHandover::partner);
                for member in &lost {
                    owner.out.entry(*member).or_insert_with(|| reason.to_owned());
                }
                match taker {
                    // The engine has it as the owner already: it is lost like any owner.
                    Some(taker) if lost.iter().any(|m| m.member == taker) => {
                        self.leave_to_taker(s, now, taker)
                    }
                    _ => self.write_set(s, now),
                }
            }
        }
    }

    /// The set is smaller now.
    fn excluded(&mut self, s: &mut Shared, now: Instant, lost: &BTreeSet<SetMember>, reason: &str) {
        let pair = Self::solo(s).is_some();
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        for member in lost {
            owner.in_sync.remove(member);
            owner.owes_nothing(member);
            if let Some(follow) = &mut owner.follow {
                follow.excuse(member);
            }
        }
        if !pair {
            owner.standing = rules::standing_in(&owner.in_sync);
        }
        let standing = owner.standing;
        let partner = owner.handover.as_ref().map(OwnerHandover::partner);
        let after = match partner {
            Some(partner) if lost.iter().any(|m| m.member == partner) => owner
                .handover
                .take()
                .map_or(AfterFlip::Nothing, OwnerHandover::after_loss),
            _ => AfterFlip::Nothing,
        };
        let alone = owner.in_sync.len() == 1;
        let mut complete = Vec::new();
        let mut open = Vec::new();
        if alone && owner.join.is_none() {
            open = owner.raises.take_all();
            owner.journal.forget_all();
        } else {
            for member in lost {
                complete.extend(owner.raises.excuse(*member));
            }
        }
        let blocked = owner.follow.as_ref().is_some_and(Follow::blocks);
        let joined = owner.admitted.clone();
        for member in lost {
            self.event(
                s,
                now,
                EventKind::Excluded {
                    member: member.member,
                    reason: reason.to_owned(),
                },
            );
            // On every link: a standby that hears it must not adopt.
            let join = joined
                .get(&member.member)
                .filter(|(life, _)| *life == member.incarnation)
                .map_or(0, |(_, join)| *join);
            s.datagrams(member.member, self.id, self.epoch, GroupBody::SoloNotice { join });
        }
        self.event(s, now, EventKind::Standing(standing));
        if !blocked {
            self.flip_as_owner(s, None, after);
        }
        self.raises_complete(s, complete);
        self.commit(s);
        if blocked {
            // Limits that were being stated anew need nobody's acknowledgement any more.
            self.raises_complete(s, open);
        } else {
            self.raise(s, now, open);
        }
        if !self.is_moving() {
            self.release_held(s, now);
        }
        self.follow_progress(s, now);
    }

    /// Under an engine: has the members that are to leave the set removed from the record.
    pub(super) fn write_set(&mut self, s: &mut Shared, now: Instant) {
        let Phase::Owner(owner) = &self.phase else { return };
        if owner.handover.as_ref().is_some_and(OwnerHandover::is_given_away) {
            // The record is the taker's: it finds out by itself who is lost.
            return;
        }
        let lost: BTreeSet<SetMember> = owner
            .out
            .keys()
            .filter(|m| owner.in_sync.contains(m))
            .copied()
            .collect();
        if owner.writing.is_none() && !lost.is_empty() {
            let new = rules::without(&self.record(), &lost);
            self.write(s, now, new, Purpose::Shrink(lost));
        }
    }

    /// What the engine holds, as far as this owner knows.
    pub(super) fn record(&self) -> GroupRecord {
        let in_sync = match &self.phase {
            Phase::Owner(owner) => owner.in_sync.clone(),
            _ => BTreeSet::new(),
        };
        GroupRecord {
            epoch: self.epoch,
            in_sync,
        }
    }

    pub(super) fn write(&mut self, s: &mut Shared, now: Instant, new: GroupRecord, purpose: Purpose) {
        let expected = self.record();
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        debug_assert!(owner.writing.is_none(), "one write at a time");
        let look = matches!(purpose, Purpose::Shrink(_)) && rules::looks_first(&s.heard());
        owner.writing = Some(Writing {
            expected,
            new,
            purpose,
            token: None,
            asked: now,
        });
        self.ask_engine(s, now, look);
    }

    /// Asks for the write, or (after an outcome that is not known) for what the key holds.
    fn ask_engine(&mut self, s: &mut Shared, now: Instant, read: bool) {
        let group = self.id;
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let Some(writing) = &mut owner.writing else { return };
        let token = s.token(group);
        writing.token = Some(token);
        writing.asked = now;
        let op = if read {
            OwnershipOp::Read
        } else {
            OwnershipOp::Write {
                expected: Some(writing.expected.clone()),
                new: writing.new.clone(),
            }
        };
        s.outputs.push_back(Output::Ownership { token, group, op });
    }

    pub(super) fn engine_overdue(&mut self, s: &mut Shared, now: Instant) {
        let Phase::Owner(owner) = &self.phase else { return };
        let Some(writing) = &owner.writing else { return };
        let patience = if writing.token.is_some() {
            ENGINE_PATIENCE
        } else {
            ENGINE_RETRY
        };
        if now.since(writing.asked) >= patience {
            self.ask_engine(s, now, true);
        }
    }

    pub(super) fn owner_answered(
        &mut self,
        s: &mut Shared,
        now: Instant,
        token: u64,
        answer: OwnershipAnswer,
    ) {
        let epoch = self.epoch;
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        if owner.asking == Some(token) {
            owner.asking = None;
            match answer {
                OwnershipAnswer::Is(Some(record)) if record.epoch == epoch => owner.reconfirm = None,
                OwnershipAnswer::Is(Some(record)) => self.record_seen(s, now, &record),
                _ => {}
            }
            return;
        }
        let Some(writing) = owner.writing.as_mut().filter(|w| w.token == Some(token)) else {
            return;
        };
        writing.token = None;
        let held = match answer {
            OwnershipAnswer::Written => Some(writing.new.clone()),
            OwnershipAnswer::Differs(held) | OwnershipAnswer::Is(held) => held,
            // Not known: asked again after a while.
            OwnershipAnswer::Unknown(_) => return,
        };
        match (fate(Some(&writing.expected), &writing.new, held.as_ref()), held) {
            (Fate::Done, _) => self.written(s, now),
            (Fate::Open, _) => self.ask_engine(s, now, false),
            (Fate::Void, Some(held)) if held.epoch > epoch => self.yield_to(s, now, held.epoch),
            (Fate::Void, Some(held)) if adopts(&held, epoch, s.me, &owner.in_sync) => {
                self.adopt_set(s, now, &held.in_sync);
            }
            // Somebody has edited the key. Nothing is assumed of it; what waits goes on waiting, and people are told.
            (Fate::Void, other) => {
                let why = match other {
                    Some(record) => format!(
                        "the key of group {} holds another in-sync set in this owner's epoch {}: was it edited?",
                        self.id, record.epoch.number
                    ),
                    None => format!("the key of group {} is gone: was it deleted?", self.id),
                };
                let answer = OwnershipAnswer::Unknown(why);
                s.engine_answered(now, &answer);
            }
        }
    }

    /// The key holds a smaller set than this owner, which has just been given the group, knows of. What it wanted to write is void.
    fn adopt_set(&mut self, s: &mut Shared, now: Instant, held: &BTreeSet<SetMember>) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let gone: BTreeSet<SetMember> = owner.in_sync.difference(held).copied().collect();
        let moves = owner
            .writing
            .take()
            .is_some_and(|w| matches!(w.purpose, Purpose::Move(_)));
        owner.out.retain(|member, _| held.contains(member));
        if moves {
            self.abort_handover(s, now, "the in-sync set has just changed");
        }
        self.excluded(s, now, &gone, "was out of the set when the group was handed over");
        self.write_set(s, now);
    }

    /// The write under way is done.
    fn written(&mut self, s: &mut Shared, now: Instant) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let Some(writing) = owner.writing.take() else {
            return;
        };
        match writing.purpose {
            Purpose::Shrink(lost) => {
                let mut reason = String::new();
                for member in &lost {
                    reason = owner.out.remove(member).unwrap_or(reason);
                }
                self.excluded(s, now, &lost, &reason);
            }
            Purpose::Enter(member) => self.entered(s, now, member),
            Purpose::Move(to) => self.move_written(s, now, to, writing.new.epoch),
        }
        self.write_set(s, now);
    }

    /// The engine's watch, or a read: another member may have claimed.
    pub fn record_seen(&mut self, s: &mut Shared, now: Instant, record: &GroupRecord) {
        match &self.phase {
            Phase::Owner(owner) => {
                let ours = record.epoch.owner == s.me.member
                    || owner
                        .writing
                        .as_ref()
                        .is_some_and(|w| w.new.epoch == record.epoch)
                    || owner.handover.as_ref().and_then(OwnerHandover::offered_epoch) == Some(record.epoch);
                if record.epoch > self.epoch && !ours {
                    self.yield_to(s, now, record.epoch);
                }
            }
            Phase::Starting(_) => self.read_again(s, now),
            Phase::Standby(_) => {}
        }
    }

    /// After a stall, under an engine: does this member still own the group?
    pub(super) fn ask_whether_still_owner(&mut self, s: &mut Shared, _now: Instant) {
        if Self::solo(s).is_some() {
            return;
        }
        let group = self.id;
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let token = s.token(group);
        owner.asking = Some(token);
        let op = OwnershipOp::Read;
        s.outputs.push_back(Output::Ownership { token, group, op });
    }
}
