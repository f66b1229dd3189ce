//! One member of a pair: the embedded ownership engine, sans IO.

mod handover;
mod join;
mod owner;
mod receive;
mod standby;

use crate::detector::Detector;
use crate::io::{Event, EventKind, Flip, Input, Legacy, Output};
use crate::message::{Body, Heartbeat, Link, Message, RaiseKey, SetMember};
use crate::rules::{self, EpochId, FirstOwner, Solo, Standing};
use crate::status::{NodeStatus, PeerStatus, Role};
use model::{Epoch, Incarnation, Instant, MemberId};
use owner::{Loss, Owner};
use standby::Standby;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This member.
    pub me: MemberId,
    /// New at every start of the agent, and rising.
    pub incarnation: Incarnation,
    /// The other member of the pair; `None` for a gateway that stands alone.
    pub peer: Option<MemberId>,
    /// This member begins, if both are there and nobody owns the segments.
    pub preferred: bool,
    /// Interval of heartbeats.
    pub heartbeat: Duration,
    /// Suspicion never comes sooner.
    pub suspicion_floor: Duration,
    /// Dead-man's switch T.
    pub dead_man: Duration,
    /// How long to listen for the other one before beginning alone.
    pub settle: Duration,
    /// Without a standby.
    pub solo: Solo,
    /// Digest of the policy that both must share.
    pub digest: [u8; 32],
    /// Facts for the other agent.
    pub facts: Vec<u8>,
}

/// How long a standby may leave the journal unacknowledged before it is dropped from the in-sync set.
const ACK_TIMEOUT: Duration = Duration::from_millis(1000);
/// Raises are sent again after this time.
const RAISE_RESEND: Duration = Duration::from_millis(10);
/// A raise that nobody acknowledges for this long is forgotten (the SA is gone); the data plane asks again.
const RAISE_GIVE_UP: Duration = Duration::from_millis(2000);
/// Heartbeats whose send times are remembered.
const SENT_MAX: usize = 256;

struct Peer {
    member: MemberId,
    incarnation: Option<Incarnation>,
    detector: Detector,
    links: BTreeSet<Link>,
    /// Last heartbeat seen: the confirmation to send back.
    seen: Option<(Incarnation, u64)>,
    /// The peer's epoch and whether it claims to own.
    claims: Option<(EpochId, bool)>,
    digest: Option<[u8; 32]>,
}

impl Peer {
    fn as_set_member(&self) -> Option<SetMember> {
        self.incarnation.map(|incarnation| SetMember {
            member: self.member,
            incarnation,
        })
    }
}

enum Phase {
    Starting { since: Instant },
    Owner(Box<Owner>),
    Standby(Box<Standby>),
}

/// What an [`Input::Armed`] answers.
enum Pending {
    Entry(u64),
    Raises(Vec<(u64, RaiseKey)>),
    Snapshot { position: u64 },
    Flip(AfterFlip),
    Merge,
    Cap,
    Verify,
    Close,
}

/// What follows a flip.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AfterFlip {
    Nothing,
    ServeAndAnnounce,
    ShadowArmed,
    HoldingArmed,
}

/// One member.
pub struct Node {
    config: NodeConfig,
    me: SetMember,
    phase: Phase,
    /// The epoch in force, as far as this member knows.
    epoch: EpochId,
    peer: Option<Peer>,
    outputs: VecDeque<Output>,
    pending: BTreeMap<u64, Pending>,
    next_token: u64,
    heartbeat_seq: u64,
    sent: VecDeque<(u64, Instant)>,
    last_heartbeat: Option<Instant>,
    last_tick: Instant,
    refused: u64,
    /// Joins that this life has asked for.
    joins: u64,
}

impl Node {
    /// A member that has just started and knows nothing.
    pub fn new(config: NodeConfig, now: Instant) -> Self {
        let peer = config.peer.map(|member| Peer {
            member,
            incarnation: None,
            detector: Detector::new(config.heartbeat, config.suspicion_floor, now),
            links: BTreeSet::new(),
            seen: None,
            claims: None,
            digest: None,
        });
        Self {
            me: SetMember {
                member: config.me,
                incarnation: config.incarnation,
            },
            phase: Phase::Starting { since: now },
            epoch: EpochId::NONE,
            peer,
            outputs: VecDeque::new(),
            pending: BTreeMap::new(),
            next_token: 1,
            heartbeat_seq: 0,
            sent: VecDeque::new(),
            last_heartbeat: None,
            last_tick: now,
            refused: 0,
            joins: 0,
            config,
        }
    }

    /// Takes an input; outputs come from [`Node::poll`].
    pub fn handle(&mut self, input: Input) {
        match input {
            Input::Tick { now } => self.tick(now),
            Input::LinkUp { now, peer, link } => self.link_up(now, peer, link),
            Input::LinkDown { peer, link, .. } => {
                if let Some(p) = self.peer.as_mut().filter(|p| p.member == peer) {
                    p.links.remove(&link);
                }
            }
            Input::Received {
                now,
                peer,
                link,
                bytes,
            } => self.received(now, peer, link, &bytes),
            Input::Propose { now, token, entry } => self.propose(now, token, entry),
            Input::Raise { now, items } => self.raise(now, items),
            Input::Armed { now, token, unknown } => self.armed(now, token, &unknown),
            Input::Snapshot { now, token, bytes } => self.snapshot_taken(now, token, bytes),
            Input::CapsVerified { now, token, items } => self.caps_verified(now, token, items),
            Input::FinalWindows { token, bytes, .. } => self.final_windows(token, bytes),
            Input::Report { edges } => self.report(&edges),
            Input::Command { now, command } => self.command(now, command),
        }
    }

    /// The next output.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When the next tick is due.
    pub fn next_wake(&self) -> Instant {
        let quarter = self.config.heartbeat / 4;
        self.last_tick + quarter
    }

    /// The epoch in force.
    pub fn epoch(&self) -> EpochId {
        self.epoch
    }

    /// Whether this member owns the segments.
    pub fn is_owner(&self) -> bool {
        matches!(self.phase, Phase::Owner(_))
    }

    /// How the owner stands; `None` for others.
    pub fn standing(&self) -> Option<Standing> {
        match &self.phase {
            Phase::Owner(owner) => Some(owner.standing),
            _ => None,
        }
    }

    /// Whether new SAs are known to this member alone.
    pub fn is_alone(&self) -> bool {
        match &self.phase {
            Phase::Owner(owner) => owner.in_sync.len() <= 1 && owner.join.is_none(),
            _ => false,
        }
    }

    /// What there is to say.
    pub fn status(&self) -> NodeStatus {
        let (role, in_sync, position, committed, raises_open, valid_until, handover) = match &self.phase {
            Phase::Starting { .. } => (Role::Starting, None, 0, 0, 0, Instant(0), false),
            Phase::Owner(o) => (
                Role::Active,
                Some(o.in_sync.clone()),
                o.journal.written(),
                o.journal.committed(),
                o.raises.len(),
                o.valid_until,
                o.handover.is_some(),
            ),
            Phase::Standby(s) => (
                if s.in_sync() { Role::Standby } else { Role::Joining },
                s.set.clone(),
                s.armed,
                0,
                0,
                Instant(0),
                s.legacy.is_some(),
            ),
        };
        NodeStatus {
            me: self.me,
            role,
            epoch: self.epoch,
            in_sync,
            standing: self.standing(),
            position,
            committed,
            raises_open,
            valid_until,
            handover,
            peers: self
                .peer
                .iter()
                .map(|p| PeerStatus {
                    member: p.member,
                    alive: p.detector.alive(),
                    suspected: p.detector.suspected(),
                    last_heard: p.detector.last_heard(),
                    threshold_ms: p.detector.threshold().as_millis() as u64,
                    links: p.links.clone(),
                })
                .collect(),
            refused: self.refused,
        }
    }

    fn tick(&mut self, now: Instant) {
        let gap = now.since(self.last_tick);
        self.last_tick = now;
        if gap > self.config.dead_man {
            self.event(
                now,
                EventKind::LocalStall {
                    ms: gap.as_millis() as u64,
                },
            );
            if let Phase::Owner(owner) = &mut self.phase {
                // What waits in the sockets is looked at first, and only a heartbeat sent from now on confirms.
                owner.reconfirm = Some(self.heartbeat_seq + 1);
                owner.awake_since = now;
            }
        }
        let suspected = self.peer.as_mut().is_some_and(|p| p.detector.tick(now));
        if suspected {
            self.peer_suspected(now);
        }
        match &self.phase {
            Phase::Starting { since } => self.tick_starting(now, *since),
            Phase::Owner(_) => self.tick_owner(now),
            Phase::Standby(_) => self.tick_standby(now),
        }
        if self
            .last_heartbeat
            .is_none_or(|last| now.since(last) >= self.config.heartbeat)
        {
            self.last_heartbeat = Some(now);
            self.send_heartbeats(now);
        }
    }

    fn tick_starting(&mut self, now: Instant, since: Instant) {
        // Heard, and heard to own nothing: its heartbeats say so, its other records do not.
        let peer_heard = self
            .peer
            .as_ref()
            .is_some_and(|p| p.detector.alive() && p.claims.is_some_and(|(_, owns)| !owns));
        let waited = now.since(since);
        let settle = if self.peer.is_some() {
            self.config.settle
        } else {
            Duration::ZERO
        };
        if rules::first_owner(
            self.config.preferred || self.peer.is_none(),
            peer_heard,
            waited,
            settle,
        ) == FirstOwner::Me
        {
            // It holds nothing, whatever epochs it has seen: against any owner that holds something it has to lose.
            let number = Epoch(1);
            let from = MemberId(0);
            self.claim(
                now,
                EpochId {
                    number,
                    owner: self.me.member,
                },
                from,
                BTreeSet::from([self.me]),
                Standing::AloneTaker,
                0,
            );
        }
    }

    fn peer_suspected(&mut self, now: Instant) {
        let Some(p) = &self.peer else { return };
        let (member, last_heard) = (p.member, p.detector.last_heard().unwrap_or(now));
        let threshold_ms = p.detector.threshold().as_millis() as u64;
        self.event(
            now,
            EventKind::Suspected {
                peer: member,
                last_heard,
                threshold_ms,
            },
        );
        self.peer_lost(now, "silent on every link");
    }

    /// The peer's present life is over, or as good as.
    fn peer_lost(&mut self, now: Instant, reason: &str) {
        match &self.phase {
            Phase::Starting { .. } => {}
            Phase::Owner(_) => self.standby_lost(now, reason, Loss::Silent),
            Phase::Standby(_) => self.owner_lost(now),
        }
    }

    /// Becomes the owner in `epoch` and has the words flipped.
    fn claim(
        &mut self,
        now: Instant,
        epoch: EpochId,
        from: MemberId,
        in_sync: BTreeSet<SetMember>,
        standing: Standing,
        position: u64,
    ) {
        self.event(
            now,
            EventKind::Claimed {
                epoch,
                from,
                planned: false,
            },
        );
        self.epoch = epoch;
        self.pending.clear();
        let owner = Owner::new(now, in_sync, standing, position, self.config.dead_man);
        self.phase = Phase::Owner(Box::new(owner));
        self.flip_as_owner(None, AfterFlip::ServeAndAnnounce);
        self.send_heartbeats(now);
    }

    /// Words that say: this member owns, in the present epoch.
    fn flip_as_owner(&mut self, legacy: Option<Legacy>, after: AfterFlip) {
        let Phase::Owner(owner) = &self.phase else { return };
        let successor = owner
            .in_sync
            .iter()
            .map(|m| m.member)
            .find(|m| *m != self.me.member);
        let (alone, valid_until) = (owner.standing == Standing::AloneTaker, owner.valid_until);
        self.flip(successor, alone, legacy, valid_until, after);
    }

    fn flip(
        &mut self,
        successor: Option<MemberId>,
        alone: bool,
        legacy: Option<Legacy>,
        valid_until: Instant,
        after: AfterFlip,
    ) {
        let epoch = self.epoch;
        let token = self.token(Pending::Flip(after));
        self.outputs.push_back(Output::Flip(Flip {
            token,
            epoch,
            valid_until,
            successor,
            alone,
            legacy,
        }));
    }

    fn armed(&mut self, now: Instant, token: u64, unknown: &[RaiseKey]) {
        match self.pending.remove(&token) {
            Some(Pending::Entry(position)) => self.entry_armed(position),
            Some(Pending::Raises(versions)) => self.raises_armed(versions, unknown),
            Some(Pending::Snapshot { position }) => self.snapshot_installed(position),
            Some(Pending::Merge) => self.windows_merged(now),
            Some(Pending::Flip(after)) => self.flipped(now, after),
            Some(Pending::Cap | Pending::Verify | Pending::Close) | None => {}
        }
    }

    fn flipped(&mut self, now: Instant, after: AfterFlip) {
        match after {
            AfterFlip::Nothing => {}
            AfterFlip::ServeAndAnnounce => {
                self.event(now, EventKind::Flipped(self.epoch));
                self.serve_and_announce(now);
            }
            AfterFlip::ShadowArmed => {
                self.event(now, EventKind::Flipped(self.epoch));
                self.send_stream(Body::HandoverArmed);
            }
            AfterFlip::HoldingArmed => self.send_stream(Body::HandoverHolding),
        }
    }

    fn serve_and_announce(&mut self, now: Instant) {
        self.outputs.push_back(Output::Announce);
        self.event(now, EventKind::Announced(self.epoch));
        self.outputs.push_back(Output::ResumeIke);
        if let Phase::Owner(owner) = &self.phase {
            let (set, standing) = (owner.in_sync.clone(), owner.standing);
            self.event(now, EventKind::InSync(set));
            self.event(now, EventKind::Standing(standing));
        }
    }

    fn send_heartbeats(&mut self, now: Instant) {
        let links: Vec<Link> = self.peer.iter().flat_map(|p| p.links.iter().copied()).collect();
        for link in links {
            self.send_heartbeat(now, link, false);
        }
    }

    fn send_heartbeat(&mut self, now: Instant, link: Link, reply: bool) {
        self.heartbeat_seq += 1;
        if self.sent.len() == SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((self.heartbeat_seq, now));
        let (owner, in_sync, position) = match &self.phase {
            Phase::Owner(o) => (true, o.in_sync.clone(), o.journal.written()),
            Phase::Standby(s) => (false, BTreeSet::new(), s.armed),
            Phase::Starting { .. } => (false, BTreeSet::new(), 0),
        };
        let echo = self.peer.as_ref().and_then(|p| p.seen);
        let body = Body::Heartbeat(Heartbeat {
            seq: self.heartbeat_seq,
            echo,
            owner,
            in_sync,
            position,
            reply,
        });
        self.send_datagram(link, body);
    }

    /// On every link that is up.
    fn send_datagram_everywhere(&mut self, body: &Body) {
        let links: Vec<Link> = self.peer.iter().flat_map(|p| p.links.iter().copied()).collect();
        for link in links {
            self.send_datagram(link, body.clone());
        }
    }

    fn send_datagram(&mut self, link: Link, body: Body) {
        let Some(peer) = self.peer.as_ref().map(|p| p.member) else {
            return;
        };
        let bytes = Message {
            from: self.me,
            epoch: self.epoch,
            body,
        }
        .encode();
        self.outputs.push_back(Output::SendDatagram { peer, link, bytes });
    }

    /// On the synch link, or on the outside link while the synch link is down.
    fn send_stream(&mut self, body: Body) {
        let Some(p) = &self.peer else { return };
        let (peer, link) = (
            p.member,
            if p.links.contains(&Link::Synch) {
                Link::Synch
            } else {
                Link::Outside
            },
        );
        let bytes = Message {
            from: self.me,
            epoch: self.epoch,
            body,
        }
        .encode();
        self.outputs.push_back(Output::SendStream { peer, link, bytes });
    }

    fn token(&mut self, pending: Pending) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.pending.insert(token, pending);
        token
    }

    fn event(&mut self, at: Instant, kind: EventKind) {
        self.outputs.push_back(Output::Event(Event { at, kind }));
    }
}
