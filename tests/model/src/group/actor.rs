//! One member at work: records that arrive, and what a standby does.

use crate::group::rules::Rules;
use crate::group::state::{
    Body, Broken, Ep, Key, Landed, Lim, Lives, MEMBERS, Member, NUMBERS, Purpose, Record, Role, State, Write,
    member_id, name, wide,
};
use cluster::rules::Ack;
use cluster::rules_doubt::Doubt;
use cluster::{Direction, SetMember};
use datapath::limits;
use model::MemberId;
use std::collections::BTreeSet;

/// One member of a state at work.
pub struct Actor<'a> {
    /// Everything.
    pub state: &'a mut State,
    /// Which member.
    pub at: usize,
    /// The decisions.
    pub rules: &'a Rules,
    /// Which direction of the SA.
    pub direction: Direction,
}

impl Actor<'_> {
    pub(super) fn me(&mut self) -> &mut Member {
        &mut self.state.members[self.at]
    }

    pub(super) fn view(&self) -> &Member {
        &self.state.members[self.at]
    }

    pub(super) fn name(&self) -> SetMember {
        name(self.at, self.view().life)
    }

    pub(super) fn say(&mut self, body: Body) {
        let record = Record {
            from: self.at as u8,
            life: self.view().life,
            epoch: self.view().epoch,
            body,
        };
        let network = &mut self.state.network;
        if let Err(place) = network.binary_search(&record) {
            network.insert(place, record);
        }
    }

    pub(super) fn broken(&mut self, what: Broken) {
        self.state.ghost.broken.insert(what);
    }

    /// Last number that may be used or accepted now, and the first; `None` where the limits are of a later epoch.
    pub(super) fn range(&self) -> Option<(u64, u64)> {
        let me = self.view();
        let (limits, epoch) = (me.lim.wide(), u16::from(me.epoch.number));
        match self.direction {
            Direction::Outbound => (self.rules.outbound)(&limits, 0, me.alone, epoch)
                .ok()
                .map(|r| (r.first, r.last)),
            Direction::Inbound => (self.rules.inbound)(&limits, 0, me.alone, epoch)
                .ok()
                .map(|r| (r.floor + 1, r.ceiling)),
        }
    }

    /// Puts limits into the maps: the owner those that are acknowledged, a standby those that it is asked for.
    pub(super) fn publish(&mut self, limit: u8, step: u8) {
        let me = self.me();
        let epoch = u16::from(me.epoch.number);
        if let Ok(raised) = limits::raised(&me.lim.wide(), limit.into(), step.into(), epoch) {
            me.lim = Lim::narrow(&raised);
        }
    }

    /// Whether a record changes anything here; a cheap look before the state is copied.
    pub fn minds(&self, record: &Record) -> bool {
        let me = self.view();
        if usize::from(record.from) == self.at {
            return false;
        }
        let same = || (self.rules.same_epoch)(me.epoch.wide(), record.epoch.wide());
        let listens = matches!(me.role, Role::Following | Role::InSync);
        match &record.body {
            Body::Raise { version, .. } => listens && *version > me.armed && same(),
            Body::RaiseAck { .. } => me.leads() && me.open.is_some() && same(),
            Body::NewEpoch { .. } => me.mirror && !me.leads() && record.epoch > me.epoch,
            Body::EpochAck { .. } => me.role == Role::Taking && same(),
            Body::Entry { .. } => listens && same(),
            Body::EntryAck { .. } => me.role == Role::Owner && same(),
            Body::JoinRequest { .. } => me.role == Role::Owner && me.write.is_none(),
            Body::Snapshot { to, id, .. } => {
                usize::from(*to) == self.at && me.role == Role::Asking && *id == me.join_id
            }
            Body::SnapshotAck { .. } => me.join.is_some() && same(),
            Body::Joined { to, id } => {
                usize::from(*to) == self.at && me.role == Role::Following && *id == me.join_id && same()
            }
            Body::Excluded { to, id } => {
                *to == (self.at as u8, me.life)
                    && matches!(me.role, Role::Following | Role::InSync | Role::Asking)
                    && (*id == me.join_id || !self.rules.notice_names_join)
                    && same()
            }
            Body::Offer { key } => {
                usize::from(key.epoch.owner) == self.at
                    && me.mirror
                    && !me.leads()
                    && key.epoch > me.epoch
                    // The answer to a claim of its own comes first: the record may be further than the offer.
                    && (me.write.is_none() || !self.rules.answer_before_offer)
            }
        }
    }

    /// A record arrives (maybe not for the first time).
    pub fn deliver(&mut self, record: &Record) {
        let from = name(record.from.into(), record.life);
        let ack = |version: u8| Ack {
            epoch: record.epoch.wide(),
            from,
            version: version.into(),
        };
        match &record.body {
            Body::Raise { version, limit, step } => self.raise_heard(*version, *limit, *step),
            Body::RaiseAck { version } => self.raise_acknowledged(&ack(*version)),
            Body::NewEpoch { old, position, set } => self.new_epoch_heard(record.epoch, *old, *position, set),
            Body::EpochAck { position, doubtful } => self.epoch_acknowledged(&ack(*position), *doubtful),
            Body::Entry { position, entry } => self.entry_heard(*position, *entry),
            Body::EntryAck { position } => self.entry_acknowledged(&ack(*position)),
            Body::JoinRequest { id } => self.join_requested(record.from.into(), record.life, *id),
            Body::Snapshot {
                id,
                lim,
                journal,
                through,
                ..
            } => self.snapshot_heard(record.epoch, *id, *lim, journal, *through),
            Body::SnapshotAck { id, position } => self.snapshot_acknowledged(from, *id, *position),
            Body::Joined { .. } => self.me().role = Role::InSync,
            Body::Excluded { .. } => self.forget(),
            Body::Offer { key } => self.take(key),
        }
    }

    /// Gives up everything; asks to join later.
    pub(super) fn forget(&mut self) {
        let me = self.me();
        let (life, epoch, join_id, write) = (me.life, me.epoch, me.join_id, me.write);
        let gave_up = me.gave_up;
        *me = Member {
            epoch,
            join_id,
            gave_up,
            ..Member::blank(life)
        };
        if let Some(write) = write.filter(|w| w.landed == Landed::NotYet) {
            self.state.late.push(write);
        }
    }

    fn raise_heard(&mut self, version: u8, limit: u8, step: u8) {
        self.publish(limit, step);
        let me = self.me();
        me.armed = version;
        me.doubt = Some(Doubt::Version(version.into()));
        self.say(Body::RaiseAck { version });
    }

    /// The owner's heartbeat tells which raises everybody has armed.
    pub fn hear_settled(&mut self) {
        if let Some(doubt) = self.view().doubt
            && let Some(settled) = self.settled_at_owner()
            && !(self.rules.remains)(doubt, settled)
        {
            self.me().doubt = None;
        }
    }

    /// Whether a heartbeat would tell something.
    pub fn learns_settled(&self) -> bool {
        self.view().doubt.is_some_and(|doubt| {
            self.settled_at_owner()
                .is_some_and(|settled| !(self.rules.remains)(doubt, settled))
        })
    }

    fn settled_at_owner(&self) -> Option<u64> {
        let me = self.view();
        if !matches!(me.role, Role::Following | Role::InSync) {
            return None;
        }
        let owner = &self.state.members[usize::from(me.epoch.owner)];
        (owner.leads() && owner.epoch == me.epoch)
            .then(|| (self.rules.settled)(owner.open.map(|open| open.first.into()), owner.version.into()))
    }

    fn new_epoch_heard(&mut self, epoch: Ep, old: Ep, position: u8, set: &Lives) {
        let me = self.view();
        let (at, length) = (self.at, me.journal.len() as u64);
        if set[at] != me.life {
            return;
        }
        let follows = matches!(me.role, Role::InSync | Role::Asking | Role::Following)
            && (self.rules.may_follow)(me.epoch.wide(), length, length, old.wide(), position.into());
        if follows {
            let in_next_epoch = self.rules.in_next_epoch;
            let me = self.me();
            me.role = Role::InSync;
            me.epoch = epoch;
            me.armed = 0;
            me.doubt = me.doubt.and_then(in_next_epoch);
            let (position, doubtful) = (me.journal.len() as u8, me.doubt.is_some());
            self.say(Body::EpochAck { position, doubtful });
        } else if self.view().role != Role::Asking && self.state.left.joins > 0 {
            self.state.left.joins -= 1;
            let discards = (self.rules.discards_when_it_asks)();
            if discards {
                self.forget();
            }
            self.ask_to_join();
        }
    }

    fn entry_heard(&mut self, position: u8, entry: u8) {
        let me = self.me();
        if usize::from(position) == me.journal.len() + 1 {
            me.journal.push(entry);
        } else if usize::from(position) > me.journal.len() {
            return;
        }
        let position = me.journal.len() as u8;
        self.say(Body::EntryAck { position });
    }

    /// The claims that this member could ask for, by the members that it believes to be lost besides the owner.
    pub fn claim(&self, lost: &BTreeSet<MemberId>) -> Option<Key> {
        let me = self.view();
        if !me.up || me.leads() || !(self.rules.may_ask)(me.holds()) {
            return None;
        }
        if me.write.is_some_and(|w| w.purpose == Purpose::Claim) {
            return None;
        }
        let key = &self.state.key;
        let new = (self.rules.claim)(&key.wide(), self.name(), lost).ok()?;
        Some(key.then(&new))
    }

    /// A claim: read and written. Whether this member hears of that is another matter.
    pub fn write_claim(&mut self, new: Key) {
        let expected = self.state.key;
        self.state.key = new;
        self.me().write = Some(Write {
            expected,
            new,
            purpose: Purpose::Claim,
            landed: Landed::Done,
        });
    }

    /// This member owns by the record `key`.
    pub(super) fn take(&mut self, key: &Key) {
        if self.view().epoch >= key.epoch || key.set[self.at] != self.view().life {
            return;
        }
        if !self.view().mirror {
            self.broken(Broken::SaLost);
        }
        let rules = *self.rules;
        let planned = !rules.move_is_takeover && self.view().write.is_none();
        let me = self.me();
        let old = me.epoch;
        me.role = Role::Taking;
        me.epoch = key.epoch;
        me.write = None;
        me.known = key.set;
        me.version = 0;
        me.open = None;
        me.armed = 0;
        me.following = [0; MEMBERS];
        me.acknowledged = [0; MEMBERS];
        me.sent = 0;
        me.join = None;
        me.frozen = false;
        me.restate = rules.restates && me.doubt.is_some();
        me.doubt = None;
        let position = me.journal.len() as u8;
        self.set_alone();
        self.say(Body::NewEpoch {
            old,
            position,
            set: key.set,
        });
        if planned {
            self.me().restate = false;
            self.serve();
        } else {
            self.progress();
        }
    }

    /// Whether it would find by a look into the key that it is in no set.
    pub fn is_left_out(&self) -> bool {
        let me = self.view();
        me.up && !me.leads() && me.role != Role::Blank && self.state.key.set[self.at] != me.life
    }

    /// The owner is lost, and the key does not list this life: what it holds is thrown away.
    pub fn give_up(&mut self) {
        self.forget();
        self.me().gave_up = true;
    }

    /// Begins anew, if it believes that nobody is left. `behind`: of the other members, the life before the present one is
    /// the last that it has heard of.
    pub fn begin_anew(&mut self, behind: bool) -> bool {
        let me = self.view();
        if !me.up || me.mirror || me.leads() {
            return false;
        }
        let lives: BTreeSet<SetMember> = (0..self.state.members.len())
            .filter_map(|at| {
                let life = self.state.members[at].life;
                let heard = if at != self.at && behind {
                    life.saturating_sub(1)
                } else {
                    life
                };
                (heard != 0).then(|| name(at, heard))
            })
            .collect();
        let record = self.state.key.wide();
        if !(self.rules.may_begin_anew)(&record, self.name(), &lives) {
            return false;
        }
        if (0..self.state.members.len()).any(|at| self.may_go_on(at)) {
            self.broken(Broken::BegunAnew);
        }
        let new = cluster::rules::start_over(Some(&record), self.name());
        self.state.key = self.state.key.then(&new);
        self.state.ghost.anew = true;
        true
    }

    /// Whether the member is listed in its present life and holds what it would go on with.
    pub fn may_go_on(&self, at: usize) -> bool {
        let member = &self.state.members[at];
        let key = &self.state.key;
        if !member.up || key.set[at] != member.life || !member.mirror {
            return false;
        }
        let others = (0..self.state.members.len())
            .filter(|other| *other != at)
            .map(member_id)
            .collect();
        (self.rules.may_ask)(member.holds())
            && (self.rules.claim)(&key.wide(), name(at, member.life), &others).is_ok()
    }

    /// Inbound: everything that may be accepted now is.
    pub fn accept(&mut self) {
        let Some((first, last)) = self.range() else { return };
        if last == u64::MAX {
            self.use_alone();
            return;
        }
        for number in first..=last.min(NUMBERS.into()) {
            self.accept_one(number as u8);
        }
    }

    fn accept_one(&mut self, number: u8) {
        let bit = 1 << number;
        let me = self.me();
        if me.seen & bit != 0 {
            return;
        }
        me.seen |= bit;
        me.counter = me.counter.max(number);
        if self.state.ghost.accepted & bit != 0 {
            self.broken(Broken::InboundTwice);
        }
        self.state.ghost.accepted |= bit;
    }

    /// Outbound: everything that the lease covers is used, at once.
    pub fn spend(&mut self) {
        if self.view().role != Role::Owner || !self.view().up || self.direction != Direction::Outbound {
            return;
        }
        let Some((first, mut last)) = self.range() else {
            return;
        };
        if last == u64::MAX {
            // No upper limit: as many as with one at once, more by `use_alone`.
            last = first - 1 + u64::from(self.view().lim.step);
        }
        let first = first.max(u64::from(self.view().counter) + 1);
        for number in first..=last.min(NUMBERS.into()) {
            self.send_one(number as u8);
        }
    }

    fn send_one(&mut self, number: u8) {
        let bit = 1 << number;
        let me = self.me();
        me.counter = number;
        let epoch = me.epoch;
        let ghost = &mut self.state.ghost;
        let twice = ghost.used.values().any(|used| used & bit != 0);
        let mine = ghost.used.entry((epoch.owner, epoch.number)).or_default();
        let nonce = *mine & bit != 0;
        *mine |= bit;
        if twice {
            self.broken(Broken::OutboundTwice);
        }
        if nonce {
            self.broken(Broken::NonceTwice);
        }
    }

    /// One number without an upper limit.
    pub fn use_alone(&mut self) {
        let Some((first, last)) = self.range() else { return };
        let next = first.max(u64::from(self.view().counter) + 1);
        if last != u64::MAX || next > NUMBERS.into() {
            return;
        }
        match self.direction {
            Direction::Outbound => self.send_one(next as u8),
            Direction::Inbound => self.accept_one(next as u8),
        }
    }

    /// Octets of everything that is committed go on the wire.
    pub(super) fn send_committed(&mut self) {
        let me = self.view();
        if me.role != Role::Owner || !me.up {
            return;
        }
        let at = self.at;
        let acknowledged: Vec<u64> = self
            .required()
            .iter()
            .filter(|m| m.member != member_id(at))
            .map(|m| u64::from(self.view().acknowledged[usize::from(m.member.0) - 1]))
            .collect();
        let me = self.view();
        let committed = (self.rules.commit_position)(me.journal.len() as u64, &acknowledged);
        while u64::from(self.view().sent) < committed {
            let me = self.me();
            let index = usize::from(me.sent);
            let entry = me.journal[index];
            me.sent += 1;
            let wire = &mut self.state.ghost.wire;
            match wire.get(index) {
                None => wire.push(entry),
                Some(there) if *there != entry => self.broken(Broken::Forked),
                Some(_) => {}
            }
        }
        self.check_wire();
    }

    /// Whoever serves in the newest epoch in which anybody served holds what is on the wire.
    pub(super) fn check_wire(&mut self) {
        let ghost = &self.state.ghost;
        let newest = 15 - ghost.served.leading_zeros() as u8;
        let mut owners = self
            .state
            .members
            .iter()
            .filter(|m| m.up && m.role == Role::Owner);
        let lacks = owners.any(|m| m.epoch.number == newest && !m.journal.starts_with(&ghost.wire));
        if lacks {
            self.broken(Broken::EntryLost);
        }
    }

    /// The set that counts, while a write is under way or not.
    pub(super) fn required(&self) -> BTreeSet<SetMember> {
        let me = self.view();
        let wanted = me.write.map(|w| wide(&w.new.set));
        (self.rules.required)(&wide(&me.known), wanted.as_ref())
    }
}
