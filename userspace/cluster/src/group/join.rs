//! A member joins, seen from the owner: cap, snapshot, tail, verify, enter.

use super::owner::Owner;
use super::set::{Loss, Purpose};
use super::{AfterFlip, Group, Pending, Phase};
use crate::io::{EventKind, Output};
use crate::journal::Entry;
use crate::message::{CHUNK, GroupBody, RaiseItem, RaiseKey, SetMember};
use crate::node::Shared;
use crate::rules::{self, JoinFacts, Standing};
use model::Instant;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(PartialEq, Eq)]
enum Step {
    /// The agent caps the limits and takes the snapshot.
    Capping,
    /// On its way, a few pieces by tick; then the tail of the journal.
    Sending { position: u64 },
    /// Sent; the tail of the journal follows as it is written.
    Sent { position: u64 },
    /// The joiner's maps hold the snapshot.
    Armed,
}

/// A snapshot that is being sent.
#[derive(Default)]
struct Rest {
    bytes: Vec<u8>,
    at: usize,
}

impl Rest {
    /// The next few pieces, and whether they are the last ones.
    fn next(&mut self) -> (Vec<Vec<u8>>, bool) {
        let to = self.bytes.len().min(self.at + PIECES * CHUNK);
        let some = self.bytes.get(self.at..to).unwrap_or_default();
        let pieces = some.chunks(CHUNK).map(<[u8]>::to_vec).collect();
        self.at = to;
        (pieces, to == self.bytes.len())
    }
}

pub(crate) struct Join {
    pub member: SetMember,
    /// The joiner's number for it.
    id: u64,
    step: Step,
    acknowledged: u64,
    /// What is still to be sent of the snapshot.
    rest: Rest,
    verifying: bool,
    verified: bool,
    since: Instant,
    /// The owner had no standby when it began.
    began_alone: bool,
    /// Limits that went into use without it since its snapshot was taken: it is asked for them once it is armed.
    owed: BTreeMap<RaiseKey, RaiseItem>,
}

/// Pieces of a snapshot that are sent in one tick: a megabyte, which takes about a millisecond.
const PIECES: usize = 32;
/// A joiner that has not armed its snapshot in this time makes room for others.
const STUCK: Duration = Duration::from_secs(30);

impl Join {
    /// Whether its maps hold the snapshot.
    pub fn is_armed(&self) -> bool {
        self.step == Step::Armed
    }

    /// Whether the owner had no standby when the join began.
    pub fn began_alone(&self) -> bool {
        self.began_alone
    }

    /// Whether it takes too long.
    pub fn is_stuck(&self, now: Instant) -> bool {
        !self.is_armed() && now.since(self.since) > STUCK
    }

    /// These limits are in use; before it is armed, nobody has asked the joiner.
    pub fn owes(&mut self, items: &[RaiseItem]) {
        if !self.is_armed() {
            self.owed.extend(items.iter().map(|item| (item.key(), *item)));
        }
    }

    /// Whether entries written now are part of what the joiner needs beyond its snapshot.
    pub fn wants_tail(&self) -> bool {
        matches!(self.step, Step::Sent { .. } | Step::Armed)
    }

    pub fn acknowledged(&self) -> u64 {
        match self.step {
            Step::Capping => 0,
            Step::Sending { position } | Step::Sent { position } => position,
            Step::Armed => self.acknowledged,
        }
    }

    pub fn acknowledge(&mut self, position: u64) {
        if self.step == Step::Armed {
            self.acknowledged = self.acknowledged.max(position);
        }
    }

    fn facts(&self, owner: &Owner) -> JoinFacts {
        JoinFacts {
            snapshot_armed: self.step == Step::Armed,
            acknowledged: self.acknowledged,
            written: owner.journal.written(),
            raises_open: owner.raises.len(),
            caps_verified: self.verified,
        }
    }
}

impl Group {
    pub(super) fn join_requested(&mut self, s: &mut Shared, now: Instant, from: SetMember, id: u64) {
        let Some(peer) = s.peers.get(&from.member) else {
            return;
        };
        if peer.policy.is_none() || !peer.differs.is_empty() {
            let reason = format!(
                "the policies of members {} and {} differ in: {}",
                s.me.member,
                from.member,
                peer.differs.join(", ")
            );
            if peer.policy.is_some() {
                self.stream(s, from.member, GroupBody::JoinRefused { reason });
            }
            return;
        }
        let Phase::Owner(owner) = &self.phase else { return };
        // A repeated request, or one from before the last join.
        let repeated = owner
            .admitted
            .get(&from.member)
            .is_some_and(|last| (from.incarnation, id) <= *last);
        if owner.handover.is_some() || repeated {
            return;
        }
        if owner.required().contains(&from) {
            // This very life says that it holds nothing: it will never adopt, so nothing of its past needs fencing.
            self.lose(s, now, BTreeSet::from([from]), "asks to join anew", Loss::GaveUp);
        }
        let Phase::Owner(owner) = &self.phase else { return };
        if owner.required().contains(&from) || owner.follow.is_some() {
            // The engine has to say first that it is out; it asks again.
            return;
        }
        match &owner.join {
            Some(join) if join.member == from => self.drop_join(s),
            // One after the other: they ask again.
            Some(_) => return,
            None => {}
        }
        self.event(s, now, EventKind::Joining(from));
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        owner.admitted.insert(from.member, (from.incarnation, id));
        owner.join = Some(Join {
            member: from,
            id,
            step: Step::Capping,
            acknowledged: 0,
            rest: Rest::default(),
            verifying: false,
            verified: false,
            since: now,
            began_alone: owner.standing != Standing::WithStandby,
            owed: BTreeMap::new(),
        });
        let group = self.id;
        let token = self.token(s, Pending::Cap);
        s.outputs.push_back(Output::CapLimits { group, token });
    }

    pub fn snapshot_taken(&mut self, s: &mut Shared, token: u64, bytes: Vec<u8>) {
        if !matches!(self.pending.remove(&token), Some(Pending::Cap)) {
            return;
        }
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        // The snapshot is what has taken effect here. Entries that wait for another standby are not part of it: they follow.
        let position = owner.journal.committed();
        let Some(join) = owner.join.as_mut().filter(|j| j.step == Step::Capping) else {
            return;
        };
        join.step = Step::Sending { position };
        let length = bytes.len() as u64;
        join.rest = Rest { bytes, at: 0 };
        let (to, join, claim_above) = (join.member.member, join.id, owner.claim_above);
        let raises_through = owner.raises.version();
        owner.raises.renumber();
        let begin = GroupBody::SnapshotBegin {
            join,
            claim_above,
            raises_through,
            position,
            length,
        };
        self.stream(s, to, begin);
        self.send_snapshot(s);
    }

    /// Sends the next pieces of a snapshot that is on its way, few enough that heartbeats do not wait for them; behind the
    /// last one the tail of the journal.
    pub(super) fn send_snapshot(&mut self, s: &mut Shared) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let Some(join) = owner.join.as_mut() else { return };
        let Step::Sending { position } = join.step else {
            return;
        };
        let to = join.member.member;
        let (pieces, end) = join.rest.next();
        let mut tail: Vec<(u64, Entry)> = Vec::new();
        if end {
            join.rest = Rest::default();
            join.step = Step::Sent { position };
            tail.extend(owner.journal.after(position).map(|(p, e)| (p, e.clone())));
        }
        for piece in pieces {
            self.stream(s, to, GroupBody::SnapshotChunk(piece));
        }
        for (position, entry) in tail {
            self.write_entry(s, to, position, &entry);
        }
    }

    pub(super) fn snapshot_acknowledged(
        &mut self,
        s: &mut Shared,
        now: Instant,
        from: SetMember,
        id: u64,
        position: u64,
    ) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let Some(join) = owner.join.as_mut().filter(|j| j.member == from && j.id == id) else {
            return;
        };
        if join.step != (Step::Sent { position }) {
            return;
        }
        join.step = Step::Armed;
        join.acknowledged = position;
        // From here on its acknowledgement is required for every raise, and for those that it has missed.
        let owed = std::mem::take(&mut join.owed);
        owner.raises.ask_also(from);
        let missed = owed
            .into_values()
            .filter(|item| !owner.raises.is_open(&item.key()))
            .collect();
        self.ask_for(s, now, missed);
        self.join_progress(s, now);
    }

    /// Enters the joiner, or does what is missing for it.
    pub(super) fn join_progress(&mut self, s: &mut Shared, now: Instant) {
        let pair = Self::solo(s).is_some();
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        if owner.writing.is_some() || owner.handover.is_some() {
            // The set is being changed; the next look is not far.
            return;
        }
        let Some(mut join) = owner.join.take() else { return };
        let facts = join.facts(owner);
        let member = join.member;
        if rules::may_enter(&facts) {
            // From here on its acknowledgements count like those of the others.
            owner.acknowledged.insert(member, join.acknowledged);
            owner.join = Some(join);
            if pair {
                self.entered(s, now, member);
            } else {
                let new = rules::with(&self.record(), member);
                self.write(s, now, new, Purpose::Enter(member));
            }
            return;
        }
        let ready = rules::may_enter(&JoinFacts {
            caps_verified: true,
            ..facts
        });
        let verify = ready && !join.verifying;
        join.verifying |= verify;
        owner.join = Some(join);
        if verify {
            let group = self.id;
            let token = self.token(s, Pending::Verify);
            s.outputs.push_back(Output::VerifyCaps { group, token });
        }
    }

    /// The joiner is in the set.
    pub(super) fn entered(&mut self, s: &mut Shared, now: Instant, member: SetMember) {
        self.forget_forks_of_what_is_lost();
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let join = owner.join.take_if(|j| j.member == member);
        owner.in_sync.insert(member);
        owner.standing = Standing::WithStandby;
        let in_sync = owner.in_sync.clone();
        self.event(s, now, EventKind::InSync(in_sync.clone()));
        self.flip_as_owner(s, None, AfterFlip::Nothing);
        match join {
            Some(join) => self.stream(
                s,
                member.member,
                GroupBody::Joined {
                    join: join.id,
                    in_sync,
                    heartbeat: s.heartbeat_seq,
                },
            ),
            // It was lost while the engine wrote: it is in the set all the same, and has to leave it in order.
            None => self.lose(
                s,
                now,
                BTreeSet::from([member]),
                "was lost while it entered",
                Loss::Silent,
            ),
        }
        s.news = true;
    }

    pub fn caps_verified(&mut self, s: &mut Shared, now: Instant, token: u64, items: Vec<RaiseItem>) {
        if !matches!(self.pending.remove(&token), Some(Pending::Verify)) {
            return;
        }
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let Some(join) = &mut owner.join else { return };
        join.verifying = false;
        join.verified = items.is_empty();
        if join.verified {
            self.join_progress(s, now);
            // Whatever was written or raised since then needs another look.
            if let Phase::Owner(owner) = &mut self.phase
                && let Some(join) = &mut owner.join
            {
                join.verified = false;
            }
        } else {
            // SAs without limits so far: no lost standby knew them, so these are no raises past a lease.
            self.ask_for(s, now, items);
        }
    }
}
