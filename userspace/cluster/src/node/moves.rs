//! Planned moves: commands, draining, rebalancing. One group moves at a time, so that a move never waits for another one's
//! windows, and a member that is lost midway takes one group along, not many.

use super::{EngineKind, Node};
use crate::group::Group;
use crate::io::{Command, EventKind, Output, Refused};
use crate::message::{Body, GroupBody, Link, Message};
use crate::rules_doubt::{Handing, waits_for_rekeys};
use model::{GroupId, Instant, MemberId};
use std::collections::VecDeque;
use std::time::Duration;

/// A draining or ailing member looks this often for somebody to take its groups.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A move that is to come.
struct Wanted {
    group: GroupId,
    to: MemberId,
    /// This member leaves the group because it is drained, or ails: nobody wants the move once that is over.
    leaving: bool,
    /// Since when it waits for rekeys.
    waits: Option<Instant>,
}

#[derive(Default)]
pub(super) struct Moves {
    waiting: VecDeque<Wanted>,
    moving: Option<GroupId>,
    looked: Option<Instant>,
}

impl Moves {
    /// To whom a group is to go once Child SAs that a lost standby knew are rekeyed.
    pub fn waits(&self, group: GroupId) -> Option<MemberId> {
        let waits = |wanted: &&Wanted| wanted.group == group && wanted.waits.is_some();
        self.waiting.iter().find(waits).map(|wanted| wanted.to)
    }
}

impl Node {
    pub(super) fn commanded(&mut self, now: Instant, command: Command) {
        match command {
            Command::TakeoverTo { to, group } => {
                let groups: Vec<GroupId> = match group {
                    Some(group) => vec![group],
                    None => self.shared.config.layout.groups().collect(),
                };
                let one = groups.len() == 1;
                for group in groups {
                    match self.wish(group, to) {
                        Err(Refused::AlreadyOwner(_)) if !one => {}
                        Err(why) => self.refused_move(now, group, to, &why),
                        Ok(()) => {}
                    }
                }
            }
            Command::Drain => {
                self.shared.draining = true;
                self.moves.looked = None;
            }
            Command::Undrain => {
                self.shared.draining = false;
                self.stay();
            }
            Command::Rebalance => {
                self.rebalance(now);
                let message = Message {
                    from: self.shared.me,
                    body: Body::Rebalance,
                };
                let peers: Vec<(MemberId, Link)> = self
                    .shared
                    .peers
                    .values()
                    .filter_map(|p| p.stream_link().map(|link| (p.member, link)))
                    .collect();
                for (peer, link) in peers {
                    let bytes = message.encode(self.shared.version_for(peer));
                    self.shared
                        .outputs
                        .push_back(Output::SendStream { peer, link, bytes });
                }
            }
            Command::StartOver { group } => self.each_group(|g, s| {
                if group.is_none_or(|wanted| wanted == g.id()) {
                    g.start_over(s, now);
                }
            }),
        }
    }

    /// Has a group moved to a member: here, or by asking its owner.
    fn wish(&mut self, group: GroupId, to: MemberId) -> Result<(), Refused> {
        let g = self.group(group).ok_or(Refused::NoOwner)?;
        let (epoch, owner) = (g.epoch(), g.epoch().owner);
        if owner.0 == 0 {
            return Err(Refused::NoOwner);
        }
        if owner == to {
            return Err(Refused::AlreadyOwner(to));
        }
        if g.is_owner() {
            return self.enqueue(group, to, false);
        }
        if !self.shared.alive(owner) {
            return Err(Refused::NoOwner);
        }
        self.shared
            .stream(owner, group, epoch, GroupBody::HandoverRequest { to });
        Ok(())
    }

    fn enqueue(&mut self, group: GroupId, to: MemberId, leaving: bool) -> Result<(), Refused> {
        let g = self.group(group).ok_or(Refused::NoOwner)?;
        g.may_move(&self.shared, to)?;
        if self.moves.moving == Some(group) {
            return Ok(());
        }
        match self.moves.waiting.iter_mut().find(|wanted| wanted.group == group) {
            // Somebody wants it for its own sake, now.
            Some(wanted) => wanted.leaving &= leaving,
            None => self.moves.waiting.push_back(Wanted {
                group,
                to,
                leaving,
                waits: None,
            }),
        }
        Ok(())
    }

    fn refused_move(&mut self, now: Instant, group: GroupId, to: MemberId, why: &Refused) {
        let why = why.to_string();
        self.shared
            .event(now, Some(group), EventKind::HandoverAborted { to, why });
    }

    /// Groups that this member owns go home, where that is possible.
    pub(super) fn rebalance(&mut self, now: Instant) {
        let away: Vec<(GroupId, MemberId)> = self
            .groups
            .iter()
            .filter(|g| g.is_owner() && g.home() != self.shared.me.member && self.shared.fit(g.home()))
            .map(|g| (g.id(), g.home()))
            .collect();
        for (group, home) in away {
            // A home that is not in sync yet gets its groups by the next rebalancing.
            let _ = self.enqueue(group, home, false);
        }
        self.move_on(now);
    }

    /// The next move, if none is under way; what draining, trouble and automatic rebalancing want.
    pub(super) fn move_on(&mut self, now: Instant) {
        let requests: Vec<(GroupId, MemberId)> = self
            .groups
            .iter_mut()
            .filter_map(|g| g.take_request().map(|to| (g.id(), to)))
            .collect();
        for (group, to) in requests {
            if let Err(why) = self.enqueue(group, to, false) {
                let epoch = self.epoch(group);
                let reason = why.to_string();
                self.shared
                    .stream(to, group, epoch, GroupBody::HandoverAborted { reason });
            }
        }
        self.leave(now);
        self.go_home(now);
        if self
            .moves
            .moving
            .is_some_and(|group| self.group(group).is_some_and(Group::is_moving))
        {
            return;
        }
        self.moves.moving = None;
        let mut later = VecDeque::new();
        while let Some(mut wanted) = self.moves.waiting.pop_front() {
            let (group, to) = (wanted.group, wanted.to);
            if self.must_wait(now, &mut wanted) {
                later.push_back(wanted);
                continue;
            }
            match self.with_group(group, |g, s| g.start_handover(s, now, to)) {
                Some(Ok(())) => {
                    self.moves.moving = Some(group);
                    break;
                }
                Some(Err(Refused::AlreadyOwner(_))) | None => {}
                Some(Err(why)) => self.refused_move(now, group, to, &why),
            }
        }
        later.append(&mut self.moves.waiting);
        self.moves.waiting = later;
    }

    /// Whether a move waits until Child SAs that a lost standby knew are rekeyed. Groups that need not wait go before it.
    fn must_wait(&mut self, now: Instant, wanted: &mut Wanted) -> bool {
        let (group, to) = (wanted.group, wanted.to);
        let Some(g) = self.group(group) else { return false };
        if g.may_move(&self.shared, to).is_err() {
            // It will not come about; whoever wants it is told so.
            return false;
        }
        let (handing, suspects) = (g.handing(&self.shared, to), g.status().suspects);
        let waited = wanted.waits.map_or(Duration::ZERO, |since| now.since(since));
        let waits = waits_for_rekeys(handing, waited, self.shared.trouble.is_some());
        let kind = match (waits, wanted.waits) {
            (true, None) => EventKind::MoveWaits { to, suspects },
            (false, Some(_)) if handing == Handing::AfterRekeys => {
                EventKind::MoveWaitedInVain { to, suspects }
            }
            _ => return waits,
        };
        wanted.waits.get_or_insert(now);
        self.shared.event(now, Some(group), kind);
        waits
    }

    /// This member is not drained any more, or well again: moves that nobody else wants are not to be.
    pub(super) fn stay(&mut self) {
        if self.shared.trouble.is_none() && !self.shared.draining {
            self.moves.waiting.retain(|wanted| !wanted.leaving);
        }
    }

    /// Draining, or in trouble: everything that others can take goes to them, evenly by weight.
    fn leave(&mut self, now: Instant) {
        let wanted = self.shared.draining || self.shared.trouble.is_some();
        if !wanted || self.moves.looked.is_some_and(|at| now.since(at) < LOOK_AGAIN) {
            return;
        }
        self.moves.looked = Some(now);
        let owned: Vec<GroupId> = self
            .groups
            .iter()
            .filter(|g| g.is_owner())
            .map(Group::id)
            .collect();
        let mut load: std::collections::BTreeMap<MemberId, u64> = std::collections::BTreeMap::new();
        for group in &self.groups {
            *load.entry(group.epoch().owner).or_insert(0) += 1;
        }
        for group in owned {
            let takers = self
                .shared
                .config
                .members
                .iter()
                .filter(|(member, _)| **member != self.shared.me.member && self.shared.fit(**member))
                .filter(|(member, _)| {
                    self.group(group)
                        .is_some_and(|g| g.may_move(&self.shared, **member).is_ok())
                });
            // The least loaded for its weight; a pure standby (weight 0) counts as lightest of all but one.
            let best = takers
                .min_by_key(|(member, weight)| {
                    let used = load.get(member).copied().unwrap_or(0) + 1;
                    (used * 1000 / u64::from(**weight).max(1), **member)
                })
                .map(|(member, _)| *member);
            let Some(best) = best else { continue };
            if self.enqueue(group, best, true).is_ok() {
                *load.entry(best).or_insert(0) += 1;
            }
        }
    }

    /// Automatic rebalancing: a group goes home once its home has been in sync and fit for long enough.
    fn go_home(&mut self, now: Instant) {
        let Some(pause) = self.shared.config.rebalance else {
            return;
        };
        let mut due = Vec::new();
        for group in &mut self.groups {
            if group.home_is_ready(&self.shared, now, pause) {
                due.push((group.id(), group.home()));
            }
        }
        for (group, home) in due {
            let _ = self.enqueue(group, home, false);
        }
    }

    /// Whether ownership is settled by an external engine.
    pub fn has_engine(&self) -> bool {
        self.shared.config.engine == EngineKind::External
    }
}
