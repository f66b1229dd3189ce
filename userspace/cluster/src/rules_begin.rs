//! Who begins in a pair, or without any record, and which of two owners gives way: pure functions like those of [`crate::rules`].

use crate::rules::{EpochId, Standing, must_yield};
use model::Epoch;
use std::time::Duration;

/// [`must_yield`], but for two claims with the same number: both began with nothing, while they did not hear each other. `written`: how
/// long the journals are.
///
/// By history, the longer journal goes on, and of two that are as long the higher owner: else a member that was started while it was cut off
/// would have one that has served for months discard all. Journals only grow, and one that gives way writes no more, so
/// whatever each of the two has heard last of the other, never do both give way. A member of a release before
/// [`crate::message::MARKS_SINCE`] only tells a journal that is empty from one that is not; then so must the other one.
pub fn must_yield_to(
    mine: EpochId,
    written: u64,
    theirs: EpochId,
    their_written: u64,
    by_history: bool,
) -> bool {
    let (ours, other) = match by_history {
        true => (written, their_written),
        false => (written.min(1), their_written.min(1)),
    };
    if mine.number == theirs.number && ours != other {
        return ours < other;
    }
    must_yield(mine, theirs)
}

/// Who becomes the first owner of a cluster that has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstOwner {
    /// This member, now.
    Me,
    /// Wait: for the other one, or for the settling time.
    Wait,
}

/// An empty member of a pair that has heard of an owner in this life waits so many times longer than one that has not before it begins
/// anew: another member has the state, or had it a moment ago.
const PATIENT: u32 = 10;

/// How long an empty member listens before it begins. `knows`: it has heard of an owner in this life.
///
/// What it would do alone is worse than nothing where the other half of a split serves: peers that it initiates to drop what they have with
/// that one. Where the other member is dead indeed, two faults have met, and what is lost by waiting is this time.
pub fn patience(settle: Duration, knows: bool) -> Duration {
    settle * if knows { PATIENT } else { 1 }
}

/// Number of the epoch in which a member of a pair begins with nothing, whatever epochs it has heard of: against any owner that holds
/// something it has to lose. No number or nonce is used twice by that, since the keys of all its SAs are new.
pub const BEGINS: Epoch = Epoch(1);

/// Whether the member whose epoch this one knows has lost it, and begun again below it: within a life nobody's epochs fall.
pub fn has_begun_below(known: EpochId, claimed: EpochId) -> bool {
    known.owner == claimed.owner && claimed.number < known.number
}

/// Whether an owner began its epoch with nothing, and no standby has held the same since: what another member holds is none of its own.
pub fn began_with_nothing(epoch: EpochId, standing: Standing) -> bool {
    epoch.number == BEGINS && standing == Standing::AloneTaker
}

/// Whether what an owner of a pair does may turn out to be a fork that has to give way, so that it is recorded: another member may
/// be serving, and win.
pub fn may_give_way(epoch: EpochId, standing: Standing) -> bool {
    standing == Standing::AloneUnfenced || began_with_nothing(epoch, standing)
}

/// Decides who begins. `peer_heard`: the other member is there and has no owner either.
pub fn first_owner(preferred: bool, peer_heard: bool, waited: Duration, settle: Duration) -> FirstOwner {
    match (peer_heard, preferred) {
        (true, true) => FirstOwner::Me,
        (false, true) if waited >= settle => FirstOwner::Me,
        // Twice as long, so that two members that start together and do not hear each other yet do not both begin, and the
        // preferred one is left time to.
        (_, false) if waited >= settle * 2 => FirstOwner::Me,
        _ => FirstOwner::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::MemberId;

    fn epoch(number: u64, owner: u8) -> EpochId {
        EpochId {
            number: Epoch(number),
            owner: MemberId(owner),
        }
    }

    #[test]
    fn an_empty_member_that_knows_of_an_owner_is_patient_and_records_what_it_does_alone() {
        let settle = Duration::from_secs(1);
        assert_eq!(patience(settle, false), settle);
        assert_eq!(patience(settle, true), settle * 10);
        let alone = Standing::AloneTaker;
        assert!(began_with_nothing(epoch(1, 2), alone) && may_give_way(epoch(1, 2), alone));
        assert!(!may_give_way(epoch(2, 2), alone), "a taker loses against nobody");
        assert!(may_give_way(epoch(7, 2), Standing::AloneUnfenced));
        for standing in [Standing::WithStandby, Standing::AloneUnfenced] {
            assert!(!began_with_nothing(epoch(1, 2), standing));
        }
        assert!(!may_give_way(epoch(1, 2), Standing::WithStandby));
    }

    #[test]
    fn an_owner_whose_number_falls_is_another_life_of_the_same_member() {
        assert!(has_begun_below(epoch(2, 2), epoch(1, 2)));
        assert!(!has_begun_below(epoch(1, 2), epoch(1, 2)) && !has_begun_below(epoch(1, 2), epoch(2, 2)));
        assert!(
            !has_begun_below(epoch(2, 1), epoch(1, 2)),
            "another member's claim"
        );
    }

    /// Each gives way by its own journal as it is and by what it has heard last of the other's, which was no longer then than it is in
    /// the end: journals only grow.
    #[test]
    fn two_owners_with_the_same_number_never_both_give_way_and_in_the_end_one_does() {
        let (a, b) = (epoch(1, 1), epoch(1, 2));
        let up_to = |end: u64| 0..=end;
        for by_history in [true, false] {
            for (of_a, of_b) in up_to(4).flat_map(|m| up_to(4).map(move |t| (m, t))) {
                let a_yields = |heard| must_yield_to(a, of_a, b, heard, by_history);
                let b_yields = |heard| must_yield_to(b, of_b, a, heard, by_history);
                assert!(
                    !(up_to(of_b).any(a_yields) && up_to(of_a).any(b_yields)),
                    "journals of {of_a} and {of_b}, by history: {by_history}"
                );
                assert_ne!(a_yields(of_b), b_yields(of_a), "{of_a} and {of_b}");
            }
        }
    }

    #[test]
    fn the_higher_claim_wins_and_of_equal_numbers_one_that_holds_something() {
        assert!(must_yield(epoch(1, 2), epoch(2, 1)));
        assert!(must_yield(epoch(2, 1), epoch(2, 2)));
        let (a, b) = (epoch(1, 1), epoch(1, 2));
        for by_history in [true, false] {
            assert!(!must_yield_to(a, 4, b, 0, by_history));
            assert!(must_yield_to(b, 0, a, 4, by_history));
            assert!(must_yield_to(a, 4, b, 4, by_history));
            assert!(
                must_yield_to(a, 4, epoch(2, 2), 0, by_history),
                "a higher number always wins"
            );
        }
        assert!(!must_yield_to(a, 4000, b, 4, true), "months of service");
        assert!(
            must_yield_to(a, 4000, b, 4, false),
            "a release before looks no closer"
        );
    }

    #[test]
    fn the_preferred_member_begins_and_the_other_waits_twice_as_long() {
        let settle = Duration::from_secs(1);
        let ms = Duration::from_millis;
        assert_eq!(first_owner(true, true, ms(0), settle), FirstOwner::Me);
        assert_eq!(first_owner(true, false, ms(999), settle), FirstOwner::Wait);
        assert_eq!(first_owner(true, false, ms(1000), settle), FirstOwner::Me);
        assert_eq!(first_owner(false, true, ms(1000), settle), FirstOwner::Wait);
        assert_eq!(first_owner(false, true, ms(2000), settle), FirstOwner::Me);
        assert_eq!(first_owner(false, false, ms(2000), settle), FirstOwner::Me);
    }
}
