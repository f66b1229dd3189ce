//! Splits whose loser has nothing to show for itself: one that begins alone with nothing, so that peers that it initiates to drop what
//! they have with the winner; and one whose agent dies before it could say what it did.

use super::{PLAIN, Scenario};
use crate::faults::{Fault, Schedule};
use crate::net::Road;
use crate::setup::{Engine, Setup};
use cluster::Solo;
use model::Instant;
use std::time::Duration;

/// As below, with traffic and peers that reach both halves.
fn both_are_reached(setup: &mut Setup) {
    looks_seldom_after_its_peers(setup);
    setup.ecmp = true;
}

fn looks_seldom_after_its_peers(setup: &mut Setup) {
    setup.solo = Solo::Continue;
    // All groups begin at the first member, and stay where they are.
    setup.weights = vec![1, 0];
    setup.rebalance = None;
    for peer in &mut setup.peers {
        (peer.child_rekey, peer.ike_rekey) = (None, None);
        if !peer.initiates {
            // What the cluster is not told it does not find by itself before the run is over. A peer that initiates does.
            peer.dpd = Duration::from_secs(120);
        }
    }
}

/// Nothing leaves the owner: the other member takes over, and the owner hears that and gives way; then it hears nothing either.
fn story(setup: &Setup, from: Instant) -> Schedule {
    let after = |ms: u64| from + Duration::from_millis(ms);
    let deaf = 250 + setup.steer_key[0] % 400;
    // Longer than an empty member waits that knows of an owner.
    let heals = deaf + 3400 + setup.steer_key[1] % 1200;
    let mut schedule = Schedule::new();
    for road in [Road::Synch, Road::Outside, Road::Inside] {
        for (one, other, begins) in [(1, 2, 0), (2, 1, deaf)] {
            schedule.push((after(begins), Fault::Cut(one, other, road)));
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

/// Both halves serve; peers rekey with whichever they reach; the old owner's agent is killed before the links are back.
fn killed_before_it_tells(setup: &Setup, from: Instant) -> Schedule {
    let after = |ms: u64| from + Duration::from_millis(ms);
    let (dies, heals) = (1500 + setup.steer_key[0] % 200, 1800);
    let mut schedule = Schedule::new();
    for road in [Road::Synch, Road::Outside, Road::Inside] {
        for (one, other) in [(1, 2), (2, 1)] {
            schedule.push((after(0), Fault::Cut(one, other, road)));
            schedule.push((after(heals), Fault::Mend(one, other, road)));
        }
    }
    for peer in &setup.peers {
        schedule.push((after(600), Fault::PeerRekeysChild(peer.number)));
        schedule.push((after(1000), Fault::PeerRekeysIke(peer.number)));
    }
    schedule.push((after(dies), Fault::KillAgent(1)));
    schedule.push((after(heals + 200), Fault::Start(1)));
    schedule.sort_by_key(|(at, _)| *at);
    schedule
}

/// The next life says it (docs/adr/0019).
pub(super) const UNTOLD: Scenario = Scenario {
    name: "untold-fork",
    about: "the agent of a split's loser is killed before it could say what its fork touched",
    weight: 1,
    engine: Some(Engine::Pair),
    schedule: Some(killed_before_it_tells),
    lasts: Duration::from_millis(2500),
    adjust: both_are_reached,
    ..PLAIN
};
