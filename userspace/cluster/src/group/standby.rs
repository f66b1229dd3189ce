//! A member that does not own: it joins, mirrors, acknowledges, and follows a taker.

use super::engine::Claim;
use super::handover::LegacyOwner;
use super::rests::Rests;
use super::{Group, Pending, Phase};
use crate::io::{EventKind, Legacy, LegacyPhase, Output};
use crate::message::{GroupBody, RaiseItem, RaiseKey, SetMember};
use crate::node::Shared;
use crate::raises::ArmedRaises;
use crate::rules::{self, EpochId};
use crate::rules_doubt::{Mirror, discards_when_it_asks};
use model::{Epoch, EspSpi, Instant};
use std::collections::BTreeSet;
use std::time::Duration;

/// A join request is repeated after this time.
const JOIN_REPEAT: Duration = Duration::from_millis(250);
/// A joining member that the owner's heartbeats have not named for this long begins anew.
const FORGOTTEN: Duration = Duration::from_millis(500);
/// Longest snapshot: 2^20 SAs of 1 KiB.
const SNAPSHOT_MAX: u64 = 1 << 30;
/// Journal positions count entries: none gets here, and there has to be room behind the one that a snapshot stands for.
const POSITION_MAX: u64 = 1 << 62;

enum Step {
    /// Asked, or about to ask.
    Asking { last: Option<Instant> },
    /// Pieces come.
    Receiving {
        position: u64,
        length: u64,
        bytes: Vec<u8>,
    },
    /// The agent installs it.
    Installing,
    /// Follows the journal, but has not heard that it is in the set.
    Following,
    /// In the in-sync set.
    InSync,
}

/// A mirror of an epoch that another owner has ended, kept until a snapshot replaces it: while the record lists this
/// member, it is one of those that hold all that was committed.
struct Kept {
    epoch: EpochId,
    position: u64,
    doubtful: Vec<RaiseKey>,
}

pub(crate) struct Standby {
    step: Step,
    kept: Option<Kept>,
    pub set: Option<BTreeSet<SetMember>>,
    /// Number of the join, 0 after a handover.
    join: u64,
    /// Number that a claim must pass (pair engine).
    pub claim_above: Epoch,
    /// The owner's heartbeat before which its view of the set does not include this member.
    joined_at: u64,
    /// Last position given to the agent.
    applied: u64,
    /// Last position armed.
    pub armed: u64,
    pub raises: ArmedRaises,
    /// The old owner's part in a planned handover.
    pub legacy: Option<LegacyOwner>,
    /// What the owner leaves to this member in a planned handover.
    pub(super) rests: Option<Rests>,
    /// The epoch in which this member owned, where it gave the group to its present owner.
    pub given: Option<EpochId>,
    /// Since when the owner is lost.
    pub lost: Option<Instant>,
    /// It is heard, but does not hear this member.
    pub deaf_owner: bool,
    /// After a pause of this member: no claim before (pair engine). An engine would say whether it is in the set still.
    pub wary_until: Option<Instant>,
    /// A claim at the ownership engine.
    pub claim: Option<Claim>,
    /// Since when the owner says that it does not own the group (any more).
    pub disowned: Option<Instant>,
    /// Since when the owner counts this member neither as joining nor as in sync.
    forgotten: Option<Instant>,
    /// Since when another member is heard to own the group, without a word of its own to this one.
    pub superseded: Option<Instant>,
}

impl Standby {
    pub fn joining(join: u64) -> Self {
        Self {
            join,
            claim_above: Epoch(0),
            step: Step::Asking { last: None },
            kept: None,
            set: None,
            joined_at: 0,
            applied: 0,
            armed: 0,
            raises: ArmedRaises::default(),
            legacy: None,
            rests: None,
            given: None,
            lost: None,
            deaf_owner: false,
            wary_until: None,
            claim: None,
            disowned: None,
            forgotten: None,
            superseded: None,
        }
    }

    /// Whether the owner has forgotten a join that this member waits for: it believed for a moment that this member was
    /// gone. `counted`: its heartbeat names this member.
    pub fn is_forgotten(&mut self, now: Instant, counted: bool) -> bool {
        if counted || matches!(self.step, Step::Asking { .. } | Step::InSync) {
            self.forgotten = None;
            return false;
        }
        now.since(*self.forgotten.get_or_insert(now)) > FORGOTTEN
    }

    /// The old owner after a planned handover: it holds everything up to `position`.
    pub fn after_handover(set: BTreeSet<SetMember>, position: u64, legacy: LegacyOwner) -> Self {
        Self {
            // The taker's epoch is above all that this member knew of.
            step: Step::InSync,
            set: Some(set),
            applied: position,
            armed: position,
            legacy: Some(legacy),
            ..Self::joining(0)
        }
    }

    pub fn in_sync(&self) -> bool {
        matches!(self.step, Step::InSync)
    }

    /// What this member holds of the group.
    pub fn holds(&self) -> Mirror {
        if self.follows() || self.kept.is_some() {
            Mirror::Whole
        } else {
            Mirror::None
        }
    }

    /// The epoch that the mirror belongs to, and what is in doubt in it.
    pub fn history(&self, epoch: EpochId) -> (EpochId, Vec<RaiseKey>) {
        match &self.kept {
            Some(kept) => (kept.epoch, kept.doubtful.clone()),
            None => (epoch, self.raises.doubtful()),
        }
    }

    /// Where the mirror ends.
    pub fn position(&self) -> u64 {
        self.kept.as_ref().map_or(self.armed, |kept| kept.position)
    }

    /// The mirror as something to be kept while a join goes on.
    fn keep(&self, epoch: EpochId) -> Option<Kept> {
        match &self.kept {
            Some(kept) => Some(Kept {
                epoch: kept.epoch,
                position: kept.position,
                doubtful: kept.doubtful.clone(),
            }),
            None if self.follows() && !discards_when_it_asks() => Some(Kept {
                epoch,
                position: self.armed,
                doubtful: self.raises.doubtful(),
            }),
            None => None,
        }
    }

    /// Asks to join once more, because pieces of the last join may be missing. That the owner is lost, and what is being done
    /// about it, stays: the engine may have this member in the set already, and then it is the one to go on.
    fn ask_again(&mut self, join: u64, epoch: EpochId) {
        *self = Self {
            kept: self.keep(epoch),
            lost: self.lost,
            deaf_owner: self.deaf_owner,
            claim: self.claim.take(),
            disowned: self.disowned,
            superseded: self.superseded,
            ..Self::joining(join)
        };
    }

    pub fn follows(&self) -> bool {
        matches!(self.step, Step::Following | Step::InSync)
    }

    pub fn may_follow(&self, mine: EpochId, old: EpochId, position: u64) -> bool {
        self.follows()
            && self.legacy.is_none()
            && rules::may_follow(mine, self.applied, self.armed, old, position)
    }

    /// Follows a taker: its set, and versions that begin anew. What was in doubt stays so until the taker has stated it.
    pub fn follow(&mut self, set: BTreeSet<SetMember>, position: u64) {
        self.step = Step::InSync;
        self.set = Some(set);
        self.join = 0;
        self.joined_at = 0;
        self.armed = position;
        self.raises.next_epoch();
        self.given = None;
        self.lost = None;
        self.deaf_owner = false;
        self.claim = None;
        self.disowned = None;
        self.superseded = None;
    }

    /// What is said to a taker that this member follows.
    pub fn epoch_ack(&self) -> Option<GroupBody> {
        self.in_sync().then(|| GroupBody::EpochAck {
            position: self.armed,
            doubtful: self.raises.doubtful(),
        })
    }
}

impl Group {
    /// Becomes a standby of whoever owns `epoch`, with nothing in its mirror.
    pub(super) fn join(&mut self, s: &mut Shared, now: Instant, epoch: EpochId) {
        let (before, planned) = (self.epoch, false);
        self.event(
            s,
            now,
            EventKind::OwnerIs {
                epoch,
                before,
                planned,
            },
        );
        self.epoch = epoch;
        self.pending.clear();
        self.joins += 1;
        self.phase = Phase::Standby(Box::new(Standby::joining(self.joins)));
        self.flip_as_standby(s);
        self.tick_standby(s, now);
    }

    /// Another member owns the group, and this mirror is no part of its history: joins anew, and keeps what it holds until
    /// it is out of the set and has something better.
    pub(super) fn join_keeping(&mut self, s: &mut Shared, now: Instant, epoch: EpochId) {
        let kept = match &self.phase {
            Phase::Standby(standby) => standby.keep(self.epoch),
            _ => None,
        };
        self.join(s, now, epoch);
        if let Phase::Standby(standby) = &mut self.phase {
            standby.kept = kept;
        }
    }

    /// As [`Group::join_keeping`], with a mirror that this member holds as the owner that it was.
    pub(super) fn join_with(
        &mut self,
        s: &mut Shared,
        now: Instant,
        epoch: EpochId,
        old: EpochId,
        position: u64,
        doubtful: Vec<RaiseKey>,
    ) {
        self.join(s, now, epoch);
        if let Phase::Standby(standby) = &mut self.phase {
            standby.kept = Some(Kept {
                epoch: old,
                position,
                doubtful,
            });
        }
    }

    /// The owner says that this member's place, or join, is void.
    pub(super) fn notice(&mut self, s: &mut Shared, now: Instant, join: u64) {
        if let Phase::Standby(standby) = &self.phase
            && standby.join == join
        {
            self.was_excluded(s, now);
        }
    }

    /// Words that name the owner, so that what arrives here takes the second hop.
    pub(super) fn flip_as_standby(&mut self, s: &mut Shared) {
        let owner = self.epoch.owner;
        let given = match &self.phase {
            Phase::Standby(standby) => standby.given,
            _ => None,
        };
        let legacy = given.map(|epoch| Legacy {
            epoch,
            phase: LegacyPhase::Given,
        });
        self.flip(
            s,
            Some(owner),
            false,
            legacy,
            Instant(0),
            super::AfterFlip::Nothing,
        );
    }

    pub(super) fn tick_standby(&mut self, s: &mut Shared, now: Instant) {
        let owner = self.epoch.owner;
        let linked = s.peers.get(&owner).is_some_and(|p| !p.links.is_empty());
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        if let Step::Asking { last } = &mut standby.step
            && linked
            && last.is_none_or(|at| now.since(at) >= JOIN_REPEAT)
        {
            *last = Some(now);
            let join = standby.join;
            self.to_owner(s, GroupBody::JoinRequest { join });
        }
        self.legacy_progress(s, now);
        self.look_for_owner(s, now);
        self.does_the_owner_hear(s, now);
        self.try_to_take_over(s, now);
        self.claim_progress(s, now);
    }

    /// The owner does not count on this member any more.
    pub(super) fn was_excluded(&mut self, s: &mut Shared, now: Instant) {
        let Phase::Standby(standby) = &self.phase else {
            return;
        };
        if matches!(standby.step, Step::Asking { .. }) {
            return;
        }
        self.event(s, now, EventKind::WasExcluded);
        let epoch = self.epoch;
        self.join(s, now, epoch);
    }

    /// A heartbeat of the owner in this epoch names the set.
    pub(super) fn owner_names_set(
        &mut self,
        s: &mut Shared,
        now: Instant,
        seq: u64,
        set: &BTreeSet<SetMember>,
    ) {
        let me = s.me;
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        if !standby.in_sync() || seq <= standby.joined_at {
            return;
        }
        if set.contains(&me) {
            standby.set = Some(set.clone());
        } else {
            self.was_excluded(s, now);
        }
    }

    pub(super) fn joined(
        &mut self,
        s: &mut Shared,
        now: Instant,
        join: u64,
        set: BTreeSet<SetMember>,
        heartbeat: u64,
    ) {
        let me = s.me;
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        if !matches!(standby.step, Step::Following) || standby.join != join || !set.contains(&me) {
            return;
        }
        standby.step = Step::InSync;
        standby.joined_at = heartbeat;
        standby.set = Some(set.clone());
        // It has heard all that was said while this member joined.
        if let Some(p) = s.peers.get_mut(&self.epoch.owner) {
            p.hearing.forgive();
        }
        self.event(s, now, EventKind::InSync(set));
    }

    pub(super) fn snapshot_begins(
        &mut self,
        s: &mut Shared,
        join: u64,
        position: u64,
        length: u64,
        claim_above: Epoch,
        raises_through: u64,
    ) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        // Only the answer to the present request: an older one may still be on its way.
        let absurd = length > SNAPSHOT_MAX || position > POSITION_MAX;
        if absurd || standby.join != join || !matches!(standby.step, Step::Asking { .. }) {
            s.refused += 1;
            return;
        }
        standby.claim_above = claim_above;
        standby.raises.start_after(raises_through);
        standby.set = None;
        standby.step = Step::Receiving {
            position,
            length,
            bytes: Vec::new(),
        };
        if length == 0 {
            self.snapshot_complete(s);
        }
    }

    pub(super) fn snapshot_chunk(&mut self, s: &mut Shared, chunk: &[u8]) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        let Step::Receiving { length, bytes, .. } = &mut standby.step else {
            return;
        };
        bytes.extend_from_slice(chunk);
        if bytes.len() as u64 >= *length {
            self.snapshot_complete(s);
        }
    }

    fn snapshot_complete(&mut self, s: &mut Shared) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        let Step::Receiving {
            position,
            bytes,
            length,
        } = std::mem::replace(&mut standby.step, Step::Installing)
        else {
            return;
        };
        if bytes.len() as u64 != length {
            s.refused += 1;
            self.joins += 1;
            standby.ask_again(self.joins, self.epoch);
            return;
        }
        standby.applied = position;
        standby.armed = position;
        standby.kept = None;
        let group = self.id;
        let token = self.token(s, Pending::Snapshot { position });
        s.outputs
            .push_back(Output::InstallSnapshot { group, token, bytes });
    }

    pub(super) fn snapshot_installed(&mut self, s: &mut Shared, position: u64) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        if !matches!(standby.step, Step::Installing) {
            return;
        }
        standby.step = Step::Following;
        let join = standby.join;
        let armed = standby.armed;
        self.to_owner(s, GroupBody::SnapshotAck { join, position });
        if armed > position {
            // The tail was armed meanwhile, and its acknowledgements counted for nothing before this one.
            self.to_owner(s, GroupBody::JournalAck { position: armed });
        }
    }

    pub(super) fn journal_entry(&mut self, s: &mut Shared, position: u64, entry: Vec<u8>) {
        let epoch = self.epoch;
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        if !standby.follows() && !matches!(standby.step, Step::Installing) {
            return;
        }
        if position <= standby.applied {
            // Sent again after a reconnection.
            let armed = standby.armed;
            self.to_owner(s, GroupBody::JournalAck { position: armed });
            return;
        }
        if position != standby.applied + 1 {
            // A gap: the stream was cut. The owner sends from the last acknowledged position when it is back.
            s.refused += 1;
            return;
        }
        standby.applied = position;
        let token = self.token(s, Pending::Entry(position));
        let group = self.id;
        s.outputs.push_back(Output::Apply {
            group,
            token,
            position,
            epoch,
            entry,
        });
    }

    pub(super) fn entry_armed(&mut self, s: &mut Shared, position: u64) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        standby.armed = standby.armed.max(position);
        let armed = standby.armed;
        self.to_owner(s, GroupBody::JournalAck { position: armed });
    }

    /// An entry was written against something else than this member holds: what it holds is nothing to take over with.
    pub fn does_not_fit(&mut self, s: &mut Shared, now: Instant, token: u64) {
        let entry = matches!(self.pending.remove(&token), Some(Pending::Entry(_)));
        if entry && matches!(self.phase, Phase::Standby(_)) {
            let epoch = self.epoch;
            self.join(s, now, epoch);
        }
    }

    pub(super) fn raises_wanted(&mut self, s: &mut Shared, settled: u64, items: Vec<(u64, RaiseItem)>) {
        let (group, epoch) = (self.id, self.epoch);
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        // While the old owner still serves under its own ceilings, limits of the new epoch would stop it: the taker asks
        // again in a moment.
        if !standby.follows() || standby.legacy.is_some() {
            return;
        }
        standby.raises.settle(settled);
        let wanted: Vec<(u64, RaiseItem)> = items
            .into_iter()
            .filter(|(version, item)| standby.raises.wanted(&item.key(), *version))
            .collect();
        if wanted.is_empty() {
            return;
        }
        let versions: Vec<(u64, RaiseKey)> = wanted
            .iter()
            .map(|(version, item)| (*version, item.key()))
            .collect();
        for (version, key) in &versions {
            // In doubt from now on: a takeover may come before it is armed, or after.
            standby.raises.doubt(*key, *version);
        }
        let items = wanted.into_iter().map(|(_, item)| item).collect();
        let token = self.token(s, Pending::Raises(versions));
        s.outputs.push_back(Output::ApplyRaises {
            group,
            token,
            epoch,
            items,
        });
    }

    pub(super) fn raises_armed(
        &mut self,
        s: &mut Shared,
        versions: Vec<(u64, RaiseKey)>,
        not_here: &[RaiseKey],
    ) {
        let (owner, epoch) = (self.epoch.owner, self.epoch);
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        let (unknown, armed): (Vec<_>, Vec<_>) =
            versions.into_iter().partition(|(_, key)| not_here.contains(key));
        for (version, key) in &armed {
            standby.raises.armed(*key, *version);
        }
        s.datagrams(owner, self.id, epoch, GroupBody::RaiseAck { armed, unknown });
    }

    pub(super) fn report_heard(&mut self, s: &mut Shared, edges: Vec<(u32, EspSpi, u64)>) {
        let Phase::Standby(standby) = &self.phase else {
            return;
        };
        if standby.follows() {
            s.outputs.push_back(Output::ApplyReport { edges });
        }
    }

    /// The stream to the owner is new.
    pub(super) fn stream_to_owner(&mut self, s: &mut Shared) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        match standby.step {
            Step::InSync => {
                let position = standby.armed;
                let follows = standby.epoch_ack();
                self.to_owner(s, GroupBody::JournalAck { position });
                if let Some(ack) = follows {
                    self.to_owner(s, ack);
                }
                let owner = self.epoch.owner;
                self.handover_again(s, owner);
            }
            // Pieces may be missing: from the beginning.
            _ => {
                self.joins += 1;
                standby.ask_again(self.joins, self.epoch);
            }
        }
    }
}
