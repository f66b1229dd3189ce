//! A split whose loser has nothing, and begins alone in a second one: peers that it initiates to drop what they have with the winner.

use super::{PLAIN, Scenario};
use crate::faults::{Fault, Schedule};
use crate::net::Road;
use crate::setup::{Engine, Setup};
use cluster::Solo;
use model::Instant;
use std::time::Duration;

fn looks_seldom_after_its_peers(setup: &mut Setup) {
    setup.solo = Solo::Continue;
    // All groups begin at the first member, and stay where they are.
    setup.weights = vec![1, 0];
    setup.rebalance = None;
    // What nobody is told, the cluster does not find by itself before the run is over.
    setup.dpd = Duration::from_secs(120);
    for peer in &mut setup.peers {
        (peer.child_rekey, peer.ike_rekey) = (None, None);
    }
}

fn story(setup: &Setup, from: Instant) -> Schedule {
    let after = |ms: u64| from + Duration::from_millis(ms);
    // For how long the two hear each other in between: from "the loser has just given way" to "it is in sync again".
    let heard = 15 + setup.steer_key[0] % 120;
    // The second split is longer than an empty member waits that knows of an owner.
    let (again, heals) = (600 + heard, 600 + heard + 3400 + setup.steer_key[1] % 1200);
    let mut schedule = Schedule::new();
    for road in [Road::Synch, Road::Outside, Road::Inside] {
        for (one, other) in [(1, 2), (2, 1)] {
            schedule.push((after(0), Fault::Cut(one, other, road)));
            schedule.push((after(600), Fault::Mend(one, other, road)));
            schedule.push((after(again), Fault::Cut(one, other, road)));
            schedule.push((after(heals), Fault::Mend(one, other, road)));
        }
    }
    schedule.sort_by_key(|(at, _)| *at);
    schedule
}

/// Now the loser names the peers, and the winner begins anew with them (docs/adr/0019).
pub(super) const EMPTY_HALF: Scenario = Scenario {
    name: "empty-half",
    about: "the loser of a split is cut off again before it has got the state back, and begins alone",
    weight: 2,
    engine: Some(Engine::Pair),
    schedule: Some(story),
    lasts: Duration::from_millis(5500),
    adjust: looks_seldom_after_its_peers,
    ..PLAIN
};
