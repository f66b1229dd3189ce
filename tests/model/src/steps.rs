//! What a member does with a record, and what it does by itself.

use crate::rules::Rules;
use crate::state::{Body, Broken, Joiner, Lim, Member, Open, Record, Role, Sa, State, index, member_id};
use cluster::rules::{Ack, JoinFacts, RaiseDecision, Solo, Standing};
use cluster::{Direction, SetMember};
use datapath::limits::{self, EpochBehind};
use maps_schema::sad::Limits;
use model::Epoch;
use std::collections::BTreeSet;

/// Both directions.
pub const DIRECTIONS: [Direction; 2] = [Direction::Outbound, Direction::Inbound];

/// Limits as a loss leaves them.
type Taint = fn(&Limits, u16) -> Result<Limits, EpochBehind>;

/// One member of a state at work.
pub struct Actor<'a> {
    /// Everything.
    pub state: &'a mut State,
    /// Which member.
    pub at: usize,
    /// The decisions.
    pub rules: &'a Rules,
    /// SAs that a lost life of the standby knew are tainted ([`Rules::tainted_by_loss`]).
    pub taint: bool,
    /// What an owner does alone.
    pub solo: Solo,
}

impl Actor<'_> {
    fn me(&mut self) -> &mut Member {
        &mut self.state.members[self.at]
    }

    fn view(&self) -> &Member {
        &self.state.members[self.at]
    }

    fn name(&self) -> SetMember {
        self.view().name(self.at)
    }

    fn say(&mut self, body: Body) {
        let record = Record {
            from: self.name(),
            epoch: self.view().epoch,
            body,
        };
        self.state.network.insert(record);
    }

    fn broken(&mut self, what: Broken) {
        self.state.ghost.broken.insert(what);
    }

    /// A record arrives (maybe not for the first time).
    pub fn deliver(&mut self, record: &Record) {
        let Record { from, epoch, body } = record;
        match body {
            Body::Owns => return self.owner_heard(record),
            Body::JoinRequest { id } => return self.join_requested(*from, *id),
            Body::Snapshot { .. } | Body::Joined { .. } | Body::SoloNotice { .. } => {}
            _ if !(self.rules.same_epoch)(self.view().epoch, *epoch) => return,
            _ => {}
        }
        match body {
            Body::Raise {
                direction,
                version,
                limit,
            } => self.raise_heard(*direction, *version, *limit, epoch.number.low16() as u8),
            Body::RaiseAck { direction, version } => {
                let ack = Ack {
                    epoch: *epoch,
                    from: *from,
                    version: u64::from(*version),
                };
                self.raise_acknowledged(usize::from(*direction), &ack);
            }
            Body::Journal { position, entry } => self.entry_heard(*position, *entry),
            Body::JournalAck { position } => {
                let ack = Ack {
                    epoch: *epoch,
                    from: *from,
                    version: u64::from(*position),
                };
                self.entry_acknowledged(&ack);
            }
            Body::Snapshot {
                id,
                sa,
                journal,
                version,
                claim_above,
            } => {
                let me = self.me();
                if me.role == Role::Asking && me.join_id == *id && me.epoch == *epoch {
                    me.sa = *sa;
                    me.journal.clone_from(journal);
                    me.armed_version = [*version, *version];
                    me.claim_above = *claim_above;
                    me.role = Role::Following;
                    self.say(Body::SnapshotAck { id: *id });
                }
            }
            Body::SnapshotAck { id } => {
                if let Some(join) = &mut self.me().join
                    && join.member == *from
                    && join.id == *id
                {
                    join.armed = true;
                }
            }
            Body::Joined { id } => {
                let me = self.me();
                if me.role == Role::Following && me.join_id == *id && me.epoch == *epoch {
                    me.role = Role::InSync;
                    let name = self.name();
                    self.me().set = Some(BTreeSet::from([*from, name]));
                }
            }
            Body::SoloNotice { id } => {
                let me = self.me();
                if matches!(me.role, Role::Following | Role::InSync)
                    && me.join_id == *id
                    && me.epoch == *epoch
                {
                    self.forget();
                }
            }
            Body::Owns | Body::JoinRequest { .. } => {}
        }
    }

    /// A member without place forgets what it holds; it asks to join later.
    fn forget(&mut self) {
        let me = self.me();
        let (incarnation, epoch, join_id) = (me.incarnation, me.epoch, me.join_id);
        *me = Member {
            epoch,
            join_id,
            ..Member::blank(incarnation)
        };
    }

    fn owner_heard(&mut self, record: &Record) {
        let mine = self.view().epoch;
        let blank = self.view().role == Role::Blank;
        if if blank {
            record.epoch > mine
        } else {
            (self.rules.must_yield)(mine, record.epoch)
        } {
            self.forget();
            self.me().epoch = record.epoch;
        }
    }

    /// Blank, and knows of an owner: asks to join.
    pub fn ask_to_join(&mut self) {
        let me = self.me();
        me.join_id += 1;
        me.role = Role::Asking;
        let id = me.join_id;
        self.say(Body::JoinRequest { id });
    }

    fn join_requested(&mut self, from: SetMember, id: u8) {
        let me = self.view();
        if me.role != Role::Owner || from.member == member_id(self.at) {
            return;
        }
        // Lives and joins only rise; an old request is void.
        let known = me
            .set
            .iter()
            .flatten()
            .chain(me.join.iter().map(|j| &j.member))
            .find(|m| m.member == from.member);
        if known.is_some_and(|m| *m > from) || me.admitted >= Some((from, id)) {
            return;
        }
        let name = self.name();
        if self.view().set.as_ref().is_some_and(|s| s.len() > 1) {
            self.lose_standby(known.is_some_and(|m| *m == from), true);
        }
        let member = from;
        let asked = (self.rules.asked_for_raise)(&BTreeSet::from([name]), member_id(self.at), Some(member));
        let me = self.me();
        me.admitted = Some((from, id));
        me.join = Some(Joiner {
            member,
            id,
            armed: false,
        });
        for open in me.open.iter_mut().flatten() {
            // Conservative (the node uses it at once, before the snapshot): what waits goes on waiting, for the joiner now.
            // What the same life acknowledged before, it has forgotten: that must not count for the new join.
            if open.missing.contains(&member) {
                me.version += 1;
                open.version = me.version;
            }
            open.missing.clone_from(&asked);
        }
        // The SA gets limits again, at the present epoch; ALONE goes with the entry into the set.
        let epoch = me.epoch.number.low16();
        let (alone, rules) = (me.alone, *self.rules);
        let me = self.me();
        if let Some(sa) = &mut me.sa {
            if let Ok(range) = (rules.outbound)(&sa.outbound.wide(), 0, alone, epoch)
                && range.last == u64::MAX
            {
                let used = u64::from(sa.counter).max(range.first - 1);
                let capped = limits::raised(&sa.outbound.wide(), used + 1, sa.outbound.step.into(), epoch);
                sa.outbound = capped.map_or(sa.outbound, |l| Lim::narrow(&l));
            }
            if let Ok(range) = (rules.inbound)(&sa.inbound.wide(), 0, alone, epoch)
                && range.ceiling == u64::MAX
            {
                let edge = u64::from(15 - sa.seen.leading_zeros().min(15) as u8).max(range.floor);
                let capped = limits::raised(&sa.inbound.wide(), edge + 1, sa.inbound.step.into(), epoch);
                sa.inbound = capped.map_or(sa.inbound, |l| Lim::narrow(&l));
            }
        }
        let sa = me.sa.map(|sa| Sa {
            counter: 0,
            seen: 0,
            ..sa
        });
        let (journal, version) = (me.journal.clone(), me.version);
        // What is open is sent again, because the joiner's maps do not hold it.
        let open: Vec<(u8, u8, u8)> = (0u8..2)
            .filter_map(|d| me.open[usize::from(d)].as_ref().map(|o| (d, o.version, o.limit)))
            .collect();
        let floor_version = open.iter().map(|o| o.1).min().map_or(version, |v| v - 1);
        let claim_above = self.view().claim_above;
        self.say(Body::Snapshot {
            id,
            sa,
            journal,
            version: floor_version,
            claim_above,
        });
        for (direction, version, limit) in open {
            self.say(Body::Raise {
                direction,
                version,
                limit,
            });
        }
    }

    /// The joiner enters if it holds everything.
    pub fn try_enter(&mut self) {
        let me = self.view();
        let Some(join) = me.join.clone() else { return };
        let facts = JoinFacts {
            snapshot_armed: join.armed,
            acknowledged: if join.armed { me.acknowledged.into() } else { 0 },
            written: me.journal.len() as u64,
            raises_open: me.open.iter().flatten().count(),
            caps_verified: true,
        };
        if !(self.rules.may_enter)(&facts) {
            return;
        }
        let name = self.name();
        let me = self.me();
        me.join = None;
        me.set = Some(BTreeSet::from([name, join.member]));
        me.standing = Standing::WithStandby;
        me.alone = false;
        self.state.ghost.joined = true;
        self.say(Body::Joined { id: join.id });
    }

    /// The owner drops its standby. `gave_up`: the very life that was in the set says that it holds nothing and never
    /// took over. `seen`: the other member was heard of, if only as a new life.
    pub fn lose_standby(&mut self, gave_up: bool, seen: bool) {
        let name = self.name();
        let standing = (self.rules.standing_after_loss)(gave_up);
        let tainted = if self.taint {
            (self.rules.tainted_by_loss)(self.solo, standing)
        } else {
            &[]
        };
        let epoch = self.view().epoch.number.low16();
        let me = self.me();
        me.set = Some(BTreeSet::from([name]));
        me.join = None;
        me.standing = standing;
        if let Some(sa) = &mut me.sa {
            for direction in tainted {
                let (lim, taint): (_, Taint) = match direction {
                    Direction::Outbound => (&mut sa.outbound, limits::tainted_outbound),
                    Direction::Inbound => (&mut sa.inbound, limits::tainted_inbound),
                };
                *lim = taint(&lim.wide(), epoch).map_or(*lim, |l| Lim::narrow(&l));
            }
        }
        if !gave_up {
            let above = (self.rules.claim_above)(Epoch(self.view().claim_above.into()), self.view().epoch);
            self.me().claim_above = above.0 as u8;
        }
        let me = self.me();
        if standing == Standing::AloneUnfenced {
            // The lost life may have used the numbers that an open raise asks for.
            me.open[0] = None;
            if self.solo == Solo::Stop {
                self.me().open[1] = None;
            }
        }
        let me = self.me();
        let id = me.admitted.map_or(16, |(_, id)| id);
        if !seen {
            // Nobody is left to ask.
            let open: Vec<(usize, u8)> = (0..2)
                .filter_map(|d| me.open[d].take().map(|o| (d, o.limit)))
                .collect();
            for (direction, limit) in open {
                self.wish(direction, limit);
            }
            self.say(Body::SoloNotice { id });
        }
    }

    /// Wants limits up to `limit`.
    fn wish(&mut self, direction: usize, limit: u8) {
        let me = self.view();
        let Some(set) = &me.set else { return };
        let asked = (self.rules.asked_for_raise)(set, member_id(self.at), me.join.as_ref().map(|j| j.member));
        let tainted = me
            .sa
            .is_some_and(|sa| [sa.outbound, sa.inbound][direction].tainted);
        let standing = me.standing;
        let decision = (self.rules.decide_raise)(standing, asked.is_empty(), DIRECTIONS[direction]);
        let mut decision = cluster::rules::under_solo(self.solo, standing, decision);
        if tainted {
            decision = RaiseDecision::RekeyInstead;
        }
        match decision {
            RaiseDecision::RekeyInstead => {}
            RaiseDecision::UseNow => self.publish(direction, limit),
            RaiseDecision::Ask => {
                let me = self.me();
                me.version += 1;
                let version = me.version;
                me.open[direction] = Some(Open {
                    version,
                    limit,
                    missing: asked,
                });
                self.say(Body::Raise {
                    direction: direction as u8,
                    version,
                    limit,
                });
            }
        }
    }

    /// The programs asked for more.
    pub fn raise(&mut self, direction: Direction) {
        let me = self.view();
        let Some(sa) = me.sa else { return };
        let epoch = me.epoch.number.low16();
        let last = match direction {
            Direction::Outbound => {
                (self.rules.outbound)(&sa.outbound.wide(), 0, me.alone, epoch).map(|r| r.last)
            }
            Direction::Inbound => {
                (self.rules.inbound)(&sa.inbound.wide(), 0, me.alone, epoch).map(|r| r.ceiling)
            }
        };
        let Ok(last) = last else { return };
        let pending = me.open[index(direction)]
            .as_ref()
            .map_or(0, |o| u64::from(o.limit));
        if last < 16 {
            self.wish(index(direction), last.max(pending) as u8 + 1);
        }
    }

    fn publish(&mut self, direction: usize, limit: u8) {
        let me = self.me();
        let epoch = me.epoch.number.low16();
        let Some(sa) = &mut me.sa else { return };
        let lim = if direction == 0 {
            &mut sa.outbound
        } else {
            &mut sa.inbound
        };
        if let Ok(raised) = limits::raised(&lim.wide(), limit.into(), lim.step.into(), epoch) {
            *lim = Lim::narrow(&raised);
        }
    }

    fn raise_heard(&mut self, direction: u8, version: u8, limit: u8, _epoch: u8) {
        let d = usize::from(direction);
        let me = self.view();
        if !matches!(me.role, Role::Following | Role::InSync) || me.armed_version[d] > version {
            return;
        }
        if me.armed_version[d] < version {
            self.publish(d, limit);
            self.me().armed_version[d] = version;
        }
        self.say(Body::RaiseAck { direction, version });
    }

    fn raise_acknowledged(&mut self, direction: usize, ack: &Ack) {
        let epoch = self.view().epoch;
        let counts = self.rules.ack_counts;
        let me = self.me();
        if me.role != Role::Owner {
            return;
        }
        let Some(open) = &mut me.open[direction] else {
            return;
        };
        if !counts(epoch, &open.missing, open.version.into(), ack) {
            return;
        }
        open.missing.retain(|m| m.member != ack.from.member);
        if open.missing.is_empty() {
            let limit = open.limit;
            me.open[direction] = None;
            self.publish(direction, limit);
        }
    }

    /// The IKE engine has something to send: it writes an entry first.
    pub fn write(&mut self) {
        let me = self.me();
        // The name tells the writer apart, so that two forks never write the same entry.
        let entry = me.epoch.number.low16() as u8 * 2 + me.epoch.owner.0;
        me.journal.push(entry);
        let position = me.journal.len() as u8;
        let listens = me.join.is_some() || me.set.as_ref().is_some_and(|s| s.len() > 1);
        if listens {
            self.say(Body::Journal { position, entry });
        }
    }

    fn entry_heard(&mut self, position: u8, entry: u8) {
        let me = self.me();
        if !matches!(me.role, Role::Following | Role::InSync) {
            return;
        }
        if usize::from(position) == me.journal.len() + 1 {
            me.journal.push(entry);
        } else if usize::from(position) > me.journal.len() {
            return;
        }
        let position = me.journal.len() as u8;
        self.say(Body::JournalAck { position });
    }

    fn entry_acknowledged(&mut self, ack: &Ack) {
        let counts = self.rules.ack_counts;
        let me = self.me();
        if me.role != Role::Owner || ack.version > me.journal.len() as u64 {
            return;
        }
        let mut asked = me.set.clone().unwrap_or_default();
        asked.extend(me.join.as_ref().map(|j| j.member));
        if counts(me.epoch, &asked, ack.version, ack) {
            me.acknowledged = me.acknowledged.max(ack.version as u8);
        }
    }

    /// Puts the next committed entry on the wire.
    pub fn send_entry(&mut self) {
        let me = self.view();
        let others = me.set.as_ref().map_or(0, |s| s.len().saturating_sub(1));
        let acknowledged = vec![u64::from(me.acknowledged); others];
        let committed = (self.rules.commit_position)(me.journal.len() as u64, &acknowledged);
        if u64::from(me.sent) >= committed {
            return;
        }
        let me = self.me();
        me.sent += 1;
        let sent = me.sent;
        let entry = me.journal[usize::from(sent) - 1];
        let standing = me.standing;
        let owners = self
            .state
            .members
            .iter()
            .filter(|m| m.up && m.role == Role::Owner)
            .count();
        // In a split under `continue` the journals of the halves fork; the docs say so.
        let counts = match standing {
            Standing::WithStandby => true,
            Standing::AloneTaker => owners == 1,
            Standing::AloneUnfenced => false,
        };
        if counts && !self.state.ghost.wire.contains(&(sent, entry)) {
            self.state.ghost.wire.push((sent, entry));
        }
    }

    /// Whether there is an outbound number to use, and which.
    pub fn next_outbound(&self) -> Option<u8> {
        let me = self.view();
        let sa = me.sa?;
        let range = (self.rules.outbound)(&sa.outbound.wide(), 0, me.alone, me.epoch.number.low16()).ok()?;
        let next = (u64::from(sa.counter) + 1).max(range.first);
        (next <= range.last && next <= u64::from(self.state.left.outbound_max)).then_some(next as u8)
    }

    /// Sends a packet.
    pub fn send_packet(&mut self) {
        let Some(number) = self.next_outbound() else {
            return;
        };
        let epoch = self.view().epoch;
        let me = self.me();
        if let Some(sa) = &mut me.sa {
            sa.counter = number;
        }
        let taker = epoch.number.0 > 1;
        let ghost = &mut self.state.ghost;
        let twice = ghost.outbound & (1 << number) != 0;
        ghost.outbound |= 1 << number;
        ghost.sent_by_taker |= taker;
        let nonce_twice = !ghost.nonces.insert((epoch.owner.0, epoch.number.low16(), number));
        if twice {
            self.broken(Broken::OutboundTwice);
        }
        if nonce_twice {
            self.broken(Broken::NonceTwice);
        }
    }

    /// Whether an inbound number would be accepted.
    pub fn accepts(&self, number: u8) -> bool {
        let me = self.view();
        let Some(sa) = me.sa else { return false };
        (self.rules.inbound)(&sa.inbound.wide(), 0, me.alone, me.epoch.number.low16()).is_ok_and(|range| {
            u64::from(number) > range.floor
                && u64::from(number) <= range.ceiling
                && sa.seen & (1 << number) == 0
        })
    }

    /// A packet of the peer comes in: the first time or replayed.
    pub fn accept(&mut self, number: u8) {
        // Under `continue` a life that was lost unfenced may have accepted numbers above the ceiling: the docs promise nothing there.
        let goes_on = self.solo == Solo::Continue;
        let me = self.me();
        let unfenced = goes_on
            && (me.standing == Standing::AloneUnfenced || me.sa.is_some_and(|sa| sa.outbound.tainted));
        if let Some(sa) = &mut me.sa {
            sa.seen |= 1 << number;
        }
        let ghost = &mut self.state.ghost;
        let bit = 1 << number;
        let twice = ghost.accepted & bit != 0 && ghost.accepted_unfenced & bit == 0 && !unfenced;
        ghost.accepted |= bit;
        if unfenced {
            ghost.accepted_unfenced |= bit;
        }
        if twice {
            self.broken(Broken::InboundTwice);
        }
    }

    /// The standby suspects the owner, rightly or not, and takes over.
    pub fn take_over(&mut self) {
        let name = self.name();
        let me = self.view();
        let position = me.journal.len() as u64;
        let above = Epoch(me.claim_above.into());
        let plan = (self.rules.takeover)(
            me.epoch,
            above,
            me.set.as_ref(),
            name,
            &BTreeSet::from([name]),
            position,
        );
        let Ok(plan) = plan else {
            if self.view().role == Role::InSync {
                self.broken(Broken::NoSurvivor);
            } else {
                // Nothing of what it holds is adopted.
                self.forget();
            }
            return;
        };
        let lost = self
            .state
            .ghost
            .wire
            .iter()
            .any(|(position, entry)| self.view().journal.get(usize::from(*position) - 1) != Some(entry));
        if lost {
            self.broken(Broken::EntryLost);
        }
        let me = self.me();
        me.role = Role::Owner;
        me.epoch = plan.epoch;
        me.set = Some(plan.in_sync);
        me.standing = plan.standing;
        me.alone = plan.standing == Standing::AloneTaker;
        me.version = 0;
        me.open = [None, None];
        me.acknowledged = 0;
        // What the old owner may have sent is sent again: the same octets.
        me.sent = 0;
        let ghost = &mut self.state.ghost;
        ghost.takeovers += 1;
        ghost.split |= self
            .state
            .members
            .iter()
            .filter(|m| m.up && m.role == Role::Owner)
            .count()
            > 1;
        self.say(Body::Owns);
    }
}
