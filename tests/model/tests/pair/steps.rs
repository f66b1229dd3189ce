//! What each step does: `cluster::node` and the agent in short, with every decision taken by [`Decisions`].

use crate::decisions::Decisions;
use crate::pair::{Action, Engine, Pair};
use crate::state::{
    Body, Broken, Ep, Journal, Lim, Member, Open, Record, Role, Sa, State, name, narrow_set, wide_epoch,
    wide_set,
};
use cluster::Direction;
use cluster::rules::{Ack, RaiseDecision, Solo};
use datapath::counter::Counter;
use datapath::limits::{self, EpochBehind, InboundRange, OutboundRange, Take};
use maps_schema::sad::Limits;
use model::Epoch;
use std::collections::BTreeSet;

/// Limits as a loss leaves them.
type Taint = fn(&Limits, u16) -> Result<Limits, EpochBehind>;

const DIRECTIONS: [Direction; 2] = [Direction::Outbound, Direction::Inbound];

impl Pair {
    pub(crate) fn outbound(&self, me: &Member) -> Option<(Sa, OutboundRange)> {
        let sa = me.sa?;
        let range = (self.rules.outbound)(&sa.limits[0].wide(), 0, me.alone(), me.epoch.0.into()).ok()?;
        Some((sa, range))
    }

    pub(crate) fn inbound(&self, me: &Member) -> Option<(Sa, InboundRange)> {
        let sa = me.sa?;
        let range = (self.rules.inbound)(&sa.limits[1].wide(), 0, me.alone(), me.epoch.0.into()).ok()?;
        Some((sa, range))
    }

    /// Every standby that counts itself in may take over now, and would have numbers to send and to accept.
    pub fn survivors_can_take_over(&self, s: &State) -> bool {
        (0..2).all(|m| {
            let me = s.members[m];
            let counts = match self.engine {
                Engine::Witness => s.witness.0 == me.epoch && s.witness.1[m] == me.incarnation,
                Engine::Continue | Engine::Stop => true,
            };
            if !me.up || me.role != Role::InSync || s.members[1 - m].up || !counts {
                return true;
            }
            let mut after = s.clone();
            self.owner_lost(&mut after, m);
            let after = &after.members[m];
            after.role == Role::Owner
                && after.sa.is_none_or(|sa| {
                    let sends = self.outbound(after).is_some_and(|(_, r)| r.first <= r.last);
                    let accepts = self.inbound(after).is_some_and(|(_, r)| r.floor < r.ceiling);
                    (sends || sa.limits[0].tainted) && (accepts || sa.limits[1].tainted)
                })
        })
    }

    /// Carries the step out.
    pub fn step(&self, s: &mut State, action: Action) {
        match action {
            Action::Send(m) => self.send(s, m),
            Action::Accept(m, n) => self.accept(s, m, n),
            Action::Wish(m, d) => self.wish(s, m, d),
            Action::Datagram(record) => self.receive(s, 1 - usize::from(record.from), record),
            Action::Stream(m) => {
                let record = s.streams[m].remove(0);
                self.receive(s, m, record);
            }
            Action::Hear(m) => self.hear(s, m),
            Action::Suspect(m) => {
                s.budget.takeovers -= 1;
                self.owner_lost(s, m);
            }
            Action::Exclude(m) => {
                s.budget.exclusions -= 1;
                let fenced = self.engine == Engine::Witness;
                self.standby_lost(s, m, fenced, false);
            }
            Action::Propose(m) => self.propose(s, m),
            Action::Ask(m) => {
                s.budget.joins -= 1;
                let me = &mut s.members[m];
                me.requests += u8::from(self.named_joins);
                let body = Body::JoinRequest { number: me.requests };
                if self.late_requests {
                    datagram(s, m, body);
                } else {
                    stream(s, m, body);
                }
            }
            Action::Move(m) => self.offer(s, m),
            Action::GiveUp(m) => s.members[m].offered = None,
            Action::Cut => {
                s.budget.cuts -= 1;
                self.cut(s);
            }
            Action::Crash(m) => {
                s.budget.crashes -= 1;
                let old = s.members[m];
                s.members[m] = Member {
                    up: false,
                    ..Member::blank(old.incarnation, 0)
                };
                self.cut(s);
            }
            Action::Restart(m) => {
                s.budget.restarts -= 1;
                s.members[m] = Member::blank(s.members[m].incarnation + 1, s.members[1 - m].incarnation);
            }
        }
        if s.members[0].serves() && s.members[1].serves() {
            s.ghost.split = true;
        }
        Self::look_at_journals(s);
    }

    // ---- the programs

    pub(crate) fn send(&self, s: &mut State, m: usize) {
        let me = &mut s.members[m];
        let Some((mut sa, range)) = self.outbound(me) else {
            return;
        };
        let counter = Counter::new(sa.counter.into());
        let Take::Number(number) = limits::take(&counter, &range) else {
            return;
        };
        if number > u64::from(self.outbound_max) {
            return;
        }
        sa.counter = number as u8;
        let number = number as u8;
        me.sa = Some(sa);
        let nonce = (number, m as u8, me.epoch.0);
        s.ghost.taker_sent |= me.epoch.0 > crate::pair::FIRST;
        s.ghost.rest_sent |= sa.limits[0].tainted && s.ghost.rest_left == Some(me.epoch);
        let ghost = &mut s.ghost;
        if ghost.sent.contains(&nonce) {
            ghost.broken.insert(Broken::NonceTwice);
        }
        if ghost.sent.iter().any(|(n, ..)| *n == number) {
            ghost.broken.insert(Broken::NumberTwice);
        }
        ghost.sent.insert(nonce);
    }

    pub(crate) fn accept(&self, s: &mut State, m: usize, number: u8) {
        let me = &mut s.members[m];
        let Some((mut sa, range)) = self.inbound(me) else {
            return;
        };
        let n = u64::from(number);
        if n <= range.floor || n > range.ceiling || sa.seen & (1 << number) != 0 {
            return;
        }
        sa.seen |= 1 << number;
        me.sa = Some(sa);
        let epoch = me.epoch;
        let ghost = &mut s.ghost;
        let before: Vec<Ep> = ghost
            .accepted
            .iter()
            .filter(|(x, _)| *x == number)
            .map(|(_, e)| *e)
            .collect();
        if !before.is_empty() {
            let documented = ghost.split && !before.contains(&epoch);
            if !self.splits() {
                ghost.broken.insert(Broken::AcceptedTwice);
            } else if !documented {
                ghost.broken.insert(Broken::AcceptedTwiceUndocumented);
            }
        }
        ghost.accepted.insert((number, epoch));
    }

    // ---- raises

    pub(crate) fn wish(&self, s: &mut State, m: usize, direction: u8) {
        let d = usize::from(direction);
        s.budget.raises[d] -= 1;
        let me = &s.members[m];
        // As `sad` asks: from the upper limit of the epoch, by one step.
        let last = match DIRECTIONS[d] {
            Direction::Outbound => self.outbound(me).map(|(_, r)| r.last),
            Direction::Inbound => self.inbound(me).map(|(_, r)| r.ceiling),
        };
        let Some(last) = last.filter(|l| *l < 64) else {
            return;
        };
        self.raise(s, m, d, last as u8 + 1);
    }

    pub(crate) fn raise(&self, s: &mut State, m: usize, d: usize, limit: u8) {
        let me = &s.members[m];
        let (Some(set), Some(sa)) = (me.set, me.sa) else {
            return;
        };
        let joining = me.join.map(|j| name(1 - m, j.incarnation));
        let asked = (self.rules.asked_for_raise)(&wide_set(set), name(m, 0).member, joining);
        if sa.limits[d].tainted {
            return;
        }
        match (self.rules.decide_raise)(me.standing, asked.is_empty(), DIRECTIONS[d]) {
            RaiseDecision::Ask => {
                let me = &mut s.members[m];
                me.version += 1;
                let version = me.version;
                me.open[d] = Some(Open {
                    version,
                    limit,
                    missing: narrow_set(&asked),
                });
                datagram(
                    s,
                    m,
                    Body::Raise {
                        direction: d as u8,
                        version,
                        limit,
                    },
                );
            }
            RaiseDecision::UseNow => apply_raise(&self.rules, &mut s.members[m], d, limit),
            RaiseDecision::RekeyInstead => {}
        }
    }

    pub(crate) fn raise_acknowledged(&self, s: &mut State, m: usize, record: Record, d: usize, version: u8) {
        let me = &mut s.members[m];
        if me.role != Role::Owner {
            return;
        }
        let Some(mut open) = me.open[d] else { return };
        let ack = Ack {
            epoch: wide_epoch(record.epoch),
            from: name(record.from.into(), record.incarnation),
            version: version.into(),
        };
        if !(self.rules.ack_counts)(
            wide_epoch(me.epoch),
            &wide_set(open.missing),
            open.version.into(),
            &ack,
        ) {
            return;
        }
        open.missing[usize::from(record.from)] = 0;
        if open.missing == [0, 0] {
            me.open[d] = None;
            apply_raise(&self.rules, me, d, open.limit);
        } else {
            me.open[d] = Some(open);
        }
        self.join_progress(s, m);
    }

    /// Somebody need not acknowledge any more: what is complete by that is used.
    pub(crate) fn excuse(&self, s: &mut State, m: usize) {
        for d in 0..2 {
            let me = &mut s.members[m];
            if let Some(mut open) = me.open[d] {
                open.missing[1 - m] = 0;
                me.open[d] = None;
                apply_raise(&self.rules, me, d, open.limit);
            }
        }
    }

    // ---- the journal

    pub(crate) fn propose(&self, s: &mut State, m: usize) {
        s.budget.entries -= 1;
        s.ghost.entries += 1;
        let entry = s.ghost.entries;
        let me = &mut s.members[m];
        me.journal.push(entry);
        let position = me.journal.len;
        let listens = me.join.is_some() || me.set.is_some_and(|set| set[1 - m] != 0);
        if listens {
            stream(s, m, Body::Journal { position, entry });
        }
        self.commit(s, m);
    }

    pub(crate) fn commit(&self, s: &mut State, m: usize) {
        let me = &mut s.members[m];
        let standby = me.set.is_some_and(|set| set[1 - m] != 0);
        let acknowledged: &[u64] = if standby { &[me.acknowledged.into()] } else { &[] };
        let position = (self.rules.commit_position)(me.journal.len.into(), acknowledged) as u8;
        while me.released < position {
            let entry = me.journal.names[usize::from(me.released)];
            me.released += 1;
            if let Some(set) = me.set.filter(|_| standby) {
                s.ghost.released.insert((entry, me.epoch, set[1 - m]));
            }
        }
    }

    /// Whether member `m` holds what the owner of its epoch released while this life of `m` was in the set.
    pub(crate) fn holds_what_was_released(s: &State, m: usize) -> bool {
        let me = &s.members[m];
        s.ghost
            .released
            .iter()
            .filter(|(_, epoch, life)| {
                *epoch == me.epoch && usize::from(epoch.1) == 2 - m && *life == me.incarnation
            })
            .all(|(entry, ..)| me.journal.holds(*entry))
    }

    pub(crate) fn look_at_journals(s: &mut State) {
        for m in 0..2 {
            if s.members[m].up && s.members[m].role == Role::InSync && !Self::holds_what_was_released(s, m) {
                s.ghost.broken.insert(Broken::ReleasedEarly);
            }
        }
    }

    // ---- who is in

    /// The witness agrees where it is asked.
    pub(crate) fn transact(&self, s: &mut State, from: Ep, to: Ep, set: [u8; 2]) -> bool {
        if self.engine == Engine::Witness {
            if s.witness.0 != from {
                return false;
            }
            s.witness = (to, set);
        }
        true
    }

    /// `Node::standby_lost`. `fenced`: so the product says; `anew`: that same life says that it holds nothing.
    pub(crate) fn standby_lost(&self, s: &mut State, m: usize, fenced: bool, anew: bool) {
        let me = s.members[m];
        let Some(set) = me.set.filter(|_| me.role == Role::Owner) else {
            return;
        };
        if me.join.is_some() {
            s.members[m].join = None;
            self.excuse(s, m);
        }
        if set[1 - m] == 0 || (self.engine == Engine::Stop && !fenced) {
            return;
        }
        let mut alone = [0, 0];
        alone[m] = me.incarnation;
        if !self.transact(s, me.epoch, me.epoch, alone) {
            return;
        }
        let gave_up = anew || self.engine == Engine::Witness;
        let fenced = gave_up;
        let above = (self.rules.claim_above)(Epoch(me.claim_above.into()), wide_epoch(me.epoch));
        let me = &mut s.members[m];
        if !gave_up {
            me.claim_above = above.0 as u8;
        }
        me.set = Some(alone);
        me.acknowledged = 0;
        me.offered = None;
        me.valid = true;
        me.standing = (self.rules.standing_after_loss)(gave_up);
        if let Some(sa) = me.sa.as_mut().filter(|_| self.taint) {
            let solo = match self.engine {
                Engine::Continue => Solo::Continue,
                Engine::Stop | Engine::Witness => Solo::Stop,
            };
            for direction in (self.rules.tainted_by_loss)(solo, me.standing) {
                let (d, taint): (_, Taint) = match direction {
                    Direction::Outbound => (0, limits::tainted_outbound),
                    Direction::Inbound => (1, limits::tainted_inbound),
                };
                let tainted = taint(&sa.limits[d].wide(), me.epoch.0.into());
                sa.limits[d] = tainted.map_or(sa.limits[d], |l| Lim::narrow(&l));
            }
        }
        s.ghost.split |= !fenced;
        let open = std::mem::take(&mut me.open);
        datagram(s, m, Body::SoloNotice);
        self.commit(s, m);
        for (d, open) in open.into_iter().enumerate() {
            if let Some(open) = open {
                self.raise(s, m, d, open.limit);
            }
        }
    }

    /// `Node::owner_lost`.
    pub(crate) fn owner_lost(&self, s: &mut State, m: usize) {
        let me = s.members[m];
        let set = if self.engine == Engine::Witness {
            // Being in the witness's set is not enough: a member that was not told so may have lost what it held.
            me.set.and(Some(s.witness.1)).filter(|_| s.witness.0 == me.epoch)
        } else {
            me.set
        };
        let set = set.map(wide_set);
        let own = name(m, me.incarnation);
        let plan = (self.rules.takeover)(
            wide_epoch(me.epoch),
            Epoch(me.claim_above.into()),
            set.as_ref(),
            own,
            &BTreeSet::from([own]),
            me.journal.len.into(),
        );
        let Ok(plan) = plan else {
            // Nothing of it is adopted.
            s.members[m] = Member {
                epoch: me.epoch,
                requests: me.requests,
                requests_seen: me.requests_seen,
                ..Member::blank(me.incarnation, me.peer)
            };
            return;
        };
        let epoch = (plan.epoch.number.0 as u8, plan.epoch.owner.0);
        let set = narrow_set(&plan.in_sync);
        if !self.transact(s, me.epoch, epoch, set) {
            return;
        }
        if !Self::holds_what_was_released(s, m) {
            s.ghost.broken.insert(Broken::EntryLost);
        }
        let me = &mut s.members[m];
        me.epoch = epoch;
        me.role = Role::Owner;
        me.set = Some(set);
        me.standing = plan.standing;
        me.valid = true;
        me.version = 0;
        me.claim_above = 0;
        me.open = [None; 2];
        me.join = None;
        me.offered = None;
        me.journal.truncate(plan.position as u8);
        me.acknowledged = me.journal.len;
        me.released = me.journal.len;
        if self.engine != Engine::Continue {
            // Its words expired before anybody lost patience.
            s.members[1 - m].valid = false;
        }
    }

    pub(crate) fn join(&self, s: &mut State, m: usize, epoch: Ep, discard: bool) {
        let me = &mut s.members[m];
        *me = Member {
            role: Role::Asking,
            epoch,
            requests: me.requests,
            requests_seen: me.requests_seen,
            sa: me.sa.filter(|_| !discard),
            journal: if discard { Journal::default() } else { me.journal },
            ..Member::blank(me.incarnation, me.peer)
        };
    }

    pub(crate) fn was_excluded(&self, s: &mut State, m: usize) {
        let me = s.members[m];
        if matches!(me.role, Role::Following | Role::InSync) {
            self.join(s, m, me.epoch, false);
        }
    }

    /// The connection is lost, and a new one is there.
    pub(crate) fn cut(&self, s: &mut State) {
        s.streams = [Vec::new(), Vec::new()];
        for m in 0..2 {
            let me = s.members[m];
            match me.role {
                Role::Owner if me.join.is_some() => {
                    s.members[m].join = None;
                    self.excuse(s, m);
                }
                Role::Owner
                    if me
                        .set
                        .is_some_and(|set| set[1 - m] == s.members[1 - m].incarnation) =>
                {
                    self.offer_again(s, m);
                    for position in me.acknowledged..me.journal.len {
                        let entry = me.journal.names[usize::from(position)];
                        let position = position + 1;
                        stream(s, m, Body::Journal { position, entry });
                    }
                }
                Role::InSync => {
                    let position = me.journal.len;
                    stream(s, m, Body::JournalAck { position });
                }
                Role::Following => s.members[m].role = Role::Asking,
                _ => {}
            }
        }
    }
}

/// `Sad::apply_raise`: below the limits of the same epoch it changes nothing.
pub(crate) fn apply_raise(rules: &Decisions, me: &mut Member, d: usize, limit: u8) {
    let epoch = me.epoch.0;
    let Some(sa) = me.sa.as_mut() else { return };
    let current = sa.limits[d];
    let Ok(new) = (rules.raised)(&current.wide(), limit.into(), current.step.into(), epoch.into()) else {
        return;
    };
    if epoch != current.epoch || limit > current.limit {
        sa.limits[d] = Lim::narrow(&new);
    }
}

pub(crate) fn record(s: &State, m: usize, body: Body) -> Record {
    Record {
        from: m as u8,
        incarnation: s.members[m].incarnation,
        epoch: s.members[m].epoch,
        body,
    }
}

pub(crate) fn datagram(s: &mut State, m: usize, body: Body) {
    let record = record(s, m, body);
    s.datagrams.insert(record);
}

/// Nobody reads what is sent to a host that is down.
pub(crate) fn stream(s: &mut State, m: usize, body: Body) {
    if s.members[1 - m].up {
        let record = record(s, m, body);
        s.streams[1 - m].push(record);
    }
}
