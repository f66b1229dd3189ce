//! A planned takeover: nothing is lost, because both members serve for a moment, each its own range of numbers.
//!
//! ```text
//! owner                                   taker
//!   | freeze; everything acknowledged       |
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

use super::owner::Owner;
use super::standby::Standby;
use super::{AfterFlip, Node, Pending, Phase};
use crate::io::{Command, EventKind, Legacy, Output, Refused};
use crate::message::Body;
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
pub(super) enum OwnerHandover {
    /// Waits until everything is acknowledged.
    Freezing { since: Instant },
    /// The taker may arm.
    Offered { since: Instant, epoch: EpochId },
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
    pub(super) fn is_frozen(&self) -> bool {
        !matches!(self, Self::Taking { .. })
    }

    /// What is left to do where the other member is lost midway: a taker that was not told that it serves, serves now.
    pub(super) fn after_loss(self) -> AfterFlip {
        match self {
            Self::Taking { serving: false, .. } => AfterFlip::ServeAndAnnounce,
            _ => AfterFlip::Nothing,
        }
    }

    pub(super) fn offered_epoch(&self) -> Option<EpochId> {
        match self {
            Self::Offered { epoch, .. } => Some(*epoch),
            _ => None,
        }
    }
}

/// The old owner's last steps.
pub(super) struct LegacyOwner {
    step: LegacyStep,
    old: EpochId,
}

enum LegacyStep {
    Open { since: Instant },
    Closing { since: Instant },
    Holding { since: Instant },
    Closed { since: Instant },
}

impl Node {
    pub(super) fn command(&mut self, now: Instant, command: Command) {
        let Command::TakeoverTo(to) = command;
        if let Err(why) = self.start_handover(now, to) {
            self.event(now, EventKind::HandoverAborted(why.to_string()));
        }
    }

    fn start_handover(&mut self, now: Instant, to: MemberId) -> Result<(), Refused> {
        let me = self.me;
        match &mut self.phase {
            Phase::Starting { .. } => Err(Refused::NoOwner),
            Phase::Owner(_) if to == me.member => Err(Refused::AlreadyOwner(to)),
            Phase::Owner(owner) => {
                if owner.handover.is_some() {
                    return Err(Refused::Handover);
                }
                if !owner.in_sync.iter().any(|m| m.member == to) {
                    return Err(Refused::NotInSync(to));
                }
                owner.handover = Some(OwnerHandover::Freezing { since: now });
                self.handover_progress(now);
                Ok(())
            }
            Phase::Standby(_) if to == self.epoch.owner => Err(Refused::AlreadyOwner(to)),
            Phase::Standby(standby) => {
                if to != me.member || !standby.in_sync() {
                    return Err(Refused::NotInSync(to));
                }
                self.send_stream(Body::HandoverRequest);
                Ok(())
            }
        }
    }

    pub(super) fn handover_requested(&mut self, now: Instant) {
        let Some(peer) = self.peer.as_ref().map(|p| p.member) else {
            return;
        };
        if let Err(why) = self.start_handover(now, peer) {
            self.send_stream(Body::HandoverAborted {
                reason: why.to_string(),
            });
        }
    }

    pub(super) fn handover_progress(&mut self, now: Instant) {
        let (epoch, taker) = (self.epoch, self.peer.as_ref().map_or(MemberId(0), |p| p.member));
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let next = EpochId {
            number: rules::next_number(epoch, owner.claim_above),
            owner: taker,
        };
        match &owner.handover {
            Some(OwnerHandover::Freezing { since }) => {
                let since = *since;
                if owner.journal.committed() == owner.journal.written() && owner.raises.is_empty() {
                    let position = owner.journal.written();
                    owner.handover = Some(OwnerHandover::Offered { since, epoch: next });
                    self.send_stream(Body::HandoverOffer {
                        position,
                        epoch: next,
                    });
                } else if now.since(since) > GIVE_UP {
                    self.abort_handover(now, "the standby did not acknowledge everything in time");
                }
            }
            Some(OwnerHandover::Offered { since, .. }) if now.since(*since) > GIVE_UP => {
                self.abort_handover(now, "the standby did not arm in time");
            }
            Some(OwnerHandover::Taking { since, .. }) if now.since(*since) > GIVE_UP => {
                // The old owner is gone or stuck: its range counts as seen, as after a failover.
                let after = owner
                    .handover
                    .take()
                    .map_or(AfterFlip::Nothing, OwnerHandover::after_loss);
                self.flip_as_owner(None, after);
                self.event(
                    now,
                    EventKind::HandoverAborted("the old owner did not send its windows".to_owned()),
                );
                self.release_held(now);
            }
            _ => {}
        }
    }

    fn abort_handover(&mut self, now: Instant, reason: &str) {
        if let Phase::Owner(owner) = &mut self.phase {
            owner.handover = None;
        }
        self.send_stream(Body::HandoverAborted {
            reason: reason.to_owned(),
        });
        self.event(now, EventKind::HandoverAborted(reason.to_owned()));
        self.release_held(now);
    }

    fn release_held(&mut self, now: Instant) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let held: Vec<(u64, Vec<u8>)> = owner.held.drain(..).collect();
        for (token, entry) in held {
            self.propose(now, token, entry);
        }
    }

    pub(super) fn handover_aborted_by_peer(&mut self, now: Instant, reason: &str) {
        let ours = match &mut self.phase {
            Phase::Owner(owner) => owner.handover.take().is_some(),
            _ => true,
        };
        if ours {
            self.event(now, EventKind::HandoverAborted(reason.to_owned()));
            self.release_held(now);
        }
    }

    /// Taker: arm the shadow.
    pub(super) fn handover_offered(&mut self, now: Instant, position: u64, epoch: EpochId) {
        let old = self.epoch;
        let me = self.me;
        let Phase::Standby(standby) = &self.phase else {
            return;
        };
        let fits = epoch.owner == me.member && epoch.number > old.number;
        let Some(set) = standby
            .set
            .clone()
            .filter(|_| standby.in_sync() && standby.armed == position && fits)
        else {
            self.send_stream(Body::HandoverAborted {
                reason: "the standby is not in sync".to_owned(),
            });
            return;
        };
        self.event(
            now,
            EventKind::Claimed {
                epoch,
                from: old.owner,
                planned: true,
            },
        );
        self.epoch = epoch;
        self.pending.clear();
        let mut owner = Owner::new(now, set, Standing::WithStandby, position, self.config.dead_man);
        owner.handover = Some(OwnerHandover::Taking {
            since: now,
            old,
            serving: false,
            merging: false,
        });
        self.phase = Phase::Owner(Box::new(owner));
        self.flip_as_owner(
            Some(Legacy {
                epoch: old,
                holding: false,
            }),
            AfterFlip::ShadowArmed,
        );
    }

    /// Old owner: the taker is armed; from now on its words name the taker.
    pub(super) fn handover_armed(&mut self, now: Instant, epoch: EpochId) {
        let old = self.epoch;
        let Phase::Owner(owner) = &self.phase else { return };
        if owner.handover.as_ref().and_then(OwnerHandover::offered_epoch) != Some(epoch) {
            self.refused += 1;
            return;
        }
        let (set, position): (BTreeSet<_>, u64) = (owner.in_sync.clone(), owner.journal.written());
        self.abandon();
        self.outputs.push_back(Output::SuspendIke);
        self.epoch = epoch;
        self.pending.clear();
        let legacy = LegacyOwner {
            step: LegacyStep::Open { since: now },
            old,
        };
        self.phase = Phase::Standby(Box::new(Standby::after_handover(set, position, legacy)));
        self.flip(
            Some(epoch.owner),
            false,
            Some(Legacy {
                epoch: old,
                holding: false,
            }),
            Instant(0),
            AfterFlip::Nothing,
        );
        self.event(now, EventKind::OwnerIs(epoch));
        self.send_stream(Body::HandoverFlipped);
    }

    pub(super) fn handover_flipped(&mut self, now: Instant) {
        if let Phase::Owner(owner) = &mut self.phase
            && let Some(OwnerHandover::Taking { serving, .. }) = &mut owner.handover
            && !std::mem::replace(serving, true)
        {
            self.serve_and_announce(now);
        }
    }

    pub(super) fn legacy_progress(&mut self, now: Instant) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        let Some(legacy) = &mut standby.legacy else { return };
        match legacy.step {
            LegacyStep::Open { since } if now.since(since) >= LEGACY_OPEN => {
                legacy.step = LegacyStep::Closing { since: now };
                self.send_stream(Body::HandoverClosing);
            }
            LegacyStep::Holding { since } if now.since(since) >= LEGACY_DRAIN => {
                legacy.step = LegacyStep::Closed { since: now };
                self.flip_as_standby();
                let token = self.token(Pending::Close);
                self.outputs.push_back(Output::CloseLegacy { token });
            }
            LegacyStep::Closing { since } | LegacyStep::Closed { since } if now.since(since) > GIVE_UP => {
                standby.legacy = None;
                self.flip_as_standby();
            }
            _ => {}
        }
    }

    pub(super) fn handover_closing(&mut self) {
        let Phase::Owner(owner) = &self.phase else { return };
        if let Some(OwnerHandover::Taking { old, .. }) = owner.handover {
            self.flip_as_owner(
                Some(Legacy {
                    epoch: old,
                    holding: true,
                }),
                AfterFlip::HoldingArmed,
            );
        }
    }

    pub(super) fn handover_holding(&mut self, now: Instant) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        if let Some(legacy) = &mut standby.legacy
            && matches!(legacy.step, LegacyStep::Closing { .. })
        {
            legacy.step = LegacyStep::Holding { since: now };
        }
    }

    pub(super) fn final_windows(&mut self, token: u64, bytes: Vec<u8>) {
        if !matches!(self.pending.remove(&token), Some(Pending::Close)) {
            return;
        }
        let Phase::Standby(standby) = &self.phase else {
            return;
        };
        if standby.legacy.is_some() {
            self.send_stream(Body::HandoverWindows(bytes));
        }
    }

    pub(super) fn handover_windows(&mut self, bytes: Vec<u8>) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        if let Some(OwnerHandover::Taking { merging, .. }) = &mut owner.handover
            && !*merging
        {
            *merging = true;
            let token = self.token(Pending::Merge);
            self.outputs.push_back(Output::MergeWindows { token, bytes });
        }
    }

    pub(super) fn windows_merged(&mut self, now: Instant) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        if matches!(owner.handover, Some(OwnerHandover::Taking { merging: true, .. })) {
            owner.handover = None;
            self.flip_as_owner(None, AfterFlip::Nothing);
            let epoch = self.epoch;
            self.event(now, EventKind::HandoverDone { epoch });
            self.send_stream(Body::HandoverDone);
            self.release_held(now);
        }
    }

    pub(super) fn handover_done(&mut self, now: Instant) {
        let Phase::Standby(standby) = &mut self.phase else {
            return;
        };
        if let Some(legacy) = standby.legacy.take() {
            let epoch = self.epoch;
            debug_assert!(legacy.old < epoch);
            self.event(now, EventKind::HandoverDone { epoch });
        }
    }
}
