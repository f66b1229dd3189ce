//! Records about the group: which of them count, and what a heartbeat says of it.

use super::{Group, Phase, life};
use crate::io::{EventKind, Output};
use crate::message::{GroupBeat, GroupBody, Heartbeat, MARKS_SINCE, NOT_SAID, SetMember};
use crate::node::Shared;
use crate::rules::{self, EpochId};
use crate::rules_begin;
use model::{Instant, MemberId};
use std::collections::BTreeSet;
use std::time::Duration;

/// A standby that hears of a new owner waits this long for the owner's own word before it joins anew.
const NEW_EPOCH_PATIENCE: Duration = Duration::from_millis(250);

impl Group {
    pub fn received(
        &mut self,
        s: &mut Shared,
        now: Instant,
        from: SetMember,
        epoch: EpochId,
        body: GroupBody,
    ) {
        match body {
            GroupBody::NewEpoch {
                old,
                position,
                in_sync,
            } => return self.new_epoch(s, now, from, epoch, old, position, in_sync),
            GroupBody::JoinRefused { reason } => return s.refuse(now, from.member, &reason),
            GroupBody::HandoverArmed => return self.handover_armed(s, now, from, epoch),
            GroupBody::HandoverAborted { reason } => {
                return self.handover_aborted_by_peer(s, now, from.member, &reason);
            }
            _ => {}
        }
        // Everything else counts in the present epoch only.
        if !rules::same_epoch(self.epoch, epoch) {
            s.refused += 1;
            return;
        }
        // What an owner says counts from the owner only.
        let from_owner = from.member == epoch.owner;
        match body {
            // A request of an earlier term must not pass for "I hold nothing": its sender may be in sync by now.
            GroupBody::JoinRequest { join } => self.join_requested(s, now, from, join),
            GroupBody::JournalAck { position } => self.journal_ack(s, now, from, position),
            GroupBody::RaiseAck { armed, unknown } => self.raise_ack(s, now, from, &armed, &unknown),
            GroupBody::EpochAck { position, doubtful } => self.epoch_ack(s, now, from, position, doubtful),
            GroupBody::SnapshotAck { join, position } => {
                self.snapshot_acknowledged(s, now, from, join, position);
            }
            GroupBody::Guest(body) => {
                let group = self.id;
                s.outputs.push_back(Output::Guest { from, group, body });
            }
            GroupBody::HandoverRequest { to } => self.request = Some(to),
            GroupBody::HandoverFlipped => self.handover_flipped(s, now, from.member),
            GroupBody::HandoverClosing => self.handover_closing(s, from.member),
            GroupBody::HandoverHolding => self.handover_holding(now, from.member),
            GroupBody::HandoverWindows(bytes) => self.handover_windows(s, from.member, bytes),
            GroupBody::HandoverDone => self.handover_done(s, now, from.member),
            GroupBody::ForkTouched { number, touched } => {
                self.fork_told(s, from, number, touched, Vec::new());
            }
            GroupBody::ForkNamed {
                number,
                touched,
                peers,
            } => self.fork_told(s, from, number, touched, peers),
            _ if !from_owner => s.refused += 1,
            GroupBody::Journal { position, entry } => self.journal_entry(s, position, entry),
            GroupBody::Raise { settled, items } => self.raises_wanted(s, settled, items),
            GroupBody::Report(edges) => self.report_heard(s, edges),
            GroupBody::SnapshotBegin {
                join,
                position,
                length,
                claim_above,
                raises_through,
            } => self.snapshot_begins(s, join, position, length, claim_above, raises_through),
            GroupBody::SnapshotChunk(chunk) => self.snapshot_chunk(s, &chunk),
            GroupBody::Joined {
                join,
                in_sync,
                heartbeat,
            } => self.joined(s, now, join, in_sync, heartbeat),
            GroupBody::SoloNotice { join } => self.notice(s, now, join),
            GroupBody::ForkSettled { number } => self.fork_heard_settled(s, now, number),
            GroupBody::HandoverOffer { position, epoch } => self.handover_offered(s, now, position, epoch),
            GroupBody::HandoverRests { epoch, rests } => self.rests_heard(s, epoch, rests),
            GroupBody::NewEpoch { .. }
            | GroupBody::JoinRefused { .. }
            | GroupBody::HandoverArmed
            | GroupBody::HandoverAborted { .. } => {}
        }
    }

    /// What a peer's heartbeat says of this group.
    pub fn beat_heard(
        &mut self,
        s: &mut Shared,
        now: Instant,
        from: SetMember,
        heartbeat: &Heartbeat,
        beat: &GroupBeat,
        newest: bool,
    ) {
        if beat.owner {
            if beat.epoch.owner == from.member && newest {
                self.owner_claims(s, now, from, heartbeat, beat);
            }
        } else if beat.epoch == self.epoch {
            self.confirmation(s, from, heartbeat.echo);
        }
    }

    fn owner_claims(
        &mut self,
        s: &mut Shared,
        now: Instant,
        from: SetMember,
        heartbeat: &Heartbeat,
        beat: &GroupBeat,
    ) {
        let (mine, theirs) = (self.epoch, beat.epoch);
        let set = heartbeat.set_of(beat.in_sync);
        match &mut self.phase {
            Phase::Starting(_) => self.join(s, now, theirs),
            Phase::Owner(owner) => {
                let offered = owner
                    .handover
                    .as_ref()
                    .is_some_and(|h| h.offered_epoch() == Some(theirs));
                let written = owner.journal.written();
                let yields = if Self::solo(s).is_some() {
                    // Both have to judge by the same rule: not before it has said what it speaks.
                    if mine.number == theirs.number && !s.has_said_hello(from.member) {
                        return;
                    }
                    let by_history = s.version_for(from.member) >= MARKS_SINCE;
                    rules_begin::must_yield_to(mine, written, theirs, beat.position, by_history)
                } else {
                    // The engine has let only one of them claim the higher number.
                    rules::must_yield(mine, theirs)
                };
                if yields && !offered {
                    self.yield_to(s, now, theirs);
                }
            }
            Phase::Standby(standby) if theirs == mine => {
                standby.raises.settle(beat.settled);
                standby.wary_until = None;
                let joining = [s.me.member.0, NOT_SAID].contains(&beat.joining);
                if standby.is_forgotten(now, joining || set.contains(&s.me)) {
                    return self.was_excluded(s, now);
                }
                self.owner_names_set(s, now, heartbeat.seq, &set);
            }
            Phase::Standby(standby) if rules::must_yield(mine, theirs) => {
                let listed = set.contains(&s.me) && standby.follows();
                let since = *standby.superseded.get_or_insert(now);
                // Its own word (NewEpoch) says whether this mirror is a part of its history.
                if !listed || now.since(since) > NEW_EPOCH_PATIENCE {
                    self.join_after(s, now, theirs);
                }
            }
            // Only in a pair: an engine keeps the number. One that holds something takes over from the life that has ended.
            Phase::Standby(standby)
                if Self::solo(s).is_some()
                    && !standby.in_sync()
                    && rules_begin::has_begun_below(mine, theirs) =>
            {
                self.join_after(s, now, theirs);
            }
            Phase::Standby(_) => {}
        }
    }

    /// A standby hears of an owner whose history its mirror is no part of. In a pair that owner's claim is all there is;
    /// under an engine this member may still be in the set.
    fn join_after(&mut self, s: &mut Shared, now: Instant, theirs: EpochId) {
        if Self::solo(s).is_some() {
            let group = self.id;
            s.outputs.push_back(Output::DiscardFork { group });
            self.join(s, now, theirs);
        } else {
            self.join_keeping(s, now, theirs);
        }
    }

    /// This member's claim lost.
    pub(super) fn yield_to(&mut self, s: &mut Shared, now: Instant, theirs: EpochId) {
        let (group, mine) = (self.id, self.epoch);
        self.event(s, now, EventKind::ForkLost { mine, theirs });
        self.stop_owning(s);
        s.outputs.push_back(Output::DiscardFork { group });
        self.join(s, now, theirs);
    }

    /// A taker says that it owns the group now.
    #[allow(clippy::too_many_arguments)]
    fn new_epoch(
        &mut self,
        s: &mut Shared,
        now: Instant,
        from: SetMember,
        epoch: EpochId,
        old: EpochId,
        position: u64,
        in_sync: BTreeSet<SetMember>,
    ) {
        if epoch.owner != from.member || epoch < self.epoch {
            s.refused += 1;
            return;
        }
        let (mine, me) = (self.epoch, s.me);
        match &mut self.phase {
            // Said again.
            Phase::Standby(standby) if mine == epoch => {
                if let Some(ack) = standby.epoch_ack() {
                    self.to_owner(s, ack);
                }
            }
            Phase::Standby(standby) if in_sync.contains(&me) && standby.may_follow(mine, old, position) => {
                // A claim leaves the lost owner out, a planned move does not.
                let planned = in_sync.iter().any(|m| m.member == mine.owner);
                standby.follow(in_sync, position);
                self.epoch = epoch;
                self.pending.clear();
                let before = mine;
                self.event(
                    s,
                    now,
                    EventKind::OwnerIs {
                        epoch,
                        before,
                        planned,
                    },
                );
                self.flip_as_standby(s);
                if let Phase::Standby(standby) = &self.phase
                    && let Some(ack) = standby.epoch_ack()
                {
                    self.to_owner(s, ack);
                }
            }
            Phase::Standby(_) if mine < epoch => self.join_after(s, now, epoch),
            // Owners and starters hear of it by heartbeats too, and decide there.
            _ => {}
        }
    }

    /// Whether the present life of a member is the one that a set names.
    pub(super) fn same_life_as_in(s: &Shared, set: Option<&BTreeSet<SetMember>>, member: MemberId) -> bool {
        set.is_none_or(|set| set.contains(&life(s, member)))
    }
}
