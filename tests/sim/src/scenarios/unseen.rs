//! The double fault of a pair without a witness: a standby takes over in a split, sends, dies and comes back empty; the owner, which never
//! heard of it, takes it for a new standby and dies in turn.

use super::{PLAIN, Scenario};
use crate::faults::{Fault, Schedule};
use crate::net::Road;
use crate::setup::{Engine, Setup};
use cluster::Solo;
use model::Instant;
use std::time::Duration;

pub(super) fn both_are_reached(setup: &mut Setup) {
    setup.solo = Solo::Continue;
    // Traffic meets both halves.
    setup.ecmp = true;
    // All groups begin at the first member, and stay where they are.
    setup.weights = vec![1, 0];
    setup.rebalance = None;
    for peer in &mut setup.peers {
        peer.interval_us = peer.interval_us.map(|us| us / 4 + 500);
        (peer.child_rekey, peer.ike_rekey) = (None, None);
    }
}

/// Member 2 is cut off, takes over, serves for `serves` milliseconds, dies, and starts again on a mended network.
pub(super) fn unseen_until(from: Instant, serves: u64) -> Schedule {
    let after = |ms: u64| from + Duration::from_millis(ms);
    let (dies, heals) = (after(200 + serves), after(250 + serves));
    let mut schedule = Schedule::new();
    for road in [Road::Synch, Road::Outside, Road::Inside] {
        for (one, other) in [(1, 2), (2, 1)] {
            schedule.push((from, Fault::Cut(one, other, road)));
            schedule.push((heals, Fault::Mend(one, other, road)));
        }
    }
    schedule.push((dies, Fault::KillHost(2)));
    schedule.push((heals, Fault::Start(2)));
    schedule
}

fn story(setup: &Setup, from: Instant) -> Schedule {
    let after = |ms: u64| from + Duration::from_millis(ms);
    // How long it serves, and how long its next life is in sync before it has to take over: drawn from what the seed has drawn already.
    let (serves, waits) = (300 + setup.steer_key[0] % 500, 250 + setup.steer_key[1] % 900);
    let mut schedule = unseen_until(from, serves);
    let again = after(250 + serves + waits);
    schedule.push((again, Fault::KillHost(1)));
    schedule.push((again + Duration::from_millis(1200), Fault::Start(1)));
    schedule
}

/// What the lost life may have used is nobody's (docs/adr/0013).
pub(super) const TAKER: Scenario = Scenario {
    name: "unseen-taker",
    about: "a standby takes over unseen, dies, comes back empty, and takes over again before SAs are rekeyed",
    weight: 0,
    engine: Some(Engine::Pair),
    schedule: Some(story),
    adjust: both_are_reached,
    ..PLAIN
};
