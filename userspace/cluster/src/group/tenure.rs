//! A planned restart of a lone owner: what its next life needs to know, and how that goes on (ADR 9).
//!
//! The next life goes on in the same epoch: nobody has acted in between, since the owner is alone before and after, and
//! whoever hands a [`Tenure`] in vouches that it is the last word of the life before, handed in once.

use super::owner::Owner;
use super::{AfterFlip, Group, Phase};
use crate::node::Shared;
use crate::rules::{EpochId, Standing};
use model::{Epoch, GroupId, Instant};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a lone owner is, in one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenure {
    /// The group.
    pub group: GroupId,
    /// Its epoch.
    pub epoch: EpochId,
    /// What holds for raises: an owner that may have lost its standby to a takeover stays within its limits.
    pub standing: Standing,
    /// End of the journal.
    pub position: u64,
    /// Number that the next claim must pass.
    pub claim_above: Epoch,
}

impl Group {
    /// What this member is in the group, if it is alone and nothing is under way.
    pub(crate) fn tenure(&self, s: &Shared) -> Option<Tenure> {
        let Phase::Owner(owner) = &self.phase else {
            return None;
        };
        let me = BTreeSet::from([s.me]);
        let lone = owner.in_sync == me && owner.required() == me && owner.join.is_none();
        let calm = owner.handover.is_none()
            && owner.follow.is_none()
            && owner.writing.is_none()
            && owner.held.is_empty()
            && owner.raises.is_empty()
            && owner.journal.committed() == owner.journal.written();
        (lone && calm).then(|| Tenure {
            group: self.id,
            epoch: self.epoch,
            standing: owner.standing,
            position: owner.journal.written(),
            claim_above: owner.claim_above,
        })
    }

    /// Goes on as the owner that it was.
    pub(crate) fn go_on(&mut self, s: &mut Shared, now: Instant, tenure: &Tenure) -> bool {
        if !matches!(self.phase, Phase::Starting(_)) || tenure.epoch.owner != s.me.member {
            return false;
        }
        self.epoch = tenure.epoch;
        self.pending.clear();
        let mut owner = Owner::new(
            now,
            s.me,
            BTreeSet::from([s.me]),
            tenure.standing,
            tenure.position,
            s.config.dead_man,
        );
        owner.claim_above = tenure.claim_above;
        self.phase = Phase::Owner(Box::new(owner));
        s.news = true;
        self.flip_as_owner(s, None, AfterFlip::ServeAndAnnounce);
        true
    }
}
