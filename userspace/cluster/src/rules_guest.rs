//! Decisions about guests: Child SAs on segments of another group than their IKE SA's (RFC 9611, ADR 11), as pure functions.
//! [`crate::guest`] acts on them, `tests/model` explores them.
//!
//! The *host* owns the group of the SPI: it journals the SA, serves it and raises its limits. The *sponsor* owns the group of the
//! IKE SA: its record says which guests there are.

use crate::rules::EpochId;
use model::{GroupId, MemberId};
use serde::{Deserialize, Serialize};

/// When a sponsor said something: its epoch of the IKE SA's group, and a number that rises with all it says of guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Voice {
    /// The sponsor's epoch of the group.
    pub epoch: EpochId,
    /// Rises with everything that one life says, whatever the group.
    pub number: u64,
    /// The group of the IKE SA.
    pub group: GroupId,
}

/// What a host does with a guest that is to be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lodging {
    /// It journals it.
    Install,
    /// It is there, with its counters: nothing is done, and that is said.
    There,
    /// The SPI was never offered, or it was used up: installed once more, its keys would begin again with number 1.
    Refuse,
}

/// An SPI is installed out of an offer of this host's, and an offer is good for one time.
pub fn lodging(offered: bool, there: bool) -> Lodging {
    match (there, offered) {
        (true, _) => Lodging::There,
        (false, true) => Lodging::Install,
        (false, false) => Lodging::Refuse,
    }
}

/// Whether somebody may speak for the IKE SAs of a group: its owner, in an epoch that is not older than what the host knows.
pub fn may_speak(known: EpochId, voice: EpochId, from: MemberId) -> bool {
    voice.owner == from && voice >= known
}

/// Whether what is said of a guest counts: later than what was said of it before. Records of two links overtake each other.
pub fn counts(before: Option<Voice>, voice: Voice) -> bool {
    before.is_none_or(|before| voice > before)
}

/// Whether a guest goes because a roster of its sponsor's does not list it. One of which the sponsor spoke after the roster stays:
/// the roster does not know it yet.
pub fn evicts(before: Option<Voice>, roster: Voice, listed: bool) -> bool {
    !listed && counts(before, roster)
}

/// How far the host is with what the sponsor's commit needs first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostStep {
    /// Asked.
    Asked,
    /// Committed in the host's journal.
    Committed,
    /// Refused, or no answer in time: the guest is deleted again with the peer.
    Failed,
}

/// Whether the sponsor proposes its own part (the IKE SA's record): not before the host's journal has the guest. So a record never
/// names as certain what nobody could serve, and a message that completes the exchange leaves after both.
pub fn may_propose(step: HostStep) -> bool {
    step != HostStep::Asked
}

/// Whether the guest may carry outbound traffic: the record that names it is committed, so whoever owns the IKE SA next finishes
/// the exchange with the peer.
pub fn may_use(step: HostStep, recorded: bool) -> bool {
    step == HostStep::Committed && recorded
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Epoch;

    fn voice(epoch: u64, number: u64) -> Voice {
        Voice {
            epoch: EpochId {
                number: Epoch(epoch),
                owner: MemberId(1),
            },
            number,
            group: GroupId(0),
        }
    }

    #[test]
    fn a_taker_outranks_whatever_its_predecessor_said() {
        assert!(counts(Some(voice(4, 900)), voice(5, 1)));
        assert!(!counts(Some(voice(5, 1)), voice(4, 900)));
        assert!(!counts(Some(voice(5, 1)), voice(5, 1)), "said twice");
        assert!(evicts(None, voice(1, 1), false) && !evicts(None, voice(1, 1), true));
        assert!(!evicts(Some(voice(5, 2)), voice(5, 1), false));
    }

    #[test]
    fn only_the_owner_of_the_ike_sas_group_speaks_and_not_in_an_epoch_that_is_over() {
        let now = voice(5, 0).epoch;
        assert!(may_speak(now, now, MemberId(1)));
        assert!(!may_speak(now, now, MemberId(2)));
        assert!(!may_speak(now, voice(4, 0).epoch, MemberId(1)));
        assert!(may_speak(now, voice(6, 0).epoch, MemberId(1)), "the host lags");
    }
}
