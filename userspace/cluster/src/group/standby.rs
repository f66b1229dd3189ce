//! A member that does not own: it joins, mirrors, acknowledges, and takes over when the owner is lost.

use super::handover::LegacyOwner;
use super::owner::Loss;
use super::{Node, Pending, Phase};
use crate::io::{EventKind, Output};
use crate::message::{Body, RaiseItem, RaiseKey, SetMember};
use crate::raises::ArmedRaises;
use crate::rules::{self, EpochId};
use model::{Epoch, EspSpi, Incarnation, Instant};
use std::collections::BTreeSet;
use std::time::Duration;

/// A join request is repeated after this time.
const JOIN_REPEAT: Duration = Duration::from_millis(250);
/// Longest snapshot: 2^20 SAs of 1 KiB.
const SNAPSHOT_MAX: u64 = 1 << 30;

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
    /// Follows the journal, but is not in the set.
    Following,
    /// In the in-sync set.
    InSync,
}

pub(super) struct Standby {
    step: Step,
    pub(super) set: Option<BTreeSet<SetMember>>,
    /// Number of the join, 0 after a handover.
    join: u64,
    /// Number that a claim must pass.
    claim_above: Epoch,
    /// The owner's heartbeat before which its view of the set does not include this member.
    joined_at: u64,
    /// Last position given to the agent.
    applied: u64,
    /// Last position armed.
    pub(super) armed: u64,
    raises: ArmedRaises,
    /// The old owner's part in a planned handover.
    pub(super) legacy: Option<LegacyOwner>,
}

impl Standby {
    pub(super) fn joining(join: u64) -> Self {
        Self {
            join,
            claim_above: Epoch(0),
            step: Step::Asking { last: None },
            set: None,
            joined_at: 0,
            applied: 0,
            armed: 0,
            raises: ArmedRaises::default(),
            legacy: None,
        }
    }

    /// The old owner after a planned handover: it holds everything up to `position`.
    pub(super) fn after_handover(set: BTreeSet<SetMember>, position: u64, legacy: LegacyOwner) -> Self {
        Self {
            join: 0,
            // The taker's epoch is above all that this member knew of.
            claim_above: Epoch(0),
            step: Step::InSync,
            set: Some(set),
            joined_at: 0,
            applied: position,
            armed: position,
            raises: ArmedRaises::default(),
            legacy: Some(legacy),
        }
    }

    pub(super) fn in_sync(&self) -> bool {
        matches!(self.step, Step::InSync)
    }

    fn follows(&self) -> bool {
        matches!(self.step, Step::Following | Step::InSync)
    }
}

impl Node {
    /// Becomes a standby of whoever owns `epoch`, with nothing in its mirror.
    pub(super) fn join(&mut self, now: Instant, epoch: EpochId) {
        self.event(now, EventKind::OwnerIs(epoch));
        self.epoch = epoch;
        self.pending.clear();
        self.joins += 1;
        self.phase = Phase::Standby(Box::new(Standby::joining(self.joins)));
        self.flip_as_standby();
        self.tick_standby(now);
    }

    /// Words that name the owner, so that what arrives here takes the second hop.
    pub(super) fn flip_as_standby(&mut self) {
        let owner = self.epoch.owner;
        self.flip(Some(owner), false, None, Instant(0), super::AfterFlip::Nothing);
    }

    pub(super) fn tick_standby(&mut self, now: Instant) {
        let linked = self.peer.as_ref().is_some_and(|p| !p.links.is_empty());
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        if let Step::Asking { last } = &mut standby.step
            && linked
            && last.is_none_or(|at| now.since(at) >= JOIN_REPEAT)
        {
            *last = Some(now);
            let join = standby.join;
            self.send_stream(Body::JoinRequest { join });
        }
        self.legacy_progress(now);
    }

    /// The owner is silent, or its life is over.
    pub(super) fn owner_lost(&mut self, now: Instant) {
        let Phase::Standby(standby) = &self.phase else {
            return;
        };
        let old = self.epoch;
        match rules::takeover(
            old,
            standby.claim_above,
            standby.set.as_ref(),
            self.me,
            &BTreeSet::from([self.me]),
            standby.armed,
        ) {
            Ok(plan) => {
                self.claim(
                    now,
                    plan.epoch,
                    plan.from,
                    plan.in_sync,
                    plan.standing,
                    plan.position,
                );
            }
            Err(_) => {
                // It may be serving where this member cannot see it: nothing of it is adopted.
                self.outputs.push_back(Output::DiscardFork);
                self.pending.clear();
                self.phase = Phase::Starting { since: now };
            }
        }
    }

    /// The owner does not count on this member any more.
    pub(super) fn was_excluded(&mut self, now: Instant) {
        let Phase::Standby(standby) = &self.phase else {
            return;
        };
        if matches!(standby.step, Step::Asking { .. }) {
            return;
        }
        self.event(now, EventKind::WasExcluded);
        let epoch = self.epoch;
        self.join(now, epoch);
    }

    /// A heartbeat of the owner in this epoch names the set.
    pub(super) fn owner_names_set(&mut self, now: Instant, seq: u64, set: &BTreeSet<SetMember>) {
        let me = self.me;
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        if !standby.in_sync() || seq <= standby.joined_at {
            return;
        }
        if set.contains(&me) {
            standby.set = Some(set.clone());
        } else {
            self.was_excluded(now);
        }
    }

    pub(super) fn joined(&mut self, now: Instant, join: u64, set: BTreeSet<SetMember>, heartbeat: u64) {
        let me = self.me;
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        if !matches!(standby.step, Step::Following) || standby.join != join || !set.contains(&me) {
            return;
        }
        standby.step = Step::InSync;
        standby.joined_at = heartbeat;
        standby.set = Some(set.clone());
        self.event(now, EventKind::InSync(set));
    }

    pub(super) fn snapshot_begins(
        &mut self,
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
        if length > SNAPSHOT_MAX || standby.join != join || !matches!(standby.step, Step::Asking { .. }) {
            self.refused += 1;
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
            self.snapshot_complete();
        }
    }

    pub(super) fn snapshot_chunk(&mut self, chunk: &[u8]) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        let Step::Receiving { length, bytes, .. } = &mut standby.step else {
            return;
        };
        bytes.extend_from_slice(chunk);
        if bytes.len() as u64 >= *length {
            self.snapshot_complete();
        }
    }

    fn snapshot_complete(&mut self) {
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
            self.refused += 1;
            self.joins += 1;
            **standby = Standby::joining(self.joins);
            return;
        }
        standby.applied = position;
        standby.armed = position;
        let token = self.token(Pending::Snapshot { position });
        self.outputs.push_back(Output::InstallSnapshot { token, bytes });
    }

    pub(super) fn snapshot_installed(&mut self, position: u64) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        if !matches!(standby.step, Step::Installing) {
            return;
        }
        standby.step = Step::Following;
        let join = standby.join;
        let armed = standby.armed;
        self.send_stream(Body::SnapshotAck { join, position });
        if armed > position {
            // The tail was armed meanwhile, and its acknowledgements counted for nothing before this one.
            self.send_stream(Body::JournalAck { position: armed });
        }
    }

    pub(super) fn journal_entry(&mut self, position: u64, entry: Vec<u8>) {
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
            self.send_stream(Body::JournalAck { position: armed });
            return;
        }
        if position != standby.applied + 1 {
            // A gap: the stream was cut. The owner sends from the last acknowledged position when it is back.
            self.refused += 1;
            return;
        }
        standby.applied = position;
        let token = self.token(Pending::Entry(position));
        self.outputs.push_back(Output::Apply {
            token,
            position,
            epoch,
            entry,
        });
    }

    pub(super) fn entry_armed(&mut self, position: u64) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        standby.armed = standby.armed.max(position);
        let armed = standby.armed;
        self.send_stream(Body::JournalAck { position: armed });
    }

    pub(super) fn raises_wanted(&mut self, items: Vec<(u64, RaiseItem)>) {
        let epoch = self.epoch;
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        // While the old owner still serves under its own ceilings, limits of the new epoch would stop it: the taker asks
        // again in a moment.
        if !standby.follows() || standby.legacy.is_some() {
            return;
        }
        let wanted: Vec<(u64, RaiseItem)> = items
            .into_iter()
            .filter(|(version, item)| standby.raises.wanted(&item.key(), *version))
            .collect();
        if wanted.is_empty() {
            return;
        }
        let versions = wanted
            .iter()
            .map(|(version, item)| (*version, item.key()))
            .collect();
        let items = wanted.into_iter().map(|(_, item)| item).collect();
        let token = self.token(Pending::Raises(versions));
        self.outputs
            .push_back(Output::ApplyRaises { token, epoch, items });
    }

    pub(super) fn raises_armed(&mut self, versions: Vec<(u64, RaiseKey)>, unknown: &[RaiseKey]) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        let armed: Vec<(u64, RaiseKey)> = versions
            .into_iter()
            .filter(|(_, key)| !unknown.contains(key))
            .collect();
        for (version, key) in &armed {
            standby.raises.armed(*key, *version);
        }
        if !armed.is_empty() {
            self.send_datagram_everywhere(&Body::RaiseAck(armed));
        }
    }

    pub(super) fn report_heard(&mut self, edges: Vec<(u32, EspSpi, u64)>) {
        let Phase::Standby(standby) = &self.phase else {
            return;
        };
        if standby.follows() {
            self.outputs.push_back(Output::ApplyReport { edges });
        }
    }

    /// The stream to the owner is new.
    pub(super) fn standby_reconnected(&mut self) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        match standby.step {
            Step::InSync => {
                let armed = standby.armed;
                self.send_stream(Body::JournalAck { position: armed });
            }
            // Pieces may be missing: from the beginning.
            _ => {
                self.joins += 1;
                **standby = Standby::joining(self.joins);
            }
        }
    }

    /// The peer has another incarnation than before.
    pub(super) fn peer_restarted(&mut self, now: Instant, was: Incarnation) {
        let Some(member) = self.peer.as_ref().map(|p| p.member) else {
            return;
        };
        match &self.phase {
            Phase::Owner(owner) => {
                let old = SetMember {
                    member,
                    incarnation: was,
                };
                let involved =
                    owner.in_sync.contains(&old) || owner.join.as_ref().is_some_and(|j| j.member == old);
                if involved {
                    self.standby_lost(now, "its agent was restarted", Loss::NewLife);
                }
            }
            Phase::Standby(_) if self.epoch.owner == member => self.owner_lost(now),
            _ => {}
        }
    }
}
