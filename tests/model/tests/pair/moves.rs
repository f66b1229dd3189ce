//! Planned moves, and what becomes of a lease that nobody may raise.

use crate::pair::Pair;
use crate::state::{Body, Ep, Lim, Offered, Record, Role, State, wide_epoch};
use crate::steps::stream;
use cluster::rules::{self, Standing};
use model::Epoch;

impl Pair {
    /// `Group::may_move` and the end of freezing: everything is acknowledged, and the standby is in sync.
    pub(crate) fn may_move(&self, s: &State, m: usize) -> bool {
        let me = &s.members[m];
        let quiet = me.open == [None; 2] && me.join.is_none() && me.released == me.journal.len;
        quiet && me.set.is_some_and(|set| set[1 - m] != 0 && set[1 - m] == me.peer)
    }

    pub(crate) fn offer(&self, s: &mut State, m: usize) {
        s.budget.moves -= 1;
        let me = &mut s.members[m];
        let number = rules::next_number(wide_epoch(me.epoch), Epoch(me.claim_above.into()));
        let next = (number.0 as u8, 2 - m as u8);
        let mut rest = None;
        if let Some(sa) = &mut me.sa {
            let (counter, limits) = (sa.counter.max(sa.limits[0].floor), sa.limits[0]);
            let kept = counter + limits.limit.saturating_sub(counter) / 2;
            if let Some(short) = (self.rules.shortened)(&limits.wide(), kept.into(), me.epoch.0.into()) {
                sa.limits[0] = Lim::narrow(&short);
                rest = Some((kept, limits.limit));
            }
        }
        me.offered = Some(Offered { next, rest });
        self.offer_again(s, m);
    }

    /// `Group::handover_again`.
    pub(crate) fn offer_again(&self, s: &mut State, m: usize) {
        let me = &s.members[m];
        if let Some(Offered { next, rest }) = me.offered {
            let position = me.journal.len;
            stream(s, m, Body::Offer { next, position, rest });
        }
    }

    /// `Group::handover_offered`, at a standby in sync.
    pub(crate) fn offered(&self, s: &mut State, m: usize, next: Ep, position: u8, rest: Option<(u8, u8)>) {
        let me = &mut s.members[m];
        if me.journal.len != position || usize::from(next.1) != m + 1 || next.0 <= me.epoch.0 {
            return;
        }
        if let (Some(sa), Some((above, last))) = (&mut me.sa, rest)
            && let Some(limits) =
                (self.rules.inherited)(&sa.limits[0].wide(), above.into(), last.into(), next.0.into())
        {
            sa.limits[0] = Lim::narrow(&limits);
            s.ghost.rest_left = Some(next);
        }
        me.epoch = next;
        me.role = Role::Owner;
        me.standing = Standing::WithStandby;
        me.valid = true;
        me.version = 0;
        me.claim_above = 0;
        me.open = [None; 2];
        me.acknowledged = me.journal.len;
        me.released = me.journal.len;
        stream(s, m, Body::Armed);
    }

    /// `Group::handover_armed`: the old owner is the standby of the new one.
    pub(crate) fn handed_over(&self, s: &mut State, m: usize, record: Record) {
        let me = &mut s.members[m];
        if me.role != Role::Owner || me.offered.is_none_or(|offered| offered.next != record.epoch) {
            return;
        }
        me.epoch = record.epoch;
        me.role = Role::InSync;
        me.standing = Standing::WithStandby;
        me.valid = false;
        me.offered = None;
        me.armed = [0; 2];
        me.claim_above = 0;
    }
}
