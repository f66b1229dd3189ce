//! What an owner that goes on alone changes without the knowledge of the other member, and what is done about it once such a fork has lost:
//! `userspace/agent/src/core/forks` in small.

use super::{Cx, Member};
use crate::entry::{EntryChange, spi_of};
use crate::sabotage::Sabotage;
use cluster::message::PeerMark;
use cluster::{Input, SetMember};
use ike::{Command, IkeSaPeer, Transmit};
use model::{ChildSaChange, GroupId, IkeSpi, Instant};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const EXCHANGE_AT: usize = 18;
const CREATE_CHILD_SA: u8 = 36;
const PER_SECOND: usize = 32;
const AGAIN: Duration = Duration::from_secs(30);

/// Of one member.
#[derive(Default)]
pub(super) struct Forks {
    /// What this member touched alone.
    touched: BTreeMap<GroupId, Touched>,
    /// What was told and need not be dealt with yet.
    owed: Left,
    /// What others have named.
    named: BTreeMap<(GroupId, SetMember), Part>,
}

/// What a life leaves to the next one, by group.
pub type Left = BTreeMap<GroupId, (BTreeSet<IkeSpi>, BTreeSet<PeerMark>)>;

#[derive(Default)]
struct Touched {
    spis: BTreeSet<IkeSpi>,
    /// IKE SAs that were begun alone.
    own: BTreeSet<IkeSpi>,
    /// With whom.
    peers: BTreeSet<PeerMark>,
}

struct Part {
    number: u64,
    /// IKE SAs, each with the time at which it was begun anew.
    anew: BTreeMap<IkeSpi, Option<Instant>>,
    check: BTreeSet<IkeSpi>,
}

fn mark_of(peer: &IkeSaPeer<'_>) -> Option<PeerMark> {
    let connection = peer.connection?;
    match (peer.initiator, peer.phase) {
        (true, "authenticating" | "established") => Some(PeerMark::of(connection, None)),
        (false, "established") => Some(PeerMark::of(connection, Some(peer.remote_id.as_deref()?))),
        _ => None,
    }
}

impl Touched {
    fn add(&mut self, spi: IkeSpi) {
        if !self.own.contains(&spi) {
            self.spis.insert(spi);
        }
    }
}

impl Forks {
    /// A standby is in sync.
    pub fn end(&mut self, group: GroupId) {
        self.touched.remove(&group);
    }

    /// Another member owns the group.
    pub fn forget(&mut self, group: GroupId) {
        self.named.retain(|(g, _), _| *g != group);
    }
}

impl Member {
    /// The agent is dead: what it had recorded for its next life.
    pub fn left_forks(&mut self) -> Left {
        let mut left = std::mem::take(&mut self.forks.owed);
        left.retain(|group, _| self.node.owes_a_fork(*group));
        for (group, touched) in std::mem::take(&mut self.forks.touched) {
            let of = left.entry(group).or_default();
            of.0.extend(touched.spis);
            of.1.extend(touched.peers);
        }
        if self.sabotage == Some(Sabotage::ForkNotKept) {
            left.clear();
        }
        left
    }

    /// Whether something is known here alone of what a fork has touched, or would have if it lost.
    pub fn has_untold_forks(&self) -> bool {
        let touched = |of: &Touched| !of.spis.is_empty() || !of.peers.is_empty();
        self.forks.touched.values().any(touched)
            || self.forks.owed.keys().any(|group| self.node.owes_a_fork(*group))
    }

    /// What the life before has left is told like a fork of this one's.
    pub fn take_up_forks(&mut self, now: Instant, left: Left) {
        for (group, (spis, peers)) in &left {
            self.node.handle(Input::ForkTouched {
                now,
                group: *group,
                touched: spis.iter().copied().collect(),
                peers: peers.iter().copied().collect(),
            });
        }
        self.forks.owed = left;
    }

    /// An entry takes effect on the owner.
    pub(super) fn note_touched(&mut self, group: GroupId, changes: &[EntryChange], transmits: &[Transmit]) {
        if !self.node.may_give_way(group) {
            return;
        }
        let touched = self.forks.touched.entry(group).or_default();
        for change in changes {
            match change {
                EntryChange::IkePut(spi, _) => {
                    if !self.mirror.contains_key(spi) {
                        touched.own.insert(*spi);
                    }
                    let met = self.engine.peer_of(*spi).and_then(|peer| mark_of(&peer));
                    touched.peers.extend(met.filter(|_| touched.own.contains(spi)));
                    let status = self.engine.status_of(*spi);
                    if status.is_some_and(|sa| sa.children.iter().any(|child| child.phase != "installed")) {
                        touched.add(*spi);
                    }
                }
                EntryChange::IkeRemove(spi) => touched.add(*spi),
                EntryChange::Child(child) => {
                    match child {
                        ChildSaChange::Install { record, .. } => touched.add(record.ike_spi),
                        ChildSaChange::MoveIkeSa { ike_spi, .. } => touched.add(*ike_spi),
                        _ => {}
                    }
                    if let Some(entry) = self.sad.get(spi_of(child)) {
                        touched.add(entry.record.ike_spi);
                    }
                }
                // A record alone says no more than that Message IDs have moved.
                _ => {}
            }
        }
        let about_children = transmits
            .iter()
            .filter(|t| t.bytes.get(EXCHANGE_AT) == Some(&CREATE_CHILD_SA));
        for spi in about_children.filter_map(|t| t.ike_spi) {
            touched.add(spi);
        }
    }

    /// The fork is discarded.
    pub(super) fn tell_touched(&mut self, cx: &mut Cx<'_>, group: GroupId) {
        let Touched { spis, mut peers, .. } = self.forks.touched.remove(&group).unwrap_or_default();
        if self.sabotage == Some(Sabotage::ForkUnnamed) {
            peers.clear();
        }
        if spis.is_empty() && peers.is_empty() || self.sabotage == Some(Sabotage::ForkForgotten) {
            return;
        }
        cx.trace.note(cx.now, "fork", [u64::from(self.me.0), 0], || {
            format!(
                "member {}: its fork of group {group} touched {spis:?}, and {} peers",
                self.me,
                peers.len()
            )
        });
        let owed = self.forks.owed.entry(group).or_default();
        owed.0.extend(spis.iter().copied());
        owed.1.extend(peers.iter().copied());
        self.node.handle(Input::ForkTouched {
            now: cx.now,
            group,
            touched: spis.into_iter().collect(),
            peers: peers.into_iter().collect(),
        });
    }

    /// A member names what its fork touched.
    pub(super) fn fork_touched(
        &mut self,
        cx: &mut Cx<'_>,
        group: GroupId,
        from: SetMember,
        number: u64,
        (touched, peers): (&[IkeSpi], &[PeerMark]),
    ) {
        let known = self.forks.named.get(&(group, from));
        if known.is_none_or(|known| known.number != number) {
            let mut part = Part {
                number,
                anew: touched.iter().map(|spi| (*spi, None)).collect(),
                check: BTreeSet::new(),
            };
            for spi in self.engine.spis() {
                self.compare(spi, peers, &mut part);
            }
            self.forks.named.insert((group, from), part);
            self.reestablish(cx);
        }
    }

    /// What becomes of an IKE SA here whose peer may be one of those that were named.
    fn compare(&self, spi: IkeSpi, named: &[PeerMark], part: &mut Part) {
        let Some(peer) = self
            .engine
            .peer_of(spi)
            .filter(|peer| peer.phase == "established")
        else {
            return;
        };
        let Some(connection) = peer.connection else { return };
        let is_named = |id| named.contains(&PeerMark::of(connection, id));
        let by_id = peer.remote_id.as_deref().is_some_and(|id| is_named(Some(id)));
        if !by_id && !is_named(None) {
            return;
        }
        let segment = crate::around::segment_of_name(self.steer_key, connection);
        let begins = self.initiates.iter().any(|name| name == connection)
            && self.serving.contains(&self.layout.group_of(segment));
        if begins && (by_id || peer.initiator) {
            part.anew.entry(spi).or_default();
        } else {
            part.check.insert(spi);
        }
    }

    /// Once a second, and when there is something new.
    pub(super) fn reestablish(&mut self, cx: &mut Cx<'_>) {
        let mut due = Vec::new();
        for Part { anew, check, .. } in self.forks.named.values_mut() {
            let (mirror, engine) = (&self.mirror, &self.engine);
            anew.retain(|spi, _| {
                let latest = engine.latest(*spi);
                mirror.contains_key(&latest) || engine.status_of(latest).is_some()
            });
            for (spi, last) in anew {
                if due.len() < PER_SECOND && last.is_none_or(|at| cx.now.since(at) >= AGAIN) {
                    *last = Some(cx.now);
                    due.push(Command::Reestablish { spi: *spi });
                }
            }
            while due.len() < PER_SECOND
                && let Some(spi) = check.pop_first()
            {
                due.push(Command::Liveness { spi });
            }
        }
        for command in due {
            self.engine_command(cx, command);
        }
        let named = std::mem::take(&mut self.forks.named);
        let is_done = |part: &Part| part.anew.is_empty() && part.check.is_empty();
        let (done, open): (Vec<_>, Vec<_>) = named.into_iter().partition(|(_, part)| is_done(part));
        self.forks.named = open.into_iter().collect();
        for ((group, from), Part { number, .. }) in done {
            let (now, member) = (cx.now, from.member);
            self.node_input(
                cx,
                Input::ForkSettled {
                    now,
                    group,
                    member,
                    number,
                },
            );
        }
    }
}
