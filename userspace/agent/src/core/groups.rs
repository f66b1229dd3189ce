//! What this member keeps for each group of segments, and which group anything belongs to.

use std::collections::{BTreeSet, HashSet, VecDeque};

use cluster::Layout;
use ike::Transmit;
use model::{Epoch, EspSpi, GroupId, IkeSpi, Instant, MemberId, SegmentId};

use super::entry::EntryChange;
use super::forks::Touched;
use super::suspects::Suspects;
use crate::api::TakeoverStatus;

/// Who owns a group, as the maps have it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ownership {
    pub owner: Option<MemberId>,
    pub epoch: Epoch,
    /// The in-sync set is the owner alone.
    pub alone: bool,
}

/// A commit of the IKE engine that waits for its acknowledgement.
pub struct Pending {
    pub token: u64,
    pub changes: Vec<EntryChange>,
    pub transmits: Vec<Transmit>,
    /// IKE SAs that the commit is about: their later messages wait behind it.
    pub about: Vec<IkeSpi>,
    /// Proposed while there was no standby: nobody else can know of it.
    pub alone: bool,
    /// The node has it. Until then further commits are added: those of the same turn, and those that come while an earlier entry
    /// waits for its acknowledgement.
    pub proposed: bool,
    pub origin: Origin,
}

/// Whose commit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The IKE engine's, or this agent's own.
    Own,
    /// The IKE engine's, with guests: this job of [`cluster::guest::sponsor::Sponsor`] goes on.
    Sponsor(u64),
    /// Another member's IKE engine's: this job of [`cluster::guest::host::Host`].
    Host(u64),
}

/// A commit of the IKE engine that does something with guests, or waits for one that does.
pub struct Held {
    pub job: u64,
    /// Until it begins.
    pub part: Option<cluster::guest::sponsor::Part>,
    /// Until it is proposed.
    pub changes: Vec<EntryChange>,
    pub transmits: Vec<Transmit>,
    pub about: Vec<IkeSpi>,
    /// SAs that guests of this commit replace.
    pub replaced: Vec<EspSpi>,
}

/// One group.
pub struct Group {
    pub id: GroupId,
    pub ownership: Ownership,
    /// Ownership in the epoch before: the old owner's rights in a planned handover.
    pub before: Ownership,
    /// When the present epoch came.
    pub since: Instant,
    /// Commits in the order in which they were proposed.
    pub pending: VecDeque<Pending>,
    /// Commits that wait for other members, in order; what is about the same IKE SAs waits behind them.
    pub held: VecDeque<Held>,
    /// Standby: something could not be armed; nothing is acknowledged until the next snapshot.
    pub withholding: bool,
    /// Announcements that are still to be repeated, and when.
    pub announce_next: Option<(u32, Instant)>,
    pub suspects: Suspects,
    /// How many of them the node knows of.
    pub suspects_told: usize,
    /// What this owner changed alone.
    pub touched: Touched,
    /// Child SAs rekeyed on evidence in this epoch.
    pub evidence: HashSet<EspSpi>,
    /// The last takeover by this member.
    pub takeover: Option<TakeoverStatus>,
    /// The engine serves the group: since the node said so, until it says otherwise. In a planned takeover the words name
    /// this member before that.
    pub resumed: bool,
    /// Mirrored IKE SAs that the engine has still to adopt.
    pub adopting: BTreeSet<IkeSpi>,
    /// When the adoption began, and how many IKE SAs could not be adopted.
    pub adoption: Option<(Instant, u32)>,
}

impl Group {
    fn new(id: GroupId) -> Self {
        Self {
            id,
            ownership: Ownership::default(),
            before: Ownership::default(),
            since: Instant::default(),
            pending: VecDeque::new(),
            held: VecDeque::new(),
            withholding: false,
            announce_next: None,
            suspects: Suspects::default(),
            suspects_told: 0,
            touched: Touched::default(),
            evidence: HashSet::new(),
            takeover: None,
            resumed: false,
            adopting: BTreeSet::new(),
            adoption: None,
        }
    }

    /// Whether an entry waits for its acknowledgement.
    pub fn is_under_way(&self) -> bool {
        self.pending.iter().any(|p| p.proposed)
    }

    /// The entry that commits go into now.
    pub fn open_entry(&mut self) -> Option<&mut Pending> {
        self.pending.back_mut().filter(|p| !p.proposed)
    }

    /// Whether a proposal of this name waits for its acknowledgement.
    pub fn has_proposed(&self, token: u64) -> bool {
        self.pending.iter().any(|p| p.token == token)
    }
}

/// All groups.
pub struct Groups {
    pub layout: Layout,
    pub me: MemberId,
    list: Vec<Group>,
}

impl Groups {
    pub fn new(layout: Layout, me: MemberId) -> Self {
        Self {
            layout,
            me,
            list: layout.groups().map(Group::new).collect(),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Group> {
        self.list.iter()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        self.list.iter_mut()
    }

    /// The group with this id: the node names only groups of the layout.
    pub fn get(&self, id: GroupId) -> &Group {
        &self.list[usize::from(id.0) % self.list.len()]
    }

    pub fn get_mut(&mut self, id: GroupId) -> &mut Group {
        let count = self.list.len();
        &mut self.list[usize::from(id.0) % count]
    }

    pub fn of(&self, segment: SegmentId) -> &Group {
        self.get(self.layout.group_of(segment))
    }

    pub fn of_mut(&mut self, segment: SegmentId) -> &mut Group {
        self.get_mut(self.layout.group_of(segment))
    }

    pub fn owns(&self, id: GroupId) -> bool {
        self.get(id).ownership.owner == Some(self.me)
    }

    /// Whether the engine serves the segment.
    pub fn serves_segment(&self, segment: SegmentId) -> bool {
        self.owns_segment(segment) && self.of(segment).resumed
    }

    pub fn owns_segment(&self, segment: SegmentId) -> bool {
        self.owns(self.layout.group_of(segment))
    }

    /// Whether this member owns anything.
    pub fn owns_any(&self) -> bool {
        self.list.iter().any(|g| g.ownership.owner == Some(self.me))
    }

    /// The epoch of a segment that this member owns.
    pub fn epoch_if_owned(&self, segment: SegmentId) -> Option<Epoch> {
        let group = self.of(segment);
        (group.ownership.owner == Some(self.me)).then_some(group.ownership.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_segment_follows_the_owner_of_its_group() {
        let mut groups = Groups::new(Layout::new(4), MemberId(2));
        assert!(!groups.owns_any());
        groups.get_mut(GroupId(3)).ownership = Ownership {
            owner: Some(MemberId(2)),
            epoch: Epoch(9),
            alone: false,
        };
        groups.get_mut(GroupId(1)).ownership.owner = Some(MemberId(1));
        assert!(groups.owns_any());
        for segment in (0..=255).map(SegmentId) {
            assert_eq!(groups.owns_segment(segment), segment.0 % 4 == 3, "{segment:?}");
            let epoch = groups.epoch_if_owned(segment);
            assert_eq!(epoch, (segment.0 % 4 == 3).then_some(Epoch(9)));
        }
    }
}
