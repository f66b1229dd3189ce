//! A peer loses all its state and comes back with INITIAL_CONTACT, by an IKE SA that is another group's than the one before: whoever
//! owns that one hears of it through the journal, and does not wait until the peer has been silent for long enough.

use super::{PLAIN, Scenario};
use crate::faults::{Fault, Schedule};
use crate::setup::Setup;
use model::Instant;
use std::time::Duration;

fn several_owners(setup: &mut Setup) {
    setup.groups = 6;
    setup.weights = vec![1; setup.weights.len()];
    for peer in &mut setup.peers {
        peer.initiates = true;
        (peer.child_rekey, peer.ike_rekey) = (None, None);
    }
}

fn story(setup: &Setup, from: Instant) -> Schedule {
    let mut schedule = Schedule::new();
    for time in 0..4 {
        for peer in &setup.peers {
            let late = 1200 * time + setup.steer_key[0] % 97 * u64::from(peer.number);
            let at = from + Duration::from_millis(late);
            schedule.push((at, Fault::PeerRestarts(peer.number)));
        }
    }
    schedule.sort_by_key(|(at, _)| *at);
    schedule
}

/// See above.
pub(super) const PEERS: Scenario = Scenario {
    name: "begins-anew",
    about: "peers start again and know nothing; several members own what they had",
    weight: 2,
    schedule: Some(story),
    adjust: several_owners,
    anew_only: true,
    ..PLAIN
};
