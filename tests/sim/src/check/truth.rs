//! Who named itself owner in its own maps, and when the two halves of a pair served at once. The simulated world is asked for what
//! it did (cuts, pauses, deaths), the members only for their owner words.

use super::dead_man;
use cluster::EpochId;
use cluster::io::Flip;
use model::{GroupId, Instant, MemberId};
use std::collections::{BTreeMap, BTreeSet};

struct Claim {
    life: u64,
    epoch: EpochId,
    handover: bool,
}

/// A time in which both halves of a pair served a group.
#[derive(Clone, Copy, Debug)]
struct Split {
    group: GroupId,
    /// When the cut began that let it happen.
    from: Instant,
    /// `None`: it goes on.
    to: Option<Instant>,
}

/// What really was.
pub struct Truth {
    /// A pair of the embedded engine, and whether its owner goes on alone.
    pair: Option<bool>,
    claims: BTreeMap<(GroupId, MemberId), Claim>,
    /// Members whose agent runs.
    awake: BTreeSet<MemberId>,
    /// When an agent last stopped for a while.
    asleep: BTreeMap<MemberId, Instant>,
    lives: BTreeMap<MemberId, u64>,
    /// Since when members cannot hear each other (or one is too slow to be heard), and until when.
    trouble: Vec<(Instant, Option<Instant>)>,
    splits: Vec<Split>,
    fresh: BTreeMap<GroupId, Instant>,
    /// Highest epoch of each group in which a life served that has ended since.
    ghosts: BTreeMap<GroupId, EpochId>,
    /// Owners that gave way to a claim that they had not heard of, with the epoch that ended so.
    lost_halves: BTreeSet<(GroupId, MemberId, u16)>,
    /// Members that an owner went on without, and when.
    excluded: BTreeMap<(GroupId, MemberId), Instant>,
}

/// A claim that stems from a cut comes this long after its end at the latest.
const AFTERMATH_MS: u64 = 2000;

impl Truth {
    /// Nobody is there. `pair`: of the embedded engine, and whether its owner goes on alone.
    pub fn new(pair: Option<bool>) -> Self {
        Self {
            pair,
            claims: BTreeMap::new(),
            awake: BTreeSet::new(),
            asleep: BTreeMap::new(),
            lives: BTreeMap::new(),
            trouble: Vec::new(),
            splits: Vec::new(),
            fresh: BTreeMap::new(),
            excluded: BTreeMap::new(),
            lost_halves: BTreeSet::new(),
            ghosts: BTreeMap::new(),
        }
    }

    /// An agent starts.
    pub fn started(&mut self, now: Instant, member: MemberId, life: u64) {
        self.lives.insert(member, life);
        for ((group, _), claim) in self.claims.iter().filter(|((_, m), _)| *m == member) {
            let ghost = self.ghosts.entry(*group).or_insert(claim.epoch);
            *ghost = claim.epoch.max(*ghost);
        }
        self.claims.retain(|(_, m), _| *m != member);
        self.awake.insert(member);
        self.update(now);
    }

    /// An agent stops for a while, or goes on.
    pub fn awake(&mut self, now: Instant, member: MemberId, awake: bool) {
        if awake {
            self.awake.insert(member);
        } else {
            self.awake.remove(&member);
            self.asleep.insert(member, now);
        }
        self.update(now);
    }

    /// An agent is dead.
    pub fn died(&mut self, now: Instant, member: MemberId) {
        self.lives.remove(&member);
        if self.awake.remove(&member) {
            self.asleep.insert(member, now);
        }
        self.update(now);
    }

    /// Members cannot hear each other well from now on, or can again.
    pub fn trouble(&mut self, now: Instant, trouble: bool) {
        let open = self.trouble.last().is_some_and(|(_, end)| end.is_none());
        match (trouble, open) {
            (true, false) => self.trouble.push((now, None)),
            (false, true) => {
                if let Some(last) = self.trouble.last_mut() {
                    last.1 = Some(now);
                }
            }
            _ => {}
        }
        self.update(now);
    }

    /// Whether there is trouble now.
    pub fn troubled(&self) -> bool {
        self.trouble.last().is_some_and(|(_, end)| end.is_none())
    }

    /// Owner words were written.
    pub fn flipped(&mut self, now: Instant, me: MemberId, life: u64, flip: &Flip) {
        let key = (flip.group, me);
        if flip.epoch.owner == me {
            let known = self.claims.get(&key).is_some_and(|c| c.epoch == flip.epoch);
            if let Some(from) = self
                .excluded
                .remove(&key)
                .filter(|_| self.pair.is_some() && !known)
            {
                // It takes over from an owner that had gone on without it, unheard, and is not there any more.
                self.split_between(flip.group, from, now);
            }
            self.claims.insert(
                key,
                Claim {
                    life,
                    epoch: flip.epoch,
                    handover: flip.legacy.is_some(),
                },
            );
        } else if let Some(claim) = self.claims.remove(&key)
            && flip.legacy.is_none()
            && self.was_split(flip.group)
        {
            let ended = (flip.group, me, claim.epoch.number.low16());
            self.lost_halves.insert(ended);
        }
        self.update(now);
    }

    /// Somebody begins with nothing: no state of the group was left.
    pub fn fresh(&mut self, now: Instant, group: GroupId) {
        self.fresh.insert(group, now);
    }

    /// The cluster lost the group's state after `at`.
    pub fn lost_since(&self, group: GroupId, at: Instant) -> bool {
        self.fresh.get(&group).is_some_and(|fresh| *fresh >= at)
    }

    /// An owner goes on without this member. If that one does not hear of it, it may take over what it does not know all of.
    pub fn excluded(&mut self, now: Instant, group: GroupId, member: MemberId) {
        self.excluded.entry((group, member)).or_insert(now);
        self.update(now);
    }

    /// These are in sync.
    pub fn in_sync(&mut self, group: GroupId, set: &BTreeSet<cluster::SetMember>) {
        if set.len() > 1 {
            self.excluded
                .retain(|(g, m), _| *g != group || !set.iter().any(|s| s.member == *m));
        }
    }

    /// Whether the member names itself owner.
    pub fn claims(&self, group: GroupId, member: MemberId) -> bool {
        self.claims.contains_key(&(group, member))
    }

    /// Since when a member's agent does not run: it sleeps, or is dead while the programs of its host go on.
    pub fn silent_since(&self, member: MemberId) -> Option<Instant> {
        if self.awake.contains(&member) {
            return None;
        }
        self.asleep.get(&member).copied()
    }

    /// Members that name themselves owner of the group and whose agent runs.
    pub fn owners(&self, group: GroupId) -> Vec<(MemberId, EpochId)> {
        self.claims
            .range((group, MemberId(0))..=(group, MemberId(u8::MAX)))
            .filter(|((_, m), claim)| self.awake.contains(m) && self.lives.get(m) == Some(&claim.life))
            .map(|((_, m), claim)| (*m, claim.epoch))
            .collect()
    }

    /// Whether the pair served from two sides at `at`, or was about to.
    pub fn split_at(&self, group: GroupId, at: Instant) -> bool {
        self.splits
            .iter()
            .any(|s| s.group == group && s.from <= at && s.to.is_none_or(|to| at <= to))
    }

    /// The same, of any group.
    pub fn any_split_at(&self, at: Instant) -> bool {
        self.splits
            .iter()
            .any(|s| s.from <= at && s.to.is_none_or(|to| at <= to))
    }

    /// Whether a member's tenure in this epoch ended as the lost half of a split: what it accepted in the split, nobody knows of any more, not
    /// even itself, should it own the group again.
    pub fn lost_half(&self, group: GroupId, member: MemberId, epoch: u16) -> bool {
        self.lost_halves.contains(&(group, member, epoch))
    }

    /// Whether the group ever was split up to now.
    pub fn was_split(&self, group: GroupId) -> bool {
        self.splits.iter().any(|s| s.group == group)
    }

    fn split_between(&mut self, group: GroupId, from: Instant, to: Instant) {
        self.splits.push(Split {
            group,
            from,
            to: Some(to),
        });
    }

    fn update(&mut self, now: Instant) {
        let Some(goes_on) = self.pair else { return };
        // One that slept, or was cut off, goes on from where it was; what a life that has ended did after it, it cannot know.
        let overtaken: Vec<(GroupId, MemberId)> = self
            .claims
            .iter()
            .filter(|((group, m), claim)| {
                self.awake.contains(m) && self.ghosts.get(group).is_some_and(|ghost| claim.epoch < *ghost)
            })
            .map(|(key, _)| *key)
            .collect();
        for (group, member) in overtaken {
            self.ghosts.remove(&group);
            let slept = self.asleep.get(&member).copied();
            let cut = self.trouble.last().map(|(from, _)| *from);
            if let Some(from) = slept.into_iter().chain(cut).min() {
                self.split_between(group, from, now);
            }
        }
        let groups: BTreeSet<GroupId> = self.claims.keys().map(|(group, _)| *group).collect();
        for group in groups {
            let cause = self.cause(now, group, goes_on);
            // The programs of an agent that has stopped serve on until its word expires.
            let of_group = (group, MemberId(0))..=(group, MemberId(u8::MAX));
            let stopped = self
                .claims
                .range(of_group)
                .any(|((_, m), _)| !self.awake.contains(m));
            let end = if stopped { now + dead_man::AT_MOST } else { now };
            let open = self
                .splits
                .iter_mut()
                .find(|s| s.group == group && s.to.is_none());
            match (open, cause) {
                (None, Some(from)) => self.splits.push(Split {
                    group,
                    from,
                    to: None,
                }),
                (Some(split), None) => split.to = Some(end),
                _ => {}
            }
        }
    }

    /// Whether the pair is split now, and since when what led to it goes on.
    ///
    /// Three ways lead there: both run and cannot hear each other; one slept while the other took over, and wakes up when that one
    /// sleeps in turn or is dead, so that nobody is there to tell it; or one went on without the other, which slept, and sleeps or is
    /// dead when that one wakes up and takes over.
    fn cause(&self, now: Instant, group: GroupId, goes_on: bool) -> Option<Instant> {
        let claims: Vec<(MemberId, &Claim)> = self
            .claims
            .range((group, MemberId(0))..=(group, MemberId(u8::MAX)))
            .map(|((_, m), claim)| (*m, claim))
            .collect();
        let [(a, first), (b, second)] = claims[..] else {
            return None;
        };
        if first.handover || second.handover {
            return None;
        }
        let (stale, newer) = if first.epoch < second.epoch {
            (a, b)
        } else {
            (b, a)
        };
        let dead = self.claims.get(&(group, newer)).map(|c| c.life) != self.lives.get(&newer).copied();
        if !goes_on && !dead {
            // Under `stop` an owner waits for its standby, unless that one comes back with nothing: what its last life did unheard,
            // nobody knows.
            return None;
        }
        if let Some(at) = self.excluded.get(&(group, newer)) {
            return Some(*at);
        }
        if !self.awake.contains(&stale) {
            return None;
        }
        let cut = self
            .trouble
            .iter()
            .rev()
            .find(|(_, end)| end.is_none_or(|end| now.millis() <= end.millis() + AFTERMATH_MS))
            .map(|(from, _)| *from);
        let slept = self.asleep.get(&stale).copied();
        if self.awake.contains(&newer) {
            return cut.map(|from| slept.map_or(from, |slept| from.min(slept)));
        }
        slept.into_iter().chain(cut).min()
    }
}
