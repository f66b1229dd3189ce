//! What an owner, or a taker before it serves, does.

use crate::group::actor::Actor;
use crate::group::state::{
    Body, Key, Landed, Lives, MEMBERS, Open, Purpose, Role, Write, name, narrow, wide,
};
use cluster::rules::{Ack, RaiseDecision, Standing};
use cluster::rules_doubt::Fate;
use cluster::{Direction, GroupRecord};
use std::collections::BTreeSet;

impl Actor<'_> {
    pub(super) fn set_alone(&mut self) {
        let me = self.view();
        let standing = cluster::rules::standing_in(&wide(&me.known));
        let joins = me.join.is_some() && self.rules.joiner_keeps_limits;
        self.me().alone = standing == Standing::AloneTaker && !joins;
    }

    /// Looks whether a taker may serve, and states limits anew where they are in doubt.
    pub(super) fn progress(&mut self) {
        if self.view().role != Role::Taking {
            return;
        }
        if self.view().restate && !self.asked().is_empty() {
            let me = self.view();
            let epoch = u16::from(me.epoch.number);
            let limits = me.lim.wide();
            let upper = match self.direction {
                Direction::Outbound => (self.rules.outbound)(&limits, 0, false, epoch).map(|r| r.last),
                Direction::Inbound => (self.rules.inbound)(&limits, 0, false, epoch).map(|r| r.ceiling),
            };
            let step = me.lim.step;
            self.me().restate = false;
            self.state.ghost.restated = true;
            if let Ok(upper) = upper {
                self.wish(upper.min(250) as u8, step);
            }
        }
        let me = self.view();
        let (following, open) = (wide(&me.following), usize::from(me.open.is_some()));
        let required = self.required();
        if (self.rules.may_serve)(&required, self.name().member, &following, open) {
            self.serve();
        }
    }

    pub(super) fn serve(&mut self) {
        let me = self.me();
        me.role = Role::Owner;
        me.sent = 0;
        let number = me.epoch.number;
        self.state.ghost.served |= 1 << number;
        self.after_change();
    }

    /// Lease, set or acknowledgements have changed.
    pub(super) fn after_change(&mut self) {
        self.spend();
        self.send_committed();
        self.check_wire();
    }

    pub(super) fn asked(&self) -> BTreeSet<cluster::SetMember> {
        // Before it has armed its snapshot nobody waits for it; what it misses it is asked for then.
        let joining = self
            .view()
            .join
            .filter(|j| j.armed)
            .map(|j| name(j.at.into(), j.life));
        (self.rules.asked_for_raise)(&self.required(), self.name().member, joining)
    }

    /// Wants limits up to `limit`.
    pub(super) fn wish(&mut self, limit: u8, step: u8) {
        let asked = self.asked();
        let standing = cluster::rules::standing_in(&self.required());
        match (self.rules.decide_raise)(standing, asked.is_empty(), self.direction) {
            RaiseDecision::RekeyInstead => {}
            RaiseDecision::UseNow => {
                self.me().open = None;
                self.publish(limit, step);
                self.owe();
                self.after_change();
            }
            RaiseDecision::Ask => {
                let inherits = self.rules.inherits;
                let me = self.me();
                me.version += 1;
                let version = me.version;
                let first = me.open.filter(|_| inherits).map_or(version, |older| older.first);
                me.open = Some(Open {
                    version,
                    first,
                    limit,
                    step,
                    missing: narrow(&asked),
                });
                self.say(Body::Raise { version, limit, step });
            }
        }
    }

    /// The programs ask for more.
    pub fn raise(&mut self, step: u8) {
        let Some((_, last)) = self.range() else { return };
        let pending = self.view().open.map_or(0, |open| u64::from(open.limit));
        if last < 16 {
            self.wish(last.max(pending) as u8 + 1, step);
        }
    }

    /// A ceiling that may go down, to where.
    pub fn lower_target(&self) -> Option<u8> {
        let me = self.view();
        let (first, last) = self.range()?;
        let current = me.lim.epoch == me.epoch.number && last != u64::MAX;
        let target = u64::from(me.counter).max(first - 1) + 1;
        (current && target < last).then_some(target as u8)
    }

    /// The ceiling goes down here at once, and the others hear of it.
    pub fn lower(&mut self, step: u8) {
        if let Some(target) = self.lower_target() {
            self.publish(target, step);
            self.wish(target, step);
        }
    }

    /// A raise is forgotten (only with a broken rule).
    pub fn forget_raise(&mut self) {
        self.me().open = None;
        self.progress();
    }

    pub(super) fn raise_acknowledged(&mut self, ack: &Ack) {
        let epoch = self.view().epoch.wide();
        let counts = self.rules.ack_counts;
        let Some(mut open) = self.view().open else { return };
        if !counts(epoch, &wide(&open.missing), open.version.into(), ack) {
            return;
        }
        open.missing[usize::from(ack.from.member.0) - 1] = 0;
        self.me().open = Some(open);
        self.complete_raise();
    }

    fn complete_raise(&mut self) {
        if let Some(open) = self.view().open
            && open.missing == [0; MEMBERS]
        {
            self.me().open = None;
            self.publish(open.limit, open.step);
            self.owe();
            self.after_change();
            self.progress();
        }
    }

    /// Limits are in use; a joiner that has not armed its snapshot was not asked.
    fn owe(&mut self) {
        if let Some(join) = &mut self.me().join
            && !join.armed
        {
            join.owed = true;
        }
    }

    /// The joiner has armed its snapshot: it is asked for what is open, and for what it has missed.
    pub(super) fn ask_joiner(&mut self) {
        let catches_up = self.rules.joiner_catches_up;
        let asked = self.asked();
        let me = self.me();
        let Some(join) = &mut me.join else { return };
        let owed = std::mem::take(&mut join.owed) && catches_up;
        let at = usize::from(join.at);
        let is_asked = asked.iter().any(|m| usize::from(m.member.0) == at + 1);
        let life = join.life;
        if let Some(open) = &mut me.open {
            if is_asked {
                open.missing[at] = life;
            }
        } else if owed && is_asked {
            let (limit, step) = (me.lim.limit, me.lim.step);
            me.version += 1;
            let version = me.version;
            me.open = Some(Open {
                version,
                first: version,
                limit,
                step,
                missing: narrow(&asked),
            });
            self.say(Body::Raise { version, limit, step });
        }
    }

    pub(super) fn epoch_acknowledged(&mut self, ack: &Ack, doubtful: bool) {
        let required = self.required();
        let position = self.view().journal.len() as u64;
        // Acknowledged is a position: one that ends elsewhere has not followed.
        if !(self.rules.ack_counts)(self.view().epoch.wide(), &required, position, ack) {
            return;
        }
        let from = usize::from(ack.from.member.0) - 1;
        let restates = self.rules.restates;
        let me = self.me();
        if me.following[from] != 0 {
            return;
        }
        me.following[from] = ack.from.incarnation.0 as u8;
        me.acknowledged[from] = position as u8;
        // Once stated anew in this epoch, it is stated to everybody required.
        me.restate |= doubtful && restates && me.version == 0;
        self.progress();
    }

    /// The IKE engine has something to send: an entry first.
    pub fn write_entry(&mut self) {
        let me = self.me();
        let entry = me.epoch.number;
        me.journal.push(entry);
        let position = me.journal.len() as u8;
        self.say(Body::Entry { position, entry });
        self.after_change();
    }

    pub(super) fn entry_acknowledged(&mut self, ack: &Ack) {
        let mut asked = self.required();
        asked.extend(self.view().join.map(|j| name(j.at.into(), j.life)));
        let me = self.view();
        if ack.version > me.journal.len() as u64
            || !(self.rules.ack_counts)(me.epoch.wide(), &asked, ack.version, ack)
        {
            return;
        }
        let from = usize::from(ack.from.member.0) - 1;
        let me = self.me();
        me.acknowledged[from] = me.acknowledged[from].max(ack.version as u8);
        self.after_change();
    }

    /// Reads the key, and asks for a write of what `make` says. Finds out here if the group has another owner.
    pub(super) fn ask_engine(
        &mut self,
        purpose: Purpose,
        make: impl FnOnce(&GroupRecord) -> Option<GroupRecord>,
    ) {
        let key = self.state.key;
        if key.epoch != self.view().epoch {
            self.forget();
            return;
        }
        if let Some(new) = make(&key.wide()) {
            self.me().write = Some(Write {
                expected: key,
                new: key.then(&new),
                purpose,
                landed: Landed::NotYet,
            });
        }
    }

    /// Believes that a member is gone.
    pub fn exclude(&mut self, who: usize) {
        let lost = BTreeSet::from([name(who, self.view().known[who])]);
        let without = self.rules.without;
        self.ask_engine(Purpose::Shrink, |record| Some(without(record, &lost)));
        if !self.rules.shrinks_when_written
            && let Some(write) = self.view().write
        {
            let excluded = self.set_changes(&write.new.set);
            self.notify(excluded);
        }
    }

    /// Freezes, and asks for a planned move.
    pub fn ask_to_move(&mut self, to: usize) {
        let moved = self.rules.moved;
        let target = name(to, self.view().known[to]);
        self.ask_engine(Purpose::Move, |record| moved(record, target).ok());
        let me = self.me();
        me.frozen = me.write.is_some();
    }

    /// Whether everything is acknowledged, so that a move may be asked for.
    pub fn may_move(&self) -> bool {
        let me = self.view();
        let all = me.journal.len() as u8;
        let acknowledged =
            (0..MEMBERS).all(|m| m == self.at || me.known[m] == 0 || me.acknowledged[m] >= all);
        me.open.is_none() && me.write.is_none() && me.join.is_none() && acknowledged
    }

    /// The set is smaller or larger from now on. Returns who is not in it any more.
    fn set_changes(&mut self, set: &Lives) -> Lives {
        let me = self.me();
        let mut gone = me.known;
        for (gone, stays) in gone.iter_mut().zip(set) {
            if *gone == *stays {
                *gone = 0;
            }
        }
        me.known = *set;
        self.set_alone();
        let me = self.me();
        let joining = me.join;
        if let Some(open) = &mut me.open {
            for (at, life) in open.missing.iter_mut().enumerate() {
                let joins = joining.is_some_and(|j| usize::from(j.at) == at && j.life == *life);
                if set[at] != *life && !joins {
                    *life = 0;
                }
            }
        }
        gone
    }

    fn notify(&mut self, gone: Lives) {
        for (at, life) in gone.into_iter().enumerate().filter(|(_, life)| *life != 0) {
            let id = self.view().admitted[at].max(life * 16);
            self.say(Body::Excluded {
                to: (at as u8, life),
                id,
            });
        }
        self.complete_raise();
        self.after_change();
        self.progress();
    }

    /// The answer to a write arrives, or the read that follows one without an answer says the same.
    pub fn learn(&mut self) {
        let Some(write) = self.view().write else { return };
        let found = self.state.key;
        let done = match write.landed {
            Landed::NotYet => return,
            Landed::Done => true,
            // A repetition came first.
            Landed::Failed => {
                (self.rules.fate)(&write.expected.wide(), &write.new.wide(), &found.wide()) == Fate::Done
            }
        };
        match (write.purpose, done) {
            (Purpose::Claim, true) => {
                self.take(&write.new);
                self.me().write = None;
            }
            (Purpose::Claim, false) => self.me().write = None,
            (_, false) => self.lost_ownership(&found),
            (Purpose::Shrink, true) => {
                self.me().write = None;
                let gone = self.set_changes(&write.new.set);
                self.notify(gone);
            }
            (Purpose::Enter, true) => self.entered(&write.new),
            (Purpose::Move, true) => self.moved_away(&write.new),
        }
    }

    fn lost_ownership(&mut self, found: &Key) {
        self.me().write = None;
        if found.epoch == self.view().epoch {
            // A write of its own that it did not count on: what the key holds is the set.
            let gone = self.set_changes(&found.set);
            self.notify(gone);
        } else {
            self.forget();
        }
    }

    fn moved_away(&mut self, key: &Key) {
        let me = self.me();
        me.write = None;
        me.frozen = false;
        me.role = Role::InSync;
        me.armed = 0;
        // What it went on to ask for after the write may be armed here and not there.
        me.doubt = me.open.map(|_| cluster::rules_doubt::Doubt::Before);
        me.open = None;
        me.join = None;
        me.alone = false;
        self.say(Body::Offer { key: *key });
    }

    /// No answer came, and a read shows the record as it was. The write is asked for again; the first one may still land.
    pub fn time_out(&mut self) {
        let Some(write) = self.view().write else { return };
        let found = self.state.key;
        self.state.late.push(write);
        if (self.rules.fate)(&write.expected.wide(), &write.new.wide(), &found.wide()) == Fate::Void {
            let me = self.me();
            me.write = None;
            me.frozen = false;
            me.join = None;
        }
    }

    /// The joiner is silent: nothing waits for it any more.
    pub fn drop_joiner(&mut self) {
        let Some(join) = self.me().join.take() else { return };
        let (at, listed) = (usize::from(join.at), self.view().known[usize::from(join.at)]);
        if let Some(open) = &mut self.me().open
            && listed != join.life
        {
            open.missing[at] = 0;
        }
        self.set_alone();
        self.complete_raise();
        self.after_change();
    }
}
