//! A member without place joins.

use crate::group::actor::Actor;
use crate::group::state::{Body, Ep, Joiner, Key, Lim, Purpose, Role, name};
use cluster::SetMember;
use cluster::rules::JoinFacts;
use datapath::limits;

impl Actor<'_> {
    /// Asks. What it holds, if anything, it holds until the snapshot comes.
    pub fn ask_to_join(&mut self) {
        let me = self.me();
        me.join_id += 1;
        me.role = Role::Asking;
        let id = me.join_id;
        self.say(Body::JoinRequest { id });
    }

    pub(super) fn join_requested(&mut self, from: usize, life: u8, id: u8) {
        let me = self.view();
        if me.admitted[from] >= id
            || me.known[from] > life
            || me.join.is_some_and(|j| usize::from(j.at) != from)
        {
            return;
        }
        if me.known[from] != 0 {
            // Its old place first. The request comes again.
            if self.state.left.exclusions > 0 {
                self.state.left.exclusions -= 1;
                self.exclude(from);
            }
            return;
        }
        let me = self.me();
        me.admitted[from] = id;
        me.acknowledged[from] = 0;
        me.join = Some(Joiner {
            at: from as u8,
            life,
            id,
            armed: false,
            owed: false,
        });
        // What is open is asked for anew: a late copy of the old version must not undo what the snapshot holds.
        if let Some(open) = &mut me.open {
            me.version += 1;
            open.version = me.version;
            let asked = self.asked();
            if let Some(open) = &mut self.me().open {
                open.missing = crate::group::state::narrow(&asked);
            }
        }
        // Limits again, at the present epoch, where there were none.
        if let Some((first, last)) = self.range()
            && last == u64::MAX
        {
            let me = self.me();
            let used = u64::from(me.counter).max(first - 1);
            let epoch = u16::from(me.epoch.number);
            let step = u64::from(me.lim.step);
            if let Ok(capped) = limits::raised(&me.lim.wide(), used + step, step, epoch) {
                me.lim = Lim::narrow(&capped);
            }
            self.after_change();
        }
        self.set_alone();
        let me = self.view();
        let (lim, journal, version, open) = (me.lim, me.journal.clone(), me.version, me.open);
        self.say(Body::Snapshot {
            to: from as u8,
            id,
            lim,
            journal,
            through: open.map_or(version, |open| open.version - 1),
        });
        if let Some(open) = open {
            self.say(Body::Raise {
                version: open.version,
                limit: open.limit,
                step: open.step,
            });
        }
    }

    pub(super) fn snapshot_heard(&mut self, epoch: Ep, id: u8, lim: Lim, journal: &[u8], through: u8) {
        let me = self.me();
        if epoch < me.epoch {
            return;
        }
        me.epoch = epoch;
        me.role = Role::Following;
        me.mirror = true;
        me.gave_up = false;
        me.lim = lim;
        me.counter = 0;
        me.seen = 0;
        me.journal = journal.to_vec();
        me.armed = through;
        me.doubt = None;
        let position = journal.len() as u8;
        self.say(Body::SnapshotAck { id, position });
    }

    pub(super) fn snapshot_acknowledged(&mut self, from: SetMember, id: u8, position: u8) {
        let me = self.me();
        if let Some(join) = &mut me.join
            && name(join.at.into(), join.life) == from
            && join.id == id
        {
            join.armed = true;
            let at = usize::from(join.at);
            me.acknowledged[at] = me.acknowledged[at].max(position);
            self.ask_joiner();
        }
    }

    /// Whether the joiner holds everything.
    pub fn may_enter(&self) -> bool {
        let me = self.view();
        let Some(join) = me.join else { return false };
        (self.rules.may_enter)(&JoinFacts {
            snapshot_armed: join.armed,
            acknowledged: me.acknowledged[usize::from(join.at)].into(),
            written: me.journal.len() as u64,
            raises_open: usize::from(me.open.is_some() || join.owed),
            caps_verified: self
                .range()
                .is_some_and(|(_, last)| last != u64::MAX && u64::from(me.counter) <= last),
        })
    }

    /// The joiner is to be in the set.
    pub fn enter(&mut self) {
        let Some(join) = self.view().join else { return };
        let (with, joiner) = (self.rules.with, name(join.at.into(), join.life));
        self.ask_engine(Purpose::Enter, |record| Some(with(record, joiner)));
    }

    pub(super) fn entered(&mut self, key: &Key) {
        let me = self.me();
        me.write = None;
        me.known = key.set;
        let join = me.join.take();
        self.set_alone();
        self.state.ghost.entered = true;
        if let Some(join) = join {
            self.say(Body::Joined {
                to: join.at,
                id: join.id,
            });
        }
    }
}
