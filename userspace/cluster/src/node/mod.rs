//! One member: its peers, heartbeats, and a machine for each group of segments.
//!
//! What concerns one group alone is in [`crate::group`]; here is what all of them share: who is alive, how records get to
//! others, and which group moves next.

mod moves;
mod peers;
mod receive;
mod tenure;

use crate::group::Group;
use crate::io::{Command, EventKind, Input, Output};
use crate::journal::Entry;
use crate::layout::{self, Layout};
use crate::message::{Body, Heartbeat, Link, Message, OLDEST, Policy, SetMember, VERSION};
use crate::rules::{EpochId, Solo, Standing};
use crate::status::{GroupStatus, NodeStatus, PeerStatus};
use model::{EspSpi, GroupId, Incarnation, Instant, MemberId};
use moves::Moves;
pub(crate) use peers::{Peer, Shared};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Who settles ownership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Two members among themselves (or one alone).
    Pair {
        /// What the owner does without its standby.
        solo: Solo,
    },
    /// An external engine with compare-and-swap: claims and changes of the in-sync set are committed there first.
    External,
}

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This member.
    pub me: MemberId,
    /// New at every start of the agent, and rising.
    pub incarnation: Incarnation,
    /// All members (this one too), with their weights: shares of the groups. In a hot standby cluster the preferred
    /// member has weight 1 and the others 0.
    pub members: BTreeMap<MemberId, u32>,
    /// How the segments are cut.
    pub layout: Layout,
    /// Who settles ownership.
    pub engine: EngineKind,
    /// Interval of heartbeats.
    pub heartbeat: Duration,
    /// Suspicion never comes sooner.
    pub suspicion_floor: Duration,
    /// Dead-man's switch T.
    pub dead_man: Duration,
    /// How long to listen for the others before beginning alone.
    pub settle: Duration,
    /// Move groups to the members they are meant for by itself, this long after such a member is in sync; `None`: only by
    /// command.
    pub rebalance: Option<Duration>,
    /// Digests of the policy that all must share.
    pub policy: Policy,
    /// Facts for the other agents.
    pub facts: Vec<u8>,
}

/// Digests of the policy that all must share, under the keys that this member knows.
#[derive(Clone, Debug, Default)]
pub struct SharedPolicy {
    /// Under the key in use: what this member says.
    pub present: Policy,
    /// Under the key that the others may have gone over to already.
    pub next: Option<Policy>,
}

/// One member.
pub struct Node {
    shared: Shared,
    groups: Vec<Group>,
    moves: Moves,
    last_tick: Instant,
    last_heartbeat: Option<Instant>,
}

impl Node {
    /// A member that has just started and knows nothing.
    pub fn new(config: NodeConfig, now: Instant) -> Self {
        let homes = layout::homes(config.layout, &config.members);
        let groups = config
            .layout
            .groups()
            .map(|group| Group::new(group, homes.get(&group).copied().unwrap_or(config.me), now))
            .collect();
        Self {
            shared: Shared::new(config, now),
            groups,
            moves: Moves::default(),
            last_tick: now,
            last_heartbeat: None,
        }
    }

    /// Speaks no newer format of records than this one, although the release could: for a rolling upgrade, until every
    /// member runs it.
    pub fn speak_at_most(&mut self, version: u8) {
        self.shared.speak = version.clamp(OLDEST, VERSION);
    }

    /// Another policy, or the same one under another key, and other facts: said to all at once. What was found of the others by
    /// the policy before stays until they speak again.
    pub fn share(&mut self, policy: SharedPolicy, facts: Vec<u8>) {
        self.shared.config.policy = policy.present;
        self.shared.next_policy = policy.next;
        self.shared.config.facts = facts;
        for (peer, link) in self.shared.all_links() {
            self.hello(peer, link);
        }
        // Members that are in sync stay so while they read their configurations again one after the other; one that joins has to agree.
        let now = self.last_tick;
        for member in self.shared.peers.keys().copied().collect::<Vec<_>>() {
            self.compare_policy(now, member);
        }
    }

    /// Takes an input; outputs come from [`Node::poll`].
    pub fn handle(&mut self, input: Input) {
        match input {
            Input::Tick { now } => self.tick(now),
            Input::LinkUp { now, peer, link } => self.link_up(now, peer, link),
            Input::LinkDown { now, peer, link } => self.link_down(now, peer, link),
            Input::Received {
                now,
                peer,
                link,
                bytes,
            } => self.received(now, peer, link, &bytes),
            Input::Propose {
                now,
                group,
                token,
                entry: whole,
                brief,
            } => {
                let entry = Entry { whole, brief };
                self.group_input(group, |g, s| g.propose(s, now, token, entry));
            }
            Input::Raise { now, items } => {
                let layout = self.shared.config.layout;
                for (group, items) in split(items, |item| layout.group_of_slot(item.slot)) {
                    self.group_input(group, |g, s| g.raise(s, now, items));
                }
            }
            Input::Armed { now, token, unknown } => {
                self.group_input(group_of_token(token), |g, s| g.armed(s, now, token, &unknown));
            }
            Input::DoesNotFit { now, token } => {
                self.group_input(group_of_token(token), |g, s| g.does_not_fit(s, now, token));
            }
            Input::Snapshot { token, bytes, .. } => {
                self.group_input(group_of_token(token), |g, s| g.snapshot_taken(s, token, bytes));
            }
            Input::CapsVerified { now, token, items } => {
                self.group_input(group_of_token(token), |g, s| {
                    g.caps_verified(s, now, token, items)
                });
            }
            Input::Restated { now, token, items } => {
                self.group_input(group_of_token(token), |g, s| g.restated(s, now, token, items));
            }
            Input::FinalWindows { token, bytes, .. } => {
                self.group_input(group_of_token(token), |g, s| g.final_windows(s, token, bytes));
            }
            Input::Suspects { now, group, count } => {
                self.group_input(group, |g, _| g.suspects(count));
                self.move_on(now);
            }
            Input::RestsLeft { now, token, rests } => {
                self.group_input(group_of_token(token), |g, s| g.rests_left(s, now, token, rests));
            }
            Input::Report { edges } => {
                let layout = self.shared.config.layout;
                for (group, edges) in split(edges, |(slot, _, _): &(u32, EspSpi, u64)| {
                    layout.group_of_slot(*slot)
                }) {
                    self.group_input(group, |g, s| g.report(s, &edges));
                }
            }
            Input::SayGuest { to, group, body } => self.group_input(group, |g, s| g.say_guest(s, to, body)),
            Input::ForkTouched {
                now,
                group,
                touched,
                peers,
            } => self.group_input(group, |g, s| g.fork_touched(s, now, touched, peers)),
            Input::ForkSettled {
                now,
                group,
                member,
                number,
            } => self.group_input(group, |g, s| g.fork_settled(s, now, member, number)),
            Input::OwnershipAnswered { now, token, answer } => {
                self.shared.engine_answered(now, &answer);
                self.group_input(group_of_token(token), |g, s| {
                    g.engine_answered(s, now, token, answer)
                });
            }
            Input::OwnershipSeen { now, group, record } => {
                if let Some(record) = record {
                    self.group_input(group, |g, s| g.record_seen(s, now, &record));
                }
            }
            Input::Health { now, trouble } => self.health(now, trouble),
            Input::Command { now, command } => self.command(now, command),
        }
    }

    /// The next output.
    pub fn poll(&mut self) -> Option<Output> {
        self.shared.outputs.pop_front()
    }

    /// When the next tick is due.
    pub fn next_wake(&self) -> Instant {
        self.last_tick + self.shared.config.heartbeat / 4
    }

    /// The epoch of a group in force, as far as this member knows.
    pub fn epoch(&self, group: GroupId) -> EpochId {
        self.group(group).map_or(EpochId::NONE, Group::epoch)
    }

    /// Whether this member owns the group.
    pub fn owns(&self, group: GroupId) -> bool {
        self.group(group).is_some_and(Group::is_owner)
    }

    /// This member in this life.
    pub fn me(&self) -> SetMember {
        self.shared.me
    }

    /// The present lives of all members that are heard, this one's included.
    pub fn lives(&self) -> BTreeSet<SetMember> {
        self.shared.lives()
    }

    /// How the owner stands; `None` where this member does not own the group.
    pub fn standing(&self, group: GroupId) -> Option<Standing> {
        self.group(group).and_then(Group::standing)
    }

    /// Whether new SAs of the group are known to this member alone.
    pub fn is_alone(&self, group: GroupId) -> bool {
        self.group(group).is_some_and(Group::is_alone)
    }

    /// Whether what this owner of the group does may turn out to be a fork that has to give way: it is to be recorded, for
    /// [`Input::ForkTouched`].
    pub fn may_give_way(&self, group: GroupId) -> bool {
        self.group(group)
            .is_some_and(|group| group.may_give_way(&self.shared))
    }

    /// Whether forks of this member's touched something in the group that nobody has dealt with yet.
    pub fn owes_a_fork(&self, group: GroupId) -> bool {
        self.group(group).is_some_and(Group::owes_a_fork)
    }

    /// Whether a proposal of the group is worth writing briefly too: somebody reads that.
    pub fn writes_briefly(&self, group: GroupId) -> bool {
        self.group(group)
            .is_some_and(|group| group.writes_briefly(&self.shared))
    }

    /// Whether this member, and all others that are heard, speak this format or a newer one.
    pub fn all_speak(&self, format: u8) -> bool {
        let mut heard = self.shared.peers.values().filter(|p| p.detector.alive());
        self.shared.speak >= format && heard.all(|p| p.speaks >= format)
    }

    /// Whether everybody who gets new entries of the group speaks this format of records, or a later one.
    pub fn all_read(&self, group: GroupId, version: u8) -> bool {
        self.group(group)
            .is_some_and(|group| group.all_read(&self.shared, version))
    }

    /// What there is to say.
    pub fn status(&self) -> NodeStatus {
        let shared = &self.shared;
        NodeStatus {
            me: shared.me,
            groups: self
                .groups
                .iter()
                .map(|group| GroupStatus {
                    move_waits: self.moves.waits(group.id()),
                    ..group.status()
                })
                .collect(),
            peers: shared
                .peers
                .values()
                .map(|p| PeerStatus {
                    member: p.member,
                    alive: p.detector.alive(),
                    suspected: p.detector.suspected(),
                    last_heard: p.detector.last_heard(),
                    threshold_ms: p.detector.threshold().as_millis() as u64,
                    links: p.links.clone(),
                    healthy: p.healthy,
                    draining: p.draining,
                    speaks: shared.version_for(p.member),
                    differs: p.differs.clone(),
                })
                .collect(),
            refused: shared.refused,
            draining: shared.draining,
            trouble: shared.trouble.clone(),
            engine_silent: shared.engine_silent.clone(),
        }
    }

    fn group(&self, group: GroupId) -> Option<&Group> {
        self.groups.get(usize::from(group.0))
    }

    /// Hands something to a group; it is lost where there is no such group.
    fn group_input(&mut self, group: GroupId, f: impl FnOnce(&mut Group, &mut Shared)) {
        self.with_group(group, f);
    }

    /// Does something with a group; nothing where there is no such group.
    fn with_group<T>(&mut self, group: GroupId, f: impl FnOnce(&mut Group, &mut Shared) -> T) -> Option<T> {
        self.groups
            .get_mut(usize::from(group.0))
            .map(|g| f(g, &mut self.shared))
    }

    fn each_group(&mut self, mut f: impl FnMut(&mut Group, &mut Shared)) {
        for group in &mut self.groups {
            f(group, &mut self.shared);
        }
    }

    fn tick(&mut self, now: Instant) {
        let gap = now.since(self.last_tick);
        self.last_tick = now;
        if gap > self.shared.config.dead_man {
            let ms = gap.as_millis() as u64;
            self.shared.event(now, None, EventKind::LocalStall { ms });
            // What waits in the sockets is looked at first, and only a heartbeat sent from now on confirms.
            let first = self.shared.heartbeat_seq + 1;
            self.each_group(|g, s| g.stalled(s, now, gap, first));
        }
        let suspected: Vec<MemberId> = self
            .shared
            .peers
            .values_mut()
            .filter_map(|p| p.detector.tick(now).then_some(p.member))
            .collect();
        for member in suspected {
            let Some(p) = self.shared.peers.get(&member) else {
                continue;
            };
            let kind = EventKind::Suspected {
                peer: member,
                last_heard: p.detector.last_heard().unwrap_or(now),
                threshold_ms: p.detector.threshold().as_millis() as u64,
            };
            self.shared.event(now, None, kind);
            self.each_group(|g, s| g.member_silent(s, now, member));
        }
        self.each_group(|g, s| g.tick(s, now));
        self.move_on(now);
        if self
            .last_heartbeat
            .is_none_or(|last| now.since(last) >= self.shared.config.heartbeat)
        {
            self.last_heartbeat = Some(now);
            self.heartbeats(now);
        }
        self.urgent_heartbeats(now);
    }

    /// Heartbeats to everybody, on every link.
    fn heartbeats(&mut self, now: Instant) {
        let links = self.shared.all_links();
        for (peer, link) in links {
            self.heartbeat(now, peer, link, false);
        }
    }

    /// A group has news that others should not have to wait for (a claim).
    fn urgent_heartbeats(&mut self, now: Instant) {
        if std::mem::take(&mut self.shared.news) {
            self.heartbeats(now);
        }
    }

    fn heartbeat(&mut self, now: Instant, peer: MemberId, link: Link, reply: bool) {
        let lives: BTreeSet<SetMember> = self.groups.iter().flat_map(Group::named_lives).collect();
        let groups: Vec<_> = self.groups.iter().map(|g| g.beat(&lives)).collect();
        let shared = &mut self.shared;
        let seq = shared.next_heartbeat(now);
        let body = Body::Heartbeat(Heartbeat {
            seq,
            echo: shared.peers.get(&peer).and_then(|p| p.seen),
            reply,
            healthy: shared.trouble.is_none(),
            draining: shared.draining,
            lives: lives.into_iter().collect(),
            groups,
        });
        let bytes = Message {
            from: shared.me,
            body,
        }
        .encode(shared.version_for(peer));
        shared
            .outputs
            .push_back(Output::SendDatagram { peer, link, bytes });
    }

    fn health(&mut self, now: Instant, trouble: Option<String>) {
        if self.shared.trouble.is_some() != trouble.is_some() {
            let member = self.shared.me.member;
            let kind = EventKind::Health {
                member,
                trouble: trouble.clone(),
            };
            self.shared.event(now, None, kind);
        }
        self.shared.trouble = trouble;
        self.stay();
        self.move_on(now);
    }

    fn command(&mut self, now: Instant, command: Command) {
        self.commanded(now, command);
        self.move_on(now);
    }
}

/// Tokens of outputs name their group in the low bits.
fn group_of_token(token: u64) -> GroupId {
    GroupId((token % u64::from(layout::GROUPS_MAX)) as u8)
}

fn split<T>(items: Vec<T>, group_of: impl Fn(&T) -> GroupId) -> BTreeMap<GroupId, Vec<T>> {
    let mut by_group: BTreeMap<GroupId, Vec<T>> = BTreeMap::new();
    for item in items {
        by_group.entry(group_of(&item)).or_default().push(item);
    }
    by_group
}
