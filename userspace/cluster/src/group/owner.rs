//! The owner: journal, raises, validity, the loss of its standby.

use super::handover::OwnerHandover;
use super::join::Join;
use super::{ACK_TIMEOUT, AfterFlip, Node, Phase, RAISE_GIVE_UP, RAISE_RESEND};
use crate::io::{EventKind, Output, Refused};
use crate::journal::Journal;
use crate::message::{
    Body, EDGES_PER_DATAGRAM, Heartbeat, Link, RAISES_PER_DATAGRAM, RaiseItem, RaiseKey, SetMember,
};
use crate::raises::Raises;
use crate::rules::{self, Ack, RaiseDecision, Solo, Standing};
use model::{Epoch, EspSpi, Instant};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How the owner lost its standby.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// It does not answer.
    Silent,
    /// It is back as a new incarnation. What the old one did unseen, nobody knows.
    NewLife,
    /// The very incarnation that had the place says that it holds nothing.
    GaveUp,
}

pub(super) struct Owner {
    pub(super) in_sync: BTreeSet<SetMember>,
    pub(super) standing: Standing,
    pub(super) journal: Journal,
    pub(super) raises: Raises,
    pub(super) acknowledged: BTreeMap<SetMember, u64>,
    pub(super) join: Option<Join>,
    /// The last join that was let begin.
    pub(super) admitted: Option<(SetMember, u64)>,
    /// Number that the next claim must pass.
    pub(super) claim_above: Epoch,
    pub(super) handover: Option<OwnerHandover>,
    /// Proposals that wait for the end of a handover.
    pub(super) held: VecDeque<(u64, Vec<u8>)>,
    /// Send time of the last confirmed heartbeat (or of the own loop, where that confirms).
    confirmed: Instant,
    pub(super) valid_until: Instant,
    /// After a local stall: only a heartbeat with this number or a later one confirms.
    pub(super) reconfirm: Option<u64>,
    pub(super) awake_since: Instant,
    /// Since when the in-sync standby owes an acknowledgement of the journal.
    owing_since: Option<Instant>,
}

impl Owner {
    pub(super) fn new(
        now: Instant,
        in_sync: BTreeSet<SetMember>,
        standing: Standing,
        position: u64,
        dead_man: Duration,
    ) -> Self {
        Self {
            acknowledged: in_sync.iter().map(|m| (*m, position)).collect(),
            in_sync,
            standing,
            journal: Journal::continue_from(position),
            raises: Raises::default(),
            join: None,
            admitted: None,
            claim_above: Epoch(0),
            handover: None,
            held: VecDeque::new(),
            confirmed: now,
            valid_until: rules::valid_until(now, dead_man),
            reconfirm: None,
            awake_since: now,
            owing_since: None,
        }
    }

    /// Members of the set but for `me`.
    fn standbys(&self, me: SetMember) -> impl Iterator<Item = SetMember> {
        self.in_sync.iter().copied().filter(move |m| *m != me)
    }

    fn anybody_listens(&self) -> bool {
        self.in_sync.len() > 1 || self.join.is_some()
    }
}

impl Node {
    pub(super) fn propose(&mut self, now: Instant, token: u64, entry: Vec<u8>) {
        let me = self.me;
        let Phase::Owner(owner) = &mut self.phase else {
            self.outputs.push_back(Output::Refused {
                token,
                why: Refused::NotOwner,
            });
            return;
        };
        if owner.handover.is_some() {
            owner.held.push_back((token, entry));
            return;
        }
        let listens = owner.anybody_listens();
        let position = owner.journal.append(token, entry.clone(), listens);
        if owner.standbys(me).next().is_some() {
            owner.owing_since.get_or_insert(now);
        }
        if listens && owner.join.as_ref().is_none_or(Join::wants_tail) {
            self.send_stream(Body::Journal { position, entry });
        }
        self.commit();
    }

    /// Releases what every in-sync standby has acknowledged.
    pub(super) fn commit(&mut self) {
        let me = self.me;
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let acknowledged: Vec<u64> = owner
            .standbys(me)
            .map(|m| owner.acknowledged.get(&m).copied().unwrap_or(0))
            .collect();
        let position = rules::commit_position(owner.journal.written(), acknowledged);
        for token in owner.journal.commit_to(position) {
            self.outputs.push_back(Output::Committed { token });
        }
        let joiner = owner.join.as_ref().map_or(u64::MAX, Join::acknowledged);
        owner.journal.forget_to(position.min(joiner));
        if owner.journal.committed() == owner.journal.written() {
            owner.owing_since = None;
        }
    }

    pub(super) fn journal_ack(&mut self, now: Instant, from: SetMember, position: u64) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let position = position.min(owner.journal.written());
        if let Some(join) = owner.join.as_mut().filter(|j| j.member == from) {
            join.acknowledge(position);
        } else if owner.in_sync.contains(&from) {
            let known = owner.acknowledged.entry(from).or_insert(0);
            if position > *known {
                *known = position;
                // It moves: the time limit is for a standby that does not.
                owner.owing_since = Some(now);
            }
        } else {
            self.refused += 1;
            return;
        }
        self.commit();
        self.join_progress(now);
    }

    pub(super) fn raise(&mut self, now: Instant, items: Vec<RaiseItem>) {
        let (me, solo) = (self.me, self.config.solo);
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        if owner.handover.as_ref().is_some_and(OwnerHandover::is_frozen) {
            // Limits are frozen; the data plane asks again.
            return;
        }
        let joining = owner.join.as_ref().map(|j| j.member);
        let nobody = rules::asked_for_raise(&owner.in_sync, me.member, joining).is_empty();
        let (mut wanted, mut refused) = (Vec::new(), Vec::new());
        for item in items {
            let decision = rules::decide_raise(owner.standing, nobody, item.direction);
            match rules::under_solo(solo, owner.standing, decision) {
                RaiseDecision::Ask | RaiseDecision::UseNow => wanted.push(item),
                RaiseDecision::RekeyInstead => refused.push(item),
            }
        }
        if !refused.is_empty() {
            self.outputs.push_back(Output::RaiseRefused { items: refused });
        }
        self.ask_for(now, wanted);
    }

    /// Has limits acknowledged by everybody who has to, or uses them at once where that is nobody.
    pub(super) fn ask_for(&mut self, now: Instant, items: Vec<RaiseItem>) {
        let me = self.me;
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        if items.is_empty() {
            return;
        }
        let joining = owner.join.as_ref().map(|j| j.member);
        let asked = rules::asked_for_raise(&owner.in_sync, me.member, joining);
        if asked.is_empty() {
            self.outputs.push_back(Output::RaiseCommitted { items });
            return;
        }
        let opened: Vec<(u64, RaiseItem)> = items
            .into_iter()
            .map(|item| (owner.raises.open(now, item, asked.clone()), item))
            .collect();
        self.send_raises(&opened);
    }

    fn send_raises(&mut self, raises: &[(u64, RaiseItem)]) {
        for chunk in raises.chunks(RAISES_PER_DATAGRAM) {
            self.send_datagram(Link::Synch, Body::Raise(chunk.to_vec()));
        }
    }

    /// What is not acknowledged goes over every link: packets wait for it, and a dead link shows itself only later.
    fn resend_raises(&mut self, raises: &[(u64, RaiseItem)]) {
        for chunk in raises.chunks(RAISES_PER_DATAGRAM) {
            self.send_datagram_everywhere(&Body::Raise(chunk.to_vec()));
        }
    }

    pub(super) fn raise_ack(&mut self, now: Instant, from: SetMember, acks: &[(u64, RaiseKey)]) {
        let epoch = self.epoch;
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let mut complete = Vec::new();
        for (version, key) in acks {
            complete.extend(owner.raises.acknowledge(
                epoch,
                *key,
                &Ack {
                    epoch,
                    from,
                    version: *version,
                },
            ));
        }
        if !complete.is_empty() {
            self.outputs.push_back(Output::RaiseCommitted { items: complete });
        }
        self.join_progress(now);
    }

    pub(super) fn report(&mut self, edges: &[(u32, EspSpi, u64)]) {
        let Phase::Owner(owner) = &self.phase else { return };
        if !owner.anybody_listens() {
            return;
        }
        for chunk in edges.chunks(EDGES_PER_DATAGRAM) {
            self.send_datagram(Link::Synch, Body::Report(chunk.to_vec()));
        }
    }

    pub(super) fn tick_owner(&mut self, now: Instant) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        owner.raises.expire(now, RAISE_GIVE_UP);
        let due = owner.raises.due(now, RAISE_RESEND);
        self.resend_raises(&due);
        self.overdue(now);
        self.join_progress(now);
        self.handover_progress(now);
        self.extend(now);
    }

    /// A standby that is heard but does not acknowledge is dropped, so that it cannot stall IKE.
    fn overdue(&mut self, now: Instant) {
        let Phase::Owner(owner) = &self.phase else { return };
        if owner
            .owing_since
            .is_some_and(|since| now.since(since) > ACK_TIMEOUT)
        {
            self.standby_lost(now, "does not acknowledge the journal", Loss::Silent);
        }
    }

    fn extend(&mut self, now: Instant) {
        let (solo, dead_man, epoch) = (self.config.solo, self.config.dead_man, self.epoch);
        let suspicion = self.peer.as_ref().map_or(dead_man, |p| p.detector.threshold());
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        if owner.reconfirm.is_some() {
            // Nobody is there to confirm: then the loop itself does, once it has been awake for as long as it takes to
            // hear of a member that took over meanwhile.
            let nobody = owner.in_sync.len() == 1 || solo == Solo::Continue;
            if !(nobody && now.since(owner.awake_since) > suspicion) {
                return;
            }
            owner.reconfirm = None;
        }
        if owner.in_sync.len() == 1 || solo == Solo::Continue {
            owner.confirmed = owner.confirmed.max(now);
        }
        let until = rules::valid_until(owner.confirmed, dead_man);
        if until > owner.valid_until {
            owner.valid_until = until;
            self.outputs.push_back(Output::ExtendValidity { epoch, until });
        }
    }

    /// The peer's heartbeat confirms one of ours.
    pub(super) fn confirmation(&mut self, from: SetMember, heartbeat: &Heartbeat) {
        let Some((incarnation, seq)) = heartbeat.echo else {
            return;
        };
        let sent = self.sent.iter().find(|(s, _)| *s == seq).map(|(_, at)| *at);
        let me = self.me;
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let Some(sent) = sent.filter(|_| incarnation == me.incarnation && owner.in_sync.contains(&from))
        else {
            return;
        };
        owner.confirmed = owner.confirmed.max(sent);
        if owner.reconfirm.is_some_and(|first| seq >= first) {
            owner.reconfirm = None;
        }
    }

    /// The standby (or joiner) is gone.
    pub(super) fn standby_lost(&mut self, now: Instant, reason: &str, loss: Loss) {
        let solo = self.config.solo;
        let (me, epoch) = (self.me, self.epoch);
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        if let Some(join) = owner.join.take() {
            let complete = owner.raises.excuse(join.member);
            if !complete.is_empty() {
                self.outputs.push_back(Output::RaiseCommitted { items: complete });
            }
            if owner.in_sync.len() == 1 {
                owner.journal.forget_all();
            }
        }
        let lost: Vec<SetMember> = owner.standbys(me).collect();
        if lost.is_empty() || (solo == Solo::Stop && loss == Loss::Silent) {
            return;
        }
        owner.in_sync = BTreeSet::from([me]);
        owner.acknowledged.clear();
        owner.owing_since = None;
        owner.standing = rules::standing_after_loss(loss == Loss::GaveUp);
        if loss != Loss::GaveUp {
            owner.claim_above = rules::claim_above(owner.claim_above, epoch);
        }
        let standing = owner.standing;
        let after = owner
            .handover
            .take()
            .map_or(AfterFlip::Nothing, OwnerHandover::after_loss);
        let held: Vec<(u64, Vec<u8>)> = owner.held.drain(..).collect();
        let open = owner.raises.take_all();
        owner.journal.forget_all();
        for member in lost {
            self.event(
                now,
                EventKind::Excluded {
                    member: member.member,
                    reason: reason.to_owned(),
                },
            );
        }
        self.event(now, EventKind::Standing(standing));
        // On every link: a standby that hears it must not adopt.
        let links: Vec<Link> = self.peer.iter().flat_map(|p| p.links.iter().copied()).collect();
        for link in links {
            self.send_datagram(link, Body::SoloNotice);
        }
        self.flip_as_owner(None, after);
        self.commit();
        self.raise(now, open);
        for (token, entry) in held {
            self.propose(now, token, entry);
        }
    }

    /// The stream to the peer is new: what it has not acknowledged is sent again.
    pub(super) fn resend_journal(&mut self) {
        let Some(peer) = self.peer.as_ref().and_then(super::Peer::as_set_member) else {
            return;
        };
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        if !owner.in_sync.contains(&peer) {
            return;
        }
        let from = owner.acknowledged.get(&peer).copied().unwrap_or(0);
        let entries: Vec<(u64, Vec<u8>)> = owner.journal.after(from).map(|(p, e)| (p, e.to_vec())).collect();
        for (position, entry) in entries {
            self.send_stream(Body::Journal { position, entry });
        }
    }

    /// This member is not the owner any more: nothing that waits will be committed here.
    pub(super) fn abandon(&mut self) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let tokens = owner
            .journal
            .abandon()
            .into_iter()
            .chain(owner.held.drain(..).map(|(token, _)| token));
        for token in tokens.collect::<Vec<_>>() {
            self.outputs.push_back(Output::Refused {
                token,
                why: Refused::NotOwner,
            });
        }
    }
}
