//! The owner: journal, raises, validity.

use super::follow::Follow;
use super::handover::OwnerHandover;
use super::join::Join;
use super::set::Writing;
use super::{ACK_TIMEOUT, Group, Phase, RAISE_RESEND};
use crate::io::{Output, Refused};
use crate::journal::{Entry, Journal};
use crate::message::{
    BRIEF_SINCE, EDGES_PER_DATAGRAM, GroupBody, RAISES_PER_DATAGRAM, RaiseItem, RaiseKey, SetMember,
};
use crate::node::Shared;
use crate::raises::Raises;
use crate::rules::{self, Ack, RaiseDecision, Solo, Standing};
use model::{Epoch, EspSpi, Incarnation, Instant, MemberId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub(crate) struct Owner {
    me: SetMember,
    pub in_sync: BTreeSet<SetMember>,
    pub standing: Standing,
    pub journal: Journal,
    pub raises: Raises,
    pub acknowledged: BTreeMap<SetMember, u64>,
    pub join: Option<Join>,
    /// The last join of each member that was let begin.
    pub admitted: BTreeMap<MemberId, (Incarnation, u64)>,
    /// Number that the next claim must pass (pair engine).
    pub claim_above: Epoch,
    pub handover: Option<OwnerHandover>,
    /// Proposals that wait for the end of a handover.
    pub held: VecDeque<(u64, Entry)>,
    /// After a claim: the other survivors, until they follow.
    pub follow: Option<Follow>,
    /// A change of the record at the ownership engine that is not settled.
    pub writing: Option<Writing>,
    /// Members that are to leave the set as soon as the engine has written it, and why.
    pub out: BTreeMap<SetMember, String>,
    /// A read that tells whether this member still owns the group.
    pub asking: Option<u64>,
    /// Send time of the last confirmed heartbeat (or of the own loop, where that confirms).
    pub confirmed: Instant,
    pub valid_until: Instant,
    /// After a local stall: only a heartbeat with this number or a later one confirms.
    pub reconfirm: Option<u64>,
    pub awake_since: Instant,
    /// Since when each in-sync standby owes an acknowledgement of the journal.
    pub(super) owing: BTreeMap<SetMember, Instant>,
}

impl Owner {
    pub fn new(
        now: Instant,
        me: SetMember,
        in_sync: BTreeSet<SetMember>,
        standing: Standing,
        position: u64,
        dead_man: Duration,
    ) -> Self {
        Self {
            me,
            in_sync,
            standing,
            journal: Journal::continue_from(position),
            raises: Raises::default(),
            acknowledged: BTreeMap::new(),
            join: None,
            admitted: BTreeMap::new(),
            claim_above: Epoch(0),
            handover: None,
            held: VecDeque::new(),
            follow: None,
            writing: None,
            out: BTreeMap::new(),
            asking: None,
            confirmed: now,
            valid_until: rules::valid_until(now, dead_man),
            reconfirm: None,
            awake_since: now,
            owing: BTreeMap::new(),
        }
    }

    /// Whose acknowledgement counts as required: the set, and the one that a write under way would make of it.
    pub fn required(&self) -> BTreeSet<SetMember> {
        rules::required(&self.in_sync, self.writing.as_ref().map(Writing::set))
    }

    /// The required members but for this one.
    pub fn standbys(&self) -> BTreeSet<SetMember> {
        let mut standbys = self.required();
        standbys.remove(&self.me);
        standbys
    }

    /// The joiner, once its maps hold the snapshot.
    fn joiner(&self) -> Option<SetMember> {
        self.join.as_ref().filter(|j| j.is_armed()).map(|j| j.member)
    }

    fn asked(&self) -> BTreeSet<SetMember> {
        rules::asked_for_raise(&self.required(), self.me.member, self.joiner())
    }

    fn anybody_listens(&self) -> bool {
        self.required().len() > 1 || self.join.is_some()
    }

    /// To whom new entries go.
    fn listeners(&self) -> BTreeSet<MemberId> {
        let joiner = self.join.as_ref().filter(|j| j.wants_tail()).map(|j| j.member);
        self.standbys()
            .into_iter()
            .chain(joiner)
            .map(|m| m.member)
            .collect()
    }

    /// Forgets what somebody owed.
    pub fn owes_nothing(&mut self, member: &SetMember) {
        self.owing.remove(member);
        self.acknowledged.remove(member);
    }
}

impl Group {
    pub fn propose(&mut self, s: &mut Shared, now: Instant, token: u64, entry: Entry) {
        let Phase::Owner(owner) = &mut self.phase else {
            let why = Refused::NotOwner;
            s.outputs.push_back(Output::Refused { token, why });
            return;
        };
        if owner.handover.as_ref().is_some_and(OwnerHandover::holds)
            || owner.follow.as_ref().is_some_and(Follow::blocks)
        {
            owner.held.push_back((token, entry));
            return;
        }
        let listens = owner.anybody_listens();
        let position = owner.journal.append(token, entry.clone(), listens);
        for standby in owner.standbys() {
            owner.owing.entry(standby).or_insert(now);
        }
        for listener in owner.listeners() {
            self.write_entry(s, listener, position, &entry);
        }
        self.commit(s);
    }

    /// An entry, in a form that the peer reads.
    pub(super) fn write_entry(&self, s: &mut Shared, to: MemberId, position: u64, entry: &Entry) {
        let entry = entry.in_format(s.version_for(to)).to_vec();
        self.stream(s, to, GroupBody::Journal { position, entry });
    }

    /// Whether everybody who gets new entries speaks this format, or a later one.
    pub fn all_read(&self, s: &Shared, version: u8) -> bool {
        let Phase::Owner(owner) = &self.phase else {
            return false;
        };
        let joiner = owner.join.as_ref().map(|join| join.member.member);
        let mut all = owner.listeners().into_iter().chain(joiner);
        all.all(|member| s.version_for(member) >= version)
    }

    /// Whether anybody who gets new entries reads the brief form.
    pub fn writes_briefly(&self, s: &Shared) -> bool {
        let Phase::Owner(owner) = &self.phase else {
            return false;
        };
        let mut listeners = owner.listeners().into_iter();
        listeners.any(|member| s.version_for(member) >= BRIEF_SINCE)
    }

    /// Releases what every in-sync standby has acknowledged.
    pub(super) fn commit(&mut self, s: &mut Shared) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let acknowledged: Vec<u64> = owner
            .standbys()
            .iter()
            .map(|m| owner.acknowledged.get(m).copied().unwrap_or(0))
            .collect();
        let position = rules::commit_position(owner.journal.written(), acknowledged);
        for token in owner.journal.commit_to(position) {
            s.outputs.push_back(Output::Committed { token });
        }
        let joiner = owner.join.as_ref().map_or(u64::MAX, Join::acknowledged);
        owner.journal.forget_to(position.min(joiner));
        let (written, acknowledged) = (owner.journal.written(), &owner.acknowledged);
        owner
            .owing
            .retain(|m, _| acknowledged.get(m).copied().unwrap_or(0) < written);
    }

    pub(super) fn journal_ack(&mut self, s: &mut Shared, now: Instant, from: SetMember, position: u64) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let position = position.min(owner.journal.written());
        let in_set = owner.required().contains(&from);
        if let Some(join) = owner.join.as_mut().filter(|j| j.member == from) {
            join.acknowledge(position);
        }
        if in_set {
            // Before it follows this epoch, an acknowledgement says nothing of this member's journal.
            let follows = owner.follow.as_ref().is_none_or(|f| !f.misses(&from));
            let known = owner.acknowledged.entry(from).or_insert(0);
            if follows && position > *known {
                *known = position;
                // It moves: the time limit is for a standby that does not.
                owner.owing.insert(from, now);
            }
        } else if owner.join.as_ref().is_none_or(|j| j.member != from) {
            s.refused += 1;
            return;
        }
        self.commit(s);
        self.join_progress(s, now);
    }

    pub fn raise(&mut self, s: &mut Shared, now: Instant, items: Vec<RaiseItem>) {
        let solo = Self::solo(s);
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        if owner.handover.as_ref().is_some_and(OwnerHandover::is_frozen)
            || owner.follow.as_ref().is_some_and(Follow::blocks)
        {
            // Limits are frozen; the data plane asks again.
            return;
        }
        let nobody = owner.asked().is_empty();
        let (mut wanted, mut refused) = (Vec::new(), Vec::new());
        for item in items {
            let decision = rules::decide_raise(owner.standing, nobody, item.direction);
            match rules::under_solo(solo.unwrap_or(Solo::Continue), owner.standing, decision) {
                RaiseDecision::Ask | RaiseDecision::UseNow => wanted.push(item),
                RaiseDecision::RekeyInstead => refused.push(item),
            }
        }
        if !refused.is_empty() {
            let (group, items) = (self.id, refused);
            s.outputs.push_back(Output::RaiseRefused { group, items });
        }
        self.ask_for(s, now, wanted);
    }

    /// Has limits acknowledged by everybody who has to, or uses them at once where that is nobody.
    pub(super) fn ask_for(&mut self, s: &mut Shared, now: Instant, items: Vec<RaiseItem>) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        if items.is_empty() {
            return;
        }
        let asked = owner.asked();
        if asked.is_empty() {
            self.raises_complete(s, items);
            return;
        }
        let opened: Vec<(u64, RaiseItem)> = items
            .into_iter()
            .map(|item| (owner.raises.open(now, item, asked.clone()), item))
            .collect();
        let settled = owner.raises.settled();
        for member in asked {
            self.send_raises(s, member.member, settled, &opened, false);
        }
    }

    pub(super) fn raises_complete(&mut self, s: &mut Shared, items: Vec<RaiseItem>) {
        if let Phase::Owner(owner) = &mut self.phase
            && let Some(join) = &mut owner.join
        {
            join.owes(&items);
        }
        if !items.is_empty() {
            let group = self.id;
            s.outputs.push_back(Output::RaiseCommitted { group, items });
        }
    }

    /// What is sent again goes over every link: packets wait for it, and a dead link shows itself only later.
    fn send_raises(
        &self,
        s: &mut Shared,
        to: MemberId,
        settled: u64,
        raises: &[(u64, RaiseItem)],
        again: bool,
    ) {
        for chunk in raises.chunks(RAISES_PER_DATAGRAM) {
            let body = GroupBody::Raise {
                settled,
                items: chunk.to_vec(),
            };
            if again {
                s.datagrams(to, self.id, self.epoch, body);
            } else {
                s.datagram(to, self.id, self.epoch, body);
            }
        }
    }

    pub(super) fn raise_ack(
        &mut self,
        s: &mut Shared,
        now: Instant,
        from: SetMember,
        armed: &[(u64, RaiseKey)],
        unknown: &[(u64, RaiseKey)],
    ) {
        let epoch = self.epoch;
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        // An in-sync member that does not know the SA has seen its removal already: there is nothing to arm. A joiner may
        // not have it yet.
        let in_set = owner.required().contains(&from);
        let gone = unknown.iter().filter(|_| in_set);
        let mut complete = Vec::new();
        for (version, key) in armed.iter().chain(gone) {
            let ack = Ack {
                epoch,
                from,
                version: *version,
            };
            complete.extend(owner.raises.acknowledge(now, epoch, *key, &ack));
        }
        self.raises_complete(s, complete);
        self.follow_progress(s, now);
        self.join_progress(s, now);
    }

    pub fn report(&mut self, s: &mut Shared, edges: &[(u32, EspSpi, u64)]) {
        let Phase::Owner(owner) = &self.phase else { return };
        for listener in owner.listeners() {
            for chunk in edges.chunks(EDGES_PER_DATAGRAM) {
                s.datagram(listener, self.id, self.epoch, GroupBody::Report(chunk.to_vec()));
            }
        }
    }

    pub(super) fn tick_owner(&mut self, s: &mut Shared, now: Instant) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let due = owner.raises.due(now, RAISE_RESEND);
        let settled = owner.raises.settled();
        for (member, raises) in due {
            self.send_raises(s, member.member, settled, &raises, true);
        }
        self.overdue(s, now);
        self.engine_overdue(s, now);
        self.follow_progress(s, now);
        self.send_snapshot(s);
        self.join_progress(s, now);
        self.handover_progress(s, now);
        self.extend(s, now);
    }

    /// A standby that is heard but does not acknowledge is dropped, so that it cannot stall IKE or traffic.
    fn overdue(&mut self, s: &mut Shared, now: Instant) {
        let Phase::Owner(owner) = &self.phase else { return };
        let mut late: BTreeSet<SetMember> = owner
            .owing
            .iter()
            .filter(|(_, since)| now.since(**since) > ACK_TIMEOUT)
            .map(|(m, _)| *m)
            .collect();
        late.extend(owner.raises.overdue(now, ACK_TIMEOUT * 2));
        if let Some(join) = &owner.join
            && (join.is_stuck(now) || late.contains(&join.member) && !owner.required().contains(&join.member))
        {
            self.drop_join(s);
        }
        let Phase::Owner(owner) = &self.phase else { return };
        late.retain(|m| owner.in_sync.contains(m));
        if !late.is_empty() {
            self.lose(s, now, late, "does not acknowledge", super::set::Loss::Silent);
        }
    }

    fn extend(&mut self, s: &mut Shared, now: Instant) {
        let solo = Self::solo(s);
        let (dead_man, epoch) = (s.config.dead_man, self.epoch);
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        // Under an engine a member that is cut off stays within its limits, and another one can only claim there; so
        // that the loss of a standby never stops a healthy owner, its own loop confirms, as under `continue`.
        let alone = owner.in_sync.len() == 1 || solo != Some(Solo::Stop);
        if owner.reconfirm.is_some() {
            let suspicion = owner
                .in_sync
                .iter()
                .filter_map(|m| s.peers.get(&m.member))
                .map(|p| p.detector.threshold())
                .max()
                .unwrap_or(dead_man);
            // Nobody is there to confirm: then the loop itself does, once it has been awake for as long as it takes to
            // hear of a member that took over meanwhile.
            if !(alone && now.since(owner.awake_since) > suspicion) {
                return;
            }
            owner.reconfirm = None;
        }
        if alone {
            owner.confirmed = owner.confirmed.max(now);
        }
        let until = rules::valid_until(owner.confirmed, dead_man);
        // Before the flip the words are another's.
        if until > owner.valid_until && !owner.follow.as_ref().is_some_and(Follow::blocks) {
            owner.valid_until = until;
            let group = self.id;
            s.outputs
                .push_back(Output::ExtendValidity { group, epoch, until });
        }
    }

    /// A peer's heartbeat, in this epoch, confirms one of ours.
    pub(super) fn confirmation(&mut self, s: &Shared, from: SetMember, echo: Option<(Incarnation, u64)>) {
        let Some((incarnation, seq)) = echo else { return };
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let Some(sent) = s
            .sent_at(seq)
            .filter(|_| incarnation == s.me.incarnation && owner.in_sync.contains(&from))
        else {
            return;
        };
        owner.confirmed = owner.confirmed.max(sent);
        if owner.reconfirm.is_some_and(|first| seq >= first) {
            owner.reconfirm = None;
        }
    }

    /// The stream to a standby is new: what it has not acknowledged is sent again.
    pub(super) fn stream_to_standby(&mut self, s: &mut Shared, now: Instant, peer: MemberId) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        if owner
            .join
            .as_ref()
            .is_some_and(|j| j.member.member == peer && !owner.required().contains(&j.member))
        {
            // A snapshot may be cut in half; the joiner asks again.
            self.drop_join(s);
            return;
        }
        self.call_followers(s);
        self.handover_again(s, peer);
        self.resend_journal(s, peer);
        self.join_progress(s, now);
    }

    /// Sends every entry after the last one that the peer has acknowledged.
    pub(super) fn resend_journal(&mut self, s: &mut Shared, peer: MemberId) {
        let Phase::Owner(owner) = &self.phase else {
            return;
        };
        let Some(member) = owner.standbys().into_iter().find(|m| m.member == peer) else {
            return;
        };
        if owner.follow.as_ref().is_some_and(|f| f.misses(&member)) {
            return;
        }
        let from = owner.acknowledged.get(&member).copied().unwrap_or(0);
        for (position, entry) in owner.journal.after(from) {
            self.write_entry(s, peer, position, entry);
        }
    }

    /// Proposals that waited.
    pub(super) fn release_held(&mut self, s: &mut Shared, now: Instant) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let held: Vec<(u64, Entry)> = owner.held.drain(..).collect();
        for (token, entry) in held {
            self.propose(s, now, token, entry);
        }
    }

    /// This member is not the owner any more: nothing that waits will be committed here.
    pub(super) fn abandon(&mut self, s: &mut Shared) {
        let Phase::Owner(owner) = &mut self.phase else {
            return;
        };
        let tokens = owner
            .journal
            .abandon()
            .into_iter()
            .chain(owner.held.drain(..).map(|(token, _)| token));
        for token in tokens.collect::<Vec<_>>() {
            let why = Refused::NotOwner;
            s.outputs.push_back(Output::Refused { token, why });
        }
    }
}
