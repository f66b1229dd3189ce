//! Scenarios by name: mixes of faults that are drawn from the seed, and fixed stories. Every fault of the product that the
//! simulation found stays here as a story of its own (`found.rs`).

mod anew;
mod deaf;
mod empty_half;
mod found;
mod lenient;
mod members;
mod planned;
mod reauth;
mod unseen;

use crate::faults::{Mix, Schedule};
use crate::setup::{Engine, PerResource, Setup};
use model::Instant;
use std::time::Duration;

/// A scenario.
#[derive(Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// How often seeds choose it.
    pub weight: u64,
    /// Faults that are drawn.
    pub mix: Mix,
    /// Faults that are not.
    pub schedule: Option<fn(&Setup, Instant) -> Schedule>,
    /// How long faults last.
    pub lasts: Duration,
    /// Needs this many members.
    pub members: Option<u8>,
    /// Needs this engine.
    pub engine: Option<Engine>,
    /// Changes what was drawn.
    pub adjust: fn(&mut Setup),
    /// Nothing happens but loss, duplication and disorder of synch messages (R7).
    pub noise_only: bool,
    /// Nothing happens but that peers begin anew.
    pub anew_only: bool,
    /// Nothing happens but planned takeovers once faults have lasted for so long: from then on no packet may be lost.
    pub planned_from: Option<Duration>,
    /// And some may be lost: they are counted.
    pub may_lose: bool,
    /// The synch traffic is judged (R5).
    pub judge_traffic: bool,
    /// Of a fault that was found: seeds that showed it.
    pub seeds: Option<&'static [u64]>,
}

const NO_FAULTS: Mix = Mix {
    kill: 0,
    pause: 0,
    slow: 0,
    cut: 0,
    one_way: 0,
    weather: 0,
    peer_path: 0,
    engine: 0,
    operator: 0,
    peer: 0,
    attack: 0,
    burst: 0,
    synch_noise: 0,
};

fn as_drawn(_: &mut Setup) {}

/// What most scenarios share.
const PLAIN: Scenario = Scenario {
    name: "",
    about: "",
    weight: 1,
    mix: NO_FAULTS,
    schedule: None,
    lasts: Duration::from_secs(5),
    members: None,
    engine: None,
    adjust: as_drawn,
    noise_only: false,
    anew_only: false,
    planned_from: None,
    may_lose: false,
    judge_traffic: false,
    seeds: None,
};

fn calm_peers(setup: &mut Setup) {
    for peer in &mut setup.peers {
        peer.interval_us = peer.interval_us.map(|us| us / 8 + 500);
        (peer.child_rekey, peer.ike_rekey) = (None, None);
    }
    setup.step_max = u64::MAX / 2;
}

/// No packet is between two members when a group moves, and none waits for a rekey or a raise: what is lost then is lost in the takeover.
fn one_way_in(setup: &mut Setup) {
    (setup.groups, setup.ecmp) = (1, false);
    for peer in &mut setup.peers {
        peer.per_resource = PerResource::None;
        (peer.child_rekey, peer.ike_rekey) = (None, None);
    }
    (setup.limits.lease, setup.limits.lease_step) = (4096, 4096);
    setup.step_max = 4096;
}

/// All of them.
pub static SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "everything",
        about: "all kinds of faults in one run",
        weight: 30,
        mix: found::EVERYTHING,
        ..PLAIN
    },
    Scenario {
        name: "kills",
        about: "hosts and agents die and start again, captures are replayed",
        weight: 20,
        mix: Mix {
            kill: 5,
            peer: 2,
            attack: 4,
            burst: 2,
            ..NO_FAULTS
        },
        ..PLAIN
    },
    Scenario {
        name: "pauses",
        about: "agents stop and go on, or are slow",
        weight: 12,
        mix: Mix {
            pause: 5,
            slow: 2,
            peer: 2,
            attack: 4,
            burst: 1,
            ..NO_FAULTS
        },
        ..PLAIN
    },
    Scenario {
        name: "cuts",
        about: "partitions of one or all links, one way or both",
        weight: 12,
        mix: found::CUTS,
        ..PLAIN
    },
    Scenario {
        name: "synch-noise",
        about: "loss, duplication and disorder on the synch network only: no SA may die",
        weight: 8,
        mix: Mix {
            synch_noise: 6,
            burst: 1,
            ..NO_FAULTS
        },
        noise_only: true,
        ..PLAIN
    },
    Scenario {
        name: "planned",
        about: "planned takeovers, drains and rebalancing, under some bad weather",
        weight: 12,
        mix: Mix {
            operator: 8,
            weather: 1,
            peer: 2,
            attack: 2,
            burst: 2,
            ..NO_FAULTS
        },
        ..PLAIN
    },
    Scenario {
        name: "planned-only",
        about: "planned takeovers, drains and rebalancing, and nothing else: no packet may be lost",
        weight: 4,
        mix: found::OPERATOR,
        members: Some(2),
        adjust: one_way_in,
        planned_from: Some(Duration::ZERO),
        ..PLAIN
    },
    Scenario {
        name: "engine",
        about: "the ownership engine is down, slow, loses answers; members die meanwhile",
        weight: 8,
        engine: Some(Engine::Etcd),
        mix: found::ENGINE,
        ..PLAIN
    },
    Scenario {
        name: "steady",
        about: "no faults, much traffic: the synch traffic per packet is judged",
        weight: 2,
        adjust: calm_peers,
        judge_traffic: true,
        ..PLAIN
    },
    Scenario {
        name: "no-faults",
        about: "nothing happens at all",
        ..PLAIN
    },
    members::EVERYTHING,
    members::KILLS,
    members::PAUSES,
    members::CUTS,
    members::PLANNED,
    members::ENGINE,
    members::NOISE,
    reauth::EVERYTHING,
    reauth::KILLS,
    reauth::PAUSES,
    reauth::CUTS,
    reauth::PLANNED,
    reauth::ENGINE,
    reauth::MEMBERS,
    reauth::PLANNED_ONLY,
    reauth::ONE_GROUP,
    reauth::SHARED,
    anew::PEERS,
    deaf::OWNER,
    deaf::OWNER_OF_A_PAIR,
    unseen::TAKER,
    empty_half::EMPTY_HALF,
    empty_half::UNTOLD,
    planned::AFTER_A_LOSS,
    planned::AFTER_SKIPPED_EPOCHS,
    lenient::LENIENT,
    lenient::STRICT,
    found::KEPT_RESERVATIONS,
    found::LATE_AFTER_SLEEP,
    found::DELETED_PREDECESSOR,
    found::TWO_LIVES,
    found::LOST_WHILE_ENTERING,
    found::LATE_WRITE,
    found::FORKED_CHILD,
    found::FORKED_REQUEST,
    found::STALE_WINDOW,
    found::EDGE_AHEAD,
    found::FINISHED_ELSEWHERE,
    found::WINNERS_WINDOW,
    found::BEGUN_BELOW,
    found::REKEYED_FORK,
    members::CROSSING_DELETION,
    reauth::FIRST_AGAIN,
    reauth::PUT_OFF,
    reauth::ASKED_ELSEWHERE,
];

impl Scenario {
    /// By its name.
    pub fn named(name: &str) -> Option<&'static Self> {
        SCENARIOS.iter().find(|s| s.name == name)
    }

    /// The one that a number below the sum of all weights stands for.
    pub fn at(mut number: u64) -> &'static Self {
        for scenario in SCENARIOS {
            if number < scenario.weight {
                return scenario;
            }
            number -= scenario.weight;
        }
        &SCENARIOS[0]
    }
}
