//! One seed, start to end.

use crate::faults;
use crate::rng::Rng;
use crate::sabotage::Sabotage;
use crate::scenarios::{SCENARIOS, Scenario};
use crate::setup::{Engine, Setup};
use crate::world::{Ran, Ways, World};
use model::Instant;
use std::time::Duration;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only this scenario; otherwise the seed chooses.
    pub scenario: Option<&'static Scenario>,
    /// Only this number of members.
    pub members: Option<u8>,
    /// Only this ownership engine.
    pub engine: Option<Engine>,
    /// A rule to break.
    pub sabotage: Option<Sabotage>,
    /// So many of the last events are kept in words.
    pub keep: usize,
}

/// What a seed came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The scenario.
    pub scenario: &'static str,
    /// The world.
    pub setup: Setup,
    /// What happened.
    pub ran: Ran,
}

/// Faults come from here on: connections are up by then, mostly.
const FAULTS_FROM: Instant = Instant::from_millis(2200);

/// Runs a seed.
pub fn run_seed(seed: u64, options: &Options) -> Outcome {
    let mut rng = Rng::new(seed).fork(1);
    let drawn = rng.below(SCENARIOS.iter().map(|s| s.weight).sum());
    let scenario = options.scenario.unwrap_or_else(|| Scenario::at(drawn));
    let (members, engine) = (
        scenario.members.or(options.members),
        scenario.engine.or(options.engine),
    );
    let mut setup = Setup::draw(&mut rng, members, engine);
    (scenario.adjust)(&mut setup);
    if options.sabotage == Some(Sabotage::AlwaysTwo) {
        for peer in &mut setup.peers {
            peer.reauth = Some(Duration::from_millis(900));
        }
    }
    let heal_at = FAULTS_FROM + scenario.lasts;
    let schedule = match scenario.schedule {
        Some(schedule) => schedule(&setup, FAULTS_FROM),
        None => faults::draw(&mut rng, &setup, &scenario.mix, FAULTS_FROM, heal_at),
    };
    let ways = Ways {
        noise_only: scenario.noise_only,
        anew_only: scenario.anew_only,
        planned_from: scenario.planned_from.map(|after| FAULTS_FROM + after),
        may_lose: scenario.may_lose,
        judge_traffic: scenario.judge_traffic,
        sabotage: options.sabotage,
        keep: options.keep,
    };
    let world = World::new(seed, setup.clone(), schedule, heal_at, ways);
    Outcome {
        seed,
        scenario: scenario.name,
        setup,
        ran: world.run(),
    }
}
