//! Decisions about what may differ between members: limits in doubt, writes of the ownership engine that have no answer, and
//! mirrors that must not be thrown away too early. Pure functions like those of [`crate::rules`].

use crate::message::{Direction, RESTS_SINCE, SetMember};
use crate::ownership::GroupRecord;
use crate::rules::{self, EpochId, Solo, Standing};
use model::MemberId;
use std::collections::BTreeSet;
use std::time::Duration;

/// What a standby remembers of an SA direction whose limits the other members may not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Doubt {
    /// Armed in an epoch before the present one. No version of the present epoch says that the others have it: only a raise of
    /// this direction that is armed in the present epoch replaces it.
    Before,
    /// Armed in the present epoch, by the raise of this version.
    Version(u64),
}

impl Doubt {
    /// Whether the doubt goes on, now that the owner says that raises up to `settled` are armed by everybody.
    pub fn remains(self, settled: u64) -> bool {
        match self {
            Self::Before => true,
            Self::Version(version) => version > settled,
        }
    }

    /// The same doubt in the epoch of a new owner, whose versions begin anew.
    #[must_use]
    pub fn in_next_epoch(self) -> Self {
        Self::Before
    }
}

/// Directions of the SAs that a lost standby knew whose numbers nobody but the present owner may use any more, and that one only up to
/// what it may use now (`datapath::limits::is_tainted`): the lost one may have taken over, used those above, and died unseen, and then
/// no later owner can tell where to begin. Under `continue` inbound numbers are no part of what a split keeps.
pub fn tainted_by_loss(solo: Solo, standing: Standing) -> &'static [Direction] {
    match (standing, solo) {
        (Standing::AloneUnfenced, Solo::Continue) => &[Direction::Outbound],
        (Standing::AloneUnfenced, Solo::Stop) => &[Direction::Outbound, Direction::Inbound],
        _ => &[],
    }
}

/// How a planned handover deals with SAs that a lost standby knew ([`tainted_by_loss`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handing {
    /// By the distance of epochs alone.
    ByEpochs,
    /// The owner leaves the taker a part of each of their leases. These numbers were the owner's alone: who is lost can have used none of
    /// them, and whoever comes after the taker has none, as before.
    WithRests,
    /// The taker's release cannot be told. It would have no number, so the move waits until they are rekeyed, if it may.
    AfterRekeys,
}

/// Decides on a handover of a group with so many such SAs to a member that speaks this format of records.
pub fn handing(suspects: usize, speaks: u8) -> Handing {
    match (suspects, speaks) {
        (0, _) => Handing::ByEpochs,
        (_, RESTS_SINCE..) => Handing::WithRests,
        _ => Handing::AfterRekeys,
    }
}

/// A planned move waits for rekeys no longer than this: a peer that does not answer must not keep a member from being drained.
pub const REKEYS_PATIENCE: Duration = Duration::from_secs(10);

/// Whether a planned move waits still, which has waited for so long. `trouble`: the owner's data plane does not work; what could be
/// lost by moving is lost already.
pub fn waits_for_rekeys(handing: Handing, waited: Duration, trouble: bool) -> bool {
    handing == Handing::AfterRekeys && !trouble && waited < REKEYS_PATIENCE
}

/// Whether a taker may serve: every other member whose acknowledgement is required follows it, and the limits that it stated
/// anew are armed there.
pub fn may_serve(
    required: &BTreeSet<SetMember>,
    me: MemberId,
    following: &BTreeSet<SetMember>,
    raises_open: usize,
) -> bool {
    raises_open == 0 && required.iter().all(|m| m.member == me || following.contains(m))
}

/// What a member holds of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mirror {
    /// Nothing, or a snapshot of which pieces are missing.
    None,
    /// All that it ever acknowledged in this life.
    Whole,
}

/// Whether a member may ask the ownership engine for a claim at all. That the record lists its life is not enough: it may
/// have given its mirror up since, and the write that takes it out of the set may still be on its way.
pub fn may_ask(mirror: Mirror) -> bool {
    mirror == Mirror::Whole
}

/// Whether a member that cannot follow a taker throws its mirror away when it asks to join. It does not: it is in the set until
/// the taker has taken it out, holds all that was ever committed, and is the one that can go on if the taker dies before that.
/// The taker sends the snapshot after the write that removes the member is done, and the snapshot replaces the mirror.
pub fn discards_when_it_asks() -> bool {
    false
}

/// What a linearizable read tells about a write without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is done.
    Done,
    /// It may still be done, at any time: it must be repeated as it was, and both the old and the new set are required.
    Open,
    /// It was not done and never will be: the record it compares with is gone.
    Void,
}

/// Judges a write of `new` over `expected` by what was `found` afterwards.
///
/// This holds only where no record ever comes back: the engine must compare a revision that rises with every write (etcd:
/// `mod_revision`), not the value alone.
pub fn fate(expected: Option<&GroupRecord>, new: &GroupRecord, found: Option<&GroupRecord>) -> Fate {
    if found == Some(new) {
        Fate::Done
    } else if found == expected {
        Fate::Open
    } else {
        Fate::Void
    }
}

/// Whether an owner whose write came to nothing, because the key holds `held` in its own epoch, takes the set in there for its own: it is
/// in it, and waits for nobody less than it did. The taker of a planned move may not have heard yet of a member that the
/// old owner had written out just before. A set with somebody else in it was written by nobody that counts on him.
pub fn adopts(held: &GroupRecord, epoch: EpochId, me: SetMember, known: &BTreeSet<SetMember>) -> bool {
    held.epoch == epoch
        && epoch.owner == me.member
        && held.in_sync.contains(&me)
        && held.in_sync.is_subset(known)
}

/// Whether nobody is left who may claim: every life in the set is known to be over, since a later one of the same member
/// was heard of. An *earlier* life that this member remembers says nothing.
pub fn nobody_left(record: &GroupRecord, lives: &BTreeSet<SetMember>) -> bool {
    record.in_sync.iter().all(|m| {
        lives
            .iter()
            .any(|l| l.member == m.member && l.incarnation > m.incarnation)
    })
}

/// Whether a member that holds nothing of a group may begin it anew. That the record lists its own life does not keep it from that: a
/// write may have been carried out after this member had looked, and thrown away what it held.
pub fn may_begin_anew(record: &GroupRecord, me: SetMember, lives: &BTreeSet<SetMember>) -> bool {
    nobody_left(&rules::without(record, &BTreeSet::from([me])), lives)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Epoch, Incarnation};

    fn member(member: u8, incarnation: u64) -> SetMember {
        SetMember {
            member: MemberId(member),
            incarnation: Incarnation(incarnation),
        }
    }

    fn record(number: u64, set: &[SetMember]) -> GroupRecord {
        GroupRecord {
            epoch: EpochId {
                number: Epoch(number),
                owner: MemberId(1),
            },
            in_sync: set.iter().copied().collect(),
        }
    }

    #[test]
    fn a_doubt_ends_with_a_settled_version_of_its_own_epoch_only() {
        assert!(Doubt::Version(4).remains(3));
        assert!(!Doubt::Version(4).remains(4));
        assert!(Doubt::Version(4).in_next_epoch().remains(u64::MAX));
    }

    #[test]
    fn a_loss_without_a_fence_taints_what_the_mode_promises() {
        let of = |solo, standing| tainted_by_loss(solo, standing);
        assert_eq!(of(Solo::Continue, Standing::AloneUnfenced), [Direction::Outbound]);
        assert_eq!(of(Solo::Stop, Standing::AloneUnfenced).len(), 2);
        for standing in [Standing::WithStandby, Standing::AloneTaker] {
            assert!(of(Solo::Continue, standing).is_empty() && of(Solo::Stop, standing).is_empty());
        }
    }

    #[test]
    fn a_move_waits_for_rekeys_only_where_nothing_can_be_left_to_the_taker_and_not_for_ever() {
        assert_eq!(handing(0, 3), Handing::ByEpochs);
        assert_eq!(handing(5, RESTS_SINCE), Handing::WithRests);
        assert_eq!(handing(5, RESTS_SINCE - 1), Handing::AfterRekeys);
        let at = |ms| Duration::from_millis(ms);
        let waits = |handing, ms| waits_for_rekeys(handing, at(ms), false);
        assert!(waits(Handing::AfterRekeys, 9_999) && !waits(Handing::AfterRekeys, 10_000));
        assert!(!waits(Handing::WithRests, 0) && !waits(Handing::ByEpochs, 0));
        assert!(!waits_for_rekeys(Handing::AfterRekeys, at(0), true));
    }

    #[test]
    fn a_taker_serves_once_everybody_follows_with_its_limits() {
        let all = BTreeSet::from([member(1, 1), member(2, 1), member(3, 1)]);
        let two = BTreeSet::from([member(2, 1), member(3, 1)]);
        assert!(may_serve(&all, MemberId(1), &two, 0));
        assert!(!may_serve(&all, MemberId(1), &two, 1), "a raise is open");
        assert!(!may_serve(&all, MemberId(1), &BTreeSet::from([member(2, 1)]), 0));
        assert!(
            !may_serve(
                &all,
                MemberId(1),
                &BTreeSet::from([member(2, 1), member(3, 2)]),
                0
            ),
            "another life"
        );
        assert!(may_serve(
            &BTreeSet::from([member(1, 1)]),
            MemberId(1),
            &BTreeSet::new(),
            0
        ));
    }

    #[test]
    fn a_write_without_an_answer_stays_open_while_its_record_stands() {
        let (old, new) = (
            record(1, &[member(1, 1), member(2, 1)]),
            record(1, &[member(1, 1)]),
        );
        assert_eq!(fate(Some(&old), &new, Some(&old)), Fate::Open);
        assert_eq!(fate(Some(&old), &new, Some(&new)), Fate::Done);
        assert_eq!(fate(Some(&old), &new, Some(&record(2, &[]))), Fate::Void);
        assert_eq!(fate(None, &new, None), Fate::Open);
    }

    #[test]
    fn an_old_life_that_is_remembered_does_not_end_the_one_in_the_record() {
        let listed = record(5, &[member(1, 7), member(2, 3)]);
        assert!(nobody_left(
            &listed,
            &BTreeSet::from([member(1, 8), member(2, 4)])
        ));
        assert!(!nobody_left(
            &listed,
            &BTreeSet::from([member(1, 6), member(2, 4)])
        ));
        assert!(!nobody_left(&listed, &BTreeSet::from([member(2, 4)])));
    }

    #[test]
    fn an_owner_takes_over_a_smaller_set_of_its_own_epoch_and_no_other() {
        let known = BTreeSet::from([member(1, 1), member(2, 1), member(3, 1)]);
        let (me, mine) = (member(1, 1), record(1, &[]).epoch);
        let held = |number, set: &[SetMember]| record(number, set);
        assert!(adopts(&held(1, &[me, member(3, 1)]), mine, me, &known));
        assert!(
            !adopts(&held(2, &[me, member(3, 1)]), mine, me, &known),
            "another epoch"
        );
        assert!(!adopts(&held(1, &[member(3, 1)]), mine, me, &known), "not in it");
        assert!(
            !adopts(&held(1, &[me, member(3, 2)]), mine, me, &known),
            "a life that nobody asks"
        );
    }

    #[test]
    fn a_listed_life_that_holds_nothing_begins_anew_and_any_other_listed_life_keeps_it_from_that() {
        let listed = record(5, &[member(1, 7), member(2, 3)]);
        let lives = BTreeSet::from([member(1, 8), member(2, 3)]);
        assert!(may_begin_anew(&listed, member(2, 3), &lives));
        assert!(!may_begin_anew(&listed, member(1, 8), &lives));
        assert!(!may_begin_anew(
            &listed,
            member(2, 3),
            &BTreeSet::from([member(1, 7), member(2, 3)])
        ));
    }

    #[test]
    fn only_a_whole_mirror_claims_and_it_is_kept_while_it_may() {
        assert!(may_ask(Mirror::Whole) && !may_ask(Mirror::None));
        assert!(!discards_when_it_asks());
    }
}
