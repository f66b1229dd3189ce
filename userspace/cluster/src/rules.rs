//! The decisions of design section 2 and 3 as pure functions. `Node` acts on them, `tests/model` explores them.

use crate::message::{Direction, SetMember};
use crate::ownership::GroupRecord;
use model::{Epoch, Incarnation, Instant, MemberId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;
use thiserror::Error;

/// An ownership epoch with the member that made it. Two members that raise the epoch at the same time make different
/// ones, and the order decides who goes on when a split heals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EpochId {
    /// The number.
    pub number: Epoch,
    /// Who raised it.
    pub owner: MemberId,
}

impl EpochId {
    /// Before the first owner.
    pub const NONE: Self = Self {
        number: Epoch(0),
        owner: MemberId(0),
    };
}

/// What the owner of a pair does when its standby is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Solo {
    /// Goes on alone.
    Continue,
    /// Serves only while the standby confirms.
    Stop,
}

/// How an owner stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Standing {
    /// Others are in the in-sync set: everything waits for their acknowledgement.
    WithStandby,
    /// In-sync set is itself alone since its epoch began: no upper limits (nobody else holds a claim on this epoch).
    AloneTaker,
    /// Its standby was lost during the epoch, and nothing fences that standby: it may have taken over.
    AloneUnfenced,
}

/// Why a member must not take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoTakeover {
    /// The in-sync set is unknown; unknown is never taken for empty.
    #[error("the in-sync set is not known to this member")]
    SetUnknown,
    /// Not in it with this incarnation.
    #[error("this member (in this incarnation) is not in the in-sync set")]
    NotInSync,
}

/// Only a member of the in-sync set, in the incarnation listed there, may take over.
///
/// # Errors
/// [`NoTakeover`].
pub fn may_take_over(
    set: Option<&BTreeSet<SetMember>>,
    me: MemberId,
    incarnation: Incarnation,
) -> Result<(), NoTakeover> {
    let set = set.ok_or(NoTakeover::SetUnknown)?;
    if set.contains(&SetMember {
        member: me,
        incarnation,
    }) {
        Ok(())
    } else {
        Err(NoTakeover::NotInSync)
    }
}

/// An acknowledgement as it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Epoch in which it was given.
    pub epoch: EpochId,
    /// Who gave it, in which incarnation.
    pub from: SetMember,
    /// The position or version that it is for.
    pub version: u64,
}

/// Whether an acknowledgement counts: of this epoch, from one of those asked (incarnation included), and for exactly the
/// current version.
pub fn ack_counts(epoch: EpochId, asked: &BTreeSet<SetMember>, current: u64, ack: &Ack) -> bool {
    ack.epoch == epoch && asked.contains(&ack.from) && ack.version == current
}

/// The journal position up to which everything is acknowledged: the lowest among those whose acknowledgement is
/// required. With nobody to ask, everything written is committed.
pub fn commit_position(written: u64, acknowledged: impl IntoIterator<Item = u64>) -> u64 {
    acknowledged
        .into_iter()
        .min()
        .map_or(written, |lowest| lowest.min(written))
}

/// Whose acknowledgement a raise needs: the in-sync set but for the owner, and whoever is joining, once its maps hold the
/// snapshot. What was raised before that it is asked for then (see [`JoinFacts::raises_open`]), so that a joiner that
/// is slow, or whose snapshot is damaged, stalls no traffic.
pub fn asked_for_raise(
    set: &BTreeSet<SetMember>,
    me: MemberId,
    joining: Option<SetMember>,
) -> BTreeSet<SetMember> {
    set.iter()
        .copied()
        .chain(joining)
        .filter(|m| m.member != me)
        .collect()
}

/// What becomes of a wish for a higher lease or ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RaiseDecision {
    /// Ask, and use it once all have acknowledged.
    Ask,
    /// Nobody needs to know.
    UseNow,
    /// The lost standby may have started right above the last lease that it acknowledged: stay at or below it, rekey the SA.
    RekeyInstead,
}

/// Decides on a raise of an SA that other members may know.
///
/// An unfenced owner's lease stays where it is even while a new standby joins and could acknowledge a raise: the lost one
/// may have used the numbers above.
pub fn decide_raise(standing: Standing, asked_nobody: bool, direction: Direction) -> RaiseDecision {
    match (standing, direction) {
        (Standing::AloneUnfenced, Direction::Outbound) => RaiseDecision::RekeyInstead,
        _ if !asked_nobody => RaiseDecision::Ask,
        _ => RaiseDecision::UseNow,
    }
}

/// Under `solo = "stop"` an unfenced owner does not move its ceilings either: the lost standby may have accepted what lies
/// above, and this mode promises that nothing is accepted twice.
pub fn under_solo(solo: Solo, standing: Standing, decision: RaiseDecision) -> RaiseDecision {
    match (solo, standing, decision) {
        (Solo::Stop, Standing::AloneUnfenced, RaiseDecision::Ask | RaiseDecision::UseNow) => {
            RaiseDecision::RekeyInstead
        }
        (_, _, decision) => decision,
    }
}

/// A takeover as data: what the agent carries out, in the order of the fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakeoverPlan {
    /// The claimed epoch.
    pub epoch: EpochId,
    /// The old owner.
    pub from: MemberId,
    /// The in-sync set of the new epoch.
    pub in_sync: BTreeSet<SetMember>,
    /// How the taker stands.
    pub standing: Standing,
    /// Journal position up to which its mirror goes; everything after it is truncated.
    pub position: u64,
}

/// Plans the takeover of everything that `old` owned by `me`. Costs nothing per SA: effective leases and ceilings follow
/// from the distance of epochs.
///
/// `above`: number that the claim must pass (see [`claim_above`]). `survivors`: members of the old set that have acknowledged the new epoch (the taker need not be listed).
///
/// # Errors
/// [`NoTakeover`].
pub fn takeover(
    old: EpochId,
    above: Epoch,
    set: Option<&BTreeSet<SetMember>>,
    me: SetMember,
    survivors: &BTreeSet<SetMember>,
    position: u64,
) -> Result<TakeoverPlan, NoTakeover> {
    may_take_over(set, me.member, me.incarnation)?;
    let mut in_sync: BTreeSet<SetMember> = set
        .into_iter()
        .flatten()
        .copied()
        .filter(|m| survivors.contains(m) && m.member != old.owner)
        .collect();
    in_sync.insert(me);
    let standing = if in_sync.len() == 1 {
        Standing::AloneTaker
    } else {
        Standing::WithStandby
    };
    Ok(TakeoverPlan {
        epoch: EpochId {
            number: next_number(old, above),
            owner: me.member,
        },
        from: old.owner,
        in_sync,
        standing,
        position,
    })
}

/// Number of the next claim of what `old` owns: higher than `old`, and than all that lost members may have claimed. Behind the last number
/// that there is comes none: no claim wins then, which is safe.
pub fn next_number(old: EpochId, above: Epoch) -> Epoch {
    Epoch(old.number.max(above).0.saturating_add(1))
}

/// Number that every later claim must pass, once a standby of `epoch` was lost without giving up its place: it may have
/// claimed the next number, used it, and died unseen. Its next life must not use the same (member, epoch) in a nonce.
pub fn claim_above(above: Epoch, epoch: EpochId) -> Epoch {
    next_number(epoch, above)
}

/// How an owner stands after the loss of its standby. Only a standby that gave up its place in the very life that had it
/// can be relied on: one that is silent may be serving, and one that comes back with a new incarnation may have served.
pub fn standing_after_loss(gave_up: bool) -> Standing {
    if gave_up {
        Standing::AloneTaker
    } else {
        Standing::AloneUnfenced
    }
}

/// Whether a record of the epoch `theirs` is obeyed by a member in the epoch `mine`: nothing of an old epoch is acknowledged.
pub fn same_epoch(mine: EpochId, theirs: EpochId) -> bool {
    mine == theirs
}

/// Whether this member must give way to a claim it hears of: the higher (number, owner) wins when a split heals.
pub fn must_yield(mine: EpochId, theirs: EpochId) -> bool {
    theirs > mine
}

/// Facts about a joining member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinFacts {
    /// Its mirror holds the snapshot.
    pub snapshot_armed: bool,
    /// Journal position that it has acknowledged.
    pub acknowledged: u64,
    /// Last position written.
    pub written: u64,
    /// Raises that are not acknowledged yet; those that went into use without the joiner since its snapshot was taken count
    /// until it has acknowledged them.
    pub raises_open: usize,
    /// The owner's upper limits are enforced and its counters lie within what the joiner has acknowledged.
    pub caps_verified: bool,
}

/// Whether a joining member may enter the in-sync set: only after acknowledging all current values.
pub fn may_enter(facts: &JoinFacts) -> bool {
    facts.snapshot_armed
        && facts.caps_verified
        && facts.acknowledged >= facts.written
        && facts.raises_open == 0
}

/// How many intervals of heartbeats a standby gives an owner that does not hear it beyond the threshold: an owner that hears
/// anything at all has excluded it by then, and goes on.
const DEAF_GRACE: u32 = 3;

/// Whether a peer that is heard does not hear this member: for longer than the suspicion threshold, and a little more, its
/// heartbeats have confirmed none of ours.
pub fn is_deaf(unheard: Duration, threshold: Duration, heartbeat: Duration) -> bool {
    unheard >= threshold + heartbeat * DEAF_GRACE
}

/// Whether an in-sync standby counts an owner that it hears as lost: the owner does not hear it, and not because this
/// member is the one that cannot be heard. `heard`: members that this one hears; `deaf`: those of them that do not hear it.
///
/// It costs no safety: who acts on it claims by the same rules as after silence. Under `solo = "stop"` the owner's words have
/// expired by then; under an engine its key settles whether the owner excluded this member first; under `continue` the owner
/// goes on alone as soon as it misses its standby, which is before this and makes the standby join anew.
pub fn owner_is_deaf(owner: MemberId, heard: &BTreeSet<MemberId>, deaf: &BTreeSet<MemberId>) -> bool {
    let mute = heard.len() > 1 && heard.is_subset(deaf);
    deaf.contains(&owner) && !mute
}

/// Whether an owner looks into the engine before it writes a smaller set: when it hears no other member, it may be the
/// one that is deaf. Its write would be done, it would never hear so, and nobody could claim any more. The answer shows that it
/// hears something.
pub fn looks_first(heard: &BTreeSet<MemberId>) -> bool {
    heard.is_empty()
}

/// Members that a claimer believes to be gone: those whose life in the record is not heard, and the owner that it followed, where
/// that one does not hear it (see [`owner_is_deaf`]).
pub fn lost_members(
    record: &GroupRecord,
    lives: &BTreeSet<SetMember>,
    deaf_owner: Option<MemberId>,
) -> BTreeSet<MemberId> {
    let gone = record.in_sync.iter().filter(|m| !lives.contains(m));
    let deaf = deaf_owner.filter(|owner| *owner == record.epoch.owner);
    gone.map(|m| m.member).chain(deaf).collect()
}

/// Until when the owner may serve: send time of the last confirmed heartbeat plus the dead-man's T.
pub fn valid_until(confirmed: Instant, dead_man: Duration) -> Instant {
    confirmed + dead_man
}

/// Versions of raises that every in-sync member has armed: all below the oldest one that somebody may lack.
///
/// `open_since`: for each SA direction with a raise under way, the version of its first raise since all of them agreed
/// (a raise that supersedes another one inherits it). `last`: the last version given out.
pub fn settled(open_since: impl IntoIterator<Item = u64>, last: u64) -> u64 {
    open_since.into_iter().min().map_or(last, |first| first - 1)
}

/// Whether an in-sync member may follow a taker without a snapshot: it was in the epoch that the taker followed, and its
/// mirror ends where the taker's does. One that lags, or holds a tail that the taker lacks, takes a snapshot instead.
///
/// It is not enough for limits: a raise may be armed here and not there. What is in doubt on either side the taker states
/// anew, as raises in its own epoch, before it serves (see [`settled`]).
pub fn may_follow(mine: EpochId, applied: u64, armed: u64, old: EpochId, position: u64) -> bool {
    mine == old && applied == armed && armed == position
}

/// Why an ownership engine must not be asked to write a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoClaim {
    /// See [`NoTakeover`].
    #[error(transparent)]
    NotInSync(#[from] NoTakeover),
    /// The record names an owner that this member hears.
    #[error("the group has an owner that is alive")]
    OwnerLives,
}

/// The claim that a member may write over `record`, as it was read just now. `lost`: members that it believes to be gone;
/// the owner must be one of them. Members of the set that are not lost stay in it.
///
/// A claimer that has never heard of the epoch in `record` may claim all the same: nothing was committed in that epoch
/// without it, since it is in the set, and limits follow from the distance of epochs.
///
/// # Errors
/// [`NoClaim`].
pub fn claim(record: &GroupRecord, me: SetMember, lost: &BTreeSet<MemberId>) -> Result<GroupRecord, NoClaim> {
    may_take_over(Some(&record.in_sync), me.member, me.incarnation)?;
    if record.epoch.owner != me.member && !lost.contains(&record.epoch.owner) {
        return Err(NoClaim::OwnerLives);
    }
    let mut in_sync = record.in_sync.clone();
    in_sync.retain(|m| m.member != record.epoch.owner && !lost.contains(&m.member));
    in_sync.insert(me);
    Ok(GroupRecord {
        epoch: EpochId {
            number: next_number(record.epoch, Epoch(0)),
            owner: me.member,
        },
        in_sync,
    })
}

/// `record` without members that were lost.
pub fn without(record: &GroupRecord, lost: &BTreeSet<SetMember>) -> GroupRecord {
    GroupRecord {
        epoch: record.epoch,
        in_sync: record.in_sync.difference(lost).copied().collect(),
    }
}

/// `record` with a member that has acknowledged everything.
pub fn with(record: &GroupRecord, joiner: SetMember) -> GroupRecord {
    let mut next = record.clone();
    next.in_sync.insert(joiner);
    next
}

/// A planned move of the group to `to`; the old owner stays in sync.
///
/// # Errors
/// `to` is not in the set.
pub fn moved(record: &GroupRecord, to: SetMember) -> Result<GroupRecord, NoTakeover> {
    may_take_over(Some(&record.in_sync), to.member, to.incarnation)?;
    Ok(GroupRecord {
        epoch: EpochId {
            number: next_number(record.epoch, Epoch(0)),
            owner: to.member,
        },
        in_sync: record.in_sync.clone(),
    })
}

/// Whose acknowledgement counts as required while a write of the ownership engine is under way: everybody in the old
/// or the new set. A member that the write adds may claim as soon as the write is done, which this member learns later; one
/// that it removes may claim until then.
pub fn required(known: &BTreeSet<SetMember>, wanted: Option<&BTreeSet<SetMember>>) -> BTreeSet<SetMember> {
    known
        .iter()
        .chain(wanted.into_iter().flatten())
        .copied()
        .collect()
}

/// The record with which a member begins again, with no SAs: after [`crate::rules_doubt::nobody_left`], or by an operator's word.
pub fn start_over(record: Option<&GroupRecord>, me: SetMember) -> GroupRecord {
    let old = record.map_or(EpochId::NONE, |r| r.epoch);
    GroupRecord {
        epoch: EpochId {
            number: next_number(old, Epoch(0)),
            owner: me.member,
        },
        in_sync: BTreeSet::from([me]),
    }
}

/// How an owner stands under an ownership engine: whoever left the set has left it by a committed write.
pub fn standing_in(set: &BTreeSet<SetMember>) -> Standing {
    if set.len() <= 1 {
        Standing::AloneTaker
    } else {
        Standing::WithStandby
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(number: u64, owner: u8) -> EpochId {
        EpochId {
            number: Epoch(number),
            owner: MemberId(owner),
        }
    }

    fn member(member: u8, incarnation: u64) -> SetMember {
        SetMember {
            member: MemberId(member),
            incarnation: Incarnation(incarnation),
        }
    }

    #[test]
    fn behind_the_last_number_comes_none_and_not_the_first_one() {
        let last = Epoch(u64::MAX);
        assert_eq!(next_number(epoch(u64::MAX, 2), Epoch(0)), last);
        assert_eq!(next_number(epoch(1, 2), last), last);
        assert_eq!(next_number(epoch(1, 2), Epoch(0)), Epoch(2));
    }

    #[test]
    fn only_the_listed_incarnation_takes_over_and_an_unknown_set_is_not_an_empty_one() {
        let set = BTreeSet::from([member(1, 1), member(2, 5)]);
        let old = epoch(7, 1);
        let plan = |set, me| takeover(old, Epoch(0), set, me, &BTreeSet::new(), 3);
        let taken = plan(Some(&set), member(2, 5)).expect("in sync");
        assert_eq!(
            (taken.epoch, taken.from, taken.position),
            (epoch(8, 2), MemberId(1), 3)
        );
        assert_eq!(taken.standing, Standing::AloneTaker);
        assert_eq!(plan(Some(&set), member(2, 6)), Err(NoTakeover::NotInSync));
        assert_eq!(plan(None, member(2, 5)), Err(NoTakeover::SetUnknown));
        assert_eq!(
            plan(Some(&BTreeSet::new()), member(2, 5)),
            Err(NoTakeover::NotInSync)
        );
    }

    #[test]
    fn a_claim_passes_what_lost_members_may_have_claimed() {
        let set = BTreeSet::from([member(1, 1), member(2, 6)]);
        let above = claim_above(Epoch(0), epoch(1, 1));
        assert_eq!(above, Epoch(2), "the lost one may own in epoch 2");
        let plan =
            takeover(epoch(1, 1), above, Some(&set), member(2, 6), &BTreeSet::new(), 0).expect("in sync");
        assert_eq!(plan.epoch, epoch(3, 2));
        assert_eq!(
            claim_above(above, epoch(1, 1)),
            Epoch(3),
            "a second loss in the same epoch"
        );
    }

    #[test]
    fn an_acknowledgement_counts_for_its_epoch_its_incarnation_and_its_version_only() {
        let asked = BTreeSet::from([member(2, 5)]);
        let good = Ack {
            epoch: epoch(3, 1),
            from: member(2, 5),
            version: 9,
        };
        let counts = |ack: Ack| ack_counts(epoch(3, 1), &asked, 9, &ack);
        assert!(counts(good));
        assert!(!counts(Ack {
            epoch: epoch(2, 1),
            ..good
        }));
        assert!(!counts(Ack {
            epoch: epoch(3, 2),
            ..good
        }));
        assert!(!counts(Ack {
            from: member(2, 4),
            ..good
        }));
        assert!(!counts(Ack { version: 8, ..good }));
    }

    #[test]
    fn the_slowest_of_those_asked_commits() {
        assert_eq!(commit_position(9, [7, 4]), 4);
        assert_eq!(commit_position(9, []), 9);
        assert_eq!(commit_position(9, [12]), 9, "never beyond what is written");
    }

    #[test]
    fn an_unfenced_owner_keeps_its_leases_whoever_could_acknowledge() {
        for nobody in [true, false] {
            let decision = decide_raise(Standing::AloneUnfenced, nobody, Direction::Outbound);
            assert_eq!(decision, RaiseDecision::RekeyInstead);
        }
        assert_eq!(
            decide_raise(Standing::AloneTaker, true, Direction::Outbound),
            RaiseDecision::UseNow
        );
        assert_eq!(
            decide_raise(Standing::WithStandby, false, Direction::Outbound),
            RaiseDecision::Ask
        );
    }

    #[test]
    fn a_joining_member_enters_with_everything_or_not_at_all() {
        let all = JoinFacts {
            snapshot_armed: true,
            acknowledged: 5,
            written: 5,
            raises_open: 0,
            caps_verified: true,
        };
        assert!(may_enter(&all));
        assert!(!may_enter(&JoinFacts {
            snapshot_armed: false,
            ..all
        }));
        assert!(!may_enter(&JoinFacts {
            acknowledged: 4,
            ..all
        }));
        assert!(!may_enter(&JoinFacts {
            raises_open: 1,
            ..all
        }));
        assert!(!may_enter(&JoinFacts {
            caps_verified: false,
            ..all
        }));
    }

    #[test]
    fn an_owner_that_hears_nobody_is_lost_and_a_member_that_nobody_hears_blames_none() {
        let ms = Duration::from_millis;
        let (threshold, heartbeat) = (ms(100), ms(20));
        assert!(
            !is_deaf(ms(159), threshold, heartbeat),
            "the owner excludes first"
        );
        assert!(is_deaf(ms(160), threshold, heartbeat));
        assert!(
            !is_deaf(ms(160), ms(101), heartbeat),
            "as patient as the jitter wants"
        );
        let of = |members: &[u8]| members.iter().copied().map(MemberId).collect::<BTreeSet<_>>();
        let lost = |heard: &[u8], deaf: &[u8]| owner_is_deaf(MemberId(1), &of(heard), &of(deaf));
        assert!(lost(&[1, 3], &[1]), "member 3 hears this one");
        assert!(lost(&[1], &[1]), "of two nobody can say which it is");
        assert!(!lost(&[1, 3], &[1, 3]), "nobody hears this one");
        assert!(
            !lost(&[1, 3], &[3]) && !lost(&[3], &[]),
            "the owner hears it, or is silent"
        );
        assert!(looks_first(&of(&[])) && !looks_first(&of(&[3])));
    }

    #[test]
    fn a_claimer_counts_a_deaf_owner_as_lost_and_no_other_member() {
        let record = GroupRecord {
            epoch: epoch(4, 1),
            in_sync: BTreeSet::from([member(1, 1), member(2, 2), member(3, 3)]),
        };
        let lives = BTreeSet::from([member(1, 1), member(2, 2), member(3, 3)]);
        let lost = |deaf| lost_members(&record, &lives, deaf);
        assert_eq!(lost(None), BTreeSet::new());
        let deaf = lost(Some(MemberId(1)));
        assert_eq!(deaf, BTreeSet::from([MemberId(1)]));
        let claimed = claim(&record, member(2, 2), &deaf).expect("the owner is lost");
        assert_eq!(claimed.epoch, epoch(5, 2));
        assert_eq!(claimed.in_sync, BTreeSet::from([member(2, 2), member(3, 3)]));
        assert_eq!(
            lost(Some(MemberId(3))),
            BTreeSet::new(),
            "it is not the owner any more"
        );
        let restarted = BTreeSet::from([member(1, 9), member(2, 2), member(3, 3)]);
        assert_eq!(
            lost_members(&record, &restarted, None),
            BTreeSet::from([MemberId(1)]),
            "another life of it"
        );
    }

    #[test]
    fn under_stop_an_unfenced_owner_moves_no_limit() {
        for decision in [
            RaiseDecision::Ask,
            RaiseDecision::UseNow,
            RaiseDecision::RekeyInstead,
        ] {
            assert_eq!(
                under_solo(Solo::Stop, Standing::AloneUnfenced, decision),
                RaiseDecision::RekeyInstead
            );
            assert_eq!(
                under_solo(Solo::Continue, Standing::AloneUnfenced, decision),
                decision
            );
            assert_eq!(under_solo(Solo::Stop, Standing::WithStandby, decision), decision);
        }
    }
}
