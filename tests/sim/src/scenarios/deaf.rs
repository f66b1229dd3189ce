//! One-way loss towards an owner: all others hear it, and it hears nobody, not even the ownership engine.

use super::{PLAIN, Scenario};
use crate::faults::{Fault, Schedule};
use crate::net::Road;
use crate::setup::{Engine, Setup};
use cluster::Solo;
use model::Instant;
use std::time::Duration;

/// The member that goes deaf: it is everybody's first choice.
const DEAF: u8 = 1;
/// For so long.
const LASTS: Duration = Duration::from_millis(2500);

fn goes_deaf(setup: &Setup, from: Instant) -> Schedule {
    let between = [Road::Synch, Road::Outside, Road::Inside];
    let others = (1..=setup.members).filter(|m| *m != DEAF);
    let mut ways: Vec<(u8, Road)> = others.flat_map(|m| between.map(|road| (m, road))).collect();
    ways.push((0, Road::Engine));
    let cut = |(m, road): &(u8, Road)| (from, Fault::Cut(*m, DEAF, *road));
    let mend = |(m, road): &(u8, Road)| (from + LASTS, Fault::Mend(*m, DEAF, *road));
    ways.iter().map(cut).chain(ways.iter().map(mend)).collect()
}

fn may_stop(setup: &mut Setup) {
    setup.solo = Solo::Stop;
}

/// Another member takes over, and nothing is sent or accepted twice by the two that serve meanwhile.
pub(super) const OWNER: Scenario = Scenario {
    name: "deaf-owner",
    about: "the owner is heard by all and hears nobody: another member takes over",
    weight: 2,
    engine: Some(Engine::Etcd),
    schedule: Some(goes_deaf),
    ..PLAIN
};

/// As [`OWNER`], in a pair whose owner stops when nobody confirms it.
pub(super) const OWNER_OF_A_PAIR: Scenario = Scenario {
    name: "deaf-owner-of-a-pair",
    about: "the same in a pair under solo = \"stop\": the owner stops, then the standby takes over",
    weight: 1,
    engine: Some(Engine::Pair),
    schedule: Some(goes_deaf),
    adjust: may_stop,
    ..PLAIN
};
