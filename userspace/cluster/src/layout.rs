//! How the 256 segments are cut into groups, and which member each group is meant for.

use model::{GroupId, MemberId, SegmentId};
use std::collections::BTreeMap;

/// Most groups a cluster may have: the claims of all of them fit into one heartbeat.
pub const GROUPS_MAX: u8 = 64;

/// The cut: segment s belongs to group s mod groups. All members must use the same one; it is part of the policy that
/// they compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    groups: u8,
}

impl Layout {
    /// `groups` from 1 (hot standby) to [`GROUPS_MAX`]; anything else is brought into that range.
    pub fn new(groups: u8) -> Self {
        Self {
            groups: groups.clamp(1, GROUPS_MAX),
        }
    }

    /// How many groups there are.
    pub fn count(self) -> u8 {
        self.groups
    }

    /// All groups.
    pub fn groups(self) -> impl Iterator<Item = GroupId> {
        (0..self.groups).map(GroupId)
    }

    /// Group of a segment.
    pub fn group_of(self, segment: SegmentId) -> GroupId {
        GroupId(segment.0 % self.groups)
    }

    /// Group of an SA slot (slot mod 256 is its segment).
    pub fn group_of_slot(self, slot: u32) -> GroupId {
        self.group_of(SegmentId(slot as u8))
    }

    /// Segments of a group.
    pub fn segments(self, group: GroupId) -> impl Iterator<Item = SegmentId> {
        (0..=255)
            .filter(move |s| s % self.groups == group.0)
            .map(SegmentId)
    }
}

/// Which member each group is meant for: shares by weight, as even as whole groups allow. A member of weight 0 is a pure
/// standby. Every member computes the same from the same configuration.
///
/// A member that is away does not change the homes of the groups that stay, so nothing moves but what has to.
pub fn homes(layout: Layout, weights: &BTreeMap<MemberId, u32>) -> BTreeMap<GroupId, MemberId> {
    let mut homes = BTreeMap::new();
    let mut given: BTreeMap<MemberId, u32> = BTreeMap::new();
    for group in layout.groups() {
        // The member whose share is least used; of equal ones the lowest id.
        let next = weights
            .iter()
            .filter(|(_, weight)| **weight > 0)
            .min_by(|(a, wa), (b, wb)| {
                let after = |member| u64::from(given.get(member).copied().unwrap_or(0) + 1);
                // after(a) / wa against after(b) / wb, in whole numbers.
                (after(*a) * u64::from(**wb))
                    .cmp(&(after(*b) * u64::from(**wa)))
                    .then(a.cmp(b))
            });
        let Some(member) = next.map(|(member, _)| *member) else {
            break;
        };
        *given.entry(member).or_insert(0) += 1;
        homes.insert(group, member);
    }
    homes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_segment_is_in_exactly_one_group() {
        for groups in [1, 2, 3, 16, 64] {
            let layout = Layout::new(groups);
            let all: usize = layout.groups().map(|g| layout.segments(g).count()).sum();
            assert_eq!(all, 256);
            for group in layout.groups() {
                assert!(layout.segments(group).all(|s| layout.group_of(s) == group));
            }
        }
        assert_eq!(Layout::new(0).count(), 1);
        assert_eq!(Layout::new(200).count(), GROUPS_MAX);
    }

    #[test]
    fn shares_follow_the_weights() {
        let layout = Layout::new(16);
        let share = |weights: &[(u8, u32)]| {
            let weights = weights.iter().map(|(m, w)| (MemberId(*m), *w)).collect();
            let mut count = BTreeMap::new();
            for member in homes(layout, &weights).into_values() {
                *count.entry(member.0).or_insert(0) += 1;
            }
            count
        };
        assert_eq!(share(&[(1, 1), (2, 1)]), BTreeMap::from([(1, 8), (2, 8)]));
        assert_eq!(share(&[(1, 3), (2, 1)]), BTreeMap::from([(1, 12), (2, 4)]));
        assert_eq!(share(&[(1, 1), (2, 0)]), BTreeMap::from([(1, 16)]));
        assert_eq!(
            share(&[(1, 1), (2, 1), (3, 1)]),
            BTreeMap::from([(1, 6), (2, 5), (3, 5)])
        );
        assert_eq!(share(&[]), BTreeMap::new());
    }
}
