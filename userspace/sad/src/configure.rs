//! The configured policies: taken in at the start, and the difference when they change while SAs are up.
//!
//! A policy's place among its equals is a number with room around it, so that a policy which is added, removed or moved leaves the
//! numbers of the others, and with them their rules and those of their SAs, as they are: a reload costs what it changes, whatever
//! number of SAs is up.

use crate::port::MapPlan;
use crate::spd::{Effect, Holder, Policy, SpdError, Staged, selector_pairs};
use crate::store::{Sad, SadError, index_of};
use maps_schema::steer::MAX_CONNECTIONS;
use model::{ChildSaRecord, TrafficSelector};
use std::collections::{HashMap, HashSet};

/// Room between two neighbours, where there is so much.
const STEP: u32 = 1 << 16;

/// Stands behind every policy: SAs whose policy is gone.
const LAST: u32 = u32::MAX;

/// Connection and child.
type Key<'a> = (&'a str, &'a str);

fn key(policy: &Policy) -> Key<'_> {
    (&policy.connection, &policy.child)
}

/// Whether both have the same rules. What else they say is for SAs yet to come.
fn same_rules(a: &Policy, b: &Policy) -> bool {
    (a.action, a.handling.hold) == (b.action, b.handling.hold)
        && (&a.local, &a.remote) == (&b.local, &b.remote)
}

impl Sad {
    /// Takes the whole list of configured policies; the plan is the difference to what the map holds. SAs that are
    /// up keep their rules, lifetimes and headers. On an error the former policies stay.
    pub fn configure(&mut self, policies: Vec<Policy>) -> Result<MapPlan, SadError> {
        let connections = self.connections_with(&policies)?;
        let ranks = ranks(&self.policies, &self.ranks, &policies);
        let mut pairs = Vec::new();
        for policy in &policies {
            let of_this = selector_pairs(&policy.local, &policy.remote);
            if of_this.is_empty() {
                let (connection, child) = (policy.connection.clone(), policy.child.clone());
                return Err(SpdError::NoSelectors { connection, child }.into());
            }
            pairs.push(of_this);
        }
        let before: HashMap<Key<'_>, (u32, &Policy)> = named(&self.policies, &self.ranks);
        let after: HashMap<Key<'_>, (u32, &Policy)> = named(&policies, &ranks);
        let stays = |(key, (rank, policy)): (&Key<'_>, &(u32, &Policy)),
                     there: &HashMap<Key<'_>, (u32, &Policy)>| {
            there
                .get(key)
                .is_some_and(|(other_rank, other)| rank == other_rank && same_rules(policy, other))
        };
        let gone = before.iter().filter(|of| !stays(*of, &after));
        let mut out: Vec<Holder> = gone.map(|(_, (rank, _))| Holder::Policy(*rank)).collect();
        let mut put: Vec<Staged<'_>> = Vec::new();
        for ((policy, rank), pairs) in policies.iter().zip(&ranks).zip(&pairs) {
            if !stays((&key(policy), &(*rank, policy)), &before) {
                let connection = index_of(&connections, &policy.connection);
                put.push((
                    Holder::Policy(*rank),
                    Effect::of_policy(policy, connection, *rank),
                    pairs,
                ));
            }
        }
        // SAs whose policy stands elsewhere now, has come, or is gone.
        let moved: HashSet<Key<'_>> = before
            .keys()
            .chain(after.keys())
            .filter(|key| before.get(*key).map(|(rank, _)| rank) != after.get(*key).map(|(rank, _)| rank))
            .copied()
            .collect();
        let mut reindexed = Vec::new();
        if !moved.is_empty() {
            for (slot, entry) in &self.entries {
                let of = (entry.record.connection.as_str(), entry.record.child.as_str());
                if !moved.contains(&of) {
                    continue;
                }
                let connection = index_of(&connections, of.0);
                if connection != entry.connection {
                    reindexed.push((*slot, connection));
                }
                if entry.outbound_in_use {
                    let rank = after.get(&of).map_or(LAST, |(rank, _)| *rank);
                    let effect = Effect::of_sa(entry, connection, rank);
                    out.push(Holder::Slot(*slot));
                    put.push((Holder::Slot(*slot), effect, &entry.pairs));
                }
            }
        }
        let mut plan = self.spd.exchange(&out, &put, "the configuration")?;
        for (slot, connection) in reindexed {
            self.recount(slot, connection);
        }
        (self.policies, self.ranks, self.connections) = (policies, ranks, connections);
        plan.extend(self.end_lingering_renamed());
        Ok(plan)
    }

    /// The place of the policy that an SA belongs to.
    pub(crate) fn rank_of(&self, record: &ChildSaRecord) -> u32 {
        let found = crate::store::policy_of(&self.policies, record);
        found
            .and_then(|(at, _)| self.ranks.get(at as usize).copied())
            .unwrap_or(LAST)
    }

    /// The policy at a place.
    pub(crate) fn policy_at(&self, rank: u32) -> Option<&Policy> {
        self.policies.get(self.ranks.binary_search(&rank).ok()?)
    }

    /// Names of connections by counter index. A name keeps its index; one that is gone gives its up where there is no other.
    fn connections_with(&self, policies: &[Policy]) -> Result<Vec<String>, SadError> {
        let mut connections = self.connections.clone();
        let mut known: HashSet<String> = connections.iter().cloned().collect();
        let wanted: HashSet<&str> = policies.iter().map(|p| p.connection.as_str()).collect();
        for policy in policies {
            // What belongs to no connection is counted by itself.
            if policy.connection.is_empty() || !known.insert(policy.connection.clone()) {
                continue;
            }
            if connections.len() + 1 < MAX_CONNECTIONS {
                connections.push(policy.connection.clone());
                continue;
            }
            let unused = connections
                .iter()
                .position(|name| !wanted.contains(name.as_str()) && self.children_of(name).next().is_none());
            match unused {
                Some(at) => connections[at].clone_from(&policy.connection),
                None => return Err(SadError::TooManyConnections(wanted.len())),
            }
        }
        Ok(connections)
    }
}

fn named<'a>(policies: &'a [Policy], ranks: &[u32]) -> HashMap<Key<'a>, (u32, &'a Policy)> {
    let places = policies.iter().zip(ranks);
    places
        .map(|(policy, rank)| (key(policy), (*rank, policy)))
        .collect()
}

/// Places of the new policies, rising: as many as possible keep the one that they had.
fn ranks(old: &[Policy], old_ranks: &[u32], new: &[Policy]) -> Vec<u32> {
    let before = named(old, old_ranks);
    let had: Vec<Option<u32>> = new
        .iter()
        .map(|policy| before.get(&key(policy)).map(|(rank, _)| *rank))
        .collect();
    fill(&rising(&had), new.len()).unwrap_or_else(|| {
        // No room is left somewhere: all get new places.
        fill(&[], new.len()).unwrap_or_default()
    })
}

/// The longest rising sequence among the places that there were: (index, place).
fn rising(had: &[Option<u32>]) -> Vec<(usize, u32)> {
    // For each length the index of the sequence's last element, and for each element the one before it.
    let (mut ends, mut before): (Vec<usize>, Vec<Option<usize>>) = (Vec::new(), vec![None; had.len()]);
    let place = |at: usize| had[at].unwrap_or_default();
    for (at, of_this) in had.iter().enumerate() {
        let Some(of_this) = *of_this else { continue };
        let length = ends.partition_point(|end| place(*end) < of_this);
        before[at] = length.checked_sub(1).map(|shorter| ends[shorter]);
        if length == ends.len() {
            ends.push(at);
        } else {
            ends[length] = at;
        }
    }
    let mut sequence = Vec::new();
    let mut next = ends.last().copied();
    while let Some(at) = next {
        sequence.push((at, place(at)));
        next = before[at];
    }
    sequence.reverse();
    sequence
}

/// Places for `count` policies, some of which have theirs. `None`: there is not room for all between two of those.
fn fill(kept: &[(usize, u32)], count: usize) -> Option<Vec<u32>> {
    let mut places = Vec::with_capacity(count);
    let mut low = 0;
    for (at, high) in kept.iter().copied().chain([(count, LAST)]) {
        let missing = u32::try_from(at - places.len()).ok()?;
        let gap = STEP.min((high - low) / (missing.checked_add(1)?));
        if missing > 0 && gap == 0 {
            return None;
        }
        places.extend((1..=missing).map(|n| low + gap * n));
        if at < count {
            places.push(high);
            low = high;
        }
    }
    Some(places)
}

/// A pair of selectors of a rule.
pub(crate) type Pairs = Vec<(TrafficSelector, TrafficSelector)>;

#[cfg(test)]
mod tests {
    use super::*;

    fn had(places: &[u32]) -> Vec<Option<u32>> {
        places.iter().map(|p| (*p != 0).then_some(*p)).collect()
    }

    #[test]
    fn what_stays_in_order_keeps_its_place_and_what_is_new_finds_one_between() {
        let first = fill(&[], 4).unwrap();
        assert_eq!(first, [STEP, 2 * STEP, 3 * STEP, 4 * STEP]);
        // The second is gone, one is new between the third and the fourth, one behind.
        let kept = rising(&had(&[first[0], first[2], 0, first[3], 0]));
        let places = fill(&kept, 5).unwrap();
        assert_eq!((places[0], places[1], places[3]), (first[0], first[2], first[3]));
        assert!(places.is_sorted() && places[2] > places[1] && places[4] > places[3]);
    }

    #[test]
    fn one_that_moves_costs_the_others_nothing() {
        // d, a, b, c where a, b, c, d were.
        let kept = rising(&had(&[4 * STEP, STEP, 2 * STEP, 3 * STEP]));
        assert_eq!(kept, [(1, STEP), (2, 2 * STEP), (3, 3 * STEP)]);
        let places = fill(&kept, 4).unwrap();
        assert!(places[0] > 0 && places[0] < STEP, "{places:?}");
    }

    #[test]
    fn without_room_there_is_no_place() {
        assert!(fill(&[(0, 7), (2, 8)], 3).is_none());
        assert!(fill(&[(0, 7), (2, 9)], 3).is_some());
        let many = fill(&[], 200_000).unwrap();
        assert!(many.windows(2).all(|two| two[0] < two[1]) && many[199_999] < LAST);
    }
}
