//! Links and records: who may say what, and in which of its lives.

use super::{Node, Shared};
use crate::detector::Hearing;
use crate::io::{EventKind, Output};
use crate::message::{Body, Heartbeat, Link, Message, OLDEST, Policy, SetMember};
use model::{Instant, MemberId};
use std::time::Duration;

/// Records of an earlier life may still arrive this long after a new one was heard; later they come from a second agent.
const LATE_RECORDS: Duration = Duration::from_secs(5);

/// The part of the policy that differs where nothing is equal.
const SECRET: &str = "cluster.secret";

impl Node {
    pub(super) fn link_up(&mut self, now: Instant, peer: MemberId, link: Link) {
        let Some(p) = self.shared.peers.get_mut(&peer) else {
            return;
        };
        let before = p.stream_link();
        p.links.insert(link);
        let carrier = p.stream_link();
        self.hello(peer, link);
        self.heartbeat(now, peer, link, false);
        // A new stream, also where the link was thought to be up: what the old one carried may be lost.
        if carrier == Some(link) || carrier != before {
            self.each_group(|g, s| g.stream_is_new(s, now, peer));
        }
    }

    pub(super) fn link_down(&mut self, now: Instant, peer: MemberId, link: Link) {
        let Some(p) = self.shared.peers.get_mut(&peer) else {
            return;
        };
        let before = p.stream_link();
        p.links.remove(&link);
        let carrier = p.stream_link();
        if carrier.is_some() && carrier != before {
            self.each_group(|g, s| g.stream_is_new(s, now, peer));
        }
    }

    pub(super) fn received(&mut self, now: Instant, peer: MemberId, link: Link, bytes: &[u8]) {
        let message = match Message::decode(bytes) {
            Ok(message) => message,
            Err(error) => return self.shared.refuse(now, peer, &error.to_string()),
        };
        if message.from.member != peer || !self.shared.peers.contains_key(&peer) {
            let why = "the record names another sender than the channel";
            return self.shared.refuse(now, peer, why);
        }
        if !self.same_life(now, message.from) {
            self.shared.refused += 1;
            return;
        }
        if let Some(p) = self.shared.peers.get_mut(&peer)
            && p.detector.heard(now)
        {
            p.hearing.forgive();
            self.shared.event(now, None, EventKind::PeerHeard(peer));
            self.each_group(|g, s| g.member_heard(s, now, peer));
        }
        let from = message.from;
        match message.body {
            Body::Heartbeat(heartbeat) => self.heartbeat_heard(now, link, from, &heartbeat),
            Body::Hello {
                newest,
                policy,
                facts,
            } => {
                if let Some(p) = self.shared.peers.get_mut(&peer) {
                    p.speaks = newest;
                    p.said_hello = true;
                }
                self.policy_heard(now, peer, policy);
                self.shared.outputs.push_back(Output::PeerFacts { peer, facts });
            }
            Body::Rebalance => self.rebalance(now),
            Body::Group { group, epoch, body } => {
                if self
                    .with_group(group, |g, s| g.received(s, now, from, epoch, body))
                    .is_none()
                {
                    let why = "the record is of a group that this member does not have";
                    self.shared.refuse(now, peer, why);
                }
            }
        }
    }

    /// Whether the record is of the peer's present life; a new life is noticed here.
    fn same_life(&mut self, now: Instant, from: SetMember) -> bool {
        let Some(p) = self.shared.peers.get_mut(&from.member) else {
            return false;
        };
        match p.incarnation {
            Some(known) if known == from.incarnation => true,
            Some(known) if from.incarnation < known && p.detector.alive() => {
                if now.since(p.since) > LATE_RECORDS && !std::mem::replace(&mut p.twin_reported, true) {
                    self.shared.event(now, None, EventKind::Twin(from.member));
                }
                false
            }
            known => {
                p.incarnation = Some(from.incarnation);
                p.since = now;
                p.detector.reset(now);
                p.hearing = Hearing::new(self.shared.config.heartbeat);
                p.seen = None;
                p.speaks = OLDEST;
                p.said_hello = false;
                p.beats.clear();
                p.twin_reported = false;
                if let Some(was) = known {
                    let old = SetMember {
                        member: from.member,
                        incarnation: was,
                    };
                    self.each_group(|g, s| g.member_restarted(s, now, old));
                }
                true
            }
        }
    }

    fn heartbeat_heard(&mut self, now: Instant, link: Link, from: SetMember, heartbeat: &Heartbeat) {
        let Some(p) = self.shared.peers.get_mut(&from.member) else {
            return;
        };
        let ours = self.shared.me.incarnation;
        let confirms = heartbeat
            .echo
            .filter(|(life, _)| *life == ours)
            .map(|(_, seq)| seq);
        p.hearing.heartbeat(now, confirms);
        // Heartbeats overtake each other; what an older one says of the groups is outdated.
        let newest = p.seen.is_none_or(|(_, seq)| heartbeat.seq > seq);
        if newest {
            p.seen = Some((from.incarnation, heartbeat.seq));
            p.beats.clone_from(&heartbeat.groups);
            p.draining = heartbeat.draining;
            if std::mem::replace(&mut p.healthy, heartbeat.healthy) != heartbeat.healthy {
                let trouble = (!heartbeat.healthy).then(|| "its data plane is in trouble".to_owned());
                let member = from.member;
                self.shared
                    .event(now, None, EventKind::Health { member, trouble });
            }
        }
        let owns_any = heartbeat.groups.iter().any(|beat| beat.owner);
        for (group, beat) in self.groups.iter_mut().zip(&heartbeat.groups) {
            group.beat_heard(&mut self.shared, now, from, heartbeat, beat, newest);
        }
        if owns_any && !heartbeat.reply {
            self.heartbeat(now, from.member, link, true);
        }
    }

    fn policy_heard(&mut self, now: Instant, member: MemberId, theirs: Policy) {
        if let Some(p) = self.shared.peers.get_mut(&member) {
            p.policy = Some(theirs);
        }
        self.compare_policy(now, member);
    }

    /// What a member's policy, as far as it is known, differs in from ours.
    pub(super) fn compare_policy(&mut self, now: Instant, member: MemberId) {
        let theirs = self.shared.peers.get(&member).and_then(|p| p.policy.as_ref());
        let Some(parts) = theirs.map(|theirs| self.shared.differences(theirs)) else {
            return;
        };
        let Some(p) = self.shared.peers.get_mut(&member) else {
            return;
        };
        let news = p.differs != parts;
        p.differs.clone_from(&parts);
        if news && !parts.is_empty() {
            self.shared
                .event(now, None, EventKind::PolicyDiffers { member, parts });
        }
    }

    pub(super) fn hello(&mut self, peer: MemberId, link: Link) {
        let hello = Message {
            from: self.shared.me,
            body: Body::Hello {
                newest: self.shared.speak,
                policy: self.shared.config.policy.clone(),
                facts: self.shared.config.facts.clone(),
            },
        };
        let bytes = hello.encode(OLDEST);
        self.shared
            .outputs
            .push_back(Output::SendStream { peer, link, bytes });
    }
}

/// Names of the parts of two policies that differ. Under another key every part does: that is one difference, in the key.
fn differences(ours: &Policy, theirs: &Policy) -> Vec<String> {
    let parts = ours
        .keys()
        .chain(theirs.keys().filter(|part| !ours.contains_key(*part)));
    let (same, other): (Vec<&String>, Vec<&String>) =
        parts.partition(|part| ours.get(*part) == theirs.get(*part));
    if same.is_empty() && ours.len() > 1 && !theirs.is_empty() {
        return vec![SECRET.to_owned()];
    }
    other.into_iter().cloned().collect()
}

impl Shared {
    /// In what a peer's policy differs. One under the key that this member is about to use will do, since it follows; one that
    /// uses the key before has not followed yet.
    fn differences(&self, theirs: &Policy) -> Vec<String> {
        let present = differences(&self.config.policy, theirs);
        if present != [SECRET] {
            return present;
        }
        match &self.next_policy {
            Some(next) => differences(next, theirs),
            None => present,
        }
    }

    pub(crate) fn refuse(&mut self, now: Instant, peer: MemberId, reason: &str) {
        self.refused += 1;
        let kind = EventKind::RecordRefused {
            peer,
            reason: reason.to_owned(),
        };
        self.event(now, None, kind);
    }
}
