//! Records that arrive: lives, heartbeats, the journal, joins.

use crate::pair::{Engine, Pair};
use crate::state::{Body, Join, Record, Role, Sa, State, wide_epoch};
use crate::steps::{apply_raise, datagram, stream};
use cluster::rules::{JoinFacts, Standing};

impl Pair {
    /// `Node::same_life`: whether the record is of the present life; a new one is noticed here.
    pub(crate) fn same_life(&self, s: &mut State, m: usize, incarnation: u8) -> bool {
        let was = s.members[m].peer;
        if incarnation <= was {
            return incarnation == was;
        }
        s.members[m].peer = incarnation;
        s.members[m].requests_seen = 0;
        let me = s.members[m];
        match me.role {
            Role::Owner => {
                let involved = me.set.is_some_and(|set| set[1 - m] == was)
                    || me.join.is_some_and(|j| j.incarnation == was);
                if involved && was != 0 {
                    self.standby_lost(s, m, true, false);
                }
            }
            Role::Blank => {}
            _ if usize::from(me.epoch.1) == 2 - m => self.owner_lost(s, m),
            _ => {}
        }
        true
    }

    pub(crate) fn hear(&self, s: &mut State, m: usize) {
        let other = s.members[1 - m];
        if !self.same_life(s, m, other.incarnation) || other.role != Role::Owner {
            return;
        }
        let me = s.members[m];
        let higher = (self.rules.must_yield)(wide_epoch(me.epoch), wide_epoch(other.epoch));
        match me.role {
            Role::Blank => self.join(s, m, other.epoch, true),
            Role::Owner if me.offered.is_some_and(|offered| offered.next == other.epoch) => {}
            Role::Owner if higher => self.join(s, m, other.epoch, true),
            Role::Owner => {}
            _ if me.epoch == other.epoch && me.role == Role::InSync => match other.set {
                Some(set) if set[m] == me.incarnation => s.members[m].set = Some(set),
                _ => self.was_excluded(s, m),
            },
            _ if higher => self.join(s, m, other.epoch, true),
            _ => {}
        }
    }

    pub(crate) fn receive(&self, s: &mut State, m: usize, record: Record) {
        if let Body::RaiseAck { direction, version } = record.body {
            // Life and epoch of an acknowledgement are left to `ack_counts` alone.
            return self.raise_acknowledged(s, m, record, direction.into(), version);
        }
        if !self.same_life(s, m, record.incarnation) {
            return;
        }
        if let Body::JoinRequest { number } = record.body {
            if self.named_joins && number <= s.members[m].requests_seen {
                return;
            }
            s.members[m].requests_seen = number;
            return self.join_requested(s, m, record.incarnation);
        }
        if record.body == Body::Armed {
            return self.handed_over(s, m, record);
        }
        let me = s.members[m];
        if record.epoch != me.epoch {
            return;
        }
        let follows = matches!(me.role, Role::Following | Role::InSync);
        match record.body {
            Body::Raise {
                direction,
                version,
                limit,
            } => {
                let d = usize::from(direction);
                if follows && me.sa.is_some() && version >= me.armed[d] {
                    s.members[m].armed[d] = version;
                    apply_raise(&self.rules, &mut s.members[m], d, limit);
                    datagram(s, m, Body::RaiseAck { direction, version });
                }
            }
            Body::SoloNotice => self.was_excluded(s, m),
            Body::Journal { position, entry } if follows => {
                let me = &mut s.members[m];
                if position == me.journal.len + 1 {
                    me.journal.push(entry);
                }
                let position = me.journal.len;
                stream(s, m, Body::JournalAck { position });
            }
            Body::JournalAck { position } if me.role == Role::Owner => {
                let me = &mut s.members[m];
                let position = position.min(me.journal.len);
                if let Some(join) = me.join.as_mut().filter(|j| j.incarnation == record.incarnation) {
                    if join.armed {
                        join.acknowledged = join.acknowledged.max(position);
                    }
                } else if me.set.is_some_and(|set| set[1 - m] == record.incarnation) {
                    me.acknowledged = me.acknowledged.max(position);
                }
                self.commit(s, m);
                self.join_progress(s, m);
            }
            Body::Snapshot {
                limits,
                journal,
                claim_above,
            } if me.role != Role::Owner && me.role != Role::Blank => {
                let me = &mut s.members[m];
                me.role = Role::Following;
                me.set = None;
                me.armed = [0; 2];
                me.claim_above = claim_above;
                me.journal = journal;
                me.sa = limits.map(|limits| Sa {
                    limits,
                    counter: 0,
                    seen: 0,
                });
                let position = journal.len;
                stream(s, m, Body::SnapshotAck { position });
            }
            Body::SnapshotAck { position } if me.role == Role::Owner => {
                let me = &mut s.members[m];
                if let Some(join) = &mut me.join
                    && join.incarnation == record.incarnation
                    && !join.armed
                    && join.snapshot == position
                {
                    join.armed = true;
                    join.acknowledged = position;
                    self.join_progress(s, m);
                }
            }
            Body::Offer { next, position, rest } if me.role == Role::InSync => {
                self.offered(s, m, next, position, rest);
            }
            Body::Joined if me.role == Role::Following => {
                let me = &mut s.members[m];
                me.role = Role::InSync;
                let mut set = [me.peer; 2];
                set[m] = me.incarnation;
                me.set = Some(set);
            }
            _ => {}
        }
    }

    pub(crate) fn join_requested(&self, s: &mut State, m: usize, from: u8) {
        let me = s.members[m];
        let busy = me.offered.is_some() || me.join.is_some_and(|j| j.incarnation == from);
        if me.role != Role::Owner || busy {
            return;
        }
        if let Some(set) = me.set.filter(|set| set[1 - m] != 0) {
            self.standby_lost(s, m, true, set[1 - m] == from);
        }
        if self.engine == Engine::Witness && s.witness.0 != me.epoch {
            return;
        }
        self.cap(s, m);
        let me = &mut s.members[m];
        for open in me.open.iter_mut().flatten() {
            open.missing[1 - m] = from;
        }
        me.join = Some(Join {
            incarnation: from,
            snapshot: me.journal.len,
            armed: false,
            acknowledged: 0,
        });
        let body = Body::Snapshot {
            limits: me.sa.map(|sa| sa.limits),
            journal: me.journal,
            claim_above: me.claim_above,
        };
        stream(s, m, body);
    }

    /// `Sad::cap_for_join`: limits for what has none.
    pub(crate) fn cap(&self, s: &mut State, m: usize) {
        let me = s.members[m];
        let Some((sa, range)) = self.outbound(&me) else {
            return;
        };
        if range.last == u64::MAX {
            let used = u64::from(sa.counter).max(range.first - 1) as u8;
            apply_raise(&self.rules, &mut s.members[m], 0, used + sa.limits[0].step);
        }
        let Some((sa, range)) = self.inbound(&me) else {
            return;
        };
        if range.ceiling == u64::MAX {
            let edge = sa.seen.checked_ilog2().unwrap_or(0);
            let used = u64::from(edge).max(range.floor) as u8;
            apply_raise(&self.rules, &mut s.members[m], 1, used + sa.limits[1].step);
        }
    }

    pub(crate) fn join_progress(&self, s: &mut State, m: usize) {
        let me = s.members[m];
        let Some(join) = me.join.filter(|_| me.role == Role::Owner) else {
            return;
        };
        let within = self
            .outbound(&me)
            .is_none_or(|(sa, r)| r.last != u64::MAX && u64::from(sa.counter) <= r.last)
            && self.inbound(&me).is_none_or(|(sa, r)| {
                r.ceiling != u64::MAX && u64::from(sa.seen.checked_ilog2().unwrap_or(0)) <= r.ceiling
            });
        let facts = JoinFacts {
            snapshot_armed: join.armed,
            acknowledged: join.acknowledged.into(),
            written: me.journal.len.into(),
            raises_open: me.open.iter().flatten().count(),
            caps_verified: within,
        };
        if !(self.rules.may_enter)(&facts) {
            return;
        }
        let mut set = [join.incarnation; 2];
        set[m] = me.incarnation;
        if !self.transact(s, me.epoch, me.epoch, set) {
            return;
        }
        let me = &mut s.members[m];
        me.set = Some(set);
        me.join = None;
        me.acknowledged = join.acknowledged;
        me.standing = Standing::WithStandby;
        s.ghost.entered = true;
        stream(s, m, Body::Joined);
    }
}
