//! A planned takeover: nothing is lost, because both members serve for a moment, each its own range of numbers.
//!
//! ```text
//! owner                                   taker
//!   | freeze; everything acknowledged;      |
//!   | under an engine: the move is written, |
//!   | while all goes on; freeze again       |
//!   | (leases of SAs that a lost standby    |
//!   | knew are cut short)                   |
//!   |----------- (HandoverRests) ---------->| (has what was cut off)
//!   |------------ HandoverOffer ----------->| shadow armed: owner words name it, epoch + 1, legacy open
//!   |<----------- HandoverArmed ------------|
//!   | words name the taker; serves numbers  |
//!   | up to its ceilings, second-hops others|
//!   |------------ HandoverFlipped --------->| announces, resumes IKE
//!   |          (frames in flight drain)     |
//!   |------------ HandoverClosing --------->| holds what is up to the ceilings
//!   |<----------- HandoverHolding ----------|
//!   | closes, drains its CPUs               |
//!   |------------ HandoverWindows --------->| merges, runs what it held
//!   |<----------- HandoverDone -------------|
//! ```

use super::engine::Claim;
use super::follow::Follow;
use super::owner::Owner;
use super::set::Purpose;
use super::standby::Standby;
use super::{AfterFlip, Group, Pending, Phase, life};
use crate::io::{EventKind, Legacy, LegacyPhase, Output, Refused};
use crate::message::{GroupBody, LeaseRest, SetMember};
use crate::node::Shared;
use crate::rules::{self, EpochId, Standing};
use model::{Instant, MemberId};
use std::collections::BTreeSet;
use std::time::Duration;

/// The old owner serves on for this long after its words name the taker: frames that were under way arrive.
const LEGACY_OPEN: Duration = Duration::from_millis(20);
/// After the taker holds, second-hopped frames that were under way arrive within this time.
const LEGACY_DRAIN: Duration = Duration::from_millis(5);
/// A handover that takes longer than this is given up.
const GIVE_UP: Duration = Duration::from_millis(2000);

/// Where a handover stands, at the member that owns.
pub(crate) enum OwnerHandover {
    /// Waits until everything is acknowledged.
    Freezing {
        since: Instant,
        to: MemberId,
        /// The engine has the taker as the owner of this epoch already.
        written: Option<EpochId>,
    },
    /// Waits for the ownership engine. From here on it can end in one way only: the engine's. However long that takes, it
    /// stops no traffic: the owner goes on, and freezes again when it has the answer.
    Moving { to: MemberId },
    /// Waits for the agent to leave the taker a part of the leases that nobody may raise.
    Leaving {
        since: Instant,
        to: MemberId,
        next: EpochId,
    },
    /// The taker may arm.
    Offered {
        since: Instant,
        to: MemberId,
        epoch: EpochId,
        /// What it is left.
        rests: Vec<LeaseRest>,
    },
    /// This member is the taker: it owns, and the old owner still serves its range.
    Taking {
        since: Instant,
        old: EpochId,
        /// Announced, and IKE resumed.
        serving: bool,
        merging: bool,
    },
}

impl OwnerHandover {
    pub fn is_frozen(&self) -> bool {
        !matches!(self, Self::Taking { .. } | Self::Moving { .. })
    }

    /// Whether proposals wait for its end.
    pub fn holds(&self) -> bool {
        !matches!(self, Self::Moving { .. })
    }

    /// The other member.
    pub fn partner(&self) -> MemberId {
        match self {
            Self::Freezing { to, .. }
            | Self::Moving { to }
            | Self::Leaving { to, .. }
            | Self::Offered { to, .. } => *to,
            Self::Taking { old, .. } => old.owner,
        }
    }

    /// What is left to do where the other member is lost midway: a taker that was not told that it serves, serves now.
    pub(super) fn after_loss(self) -> AfterFlip {
        match self {
            Self::Taking { serving: false, .. } => AfterFlip::ServeAndAnnounce,
            _ => AfterFlip::Nothing,
        }
    }

    /// Whether the ownership engine has the taker as owner, or may have.
    pub fn is_given_away(&self) -> bool {
        matches!(
            self,
            Self::Moving { .. } | Self::Offered { .. } | Self::Freezing { written: Some(_), .. }
        )
    }

    pub fn offered_epoch(&self) -> Option<EpochId> {
        match self {
            Self::Offered { epoch, .. }
            | Self::Freezing {
                written: Some(epoch), ..
            } => Some(*epoch),
            _ => None,
        }
    }
}

/// The old owner's last steps.
pub(crate) struct LegacyOwner {
    step: LegacyStep,
    old: EpochId,
}

enum LegacyStep {
    Open { since: Instant },
    Closing { since: Instant },
    Holding { since: Instant },
    Closed { since: Instant },
}

impl Group {
    /// Whether a planned takeover by `to` could begin.
    pub fn may_move(&self, s: &Shared, to: MemberId) -> Result<(), Refused> {
        let Phase::Owner(owner) = &self.phase else {
            return Err(Refused::NotOwner);
        };
        if to == s.me.member {
            return Err(Refused::AlreadyOwner(to));
        }
        if owner.handover.is_some() || owner.follow.is_some() {
            return Err(Refused::Handover);
        }
        if !owner.in_sync.contains(&life(s, to)) {
            return Err(Refused::NotInSync(to));
        }
        if s.peers.get(&to).is_some_and(|p| !p.healthy) {
            return Err(Refused::NotHealthy(to));
        }
        Ok(())
    }

    pub fn start_handover(&mut self, s: &mut Shared, now: Instant, to: MemberId) -> Result<(), Refused> {
        self.may_move(s, to)?;
        if let Phase::Owner(owner) = &mut self.phase {
            owner.handover = Some(OwnerHandover::Freezing {
                since: now,
                to,
                written: None,
            });
        }
        self.handover_progress(s, now);
        Ok(())
    }

    /// The old owner, at a taker.
    pub(super) fn old_owner(&self) -> Option<MemberId> {
        match &self.phase {
            Phase::Owner(owner) => match owner.handover {
                Some(OwnerHandover::Taking { old, .. }) => Some(old.owner),
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) fn handover_progress(&mut self, s: &mut Shared, now: Instant) {
        let (epoch, pair) = (self.epoch, Self::solo(s).is_some());
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        match &owner.handover {
            Some(OwnerHandover::Freezing { since, to, written }) => {
                let (since, to, written) = (*since, *to, *written);
                let next = EpochId {
                    number: rules::next_number(epoch, owner.claim_above),
                    owner: to,
                };
                let quiet = owner.journal.committed() == owner.journal.written()
                    && owner.raises.is_empty()
                    && owner.writing.is_none()
                    && owner.join.is_none();
                if let Some(next) = written.filter(|_| quiet) {
                    self.offer(s, now, to, next);
                } else if quiet && pair {
                    self.offer(s, now, to, next);
                } else if quiet {
                    match rules::moved(&self.record(), life(s, to)) {
                        Ok(new) => {
                            if let Phase::Owner(owner) = &mut self.phase {
                                owner.handover = Some(OwnerHandover::Moving { to });
                            }
                            self.write(s, now, new, Purpose::Move(to));
                            self.release_held(s, now);
                        }
                        Err(why) => self.abort_handover(s, now, &why.to_string()),
                    }
                } else if owner.join.is_some() && owner.writing.is_none() {
                    // The joiner begins anew at the taker.
                    self.drop_join(s);
                } else if now.since(since) > GIVE_UP && written.is_some() {
                    self.leave_to_taker(s, now, to);
                } else if now.since(since) > GIVE_UP {
                    self.abort_handover(s, now, "the standbys did not acknowledge everything in time");
                }
            }
            Some(OwnerHandover::Leaving { since, to, next }) if now.since(*since) > GIVE_UP => {
                // The agent has not cut the leases short: the taker has no numbers of them, as after a failover.
                let (to, next) = (*to, *next);
                self.offer_with(s, now, to, next, Vec::new());
            }
            Some(OwnerHandover::Offered { since, to, .. }) if now.since(*since) > GIVE_UP => {
                let to = *to;
                if pair {
                    self.abort_handover(s, now, "the standby did not arm in time");
                } else {
                    self.leave_to_taker(s, now, to);
                }
            }
            Some(OwnerHandover::Taking { since, .. }) if now.since(*since) > GIVE_UP => {
                // The old owner is gone or stuck: its range counts as seen, as after a failover.
                self.finish_alone(s, now, "the old owner did not send its windows");
            }
            _ => {}
        }
    }

    /// The engine has the taker as owner now.
    pub(super) fn move_written(&mut self, s: &mut Shared, now: Instant, to: MemberId, next: EpochId) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        if !s.alive(to) {
            owner.handover = Some(OwnerHandover::Offered {
                since: now,
                to,
                epoch: next,
                rests: Vec::new(),
            });
            return self.leave_to_taker(s, now, to);
        }
        owner.handover = Some(OwnerHandover::Freezing {
            since: now,
            to,
            written: Some(next),
        });
        self.handover_progress(s, now);
    }

    /// What the other member may have missed while the stream was down.
    pub(super) fn handover_again(&mut self, s: &mut Shared, peer: MemberId) {
        match &self.phase {
            Phase::Owner(owner) => match &owner.handover {
                Some(OwnerHandover::Offered { to, epoch, rests, .. }) if *to == peer => {
                    let epoch = *epoch;
                    self.tell_rests(s, peer, epoch, rests);
                    let position = owner.journal.written();
                    self.stream(s, peer, GroupBody::HandoverOffer { position, epoch });
                }
                Some(OwnerHandover::Taking {
                    serving: false, old, ..
                }) if old.owner == peer => self.stream(s, peer, GroupBody::HandoverArmed),
                _ => {}
            },
            Phase::Standby(standby) => {
                if let Some(LegacyOwner {
                    step: LegacyStep::Open { .. },
                    ..
                }) = &standby.legacy
                {
                    self.stream(s, peer, GroupBody::HandoverFlipped);
                }
            }
            Phase::Starting(_) => {}
        }
    }

    pub(super) fn abort_handover(&mut self, s: &mut Shared, now: Instant, reason: &str) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let Some(handover) = owner.handover.take() else {
            return;
        };
        let to = handover.partner();
        self.stream(
            s,
            to,
            GroupBody::HandoverAborted {
                reason: reason.to_owned(),
            },
        );
        let why = reason.to_owned();
        self.event(s, now, EventKind::HandoverAborted { to, why });
        self.release_held(s, now);
    }

    /// Under an engine the taker owns the group by now, whether it has heard the offer or not: it serves by itself, or
    /// another member claims from it. This member holds what is committed here; what else the taker holds comes with a
    /// snapshot.
    pub(super) fn leave_to_taker(&mut self, s: &mut Shared, now: Instant, to: MemberId) {
        let old = self.epoch;
        let Phase::Owner(owner) = &self.phase else { return };
        let Some(epoch) = owner.handover.as_ref().and_then(OwnerHandover::offered_epoch) else {
            return;
        };
        let (position, doubtful) = (owner.journal.committed(), owner.raises.keys());
        let why = "the taker did not answer; the ownership engine has it as the owner".to_owned();
        self.event(s, now, EventKind::HandoverAborted { to, why });
        self.stop_owning(s);
        self.join_with(s, now, epoch, old, position, doubtful);
        if !s.alive(to) {
            self.owner_lost(s, now);
        }
    }

    /// Taker: the handover ends without the old owner's windows.
    fn finish_alone(&mut self, s: &mut Shared, now: Instant, why: &str) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let Some(handover) = owner.handover.take() else {
            return;
        };
        let after = handover.after_loss();
        self.flip_as_owner(s, None, after);
        let (to, why) = (s.me.member, why.to_owned());
        self.event(s, now, EventKind::HandoverAborted { to, why });
        self.release_held(s, now);
    }

    pub(super) fn handover_aborted_by_peer(
        &mut self,
        s: &mut Shared,
        now: Instant,
        peer: MemberId,
        reason: &str,
    ) {
        let pair = Self::solo(s).is_some();
        match &self.phase {
            Phase::Owner(owner) => match &owner.handover {
                // A late word about an earlier one.
                None => {}
                Some(handover) if handover.partner() != peer => {}
                Some(OwnerHandover::Taking { .. }) => self.finish_alone(s, now, reason),
                // The engine has decided already.
                Some(OwnerHandover::Moving { .. } | OwnerHandover::Offered { .. }) if !pair => {}
                Some(_) => {
                    if let Phase::Owner(owner) = &mut self.phase {
                        owner.handover = None;
                    }
                    let why = reason.to_owned();
                    self.event(s, now, EventKind::HandoverAborted { to: peer, why });
                    self.release_held(s, now);
                }
            },
            _ => {
                let (to, why) = (s.me.member, reason.to_owned());
                self.event(s, now, EventKind::HandoverAborted { to, why });
            }
        }
    }

    /// Taker: arm the shadow.
    pub(super) fn handover_offered(&mut self, s: &mut Shared, now: Instant, position: u64, epoch: EpochId) {
        let (old, me) = (self.epoch, s.me);
        let Phase::Standby(standby) = &self.phase else {
            return;
        };
        if standby.claim.as_ref().is_some_and(Claim::is_open) {
            // The answer to this member's own claim comes first: the record may be further than the offer.
            return;
        }
        let fits = epoch.owner == me.member && epoch.number > old.number;
        let Some(set) = standby
            .set
            .clone()
            .filter(|_| standby.in_sync() && standby.armed == position && fits)
        else {
            let reason = "the standby is not in sync".to_owned();
            self.to_owner(s, GroupBody::HandoverAborted { reason });
            return;
        };
        self.event(
            s,
            now,
            EventKind::Claimed {
                epoch,
                from: old.owner,
                planned: true,
            },
        );
        self.epoch = epoch;
        self.pending.clear();
        let others: BTreeSet<SetMember> = set
            .iter()
            .copied()
            .filter(|m| m.member != old.owner && *m != me)
            .collect();
        let mut owner = Owner::new(
            now,
            me,
            set.clone(),
            Standing::WithStandby,
            position,
            s.config.dead_man,
        );
        // The old owner holds all that this member holds.
        for member in set.iter().filter(|m| m.member == old.owner) {
            owner.acknowledged.insert(*member, position);
        }
        owner.handover = Some(OwnerHandover::Taking {
            since: now,
            old,
            serving: false,
            merging: false,
        });
        owner.follow = Follow::in_passing(now, old, others);
        let phase = std::mem::replace(&mut self.phase, Phase::Owner(Box::new(owner)));
        self.call_followers(s);
        if let Phase::Standby(standby) = phase {
            self.take_rests(s, epoch, standby.rests);
        }
        let legacy = Legacy {
            epoch: old,
            phase: LegacyPhase::Open,
        };
        self.flip_as_owner(s, Some(legacy), AfterFlip::ShadowArmed);
    }

    /// Old owner: the taker is armed; from now on its words name the taker.
    pub(super) fn handover_armed(&mut self, s: &mut Shared, now: Instant, from: SetMember, epoch: EpochId) {
        let old = self.epoch;
        let offered = match &self.phase {
            Phase::Owner(owner) => owner.handover.as_ref().and_then(OwnerHandover::offered_epoch),
            // Said again: the answer was lost.
            Phase::Standby(standby) if standby.legacy.is_some() && epoch == old => {
                return self.handover_again(s, from.member);
            }
            _ => None,
        };
        let Phase::Owner(owner) = &self.phase else { return };
        if offered != Some(epoch) || epoch.owner != from.member {
            s.refused += 1;
            return;
        }
        let (set, position) = (owner.in_sync.clone(), owner.journal.written());
        self.stop_owning(s);
        self.epoch = epoch;
        self.pending.clear();
        let legacy = LegacyOwner {
            step: LegacyStep::Open { since: now },
            old,
        };
        self.phase = Phase::Standby(Box::new(Standby::after_handover(set, position, legacy)));
        let legacy = Legacy {
            epoch: old,
            phase: LegacyPhase::Open,
        };
        self.flip(
            s,
            Some(epoch.owner),
            false,
            Some(legacy),
            Instant(0),
            AfterFlip::Nothing,
        );
        let (before, planned) = (old, true);
        self.event(
            s,
            now,
            EventKind::OwnerIs {
                epoch,
                before,
                planned,
            },
        );
        self.to_owner(s, GroupBody::HandoverFlipped);
    }

    pub(super) fn handover_flipped(&mut self, s: &mut Shared, now: Instant, from: MemberId) {
        if let Phase::Owner(owner) = &mut self.phase
            && let Some(OwnerHandover::Taking { serving, old, .. }) = &mut owner.handover
            && old.owner == from
            && !std::mem::replace(serving, true)
        {
            self.serve_and_announce(s, now);
        }
    }

    pub(super) fn legacy_progress(&mut self, s: &mut Shared, now: Instant) {
        let group = self.id;
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        let Some(legacy) = &mut standby.legacy else { return };
        match legacy.step {
            LegacyStep::Open { since } if now.since(since) >= LEGACY_OPEN => {
                legacy.step = LegacyStep::Closing { since: now };
                self.to_owner(s, GroupBody::HandoverClosing);
            }
            LegacyStep::Holding { since } if now.since(since) >= LEGACY_DRAIN => {
                legacy.step = LegacyStep::Closed { since: now };
                standby.given = Some(legacy.old);
                self.flip_as_standby(s);
                let token = self.token(s, Pending::Close);
                s.outputs.push_back(Output::CloseLegacy { group, token });
            }
            LegacyStep::Closing { since } | LegacyStep::Closed { since } if now.since(since) > GIVE_UP => {
                standby.given = Some(legacy.old);
                standby.legacy = None;
                self.flip_as_standby(s);
            }
            _ => {}
        }
    }

    pub(super) fn handover_closing(&mut self, s: &mut Shared, from: MemberId) {
        let Phase::Owner(owner) = &self.phase else { return };
        if let Some(OwnerHandover::Taking { old, .. }) = owner.handover
            && old.owner == from
        {
            let legacy = Legacy {
                epoch: old,
                phase: LegacyPhase::Holding,
            };
            self.flip_as_owner(s, Some(legacy), AfterFlip::HoldingArmed);
        }
    }

    pub(super) fn handover_holding(&mut self, now: Instant, from: MemberId) {
        let taker = self.epoch.owner;
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        if let Some(legacy) = &mut standby.legacy
            && taker == from
            && matches!(legacy.step, LegacyStep::Closing { .. })
        {
            legacy.step = LegacyStep::Holding { since: now };
        }
    }

    pub fn final_windows(&mut self, s: &mut Shared, token: u64, bytes: Vec<u8>) {
        if !matches!(self.pending.remove(&token), Some(Pending::Close)) {
            return;
        }
        let Phase::Standby(standby) = &self.phase else {
            return;
        };
        if standby.legacy.is_some() {
            self.to_owner(s, GroupBody::HandoverWindows(bytes));
        }
    }

    pub(super) fn handover_windows(&mut self, s: &mut Shared, from: MemberId, bytes: Vec<u8>) {
        let group = self.id;
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        if let Some(OwnerHandover::Taking { merging, old, .. }) = &mut owner.handover
            && old.owner == from
            && !*merging
        {
            *merging = true;
            let token = self.token(s, Pending::Merge);
            s.outputs.push_back(Output::MergeWindows { group, token, bytes });
        }
    }

    pub(super) fn windows_merged(&mut self, s: &mut Shared, now: Instant) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        if let Some(OwnerHandover::Taking {
            merging: true, old, ..
        }) = owner.handover
        {
            owner.handover = None;
            self.flip_as_owner(s, None, AfterFlip::Nothing);
            let epoch = self.epoch;
            self.event(s, now, EventKind::HandoverDone { epoch });
            self.stream(s, old.owner, GroupBody::HandoverDone);
            self.release_held(s, now);
        }
    }

    pub(super) fn handover_done(&mut self, s: &mut Shared, now: Instant, from: MemberId) {
        let epoch = self.epoch;
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        if epoch.owner != from {
            return;
        }
        if let Some(legacy) = standby.legacy.take() {
            debug_assert!(legacy.old < epoch);
            self.event(s, now, EventKind::HandoverDone { epoch });
        }
    }
}
