//! A fork that lost, after its end: the member that discarded it names the IKE SAs that it touched to whoever owns the group, again
//! and again, until the owner has dealt with them (design section 3).

use super::{Group, Phase};
use crate::io::Output;
use crate::message::{FORK_SPIS, FORKS_SINCE, GroupBody, SetMember};
use crate::node::Shared;
use model::{IkeSpi, Instant, MemberId};
use std::collections::VecDeque;
use std::time::Duration;

/// IKE SAs are named again after this time: the record may be lost, or the owner that heard it.
const REPEAT: Duration = Duration::from_secs(1);
/// IKE SAs that are remembered at most; liveness checks are left to find the others.
const MOST: usize = 1 << 17;

/// What this member's discarded forks touched, and nobody has dealt with.
#[derive(Default)]
pub(crate) struct Fork {
    /// Name of the part that is being told; it rises over this life.
    number: u64,
    /// SPIs in that part.
    told: usize,
    waiting: VecDeque<IkeSpi>,
    last: Option<Instant>,
}

impl Fork {
    /// Adds what a fork touched.
    fn add(&mut self, touched: Vec<IkeSpi>) {
        let room = MOST.saturating_sub(self.waiting.len());
        self.waiting.extend(touched.into_iter().take(room));
        self.last = None;
    }

    /// The part that is to be told now, if any.
    fn next(&mut self, now: Instant) -> Option<(u64, Vec<IkeSpi>)> {
        if self.waiting.is_empty() || self.last.is_some_and(|at| now.since(at) < REPEAT) {
            return None;
        }
        self.last = Some(now);
        if self.told == 0 {
            self.number += 1;
            self.told = self.waiting.len().min(FORK_SPIS);
        }
        Some((
            self.number,
            self.waiting.iter().take(self.told).copied().collect(),
        ))
    }

    /// The owner has dealt with a part: on with the next one.
    fn settled(&mut self, number: u64) {
        if number == self.number && self.told > 0 {
            self.waiting.drain(..self.told.min(self.waiting.len()));
            self.told = 0;
            self.last = None;
        }
    }
}

impl Group {
    /// The agent says what the fork that it has discarded touched.
    pub fn fork_touched(&mut self, s: &mut Shared, now: Instant, touched: Vec<IkeSpi>) {
        self.fork.add(touched);
        self.tell_fork(s, now);
    }

    /// Names the next part to the owner; where this member has become it, to its own agent.
    pub(super) fn tell_fork(&mut self, s: &mut Shared, now: Instant) {
        let owner = self.epoch.owner;
        let here = matches!(self.phase, Phase::Owner(_));
        let able = here
            || matches!(self.phase, Phase::Standby(_))
                && s.version_for(owner) >= FORKS_SINCE
                && s.peers.get(&owner).is_some_and(|p| p.stream_link().is_some());
        if !able {
            return;
        }
        let Some((number, touched)) = self.fork.next(now) else {
            return;
        };
        if here {
            let (group, from) = (self.id, s.me);
            s.outputs.push_back(Output::ForkTouched {
                group,
                from,
                number,
                touched,
            });
        } else {
            self.to_owner(s, GroupBody::ForkTouched { number, touched });
        }
    }

    /// Owner: another member names what its fork touched.
    pub(super) fn fork_told(&mut self, s: &mut Shared, from: SetMember, number: u64, touched: Vec<IkeSpi>) {
        if !matches!(self.phase, Phase::Owner(_)) || touched.len() > FORK_SPIS {
            s.refused += 1;
            return;
        }
        let group = self.id;
        s.outputs.push_back(Output::ForkTouched {
            group,
            from,
            number,
            touched,
        });
    }

    /// Owner: its agent has dealt with a part.
    pub fn fork_settled(&mut self, s: &mut Shared, now: Instant, member: MemberId, number: u64) {
        if member == s.me.member {
            self.fork.settled(number);
            self.tell_fork(s, now);
        } else if matches!(self.phase, Phase::Owner(_)) && s.version_for(member) >= FORKS_SINCE {
            self.stream(s, member, GroupBody::ForkSettled { number });
        }
    }

    /// The owner has dealt with a part of this member's.
    pub(super) fn fork_heard_settled(&mut self, s: &mut Shared, now: Instant, number: u64) {
        self.fork.settled(number);
        self.tell_fork(s, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spis(of: std::ops::Range<u64>) -> Vec<IkeSpi> {
        of.map(IkeSpi).collect()
    }

    #[test]
    fn a_part_is_told_until_it_is_settled_then_the_next_one() {
        let mut fork = Fork::default();
        let at = Instant::from_millis;
        fork.add(spis(0..FORK_SPIS as u64 + 5));
        let (first, part) = fork.next(at(0)).expect("something to tell");
        assert_eq!(part.len(), FORK_SPIS);
        assert_eq!(fork.next(at(999)), None, "not so soon");
        assert_eq!(fork.next(at(1000)), Some((first, part)), "the same again");
        fork.settled(first - 1);
        fork.settled(first + 1);
        assert_eq!(fork.next(at(1500)), None, "another part's answer settles nothing");
        // A second fork was lost meanwhile: the part that is being told stays what it was.
        fork.add(spis(9000..9001));
        assert_eq!(
            fork.next(at(1600)).map(|(n, p)| (n, p.len())),
            Some((first, FORK_SPIS))
        );
        fork.settled(first);
        let (second, part) = fork.next(at(1601)).expect("the rest, at once");
        assert_eq!((second, part.len()), (first + 1, 6));
        fork.settled(first);
        assert!(fork.next(at(9000)).is_some(), "a late copy of an answer");
        fork.settled(second);
        assert_eq!(fork.next(at(99_000)), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut fork = Fork::default();
        fork.add(spis(0..MOST as u64 + 10));
        fork.add(spis(0..10));
        assert_eq!(fork.waiting.len(), MOST);
    }
}
