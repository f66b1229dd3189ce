//! What all groups of a member share: the peers, and the way records go to them.

use super::NodeConfig;
use crate::detector::{Detector, Hearing};
use crate::io::{Event, EventKind, Output};
use crate::layout::GROUPS_MAX;
use crate::message::{Body, GroupBeat, GroupBody, Link, Message, OLDEST, Policy, SetMember, VERSION};
use crate::ownership::OwnershipAnswer;
use crate::rules::{self, EpochId};
use model::{GroupId, Incarnation, Instant, MemberId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Heartbeats whose send times are remembered: several seconds' worth with 15 peers on two links.
const SENT_MAX: usize = 8192;

/// Another member.
pub(crate) struct Peer {
    pub member: MemberId,
    pub incarnation: Option<Incarnation>,
    /// When this life of it was first heard.
    pub since: Instant,
    pub detector: Detector,
    /// Whether it hears this member.
    pub hearing: Hearing,
    pub links: BTreeSet<Link>,
    /// Last heartbeat seen: the confirmation to send back.
    pub seen: Option<(Incarnation, u64)>,
    /// Newest format of records that it speaks, as it says; the oldest one before that.
    pub speaks: u8,
    /// It has said so in its present life.
    pub said_hello: bool,
    /// What its last heartbeat said of the groups; empty before the first one.
    pub beats: Vec<GroupBeat>,
    /// Its policy; `None` before its Hello.
    pub policy: Option<Policy>,
    /// What that differs in from ours.
    pub differs: Vec<String>,
    pub healthy: bool,
    pub draining: bool,
    pub twin_reported: bool,
}

impl Peer {
    fn new(member: MemberId, config: &NodeConfig, now: Instant) -> Self {
        Self {
            member,
            incarnation: None,
            since: now,
            detector: Detector::new(config.heartbeat, config.suspicion_floor, now),
            hearing: Hearing::new(config.heartbeat),
            links: BTreeSet::new(),
            seen: None,
            speaks: OLDEST,
            said_hello: false,
            beats: Vec::new(),
            policy: None,
            differs: Vec::new(),
            healthy: true,
            draining: false,
            twin_reported: false,
        }
    }

    pub fn as_set_member(&self) -> Option<SetMember> {
        self.incarnation.map(|incarnation| SetMember {
            member: self.member,
            incarnation,
        })
    }

    /// The link that carries its stream: the synch link, or the outside link while that is down.
    pub fn stream_link(&self) -> Option<Link> {
        [Link::Synch, Link::Outside]
            .into_iter()
            .find(|link| self.links.contains(link))
    }
}

/// What the groups share.
pub(crate) struct Shared {
    pub config: NodeConfig,
    pub me: SetMember,
    pub peers: BTreeMap<MemberId, Peer>,
    pub outputs: VecDeque<Output>,
    next_token: u64,
    pub heartbeat_seq: u64,
    sent: VecDeque<Instant>,
    pub refused: u64,
    pub trouble: Option<String>,
    pub draining: bool,
    pub engine_silent: Option<(Instant, String)>,
    /// See [`super::SharedPolicy`].
    pub next_policy: Option<Policy>,
    /// Newest format that this member is to speak.
    pub speak: u8,
    /// Heartbeats are to go out now.
    pub news: bool,
}

impl Shared {
    pub fn new(config: NodeConfig, now: Instant) -> Self {
        let peers = config
            .members
            .keys()
            .filter(|member| **member != config.me)
            .map(|member| (*member, Peer::new(*member, &config, now)))
            .collect();
        Self {
            me: SetMember {
                member: config.me,
                incarnation: config.incarnation,
            },
            peers,
            outputs: VecDeque::new(),
            next_token: 1,
            heartbeat_seq: 0,
            sent: VecDeque::new(),
            refused: 0,
            trouble: None,
            draining: false,
            engine_silent: None,
            next_policy: None,
            speak: VERSION,
            news: false,
            config,
        }
    }

    /// A token for an output of a group; see `group_of_token`.
    pub fn token(&mut self, group: GroupId) -> u64 {
        let token = self.next_token * u64::from(GROUPS_MAX) + u64::from(group.0);
        self.next_token += 1;
        token
    }

    pub fn event(&mut self, at: Instant, group: Option<GroupId>, kind: EventKind) {
        self.outputs.push_back(Output::Event(Event { at, group, kind }));
    }

    /// The next heartbeat's number.
    pub fn next_heartbeat(&mut self, now: Instant) -> u64 {
        self.heartbeat_seq += 1;
        if self.sent.len() == SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back(now);
        self.heartbeat_seq
    }

    /// When a heartbeat was sent, if that is still known.
    pub fn sent_at(&self, seq: u64) -> Option<Instant> {
        let back = self.heartbeat_seq.checked_sub(seq)?;
        let index = self.sent.len().checked_sub(1 + usize::try_from(back).ok()?)?;
        self.sent.get(index).copied()
    }

    pub fn alive(&self, member: MemberId) -> bool {
        member == self.me.member || self.peers.get(&member).is_some_and(|p| p.detector.alive())
    }

    /// Members that are heard, but do not hear this one.
    pub fn deaf(&self) -> BTreeSet<MemberId> {
        let interval = self.config.heartbeat;
        self.peers
            .values()
            .filter(|p| p.detector.alive())
            .filter(|p| rules::is_deaf(p.hearing.unheard(), p.detector.threshold(), interval))
            .map(|p| p.member)
            .collect()
    }

    /// Members that are heard.
    pub fn heard(&self) -> BTreeSet<MemberId> {
        let heard = self.peers.values().filter(|p| p.detector.alive());
        heard.map(|p| p.member).collect()
    }

    /// Whether it may be given a group: alive, its data plane works, and nobody drains it.
    pub fn fit(&self, member: MemberId) -> bool {
        if member == self.me.member {
            return self.trouble.is_none() && !self.draining;
        }
        self.peers
            .get(&member)
            .is_some_and(|p| p.detector.alive() && p.healthy && !p.draining)
    }

    /// The present life of each member that is known, this one's included.
    pub fn lives(&self) -> BTreeSet<SetMember> {
        self.peers
            .values()
            .filter(|p| p.detector.alive())
            .filter_map(Peer::as_set_member)
            .chain([self.me])
            .collect()
    }

    pub fn all_links(&self) -> Vec<(MemberId, Link)> {
        self.peers
            .values()
            .flat_map(|p| p.links.iter().map(|link| (p.member, *link)))
            .collect()
    }

    /// On the synch link, or on the outside link while the synch link is down. While both are down it is dropped: what
    /// matters is sent again when one is back.
    pub fn stream(&mut self, peer: MemberId, group: GroupId, epoch: EpochId, body: GroupBody) {
        let Some(link) = self.peers.get(&peer).and_then(Peer::stream_link) else {
            return;
        };
        let bytes = self.record(peer, group, epoch, body);
        self.outputs.push_back(Output::SendStream { peer, link, bytes });
    }

    /// As a datagram, on the synch link or, where that is down, outside.
    pub fn datagram(&mut self, peer: MemberId, group: GroupId, epoch: EpochId, body: GroupBody) {
        let Some(link) = self.peers.get(&peer).and_then(Peer::stream_link) else {
            return;
        };
        let bytes = self.record(peer, group, epoch, body);
        self.outputs.push_back(Output::SendDatagram { peer, link, bytes });
    }

    /// As datagrams, on every link.
    pub fn datagrams(&mut self, peer: MemberId, group: GroupId, epoch: EpochId, body: GroupBody) {
        let links: Vec<Link> = self
            .peers
            .get(&peer)
            .into_iter()
            .flat_map(|p| p.links.iter().copied())
            .collect();
        let bytes = self.record(peer, group, epoch, body);
        for link in links {
            let bytes = bytes.clone();
            self.outputs.push_back(Output::SendDatagram { peer, link, bytes });
        }
    }

    fn record(&self, peer: MemberId, group: GroupId, epoch: EpochId, body: GroupBody) -> Vec<u8> {
        let body = Body::Group { group, epoch, body };
        Message { from: self.me, body }.encode(self.version_for(peer))
    }

    /// The newest format that both speak.
    pub fn version_for(&self, peer: MemberId) -> u8 {
        let theirs = self.peers.get(&peer).map_or(OLDEST, |p| p.speaks);
        self.speak.min(theirs).max(OLDEST)
    }

    /// Whether what [`Shared::version_for`] says is the peer's word in its present life.
    pub fn has_said_hello(&self, peer: MemberId) -> bool {
        self.peers.get(&peer).is_some_and(|p| p.said_hello)
    }

    /// Keeps track of whether the ownership engine answers.
    pub fn engine_answered(&mut self, now: Instant, answer: &OwnershipAnswer) {
        match answer {
            OwnershipAnswer::Unknown(why) => {
                if self.engine_silent.is_none() {
                    self.engine_silent = Some((now, why.clone()));
                    let why = why.clone();
                    self.event(now, None, EventKind::EngineSilent { why });
                }
            }
            _ => {
                if self.engine_silent.take().is_some() {
                    self.event(now, None, EventKind::EngineBack);
                }
            }
        }
    }
}
