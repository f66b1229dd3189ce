//! A fork that lost, after its end: the member that discarded it names the IKE SAs that it touched, and the peers with which it made others,
//! to whoever owns the group, again and again, until the owner has dealt with them (design section 3).

use super::{Group, Phase};
use crate::io::Output;
use crate::message::{FORK_SPIS, FORKS_SINCE, GroupBody, MARKS_SINCE, PeerMark, SetMember};
use crate::node::Shared;
use crate::rules_begin;
use model::{IkeSpi, Instant, MemberId};
use std::collections::VecDeque;
use std::time::Duration;

/// They are named again after this time: the record may be lost, or the owner that heard it.
const REPEAT: Duration = Duration::from_secs(1);
/// What is remembered at most; liveness checks are left to find the others.
const MOST: usize = 1 << 17;

/// What a fork touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    IkeSa(IkeSpi),
    Peer(PeerMark),
}

/// What this member's discarded forks touched, and nobody has dealt with.
#[derive(Default)]
pub(crate) struct Fork {
    /// Name of the part that is being told; it rises over this life.
    number: u64,
    /// How many are named in that part.
    told: usize,
    waiting: VecDeque<Named>,
    last: Option<Instant>,
}

/// A part that is told.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    number: u64,
    touched: Vec<IkeSpi>,
    peers: Vec<PeerMark>,
}

impl Fork {
    /// Adds what a fork touched.
    fn add(&mut self, touched: Vec<IkeSpi>, peers: Vec<PeerMark>) {
        let room = MOST.saturating_sub(self.waiting.len());
        let all = touched
            .into_iter()
            .map(Named::IkeSa)
            .chain(peers.into_iter().map(Named::Peer));
        self.waiting.extend(all.take(room));
        self.last = None;
    }

    /// The part that is to be told now, if any.
    fn next(&mut self, now: Instant) -> Option<Part> {
        if self.waiting.is_empty() || self.last.is_some_and(|at| now.since(at) < REPEAT) {
            return None;
        }
        self.last = Some(now);
        if self.told == 0 {
            self.number += 1;
            self.told = self.waiting.len().min(FORK_SPIS);
        }
        let mut part = Part {
            number: self.number,
            touched: Vec::new(),
            peers: Vec::new(),
        };
        for named in self.waiting.iter().take(self.told) {
            match named {
                Named::IkeSa(spi) => part.touched.push(*spi),
                Named::Peer(mark) => part.peers.push(*mark),
            }
        }
        Some(part)
    }

    /// The owner has dealt with a part: on with the next one.
    fn settled(&mut self, number: u64) {
        if number == self.number && self.told > 0 {
            self.waiting.drain(..self.told.min(self.waiting.len()));
            self.told = 0;
            self.last = None;
        }
    }

    /// Nobody else holds what this fork touched any more.
    fn clear(&mut self) {
        self.settled(self.number);
        self.waiting.clear();
    }
}

impl Group {
    /// The agent says what the fork that it has discarded touched.
    pub fn fork_touched(&mut self, s: &mut Shared, now: Instant, touched: Vec<IkeSpi>, peers: Vec<PeerMark>) {
        self.fork.add(touched, peers);
        self.tell_fork(s, now);
    }

    /// Whether there is something that a fork of this member's touched and nobody has dealt with.
    pub fn owes_a_fork(&self) -> bool {
        !self.fork.waiting.is_empty()
    }

    /// Whether what this owner does may turn out to be a fork.
    pub fn may_give_way(&self, s: &Shared) -> bool {
        let Phase::Owner(owner) = &self.phase else {
            return false;
        };
        Self::solo(s).is_some()
            && !s.peers.is_empty()
            && rules_begin::may_give_way(self.epoch, owner.standing)
    }

    /// Names the next part to the owner; where this member has become it, to its own agent.
    pub(super) fn tell_fork(&mut self, s: &mut Shared, now: Instant) {
        let owner = self.epoch.owner;
        let here = match &self.phase {
            // Who holds what the fork touched is another member, and serves, or is lost.
            Phase::Owner(owner) if rules_begin::began_with_nothing(self.epoch, owner.standing) => return,
            Phase::Owner(_) => true,
            Phase::Standby(_) => false,
            Phase::Starting(_) => return,
        };
        let version = s.version_for(owner);
        if !here && (version < FORKS_SINCE || s.peers.get(&owner).is_none_or(|p| p.stream_link().is_none())) {
            return;
        }
        let Some(part) = self.fork.next(now) else { return };
        let Part {
            number,
            touched,
            peers,
        } = part;
        if here {
            let (group, from) = (self.id, s.me);
            s.outputs.push_back(Output::ForkTouched {
                group,
                from,
                number,
                touched,
                peers,
            });
        } else if version < MARKS_SINCE {
            self.to_owner(s, GroupBody::ForkTouched { number, touched });
        } else {
            self.to_owner(
                s,
                GroupBody::ForkNamed {
                    number,
                    touched,
                    peers,
                },
            );
        }
    }

    /// Owner: another member names what its fork touched.
    pub(super) fn fork_told(
        &mut self,
        s: &mut Shared,
        from: SetMember,
        number: u64,
        touched: Vec<IkeSpi>,
        peers: Vec<PeerMark>,
    ) {
        if !matches!(self.phase, Phase::Owner(_)) || touched.len() + peers.len() > FORK_SPIS {
            s.refused += 1;
            return;
        }
        let group = self.id;
        s.outputs.push_back(Output::ForkTouched {
            group,
            from,
            number,
            touched,
            peers,
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

    /// Pair: the other member is about to hold what this owner holds. If this one began with nothing, whatever its forks had touched before
    /// that is lost everywhere.
    pub(super) fn forget_forks_of_what_is_lost(&mut self) {
        if let Phase::Owner(owner) = &self.phase
            && rules_begin::began_with_nothing(self.epoch, owner.standing)
        {
            self.fork.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spis(of: std::ops::Range<u64>) -> Vec<IkeSpi> {
        of.map(IkeSpi).collect()
    }

    fn counted(part: Option<Part>) -> Option<(u64, usize, usize)> {
        part.map(|part| (part.number, part.touched.len(), part.peers.len()))
    }

    #[test]
    fn a_part_is_told_until_it_is_settled_then_the_next_one() {
        let mut fork = Fork::default();
        let at = Instant::from_millis;
        fork.add(spis(0..FORK_SPIS as u64 + 5), vec![]);
        assert_eq!(counted(fork.next(at(0))), Some((1, FORK_SPIS, 0)));
        assert_eq!(fork.next(at(999)), None, "not so soon");
        assert_eq!(
            counted(fork.next(at(1000))),
            Some((1, FORK_SPIS, 0)),
            "the same again"
        );
        fork.settled(0);
        fork.settled(2);
        assert_eq!(fork.next(at(1500)), None, "another part's answer settles nothing");
        // A second fork was lost meanwhile: the part that is being told stays what it was.
        let mark = PeerMark::of("roam", Some("@a"));
        fork.add(spis(9000..9001), vec![mark]);
        assert_eq!(counted(fork.next(at(1600))), Some((1, FORK_SPIS, 0)));
        fork.settled(1);
        let rest = fork.next(at(1601)).expect("the rest, at once");
        assert_eq!((rest.number, rest.touched.len(), rest.peers), (2, 6, vec![mark]));
        fork.settled(1);
        assert!(fork.next(at(9000)).is_some(), "a late copy of an answer");
        fork.settled(2);
        assert_eq!(fork.next(at(99_000)), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_can_be_forgotten() {
        let mut fork = Fork::default();
        let mark = PeerMark::of("roam", None);
        fork.add(spis(0..MOST as u64 + 10), vec![mark]);
        fork.add(spis(0..10), vec![mark]);
        assert_eq!(fork.waiting.len(), MOST);
        let number = fork.next(Instant::from_millis(0)).expect("much").number;
        fork.clear();
        assert_eq!(fork.next(Instant::from_millis(5000)), None);
        fork.add(spis(0..1), vec![]);
        let next = fork.next(Instant::from_millis(5000)).expect("another fork");
        assert!(
            next.number > number,
            "a late answer to what was forgotten is none to this"
        );
    }
}
