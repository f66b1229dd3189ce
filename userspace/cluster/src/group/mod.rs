//! One group of segments: who owns it, its journal, raises, takeover and handover, as this member sees them.

mod engine;
mod follow;
mod fork;
mod handover;
mod join;
mod owner;
mod receive;
mod rests;
mod set;
mod standby;
mod starting;
pub(crate) mod tenure;

use crate::guest::GuestBody;
use crate::io::{EventKind, Flip, Legacy, Output};
use crate::message::{GUESTS_SINCE, GroupBeat, GroupBody, Heartbeat, RaiseKey, SetMember};
use crate::node::{EngineKind, Shared};
use crate::rules::{EpochId, Solo, Standing};
use crate::status::{GroupStatus, Role};
use fork::Fork;
use join::Join;
use model::{GroupId, Incarnation, Instant, MemberId};
use owner::Owner;
use standby::Standby;
use starting::Starting;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a standby may leave the journal or a raise unacknowledged before it is dropped from the in-sync set.
const ACK_TIMEOUT: Duration = Duration::from_millis(1000);
/// Raises are sent again after this time.
const RAISE_RESEND: Duration = Duration::from_millis(10);
/// How long a taker waits for the other survivors before it has them dropped from the set.
const FOLLOW_TIMEOUT: Duration = Duration::from_millis(60);
/// A standby of a pair that did not run for a while listens for this long before it claims: it may have been excluded, and
/// the owner's word of it may need a new connection to reach it.
const WARY: Duration = Duration::from_millis(1000);
/// A question to the ownership engine is asked again after this time.
const ENGINE_RETRY: Duration = Duration::from_millis(100);
/// An engine that says nothing at all for this long counts as having said that it does not know.
const ENGINE_PATIENCE: Duration = Duration::from_secs(5);

pub(crate) enum Phase {
    Starting(Starting),
    Owner(Box<Owner>),
    Standby(Box<Standby>),
}

/// What an answer of the agent is about.
enum Pending {
    Entry(u64),
    Raises(Vec<(u64, RaiseKey)>),
    Snapshot { position: u64 },
    Flip(AfterFlip),
    Restate,
    Merge,
    Cap,
    Verify,
    Close,
    Rests,
}

/// What follows a flip.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AfterFlip {
    Nothing,
    ServeAndAnnounce,
    ShadowArmed,
    HoldingArmed,
}

/// A member's part in one group.
pub(crate) struct Group {
    id: GroupId,
    home: MemberId,
    phase: Phase,
    /// The epoch in force, as far as this member knows.
    epoch: EpochId,
    pending: BTreeMap<u64, Pending>,
    /// Joins that this life has asked for.
    joins: u64,
    /// A member asks for a planned takeover.
    request: Option<MemberId>,
    home_ready: Option<Instant>,
    /// What this member's lost forks touched.
    fork: Fork,
    /// SAs that a lost standby knew, not rekeyed yet.
    suspects: usize,
}

impl Group {
    pub fn new(id: GroupId, home: MemberId, now: Instant) -> Self {
        Self {
            id,
            home,
            phase: Phase::Starting(Starting::new(now)),
            epoch: EpochId::NONE,
            pending: BTreeMap::new(),
            joins: 0,
            request: None,
            home_ready: None,
            fork: Fork::default(),
            suspects: 0,
        }
    }

    pub fn id(&self) -> GroupId {
        self.id
    }

    pub fn home(&self) -> MemberId {
        self.home
    }

    pub fn epoch(&self) -> EpochId {
        self.epoch
    }

    pub fn is_owner(&self) -> bool {
        matches!(self.phase, Phase::Owner(_))
    }

    pub fn standing(&self) -> Option<Standing> {
        match &self.phase {
            Phase::Owner(owner) => Some(owner.standing),
            _ => None,
        }
    }

    pub fn is_alone(&self) -> bool {
        match &self.phase {
            Phase::Owner(owner) => owner.required().len() <= 1 && owner.join.is_none(),
            _ => false,
        }
    }

    /// Whether a planned handover is under way here, in any part.
    pub fn is_moving(&self) -> bool {
        match &self.phase {
            Phase::Owner(owner) => owner.handover.is_some(),
            Phase::Standby(standby) => standby.legacy.is_some(),
            Phase::Starting(_) => false,
        }
    }

    pub fn take_request(&mut self) -> Option<MemberId> {
        self.request.take().filter(|_| self.is_owner())
    }

    /// Whether the group has been somewhere else than at home for `pause`, while its home could have taken it.
    pub fn home_is_ready(&mut self, s: &Shared, now: Instant, pause: Duration) -> bool {
        let ready = self.is_owner()
            && self.home != s.me.member
            && s.fit(self.home)
            && self.may_move(s, self.home).is_ok();
        if !ready {
            self.home_ready = None;
            return false;
        }
        now.since(*self.home_ready.get_or_insert(now)) >= pause
    }

    /// What the heartbeats say of this group; `lives` are those that they name.
    pub fn beat(&self, lives: &BTreeSet<SetMember>) -> GroupBeat {
        let (owner, in_sync, position, settled) = match &self.phase {
            Phase::Owner(o) => (
                true,
                Heartbeat::mask_of(lives, &o.in_sync),
                o.journal.written(),
                o.raises.settled(),
            ),
            Phase::Standby(st) => (false, 0, st.armed, 0),
            Phase::Starting(_) => (false, 0, 0, 0),
        };
        let joining = match &self.phase {
            Phase::Owner(o) => o.join.as_ref().map_or(0, |j| j.member.member.0),
            _ => 0,
        };
        GroupBeat {
            joining,
            epoch: self.epoch,
            owner,
            in_sync,
            position,
            settled,
        }
    }

    /// The lives that the mask in [`Group::beat`] speaks of.
    pub fn named_lives(&self) -> Vec<SetMember> {
        match &self.phase {
            Phase::Owner(owner) => owner.in_sync.iter().copied().collect(),
            _ => Vec::new(),
        }
    }

    pub fn status(&self) -> GroupStatus {
        let (role, in_sync, position, committed, raises_open, valid_until, handover) = match &self.phase {
            Phase::Starting(_) => (Role::Starting, None, 0, 0, 0, Instant(0), false),
            Phase::Owner(o) => (
                Role::Active,
                Some(o.in_sync.clone()),
                o.journal.written(),
                o.journal.committed(),
                o.raises.len(),
                o.valid_until,
                o.handover.is_some(),
            ),
            Phase::Standby(st) => (
                if st.in_sync() {
                    Role::Standby
                } else {
                    Role::Joining
                },
                st.set.clone(),
                st.armed,
                0,
                0,
                Instant(0),
                st.legacy.is_some(),
            ),
        };
        let engine_waits = match &self.phase {
            Phase::Starting(starting) => starting.waits(),
            Phase::Owner(owner) => owner.writing.is_some(),
            Phase::Standby(standby) => standby.claim.is_some(),
        };
        GroupStatus {
            group: self.id,
            role,
            epoch: self.epoch,
            home: self.home,
            in_sync,
            standing: self.standing(),
            position,
            committed,
            raises_open,
            valid_until,
            handover,
            suspects: self.suspects,
            move_waits: None,
            engine_waits,
        }
    }

    pub fn tick(&mut self, s: &mut Shared, now: Instant) {
        match &self.phase {
            Phase::Starting(_) => self.tick_starting(s, now),
            Phase::Owner(_) => self.tick_owner(s, now),
            Phase::Standby(_) => self.tick_standby(s, now),
        }
        self.tell_fork(s, now);
    }

    /// A peer's silence passed the threshold.
    pub fn member_silent(&mut self, s: &mut Shared, now: Instant, member: MemberId) {
        match &self.phase {
            Phase::Starting(_) => {}
            Phase::Owner(_) => self.standby_silent(s, now, member, "silent on every link"),
            Phase::Standby(_) if self.epoch.owner == member => self.owner_lost(s, now),
            Phase::Standby(_) => {}
        }
    }

    /// A peer is heard (again).
    pub fn member_heard(&mut self, s: &mut Shared, now: Instant, member: MemberId) {
        if let Phase::Standby(_) = &self.phase
            && self.epoch.owner == member
        {
            self.owner_is_back(s, now);
        }
    }

    /// A peer has begun a new life.
    pub fn member_restarted(&mut self, s: &mut Shared, now: Instant, old: SetMember) {
        match &self.phase {
            Phase::Owner(_) => self.standby_restarted(s, now, old),
            Phase::Standby(_) if self.epoch.owner == old.member => self.owner_lost(s, now),
            _ => {}
        }
    }

    /// This member did not run for `gap`. Heartbeats from number `first` on confirm.
    pub fn stalled(&mut self, s: &mut Shared, now: Instant, gap: Duration, first: u64) {
        if let Phase::Owner(owner) = &mut self.phase {
            owner.reconfirm = Some(first);
            owner.awake_since = now;
            // Acknowledgements may wait in the sockets, or word of a member that took over: nobody is late yet.
            owner.owing.values_mut().for_each(|since| *since = now);
            owner.raises.restart_clocks(now);
        }
        // A shorter pause excludes nobody.
        if gap >= s.config.suspicion_floor
            && let Phase::Standby(standby) = &mut self.phase
        {
            standby.wary_until = Some(now + WARY);
        }
        self.ask_whether_still_owner(s, now);
    }

    /// The stream to a peer begins anew.
    pub fn stream_is_new(&mut self, s: &mut Shared, now: Instant, peer: MemberId) {
        match &self.phase {
            Phase::Owner(_) => self.stream_to_standby(s, now, peer),
            Phase::Standby(_) if self.epoch.owner == peer => self.stream_to_owner(s),
            _ => {}
        }
    }

    fn solo(s: &Shared) -> Option<Solo> {
        match s.config.engine {
            EngineKind::Pair { solo } => Some(solo),
            EngineKind::External => None,
        }
    }

    fn token(&mut self, s: &mut Shared, pending: Pending) -> u64 {
        let token = s.token(self.id);
        self.pending.insert(token, pending);
        token
    }

    /// Says something about guests; members of an older release do not know what guests are.
    pub fn say_guest(&self, s: &mut Shared, to: MemberId, body: GuestBody) {
        if s.version_for(to) >= GUESTS_SINCE {
            self.stream(s, to, GroupBody::Guest(body));
        }
    }

    fn event(&self, s: &mut Shared, now: Instant, kind: EventKind) {
        s.event(now, Some(self.id), kind);
    }

    /// To a peer's stream, in this member's epoch.
    fn stream(&self, s: &mut Shared, peer: MemberId, body: GroupBody) {
        s.stream(peer, self.id, self.epoch, body);
    }

    /// To the owner's stream.
    fn to_owner(&self, s: &mut Shared, body: GroupBody) {
        self.stream(s, self.epoch.owner, body);
    }

    /// The order in which members of a set are to take over, so that the groups of a lost member spread.
    fn rank(&self, set: &BTreeSet<SetMember>, without: MemberId) -> Vec<MemberId> {
        let mut members: Vec<MemberId> = set.iter().map(|m| m.member).filter(|m| *m != without).collect();
        if !members.is_empty() {
            let by = usize::from(self.id.0) % members.len();
            members.rotate_left(by);
        }
        members
    }

    /// Becomes the owner in `epoch`, with the set that goes with it. It serves once the others of the set follow it.
    fn become_owner(&mut self, s: &mut Shared, now: Instant, claimed: Claimed) {
        let Claimed {
            epoch,
            from,
            in_sync,
            standing,
            position,
        } = claimed;
        let (old, doubtful) = match &self.phase {
            Phase::Standby(standby) => standby.history(self.epoch),
            _ => (self.epoch, Vec::new()),
        };
        self.event(
            s,
            now,
            EventKind::Claimed {
                epoch,
                from,
                planned: false,
            },
        );
        self.epoch = epoch;
        self.pending.clear();
        let others: BTreeSet<SetMember> = in_sync.iter().copied().filter(|m| *m != s.me).collect();
        let mut owner = Owner::new(now, s.me, in_sync.clone(), standing, position, s.config.dead_man);
        owner.follow = follow::Follow::begin(now, old, others, doubtful);
        self.phase = Phase::Owner(Box::new(owner));
        s.news = true;
        self.call_followers(s);
        self.follow_progress(s, now);
    }

    /// Words that say: this member owns, in the present epoch.
    fn flip_as_owner(&mut self, s: &mut Shared, legacy: Option<Legacy>, after: AfterFlip) {
        let Phase::Owner(owner) = &self.phase else { return };
        let successor = self
            .rank(&owner.in_sync, s.me.member)
            .into_iter()
            .find(|m| s.alive(*m));
        // A member that joins holds a snapshot of limits that depend on the epoch's distance: an owner that loses its last
        // standby meanwhile stays within them. One that was alone when the join began has capped them all.
        let free = owner.join.as_ref().is_none_or(Join::began_alone);
        let (alone, valid_until) = (owner.standing == Standing::AloneTaker && free, owner.valid_until);
        self.flip(s, successor, alone, legacy, valid_until, after);
    }

    fn flip(
        &mut self,
        s: &mut Shared,
        successor: Option<MemberId>,
        alone: bool,
        legacy: Option<Legacy>,
        valid_until: Instant,
        after: AfterFlip,
    ) {
        let (group, epoch) = (self.id, self.epoch);
        let token = self.token(s, Pending::Flip(after));
        s.outputs.push_back(Output::Flip(Flip {
            group,
            token,
            epoch,
            valid_until,
            successor,
            alone,
            legacy,
        }));
    }

    pub fn armed(&mut self, s: &mut Shared, now: Instant, token: u64, unknown: &[RaiseKey]) {
        match self.pending.remove(&token) {
            Some(Pending::Entry(position)) => self.entry_armed(s, position),
            Some(Pending::Raises(versions)) => self.raises_armed(s, versions, unknown),
            Some(Pending::Snapshot { position }) => self.snapshot_installed(s, position),
            Some(Pending::Merge) => self.windows_merged(s, now),
            Some(Pending::Flip(after)) => self.flipped(s, now, after),
            Some(Pending::Cap | Pending::Verify | Pending::Close | Pending::Restate | Pending::Rests)
            | None => {}
        }
    }

    fn flipped(&mut self, s: &mut Shared, now: Instant, after: AfterFlip) {
        match after {
            AfterFlip::Nothing => {}
            AfterFlip::ServeAndAnnounce => {
                self.event(s, now, EventKind::Flipped(self.epoch));
                self.serve_and_announce(s, now);
            }
            AfterFlip::ShadowArmed => {
                self.event(s, now, EventKind::Flipped(self.epoch));
                if let Some(old) = self.old_owner() {
                    self.stream(s, old, GroupBody::HandoverArmed);
                }
            }
            AfterFlip::HoldingArmed => {
                if let Some(old) = self.old_owner() {
                    self.stream(s, old, GroupBody::HandoverHolding);
                }
            }
        }
    }

    fn serve_and_announce(&mut self, s: &mut Shared, now: Instant) {
        let group = self.id;
        s.outputs.push_back(Output::Announce { group });
        self.event(s, now, EventKind::Announced(self.epoch));
        s.outputs.push_back(Output::ResumeIke { group });
        if let Phase::Owner(owner) = &self.phase {
            let (set, standing) = (owner.in_sync.clone(), owner.standing);
            self.event(s, now, EventKind::InSync(set));
            self.event(s, now, EventKind::Standing(standing));
        }
    }

    /// Gives up what it owns: nothing that waits will be committed here.
    fn stop_owning(&mut self, s: &mut Shared) {
        self.abandon(s);
        let group = self.id;
        s.outputs.push_back(Output::SuspendIke { group });
    }
}

/// A claim that holds.
struct Claimed {
    epoch: EpochId,
    from: MemberId,
    in_sync: BTreeSet<SetMember>,
    standing: Standing,
    position: u64,
}

/// The life of a member, or one that nobody has.
fn life(s: &Shared, member: MemberId) -> SetMember {
    if member == s.me.member {
        return s.me;
    }
    s.peers
        .get(&member)
        .and_then(crate::node::Peer::as_set_member)
        .unwrap_or(SetMember {
            member,
            incarnation: Incarnation(u64::MAX),
        })
}
