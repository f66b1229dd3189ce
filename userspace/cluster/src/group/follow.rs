//! After a claim: the other survivors follow, and limits that only some of them have armed are stated anew, before the
//! taker serves.
//!
//! ```text
//! taker                                        survivor
//!   |------------ NewEpoch --------------------->| same history? else it joins anew
//!   |<----------- EpochAck (doubtful) -----------|
//!   | doubtful here or there: RestateLimits      |
//!   |------------ Raise (new epoch) ------------>|
//!   |<----------- RaiseAck ----------------------|
//!   | flip, announce, resume                     |
//! ```

use super::set::Loss;
use super::{AfterFlip, FOLLOW_TIMEOUT, Group, Pending, Phase};
use crate::io::Output;
use crate::message::{GroupBody, RaiseItem, RaiseKey, SetMember};
use crate::node::Shared;
use crate::rules::EpochId;
use crate::rules_doubt::may_serve;
use model::Instant;
use std::collections::BTreeSet;

pub(crate) struct Follow {
    old: EpochId,
    since: Instant,
    missing: BTreeSet<SetMember>,
    doubtful: BTreeSet<RaiseKey>,
    step: Step,
}

#[derive(PartialEq, Eq)]
enum Step {
    /// The taker serves only once everybody follows.
    Calling,
    /// The agent says what the limits in doubt are.
    Restating,
    /// The survivors acknowledge that.
    Settling,
    /// In a planned handover nothing was in doubt: the others follow while it goes on.
    InPassing,
}

impl Follow {
    pub fn begin(
        now: Instant,
        old: EpochId,
        missing: BTreeSet<SetMember>,
        doubtful: Vec<RaiseKey>,
    ) -> Option<Self> {
        Some(Self {
            old,
            since: now,
            missing,
            doubtful: doubtful.into_iter().collect(),
            step: Step::Calling,
        })
    }

    pub fn in_passing(now: Instant, old: EpochId, missing: BTreeSet<SetMember>) -> Option<Self> {
        (!missing.is_empty()).then_some(Self {
            old,
            since: now,
            missing,
            doubtful: BTreeSet::new(),
            step: Step::InPassing,
        })
    }

    /// Whether the taker waits with serving.
    pub fn blocks(&self) -> bool {
        self.step != Step::InPassing
    }

    /// Whether the member does not follow yet.
    pub fn misses(&self, member: &SetMember) -> bool {
        self.missing.contains(member)
    }

    /// The member is out of the set: it need not follow.
    pub fn excuse(&mut self, member: &SetMember) {
        self.missing.remove(member);
    }
}

impl Group {
    /// Tells those that do not follow yet.
    pub(super) fn call_followers(&self, s: &mut Shared) {
        let Phase::Owner(owner) = &self.phase else { return };
        let Some(follow) = &owner.follow else { return };
        for member in &follow.missing {
            let body = GroupBody::NewEpoch {
                old: follow.old,
                position: owner.journal.written(),
                in_sync: owner.in_sync.clone(),
            };
            self.stream(s, member.member, body);
        }
    }

    pub(super) fn epoch_ack(
        &mut self,
        s: &mut Shared,
        now: Instant,
        from: SetMember,
        position: u64,
        doubtful: Vec<RaiseKey>,
    ) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let Some(follow) = owner.follow.as_mut().filter(|f| f.missing.contains(&from)) else {
            return;
        };
        follow.missing.remove(&from);
        follow.doubtful.extend(doubtful);
        owner.acknowledged.insert(from, position);
        self.resend_journal(s, from.member);
        self.commit(s);
        self.follow_progress(s, now);
    }

    /// Goes on as far as is possible; flips in the end.
    pub(super) fn follow_progress(&mut self, s: &mut Shared, now: Instant) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let (required, open) = (owner.required(), owner.raises.len());
        let alone = owner.standbys().is_empty();
        let Some(follow) = &mut owner.follow else { return };
        if !follow.missing.is_empty() {
            let late = follow.missing.clone();
            if now.since(follow.since) > FOLLOW_TIMEOUT {
                follow.since = now;
                self.lose(s, now, late, "does not follow the new owner", Loss::Silent);
            }
            return;
        }
        match follow.step {
            Step::InPassing => owner.follow = None,
            Step::Calling if !alone && !follow.doubtful.is_empty() => {
                follow.step = Step::Restating;
                let keys = follow.doubtful.iter().copied().collect();
                let (group, epoch) = (self.id, self.epoch);
                let token = self.token(s, Pending::Restate);
                s.outputs.push_back(Output::RestateLimits {
                    group,
                    token,
                    epoch,
                    keys,
                });
            }
            Step::Restating => {}
            Step::Calling | Step::Settling => {
                let following = required.difference(&follow.missing).copied().collect();
                if !may_serve(&required, s.me.member, &following, open) {
                    return;
                }
                owner.follow = None;
                self.flip_as_owner(s, None, AfterFlip::ServeAndAnnounce);
                self.release_held(s, now);
            }
        }
    }

    pub fn restated(&mut self, s: &mut Shared, now: Instant, token: u64, items: Vec<RaiseItem>) {
        if !matches!(self.pending.remove(&token), Some(Pending::Restate)) {
            return;
        }
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let Some(follow) = owner.follow.as_mut().filter(|f| f.step == Step::Restating) else {
            return;
        };
        follow.step = Step::Settling;
        self.ask_for(s, now, items);
        self.follow_progress(s, now);
    }
}
