//! A member joins, seen from the owner: cap, snapshot, tail, verify, enter.

use super::owner::{Loss, Owner};
use super::{AfterFlip, Node, Pending, Phase};
use crate::io::{EventKind, Output};
use crate::message::{Body, CHUNK, RaiseItem, SetMember};
use crate::rules::{self, JoinFacts, Standing};
use model::Instant;

#[derive(PartialEq, Eq)]
enum Step {
    /// The agent caps the limits and takes the snapshot.
    Capping,
    /// Sent; the tail of the journal follows as it is written.
    Sent { position: u64 },
    /// The joiner's maps hold the snapshot.
    Armed,
}

pub(super) struct Join {
    pub(super) member: SetMember,
    /// The joiner's number for it.
    pub(super) id: u64,
    step: Step,
    acknowledged: u64,
    verifying: bool,
    verified: bool,
}

impl Join {
    /// Whether entries written now are part of what the joiner needs beyond its snapshot.
    pub(super) fn wants_tail(&self) -> bool {
        self.step != Step::Capping
    }

    pub(super) fn acknowledged(&self) -> u64 {
        match self.step {
            Step::Capping => 0,
            Step::Sent { position } => position,
            Step::Armed => self.acknowledged,
        }
    }

    pub(super) fn acknowledge(&mut self, position: u64) {
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

impl Node {
    pub(super) fn join_requested(&mut self, now: Instant, from: SetMember, id: u64) {
        let theirs = self.peer.as_ref().and_then(|p| p.digest);
        if theirs != Some(self.config.digest) {
            if theirs.is_some() {
                self.event(now, EventKind::PolicyDiffers(from.member));
            }
            let reason =
                "the policies of the two members differ: compare their [[connections]] and [addresses]";
            self.send_stream(Body::JoinRefused {
                reason: reason.to_owned(),
            });
            return;
        }
        let Phase::Owner(owner) = &self.phase else { return };
        // A repeated request, or one from before the last join.
        if owner.handover.is_some() || owner.admitted.is_some_and(|last| (from, id) <= last) {
            return;
        }
        if owner.in_sync.contains(&from) || owner.join.is_some() {
            // This very life says that it holds nothing: it will never adopt, so nothing of its past needs fencing.
            self.standby_lost(now, "asks to join anew", Loss::GaveUp);
        }
        self.event(now, EventKind::Joining(from));
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        owner.admitted = Some((from, id));
        // From here on its acknowledgement is required for every raise.
        owner.raises.ask_also(from);
        owner.join = Some(Join {
            member: from,
            id,
            step: Step::Capping,
            acknowledged: 0,
            verifying: false,
            verified: false,
        });
        let token = self.token(Pending::Cap);
        self.outputs.push_back(Output::CapLimits { token });
    }

    pub(super) fn snapshot_taken(&mut self, _now: Instant, token: u64, bytes: Vec<u8>) {
        if !matches!(self.pending.remove(&token), Some(Pending::Cap)) {
            return;
        }
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let position = owner.journal.written();
        let Some(join) = owner.join.as_mut().filter(|j| j.step == Step::Capping) else {
            return;
        };
        join.step = Step::Sent { position };
        let (join, claim_above) = (join.id, owner.claim_above);
        let raises_through = owner.raises.version();
        owner.raises.renumber();
        self.send_stream(Body::SnapshotBegin {
            join,
            claim_above,
            raises_through,
            position,
            length: bytes.len() as u64,
        });
        for chunk in bytes.chunks(CHUNK) {
            self.send_stream(Body::SnapshotChunk(chunk.to_vec()));
        }
    }

    pub(super) fn snapshot_acknowledged(&mut self, now: Instant, from: SetMember, id: u64, position: u64) {
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
        self.join_progress(now);
    }

    /// Enters the joiner, or does what is missing for it.
    pub(super) fn join_progress(&mut self, now: Instant) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let Some(mut join) = owner.join.take() else { return };
        let facts = join.facts(owner);
        if rules::may_enter(&facts) {
            owner.in_sync.insert(join.member);
            owner.acknowledged.insert(join.member, join.acknowledged);
            owner.standing = Standing::WithStandby;
            let in_sync = owner.in_sync.clone();
            self.event(now, EventKind::InSync(in_sync.clone()));
            self.flip_as_owner(None, AfterFlip::Nothing);
            self.send_stream(Body::Joined {
                join: join.id,
                in_sync,
                heartbeat: self.heartbeat_seq,
            });
            return;
        }
        let ready = rules::may_enter(&JoinFacts {
            caps_verified: true,
            ..facts
        });
        if ready && !join.verifying {
            join.verifying = true;
            owner.join = Some(join);
            let token = self.token(Pending::Verify);
            self.outputs.push_back(Output::VerifyCaps { token });
            return;
        }
        owner.join = Some(join);
    }

    pub(super) fn caps_verified(&mut self, now: Instant, token: u64, items: Vec<RaiseItem>) {
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
            self.join_progress(now);
            // Whatever was written or raised since then needs another look.
            if let Phase::Owner(owner) = &mut self.phase
                && let Some(join) = &mut owner.join
            {
                join.verified = false;
            }
        } else {
            // SAs without limits so far: no lost standby knew them, so these are no raises past a lease.
            self.ask_for(now, items);
        }
    }
}
