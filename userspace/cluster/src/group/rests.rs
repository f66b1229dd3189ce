//! Rests of leases in a planned handover: SAs that a lost standby knew have numbers for the owner alone, and it leaves a part of them to
//! the taker ([`crate::rules_doubt::handing`], ADR 20).

use super::handover::OwnerHandover;
use super::{Group, Pending, Phase};
use crate::io::Output;
use crate::message::{GroupBody, LeaseRest, RESTS_PER_RECORD};
use crate::node::Shared;
use crate::rules::EpochId;
use crate::rules_doubt::{Handing, handing};
use model::{EspSpi, Instant, MemberId};
use std::collections::BTreeMap;

/// More SAs than slots exist cannot be.
const RESTS_MAX: usize = 1 << 20;

/// What an owner has left to this member, if it takes over in this epoch.
pub(super) struct Rests {
    epoch: EpochId,
    by_spi: BTreeMap<EspSpi, LeaseRest>,
}

impl Group {
    /// So many SAs of the group were known to a standby that was lost, and are not rekeyed yet.
    pub fn suspects(&mut self, count: usize) {
        self.suspects = count;
    }

    /// How a planned takeover by `to` would deal with them.
    pub fn handing(&self, s: &Shared, to: MemberId) -> Handing {
        handing(self.suspects, s.version_for(to))
    }

    pub(super) fn offer(&mut self, s: &mut Shared, now: Instant, to: MemberId, next: EpochId) {
        if self.handing(s, to) != Handing::WithRests {
            return self.offer_with(s, now, to, next, Vec::new());
        }
        let group = self.id;
        let token = self.token(s, Pending::Rests);
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        owner.handover = Some(OwnerHandover::Leaving { since: now, to, next });
        s.outputs.push_back(Output::LeaveRests { group, token });
    }

    /// The agent has left the taker a part of leases.
    pub fn rests_left(&mut self, s: &mut Shared, now: Instant, token: u64, rests: Vec<LeaseRest>) {
        if !matches!(self.pending.remove(&token), Some(Pending::Rests)) {
            return;
        }
        if let Phase::Owner(owner) = &self.phase
            && let Some(OwnerHandover::Leaving { to, next, .. }) = owner.handover
        {
            self.offer_with(s, now, to, next, rests);
        }
    }

    pub(super) fn offer_with(
        &mut self,
        s: &mut Shared,
        now: Instant,
        to: MemberId,
        next: EpochId,
        rests: Vec<LeaseRest>,
    ) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        owner.handover = Some(OwnerHandover::Offered {
            since: now,
            to,
            epoch: next,
            rests,
        });
        if s.alive(to) || Self::solo(s).is_some() {
            self.handover_again(s, to);
        } else {
            self.leave_to_taker(s, now, to);
        }
    }

    pub(super) fn tell_rests(&self, s: &mut Shared, to: MemberId, epoch: EpochId, rests: &[LeaseRest]) {
        for rests in rests.chunks(RESTS_PER_RECORD) {
            let rests = rests.to_vec();
            self.stream(s, to, GroupBody::HandoverRests { epoch, rests });
        }
    }

    /// Standby: what the owner leaves to this member, before it offers the epoch.
    pub(super) fn rests_heard(&mut self, s: &mut Shared, epoch: EpochId, rests: Vec<LeaseRest>) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        if epoch.owner != s.me.member || epoch.number <= self.epoch.number {
            s.refused += 1;
            return;
        }
        let mine = standby
            .rests
            .take_if(|mine| mine.epoch == epoch)
            .unwrap_or_else(|| Rests {
                epoch,
                by_spi: BTreeMap::new(),
            });
        let mine = standby.rests.insert(mine);
        if mine.by_spi.len() + rests.len() > RESTS_MAX {
            s.refused += 1;
            return;
        }
        mine.by_spi
            .extend(rests.into_iter().map(|rest| (rest.spi_in, rest)));
    }

    /// Taker, before its flip.
    pub(super) fn take_rests(&mut self, s: &mut Shared, epoch: EpochId, rests: Option<Rests>) {
        if let Some(rests) = rests.filter(|rests| rests.epoch == epoch && !rests.by_spi.is_empty()) {
            let group = self.id;
            let rests = rests.by_spi.into_values().collect();
            s.outputs.push_back(Output::TakeRests { group, epoch, rests });
        }
    }
}
