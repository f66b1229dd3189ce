//! Records from the peer: who may say what, and when.

use super::{Node, Phase};
use crate::io::EventKind;
use crate::message::{Body, Heartbeat, Link, Message, SetMember};
use crate::rules;
use model::{Instant, MemberId};

impl Node {
    pub(super) fn link_up(&mut self, now: Instant, peer: MemberId, link: Link) {
        let Some(p) = self.peer.as_mut().filter(|p| p.member == peer) else {
            return;
        };
        p.links.insert(link);
        let hello = Body::Hello {
            digest: self.config.digest,
            facts: self.config.facts.clone(),
        };
        let bytes = Message {
            from: self.me,
            epoch: self.epoch,
            body: hello,
        }
        .encode();
        self.outputs
            .push_back(crate::io::Output::SendStream { peer, link, bytes });
        self.send_heartbeat(now, link, false);
        if link == Link::Synch {
            match &self.phase {
                Phase::Owner(owner) if owner.join.is_some() => {
                    // A snapshot may be cut in half; the joiner asks again.
                    if let Phase::Owner(owner) = &mut self.phase
                        && let Some(join) = owner.join.take()
                    {
                        let complete = owner.raises.excuse(join.member);
                        if !complete.is_empty() {
                            self.outputs
                                .push_back(crate::io::Output::RaiseCommitted { items: complete });
                        }
                    }
                }
                Phase::Owner(_) => self.resend_journal(),
                Phase::Standby(_) => self.standby_reconnected(),
                Phase::Starting { .. } => {}
            }
        }
    }

    pub(super) fn received(&mut self, now: Instant, peer: MemberId, link: Link, bytes: &[u8]) {
        let message = match Message::decode(bytes) {
            Ok(message) => message,
            Err(error) => return self.refuse(now, peer, &error.to_string()),
        };
        if message.from.member != peer || self.peer.as_ref().is_none_or(|p| p.member != peer) {
            return self.refuse(now, peer, "the record names another sender than the channel");
        }
        if !self.same_life(now, message.from) {
            self.refused += 1;
            return;
        }
        if let Some(p) = &mut self.peer
            && p.detector.heard(now)
        {
            self.event(now, EventKind::PeerHeard(peer));
        }
        self.dispatch(now, link, message);
    }

    fn refuse(&mut self, now: Instant, peer: MemberId, reason: &str) {
        self.refused += 1;
        self.event(
            now,
            EventKind::RecordRefused {
                peer,
                reason: reason.to_owned(),
            },
        );
    }

    /// Whether the record is of the peer's present life; a new life is noticed here.
    fn same_life(&mut self, now: Instant, from: SetMember) -> bool {
        let Some(p) = &mut self.peer else { return false };
        match p.incarnation {
            Some(known) if known == from.incarnation => true,
            Some(known) if from.incarnation < known && p.detector.alive() => false,
            known => {
                p.incarnation = Some(from.incarnation);
                p.detector.reset(now);
                p.seen = None;
                p.claims = None;
                if let Some(was) = known {
                    self.peer_restarted(now, was);
                }
                true
            }
        }
    }

    fn dispatch(&mut self, now: Instant, link: Link, message: Message) {
        let (from, epoch) = (message.from, message.epoch);
        match message.body {
            Body::Heartbeat(heartbeat) => return self.heartbeat(now, link, from, epoch, &heartbeat),
            Body::Hello { digest, facts } => {
                if let Some(p) = &mut self.peer {
                    p.digest = Some(digest);
                }
                self.outputs.push_back(crate::io::Output::PeerFacts {
                    peer: from.member,
                    facts,
                });
                return;
            }
            Body::JoinRefused { reason } => return self.refuse(now, from.member, &reason),
            Body::HandoverArmed => return self.handover_armed(now, epoch),
            Body::HandoverAborted { reason } => return self.handover_aborted_by_peer(now, &reason),
            _ => {}
        }
        // Everything else counts in the present epoch only.
        if !rules::same_epoch(self.epoch, epoch) {
            self.refused += 1;
            return;
        }
        match message.body {
            // A request of an earlier term must not pass for "I hold nothing": its sender may be in sync by now.
            Body::JoinRequest { join } => self.join_requested(now, from, join),
            Body::Journal { position, entry } => self.journal_entry(position, entry),
            Body::JournalAck { position } => self.journal_ack(now, from, position),
            Body::Raise(items) => self.raises_wanted(items),
            Body::RaiseAck(acks) => self.raise_ack(now, from, &acks),
            Body::Report(edges) => self.report_heard(edges),
            Body::SnapshotBegin {
                join,
                position,
                length,
                claim_above,
                raises_through,
            } => self.snapshot_begins(join, position, length, claim_above, raises_through),
            Body::SnapshotChunk(chunk) => self.snapshot_chunk(&chunk),
            Body::SnapshotAck { join, position } => self.snapshot_acknowledged(now, from, join, position),
            Body::Joined {
                join,
                in_sync,
                heartbeat,
            } => self.joined(now, join, in_sync, heartbeat),
            Body::SoloNotice => self.was_excluded(now),
            Body::HandoverRequest => self.handover_requested(now),
            Body::HandoverOffer { position, epoch } => self.handover_offered(now, position, epoch),
            Body::HandoverFlipped => self.handover_flipped(now),
            Body::HandoverClosing => self.handover_closing(),
            Body::HandoverHolding => self.handover_holding(now),
            Body::HandoverWindows(bytes) => self.handover_windows(bytes),
            Body::HandoverDone => self.handover_done(now),
            Body::Heartbeat(_)
            | Body::Hello { .. }
            | Body::JoinRefused { .. }
            | Body::HandoverArmed
            | Body::HandoverAborted { .. } => {}
        }
    }

    fn heartbeat(
        &mut self,
        now: Instant,
        link: Link,
        from: SetMember,
        epoch: rules::EpochId,
        heartbeat: &Heartbeat,
    ) {
        if let Some(p) = &mut self.peer {
            if p.seen.is_none_or(|(_, seq)| heartbeat.seq > seq) {
                p.seen = Some((from.incarnation, heartbeat.seq));
            }
            p.claims = Some((epoch, heartbeat.owner));
        }
        if heartbeat.owner {
            self.owner_claims(now, epoch, heartbeat);
        } else if epoch == self.epoch {
            self.confirmation(from, heartbeat);
        }
        if heartbeat.owner && !heartbeat.reply {
            self.send_heartbeat(now, link, true);
        }
    }

    fn owner_claims(&mut self, now: Instant, theirs: rules::EpochId, heartbeat: &Heartbeat) {
        let mine = self.epoch;
        match &self.phase {
            Phase::Starting { .. } => self.join(now, theirs),
            Phase::Owner(owner) => {
                let offered = owner
                    .handover
                    .as_ref()
                    .is_some_and(|h| h.offered_epoch() == Some(theirs));
                let written = owner.journal.written();
                if rules::must_yield_to(mine, written, theirs, heartbeat.position) && !offered {
                    self.event(now, EventKind::ForkLost { mine, theirs });
                    self.abandon();
                    self.outputs.push_back(crate::io::Output::SuspendIke);
                    self.outputs.push_back(crate::io::Output::DiscardFork);
                    self.join(now, theirs);
                }
            }
            Phase::Standby(_) if theirs == mine => {
                self.owner_names_set(now, heartbeat.seq, &heartbeat.in_sync)
            }
            Phase::Standby(_) if rules::must_yield(mine, theirs) => {
                self.outputs.push_back(crate::io::Output::DiscardFork);
                self.join(now, theirs);
            }
            Phase::Standby(_) => {}
        }
    }
}
